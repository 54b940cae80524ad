//! Numbers of up to 64 bits: constant, frame of reference, steps between neighbours, steps between steps, or runs. What is
//! packed is *patched*: it has the width that suits most values, and the few that do not fit stand beside it.

use arrow::buffer::NullBuffer;
use shoal_kernel::Result;

pub(super) use super::packed::Word;
use super::packed::{self, Patched, Sum, Sums, bits_of, round_up, width_of};
use super::{Effort, Input, malformed};

const CONSTANT: u8 = 0;
const PACKED: u8 = 1;
const STEPS: u8 = 2;
const STEPS_OF_STEPS: u8 = 3;
const RUNS: u8 = 4;

/// One of so many values may lie below the frame for the sake of a narrower one.
const OUTLIERS_BELOW: usize = 64;
/// Fewer packed numbers than one in so many are quicker to find one by one.
const FEW_ONE_IN: usize = 4;
/// Runs shorter than this on average are not worth their own form.
const RUN_ROWS_MIN: usize = 4;
/// A form that costs more to decode must be smaller than this share (of 16) of the plain one.
const WORTH_SIXTEENTHS: u64 = 14;

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
        return packed::write(words.iter().map(|word| word.wrapping_sub(plain.base)), plain.width, out);
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

/// Reads of `rows` numbers all, or the wanted ones (ascending).
pub(super) fn read<T: Word>(input: &mut Input<'_>, rows: usize, wanted: Option<&[u32]>) -> Result<Vec<T>> {
    let few = wanted.filter(|wanted| wanted.len() * FEW_ONE_IN < rows);
    // What comes after the last wanted row is not worth unpacking.
    let needed = wanted.map_or(rows, |wanted| wanted.last().map_or(0, |last| *last as usize + 1));
    let all: Vec<T> = match input.u8()? {
        CONSTANT => return Ok(vec![T::of(input.u64()?); wanted.map_or(rows, <[u32]>::len)]),
        PACKED => {
            let base = input.u64()?;
            let numbers = Patched::read(input, rows, base)?;
            match few {
                Some(wanted) => return Ok(numbers.at(wanted)),
                None => numbers.first(needed),
            }
        }
        STEPS => {
            let (mut value, base) = (input.u64()?, input.u64()?);
            let steps = Patched::read(input, rows.saturating_sub(1), base)?;
            if let Some(wanted) = few {
                let mut sums = Sums::of(&steps);
                return Ok(wanted.iter().map(|row| T::of(value.wrapping_add(sums.before(*row).sum))).collect());
            }
            let steps: Vec<u64> = steps.first(needed.saturating_sub(1));
            let mut values = Vec::with_capacity(needed);
            values.push(T::of(value));
            values.extend(steps.into_iter().map(|step| {
                value = value.wrapping_add(step);
                T::of(value)
            }));
            values
        }
        STEPS_OF_STEPS => {
            let (mut value, mut step, base) = (input.u64()?, input.u64()?, input.u64()?);
            let second = Patched::read(input, rows.saturating_sub(2), base)?;
            if let Some(wanted) = few {
                let mut sums = Sums::of(&second);
                let value_at = |row: &u32| {
                    // A change of the step counts once for each step from there on.
                    let Sum { sum, weighted } = sums.before(row.saturating_sub(1));
                    let changes = u64::from(row.saturating_sub(1)).wrapping_mul(sum).wrapping_sub(weighted);
                    T::of(value.wrapping_add(u64::from(*row).wrapping_mul(step)).wrapping_add(changes))
                };
                return Ok(wanted.iter().map(value_at).collect());
            }
            let second: Vec<u64> = second.first(needed.saturating_sub(2));
            let mut values = Vec::with_capacity(needed + 2);
            values.push(T::of(value));
            value = value.wrapping_add(step);
            values.push(T::of(value));
            values.extend(second.into_iter().map(|change| {
                step = step.wrapping_add(change);
                value = value.wrapping_add(step);
                T::of(value)
            }));
            values
        }
        RUNS => read_runs(input, rows)?,
        other => return Err(malformed(format_args!("unknown number encoding {other}"))),
    };
    Ok(match wanted {
        Some(wanted) => wanted.iter().map(|row| all[*row as usize]).collect(),
        None => {
            let mut all = all;
            // A single row has no steps, and none at all not even a first value.
            all.truncate(rows);
            all
        }
    })
}

fn read_runs<T: Word>(input: &mut Input<'_>, rows: usize) -> Result<Vec<T>> {
    let runs = input.u32()? as usize;
    if runs > rows {
        return Err(malformed("more runs than rows"));
    }
    let base = input.u64()?;
    let values: Vec<T> = Patched::read(input, runs, base)?.first(runs);
    let lengths: Vec<u64> = Patched::read(input, runs, 0)?.first(runs);
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

/// Which form the numbers have, and how wide they are packed.
pub(super) fn describe(input: &mut Input<'_>) -> Result<String> {
    // What stands before the packed numbers, in words of 64 bits: base, and the first value and step.
    let (form, words) = match input.u8()? {
        CONSTANT => return Ok("constant".to_owned()),
        PACKED => ("frame of reference", 1),
        STEPS => ("steps", 2),
        STEPS_OF_STEPS => ("steps of steps", 3),
        RUNS => {
            let runs = input.u32()?;
            input.u64()?;
            return Ok(format!("{runs} runs, {}", describe_patched(input)?));
        }
        other => return Err(malformed(format_args!("unknown number encoding {other}"))),
    };
    (0..words).try_for_each(|_| input.u64().map(drop))?;
    Ok(format!("{form}, {}", describe_patched(input)?))
}

fn describe_patched(input: &mut Input<'_>) -> Result<String> {
    let exceptions = input.u32()?;
    let width = input.u8()?;
    Ok(match exceptions {
        0 => format!("{width} bits"),
        _ => format!("{width} bits, {exceptions} exceptions"),
    })
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
    packed::write(lengths.iter().copied(), width, out);
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
        packed::write(words.iter().map(|word| word.wrapping_sub(self.base)), self.width, out);
    }
}
