//! Numbers packed at one width, and beside them the few that need more.
//!
//! Frame of reference with exceptions: Zukowski et al., "Super-Scalar RAM-CPU Cache Compression", ICDE 2006.

use std::ops::Range;

use arrow::datatypes::ArrowNativeType;
use shoal_kernel::Result;
use tantivy_bitpacker::{BitPacker, BitUnpacker};

use super::{Input, malformed};

/// The packer decodes fast only while eight bytes can be read at every value.
const PADDING_BYTES: usize = 8;
/// So many numbers of whatever width end at a whole byte.
const BLOCK_ROWS: usize = 8;

/// Does something for a width that the compiler knows: a number is then a load, a shift and a mask. Nothing for width 0.
macro_rules! by_width {
    ($width:expr, $name:ident => $call:expr) => {
        by_width!(@ $width, $name, $call, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29
            30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 64)
    };
    (@ $of:expr, $name:ident, $call:expr, $($width:literal)*) => { match $of {
        $($width => {
            const $name: usize = $width;
            $call
        })*
        // `Packed::read` admits no other.
        _ => {}
    } };
}

/// A number as a column holds it.
pub(super) trait Word: ArrowNativeType {
    /// The low bits.
    fn of(word: u64) -> Self;
}

macro_rules! word {
    ($($native:ty),*) => { $(impl Word for $native {
        #[inline]
        fn of(word: u64) -> Self {
            word as Self
        }
    })* };
}
word!(u8, u16, u32, u64);

pub(super) fn bits_of(number: u64) -> u8 {
    64 - number.leading_zeros() as u8
}

/// 57 to 63 are beyond the unpacker, which reads eight bytes at any bit offset.
pub(super) fn round_up(width: u8) -> u8 {
    match width {
        57..=63 => 64,
        width => width,
    }
}

/// The width that the packer gives a number.
pub(super) fn width_of(number: u64) -> u8 {
    round_up(bits_of(number))
}

/// Writes the numbers at that width, and beside them those that need more.
pub(super) fn write(numbers: impl Iterator<Item = u64> + Clone, width: u8, out: &mut Vec<u8>) {
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

/// What [`write`] wrote, not unpacked yet. A base is added to every number.
pub(super) struct Patched<'a> {
    numbers: Packed<'a>,
    base: u64,
    /// Rows, ascending, with their offsets from the base.
    exceptions: Vec<(u32, u64)>,
}

impl<'a> Patched<'a> {
    pub(super) fn read(input: &mut Input<'a>, rows: usize, base: u64) -> Result<Self> {
        let count = input.u32()? as usize;
        if count > rows {
            return Err(malformed("more exceptions than rows"));
        }
        let numbers = Packed::read(input, rows)?;
        let mut exceptions = Vec::with_capacity(count);
        if count > 0 {
            let places: Vec<u64> = Packed::read(input, count)?.first(count, 0);
            let values: Vec<u64> = Packed::read(input, count)?.first(count, 0);
            exceptions.extend(places.into_iter().map(|place| place as u32).zip(values));
        }
        let ascending = exceptions.is_sorted_by(|(one, _), (next, _)| one < next);
        match ascending && exceptions.last().is_none_or(|(last, _)| (*last as usize) < rows) {
            true => Ok(Self { numbers, base, exceptions }),
            false => Err(malformed("exceptions out of order or behind the last row")),
        }
    }

    /// The first so many numbers; there are at least as many.
    pub(super) fn first<T: Word>(&self, rows: usize) -> Vec<T> {
        let mut numbers = self.numbers.first(rows, self.base);
        for (row, offset) in &self.exceptions {
            if let Some(number) = numbers.get_mut(*row as usize) {
                *number = T::of(self.base.wrapping_add(*offset));
            }
        }
        numbers
    }

    /// The numbers of these rows (ascending), all of which there are.
    pub(super) fn at<T: Word>(&self, rows: &[u32]) -> Vec<T> {
        let mut exceptions = self.exceptions.iter().peekable();
        let number = |&row: &u32| {
            while exceptions.next_if(|(exception, _)| *exception < row).is_some() {}
            let patch = exceptions.peek().filter(|(exception, _)| *exception == row);
            let offset = patch.map_or_else(|| self.numbers.get(row), |(_, offset)| *offset);
            T::of(self.base.wrapping_add(offset))
        };
        rows.iter().map(number).collect()
    }
}

/// What numbers come to, by wrapping arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) sum: u64,
    /// Each number times its row.
    pub(super) weighted: u64,
}

impl Sum {
    #[inline]
    fn add(&mut self, row: usize, number: u64) {
        self.sum = self.sum.wrapping_add(number);
        self.weighted = self.weighted.wrapping_add(number.wrapping_mul(row as u64));
    }
}

/// The sums of the numbers before rows, which come in order: nothing is unpacked into memory.
pub(super) struct Sums<'a> {
    numbers: &'a Patched<'a>,
    row: usize,
    exception: usize,
    /// Of the offsets from the base before `row`.
    offsets: Sum,
}

