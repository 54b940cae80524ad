//! What tells, without reading pages, that a row group does not hold a key.
//!
//! Mostly that is a Bloom filter. Where keys come in few long runs, such as one series after the other, the intervals that the
//! runs span take less room and know more: a key above the last one of its series is in none of them.

use serde::{Deserialize, Serialize};
use shoal_kernel::{Error, ErrorCode, Result, wire};

use super::bloom::Bloom;
use super::format::{GROUP_PAGES, PAGE_ROWS};
use super::writer::SegmentRows;
use crate::key::encode_keys;
use crate::layout::Layout;

const BLOOM: u8 = 0;
const INTERVALS: u8 = 1;

/// Intervals must be this many times smaller than the Bloom filter.
const INTERVALS_SMALLER: usize = 4;

/// A run of neighbouring keys: the first and the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Interval {
    first: Vec<u8>,
    last: Vec<u8>,
}

/// The filter of one row group.
#[derive(Debug)]
pub(super) enum KeyFilter {
    Bloom(Bloom),
    /// Ascending; every key of the group lies in one.
    Intervals(Vec<Interval>),
}

impl KeyFilter {
    pub(super) fn may_hold(&self, key: &[u8]) -> bool {
        match self {
            Self::Bloom(bloom) => bloom.may_hold(Bloom::hash(key)),
            Self::Intervals(intervals) => {
                let behind = intervals.partition_point(|interval| interval.first.as_slice() <= key);
                behind.checked_sub(1).is_some_and(|place| key <= intervals[place].last.as_slice())
            }
        }
    }

    /// What it is, and of how many parts.
    pub(super) fn describe(&self) -> (&'static str, usize) {
        match self {
            Self::Bloom(bloom) => ("bloom, blocks", bloom.blocks()),
            Self::Intervals(intervals) => ("intervals", intervals.len()),
        }
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let corrupt = || Error::new(ErrorCode::Corruption, "a key filter is malformed");
        match bytes.split_first() {
            Some((&BLOOM, rest)) => Bloom::from_bytes(rest).map(Self::Bloom).ok_or_else(corrupt),
            Some((&INTERVALS, rest)) => Ok(Self::Intervals(wire::decode(rest)?)),
            _ => Err(corrupt()),
        }
    }
}

/// Collects the keys of a row group.
#[derive(Default)]
pub(super) struct FilterBuilder {
    hashes: Vec<u64>,
    intervals: Vec<Interval>,
    interval_bytes: usize,
    /// The keys are too scattered for intervals.
    scattered: bool,
    /// All but the last column of the last key.
    prefix: Vec<u8>,
}

impl FilterBuilder {
    pub(super) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    pub(super) fn push(&mut self, layout: &Layout, rows: &SegmentRows) -> Result<()> {
        self.hashes.extend(rows.keys.iter().map(Bloom::hash));
        let Some((_, prefix)) = layout.key.split_last().filter(|(_, prefix)| !prefix.is_empty()) else {
            return Ok(());
        };
        if self.scattered {
            return Ok(());
        }
        for (key, prefix) in rows.keys.iter().zip(encode_keys(&rows.batch, prefix)?.iter()) {
            match self.intervals.last_mut().filter(|_| self.prefix == prefix) {
                Some(interval) => {
                    interval.last.clear();
                    interval.last.extend_from_slice(key);
                }
                None => {
                    self.prefix = prefix.to_vec();
                    self.interval_bytes += 2 * key.len() + 2;
                    self.intervals.push(Interval { first: key.to_vec(), last: key.to_vec() });
                }
            }
        }
        self.scattered = self.interval_bytes > GROUP_PAGES * PAGE_ROWS;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Vec<u8>> {
        let bloom = Bloom::of(&self.hashes).to_bytes();
        if !self.scattered && !self.intervals.is_empty() && self.interval_bytes * INTERVALS_SMALLER < bloom.len() {
            let mut bytes = vec![INTERVALS];
            bytes.extend_from_slice(&wire::encode(&self.intervals)?);
            return Ok(bytes);
        }
        Ok([&[BLOOM], bloom.as_slice()].concat())
    }
}
