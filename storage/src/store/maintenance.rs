//! Flushing: rows move from memory into a segment, and the log that held them goes.

use std::sync::Arc;

use arrow::array::RecordBatch;
use roaring::RoaringBitmap;
use shoal_kernel::{Error, Planted, Result, SegmentId};

use super::{Deaths, Maintenance, Store, Writer, lock};
use crate::damage::Problem;
use crate::key::EncodedKeys;
use crate::layout::Layout;
use crate::manifest::{Manifest, SegmentRecord};
use crate::memtable::MemView;
use crate::merge::gather;
use crate::segment::{PAGE_ROWS, Segment, SegmentRows, SegmentWriter, segment_file};
use crate::state::{SegmentView, SourceId, State};
use crate::wal::LogFailure;

/// A log of this many times the memtable's bound is worth a flush, however little it left in memory.
const WAL_MEMTABLES_MAX: u64 = 4;
/// Says that a row has no place in the new segment.
const NOWHERE: u32 = u32::MAX;

/// What a flush did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlushReport {
    /// Rows and tombstones written into segments.
    pub rows: u64,
    /// Bytes of the new segments.
    pub bytes: u64,
    /// Position up to which everything lies in segments now.
    pub flushed: u64,
}

/// Rows of a source and where they went.
pub(super) struct Moved {
    pub(super) source: SourceId,
    /// The new row of each old one, counted through all new segments.
    places: Vec<u32>,
}

impl Moved {
    pub(super) fn new(source: SourceId, rows: u32) -> Self {
        Self { source, places: vec![NOWHERE; rows as usize] }
    }

    pub(super) fn put(&mut self, from: u32, to: u32) {
        self.places[from as usize] = to;
    }

    /// The row is in none of the new segments.
    pub(super) fn forget(&mut self, row: u32) {
        self.places[row as usize] = NOWHERE;
    }

    pub(super) fn get(&self, row: u32) -> Option<u32> {
        self.places.get(row as usize).copied().filter(|&place| place != NOWHERE)
    }
}

/// New segments in the place of sources.
pub(super) struct Replacement {
    /// Where the rows of the sources went.
    pub(super) moved: Vec<Moved>,
    /// The new segments; rows are counted through all of them.
    pub(super) segments: Vec<Arc<Segment>>,
    /// So many of them, the last ones, hold rows that are kept for readers of changes.
    pub(super) histories: usize,
    /// Everything up to here lies in segments then.
    pub(super) flushed: u64,
    /// Rows that died up to here may have been left out.
    pub(super) forgotten: u64,
}

impl Store {
    /// Whether [`Store::flush`] should be called. [`Store::compact`] decides for itself, at no cost, whether it has
    /// something to do.
    pub fn maintenance_due(&self) -> bool {
        let state = lock(&self.state);
        let memtable_due = state.memtables.last().is_some_and(|view| view.bytes > self.options.memtable_bytes_max);
        memtable_due
            || state.memtables.len() > 1
            || state.wal_bytes > self.options.memtable_bytes_max.saturating_mul(WAL_MEMTABLES_MAX)
    }

    /// Writes what is in memory into segments. Commits and reads go on meanwhile.
    ///
    /// # Errors
    /// As the disk reports, and [`shoal_kernel::ErrorCode::NotReady`] if the store must be opened again; nothing is lost.
    pub fn flush(&self) -> Result<FlushReport> {
        let _one_at_a_time = lock(&self.flushing);
        self.seal()?;
        let mut report = FlushReport::default();
        loop {
            let (view, layout) = {
                let state = lock(&self.state);
                report.flushed = state.flushed;
                if state.memtables.len() < 2 {
                    break;
                }
                (state.memtables[0].clone(), state.layout.clone())
            };
            let (rows, bytes) = self.flush_memtable(&view, &layout)?;
            report.rows += rows;
            report.bytes += bytes;
        }
        self.sweep();
        self.note_overdue()?;
        Ok(report)
    }

