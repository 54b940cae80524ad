//! Numbers of up to 64 bits: constant, frame of reference, steps between neighbours, steps between steps, or runs. What is
//! packed is *patched*: it has the width that suits most values, and the few that do not fit stand beside it.
//!
//! Frame of reference with exceptions: Zukowski et al., "Super-Scalar RAM-CPU Cache Compression", ICDE 2006.

use arrow::buffer::NullBuffer;
use arrow::datatypes::ArrowNativeType;
use shoal_kernel::Result;
use tantivy_bitpacker::{BitPacker, BitUnpacker};

use super::{Effort, Input, malformed};

const CONSTANT: u8 = 0;
const PACKED: u8 = 1;
const STEPS: u8 = 2;
const STEPS_OF_STEPS: u8 = 3;
const RUNS: u8 = 4;

/// The packer decodes fast only while eight bytes can be read at every value.
const PADDING_BYTES: usize = 8;
/// One of so many values may lie below the frame for the sake of a narrower one.
const OUTLIERS_BELOW: usize = 64;
/// Runs shorter than this on average are not worth their own form.
const RUN_ROWS_MIN: usize = 4;
/// A form that costs more to decode must be smaller than this share (of 16) of the plain one.
const WORTH_SIXTEENTHS: u64 = 14;

/// A number as a column holds it.
pub(super) trait Word: ArrowNativeType {
    /// The low bits.
    fn of(word: u64) -> Self;
}

macro_rules! word {
    ($($native:ty),*) => { $(impl Word for $native {
        fn of(word: u64) -> Self {
            word as Self
        }
    })* };
}
word!(u8, u16, u32, u64);

/// Writes the numbers. What a NULL holds is not kept.
pub(super) fn write(words: &[u64], nulls: Option<&NullBuffer>, signed: bool, effort: Effort, out: &mut Vec<u8>) {
    let filled;
    let words = match nulls {
        None => words,
        Some(nulls) => {
            filled = fill(words, nulls);
            &filled
        }
    };
    let order = |word: u64| if signed { word ^ (1 << 63) } else { word };
    let (low, high) = words.iter().fold((u64::MAX, 0), |(low, high), &word| {
        let word = order(word);
        (low.min(word), high.max(word))
    });
    if low >= high {
        out.push(CONSTANT);
        return out.extend_from_slice(&words.first().copied().unwrap_or(0).to_le_bytes());
    }
    // `order` is its own inverse.
    let plain = Frame { base: order(low), width: width_of(high - low), bits: 0 };
    if effort == Effort::Quick {
        out.push(PACKED);
        out.extend_from_slice(&plain.base.to_le_bytes());
        return write_patched(words.iter().map(|word| word.wrapping_sub(plain.base)), plain.width, out);
    }
    let packed = Frame::best(words, signed);
    let runs = 1 + words.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let steps: Vec<u64> = words.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    let stepwise = Frame::best(&steps, true);
    if runs * RUN_ROWS_MIN <= words.len() {
        let cost = runs as u64 * (u64::from(plain.width) + u64::from(width_of(words.len() as u64)));
        if cost < packed.bits.min(stepwise.bits) * WORTH_SIXTEENTHS / 16 {
            return write_runs(words, signed, out);
        }
    }
    if stepwise.bits + 64 < packed.bits * WORTH_SIXTEENTHS / 16 {
        let second: Vec<u64> = steps.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        let twice = Frame::best(&second, true);
        if !second.is_empty() && twice.bits + 64 < stepwise.bits * WORTH_SIXTEENTHS / 16 {
            out.push(STEPS_OF_STEPS);
            out.extend_from_slice(&words[0].to_le_bytes());
            out.extend_from_slice(&steps[0].to_le_bytes());
            return twice.write(&second, out);
        }
        out.push(STEPS);
        out.extend_from_slice(&words[0].to_le_bytes());
        return stepwise.write(&steps, out);
    }
    out.push(PACKED);
    packed.write(words, out);
}

