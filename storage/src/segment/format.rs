//! The outline of a segment file: header, pages, filters, footer, trailer. Byte layout in `FORMAT.md`.

use serde::{Deserialize, Serialize};
use shoal_kernel::limits::VALUE_BYTES_MAX;
use shoal_kernel::{Error, ErrorCode, Result, Version, wire};

use super::sketch::Sketch;
use crate::head;
use crate::layout::{StoredColumn, is_storable};
use crate::predicate::Zone;

pub(crate) const MAGIC: &[u8; 8] = b"SHOALSEG";
pub(crate) const END_MAGIC: &[u8; 8] = b"SHOALEND";
pub(crate) const FORMAT_VERSION: u32 = 5;
/// Decimals of 64 bits are fixed-size values in it, never numbers.
const OLDEST_VERSION: u32 = 4;
pub(crate) const HEADER_BYTES: u64 = head::HEAD_BYTES as u64;
pub(crate) const TRAILER_BYTES: u64 = 16;

/// Rows of a page; all columns are cut at the same rows.
pub(crate) const PAGE_ROWS: usize = 8192;

// Arrow counts the bytes of a column of text with 31 bits.
const _: () = assert!(PAGE_ROWS * VALUE_BYTES_MAX <= i32::MAX as usize);

/// Pages of a row group.
pub(crate) const GROUP_PAGES: usize = 8;
/// Versions (two halves) and positions.
pub(crate) const HIDDEN_COLUMNS: usize = 3;

/// A run of bytes in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) bytes: u32,
    pub(crate) crc: u32,
}

/// The pages of one column and what is in them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ColumnIndex {
    pub(crate) column: StoredColumn,
    /// What the codes of a row group's pages stand for, by row group.
    pub(crate) dictionaries: Vec<Option<Extent>>,
    pub(crate) pages: Vec<Extent>,
    pub(crate) zones: Vec<Zone>,
    /// Sum of the values of each page; of integers only.
    pub(crate) sums: Vec<i128>,
    /// How many different values there are, as the bytes of a [`super::Sketch`].
    pub(crate) distinct: Vec<u8>,
}

/// What the file says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Footer {
    pub(crate) rows: u32,
    pub(crate) columns: Vec<ColumnIndex>,
    /// Of every row, beside the table's columns: the high half of its version (time), the low half (node, ordinal), and its
    /// accept position; per page.
    pub(crate) hidden: [Vec<Extent>; HIDDEN_COLUMNS],
    /// Smallest and greatest accept position, per page.
    pub(crate) position_ranges: Vec<(u64, u64)>,
    /// The identity of the first row, per page.
    pub(crate) first_keys: Vec<Vec<u8>>,
    /// The identity of the last row.
    pub(crate) last_key: Vec<u8>,
    /// Filter of identities, per row group.
    pub(crate) filters: Vec<Extent>,
    /// Which rows are tombstones (a serialised roaring bitmap).
    pub(crate) tombstones: Vec<u8>,
    pub(crate) version_range: (Version, Version),
}

impl Footer {
    pub(crate) fn pages(&self) -> usize {
        self.first_keys.len()
    }

    /// Whether all parts speak of the same number of pages and rows, and no page lies outside of the bytes between the
    /// header and `end`: what follows may index and read without looking.
    fn is_consistent(&self, end: u64) -> bool {
        let pages = (self.rows as usize).div_ceil(PAGE_ROWS);
        let groups = pages.div_ceil(GROUP_PAGES);
        let rows_of = |page: usize| (self.rows as usize - page * PAGE_ROWS).min(PAGE_ROWS) as u32;
        let whole = |(page, zone): (usize, &Zone)| zone.rows == rows_of(page) && zone.nulls <= zone.rows;
        let inside = |extent: &Extent| {
            extent.offset >= HEADER_BYTES
                && extent.offset.checked_add(u64::from(extent.bytes)).is_some_and(|bound| bound <= end)
        };
        self.first_keys.len() == pages
            && self.position_ranges.len() == pages
            && self.filters.len() == groups
            && self.hidden.iter().all(|extents| extents.len() == pages)
            && self.columns.iter().all(|column| {
                column.pages.len() == pages
                    && column.zones.len() == pages
                    && column.dictionaries.len() == groups
                    && column.zones.iter().enumerate().all(whole)
                    && is_storable(&column.column.data_type)
                    && column.sums.len() == if column.column.data_type.is_integer() { pages } else { 0 }
                    && Sketch::from_bytes(&column.distinct).is_some()
            })
            && self.extents().all(inside)
    }

