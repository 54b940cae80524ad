//! Going over to a newer version of the table's schema. Nothing is rewritten: rows in memory get the new columns, the log goes
//! on in a file that names them, and segments keep the columns that they have.

use std::path::Path;
use std::sync::Arc;

use shoal_kernel::env::Disk;
use shoal_kernel::{Error, ErrorCode, Result, TableSchema};

use super::{Store, lock};
use crate::layout::Layout;
use crate::manifest::{read_schema, write_schema};
use crate::wal::LogFailure;

impl Store {
    /// The version of the schema that writes are taken under.
    pub fn schema_version(&self) -> u32 {
        self.layout().schema.version
    }

    /// Goes over to a newer version of the schema; one that is not newer changes nothing. Reads and flushes go on. Writes made
    /// for an older version are still taken afterwards. Durable on return: the store never goes back to an older version.
    ///
    /// # Errors
    /// As the disk reports: the store goes on as it was, unless it must be opened again. [`ErrorCode::Unsupported`] for column
    /// types that cannot be stored, and for a schema that is not one of this table.
    pub fn adopt(&self, schema: Arc<TableSchema>) -> Result<()> {
        let mut writer = lock(&self.writer);
        writer.check_sound()?;
        let old = self.layout();
        if schema.version <= old.schema.version {
            return Ok(());
        }
        let layout = Arc::new(Layout::new(schema)?);
        check_follows(&old, &layout)?;
        // Before a row of it is logged: whoever opens the directory must not read such a row by an older schema.
        write_schema(&self.disk, &self.dir, &layout.schema)?;
        match writer.wal.follow(layout.stored.clone()) {
            Ok(()) => {}
            Err(LogFailure::Refused(error)) => return Err(error),
            Err(LogFailure::Doubt(error)) => return Err(self.give_up(&mut writer, error)),
        }
        let mut state = lock(&self.state);
        state.wal_bytes = writer.wal.bytes();
        state.adopt(layout)
    }
}

/// The newer one of the schema that is given and the one that the directory knows. It is in the directory on return.
pub(super) fn newest_schema(disk: &Arc<dyn Disk>, dir: &Path, given: Arc<TableSchema>) -> Result<Arc<TableSchema>> {
    match read_schema(disk, dir)? {
        Some(known) if known.version >= given.version => Ok(Arc::new(known)),
        _ => {
            keep_schema(disk, dir, &given)?;
            Ok(given)
        }
    }
}

/// Makes a directory know a schema. What was never altered needs no file.
pub(super) fn keep_schema(disk: &Arc<dyn Disk>, dir: &Path, schema: &TableSchema) -> Result<()> {
    if schema.version > 1 { write_schema(disk, dir, schema) } else { Ok(()) }
}

/// Checks that rows keep their identities.
fn check_follows(old: &Layout, new: &Layout) -> Result<()> {
    let key = |layout: &Layout| layout.key.iter().map(|place| layout.stored[*place].clone()).collect::<Vec<_>>();
    let is_kept = |column: &crate::layout::StoredColumn| {
        new.stored.contains(column) || old.schema.is_upsert() && new.stored.iter().all(|kept| kept.id != column.id)
    };
    if key(old) == key(new) && old.schema.is_upsert() == new.schema.is_upsert() && old.stored.iter().all(is_kept) {
        return Ok(());
    }
    Err(Error::new(ErrorCode::Unsupported, "the new schema does not keep what identifies the table's rows"))
}
