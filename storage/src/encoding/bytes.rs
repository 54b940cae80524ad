//! Strings and byte strings: end to end, or codes into a dictionary of distinct values.

use std::collections::BTreeMap;

use arrow::array::ArrayData;
use arrow::buffer::Buffer;
use shoal_kernel::{Error, ErrorCode, Result};

use super::words::{pack, unpack, width_of};
use super::{Effort, Input, blob, malformed};

const PLAIN: u8 = 0;
const DICTIONARY: u8 = 1;

/// More distinct values than this are not worth a dictionary.
const DICTIONARY_VALUES_MAX: usize = 4096;
/// Only after so many rows is it judged whether values repeat often enough.
const SAMPLE_ROWS: usize = 512;

pub(super) fn write(data: &ArrayData, wide_offsets: bool, effort: Effort, out: &mut Vec<u8>) -> Result<()> {
    let values = data.buffers()[1].as_slice();
    let (start, end) = (data.offset(), data.offset() + data.len());
    let bound = |row: usize| match wide_offsets {
        true => data.buffers()[0].typed_data::<i64>()[row] as usize,
        false => data.buffers()[0].typed_data::<i32>()[row] as usize,
    };
    // What a NULL spans is not kept: equal columns get equal bytes.
    let value = |row: usize| match data.nulls().is_none_or(|nulls| nulls.is_valid(row - start)) {
        true => &values[bound(row)..bound(row + 1)],
        false => &[],
    };
    if effort == Effort::Full
        && data.len() > 1
        && let Some(codes) = dictionary((start..end).map(value), data.len())
    {
        out.push(DICTIONARY);
        out.extend_from_slice(&(codes.len() as u32).to_le_bytes());
        write_strings(codes.keys().copied(), effort, out)?;
        let code = |row: usize| codes.get(value(row)).copied().unwrap_or(0);
        pack((start..end).map(code), width_of(codes.len().saturating_sub(1) as u64), out);
        return Ok(());
    }
    out.push(PLAIN);
    write_strings((start..end).map(value), effort, out)
}

/// Reads `rows` values as Arrow lays them out: offsets, and bytes.
pub(super) fn read(input: &mut Input<'_>, rows: usize, wide_offsets: bool) -> Result<(Buffer, Buffer)> {
    match input.u8()? {
        PLAIN => {
            let (ends, bytes) = read_strings(input, rows)?;
            Ok((offsets(&ends, wide_offsets)?, Buffer::from(bytes.as_ref())))
        }
        DICTIONARY => {
            let count = input.u32()? as usize;
            if count == 0 || count > DICTIONARY_VALUES_MAX {
                return Err(malformed("impossible dictionary"));
            }
            let (bounds, bytes) = read_strings(input, count)?;
            let codes = unpack(input, rows)?;
            if codes.iter().any(|&code| code >= count as u64) {
                return Err(malformed("code outside the dictionary"));
            }
            let total: usize = codes.iter().map(|&code| bounds[code as usize + 1] - bounds[code as usize]).sum();
            let mut values = Vec::with_capacity(total);
            let mut ends = Vec::with_capacity(rows + 1);
            ends.push(0);
            for code in codes {
                values.extend_from_slice(&bytes[bounds[code as usize]..bounds[code as usize + 1]]);
                ends.push(values.len());
            }
            Ok((offsets(&ends, wide_offsets)?, Buffer::from_vec(values)))
        }
        other => Err(malformed(format_args!("unknown string encoding {other}"))),
    }
}

/// Distinct values in order with their codes, if that is at least a quarter smaller.
fn dictionary<'a>(values: impl Iterator<Item = &'a [u8]>, rows: usize) -> Option<BTreeMap<&'a [u8], u64>> {
    let mut codes = BTreeMap::new();
    let mut plain_bytes = 0;
    for (row, value) in values.enumerate() {
        plain_bytes += value.len() + 1;
        codes.insert(value, 0);
        if codes.len() > DICTIONARY_VALUES_MAX.min(SAMPLE_ROWS.max(row) / 2) {
            return None;
        }
    }
    let code_bytes = rows * usize::from(width_of(codes.len().saturating_sub(1) as u64)) / 8;
    let bytes = code_bytes + codes.keys().map(|value| value.len() + 1).sum::<usize>();
    codes.values_mut().enumerate().for_each(|(code, value)| *value = code as u64);
    (bytes < plain_bytes / 4 * 3).then_some(codes)
}

fn write_strings<'a>(values: impl Iterator<Item = &'a [u8]> + Clone, effort: Effort, out: &mut Vec<u8>) -> Result<()> {
    let longest = values.clone().map(<[u8]>::len).max().unwrap_or(0);
    pack(values.clone().map(|value| value.len() as u64), width_of(longest as u64), out);
    let mut bytes = Vec::with_capacity(values.clone().map(<[u8]>::len).sum());
    values.for_each(|value| bytes.extend_from_slice(value));
    blob::write(&bytes, effort, out)
}

/// Bounds (one more than strings) and the bytes between them.
fn read_strings<'a>(input: &mut Input<'a>, count: usize) -> Result<(Vec<usize>, std::borrow::Cow<'a, [u8]>)> {
    let lengths = unpack(input, count)?;
    let bytes = blob::read(input)?;
    let mut bounds = Vec::with_capacity(count + 1);
    bounds.push(0usize);
    let mut end = 0usize;
    for length in lengths {
        end = usize::try_from(length)
            .ok()
            .and_then(|length| end.checked_add(length))
            .ok_or_else(|| malformed("length"))?;
        bounds.push(end);
    }
    if end != bytes.len() {
        return Err(malformed("lengths and bytes differ"));
    }
    Ok((bounds, bytes))
}

fn offsets(bounds: &[usize], wide: bool) -> Result<Buffer> {
    if wide {
        return Ok(Buffer::from_vec(bounds.iter().map(|&bound| bound as i64).collect::<Vec<_>>()));
    }
    let too_long = |_| Error::new(ErrorCode::LimitExceeded, "the strings of one page take more than 2 GiB");
    let narrow = bounds.iter().map(|&bound| i32::try_from(bound)).collect::<Result<Vec<_>, _>>().map_err(too_long)?;
    Ok(Buffer::from_vec(narrow))
}
