//! What a node does for its doors: one handle, typed requests, streamed answers. The framing of results (schema, batches,
//! one end or error) lives here, below every door, so that REST, WebSocket and the simulator see the same thing.

mod request;
mod status;

pub use request::{
    CommandDone, NodeConfig, PlantedBugs, Progress, QueryEvent, QueryStream, QuerySummary, SqlRequest, WriteReport,
    WriteRequest,
};
pub use status::{ClusterStatus, NodeStatus, PartitionStatus, ReplicaStatus, SwimState};

use std::sync::Arc;

use shoal_catalog::Table;
use shoal_kernel::{Env, Error, NodeId, QueryId, Result};

/// A running node. Cheap to clone; the node stops at [`Node::shutdown`], not when a handle is dropped.
#[derive(Clone)]
pub struct Node {}

impl Node {
    /// Opens the data directory, joins or founds the cluster and starts every actor. Returns as soon as the node is up; it
    /// takes requests once [`Node::ready`] says so.
    ///
    /// # Errors
    /// The data directory is locked, unreadable or of another cluster; the cluster address cannot be bound.
    pub async fn start(env: Env, config: NodeConfig) -> Result<Self> {
        let _ = (env, config);
        Err(Error::internal("not wired yet"))
    }

    /// The node's number.
    pub fn id(&self) -> NodeId {
        NodeId(0)
    }

    /// Its access to the world.
    pub fn env(&self) -> &Env {
        unreachable!()
    }

    /// Whether the node has joined, applied the catalog and opened its replicas.
    ///
    /// # Errors
    /// Not yet, or stopping; says what it waits for.
    pub fn ready(&self) -> Result<()> {
        Ok(())
    }

    /// Starts one SQL statement. Parsing and planning errors come back here; everything later through the stream.
    ///
    /// # Errors
    /// The text does not parse or plan, or the node is overloaded.
    pub async fn sql(&self, request: SqlRequest) -> Result<QueryStream> {
        let _ = request;
        Err(Error::internal("not wired yet"))
    }

    /// Stops a query, wherever it was asked. Its stream ends with [`shoal_kernel::ErrorCode::Cancelled`].
    ///
    /// # Errors
    /// No such query runs.
    pub async fn cancel(&self, query: QueryId) -> Result<()> {
        let _ = query;
        Err(Error::internal("not wired yet"))
    }

    /// The definition of a table, as this node knows it.
    ///
    /// # Errors
    /// No such table; suggests names that are close.
    pub fn table(&self, name: &str) -> Result<Arc<Table>> {
        let _ = name;
        Err(Error::internal("not wired yet"))
    }

    /// Writes rows. Nothing is sent before all of them have been checked.
    ///
    /// # Errors
    /// Each says whether anything was applied.
    pub async fn write(&self, request: WriteRequest) -> Result<WriteReport> {
        let _ = request;
        Err(Error::internal("not wired yet"))
    }

    /// The cluster as this node sees it; lags are asked of the replicas.
    pub async fn cluster(&self) -> ClusterStatus {
        unreachable!()
    }

    /// Takes no more requests, ends what runs, flushes, and closes the data directory.
    pub async fn shutdown(&self) {}
}
