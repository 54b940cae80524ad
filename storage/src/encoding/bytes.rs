//! Strings and byte strings, end to end with their lengths.

use arrow::array::ArrayData;
use arrow::buffer::{Buffer, NullBuffer};
use shoal_kernel::{Error, ErrorCode, Result};

use super::dictionary::Dictionary;
use super::{Effort, Input, blob, malformed, words};

/// The values of rows, without what NULLs span: equal columns get equal bytes.
pub(super) fn values(data: &ArrayData, wide_offsets: bool) -> impl ExactSizeIterator<Item = &[u8]> + Clone {
    let bytes = data.buffers()[1].as_slice();
    let start = data.offset();
    (0..data.len()).map(move |row| {
        let bound = |row: usize| match wide_offsets {
            true => data.buffers()[0].typed_data::<i64>()[row] as usize,
            false => data.buffers()[0].typed_data::<i32>()[row] as usize,
        };
        match data.nulls().is_none_or(|nulls| nulls.is_valid(row)) {
            true => &bytes[bound(start + row)..bound(start + row + 1)],
            false => &[],
        }
    })
}

pub(super) fn write<'a>(
    values: impl ExactSizeIterator<Item = &'a [u8]> + Clone,
    effort: Effort,
    out: &mut Vec<u8>,
) -> Result<()> {
    let lengths: Vec<u64> = values.clone().map(|value| value.len() as u64).collect();
    words::write(&lengths, None, false, effort, out);
    let mut bytes = Vec::with_capacity(lengths.iter().sum::<u64>() as usize);
    values.for_each(|value| bytes.extend_from_slice(value));
    blob::write(&bytes, effort, out)
}

/// Reads `rows` values: bounds (one more than values), and the bytes between them.
pub(super) fn read(input: &mut Input<'_>, rows: usize) -> Result<(Vec<u32>, Vec<u8>)> {
    let lengths: Vec<u32> = words::read(input, rows, None)?;
    let bytes = blob::read(input)?;
    let mut bounds = Vec::with_capacity(rows + 1);
    let mut end = 0u64;
    bounds.push(0);
    for length in lengths {
        end += u64::from(length);
        bounds.push(end as u32);
    }
    match end == bytes.len() as u64 && end <= u64::from(u32::MAX) {
        true => Ok((bounds, bytes.into_owned())),
        false => Err(malformed("lengths and bytes differ")),
    }
}

/// What Arrow calls the offsets of such a column.
pub(super) fn offsets(bounds: Vec<u32>, wide: bool) -> Result<Buffer> {
    let last = bounds.last().copied().unwrap_or(0);
    match wide {
        true => Ok(Buffer::from_vec(bounds.into_iter().map(i64::from).collect::<Vec<_>>())),
        false if i32::try_from(last).is_ok() => Ok(Buffer::from_vec(bounds)),
        false => Err(too_long()),
    }
}

fn too_long() -> Error {
    Error::new(ErrorCode::LimitExceeded, "the strings of one page take more than 2 GiB")
}

/// Short values are copied as so many bytes at once; what is too much is written over by the next.
const COPY_BYTES: usize = 16;

/// The values that codes stand for: bounds and bytes; nothing for NULLs. Codes have been checked.
pub(super) fn gather(
    codes: &[u32],
    nulls: Option<&NullBuffer>,
    dictionary: &Dictionary,
) -> Result<(Vec<u32>, Vec<u8>)> {
    let (bounds, bytes) = (dictionary.bounds(), dictionary.bytes());
    let span = |(row, &code): (usize, &u32)| match nulls.is_none_or(|nulls| nulls.is_valid(row)) {
        true => (bounds[code as usize] as usize, bounds[code as usize + 1] as usize),
        false => (0, 0),
    };
    // A value may be a million times longer than the mean: only the exact sum is worth asking memory for.
    let total: usize = codes.iter().enumerate().map(span).map(|(start, end)| end - start).sum();
    u32::try_from(total).map_err(|_| too_long())?;
    let mut offsets = Vec::with_capacity(codes.len() + 1);
    offsets.push(0u32);
    let mut out: Vec<u8> = Vec::with_capacity(total + COPY_BYTES);
    for (start, end) in codes.iter().enumerate().map(span) {
        let (length, at) = (end - start, out.len());
        match bytes.get(start..start + COPY_BYTES) {
            Some(wide) if length <= COPY_BYTES => {
                out.extend_from_slice(wide);
                out.truncate(at + length);
            }
            _ => out.extend_from_slice(&bytes[start..end]),
        }
        offsets.push(out.len() as u32);
    }
    Ok((offsets, out))
}
