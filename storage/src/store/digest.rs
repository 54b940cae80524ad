//! Digests: numbers that are equal on two replicas if, and in practice only if, they hold the same rows.
//!
//! There are two. The *digest* counts which version of which key has won, in buckets that depend on the key alone. It costs
//! the writer two short hashes per row, for the key and the version of the row that loses are at hand when it loses; its
//! content is not, without reading every column of it. The *content digest* counts content as well and is computed by reading
//! all rows: it also finds replicas that hold different rows under one version, and rows that have gone from the disk.

use std::fmt;

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};
use shoal_kernel::{Planted, Result, Version};

use super::{Store, lock};
use crate::hash::{content_hashes, content_row_hash, key_bucket, version_hash};
use crate::layout::Layout;
use crate::rows::identities;
use crate::state::State;

/// Buckets of a digest, for the life of the format.
pub(crate) const BUCKETS: usize = 256;

/// Sums of hashes of (key, version, tombstone) over winning rows and tombstones, by bucket of the key. They depend neither on
/// segments, nor on the order of arrival, nor on columns beyond the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestBuckets(Vec<u128>);

impl Default for DigestBuckets {
    fn default() -> Self {
        Self(vec![0; BUCKETS])
    }
}

impl DigestBuckets {
    /// Sums by bucket, as another replica told them; buckets that it left out are empty.
    pub fn of(mut sums: Vec<u128>) -> Self {
        sums.resize(BUCKETS, 0);
        Self(sums)
    }

    /// The sums, by bucket: 256.
    pub fn sums(&self) -> &[u128] {
        &self.0
    }

    /// Buckets in which the two differ, ascending.
    pub fn differing(&self, other: &Self) -> Vec<usize> {
        (0..BUCKETS).filter(|&bucket| self.0.get(bucket) != other.0.get(bucket)).collect()
    }

    /// The sum mod 2^128 of all buckets.
    pub fn sum(&self) -> u128 {
        self.0.iter().fold(0, |sum, bucket| sum.wrapping_add(*bucket))
    }

    /// The sums as the manifest holds them.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|sum| sum.to_le_bytes()).collect()
    }

    /// `None` if these are not the bytes of all buckets.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (sums, rest) = bytes.as_chunks::<16>();
        let sums: Vec<u128> = sums.iter().map(|sum| u128::from_le_bytes(*sum)).collect();
        (sums.len() == BUCKETS && rest.is_empty()).then_some(Self(sums))
    }

    pub(crate) fn plus(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| one.wrapping_add(*other)).collect())
    }

    pub(crate) fn minus(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, other)| one.wrapping_sub(*other)).collect())
    }
}

/// Buckets that are being counted: [`Store::tally`].
pub(crate) struct Tally<'a> {
    layout: &'a Layout,
    buckets: DigestBuckets,
    scratch: Vec<u8>,
    /// Only with [`Planted::DigestWithoutTombstones`].
    passes_over_tombstones: bool,
}

impl Tally<'_> {
    /// A row or tombstone wins. Its identity is what rows are sorted by.
    pub(crate) fn add(&mut self, identity: &[u8], version: Version, tombstone: bool) {
        self.add_key(self.layout.key_of_identity(identity), version, tombstone);
    }

    /// The same, told by the key's columns alone.
    pub(crate) fn add_key(&mut self, key: &[u8], version: Version, tombstone: bool) {
        self.change(key, version, tombstone, u128::wrapping_add);
    }

    /// A row or tombstone wins no longer.
    pub(crate) fn subtract(&mut self, identity: &[u8], version: Version, tombstone: bool) {
        self.change(self.layout.key_of_identity(identity), version, tombstone, u128::wrapping_sub);
    }

    fn change(&mut self, key: &[u8], version: Version, tombstone: bool, change: fn(u128, u128) -> u128) {
        if tombstone && self.passes_over_tombstones {
            return;
        }
        let hash = version_hash(key, version, tombstone, &mut self.scratch);
        let sum = &mut self.buckets.0[key_bucket(key, BUCKETS)];
        *sum = change(*sum, hash);
    }

    pub(crate) fn finish(self) -> DigestBuckets {
        self.buckets
    }
}

