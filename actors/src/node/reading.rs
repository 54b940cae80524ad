//! What queries see of this node: its replicas, and who else has replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::record_batch::RecordBatch;
use shoal_kernel::{Error, FetchSpec, Hlc, NodeId, PartitionId, Planted, Result, ScanSpec};
use shoal_storage::Snapshot;

use super::clock::NodeClock;
use super::context::NodeContext;
use crate::query::{BatchIterator, LocalReplicas, PartitionSnapshot, Placement};
use crate::replica::directory::ReplicaDirectory;
use crate::replica::handle::Running;
use crate::service::NodeConfig;

/// The replicas of this node, as shards read them.
pub(super) struct Replicas {
    directory: Arc<ReplicaDirectory>,
    clock: Arc<NodeClock>,
    /// Only with [`Planted::StaleSnapshot`].
    stale: Option<Mutex<BTreeMap<PartitionId, Shown>>>,
    /// [`Planted::SilentPartial`].
    silent: bool,
}

/// What is shown, and how often it has been.
type Shown = (u32, Arc<dyn PartitionSnapshot>);

/// Reads of one snapshot under [`Planted::StaleSnapshot`].
const STALE_READS: u32 = 10;

impl Replicas {
    pub(super) fn new(directory: Arc<ReplicaDirectory>, clock: Arc<NodeClock>, config: &NodeConfig) -> Self {
        Self {
            directory,
            clock,
            stale: config.has(Planted::StaleSnapshot).then(Mutex::default),
            silent: config.has(Planted::SilentPartial),
        }
    }

    fn stale(&self, partition: PartitionId) -> Option<Arc<dyn PartitionSnapshot>> {
        let mut stale = self.stale.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let (reads, shown) = stale.get_mut(&partition)?;
        *reads += 1;
        (*reads < STALE_READS).then(|| shown.clone())
    }
}

impl LocalReplicas for Replicas {
    fn newest(&self) -> Hlc {
        self.clock.ceiling()
    }

    fn snapshot(&self, partition: PartitionId) -> Result<Arc<dyn PartitionSnapshot>> {
        if let Some(shown) = self.stale(partition) {
            return Ok(shown);
        }
        let found = self.directory.get(partition).and_then(|handle| handle.snapshot());
        if found.is_err() && self.silent {
            return Ok(Arc::new(Nothing));
        }
        let (replica, snapshot) = found?;
        let shown: Arc<dyn PartitionSnapshot> = Arc::new(Pinned { replica, snapshot });
        if let Some(stale) = &self.stale {
            stale.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, (0, shown.clone()));
        }
        Ok(shown)
    }
}

/// What [`Planted::SilentPartial`] shows of a partition that cannot be read.
struct Nothing;

impl PartitionSnapshot for Nothing {
    fn scan(&self, _: &ScanSpec) -> Result<BatchIterator> {
        Ok(Box::new(std::iter::empty()))
    }

    fn fetch(&self, _: &FetchSpec, _: &[u64]) -> Result<RecordBatch> {
        Err(Error::internal("nothing was scanned, so nothing can be fetched"))
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

    fn fetch(&self, spec: &FetchSpec, addresses: &[u64]) -> Result<RecordBatch> {
        self.snapshot.fetch(spec, addresses).inspect_err(|error| self.replica.blame(error))
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