    /// Puts a new memtable before the present one.
    fn seal(&self) -> Result<()> {
        let mut writer = lock(&self.writer);
        writer.check_sound()?;
        let (number, position, digest) = {
            let state = lock(&self.state);
            state.check_whole()?;
            let sealed = state.memtables.iter().rev().nth(1).map_or(state.flushed, |view| view.last_position);
            match state.memtables.last() {
                Some(active) if sealed < state.position => (active.number, state.position, state.digest.clone()),
                _ => return Ok(()),
            }
        };
        match writer.wal.roll() {
            Ok(()) => {}
            Err(LogFailure::Refused(error)) => return Err(error),
            Err(LogFailure::Doubt(error)) => return Err(self.give_up(&mut writer, error)),
        }
        if self.has(Planted::LogRetiredEarly) {
            for path in writer.wal.retire_through(position) {
                let _ = self.disk.remove_file(&path);
            }
        }
        let index = Arc::new(std::mem::take(&mut writer.index));
        writer.sealed.push((number, index));
        lock(&self.state).memtables.push(MemView::new(number + 1, position, digest));
        Ok(())
    }

    fn flush_memtable(&self, view: &MemView, layout: &Arc<Layout>) -> Result<(u64, u64)> {
        let source = SourceId::Memtable(view.number);
        let (index, deaths) = {
            let writer = lock(&self.writer);
            let sealed = writer.sealed.iter().find(|(number, _)| *number == view.number);
            let index = sealed.map(|(_, index)| index.clone());
            let deaths = writer.deaths.get(&source).cloned().unwrap_or_default();
            (index.ok_or_else(|| Error::internal("a sealed memtable has no index"))?, deaths)
        };
        let ahead = self.has(Planted::FlushedAhead);
        let flushed = view.last_position + u64::from(ahead);
        let forgotten = self.forget_changes_through(flushed);
        let mut moved = Moved::new(source, view.rows());
        let mut segments = Vec::new();
        let winners: Vec<(&[u8], u32)> = index.iter().map(|(key, entry)| (&**key, entry.row)).collect();
        if !winners.is_empty() {
            segments.push(self.write_memtable(view, layout, &winners, 0, &mut moved)?);
        }
        let written = segments.first().map_or((0, 0), |segment| (u64::from(segment.rows()), segment.bytes()));
        let beaten = self.beaten_rows(view, layout, &moved, &deaths, forgotten)?;
        let histories = usize::from(!beaten.is_empty());
        if !beaten.is_empty() {
            let beaten: Vec<(&[u8], u32)> = beaten.iter().map(|(key, row)| (key.as_slice(), *row)).collect();
            match self.write_memtable(view, layout, &beaten, winners.len() as u32, &mut moved) {
                Ok(history) => segments.push(history),
                Err(error) => {
                    self.discard(&segments);
                    return Err(error);
                }
            }
        }

        let retired = {
            let mut maintenance = lock(&self.maintenance);
            let replacement = Replacement { moved: vec![moved], segments, histories, flushed, forgotten };
            self.replace_sources(&mut maintenance, replacement)?;
            let mut writer = lock(&self.writer);
            let retired = writer.wal.retire_through(flushed);
            lock(&self.state).wal_bytes = writer.wal.bytes();
            retired
        };
        for path in retired {
            // What stays behind is below the flushed position, and the next start removes it.
            let _ = self.disk.remove_file(&path);
        }
        Ok(written)
    }

    /// Writes rows of a memtable, with their identities in order, as a segment that has so many rows before it.
    fn write_memtable(
        &self,
        view: &MemView,
        layout: &Arc<Layout>,
        entries: &[(&[u8], u32)],
        rows_before: u32,
        moved: &mut Moved,
    ) -> Result<Arc<Segment>> {
        let mut segment = SegmentWriter::create(&self.context, layout.clone(), &self.dir, self.next_segment())?;
        let batches: Vec<&RecordBatch> = view.chunks.iter().map(|chunk| &chunk.batch).collect();
        for page in entries.chunks(PAGE_ROWS) {
            let mut keys = EncodedKeys::default();
            let mut picks = Vec::with_capacity(page.len());
            for (key, row) in page {
                let chunk = view.chunks.partition_point(|chunk| chunk.end_row() <= *row);
                let first_row =
                    view.chunks.get(chunk).ok_or_else(|| Error::internal("an index without its row"))?.first_row;
                picks.push((chunk, (row - first_row) as usize));
                keys.push_with(|out| out.extend_from_slice(key))?;
            }
            let first_new = rows_before + segment.rows();
            page.iter().enumerate().for_each(|(at, (_, row))| moved.put(*row, first_new + at as u32));
            segment.push(&SegmentRows {
                batch: gather(layout, &batches, &picks)?,
                keys,
                versions: picks.iter().map(|&(chunk, row)| view.chunks[chunk].versions[row]).collect(),
                positions: picks.iter().map(|&(chunk, row)| view.chunks[chunk].positions[row]).collect(),
                tombstones: page.iter().map(|(_, row)| view.tombstones.contains(*row)).collect(),
            })?;
        }
        segment.finish().map(Arc::new)
    }

