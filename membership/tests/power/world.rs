//! A small world for these tests: virtual time, seeded randomness, and disks that lose what was not synced.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use shoal_kernel::env::*;
use tokio::time::Instant;

/// What the nodes did, as one number: equal for equal runs.
#[derive(Default)]
pub struct Trace(AtomicU64);

impl Trace {
    pub fn note(&self, text: &str) {
        let mixed = text.bytes().fold(self.0.load(Ordering::Relaxed), |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(5)
        });
        self.0.store(mixed, Ordering::Relaxed);
    }

    pub fn hash(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

pub struct Virtual {
    pub node: u32,
    pub start: Instant,
    pub disk: Arc<MemoryDisk>,
    pub trace: Arc<Trace>,
    pub rng: Mutex<Rng>,
}

#[allow(clippy::disallowed_methods, reason = "this is the world")]
impl World for Virtual {
    fn wall_micros(&self) -> u64 {
        1_700_000_000_000_000 + u64::try_from(self.monotonic().as_micros()).unwrap()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }

    fn seed(&self, _stream: &'static str) -> u64 {
        self.rng.lock().unwrap().random()
    }

    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) -> TaskHandle {
        TaskHandle::new(tokio::spawn(task))
    }

    fn blocking(&self, job: BlockingJob) -> BoxFuture<'static, Result<Box<dyn Any + Send>, BlockingLost>> {
        let delay = Duration::from_micros(self.rng.lock().unwrap().random_range(100..5_000));
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            Ok(job())
        })
    }

    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    fn network(&self) -> Arc<dyn Network> {
        unreachable!("the agreement opens no connection")
    }

    fn trace(&self, what: &dyn Fn() -> String) {
        self.trace.note(&format!("{:?} {} {}", self.monotonic(), self.node, what()));
    }
}

#[derive(Default)]
struct Content {
    live: Vec<u8>,
    synced: Vec<u8>,
    /// What a failed sync left in memory only, and the operating system believes clean.
    forgotten: Range<usize>,
}

type Entries = BTreeMap<PathBuf, Arc<Mutex<Content>>>;

/// A disk in memory. Its fuse counts operations; when it is burnt, the disk does nothing any more.
pub struct MemoryDisk {
    live: Mutex<Entries>,
    synced: Mutex<Entries>,
    fuse: Arc<Fuse>,
    lies: bool,
}

pub struct Fuse {
    left: AtomicI64,
    error: io::ErrorKind,
}

impl Fuse {
    /// True if the operation can be done whole.
    fn spend(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) > 0 { Ok(()) } else { Err(self.error.into()) }
    }

    pub fn burnt(&self) -> bool {
        self.left.load(Ordering::Relaxed) < 0
    }
}

impl MemoryDisk {
    pub fn new(operations: i64, error: io::ErrorKind) -> Self {
        let fuse = Arc::new(Fuse { left: AtomicI64::new(operations), error });
        Self { live: Mutex::default(), synced: Mutex::default(), fuse, lies: false }
    }

    /// A disk that says it has synced a file, and has not.
    pub fn lying(self) -> Self {
        Self { lies: true, ..self }
    }

    pub fn fuse(&self) -> &Fuse {
        &self.fuse
    }

    /// The disk as the next process finds it, which meets no error: what is in memory is there to read.
    pub fn after_restart(&self) -> Self {
        let disk = Self::new(i64::MAX, io::ErrorKind::Other);
        disk.live.lock().unwrap().clone_from(&self.live.lock().unwrap());
        disk.synced.lock().unwrap().clone_from(&self.synced.lock().unwrap());
        disk
    }

    /// The disk after a power loss: entries and bytes that were synced, and any part of what was appended after.
    pub fn after_power_loss(&self, seed: u64) -> Self {
        let mut rng = Rng::seed_from_u64(seed);
        let disk = Self::new(i64::MAX, io::ErrorKind::Other);
        for (path, content) in self.synced.lock().unwrap().iter() {
            let content = content.lock().unwrap();
            let mut kept = content.synced.clone();
            if content.live.starts_with(&kept) {
                let more = rng.random_range(0..=content.live.len() - kept.len());
                kept = content.live[..kept.len() + more].to_vec();
            }
            let content = Arc::new(Mutex::new(Content { live: kept.clone(), synced: kept, forgotten: 0..0 }));
            disk.live.lock().unwrap().insert(path.clone(), content.clone());
            disk.synced.lock().unwrap().insert(path.clone(), content);
        }
        disk
    }
}

struct MemoryFile {
    content: Arc<Mutex<Content>>,
    fuse: Arc<Fuse>,
    lies: bool,
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        let names = self.live.lock().unwrap();
        let inside = names.keys().filter(|file| file.parent() == Some(path));
        Ok(inside
            .map(|file| DiskEntry { name: file.file_name().unwrap().to_str().unwrap().into(), is_dir: false })
            .collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.live.lock().unwrap().contains_key(path))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut entries = self.live.lock().unwrap();
        let content = match (entries.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(content), _) => content.clone(),
            (None, OpenMode::CreateNew) => {
                self.fuse.spend()?;
                entries.entry(path.to_path_buf()).or_default().clone()
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(MemoryFile { content, fuse: self.fuse.clone(), lies: self.lies }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fuse.spend()?;
        let mut entries = self.live.lock().unwrap();
        let content = entries.remove(from).ok_or(io::ErrorKind::NotFound)?;
        entries.insert(to.to_path_buf(), content);
        Ok(())
    }

    fn hard_link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.fuse.spend()?;
        self.live.lock().unwrap().remove(path).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn remove_dir_all(&self, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.fuse.spend()?;
        let live = self.live.lock().unwrap();
        let mut synced = self.synced.lock().unwrap();
        synced.retain(|file, _| file.parent() != Some(path));
        let inside = live.iter().filter(|(file, _)| file.parent() == Some(path));
        synced.extend(inside.map(|(file, content)| (file.clone(), content.clone())));
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn DiskLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl DiskFile for MemoryFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.content.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let bytes = content.live.get(start..start + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // The write that burns the fuse gets half way.
        let whole = self.fuse.spend();
        let bytes = if whole.is_ok() {
            bytes
        } else if self.fuse.left.load(Ordering::Relaxed) == -1 {
            &bytes[..bytes.len() / 2]
        } else {
            &[]
        };
        let mut content = self.content.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        if content.live.len() < start + bytes.len() {
            content.live.resize(start + bytes.len(), 0);
        }
        content.live[start..start + bytes.len()].copy_from_slice(bytes);
        whole
    }

    fn sync(&self) -> io::Result<()> {
        let mut content = self.content.lock().unwrap();
        if let Err(error) = self.fuse.spend() {
            content.forgotten = content.synced.len()..content.live.len();
            return Err(error);
        }
        if !self.lies {
            content.synced = content.live.clone();
            let forgotten = content.forgotten.clone();
            content.synced[forgotten].fill(0);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.fuse.spend()?;
        self.content.lock().unwrap().live.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }
}
