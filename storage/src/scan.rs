//! Scans: rows minus masks, pruned by zone maps, filtered as early as possible.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, BooleanBufferBuilder, DictionaryArray, RecordBatch, RecordBatchOptions, UInt32Array,
    UInt64Array,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{FilterBuilder, cast, take};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use roaring::RoaringBitmap;
use shoal_kernel::{
    ADDRESS_COLUMN, ColumnId, ColumnPredicate, Error, ErrorCode, FrontierSource, Result, ScanSpec, Slice, SummaryPart,
};

use crate::encoding::Dictionary;
use crate::ends::Ends;
use crate::expiry::is_given;
use crate::layout::Layout;
use crate::memtable::{Chunk, MemView};
use crate::order::Order;
use crate::predicate::{Evaluator, Zone, may_match, must_match};
use crate::segment::{PAGE_ROWS, PageCodes, Reads, Segment};
use crate::state::{SegmentView, Snapshot};
use crate::summary::Teller;
use crate::visible::{Visible, visibility};

/// Pages that one call of `next` reads at most before it gives control back, with an empty batch if nothing was found.
const PAGES_PER_CALL_MAX: usize = 8;

/// If fewer rows than one in so many are left, conditions look at these alone.
const FEW_ONE_IN: usize = 4;

/// A batch shares the stored dictionary unless that has this many times more values than the batch has rows.
const DICTIONARY_ROWS_ONE_IN: usize = 8;

/// A running scan. Each step reads a bounded number of pages. A failed step ends it.
pub struct Scan {
    schema: SchemaRef,
    layout: Arc<Layout>,
    /// Places of the wanted columns in the table's schema.
    columns: Vec<Wanted>,
    conditions: Vec<Condition>,
    units: VecDeque<Unit>,
    rows_left: Option<u64>,
    addresses: bool,
    ends: Option<Ends>,
    teller: Option<Teller>,
    order: Option<Order>,
    /// What rows satisfy that the reader would still take, as of where it stood when it was asked last.
    not_beyond: Option<Condition>,
    pages_passed: u64,
    failed: bool,
}

/// A wanted column: its place in the table's schema, and whether it is wanted as a dictionary.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    column: usize,
    coded: bool,
}

struct Condition {
    /// Place of the column in the table's schema.
    column: usize,
    predicate: ColumnPredicate,
    /// Absent if it can only prune.
    evaluator: Option<Evaluator>,
    /// Which values of the dictionary that was met last match.
    verdict: Option<Verdict>,
}

struct Verdict {
    dictionary: Arc<Dictionary>,
    matches: BooleanBuffer,
}

impl Condition {
    fn new(predicate: ColumnPredicate, layout: &Layout) -> Result<Self> {
        let column = layout.visible_place(predicate.column())?;
        let data_type = &layout.schema.columns[column].data_type;
        let evaluator = Evaluator::new(&predicate, data_type);
        if evaluator.is_none() && predicate.is_exact_on(data_type) {
            // Nobody looks at the rows again, so better no answer than a wrong one.
            return Err(Error::internal(format!("a condition on a column of type {data_type} cannot be judged")));
        }
        Ok(Self { column, predicate, evaluator, verdict: None })
    }

    /// Which of the rows match, judged by the values that their codes stand for.
    fn judge(&mut self, codes: &PageCodes) -> Result<Option<BooleanBuffer>> {
        let Some(evaluator) = &self.evaluator else { return Ok(None) };
        let valid = |matches: BooleanBuffer| match &codes.nulls {
            Some(nulls) => &matches & nulls.inner(),
            None => matches,
        };
        if let Some(null_wanted) = evaluator.of_nulls() {
            let all = valid(BooleanBuffer::new_set(codes.codes.len()));
            return Ok(Some(if null_wanted { !&all } else { all }));
        }
        let known = self.verdict.take().filter(|verdict| Arc::ptr_eq(&verdict.dictionary, &codes.dictionary));
        let verdict = match known {
            Some(verdict) => verdict,
            None => {
                let matches = evaluator.evaluate(codes.dictionary.values())?.values().clone();
                Verdict { dictionary: codes.dictionary.clone(), matches }
            }
        };
        let matches = match verdict.matches.has_true() {
            false => BooleanBuffer::new_unset(codes.codes.len()),
            true => BooleanBuffer::collect_bool(codes.codes.len(), |row| {
                // Codes were held against the dictionary when they were decoded.
                verdict.matches.value(codes.codes[row] as usize)
            }),
        };
        self.verdict = Some(verdict);
        Ok(Some(valid(matches)))
    }
}

