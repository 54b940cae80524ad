//! The two ends of a segment's file: the header, and the footer with the trailer that finds it.

use shoal_kernel::env::DiskFile;
use shoal_kernel::{Result, SegmentId};

use super::format::{Footer, HEADER_BYTES, TRAILER_BYTES, check_header, parse_footer, parse_trailer};
use super::segment_file;
use crate::damage::{corrupt, damaged};

/// What the ends of a file say.
pub(super) struct Ends {
    /// Length of the file.
    pub(super) bytes: u64,
    /// Version of the format.
    pub(super) format: u32,
    pub(super) footer: Footer,
    /// Where the footer begins.
    pub(super) start: u64,
    /// Everything from there on: the footer, and behind it the trailer.
    pub(super) written: Vec<u8>,
}

/// Reads and checks both ends of a file, of which somebody may know the length.
///
/// # Errors
/// [`Corruption`](shoal_kernel::ErrorCode::Corruption), with its place, if they are not those of a segment; else as the disk reports.
pub(super) fn read_ends(file: &dyn DiskFile, id: SegmentId, expected: Option<u64>) -> Result<Ends> {
    let at = |offset: u64| move |error| damaged(error, segment_file(id), Some(offset));
    let bytes = file.len()?;
    if expected.is_some_and(|expected| bytes != expected) || bytes < HEADER_BYTES + TRAILER_BYTES {
        return Err(corrupt("the file has not the length that it had"));
    }
    let mut header = [0; HEADER_BYTES as usize];
    file.read_exact_at(&mut header, 0)?;
    let format = check_header(&header).map_err(at(0))?;
    let trailer_start = bytes - TRAILER_BYTES;
    let mut trailer = [0; TRAILER_BYTES as usize];
    file.read_exact_at(&mut trailer, trailer_start)?;
    let (length, crc) = parse_trailer(&trailer).map_err(at(trailer_start))?;
    let start = trailer_start.checked_sub(u64::from(length)).filter(|&start| start >= HEADER_BYTES);
    let start = start.ok_or_else(|| corrupt("the footer is longer than the file")).map_err(at(trailer_start))?;
    let mut written = vec![0; length as usize];
    file.read_exact_at(&mut written, start)?;
    let footer = parse_footer(&written, crc, start).map_err(at(start))?;
    written.extend_from_slice(&trailer);
    Ok(Ends { bytes, format, footer, start, written })
}
