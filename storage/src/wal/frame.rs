//! Frames: one group of writes as bytes.

use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::types::UInt64Type;
use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};
use shoal_kernel::{Error, ErrorCode, Result, Version, wire};

use super::salt::Salt;
use crate::encoding::{Effort, Input, decode_page, encode_page, malformed};
use crate::layout::{Layout, StoredColumn};
use crate::manifest::POSITION_MAX;
use crate::rows::Incoming;
use crate::size::batch_bytes;
use crate::token::TokenRecord;

pub(crate) const MAGIC: [u8; 4] = *b"SHWF";
pub(crate) const HEADER_BYTES: usize = 32;
/// Bytes of one frame; a group that would be larger is refused in part.
const FRAME_BYTES_MAX: usize = 1 << 30;
/// Rows of one write. A page of equal values takes a few bytes however many they are, so that the bytes of an entry do not
/// bound what its head can claim.
const ENTRY_ROWS_MAX: u32 = 16 << 20;

/// What stands before the columns of an entry.
#[derive(Serialize, Deserialize)]
struct EntryHead {
    rows: u32,
    has_tombstones: bool,
    tokens: Vec<TokenRecord>,
}

/// The header of a frame, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) payload_bytes: usize,
    pub(super) first_position: u64,
    /// None in a closing mark.
    pub(super) entries: u32,
    pub(super) payload_crc: u32,
    /// How many records right before this frame were not synced when it was written.
    pub(super) unsynced: u32,
}

impl FrameHeader {
    /// Up to where records were durable when the frame was written.
    pub(super) fn durable(&self) -> u64 {
        self.first_position.saturating_sub(1 + u64::from(self.unsynced))
    }

    /// Whether the log was closed with it.
    pub(super) fn is_closing_mark(&self) -> bool {
        self.entries == 0
    }

    /// `None` if these are not the bytes of a header in a file of that salt.
    pub(super) fn parse(bytes: &[u8], salt: &Salt) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let number = |at: usize| header[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        if header[..4] != MAGIC || number(28)? != salt.header_crc(&header[..28]) {
            return None;
        }
        let first_position = u64::from_le_bytes(header[8..16].try_into().ok()?);
        (first_position <= POSITION_MAX).then_some(Self {
            payload_bytes: number(4)? as usize,
            first_position,
            entries: number(16)?,
            payload_crc: number(20)?,
            unsynced: number(24)?,
        })
    }

    /// The payload, if it is complete and its checksum holds.
    pub(super) fn payload<'a>(&self, behind_header: &'a [u8], salt: &Salt) -> Option<&'a [u8]> {
        behind_header.get(..self.payload_bytes).filter(|payload| salt.payload_crc(payload) == self.payload_crc)
    }
}

/// Collects the writes of a group.
pub(crate) struct FrameBuilder {
    /// Room for the header, and the payload.
    frame: Vec<u8>,
    entries: u32,
}

impl FrameBuilder {
    pub(crate) fn new() -> Self {
        Self { frame: vec![0; HEADER_BYTES], entries: 0 }
    }

