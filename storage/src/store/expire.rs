//! Dropping rows that have had their time, up to a cut-off that the cluster has agreed on.
//!
//! A row's time is in its key, so nothing that comes later brings a row back from below the cut-off: from the moment on at which
//! the writer refuses such rows, they only become fewer. What is in memory of them is flushed; then those in segments are marked
//! dead and taken off the digest, all at once, with the manifest that names the cut-off. Whatever reads, merges or hands out rows
//! leaves dead ones out without knowing of time. Segments that lie wholly below go as files; the others are written again without
//! these rows when enough of them are dead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use roaring::RoaringBitmap;
use shoal_kernel::{ColumnPredicate, CompareOp, Cutoff, Datum, Error, ErrorCode, Result, SegmentId};

use super::digest::DigestBuckets;
use super::{Store, lock};
use crate::expiry::{micros_of, time_place};
use crate::layout::Layout;
use crate::predicate::{Zone, may_match};
use crate::segment::{Reads, Segment};
use crate::state::{SegmentView, SourceId, State};

/// What a cut-off did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExpiryReport {
    /// Rows and tombstones that are gone.
    pub rows: u64,
    /// Files that went whole.
    pub segments: usize,
}

/// What a cut-off takes from a segment.
pub(super) struct Taken {
    /// Rows that are dead now, and were not.
    pub(super) rows: RoaringBitmap,
    /// What they counted in the digest.
    pub(super) digest: DigestBuckets,
    /// No row of the file stays.
    pub(super) whole: bool,
}

impl Store {
    /// Rows with a time below it are gone.
    pub fn cutoff(&self) -> Option<Cutoff> {
        lock(&self.state).cutoff
    }

    /// Drops the rows below a cut-off and takes none from there on; one that is not later than the store's changes nothing.
    /// Snapshots keep what they show. Of dead rows and rows below the cut-off the change log tells nothing. `None` if the store
    /// is being optimised: come again. Commits and reads go on meanwhile; flushes wait for a manifest, and for the rows of
    /// segments that were made meanwhile.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] for a column that is not of the key, or another one than before; [`ErrorCode::Corruption`] if
    /// a segment cannot be read; [`ErrorCode::Cancelled`] if the store is being closed; else as the disk reports. Rows below the
    /// cut-off may be refused from then on; nothing else has happened.
    pub fn expire(&self, cutoff: Cutoff) -> Result<Option<ExpiryReport>> {
        let is_in_memory = {
            let mut writer = lock(&self.writer);
            writer.check_sound()?;
            let state = lock(&self.state).clone();
            state.check_whole()?;
            check_column(&state, cutoff)?;
            if state.cutoff.is_some_and(|known| known.micros >= cutoff.micros) {
                return Ok(Some(ExpiryReport::default()));
            }
            writer.takes_from = Some(writer.takes_from.map_or(cutoff, |known| known.later(cutoff)));
            may_be_in_memory(&state, cutoff)?
        };
        if is_in_memory {
            self.flush()?;
        }
        // Most of the reading is done while nobody waits. Which of these rows are dead does not change any more.
        let mut taken = BTreeMap::new();
        let state = lock(&self.state).clone();
        self.take(&state, cutoff, &mut taken)?;
        drop(state);

        let _flushing = lock(&self.flushing);
        let Ok(compaction) = self.compacting.try_lock() else { return Ok(None) };
        let mut maintenance = lock(&self.maintenance);
        let mut state = lock(&self.state).clone();
        self.take(&state, cutoff, &mut taken)?;
        taken.retain(|id, _| state.segments.contains_key(id));
        // The rows of a merge that is under way must be found dead where it ends.
        let gone: Vec<SegmentId> =
            taken.iter().filter(|(id, taken)| taken.whole && !compaction.is_merging(**id)).map(|(id, _)| *id).collect();

        let next_segment = maintenance.next_segment;
        let manifest = {
            let writer = lock(&self.writer);
            writer.check_sound()?;
            let mut deaths = writer.deaths.clone();
            state = lock(&self.state).clone();
            install(&mut state, cutoff, &taken, &gone);
            gone.iter().for_each(|id| drop(deaths.remove(&SourceId::Segment(*id))));
            self.manifest_of(&state, &deaths, next_segment)?
        };
        // If that fails, either manifest may be there now; both name files that are.
        manifest.write(&self.disk, &self.dir)?;

        let mut writer = lock(&self.writer);
        gone.iter().for_each(|id| drop(writer.deaths.remove(&SourceId::Segment(*id))));
        let mut state = lock(&self.state);
        maintenance.retired.extend(gone.iter().filter_map(|id| Some(state.segments.get(id)?.segment.clone())));
        install(&mut state, cutoff, &taken, &gone);
        drop((state, writer, maintenance, compaction));
        self.sweep();
        Ok(Some(ExpiryReport { rows: taken.values().map(|taken| taken.rows.len()).sum(), segments: gone.len() }))
    }

