//! Copies: a whole store as files for another replica, which begins with them instead of writing every row anew.
//!
//! A copy is a checkpoint that can be gone on from: with tombstones, tokens, the digest, and the place in the log up to which it
//! holds everything. Rows keep the positions that they have in their segments. So the new store's log is another one, and up to
//! that place the same as the one that was copied: it remembers that one as a log before its own, hands out to peers what it got
//! as if it had accepted it, and translates their places in the log that was copied.
//!
//! The order of events, each durable before the next: the files, checked byte by byte; their names as segments, the log, the
//! owner's blob and the schema; the manifest, in a directory beside the store's. From then on that directory is the store, and
//! whoever opens the replica first puts it in the place of the empty one ([`Store::take_over`]).

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_kernel::env::Disk;
use shoal_kernel::{Cutoff, Error, ErrorCode, Hlc, KeyRange, LogId, Result, SegmentId, TableSchema, wire};

use super::checkpoint::{FlushedMoment, NamedSegment, check_copy, held_segments};
use super::schema::keep_schema;
use super::{CheckpointFile, DigestBuckets, Store};
use crate::damage::{corrupt, damaged};
use crate::head::{self, HEAD_BYTES};
use crate::layout::Layout;
use crate::manifest::{Manifest, POSITION_MAX, PastLog, SegmentRecord, write_meta};
use crate::options::StoreOptions;
use crate::segment::{Segment, SegmentContext, SegmentReader, segment_file};
use crate::token::TokenEntry;
use crate::wal::{LogFailure, Secret, Wal};

const MAGIC: &[u8; 8] = b"SHOALCPY";
const VERSION: u32 = 1;
/// What a file is called that has come whole, behind its name.
const WHOLE: &str = "whole";
/// The longest name of a file: a hash and a length.
const NAME_BYTES_MAX: usize = 64;

/// What must be known of a copy beside its files.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// The log that was copied, and up to where.
    log_id: LogId,
    position: u64,
    past: Vec<PastLog>,
    segments: Vec<NamedSegment>,
    /// Of records up to that place.
    tokens: Vec<TokenEntry>,
    /// The digest's buckets there, unless they must be counted anew.
    digest: Option<Vec<u8>>,
    cutoff: Option<Cutoff>,
    purged: Hlc,
    schema: TableSchema,
}

/// Everything that a store held at one moment, to be copied. Its files stay as long as it is there.
pub struct StoreCopy {
    segments: Vec<Arc<Segment>>,
    names: Vec<String>,
    head: Vec<u8>,
}

impl Store {
    /// Everything that was accepted before, as files and what must be known beside them. Writers wait for a few moments.
    ///
    /// # Errors
    /// As of [`Store::flush`].
    pub fn copy(&self) -> Result<StoreCopy> {
        let FlushedMoment { state, manifest } = self.flushed_moment()?;
        let is_alive = |view: &crate::state::SegmentView| view.dead.len() < u64::from(view.segment.rows());
        let (segments, named) = held_segments(&state, manifest.segments, is_alive)?;
        let names = named.iter().map(|(name, _)| name.clone()).collect();
        let content = Head {
            log_id: manifest.log_id,
            position: manifest.flushed,
            past: manifest.past,
            segments: named,
            tokens: manifest.tokens,
            digest: manifest.digest,
            cutoff: manifest.cutoff,
            purged: manifest.purged,
            schema: state.layout.schema.as_ref().clone(),
        };
        let mut head = head::head(MAGIC, VERSION);
        head.extend_from_slice(&wire::seal(&content)?);
        Ok(StoreCopy { segments, names, head })
    }

    /// Whether nothing was ever accepted here.
    pub fn is_empty(&self) -> bool {
        let status = self.status();
        status.position == 0 && status.segments == 0
    }

    /// Puts a copy that was placed completely in the place of the store in a directory, which nobody has open. False if there is none.
    ///
    /// # Errors
    /// As the disk reports; to be done again then, before the store is opened.
    pub fn take_over(disk: &dyn Disk, copy: &Path, dir: &Path) -> Result<bool> {
        if !Self::is_in(disk, copy)? {
            return Ok(false);
        }
        // A life that could not sync the directory may have renamed the manifest into place.
        disk.sync_dir(copy)?;
        if disk.exists(dir)? {
            disk.remove_dir_all(dir)?;
        }
        disk.rename(copy, dir)?;
        if let Some(above) = dir.parent() {
            disk.sync_dir(above)?;
        }
        Ok(true)
    }
}

impl StoreCopy {
    /// What must be known beside the files.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The names of its files: equal names, equal bytes.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// One of its files, from its beginning.
    ///
    /// # Errors
    /// As the disk reports, and [`ErrorCode::InvalidRequest`] if there are not so many.
    pub fn reader(&self, place: usize) -> Result<SegmentReader> {
        let nothing = || Error::new(ErrorCode::InvalidRequest, format!("the copy has no file {place}"));
        self.segments.get(place).ok_or_else(nothing)?.reader()
    }
}

/// What must be known of a copy, read where it has come.
#[derive(Debug)]
pub struct CopyHead(Head);

/// What the store is to be that a copy becomes.
pub struct Placing<'a> {
    /// The schema that the new owner knows; if the copy has a newer one, that is kept.
    pub schema: Arc<TableSchema>,
    /// Keys that the store holds.
    pub range: KeyRange,
    /// The owner's blob.
    pub meta: Vec<u8>,
    /// Names its accept log.
    pub log_id: LogId,
    /// As of [`Store::open`].
    pub log_secret: u128,
    /// How it will be opened.
    pub options: &'a StoreOptions,
}

