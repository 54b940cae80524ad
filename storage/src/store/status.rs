//! What a store says of itself.

use serde::{Deserialize, Serialize};
use shoal_kernel::{Cutoff, LogId};

use super::{Store, lock};
use crate::damage::Problem;
use crate::segment::segment_file;
use crate::state::SegmentView;

/// A store at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// The life of the accept log.
    pub log_id: LogId,
    /// Position of the last accepted record.
    pub position: u64,
    /// Position up to which records are known to be durable.
    pub synced: u64,
    /// Position up to which records lie in segments.
    pub flushed: u64,
    /// Visible rows.
    pub rows: u64,
    /// Bytes of all files.
    pub disk_bytes: u64,
    /// Rows, dead ones and tombstones, but for those of segments that belong to the other part of a split.
    pub own_rows: u64,
    /// About so many bytes of the segments are theirs.
    pub own_bytes: u64,
    /// Segments.
    pub segments: usize,
    /// Their rows: visible ones, dead ones and tombstones.
    pub segment_rows: u64,
    /// How many of them wait to be merged.
    pub segments_overdue: usize,
    /// Bytes of memory that hold rows which are not flushed.
    pub memtable_bytes: u64,
    /// Bytes of the log.
    pub wal_bytes: u64,
    /// The earliest position that changes can be told from.
    pub changes_from: u64,
    /// Rows with a time below it have been dropped.
    pub cutoff: Option<Cutoff>,
    /// Dead rows in segments that no merge leaves out: they died since the last flush, or a reader of changes needs them.
    pub kept_rows: u64,
    /// Damage that was met and has not passed, by file.
    pub problems: Vec<Problem>,
    /// Why commits are refused until the store is opened again, if they are.
    pub failed: Option<String>,
}

/// A segment at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentStatus {
    /// Its file, in the replica's directory.
    pub file: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Rows in the file, tombstones included.
    pub rows: u64,
    /// Rows that a scan shows: neither dead, nor deletions, nor of another part of a split.
    pub visible_rows: u64,
    /// Deletions that still bury something, as far as anybody knows.
    pub tombstones: u64,
    /// Pages.
    pub pages: u64,
    /// Only readers of changes need it.
    pub history: bool,
}

impl Store {
    /// The segments, by number; those that could not be opened are not among them. Reads no file, and does not wait for commits.
    pub fn segments(&self) -> Vec<SegmentStatus> {
        let state = lock(&self.state).clone();
        let status = |view: &SegmentView| SegmentStatus {
            file: segment_file(view.segment.id()),
            bytes: view.segment.bytes(),
            rows: u64::from(view.segment.rows()),
            visible_rows: view.visible_rows(),
            tombstones: view.segment.tombstones().difference_len(&view.dead),
            pages: u64::from(view.segment.pages()),
            history: view.history,
        };
        state.segments.values().map(status).collect()
    }

    /// Bytes of memory that hold rows which are not flushed.
    pub fn memtable_bytes(&self) -> u64 {
        lock(&self.state).memtable_bytes()
    }

    /// The store's accept log, and the position of the last accept in it.
    pub fn position(&self) -> (LogId, u64) {
        let state = lock(&self.state);
        (state.log_id, state.position)
    }

    /// How the store is doing. Reads no file, and does not wait for commits.
    pub fn status(&self) -> StoreStatus {
        let state = lock(&self.state).clone();
        let segment_bytes: u64 = state.segments.values().map(|view| view.segment.bytes()).sum();
        let own = |view: &SegmentView| u64::from(view.rows.end - view.rows.start);
        let own_bytes = |view: &SegmentView| {
            let (bytes, rows) = (u128::from(view.segment.bytes()), u128::from(view.segment.rows().max(1)));
            u64::try_from(bytes * u128::from(own(view)) / rows).unwrap_or(u64::MAX)
        };
        let in_memory: u64 = state.memtables.iter().map(|view| u64::from(view.rows())).sum();
        let kept = |view: &SegmentView| view.dead.len().saturating_sub(view.old_dead);
        let damaged = state.segments.values().filter_map(|view| view.segment.damage());
        StoreStatus {
            log_id: state.log_id,
            position: state.position,
            synced: self.durability.synced(),
            flushed: state.flushed,
            rows: state.visible_rows(),
            disk_bytes: segment_bytes + state.wal_bytes,
            own_rows: state.segments.values().map(own).sum::<u64>() + in_memory,
            own_bytes: state.segments.values().map(own_bytes).sum(),
            segments: state.segments.len() + state.broken.len(),
            segment_rows: state.segments.values().map(|view| u64::from(view.segment.rows())).sum(),
            segments_overdue: self.segments_overdue(),
            memtable_bytes: state.memtable_bytes(),
            wal_bytes: state.wal_bytes,
            changes_from: state.changes_from,
            cutoff: state.cutoff,
            kept_rows: state.segments.values().map(kept).sum(),
            problems: state.broken.iter().cloned().chain(damaged).collect(),
            failed: state.failed.as_ref().map(|error| error.message().to_owned()),
        }
    }
}
