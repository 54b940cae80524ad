//! The log: every accepted write, in order, on disk before it is acknowledged.
//!
//! A file holds the records from one accept position on, and says which columns it was written for. A group of writes is
//! one *frame* with one checksum: whatever a power cut leaves of it, it is one bad frame at the very end, never a bad one
//! followed by a good one. Byte layout in `FORMAT.md`.

mod frame;
mod recover;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_kernel::env::{Disk, DiskFile, OpenMode};
use shoal_kernel::{Applied, Error, ErrorCode, Result, wire};

pub(crate) use frame::{FrameBuilder, join_versions, split_versions};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use frame::{HEADER_BYTES as FRAME_HEADER_BYTES, MAGIC as FRAME_MAGIC};
pub(crate) use recover::{Tail, recover};

use crate::head;
use crate::layout::{StoredColumn, is_storable};
use crate::manifest::POSITION_MAX;

const FILE_MAGIC: &[u8; 8] = b"SHOALWAL";
const FILE_VERSION: u32 = 2;

/// What a log file says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileHead {
    first_position: u64,
    columns: Vec<StoredColumn>,
}

impl FileHead {
    /// Whether a store can have written it.
    fn is_possible(&self) -> bool {
        (1..POSITION_MAX).contains(&self.first_position)
            && self.columns.iter().all(|column| is_storable(&column.data_type))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct WalFile {
    pub(crate) first_position: u64,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

/// Why an append failed.
#[derive(Debug)]
pub(crate) enum AppendFailure {
    /// No room. The file is as it was before.
    Full(Error),
    /// Nobody knows what is on the disk now; the log takes nothing more until it was opened anew.
    Doubt(Error),
}

/// The writing end.
pub(crate) struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    columns: Vec<StoredColumn>,
    file: Arc<dyn DiskFile>,
    /// All files, oldest first; the last one is being written.
    files: VecDeque<WalFile>,
}

pub(crate) fn file_name(first_position: u64) -> String {
    format!("wal-{first_position:016x}.log")
}

/// The position in the name of a log file.
pub(crate) fn position_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("wal-")?.strip_suffix(".log")?;
    u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16)
}

fn head_bytes(head: &FileHead) -> Result<Vec<u8>> {
    let body = wire::seal(head)?;
    let length = u32::try_from(body.len()).map_err(|_| Error::internal("the schema does not fit a log file"))?;
    let mut bytes = head::head(FILE_MAGIC, FILE_VERSION);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

impl Wal {
    /// Starts a log whose first record will have that position, in a directory that has no such file.
    pub(crate) fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        columns: Vec<StoredColumn>,
        first_position: u64,
    ) -> Result<Self> {
        let (file, entry) = create_file(&disk, dir, &columns, first_position)?;
        Ok(Self { disk, dir: dir.to_owned(), columns, file, files: VecDeque::from([entry]) })
    }

    /// Goes on behind the given files.
    pub(crate) fn resume(
        disk: Arc<dyn Disk>,
        dir: &Path,
        columns: Vec<StoredColumn>,
        files: VecDeque<WalFile>,
        next_position: u64,
    ) -> Result<Self> {
        // A file of its own for this life: the columns may have changed, and the old one has just been made durable.
        let (file, entry) = create_file(&disk, dir, &columns, next_position)?;
        let mut files: VecDeque<_> = files.into_iter().filter(|old| old.path != entry.path).collect();
        files.push_back(entry);
        Ok(Self { disk, dir: dir.to_owned(), columns, file, files })
    }

    /// Appends a frame. When it returns, the bytes are durable, unless `sync` is false.
    pub(crate) fn append(&mut self, frame: &[u8], sync: bool) -> Result<(), AppendFailure> {
        let Some(last) = self.files.back_mut() else {
            return Err(AppendFailure::Doubt(Error::internal("the log has no file")));
        };
        let doubt = |error: io::Error| {
            let error = Error::from(error).context(format_args!("writing {}", last.path.display()));
            AppendFailure::Doubt(error.with_applied(Applied::Unknown))
        };
        if let Err(error) = self.file.write_all_at(frame, last.bytes) {
            if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return Err(doubt(error));
            }
            self.file.set_len(last.bytes).and_then(|()| self.file.sync()).map_err(doubt)?;
            return Err(AppendFailure::Full(Error::new(ErrorCode::DiskFull, "the disk is full")));
        }
        if sync {
            self.file.sync().map_err(doubt)?;
        }
        last.bytes += frame.len() as u64;
        Ok(())
    }

    /// Starts the next file. On failure the present one goes on.
    pub(crate) fn roll(&mut self, first_position: u64) -> Result<()> {
        if self.files.back().is_some_and(|last| last.first_position == first_position) {
            return Ok(());
        }
        let (file, entry) = create_file(&self.disk, &self.dir, &self.columns, first_position)?;
        self.file = file;
        self.files.push_back(entry);
        Ok(())
    }

    /// Bytes in the file that is being written.
    pub(crate) fn current_bytes(&self) -> u64 {
        self.files.back().map_or(0, |file| file.bytes)
    }

    /// Bytes in all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Takes files that hold no record above `position` out of the log; the caller removes them.
    pub(crate) fn retire_through(&mut self, position: u64) -> Vec<PathBuf> {
        let mut retired = Vec::new();
        while self.files.get(1).is_some_and(|next| next.first_position <= position + 1) {
            retired.extend(self.files.pop_front().map(|file| file.path));
        }
        retired
    }
}

fn create_file(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    columns: &[StoredColumn],
    first_position: u64,
) -> Result<(Arc<dyn DiskFile>, WalFile)> {
    let path = dir.join(file_name(first_position));
    let head = head_bytes(&FileHead { first_position, columns: columns.to_vec() })?;
    // Replaced and never removed first: at no moment may a crash find a store without its log.
    let write = || -> io::Result<Arc<dyn DiskFile>> {
        disk.replace(&path, &head)?;
        disk.open(&path, OpenMode::ReadWrite)
    };
    match write() {
        Ok(file) => Ok((file, WalFile { first_position, bytes: head.len() as u64, path })),
        Err(error) => Err(Error::from(error).context(format_args!("creating {}", path.display()))),
    }
}
