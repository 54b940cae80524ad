//! A query as a graph of fragments. Data flows from leaves to the root; the root runs where the query was asked.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use shoal_kernel::{FetchSpec, FragmentId, FrontierSource, PartitionId, ReadLevel, Result, ScanSpec};

/// A plan cut into fragments.
#[derive(Debug, Clone)]
pub struct FragmentGraph {
    /// Producers before their consumers; the last one is the root: one task, at the coordinator, output [`Edge::Gather`].
    pub fragments: Vec<Fragment>,
    /// Columns of the answer.
    pub schema: SchemaRef,
    /// The level at which it is read, if the request names none: the highest default of the tables in it.
    pub read_level: ReadLevel,
}

impl FragmentGraph {
    /// The fragment whose output is the answer.
    pub fn root(&self) -> Option<&Fragment> {
        self.fragments.last()
    }
}

/// A piece of the physical plan that runs without an exchange inside. Every task runs the same plan: task `i` executes
/// output partition `i` of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fragment {
    /// Its number; also its place in [`FragmentGraph::fragments`].
    pub id: FragmentId,
    /// The physical plan, as datafusion-proto writes it with [`crate`]'s extension codec.
    pub plan: Vec<u8>,
    /// Its tasks, by output partition.
    pub tasks: Vec<TaskSpec>,
    /// Where its output goes.
    pub output: Edge,
    /// Fragments whose output it reads.
    pub inputs: Vec<FragmentId>,
    /// The plan in words, for EXPLAIN and progress.
    pub label: String,
}

/// One task of a fragment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Where it must run.
    pub place: Place,
}

/// Where a task must run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// On a live, caught-up replica of the partition.
    Replica(PartitionId),
    /// On any node.
    Anywhere,
    /// On the node that was asked.
    Coordinator,
}

/// How the output of a fragment's tasks reaches the consumer. An output of task `t` is addressed by (t, slot).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Edge {
    /// One slot; the one consumer task reads slot 0 of every producer task, each as an input partition of its own (merged
    /// in order or not by the plan above).
    Gather,
    /// `slots` slots, row by hash of the expressions; consumer task `i` reads slot `i` of every producer task.
    Hash {
        /// The expressions, as datafusion-proto writes them, over the fragment's output schema.
        expressions: Vec<Vec<u8>>,
        /// Number of consumer tasks.
        slots: u32,
    },
    /// Every one of `slots` consumer tasks reads all rows.
    Broadcast {
        /// Number of consumer tasks.
        slots: u32,
    },
}

impl Edge {
    /// Number of slots of each producer task.
    pub fn slots(&self) -> u32 {
        match self {
            Self::Gather => 1,
            Self::Hash { slots, .. } | Self::Broadcast { slots } => *slots,
        }
    }
}

/// Where a running task's data comes from; given to the plan through DataFusion's session configuration as an extension
/// ([`TaskInputsExtension`]), so that plan nodes stay plain data.
pub trait TaskInputs: Send + Sync + fmt::Debug {
    /// Rows of a partition, from the replica on this node, at the query's pinned snapshot. The schema of the stream is the
    /// wanted columns with the table's names and types. `frontier` says where the reader stands, if the scan has an order.
    ///
    /// # Errors
    /// This node holds no such replica, or it does not count.
    fn scan(
        &self,
        spec: &ScanSpec,
        schema: SchemaRef,
        frontier: Option<FrontierSource>,
    ) -> Result<SendableRecordBatchStream>;

    /// More columns of rows that a scan of this task, on this partition, gave the addresses of; in the order of the addresses.
    ///
    /// # Errors
    /// As of the scan; an address is none.
    fn fetch(&self, spec: FetchSpec, addresses: Vec<u64>) -> BoxFuture<'static, Result<RecordBatch>>;

    /// Rows that producer task `task` of `fragment` put into this consumer's slot.
    ///
    /// # Errors
    /// The edge is unknown to this task.
    fn exchange(&self, fragment: FragmentId, task: u32, schema: SchemaRef) -> Result<SendableRecordBatchStream>;

    /// Whether the task is to stop: whoever computes for long without a pause asks now and then.
    fn is_stopped(&self) -> bool;
}

/// The form in which [`TaskInputs`] travels through a session configuration.
#[derive(Debug, Clone)]
pub struct TaskInputsExtension(pub Arc<dyn TaskInputs>);
