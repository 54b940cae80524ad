//! What queries see of this node: its replicas, and who else has replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use shoal_catalog::Catalog;
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{
    Error, ErrorCode, FetchSpec, FrontierSource, Hlc, NodeId, PartitionId, Planted, Rare, Result, ScanSpec, TableId,
    TableSchema,
};
use shoal_storage::{Snapshot, batch_bytes};

use super::context::NodeContext;
use super::laggards::Hearsay;
use crate::query::{BatchIterator, Candidates, LocalReplicas, PartitionSnapshot, Placement, Reached};
use crate::replica::directory::ReplicaDirectory;
use crate::replica::handle::{Asked, Running};
use crate::replica::quorum;
use crate::service::Moment;

/// The replicas of this node, as shards read them.
pub(super) struct Replicas {
    directory: Arc<ReplicaDirectory>,
    context: Arc<NodeContext>,
    /// Only with [`Planted::StaleSnapshot`].
    stale: Option<Mutex<BTreeMap<PartitionId, Shown>>>,
    /// [`Planted::SilentPartial`].
    silent: bool,
}

/// What is shown, and how often it has been.
type Shown = (u32, Arc<dyn PartitionSnapshot>);

/// How long a query waits for this node to hear of the schema that the query was planned with.
const SCHEMA_PATIENCE: Duration = Duration::from_secs(2);
/// Reads of one snapshot under [`Planted::StaleSnapshot`].
const STALE_READS: u32 = 10;

impl Replicas {
    pub(super) fn new(directory: Arc<ReplicaDirectory>, context: Arc<NodeContext>) -> Self {
        let config = &context.config;
        let stale = config.has(Planted::StaleSnapshot).then(Mutex::default);
        let silent = config.has(Planted::SilentPartial);
        Self { directory, context, stale, silent }
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
        self.context.clock.ceiling()
    }

    fn snapshot(&self, partition: PartitionId) -> Result<Arc<dyn PartitionSnapshot>> {
        if let Some(shown) = self.stale(partition) {
            return Ok(shown);
        }
        let handle = self.directory.get(partition);
        let found = handle.and_then(|handle| Ok((handle.snapshot()?, handle.asked.clone())));
        if found.is_err() && self.silent {
            return Ok(Arc::new(Nothing));
        }
        let (snapshot, asked) = found?;
        let shown = pinned(snapshot, asked, &self.context);
        if let Some(stale) = &self.stale {
            stale.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, (0, shown.clone()));
        }
        Ok(shown)
    }

    fn snapshot_at_quorum(
        &self,
        partition: PartitionId,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Arc<dyn PartitionSnapshot>>> {
        let (found, context, silent) = (self.directory.get(partition), self.context.clone(), self.silent);
        Box::pin(async move {
            let found = async {
                let handle = found?;
                let snapshot = quorum::snapshot(&context, &handle, timeout).await?;
                Ok(pinned(snapshot, handle.asked.clone(), &context))
            };
            match found.await {
                Err(_) if silent => Ok(Arc::new(Nothing) as Arc<dyn PartitionSnapshot>),
                found => found,
            }
        })
    }
}

fn pinned(
    (replica, snapshot): (Running, Snapshot),
    asked: Arc<Asked>,
    context: &Arc<NodeContext>,
) -> Arc<dyn PartitionSnapshot> {
    Arc::new(Pinned { replica, snapshot, asked, context: context.clone() })
}

/// What [`Planted::SilentPartial`] shows of a partition that cannot be read.
struct Nothing;

impl PartitionSnapshot for Nothing {
    fn scan(&self, _: &ScanSpec, _: Option<FrontierSource>) -> Result<BatchIterator> {
        Ok(Box::new(std::iter::empty()))
    }

    fn fetch(&self, _: &FetchSpec, _: &[u64]) -> Result<RecordBatch> {
        Err(Error::internal("nothing was scanned, so nothing can be fetched"))
    }
}

/// A snapshot that tells its replica of damage, and how much is read.
struct Pinned {
    replica: Running,
    snapshot: Snapshot,
    asked: Arc<Asked>,
    context: Arc<NodeContext>,
}

impl PartitionSnapshot for Pinned {
    fn scan(&self, spec: &ScanSpec, frontier: Option<FrontierSource>) -> Result<BatchIterator> {
        let scan = self.snapshot.scan(spec).inspect_err(|error| self.replica.blame(error))?;
        let scan = match frontier {
            Some(frontier) => scan.following(frontier),
            None => scan,
        };
        let (replica, asked, env) = (self.replica.clone(), self.asked.clone(), self.context.env.clone());
        let told = move |batch: Result<RecordBatch>| match &batch {
            Ok(rows) => {
                asked.add(batch_bytes(rows) as u64, env.monotonic());
                batch
            }
            Err(error) => {
                replica.blame(error);
                batch
            }
        };
        Ok(Box::new(scan.map(told)))
    }