/// Reads `rows` numbers.
pub(super) fn read<T: Word>(input: &mut Input<'_>, rows: usize) -> Result<Vec<T>> {
    match input.u8()? {
        CONSTANT => Ok(vec![T::of(input.u64()?); rows]),
        PACKED => {
            let base = input.u64()?;
            read_patched(input, rows, |offset| T::of(base.wrapping_add(offset)))
        }
        STEPS => {
            let first = input.u64()?;
            let base = input.u64()?;
            let steps = read_patched(input, rows.saturating_sub(1), |offset| base.wrapping_add(offset))?;
            let mut values = Vec::with_capacity(rows);
            let mut value = first;
            values.push(T::of(value));
            values.extend(steps.into_iter().map(|step| {
                value = value.wrapping_add(step);
                T::of(value)
            }));
            values.truncate(rows);
            Ok(values)
        }
        STEPS_OF_STEPS => {
            let (mut value, mut step) = (input.u64()?, input.u64()?);
            let base = input.u64()?;
            let second = read_patched(input, rows.saturating_sub(2), |offset| base.wrapping_add(offset))?;
            let mut values = Vec::with_capacity(rows);
            values.push(T::of(value));
            value = value.wrapping_add(step);
            values.push(T::of(value));
            values.extend(second.into_iter().map(|change| {
                step = step.wrapping_add(change);
                value = value.wrapping_add(step);
                T::of(value)
            }));
            values.truncate(rows);
            Ok(values)
        }
        RUNS => {
            let runs = input.u32()? as usize;
            if runs > rows {
                return Err(malformed("more runs than rows"));
            }
            let base = input.u64()?;
            let values = read_patched(input, runs, |offset| T::of(base.wrapping_add(offset)))?;
            let lengths = read_patched(input, runs, |length| length)?;
            let mut out = Vec::with_capacity(rows);
            for (value, length) in values.into_iter().zip(lengths) {
                let length = usize::try_from(length).ok().filter(|length| *length <= rows - out.len());
                let length = length.ok_or_else(|| malformed("runs of more rows than there are"))?;
                out.resize(out.len() + length, value);
            }
            match out.len() == rows {
                true => Ok(out),
                false => Err(malformed("runs of fewer rows than there are")),
            }
        }
        other => Err(malformed(format_args!("unknown number encoding {other}"))),
    }
}

/// A NULL holds what stood before it, so that it costs nothing.
fn fill(words: &[u64], nulls: &NullBuffer) -> Vec<u64> {
    let mut last = (0..words.len()).find(|&row| nulls.is_valid(row)).map_or(0, |row| words[row]);
    let filled = words.iter().enumerate().map(|(row, &word)| {
        if nulls.is_valid(row) {
            last = word;
        }
        last
    });
    filled.collect()
}

fn write_runs(words: &[u64], signed: bool, out: &mut Vec<u8>) {
    let (mut values, mut lengths) = (Vec::new(), Vec::new());
    for run in words.chunk_by(|one, other| one == other) {
        values.push(run[0]);
        lengths.push(run.len() as u64);
    }
    out.push(RUNS);
    out.extend_from_slice(&(values.len() as u32).to_le_bytes());
    Frame::best(&values, signed).write(&values, out);
    let width = lengths.iter().copied().max().map_or(0, width_of);
    write_patched(lengths.iter().copied(), width, out);
}

/// A base, and the width that most offsets from it fit into.
struct Frame {
    base: u64,
    width: u8,
    /// What the numbers take in it, in bits.
    bits: u64,
}

impl Frame {
    /// The smaller of two: from the least value, and from one that leaves a few outliers below.
    fn best(words: &[u64], signed: bool) -> Self {
        let order = |word: u64| if signed { word ^ (1 << 63) } else { word };
        let least = words.iter().copied().map(order).min().map_or(0, order);
        let from_least = Self::at(least, words);
        if from_least.width < 2 || words.len() < OUTLIERS_BELOW * 2 {
            return from_least;
        }
        let mut ordered: Vec<u64> = words.iter().copied().map(order).collect();
        let (_, low, _) = ordered.select_nth_unstable(words.len() / OUTLIERS_BELOW);
        let above = Self::at(order(*low), words);
        if above.bits < from_least.bits { above } else { from_least }
    }

