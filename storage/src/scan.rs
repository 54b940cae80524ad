//! Scans: rows minus masks, pruned by zone maps, filtered as early as possible.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, BooleanBufferBuilder, RecordBatch, RecordBatchOptions};
use arrow::buffer::BooleanBuffer;
use arrow::compute::FilterBuilder;
use arrow::datatypes::{Schema, SchemaRef};
use roaring::RoaringBitmap;
use shoal_kernel::{ColumnId, ColumnPredicate, Error, ErrorCode, Result, ScanSpec};

use crate::layout::Layout;
use crate::memtable::{Chunk, MemView};
use crate::predicate::{Evaluator, may_match};
use crate::segment::PAGE_ROWS;
use crate::state::{SegmentView, Snapshot};

/// Pages that one call of `next` reads at most before it gives control back, with an empty batch if nothing was found.
const PAGES_PER_CALL_MAX: usize = 8;

/// A running scan. Each step reads a bounded number of pages. A failed step ends it.
pub struct Scan {
    schema: SchemaRef,
    layout: Arc<Layout>,
    /// Places of the wanted columns in the table's schema.
    columns: Vec<usize>,
    conditions: Vec<Condition>,
    units: VecDeque<Unit>,
    rows_left: Option<u64>,
    failed: bool,
}

struct Condition {
    /// Place of the column in the table's schema.
    column: usize,
    predicate: ColumnPredicate,
    /// Absent if it can only prune.
    evaluator: Option<Evaluator>,
}

/// A piece of work that gives at most one batch.
enum Unit {
    /// So many rows, of which nothing but the number is wanted.
    Count(u64),
    Rows {
        dead: Arc<RoaringBitmap>,
        tombstones: Arc<RoaringBitmap>,
        chunk: Arc<Chunk>,
        rows: Range<usize>,
    },
    Page {
        view: SegmentView,
        page: u32,
    },
}

impl Scan {
    pub(crate) fn new(snapshot: &Snapshot, spec: &ScanSpec) -> Result<Self> {
        let (state, layout) = (&snapshot.state, snapshot.layout.clone());
        state.check_whole()?;
        let place = |id: ColumnId| {
            let unknown = || Error::new(ErrorCode::UnknownColumn, format!("the table has no column with id {}", id.0));
            layout.schema.index_of(id).ok_or_else(unknown)
        };
        let columns: Vec<usize> = spec.columns.iter().map(|&id| place(id)).collect::<Result<_>>()?;
        let condition = |predicate: &ColumnPredicate| {
            let column = place(predicate.column())?;
            let evaluator = Evaluator::new(predicate, &layout.schema.columns[column].data_type);
            Ok(Condition { column, predicate: predicate.clone(), evaluator })
        };
        let conditions = spec.predicates.iter().map(condition).collect::<Result<Vec<_>>>()?;
        let fields = columns.iter().map(|&column| layout.visible.field(column).clone()).collect::<Vec<_>>();
        let mut scan = Self {
            schema: Arc::new(Schema::new(fields)),
            columns,
            conditions,
            units: VecDeque::new(),
            rows_left: spec.limit,
            failed: false,
            layout,
        };
        state.segments.values().for_each(|view| scan.plan_segment(view));
        state.memtables.iter().for_each(|view| scan.plan_memtable(view));
        Ok(scan)
    }

