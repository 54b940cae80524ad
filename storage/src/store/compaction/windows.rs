//! Windows of time: rows of one window lie together, so that old ones are not written again for new ones, and can be dropped
//! by whole segments.
//!
//! Tables whose rows are sorted by a time have them: event tables, and upsert tables whose key begins with a timestamp. A
//! window begins at a multiple of its length since 1970 and is 1 h × 4^k long, so that each lies within one of every greater
//! length. The length follows the data: the bulk of the rows spans 8 to 64 windows. A few rows far away (a clock that was
//! wrong) do not stretch it.

use std::collections::BTreeMap;

use arrow::array::cast::AsArray;
use arrow::array::types::TimestampMicrosecondType;
use roaring::RoaringBitmap;
use shoal_kernel::{Datum, KeyRange, Result};

use crate::layout::Layout;
use crate::segment::{PAGE_ROWS, Reads, Segment};
use crate::state::State;

const HOUR_MICROS: i64 = 3_600_000_000;
/// The greatest length: about 120,000 years.
const LEVEL_MAX: u32 = 15;
/// Windows that the bulk of the rows spans.
const WINDOWS_MIN: i64 = 8;
const WINDOWS_MAX: i64 = 64;
/// One row in so many may lie before the bulk, and as many behind it.
const STRAY_ONE_IN: u64 = 32;
/// Pages of a segment that are looked at for that.
const SAMPLES_MAX: u32 = 64;

/// How long windows are; kept from one look to the next, so that it does not waver between two lengths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Level(Option<u32>);

/// The windows of a table at one moment.
pub(super) struct Windows<'a> {
    layout: &'a Layout,
    /// The place of the column of time.
    column: usize,
    length_micros: i64,
}

fn length_micros(level: u32) -> i64 {
    HOUR_MICROS << (2 * level.min(LEVEL_MAX))
}

impl Level {
    /// Lets the length follow a span.
    fn fit(&mut self, span_micros: i64) -> i64 {
        let windows = |level: u32| span_micros / length_micros(level);
        let fits = |level: &u32| windows(*level) <= WINDOWS_MAX && (*level == 0 || windows(*level) >= WINDOWS_MIN);
        let longest = || (1..=LEVEL_MAX).rev().find(|&level| windows(level) >= WINDOWS_MIN).unwrap_or(0);
        let level = self.0.filter(fits).unwrap_or_else(longest);
        self.0 = Some(level);
        length_micros(level)
    }
}

impl<'a> Windows<'a> {
    /// Those of a table, if it has any.
    pub(super) fn of(state: &'a State, level: &mut Level) -> Option<Self> {
        let column = state.layout.time_order()?;
        Some(Self { layout: &state.layout, column, length_micros: level.fit(bulk_span_micros(column, state)) })
    }

    fn window(&self, micros: i64) -> i64 {
        micros.div_euclid(self.length_micros)
    }

    /// The window that holds all rows of a segment, if one does.
    pub(super) fn of_segment(&self, segment: &Segment) -> Option<i64> {
        let zone = segment.zone(self.layout, self.column);
        let (Some(Datum::Int(min)), Some(Datum::Int(max))) = (&zone.min, &zone.max) else { return None };
        Some(self.window(*min)).filter(|window| *window == self.window(*max))
    }

    /// The keys of every window that has a page's worth of living rows in these segments, in order. Reads the times of pages
    /// that reach over a window's end.
    pub(super) fn dense<'s>(
        &self,
        segments: impl Iterator<Item = (&'s Segment, &'s RoaringBitmap)>,
    ) -> Result<Vec<KeyRange>> {
        let mut rows: BTreeMap<i64, u64> = BTreeMap::new();
        for (segment, dead) in segments {
            for page in 0..segment.pages() {
                let numbers = segment.page_rows(page);
                let living = numbers.len() as u64 - dead.range_cardinality(numbers.clone());
                let zone = segment.page_zone(self.layout, self.column, page);
                let ends = match (zone.min, zone.max) {
                    (Some(Datum::Int(min)), Some(Datum::Int(max))) => Some((self.window(min), self.window(max))),
                    _ => None,
                };
                match ends {
                    Some((first, last)) if first == last => *rows.entry(first).or_default() += living,
                    _ if living == 0 => {}
                    _ => {
                        let times = segment.read_column(self.layout, self.column, page, None, Reads::Walk)?;
                        let times = times.as_primitive::<TimestampMicrosecondType>().values();
                        for (_, micros) in numbers.zip(times).filter(|(row, _)| !dead.contains(*row)) {
                            *rows.entry(self.window(*micros)).or_default() += 1;
                        }
                    }
                }
            }
        }
        rows.retain(|_, rows| *rows >= PAGE_ROWS as u64);
        let bound = |window: i64| Datum::Int(window.saturating_mul(self.length_micros)).encode();
        Ok(rows.into_keys().map(|window| KeyRange { start: bound(window), end: Some(bound(window + 1)) }).collect())
    }
}

/// From the first to the last row, without the few that lie far away.
fn bulk_span_micros(column: usize, state: &State) -> i64 {
    let mut samples: Vec<(i64, u64)> = Vec::new();
    for view in state.segments.values() {
        let step = view.segment.pages().div_ceil(SAMPLES_MAX).max(1);
        // Not the first page: whatever comes before all others begins it.
        for page in (1..view.segment.pages()).step_by(step as usize) {
            if let Some(Datum::Int(min)) = view.segment.page_zone(&state.layout, column, page).min {
                samples.push((min, u64::from(step) * view.segment.page_rows(page).len() as u64));
            }
        }
    }
    samples.sort_unstable();
    let strays = samples.iter().map(|(_, rows)| rows).sum::<u64>() / STRAY_ONE_IN;
    let (first, last) = (behind(strays, samples.iter()), behind(strays, samples.iter().rev()));
    first.zip(last).map_or(0, |(first, last)| last.saturating_sub(first).max(0))
}

/// The first sample with more rows up to it than those.
fn behind<'s>(rows: u64, samples: impl Iterator<Item = &'s (i64, u64)>) -> Option<i64> {
    let mut passed = 0;
    for (micros, of_sample) in samples {
        passed += of_sample;
        if passed > rows {
            return Some(*micros);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_follows_the_span_and_does_not_waver() {
        let hours = |hours: i64| hours * HOUR_MICROS;
        let mut level = Level::default();
        let lengths = [0, 7, 40, 64, 65, 70, 60, 33, 32, 31, 4_000, 400, 10].map(|span| level.fit(hours(span)));
        assert_eq!(lengths.map(|length| length / HOUR_MICROS), [1, 1, 1, 1, 4, 4, 4, 4, 4, 1, 256, 16, 1]);
        assert_eq!(Level::default().fit(i64::MAX) / HOUR_MICROS, 1 << 28);
    }
}
