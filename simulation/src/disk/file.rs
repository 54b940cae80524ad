//! A file: its present content, and what the platter holds where that differs.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::random::Stream;

/// What a disk writes at once.
const BLOCK_BYTES: usize = 4096;
/// What it writes even when the power goes in the middle of a block.
const SECTOR_BYTES: usize = 512;

/// A block that was written since the last sync.
struct Unsynced {
    /// What the platter holds; shorter than a block at the end of the file.
    platter: Vec<u8>,
    /// A sync of it failed: later syncs pass it by, because the operating system believes it clean.
    forgotten: bool,
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    /// By number of block.
    unsynced: BTreeMap<usize, Unsynced>,
    platter_len: usize,
}

/// A file, whatever its names.
#[derive(Default)]
pub(super) struct FileNode {
    content: Mutex<Content>,
    /// It has had more than one.
    named_again: AtomicBool,
}

impl FileNode {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It gets another name.
    pub(super) fn name_again(&self) {
        self.named_again.store(true, Ordering::Relaxed);
    }

    /// Whether it may be there still when a name of it is gone.
    pub(super) fn may_have_other_names(&self) -> bool {
        self.named_again.load(Ordering::Relaxed)
    }

    pub(super) fn len(&self) -> u64 {
        self.content().bytes.len() as u64
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let content = self.content();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(buffer.len());
        let bytes = content.bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    /// Writes, and says by how many bytes the file has grown.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> u64 {
        let mut content = self.content();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(bytes.len());
        let before = content.bytes.len();
        content.touch(start.min(before), end);
        if end > before {
            content.bytes.resize(end, 0);
        }
        content.bytes[start..end].copy_from_slice(bytes);
        (content.bytes.len() - before) as u64
    }

    pub(super) fn set_len(&self, len: u64) {
        let mut content = self.content();
        let (len, before) = (usize::try_from(len).unwrap_or(usize::MAX), content.bytes.len());
        content.touch(len.min(before), len.max(before));
        content.bytes.resize(len, 0);
    }

    pub(super) fn sync(&self) {
        let mut content = self.content();
        content.unsynced.retain(|_, block| block.forgotten);
        content.platter_len = content.bytes.len();
    }

    pub(super) fn sync_failed(&self) {
        for block in self.content().unsynced.values_mut() {
            block.forgotten = true;
        }
    }

    /// Flips a bit on the platter and in what is read.
    pub(super) fn flip(&self, bit: u64) {
        let mut content = self.content();
        let (byte, mask) = (usize::try_from(bit / 8).unwrap_or(usize::MAX), 1u8 << (bit % 8));
        if let Some(byte) = content.bytes.get_mut(byte) {
            *byte ^= mask;
        }
        if let Some(block) = content.unsynced.get_mut(&(byte / BLOCK_BYTES))
            && let Some(byte) = block.platter.get_mut(byte % BLOCK_BYTES)
        {
            *byte ^= mask;
        }
    }

    /// The power goes. Says how many blocks were lost, in whole or in part.
    pub(super) fn lose_power(&self, survival: &mut Stream) -> u64 {
        let mut content = self.content();
        let content = &mut *content;
        let mut lost = 0;
        for (number, block) in std::mem::take(&mut content.unsynced) {
            let start = number * BLOCK_BYTES;
            let end = (start + BLOCK_BYTES).min(content.bytes.len());
            // Of three blocks, one is on the platter, one is not, and one is torn.
            let kept = match if block.forgotten { 1 } else { survival.below(3) } {
                0 => continue,
                1 => 0,
                _ => usize::try_from(survival.below((BLOCK_BYTES / SECTOR_BYTES) as u64)).unwrap_or(0) * SECTOR_BYTES,
            };
            for place in (start + kept).min(end)..end {
                content.bytes[place] = block.platter.get(place - start).copied().unwrap_or(0);
            }
            lost += 1;
        }
        let (old, new) = (content.platter_len, content.bytes.len());
        if old != new {
            // The length is the business of the file system, apart from the blocks: old, new, or any growth between.
            let len = match survival.below(3) {
                0 => old,
                1 => new,
                _ => usize::try_from(survival.between(old.min(new) as u64, old.max(new) as u64)).unwrap_or(new),
            };
            content.bytes.resize(len, 0);
            lost += u64::from(len != new);
        }
        content.platter_len = content.bytes.len();
        lost
    }
}

impl Content {
    /// Remembers what the platter holds of the blocks of a range.
    fn touch(&mut self, start: usize, end: usize) {
        if start >= end {
            return;
        }
        for number in start / BLOCK_BYTES..=(end - 1) / BLOCK_BYTES {
            let first = (number * BLOCK_BYTES).min(self.bytes.len());
            let last = (first + BLOCK_BYTES).min(self.bytes.len()).min(self.platter_len).max(first);
            let platter = || self.bytes[first..last].to_vec();
            // Written anew, a forgotten block is dirty again: the next sync may reach it.
            self.unsynced
                .entry(number)
                .and_modify(|block| block.forgotten = false)
                .or_insert_with(|| Unsynced { platter: platter(), forgotten: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(file: &FileNode) -> Vec<u8> {
        let mut bytes = vec![0; file.len() as usize];
        file.read(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn synced_bytes_survive_and_unsynced_ones_may_not() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let file = FileNode::default();
            file.write(&[1; 8192], 0);
            file.sync();
            file.write(&[2; 4096], 4096);
            file.lose_power(&mut Stream::new(seed, "survival", 0));
            let bytes = content(&file);
            assert_eq!(bytes.len(), 8192);
            assert!(bytes[..4096].iter().all(|byte| *byte == 1), "the synced block is touched by nothing");
            match bytes[4096..].iter().filter(|byte| **byte == 2).count() {
                4096 => kept += 1,
                0 => lost += 1,
                _ => torn += 1,
            }
        }
        assert!(kept > 20 && lost > 20 && torn > 20, "{kept} {lost} {torn}");
    }

    #[test]
    fn an_appended_tail_is_cut_anywhere() {
        let lengths: std::collections::BTreeSet<u64> = (0..100)
            .map(|seed| {
                let file = FileNode::default();
                file.write(&[1; 100], 0);
                file.sync();
                file.write(&[2; 1000], 100);
                file.lose_power(&mut Stream::new(seed, "survival", 0));
                assert!(content(&file)[..100].iter().all(|byte| *byte == 1));
                file.len()
            })
            .collect();
        assert!(lengths.contains(&100) && lengths.contains(&1100) && lengths.len() > 10);
    }

    #[test]
    fn a_failed_sync_is_not_repaired_by_the_next_one() {
        let file = FileNode::default();
        file.write(&[1; 4096], 0);
        file.sync();
        file.write(&[2; 4096], 0);
        file.sync_failed();
        file.sync();
        assert!(content(&file).iter().all(|byte| *byte == 2), "until the power goes, the page cache has it");
        file.lose_power(&mut Stream::new(1, "survival", 0));
        assert!(content(&file).iter().all(|byte| *byte == 1));
    }
}
