//! Numbers of up to 64 bits: constant, frame of reference, deltas of neighbours, or codes into a dictionary; all of them
//! bit-packed.

use std::collections::BTreeMap;

use arrow::buffer::NullBuffer;
use shoal_kernel::Result;
use tantivy_bitpacker::{BitPacker, BitUnpacker};

use super::{Effort, Input, malformed};

const CONSTANT: u8 = 0;
const PACKED: u8 = 1;
const DELTA: u8 = 2;
const DICTIONARY: u8 = 3;

/// More distinct values than this are not worth a dictionary.
const DICTIONARY_VALUES_MAX: usize = 2048;
/// Only after so many rows is it judged whether values repeat often enough.
const SAMPLE_ROWS: usize = 512;
/// The packer decodes fast only while eight bytes can be read at every value.
const PADDING_BYTES: usize = 8;

/// Writes the numbers. What a NULL holds is not kept.
pub(super) fn write(words: &[u64], nulls: Option<&NullBuffer>, signed: bool, effort: Effort, out: &mut Vec<u8>) {
    let valid = |row: usize| nulls.is_none_or(|nulls| nulls.is_valid(row));
    let ordered = |word: u64| if signed { word ^ (1 << 63) } else { word };
    let mut bounds: Option<(u64, u64)> = None;
    for (_, &word) in words.iter().enumerate().filter(|(row, _)| valid(*row)) {
        let word = ordered(word);
        bounds = Some(bounds.map_or((word, word), |(low, high)| (low.min(word), high.max(word))));
    }
    let (low, high) = bounds.unwrap_or((ordered(0), ordered(0)));
    // The transformation is its own inverse.
    let minimum = ordered(low);
    if low == high {
        out.push(CONSTANT);
        return out.extend_from_slice(&minimum.to_le_bytes());
    }
    let width = width_of(high - low);
    if effort == Effort::Full
        && nulls.is_none()
        && let Some((base, delta_width)) = delta_width(words).filter(|(_, delta)| delta + 4 < width)
    {
        return write_delta(words, base, delta_width, out);
    }
    if effort == Effort::Full
        && width > 8
        && let Some(values) = dictionary(words, &valid)
        && dictionary_bits(values.len(), words.len()) * 5 < usize::from(width) * words.len() * 4
    {
        return write_dictionary(words, &values, &valid, out);
    }
    out.push(PACKED);
    out.extend_from_slice(&minimum.to_le_bytes());
    let offsets = words.iter().enumerate().map(|(row, word)| if valid(row) { word.wrapping_sub(minimum) } else { 0 });
    pack(offsets, width, out);
}

/// Reads `rows` numbers.
pub(super) fn read(input: &mut Input<'_>, rows: usize) -> Result<Vec<u64>> {
    match input.u8()? {
        CONSTANT => Ok(vec![input.u64()?; rows]),
        PACKED => {
            let minimum = input.u64()?;
            let mut words = unpack(input, rows)?;
            words.iter_mut().for_each(|word| *word = word.wrapping_add(minimum));
            Ok(words)
        }
        DELTA => {
            let (first, base) = (input.u64()?, input.u64()?);
            let mut words = unpack(input, rows)?;
            // The first delta is stored as zero and stands for the first value.
            let mut previous = first.wrapping_sub(base);
            for word in &mut words {
                previous = previous.wrapping_add(base).wrapping_add(*word);
                *word = previous;
            }
            Ok(words)
        }
        DICTIONARY => {
            let count = input.u32()? as usize;
            if count == 0 || count > DICTIONARY_VALUES_MAX {
                return Err(malformed("impossible dictionary"));
            }
            let values = (0..count).map(|_| input.u64()).collect::<Result<Vec<_>>>()?;
            let mut words = unpack(input, rows)?;
            for word in &mut words {
                let value = usize::try_from(*word).ok().and_then(|code| values.get(code));
                *word = *value.ok_or_else(|| malformed("code outside the dictionary"))?;
            }
            Ok(words)
        }
        other => Err(malformed(format_args!("unknown number encoding {other}"))),
    }
}

fn write_delta(words: &[u64], base: u64, width: u8, out: &mut Vec<u8>) {
    out.push(DELTA);
    out.extend_from_slice(&words[0].to_le_bytes());
    out.extend_from_slice(&base.to_le_bytes());
    let deltas = words.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]).wrapping_sub(base));
    pack(std::iter::once(0).chain(deltas), width, out);
}

/// The smallest step between neighbours, and the bits that the others need above it.
fn delta_width(words: &[u64]) -> Option<(u64, u8)> {
    let steps = || words.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]) as i64);
    let (low, high) = (steps().min()?, steps().max()?);
    Some((low as u64, width_of((high as u64).wrapping_sub(low as u64))))
}

/// Distinct values in order with their codes, if they are few.
fn dictionary(words: &[u64], valid: &impl Fn(usize) -> bool) -> Option<BTreeMap<u64, u64>> {
    let mut values = BTreeMap::new();
    for (row, &word) in words.iter().enumerate().filter(|(row, _)| valid(*row)) {
        values.insert(word, 0);
        // Giving up as soon as it will hardly pay keeps wide columns cheap.
        if values.len() > DICTIONARY_VALUES_MAX.min(SAMPLE_ROWS.max(row) / 2) {
            return None;
        }
    }
    values.values_mut().enumerate().for_each(|(code, value)| *value = code as u64);
    Some(values)
}

fn dictionary_bits(values: usize, rows: usize) -> usize {
    values * 64 + rows * usize::from(width_of(values.saturating_sub(1) as u64))
}

fn write_dictionary(words: &[u64], values: &BTreeMap<u64, u64>, valid: &impl Fn(usize) -> bool, out: &mut Vec<u8>) {
    out.push(DICTIONARY);
    out.extend_from_slice(&(values.len() as u32).to_le_bytes());
    values.keys().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
    let code = |(row, word): (usize, &u64)| if valid(row) { values.get(word).copied().unwrap_or(0) } else { 0 };
    pack(words.iter().enumerate().map(code), width_of(values.len().saturating_sub(1) as u64), out);
}

/// Bits that hold the number. 57 to 63 are beyond the unpacker, which reads eight bytes at any bit offset.
pub(super) fn width_of(number: u64) -> u8 {
    match 64 - number.leading_zeros() as u8 {
        57..=63 => 64,
        width => width,
    }
}

/// Writes the width (1 byte), then the packed numbers, then padding.
pub(super) fn pack(numbers: impl Iterator<Item = u64>, width: u8, out: &mut Vec<u8>) {
    out.push(width);
    if width == 0 {
        return;
    }
    let mut packer = BitPacker::new();
    // Writing into memory cannot fail.
    numbers.for_each(|number| drop(packer.write(number, width, out)));
    drop(packer.close(out));
    out.extend_from_slice(&[0; PADDING_BYTES]);
}

/// Reads what [`pack`] wrote.
pub(super) fn unpack(input: &mut Input<'_>, rows: usize) -> Result<Vec<u64>> {
    let width = input.u8()?;
    let mut numbers = vec![0; rows];
    match width {
        0 => {}
        1..=56 | 64 => {
            let bytes = input.take((rows * usize::from(width)).div_ceil(8) + PADDING_BYTES)?;
            BitUnpacker::new(width).get_range(0, bytes, &mut numbers);
        }
        other => return Err(malformed(format_args!("impossible bit width {other}"))),
    }
    Ok(numbers)
}
