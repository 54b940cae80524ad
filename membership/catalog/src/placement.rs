//! Which node gets a replica: the one that has fewest, then the smallest number.

use std::collections::{BTreeMap, BTreeSet};

use shoal_kernel::NodeId;

use crate::command::Command;
use crate::state::{Catalog, Partition, Replica, ReplicaState};

/// How many replicas each node holds. Derived from the partitions, so it is neither compared nor stored; none until it is
/// needed. Counting a million partitions anew for every table would cost more than the table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(Option<BTreeMap<NodeId, usize>>);

impl PartialEq for Held {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Held {}

impl Held {
    pub(crate) fn add(&mut self, node: NodeId) {
        if let Some(held) = &mut self.0 {
            *held.entry(node).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, node: NodeId) {
        if let Some(count) = self.0.as_mut().and_then(|held| held.get_mut(&node)) {
            *count = count.saturating_sub(1);
        }
    }
}

/// Nodes that may take replicas, those that hold fewest first.
pub(crate) struct Places(BTreeSet<(usize, NodeId)>);

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
        let (held, node) = self.0.iter().find(|(_, node)| fits(*node)).copied()?;
        self.0.remove(&(held, node));
        self.0.insert((held + 1, node));
        Some(node)
    }
}

impl Catalog {
    /// Active nodes with the number of replicas each holds; the numbers are kept from now on.
    pub(crate) fn keep_places(&mut self) -> Places {
        if self.held.0.is_none() {
            self.held.0 = Some(self.count_held());
        }
        self.places()
    }

    fn places(&self) -> Places {
        let counted;
        let held = match &self.held.0 {
            Some(held) => held,
            None => {
                counted = self.count_held();
                &counted
            }
        };
        Places(self.active_nodes().map(|node| (held.get(&node.id).copied().unwrap_or(0), node.id)).collect())
    }

    fn count_held(&self) -> BTreeMap<NodeId, usize> {
        let mut held = BTreeMap::new();
        for replica in self.partitions.values().flat_map(|partition| &partition.replicas) {
            *held.entry(replica.node).or_default() += 1;
        }
        held
    }

    /// Replicas that a partition of the table should have while the cluster is as large as it is.
    fn replicas_wanted(&self, partition: &Partition, active: usize) -> usize {
        let factor = self.tables.get(&partition.table).map_or(0, |table| table.options.replication_factor);
        usize::try_from(factor).unwrap_or(usize::MAX).min(active)
    }

    /// What the placement leader should propose so that every partition gets `min(replication_factor, active nodes)`
    /// replicas, given the nodes that are alive. In order of partitions, and empty once nothing is left to do.
    ///
    /// A partition has at most one joining replica at a time: catching up costs its voters reads, and each promotion is an
    /// epoch. A joining replica on a node that is not alive gives way if another node can take its place.
    pub fn wanted_changes(&self, alive: &BTreeSet<NodeId>) -> Vec<Command> {
        let (mut places, active) = (self.places(), self.active_nodes().count());
        let mut changes = Vec::new();
        for partition in self.partitions.values() {
            let joining = partition.replicas.iter().find(|replica| replica.state == ReplicaState::Joining);
            let free = |node: NodeId| alive.contains(&node) && partition.replica(node).is_none();
            match joining {
                Some(replica) if !alive.contains(&replica.node) && places.0.iter().any(|(_, node)| free(*node)) => {
                    let (partition, node, epoch) = (partition.id, replica.node, partition.epoch);
                    changes.push(Command::RemoveReplica { partition, node, epoch });
                }
                None if partition.replicas.len() < self.replicas_wanted(partition, active) => {
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
