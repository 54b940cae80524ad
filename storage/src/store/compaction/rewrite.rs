//! A merge under way: a page at a time, so that whoever drives it may wait between two of them, or give it up.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use roaring::RoaringBitmap;
use shoal_kernel::env::Disk;
use shoal_kernel::{KeyRange, Planted, Result, SegmentId};

use super::super::maintenance::{Moved, Replacement};
use super::super::{Store, lock};
use super::pick::Pick;
use crate::layout::Layout;
use crate::merge::{Keys, Merge, MergeInput, MergeRange};
use crate::segment::{PAGE_ROWS, Segment, SegmentRows, SegmentWriter, segment_file};
use crate::state::SourceId;

/// What a merge writes: a new segment begins with each part.
#[derive(Debug)]
pub(super) struct Parts(VecDeque<Keys>);

impl Parts {
    /// Each of these ranges, in order, and then all other rows together.
    pub(super) fn cut(ranges: Vec<KeyRange>) -> Self {
        if ranges.is_empty() {
            return Self(VecDeque::from([Keys::All]));
        }
        let others = Keys::Outside(ranges.clone().into());
        Self(ranges.into_iter().map(Keys::Within).chain([others]).collect())
    }
}

struct Input {
    segment: Arc<Segment>,
    /// Rows that no part takes over.
    left_out: Arc<RoaringBitmap>,
    /// Dead rows that readers of changes need: a part of their own.
    history: RoaringBitmap,
    /// Rows that were dead when the merge began: more than those, as some have lost against records that are only in the log.
    dead: Arc<RoaringBitmap>,
}

impl Input {
    fn winners(&self) -> MergeInput {
        MergeInput { segment: self.segment.clone(), left_out: self.left_out.clone() }
    }

    fn history(&self) -> MergeInput {
        let mut others = RoaringBitmap::new();
        others.insert_range(0..self.segment.rows());
        MergeInput { segment: self.segment.clone(), left_out: Arc::new(others - &self.history) }
    }
}

/// A merge that has begun. If it is dropped before its end, what it has written is removed.
pub(in super::super) struct Rewrite {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// How rows were laid out when it began: it is written so, whatever comes meanwhile.
    layout: Arc<Layout>,
    inputs: Vec<Input>,
    /// Where the rows of each input have gone, counted through all that is written.
    moved: Vec<Moved>,
    /// New segments have at most so many rows, in whole pages.
    rows_max: u32,
    parts: VecDeque<Keys>,
    /// Rows that died up to here may be left out.
    forgotten: u64,
    /// Complete segments before the first one of history, once that part has begun.
    winners: Option<usize>,
    merge: Option<Merge>,
    writer: Option<SegmentWriter>,
    /// What is complete, in the order of its rows, and how many rows it has.
    finished: Vec<Arc<Segment>>,
    finished_rows: u32,
    /// Rows written, and bytes of all complete files.
    rows: u64,
    finished_bytes: u64,
}

impl Rewrite {
    pub(super) fn begin(store: &Store, pick: Pick, rows_max: u32) -> Self {
        let writer = lock(&store.writer);
        let flushed = lock(&store.state).flushed;
        let forgotten = store.forget_changes_through(flushed);
        let state = lock(&store.state);
        let input = |id: &SegmentId| {
            let view = state.segments.get(id)?;
            let source = SourceId::Segment(*id);
            let deaths = writer.deaths.get(&source).map_or(&[][..], Vec::as_slice);
            let after = |after: u64| -> RoaringBitmap {
                deaths.iter().filter(|(position, _)| *position > after).map(|(_, row)| *row).collect()
            };
            // Rows that lost against a record which is only in the log stay: without the log they would live again.
            let (kept, young) = (after(forgotten), after(flushed));
            let mut left_out = view.dead.as_ref() - &kept;
            let history = kept - young;
            left_out |= &history;
            if store.has(Planted::TombstoneDropped) {
                left_out |= view.segment.tombstones();
            }
            let (segment, dead) = (view.segment.clone(), view.dead.clone());
            let moved = Moved::new(source, segment.rows());
            Some((Input { segment, left_out: Arc::new(left_out), history, dead }, moved))
        };
        let (inputs, moved) = pick.ids.iter().filter_map(input).unzip();
        Self {
            disk: store.disk.clone(),
            dir: store.dir.clone(),
            layout: state.layout.clone(),
            inputs,
            moved,
            rows_max,
            parts: pick.parts.0,
            forgotten,
            winners: None,
            merge: None,
            writer: None,
            finished: Vec::new(),
            finished_rows: 0,
            rows: 0,
            finished_bytes: 0,
        }
    }

