//! Which node gets a replica: the one that has fewest, then the smallest number.

use std::collections::{BTreeMap, BTreeSet};

use shoal_kernel::NodeId;

use crate::command::Command;
use crate::state::{Catalog, NodeState, Partition, Replica, ReplicaState};

/// Partitions that change at once before replicas are moved only for balance.
const MOVES_MAX: usize = 4;

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

    /// The most loaded node among those that fit.
    fn most_loaded(&self, fits: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        self.0.iter().rev().map(|(_, node)| *node).find(|node| fits(*node))
    }
}

/// What whoever decides on places knows of the nodes.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    /// Nodes that answer.
    pub alive: BTreeSet<NodeId>,
    /// Nodes that have been gone for so long that others take their place.
    pub lost: BTreeSet<NodeId>,
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

    /// How many replicas each node holds that holds any, those that are leaving included.
    pub fn count_held(&self) -> BTreeMap<NodeId, usize> {
        let mut held = BTreeMap::new();
        for replica in self.partitions.values().flat_map(|partition| &partition.replicas) {
            *held.entry(replica.node).or_default() += 1;
        }
        held
    }

    /// What the placement leader should propose: every partition gets `min(replication_factor, active nodes)` voting replicas on
    /// nodes that stay, replicas beyond that go, and then the nodes get as many replicas as each other. In order of partitions, and
    /// empty once nothing is left to do.
    ///
    /// One thing at a time changes of a partition: catching up costs its voters reads, and each promotion is an epoch. First a
    /// replica more, then one less: no partition has fewer copies meanwhile. Whoever proposes a [`Command::RetireReplica`] should
    /// first see that enough of the others serve.
    pub fn wanted_changes(&self, outlook: &Outlook) -> Vec<Command> {
        let (mut places, active) = (self.places(), self.active_nodes().count());
        let mut changes = Vec::new();
        let mut moving = 0;
        for partition in self.partitions.values() {
            let change = self.wanted_change(partition, self.replicas_wanted(partition, active), outlook, &mut places);
            let joining = || partition.replicas.iter().any(|replica| replica.state == ReplicaState::Joining);
            moving += usize::from(change.is_some() || !partition.settled || joining());
            changes.extend(change);
        }
        let full = |partition: &Partition| {
            let takers = partition.takers().count();
            takers == partition.voters().count() && takers == self.replicas_wanted(partition, active)
        };
        self.balance(outlook, &mut places, MOVES_MAX.saturating_sub(moving), full, &mut changes);
        changes
    }

    fn wanted_change(
        &self,
        partition: &Partition,
        wanted: usize,
        outlook: &Outlook,
        places: &mut Places,
    ) -> Option<Command> {
        let (id, epoch) = (partition.id, partition.epoch);
        let free = |node: NodeId| {
            let state = partition.replica(node).map(|replica| replica.state);
            outlook.alive.contains(&node) && state.is_none_or(|state| state == ReplicaState::Leaving)
        };
        if let Some(joining) = partition.replicas.iter().find(|replica| replica.state == ReplicaState::Joining) {
            // One that cannot come to its end gives way.
            let node = joining.node;
            let better = || places.0.iter().any(|(_, other)| free(*other));
            let gives_way = !self.is_active(node) || (!outlook.alive.contains(&node) && better());
            return gives_way.then_some(Command::RetireReplica { partition: id, node, epoch });
        }
        let stays = |node: &NodeId| self.is_active(*node) && !outlook.lost.contains(node);
        let (staying, going): (Vec<NodeId>, Vec<NodeId>) = partition.voters().partition(stays);
        if staying.len() < wanted {
            return places.least_loaded(free).map(|node| Command::AddReplica { partition: id, node });
        }
        let is_leaving =
            |replica: &Replica| replica.state == ReplicaState::Leaving && outlook.alive.contains(&replica.node);
        if partition.replicas.iter().any(is_leaving) {
            return None;
        }
        let surplus = || places.most_loaded(|node| staying.contains(&node)).filter(|_| staying.len() > wanted);
        let node = going.first().copied().or_else(surplus)?;
        (partition.settled || partition.reverts(node)).then_some(Command::RetireReplica { partition: id, node, epoch })
    }

    /// Replicas that a partition should have while the cluster is as large as it is.
    fn replicas_wanted(&self, partition: &Partition, active: usize) -> usize {
        let factor = self.tables.get(&partition.table).map_or(0, |table| table.options.replication_factor);
        usize::try_from(factor).unwrap_or(usize::MAX).min(active)
    }

    fn is_active(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|record| record.state == NodeState::Active)
    }

    /// Up to `moves` replicas more on nodes that hold few, of partitions that are on nodes which hold many. That these have one
    /// replica too many then, the next turns see to.
    fn balance(
        &self,
        outlook: &Outlook,
        places: &mut Places,
        moves: usize,
        full: impl Fn(&Partition) -> bool,
        changes: &mut Vec<Command>,
    ) {
        let stays = |node: NodeId| outlook.alive.contains(&node) && !outlook.lost.contains(&node);
        let mut moved = BTreeSet::new();
        for _ in 0..moves {
            let Some((most, from)) = places.0.iter().rfind(|(_, node)| stays(*node)).copied() else { return };
            let Some((least, to)) = places.0.iter().find(|(_, node)| stays(*node)).copied() else { return };
            if most < least + 2 {
                return;
            }
            let fits = |partition: &&Partition| {
                !moved.contains(&partition.id)
                    && partition.settled
                    && partition.voters().any(|voter| voter == from)
                    && partition.replica(to).is_none()
                    && full(partition)
            };
            let Some(partition) = self.partitions.values().find(fits) else { return };
            moved.insert(partition.id);
            places.0.remove(&(most, from));
            places.0.insert((most - 1, from));
            places.0.remove(&(least, to));
            places.0.insert((least + 1, to));
            changes.push(Command::AddReplica { partition: partition.id, node: to });
        }
    }
}
