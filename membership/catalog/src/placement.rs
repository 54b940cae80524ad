//! Which node gets a replica: one in a zone that has fewest of the partition; of these, the one that holds fewest replicas, then the
//! one with the smallest number.

use std::collections::{BTreeMap, BTreeSet};

use shoal_kernel::{NodeId, PartitionId};

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

/// Nodes that may take replicas, and how many each holds.
pub(crate) struct Places {
    nodes: BTreeMap<NodeId, Place>,
    /// Of each zone, those that hold fewest first.
    zones: Vec<BTreeSet<(usize, NodeId)>>,
}

#[derive(Clone, Copy)]
struct Place {
    zone: usize,
    held: usize,
}

impl Places {
    fn of(catalog: &Catalog, held: &BTreeMap<NodeId, usize>) -> Self {
        let names: BTreeSet<&str> = catalog.active_nodes().map(|node| node.attributes.zone.as_str()).collect();
        let numbers: BTreeMap<&str, usize> = names.into_iter().zip(0..).collect();
        let mut places = Self { nodes: BTreeMap::new(), zones: vec![BTreeSet::new(); numbers.len()] };
        for node in catalog.active_nodes() {
            let zone = numbers[node.attributes.zone.as_str()];
            let held = held.get(&node.id).copied().unwrap_or(0);
            places.nodes.insert(node.id, Place { zone, held });
            places.zones[zone].insert((held, node.id));
        }
        places
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Takes up to `count` different nodes for a new partition, in as many zones as there are; its replicas vote at once, for there
    /// is nothing to catch up.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Replica> {
        let mut chosen: Vec<NodeId> = Vec::new();
        while chosen.len() < count
            && let Some(node) = self.best(&chosen, |node| !chosen.contains(&node))
        {
            self.add(node);
            chosen.push(node);
        }
        chosen.sort();
        chosen.into_iter().map(|node| Replica { node, state: ReplicaState::Voting, failed: false }).collect()
    }

    /// Where the next replica belongs of a partition that is on `on` already, among the nodes that fit: in the zone with fewest of
    /// these, on the node that holds fewest of all.
    fn best(&self, on: &[NodeId], fits: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let first = |(zone, nodes): (usize, &BTreeSet<(usize, NodeId)>)| {
            let (held, node) = nodes.iter().find(|(_, node)| fits(*node))?;
            Some((self.in_zone(zone, on), *held, *node))
        };
        let best = self.zones.iter().enumerate().filter_map(first).min();
        best.map(|(.., node)| node)
    }

    /// Which of the nodes a partition is on it does best without: of the zone with most of them, the one that holds most of all.
    fn worst(&self, on: &[NodeId]) -> Option<NodeId> {
        let places = on.iter().filter_map(|node| Some((node, self.nodes.get(node)?)));
        let worst = places.map(|(node, place)| (self.in_zone(place.zone, on), place.held, *node)).max();
        worst.map(|(.., node)| node)
    }

    /// How many of these nodes are in a zone.
    fn in_zone(&self, zone: usize, nodes: &[NodeId]) -> usize {
        nodes.iter().filter(|node| self.nodes.get(node).is_some_and(|place| place.zone == zone)).count()
    }

    fn add(&mut self, node: NodeId) {
        self.set(node, |held| held + 1);
    }

    fn remove(&mut self, node: NodeId) {
        self.set(node, |held| held.saturating_sub(1));
    }

    fn set(&mut self, node: NodeId, change: impl Fn(usize) -> usize) {
        let Some(place) = self.nodes.get_mut(&node) else { return };
        let nodes = &mut self.zones[place.zone];
        nodes.remove(&(place.held, node));
        place.held = change(place.held);
        nodes.insert((place.held, node));
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
        Places::of(self, held)
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
        let (mut changes, mut moving) = (Vec::new(), 0);
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
            outlook.alive.contains(&node)
                && state.is_none_or(|state| state == ReplicaState::Leaving)
                && !partition.has_failed(node)
        };
        if let Some(joining) = partition.replicas.iter().find(|replica| replica.state == ReplicaState::Joining) {
            // One that cannot come to its end gives way.
            let node = joining.node;
            let better = || places.nodes.keys().any(|other| free(*other));
            let stuck = joining.failed || !outlook.alive.contains(&node);
            let gives_way = !self.is_active(node) || (stuck && better());
            return gives_way.then_some(Command::RetireReplica { partition: id, node, epoch });
        }
        let stays =
            |node: &NodeId| self.is_active(*node) && !outlook.lost.contains(node) && !partition.has_failed(*node);
        let (staying, going): (Vec<NodeId>, Vec<NodeId>) = partition.voters().partition(stays);
        if staying.len() < wanted {
            let node = places.best(&staying, free)?;
            places.add(node);
            return Some(Command::AddReplica { partition: id, node });
        }
        let is_leaving = |replica: &Replica| {
            replica.state == ReplicaState::Leaving && !replica.failed && outlook.alive.contains(&replica.node)
        };
        if partition.replicas.iter().any(is_leaving) {
            return None;
        }
        let surplus = || places.worst(&staying).filter(|_| staying.len() > wanted);
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

