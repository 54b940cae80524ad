//! Checkpoints: what a store holds at one moment, as files that can be copied elsewhere, and rows read from such copies.
//!
//! Nothing is written for one but the flush before it. It holds the segments as a reader does: compaction goes on, and files that it
//! replaces go when the checkpoint does. A second set of names, as a split makes for the children, would have to be removed
//! again after every crash.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_kernel::env::Disk;
use shoal_kernel::{Cutoff, Error, ErrorCode, Hlc, LogId, Planted, Result, SegmentId, TableSchema, wire};

use super::{Store, lock};
use crate::damage::{corrupt, damaged};
use crate::head::{self, HEAD_BYTES};
use crate::layout::Layout;
use crate::manifest::{Manifest, SegmentRecord};
use crate::memtable::MemView;
use crate::options::StoreOptions;
use crate::segment::{Segment, SegmentContext, SegmentReader, segment_file};
use crate::state::{SegmentView, Snapshot, State};

const MAGIC: &[u8; 8] = b"SHOALCHK";
const VERSION: u32 = 1;
/// Bytes that are read at a time where a file is only looked through.
const CHECK_BYTES: usize = 1 << 20;

/// What is written down of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
struct Outline {
    /// Each with the name of its file.
    segments: Vec<NamedSegment>,
    /// Rows with a time below it are dead.
    cutoff: Option<Cutoff>,
    rows: u64,
    /// The newest version of the schema that the rows were written under.
    schema_version: u32,
}

/// Everything that a store held at one moment.
pub struct Checkpoint {
    segments: Vec<Arc<Segment>>,
    outline: Vec<u8>,
    rows: u64,
    schema_version: u32,
}

/// A file that a checkpoint needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFile {
    /// What tells it apart from every other one: equal names, equal bytes.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// What it is called where [`CheckpointOutline::open`] looks for it.
    pub local_name: String,
}

impl Store {
    /// Everything that was accepted before, as files. Writers wait for a few moments, not for rows: what is in memory is flushed
    /// before.
    ///
    /// # Errors
    /// As of [`Store::flush`].
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let FlushedMoment { state, manifest } = self.flushed_moment()?;
        let schema_version = state.layout.schema.version;
        let mut rows = 0;
        let (segments, named) = held_segments(&state, manifest.segments, |view| {
            let forgotten = self.has(Planted::BackupGap) && rows > 0;
            let held = view.visible_rows() > 0 && !forgotten;
            if held {
                rows += view.visible_rows();
            }
            held
        })?;
        let outline = Outline { segments: named, cutoff: state.cutoff, rows, schema_version };
        let mut bytes = head::head(MAGIC, VERSION);
        bytes.extend_from_slice(&wire::seal(&outline)?);
        Ok(Checkpoint { segments, outline: bytes, rows, schema_version })
    }

    /// Flushes, and says what is there then, on disk and for readers.
    pub(super) fn flushed_moment(&self) -> Result<FlushedMoment> {
        self.flush()?;
        let maintenance = lock(&self.maintenance);
        let writer = lock(&self.writer);
        writer.check_sound()?;
        let state = lock(&self.state).clone();
        state.check_whole()?;
        let manifest = self.manifest_of(&state, &writer.deaths, maintenance.next_segment)?;
        Ok(FlushedMoment { state, manifest })
    }
}

/// A store at one moment, and the manifest that says what of it is flushed.
pub(super) struct FlushedMoment {
    pub(super) state: State,
    pub(super) manifest: Manifest,
}

/// Of the segments that a manifest names those that are wanted as they were at the flush, without what readers of changes need;
/// each record with the name that its file has by its content.
pub(super) fn held_segments(
    state: &State,
    records: Vec<SegmentRecord>,
    mut is_wanted: impl FnMut(&SegmentView) -> bool,
) -> Result<(Vec<Arc<Segment>>, Vec<NamedSegment>)> {
    let (mut segments, mut named) = (Vec::new(), Vec::new());
    for mut record in records {
        let Some(view) = state.segments.get(&record.id) else { continue };
        let as_of_flush =
            SegmentView::new(view.segment.clone(), record.dead_rows()?, record.rows.clone(), 0, record.history);
        if !is_wanted(&as_of_flush) {
            continue;
        }
        record.deaths.clear();
        named.push((view.segment.reader()?.name().to_owned(), record));
        segments.push(view.segment.clone());
    }
    Ok((segments, named))
}

/// A segment, with the name that its file has by its content.
pub(super) type NamedSegment = (String, SegmentRecord);

impl Checkpoint {
    /// What says which rows of which files belong to it; to be kept beside the files.
    pub fn outline(&self) -> &[u8] {
        &self.outline
    }

    /// Rows that a scan shows.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The version of the schema that the store had.
    pub fn schema_version(&self) -> u32 {
        self.schema_version
    }

