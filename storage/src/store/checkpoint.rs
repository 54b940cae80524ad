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
use crate::manifest::SegmentRecord;
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
    segments: Vec<(String, SegmentRecord)>,
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
        self.flush()?;
        let (state, manifest) = {
            let maintenance = lock(&self.maintenance);
            let writer = lock(&self.writer);
            writer.check_sound()?;
            let state = lock(&self.state).clone();
            state.check_whole()?;
            let manifest = self.manifest_of(&state, &writer.deaths, maintenance.next_segment)?;
            (state, manifest)
        };
        let schema_version = state.layout.schema.version;
        let mut outline = Outline { segments: Vec::new(), cutoff: state.cutoff, rows: 0, schema_version };
        let mut segments = Vec::new();
        for mut record in manifest.segments {
            let Some(view) = state.segments.get(&record.id) else { continue };
            let as_of_flush =
                SegmentView::new(view.segment.clone(), record.dead_rows()?, record.rows.clone(), 0, record.history);
            let rows = as_of_flush.visible_rows();
            let forgotten = self.has(Planted::BackupGap) && !segments.is_empty();
            if rows == 0 || forgotten {
                continue;
            }
            outline.rows += rows;
            record.deaths.clear();
            outline.segments.push((view.segment.reader()?.name().to_owned(), record));
            segments.push(view.segment.clone());
        }
        let mut bytes = head::head(MAGIC, VERSION);
        bytes.extend_from_slice(&wire::seal(&outline)?);
        Ok(Checkpoint { segments, outline: bytes, rows: outline.rows, schema_version })
    }
}

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
            let path = dir.join(&file);
            let mut reader = SegmentReader::of_copy(&disk, &path, record.id)?;
            if reader.name() != name {
                return Err(damaged(corrupt(format!("it is {}, not {name}", reader.name())), file, None));
            }
            reader.check_all(CHECK_BYTES)?;
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