    /// Everything between header and footer.
    pub(crate) fn extents(&self) -> impl Iterator<Item = &Extent> {
        let of_columns =
            self.columns.iter().flat_map(|column| column.dictionaries.iter().flatten().chain(&column.pages));
        of_columns.chain(self.hidden.iter().flatten()).chain(&self.filters)
    }
}

/// The first bytes of the file.
pub(crate) fn header() -> Vec<u8> {
    head::head(MAGIC, FORMAT_VERSION)
}

/// The version of the format.
pub(crate) fn check_header(bytes: &[u8; HEADER_BYTES as usize]) -> Result<u32> {
    head::check_from(bytes, MAGIC, OLDEST_VERSION, FORMAT_VERSION)
}

/// The footer with the trailer that finds it.
pub(crate) fn footer_bytes(footer: &Footer) -> Result<Vec<u8>> {
    let mut bytes = wire::encode(footer)?;
    let length = u32::try_from(bytes.len()).map_err(|_| Error::internal("a footer of more than 4 GiB"))?;
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(END_MAGIC);
    Ok(bytes)
}

/// Length and checksum of the footer.
pub(crate) fn parse_trailer(bytes: &[u8; TRAILER_BYTES as usize]) -> Result<(u32, u32)> {
    if !bytes.ends_with(END_MAGIC) {
        return Err(Error::new(ErrorCode::Corruption, "the end of the segment is missing"));
    }
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok((number(0), number(4)))
}

/// Parses a footer that begins at byte `start` of its file.
pub(crate) fn parse_footer(bytes: &[u8], crc: u32, start: u64) -> Result<Footer> {
    if crc32fast::hash(bytes) != crc {
        return Err(Error::new(ErrorCode::Corruption, "the checksum of the footer is wrong"));
    }
    let footer: Footer = wire::decode(bytes)?;
    match footer.is_consistent(start) {
        true => Ok(footer),
        false => Err(Error::new(ErrorCode::Corruption, "the footer contradicts itself")),
    }
}

/// The file with the checksums that its bytes ought to have, as far as its outline makes sense. For fuzzers only.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn reseal_footer(bytes: &[u8]) -> Option<Vec<u8>> {
    let trailer: &[u8; TRAILER_BYTES as usize] = bytes.last_chunk()?;
    let length = u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]) as usize;
    let start = (bytes.len() - trailer.len()).checked_sub(length)?;
    let footer = &bytes[start..start + length];
    let mut out = bytes[..start].to_vec();
    let Ok(mut parsed) = wire::decode::<Footer>(footer) else {
        out.extend_from_slice(footer);
        out.extend_from_slice(&trailer[..4]);
        out.extend_from_slice(&crc32fast::hash(footer).to_le_bytes());
        out.extend_from_slice(END_MAGIC);
        return Some(out);
    };
    let of_columns =
        parsed.columns.iter_mut().flat_map(|column| column.dictionaries.iter_mut().flatten().chain(&mut column.pages));
    for extent in of_columns.chain(parsed.hidden.iter_mut().flatten()).chain(&mut parsed.filters) {
        let from = usize::try_from(extent.offset).ok()?;
        if let Some(page) = from.checked_add(extent.bytes as usize).and_then(|end| out.get(from..end)) {
            extent.crc = crc32fast::hash(page);
        }
    }
    out.extend_from_slice(&footer_bytes(&parsed).ok()?);
    Some(out)
}
