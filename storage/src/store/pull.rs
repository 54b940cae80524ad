//! The catch-up feed: what a peer has not seen yet of this replica's accept log.
//!
//! A cursor is a position; everything accepted up to it has been handed out, or has lost against something later. Rows that
//! lie in memtables follow in the order of acceptance. Rows that lie in segments are handed out in rounds: all of a range of
//! positions, in key order, so that a round survives every flush and compaction between two calls.

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::take;
use serde::{Deserialize, Serialize};
use shoal_kernel::{Error, LogId, Planted, Result, Version};

use super::{Store, lock};
use crate::layout::Layout;
use crate::memtable::MemView;
use crate::merge::{Merge, MergeInput, MergeRange, Merged};
use crate::rows::{Rows, Write, replicated_batch, replicated_schema};
use crate::size::{batch_bytes, rows_within};
use crate::state::{SegmentView, State};
use crate::token::TokenRecord;

/// Where a peer stands in this replica's log. The default starts from the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PullCursor {
    /// The log that the position belongs to.
    pub log_id: LogId,
    /// Everything up to here has been handed out.
    pub position: u64,
    /// The round through the segments that is under way.
    pub round: Option<PullRound>,
}

/// A round through the segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRound {
    /// Positions up to here belong to it.
    pub until: u64,
    /// Keys up to here have been handed out.
    pub after_key: Vec<u8>,
}

/// A part of the feed.
#[derive(Debug, Clone, PartialEq)]
pub struct Pulled {
    /// Rows and tombstones: the table's columns (all nullable), `_version`, `_tombstone`. At least one, if without rows,
    /// when there are tokens.
    pub batches: Vec<RecordBatch>,
    /// Tokens of these records.
    pub tokens: Vec<TokenRecord>,
    /// Where to go on. To be kept only once the rows are committed.
    pub next: PullCursor,
    /// The present position of the log; `position - next.position` is the lag.
    pub position: u64,
    /// Nothing is left for now.
    pub done: bool,
}

impl Pulled {
    /// The writes that bring a follower up to [`Pulled::next`].
    pub fn into_writes(self) -> Vec<Write> {
        let write =
            |(batch, tokens)| Write { version: Version::default(), token: None, rows: Rows::Replicated(batch, tokens) };
        let last = self.batches.len().saturating_sub(1);
        let mut tokens = Some(self.tokens);
        let with_tokens = |(at, batch)| {
            // A token must not be known where its rows are not, so all of them go with the last rows.
            let tokens = if at == last { tokens.take() } else { None };
            (batch, tokens.unwrap_or_default())
        };
        self.batches.into_iter().enumerate().map(with_tokens).map(write).collect()
    }
}

impl Store {
    /// What a place in a log that has gone is worth in the present one: everything up to there is the same in both. `None` if
    /// that log is not known.
    pub fn place_of(&self, log_id: LogId, position: u64) -> Option<u64> {
        let state = lock(&self.state);
        if log_id == state.log_id {
            return Some(position);
        }
        state.past.iter().find(|past| past.log_id == log_id).map(|past| position.min(past.common))
    }

    /// Logs that the present one has gone on from: places in them can be translated.
    pub fn past_logs(&self) -> Vec<LogId> {
        lock(&self.state).past.iter().map(|past| past.log_id).collect()
    }

    /// Whether everything is here that was synced of that log.
    pub fn has_synced_of(&self, log_id: LogId) -> bool {
        let state = lock(&self.state);
        log_id == state.log_id || state.past.iter().any(|past| past.log_id == log_id && past.intact)
    }

    /// The next part of the feed, of about `bytes_max` bytes. A cursor of another log, or from beyond this log's end, starts
    /// from the beginning. Rows may be handed out more than once, never skipped.
    ///
    /// # Errors
    /// [`shoal_kernel::ErrorCode::Corruption`] if a segment cannot be read.
    pub fn pull(&self, cursor: &PullCursor, bytes_max: usize) -> Result<Pulled> {
        let state = lock(&self.state).clone();
        state.check_whole()?;
        let mut next = cursor.clone();
        if cursor.log_id != state.log_id || cursor.position > state.position {
            next = PullCursor { log_id: state.log_id, ..PullCursor::default() };
        }
        let mut feed = Feed { batches: Vec::new(), tokens: Vec::new(), bytes_left: bytes_max.max(1) };
        while feed.bytes_left > 0 && (next.round.is_some() || next.position < state.position) {
            if next.round.is_none() && next.position < state.flushed {
                next.round = Some(PullRound { until: state.flushed, after_key: Vec::new() });
            }
            let from = next.position;
            match next.round.take() {
                Some(round) => match self.feed_segments(&state, from, &round, &mut feed)? {
                    Some(after_key) => next.round = Some(PullRound { after_key, ..round }),
                    None => next.position = round.until,
                },
                None => next.position = self.feed_memtables(&state, from, &mut feed)?,
            }
            // Behind their rows: a token must not be known where its rows are not.
            let tokens = lock(&self.tokens);
            feed.tokens.extend(tokens.between(from, next.position).map(|entry| entry.record.clone()));
        }
        if feed.batches.is_empty() && !feed.tokens.is_empty() {
            feed.add(RecordBatch::new_empty(replicated_schema(&state.layout)));
        }
        let done = next.round.is_none() && next.position == state.position;
        Ok(Pulled { batches: feed.batches, tokens: feed.tokens, next, position: state.position, done })
    }

