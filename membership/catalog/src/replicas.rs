//! Changes to the replicas of a partition, one at a time, each fenced by the epoch it was decided in.

use shoal_kernel::level::seal_quorum;
use shoal_kernel::{Epoch, Hlc, NodeId, PartitionId};

use crate::command::{CatalogError, Effect};
use crate::state::{Catalog, NodeState, Partition, Replica, ReplicaState};
use crate::tables::REPLICATION_FACTOR_MAX;

impl Catalog {
    pub(crate) fn add_replica(&mut self, id: PartitionId, node: NodeId) -> Result<Vec<Effect>, CatalogError> {
        let state = self.nodes.get(&node).map(|record| record.state).ok_or(CatalogError::UnknownNode(node))?;
        let partition = self.partition_mut(id)?;
        let known = partition.replica(node).map(|replica| replica.state);
        if known.is_some_and(|known| known != ReplicaState::Leaving) {
            return Ok(Vec::new());
        }
        if state != NodeState::Active {
            return Err(CatalogError::Refused(format!("{node} is being drained and takes no new replicas")));
        }
        if known.is_some() {
            // It stays after all; what it has missed it gets like a new one.
            set_state(partition, node, ReplicaState::Joining);
            return Ok(vec![Effect::Partition(id)]);
        }
        // One more than the greatest factor, so that a full partition can still move: first add, then remove.
        let takers = partition.takers().count();
        if takers as u64 > u64::from(REPLICATION_FACTOR_MAX) {
            return Err(CatalogError::Refused(format!("{id} has {takers} replicas already")));
        }
        let at = partition.replicas.partition_point(|replica| replica.node < node);
        partition.replicas.insert(at, Replica { node, state: ReplicaState::Joining, failed: false });
        self.held.add(node);
        Ok(vec![Effect::Partition(id)])
    }

    pub(crate) fn promote_replica(
        &mut self,
        id: PartitionId,
        node: NodeId,
        epoch: Epoch,
    ) -> Result<Vec<Effect>, CatalogError> {
        let partition = self.partition_mut(id)?;
        match partition.replica(node).map(|replica| replica.state) {
            None => return Err(no_replica(id, node)),
            Some(ReplicaState::Voting) => return Ok(Vec::new()),
            Some(ReplicaState::Leaving) => {
                return Err(CatalogError::Refused(format!("the replica of {id} on {node} is leaving")));
            }
            Some(ReplicaState::Joining) => check_epoch(partition, epoch)?,
        }
        check_settled(partition, node)?;
        next_epoch(partition);
        set_state(partition, node, ReplicaState::Voting);
        Ok(vec![Effect::Partition(id)])
    }

    pub(crate) fn retire_replica(
        &mut self,
        id: PartitionId,
        node: NodeId,
        epoch: Epoch,
    ) -> Result<Vec<Effect>, CatalogError> {
        let partition = self.partition_mut(id)?;
        match partition.replica(node).map(|replica| replica.state) {
            None | Some(ReplicaState::Leaving) => return Ok(Vec::new()),
            // It may have voted before, and hold what nobody else does.
            Some(ReplicaState::Joining) => check_epoch(partition, epoch)?,
            Some(ReplicaState::Voting) => {
                check_epoch(partition, epoch)?;
                check_settled(partition, node)?;
                check_not_last(partition, node)?;
                next_epoch(partition);
            }
        }
        set_state(partition, node, ReplicaState::Leaving);
        Ok(vec![Effect::Partition(id)])
    }

    pub(crate) fn remove_replica(
        &mut self,
        id: PartitionId,
        node: NodeId,
        epoch: Epoch,
    ) -> Result<Vec<Effect>, CatalogError> {
        let partition = self.partition_mut(id)?;
        let Some(state) = partition.replica(node).map(|replica| replica.state) else {
            return Ok(Vec::new());
        };
        check_epoch(partition, epoch)?;
        if state != ReplicaState::Leaving {
            return Err(CatalogError::Refused(format!("the replica of {id} on {node} must retire first")));
        }
        // Until then others may need what it holds.
        if !partition.settled {
            return Err(CatalogError::Unsettled(id));
        }
        partition.replicas.retain(|replica| replica.node != node);
        self.held.remove(node);
        Ok(vec![Effect::Partition(id)])
    }

    pub(crate) fn settle_partition(&mut self, id: PartitionId, epoch: Epoch) -> Result<Vec<Effect>, CatalogError> {
        let partition = self.partition_mut(id)?;
        check_epoch(partition, epoch)?;
        let changed = !std::mem::replace(&mut partition.settled, true);
        Ok(if changed { vec![Effect::Partition(id)] } else { Vec::new() })
    }