/// A piece of work that gives at most one batch.
enum Unit {
    /// So many rows, of which nothing but the number is wanted.
    Count(u64),
    /// One row with what the others come to of which statistics tell it.
    Told,
    Rows {
        source: u32,
        dead: Arc<RoaringBitmap>,
        tombstones: Arc<RoaringBitmap>,
        chunk: Arc<Chunk>,
        rows: Range<usize>,
    },
    Page {
        source: u32,
        view: SegmentView,
        page: u32,
    },
}

impl Unit {
    /// Rows that it looks at.
    fn rows(&self) -> u64 {
        match self {
            Self::Count(rows) => *rows,
            Self::Told => 0,
            Self::Rows { rows, .. } => rows.len() as u64,
            Self::Page { view, page, .. } => view.segment.page_rows(*page).len() as u64,
        }
    }
}

impl Scan {
    pub(crate) fn new(snapshot: &Snapshot, spec: &ScanSpec) -> Result<Self> {
        let (state, layout) = (&snapshot.state, snapshot.state.layout.clone());
        state.check_whole()?;
        if spec.schema_exact && layout.schema.version != spec.schema_version {
            let (wanted, found) = (spec.schema_version, layout.schema.version);
            let message =
                format!("the rows are of version {found} of the schema, and version {wanted} is to be written back");
            return Err(Error::new(ErrorCode::SchemaChanged, message).with_help("send it again"));
        }
        let wanted = |&id: &ColumnId| {
            let column = layout.visible_place(id)?;
            let coded = spec.coded.contains(&id) && layout.schema.columns[column].data_type == DataType::Utf8;
            Ok(Wanted { column, coded })
        };
        let columns: Vec<Wanted> = spec.columns.iter().map(wanted).collect::<Result<_>>()?;
        let condition = |predicate: &ColumnPredicate| Condition::new(predicate.clone(), &layout);
        // What the cut-off took is not here, so nobody needs to look for it.
        let open = spec.predicates.iter().filter(|predicate| !is_given(predicate, state.cutoff));
        let mut conditions = open.map(condition).collect::<Result<Vec<_>>>()?;
        // What is cheap to judge spares the others work.
        conditions.sort_by_key(|condition| !layout.schema.columns[condition.column].data_type.is_primitive());
        let field = |wanted: &Wanted| {
            let field = layout.visible.field(wanted.column).clone();
            if wanted.coded { field.with_data_type(coded_text()) } else { field }
        };
        let mut fields = columns.iter().map(field).collect::<Vec<_>>();
        if spec.addresses {
            fields.push(Field::new(ADDRESS_COLUMN, DataType::UInt64, false));
        }
        let mut scan = Self {
            schema: Arc::new(Schema::new(fields)),
            columns,
            conditions,
            units: VecDeque::new(),
            rows_left: spec.limit,
            addresses: spec.addresses,
            ends: spec.ends.map(|ends| Ends::new(ends, &layout)),
            teller: spec.summary.as_ref().map(|summary| Teller::new(summary, &layout)).transpose()?,
            order: spec.order.map(|order| Order::new(order, &layout)).transpose()?,
            not_beyond: None,
            pages_passed: 0,
            failed: false,
            layout,
        };
        let (segments, memtables) = (state.segments.values(), &state.memtables);
        (0..).zip(segments).for_each(|(source, view)| scan.plan_segment(source, view));
        (state.segments.len() as u32..).zip(memtables).for_each(|(source, view)| scan.plan_memtable(source, view));
        scan.keep_slice(spec.slice);
        scan.keep_part();
        scan.put_in_order();
        Ok(scan)
    }

    /// Has the scan pass over what comes behind the rows that its reader has got; only with an order.
    pub fn following(mut self, frontier: FrontierSource) -> Self {
        if let Some(order) = &mut self.order {
            order.follow(frontier);
        }
        self
    }

    /// Pages that were not read because nothing in them would have been taken.
    pub fn pages_passed(&self) -> u64 {
        self.pages_passed
    }

    /// Puts units first that may hold the first rows of the wanted order. Rows that were left out for rows of the same source are
    /// told by the order in which pages lie.
    fn put_in_order(&mut self) {
        let Some(order) = self.order.as_ref().filter(|_| self.ends.is_none()) else { return };
        let zone = |unit: &Unit| match unit {
            Unit::Page { view, page, .. } => Some(view.segment.page_zone(&self.layout, order.column, *page)),
            _ => None,
        };
        self.units.make_contiguous().sort_by_cached_key(|unit| order.rank(zone(unit).as_ref()));
    }