    /// The schema of every batch: the wanted columns with the table's names and types.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn counts_only(&self) -> bool {
        self.columns.is_empty() && self.conditions.is_empty()
    }

    fn plan_segment(&mut self, view: &SegmentView) {
        if self.counts_only() {
            return self.units.push_back(Unit::Count(view.visible_rows()));
        }
        let excluded = self.conditions.iter().any(|condition| {
            let column = &self.layout.schema.columns[condition.column];
            !may_match(&condition.predicate, &view.segment.zone(column))
        });
        if excluded {
            return;
        }
        let point = self.point();
        for page in 0..view.segment.pages() {
            let may_hold = self.conditions.iter().all(|condition| {
                let column = &self.layout.schema.columns[condition.column];
                may_match(&condition.predicate, &view.segment.page_zone(column, page))
            });
            if may_hold && point.as_ref().is_none_or(|key| view.segment.may_hold_key(key, page)) {
                self.units.push_back(Unit::Page { view: view.clone(), page });
            }
        }
    }

    /// The one key that the conditions admit, if they fix every column of an upsert table's key.
    fn point(&self) -> Option<Vec<u8>> {
        if !self.layout.schema.is_upsert() {
            return None;
        }
        let mut key = Vec::new();
        for &place in &self.layout.key {
            let value = self.conditions.iter().find_map(|condition| match &condition.predicate {
                ColumnPredicate::Compare { op: shoal_kernel::CompareOp::Eq, value, .. }
                    if condition.column == place =>
                {
                    Some(value)
                }
                _ => None,
            })?;
            value.encode_into(&mut key);
        }
        Some(key)
    }

    fn plan_memtable(&mut self, view: &MemView) {
        if self.counts_only() {
            return self.units.push_back(Unit::Count(view.visible_rows()));
        }
        for chunk in &view.chunks {
            for start in (0..chunk.rows()).step_by(PAGE_ROWS) {
                let rows = start..chunk.rows().min(start + PAGE_ROWS);
                let (dead, tombstones) = (view.dead.clone(), view.tombstones.clone());
                self.units.push_back(Unit::Rows { dead, tombstones, chunk: chunk.clone(), rows });
            }
        }
    }

    /// Reads one unit; `None` if it has no row to show.
    fn read(&self, unit: &Unit) -> Result<Option<RecordBatch>> {
        match unit {
            Unit::Count(rows) => {
                let rows = usize::try_from(*rows).map_err(|_| Error::internal("more rows than memory"))?;
                if rows == 0 { Ok(None) } else { self.finish(rows, None, &|_| Err(Error::internal("no column"))) }
            }
            Unit::Rows { dead, tombstones, chunk, rows } => {
                let first = chunk.first_row + rows.start as u32;
                let visible = match visibility(first..first + rows.len() as u32, &[dead, tombstones]) {
                    Visible::None => return Ok(None),
                    Visible::All => None,
                    Visible::Some(mask) => Some(mask),
                };
                self.finish(rows.len(), visible, &|column| Ok(chunk.batch.column(column).slice(rows.start, rows.len())))
            }
            Unit::Page { view, page } => {
                let rows = view.segment.page_rows(*page);
                let visible = match visibility(rows.clone(), &[&view.dead, view.segment.tombstones()]) {
                    Visible::None => return Ok(None),
                    Visible::All => None,
                    Visible::Some(mask) => Some(mask),
                };
                self.finish(rows.len(), visible, &|column| {
                    view.segment.read_column(&self.layout.schema.columns[column], *page)
                })
            }
        }
    }

    /// Evaluates conditions on their columns, then loads and filters the others.
    fn finish(
        &self,
        rows: usize,
        visible: Option<BooleanBuffer>,
        load: &dyn Fn(usize) -> Result<ArrayRef>,
    ) -> Result<Option<RecordBatch>> {
        let mut loaded: Vec<Option<ArrayRef>> = vec![None; self.layout.schema.columns.len()];
        let mut get = |column: usize| -> Result<ArrayRef> {
            match &loaded[column] {
                Some(array) => Ok(array.clone()),
                None => Ok(loaded[column].insert(load(column)?).clone()),
            }
        };
        let mut selected = visible;
        for condition in &self.conditions {
            let Some(evaluator) = &condition.evaluator else { continue };
            let matches = evaluator.evaluate(&get(condition.column)?)?;
            let both = match selected {
                Some(selected) => &selected & matches.values(),
                None => matches.values().clone(),
            };
            if !both.has_true() {
                return Ok(None);
            }
            selected = Some(both);
        }
        let selected = selected.filter(BooleanBuffer::has_false).map(|selected| BooleanArray::new(selected, None));
        let count = selected.as_ref().map_or(rows, BooleanArray::true_count);
        let arrays = self.columns.iter().map(|&column| get(column)).collect::<Result<Vec<_>>>()?;
        let failed = |error| Error::internal(format!("a scanned batch does not fit the table: {error}"));
        let arrays = match &selected {
            None => arrays,
            Some(mask) => {
                let filter = FilterBuilder::new(mask).optimize().build();
                arrays.iter().map(|array| filter.filter(array)).collect::<Result<_, _>>().map_err(failed)?
            }
        };
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options).map(Some).map_err(failed)
    }
}

impl Iterator for Scan {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.rows_left == Some(0) {
            return None;
        }
        for _ in 0..PAGES_PER_CALL_MAX {
            let unit = self.units.pop_front()?;
            match self.read(&unit) {
                Ok(None) => {}
                Ok(Some(batch)) => {
                    let rows = batch.num_rows() as u64;
                    let wanted = self.rows_left.map_or(rows, |left| left.min(rows));
                    self.rows_left = self.rows_left.map(|left| left - wanted);
                    return Some(Ok(if wanted < rows { batch.slice(0, wanted as usize) } else { batch }));
                }
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        Some(Ok(RecordBatch::new_empty(self.schema.clone())))
    }
}

enum Visible {
    All,
    None,
    Some(BooleanBuffer),
}

/// Which of the rows are in none of the bitmaps.
fn visibility(rows: Range<u32>, hidden: &[&RoaringBitmap]) -> Visible {
    if hidden.iter().all(|bitmap| bitmap.range(rows.clone()).next().is_none()) {
        return Visible::All;
    }
    let mut mask = BooleanBufferBuilder::new(rows.len());
    mask.append_n(rows.len(), true);
    for row in hidden.iter().flat_map(|bitmap| bitmap.range(rows.clone())) {
        mask.set_bit((row - rows.start) as usize, false);
    }
    let mask = mask.finish();
    if mask.has_true() { Visible::Some(mask) } else { Visible::None }
}
