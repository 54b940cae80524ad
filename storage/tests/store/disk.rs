//! A disk in memory that keeps its promises and not a byte more: what was not synced is lost, or torn, when power goes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use shoal_kernel::env::{Disk, DiskEntry, DiskFile, DiskLock, OpenMode};

#[derive(Default, Clone)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Default)]
struct World {
    directories: BTreeSet<PathBuf>,
    inodes: Vec<Inode>,
    entries: BTreeMap<PathBuf, usize>,
    durable_entries: BTreeMap<PathBuf, usize>,
    /// Directories that were renamed, until the one that they are in is synced.
    moved: Vec<(PathBuf, PathBuf)>,
    operations: u64,
    power_cut_at: Option<u64>,
    failing_syncs: bool,
    capacity_bytes: Option<u64>,
    reads: u64,
}

/// What a disk loses at once, when it loses some.
const BLOCK_BYTES: usize = 128;

/// What happens to bytes and entries that were not synced when power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of them are lost.
    Everything,
    /// Of each file a part of what was written stays, of the entries some; with an odd seed, the rest of what was written
    /// reads as zeros.
    Torn(u64),
    /// Of what was written, some blocks stay and others do not, in no order; directories are as they were last.
    Scattered(u64),
    /// Nothing: only the process died.
    Nothing,
}

/// Cheap to clone; all clones are one disk.
#[derive(Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<World>>);

impl MemoryDisk {
    pub fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// Every operation from that one on fails, and has no effect.
    pub fn cut_power_at(&self, operation: u64) {
        self.0.lock().unwrap().power_cut_at = Some(operation);
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.0.lock().unwrap().operations
    }

    /// The same as [`Self::cut_power_at`], counted from now on.
    pub fn cut_power_after(&self, operations: u64) {
        let mut world = self.0.lock().unwrap();
        world.power_cut_at = Some(world.operations + operations);
    }

    pub fn fail_syncs(&self, failing: bool) {
        self.0.lock().unwrap().failing_syncs = failing;
    }

    pub fn limit(&self, capacity_bytes: Option<u64>) {
        self.0.lock().unwrap().capacity_bytes = capacity_bytes;
    }

    pub fn used_bytes(&self) -> u64 {
        self.0.lock().unwrap().used()
    }

    pub fn reads(&self) -> u64 {
        self.0.lock().unwrap().reads
    }

    /// Names of all files.
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.lock().unwrap().entries.keys().cloned().collect()
    }

    /// Changes bytes behind everybody's back.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.0.lock().unwrap();
        let inode = world.entries[path];
        let mut bytes = world.inodes[inode].now.clone();
        change(&mut bytes);
        world.inodes[inode] = Inode { now: bytes.clone(), durable: bytes };
    }

    /// All files with their content.
    pub fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.files().into_iter().map(|path| (path.clone(), self.bytes(&path))).collect()
    }

    pub fn bytes(&self, path: &Path) -> Vec<u8> {
        let world = self.0.lock().unwrap();
        world.inodes[world.entries[path]].now.clone()
    }

    /// The disk after the machine was started again. The old one is dead.
    pub fn restart(&self, loss: Loss) -> Self {
        let world = self.0.lock().unwrap();
        let mut seed = match loss {
            Loss::Torn(seed) | Loss::Scattered(seed) => seed,
            _ => 0,
        };
        // A file may have grown before its bytes were written.
        let zero_filled = seed % 2 == 1;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if below == 0 { 0 } else { (seed >> 33) as usize % below }
        };
        let mut entries = match loss {
            Loss::Nothing | Loss::Scattered(_) => world.entries.clone(),
            Loss::Everything | Loss::Torn(_) => world.durable_entries.clone(),
        };
        if matches!(loss, Loss::Torn(_)) {
            let in_place = |path: &Path| !world.moved.iter().any(|(_, to)| path.starts_with(to));
            for (path, inode) in world.entries.iter().filter(|(path, _)| in_place(path)) {
                if random(2) == 0 {
                    entries.insert(path.clone(), *inode);
                }
            }
            // A directory is under the one name or under the other, as a whole.
            for (from, to) in &world.moved {
                if random(2) == 0 {
                    move_all(&mut entries, from, to);
                }
            }
        }
        let survive = |inode: &Inode| -> Vec<u8> {
            match loss {
                Loss::Nothing => inode.now.clone(),
                Loss::Everything => inode.durable.clone(),
                Loss::Scattered(_) => {
                    let mut bytes = inode.now.clone();
                    for (number, block) in bytes.chunks_mut(BLOCK_BYTES).enumerate() {
                        if random(2) == 0 {
                            let old = inode.durable.get(number * BLOCK_BYTES..).unwrap_or_default();
                            let old = old.iter().copied().chain(std::iter::repeat(0));
                            block.iter_mut().zip(old).for_each(|(byte, old)| *byte = old);
                        }
                    }
                    bytes
                }
                Loss::Torn(_) => {
                    let same = inode.now.iter().zip(&inode.durable).take_while(|(a, b)| a == b).count();
                    let kept = same + random(inode.now.len() - same + 1);
                    let mut bytes = inode.durable.clone();
                    if bytes.len() < kept {
                        bytes.resize(kept, 0);
                    }
                    bytes[same..kept].copy_from_slice(&inode.now[same..kept]);
                    if zero_filled && bytes.len() < inode.now.len() {
                        bytes.resize(inode.now.len(), 0);
                    }
                    bytes
                }
            }
        };
        let mut survive = survive;
        let inodes = world.inodes.iter().map(&mut survive).map(|bytes| Inode { now: bytes.clone(), durable: bytes });
        let inodes = inodes.collect();
        // One that was renamed may have its old name again.
        let named = entries.keys().filter_map(|path| path.parent()).map(Path::to_owned);
        Self(Arc::new(Mutex::new(World {
            directories: world.directories.iter().cloned().chain(named).collect(),
            inodes,
            durable_entries: entries.clone(),
            entries,
            ..World::default()
        })))
    }

    fn run<T>(&self, work: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.0.lock().unwrap();
        world.operations += 1;
        if world.power_cut_at.is_some_and(|at| world.operations >= at) {
            return Err(io::Error::other("power is off"));
        }
        work(&mut world)
    }
}

