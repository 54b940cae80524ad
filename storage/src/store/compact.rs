//! Compaction: segments of about one size become one, without the rows that have died; or all of them as few as can be.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_kernel::{Error, ErrorCode, Planted, Result, SegmentId};

use super::maintenance::{Moved, old_dead};
use super::{Store, lock};
use crate::layout::Layout;
use crate::merge::{Merge, MergeInput, MergeRange};
use crate::segment::{PAGE_ROWS, Segment, SegmentRows, SegmentWriter, segment_file};
use crate::state::{SourceId, State};

/// Sizes below this are one size.
const TIER_BYTES_MIN: u64 = 64 << 10;
/// Sizes within this factor (as a power of two) are about one size.
const TIER_FACTOR_BITS: u32 = 2;
/// Full segments that one round of optimising writes: what it has done stays if it is stopped later.
const ROUND_SEGMENTS: u64 = 4;

impl Store {
    /// Merges segments, if that is worth it; says whether it was. Commits, reads and flushes go on meanwhile.
    ///
    /// # Errors
    /// As the disk reports, and [`shoal_kernel::ErrorCode::Corruption`] if a segment cannot be read; nothing is lost.
    pub fn compact(&self) -> Result<bool> {
        let _one_at_a_time = lock(&self.compacting);
        lock(&self.writer).check_sound()?;
        let picked = {
            let state = lock(&self.state);
            state.check_whole()?;
            self.compaction_inputs(&state)
        };
        if let Some(ids) = &picked {
            // They were picked so that one segment holds them.
            self.rewrite(ids, u32::MAX, &|| true)?;
        }
        self.sweep();
        Ok(picked.is_some())
    }

    /// Flushes, then makes as few segments as can be, without the rows that had lost by then: each as full as
    /// [`crate::StoreOptions::segment_rows_max`] allows, but for the last. What is so already is not written again; gives the
    /// number of segments that were. Tombstones stay: who knows which peer still holds an older row. Commits, reads and
    /// flushes go on meanwhile. It is given up as soon as `goes_on` says no; what it has done till then stays.
    ///
    /// # Errors
    /// [`ErrorCode::Cancelled`] if it was given up; as the disk reports, and [`ErrorCode::Corruption`] if a segment cannot be
    /// read. Nothing is lost.
    pub fn optimize(&self, goes_on: &dyn Fn() -> bool) -> Result<usize> {
        self.flush()?;
        let _one_at_a_time = lock(&self.compacting);
        lock(&self.writer).check_sound()?;
        // Each round leaves fewer segments that are not full, or fewer with dead rows. Writers that go on make new ones: this
        // ends all the same.
        let rounds_max = 2 * lock(&self.state).segments.len() + 2;
        let mut written = 0;
        for _ in 0..rounds_max {
            let picked = {
                let state = lock(&self.state);
                state.check_whole()?;
                self.optimisation_inputs(&state)
            };
            let Some(ids) = picked else { break };
            self.rewrite(&ids, self.options.segment_rows_max, goes_on)?;
            self.sweep();
            written += ids.len();
        }
        Ok(written)
    }

