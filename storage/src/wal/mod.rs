//! The log: every accepted write, in order, on disk before it is acknowledged.
//!
//! A file holds the records from one accept position on, and says which columns it was written for. A group of writes is
//! one *frame* with one checksum: whatever a power cut leaves of it, it is one bad frame at the very end, never a bad one
//! followed by a good one. Byte layout in `FORMAT.md`.
//!
//! A *lazy* log is synced behind the acknowledgements, or hardly ever. A power cut may take any of the frames that were not
//! synced, so each frame says how many records before it were not: damage that a later frame calls durable is damage, any
//! other is the cut's. Each file has a *salt* that is in the checksums of its frames, so that no row of a client's is taken for one.
//! A lazy log that was closed in good order ends with a *closing mark*; one without it may have lost
//! records that were acknowledged, and told to peers.

mod durability;
mod frame;
mod recover;
mod replay;
mod salt;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_kernel::env::{Disk, DiskFile, OpenMode};
use shoal_kernel::{Applied, Error, ErrorCode, Result, wire};

pub(crate) use durability::{Durability, PendingSync};
pub(crate) use frame::{FrameBuilder, join_versions, split_versions};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use frame::{HEADER_BYTES as FRAME_HEADER_BYTES, MAGIC as FRAME_MAGIC};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use recover::salt_of;
pub(crate) use recover::{Recovered, Tail, recover};
pub use replay::Replay;
pub(crate) use replay::replay;
use salt::Salt;
pub(crate) use salt::Secret;

use crate::head;
use crate::layout::{StoredColumn, is_storable};
use crate::manifest::POSITION_MAX;

const FILE_MAGIC: &[u8; 8] = b"SHOALWAL";
const FILE_VERSION: u32 = 4;

/// What a log file says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileHead {
    first_position: u64,
    /// Records may have been acknowledged before they were synced.
    lazy: bool,
    columns: Vec<StoredColumn>,
    salt: Salt,
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

/// Why the log did not take something.
#[derive(Debug)]
pub(crate) enum LogFailure {
    /// Nothing has changed, and the log goes on as before.
    Refused(Error),
    /// Nobody knows what is on the disk now; the log takes nothing more until it was opened anew.
    Doubt(Error),
}

impl LogFailure {
    /// Why, for whom it makes no difference what the log holds.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Refused(error) | Self::Doubt(error) => error,
        }
    }
}

/// What the files of a log are made with.
#[derive(Clone)]
struct Place {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    columns: Vec<StoredColumn>,
    lazy: bool,
    secret: Secret,
}