    /// Adds a write; it gets the next position.
    pub(crate) fn push(&mut self, incoming: &Incoming) -> Result<()> {
        let start = self.frame.len();
        // Hardly ever more than the rows take in memory; to grow by and by would copy what is there each time.
        self.frame.reserve(batch_bytes(&incoming.batch).min(FRAME_BYTES_MAX));
        let result = write_entry(incoming, &mut self.frame);
        let result = result.and_then(|()| match self.frame.len() - HEADER_BYTES > FRAME_BYTES_MAX {
            true => Err(Error::new(ErrorCode::Overloaded, "too many bytes in one group of writes")),
            false => Ok(()),
        });
        match result {
            Ok(()) => self.entries += 1,
            Err(_) => self.frame.truncate(start),
        }
        result
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// How many writes it holds.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// The frame, for a file of that salt; without writes, a closing mark. `unsynced` is how many records right before it are
    /// not synced.
    pub(super) fn finish(mut self, first_position: u64, unsynced: u64, salt: &Salt) -> Vec<u8> {
        let (header, payload) = self.frame.split_at_mut(HEADER_BYTES);
        header[..4].copy_from_slice(&MAGIC);
        // The bound on frames keeps the length below 4 GiB.
        header[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[8..16].copy_from_slice(&first_position.to_le_bytes());
        header[16..20].copy_from_slice(&self.entries.to_le_bytes());
        header[20..24].copy_from_slice(&salt.payload_crc(payload).to_le_bytes());
        // One file is synced before the next, and no file holds so many records.
        header[24..28].copy_from_slice(&u32::try_from(unsynced).unwrap_or(u32::MAX).to_le_bytes());
        let header_crc = salt.header_crc(&header[..28]);
        header[28..].copy_from_slice(&header_crc.to_le_bytes());
        self.frame
    }
}

fn put(bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let length =
        u32::try_from(bytes.len()).map_err(|_| Error::new(ErrorCode::LimitExceeded, "a column beyond 4 GiB"))?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn take<'a>(input: &mut Input<'a>) -> Result<&'a [u8]> {
    let length = input.u32()? as usize;
    input.take(length)
}

fn write_entry(incoming: &Incoming, out: &mut Vec<u8>) -> Result<()> {
    let rows = u32::try_from(incoming.rows()).ok().filter(|rows| *rows <= ENTRY_ROWS_MAX);
    let rows = rows
        .ok_or_else(|| Error::new(ErrorCode::LimitExceeded, format!("more than {ENTRY_ROWS_MAX} rows in one write")))?;
    let head = EntryHead { rows, has_tombstones: incoming.tombstones.is_some(), tokens: incoming.tokens.clone() };
    put(&wire::encode(&head)?, out)?;
    let (high, low) = split_versions(&incoming.versions);
    put(&encode_page(&high, Effort::Quick)?, out)?;
    put(&encode_page(&low, Effort::Quick)?, out)?;
    if let Some(tombstones) = &incoming.tombstones {
        let array: ArrayRef = Arc::new(BooleanArray::new(tombstones.clone(), None));
        put(&encode_page(&array, Effort::Quick)?, out)?;
    }
    incoming.batch.columns().iter().try_for_each(|column| put(&encode_page(column, Effort::Quick)?, out))
}

/// Reads the writes of a frame.
pub(super) fn read_entries(
    layout: &Layout,
    columns: &[StoredColumn],
    payload: &[u8],
    entries: u32,
) -> Result<Vec<Incoming>> {
    let mut input = Input(payload);
    let incoming = (0..entries).map(|_| read_entry(layout, columns, &mut input)).collect::<Result<Vec<_>>>()?;
    match input.0.is_empty() {
        true => Ok(incoming),
        false => Err(malformed("bytes behind the last entry")),
    }
}

fn read_entry(layout: &Layout, columns: &[StoredColumn], input: &mut Input<'_>) -> Result<Incoming> {
    let head: EntryHead = wire::decode(take(input)?)?;
    if head.rows > ENTRY_ROWS_MAX {
        return Err(malformed("an entry of more rows than a write may have"));
    }
    let rows = head.rows as usize;
    let high = decode_page(take(input)?, &DataType::UInt64, rows, None, None)?;
    let low = decode_page(take(input)?, &DataType::UInt64, rows, None, None)?;
    let tombstones = match head.has_tombstones {
        true => Some(decode_page(take(input)?, &DataType::Boolean, rows, None, None)?.as_boolean().values().clone()),
        false => None,
    };
    let stored = columns
        .iter()
        .map(|column| Ok((column.id, decode_page(take(input)?, &column.data_type, rows, None, None)?)))
        .collect::<Result<Vec<_>>>()?;
    Incoming::assemble(layout, layout.adapt(&stored, rows)?, join_versions(&high, &low), tombstones, head.tokens)
}

/// Versions as two columns: the time, and node with ordinal. Each packs well for itself.
pub(crate) fn split_versions(versions: &[Version]) -> (ArrayRef, ArrayRef) {
    let high = UInt64Array::from_iter_values(versions.iter().map(|version| (version.0 >> 64) as u64));
    let low = UInt64Array::from_iter_values(versions.iter().map(|version| version.0 as u64));
    (Arc::new(high), Arc::new(low))
}

/// The inverse of [`split_versions`]; both columns are of type UInt64.
pub(crate) fn join_versions(high: &ArrayRef, low: &ArrayRef) -> Vec<Version> {
    let (high, low) = (high.as_primitive::<UInt64Type>().values(), low.as_primitive::<UInt64Type>().values());
    high.iter().zip(low).map(|(&high, &low)| Version((u128::from(high) << 64) | u128::from(low))).collect()
}