impl<'a> Sums<'a> {
    pub(super) fn of(numbers: &'a Patched<'a>) -> Self {
        Self { numbers, row: 0, exception: 0, offsets: Sum::default() }
    }

    /// The sum of all numbers before a row, which lies not before the last one asked for.
    pub(super) fn before(&mut self, row: u32) -> Sum {
        let (from, row) = (self.row, row as usize);
        self.numbers.numbers.add_up(from..row, &mut self.offsets);
        let exceptions = &self.numbers.exceptions[self.exception..];
        for (place, offset) in exceptions.iter().take_while(|(place, _)| (*place as usize) < row) {
            self.offsets.add(*place as usize, offset.wrapping_sub(self.numbers.numbers.get(*place)));
            self.exception += 1;
        }
        self.row = row;
        let (rows, base) = (row as u64, self.numbers.base);
        // Of 0, 1, 2 … rows - 1: one of the two factors is even.
        let triangle =
            if row.is_multiple_of(2) { (rows / 2).wrapping_mul(rows.wrapping_sub(1)) } else { (rows / 2) * rows };
        Sum {
            sum: self.offsets.sum.wrapping_add(rows.wrapping_mul(base)),
            weighted: self.offsets.weighted.wrapping_add(triangle.wrapping_mul(base)),
        }
    }
}

/// Numbers of one width.
struct Packed<'a> {
    width: u8,
    bytes: &'a [u8],
}

impl<'a> Packed<'a> {
    fn read(input: &mut Input<'a>, rows: usize) -> Result<Self> {
        let width = input.u8()?;
        match width {
            0 => Ok(Self { width, bytes: &[] }),
            1..=56 | 64 => {
                u32::try_from(rows).map_err(|_| malformed("too many rows"))?;
                let bytes = input.take((rows * usize::from(width)).div_ceil(8) + PADDING_BYTES)?;
                Ok(Self { width, bytes })
            }
            other => Err(malformed(format_args!("impossible bit width {other}"))),
        }
    }

    fn get(&self, row: u32) -> u64 {
        match self.width {
            0 => 0,
            width => BitUnpacker::new(width).get(row, self.bytes),
        }
    }

    fn first<T: Word>(&self, rows: usize, base: u64) -> Vec<T> {
        let mut out = vec![T::of(base); rows];
        by_width!(self.width, WIDTH => unpack::<T, WIDTH>(self.bytes, base, &mut out));
        out
    }

    /// Adds the numbers of these rows.
    fn add_up(&self, rows: Range<usize>, sum: &mut Sum) {
        by_width!(self.width, WIDTH => add_up::<WIDTH>(self.bytes, rows, sum));
    }
}

/// Unpacks as many numbers as there is room for.
fn unpack<T: Word, const WIDTH: usize>(bytes: &[u8], base: u64, out: &mut [T]) {
    let (blocks, rest) = out.as_chunks_mut::<BLOCK_ROWS>();
    let done = blocks.len();
    for (block, out) in blocks.iter_mut().enumerate() {
        let numbers = block_of::<WIDTH>(bytes, block);
        for (out, number) in out.iter_mut().zip(numbers) {
            *out = T::of(base.wrapping_add(number));
        }
    }
    let unpacker = BitUnpacker::new(WIDTH as u8);
    for (row, out) in (done * BLOCK_ROWS..).zip(rest) {
        *out = T::of(base.wrapping_add(unpacker.get(row as u32, bytes)));
    }
}

fn add_up<const WIDTH: usize>(bytes: &[u8], rows: Range<usize>, sum: &mut Sum) {
    let unpacker = BitUnpacker::new(WIDTH as u8);
    let (first, end) = (rows.start.next_multiple_of(BLOCK_ROWS).min(rows.end), rows.end / BLOCK_ROWS);
    let mut one = |row: usize| sum.add(row, unpacker.get(row as u32, bytes));
    (rows.start..first).for_each(&mut one);
    ((end * BLOCK_ROWS).max(first)..rows.end).for_each(&mut one);
    for block in first.div_ceil(BLOCK_ROWS)..end {
        for (row, number) in (block * BLOCK_ROWS..).zip(block_of::<WIDTH>(bytes, block)) {
            sum.add(row, number);
        }
    }
}

#[inline(always)]
fn block_of<const WIDTH: usize>(bytes: &[u8], block: usize) -> [u64; BLOCK_ROWS] {
    let mask = u64::MAX >> (64 - WIDTH);
    let bytes = &bytes[block * WIDTH..][..WIDTH + PADDING_BYTES];
    std::array::from_fn(|row| {
        let (byte, shift) = (row * WIDTH / 8, row * WIDTH % 8);
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[byte..byte + 8]);
        u64::from_le_bytes(word) >> shift & mask
    })
}
