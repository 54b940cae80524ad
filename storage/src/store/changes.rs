//! The change log: what has become of the rows between two positions, as deltas of whole rows.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use shoal_kernel::{Error, ErrorCode, LogId, Result};

use super::{Store, lock};
use crate::layout::Layout;
use crate::memtable::{Chunk, MemView};
use crate::segment::Reads;
use crate::state::{SegmentView, SourceId};

/// Rows that were there at the first position and not at the second, or the other way round.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// The rows: all columns of the table, with the names and types that they had when the changes were asked for.
    pub rows: RecordBatch,
    /// What each row counts: -1 if it is gone, +1 if it is new.
    pub weights: Vec<i8>,
}

/// The changes between two positions. Each step reads a bounded number of pages; a failed step ends it.
///
/// They are *net*: what came and went in between is not told, and a key that was replaced gives its old row with -1 and its
/// new one with +1. No order is promised, so a delta means something as a whole only.
pub struct Changes {
    layout: Arc<Layout>,
    from: u64,
    to: u64,
    deaths: BTreeMap<SourceId, DiedAt>,
    units: VecDeque<Unit>,
    failed: bool,
}

/// For each row that died after the first position, where that was.
type DiedAt = BTreeMap<u32, u64>;

enum Unit {
    Page { view: SegmentView, page: u32 },
    Chunk { view: Arc<MemView>, chunk: Arc<Chunk> },
}

impl Store {
    /// The changes after position `from` up to position `to`: applied to the rows that were visible at `from`, they give those
    /// at `to`. Memory is bounded by a page, and a few bytes for each row that died after `from`; writers wait while these are
    /// collected.
    ///
    /// # Errors
    /// [`ErrorCode::ChangesGone`] if the log is another one, or rows that died after `from` are no longer kept
    /// ([`Store::keep_changes_from`]); [`ErrorCode::InvalidRequest`] if the log has not reached `to`, or `from` lies behind
    /// it; [`ErrorCode::Corruption`] if a segment could not be opened.
    pub fn changes(&self, log_id: LogId, from: u64, to: u64) -> Result<Changes> {
        // While commits wait, rows and deaths belong together.
        let writer = lock(&self.writer);
        let state = lock(&self.state).clone();
        state.check_whole()?;
        if log_id != state.log_id {
            let message = format!("the log is {} now, no longer {log_id}", state.log_id);
            return Err(Error::new(ErrorCode::ChangesGone, message));
        }
        state.check_changes_from(from)?;
        if to < from || to > state.position {
            let end = state.position;
            let message = format!("changes are asked for from position {from} to {to}, and the log ends at {end}");
            return Err(Error::new(ErrorCode::InvalidRequest, message));
        }
        let after = |deaths: &Vec<(u64, u32)>| -> DiedAt {
            deaths.iter().filter(|(position, _)| *position > from).map(|(position, row)| (*row, *position)).collect()
        };
        let deaths = writer.deaths.iter().map(|(source, deaths)| (*source, after(deaths))).collect();
        drop(writer);

        let mut changes =
            Changes { layout: state.layout.clone(), from, to, deaths, units: VecDeque::new(), failed: false };
        let mut units = VecDeque::new();
        for view in state.segments.values() {
            let pages = view.pages().filter(|page| changes.touches_page(view, *page));
            units.extend(pages.map(|page| Unit::Page { view: view.clone(), page }));
        }
        for view in state.memtables.into_iter().map(Arc::new) {
            let chunks = view.chunks.iter().filter(|chunk| changes.touches_chunk(&view, chunk));
            units.extend(chunks.map(|chunk| Unit::Chunk { view: view.clone(), chunk: chunk.clone() }));
        }
        changes.units = units;
        Ok(changes)
    }

    /// The earliest position that [`Store::changes`] can begin at now.
    pub fn changes_from(&self) -> u64 {
        lock(&self.state).changes_from
    }
}

impl Changes {
    /// The schema of all rows.
    pub fn schema(&self) -> SchemaRef {
        self.layout.visible.clone()
    }

    /// Whether rows of these positions, the first and the last, may have come in between.
    fn spans(&self, (first, last): (u64, u64)) -> bool {
        first <= self.to && last > self.from
    }

