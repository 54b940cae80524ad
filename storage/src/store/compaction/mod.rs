//! Compaction: segments are merged into fewer, without the rows that have died. What is merged, and when, is `pick`'s to say;
//! how, `rewrite`'s.
//!
//! One merge of a store is under way at a time. It goes a few pages at a time ([`Store::compact_step`]): between two steps its
//! owner may wait, so that it takes no more of the disk than it should, or drop it. Commits, reads and flushes go on all the
//! while; the merge is seen only when its manifest is written.

mod pick;
mod rewrite;
mod windows;

use std::sync::atomic::Ordering;

use shoal_kernel::{Error, ErrorCode, Result, SegmentId};

use self::pick::{Groups, Pick};
use self::rewrite::Parts;
pub(super) use self::rewrite::Rewrite;
use self::windows::Level;
use super::{Store, lock};

/// What only the one who merges needs.
#[derive(Default)]
pub(super) struct Compaction {
    /// The merge under way.
    rewrite: Option<Rewrite>,
    level: Level,
}

impl Compaction {
    /// Whether the segment is one of those that are being merged.
    pub(super) fn is_merging(&self, id: SegmentId) -> bool {
        self.rewrite.as_ref().is_some_and(|rewrite| rewrite.reads(id))
    }

    /// Drops what is under way, and removes its files.
    pub(super) fn give_up(&mut self) {
        self.rewrite = None;
    }
}

/// What a step of compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CompactionStep {
    /// Bytes of segments read, about.
    pub bytes_read: u64,
    /// Bytes of segments written.
    pub bytes_written: u64,
    /// Rows that died while the merge that has ended was under way.
    pub died_meanwhile: u64,
    /// How far it has come.
    pub progress: CompactionProgress,
}

/// How far a compaction has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CompactionProgress {
    /// Nothing is worth merging.
    #[default]
    Idle,
    /// A merge is under way.
    Running,
    /// A merge has come to its end; there may be another one to do.
    Done,
}

impl Store {
    /// Begins a merge if one is due and none is under way, and goes on with it until it has read and written about so many
    /// bytes: one page at least. Commits, reads and flushes go on meanwhile.
    ///
    /// # Errors
    /// As the disk reports, [`ErrorCode::Corruption`] if a segment cannot be read, and [`ErrorCode::Cancelled`] if the store
    /// is being closed. The merge is given up; nothing is lost.
    pub fn compact_step(&self, bytes_max: u64) -> Result<CompactionStep> {
        let mut compaction = lock(&self.compacting);
        lock(&self.writer).check_sound()?;
        let mut rewrite = match compaction.rewrite.take() {
            Some(rewrite) => rewrite,
            None => match self.next_due(&mut compaction)? {
                Some(pick) => Rewrite::begin(self, pick, self.options.segment_rows_max),
                None => {
                    self.sweep();
                    return Ok(CompactionStep::default());
                }
            },
        };
        let before = (rewrite.bytes_read(), rewrite.bytes_written());
        let did = |rewrite: &Rewrite, progress| CompactionStep {
            bytes_read: rewrite.bytes_read().saturating_sub(before.0),
            bytes_written: rewrite.bytes_written().saturating_sub(before.1),
            died_meanwhile: 0,
            progress,
        };
        loop {
            if self.ending.load(Ordering::Relaxed) {
                return Err(cancelled("the store is being closed"));
            }
            if !rewrite.page(self)? {
                break;
            }
            let step = did(&rewrite, CompactionProgress::Running);
            if step.bytes_read + step.bytes_written >= bytes_max {
                compaction.rewrite = Some(rewrite);
                self.look(&mut compaction)?;
                return Ok(step);
            }
        }
        let mut step = did(&rewrite, CompactionProgress::Done);
        step.died_meanwhile = rewrite.install(self)?;
        self.sweep();
        self.look(&mut compaction)?;
        Ok(step)
    }

