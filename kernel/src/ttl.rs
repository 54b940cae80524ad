//! How long a table keeps its rows, and from when on that is so on all nodes.
//!
//! No node drops a row by its own clock. The catalog agrees on a [`Cutoff`], which only moves forward; replicas that have heard
//! of the same one hold the same rows.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::key::Datum;
use crate::scan::{ColumnPredicate, CompareOp};
use crate::schema::ColumnId;

/// The units of a duration, longest first: what users write, and microseconds.
const UNITS: [(&str, u64); 6] = [
    ("w", 7 * 86_400_000_000),
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
];
/// The shortest time that rows can be kept for: 1 s.
pub const TTL_MICROS_MIN: u64 = 1_000_000;
/// The longest: 1,000 years of 365 days. Who wants more wants none.
pub const TTL_MICROS_MAX: u64 = 365_000 * 86_400_000_000;
/// A cut-off moves on by a share of the time that rows are kept for.
const STEPS_PER_TTL: u64 = 64;
/// It moves by so much at least, 1 s, and at most, a day.
const STEP_MICROS_MIN: u64 = 1_000_000;
const STEP_MICROS_MAX: u64 = 86_400_000_000;

/// Rows are kept for so long after the time in one of their columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ttl {
    /// The column, a timestamp in microseconds that is part of the table's key: all versions of a row have one time.
    pub column: ColumnId,
    /// How long, in microseconds: from [`TTL_MICROS_MIN`] to [`TTL_MICROS_MAX`].
    pub micros: u64,
}

/// Rows with a time below it are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cutoff {
    /// The column of that time.
    pub column: ColumnId,
    /// The first time that stays, in microseconds since 1970.
    pub micros: i64,
}

impl Ttl {
    /// By how much the cut-off moves at a time, in microseconds: a 64th of the time that rows are kept for, but at least a
    /// second and at most a day. So much longer than it must a row may stay.
    pub fn step_micros(&self) -> u64 {
        (self.micros / STEPS_PER_TTL).clamp(STEP_MICROS_MIN, STEP_MICROS_MAX)
    }

    /// The cut-off at a time that has certainly come.
    pub fn cutoff(&self, now_micros: u64) -> Cutoff {
        let now = i64::try_from(now_micros).unwrap_or(i64::MAX);
        let step = i64::try_from(self.step_micros()).unwrap_or(i64::MAX);
        let oldest = now.saturating_sub(i64::try_from(self.micros).unwrap_or(i64::MAX));
        Cutoff { column: self.column, micros: oldest.div_euclid(step).saturating_mul(step) }
    }

    /// Reads `30d`, `12h`, `90 s`: a whole number and a unit. The result is in microseconds.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse_micros(text: &str) -> Result<u64, String> {
        let micros = parse_duration(text)?;
        match (TTL_MICROS_MIN..=TTL_MICROS_MAX).contains(&micros) {
            true => Ok(micros),
            false => Err(format!("rows are kept for 1s to {}d, not for {}", TTL_MICROS_MAX / UNITS[1].1, text.trim())),
        }
    }
}

/// Reads a duration such as `30d` or `90 s`, in microseconds.
///
/// # Errors
/// It is none.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, micros)| *micros);
    let micros = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    micros.ok_or_else(|| format!("'{text}' is no duration: a whole number and one of w, d, h, m, s, ms, such as '30d'"))
}

/// A duration in microseconds as [`parse_duration`] reads it, in the longest unit of which it is a whole number.
pub fn show_duration(micros: u64) -> String {
    // Weeks are read and not shown: '30d' stays what it was.
    match UNITS[1..].iter().find(|(_, unit)| micros.is_multiple_of(*unit)) {
        Some((unit, one)) => format!("{}{unit}", micros / one),
        None => format!("{micros}us"),
    }
}

/// The time that rows are kept for, as [`Ttl::parse_micros`] reads it.
impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show_duration(self.micros))
    }
}

impl Cutoff {
    /// The condition that every row satisfies which stays.
    pub fn predicate(self) -> ColumnPredicate {
        ColumnPredicate::Compare { column: self.column, op: CompareOp::GtEq, value: Datum::Int(self.micros) }
    }

    /// The later one of two of one column; of two columns, the first.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        if other.column == self.column && other.micros > self.micros { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ttl(text: &str) -> Ttl {
        Ttl { column: ColumnId(0), micros: Ttl::parse_micros(text).unwrap() }
    }

    #[test]
    fn durations_are_read_and_shown() {
        for (text, shown) in [("30d", "30d"), ("2w", "14d"), (" 90 S ", "90s"), ("1500ms", "1500ms"), ("60m", "1h")] {
            assert_eq!(ttl(text).to_string(), shown);
        }
        for wrong in ["", "30", "d", "-1d", "1.5h", "1y", "999ms", "0s", "365001d", "99999999999999999999d"] {
            assert!(Ttl::parse_micros(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_cutoff_moves_in_whole_steps_and_never_early() {
        for (text, step_seconds) in [("1s", 1), ("10s", 1), ("64m", 60), ("30d", 40_500), ("3650d", 86_400)] {
            let ttl = ttl(text);
            assert_eq!(ttl.step_micros(), step_seconds * 1_000_000, "{text}");
            let mut last = i64::MIN;
            for now in (0..10_000_000_000_u64).step_by(77_777_777) {
                let cutoff = ttl.cutoff(now).micros;
                let due = now as i64 - ttl.micros as i64;
                assert!(cutoff <= due && due - cutoff < ttl.step_micros() as i64 && cutoff >= last);
                last = cutoff;
            }
        }
    }

    #[test]
    fn the_later_one_of_one_column_holds() {
        let at = |column, micros| Cutoff { column: ColumnId(column), micros };
        assert_eq!(at(0, 5).later(at(0, 7)), at(0, 7));
        assert_eq!(at(0, 7).later(at(0, 5)), at(0, 7));
        assert_eq!(at(0, 5).later(at(1, 7)), at(0, 5));
    }
}