    /// Asks the reader where it stands; says whether it may want a row of such a unit.
    fn may_matter(&mut self, zone: Option<&Zone>) -> Result<bool> {
        let Some((order, frontier)) = self.order.as_ref().and_then(|order| Some((order, order.frontier()?))) else {
            return Ok(true);
        };
        let wanted = order.condition(&frontier, zone);
        if wanted.as_ref() != self.not_beyond.as_ref().map(|condition| &condition.predicate) {
            self.not_beyond = wanted.map(|predicate| Condition::new(predicate, &self.layout)).transpose()?;
        }
        Ok(zone.is_none_or(|zone| order.may_matter(&frontier, zone)))
    }

    /// The schema of every batch: the wanted columns with the table's names and types.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Rows that the scan looks at, before conditions judge them one by one.
    pub(crate) fn rows(&self) -> u64 {
        self.units.iter().map(Unit::rows).sum()
    }

    /// Keeps the units that begin in this share of the rows.
    fn keep_slice(&mut self, slice: Slice) {
        let total = self.rows();
        let mut start = 0;
        self.units.retain(|unit| {
            let share = u128::from(start) * u128::from(slice.of.max(1)) / u128::from(total.max(1));
            start += unit.rows();
            share == u128::from(slice.index)
        });
    }

    /// Keeps the rows that statistics do not tell enough of; or else one row in the place of the others.
    fn keep_part(&mut self) {
        let Some(mut teller) = self.teller.take() else { return };
        let (layout, conditions) = (&self.layout, &self.conditions);
        let mut is_told = |unit: &Unit| match unit {
            Unit::Page { view, page, .. } => {
                let zone = |column| view.segment.page_zone(layout, column, *page);
                conditions.iter().all(|condition| must_match(&condition.predicate, &zone(condition.column)))
                    && teller.take(layout, view, *page)
            }
            _ => false,
        };
        self.units.retain(|unit| !is_told(unit));
        if teller.part() == SummaryPart::Told {
            self.units = VecDeque::from([Unit::Told]);
            self.schema = teller.schema();
        }
        self.teller = Some(teller);
    }

    fn counts_only(&self) -> bool {
        self.columns.is_empty()
            && self.conditions.is_empty()
            && !self.addresses
            && self.ends.is_none()
            && self.teller.is_none()
    }

