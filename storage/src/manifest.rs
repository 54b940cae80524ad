//! The manifest: which files make up the store, replaced as a whole.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_kernel::env::Disk;
use shoal_kernel::{Error, ErrorCode, LogId, Result, SegmentId, TableSchema, wire};

use crate::head::{self, HEAD_BYTES};
use crate::token::TokenEntry;

pub(crate) const MANIFEST_FILE: &str = "MANIFEST";
pub(crate) const META_FILE: &str = "META";
pub(crate) const SCHEMA_FILE: &str = "SCHEMA";

const MANIFEST_MAGIC: &[u8; 8] = b"SHOALMAN";
const META_MAGIC: &[u8; 8] = b"SHOALMET";
const SCHEMA_MAGIC: &[u8; 8] = b"SHOALSCH";
const VERSION: u32 = 1;

/// The durable state of a store up to `flushed`; what came later is in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) log_id: LogId,
    /// All records up to here are in the segments.
    pub(crate) flushed: u64,
    /// Segment numbers from here on are free.
    pub(crate) next_segment: SegmentId,
    pub(crate) segments: Vec<SegmentRecord>,
    /// Tokens of records up to `flushed`.
    pub(crate) tokens: Vec<TokenEntry>,
}

/// A segment that belongs to the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentRecord {
    pub(crate) id: SegmentId,
    /// Length of the file.
    pub(crate) bytes: u64,
    /// Rows that lost against records up to `flushed` (a serialised roaring bitmap).
    pub(crate) dead: Vec<u8>,
}

impl Manifest {
    /// The manifest of a directory; `None` if there is none.
    pub(crate) fn read(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<Self>> {
        read(disk, &dir.join(MANIFEST_FILE), MANIFEST_MAGIC)
    }

    /// Puts itself in the place of the old one. Durable on return.
    pub(crate) fn write(&self, disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
        write(disk, &dir.join(MANIFEST_FILE), MANIFEST_MAGIC, self)
    }
}

/// The owner's blob; empty if there is none.
pub(crate) fn read_meta(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Vec<u8>> {
    Ok(read(disk, &dir.join(META_FILE), META_MAGIC)?.unwrap_or_default())
}

/// Replaces the owner's blob. Durable on return.
pub(crate) fn write_meta(disk: &Arc<dyn Disk>, dir: &Path, meta: &Vec<u8>) -> Result<()> {
    write(disk, &dir.join(META_FILE), META_MAGIC, meta)
}

/// The newest schema that a table which was altered had here; `None` if it never was.
pub(crate) fn read_schema(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<TableSchema>> {
    read(disk, &dir.join(SCHEMA_FILE), SCHEMA_MAGIC)
}

/// Replaces it. Durable on return.
pub(crate) fn write_schema(disk: &Arc<dyn Disk>, dir: &Path, schema: &TableSchema) -> Result<()> {
    write(disk, &dir.join(SCHEMA_FILE), SCHEMA_MAGIC, schema)
}

fn read<T: DeserializeOwned>(disk: &Arc<dyn Disk>, path: &Path, magic: &[u8; 8]) -> Result<Option<T>> {
    if !disk.exists(path)? {
        return Ok(None);
    }
    let bytes = disk.read(path).map_err(|error| Error::from(error).context(path.display()))?;
    let corrupt = |what: &str| Error::new(ErrorCode::Corruption, format!("{}: {what}", path.display()));
    head::check(&bytes, magic, VERSION).map_err(|error| error.context(path.display()))?;
    wire::unseal(&bytes[HEAD_BYTES..]).map(Some).map_err(|error| corrupt(&error.to_string()))
}

fn write<T: Serialize>(disk: &Arc<dyn Disk>, path: &Path, magic: &[u8; 8], value: &T) -> Result<()> {
    let mut bytes = head::head(magic, VERSION);
    bytes.extend_from_slice(&wire::seal(value)?);
    disk.replace(path, &bytes).map_err(|error| Error::from(error).context(format_args!("writing {}", path.display())))
}