    fn has_deaths(&self, source: SourceId, rows: Range<u32>) -> bool {
        let mut deaths = self.deaths.get(&source).into_iter().flat_map(|deaths| deaths.range(rows.clone()));
        deaths.any(|(_, died)| *died <= self.to)
    }

    fn touches_page(&self, view: &SegmentView, page: u32) -> bool {
        let source = SourceId::Segment(view.segment.id());
        self.spans(view.segment.position_range(page)) || self.has_deaths(source, view.segment.page_rows(page))
    }

    fn touches_chunk(&self, view: &MemView, chunk: &Chunk) -> bool {
        let range = chunk.positions.first().copied().zip(chunk.positions.last().copied());
        range.is_some_and(|range| self.spans(range))
            || self.has_deaths(SourceId::Memtable(view.number), chunk.first_row..chunk.end_row())
    }

    /// What a row counts that was accepted at `born`, is no tombstone, and may be dead by now.
    fn weight(&self, source: SourceId, row: u32, born: u64, dead: bool) -> i8 {
        let died = self.deaths.get(&source).and_then(|deaths| deaths.get(&row));
        let visible_at = |position: u64| match died {
            Some(died) => born <= position && position < *died,
            // If it is dead, it died before all of this, or never won, or belongs to another store.
            None => born <= position && !dead,
        };
        i8::from(visible_at(self.to)) - i8::from(visible_at(self.from))
    }

    fn read(&self, unit: &Unit) -> Result<Option<Changed>> {
        match unit {
            Unit::Page { view, page } => self.read_page(view, *page),
            Unit::Chunk { view, chunk } => self.read_chunk(view, chunk),
        }
    }

    fn read_page(&self, view: &SegmentView, page: u32) -> Result<Option<Changed>> {
        let (segment, source) = (&view.segment, SourceId::Segment(view.segment.id()));
        let first_row = segment.page_rows(page).start;
        let weighed = (first_row..).zip(segment.read_positions(page)?).map(|(row, born)| {
            if segment.tombstones().contains(row) { 0 } else { self.weight(source, row, born, view.dead.contains(row)) }
        });
        let Some((wanted, weights)) = changed(weighed) else { return Ok(None) };
        let column = |column| segment.read_column(&self.layout, column, page, Some(&wanted), Reads::Walk);
        let columns = (0..self.layout.schema.columns.len()).map(column).collect::<Result<_>>()?;
        self.batch(columns, weights).map(Some)
    }

    fn read_chunk(&self, view: &MemView, chunk: &Chunk) -> Result<Option<Changed>> {
        let source = SourceId::Memtable(view.number);
        let weighed = (chunk.first_row..).zip(&chunk.positions).map(|(row, born)| {
            if view.tombstones.contains(row) { 0 } else { self.weight(source, row, *born, view.dead.contains(row)) }
        });
        let Some((wanted, weights)) = changed(weighed) else { return Ok(None) };
        let wanted = UInt32Array::from(wanted);
        let column = |column| {
            let all = self.layout.column_of(&chunk.batch, column)?;
            take(&all, &wanted, None).map_err(|error| Error::internal(error.to_string()))
        };
        let columns = (0..self.layout.schema.columns.len()).map(column).collect::<Result<_>>()?;
        self.batch(columns, weights).map(Some)
    }

    fn batch(&self, columns: Vec<ArrayRef>, weights: Vec<i8>) -> Result<Changed> {
        let rows = RecordBatch::try_new(self.layout.visible.clone(), columns)
            .map_err(|error| Error::internal(format!("changed rows do not fit the table: {error}")))?;
        Ok(Changed { rows, weights })
    }
}

/// The rows that count, and what; `None` if there is none.
fn changed(weights: impl Iterator<Item = i8>) -> Option<(Vec<u32>, Vec<i8>)> {
    let (wanted, weights): (Vec<u32>, Vec<i8>) = (0..).zip(weights).filter(|(_, weight)| *weight != 0).unzip();
    (!wanted.is_empty()).then_some((wanted, weights))
}

impl Iterator for Changes {
    type Item = Result<Changed>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            let unit = self.units.pop_front()?;
            match self.read(&unit) {
                Ok(None) => {}
                Ok(Some(changed)) => return Some(Ok(changed)),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}
