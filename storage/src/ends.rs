//! Rows at the ends of the key's order: of a series only its newest point, of a table only its first day. Segments lie in that
//! order, so the other rows are told by their key columns alone, and once an end was found whole pages need not be looked at.

use arrow::array::Array;
use arrow::buffer::{BooleanBuffer, MutableBuffer};
use arrow::compute::kernels::cmp::distinct;
use arrow::util::bit_util;
use shoal_kernel::{Datum, Error, KeyEnds, Result};

use crate::key::datum_at;
use crate::layout::Layout;
use crate::scan::Source;
use crate::segment::{PageCodes, Segment};

/// Leaves out rows of which another one of the same scan makes sure that nobody wants them.
pub(crate) struct Ends {
    wanted: KeyEnds,
    /// Places in the table's schema of the columns in which rows must agree.
    places: Vec<usize>,
    /// The source that was read last, and the values that the columns have in the row that was kept last.
    met: Option<(u32, Vec<Datum>)>,
}

impl Ends {
    pub(crate) fn new(wanted: KeyEnds, layout: &Layout) -> Self {
        let places: Vec<usize> = layout.key.iter().copied().take(wanted.columns as usize).collect();
        Self { wanted, places, met: None }
    }

    /// Whether pages are best read backwards.
    pub(crate) fn goes_backwards(&self) -> bool {
        self.wanted.last && !self.wanted.first
    }

    /// Whether the page, which comes after those that were read, has only rows that agree with one that was kept.
    pub(crate) fn have_passed(&self, layout: &Layout, source: u32, segment: &Segment, page: u32) -> bool {
        let Some((_, values)) = self.met.as_ref().filter(|(met, _)| *met == source) else { return false };
        // Both ends of the same rows may be far apart.
        self.wanted.first != self.wanted.last
            && self.places.iter().zip(values).all(|(place, value)| {
                let zone = segment.page_zone(layout, *place, page);
                zone.nulls == 0 && zone.min.as_ref() == Some(value) && zone.max.as_ref() == Some(value)
            })
    }

    /// Keeps of the selected rows (all, if `None`) of a unit those that matter.
    pub(crate) fn keep(
        &mut self,
        number: u32,
        rows: usize,
        source: &dyn Source,
        selected: Option<BooleanBuffer>,
    ) -> Result<Option<BooleanBuffer>> {
        if rows == 0 || !source.is_in_key_order() {
            return Ok(selected);
        }
        let starts = self.starts(rows, source)?;
        let ends = starts[1..].iter().copied().chain([rows]);
        let mut kept = MutableBuffer::from_len_zeroed(bit_util::ceil(rows, 8));
        let mut frontier = None;
        for (start, end) in starts.iter().copied().zip(ends) {
            let (first, last) = match &selected {
                None => (Some(start), Some(end - 1)),
                Some(selected) => {
                    let mut within = (start..end).filter(|row| selected.value(*row));
                    let first = within.next();
                    (first, within.next_back().or(first))
                }
            };
            for row in first.filter(|_| self.wanted.first).into_iter().chain(last.filter(|_| self.wanted.last)) {
                bit_util::set_bit(kept.as_slice_mut(), row);
                if frontier.is_none() || !self.wanted.last {
                    frontier = Some(row);
                }
            }
        }
        if let Some(row) = frontier {
            let row = [u32::try_from(row).map_err(|_| Error::internal("a page of too many rows"))?];
            let value = |place: &usize| datum_at(&source.load(*place, Some(&row))?, 0);
            self.met = Some((number, self.places.iter().map(value).collect::<Result<_>>()?));
        }
        Ok(Some(BooleanBuffer::new(kept.into(), 0, rows)))
    }

    /// The rows, ascending, at which rows begin that agree; the first of all is one.
    fn starts(&self, rows: usize, source: &dyn Source) -> Result<Vec<usize>> {
        let mut begins = BooleanBuffer::new_unset(rows);
        for place in &self.places {
            let differs = match source.codes(*place, None)? {
                Some(PageCodes { codes, nulls: None, .. }) => changes(&codes),
                Some(PageCodes { codes, nulls: Some(nulls), .. }) => {
                    let value = |row: usize| nulls.is_valid(row).then(|| codes[row]);
                    BooleanBuffer::collect_bool(rows, |row| row > 0 && value(row) != value(row - 1))
                }
                None => {
                    let column = source.load(*place, None)?;
                    let (before, after) = (column.slice(0, rows - 1), column.slice(1, rows - 1));
                    let differs = distinct(&before, &after).map_err(|error| Error::internal(error.to_string()))?;
                    BooleanBuffer::collect_bool(rows, |row| row > 0 && differs.value(row - 1))
                }
            };
            begins = &begins | &differs;
        }
        Ok(std::iter::once(0).chain(begins.set_indices()).collect())
    }
}

/// Codes that are compared at once: most neighbours are alike.
const BLOCK_ROWS: usize = 64;

/// Which codes differ from the one before.
fn changes(codes: &[u32]) -> BooleanBuffer {
    let mut changes = MutableBuffer::from_len_zeroed(bit_util::ceil(codes.len(), 8));
    for start in (1..codes.len()).step_by(BLOCK_ROWS) {
        let end = codes.len().min(start + BLOCK_ROWS);
        if codes[start..end] != codes[start - 1..end - 1] {
            (start..end)
                .filter(|row| codes[*row] != codes[row - 1])
                .for_each(|row| bit_util::set_bit(&mut changes, row));
        }
    }
    BooleanBuffer::new(changes.into(), 0, codes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_found_wherever_they_are() {
        for rows in [0usize, 1, 2, 63, 64, 65, 128, 129, 200] {
            for at in 0..rows {
                let codes: Vec<u32> = (0..rows).map(|row| u32::from(row >= at)).collect();
                let expected: Vec<usize> = (at > 0).then_some(at).into_iter().collect();
                assert_eq!(changes(&codes).set_indices().collect::<Vec<_>>(), expected, "{at} of {rows}");
            }
        }
        let codes: Vec<u32> = (0..100).collect();
        assert_eq!(changes(&codes).count_set_bits(), 99);
    }
}