    fn at(base: u64, words: &[u64]) -> Self {
        let mut of_width = [0u64; 65];
        words.iter().for_each(|word| of_width[bits_of(word.wrapping_sub(base)) as usize] += 1);
        let widest = (0..=64).rev().find(|&width| of_width[width] > 0).unwrap_or(0);
        let exception_bits = widest as u64 + u64::from(bits_of(words.len() as u64));
        let (mut best, mut exceptions) = ((u64::MAX, 0), 0);
        for width in (0..=widest).rev() {
            // The packer has no widths between 56 and 64.
            let packed = u64::from(round_up(width as u8));
            let bits = words.len() as u64 * packed + exceptions * exception_bits;
            if bits < best.0 {
                best = (bits, packed as u8);
            }
            exceptions += of_width[width];
        }
        Self { base, width: best.1, bits: best.0 }
    }

    fn write(&self, words: &[u64], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.base.to_le_bytes());
        write_patched(words.iter().map(|word| word.wrapping_sub(self.base)), self.width, out);
    }
}

/// Writes the numbers at that width, and beside them those that need more.
fn write_patched(numbers: impl Iterator<Item = u64> + Clone, width: u8, out: &mut Vec<u8>) {
    let fits = |number: u64| bits_of(number) <= width;
    let exceptions: Vec<(u64, u64)> = (0..).zip(numbers.clone()).filter(|(_, number)| !fits(*number)).collect();
    out.extend_from_slice(&(exceptions.len() as u32).to_le_bytes());
    pack(numbers.map(|number| if fits(number) { number } else { 0 }), width, out);
    if !exceptions.is_empty() {
        let widest = |pick: fn(&(u64, u64)) -> u64| width_of(exceptions.iter().map(pick).max().unwrap_or(0));
        pack(exceptions.iter().map(|(place, _)| *place), widest(|(place, _)| *place), out);
        pack(exceptions.iter().map(|(_, number)| *number), widest(|(_, number)| *number), out);
    }
}

/// Reads what [`write_patched`] wrote.
fn read_patched<T: Copy>(input: &mut Input<'_>, rows: usize, make: impl Fn(u64) -> T) -> Result<Vec<T>> {
    let exceptions = input.u32()? as usize;
    if exceptions > rows {
        return Err(malformed("more exceptions than rows"));
    }
    let mut numbers = unpack(input, rows, &make)?;
    if exceptions > 0 {
        let places = unpack(input, exceptions, |place| place)?;
        let values = unpack(input, exceptions, &make)?;
        for (place, value) in places.into_iter().zip(values) {
            let number = usize::try_from(place).ok().and_then(|place| numbers.get_mut(place));
            *number.ok_or_else(|| malformed("an exception behind the last row"))? = value;
        }
    }
    Ok(numbers)
}

fn bits_of(number: u64) -> u8 {
    64 - number.leading_zeros() as u8
}

/// 57 to 63 are beyond the unpacker, which reads eight bytes at any bit offset.
fn round_up(width: u8) -> u8 {
    match width {
        57..=63 => 64,
        width => width,
    }
}

/// The width that the packer gives a number.
fn width_of(number: u64) -> u8 {
    round_up(bits_of(number))
}

/// Writes the width (1 byte), then the packed numbers, then padding.
fn pack(numbers: impl Iterator<Item = u64>, width: u8, out: &mut Vec<u8>) {
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
fn unpack<T: Copy>(input: &mut Input<'_>, rows: usize, make: impl Fn(u64) -> T) -> Result<Vec<T>> {
    let width = input.u8()?;
    match width {
        0 => Ok(vec![make(0); rows]),
        1..=56 | 64 => {
            let rows_u32 = u32::try_from(rows).map_err(|_| malformed("too many rows"))?;
            let bytes = input.take((rows * usize::from(width)).div_ceil(8) + PADDING_BYTES)?;
            let unpacker = BitUnpacker::new(width);
            Ok((0..rows_u32).map(|row| make(unpacker.get(row, bytes))).collect())
        }
        other => Err(malformed(format_args!("impossible bit width {other}"))),
    }
}