    fn plan_segment(&mut self, source: u32, view: &SegmentView) {
        if self.counts_only() {
            return self.units.push_back(Unit::Count(view.visible_rows()));
        }
        let excluded = self
            .conditions
            .iter()
            .any(|condition| !may_match(&condition.predicate, &view.segment.zone(&self.layout, condition.column)));
        if excluded {
            return;
        }
        let point = self.point();
        let pages = view.pages();
        let backwards = self.ends.as_ref().is_some_and(Ends::goes_backwards);
        for page in pages.clone().map(|page| if backwards { pages.end - 1 - (page - pages.start) } else { page }) {
            let may_hold = self.conditions.iter().all(|condition| {
                may_match(&condition.predicate, &view.segment.page_zone(&self.layout, condition.column, page))
            });
            if may_hold && point.as_ref().is_none_or(|key| view.segment.may_hold_key(key, page)) {
                self.units.push_back(Unit::Page { source, view: view.clone(), page });
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

    fn plan_memtable(&mut self, source: u32, view: &MemView) {
        if self.counts_only() {
            return self.units.push_back(Unit::Count(view.visible_rows()));
        }
        let may_hold = |chunk: &Chunk| {
            self.conditions
                .iter()
                .all(|condition| chunk.may_match(&self.layout, condition.column, &condition.predicate))
        };
        for chunk in view.chunks.iter().filter(|chunk| may_hold(chunk)) {
            for start in (0..chunk.rows()).step_by(PAGE_ROWS) {
                let rows = start..chunk.rows().min(start + PAGE_ROWS);
                let (dead, tombstones) = (view.dead.clone(), view.tombstones.clone());
                self.units.push_back(Unit::Rows { source, dead, tombstones, chunk: chunk.clone(), rows });
            }
        }
    }

    /// Reads one unit; `None` if it has no row to show.
    fn read(&mut self, unit: &Unit) -> Result<Option<RecordBatch>> {
        match unit {
            Unit::Count(0) => Ok(None),
            Unit::Count(rows) => {
                let rows = usize::try_from(*rows).map_err(|_| Error::internal("more rows than memory"))?;
                self.batch(Vec::new(), rows).map(Some)
            }
            Unit::Told => {
                let arrays = self.teller.as_ref().map_or_else(|| Ok(Vec::new()), Teller::arrays)?;
                self.batch(arrays, 1).map(Some)
            }
            Unit::Rows { source, dead, tombstones, chunk, rows } => {
                self.may_matter(None)?;
                let first = chunk.first_row + rows.start as u32;
                let numbers = first..first + rows.len() as u32;
                let visible = visibility(numbers.clone(), &[dead, tombstones]);
                let layout = self.layout.clone();
                let rows = MemRows { layout: &layout, chunk, rows: rows.clone() };
                self.finish(*source, numbers, visible, &rows)
            }
            Unit::Page { source, view, page } => {
                if self.ends.as_ref().is_some_and(|ends| ends.have_passed(&self.layout, *source, &view.segment, *page))
                {
                    return Ok(None);
                }
                let column = self.order.as_ref().map(|order| order.column);
                let zone = column.map(|column| view.segment.page_zone(&self.layout, column, *page));
                if !self.may_matter(zone.as_ref())? {
                    self.pages_passed += 1;
                    return Ok(None);
                }
                let rows = view.segment.page_rows(*page);
                let visible = visibility(rows.clone(), &[&view.dead, view.segment.tombstones()]);
                let layout = self.layout.clone();
                let pages = SegmentPage { layout: &layout, segment: &view.segment, page: *page };
                self.finish(*source, rows, visible, &pages)
            }
        }
    }

    /// Evaluates conditions on their columns, then loads of the others only the rows that are left.
    fn finish(
        &mut self,
        number: u32,
        numbers: Range<u32>,
        visible: Visible,
        source: &dyn Source,
    ) -> Result<Option<RecordBatch>> {
        let rows = numbers.len();
        let mut selected = match visible {
            Visible::None => return Ok(None),
            Visible::All => None,
            Visible::Some(mask) => Some(mask),
        };
        let mut loaded: BTreeMap<usize, ArrayRef> = BTreeMap::new();
        for condition in self.not_beyond.iter_mut().chain(&mut self.conditions) {
            let Some(evaluator) = &condition.evaluator else { continue };
            let codes = match loaded.contains_key(&condition.column) {
                true => None,
                false => source.codes(condition.column, None)?,
            };
            let matches = match codes {
                Some(codes) => condition.judge(&codes)?.unwrap_or_else(|| BooleanBuffer::new_set(rows)),
                None => match few(selected.as_ref()) {
                    Some(wanted) if !loaded.contains_key(&condition.column) => {
                        let matches = evaluator.evaluate(&source.load(condition.column, Some(&wanted))?)?;
                        let mut all = BooleanBufferBuilder::new(rows);
                        all.append_n(rows, false);
                        let matching = wanted.iter().zip(matches.values().iter()).filter(|(_, matches)| *matches);
                        matching.for_each(|(row, _)| all.set_bit(*row as usize, true));
                        all.finish()
                    }
                    _ => {
                        let array = match loaded.get(&condition.column) {
                            Some(array) => array.clone(),
                            None => {
                                loaded.entry(condition.column).or_insert(source.load(condition.column, None)?).clone()
                            }
                        };
                        evaluator.evaluate(&array)?.values().clone()
                    }
                },
            };
            let both = match selected {
                Some(selected) => &selected & &matches,
                None => matches,
            };
            if !both.has_true() {
                return Ok(None);
            }
            selected = Some(both);
        }
        if let Some(ends) = &mut self.ends {
            selected = ends.keep(number, rows, source, selected)?;
        }
        let Some(selected) = selected.filter(BooleanBuffer::has_false) else {
            let load = |wanted: &Wanted| match loaded.get(&wanted.column).filter(|_| !wanted.coded) {
                Some(array) => Ok(array.clone()),
                None if wanted.coded => load_coded(source, wanted.column, None),
                None => source.load(wanted.column, None),
            };
            let mut arrays = self.columns.iter().map(load).collect::<Result<Vec<_>>>()?;
            arrays.extend(self.addresses.then(|| addresses(number, numbers)));
            return self.batch(arrays, rows).map(Some);
        };
        let wanted: Vec<u32> = selected.set_indices_u32().collect();
        let filter = FilterBuilder::new(&BooleanArray::new(selected, None)).optimize().build();
        let load = |column: &Wanted| match loaded.get(&column.column).filter(|_| !column.coded) {
            Some(array) => filter.filter(array).map_err(|error| Error::internal(error.to_string())),
            None if column.coded => load_coded(source, column.column, Some(&wanted)),
            None => source.load(column.column, Some(&wanted)),
        };
        let mut arrays = self.columns.iter().map(load).collect::<Result<Vec<_>>>()?;
        let places = wanted.iter().map(|row| numbers.start + row);
        arrays.extend(self.addresses.then(|| addresses(number, places)));
        self.batch(arrays, wanted.len()).map(Some)
    }

    fn batch(&self, arrays: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .map_err(|error| Error::internal(format!("a scanned batch does not fit the table: {error}")))
    }
}

/// The selected rows, if they are so few that the others are better not looked at.
fn few(selected: Option<&BooleanBuffer>) -> Option<Vec<u32>> {
    let selected = selected.filter(|selected| selected.count_set_bits() * FEW_ONE_IN < selected.len())?;
    Some(selected.set_indices_u32().collect())
}

/// Where rows lie: the number of their source in the snapshot, and their number in it.
fn addresses(source: u32, rows: impl Iterator<Item = u32>) -> ArrayRef {
    let address = |row| (u64::from(source) << 32) | u64::from(row);
    Arc::new(UInt64Array::from_iter_values(rows.map(address)))
}

/// The type of text that is wanted as a dictionary.
fn coded_text() -> DataType {
    DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8))
}

/// Text as a dictionary: the stored one where there is one, so that pages of one row group share it.
fn load_coded(source: &dyn Source, column: usize, wanted: Option<&[u32]>) -> Result<ArrayRef> {
    let failed = |error| Error::internal(format!("cannot give a column as a dictionary: {error}"));
    let codes = source.codes(column, wanted)?;
    // Few rows shall not hold on to a large dictionary.
    let worth = |codes: &PageCodes| {
        wanted.is_none_or(|wanted| wanted.len() * DICTIONARY_ROWS_ONE_IN >= codes.dictionary.values().len())
    };
    let Some(PageCodes { dictionary, codes, nulls }) = codes.filter(worth) else {
        return cast(&source.load(column, wanted)?, &coded_text()).map_err(failed);
    };
    let codes = UInt32Array::new(codes.into(), nulls);
    Ok(Arc::new(DictionaryArray::try_new(codes, dictionary.values().clone()).map_err(failed)?))
}

/// The rows of a unit, column by column; columns are places in the table's schema.
pub(crate) trait Source {
    /// All rows, or the wanted ones (ascending).
    fn load(&self, column: usize, wanted: Option<&[u32]>) -> Result<ArrayRef>;