/// The writing end.
pub(crate) struct Wal {
    place: Place,
    file: Arc<dyn DiskFile>,
    /// Of the file that is being written.
    salt: Salt,
    /// All files, oldest first; the last one is being written. Only that one can hold what is not synced.
    files: VecDeque<WalFile>,
    /// Position of the last record.
    position: u64,
    durability: Arc<Durability>,
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
    /// Starts a log, whose first record will have position 1, in a directory that has no such file.
    pub(crate) fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        columns: Vec<StoredColumn>,
        lazy: bool,
        secret: Secret,
    ) -> Result<Self> {
        Self::resume(disk, dir, columns, lazy, secret, VecDeque::new(), 0)
    }

    /// Goes on behind the given files, which are durable and end with that position.
    pub(crate) fn resume(
        disk: Arc<dyn Disk>,
        dir: &Path,
        columns: Vec<StoredColumn>,
        lazy: bool,
        secret: Secret,
        files: VecDeque<WalFile>,
        position: u64,
    ) -> Result<Self> {
        let place = Place { disk, dir: dir.to_owned(), columns, lazy, secret };
        // A file of its own for this life: the columns may have changed, and the old one has just been made durable.
        let (file, entry, salt) = place.create_file(position + 1)?;
        let mut files: VecDeque<_> = files.into_iter().filter(|old| old.path != entry.path).collect();
        files.push_back(entry);
        Ok(Self { place, file, salt, files, position, durability: Arc::new(Durability::new(position)) })
    }

    /// Appends a frame and says how long it was. When it returns, the records are durable, unless `sync` is false.
    pub(crate) fn append(&mut self, frame: FrameBuilder, sync: bool) -> Result<u64, LogFailure> {
        let last_position = self.position + u64::from(frame.entries());
        let frame = frame.finish(self.position + 1, self.position - self.durability.synced(), &self.salt);
        self.write(&frame)?;
        self.position = last_position;
        if sync {
            self.sync()?;
        }
        Ok(frame.len() as u64)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), LogFailure> {
        let Some(last) = self.files.back_mut() else {
            return Err(LogFailure::Doubt(Error::internal("the log has no file")));
        };
        let doubt = |error: io::Error| {
            let error = Error::from(error).context(format_args!("writing {}", last.path.display()));
            LogFailure::Doubt(error.with_applied(Applied::Unknown))
        };
        if let Err(error) = self.file.write_all_at(bytes, last.bytes) {
            if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return Err(doubt(error));
            }
            self.file.set_len(last.bytes).and_then(|()| self.file.sync()).map_err(doubt)?;
            return Err(LogFailure::Refused(Error::new(ErrorCode::DiskFull, "the disk is full")));
        }
        last.bytes += bytes.len() as u64;
        Ok(())
    }

    fn sync(&self) -> Result<(), LogFailure> {
        self.pending_sync().run().map_err(LogFailure::Doubt)
    }

    /// The sync that is wanted for all records to be durable; it may be carried out while others are appended.
    pub(crate) fn pending_sync(&self) -> PendingSync {
        PendingSync { file: self.file.clone(), position: self.position, durability: self.durability.clone() }
    }

    /// How far records are durable, now and later.
    pub(crate) fn durability(&self) -> Arc<Durability> {
        self.durability.clone()
    }

    /// What salts of log files are made from in this life.
    pub(crate) fn secret(&self) -> Secret {
        self.place.secret
    }

    /// Whether records may be acknowledged before they are synced.
    pub(crate) fn is_lazy(&self) -> bool {
        self.place.lazy
    }

    /// Starts the next file; what is in the present one is durable before.
    pub(crate) fn roll(&mut self) -> Result<(), LogFailure> {
        if self.files.back().is_some_and(|last| last.first_position == self.position + 1) {
            return Ok(());
        }
        if self.is_lazy() {
            self.sync()?;
        }
        let (file, entry, salt) = self.place.create_file(self.position + 1).map_err(LogFailure::Refused)?;
        (self.file, self.salt) = (file, salt);
        self.files.push_back(entry);
        Ok(())
    }

    /// Goes on with records of other columns, in a file of its own; what is in the present one is durable before.
    ///
    /// # Errors
    /// [`LogFailure::Refused`]: the present file goes on. [`LogFailure::Doubt`]: it may have been replaced, or cannot be synced.
    pub(crate) fn follow(&mut self, columns: Vec<StoredColumn>) -> Result<(), LogFailure> {
        let first_position = self.position + 1;
        let is_empty = self.files.back().is_some_and(|last| last.first_position == first_position);
        if self.is_lazy() && !is_empty {
            self.sync()?;
        }
        let place = Place { columns, ..self.place.clone() };
        let failure = if is_empty { LogFailure::Doubt } else { LogFailure::Refused };
        let (file, entry, salt) = place.create_file(first_position).map_err(failure)?;
        if is_empty {
            self.files.pop_back();
        }
        self.place = place;
        (self.file, self.salt) = (file, salt);
        self.files.push_back(entry);
        Ok(())
    }

    /// Ends the log in good order: nothing that was acknowledged is missing when it is opened again. Nothing may be appended
    /// afterwards.
    pub(crate) fn close(&mut self) -> Result<(), LogFailure> {
        if !self.is_lazy() {
            return Ok(());
        }
        // First what the mark vouches for: a power cut must not leave the mark alone.
        self.sync()?;
        self.append(FrameBuilder::new(), true).map(drop)
    }

    /// Bytes in the file that is being written.
    pub(crate) fn current_bytes(&self) -> u64 {
        self.files.back().map_or(0, |file| file.bytes)
    }

    /// Bytes in all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Files that nothing is appended to any more.
    pub(crate) fn closed_files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().take(self.files.len().saturating_sub(1)).map(|file| file.path.as_path())
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

impl Place {
    fn create_file(&self, first_position: u64) -> Result<(Arc<dyn DiskFile>, WalFile, Salt)> {
        let path = self.dir.join(file_name(first_position));
        let salt = self.secret.salt(&path);
        let head = head_bytes(&FileHead { first_position, lazy: self.lazy, columns: self.columns.clone(), salt })?;
        // Replaced and never removed first: at no moment may a crash find a store without its log.
        let write = || -> io::Result<Arc<dyn DiskFile>> {
            self.disk.replace(&path, &head)?;
            self.disk.open(&path, OpenMode::ReadWrite)
        };
        match write() {
            Ok(file) => Ok((file, WalFile { first_position, bytes: head.len() as u64, path }, salt)),
            Err(error) => Err(Error::from(error).context(format_args!("creating {}", path.display()))),
        }
    }
}