    /// Its files, in the order in which the outline names them, each from its beginning.
    ///
    /// # Errors
    /// As the disk reports.
    pub fn readers(&self) -> impl Iterator<Item = Result<SegmentReader>> + '_ {
        self.segments.iter().map(|segment| segment.reader())
    }

    /// One of them.
    ///
    /// # Errors
    /// As the disk reports, and [`ErrorCode::InvalidRequest`] if there are not so many.
    pub fn reader(&self, place: usize) -> Result<SegmentReader> {
        let nothing = || Error::new(ErrorCode::InvalidRequest, format!("the checkpoint has no file {place}"));
        self.segments.get(place).ok_or_else(nothing)?.reader()
    }
}

/// Reads each byte of a copy of a segment's file, and checks that it is the one of that name.
pub(super) fn check_copy(disk: &Arc<dyn Disk>, path: &Path, id: SegmentId, name: &str) -> Result<()> {
    let mut reader = SegmentReader::of_copy(disk, path, id)?;
    if reader.name() != name {
        return Err(damaged(corrupt(format!("it is {}, not {name}", reader.name())), segment_file(id), None));
    }
    reader.check_all(CHECK_BYTES)
}

/// What was written down of a checkpoint, read back.
#[derive(Debug)]
pub struct CheckpointOutline(Outline);

impl CheckpointOutline {
    /// Reads what [`Checkpoint::outline`] gave.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if it is damaged; [`ErrorCode::IncompatibleVersion`] if another build wrote it.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        head::check(bytes, MAGIC, VERSION)?;
        let outline: Outline = wire::unseal(&bytes[HEAD_BYTES..])?;
        let mut ids: Vec<SegmentId> = outline.segments.iter().map(|(_, record)| record.id).collect();
        ids.sort_unstable();
        match ids.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(twice) => Err(corrupt(format!("{} is named twice", twice[0]))),
            None => Ok(Self(outline)),
        }
    }

    /// Rows that a scan shows.
    pub fn rows(&self) -> u64 {
        self.0.rows
    }

    /// The newest version of the schema that the rows were written under.
    pub fn schema_version(&self) -> u32 {
        self.0.schema_version
    }

    /// The files that it needs.
    pub fn files(&self) -> impl Iterator<Item = CheckpointFile> + '_ {
        self.0.segments.iter().map(|(name, record)| CheckpointFile {
            name: name.clone(),
            bytes: record.bytes,
            local_name: segment_file(record.id),
        })
    }

    /// Checks each byte of the files in a directory, and shows their rows under a schema of the table that is not older than the
    /// one they were written under. Writes nothing. The snapshot reads the files until it is dropped.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if a file is gone or is not the one that the outline names; [`ErrorCode::IncompatibleVersion`] if
    /// another build wrote it; [`ErrorCode::Unsupported`] for column types that cannot be stored; else as the disk reports.
    pub fn open(
        &self,
        disk: Arc<dyn Disk>,
        dir: &Path,
        schema: Arc<TableSchema>,
        options: &StoreOptions,
    ) -> Result<Snapshot> {
        let Outline { segments, cutoff, rows, schema_version } = &self.0;
        if schema.version < *schema_version {
            let message =
                format!("rows of version {schema_version} of a schema are to be read by version {}", schema.version);
            return Err(Error::new(ErrorCode::InvalidRequest, message));
        }
        let context = SegmentContext::new(disk.clone(), options);
        let mut views = BTreeMap::new();
        for (name, record) in segments {
            let file = segment_file(record.id);
            check_copy(&disk, &dir.join(&file), record.id, name)?;
            let segment = Segment::open(&context, dir, record.id, record.bytes)?;
            let dead = record.dead_rows()?;
            if record.rows.end > segment.rows() || dead.max().is_some_and(|row| row >= segment.rows()) {
                return Err(damaged(corrupt("the outline names rows that it does not have"), file, None));
            }
            let view = SegmentView::new(Arc::new(segment), dead, record.rows.clone(), 0, record.history);
            views.insert(record.id, view);
        }
        let state = State {
            layout: Arc::new(Layout::new(schema)?),
            log_id: LogId::default(),
            past: Arc::default(),
            position: 0,
            flushed: 0,
            segments: views,
            memtables: vec![MemView::new(0, 0, Arc::default())],
            digest: Arc::default(),
            digest_base: None,
            changes_from: 0,
            keep_changes_from: None,
            cutoff: *cutoff,
            purged: Hlc::default(),
            wal_bytes: 0,
            failed: None,
            broken: Vec::new().into(),
        };
        match state.visible_rows() {
            seen if seen == *rows => Ok(Snapshot { state: Arc::new(state) }),
            seen => Err(corrupt(format!("there are {seen} rows, not {rows}"))),
        }
    }
}
