//! Making the log durable behind the acknowledgements, and giving up when that fails.

use shoal_kernel::{Applied, Error, Result};

use super::{Store, Writer, lock};

impl Store {
    /// Makes everything durable that was accepted before the call. Commits go on meanwhile. With
    /// [`crate::StoreOptions::sync_commits`] there is nothing to do.
    ///
    /// # Errors
    /// As the disk reports: what was accepted since the last sync is in doubt, and every later commit fails until the store is
    /// opened anew. [`shoal_kernel::ErrorCode::NotReady`] if that was so before.
    pub fn sync(&self) -> Result<()> {
        let pending = {
            let writer = lock(&self.writer);
            writer.check_sound()?;
            if !writer.wal.is_lazy() || self.unsynced() == 0 {
                return Ok(());
            }
            writer.wal.pending_sync()
        };
        pending.run().map_err(|error| self.give_up(&mut lock(&self.writer), error))
    }

    /// Records that were accepted and are not known to be durable.
    pub fn unsynced(&self) -> u64 {
        lock(&self.state).position.saturating_sub(self.durability.synced())
    }

    /// Takes no more commits: nobody knows what the disk holds. Gives the error that says so.
    pub(super) fn give_up(&self, writer: &mut Writer, error: Error) -> Error {
        let (dir, unsynced) = (self.dir.display(), self.unsynced());
        let error = match unsynced {
            0 => error,
            // Acknowledged, because the table's owner did not ask to wait.
            records => error.context(format_args!("the newest {records} records that were acknowledged are in doubt")),
        };
        tracing::error!(%dir, %error, unsynced, "the log is in doubt; no more commits are taken");
        writer.failed = Some(error.clone());
        lock(&self.state).failed = Some(error.clone());
        error.with_applied(Applied::Unknown)
    }
}
