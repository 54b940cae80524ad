//! Nodes that may take replicas, and how much each of them carries.

use std::collections::{BTreeMap, BTreeSet};

use shoal_kernel::{NodeId, PartitionId};

use crate::state::{Catalog, Partition, Replica, ReplicaState};

/// What a replica weighs beside its bytes on disk: its actors, its log, its files.
const REPLICA_BYTES: u64 = 16 << 20;

/// A replica that weighs more than twice [`REPLICA_BYTES`] is moved for balance only if the heavier node carries a so-manieth more than the other:
/// partitions grow and shrink all the time.
const UNEVEN: u64 = 8;

/// However much is asked of a replica, it weighs at most so many times more for it: disks are to be level, too.
const ASKED_MAX: u64 = 3;

/// A node gets nothing for balance that has less room than a so-manieth of what it carries.
const TIGHT: u64 = 8;

/// How many replicas each node holds. Derived from the partitions, so it is neither compared nor stored; none until it is
/// needed. Counting a million partitions anew for every table would cost more than the table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Held(pub(crate) Option<BTreeMap<NodeId, usize>>);

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

/// What nodes say of their replicas and disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Load {
    /// Bytes on disk of partitions, each of its largest replica. What is not here counts as empty.
    pub bytes: BTreeMap<PartitionId, u64>,
    /// Bytes that queries have read of a partition's replicas lately, divided by their number. What is not here was not asked.
    pub asked: BTreeMap<PartitionId, u64>,
    /// Bytes that nodes can take before they refuse writes. What is not here takes anything.
    pub room: BTreeMap<NodeId, u64>,
}

impl Load {
    fn bytes(&self, partition: PartitionId) -> u64 {
        self.bytes.get(&partition).copied().unwrap_or(0)
    }

    /// What a replica is to a node: what it holds, and what that is asked for.
    fn weight(&self, partition: PartitionId) -> u64 {
        let held = REPLICA_BYTES.saturating_add(self.bytes(partition));
        let asked = self.asked.get(&partition).copied().unwrap_or(0);
        held.saturating_add(asked.min(held.saturating_mul(ASKED_MAX)))
    }
}

/// A replica that would be better elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Of which partition.
    pub partition: PartitionId,
    /// Where it is.
    pub from: NodeId,
    /// Where it should be.
    pub to: NodeId,
}

/// Nodes that may take replicas, and how much each carries.
pub(crate) struct Places<'a> {
    nodes: BTreeMap<NodeId, Place>,
    /// Of each zone, those that carry least first.
    zones: Vec<BTreeSet<(u64, NodeId)>>,
    load: &'a Load,
}

#[derive(Clone, Copy)]
struct Place {
    zone: usize,
    weight: u64,
    room: u64,
    /// It has said that there is none.
    is_full: bool,
}

impl<'a> Places<'a> {
    pub(crate) fn of(catalog: &Catalog, held: &BTreeMap<NodeId, usize>, load: &'a Load) -> Self {
        let names: BTreeSet<&str> = catalog.active_nodes().map(|node| node.attributes.zone.as_str()).collect();
        let numbers: BTreeMap<&str, usize> = names.into_iter().zip(0..).collect();
        // Beyond what every replica weighs.
        let mut more: BTreeMap<NodeId, u64> = BTreeMap::new();
        // What replicas that join are still to take.
        let mut awaited: BTreeMap<NodeId, u64> = BTreeMap::new();
        if !load.bytes.is_empty() || !load.asked.is_empty() {
            for partition in catalog.partitions.values() {
                let of_each = load.weight(partition.id) - REPLICA_BYTES;
                for replica in &partition.replicas {
                    *more.entry(replica.node).or_default() += of_each;
                    if replica.state == ReplicaState::Joining {
                        *awaited.entry(replica.node).or_default() += load.bytes(partition.id);
                    }
                }
            }
        }
        let mut places = Self { nodes: BTreeMap::new(), zones: vec![BTreeSet::new(); numbers.len()], load };
        for node in catalog.active_nodes() {
            let zone = numbers[node.attributes.zone.as_str()];
            let held = held.get(&node.id).map_or(0, |held| *held as u64);
            let weight = held * REPLICA_BYTES + more.get(&node.id).copied().unwrap_or(0);
            let said = load.room.get(&node.id).copied().unwrap_or(u64::MAX);
            let room = said.saturating_sub(awaited.get(&node.id).copied().unwrap_or(0));
            places.nodes.insert(node.id, Place { zone, weight, room, is_full: said == 0 });
            places.zones[zone].insert((weight, node.id));
        }
        places
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.keys().copied()
    }