    /// Reads what the cut-off takes from each segment that is not known yet.
    fn take(&self, state: &State, cutoff: Cutoff, known: &mut BTreeMap<SegmentId, Taken>) -> Result<()> {
        let place = time_place(&state.layout, cutoff.column)?;
        for (id, view) in &state.segments {
            if !known.contains_key(id) && may_hold_below(cutoff, &view.segment.zone(&state.layout, place)) {
                known.insert(*id, self.take_from(&state.layout, place, cutoff, view)?);
            }
        }
        Ok(())
    }

    fn take_from(&self, layout: &Arc<Layout>, place: usize, cutoff: Cutoff, view: &SegmentView) -> Result<Taken> {
        let segment = &view.segment;
        let mut rows = RoaringBitmap::new();
        let mut tally = self.tally(layout, DigestBuckets::default());
        for page in view.pages() {
            if self.ending.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorCode::Cancelled, "the store is being closed"));
            }
            let below = living_below(layout, place, cutoff, view, page)?;
            if below.is_empty() {
                continue;
            }
            let (keys, versions) = segment.read_key_columns(layout, page)?;
            let first = segment.page_rows(page).start;
            for row in &below {
                let at = (row - first) as usize;
                tally.add_key(keys.get(at), versions[at], segment.tombstones().contains(row));
            }
            rows |= below;
        }
        Ok(Taken { rows, digest: tally.finish(), whole: is_below(cutoff, &segment.zone(layout, place)) })
    }
}

/// The rows of a page that are below the cut-off and not dead.
fn living_below(layout: &Layout, place: usize, cutoff: Cutoff, view: &SegmentView, page: u32) -> Result<RoaringBitmap> {
    let segment: &Segment = &view.segment;
    let (rows, zone) = (segment.page_rows(page), segment.page_zone(layout, place, page));
    let mut below = RoaringBitmap::new();
    if !may_hold_below(cutoff, &zone) || view.dead.range_cardinality(rows.clone()) == rows.len() as u64 {
        return Ok(below);
    }
    if is_below(cutoff, &zone) {
        below.insert_range(rows);
    } else {
        let times = segment.read_column(layout, place, page, None, Reads::Walk)?;
        let times = micros_of(&times)?.values();
        below.extend(rows.zip(times).filter(|(_, time)| **time < cutoff.micros).map(|(row, _)| row));
    }
    below -= &*view.dead;
    Ok(below)
}

fn compare(cutoff: Cutoff, op: CompareOp) -> ColumnPredicate {
    ColumnPredicate::Compare { column: cutoff.column, op, value: Datum::Int(cutoff.micros) }
}

/// Whether one of the values may lie below the cut-off.
fn may_hold_below(cutoff: Cutoff, zone: &Zone) -> bool {
    may_match(&compare(cutoff, CompareOp::Lt), zone)
}

/// Whether all values certainly do. There are no NULLs in a key.
fn is_below(cutoff: Cutoff, zone: &Zone) -> bool {
    zone.max.is_some() && !may_match(&compare(cutoff, CompareOp::GtEq), zone)
}

fn may_be_in_memory(state: &State, cutoff: Cutoff) -> Result<bool> {
    let (place, below) = (time_place(&state.layout, cutoff.column)?, compare(cutoff, CompareOp::Lt));
    let mut chunks = state.memtables.iter().flat_map(|view| &view.chunks);
    Ok(chunks.any(|chunk| chunk.may_match(&state.layout, place, &below)))
}

fn check_column(state: &State, cutoff: Cutoff) -> Result<()> {
    let unsupported = |why: &str| Err(Error::new(ErrorCode::Unsupported, why));
    let place = time_place(&state.layout, cutoff.column)?;
    if !state.layout.key.contains(&place) {
        return unsupported("rows are dropped by a time that is part of their key, or not at all");
    }
    match state.cutoff {
        Some(known) if known.column != cutoff.column => unsupported("rows have been dropped by another column's time"),
        _ => Ok(()),
    }
}

fn install(state: &mut State, cutoff: Cutoff, taken: &BTreeMap<SegmentId, Taken>, gone: &[SegmentId]) {
    drop_taken(state, taken);
    gone.iter().for_each(|id| drop(state.segments.remove(id)));
    state.cutoff = Some(cutoff);
}

/// Marks rows as dead for good and takes them off the digest.
pub(super) fn drop_taken(state: &mut State, taken: &BTreeMap<SegmentId, Taken>) {
    for (id, taken) in taken {
        if let Some(view) = state.segments.get_mut(id) {
            *Arc::make_mut(&mut view.dead) |= &taken.rows;
            // None of them is kept for readers of changes.
            view.old_dead += taken.rows.len();
        }
        // Of what is not counted yet, nothing is to be taken off.
        if let Some(base) = &mut state.digest_base {
            *base = Arc::new(base.minus(&taken.digest));
        }
    }
}
