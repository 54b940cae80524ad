//! What two replicas need to repair each other: the digest of a moment, and the rows of some of its buckets.
//!
//! Rows are handed out in the order of their identities, so that a caller may go on where it stopped, whatever was flushed and
//! merged meanwhile. Every call looks at a bounded number of rows: those of a bucket lie all over the partition.

use std::collections::BTreeSet;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{concat_batches, filter_record_batch};
use serde::{Deserialize, Serialize};
use shoal_kernel::{Cutoff, Error, Hlc, Result, Version};

use super::digest::BUCKETS;
use super::{DigestBuckets, Store, lock};
use crate::hash::key_bucket;
use crate::merge::{Merge, MergeInput, MergeRange, Merged};
use crate::rows::replicated_batch;
use crate::size::{batch_bytes, rows_within};
use crate::state::SegmentView;

/// Rows that one call looks at, about.
const ROWS_LOOKED_AT_MAX: usize = 256 << 10;
/// The first rows that are read together, by which the width of the others is judged.
const ROWS_FIRST: usize = 16;
/// Rows that are read together at most.
const ROWS_AT_ONCE: usize = 1024;

/// A digest by bucket, and what must be the same of two stores for a difference to mean anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestMoment {
    /// The sums.
    pub buckets: DigestBuckets,
    /// Rows with a time below it are not counted.
    pub cutoff: Option<Cutoff>,
    /// Nor are tombstones up to it.
    pub purged: Hlc,
}

/// Rows and tombstones of some buckets.
#[derive(Debug, Clone, PartialEq)]
pub struct BucketRows {
    /// As of [`super::Pulled::batches`]; `None` if there are none.
    pub batch: Option<RecordBatch>,
    /// Behind which identity to go on; `None` at the end.
    pub next: Option<Vec<u8>>,
}

impl Store {
    /// The digest of the present state, to be compared with another replica's.
    ///
    /// # Errors
    /// As of [`Store::digest`].
    pub fn digest_moment(&self) -> Result<DigestMoment> {
        let state = lock(&self.state).clone();
        Ok(DigestMoment { buckets: self.buckets_of(&state)?, cutoff: state.cutoff, purged: state.purged })
    }

    /// Winning rows and tombstones of these buckets whose identities come after that one, about so many bytes of them. From the
    /// beginning (an empty identity) everything is flushed first; what is accepted later may be left out.
    ///
    /// # Errors
    /// [`shoal_kernel::ErrorCode::Corruption`] if a segment cannot be read; as of [`Store::flush`].
    pub fn rows_of_buckets(&self, buckets: &BTreeSet<u8>, after: &[u8], bytes_max: usize) -> Result<BucketRows> {
        if after.is_empty() {
            self.flush()?;
        }
        let state = lock(&self.state).clone();
        state.check_whole()?;
        let layout = &state.layout;
        let input = |view: &SegmentView| MergeInput { segment: view.segment.clone(), left_out: view.dead.clone() };
        let inputs = state.segments.values().map(input).collect();
        let mut merge = Merge::new(layout.clone(), inputs, &MergeRange { after_key: after, ..MergeRange::default() });
        let failed = |error| Error::internal(format!("cannot pick rows of buckets: {error}"));
        let is_wanted = |identity: &[u8]| {
            let bucket = key_bucket(layout.key_of_identity(identity), BUCKETS);
            u8::try_from(bucket).is_ok_and(|bucket| buckets.contains(&bucket))
        };

        let mut next = Some(after.to_vec());
        let (mut batches, mut versions, mut tombstones) = (Vec::new(), Vec::<Version>::new(), Vec::<bool>::new());
        let (mut looked_at, mut bytes_left, mut at_once) = (0, bytes_max.max(1), ROWS_FIRST);
        while looked_at < ROWS_LOOKED_AT_MAX && bytes_left > 0 {
            let Some(Merged { rows, .. }) = merge.next(at_once)? else {
                next = None;
                break;
            };
            let mut count = rows.versions.len();
            looked_at += count;
            let row_bytes = batch_bytes(&rows.batch) / count.max(1);
            at_once = (bytes_max / row_bytes.max(1)).clamp(1, ROWS_AT_ONCE);
            let mut wanted: Vec<bool> = rows.keys.iter().map(is_wanted).collect();
            let mut picked = filter_record_batch(&rows.batch, &BooleanArray::from(wanted.clone())).map_err(failed)?;
            let fitting = rows_within(&picked, bytes_left);
            if fitting < picked.num_rows() {
                // Up to the last row that still goes with this answer.
                let places = wanted.iter().enumerate().filter(|(_, wanted)| **wanted).map(|(place, _)| place);
                count = places.take(fitting).last().map_or(0, |place| place + 1);
                wanted.truncate(count);
                picked = picked.slice(0, fitting);
                bytes_left = 0;
            }
            bytes_left = bytes_left.saturating_sub(batch_bytes(&picked));
            if let Some(last) = count.checked_sub(1) {
                next = Some(rows.keys.get(last).to_vec());
            }
            let picks = wanted.iter().enumerate().filter(|(_, wanted)| **wanted).map(|(place, _)| place);
            for place in picks {
                versions.push(rows.versions[place]);
                tombstones.push(rows.tombstones[place]);
            }
            if picked.num_rows() > 0 {
                batches.push(picked);
            }
        }
        let batch = match batches.first() {
            None => None,
            Some(first) => {
                let rows = concat_batches(&first.schema(), &batches).map_err(failed)?;
                let tombstones = tombstones.into_iter().collect::<BooleanBuffer>();
                Some(replicated_batch(layout, rows.columns(), &versions, tombstones)?)
            }
        };
        Ok(BucketRows { batch, next })
    }
}
