//! What queries see of this node: its replicas, and who else has replicas.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_kernel::{NodeId, PartitionId, Result, ScanSpec};
use shoal_storage::Snapshot;

use super::context::NodeContext;
use crate::query::{BatchIterator, LocalReplicas, PartitionSnapshot, Placement};
use crate::replica::directory::ReplicaDirectory;
use crate::replica::handle::Running;

/// The replicas of this node, as shards read them.
pub(super) struct Replicas(pub(super) Arc<ReplicaDirectory>);

impl LocalReplicas for Replicas {
    fn snapshot(&self, partition: PartitionId) -> Result<Arc<dyn PartitionSnapshot>> {
        let handle = self.0.get(partition)?;
        let (replica, snapshot) = handle.snapshot()?;
        Ok(Arc::new(Pinned { replica, snapshot }))
    }
}

/// A snapshot that tells its replica of damage.
struct Pinned {
    replica: Running,
    snapshot: Snapshot,
}

impl PartitionSnapshot for Pinned {
    fn scan(&self, spec: &ScanSpec) -> Result<BatchIterator> {
        let scan = self.snapshot.scan(spec).inspect_err(|error| self.replica.blame(error))?;
        let replica = self.replica.clone();
        Ok(Box::new(scan.map(move |batch| batch.inspect_err(|error| replica.blame(error)))))
    }
}

/// Where replicas are.
pub(super) struct Places(pub(super) Arc<NodeContext>);

impl Placement for Places {
    fn alive(&self) -> BTreeSet<NodeId> {
        let catalog = self.0.agreement.catalog().borrow().clone();
        self.0.liveness.alive().into_iter().filter(|node| catalog.nodes.contains_key(node)).collect()
    }

    fn candidates(&self, partition: PartitionId) -> Vec<NodeId> {
        let catalog = self.0.agreement.catalog().borrow().clone();
        let Some(partition) = catalog.partitions.get(&partition) else { return Vec::new() };
        let mut nodes: Vec<NodeId> = partition.voters().filter(|node| !self.0.liveness.is_down(*node)).collect();
        // Own replica first; the others in an order that spreads partitions over them.
        let turn = partition.id.0 as usize;
        nodes.sort_unstable();
        let length = nodes.len().max(1);
        nodes.rotate_left(turn % length);
        nodes.sort_by_key(|node| *node != self.0.node);
        nodes
    }
}