    /// The codes of all rows, or of the wanted ones (ascending), if that is how they are stored.
    fn codes(&self, column: usize, wanted: Option<&[u32]>) -> Result<Option<PageCodes>>;

    /// Whether the rows lie in the order of the table's key.
    fn is_in_key_order(&self) -> bool;
}

struct MemRows<'a> {
    layout: &'a Layout,
    chunk: &'a Chunk,
    rows: Range<usize>,
}

impl Source for MemRows<'_> {
    fn load(&self, column: usize, wanted: Option<&[u32]>) -> Result<ArrayRef> {
        let all = match self.layout.older(column).is_empty() {
            true => self.chunk.batch.column(column).slice(self.rows.start, self.rows.len()),
            false => self.layout.column_of(&self.chunk.batch.slice(self.rows.start, self.rows.len()), column)?,
        };
        match wanted {
            None => Ok(all),
            Some(wanted) => take(&all, &UInt32Array::from(wanted.to_vec()), None)
                .map_err(|error| Error::internal(format!("cannot pick rows of a memtable: {error}"))),
        }
    }

    fn codes(&self, _: usize, _: Option<&[u32]>) -> Result<Option<PageCodes>> {
        Ok(None)
    }

    fn is_in_key_order(&self) -> bool {
        false
    }
}

struct SegmentPage<'a> {
    layout: &'a Layout,
    segment: &'a Segment,
    page: u32,
}

impl Source for SegmentPage<'_> {
    fn load(&self, column: usize, wanted: Option<&[u32]>) -> Result<ArrayRef> {
        self.segment.read_column(self.layout, column, self.page, wanted, Reads::Pooled)
    }

    fn codes(&self, column: usize, wanted: Option<&[u32]>) -> Result<Option<PageCodes>> {
        self.segment.read_codes(self.layout, column, self.page, wanted)
    }

    fn is_in_key_order(&self) -> bool {
        self.segment.is_in_key_order(self.layout)
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
