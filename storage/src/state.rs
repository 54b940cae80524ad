//! What a store holds at one moment, and snapshots of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use roaring::RoaringBitmap;
use shoal_kernel::{Error, LogId, Result, ScanSpec, SegmentId, Version};

use crate::damage::Problem;
use crate::layout::Layout;
use crate::manifest::PastLog;
use crate::memtable::MemView;
use crate::scan::Scan;
use crate::segment::Segment;

/// A file or memtable that holds rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SourceId {
    Segment(SegmentId),
    Memtable(u64),
}

/// Where the present winner of a key lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) source: SourceId,
    pub(crate) row: u32,
    pub(crate) version: Version,
}

/// A segment and the rows of it that have lost since it was written.
#[derive(Debug, Clone)]
pub(crate) struct SegmentView {
    pub(crate) segment: Arc<Segment>,
    pub(crate) dead: Arc<RoaringBitmap>,
    /// How many of them had lost at the last flush: a compaction can leave these out.
    pub(crate) old_dead: u64,
}

impl SegmentView {
    /// Rows that a scan shows.
    pub(crate) fn visible_rows(&self) -> u64 {
        u64::from(self.segment.rows()) - self.dead.union_len(self.segment.tombstones())
    }
}

/// Everything readers need. Each key has at most one row, or tombstone, that is not dead.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) log_id: LogId,
    /// Logs before that one, oldest first.
    pub(crate) past: Arc<[PastLog]>,
    /// Position of the last accepted record.
    pub(crate) position: u64,
    /// Up to here everything lies in segments.
    pub(crate) flushed: u64,
    pub(crate) segments: BTreeMap<SegmentId, SegmentView>,
    /// Memtables that wait for their flush, oldest first, then the one that takes writes.
    pub(crate) memtables: Vec<MemView>,
    /// Bytes of the log, and why commits are refused until the store is opened again: known to readers without waiting
    /// for a commit that is under way.
    pub(crate) wal_bytes: u64,
    pub(crate) failed: Option<Error>,
    /// Segments that could not be opened; whatever needs them fails.
    pub(crate) broken: Arc<[Problem]>,
}

impl State {
    pub(crate) fn visible_rows(&self) -> u64 {
        self.segments.values().map(SegmentView::visible_rows).sum::<u64>()
            + self.memtables.iter().map(MemView::visible_rows).sum::<u64>()
    }

    pub(crate) fn memtable_bytes(&self) -> u64 {
        self.memtables.iter().map(|memtable| memtable.bytes).sum()
    }

    /// Fails if a segment could not be opened.
    pub(crate) fn check_whole(&self) -> Result<()> {
        match self.broken.first() {
            Some(problem) => Err(problem.to_error()),
            None => Ok(()),
        }
    }

    /// Marks rows as dead. A snapshot that shares the bitmap keeps its own.
    pub(crate) fn bury(&mut self, source: SourceId, rows: &[u32]) {
        let dead = match source {
            SourceId::Segment(id) => self.segments.get_mut(&id).map(|view| &mut view.dead),
            SourceId::Memtable(number) => {
                self.memtables.iter_mut().find(|view| view.number == number).map(|view| &mut view.dead)
            }
        };
        if let Some(dead) = dead {
            Arc::make_mut(dead).extend(rows.iter().copied());
        }
    }
}

/// A consistent view of a store at one accept position. Commits, flushes and compactions that come later do not change it.
#[derive(Clone)]
pub struct Snapshot {
    pub(crate) state: Arc<State>,
    pub(crate) layout: Arc<Layout>,
}

impl Snapshot {
    /// The log and the position of the last record that the snapshot shows.
    pub fn position(&self) -> (LogId, u64) {
        (self.state.log_id, self.state.position)
    }

    /// Exact number of visible rows.
    pub fn rows(&self) -> u64 {
        self.state.visible_rows()
    }

    /// How many rows a scan has to look at: those that no statistics exclude.
    ///
    /// # Errors
    /// As of the scan.
    pub fn estimate(&self, spec: &ScanSpec) -> Result<u64> {
        Ok(self.scan(spec)?.rows())
    }

    /// Starts a scan. Rows come in no particular order.
    ///
    /// # Errors
    /// [`shoal_kernel::ErrorCode::UnknownColumn`] for a column that the table does not have;
    /// [`shoal_kernel::ErrorCode::Corruption`] if a segment could not be opened.
    pub fn scan(&self, spec: &ScanSpec) -> Result<Scan> {
        Scan::new(self, spec)
    }
}
