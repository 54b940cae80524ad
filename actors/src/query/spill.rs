//! Where tasks put what memory does not hold: sorts and aggregations go on with files in place of failing.
//!
//! The files are of this life of the node alone: nothing is synced, and whatever an earlier life has left is removed at the start. What is
//! read back is checked all the same: DataFusion takes the bytes for its own and looks at none of them twice. The checksums are kept
//! in memory, beside the file's handle, so that a file cannot vouch for itself.
//!
//! Bytes are counted for the node as a whole and bounded; a query that needs more fails with [`ErrorCode::OutOfMemory`], as it does without
//! any room. Twice the disk's reserve is left alone: writes, which stop at the reserve, come first.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::spill_file::{SpillFile, SpillWriter, TempFileFactory};
use futures::Stream;
use futures::stream::try_unfold;
use shoal_kernel::env::{DiskFile, OpenMode};
use shoal_kernel::{Env, Error, ErrorCode, Rare, Result};

use super::{locked, to_datafusion};

/// Of a node's data directory.
pub(crate) const SPILL_DIR: &str = "spill";
/// Bytes that are written, checked and read at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Bytes of all files after which the disk is asked again how much is free.
const LOOK_EVERY_BYTES: u64 = 16 << 20;

/// What queries may put on a node's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpillLimits {
    /// The node's data directory.
    pub data_dir: PathBuf,
    /// Bytes of all queries together; 0 is nothing.
    pub bytes_max: u64,
    /// Bytes of the disk at which writes stop; twice as many are left free.
    pub reserve_bytes: u64,
}

/// Removes what an earlier life of the node has left. Blocks.
///
/// # Errors
/// As the disk reports.
pub(crate) fn clean(env: &Env, data_dir: &Path) -> Result<()> {
    let (disk, dir) = (env.disk(), data_dir.join(SPILL_DIR));
    match disk.exists(&dir)? {
        true => Ok(disk.remove_dir_all(&dir)?),
        false => Ok(()),
    }
}

/// A node's room for such files.
pub(crate) struct SpillSpace {
    env: Env,
    dir: PathBuf,
    limits: SpillLimits,
    is_made: AtomicBool,
    used: AtomicU64,
    /// Bytes since the disk was asked last.
    unlooked: AtomicU64,
    next: AtomicU64,
}

impl SpillSpace {
    pub(crate) fn new(env: &Env, limits: SpillLimits) -> Arc<Self> {
        let dir = limits.data_dir.join(SPILL_DIR);
        let is_made = AtomicBool::new(false);
        let [used, unlooked, next] = [const { AtomicU64::new(0) }; 3];
        Arc::new(Self { env: env.clone(), dir, limits, is_made, used, unlooked, next })
    }

    /// Bytes on disk.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> Result<()> {
        let most = self.limits.bytes_max;
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|after| *after <= most)
        });
        match taken {
            Ok(used) => {
                metrics::gauge!("shoal_spill_bytes").set((used + bytes) as f64);
                metrics::counter!("shoal_spilled_bytes_total").increment(bytes);
                Ok(())
            }
            Err(used) => Err(Error::new(
                ErrorCode::OutOfMemory,
                format!(
                    "queries have {used} bytes on disk that memory does not hold, and may have {most} (spill_bytes_max)"
                ),
            )
            .with_help("read fewer rows or columns at once, or raise query_memory_bytes_max or spill_bytes_max")),
        }
    }

    fn give_back(&self, bytes: u64) {
        let used = self.used.fetch_sub(bytes, Ordering::Relaxed).saturating_sub(bytes);
        metrics::gauge!("shoal_spill_bytes").set(used as f64);
    }

    /// Fails if the disk is about as full as it may become.
    fn check_free(&self) -> Result<()> {
        let free = self.env.disk().free_bytes(&self.limits.data_dir)?;
        if free >= self.limits.reserve_bytes.saturating_mul(2).saturating_add(LOOK_EVERY_BYTES) {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::OutOfMemory,
            format!(
                "the query needs more memory than there is, and the disk has {free} bytes free, too few to go on there"
            ),
        )
        .with_help("free some disk, or raise query_memory_bytes_max"))
    }

    fn create(self: &Arc<Self>, spilled: &Arc<AtomicU64>) -> Result<SpilledFile> {
        let disk = self.env.disk();
        if !self.is_made.load(Ordering::Relaxed) {
            disk.create_dir_all(&self.dir)?;
            self.is_made.store(true, Ordering::Relaxed);
        }
        self.check_free()?;
        let path = self.dir.join(format!("{:016x}", self.next.fetch_add(1, Ordering::Relaxed)));
        let file = disk.open(&path, OpenMode::CreateNew).map_err(out_of_room)?;
        self.env.reached(Rare::Spilled);
        let written = Mutex::new(Written::default());
        Ok(SpilledFile { space: Arc::clone(self), spilled: Arc::clone(spilled), path, file, written })
    }
}

/// A disk that is full is memory that there is not.
fn out_of_room(error: io::Error) -> Error {
    match Error::from(error) {
        full if full.code() == ErrorCode::DiskFull => Error::new(ErrorCode::OutOfMemory, full.message()),
        other => other,
    }
}

