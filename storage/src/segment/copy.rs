//! A segment's file as bytes, for who copies it elsewhere.

use std::path::Path;
use std::sync::Arc;

use shoal_kernel::env::{DiskFile, OpenMode};
use shoal_kernel::{Error, ErrorCode, Result, SegmentId};
use xxhash_rust::xxh3::xxh3_128;

use super::format::{Extent, Footer, HEADER_BYTES, TRAILER_BYTES, check_header, parse_footer, parse_trailer};
use super::{Segment, segment_file};
use crate::damage::{corrupt, damaged};

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
    fn new(segment: SegmentId, file: Arc<dyn DiskFile>, bytes: u64, footer: &Footer, start: u64) -> Result<Self> {
        let mut extents: Vec<Extent> = footer.extents().copied().filter(|extent| extent.bytes > 0).collect();
        extents.sort_unstable_by_key(|extent| (extent.offset, extent.bytes));
        extents.dedup();
        let place = |error| damaged(error, segment_file(segment), None);
        let mut end = vec![0; usize::try_from(bytes - start).map_err(|_| place(corrupt("the footer is too long")))?];
        file.read_exact_at(&mut end, start)?;
        // Who opened the segment has read these long ago, and what the disk says now is copied.
        check_ends(&*file, &end).map_err(place)?;
        // Every other byte of the file is part of something whose checksum stands in the footer: so it says which file this is.
        let name = format!("{:032x}-{bytes}", xxh3_128(&end));
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
            footer_bytes: end,
            name,
        })
    }

    /// Reads a copy of which only its name is known.
    ///
    /// # Errors
    /// As of [`Segment::open`].
    pub(crate) fn of_copy(disk: &Arc<dyn shoal_kernel::env::Disk>, path: &Path, segment: SegmentId) -> Result<Self> {
        let read = || {
            let file = disk.open(path, OpenMode::Read)?;
            let bytes = file.len()?;
            if bytes < HEADER_BYTES + TRAILER_BYTES {
                return Err(corrupt("the file is too short"));
            }
            let trailer_start = bytes - TRAILER_BYTES;
            let mut trailer = [0; TRAILER_BYTES as usize];
            file.read_exact_at(&mut trailer, trailer_start)?;
            let (length, crc) = parse_trailer(&trailer)?;
            let start = trailer_start.checked_sub(u64::from(length)).filter(|&start| start >= HEADER_BYTES);
            let start = start.ok_or_else(|| corrupt("the footer is longer than the file"))?;
            let mut footer = vec![0; length as usize];
            file.read_exact_at(&mut footer, start)?;
            let footer = parse_footer(&footer, crc, start)?;
            Self::new(segment, file, bytes, &footer, start)
        };
        read().map_err(|error: Error| damaged(error, segment_file(segment), None))
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

/// Checks the header of a file, and its footer with the trailer.
fn check_ends(file: &dyn DiskFile, end: &[u8]) -> Result<()> {
    let mut header = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut header, 0)?;
    check_header(&header)?;
    let Some((footer, trailer)) = end.split_last_chunk() else { return Err(corrupt("the file is too short")) };
    let (length, crc) = parse_trailer(trailer)?;
    match usize::try_from(length).is_ok_and(|length| length == footer.len()) && crc32fast::hash(footer) == crc {
        true => Ok(()),
        false => Err(corrupt("the checksum of the footer is wrong")),
    }
}

impl Segment {
    /// Reads the file as bytes.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if its ends are not those that were written; else as the disk reports.
    pub(crate) fn reader(&self) -> Result<SegmentReader> {
        SegmentReader::new(self.id, self.file.clone(), self.bytes, &self.footer, self.footer_start)
    }
}