/// One number for all winning rows and tombstones. It does not depend on segments, order of arrival or log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Digest {
    /// Sum mod 2^128 of the hashes of (key, version, tombstone); of the content digest, of (key, version, tombstone, content).
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
            let hash = content_row_hash(keys.get(row), versions[row], tombstone, contents[row], &mut scratch);
            digest.sum = digest.sum.wrapping_add(hash);
            *if tombstone { &mut digest.tombstones } else { &mut digest.rows } += 1;
        }
        Ok(digest)
    }
}

impl Store {
    /// The digest of the present state. Reads nothing, unless the store has come from a split and was never asked before.
    ///
    /// # Errors
    /// [`shoal_kernel::ErrorCode::Corruption`] if a segment cannot be read.
    pub fn digest(&self) -> Result<Digest> {
        let state = lock(&self.state).clone();
        let sum = self.buckets_of(&state)?.sum();
        Ok(Digest { sum, rows: state.visible_rows(), tombstones: state.tombstones() })
    }

    /// The digest of the present state by bucket, to find where two replicas differ.
    ///
    /// # Errors
    /// As of [`Store::digest`].
    pub fn digest_buckets(&self) -> Result<DigestBuckets> {
        let state = lock(&self.state).clone();
        self.buckets_of(&state)
    }

    /// Begins to count, or goes on.
    pub(super) fn tally<'a>(&self, layout: &'a Layout, buckets: DigestBuckets) -> Tally<'a> {
        let passes_over_tombstones = self.has(Planted::DigestWithoutTombstones);
        Tally { layout, buckets, scratch: Vec::new(), passes_over_tombstones }
    }

    pub(super) fn buckets_of(&self, state: &State) -> Result<DigestBuckets> {
        state.check_whole()?;
        if let Some(base) = &state.digest_base {
            return Ok(base.plus(&state.digest));
        }
        let total = self.count_buckets(state)?;
        // Whatever was accepted since is in the running sums; what was dropped since is not.
        let mut now = lock(&self.state);
        if (now.cutoff, now.purged) == (state.cutoff, state.purged) {
            now.digest_base.get_or_insert_with(|| total.minus(&state.digest).into());
        }
        Ok(total)
    }

    /// The digest's buckets counted anew from keys and versions on disk and in memory.
    pub(super) fn count_buckets(&self, state: &State) -> Result<DigestBuckets> {
        let mut tally = self.tally(&state.layout, DigestBuckets::default());
        for view in state.segments.values() {
            for page in view.pages() {
                let rows = view.segment.page_rows(page);
                if view.dead.range_cardinality(rows.clone()) == rows.len() as u64 {
                    continue;
                }
                let (keys, versions) = view.segment.read_keys(&state.layout, page)?;
                for (at, row) in rows.enumerate().filter(|(_, row)| !view.dead.contains(*row)) {
                    tally.add(keys.get(at), versions[at], view.segment.tombstones().contains(row));
                }
            }
        }
        for view in &state.memtables {
            for chunk in &view.chunks {
                let keys = identities(&state.layout, &chunk.batch)?;
                for (at, row) in (chunk.first_row..chunk.end_row()).enumerate() {
                    if !view.dead.contains(row) {
                        tally.add(keys.get(at), chunk.versions[at], view.tombstones.contains(row));
                    }
                }
            }
        }
        Ok(tally.finish())
    }

    /// The content digest of the present state, computed by a scan of all columns; what has not changed since the last time
    /// is not read again.
    ///
    /// # Errors
    /// [`shoal_kernel::ErrorCode::Corruption`] if a segment cannot be read.
    pub fn content_digest(&self) -> Result<Digest> {
        let state = lock(&self.state).clone();
        state.check_whole()?;
        let mut digest = Digest::default();
        for view in state.segments.values() {
            for page in view.pages() {
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
