//! Which replicas are far behind their peers. Every node tells it of its own by gossip, so that those without a replica of the
//! partition pass over them, too. Old news does no harm: it decides only whom to ask first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_kernel::{NodeId, PartitionId, wire};
use shoal_membership::{Members, PAYLOAD_BYTES_MAX};

use super::context::NodeContext;
use crate::replica::directory::ReplicaDirectory;

/// Before so much time has passed since the last news, nobody is told that a replica is behind no longer: one that is now above the
/// bound and now below it makes no news of it.
const QUIET: Duration = Duration::from_secs(10);

/// What a node tells about itself.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Told {
    /// Its replicas of these are far behind, in order of their numbers.
    Laggards {
        partitions: Vec<PartitionId>,
        /// There are more than fit: any of its replicas may be.
        more: bool,
    },
}

impl Told {
    fn is_behind(&self, partition: PartitionId) -> bool {
        let Self::Laggards { partitions, more } = self;
        *more || partitions.binary_search(&partition).is_ok()
    }

    /// In few enough bytes for the gossip.
    fn encode(behind: &BTreeSet<PartitionId>) -> Vec<u8> {
        let mut fitting = behind.len();
        loop {
            let partitions = behind.iter().take(fitting).copied().collect();
            match wire::encode(&Self::Laggards { partitions, more: fitting < behind.len() }) {
                Ok(bytes) if bytes.len() <= PAYLOAD_BYTES_MAX => return bytes,
                _ if fitting == 0 => return Vec::new(),
                _ => fitting /= 2,
            }
        }
    }

    /// What a node of another build tells may mean nothing here.
    fn decode(told: &[u8]) -> Option<Self> {
        if told.is_empty() { None } else { wire::decode(told).ok() }
    }
}

/// What a node has told the others.
#[derive(Default)]
pub(crate) struct Teller {
    /// None before the first turn: another one may have told something.
    told: Option<BTreeSet<PartitionId>>,
    told_at: Duration,
}

impl Teller {
    /// Tells the others which replicas of this node are far behind, of those that they may ask.
    pub(crate) fn turn(&mut self, context: &NodeContext, directory: &ReplicaDirectory) {
        let catalog = context.agreement.catalog().borrow().clone();
        let bound = context.config.read_lag_max;
        let votes = |id: &PartitionId| {
            catalog.partitions.get(id).is_some_and(|partition| partition.voters().any(|node| node == context.node))
        };
        let handles = directory.all();
        let behind = handles.iter().filter(|handle| handle.lag().is_some_and(|lag| lag > bound));
        let behind = behind.map(|handle| handle.partition).filter(votes).collect();
        if self.told.is_none() && context.swim.told().is_empty() {
            self.told = Some(BTreeSet::new());
        }
        if let Some(told) = self.news(behind, context.env.monotonic()) {
            // It is short enough.
            let _ = context.swim.publish(&told);
        }
    }

    /// What is to be told now, if anything.
    fn news(&mut self, mut behind: BTreeSet<PartitionId>, now: Duration) -> Option<Vec<u8>> {
        if let Some(told) = &self.told {
            if now < self.told_at + QUIET {
                behind.extend(told);
            }
            if behind == *told {
                return None;
            }
        }
        let told = Told::encode(&behind);
        (self.told, self.told_at) = (Some(behind), now);
        Some(told)
    }
}

/// What the others have told, as long as nothing else is known of them.
#[derive(Default)]
pub(super) struct Hearsay(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    members: Option<Arc<Members>>,
    told: Arc<BTreeMap<NodeId, Told>>,
}

impl Hearsay {
    /// Whether a node has told, as these members were heard, that its replica of a partition is far behind.
    pub(super) fn is_behind(&self, members: &Arc<Members>, node: NodeId, partition: PartitionId) -> bool {
        let told = {
            let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if !heard.members.as_ref().is_some_and(|known| Arc::ptr_eq(known, members)) {
                let told = members.iter().filter_map(|(node, member)| Some((*node, Told::decode(&member.payload)?)));
                *heard = Heard { members: Some(members.clone()), told: Arc::new(told.collect()) };
            }
            heard.told.clone()
        };
        told.get(&node).is_some_and(|told| told.is_behind(partition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<PartitionId> {
        numbers.into_iter().map(|number| PartitionId(number * 1_000_003)).collect()
    }

    #[test]
    fn what_is_told_fits_and_says_at_least_what_is_so() {
        let is_behind = |told: &[u8], id| Told::decode(told).is_some_and(|told| told.is_behind(PartitionId(id)));
        assert!(!is_behind(&[], 0));
        assert!(!is_behind(b"strange", 0));
        assert!(!is_behind(&Told::encode(&partitions([])), 0));
        let few = Told::encode(&partitions(0..10));
        assert!(is_behind(&few, 9 * 1_000_003));
        assert!(!is_behind(&few, 1));
        let many = Told::encode(&partitions(0..100_000));
        assert!(many.len() <= PAYLOAD_BYTES_MAX);
        assert!([0, 1, 99_999 * 1_000_003].into_iter().all(|id| is_behind(&many, id)), "any may be");
    }

    #[test]
    fn what_is_worse_is_told_at_once_and_what_is_better_after_a_while() {
        let mut teller = Teller { told: Some(BTreeSet::new()), told_at: Duration::ZERO };
        let mut tells = |numbers: &[u64], seconds| {
            teller.news(partitions(numbers.iter().copied()), Duration::from_secs(seconds)).is_some()
        };
        assert!(!tells(&[], 100), "whoever has nothing to tell says nothing");
        assert!(tells(&[1], 101));
        assert!(!tells(&[1], 102));
        assert!(!tells(&[], 103));
        assert!(!tells(&[1], 104));
        assert!(tells(&[2], 105));
        assert!(!tells(&[1], 106), "both are told of by now");
        assert!(tells(&[2], 115));
        assert!(!tells(&[2], 125));
        assert!(tells(&[], 126));
        assert!(Teller::default().news(BTreeSet::new(), QUIET).is_some(), "what another one told is corrected");
    }
}
