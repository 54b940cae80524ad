//! Dropping tombstones that every replica has, once no older row can come any more.
//!
//! A tombstone keeps older rows of its key away: those that lie here are dead, and named so by the manifest once the tombstone is
//! flushed; those that may still come must find it. When the replicas have agreed that none of them can (`shoal-actors` says how),
//! it is needed no more. As at a cut-off, tombstones are marked dead and taken off the digest, all at once, with the manifest that
//! says up to which time; merges leave them out like any dead row.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use roaring::RoaringBitmap;
use shoal_kernel::{Error, ErrorCode, Hlc, LogId, Result, SegmentId, Version};

use super::digest::DigestBuckets;
use super::expire::{Taken, drop_taken};
use super::{Store, Writer, lock};
use crate::layout::Layout;
use crate::state::{SegmentView, SourceId, State};

impl Store {
    /// From now on no write is taken whose version is not later, but for rows that peers have taken. Gives the place in the log up
    /// to which everything that was taken lies. Waits for a commit that is under way; forgotten at the next start.
    pub fn fence(&self, until: Hlc) -> (LogId, u64) {
        let mut writer = lock(&self.writer);
        writer.fence = writer.fence.max(until);
        let state = lock(&self.state);
        (state.log_id, state.position)
    }

    /// Tombstones up to this time have been dropped.
    pub fn purged(&self) -> Hlc {
        lock(&self.state).purged
    }

    /// Tombstones in segments up to that time: what [`Store::purge`] would drop.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if a segment cannot be read; [`ErrorCode::Cancelled`] if the store is being closed.
    pub fn old_tombstones(&self, until: Hlc) -> Result<u64> {
        let state = lock(&self.state).clone();
        state.check_whole()?;
        let mut old = BTreeMap::new();
        self.take_old(&state, until, &mut old)?;
        Ok(old.values().map(|taken| taken.rows.len()).sum())
    }

    /// Drops the tombstones up to that time, and from now on takes none up to there from peers that would bury nothing. Says how
    /// many. The caller vouches that every row up to there that any replica holds, or could still get, is here. `None` if something
    /// was in the way, such as a merge: come again. Writers wait while a manifest is written.
    ///
    /// # Errors
    /// As of [`Store::flush`] and [`Store::old_tombstones`].
    pub fn purge(&self, until: Hlc) -> Result<Option<u64>> {
        // A merge may take long, and what is in its way comes again and again: it should not flush each time.
        if self.compacting.try_lock().is_err() {
            return Ok(None);
        }
        // Only what is flushed is known to have buried for good what lay below it.
        self.flush()?;
        let mut taken = BTreeMap::new();
        let state = lock(&self.state).clone();
        state.check_whole()?;
        self.take_old(&state, until, &mut taken)?;
        drop(state);

        let _flushing = lock(&self.flushing);
        let Ok(_compaction) = self.compacting.try_lock() else { return Ok(None) };
        let maintenance = lock(&self.maintenance);
        let writer = lock(&self.writer);
        writer.check_sound()?;
        let mut state = lock(&self.state).clone();
        taken.retain(|id, _| state.segments.contains_key(id));
        self.take_old(&state, until, &mut taken)?;
        if !self.correct(&state, &writer, until, &mut taken)? {
            return Ok(None);
        }
        taken.retain(|_, taken| !taken.rows.is_empty());
        if taken.is_empty() && state.purged >= until {
            return Ok(Some(0));
        }
        let purged = until.max(state.purged);
        drop_taken(&mut state, &taken);
        state.purged = purged;
        // If that fails, either manifest may be there now; both name files that are.
        self.manifest_of(&state, &writer.deaths, maintenance.next_segment)?.write(&self.disk, &self.dir)?;
        let mut state = lock(&self.state);
        drop_taken(&mut state, &taken);
        state.purged = purged;
        Ok(Some(taken.values().map(|taken| taken.rows.len()).sum()))
    }

    /// Reads which tombstones of each segment that is not known yet are that old.
    fn take_old(&self, state: &State, until: Hlc, known: &mut BTreeMap<SegmentId, Taken>) -> Result<()> {
        for (id, view) in state.segments.iter().filter(|(_, view)| !view.history) {
            let living = view.segment.tombstones() - &*view.dead;
            if !known.contains_key(id) && !living.is_empty() {
                known.insert(*id, self.old_among(&state.layout, view, &living, until)?);
            }
        }
        Ok(())
    }

    /// Those of some tombstones of a segment that are that old, and what they count in the digest.
    fn old_among(&self, layout: &Layout, view: &SegmentView, among: &RoaringBitmap, until: Hlc) -> Result<Taken> {
        let mut rows = RoaringBitmap::new();
        let mut tally = self.tally(layout, DigestBuckets::default());
        for page in view.pages() {
            let of_page = view.segment.page_rows(page);
            if among.range_cardinality(of_page.clone()) == 0 {
                continue;
            }
            if self.ending.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorCode::Cancelled, "the store is being closed"));
            }
            let (keys, versions) = view.segment.read_key_columns(layout, page)?;
            for row in among.range(of_page.clone()) {
                let at = (row - of_page.start) as usize;
                if versions[at].time() <= until {
                    tally.add_key(keys.get(at), versions[at], true);
                    rows.insert(row);
                }
            }
        }
        Ok(Taken { rows, digest: tally.finish(), whole: false })
    }

    /// Leaves out tombstones that have lost since they were found. False if one of them, or one in memory, stands in the way.
    fn correct(
        &self,
        state: &State,
        writer: &Writer,
        until: Hlc,
        taken: &mut BTreeMap<SegmentId, Taken>,
    ) -> Result<bool> {
        for view in state.memtables.iter().filter(|view| !view.tombstones.is_empty()) {
            let is_old = |(row, version): (u32, &Version)| version.time() <= until && view.tombstones.contains(row);
            if view.chunks.iter().any(|chunk| (chunk.first_row..).zip(&chunk.versions).any(is_old)) {
                return Ok(false);
            }
        }
        for (id, view) in &state.segments {
            // Without the record that they lost against, which is only in the log, they would live again.
            let young = writer.deaths.get(&SourceId::Segment(*id)).into_iter().flatten();
            let young = young.filter(|(position, _)| *position > state.flushed).map(|(_, row)| *row);
            let young: RoaringBitmap = young.filter(|row| view.segment.tombstones().contains(*row)).collect();
            if !young.is_empty() && !self.old_among(&state.layout, view, &young, until)?.rows.is_empty() {
                return Ok(false);
            }
            if let Some(taken) = taken.get_mut(id) {
                let died = &taken.rows & &*view.dead;
                let died = self.old_among(&state.layout, view, &died, until)?;
                taken.rows -= died.rows;
                taken.digest = taken.digest.minus(&died.digest);
            }
        }
        Ok(true)
    }
}

/// Whether a version lies within what ends at that time. Time zero ends nothing.
pub(super) fn is_within(version: Version, until: Hlc) -> bool {
    until > Hlc::default() && version.time() <= until
}

/// The error of a write that comes too late.
pub(super) fn too_late() -> Error {
    let message = "the write's version is so old that tombstones of its time may be gone (purge_after_ms)";
    Error::new(ErrorCode::ClockSkew, message)
        .with_help("send it again; with an idempotency key that was first used long ago, under another one")
}
