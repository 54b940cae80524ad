//! The manifest: which files make up the store, replaced as a whole.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use roaring::RoaringBitmap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_kernel::env::Disk;
use shoal_kernel::{Cutoff, Error, Hlc, KeyRange, LogId, Result, SegmentId, TableSchema, wire};

use crate::damage::{corrupt, damaged};
use crate::head::{self, HEAD_BYTES};
use crate::store::DigestBuckets;
use crate::token::TokenEntry;

pub(crate) const MANIFEST_FILE: &str = "MANIFEST";
pub(crate) const META_FILE: &str = "META";
pub(crate) const SCHEMA_FILE: &str = "SCHEMA";

const MANIFEST_MAGIC: &[u8; 8] = b"SHOALMAN";
const META_MAGIC: &[u8; 8] = b"SHOALMET";
const SCHEMA_MAGIC: &[u8; 8] = b"SHOALSCH";
const MANIFEST_VERSION: u32 = 5;
const META_VERSION: u32 = 1;
const SCHEMA_VERSION: u32 = 1;
/// Past logs that are remembered; a peer that has heard nothing for longer is told everything anew.
const PAST_LOGS_MAX: usize = 16;

/// A log that the present one goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PastLog {
    pub(crate) log_id: LogId,
    /// Records up to here are the same in both.
    pub(crate) common: u64,
    /// Everything that was synced of it is in the present one.
    pub(crate) intact: bool,
}

/// Positions are counted from 1; no disk holds as many records as this.
pub(crate) const POSITION_MAX: u64 = 1 << 62;

/// The manifest of a child of a split, until the parent says that there was one.
pub(crate) const STAGED_FILE: &str = "MANIFEST.split";

/// The durable state of a store up to `flushed`; what came later is in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) log_id: LogId,
    /// Logs before this one, oldest first.
    pub(crate) past: Vec<PastLog>,
    /// All records up to here are in the segments.
    pub(crate) flushed: u64,
    /// Segment numbers from here on are free.
    pub(crate) next_segment: SegmentId,
    pub(crate) segments: Vec<SegmentRecord>,
    /// Tokens of records up to `flushed`.
    pub(crate) tokens: Vec<TokenEntry>,
    /// Keys that the store holds.
    pub(crate) range: KeyRange,
    /// The digest's buckets at `flushed`, unless they must be counted anew.
    pub(crate) digest: Option<Vec<u8>>,
    /// Changes after this position can be told.
    pub(crate) changes_from: u64,
    /// Changes after this position are kept for a reader.
    pub(crate) keep_changes_from: Option<u64>,
    /// Rows with a time below it are dead, and none is taken.
    pub(crate) cutoff: Option<Cutoff>,
    /// Tombstones up to it are dead, and none is taken that would bury nothing.
    pub(crate) purged: Hlc,
    /// The store is no more: it was split.
    pub(crate) split: Option<SplitRecord>,
}

/// A segment that belongs to the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentRecord {
    pub(crate) id: SegmentId,
    /// Length of the file.
    pub(crate) bytes: u64,
    /// The rows of the file that belong to the store.
    pub(crate) rows: Range<u32>,
    /// Of these, rows that lost against records up to `flushed` (a serialised roaring bitmap).
    pub(crate) dead: Vec<u8>,
    /// All rows are dead, and kept for readers of changes.
    pub(crate) history: bool,
    /// Dead rows that are kept for readers of changes, with the position of the record that each lost against.
    pub(crate) deaths: Vec<(u64, u32)>,
}

/// What became of a store that was split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SplitRecord {
    /// Names of the children's directories, which lie beside the parent's.
    pub(crate) children: Vec<String>,
}

impl SegmentRecord {
    /// Rows that lost against records up to the flushed position.
    ///
    /// # Errors
    /// [`shoal_kernel::ErrorCode::Corruption`]: it is no bitmap.
    pub(crate) fn dead_rows(&self) -> Result<RoaringBitmap> {
        RoaringBitmap::deserialize_from(self.dead.as_slice()).map_err(|error| {
            let message = format!("the bitmap of dead rows of {} makes no sense: {error}", self.id);
            damaged(corrupt(message), MANIFEST_FILE, None)
        })
    }
}

impl Manifest {
    /// Of a new store.
    pub(crate) fn new(log_id: LogId) -> Self {
        Self {
            log_id,
            past: Vec::new(),
            flushed: 0,
            next_segment: SegmentId(1),
            segments: Vec::new(),
            tokens: Vec::new(),
            range: KeyRange::all(),
            digest: Some(DigestBuckets::default().to_bytes()),
            changes_from: 0,
            keep_changes_from: None,
            cutoff: None,
            purged: Hlc::default(),
            split: None,
        }
    }