    /// Removes new segments that no manifest has named.
    pub(super) fn discard(&self, segments: &[Arc<Segment>]) {
        for segment in segments {
            // What cannot be removed now, the next start removes.
            let _ = self.disk.remove_file(&self.dir.join(segment_file(segment.id())));
        }
    }

    /// A number that no segment of this store has, on disk or in the making.
    pub(super) fn next_segment(&self) -> SegmentId {
        let mut maintenance = lock(&self.maintenance);
        let id = maintenance.next_segment;
        maintenance.next_segment = SegmentId(id.0 + 1);
        id
    }

    /// Puts new segments in the place of the sources that they were made from: first on disk, then for readers, all at once.
    /// Rows that died meanwhile are dead in the new segments too.
    pub(super) fn replace_sources(&self, maintenance: &mut Maintenance, replacement: Replacement) -> Result<()> {
        let next_segment = maintenance.next_segment;
        let manifest = {
            let writer = lock(&self.writer);
            let mut state = lock(&self.state).clone();
            let mut deaths = writer.deaths.clone();
            install(&mut state, &mut deaths, &replacement);
            self.manifest_of(&state, &deaths, next_segment)?
        };
        if let Err(error) = manifest.write_beside(&self.disk, &self.dir) {
            // The old one stands; where the disk is full, every file counts.
            self.discard(&replacement.segments);
            return Err(error);
        }
        if let Err(error) = Manifest::put_in_place(&self.disk, &self.dir) {
            // Old or new, either manifest may be there now: the new files stay until the next one is certain.
            maintenance.unnamed.extend(replacement.segments.iter().map(|segment| segment.id()));
            return Err(error);
        }
        for id in maintenance.unnamed.drain(..) {
            let _ = self.disk.remove_file(&self.dir.join(segment_file(id)));
        }

        let mut writer = lock(&self.writer);
        let Writer { deaths, sealed, .. } = &mut *writer;
        let mut state = lock(&self.state);
        for gone in &replacement.moved {
            match gone.source {
                SourceId::Segment(id) => {
                    maintenance.retired.extend(state.segments.get(&id).map(|view| view.segment.clone()));
                }
                SourceId::Memtable(number) => sealed.retain(|(sealed, _)| *sealed != number),
            }
        }
        install(&mut state, deaths, &replacement);
        Ok(())
    }

    pub(super) fn manifest_of(&self, state: &State, deaths: &Deaths, next_segment: SegmentId) -> Result<Manifest> {
        let flushed = state.flushed;
        let mut segments = Vec::with_capacity(state.segments.len());
        for (id, view) in &state.segments {
            let of_segment = deaths.get(&SourceId::Segment(*id)).map_or(&[][..], Vec::as_slice);
            let mut dead = view.dead.as_ref().clone();
            // Whatever lost against a record that is only in the log must live again if that is lost with the log.
            of_segment.iter().filter(|(position, _)| *position > flushed).for_each(|(_, row)| {
                dead.remove(*row);
            });
            // What was clipped off is said once.
            dead.remove_range(..view.rows.start);
            dead.remove_range(view.rows.end..);
            let mut bytes = Vec::with_capacity(dead.serialized_size());
            dead.serialize_into(&mut bytes)?;
            segments.push(SegmentRecord {
                id: *id,
                bytes: view.segment.bytes(),
                rows: view.rows.clone(),
                dead: bytes,
                history: view.history,
                deaths: of_segment.iter().filter(|(position, _)| *position <= flushed).copied().collect(),
            });
        }
        let tokens = {
            let mut tokens = lock(&self.tokens);
            tokens.purge();
            tokens.between(0, flushed).cloned().collect()
        };
        let running = state.memtables.first().map(|view| &view.digest_before);
        let digest = running.zip(state.digest_base.as_ref()).map(|(running, base)| base.plus(running).to_bytes());
        Ok(Manifest {
            log_id: state.log_id,
            past: state.past.to_vec(),
            flushed,
            next_segment,
            segments,
            tokens,
            range: self.range.clone(),
            digest,
            changes_from: state.changes_from.min(flushed),
            keep_changes_from: state.keep_changes_from,
            cutoff: state.cutoff,
            purged: state.purged,
            split: None,
        })
    }

