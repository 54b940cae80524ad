//! What a store holds at one moment, and snapshots of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use roaring::RoaringBitmap;
use shoal_kernel::{Cutoff, Error, Hlc, LogId, Result, ScanSpec, SegmentId, TableSchema, Version};

use crate::damage::Problem;
use crate::layout::Layout;
use crate::manifest::PastLog;
use crate::memtable::MemView;
use crate::scan::Scan;
use crate::segment::{PAGE_ROWS, Segment};
use crate::store::DigestBuckets;

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
    pub(crate) tombstone: bool,
}

/// A segment and the rows of it that have lost since it was written.
#[derive(Debug, Clone)]
pub(crate) struct SegmentView {
    pub(crate) segment: Arc<Segment>,
    pub(crate) dead: Arc<RoaringBitmap>,
    /// How many of them a compaction can leave out: they had lost at the last flush, and no reader of changes needs them.
    pub(crate) old_dead: u64,
    /// The rows of the file that belong to this store; after a split the others are dead here.
    pub(crate) rows: Range<u32>,
    /// All rows are dead, and kept for readers of changes. An identity may occur more than once.
    pub(crate) history: bool,
}

impl SegmentView {
    /// A segment as the manifest says: `dead` lost against flushed records, `kept` of them are needed for changes.
    pub(crate) fn new(
        segment: Arc<Segment>,
        mut dead: RoaringBitmap,
        rows: Range<u32>,
        kept: u64,
        history: bool,
    ) -> Self {
        dead.insert_range(..rows.start);
        dead.insert_range(rows.end..segment.rows());
        // A run of clipped rows takes a few bytes then.
        dead.optimize();
        let old_dead = dead.len().saturating_sub(kept);
        Self { segment, dead: Arc::new(dead), old_dead, rows, history }
    }

    /// Pages that hold rows of this store.
    pub(crate) fn pages(&self) -> Range<u32> {
        let page_rows = PAGE_ROWS as u32;
        if self.rows.is_empty() {
            return 0..0;
        }
        self.rows.start / page_rows..self.rows.end.div_ceil(page_rows)
    }

    /// Rows that a scan shows.
    pub(crate) fn visible_rows(&self) -> u64 {
        u64::from(self.segment.rows()) - self.dead.union_len(self.segment.tombstones())
    }
}

/// Everything readers need. Each key has at most one row, or tombstone, that is not dead.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// What the rows in memtables are laid out by, and what readers see.
    pub(crate) layout: Arc<Layout>,
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
    /// The running digest: what was accepted since it began, which counts from `digest_base`.
    pub(crate) digest: Arc<DigestBuckets>,
    /// The digest where the running one began; `None` until somebody has asked after a split.
    pub(crate) digest_base: Option<Arc<DigestBuckets>>,
    /// Changes after this position can be told.
    pub(crate) changes_from: u64,
    /// Changes after this position shall be kept.
    pub(crate) keep_changes_from: Option<u64>,
    /// Rows with a time below it are dead.
    pub(crate) cutoff: Option<Cutoff>,
    /// Tombstones up to it are gone.
    pub(crate) purged: Hlc,
    /// Bytes of the log, and why commits are refused until the store is opened again: known to readers without waiting
    /// for a commit that is under way.
    pub(crate) wal_bytes: u64,
    pub(crate) failed: Option<Error>,
    /// Segments that could not be opened; whatever needs them fails.
    pub(crate) broken: Arc<[Problem]>,
}

impl State {
    /// Goes over to a newer layout: rows in memory get its columns, those on disk have them in their own way.
    pub(crate) fn adopt(&mut self, layout: Arc<Layout>) -> Result<()> {
        let memtables = self.memtables.iter().map(|view| view.adopted(&self.layout, &layout)).collect::<Result<_>>()?;
        self.memtables = memtables;
        self.layout = layout;
        Ok(())
    }

    /// Winning tombstones.
    pub(crate) fn tombstones(&self) -> u64 {
        let in_segments = self.segments.values().map(|view| view.segment.tombstones().difference_len(&view.dead));
        let in_memory = self.memtables.iter().map(|view| view.tombstones.difference_len(&view.dead));
        in_segments.chain(in_memory).sum()
    }

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
}

impl Snapshot {
    /// The log and the position of the last record that the snapshot shows.
    pub fn position(&self) -> (LogId, u64) {
        (self.state.log_id, self.state.position)
    }

    /// From where on rows are shown.
    pub fn cutoff(&self) -> Option<Cutoff> {
        self.state.cutoff
    }

    /// The version of the schema that the rows are seen under.
    pub fn schema_version(&self) -> u32 {
        self.state.layout.schema.version
    }

    /// The same rows under a newer version of the table's schema, which the store need not have heard of.
    ///
    /// # Errors
    /// [`shoal_kernel::ErrorCode::Unsupported`] for column types that cannot be stored.
    pub fn under(&self, schema: Arc<TableSchema>) -> Result<Self> {
        let mut state = self.state.as_ref().clone();
        state.adopt(Arc::new(Layout::new(schema)?))?;
        Ok(Self { state: Arc::new(state) })
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
