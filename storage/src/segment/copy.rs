//! A segment's file as bytes, for who copies it elsewhere.

use std::path::Path;
use std::sync::Arc;

use shoal_kernel::env::{Disk, DiskFile, OpenMode};
use shoal_kernel::{Error, ErrorCode, Result, SegmentId};
use xxhash_rust::xxh3::xxh3_128;

use super::ends::{Ends, read_ends};
use super::format::Extent;
use super::{Segment, segment_file};
use crate::damage::damaged;

/// Reads a segment's file from its beginning to its end, and checks each byte on the way: what is copied is what was written.
pub struct SegmentReader {
    segment: SegmentId,
    file: Arc<dyn DiskFile>,
    bytes: u64,
    offset: u64,
    /// By where they begin.
    extents: Vec<Extent>,
    /// The extent that is being read, and the checksum of what has been read of it.
    place: usize,
    sum: crc32fast::Hasher,
    footer_start: u64,
    /// Everything from there on.
    footer_bytes: Vec<u8>,
    name: String,
}

impl SegmentReader {
    /// What an open segment read of its ends long ago is read again, for what the disk says now is copied.
    fn new(segment: SegmentId, file: Arc<dyn DiskFile>, expected: Option<u64>) -> Result<Self> {
        let ends = read_ends(&*file, segment, expected);
        let Ends { bytes, footer, start, written, .. } =
            ends.map_err(|error| damaged(error, segment_file(segment), None))?;
        let mut extents: Vec<Extent> = footer.extents().copied().filter(|extent| extent.bytes > 0).collect();
        extents.sort_unstable_by_key(|extent| (extent.offset, extent.bytes));
        extents.dedup();
        // Every other byte of the file is part of something whose checksum stands in the footer: so it says which file this is.
        let name = format!("{:032x}-{bytes}", xxh3_128(&written));
        let sum = crc32fast::Hasher::new();
        Ok(Self {
            segment,
            file,
            bytes,
            offset: 0,
            extents,
            place: 0,
            sum,
            footer_start: start,
            footer_bytes: written,
            name,
        })
    }

    /// Reads a copy of which only its name is known.
    ///
    /// # Errors
    /// As of [`Segment::open`].
    pub(crate) fn of_copy(disk: &Arc<dyn Disk>, path: &Path, segment: SegmentId) -> Result<Self> {
        let file = disk.open(path, OpenMode::Read);
        Self::new(segment, file.map_err(|error| damaged(error.into(), segment_file(segment), None))?, None)
    }

    /// What tells this file apart from every other one: equal names, equal bytes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes, at most so many; nothing at the end.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if they are not those that were written; else as the disk reports.
    pub fn read(&mut self, bytes_max: usize) -> Result<Vec<u8>> {
        let length = usize::try_from(self.bytes - self.offset).unwrap_or(usize::MAX).min(bytes_max);
        let mut read = vec![0; length];
        if length == 0 {
            return Ok(read);
        }
        self.file.read_exact_at(&mut read, self.offset)?;
        self.check(&read).map_err(|offset| {
            damaged(
                Error::new(ErrorCode::Corruption, "the checksum is wrong"),
                segment_file(self.segment),
                Some(offset),
            )
        })?;
        self.offset += length as u64;
        Ok(read)
    }

    /// Reads what is left, to check it.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn check_all(&mut self, step_bytes: usize) -> Result<()> {
        while !self.read(step_bytes.max(1))?.is_empty() {}
        Ok(())
    }

    /// Gives the place of what is wrong.
    fn check(&mut self, read: &[u8]) -> Result<(), u64> {
        let (begin, end) = (self.offset, self.offset + read.len() as u64);
        let part = |from: u64, to: u64| &read[(from - begin) as usize..(to - begin) as usize];
        while let Some(extent) = self.extents.get(self.place) {
            let stop = extent.offset + u64::from(extent.bytes);
            if extent.offset >= end {
                break;
            }
            // One that begins within another one would have been passed over.
            if stop <= begin {
                return Err(extent.offset);
            }
            self.sum.update(part(extent.offset.max(begin), stop.min(end)));
            if stop > end {
                break;
            }
            let sum = std::mem::replace(&mut self.sum, crc32fast::Hasher::new()).finalize();
            if sum != extent.crc {
                return Err(extent.offset);
            }
            self.place += 1;
        }
        let from = self.footer_start.max(begin);
        if from < end {
            let at = (from - self.footer_start) as usize;
            let expected = self.footer_bytes.get(at..at + (end - from) as usize);
            if expected != Some(part(from, end)) {
                return Err(self.footer_start);
            }
        }
        Ok(())
    }
}

impl Segment {
    /// Reads the file as bytes.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if its ends are not those that were written; else as the disk reports.
    pub(crate) fn reader(&self) -> Result<SegmentReader> {
        SegmentReader::new(self.id, self.file.clone(), Some(self.bytes))
    }
}
