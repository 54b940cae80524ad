//! Which node gets a replica: the one that has fewest, then the smallest number.

use std::collections::{BTreeMap, BTreeSet};

use shoal_kernel::NodeId;

use crate::command::Command;
use crate::state::{Catalog, Partition, Replica, ReplicaState};

/// Nodes that may take replicas, with how many each holds.
pub(crate) struct Places(BTreeMap<NodeId, usize>);

impl Places {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes up to `count` different nodes for a new partition; its replicas vote at once, for there is nothing to catch up.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Replica> {
        let mut chosen: Vec<NodeId> = Vec::new();
        while chosen.len() < count
            && let Some(node) = self.least_loaded(|node| !chosen.contains(&node))
        {
            chosen.push(node);
        }
        chosen.sort();
        chosen.into_iter().map(|node| Replica { node, state: ReplicaState::Voting }).collect()
    }

    /// Takes the least loaded node among those that fit.
    fn least_loaded(&mut self, fits: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let (held, node) = self.0.iter().filter(|(node, _)| fits(**node)).map(|(node, held)| (*held, *node)).min()?;
        self.0.insert(node, held + 1);
        Some(node)
    }
}

impl Catalog {
    /// Active nodes with the number of replicas each holds.
    pub(crate) fn places(&self) -> Places {
        let mut held: BTreeMap<NodeId, usize> = self.active_nodes().map(|node| (node.id, 0)).collect();
        for replica in self.partitions.values().flat_map(|partition| &partition.replicas) {
            if let Some(count) = held.get_mut(&replica.node) {
                *count += 1;
            }
        }
        Places(held)
    }

    /// Replicas that a partition of the table should have while the cluster is as large as it is.
    fn replicas_wanted(&self, partition: &Partition) -> usize {
        let factor = self.tables.get(&partition.table).map_or(0, |table| table.options.replication_factor);
        usize::try_from(factor).unwrap_or(usize::MAX).min(self.active_nodes().count())
    }

    /// What the placement leader should propose so that every partition gets `min(replication_factor, active nodes)`
    /// replicas, given the nodes that are alive. In order of partitions, and empty once nothing is left to do.
    ///
    /// A partition has at most one joining replica at a time: catching up costs its voters reads, and each promotion is an
    /// epoch. A joining replica on a node that is not alive gives way if another node can take its place.
    pub fn wanted_changes(&self, alive: &BTreeSet<NodeId>) -> Vec<Command> {
        let mut places = self.places();
        let mut changes = Vec::new();
        for partition in self.partitions.values() {
            let joining = partition.replicas.iter().find(|replica| replica.state == ReplicaState::Joining);
            let free = |node: NodeId| alive.contains(&node) && partition.replica(node).is_none();
            match joining {
                Some(replica) if !alive.contains(&replica.node) && places.0.keys().any(|node| free(*node)) => {
                    let (partition, node, epoch) = (partition.id, replica.node, partition.epoch);
                    changes.push(Command::RemoveReplica { partition, node, epoch });
                }
                None if partition.replicas.len() < self.replicas_wanted(partition) => {
                    if let Some(node) = places.least_loaded(free) {
                        changes.push(Command::AddReplica { partition: partition.id, node });
                    }
                }
                _ => {}
            }
        }
        changes
    }
}
