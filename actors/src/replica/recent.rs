//! What a replica accepted lately, by version: so that two replicas that got the same writes from a gateway can tell so
//! without sending rows to each other.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};
use shoal_kernel::Version;

/// Accepts remembered. Beyond, a peer that has fallen further behind is sent rows.
const RECENT_ACCEPTS_MAX: usize = 16_384;
/// Versions that one pulled batch may name before it is remembered as a whole.
const RECENT_VERSIONS_PER_ACCEPT_MAX: usize = 1_024;
/// Accepts in one answer.
const RECENT_ANSWER_ACCEPTS_MAX: usize = 4_096;

/// One accept: its position in the log, and the writes that it holds (versions with ordinal 0); none if they are too many to
/// name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecentAccept {
    pub(crate) position: u64,
    pub(crate) writes: Option<Vec<Version>>,
}

/// The last accepts of one replica, since it was started.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    accepts: VecDeque<RecentAccept>,
    /// Writes that are here whole.
    known: BTreeSet<Version>,
    order: VecDeque<Version>,
}

impl Recent {
    /// Remembers an accept: what it holds is told to peers that ask.
    pub(crate) fn note(&mut self, position: u64, writes: impl IntoIterator<Item = Version>) {
        let mut named: Vec<Version> = writes.into_iter().map(|version| version.with_ordinal(0)).collect();
        named.sort_unstable();
        named.dedup();
        let writes = (named.len() <= RECENT_VERSIONS_PER_ACCEPT_MAX).then_some(named);
        self.accepts.push_back(RecentAccept { position, writes });
        while self.accepts.len() > RECENT_ACCEPTS_MAX {
            self.accepts.pop_front();
        }
    }

    /// Remembers that a write is here **whole**, under its own version, so that a peer that has it too need not send it. Rows
    /// pulled from a peer may be part of a write, and are never remembered so.
    pub(crate) fn know(&mut self, writes: impl IntoIterator<Item = Version>) {
        for version in writes {
            if self.known.insert(version) {
                self.order.push_back(version);
            }
        }
        while self.order.len() > 4 * RECENT_ACCEPTS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    /// Accepts after `position`, oldest first, if none of them has been forgotten. `last` is the log's newest position.
    pub(crate) fn after(&self, position: u64, last: u64) -> Option<Vec<RecentAccept>> {
        if position >= last {
            return Some(Vec::new());
        }
        let first = self.accepts.front()?.position;
        if first > position + 1 {
            return None;
        }
        let start = self.accepts.partition_point(|accept| accept.position <= position);
        Some(self.accepts.iter().skip(start).take(RECENT_ANSWER_ACCEPTS_MAX).cloned().collect())
    }

    /// How far a peer's accepts are known here: the position of the last one before the first unknown.
    pub(crate) fn covers(&self, from: u64, accepts: &[RecentAccept]) -> u64 {
        let mut covered = from;
        for accept in accepts {
            match &accept.writes {
                Some(writes) if writes.iter().all(|version| self.known.contains(version)) => covered = accept.position,
                _ => break,
            }
        }
        covered
    }
}

#[cfg(test)]
mod tests {
    use shoal_kernel::{Hlc, NodeId};

    use super::*;

    fn write(micros: u64) -> Version {
        Version::new(Hlc::from_micros(micros), NodeId(1), 0)
    }

    #[test]
    fn peers_with_the_same_writes_need_no_rows() {
        let (mut a, mut b) = (Recent::default(), Recent::default());
        a.note(1, [write(10)]);
        a.note(2, [write(20)]);
        b.note(1, [write(20)]);
        b.know([write(20)]);
        let accepts = a.after(0, 2).unwrap();
        assert_eq!(b.covers(0, &accepts), 0, "the first is missing");
        b.note(2, [write(10)]);
        assert_eq!(b.covers(0, &accepts), 0, "what was pulled may be part of a write");
        b.know([write(10)]);
        assert_eq!(b.covers(0, &accepts), 2);
    }

    #[test]
    fn what_was_forgotten_is_not_claimed() {
        let mut recent = Recent::default();
        for position in 1..=(RECENT_ACCEPTS_MAX as u64 + 10) {
            recent.note(position, [write(position)]);
        }
        let last = RECENT_ACCEPTS_MAX as u64 + 10;
        assert_eq!(recent.after(5, last), None);
        assert_eq!(recent.after(last, last), Some(Vec::new()));
        assert_eq!(recent.after(last - 1, last).unwrap().len(), 1);
        assert_eq!(Recent::default().after(3, 9), None, "a restarted replica remembers nothing");
    }

    #[test]
    fn a_batch_of_too_many_writes_is_unknown_to_others() {
        let (mut a, b) = (Recent::default(), Recent::default());
        a.note(1, (0..2_000).map(write));
        assert_eq!(b.covers(0, &a.after(0, 1).unwrap()), 0);
    }
}