    /// Segments that it takes the place of.
    pub(super) fn replaces(&self) -> usize {
        self.inputs.len()
    }

    /// Whether it takes the place of that one.
    pub(super) fn reads(&self, id: SegmentId) -> bool {
        self.inputs.iter().any(|input| input.segment.id() == id)
    }

    pub(super) fn bytes_written(&self) -> u64 {
        self.finished_bytes + self.writer.as_ref().map_or(0, SegmentWriter::bytes)
    }

    /// About what has been read: all of the segments' bytes, once all of their rows are through.
    pub(super) fn bytes_read(&self) -> u64 {
        let (mut bytes, mut rows) = (0, 0);
        for Input { segment, left_out, history, .. } in &self.inputs {
            bytes += segment.bytes();
            rows += u64::from(segment.rows()) - left_out.len() + history.len();
        }
        let share = u128::from(bytes) * u128::from(self.rows) / u128::from(rows.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// Writes the next page. False at the end, when everything is written and durable.
    pub(super) fn page(&mut self, store: &Store) -> Result<bool> {
        loop {
            let page_rows = PAGE_ROWS.min(self.rows_max as usize).max(1);
            let merge = match &mut self.merge {
                Some(merge) => merge,
                none => {
                    let (keys, inputs) = match self.parts.pop_front() {
                        Some(keys) => (keys, self.inputs.iter().map(Input::winners).collect()),
                        None if self.winners.is_none() && self.inputs.iter().any(|input| !input.history.is_empty()) => {
                            self.winners = Some(self.finished.len());
                            (Keys::All, self.inputs.iter().map(Input::history).collect())
                        }
                        None => return Ok(false),
                    };
                    let range = MergeRange { keys, ..MergeRange::default() };
                    none.insert(Merge::new(self.layout.clone(), inputs, &range))
                }
            };
            let Some(merged) = merge.next(page_rows)? else {
                self.merge = None;
                self.finish()?;
                continue;
            };
            self.rows += merged.origins.len() as u64;
            if store.has(Planted::CompactionDropsPage) && merged.rows.versions.len() < PAGE_ROWS {
                continue;
            }
            let first_row = self.write(store, &merged.rows)?;
            for (at, (input, row)) in merged.origins.iter().enumerate() {
                self.moved[*input].put(*row, first_row + at as u32);
            }
            return Ok(true);
        }
    }

    /// Writes a page, in a new segment if the present one has no room for it; gives the number of its first row.
    fn write(&mut self, store: &Store, rows: &SegmentRows) -> Result<u32> {
        let count = rows.versions.len() as u32;
        if self.writer.as_ref().is_some_and(|writer| writer.rows().saturating_add(count) > self.rows_max) {
            self.finish()?;
        }
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(SegmentWriter::create(
                &store.context,
                self.layout.clone(),
                &store.dir,
                store.next_segment(),
            )?),
        };
        let first_row = self.finished_rows + writer.rows();
        writer.push(rows)?;
        Ok(first_row)
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            let segment = Arc::new(writer.finish()?);
            self.finished_rows += segment.rows();
            self.finished_bytes += segment.bytes();
            self.finished.push(segment);
        }
        Ok(())
    }

    /// Puts what was written in the place of what was read. Rows that died meanwhile are dead there too; says how many.
    pub(super) fn install(mut self, store: &Store) -> Result<u64> {
        let mut moved = std::mem::take(&mut self.moved);
        // From here on a manifest may name them.
        let segments = std::mem::take(&mut self.finished);
        let mut maintenance = lock(&store.maintenance);
        let (flushed, died) = {
            let state = lock(&store.state);
            let died = |input: &Input| match state.segments.get(&input.segment.id()) {
                Some(view) => &*view.dead - &*input.dead,
                None => RoaringBitmap::new(),
            };
            (state.flushed, self.inputs.iter().map(died).collect::<Vec<_>>())
        };
        if store.has(Planted::MasksNotCarried) {
            moved.iter_mut().zip(&died).for_each(|(moved, died)| died.iter().for_each(|row| moved.forget(row)));
        }
        let histories = self.winners.map_or(0, |winners| segments.len() - winners);
        let replacement = Replacement { moved, segments, histories, flushed, forgotten: self.forgotten };
        store.replace_sources(&mut maintenance, replacement)?;
        Ok(died.iter().map(RoaringBitmap::len).sum())
    }
}

impl Drop for Rewrite {
    fn drop(&mut self) {
        // No manifest has named them; what cannot be removed now, the next start removes. So does the writer with its file.
        for segment in &self.finished {
            let _ = self.disk.remove_file(&self.dir.join(segment_file(segment.id())));
        }
    }
}