    /// Removes files of segments that nobody reads any more.
    pub(super) fn sweep(&self) {
        lock(&self.maintenance).retired.retain_mut(|segment| {
            let unused = Arc::get_mut(segment).is_some();
            if unused {
                // If it fails, the next start removes what the manifest does not name.
                let _ = self.disk.remove_file(&self.dir.join(segment_file(segment.id())));
            }
            !unused
        });
    }

    /// Looks again at pages that could not be read ([`Store::status`] no longer names those that can), and removes files that
    /// were waiting for their last reader.
    pub fn recheck(&self) {
        let state = lock(&self.state).clone();
        state.segments.values().for_each(|view| view.segment.recheck());
        drop(state);
        self.sweep();
    }

    /// Reads every page of every segment, and the manifest, and checks; counts the digest anew.
    ///
    /// # Errors
    /// None of damage: whatever cannot be read is a problem of its file.
    pub fn verify(&self) -> Result<Vec<Problem>> {
        let mut problems = Vec::new();
        {
            // Not while it is being replaced.
            let _unchanged = lock(&self.maintenance);
            if let Err(error) = Manifest::read(&self.disk, &self.dir) {
                problems.push(Problem::of(&error, crate::manifest::MANIFEST_FILE));
            }
        }
        let state = lock(&self.state).clone();
        problems.extend(state.broken.iter().cloned());
        problems.extend(state.segments.values().flat_map(|view| view.segment.verify(&self.dir)));
        if let Some(base) = state.digest_base.as_ref().filter(|_| problems.is_empty()) {
            let counted = self.count_buckets(&state)?;
            if counted != base.plus(&state.digest) {
                let file = crate::manifest::MANIFEST_FILE.to_owned();
                let message = "the digest that was kept is not that of the rows that are there".to_owned();
                problems.push(Problem { file, offset: None, message });
            }
        }
        Ok(problems)
    }
}

fn install(state: &mut State, deaths: &mut Deaths, replacement: &Replacement) {
    let Replacement { moved, segments, histories, flushed, forgotten } = replacement;
    // Where each new segment begins, in rows counted through all of them.
    let starts: Vec<u32> = segments
        .iter()
        .scan(0, |next: &mut u32, segment| {
            let start = *next;
            *next = next.saturating_add(segment.rows());
            Some(start)
        })
        .collect();
    let place = |row: u32| {
        let at = starts.partition_point(|start| *start <= row).checked_sub(1)?;
        Some((at, row - starts[at]))
    };
    let mut dead = vec![RoaringBitmap::new(); segments.len()];
    let mut new_deaths = vec![Vec::new(); segments.len()];
    for gone in moved {
        let old_dead = match gone.source {
            SourceId::Segment(id) => state.segments.remove(&id).map(|view| view.dead),
            SourceId::Memtable(number) => {
                let place = state.memtables.iter().position(|view| view.number == number);
                place.map(|place| state.memtables.remove(place).dead)
            }
        };
        let kept = |row: u32| gone.get(row).and_then(place);
        for (at, row) in old_dead.iter().flat_map(|dead| dead.iter()).filter_map(kept) {
            dead[at].insert(row);
        }
        for (position, row) in deaths.remove(&gone.source).into_iter().flatten() {
            if let Some((at, row)) = kept(row) {
                new_deaths[at].push((position, row));
            }
        }
    }
    let winners = segments.len().saturating_sub(*histories);
    for (number, ((segment, dead), new_deaths)) in segments.iter().zip(dead).zip(new_deaths).enumerate() {
        deaths.insert(SourceId::Segment(segment.id()), new_deaths);
        let view = SegmentView::new(segment.clone(), dead, 0..segment.rows(), 0, number >= winners);
        state.segments.insert(segment.id(), view);
    }
    state.flushed = *flushed;
    for deaths in deaths.values_mut() {
        deaths.retain(|(position, _)| position > forgotten);
    }
    deaths.retain(|_, deaths| !deaths.is_empty());
    for (id, view) in &mut state.segments {
        let kept = deaths.get(&SourceId::Segment(*id)).map_or(0, Vec::len);
        view.old_dead = view.dead.len().saturating_sub(kept as u64);
    }
}