    /// The manifest of a directory; `None` if there is none.
    ///
    /// # Errors
    /// [`shoal_kernel::ErrorCode::Corruption`] if it is damaged; [`shoal_kernel::ErrorCode::IncompatibleVersion`] if another
    /// build wrote it; else as the disk reports.
    pub(crate) fn read(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST_FILE);
        let manifest: Option<Self> = read(disk, &path, MANIFEST_MAGIC, MANIFEST_VERSION)?;
        match manifest.as_ref().and_then(Self::contradiction) {
            Some(what) => Err(damaged(corrupt(what), MANIFEST_FILE, None)),
            None => Ok(manifest),
        }
    }

    /// What it says that cannot be.
    fn contradiction(&self) -> Option<String> {
        if self.flushed > POSITION_MAX {
            return Some(format!("nothing was ever flushed up to position {}", self.flushed));
        }
        let mut ids: Vec<SegmentId> = self.segments.iter().map(|segment| segment.id).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Some(format!("{} is named twice", twice[0]));
        }
        let last = ids.last().filter(|last| **last >= self.next_segment)?;
        Some(format!("{last} is numbered beyond the next number, {}", self.next_segment))
    }

    /// Puts itself in the place of the old one. Durable on return.
    pub(crate) fn write(&self, disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
        self.write_beside(disk, dir)?;
        Self::put_in_place(disk, dir)
    }

    /// Writes itself beside the old one, which stands until [`Self::put_in_place`], and if this fails.
    pub(crate) fn write_beside(&self, disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST_FILE);
        let bytes = sealed(MANIFEST_MAGIC, MANIFEST_VERSION, self)?;
        disk.write_beside(&path, &bytes).map_err(|error| writing(&path, error))
    }

    /// Puts what was written beside in the place of the old one. If it fails, either may be there.
    pub(crate) fn put_in_place(disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
        let path = dir.join(MANIFEST_FILE);
        disk.put_in_place(&path).map_err(|error| writing(&path, error))
    }

    /// Another log begins, which has the same records up to a position.
    pub(crate) fn begin_log(&mut self, log_id: LogId, common: u64, intact: bool) {
        self.past.push(PastLog { log_id: self.log_id, common, intact });
        for past in &mut self.past {
            past.common = past.common.min(common);
            past.intact &= intact;
        }
        self.past.drain(..self.past.len().saturating_sub(PAST_LOGS_MAX));
        self.log_id = log_id;
    }

    /// Writes itself where it does not count yet. Durable on return.
    pub(crate) fn stage(&self, disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
        write(disk, &dir.join(STAGED_FILE), MANIFEST_MAGIC, MANIFEST_VERSION, self)
    }

    /// The digest's buckets at `flushed`, if they are known.
    pub(crate) fn digest(&self) -> Result<Option<DigestBuckets>> {
        let malformed = || damaged(corrupt("the digest is malformed"), MANIFEST_FILE, None);
        self.digest.as_ref().map(|bytes| DigestBuckets::from_bytes(bytes).ok_or_else(malformed)).transpose()
    }
}

/// The owner's blob; empty if there is none.
pub(crate) fn read_meta(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Vec<u8>> {
    Ok(read(disk, &dir.join(META_FILE), META_MAGIC, META_VERSION)?.unwrap_or_default())
}

/// Replaces the owner's blob. Durable on return.
pub(crate) fn write_meta(disk: &Arc<dyn Disk>, dir: &Path, meta: &Vec<u8>) -> Result<()> {
    write(disk, &dir.join(META_FILE), META_MAGIC, META_VERSION, meta)
}

/// The newest schema that a table which was altered had here; `None` if it never was.
pub(crate) fn read_schema(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<TableSchema>> {
    read(disk, &dir.join(SCHEMA_FILE), SCHEMA_MAGIC, SCHEMA_VERSION)
}

/// Replaces it. Durable on return.
pub(crate) fn write_schema(disk: &Arc<dyn Disk>, dir: &Path, schema: &TableSchema) -> Result<()> {
    write(disk, &dir.join(SCHEMA_FILE), SCHEMA_MAGIC, SCHEMA_VERSION, schema)
}

fn read<T: DeserializeOwned>(disk: &Arc<dyn Disk>, path: &Path, magic: &[u8; 8], version: u32) -> Result<Option<T>> {
    if !disk.exists(path)? {
        return Ok(None);
    }
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let bytes = disk.read(path).map_err(|error| Error::from(error).context(path.display()))?;
    head::check(&bytes, magic, version).map_err(|error| damaged(error, &name, Some(0)))?;
    let body = wire::unseal(&bytes[HEAD_BYTES..]);
    body.map(Some).map_err(|error| damaged(Error::from(error), &name, Some(HEAD_BYTES as u64)))
}

fn write<T: Serialize>(disk: &Arc<dyn Disk>, path: &Path, magic: &[u8; 8], version: u32, value: &T) -> Result<()> {
    disk.replace(path, &sealed(magic, version, value)?).map_err(|error| writing(path, error))
}

fn sealed<T: Serialize>(magic: &[u8; 8], version: u32, value: &T) -> Result<Vec<u8>> {
    let mut bytes = head::head(magic, version);
    bytes.extend_from_slice(&wire::seal(value)?);
    Ok(bytes)
}

fn writing(path: &Path, error: std::io::Error) -> Error {
    Error::from(error).context(format_args!("writing {}", path.display()))
}
