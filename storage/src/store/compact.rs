//! Compaction: segments of about one size become one, without the rows that have died.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_kernel::{Planted, Result, SegmentId};

use super::maintenance::{Moved, old_dead};
use super::{Store, lock};
use crate::merge::{Merge, MergeInput, MergeRange};
use crate::segment::{PAGE_ROWS, SegmentWriter};
use crate::state::{SourceId, State};

/// Sizes below this are one size.
const TIER_BYTES_MIN: u64 = 64 << 10;
/// Sizes within this factor (as a power of two) are about one size.
const TIER_FACTOR_BITS: u32 = 2;

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
        let Some(ids) = picked else {
            self.sweep();
            return Ok(false);
        };
        let (inputs, mut moved): (Vec<MergeInput>, Vec<Moved>) = {
            let writer = lock(&self.writer);
            let state = lock(&self.state);
            let input = |id: &SegmentId| {
                let view = state.segments.get(id)?;
                let source = SourceId::Segment(*id);
                // Rows that lost against a record which is only in the log stay: without the log they would live again.
                let left_out = Arc::new(old_dead(&view.dead, writer.young.get(&source)));
                let moved = Moved::new(source, view.segment.rows());
                Some((MergeInput { segment: view.segment.clone(), left_out }, moved))
            };
            ids.iter().filter_map(input).unzip()
        };
        let mut merge = Merge::new(self.layout.clone(), inputs, &MergeRange::default());
        let mut writer: Option<SegmentWriter> = None;
        while let Some(merged) = merge.next(PAGE_ROWS)? {
            if self.has(Planted::CompactionDropsPage) && merged.rows.versions.len() < PAGE_ROWS {
                continue;
            }
            let segment = match &mut writer {
                Some(segment) => segment,
                none => none.insert(SegmentWriter::create(&self.context, &self.dir, self.next_segment())?),
            };
            let first_row = segment.rows();
            for (at, (input, row)) in merged.origins.iter().enumerate() {
                moved[*input].put(*row, first_row + at as u32);
            }
            segment.push(&merged.rows)?;
        }
        drop(merge);
        let segment = writer.map(SegmentWriter::finish).transpose()?.map(Arc::new);
        {
            let mut maintenance = lock(&self.maintenance);
            let flushed = lock(&self.state).flushed;
            self.replace_sources(&mut maintenance, moved, segment, flushed)?;
        }
        self.sweep();
        Ok(true)
    }

    /// The segments that are worth merging now.
    pub(super) fn compaction_inputs(&self, state: &State) -> Option<Vec<SegmentId>> {
        let mut tiers: BTreeMap<u32, Vec<SegmentId>> = BTreeMap::new();
        for (id, view) in &state.segments {
            // An event table's identities hang on the columns of their time; what was written before a column was dropped or
            // widened keeps its order, and stays by itself.
            if !self.layout.schema.is_upsert() && !view.segment.is_current() {
                continue;
            }
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
