//! Which segments are merged: never more than keeps what is written, and what lies about, within bounds.
//!
//! - **Groups.** Segments of one window of time are merged with each other only; all others are one group, the loose ones. A
//!   window with less than a page of rows is loose too. What is merged of the loose ones is cut into its windows.
//! - **Tiers.** A segment's tier is the power of the fan-in that its rows, dead ones included, have reached; it never changes.
//!   Segments of a tier are merged as soon as the rows that stay make a segment of the next tier. So every merge takes each of
//!   its rows at least one tier up, and between merges a tier has less than `fan_in / (1 - 1/4)` segments.
//! - **Dead rows.** A segment of whose rows more than a quarter are dead is written again by itself, or together with others if it has less
//!   than a page of them: there can be many of those.
//!
//! The smallest merge goes first: it costs least and leaves fewest segments.

use std::collections::BTreeMap;

use shoal_kernel::{KeyRange, Result, SegmentId};

use super::Parts;
use super::windows::{Level, Windows};
use crate::options::StoreOptions;
use crate::segment::PAGE_ROWS;
use crate::state::{SegmentView, State};

/// More dead rows than one in so many are not left where they are.
const DEAD_ONE_IN: u64 = 4;
/// Segments of less than a page that one merge takes: each holds a page in memory meanwhile.
const INPUTS_MAX: usize = 32;
/// Full segments that one round of optimising writes: what it has done stays if it is stopped later.
const ROUND_SEGMENTS: u64 = 4;

/// Segments that are merged into one, or as few as can be, or one for each window.
#[derive(Debug)]
pub(super) struct Pick {
    pub(super) ids: Vec<SegmentId>,
    pub(super) parts: Parts,
}

/// Segments that are to be merged, and whether they are loose ones.
#[derive(Debug)]
pub(super) struct Due {
    ids: Vec<SegmentId>,
    is_loose: bool,
}

struct Candidate<'a> {
    id: SegmentId,
    view: &'a SegmentView,
    /// Rows that a merge keeps.
    living: u64,
}

impl Candidate<'_> {
    fn rows(&self) -> u64 {
        u64::from(self.view.segment.rows())
    }

    fn has_dead(&self) -> bool {
        self.view.old_dead > 0
    }
}

/// The groups of a store's segments at one moment.
pub(super) struct Groups<'a> {
    options: &'a StoreOptions,
    windows: Option<Windows<'a>>,
    /// By window; the loose ones come first.
    groups: BTreeMap<Option<i64>, Vec<Candidate<'a>>>,
}