    /// Takes up to `count` different nodes for a new partition, in as many zones as there are; its replicas vote at once, for there
    /// is nothing to catch up.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Replica> {
        let mut chosen: Vec<NodeId> = Vec::new();
        while chosen.len() < count
            && let Some(node) = self.best(&chosen, |node| !chosen.contains(&node))
        {
            self.set(node, |place| place.weight += REPLICA_BYTES);
            chosen.push(node);
        }
        chosen.sort();
        chosen.into_iter().map(|node| Replica { node, state: ReplicaState::Voting, failed: false }).collect()
    }

    /// Whether a node has room for a replica of a partition, and for merging it whole.
    pub(crate) fn has_room(&self, node: NodeId, partition: PartitionId) -> bool {
        let needed = self.load.bytes(partition).saturating_mul(2).max(1);
        self.nodes.get(&node).is_some_and(|place| place.room >= needed)
    }

    /// Whether it has at least some more than the replica takes: better than a copy less.
    pub(crate) fn has_some_room(&self, node: NodeId, partition: PartitionId) -> bool {
        let bytes = self.load.bytes(partition);
        let needed = bytes.saturating_add(bytes / 8).max(1);
        self.nodes.get(&node).is_some_and(|place| place.room >= needed)
    }

    /// Whether a node has said that it has no room at all.
    pub(crate) fn is_full(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|place| place.is_full)
    }

    /// Where the next replica belongs of a partition that is on `on` already, among the nodes that fit: in the zone with fewest of
    /// these, on the node that carries least of all.
    pub(crate) fn best(&self, on: &[NodeId], fits: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let first = |(zone, nodes): (usize, &BTreeSet<(u64, NodeId)>)| {
            let (weight, node) = nodes.iter().find(|(_, node)| fits(*node))?;
            Some((self.in_zone(zone, on), *weight, *node))
        };
        let best = self.zones.iter().enumerate().filter_map(first).min();
        best.map(|(.., node)| node)
    }

    /// Which of the nodes a partition is on it does best without: of the zone with most of them, one without room, or the one that
    /// carries most.
    pub(crate) fn worst(&self, on: &[NodeId]) -> Option<NodeId> {
        let places = on.iter().filter_map(|node| Some((node, self.nodes.get(node)?)));
        let worst =
            places.map(|(node, place)| (self.in_zone(place.zone, on), place.is_full, place.weight, *node)).max();
        worst.map(|(.., node)| node)
    }

    /// How many of these nodes are in a zone.
    fn in_zone(&self, zone: usize, nodes: &[NodeId]) -> usize {
        nodes.iter().filter(|node| self.nodes.get(node).is_some_and(|place| place.zone == zone)).count()
    }

    pub(crate) fn add(&mut self, node: NodeId, partition: PartitionId) {
        let (weight, bytes) = (self.load.weight(partition), self.load.bytes(partition));
        self.set(node, |place| {
            place.weight += weight;
            place.room = place.room.saturating_sub(bytes);
        });
    }

    pub(crate) fn remove(&mut self, node: NodeId, partition: PartitionId) {
        let (weight, bytes) = (self.load.weight(partition), self.load.bytes(partition));
        self.set(node, |place| {
            place.weight = place.weight.saturating_sub(weight);
            place.room = place.room.saturating_add(bytes);
        });
    }

    fn set(&mut self, node: NodeId, change: impl Fn(&mut Place)) {
        let Some(place) = self.nodes.get_mut(&node) else { return };
        let nodes = &mut self.zones[place.zone];
        nodes.remove(&(place.weight, node));
        change(place);
        nodes.insert((place.weight, node));
    }

    /// The move that brings a partition into a zone more, if there is one.
    pub(crate) fn spread(&self, partition: &Partition, stays: impl Fn(NodeId) -> bool) -> Option<Move> {
        if self.zones.len() < 2 {
            return None;
        }
        let on: Vec<NodeId> = partition.voters().collect();
        let from = self.worst(&on)?;
        let fits = |node| stays(node) && partition.replica(node).is_none() && self.has_room(node, partition.id);
        let to = self.best(&on, fits)?;
        self.is_wider(&on, from, to, 2).then_some(Move { partition: partition.id, from, to })
    }

    /// Whether the zone of `from` has so many more of a partition's replicas than that of `to`.
    fn is_wider(&self, on: &[NodeId], from: NodeId, to: NodeId, more: usize) -> bool {
        let zone = |node: NodeId| self.nodes.get(&node).map(|place| place.zone);
        let (Some(from), Some(to)) = (zone(from), zone(to)) else { return false };
        self.in_zone(from, on) >= self.in_zone(to, on) + more
    }

    /// Whether a partition is in as many zones, and has a replica on each of its nodes, when one of these goes from one node to another.
    fn can_move(&self, partition: &Partition, from: NodeId, to: NodeId) -> bool {
        if partition.replica(to).is_some() || partition.voters().all(|voter| voter != from) {
            return false;
        }
        let zone = |node: NodeId| self.nodes.get(&node).map(|place| place.zone);
        let on: Vec<NodeId> = partition.voters().collect();
        (zone(from) == zone(to) || self.is_wider(&on, from, to, 1)) && self.has_room(to, partition.id)
    }

    /// The largest replica that may go from a node without any room to one with enough.
    pub(crate) fn relieve<'p, P: Iterator<Item = &'p Partition>>(
        &self,
        partitions: impl Fn() -> P,
        stays: impl Fn(NodeId) -> bool,
    ) -> Option<Move> {
        let full = self.nodes.iter().filter(|(node, place)| place.is_full && place.room == 0 && stays(**node));
        full.map(|(node, _)| *node).find_map(|from| {
            let with_bytes = partitions().filter(|partition| self.load.bytes(partition.id) > 0);
            let largest = with_bytes.filter_map(|partition| {
                let on: Vec<NodeId> = partition.voters().filter(|voter| *voter != from).collect();
                let to = self.best(&on, |node| stays(node) && self.can_move(partition, from, node))?;
                Some((self.load.bytes(partition.id), std::cmp::Reverse(partition.id), to))
            });
            largest.max().map(|(_, std::cmp::Reverse(partition), to)| Move { partition, from, to })
        })
    }

    /// A move from a node that carries much to one that carries less, and does so after it, too; it leaves the partition in as many
    /// zones: between the most unequal nodes first, the replica that weighs most first.
    pub(crate) fn level<'p, P: Iterator<Item = &'p Partition>>(
        &self,
        partitions: impl Fn() -> P,
        stays: impl Fn(NodeId) -> bool,
    ) -> Option<Move> {
        let least = |nodes: &BTreeSet<(u64, NodeId)>| nodes.iter().find(|(_, node)| stays(*node)).copied();
        let most = |nodes: &BTreeSet<(u64, NodeId)>| nodes.iter().rfind(|(_, node)| stays(*node)).copied();
        let froms: Vec<_> = self.zones.iter().filter_map(most).collect();
        let tos: Vec<_> = self.zones.iter().filter_map(least).collect();
        let mut pairs: Vec<_> = froms.iter().flat_map(|from| tos.iter().map(move |to| (*from, *to))).collect();
        pairs.retain(|((most, _), (least, _))| *most >= *least + 2 * REPLICA_BYTES);
        pairs.sort_by_key(|((most, from), (least, to))| (std::cmp::Reverse(most - least), *from, *to));
        pairs.into_iter().find_map(|((most, from), (least, to))| {
            // A small disk that has been relieved would be filled again.
            let is_tight = self.nodes.get(&to).is_some_and(|place| place.room < place.weight / TIGHT);
            if is_tight {
                return None;
            }
            let uneven = (most - least).saturating_mul(UNEVEN) >= most;
            let helps = |partition: &&Partition| {
                self.load.weight(partition.id).saturating_mul(2) <= most - least
                    && (uneven || self.load.weight(partition.id) <= 2 * REPLICA_BYTES)
                    && self.can_move(partition, from, to)
            };
            let largest = partitions().filter(helps).map(|partition| partition.id);
            let partition = largest.max_by_key(|id| (self.load.weight(*id), std::cmp::Reverse(*id)))?;
            Some(Move { partition, from, to })
        })
    }
}
