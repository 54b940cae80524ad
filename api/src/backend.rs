//! What the doors ask of a node. A trait, so that every door can be tested against a scripted node.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use shoal_actors::Node;
use shoal_actors::service::{
    BalanceStatus, ClusterStatus, Evolution, NodeChange, QueryStream, SqlRequest, WriteReport, WriteRequest,
};
use shoal_catalog::Table;
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{Applied, Error, NodeId, QueryId, Result};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// How long the catalog may take to agree on a change of a node.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A node, as its doors see it.
pub trait Backend: Send + Sync + 'static {
    /// The node's number.
    fn node(&self) -> NodeId;

    /// A fresh id for a query asked here.
    fn new_query_id(&self) -> QueryId;

    /// Whether requests can be taken.
    ///
    /// # Errors
    /// Not yet, or no longer; says what the node waits for.
    fn ready(&self) -> Result<()>;

    /// Starts one statement. Dropping the future or the stream cancels it.
    fn sql(&self, request: SqlRequest) -> BoxFuture<'static, Result<QueryStream>>;

    /// Stops a query, wherever it was asked.
    fn cancel(&self, query: QueryId) -> BoxFuture<'static, Result<()>>;

    /// The definition of a table.
    fn table(&self, name: &str) -> BoxFuture<'static, Result<Arc<Table>>>;

    /// Writes rows. Dropping the future does not stop the write: half a write helps nobody.
    fn write(&self, request: WriteRequest) -> BoxFuture<'static, Result<WriteReport>>;

    /// The same for rows that were made for a definition of the table which others may have left behind meanwhile.
    fn write_as(&self, table: Arc<Table>, request: WriteRequest) -> BoxFuture<'static, Result<WriteReport>>;

    /// Tries to have a table made or changed, and gives it as it then is: somebody else may have been faster. Dropping the
    /// future does not stop it.
    fn evolve(&self, change: Evolution) -> BoxFuture<'static, Result<Arc<Table>>>;

    /// The cluster as the node sees it.
    fn cluster(&self) -> BoxFuture<'static, Result<ClusterStatus>>;

    /// Changes what a node of the cluster is for. Dropping the future does not stop it.
    fn change_node(&self, id: NodeId, change: NodeChange) -> BoxFuture<'static, Result<()>>;

    /// See [`Node::balance`].
    fn balance(&self) -> BoxFuture<'static, Result<BalanceStatus>>;

    /// See [`Node::pause_balance`].
    fn pause_balance(&self, paused: bool) -> BoxFuture<'static, Result<()>>;
}

/// A node behind its own runtime. The doors run on actix's single-threaded workers; everything the node does runs on the
/// multi-threaded runtime it was started on.
pub struct NodeBackend {
    node: Node,
    runtime: Handle,
}

impl NodeBackend {
    /// `runtime` is the one the node was started on.
    pub fn new(node: Node, runtime: Handle) -> Self {
        Self { node, runtime }
    }

    fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
        if_lost: Applied,
    ) -> BoxFuture<'static, Result<T>> {
        let task = self.runtime.spawn(work);
        Box::pin(async move { task.await.unwrap_or_else(|_| Err(lost(if_lost))) })
    }
}

impl Backend for NodeBackend {
    fn node(&self) -> NodeId {
        self.node.id()
    }

    fn new_query_id(&self) -> QueryId {
        QueryId::new(self.node.id(), self.node.env().random("query-id"))
    }

    fn ready(&self) -> Result<()> {
        self.node.ready()
    }

    fn sql(&self, request: SqlRequest) -> BoxFuture<'static, Result<QueryStream>> {
        let node = self.node.clone();
        Box::pin(AbortOnDrop(self.runtime.spawn(async move { node.sql(request).await })))
    }

    fn cancel(&self, query: QueryId) -> BoxFuture<'static, Result<()>> {
        let node = self.node.clone();
        self.run(async move { node.cancel(query).await }, Applied::False)
    }

    fn table(&self, name: &str) -> BoxFuture<'static, Result<Arc<Table>>> {
        let (node, name) = (self.node.clone(), name.to_owned());
        self.run(async move { node.table(&name).await }, Applied::False)
    }

    fn write(&self, request: WriteRequest) -> BoxFuture<'static, Result<WriteReport>> {
        let node = self.node.clone();
        self.run(async move { node.write(request).await }, Applied::Unknown)
    }

    fn write_as(&self, table: Arc<Table>, request: WriteRequest) -> BoxFuture<'static, Result<WriteReport>> {
        let node = self.node.clone();
        self.run(async move { node.write_as(table, request).await }, Applied::Unknown)
    }

    fn evolve(&self, change: Evolution) -> BoxFuture<'static, Result<Arc<Table>>> {
        let node = self.node.clone();
        self.run(async move { node.evolve(change).await }, Applied::False)
    }

    fn change_node(&self, id: NodeId, change: NodeChange) -> BoxFuture<'static, Result<()>> {
        let node = self.node.clone();
        self.run(async move { node.change_node(id, change, CHANGE_TIMEOUT).await }, Applied::Unknown)
    }

    fn balance(&self) -> BoxFuture<'static, Result<BalanceStatus>> {
        let node = self.node.clone();
        self.run(async move { node.balance().await }, Applied::False)
    }

    fn pause_balance(&self, paused: bool) -> BoxFuture<'static, Result<()>> {
        let node = self.node.clone();
        self.run(async move { node.pause_balance(paused, CHANGE_TIMEOUT).await }, Applied::Unknown)
    }

    fn cluster(&self) -> BoxFuture<'static, Result<ClusterStatus>> {
        let node = self.node.clone();
        self.run(async move { Ok(node.cluster().await) }, Applied::False)
    }
}

fn lost(applied: Applied) -> Error {
    Error::internal("the request's task was lost: it panicked, or the node is stopping").with_applied(applied)
}

/// A task on the node's runtime that ends when nobody waits for it any more.
struct AbortOnDrop<T>(JoinHandle<Result<T>>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|joined| joined.unwrap_or_else(|_| Err(lost(Applied::Unknown))))
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
