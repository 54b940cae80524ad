//! Changes to the replicas of a partition, one at a time, each fenced by the epoch it was decided in.

use shoal_kernel::{Epoch, NodeId, PartitionId};

use crate::command::{CatalogError, Effect};
use crate::state::{Catalog, NodeState, Partition, Replica, ReplicaState};
use crate::tables::REPLICATION_FACTOR_MAX;

impl Catalog {
    pub(crate) fn add_replica(&mut self, id: PartitionId, node: NodeId) -> Result<Vec<Effect>, CatalogError> {
        let state = self.nodes.get(&node).map(|record| record.state).ok_or(CatalogError::UnknownNode(node))?;
        let partition = self.partition_mut(id)?;
        if partition.replica(node).is_some() {
            return Ok(Vec::new());
        }
        if state != NodeState::Active {
            return Err(CatalogError::Invalid(format!("node {node} is draining and takes no new replicas")));
        }
        // One more than the greatest factor, so that a full partition can still move: first add, then remove.
        if partition.replicas.len() as u64 > u64::from(REPLICATION_FACTOR_MAX) {
            return Err(CatalogError::Invalid(format!(
                "partition {id} has {} replicas already",
                partition.replicas.len()
            )));
        }
        let at = partition.replicas.partition_point(|replica| replica.node < node);
        partition.replicas.insert(at, Replica { node, state: ReplicaState::Joining });
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
            Some(ReplicaState::Joining) => check_epoch(partition, epoch)?,
        }
        next_epoch(partition);
        set_state(partition, node, ReplicaState::Voting);
        Ok(vec![Effect::Partition(id)])
    }

    pub(crate) fn demote_replica(
        &mut self,
        id: PartitionId,
        node: NodeId,
        epoch: Epoch,
    ) -> Result<Vec<Effect>, CatalogError> {
        let partition = self.partition_mut(id)?;
        match partition.replica(node).map(|replica| replica.state) {
            None => return Err(no_replica(id, node)),
            Some(ReplicaState::Joining) => return Ok(Vec::new()),
            Some(ReplicaState::Voting) => check_epoch(partition, epoch)?,
        }
        check_not_last(partition)?;
        next_epoch(partition);
        set_state(partition, node, ReplicaState::Joining);
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
        if state == ReplicaState::Voting {
            check_not_last(partition)?;
            next_epoch(partition);
        }
        partition.replicas.retain(|replica| replica.node != node);
        self.held.remove(node);
        Ok(vec![Effect::Partition(id)])
    }

    fn partition_mut(&mut self, id: PartitionId) -> Result<&mut Partition, CatalogError> {
        self.partitions.get_mut(&id).ok_or(CatalogError::UnknownPartition(id))
    }
}

fn check_epoch(partition: &Partition, expected: Epoch) -> Result<(), CatalogError> {
    if partition.epoch == expected {
        return Ok(());
    }
    Err(CatalogError::StaleEpoch { partition: partition.id, expected, actual: partition.epoch })
}

fn check_not_last(partition: &Partition) -> Result<(), CatalogError> {
    if partition.voters().count() > 1 {
        return Ok(());
    }
    // Whatever it holds is all there is: without it the partition would be empty and look healthy.
    Err(CatalogError::Invalid(format!("the last voting replica of partition {} must stay", partition.id)))
}

fn next_epoch(partition: &mut Partition) {
    partition.previous_voters = partition.voters().collect();
    partition.epoch = Epoch(partition.epoch.0 + 1);
}

fn set_state(partition: &mut Partition, node: NodeId, state: ReplicaState) {
    for replica in partition.replicas.iter_mut().filter(|replica| replica.node == node) {
        replica.state = state;
    }
}

fn no_replica(id: PartitionId, node: NodeId) -> CatalogError {
    CatalogError::Invalid(format!("node {node} has no replica of partition {id}"))
}
