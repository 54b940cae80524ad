//! Floats that were decimals: as whole numbers of tenths, hundredths and so on, packed like any others. What is not exactly
//! such a number stands beside them.
//!
//! After Afroozeh et al., "ALP: Adaptive Lossless floating-Point Compression", SIGMOD 2024; here the way back is a division by
//! a power of ten, which is rounded correctly, so that every decimal of up to 15 digits comes back as it was.

use arrow::buffer::NullBuffer;
use shoal_kernel::Result;

use super::words::{self, Word};
use super::{Effort, Input, malformed};

/// Powers of ten that a double holds exactly, as far as they are of use.
const POWERS: [f64; 16] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
/// Whole numbers up to here are exact.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
/// Values by which the power is chosen.
const SAMPLE_ROWS: usize = 64;
/// One of so many may be none.
const EXCEPTIONS_ONE_IN: usize = 8;

/// A float as a column holds it.
pub(super) trait Float: Word {
    /// From its bits.
    fn to_double(bits: u64) -> f64;
    /// To its bits.
    fn of_double(value: f64) -> u64;
}

impl Float for u64 {
    fn to_double(bits: u64) -> f64 {
        f64::from_bits(bits)
    }

    fn of_double(value: f64) -> u64 {
        value.to_bits()
    }
}

impl Float for u32 {
    fn to_double(bits: u64) -> f64 {
        f64::from(f32::from_bits(bits as u32))
    }

    fn of_double(value: f64) -> u64 {
        u64::from((value as f32).to_bits())
    }
}

/// The number of units, if it stands for exactly these bits.
fn units<T: Float>(bits: u64, power: f64) -> Option<i64> {
    let scaled = (T::to_double(bits) * power).round();
    let units = scaled as i64;
    // As the reader will compute it: of a negative zero, whole numbers know nothing.
    let exact = scaled.abs() < EXACT_MAX && T::of_double(units as f64 / power) == bits;
    exact.then_some(units)
}

/// Writes floats given by their bits, if they were decimals; else writes nothing and says so.
pub(super) fn write<T: Float>(bits: &[u64], nulls: Option<&NullBuffer>, out: &mut Vec<u8>) -> bool {
    let valid = |row: &usize| nulls.is_none_or(|nulls| nulls.is_valid(*row));
    let step = (bits.len() / SAMPLE_ROWS).max(1);
    let sample: Vec<u64> = (0..bits.len()).step_by(step).filter(valid).map(|row| bits[row]).collect();
    let fitting = |power: &f64| sample.iter().filter(|&&bits| units::<T>(bits, *power).is_some()).count();
    let Some((exponent, fits)) =
        POWERS.iter().map(fitting).enumerate().max_by_key(|(exponent, fits)| (*fits, -(*exponent as i64)))
    else {
        return false;
    };
    if (sample.len() - fits) * EXCEPTIONS_ONE_IN > sample.len() {
        return false;
    }
    let power = POWERS[exponent];
    let mut exceptions = Vec::new();
    let mut last = 0;
    let whole: Vec<u64> = (0..bits.len())
        .map(|row| {
            if valid(&row) {
                match units::<T>(bits[row], power) {
                    Some(units) => last = units,
                    None => exceptions.push(row),
                }
            }
            last as u64
        })
        .collect();
    if exceptions.len() * EXCEPTIONS_ONE_IN > bits.len() {
        return false;
    }
    out.push(exponent as u8);
    words::write(&whole, None, true, Effort::Full, out);
    out.extend_from_slice(&(exceptions.len() as u32).to_le_bytes());
    for row in exceptions {
        out.extend_from_slice(&(row as u32).to_le_bytes());
        out.extend_from_slice(&bits[row].to_le_bytes());
    }
    true
}

/// Reads of `rows` floats the bits of all, or of the wanted ones (ascending).
pub(super) fn read<T: Float>(input: &mut Input<'_>, rows: usize, wanted: Option<&[u32]>) -> Result<Vec<T>> {
    let power = POWERS.get(usize::from(input.u8()?)).ok_or_else(|| malformed("impossible power of ten"))?;
    let whole: Vec<u64> = words::read(input, rows, wanted)?;
    let mut bits: Vec<T> = whole.into_iter().map(|units| T::of(T::of_double(units as i64 as f64 / power))).collect();
    for _ in 0..input.u32()? {
        let (row, value) = (input.u32()?, input.u64()?);
        if row as usize >= rows {
            return Err(malformed("an exception behind the last row"));
        }
        let place = match wanted {
            None => Some(row as usize),
            Some(wanted) => wanted.binary_search(&row).ok(),
        };
        if let Some(bits) = place.and_then(|place| bits.get_mut(place)) {
            *bits = T::of(value);
        }
    }
    Ok(bits)
}
