//! Rows that have died and are kept, because a reader of changes has not seen them die.
//!
//! Such rows lie in segments of their own, *history*, as soon as they are written again: of each key, any other segment holds
//! one row at most, and a search by key need not look further.

use roaring::RoaringBitmap;
use shoal_kernel::{Error, ErrorCode, Result, SegmentId};

use super::maintenance::{Moved, Replacement};
use super::{Store, lock};
use crate::layout::Layout;
use crate::memtable::MemView;
use crate::rows::identities;
use crate::state::{SegmentView, State};

impl Store {
    /// From now on, whatever is needed to tell the changes after this position is kept until a later one is given, or `None`:
    /// then nothing is kept for that purpose. Durable where it matters: no restart forgets it and lets go of a row.
    ///
    /// # Errors
    /// [`ErrorCode::ChangesGone`] if changes after that position cannot be told any more; [`ErrorCode::InvalidRequest`] for a
    /// position that the log has not reached; [`ErrorCode::Corruption`] if a segment could not be opened;
    /// [`ErrorCode::NotReady`] if the store must be opened again; and as the disk reports.
    pub fn keep_changes_from(&self, position: Option<u64>) -> Result<()> {
        let mut maintenance = lock(&self.maintenance);
        lock(&self.writer).check_sound()?;
        let (flushed, before) = {
            let mut state = lock(&self.state);
            state.check_whole()?;
            if let Some(position) = position {
                state.check_changes_from(position)?;
            }
            (state.flushed, std::mem::replace(&mut state.keep_changes_from, position))
        };
        // A later position needs no writing: after a restart more is kept than needs be, until it is given again.
        if position == before || before.is_some() && position > before {
            return Ok(());
        }
        let forgotten = self.forget_changes_through(flushed);
        let replacement = Replacement { moved: Vec::new(), segments: Vec::new(), histories: 0, flushed, forgotten };
        self.replace_sources(&mut maintenance, replacement)
    }

    /// Up to which position deaths of rows need not be known once everything up to `flushed` is. From now on nobody is
    /// promised changes from before it.
    pub(super) fn forget_changes_through(&self, flushed: u64) -> u64 {
        let mut state = lock(&self.state);
        let through = state.keep_changes_from.map_or(flushed, |kept| kept.min(flushed));
        state.changes_from = state.changes_from.max(through);
        through
    }

    /// Rows of a sealed memtable that were beaten within it and must be kept, with their identities, in order.
    pub(super) fn beaten_rows(
        &self,
        view: &MemView,
        layout: &Layout,
        moved: &Moved,
        deaths: &[(u64, u32)],
        forgotten: u64,
    ) -> Result<Vec<(Vec<u8>, u32)>> {
        let is_kept = |(position, row): &(u64, u32)| {
            *position > forgotten && moved.get(*row).is_none() && !view.tombstones.contains(*row)
        };
        let kept: RoaringBitmap = deaths.iter().filter(|death| is_kept(death)).map(|(_, row)| *row).collect();
        let mut rows = Vec::with_capacity(kept.len() as usize);
        for chunk in &view.chunks {
            let of_chunk = kept.range(chunk.first_row..chunk.end_row());
            if of_chunk.clone().next().is_none() {
                continue;
            }
            let keys = identities(layout, &chunk.batch)?;
            rows.extend(of_chunk.map(|row| (keys.get((row - chunk.first_row) as usize).to_vec(), row)));
        }
        rows.sort_unstable();
        Ok(rows)
    }

    /// The segments of history that are worth writing again now: one of which most can go, or several.
    pub(super) fn history_inputs(&self, state: &State) -> Option<Vec<SegmentId>> {
        let mut histories = Vec::new();
        let mut rows = 0;
        // What cannot be read waits until it can.
        let readable = |(_, view): &(&SegmentId, &SegmentView)| view.history && view.segment.damage().is_none();
        for (id, view) in state.segments.iter().filter(readable) {
            if view.old_dead * 2 > u64::from(view.segment.rows()) {
                return Some(vec![*id]);
            }
            rows += u64::from(view.segment.rows());
            if rows <= u64::from(self.options.segment_rows_max) {
                histories.push(*id);
            }
        }
        (histories.len() >= self.options.compaction_fan_in.max(2)).then_some(histories)
    }
}

impl State {
    /// Whether changes after that position can be told.
    pub(super) fn check_changes_from(&self, position: u64) -> Result<()> {
        if position < self.changes_from {
            let message = format!("changes are kept from position {} on, not from {position}", self.changes_from);
            return Err(Error::new(ErrorCode::ChangesGone, message));
        }
        if position > self.position {
            let message = format!("the log has {} records, position {position} is none", self.position);
            return Err(Error::new(ErrorCode::InvalidRequest, message));
        }
        Ok(())
    }
}
