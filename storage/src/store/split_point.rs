//! Where a store would be split: at about the median of its keys, from what is known without reading them.

use std::fmt;

use shoal_kernel::{Error, ErrorCode, Result};

use super::{Store, lock};
use crate::state::{SegmentView, State};

/// Of the keys in memory, one in so many is looked at.
const MEMORY_KEYS_ONE_IN: usize = 64;

/// Where to split, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SplitPoint {
    /// The first key of the right half: an encoded partition key.
    At(Vec<u8>),
    /// There is no such key.
    Refused(NoSplitPoint),
}

/// Why a store cannot be split in two. It stays so until other rows come: nothing to be asked again at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoSplitPoint {
    /// It is not worth it.
    TooFewRows {
        /// About how many there are, tombstones included.
        rows: u64,
        /// How many there must be.
        rows_min: u64,
    },
    /// All rows have one partition key.
    OneKey,
}

impl fmt::Display for NoSplitPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFewRows { rows, rows_min } => write!(f, "there are {rows} rows, fewer than {rows_min}"),
            Self::OneKey => f.write_str("all rows have one partition key"),
        }
    }
}

/// A number of rows, the smallest of their identities, and the page that they lie in, if they do.
struct Run<'a> {
    key: Vec<u8>,
    rows: u64,
    page: Option<(&'a SegmentView, u32)>,
}

impl Store {
    /// Proposes where to split: a partition key, that is the first `columns` columns of the key, that about half of the rows
    /// and tombstones lie below. Reads one page of keys at most.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] if the table's key has not so many columns; [`ErrorCode::Corruption`] if a segment cannot
    /// be read.
    pub fn split_point(&self, columns: usize, rows_min: u64) -> Result<SplitPoint> {
        let layout = self.layout();
        if columns == 0 || columns > layout.key.len() {
            let message = format!("a partition key of {columns} columns, of a key of {}", layout.key.len());
            return Err(Error::new(ErrorCode::InvalidRequest, message));
        }
        let mut runs = Vec::new();
        let (state, in_memory) = self.memory_runs(&mut runs);
        state.check_whole()?;
        let last = self.segment_runs(&state, &mut runs).max(in_memory);
        let (rows, rows_min) = (runs.iter().map(|run| run.rows).sum::<u64>(), rows_min.max(2));
        if rows < rows_min {
            return Ok(SplitPoint::Refused(NoSplitPoint::TooFewRows { rows, rows_min }));
        }
        runs.sort_by(|one, other| one.key.cmp(&other.key));
        let mut below = 0;
        let median = runs.iter().position(|run| {
            below += run.rows;
            below * 2 >= rows
        });
        let from_median = &runs[median.unwrap_or_default()..];
        // The best one first: the middle of the page in the middle, of which a split may have left a part.
        let mut candidates = Vec::new();
        if let Some((view, page)) = from_median.first().and_then(|run| run.page) {
            let (keys, _) = view.segment.read_key_columns(&layout, page)?;
            let rows = view.segment.page_rows(page);
            let own = rows.start.max(view.rows.start)..rows.end.min(view.rows.end);
            let middle = own.start.midpoint(own.end) - rows.start;
            candidates.extend((middle..own.end - rows.start).map(|row| keys.get(row as usize).to_vec()));
        }
        candidates.extend(from_median.iter().map(|run| run.key.clone()));
        candidates.push(last);
        let prefix = |key: &[u8]| layout.key_prefix(key, columns).map(<[u8]>::to_vec);
        let lowest = runs.first().and_then(|run| prefix(&run.key)).unwrap_or_default();
        // Equal to the smallest, one side would be empty.
        let floor = lowest.max(self.range.start.clone());
        let fits = |key: &Vec<u8>| *key > floor && self.range.contains(key);
        Ok(match candidates.iter().filter_map(|key| prefix(key)).find(fits) {
            Some(key) => SplitPoint::At(key),
            None => SplitPoint::Refused(NoSplitPoint::OneKey),
        })
    }

    /// Adds the keys in memory; gives the state that they belong to and the greatest of them.
    fn memory_runs(&self, runs: &mut Vec<Run<'_>>) -> (State, Vec<u8>) {
        let writer = lock(&self.writer);
        let indexes = writer.sealed.iter().map(|(_, index)| &**index).chain([&writer.index]);
        let mut last = Vec::new();
        for index in indexes {
            for (at, (key, _)) in index.iter().enumerate().step_by(MEMORY_KEYS_ONE_IN) {
                let rows = MEMORY_KEYS_ONE_IN.min(index.len() - at) as u64;
                runs.push(Run { key: key.to_vec(), rows, page: None });
            }
            last = last.max(index.last_key_value().map(|(key, _)| key.to_vec()).unwrap_or_default());
        }
        let state = lock(&self.state).clone();
        (state, last)
    }

    /// Adds the pages of segments; gives the greatest key in them, as far as it is known.
    fn segment_runs<'a>(&self, state: &'a State, runs: &mut Vec<Run<'a>>) -> Vec<u8> {
        let mut last = Vec::new();
        for view in state.segments.values().filter(|view| !view.history) {
            for page in view.pages() {
                let rows = view.segment.page_rows(page);
                let living = rows.len() as u64 - view.dead.range_cardinality(rows);
                if living > 0 {
                    // A page that a split has cut begins before this store does.
                    let key = view.segment.first_keys()[page as usize].clone().max(self.range.start.clone());
                    runs.push(Run { key, rows: living, page: Some((view, page)) });
                }
            }
            if view.rows.end == view.segment.rows() {
                last = last.max(view.segment.last_key().to_vec());
            }
        }
        last
    }
}
