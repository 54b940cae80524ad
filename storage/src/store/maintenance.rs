//! Flushing: rows move from memory into a segment, and the log that held them goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use roaring::RoaringBitmap;
use shoal_kernel::{Error, Planted, Result, SegmentId};

use super::{Maintenance, Store, Writer, lock};
use crate::damage::Problem;
use crate::key::EncodedKeys;
use crate::manifest::{Manifest, SegmentRecord};
use crate::memtable::{KeyIndex, MemView};
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

    fn get(&self, row: u32) -> Option<u32> {
        self.places.get(row as usize).copied().filter(|&place| place != NOWHERE)
    }
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
            let view = {
                let state = lock(&self.state);
                report.flushed = state.flushed;
                if state.memtables.len() < 2 {
                    break;
                }
                state.memtables[0].clone()
            };
            let (rows, bytes) = self.flush_memtable(&view)?;
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
        let (number, position) = {
            let state = lock(&self.state);
            state.check_whole()?;
            let sealed = state.memtables.iter().rev().nth(1).map_or(state.flushed, |view| view.last_position);
            match state.memtables.last() {
                Some(active) if sealed < state.position => (active.number, state.position),
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
        lock(&self.state).memtables.push(MemView::new(number + 1, position));
        Ok(())
    }

    fn flush_memtable(&self, view: &MemView) -> Result<(u64, u64)> {
        let source = SourceId::Memtable(view.number);
        let index = {
            let writer = lock(&self.writer);
            let sealed = writer.sealed.iter().find(|(number, _)| *number == view.number);
            sealed.map(|(_, index)| index.clone()).ok_or_else(|| Error::internal("a sealed memtable has no index"))?
        };
        let mut moved = Moved::new(source, view.rows());
        let segments = if index.is_empty() { Vec::new() } else { vec![self.write_memtable(view, &index, &mut moved)?] };
        let written = segments.first().map_or((0, 0), |segment| (u64::from(segment.rows()), segment.bytes()));

        let retired = {
            let mut maintenance = lock(&self.maintenance);
            let ahead = self.has(Planted::FlushedAhead);
            let flushed = view.last_position + u64::from(ahead);
            self.replace_sources(&mut maintenance, vec![moved], segments, flushed)?;
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

    fn write_memtable(&self, view: &MemView, index: &KeyIndex, moved: &mut Moved) -> Result<Arc<Segment>> {
        let mut segment = SegmentWriter::create(&self.context, &self.dir, self.next_segment())?;
        let batches: Vec<&RecordBatch> = view.chunks.iter().map(|chunk| &chunk.batch).collect();
        let entries: Vec<(&[u8], u32)> = index.iter().map(|(key, entry)| (&**key, entry.row)).collect();
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
            let first_new = segment.rows();
            page.iter().enumerate().for_each(|(at, (_, row))| moved.put(*row, first_new + at as u32));
            segment.push(&SegmentRows {
                batch: gather(&self.layout, &batches, &picks)?,
                keys,
                versions: picks.iter().map(|&(chunk, row)| view.chunks[chunk].versions[row]).collect(),
                positions: picks.iter().map(|&(chunk, row)| view.chunks[chunk].positions[row]).collect(),
                tombstones: page.iter().map(|(_, row)| view.tombstones.contains(*row)).collect(),
            })?;
        }
        segment.finish().map(Arc::new)
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
    pub(super) fn replace_sources(
        &self,
        maintenance: &mut Maintenance,
        moved: Vec<Moved>,
        segments: Vec<Arc<Segment>>,
        flushed: u64,
    ) -> Result<()> {
        let next_segment = maintenance.next_segment;
        let manifest = {
            let writer = lock(&self.writer);
            let mut state = lock(&self.state).clone();
            let mut young = writer.young.clone();
            install(&mut state, &mut young, &moved, &segments, flushed);
            self.manifest_of(&state, &young, flushed, next_segment)?
        };
        if let Err(error) = manifest.write(&self.disk, &self.dir) {
            // Old or new, either manifest may be there now: the new files stay until the next one is certain.
            maintenance.unnamed.extend(segments.iter().map(|segment| segment.id()));
            return Err(error);
        }
        for id in maintenance.unnamed.drain(..) {
            let _ = self.disk.remove_file(&self.dir.join(segment_file(id)));
        }

        let mut writer = lock(&self.writer);
        let Writer { young, sealed, .. } = &mut *writer;
        let mut state = lock(&self.state);
        for gone in &moved {
            match gone.source {
                SourceId::Segment(id) => {
                    maintenance.retired.extend(state.segments.get(&id).map(|view| view.segment.clone()));
                }
                SourceId::Memtable(number) => sealed.retain(|(sealed, _)| *sealed != number),
            }
        }
        install(&mut state, young, &moved, &segments, flushed);
        Ok(())
    }

    fn manifest_of(
        &self,
        state: &State,
        young: &BTreeMap<SourceId, Vec<(u64, u32)>>,
        flushed: u64,
        next_segment: SegmentId,
    ) -> Result<Manifest> {
        let mut segments = Vec::with_capacity(state.segments.len());
        for (id, view) in &state.segments {
            let dead = old_dead(&view.dead, young.get(&SourceId::Segment(*id)));
            let mut bytes = Vec::with_capacity(dead.serialized_size());
            dead.serialize_into(&mut bytes)?;
            segments.push(SegmentRecord { id: *id, bytes: view.segment.bytes(), dead: bytes });
        }
        let tokens = {
            let mut tokens = lock(&self.tokens);
            tokens.purge();
            tokens.between(0, flushed).cloned().collect()
        };
        let past = state.past.to_vec();
        Ok(Manifest { log_id: state.log_id, past, flushed, next_segment, segments, tokens })
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

    /// Reads every page of every segment, and the manifest, and checks.
    ///
    /// # Errors
    /// None at present: whatever cannot be read is a problem of its file.
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
        Ok(problems)
    }
}

/// Dead rows that lost against flushed records.
pub(super) fn old_dead(dead: &RoaringBitmap, young: Option<&Vec<(u64, u32)>>) -> RoaringBitmap {
    let mut old = dead.clone();
    young.into_iter().flatten().for_each(|(_, row)| {
        old.remove(*row);
    });
    old
}

fn install(
    state: &mut State,
    young: &mut BTreeMap<SourceId, Vec<(u64, u32)>>,
    moved: &[Moved],
    segments: &[Arc<Segment>],
    flushed: u64,
) {
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
    let mut new_young = vec![Vec::new(); segments.len()];
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
        for (position, row) in young.remove(&gone.source).into_iter().flatten() {
            if let Some((at, row)) = kept(row) {
                new_young[at].push((position, row));
            }
        }
    }
    for ((segment, dead), new_young) in segments.iter().zip(dead).zip(new_young) {
        young.insert(SourceId::Segment(segment.id()), new_young);
        let view = SegmentView { segment: segment.clone(), dead: Arc::new(dead), old_dead: 0 };
        state.segments.insert(segment.id(), view);
    }
    state.flushed = flushed;
    for stamps in young.values_mut() {
        stamps.retain(|(position, _)| *position > flushed);
    }
    young.retain(|_, stamps| !stamps.is_empty());
    for (id, view) in &mut state.segments {
        let new = young.get(&SourceId::Segment(*id)).map_or(0, Vec::len);
        view.old_dead = view.dead.len().saturating_sub(new as u64);
    }
}
