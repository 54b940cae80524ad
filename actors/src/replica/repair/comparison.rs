//! What two replicas hold, compared while writes flow; pure.
//!
//! A digest is a sum over rows, so the *difference* of two digests is the sum of what only one has less the sum of what only the
//! other has, and a write that both get leaves it as it was. Rows that are on their way make it another one at every look, or
//! nothing; what catch-up has missed makes it the same one, look after look. So a bucket in which the same difference is seen
//! twice, with time between to pull what was on its way, differs; and one that is seen equal once, is. To be wrong costs no more
//! than the sending of rows that are there.

use std::collections::{BTreeMap, BTreeSet};

use shoal_storage::DigestMoment;

/// Buckets of two replicas.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// Buckets of which nothing is known yet, with the difference at the last look that told one.
    open: BTreeMap<u8, Option<u128>>,
    differing: BTreeSet<u8>,
}

impl Default for Comparison {
    fn default() -> Self {
        Self { open: (0..=u8::MAX).map(|bucket| (bucket, None)).collect(), differing: BTreeSet::new() }
    }
}

impl Comparison {
    /// Looks at both once more. `caught_up` says that each had pulled the other's log when it was last asked. Gives whether differences
    /// mean something.
    pub(crate) fn look(&mut self, own: &DigestMoment, others: &DigestMoment, caught_up: bool) -> bool {
        // Where one has dropped rows that had had their time, or tombstones, and the other not yet, differences mean nothing.
        let comparable = own.cutoff == others.cutoff && own.purged == others.purged;
        let (own, others) = (own.buckets.sums(), others.buckets.sums());
        let differing = &mut self.differing;
        self.open.retain(|bucket, before| {
            let place = usize::from(*bucket);
            let (Some(own), Some(other)) = (own.get(place), others.get(place)) else { return false };
            let difference = own.wrapping_sub(*other);
            if difference == 0 {
                return false;
            }
            if comparable && caught_up && *before == Some(difference) {
                differing.insert(*bucket);
                return false;
            }
            *before = comparable.then_some(difference);
            true
        });
        comparable
    }

    /// Whether each bucket is known to differ or to be equal.
    pub(crate) fn is_decided(&self) -> bool {
        self.open.is_empty()
    }

    /// Buckets that differ.
    pub(crate) fn differing(&self) -> &BTreeSet<u8> {
        &self.differing
    }

    /// Those, and the ones that never held still.
    pub(crate) fn suspects(&self) -> BTreeSet<u8> {
        self.differing.iter().chain(self.open.keys()).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use shoal_kernel::{ColumnId, Cutoff, Hlc};
    use shoal_storage::DigestBuckets;

    use super::*;

    /// Sums of buckets, here and there, and whether both had caught up.
    type Look<'a> = (&'a [(usize, u128)], &'a [(usize, u128)], bool);

    fn moment(sums: &[(usize, u128)]) -> DigestMoment {
        let mut all = vec![1u128; 256];
        sums.iter().for_each(|(bucket, sum)| all[*bucket] = *sum);
        DigestMoment { buckets: DigestBuckets::of(all), cutoff: None, purged: Hlc::default() }
    }

    fn suspects(looks: &[Look<'_>]) -> (Vec<u8>, Vec<u8>) {
        let mut comparison = Comparison::default();
        for (own, others, caught_up) in looks {
            comparison.look(&moment(own), &moment(others), *caught_up);
        }
        let suspects = comparison.suspects().into_iter().collect();
        (comparison.differing().iter().copied().collect(), suspects)
    }

    #[test]
    fn equal_buckets_need_one_look() {
        assert_eq!(suspects(&[(&[(3, 7)], &[(3, 7)], false)]), (vec![], vec![]));
    }

    #[test]
    fn a_lasting_difference_is_seen_through_writes() {
        // 200 lacks something worth 5, while both get rows; 100 had one on its way.
        let looks: [Look<'_>; 3] = [
            (&[(200, 95), (100, 9)], &[(200, 100), (100, 2)], true),
            (&[(200, 995), (100, 11)], &[(200, 1_000), (100, 9)], true),
            (&[(200, 3), (100, 20)], &[(200, 9), (100, 20)], true),
        ];
        assert_eq!(suspects(&looks[..1]), (vec![], vec![100, 200]));
        assert_eq!(suspects(&looks[..2]), (vec![200], vec![100, 200]));
        assert_eq!(suspects(&looks), (vec![200], vec![200]));
    }

    #[test]
    fn nothing_is_concluded_from_replicas_that_are_behind_or_expire() {
        let look: Look<'_> = (&[(1, 5)], &[(1, 6)], false);
        assert_eq!(suspects(&[look, look, look]), (vec![], vec![1]));
        let cutoff = Some(Cutoff { column: ColumnId(1), micros: 5 });
        let expired = DigestMoment { cutoff, ..moment(&[(1, 5)]) };
        let mut comparison = Comparison::default();
        for _ in 0..3 {
            comparison.look(&expired, &moment(&[(1, 6)]), true);
        }
        assert!(comparison.differing().is_empty() && !comparison.is_decided());
        comparison.look(&expired, &DigestMoment { cutoff, ..moment(&[(1, 6)]) }, true);
        assert!(comparison.differing().is_empty(), "the looks before were of other rows");
        comparison.look(&expired, &DigestMoment { cutoff, ..moment(&[(1, 6)]) }, true);
        assert_eq!(comparison.differing().len(), 1);
    }
}
