//! Which replicas are far behind their peers. Every node tells it of its own by gossip, so that those without a replica of the
//! partition pass over them, too. Old news does no harm: it decides only whom to ask first.

use serde::{Deserialize, Serialize};
use shoal_kernel::{PartitionId, wire};
use shoal_membership::PAYLOAD_BYTES_MAX;

use super::context::NodeContext;
use crate::replica::directory::ReplicaDirectory;

/// What a node tells.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Told {
    /// Its replicas of these are far behind.
    partitions: Vec<PartitionId>,
    /// There are more than fit: any of its replicas may be.
    more: bool,
}

impl Told {
    /// In few enough bytes for the gossip.
    fn encode(mut self) -> Vec<u8> {
        loop {
            match wire::encode(&self) {
                Ok(bytes) if bytes.len() <= PAYLOAD_BYTES_MAX => return bytes,
                _ if self.partitions.is_empty() => return Vec::new(),
                _ => {
                    self.partitions.truncate(self.partitions.len() / 2);
                    self.more = true;
                }
            }
        }
    }
}

/// Tells the others which replicas of this node are far behind, if that is not what they were told last.
pub(crate) fn tell(context: &NodeContext, directory: &ReplicaDirectory) {
    let bound = context.config.read_lag_max;
    let mut partitions: Vec<PartitionId> = directory
        .all()
        .into_iter()
        .filter(|handle| handle.lag().is_some_and(|lag| lag > bound))
        .map(|handle| handle.partition)
        .collect();
    partitions.sort_unstable();
    let told = Told { partitions, more: false };
    // Whoever has never had anything to tell says nothing.
    if told != Told::default() || context.swim.tells_something() {
        // It is short enough.
        let _ = context.swim.publish(&told.encode());
    }
}

/// Whether a node that told this has a replica of the partition that is far behind.
pub(super) fn is_behind(told: &[u8], partition: PartitionId) -> bool {
    // What a node of another build tells may mean nothing here.
    !told.is_empty()
        && wire::decode::<Told>(told).is_ok_and(|told| told.more || told.partitions.binary_search(&partition).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(count: u64) -> Vec<u8> {
        let partitions = (0..count).map(|number| PartitionId(number * 1_000_003)).collect();
        Told { partitions, more: false }.encode()
    }

    #[test]
    fn what_is_told_fits_and_says_at_least_what_is_so() {
        assert!(!is_behind(&[], PartitionId(0)));
        assert!(!is_behind(&told(0), PartitionId(0)));
        assert!(!is_behind(b"strange", PartitionId(0)));
        let few = told(10);
        assert!(is_behind(&few, PartitionId(9 * 1_000_003)));
        assert!(!is_behind(&few, PartitionId(1)));
        let many = told(100_000);
        assert!(many.len() <= PAYLOAD_BYTES_MAX);
        assert!([0, 1, 99_999 * 1_000_003].into_iter().all(|id| is_behind(&many, PartitionId(id))), "any may be");
    }
}
