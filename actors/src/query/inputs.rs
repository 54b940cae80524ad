//! Where a running task's data comes from: pinned replicas and edges.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use shoal_kernel::{Error, FetchSpec, FragmentId, FragmentKey, FrontierSource, NodeId, Result, ScanSpec};
use shoal_planner::TaskInputs;

use super::edge::codec::{OpenEdge, with_schema};
use super::edge::remote;
use super::tasks::TaskGroup;
use super::{locked, to_datafusion};

/// The inputs of one task. When they are dropped, slots that the task never asked for are given back to their producers.
pub(super) struct Inputs {
    group: Arc<TaskGroup>,
    key: FragmentKey,
    producers: BTreeMap<FragmentId, Vec<NodeId>>,
    untaken: Mutex<BTreeSet<(FragmentId, u32)>>,
}

impl Inputs {
    pub(super) fn new(
        group: Arc<TaskGroup>,
        key: FragmentKey,
        producers: BTreeMap<FragmentId, Vec<NodeId>>,
    ) -> Arc<Self> {
        let untaken = producers
            .iter()
            .flat_map(|(fragment, nodes)| (0u32..).zip(nodes).map(|(task, _)| (*fragment, task)))
            .collect();
        Arc::new(Self { group, key, producers, untaken: Mutex::new(untaken) })
    }

    /// The producer's output slot that is this task's: consumer task `i` reads slot `i`.
    fn edge(&self, fragment: FragmentId, task: u32) -> OpenEdge {
        let producer = FragmentKey { query: self.key.query, fragment, task, attempt: self.key.attempt };
        OpenEdge { producer, slot: self.key.task }
    }

    fn node_of(&self, fragment: FragmentId, task: u32) -> Option<NodeId> {
        self.producers.get(&fragment)?.get(task as usize).copied()
    }
}

impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inputs of {}", self.key)
    }
}

impl TaskInputs for Inputs {
    fn scan(
        &self,
        spec: &ScanSpec,
        schema: SchemaRef,
        frontier: Option<FrontierSource>,
    ) -> Result<SendableRecordBatchStream> {
        super::scan::scan(&self.group, spec, schema, frontier)
    }

    fn fetch(&self, spec: FetchSpec, addresses: Vec<u64>) -> BoxFuture<'static, Result<RecordBatch>> {
        super::scan::fetch(self.group.clone(), spec, addresses).boxed()
    }

    fn is_stopped(&self) -> bool {
        self.group.is_stopped()
    }

    fn exchange(&self, fragment: FragmentId, task: u32, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
        let node = self
            .node_of(fragment, task)
            .ok_or_else(|| Error::internal(format!("{} reads {fragment}.{task}, which is no input of it", self.key)))?;
        if !locked(&self.untaken).remove(&(fragment, task)) {
            return Err(Error::internal(format!("{} reads {fragment}.{task} twice", self.key)));
        }
        let edge = self.edge(fragment, task);
        if node != self.group.node.id {
            return Ok(remote::read(self.group.clone(), node, edge, schema));
        }
        // Tasks of one node are made known together before any of them starts.
        let output = self
            .group
            .node
            .edges
            .get(edge.producer)
            .ok_or_else(|| Error::internal(format!("there is no output of {}", edge.producer)))?;
        let expected = schema.clone();
        let rows = output
            .claim(edge.slot)?
            .map(move |batch| batch.and_then(|batch| with_schema(batch, &expected)).map_err(to_datafusion));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

impl Drop for Inputs {
    fn drop(&mut self) {
        let untaken = std::mem::take(&mut *locked(&self.untaken));
        for (fragment, task) in untaken {
            if let Some(node) = self.node_of(fragment, task) {
                self.group.node.discard_edge(node, self.edge(fragment, task));
            }
        }
    }
}
