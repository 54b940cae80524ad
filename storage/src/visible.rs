//! Which rows of a run are seen: those that are neither dead nor tombstones.

use std::ops::Range;

use arrow::array::BooleanBufferBuilder;
use arrow::buffer::BooleanBuffer;
use roaring::RoaringBitmap;

/// Which rows of a run are seen.
pub(crate) enum Visible {
    All,
    None,
    Some(BooleanBuffer),
}

impl Visible {
    /// How many of so many rows are seen.
    pub(crate) fn count(&self, rows: usize) -> u64 {
        match self {
            Self::All => rows as u64,
            Self::None => 0,
            Self::Some(mask) => mask.count_set_bits() as u64,
        }
    }
}

/// Which of the rows are in none of the bitmaps.
pub(crate) fn visibility(rows: Range<u32>, hidden: &[&RoaringBitmap]) -> Visible {
    if hidden.iter().all(|bitmap| bitmap.range(rows.clone()).next().is_none()) {
        return Visible::All;
    }
    // Of keys that are written often most pages are wholly dead until they are merged.
    let hides_all = |bitmap: &&RoaringBitmap| bitmap.range_cardinality(rows.clone()) == rows.len() as u64;
    if hidden.iter().any(hides_all) {
        return Visible::None;
    }
    let mut mask = BooleanBufferBuilder::new(rows.len());
    mask.append_n(rows.len(), true);
    for row in hidden.iter().flat_map(|bitmap| bitmap.range(rows.clone())) {
        mask.set_bit((row - rows.start) as usize, false);
    }
    let mask = mask.finish();
    if mask.has_true() { Visible::Some(mask) } else { Visible::None }
}
