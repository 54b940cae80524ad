//! Files, as storage needs them: blocking calls that are made on threads for blocking work ([`super::Env::blocking`]).

use std::io;
use std::path::Path;
use std::sync::Arc;

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskEntry {
    /// Its name, without the directory.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It exists; reading only.
    Read,
    /// It exists; reading and writing.
    ReadWrite,
    /// It does not exist yet; reading and writing. The entry is durable only after [`Disk::sync_dir`] of its directory.
    CreateNew,
}

/// A disk. Durability is explicit and nothing is implied: bytes are safe after [`DiskFile::sync`], and a created, linked,
/// renamed or removed entry is safe after [`Disk::sync_dir`] of its directory.
pub trait Disk: Send + Sync {
    /// Makes a directory and its parents; one that exists is fine. Each new level is synced into its parent.
    ///
    /// # Errors
    /// As the operating system reports.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Entries of a directory, sorted by name.
    ///
    /// # Errors
    /// As the operating system reports.
    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>>;

    /// Whether a file or directory of that name exists.
    ///
    /// # Errors
    /// As the operating system reports.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Opens a file.
    ///
    /// # Errors
    /// As the operating system reports; `AlreadyExists` for [`OpenMode::CreateNew`].
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames within a file system, replacing the target atomically.
    ///
    /// # Errors
    /// As the operating system reports.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file a second name on the same file system; the bytes stay until the last name is removed. The new entry is
    /// durable only after [`Disk::sync_dir`] of its directory.
    ///
    /// # Errors
    /// As the operating system reports; `AlreadyExists` if there is something of that name.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// As the operating system reports.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory with everything in it.
    ///
    /// # Errors
    /// As the operating system reports.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// As the operating system reports.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Bytes that can still be written below that path.
    ///
    /// # Errors
    /// As the operating system reports.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;

    /// Takes an exclusive lock on a file (created if need be) until the guard is dropped or the process dies.
    ///
    /// # Errors
    /// `WouldBlock` if another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>>;
}

/// A held lock; dropping it releases.
pub trait DiskLock: Send + Sync {}

/// An open file. All reads and writes say where; there is no cursor.
pub trait DiskFile: Send + Sync {
    /// Fills the buffer from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file is shorter; else as the operating system reports.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all bytes at `offset`, growing the file if need be.
    ///
    /// # Errors
    /// As the operating system reports. Part of the bytes may have been written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes content and length durable. After an error the content is in doubt, whatever a later call says: the caller
    /// must treat the file as after a crash.
    ///
    /// # Errors
    /// As the operating system reports.
    fn sync(&self) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// As the operating system reports.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or extends (with zeros) to a length.
    ///
    /// # Errors
    /// As the operating system reports.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As the operating system reports.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Reads a whole file.
///
/// # Errors
/// As the operating system reports.
pub(crate) fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Extension of what is to become a file's content ([`replace`](trait.Disk.html#method.replace)).
pub const REPLACEMENT: &str = "new";

impl dyn Disk {
    /// Reads a whole file.
    ///
    /// # Errors
    /// As the operating system reports.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        read_all(&*self.open(path, OpenMode::Read)?)
    }

    /// Replaces a file so that after a crash either the old or the new content is there, whole: write beside it, sync,
    /// rename, sync the directory.
    ///
    /// # Errors
    /// As the operating system reports; the old content stands, unless the very last step failed, when either may.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.write_beside(path, bytes)?;
        self.put_in_place(path)
    }

    /// Writes the next content of a file beside it, synced.
    ///
    /// # Errors
    /// As the operating system reports; the old content stands, and what was written is removed if it can be: the disk may be full.
    pub fn write_beside(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let beside = path.with_extension(REPLACEMENT);
        if self.exists(&beside)? {
            self.remove_file(&beside)?;
        }
        let file = self.open(&beside, OpenMode::CreateNew)?;
        let written = file.write_all_at(bytes, 0).and_then(|()| file.sync());
        drop(file);
        if written.is_err() {
            let _ = self.remove_file(&beside);
        }
        written
    }

    /// Puts what `write_beside` has written in the place of the old content.
    ///
    /// # Errors
    /// As the operating system reports; old or new content may be there.
    pub fn put_in_place(&self, path: &Path) -> io::Result<()> {
        self.rename(&path.with_extension(REPLACEMENT), path)?;
        match path.parent() {
            Some(dir) => self.sync_dir(dir),
            None => Ok(()),
        }
    }
}