/// Gives everything in a directory another directory, in the place of what was there.
fn move_all(entries: &mut BTreeMap<PathBuf, usize>, from: &Path, to: &Path) {
    entries.retain(|path, _| !path.starts_with(to));
    let moved: Vec<(PathBuf, usize)> = entries.extract_if(.., |path, _| path.starts_with(from)).collect();
    entries.extend(moved.into_iter().map(|(path, inode)| (to.join(path.strip_prefix(from).unwrap()), inode)));
}

impl World {
    fn used(&self) -> u64 {
        let named: BTreeSet<usize> = self.entries.values().copied().collect();
        named.into_iter().map(|inode| self.inodes[inode].now.len() as u64).sum()
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        self.entries.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.run(|world| {
            world.directories.extend(path.ancestors().map(Path::to_owned));
            Ok(())
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DiskEntry>> {
        self.run(|world| {
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            let inside = world.entries.keys().filter(|file| file.parent() == Some(path));
            Ok(inside.map(|file| DiskEntry { name: name(file), is_dir: false }).collect())
        })
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.run(|world| Ok(world.entries.contains_key(path) || world.directories.contains(path)))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.run(|world| match mode {
            OpenMode::CreateNew if world.entries.contains_key(path) => Err(io::ErrorKind::AlreadyExists.into()),
            OpenMode::CreateNew => {
                world.inodes.push(Inode::default());
                let inode = world.inodes.len() - 1;
                world.entries.insert(path.to_owned(), inode);
                Ok(inode)
            }
            OpenMode::Read | OpenMode::ReadWrite => world.inode(path),
        })?;
        Ok(Arc::new(MemoryFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(|world| {
            if world.directories.contains(from) {
                if world.entries.keys().any(|path| path.starts_with(to)) {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                world.directories.remove(from);
                world.directories.insert(to.to_owned());
                move_all(&mut world.entries, from, to);
                world.moved.push((from.to_owned(), to.to_owned()));
                return Ok(());
            }
            let inode = world.inode(from)?;
            world.entries.remove(from);
            world.entries.insert(to.to_owned(), inode);
            Ok(())
        })
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(|world| {
            let inode = world.inode(from)?;
            if world.entries.contains_key(to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            world.entries.insert(to.to_owned(), inode);
            Ok(())
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.run(|world| {
            world.inode(path)?;
            world.entries.remove(path);
            Ok(())
        })
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.run(|world| {
            world.entries.retain(|file, _| !file.starts_with(path));
            Ok(())
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.run(|world| {
            for (from, to) in world.moved.extract_if(.., |(_, to)| to.parent() == Some(path)) {
                move_all(&mut world.durable_entries, &from, &to);
            }
            world.durable_entries.retain(|file, _| file.parent() != Some(path));
            let inside = world.entries.iter().filter(|(file, _)| file.parent() == Some(path));
            world.durable_entries.extend(inside.map(|(file, inode)| (file.clone(), *inode)));
            Ok(())
        })
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        self.run(|world| Ok(world.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(world.used()))))
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn DiskLock>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    inode: usize,
}

impl DiskFile for MemoryFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.run(|world| {
            world.reads += 1;
            let bytes = world.inodes[self.inode].now.get(offset as usize..offset as usize + buffer.len());
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.run(|world| {
            let room = world.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(world.used()));
            let file = &mut world.inodes[self.inode].now;
            let (start, end) = (offset as usize, offset as usize + bytes.len());
            let growth = end.saturating_sub(file.len()) as u64;
            // A full disk takes what fits, as real ones do.
            let end = if growth > room { end - (growth - room) as usize } else { end };
            if file.len() < end {
                file.resize(end, 0);
            }
            file[start..end].copy_from_slice(&bytes[..end - start]);
            if growth > room { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.run(|world| {
            if world.failing_syncs {
                return Err(io::Error::other("the device reports an error"));
            }
            let inode = &mut world.inodes[self.inode];
            inode.durable = inode.now.clone();
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.run(|world| Ok(world.inodes[self.inode].now.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.run(|world| {
            world.inodes[self.inode].now.resize(len as usize, 0);
            Ok(())
        })
    }
}