impl CopyHead {
    /// Reads what [`StoreCopy::head`] gave.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if it is damaged or makes no sense; [`ErrorCode::IncompatibleVersion`] if another build wrote it.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        head::check(bytes, MAGIC, VERSION)?;
        let head: Head = wire::unseal(&bytes[HEAD_BYTES..])?;
        let names: BTreeSet<&str> = head.segments.iter().map(|(name, _)| name.as_str()).collect();
        if names.len() < head.segments.len() {
            return Err(corrupt("a copy names a file twice"));
        }
        if let Some(name) = names.iter().find(|name| !is_name(name)) {
            return Err(corrupt(format!("a copy has a file named {name:?}")));
        }
        let has_digest = head.digest.as_ref().is_none_or(|digest| DigestBuckets::from_bytes(digest).is_some());
        if head.position > POSITION_MAX || !has_digest {
            return Err(corrupt("what a copy says of its log makes no sense"));
        }
        Ok(Self(head))
    }

    /// The log that was copied, and the place up to which all of it is here.
    pub fn place(&self) -> (LogId, u64) {
        (self.0.log_id, self.0.position)
    }

    /// Tombstones below that time may be gone from it.
    pub fn purged(&self) -> Hlc {
        self.0.purged
    }

    /// The files that it needs, by the names under which [`CopyHead::place_in`] looks for them.
    pub fn files(&self) -> impl Iterator<Item = CheckpointFile> + '_ {
        self.0.segments.iter().map(|(name, record)| CheckpointFile {
            name: name.clone(),
            bytes: record.bytes,
            local_name: Self::local_name(name),
        })
    }

    /// The names of files of copies that have come whole to a directory.
    ///
    /// # Errors
    /// As the disk reports.
    pub fn whole_files(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
        if !disk.exists(dir)? {
            return Ok(Vec::new());
        }
        let named = |file: &str| Some(file.strip_suffix(WHOLE)?.strip_suffix('.')?.to_owned());
        let entries = disk.list(dir)?.into_iter().filter(|entry| !entry.is_dir);
        Ok(entries.filter_map(|entry| named(&entry.name)).filter(|name| is_name(name)).collect())
    }

    /// What a file of that name is called once it has come whole.
    pub fn local_name(name: &str) -> String {
        format!("{name}.{WHOLE}")
    }

    /// Reads each byte of a file that has come, and checks that it is the one of that name.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if it is not; else as the disk reports.
    pub fn check_file(disk: &Arc<dyn Disk>, path: &Path, name: &str) -> Result<()> {
        check_copy(disk, path, SegmentId(0), name)
    }

    /// Makes a store of the files in a directory, all of which are there under their local names, were checked, and are durable. Whatever
    /// else is there goes. Durable on return; before, there is no store, whatever happens.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if a file is gone or has not the rows that the copy names; [`ErrorCode::Unsupported`] for column types
    /// that cannot be stored; else as the disk reports. No file is of use any more then.
    pub fn place_in(&self, disk: &Arc<dyn Disk>, dir: &Path, placing: Placing<'_>) -> Result<()> {
        let Placing { schema, range, meta, log_id, log_secret, options } = placing;
        let schema = if self.0.schema.version > schema.version { Arc::new(self.0.schema.clone()) } else { schema };
        let layout = Layout::new(schema)?;
        let wanted: BTreeSet<String> = self.files().map(|file| file.local_name).collect();
        for entry in disk.list(dir)?.into_iter().filter(|entry| !wanted.contains(&entry.name)) {
            disk.remove_file(&dir.join(entry.name))?;
        }
        let context = SegmentContext::new(disk.clone(), options);
        let mut segments = Vec::with_capacity(self.0.segments.len());
        for (id, (name, record)) in (1..).map(SegmentId).zip(&self.0.segments) {
            let file = segment_file(id);
            disk.rename(&dir.join(Self::local_name(name)), &dir.join(&file))?;
            let rows = Segment::open(&context, dir, id, record.bytes)?.rows();
            if record.rows.end > rows || record.dead_rows()?.max().is_some_and(|row| row >= rows) {
                return Err(damaged(corrupt("the copy names rows that it does not have"), file, None));
            }
            segments.push(SegmentRecord { id, deaths: Vec::new(), ..record.clone() });
        }
        let (columns, lazy, position) = (layout.stored.clone(), !options.sync_commits, self.0.position);
        let secret = Secret(log_secret);
        let mut wal = Wal::resume(disk.clone(), dir, columns, lazy, secret, VecDeque::new(), position)?;
        // Everything before it is durable.
        wal.close().map_err(LogFailure::into_error)?;
        write_meta(disk, dir, &meta)?;
        keep_schema(disk, dir, &layout.schema)?;
        // The names of the segments, too.
        disk.sync_dir(dir)?;
        let mut manifest = Manifest {
            log_id: self.0.log_id,
            past: self.0.past.clone(),
            flushed: position,
            next_segment: SegmentId(segments.len() as u64 + 1),
            segments,
            tokens: self.0.tokens.clone(),
            range,
            digest: self.0.digest.clone(),
            changes_from: position,
            keep_changes_from: None,
            cutoff: self.0.cutoff,
            purged: self.0.purged,
            split: None,
        };
        // The log that was copied goes on elsewhere, with what is not here.
        manifest.begin_log(log_id, position, false);
        manifest.write(disk, dir)
    }
}

/// Whether a peer may give a file this name: it becomes part of a path.
fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}