    pub(crate) fn mark_replica(
        &mut self,
        id: PartitionId,
        node: NodeId,
        failed: bool,
    ) -> Result<Vec<Effect>, CatalogError> {
        let partition = self.partition_mut(id)?;
        let replica = partition.replicas.iter_mut().find(|replica| replica.node == node);
        let replica = replica.ok_or_else(|| no_replica(id, node))?;
        let changed = std::mem::replace(&mut replica.failed, failed) != failed;
        Ok(if changed { vec![Effect::Partition(id)] } else { Vec::new() })
    }

    pub(crate) fn raise_purge(
        &mut self,
        id: PartitionId,
        changed: u64,
        purged: Hlc,
    ) -> Result<Vec<Effect>, CatalogError> {
        let partition = self.partition_mut(id)?;
        if purged <= partition.purged {
            return Ok(Vec::new());
        }
        if partition.changed != changed {
            return Err(CatalogError::Refused(format!("{id} has changed since its replicas were asked")));
        }
        // Who joins or leaves holds less than the others.
        if !partition.settled || partition.replicas.iter().any(|replica| replica.state != ReplicaState::Voting) {
            return Err(CatalogError::Refused(format!("replicas of {id} come or go")));
        }
        partition.purged = purged;
        Ok(vec![Effect::Partition(id)])
    }

    /// Takes all replicas from a node whose disk is gone for good. Fails only before anything has changed.
    pub(crate) fn lose_replicas(&mut self, node: NodeId, effects: &mut Vec<Effect>) -> Result<(), CatalogError> {
        for partition in self.partitions.values() {
            // What new voters hold is not known while the partition is not settled.
            let knows = |voter: &NodeId| partition.settled || partition.previous_voters.contains(voter);
            let others = partition.voters().filter(|voter| *voter != node && knows(voter)).count();
            if partition.voters().any(|voter| voter == node) && others == 0 {
                let table = self.tables.get(&partition.table).map_or("", |table| table.name.as_str());
                return Err(CatalogError::Refused(format!(
                    "{node} holds the only voting replica of {} of table '{table}' that has all of its rows: without it they \
                     are lost; bring it back, or drop the table",
                    partition.id
                )));
            }
        }
        for partition in self.partitions.values_mut() {
            let state = partition.replica(node).map(|replica| replica.state);
            if state == Some(ReplicaState::Voting) {
                next_epoch(partition);
            }
            let asked = partition.previous_voters.contains(&node);
            if asked {
                // Nobody can ask it any more. That fewer may be needed then is what the operator has taken upon himself.
                partition.previous_voters.retain(|voter| *voter != node);
                let left = u32::try_from(partition.previous_voters.len()).unwrap_or(u32::MAX);
                partition.previous_needed = partition.previous_needed.min(left);
            }
            if state.is_some() {
                partition.replicas.retain(|replica| replica.node != node);
                self.held.remove(node);
            }
            if asked || state.is_some() {
                effects.push(Effect::Partition(partition.id));
            }
        }
        Ok(())
    }

    pub(crate) fn partition_mut(&mut self, id: PartitionId) -> Result<&mut Partition, CatalogError> {
        self.partitions.get_mut(&id).ok_or(CatalogError::UnknownPartition(id))
    }
}

pub(crate) fn check_epoch(partition: &Partition, expected: Epoch) -> Result<(), CatalogError> {
    if partition.epoch == expected {
        return Ok(());
    }
    Err(CatalogError::StaleEpoch { partition: partition.id, expected, actual: partition.epoch })
}

fn check_not_last(partition: &Partition, node: NodeId) -> Result<(), CatalogError> {
    if partition.voters().any(|voter| voter != node) {
        return Ok(());
    }
    // Whatever it holds is all there is: without it the partition would be empty and look healthy.
    Err(CatalogError::Refused(format!("the last voting replica of {} must stay", partition.id)))
}

/// Any majority of one set meets any majority of the next, which differs by one member, but not any of the one after that: in
/// between, the members of the middle set must have learnt what the first had acknowledged; or the third is the first again.
fn check_settled(partition: &Partition, changed: NodeId) -> Result<(), CatalogError> {
    match partition.settled || partition.reverts(changed) {
        true => Ok(()),
        false => Err(CatalogError::Unsettled(partition.id)),
    }
}

pub(crate) fn next_epoch(partition: &mut Partition) {
    partition.previous_voters = partition.voters().collect();
    partition.previous_needed = u32::try_from(seal_quorum(partition.previous_voters.len())).unwrap_or(u32::MAX);
    partition.epoch = Epoch(partition.epoch.0 + 1);
    partition.settled = false;
}

fn set_state(partition: &mut Partition, node: NodeId, state: ReplicaState) {
    for replica in partition.replicas.iter_mut().filter(|replica| replica.node == node) {
        replica.state = state;
    }
}

fn no_replica(id: PartitionId, node: NodeId) -> CatalogError {
    CatalogError::Refused(format!("node {node} has no replica of partition {id}"))
}