    fn behind(&self, table: TableId, schema_version: u32) -> Option<Reached> {
        if self.snapshot.schema_version() >= schema_version {
            return None;
        }
        let (replica, snapshot) = (self.replica.clone(), self.snapshot.clone());
        let (asked, context) = (self.asked.clone(), self.context.clone());
        Some(Box::pin(async move {
            context.env.reached(Rare::SchemaAwaited);
            let schema = known_schema(&context, table, schema_version).await?;
            let snapshot = snapshot.under(schema)?;
            Ok(Arc::new(Self { replica, snapshot, asked, context }) as Arc<dyn PartitionSnapshot>)
        }))
    }

    fn moment(&self, partition: PartitionId, node: NodeId) -> Option<Moment> {
        let (log_id, position) = self.snapshot.position();
        let cutoff_micros = self.snapshot.cutoff().map(|cutoff| cutoff.micros);
        Some(Moment { partition, node, log_id, position, cutoff_micros })
    }

    fn fetch(&self, spec: &FetchSpec, addresses: &[u64]) -> Result<RecordBatch> {
        let fetched = self.snapshot.fetch(spec, addresses).inspect_err(|error| self.replica.blame(error))?;
        self.asked.add(batch_bytes(&fetched) as u64, self.context.env.monotonic());
        Ok(fetched)
    }
}

/// The table's schema, once this node's catalog has come to that version of it.
async fn known_schema(context: &NodeContext, table: TableId, version: u32) -> Result<Arc<TableSchema>> {
    let mut catalog = context.agreement.catalog();
    let known = async {
        let reached =
            |catalog: &Arc<Catalog>| catalog.tables.get(&table).is_none_or(|table| table.schema.version >= version);
        let catalog = catalog.wait_for(reached).await.ok()?;
        catalog.tables.get(&table).map(|table| Arc::new(table.schema.clone()))
    };
    let schema = context.env.timeout(SCHEMA_PATIENCE, known).await.ok().flatten();
    schema.ok_or_else(|| {
        let message = format!("this node has not heard of version {version} of the schema of {table} yet");
        Error::new(ErrorCode::Moved, message)
    })
}

/// Where replicas are.
pub(super) struct Places {
    directory: Arc<ReplicaDirectory>,
    context: Arc<NodeContext>,
    hearsay: Hearsay,
}

impl Places {
    pub(super) fn new(directory: Arc<ReplicaDirectory>, context: Arc<NodeContext>) -> Self {
        Self { directory, context, hearsay: Hearsay::default() }
    }

    /// Whether a node's replica is so far behind that another one is the better choice, if there is one.
    fn is_behind(&self, node: NodeId, partition: PartitionId) -> bool {
        if node != self.context.node {
            return self.hearsay.is_behind(&self.context.liveness.members(), node, partition);
        }
        let lag = self.directory.get(partition).ok().and_then(|handle| handle.lag());
        lag.is_some_and(|lag| lag > self.context.config.read_lag_max)
    }
}

impl Placement for Places {
    fn alive(&self) -> BTreeSet<NodeId> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        self.context.liveness.alive().into_iter().filter(|node| catalog.nodes.contains_key(node)).collect()
    }

    fn suspected(&self) -> BTreeSet<NodeId> {
        self.context.liveness.suspected()
    }

    fn is_gone(&self, partition: PartitionId) -> bool {
        !self.context.agreement.catalog().borrow().partitions.contains_key(&partition)
    }

    fn candidates(&self, partition: PartitionId) -> Candidates {
        let catalog = self.context.agreement.catalog().borrow().clone();
        let Some(partition) = catalog.partitions.get(&partition) else { return Candidates::default() };
        let mut nodes: Vec<NodeId> = partition.voters().filter(|node| !self.context.liveness.is_down(*node)).collect();
        // Own replica first; the others in an order that spreads partitions over them.
        let turn = partition.id.0 as usize;
        nodes.sort_unstable();
        let length = nodes.len().max(1);
        nodes.rotate_left(turn % length);
        nodes.sort_by_key(|node| *node != self.context.node);
        let (behind, level) = nodes.into_iter().partition(|node| self.is_behind(*node, partition.id));
        Candidates { level, behind }
    }
}