    /// Merges segments, if that is worth it, to the end; says whether it was.
    ///
    /// # Errors
    /// As [`Store::compact_step`].
    pub fn compact(&self) -> Result<bool> {
        loop {
            match self.compact_step(u64::MAX)?.progress {
                CompactionProgress::Idle => return Ok(false),
                CompactionProgress::Running => {}
                CompactionProgress::Done => return Ok(true),
            }
        }
    }

    /// Flushes, then makes as few segments as can be, without the rows that had lost by then: each as full as
    /// [`crate::StoreOptions::segment_rows_max`] allows, but for the last; of a table in order of time, one for each window
    /// that has a page of rows, and one for all others. What is so already is not written again; gives the number of segments
    /// that were. Tombstones stay: who knows which peer still holds an older row. Commits, reads and flushes go on meanwhile.
    /// It is given up as soon as `goes_on` says no; what it has done till then stays.
    ///
    /// # Errors
    /// [`ErrorCode::Cancelled`] if it was given up; as the disk reports, and [`ErrorCode::Corruption`] if a segment cannot be
    /// read. Nothing is lost.
    pub fn optimize(&self, goes_on: &dyn Fn() -> bool) -> Result<usize> {
        self.flush()?;
        let mut compaction = lock(&self.compacting);
        compaction.give_up();
        lock(&self.writer).check_sound()?;
        // Each round leaves fewer segments that are not full, or fewer with dead rows. Writers that go on make new ones: this
        // ends all the same.
        let rounds_max = 2 * lock(&self.state).segments.len() + 2;
        let mut written = 0;
        for _ in 0..rounds_max {
            let state = lock(&self.state).clone();
            state.check_whole()?;
            let pick = match self.history_inputs(&state) {
                Some(ids) => Pick { ids, parts: Parts::cut(Vec::new()) },
                None => {
                    let groups = Groups::of(&self.options, &state, &mut compaction.level);
                    let Some(due) = groups.fewest()? else { break };
                    groups.pick(due)?
                }
            };
            drop(state);
            let mut rewrite = Rewrite::begin(self, pick, self.options.segment_rows_max);
            loop {
                if !goes_on() || self.ending.load(Ordering::Relaxed) {
                    return Err(cancelled("the merging of segments was stopped"));
                }
                if !rewrite.page(self)? {
                    break;
                }
            }
            written += rewrite.replaces();
            rewrite.install(self)?;
            self.sweep();
        }
        self.look(&mut compaction)?;
        Ok(written)
    }

    /// Segments that wait to be merged, as of the last flush or merge.
    pub fn segments_overdue(&self) -> usize {
        self.overdue.load(Ordering::Relaxed)
    }

    /// Looks at how many segments wait, unless a merge is under way, which looks when it has ended.
    pub(super) fn note_overdue(&self) -> Result<()> {
        match self.compacting.try_lock() {
            Ok(mut compaction) => self.look(&mut compaction),
            Err(_) => Ok(()),
        }
    }

    /// Counts the segments that wait. Those of the merge under way do not.
    fn look(&self, compaction: &mut Compaction) -> Result<()> {
        let state = lock(&self.state).clone();
        state.check_whole()?;
        let (_, waiting) = Groups::of(&self.options, &state, &mut compaction.level).due();
        let under_way = compaction.rewrite.as_ref().map_or(0, Rewrite::replaces);
        self.overdue.store(waiting.saturating_sub(under_way), Ordering::Relaxed);
        Ok(())
    }

    /// The merge that is due next, when none is under way.
    fn next_due(&self, compaction: &mut Compaction) -> Result<Option<Pick>> {
        let state = lock(&self.state).clone();
        state.check_whole()?;
        let groups = Groups::of(&self.options, &state, &mut compaction.level);
        let (due, waiting) = groups.due();
        self.overdue.store(waiting, Ordering::Relaxed);
        if let Some(ids) = self.history_inputs(&state) {
            return Ok(Some(Pick { ids, parts: Parts::cut(Vec::new()) }));
        }
        due.map(|due| groups.pick(due)).transpose()
    }
}

fn cancelled(why: &str) -> Error {
    Error::new(ErrorCode::Cancelled, why)
}

#[cfg(test)]
mod tests;
