//! Right checksums for wrong bytes: what a fuzzer makes would else end at the first one.

use crate::head::HEAD_BYTES;
use crate::segment::reseal_footer;
use crate::wal::{FRAME_HEADER_BYTES, FRAME_MAGIC, salt_of};

const CRC_BYTES: usize = 4;

fn crc_at(bytes: &mut [u8], at: usize, crc: u32) {
    if let Some(place) = bytes.get_mut(at..at + CRC_BYTES) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

fn number_at(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).map_or(0, |number| u32::from_le_bytes(*number) as usize)
}

/// Of a file that ends with the checksum of what follows its head.
pub(super) fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(end) = bytes.len().checked_sub(CRC_BYTES).filter(|end| *end >= HEAD_BYTES) {
        let crc = crc32fast::hash(&bytes[HEAD_BYTES..end]);
        crc_at(&mut bytes, end, crc);
    }
    bytes
}

/// Of a log: its header, and every frame up to the end of the file.
pub(super) fn log(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let head_end = HEAD_BYTES + CRC_BYTES + number_at(&bytes, HEAD_BYTES);
    if head_end > bytes.len() {
        return bytes;
    }
    if let Some(crc_place) = head_end.checked_sub(CRC_BYTES).filter(|place| *place >= HEAD_BYTES + CRC_BYTES) {
        let crc = crc32fast::hash(&bytes[HEAD_BYTES + CRC_BYTES..crc_place]);
        crc_at(&mut bytes, crc_place, crc);
    }
    let Some(salt) = salt_of(&bytes) else { return bytes };
    let mut at = head_end;
    while bytes.len() - at >= FRAME_HEADER_BYTES {
        let start = at + FRAME_HEADER_BYTES;
        let end = (start + number_at(&bytes, at + 4)).min(bytes.len());
        bytes[at..at + 4].copy_from_slice(&FRAME_MAGIC);
        bytes[at + 4..at + 8].copy_from_slice(&((end - start) as u32).to_le_bytes());
        let payload_crc = salt.payload_crc(&bytes[start..end]);
        crc_at(&mut bytes, at + 20, payload_crc);
        let header_crc = salt.header_crc(&bytes[at..at + FRAME_HEADER_BYTES - CRC_BYTES]);
        crc_at(&mut bytes, at + FRAME_HEADER_BYTES - CRC_BYTES, header_crc);
        at = end;
    }
    bytes
}

/// Of a segment: each page's in the footer as far as that makes sense, and then the footer's.
pub(super) fn segment(bytes: &[u8]) -> Vec<u8> {
    reseal_footer(bytes).unwrap_or_else(|| bytes.to_vec())
}
