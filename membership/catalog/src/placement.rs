//! Which node gets a replica: one in a zone that has fewest of the partition; of these, the one that carries least, then the one with
//! the smallest number.

use std::collections::{BTreeMap, BTreeSet};

use shoal_kernel::NodeId;

use crate::command::{Command, Effect};
use crate::places::{Load, Move, Places};
use crate::state::{Catalog, NodeState, Partition, Replica, ReplicaState};

/// Partitions that change at once before replicas are moved only for balance.
const MOVES_MAX: usize = 4;

/// Moves that are told of at once.
const MOVES_TOLD_MAX: usize = 100;

/// What whoever decides on places knows of the nodes.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    /// Nodes that answer.
    pub alive: BTreeSet<NodeId>,
    /// Nodes that have been gone for so long that others take their place.
    pub lost: BTreeSet<NodeId>,
    /// What they hold, as far as they have said so.
    pub load: Load,
}

impl Catalog {
    /// Active nodes with what each carries; how many replicas that are is kept from now on.
    pub(crate) fn keep_places<'a>(&mut self, load: &'a Load) -> Places<'a> {
        if self.held.0.is_none() {
            self.held.0 = Some(self.count_held());
        }
        self.places(load)
    }

    fn places<'a>(&self, load: &'a Load) -> Places<'a> {
        let counted;
        let held = match &self.held.0 {
            Some(held) => held,
            None => {
                counted = self.count_held();
                &counted
            }
        };
        Places::of(self, held, load)
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
    /// nodes that stay, replicas beyond that go, and then the nodes get as much to carry as each other. In order of partitions, and
    /// empty once nothing is left to do.
    ///
    /// One thing at a time changes of a partition: catching up costs its voters reads, and each promotion is an epoch. First a
    /// replica more, then one less: no partition has fewer copies meanwhile. Whoever proposes a [`Command::RetireReplica`] should
    /// first see that enough of the others serve.
    pub fn wanted_changes(&self, outlook: &Outlook) -> Vec<Command> {
        let (mut places, active) = (self.places(&outlook.load), self.active_nodes().count());
        let (mut changes, mut moving) = (Vec::new(), 0);
        for partition in self.partitions.values() {
            let change = self.wanted_change(partition, self.replicas_wanted(partition, active), outlook, &mut places);
            let joining = || partition.replicas.iter().any(|replica| replica.state == ReplicaState::Joining);
            moving += usize::from(change.is_some() || !partition.settled || joining());
            changes.extend(change);
        }
        let moves = if self.balance_paused { 0 } else { MOVES_MAX.saturating_sub(moving) };
        let reliefs = (2 * MOVES_MAX).saturating_sub(moving);
        let moves = self.balance(outlook, &mut places, moves, reliefs, active);
        let begun = |Move { partition, to, .. }| Command::AddReplica { partition, node: to };
        changes.extend(moves.into_iter().map(begun));
        changes
    }

    /// The moves that balance asks for as things are, the first of them, whether it is paused or not.
    pub fn wanted_moves(&self, outlook: &Outlook) -> Vec<Move> {
        let mut places = self.places(&outlook.load);
        self.balance(outlook, &mut places, MOVES_TOLD_MAX, MOVES_TOLD_MAX, self.active_nodes().count())
    }

    /// Replicas are moved for balance, or no longer.
    pub(crate) fn pause_balance(&mut self, paused: bool) -> Vec<Effect> {
        let changed = std::mem::replace(&mut self.balance_paused, paused) != paused;
        if changed { vec![Effect::Nodes] } else { Vec::new() }
    }

    fn wanted_change(
        &self,
        partition: &Partition,
        wanted: usize,
        outlook: &Outlook,
        places: &mut Places<'_>,
    ) -> Option<Command> {
        let (id, epoch) = (partition.id, partition.epoch);
        let fits = |node: NodeId| {
            let state = partition.replica(node).map(|replica| replica.state);
            outlook.alive.contains(&node)
                && state.is_none_or(|state| state == ReplicaState::Leaving)
                && !partition.has_failed(node)
        };
        let stays =
            |node: &NodeId| self.is_active(*node) && !outlook.lost.contains(node) && !partition.has_failed(*node);
        let (staying, going): (Vec<NodeId>, Vec<NodeId>) = partition.voters().partition(stays);
        if let Some(joining) = partition.replicas.iter().find(|replica| replica.state == ReplicaState::Joining) {
            // One that cannot come to its end gives way.
            let node = joining.node;
            let better = || places.nodes().any(|node| fits(node) && places.has_room(node, id));
            let stuck = joining.failed || !outlook.alive.contains(&node) || places.is_full(node);
            let for_balance = going.is_empty() && !staying.iter().any(|voter| places.is_full(*voter));
            let called_off = self.balance_paused && for_balance && staying.len() >= wanted;
            let gives_way = !self.is_active(node) || called_off || (stuck && better());
            return gives_way.then_some(Command::RetireReplica { partition: id, node, epoch });
        }
        if staying.len() < wanted {
            let ample = places.best(&staying, |node| fits(node) && places.has_room(node, id));
            let tight = || places.best(&staying, |node| fits(node) && places.has_some_room(node, id));
            if let Some(node) = ample.or_else(tight) {
                places.add(node, id);
                return Some(Command::AddReplica { partition: id, node });
            }
        }
        let is_leaving = |replica: &Replica| {
            replica.state == ReplicaState::Leaving && !replica.failed && outlook.alive.contains(&replica.node)
        };
        let node = if staying.len() < wanted {
            // Nobody is left who could have one. Votes of lost nodes beyond what the table asks for make a majority harder to find;
            // who is there, though it is to go, is better than nobody.
            let lost = going.iter().copied().find(|node| outlook.lost.contains(node));
            lost.filter(|_| staying.len() + going.len() > wanted)?
        } else if partition.replicas.iter().any(is_leaving) {
            return None;
        } else {
            let surplus = || places.worst(&staying).filter(|_| staying.len() > wanted);
            going.first().copied().or_else(surplus)?
        };
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

    /// Up to so many moves, or so many from nodes without room: first of what a node without room holds, then of partitions that have two replicas in one zone and none in
    /// another, then from nodes that carry much to nodes that carry less. A move begins with a replica more; that there is one too many
    /// then, the next turns see to.
    fn balance(
        &self,
        outlook: &Outlook,
        places: &mut Places<'_>,
        moves: usize,
        reliefs: usize,
        active: usize,
    ) -> Vec<Move> {
        let full = |partition: &Partition| {
            let takers = partition.takers().count();
            takers == partition.voters().count() && takers == self.replicas_wanted(partition, active)
        };
        let stays = |node: NodeId| outlook.alive.contains(&node) && !outlook.lost.contains(&node);
        let (mut wanted, mut moved) = (Vec::new(), BTreeSet::new());
        while wanted.len() < moves.max(reliefs) {
            let movable =
                |partition: &&Partition| partition.settled && !moved.contains(&partition.id) && full(partition);
            let partitions = || self.partitions.values().filter(movable);
            let spread = || partitions().find_map(|partition| places.spread(partition, stays));
            let mut found = if wanted.len() < reliefs { places.relieve(partitions, stays) } else { None };
            if wanted.len() < moves {
                found = found.or_else(spread).or_else(|| places.level(partitions, stays));
            }
            let Some(found) = found else { break };
            moved.insert(found.partition);
            places.remove(found.from, found.partition);
            places.add(found.to, found.partition);
            wanted.push(found);
        }
        wanted
    }
}
