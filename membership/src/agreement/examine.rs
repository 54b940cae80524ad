//! Looking at the files of the catalog without taking part: nothing is changed.

use std::path::Path;
use std::sync::Arc;

use shoal_catalog::Catalog;
use shoal_kernel::env::Disk;
use shoal_kernel::{Error, ErrorCode, NodeId, Result};

use super::journal::Journal;
use super::recover::LogEnd;
use super::{log, machine};

/// What lies in a node's catalog directory.
#[derive(Debug, Clone, Default)]
pub struct CatalogReport {
    /// The catalog as a start would show it at first; empty if it cannot be read.
    pub catalog: Catalog,
    /// The log belongs to this node.
    pub owner: Option<NodeId>,
    /// Index of the last entry applied to it.
    pub applied: Option<u64>,
    /// Where its log ends, agreed upon or not.
    pub end: Option<LogEnd>,
    /// Entries in the log.
    pub entries: usize,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Bytes of the snapshot.
    pub snapshot_bytes: u64,
    /// Bytes at the log's end of a write that never finished: nobody was told of it, and the next start cuts it off.
    pub torn_bytes: u64,
    /// What is wrong. Each names its file.
    pub errors: Vec<Error>,
}

/// Reads log and snapshot of a data directory, whose node is the given one if that is known.
///
/// # Errors
/// A file cannot be read. Damage is in the report.
pub fn examine(disk: &Arc<dyn Disk>, data_dir: &Path, node: Option<NodeId>) -> Result<CatalogReport> {
    let dir = data_dir.join("catalog");
    let (log, snapshot) = (read(disk, &dir.join(log::FILE))?, read(disk, &dir.join(machine::FILE))?);
    let mut report = CatalogReport {
        log_bytes: log.as_ref().map_or(0, |bytes| bytes.len() as u64),
        snapshot_bytes: snapshot.as_ref().map_or(0, |bytes| bytes.len() as u64),
        owner: log.as_deref().and_then(Journal::owner),
        ..CatalogReport::default()
    };
    let replayed = match (&log, node.or(report.owner)) {
        (Some(bytes), Some(node)) => Journal::replay(bytes, node),
        // Without an owner not even its beginning can be read.
        (Some(bytes), None) => Journal::replay(bytes, NodeId::default()),
        (None, _) => Ok((Journal::default(), 0)),
    };
    let journal = match replayed {
        Ok((journal, good)) => {
            report.torn_bytes = report.log_bytes - good as u64;
            journal
        }
        Err(error) => {
            report.errors.push(error);
            Journal::default()
        }
    };
    report.entries = journal.entries.len();
    report.end = journal.last().map(LogEnd::from);
    match machine::restored(snapshot.as_deref(), &journal) {
        Ok((catalog, applied)) => (report.catalog, report.applied) = (catalog, applied),
        Err(error) => report.errors.push(error),
    }
    let purged = journal.purged.map(|id| id.index);
    if report.errors.is_empty() && purged > report.applied {
        let what = "it is older than the entries that the log has already let go of";
        report.errors.push(Error::new(ErrorCode::Corruption, what).in_file("catalog/snapshot", None));
    }
    Ok(report)
}

/// The content of a file, if it is there.
pub(super) fn read(disk: &Arc<dyn Disk>, path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |error| Error::from(error).context(path.display());
    match disk.exists(path).map_err(failed)? {
        true => disk.read(path).map(Some).map_err(failed),
        false => Ok(None),
    }
}