/// Makes the files of one attempt of a query.
pub(crate) struct SpillFiles {
    space: Arc<SpillSpace>,
    spilled: Arc<AtomicU64>,
}

impl SpillFiles {
    /// `spilled` counts the bytes.
    pub(crate) fn new(space: Arc<SpillSpace>, spilled: Arc<AtomicU64>) -> Self {
        Self { space, spilled }
    }
}

impl TempFileFactory for SpillFiles {
    fn create_temp_file(&self, _: &str) -> DataFusionResult<Arc<dyn SpillFile>> {
        let file = self.space.create(&self.spilled).map_err(to_datafusion)?;
        Ok(Arc::new(Shared(Arc::new(file))))
    }
}

/// A file; it goes when nobody holds it any more.
struct SpilledFile {
    space: Arc<SpillSpace>,
    spilled: Arc<AtomicU64>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    bytes: u64,
    chunks: Vec<Chunk>,
}

#[derive(Clone, Copy)]
struct Chunk {
    offset: u64,
    bytes: usize,
    checksum: u32,
}

impl SpilledFile {
    fn append(&self, bytes: &[u8]) -> Result<()> {
        let unlooked = &self.space.unlooked;
        if unlooked.fetch_add(bytes.len() as u64, Ordering::Relaxed) >= LOOK_EVERY_BYTES {
            unlooked.store(0, Ordering::Relaxed);
            self.space.check_free()?;
        }
        self.space.take(bytes.len() as u64)?;
        // There is one writer: nobody else moves the end.
        let offset = locked(&self.written).bytes;
        if let Err(error) = self.file.write_all_at(bytes, offset) {
            self.space.give_back(bytes.len() as u64);
            return Err(out_of_room(error).context("what memory does not hold could not be written"));
        }
        let mut written = locked(&self.written);
        written.chunks.push(Chunk { offset, bytes: bytes.len(), checksum: crc32fast::hash(bytes) });
        written.bytes += bytes.len() as u64;
        drop(written);
        self.spilled.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl Chunk {
    fn read(self, file: &dyn DiskFile, path: &Path) -> Result<Bytes> {
        let mut bytes = vec![0; self.bytes];
        file.read_exact_at(&mut bytes, self.offset)?;
        if crc32fast::hash(&bytes) != self.checksum {
            let message = format!("{} bytes at {} of {}", self.bytes, self.offset, path.display());
            return Err(Error::new(ErrorCode::Io, format!("{message} are not those that a query had written there")));
        }
        Ok(bytes.into())
    }
}

impl Drop for SpilledFile {
    fn drop(&mut self) {
        let (space, path) = (Arc::clone(&self.space), std::mem::take(&mut self.path));
        let bytes = locked(&self.written).bytes;
        self.space.env.spawn("spill.remove", async move {
            let disk = space.env.disk();
            let removed = space.env.blocking(move || disk.remove_file(&path)).await;
            if let Err(error) = removed.map_err(Error::from).and_then(|removed| removed.map_err(Error::from)) {
                tracing::warn!(%error, "a file of a query that has ended could not be removed; it goes at the next start");
            }
            space.give_back(bytes);
        });
    }
}

/// The file as DataFusion holds it.
struct Shared(Arc<SpilledFile>);

impl SpillFile for Shared {
    fn size(&self) -> Option<u64> {
        Some(locked(&self.0.written).bytes)
    }

    fn read_stream(&self) -> DataFusionResult<Pin<Box<dyn Stream<Item = DataFusionResult<Bytes>> + Send>>> {
        let stream = try_unfold((Arc::clone(&self.0), 0), |(file, next)| async move {
            let Some(chunk) = locked(&file.written).chunks.get(next).copied() else { return Ok(None) };
            // Not the whole: who lets go of it last has a task remove the file, and none begins on a thread of blocking jobs.
            let (env, reader, path) = (file.space.env.clone(), Arc::clone(&file.file), file.path.clone());
            let read = env.blocking(move || chunk.read(reader.as_ref(), &path)).await;
            let read = read.map_err(Error::from).and_then(|read| read);
            Ok(Some((read.map_err(to_datafusion)?, (file, next + 1))))
        });
        Ok(Box::pin(stream))
    }

    fn open_writer(&self) -> DataFusionResult<Box<dyn SpillWriter>> {
        Ok(Box::new(Writer { file: Arc::clone(&self.0), pending: Vec::with_capacity(CHUNK_BYTES) }))
    }
}

struct Writer {
    file: Arc<SpilledFile>,
    pending: Vec<u8>,
}

impl Writer {
    fn put_out(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.file.append(&self.pending).map_err(io::Error::other)?;
            self.pending.clear();
        }
        Ok(())
    }
}

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.pending.len());
        self.pending.extend_from_slice(&bytes[..taken]);
        if self.pending.len() == CHUNK_BYTES {
            self.put_out()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.put_out()
    }
}

impl SpillWriter for Writer {
    fn finish(&mut self) -> DataFusionResult<()> {
        self.put_out().map_err(DataFusionError::IoError)
    }
}