    /// Up to `moves` replicas more: first of partitions that have two in one zone and none in another, then on nodes that hold few, of
    /// partitions that are on nodes which hold many. That these have one replica too many then, the next turns see to.
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
        while moved.len() < moves {
            let movable =
                |partition: &&Partition| partition.settled && !moved.contains(&partition.id) && full(partition);
            let partitions = || self.partitions.values().filter(movable);
            let spread = || partitions().find_map(|partition| places.spread(partition, stays));
            let Some(Move { partition, from, to }) = spread().or_else(|| places.level(partitions, stays)) else {
                return;
            };
            moved.insert(partition);
            places.remove(from);
            places.add(to);
            changes.push(Command::AddReplica { partition, node: to });
        }
    }
}

/// A replica that would be better elsewhere.
struct Move {
    partition: PartitionId,
    from: NodeId,
    to: NodeId,
}

impl Places {
    /// The move that brings a partition into a zone more, if there is one.
    fn spread(&self, partition: &Partition, stays: impl Fn(NodeId) -> bool) -> Option<Move> {
        if self.zones.len() < 2 {
            return None;
        }
        let on: Vec<NodeId> = partition.voters().collect();
        let from = self.worst(&on)?;
        let to = self.best(&on, |node| stays(node) && partition.replica(node).is_none())?;
        self.is_wider(&on, from, to, 2).then_some(Move { partition: partition.id, from, to })
    }

    /// Whether the zone of `from` has so many more of a partition's replicas than that of `to`.
    fn is_wider(&self, on: &[NodeId], from: NodeId, to: NodeId, more: usize) -> bool {
        let zone = |node: NodeId| self.nodes.get(&node).map(|place| place.zone);
        let (Some(from), Some(to)) = (zone(from), zone(to)) else { return false };
        self.in_zone(from, on) >= self.in_zone(to, on) + more
    }

    /// A move from a node that holds many to one that holds at least two fewer, which leaves the partition in as many zones: between
    /// the most unequal nodes first.
    fn level<'a, P: Iterator<Item = &'a Partition>>(
        &self,
        partitions: impl Fn() -> P,
        stays: impl Fn(NodeId) -> bool,
    ) -> Option<Move> {
        let least = |nodes: &BTreeSet<(usize, NodeId)>| nodes.iter().find(|(_, node)| stays(*node)).copied();
        let most = |nodes: &BTreeSet<(usize, NodeId)>| nodes.iter().rfind(|(_, node)| stays(*node)).copied();
        let froms: Vec<_> = self.zones.iter().filter_map(most).collect();
        let tos: Vec<_> = self.zones.iter().filter_map(least).collect();
        let mut pairs: Vec<_> = froms.iter().flat_map(|from| tos.iter().map(move |to| (*from, *to))).collect();
        pairs.retain(|((most, _), (least, _))| *most >= *least + 2);
        pairs.sort_by_key(|((most, from), (least, to))| (std::cmp::Reverse(most - least), *from, *to));
        pairs.into_iter().find_map(|((_, from), (_, to))| {
            let same_zone = self.nodes.get(&from)?.zone == self.nodes.get(&to)?.zone;
            let fits = |partition: &&Partition| {
                let on: Vec<NodeId> = partition.voters().collect();
                on.contains(&from) && partition.replica(to).is_none() && (same_zone || self.is_wider(&on, from, to, 1))
            };
            partitions().find(fits).map(|partition| Move { partition: partition.id, from, to })
        })
    }
}