    /// Hands out rows of segments in key order; says behind which key to go on, if anything may be left.
    fn feed_segments(&self, state: &State, from: u64, round: &PullRound, feed: &mut Feed) -> Result<Option<Vec<u8>>> {
        let input = |view: &SegmentView| MergeInput { segment: view.segment.clone(), left_out: view.dead.clone() };
        let inputs = state.segments.values().map(input).collect();
        let range = MergeRange { after_position: from, after_key: &round.after_key, ..MergeRange::default() };
        let mut merge = Merge::new(state.layout.clone(), inputs, &range);
        let mut after_key = round.after_key.clone();
        let mut rows_wanted = FEED_ROWS_FIRST;
        while feed.bytes_left > 0 {
            let Some(Merged { rows, .. }) = merge.next(rows_wanted)? else { return Ok(None) };
            // Rows may be much wider than those before them.
            let count = rows_within(&rows.batch, feed.bytes_left);
            let is_cut = count < rows.versions.len();
            let batch = rows.batch.slice(0, count);
            if let Some(last) = rows.keys.iter().take(count).next_back() {
                after_key = last.to_vec();
            }
            let tombstones = rows.tombstones.iter().take(count).copied().collect();
            feed.add(replicated_batch(&state.layout, batch.columns(), &rows.versions[..count], tombstones)?);
            if is_cut {
                feed.bytes_left = 0;
            }
            rows_wanted = feed.rows_that_fit(batch_bytes(&batch) / count.max(1));
        }
        Ok(Some(after_key))
    }

    /// Hands out whole records from memtables. Gives the position up to which everything has been handed out.
    fn feed_memtables(&self, state: &State, from: u64, feed: &mut Feed) -> Result<u64> {
        for view in state.memtables.iter().filter(|view| view.last_position > from) {
            for chunk in &view.chunks {
                let mut start = chunk.positions.partition_point(|&position| position <= from);
                while start < chunk.rows() {
                    if feed.bytes_left == 0 {
                        // Records before this one are out: positions count records.
                        return Ok(chunk.positions[start] - 1);
                    }
                    let position = chunk.positions[start];
                    let record_end = start + chunk.positions[start..].partition_point(|&other| other == position);
                    // Small records travel together, and no record is cut.
                    let next = chunk.batch.slice(start, FEED_ROWS.min(chunk.rows() - start));
                    let reach = start + rows_within(&next, feed.bytes_left);
                    let whole = |&cut: &u64| chunk.positions.partition_point(|&other| other < cut);
                    let end = record_end.max(chunk.positions.get(reach).map_or(reach, whole));
                    let live = (start..end).filter(|&row| !view.dead.contains(chunk.first_row + row as u32));
                    let mut rows: Vec<u32> = live.map(|row| row as u32).collect();
                    if self.has(Planted::PullGap) && rows.len() > 1 {
                        rows.pop();
                    }
                    feed.push(&state.layout, view, chunk, &rows)?;
                    start = end;
                }
            }
        }
        Ok(state.position)
    }
}

/// Rows that are handed out as one batch, unless one record in a memtable has more.
const FEED_ROWS: usize = 1024;
/// The first rows of a call, by which the width of the others is judged.
const FEED_ROWS_FIRST: usize = 16;

/// What has been collected for one answer.
pub(super) struct Feed {
    pub(super) batches: Vec<RecordBatch>,
    tokens: Vec<TokenRecord>,
    pub(super) bytes_left: usize,
}

impl Feed {
    fn rows_that_fit(&self, row_bytes: usize) -> usize {
        (self.bytes_left / row_bytes.max(1)).clamp(1, FEED_ROWS)
    }

    fn push(&mut self, layout: &Layout, view: &MemView, chunk: &crate::memtable::Chunk, rows: &[u32]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let indices = UInt32Array::from(rows.to_vec());
        let failed = |error| Error::internal(format!("cannot pick rows for a peer: {error}"));
        let columns = chunk.batch.columns().iter().map(|column| take(column, &indices, None));
        let columns = columns.collect::<Result<Vec<ArrayRef>, _>>().map_err(failed)?;
        let versions: Vec<Version> = rows.iter().map(|&row| chunk.versions[row as usize]).collect();
        let tombstones =
            rows.iter().map(|&row| view.tombstones.contains(chunk.first_row + row)).collect::<BooleanBuffer>();
        self.add(replicated_batch(layout, &columns, &versions, tombstones)?);
        Ok(())
    }

    pub(super) fn add(&mut self, batch: RecordBatch) {
        self.bytes_left = self.bytes_left.saturating_sub(batch_bytes(&batch).max(1));
        self.batches.push(batch);
    }
}