impl<'a> Groups<'a> {
    pub(super) fn of(options: &'a StoreOptions, state: &'a State, level: &mut Level) -> Self {
        let windows = Windows::of(state, level);
        let mut groups: BTreeMap<Option<i64>, Vec<Candidate<'a>>> = BTreeMap::new();
        for (id, view) in state.segments.iter().filter(|(_, view)| !view.history) {
            // What cannot be read waits until it can.
            if view.segment.damage().is_some() {
                continue;
            }
            let living = u64::from(view.segment.rows()).saturating_sub(view.old_dead);
            let window = windows.as_ref().and_then(|windows| windows.of_segment(&view.segment));
            groups.entry(window).or_default().push(Candidate { id: *id, view, living });
        }
        let is_small = |group: &[Candidate<'_>]| living_rows(group) < PAGE_ROWS as u64;
        let small: Vec<i64> =
            groups.iter().filter(|(_, group)| is_small(group)).filter_map(|(window, _)| *window).collect();
        for window in small {
            let group = groups.remove(&Some(window)).unwrap_or_default();
            groups.entry(None).or_default().extend(group);
        }
        if let Some(loose) = groups.get_mut(&None) {
            loose.sort_unstable_by_key(|candidate| candidate.id);
        }
        Self { options, windows, groups }
    }

    /// The merge that is due and writes least, and how many segments wait for one, those of this one included.
    pub(super) fn due(&self) -> (Option<Due>, usize) {
        let mut waiting = 0;
        let mut first: Option<(u64, Due)> = None;
        for (window, group) in &self.groups {
            for due in self.due_of(group) {
                waiting += due.len();
                let living = due.iter().map(|candidate| candidate.living).sum();
                if first.as_ref().is_none_or(|(least, ..)| living < *least) {
                    let ids = due.iter().map(|candidate| candidate.id).collect();
                    first = Some((living, Due { ids, is_loose: window.is_none() }));
                }
            }
        }
        (first.map(|(_, due)| due), waiting)
    }

    fn due_of<'g>(&self, group: &'g [Candidate<'a>]) -> Vec<Vec<&'g Candidate<'a>>> {
        let fan_in = self.options.compaction_fan_in.max(2);
        let (mut due, mut small) = (Vec::new(), Vec::new());
        let mut tiers: BTreeMap<u32, Vec<&Candidate<'_>>> = BTreeMap::new();
        for candidate in group {
            let tier = tier(candidate.rows(), fan_in as u64);
            match candidate.view.old_dead * DEAD_ONE_IN > candidate.rows() {
                true if tier == 0 => small.push(candidate),
                true => due.push(vec![candidate]),
                false => tiers.entry(tier).or_default().push(candidate),
            }
        }
        due.extend(small.chunks(INPUTS_MAX).map(<[_]>::to_vec));
        for (tier, candidates) in tiers {
            let Some(wanted) = first_rows(tier + 1, fan_in as u64) else { continue };
            if wanted > u64::from(self.options.segment_rows_max) {
                continue;
            }
            let mut rest = candidates.as_slice();
            while !rest.is_empty() {
                let mut living = 0;
                let reach = rest.iter().position(|candidate| {
                    living += candidate.living;
                    living >= wanted
                });
                let taken = match reach {
                    Some(last) => last + 1,
                    // Below a page it is the number that counts.
                    None if tier == 0 && rest.len() >= fan_in => rest.len(),
                    None => break,
                };
                let (first, others) = rest.split_at(taken.min(INPUTS_MAX));
                due.push(first.to_vec());
                rest = others;
            }
        }
        due
    }

    /// The next segments to be written again before each group has as few of them as can be, without dead rows, and no window
    /// with a page of rows is among the loose ones.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub(super) fn fewest(&self) -> Result<Option<Due>> {
        let rows_max = u64::from(self.options.segment_rows_max).max(1);
        // Segments are written in whole pages, and only the last one may end within a page.
        let page_rows = rows_max.min(PAGE_ROWS as u64);
        let full = rows_max / page_rows * page_rows;
        let fewest = |living: u64| living.saturating_sub(rows_max - full).max(u64::from(living > 0)).div_ceil(full);
        for (window, group) in &self.groups {
            let is_loose = window.is_none();
            let cut = is_loose && !self.dense(group.iter())?.is_empty();
            let mut open: Vec<&Candidate<'_>> = group.iter().collect();
            if !cut {
                open.retain(|candidate| candidate.has_dead() || candidate.rows() < full);
                if open.len() as u64 <= fewest(open.iter().map(|candidate| candidate.living).sum()) {
                    // No merge makes them fewer.
                    open.retain(|candidate| candidate.has_dead());
                }
            }
            let (mut picked, mut living) = (Vec::new(), 0);
            for candidate in open {
                living += candidate.living;
                // Rows are counted in 32 bits through all that a merge writes.
                let enough = picked.len() > 1 && living > full * ROUND_SEGMENTS;
                if enough || living >= u64::from(u32::MAX) && !picked.is_empty() {
                    break;
                }
                picked.push(candidate.id);
            }
            if !picked.is_empty() {
                return Ok(Some(Due { ids: picked, is_loose }));
            }
        }
        Ok(None)
    }

    /// What becomes of segments that are to be merged.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub(super) fn pick(&self, due: Due) -> Result<Pick> {
        let Due { ids, is_loose } = due;
        let loose = self.groups.get(&None).filter(|_| is_loose).map_or(&[][..], Vec::as_slice);
        let ranges = self.dense(loose.iter().filter(|candidate| ids.contains(&candidate.id)))?;
        Ok(Pick { ids, parts: Parts::cut(ranges) })
    }

    fn dense<'g>(&self, candidates: impl Iterator<Item = &'g Candidate<'a>>) -> Result<Vec<KeyRange>>
    where
        'a: 'g,
    {
        let Some(windows) = &self.windows else { return Ok(Vec::new()) };
        windows.dense(candidates.map(|candidate| (&*candidate.view.segment, &*candidate.view.dead)))
    }
}

fn living_rows(group: &[Candidate<'_>]) -> u64 {
    group.iter().map(|candidate| candidate.living).sum()
}

/// The fewest rows of a tier; `None` if there cannot be so many.
fn first_rows(tier: u32, fan_in: u64) -> Option<u64> {
    match tier.checked_sub(1) {
        None => Some(0),
        Some(power) => fan_in.checked_pow(power)?.checked_mul(PAGE_ROWS as u64),
    }
}

fn tier(rows: u64, fan_in: u64) -> u32 {
    match rows / PAGE_ROWS as u64 {
        0 => 0,
        pages => 1 + pages.ilog(fan_in),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_begins_where_the_one_below_ends() {
        for fan_in in [2, 4, 7] {
            for number in 1..6 {
                let first = first_rows(number, fan_in).unwrap();
                assert_eq!((tier(first - 1, fan_in), tier(first, fan_in)), (number - 1, number));
            }
        }
        assert_eq!(first_rows(60, 4), None);
    }
}
