//! About how many different values a column has: HyperLogLog (Flajolet, Fusy, Gandouet, Meunier 2007, with linear counting
//! below 2.5 values a register) over 64-bit hashes, which need no correction for large counts.

use arrow::array::Array;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::key::Values;

/// Registers: a standard error of 1.04 / √256, 6.5 %.
const REGISTERS: usize = 256;
/// Bits of a hash that choose the register.
const INDEX_BITS: u32 = REGISTERS.ilog2();
/// What a register can hold at most: leading zeros of the other bits, and one.
const RANK_MAX: u8 = (u64::BITS - INDEX_BITS + 1) as u8;
/// Part of the format.
const SEED: u64 = 0x5_40a6;

/// Values that were met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sketch {
    registers: [u8; REGISTERS],
}

impl Default for Sketch {
    fn default() -> Self {
        Self { registers: [0; REGISTERS] }
    }
}

impl Sketch {
    /// Adds the values of a column, NULLs left out. Nothing happens for types without an order.
    pub(crate) fn add(&mut self, array: &dyn Array) {
        let Ok(values) = Values::of(array) else { return };
        for row in (0..array.len()).filter(|&row| array.is_valid(row)) {
            let hash = values.with_bytes(row, |bytes| xxh3_64_with_seed(bytes, SEED));
            let register = &mut self.registers[(hash >> (u64::BITS - INDEX_BITS)) as usize];
            let rank = ((hash << INDEX_BITS).leading_zeros() + 1).min(u32::from(RANK_MAX)) as u8;
            *register = (*register).max(rank);
        }
    }

    /// About how many values were different.
    pub(crate) fn estimate(&self) -> u64 {
        let registers = REGISTERS as f64;
        let sum: f64 = self.registers.iter().map(|rank| 2_f64.powi(-i32::from(*rank))).sum();
        let raw = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
        let empty = self.registers.iter().filter(|rank| **rank == 0).count();
        let estimate =
            if raw <= 2.5 * registers && empty > 0 { registers * (registers / empty as f64).ln() } else { raw };
        estimate.round() as u64
    }

    /// The registers; if less than half of them are taken, only these, each with its number before it.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let taken = || self.registers.iter().enumerate().filter(|(_, rank)| **rank > 0);
        match taken().count() < REGISTERS / 2 {
            true => taken().flat_map(|(number, rank)| [number as u8, *rank]).collect(),
            false => self.registers.to_vec(),
        }
    }

    /// `None` if these are not the bytes of a sketch.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut sketch = Self::default();
        match <[u8; REGISTERS]>::try_from(bytes) {
            Ok(registers) => sketch.registers = registers,
            Err(_) if bytes.len() > REGISTERS || !bytes.len().is_multiple_of(2) => return None,
            Err(_) => {
                bytes.chunks_exact(2).for_each(|pair| sketch.registers[usize::from(pair[0])] = pair[1]);
            }
        }
        sketch.registers.iter().all(|rank| *rank <= RANK_MAX).then_some(sketch)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, Int64Array, StringArray};

    use super::*;

    #[test]
    fn estimates_are_near_and_survive_their_bytes() {
        for count in [0_i64, 1, 2, 10, 100, 127, 128, 300, 5_000, 200_000] {
            let mut sketch = Sketch::default();
            sketch.add(&Int64Array::from_iter((0..count).map(Some).chain([None])));
            let error = sketch.estimate().abs_diff(count as u64);
            // Three times the standard error.
            assert!(error * 100 <= 20 * count as u64, "{} for {count}", sketch.estimate());
            assert_eq!(Sketch::from_bytes(&sketch.to_bytes()), Some(sketch.clone()));
            let mut twice = sketch.clone();
            twice.add(&Int64Array::from_iter_values((0..count).rev()));
            assert_eq!(twice, sketch, "values that were met are not new");
        }
    }

    #[test]
    fn the_width_of_numbers_does_not_matter() {
        let (mut narrow, mut wide) = (Sketch::default(), Sketch::default());
        narrow.add(&Int32Array::from_iter_values(-500..1_000));
        wide.add(&Int64Array::from_iter_values(-500..1_000));
        assert_eq!(narrow, wide);
    }

    #[test]
    fn the_bytes_belong_to_the_format() {
        let mut sketch = Sketch::default();
        sketch.add(&StringArray::from(vec!["a", "b"]));
        assert_eq!(sketch.to_bytes(), [31, 6, 64, 1]);
        for wrong in [vec![0; 3], vec![0; 258], vec![RANK_MAX + 1; REGISTERS], vec![7, RANK_MAX + 1]] {
            assert_eq!(Sketch::from_bytes(&wrong), None);
        }
    }
}
