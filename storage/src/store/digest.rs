//! The digest: one number that is equal on two replicas if, and in practice only if, they hold the same rows.

use std::fmt;

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};
use shoal_kernel::{Result, Version};

use super::{Store, lock};
use crate::hash::{content_hashes, row_hash};
use crate::layout::Layout;
use crate::rows::identities;

/// Sum over winning rows and tombstones. It does not depend on segments, order of arrival or log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Digest {
    /// Sum mod 2^128 of the hashes of (key, version, tombstone, content).
    pub sum: u128,
    /// Winning rows.
    pub rows: u64,
    /// Winning tombstones.
    pub tombstones: u64,
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}-{}-{}", self.sum, self.rows, self.tombstones)
    }
}

impl Digest {
    fn add(&mut self, other: &Self) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.rows += other.rows;
        self.tombstones += other.tombstones;
    }

    /// Of the rows of a batch of all stored columns that `is_dead` leaves.
    pub(crate) fn of_rows(
        layout: &Layout,
        batch: &RecordBatch,
        versions: &[Version],
        is_dead: impl Fn(usize) -> bool,
        is_tombstone: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        let keys = identities(layout, batch)?;
        let contents = content_hashes(&layout.with_ids(batch.columns()), batch.num_rows())?;
        let mut digest = Self::default();
        let mut scratch = Vec::new();
        for row in (0..batch.num_rows()).filter(|&row| !is_dead(row)) {
            let tombstone = is_tombstone(row);
            let hash = row_hash(keys.get(row), versions[row], tombstone, contents[row], &mut scratch);
            digest.sum = digest.sum.wrapping_add(hash);
            *if tombstone { &mut digest.tombstones } else { &mut digest.rows } += 1;
        }
        Ok(digest)
    }
}

impl Store {
    /// The digest of the present state, computed by a scan; what has not changed since the last time is not read again.
    ///
    /// # Errors
    /// [`shoal_kernel::ErrorCode::Corruption`] if a segment cannot be read.
    pub fn digest(&self) -> Result<Digest> {
        let state = lock(&self.state).clone();
        state.check_whole()?;
        let mut digest = Digest::default();
        for view in state.segments.values() {
            for page in 0..view.segment.pages() {
                digest.add(&view.page_digest(&state.layout, page)?);
            }
        }
        for view in &state.memtables {
            for chunk in &view.chunks {
                digest.add(&view.chunk_digest(&state.layout, chunk)?);
            }
        }
        Ok(digest)
    }
}