    /// Puts new segments of at most so many rows, in whole pages, in the place of these.
    fn rewrite(&self, ids: &[SegmentId], rows_max: u32, goes_on: &dyn Fn() -> bool) -> Result<()> {
        let (layout, (inputs, mut moved)): (Arc<Layout>, (Vec<MergeInput>, Vec<Moved>)) = {
            let writer = lock(&self.writer);
            let state = lock(&self.state);
            let input = |id: &SegmentId| {
                let view = state.segments.get(id)?;
                let source = SourceId::Segment(*id);
                // Rows that lost against a record which is only in the log stay: without the log they would live again.
                let mut left_out = old_dead(&view.dead, writer.young.get(&source));
                if self.has(Planted::TombstoneDropped) {
                    left_out |= view.segment.tombstones();
                }
                let moved = Moved::new(source, view.segment.rows());
                Some((MergeInput { segment: view.segment.clone(), left_out: Arc::new(left_out) }, moved))
            };
            (state.layout.clone(), ids.iter().filter_map(input).unzip())
        };
        let page_rows = PAGE_ROWS.min(rows_max as usize).max(1);
        let mut merge = Merge::new(layout.clone(), inputs, &MergeRange::default());
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        let mut writer: Option<SegmentWriter> = None;
        // Rows of the segments that are finished.
        let mut rows_before = 0_u32;
        let result = loop {
            if !goes_on() {
                break Err(Error::new(ErrorCode::Cancelled, "the merging of segments was stopped"));
            }
            let merged = match merge.next(page_rows) {
                Ok(Some(merged)) => merged,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            if self.has(Planted::CompactionDropsPage) && merged.rows.versions.len() < PAGE_ROWS {
                continue;
            }
            match self.write_page(&mut writer, &layout, &merged.rows, rows_max) {
                Ok(None) => {}
                Ok(Some(full)) => {
                    rows_before += full.rows();
                    segments.push(full);
                }
                Err(error) => break Err(error),
            }
            let first_row = rows_before + writer.as_ref().map_or(0, SegmentWriter::rows) - merged.origins.len() as u32;
            for (at, (input, row)) in merged.origins.iter().enumerate() {
                moved[*input].put(*row, first_row + at as u32);
            }
        };
        drop(merge);
        let last = result.and_then(|()| writer.map(SegmentWriter::finish).transpose());
        match last {
            Ok(last) => segments.extend(last.map(Arc::new)),
            Err(error) => {
                // No manifest has named them; what cannot be removed now, the next start removes.
                for segment in segments {
                    let _ = self.disk.remove_file(&self.dir.join(segment_file(segment.id())));
                }
                return Err(error);
            }
        }
        let mut maintenance = lock(&self.maintenance);
        let flushed = lock(&self.state).flushed;
        self.replace_sources(&mut maintenance, moved, segments, flushed)
    }

    /// Writes a page, in a new segment if the present one has no room for it; gives the one that has come to its end.
    fn write_page(
        &self,
        writer: &mut Option<SegmentWriter>,
        layout: &Arc<Layout>,
        rows: &SegmentRows,
        rows_max: u32,
    ) -> Result<Option<Arc<Segment>>> {
        let count = rows.versions.len() as u32;
        let full = writer.as_ref().is_some_and(|writer| writer.rows().saturating_add(count) > rows_max);
        let ended = match if full { writer.take() } else { None } {
            Some(ended) => Some(Arc::new(ended.finish()?)),
            None => None,
        };
        let present = match writer {
            Some(present) => present,
            none => none.insert(SegmentWriter::create(&self.context, layout.clone(), &self.dir, self.next_segment())?),
        };
        present.push(rows)?;
        Ok(ended)
    }

    /// The next segments to be written again before there are as few of them as can be, without dead rows.
    fn optimisation_inputs(&self, state: &State) -> Option<Vec<SegmentId>> {
        let rows_max = u64::from(self.options.segment_rows_max).max(1);
        // Segments are written in whole pages, and only the last one may end within a page.
        let page_rows = rows_max.min(PAGE_ROWS as u64);
        let full = rows_max / page_rows * page_rows;
        let fewest = |live: u64| live.saturating_sub(rows_max - full).max(u64::from(live > 0)).div_ceil(full);
        // What is not as it should be: which, rows that stay, whether some are dead.
        let mut open: Vec<(SegmentId, u64, bool)> = Vec::new();
        for (id, view) in &state.segments {
            let (rows, has_dead) = (u64::from(view.segment.rows()), view.old_dead > 0);
            if has_dead || rows < full {
                open.push((*id, rows.saturating_sub(view.old_dead), has_dead));
            }
        }
        if open.len() as u64 <= fewest(open.iter().map(|(_, live, _)| live).sum()) {
            // No merge makes them fewer.
            open.retain(|(_, _, has_dead)| *has_dead);
        }
        let (mut picked, mut live) = (Vec::new(), 0);
        for (id, rows, _) in open {
            live += rows;
            // Rows are counted in 32 bits through all that a merge writes.
            if picked.len() > 1 && live > full * ROUND_SEGMENTS || live >= u64::from(u32::MAX) && !picked.is_empty() {
                break;
            }
            picked.push(id);
        }
        (!picked.is_empty()).then_some(picked)
    }

    /// The segments that are worth merging now.
    pub(super) fn compaction_inputs(&self, state: &State) -> Option<Vec<SegmentId>> {
        let mut tiers: BTreeMap<u32, Vec<SegmentId>> = BTreeMap::new();
        for (id, view) in &state.segments {
            if view.old_dead * 2 > u64::from(view.segment.rows()) {
                return Some(vec![*id]);
            }
            let size = view.segment.bytes().max(TIER_BYTES_MIN) / TIER_BYTES_MIN;
            tiers.entry(size.ilog2() / TIER_FACTOR_BITS).or_default().push(*id);
        }
        let fan_in = self.options.compaction_fan_in.max(2);
        tiers.into_values().find_map(|mut tier| {
            tier.truncate(fan_in * 2);
            let rows = |id: &SegmentId| state.segments.get(id).map_or(0, |view| u64::from(view.segment.rows()));
            while tier.iter().map(rows).sum::<u64>() > u64::from(self.options.segment_rows_max) {
                tier.pop();
            }
            (tier.len() >= fan_in).then_some(tier)
        })
    }
}
