//! A disk that keeps its word and no more: what was not synced may be gone after a loss of power, block by block and entry
//! by entry.
//!
//! Every file has its present content, and for each block written since the last sync what the platter still holds. Every
//! directory has its present entries, those on the platter, and the changes between them. A loss of power draws for each
//! block and each change whether it had reached the platter; a block may have reached it in part.

mod file;
mod tree;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use shoal_kernel::Rare;
use shoal_kernel::env::{Disk, DiskEntry, DiskFile, DiskLock, OpenMode};
use xxhash_rust::xxh3::xxh3_64;

use crate::random::Stream;
use crate::trace::Kind;
use crate::world::{CrashKind, HostId, Shared};
use file::FileNode;
use tree::{Entry, Tree};

/// Bytes of a healthy disk.
const CAPACITY_BYTES: u64 = 64 << 30;
/// What operations take, in microseconds.
const OPEN_MICROS: u64 = 10;
const READ_MICROS: u64 = 5;
const WRITE_MICROS: u64 = 5;
const SYNC_MICROS: (u64, u64) = (150, 1_200);
const BYTES_PER_MICRO: u64 = 1_000;

/// What is wrong with a disk. The default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskFaults {
    /// Reads that fail with EIO, of 1000.
    pub read_error_permille: u64,
    /// Writes that fail with EIO after a part of the bytes, of 1000.
    pub write_error_permille: u64,
    /// Syncs that fail with EIO, of 1000.
    pub sync_error_permille: u64,
    /// Reads that return one flipped bit, of 1000.
    pub flip_permille: u64,
    /// Operations take that many times as long, plus once.
    pub slowdown: u64,
    /// Bytes that fit on it.
    pub capacity_bytes: u64,
}

impl Default for DiskFaults {
    fn default() -> Self {
        Self {
            read_error_permille: 0,
            write_error_permille: 0,
            sync_error_permille: 0,
            flip_permille: 0,
            slowdown: 0,
            capacity_bytes: CAPACITY_BYTES,
        }
    }
}

/// The life of whoever examines the disk of a host that is down.
const EXAMINER: u64 = u64::MAX;

struct State {
    tree: Tree,
    faults: DiskFaults,
    used_bytes: u64,
    cost_micros: u64,
    /// The life whose calls count; 0 while the host is down.
    life: u64,
    locks: BTreeMap<PathBuf, u64>,
    /// Changes of the disk until the host loses its power in the middle of its work.
    crash_after: Option<u64>,
    chances: Stream,
    syncs: Stream,
    survival: Stream,
}

impl State {
    /// What was there has a name less.
    fn lost_name(&mut self, entry: Option<Entry>) {
        match entry {
            Some(Entry::File(file)) if !file.may_have_other_names() => {
                self.used_bytes = self.used_bytes.saturating_sub(file.len());
            }
            Some(_) => self.used_bytes = self.tree.bytes(),
            None => {}
        }
    }
}

