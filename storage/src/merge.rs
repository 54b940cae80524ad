//! Merging segments in the order of identities: for compaction, and for peers that catch up.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::interleave;
use roaring::RoaringBitmap;
use shoal_kernel::{Error, KeyRange, Result};

use crate::key::EncodedKeys;
use crate::layout::Layout;
use crate::segment::{PageRows, Segment, SegmentRows};

/// Picks rows out of several batches of one schema: (batch, row) each.
pub(crate) fn gather(layout: &Layout, batches: &[&RecordBatch], picks: &[(usize, usize)]) -> Result<RecordBatch> {
    let column = |at: usize| -> Result<ArrayRef> {
        let arrays: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(at).as_ref()).collect();
        interleave(&arrays, picks).map_err(|error| Error::internal(format!("cannot put rows together: {error}")))
    };
    let columns = (0..layout.stored.len()).map(column).collect::<Result<_>>()?;
    layout.batch(columns, picks.len())
}

/// A segment that takes part, and its rows that do not.
pub(crate) struct MergeInput {
    pub(crate) segment: Arc<Segment>,
    pub(crate) left_out: Arc<RoaringBitmap>,
}

/// Which rows are wanted.
#[derive(Default)]
pub(crate) struct MergeRange<'a> {
    /// Only rows accepted after this position.
    pub(crate) after_position: u64,
    /// Only rows of greater identities.
    pub(crate) after_key: &'a [u8],
    /// Only rows of these identities.
    pub(crate) keys: Keys,
}

/// Identities, by ranges of them.
#[derive(Debug, Clone, Default)]
pub(crate) enum Keys {
    #[default]
    All,
    Within(KeyRange),
    /// Those of none of the ranges, which are in order and do not overlap.
    Outside(Arc<[KeyRange]>),
}

impl Keys {
    fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Within(range) => range.contains(key),
            Self::Outside(ranges) => Self::at(ranges, key).is_none_or(|range| !range.contains(key)),
        }
    }

    /// Whether one of the keys from `first` to `last` may be among them.
    fn may_meet(&self, first: &[u8], last: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Within(range) => range.start.as_slice() <= last && range.end.as_deref().is_none_or(|end| first < end),
            Self::Outside(ranges) => {
                Self::at(ranges, first).is_none_or(|range| !range.contains(first) || !range.contains(last))
            }
        }
    }

    /// The last range that begins at the key or before it.
    fn at<'r>(ranges: &'r [KeyRange], key: &[u8]) -> Option<&'r KeyRange> {
        ranges.partition_point(|range| range.start.as_slice() <= key).checked_sub(1).map(|at| &ranges[at])
    }
}

/// Rows in the order of their identities; each identity is alive in one segment only.
pub(crate) struct Merge {
    layout: Arc<Layout>,
    cursors: Vec<Cursor>,
}

/// Merged rows, and where they came from: (input, row).
pub(crate) struct Merged {
    pub(crate) rows: SegmentRows,
    pub(crate) origins: Vec<(usize, u32)>,
}

struct Page {
    content: PageRows,
    keys: EncodedKeys,
    first_row: u32,
}

struct Cursor {
    input: MergeInput,
    after_position: u64,
    after_key: Vec<u8>,
    among: Keys,
    next_page: u32,
    page: Option<Arc<Page>>,
    /// Rows of the page that are wanted, and how many of them are done.
    wanted: Vec<usize>,
    done: usize,
}

impl Cursor {
    /// Moves to a page with a wanted row if the present one has no more.
    fn settle(&mut self, layout: &Layout) -> Result<()> {
        while self.done == self.wanted.len() {
            self.page = None;
            let segment = &self.input.segment;
            let number = self.next_page;
            if number >= segment.pages() {
                return Ok(());
            }
            self.next_page += 1;
            let (first, last) = segment.key_bounds(number);
            if segment.position_range(number).1 <= self.after_position || !self.among.may_meet(first, last) {
                continue;
            }
            let rows = segment.page_rows(number);
            if self.input.left_out.range_cardinality(rows.clone()) == rows.len() as u64 {
                continue;
            }
            let content = segment.read_rows(layout, number)?;
            let keys = crate::rows::identities(layout, &content.batch)?;
            let is_wanted = |row: &usize| {
                content.positions[*row] > self.after_position
                    && !self.input.left_out.contains(rows.start + *row as u32)
                    && keys.get(*row) > self.after_key.as_slice()
                    && self.among.contains(keys.get(*row))
            };
            self.wanted = (0..rows.len()).filter(is_wanted).collect();
            self.done = 0;
            self.page = Some(Arc::new(Page { keys, first_row: rows.start, content }));
        }
        Ok(())
    }

    fn key(&self) -> Option<&[u8]> {
        let page = self.page.as_ref()?;
        self.wanted.get(self.done).map(|&row| page.keys.get(row))
    }
}

impl Merge {
    pub(crate) fn new(layout: Arc<Layout>, inputs: Vec<MergeInput>, range: &MergeRange<'_>) -> Self {
        let cursor = |input: MergeInput| Cursor {
            next_page: input.segment.first_page_above(range.after_key),
            after_position: range.after_position,
            after_key: range.after_key.to_vec(),
            among: range.keys.clone(),
            page: None,
            wanted: Vec::new(),
            done: 0,
            input,
        };
        Self { layout, cursors: inputs.into_iter().map(cursor).collect() }
    }

    /// The next rows, at most so many; `None` at the end.
    pub(crate) fn next(&mut self, rows_max: usize) -> Result<Option<Merged>> {
        let mut pages: Vec<Arc<Page>> = Vec::new();
        // For each cursor, the place of its present page in `pages`.
        let mut places: Vec<Option<usize>> = vec![None; self.cursors.len()];
        let mut picks: Vec<(usize, usize)> = Vec::new();
        let mut origins = Vec::new();
        let mut keys = EncodedKeys::default();
        while picks.len() < rows_max {
            for (number, cursor) in self.cursors.iter_mut().enumerate() {
                if cursor.done == cursor.wanted.len() {
                    places[number] = None;
                    cursor.settle(&self.layout)?;
                }
            }
            let smallest = self.cursors.iter().enumerate().filter_map(|(number, cursor)| Some((cursor.key()?, number)));
            let Some((_, number)) = smallest.min() else { break };
            let cursor = &mut self.cursors[number];
            let Some(page) = cursor.page.clone() else { break };
            let place = *places[number].get_or_insert_with(|| {
                pages.push(page.clone());
                pages.len() - 1
            });
            let row = cursor.wanted[cursor.done];
            cursor.done += 1;
            keys.push_with(|out| out.extend_from_slice(page.keys.get(row)))?;
            picks.push((place, row));
            origins.push((number, page.first_row + row as u32));
        }
        if picks.is_empty() {
            return Ok(None);
        }
        let batches: Vec<&RecordBatch> = pages.iter().map(|page| &page.content.batch).collect();
        let rows = SegmentRows {
            batch: gather(&self.layout, &batches, &picks)?,
            keys,
            versions: picks.iter().map(|&(place, row)| pages[place].content.versions[row]).collect(),
            positions: picks.iter().map(|&(place, row)| pages[place].content.positions[row]).collect(),
            tombstones: origins
                .iter()
                .map(|&(number, row)| self.cursors[number].input.segment.tombstones().contains(row))
                .collect(),
        };
        Ok(Some(Merged { rows, origins }))
    }
}
