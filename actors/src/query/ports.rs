//! What the query actors ask of their surroundings: replicas, placement, and an engine that runs fragments.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{FetchSpec, FrontierSource, Hlc, NodeId, PartitionId, Result, ScanSpec, TableId};
use shoal_planner::{Edge, Fragment, FragmentGraph, TaskInputs, TaskMemory};

use crate::service::Moment;

/// Rows of a scan, batch by batch; each step may block on the disk.
pub type BatchIterator = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// A snapshot in the making.
pub type Reached = BoxFuture<'static, Result<Arc<dyn PartitionSnapshot>>>;

/// A replica's rows at one moment. Held for the length of a query; dropping it lets go of the files.
pub trait PartitionSnapshot: Send + Sync {
    /// Starts a scan. The batches have the wanted columns in the wanted order. A scan with an order may leave out rows that come
    /// behind where its reader stands.
    ///
    /// # Errors
    /// A file cannot be read or is corrupted.
    fn scan(&self, spec: &ScanSpec, frontier: Option<FrontierSource>) -> Result<BatchIterator>;

    /// The same rows under a newer version of the table's schema, if the snapshot has not heard of that version yet. The future
    /// may wait for this node to hear of it.
    fn behind(&self, table: TableId, schema_version: u32) -> Option<Reached> {
        let _ = (table, schema_version);
        None
    }

    /// What is shown, in terms of the replica on that node.
    fn moment(&self, partition: PartitionId, node: NodeId) -> Option<Moment> {
        let _ = (partition, node);
        None
    }

    /// More columns of rows that a scan gave the addresses of, in the order of the addresses. May block on the disk.
    ///
    /// # Errors
    /// As of a scan; an address is none.
    fn fetch(&self, spec: &FetchSpec, addresses: &[u64]) -> Result<RecordBatch>;
}

/// The replicas of this node.
pub trait LocalReplicas: Send + Sync {
    /// The replica's rows now.
    ///
    /// # Errors
    /// [`PartitionUnavailable`](shoal_kernel::ErrorCode::PartitionUnavailable): this node holds no such replica, or it does
    /// not count (it joins, is quarantined, or is not caught up).
    fn snapshot(&self, partition: PartitionId) -> Result<Arc<dyn PartitionSnapshot>>;

    /// The replica's rows once it holds everything that was acknowledged at quorum before the call.
    ///
    /// # Errors
    /// As of [`LocalReplicas::snapshot`]; [`NotEnoughReplicas`](shoal_kernel::ErrorCode::NotEnoughReplicas): too few of the others
    /// have said in time what they hold, or what they hold could not be had in time.
    fn snapshot_at_quorum(
        &self,
        partition: PartitionId,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Arc<dyn PartitionSnapshot>>>;

    /// No row that a snapshot taken before this call shows is newer.
    fn newest(&self) -> Hlc;
}

/// Who can serve a partition; preferred ones first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Candidates {
    /// Those that are caught up, as far as that is known.
    pub level: Vec<NodeId>,
    /// Those whose replica is far behind others. They are passed over as long as somebody else can serve.
    pub behind: Vec<NodeId>,
}

impl Candidates {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = NodeId> {
        self.level.iter().chain(&self.behind).copied()
    }
}

/// Who can serve what, as this node sees it.
pub trait Placement: Send + Sync {
    /// Nodes that answer, this one among them.
    fn alive(&self) -> BTreeSet<NodeId>;

    /// Those of them that have not answered lately. They are passed over as long as somebody else can serve.
    fn suspected(&self) -> BTreeSet<NodeId> {
        BTreeSet::new()
    }

    /// Nodes with a live, voting replica of the partition.
    fn candidates(&self, partition: PartitionId) -> Candidates;

    /// Whether there is no such partition any more: it was split, or its window was dropped.
    fn is_gone(&self, partition: PartitionId) -> bool {
        let _ = partition;
        false
    }
}

/// Plans a query anew, on the partitions that there are then.
pub type Replan = Arc<dyn Fn() -> BoxFuture<'static, Result<FragmentGraph>> + Send + Sync>;

/// Runs fragments. The planner is the only one in production; tests put others in its place.
pub trait Engine: Send + Sync {
    /// Starts one task of a fragment. Operators take their memory from `memory`, and may put on disk what they do not get.
    ///
    /// # Errors
    /// The fragment was made by another version, or does not decode.
    fn start(
        &self,
        fragment: &Fragment,
        task: u32,
        inputs: Arc<dyn TaskInputs>,
        memory: TaskMemory,
    ) -> Result<SendableRecordBatchStream>;

    /// What spreads the output of a task over the slots of its edge.
    ///
    /// # Errors
    /// The edge's expressions do not decode.
    fn router(&self, edge: &Edge, schema: SchemaRef) -> Result<Box<dyn Router>>;
}

/// Spreads batches over slots.
pub trait Router: Send {
    /// The parts of a batch, each with its slot; slots without rows are left out.
    ///
    /// # Errors
    /// An expression of the edge failed on a row.
    fn route(&mut self, batch: RecordBatch) -> Result<Vec<(u32, RecordBatch)>>;
}