/// A host's disk. Outlives the host's crashes.
pub struct SimDisk {
    shared: Arc<Shared>,
    host: HostId,
    state: Mutex<State>,
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl SimDisk {
    pub(crate) fn new(shared: &Arc<Shared>, host: HostId) -> Self {
        let seed = shared.core().seed;
        let stream = |purpose| Stream::new(seed, purpose, u64::from(host.0));
        Self {
            shared: shared.clone(),
            host,
            state: Mutex::new(State {
                tree: Tree::default(),
                faults: DiskFaults::default(),
                used_bytes: 0,
                cost_micros: 0,
                life: 0,
                locks: BTreeMap::new(),
                crash_after: None,
                chances: stream("disk chances"),
                syncs: stream("disk syncs"),
                survival: stream("disk survival"),
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open_life(&self, life: u64) {
        self.state().life = life;
    }

    /// From now on nothing changes: the host goes down.
    pub(crate) fn close_life(&self) {
        let mut state = self.state();
        state.life = 0;
        state.locks.clear();
        state.crash_after = None;
        state.cost_micros = 0;
    }

    /// Decides what has survived.
    pub(crate) fn crash(&self, kind: CrashKind) {
        if kind == CrashKind::Process {
            return;
        }
        let mut state = self.state();
        let state = &mut *state;
        let lost = state.tree.lose_power(&mut state.survival);
        state.used_bytes = state.tree.bytes();
        let (host, files, entries) = (self.host, lost.blocks, lost.changes);
        {
            let mut core = self.shared.core();
            let now_micros = core.now_micros;
            core.power_losses.push((now_micros, host.0));
        }
        if files + entries > 0 {
            self.shared.sometimes(Rare::PowerLossTook);
        }
        self.shared.trace(Kind::Disk, format_args!("{host} lost {files} blocks and {entries} changes of directories"));
    }

    /// Replaces what is wrong with the disk.
    pub fn set_faults(&self, faults: DiskFaults) {
        if std::mem::replace(&mut self.state().faults, faults) == faults {
            return;
        }
        self.shared.trace(Kind::Fault, format_args!("{} has a disk with {faults:?}", self.host));
    }

    /// Leaves that many bytes free.
    pub fn squeeze(&self, free_bytes: u64) {
        let mut state = self.state();
        state.faults.capacity_bytes = state.used_bytes + free_bytes;
        drop(state);
        self.shared.trace(Kind::Fault, format_args!("{} has {free_bytes} B left on its disk", self.host));
    }

    /// The host loses its power right after that many further changes of the disk, in the middle of whatever it does.
    pub fn crash_after(&self, changes: u64) {
        self.state().crash_after = Some(changes.max(1));
        self.shared.trace(Kind::Fault, format_args!("{} will lose power after {changes} disk operations", self.host));
    }

    /// Takes back what [`SimDisk::crash_after`] asked for, if it has not happened.
    pub fn disarm(&self) {
        self.state().crash_after = None;
    }

    /// Replaces the disk by an empty one. For a host that is down.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.tree = Tree::default();
        state.used_bytes = 0;
        drop(state);
        self.shared.trace(Kind::Fault, format_args!("{} has a new, empty disk", self.host));
    }

    /// Flips a bit of what lies on the disk: in one of the files whose path contains `part`, drawn. False if there is none.
    pub fn flip_bit(&self, part: &str) -> bool {
        let mut state = self.state();
        let mut found: Vec<(PathBuf, Arc<FileNode>)> = state.tree.files();
        found.retain(|(path, file)| path.to_string_lossy().contains(part) && file.len() > 0);
        let Some((path, file)) = state.chances.pick(&found).cloned() else { return false };
        let bit = state.chances.below(file.len() * 8);
        file.flip(bit);
        self.shared.trace(Kind::Fault, format_args!("{} has bit {bit} of {} flipped", self.host, path.display()));
        true
    }

    /// The disk in the hands of somebody who examines it, while its host is down.
    pub fn removed(self: &Arc<Self>) -> Arc<dyn Disk> {
        self.open_life(EXAMINER);
        self.of_life(EXAMINER)
    }

    pub(crate) fn take_cost_micros(&self) -> u64 {
        std::mem::take(&mut self.state().cost_micros)
    }

    pub(crate) fn of_life(self: &Arc<Self>, life: u64) -> Arc<dyn Disk> {
        Arc::new(LifeDisk { disk: self.clone(), life })
    }

    fn trace(&self, what: std::fmt::Arguments<'_>) {
        self.shared.trace(Kind::Disk, format_args!("{} {what}", self.host));
    }

    /// Begins an operation: adds what it costs and refuses it if the life is over.
    fn begin(&self, life: u64, micros: u64) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.life != life {
            return Err(eio());
        }
        state.cost_micros += micros * (state.faults.slowdown + 1);
        Ok(state)
    }

    /// Counts a change; the one that uses up the armed count is the last thing that this life does to its disk.
    fn changed(&self, state: &mut State) {
        let Some(left) = &mut state.crash_after else { return };
        *left -= 1;
        if *left == 0 {
            state.crash_after = None;
            state.life = 0;
            self.shared.core().hosts[self.host.index()].doomed = Some(CrashKind::Power);
            self.shared.sometimes(Rare::PowerLostInJob);
        }
    }
}

/// The disk as one life of its host sees it.
struct LifeDisk {
    disk: Arc<SimDisk>,
    life: u64,
}

impl Disk for LifeDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.disk.begin(self.life, OPEN_MICROS)?;
        let made = state.tree.create_dir_all(path)?;
        if made > 0 {
            self.disk.trace(format_args!("mkdir {}", path.display()));
            let sync = state.syncs.between(SYNC_MICROS.0, SYNC_MICROS.1);
            state.cost_micros += made * sync;
            self.disk.changed(&mut state);
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        let state = self.disk.begin(self.life, READ_MICROS)?;
        state.tree.list(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.disk.begin(self.life, READ_MICROS)?.tree.find(path).is_some())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.disk.begin(self.life, OPEN_MICROS)?;
        let file = match (mode, state.tree.find(path)) {
            (OpenMode::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::CreateNew, None) => {
                let file = Arc::new(FileNode::default());
                state.tree.link(path, Entry::File(file.clone()))?;
                self.disk.trace(format_args!("create {}", path.display()));
                self.disk.changed(&mut state);
                file
            }
            (_, Some(Entry::File(file))) => file,
            (_, Some(Entry::Dir(_))) => return Err(io::ErrorKind::IsADirectory.into()),
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(LifeFile { disk: self.disk.clone(), life: self.life, path: path.to_owned(), file, writable }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.disk.begin(self.life, OPEN_MICROS)?;
        let replaced = state.tree.find(to).filter(|_| from != to);
        state.tree.rename(from, to)?;
        state.lost_name(replaced);
        self.disk.trace(format_args!("rename {} to {}", from.display(), to.display()));
        self.disk.changed(&mut state);
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.disk.begin(self.life, OPEN_MICROS)?;
        state.tree.hard_link(from, to)?;
        self.disk.trace(format_args!("link {} as {}", from.display(), to.display()));
        self.disk.changed(&mut state);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.disk.begin(self.life, OPEN_MICROS)?;
        let removed = state.tree.find(path);
        state.tree.remove_file(path)?;
        state.lost_name(removed);
        self.disk.trace(format_args!("remove {}", path.display()));
        self.disk.changed(&mut state);
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.disk.begin(self.life, OPEN_MICROS)?;
        state.tree.remove_dir_all(path)?;
        state.used_bytes = state.tree.bytes();
        self.disk.trace(format_args!("remove all of {}", path.display()));
        self.disk.changed(&mut state);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.disk.begin(self.life, 0)?;
        state.cost_micros += state.syncs.between(SYNC_MICROS.0, SYNC_MICROS.1) * (state.faults.slowdown + 1);
        let failing = state.faults.sync_error_permille;
        if state.chances.chance(failing) {
            self.disk.trace(format_args!("sync of directory {} fails", path.display()));
            return Err(eio());
        }
        state.tree.sync_dir(path)?;
        self.disk.trace(format_args!("sync directory {}", path.display()));
        self.disk.changed(&mut state);
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = self.disk.begin(self.life, READ_MICROS)?;
        Ok(state.faults.capacity_bytes.saturating_sub(state.used_bytes))
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        let mut state = self.disk.begin(self.life, OPEN_MICROS)?;
        if state.locks.contains_key(path) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if state.tree.find(path).is_none() {
            state.tree.link(path, Entry::File(Arc::new(FileNode::default())))?;
        }
        state.locks.insert(path.to_owned(), self.life);
        Ok(Box::new(LifeLock { disk: self.disk.clone(), life: self.life, path: path.to_owned() }))
    }
}

struct LifeLock {
    disk: Arc<SimDisk>,
    life: u64,
    path: PathBuf,
}

impl DiskLock for LifeLock {}

impl Drop for LifeLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.locks.get(&self.path) == Some(&self.life) {
            state.locks.remove(&self.path);
        }
    }
}

struct LifeFile {
    disk: Arc<SimDisk>,
    life: u64,
    path: PathBuf,
    file: Arc<FileNode>,
    writable: bool,
}

impl LifeFile {
    fn writing(&self, micros: u64) -> io::Result<MutexGuard<'_, State>> {
        if self.writable { self.disk.begin(self.life, micros) } else { Err(io::Error::from_raw_os_error(libc::EBADF)) }
    }
}

impl DiskFile for LifeFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.begin(self.life, READ_MICROS + buffer.len() as u64 / BYTES_PER_MICRO)?;
        let faults = state.faults;
        if state.chances.chance(faults.read_error_permille) {
            self.disk.trace(format_args!("read of {} at {offset} fails", self.path.display()));
            return Err(eio());
        }
        self.file.read(buffer, offset)?;
        if state.chances.chance(faults.flip_permille) && !buffer.is_empty() {
            let bit = state.chances.below(buffer.len() as u64 * 8);
            buffer[(bit / 8) as usize] ^= 1 << (bit % 8);
            self.disk.shared.sometimes(Rare::ReadFlipped);
            self.disk.trace(format_args!("read of {} at {offset} has bit {bit} wrong", self.path.display()));
        }
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.writing(WRITE_MICROS + bytes.len() as u64 / BYTES_PER_MICRO)?;
        let path = self.path.display();
        let faults = state.faults;
        let grows = (offset + bytes.len() as u64).saturating_sub(self.file.len());
        if grows > 0 && state.used_bytes + grows > faults.capacity_bytes {
            self.disk.trace(format_args!("write to {path} finds the disk full"));
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if state.chances.chance(faults.write_error_permille) {
            let part = usize::try_from(state.chances.below(bytes.len() as u64 + 1)).unwrap_or(0);
            state.used_bytes += self.file.write(&bytes[..part], offset);
            if part > 0 {
                self.disk.shared.sometimes(Rare::WriteTorn);
            }
            self.disk.trace(format_args!("write to {path} at {offset} fails after {part} B"));
            return Err(eio());
        }
        state.used_bytes += self.file.write(bytes, offset);
        let hash = xxh3_64(bytes);
        self.disk.trace(format_args!("write {path} at {offset} {} B {hash:016x}", bytes.len()));
        self.disk.changed(&mut state);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.begin(self.life, 0)?;
        let path = self.path.display();
        state.cost_micros += state.syncs.between(SYNC_MICROS.0, SYNC_MICROS.1) * (state.faults.slowdown + 1);
        let failing = state.faults.sync_error_permille;
        if state.chances.chance(failing) {
            self.file.sync_failed();
            self.disk.shared.sometimes(Rare::SyncFailed);
            self.disk.trace(format_args!("sync of {path} fails"));
            return Err(eio());
        }
        self.file.sync();
        self.disk.trace(format_args!("sync {path}"));
        self.disk.changed(&mut state);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let _alive = self.disk.begin(self.life, 0)?;
        Ok(self.file.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.writing(WRITE_MICROS)?;
        let before = self.file.len();
        self.file.set_len(len);
        state.used_bytes = (state.used_bytes + len).saturating_sub(before);
        self.disk.trace(format_args!("set length of {} to {len}", self.path.display()));
        self.disk.changed(&mut state);
        Ok(())
    }
}
