//! How far a log is durable: known to whoever appends, and moved by whoever syncs, perhaps at the same time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use shoal_kernel::env::DiskFile;
use shoal_kernel::{Applied, Error, Result};

/// What is known of syncs, over all files of one life of a log.
#[derive(Debug)]
pub(crate) struct Durability {
    synced: AtomicU64,
    /// Held through a sync, so that none passes for good that ran beside one which failed: the operating system tells of a
    /// failure once. What it told, for ever after.
    failed: Mutex<Option<Error>>,
}

impl Durability {
    /// Of a log whose records up to that position are durable.
    pub(crate) fn new(position: u64) -> Self {
        Self { synced: AtomicU64::new(position), failed: Mutex::default() }
    }

    /// Position up to which records are durable.
    pub(crate) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }
}

/// A sync that is to be carried out.
pub(crate) struct PendingSync {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) position: u64,
    pub(super) durability: Arc<Durability>,
}

impl PendingSync {
    /// Syncs. After an error, whatever was not synced before is in doubt for good.
    pub(crate) fn run(self) -> Result<()> {
        let mut failed = self.durability.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &*failed {
            return Err(error.clone());
        }
        if let Err(error) = self.file.sync() {
            let error = Error::from(error).context("syncing the log").with_applied(Applied::Unknown);
            return Err(failed.insert(error).clone());
        }
        self.durability.synced.fetch_max(self.position, Ordering::AcqRel);
        Ok(())
    }
}
