//! The handle of a node's queries.

use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde::{Deserialize, Serialize};
use shoal_kernel::{Env, Error, ErrorCode, NodeId, Planted, QueryId, ReadLevel, Result};
use shoal_planner::FragmentGraph;
use tokio::sync::mpsc;

use super::coordinator::{Event, QueryActor, QueryMessage, QueryStart};
use super::handler::{EdgeHandler, QueryHandler};
use super::memory::SharedMemory;
use super::message::{Reply, Request, RunningOn};
use super::node::{QueryNode, Surroundings, stopping};
use super::ports::{Engine, LocalReplicas, Placement, Replan};
use super::spill::SpillLimits;
use super::tasks::TasksMessage;
use crate::service::{NodeConfig, Progress, QueryStream};
use crate::transport::{Route, Transport};

/// Batches that wait for a client to read them.
const CLIENT_BATCHES: usize = 4;
/// How long a cancellation may take on its way to another coordinator.
const CANCEL_TIMEOUT: Duration = Duration::from_millis(5_000);
/// How long a stopping node leaves the queries of others the time to end by themselves.
const DRAIN_WAIT: Duration = Duration::from_millis(5_000);
/// How long a stopping node waits for its queries to end.
const SHUTDOWN_WAIT: Duration = Duration::from_millis(5_000);
/// How often it looks.
const SHUTDOWN_LOOK: Duration = Duration::from_millis(5);

/// Bounds on queries, per node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryLimits {
    /// Memory of all queries together, in bytes: operators, and batches that wait on edges.
    pub query_memory_bytes_max: usize,
    /// What queries may put on disk when memory does not hold it; nothing unless given.
    pub spill: Option<SpillLimits>,
    /// Rows of a batch that operators hand on.
    pub batch_rows: usize,
    /// Queries coordinated here that run at once.
    pub queries_max: usize,
    /// Queries that may wait to be admitted.
    pub queries_queued_max: usize,
    /// The deadline of a query that names none.
    pub timeout: Duration,
    /// What a producer may be ahead of its consumer, in bytes, per slot.
    pub edge_window_bytes: u32,
    /// A bug planted on purpose; none outside tests.
    pub planted: Option<Planted>,
    /// Queries say which replicas they saw, and as of when.
    pub observed: bool,
}

impl QueryLimits {
    /// The limits of a node's configuration.
    pub fn of(config: &NodeConfig) -> Self {
        Self {
            query_memory_bytes_max: config.query_memory_bytes_max,
            spill: Some(SpillLimits {
                data_dir: config.data_dir.clone(),
                bytes_max: config.spill_bytes_max,
                reserve_bytes: config.disk_reserve_bytes,
            }),
            batch_rows: config.query_batch_rows,
            queries_max: config.queries_max,
            queries_queued_max: config.queries_queued_max,
            timeout: Duration::from_millis(config.request_timeout_ms),
            edge_window_bytes: config.edge_window_bytes,
            planted: config.planted,
            observed: config.observer.is_some(),
        }
    }
}

impl Default for QueryLimits {
    fn default() -> Self {
        Self {
            query_memory_bytes_max: 2 << 30,
            spill: None,
            batch_rows: 8_192,
            queries_max: 32,
            queries_queued_max: 256,
            timeout: Duration::from_secs(300),
            edge_window_bytes: 2 << 20,
            planted: None,
            observed: false,
        }
    }
}

/// How one query is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// Its deadline, from now on.
    pub timeout: Duration,
    /// Run it, drop its rows, and answer with what happened: `EXPLAIN ANALYZE`.
    pub analyze: bool,
    /// The level at which its replicas are read.
    pub read_level: ReadLevel,
    /// Its text, for lists.
    pub sql: Arc<str>,
}

impl RunOptions {
    /// A query that answers with its rows, read at the lowest level.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, analyze: false, read_level: ReadLevel::One, sql: Arc::default() }
    }
}

/// A query that runs, for lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningQuery {
    /// Its id.
    pub id: QueryId,
    /// Its text, cut if long.
    pub sql: String,
    /// Its place in the line, from 1, if it still waits to be admitted.
    pub queued: Option<u32>,
    /// Its attempt, from 0.
    pub attempt: u32,
    /// How far it is.
    pub progress: Progress,
    /// Since when it has been here.
    pub elapsed: Duration,
}

/// What queries hold on this node. All zero when no query runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueryStats {
    /// Query, shard and merge actors and supervisors of tasks.
    pub actors: usize,
    /// Queries coordinated here.
    pub queries: usize,
    /// Attempts with tasks here.
    pub attempts: usize,
    /// Outputs of tasks that are kept for their consumers.
    pub outputs: usize,
    /// Bytes of batches that wait in them.
    pub buffered_bytes: usize,
    /// Bytes of query memory in use.
    pub memory_bytes: usize,
    /// Bytes on disk that memory did not hold.
    pub spill_bytes: u64,
}

/// A node's queries. Cheap to clone; they stop at [`QueryService::shutdown`], not when a handle is dropped.
#[derive(Clone)]
pub struct QueryService {
    pub(super) node: Arc<QueryNode>,
    root: ActorCell,
}

impl std::fmt::Debug for QueryService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QueryService({})", self.node.id)
    }
}

/// Supervises all query actors of a node. Owned by the node; owns nothing but them. A query that dies has told its client
/// itself: nothing is restarted here.
struct RootActor;

impl Actor for RootActor {
    type Msg = ();
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            metrics::counter!("shoal_query_panics_total").increment(1);
            tracing::error!(%error, "a query actor failed");
        }
        Ok(())
    }
}

impl QueryService {
    /// Starts the query actors of a node and takes `Route::Query` and `Route::Edge`. `supervisor` hears if the root dies.
    ///
    /// # Errors
    /// The supervisor is stopping.
    pub async fn start(
        env: &Env,
        transport: Transport,
        engine: Arc<dyn Engine>,
        replicas: Arc<dyn LocalReplicas>,
        placement: Arc<dyn Placement>,
        limits: QueryLimits,
        supervisor: Option<ActorCell>,
    ) -> Result<Self> {
        let started = match supervisor {
            Some(supervisor) => Actor::spawn_linked(None, RootActor, (), supervisor).await,
            None => Actor::spawn(None, RootActor, ()).await,
        };
        let (root, _) = started.map_err(|error| Error::internal(format!("queries could not be started: {error}")))?;
        let memory: Arc<dyn MemoryPool> = match limits.spill.as_ref().is_some_and(|spill| spill.bytes_max > 0) {
            true => Arc::new(SharedMemory::new(limits.query_memory_bytes_max)),
            false => Arc::new(GreedyMemoryPool::new(limits.query_memory_bytes_max)),
        };
        let id = transport.node();
        let env = env.clone();
        let surroundings = Surroundings { env, id, transport, engine, replicas, placement, limits, memory };
        let node = QueryNode::new(surroundings, root.get_cell());
        // Weak: the transport lives as long as the node and must not keep its queries alive.
        node.transport.register(Route::Query, Arc::new(QueryHandler(Arc::downgrade(&node))));
        node.transport.register(Route::Edge, Arc::new(EdgeHandler(Arc::downgrade(&node))));
        Ok(Self { node, root: root.get_cell() })
    }

    /// Starts a query. Whatever happens from now on, also waiting to be admitted, is told by the stream; dropping it
    /// cancels the query.
    ///
    /// # Errors
    /// [`ErrorCode::Overloaded`]: too many wait already. The id is in use or names another coordinator; the node is stopping.
    pub async fn run(&self, graph: FragmentGraph, id: QueryId, options: RunOptions) -> Result<QueryStream> {
        self.begin(graph, id, options, None).await
    }

    /// The same with a query that is planned anew if its partitions are split before it gets to them.
    ///
    /// # Errors
    /// As of [`QueryService::run`].
    pub async fn run_replanned(
        &self,
        graph: FragmentGraph,
        id: QueryId,
        options: RunOptions,
        replan: Replan,
    ) -> Result<QueryStream> {
        self.begin(graph, id, options, Some(replan)).await
    }

    async fn begin(
        &self,
        graph: FragmentGraph,
        id: QueryId,
        options: RunOptions,
        replan: Option<Replan>,
    ) -> Result<QueryStream> {
        self.node.taking()?;
        if id.coordinator() != self.node.id {
            let message = format!("the query id {id} names node {} as its coordinator", id.coordinator());
            return Err(Error::new(ErrorCode::InvalidRequest, message));
        }
        if self.node.query(id).is_some() {
            return Err(Error::new(ErrorCode::InvalidRequest, format!("a query with the id {id} runs already")));
        }
        let entry = self.node.admission.enter(id)?;
        let (events, stream): (mpsc::Sender<_>, _) = QueryStream::channel(id, CLIENT_BATCHES + 2);
        let last_word = events
            .clone()
            .try_reserve_owned()
            .map_err(|_| Error::internal("a new channel has no room for its last event"))?;
        let node = self.node.clone();
        let start = QueryStart { node, id, graph, replan, options, entry, events, last_word };
        match Actor::spawn_linked(None, QueryActor, start, self.root.clone()).await {
            Ok(_) => Ok(stream),
            Err(error) => Err(self.node.not_started(format_args!("query {id}"), &error)),
        }
    }

    /// Stops a query, wherever it is coordinated. Its stream ends with [`ErrorCode::Cancelled`].
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]: no such query runs. Its coordinator cannot be reached.
    pub async fn cancel(&self, id: QueryId) -> Result<()> {
        if id.coordinator() == self.node.id {
            super::handler::cancel(&self.node, id)
        } else {
            self.node.cancel_at(id.coordinator(), id, CANCEL_TIMEOUT).await
        }
    }

    /// Queries coordinated here, by id.
    pub fn running(&self) -> Vec<RunningQuery> {
        self.node.running()
    }

    /// What runs on another node, or this one: queries that it coordinates, and tasks of any.
    ///
    /// # Errors
    /// The node does not answer in time, or is of a build that cannot say.
    pub(crate) async fn running_on(&self, node: NodeId, timeout: Duration) -> Result<RunningOn> {
        match self.node.ask(node, &Request::Running, timeout).await? {
            Reply::Running(running) => Ok(running),
            _ => Err(Error::internal("another answer than to what runs there")),
        }
    }

    /// Membership says that a node is down: queries with tasks there fail over, tasks it coordinated here end.
    pub fn node_down(&self, node: NodeId) {
        for query in self.node.queries() {
            let _ = query.send_message(QueryMessage::Event(Event::NodeDown(node)));
        }
        for tasks in self.node.tasks() {
            let _ = tasks.send_message(TasksMessage::NodeDown(node));
        }
    }

    /// Membership suspects that a node is gone: queries that have not worked for long begin anew without it.
    pub fn node_silent(&self, node: NodeId) {
        self.node.tell_silent(node);
    }

    /// What queries hold on this node.
    pub fn stats(&self) -> QueryStats {
        let (queries, attempts) = self.node.counts();
        QueryStats {
            actors: self.node.actors(),
            queries,
            attempts,
            outputs: self.node.edges.len(),
            buffered_bytes: self.node.edges.bytes(),
            memory_bytes: self.node.memory.reserved(),
            spill_bytes: self.node.spill.as_ref().map_or(0, |spill| spill.used()),
        }
    }

    /// Takes no more queries and ends those that were asked here. Then waits, within bounds, until those of other nodes have got what
    /// they need from this one; they start nothing here any more.
    pub async fn drain(&self) {
        self.node.stop_taking();
        for query in self.node.queries() {
            let _ = query.send_message(QueryMessage::Event(Event::Stopped(stopping())));
        }
        self.wait_until_idle(DRAIN_WAIT).await;
    }

    /// Ends everything that runs, and waits until nothing is left of it.
    pub async fn shutdown(&self) {
        self.node.stop_taking();
        for query in self.node.queries() {
            let _ = query.send_message(QueryMessage::Event(Event::Stopped(stopping())));
        }
        for tasks in self.node.tasks() {
            let _ = tasks.send_message(TasksMessage::Release(None));
        }
        self.wait_until_idle(SHUTDOWN_WAIT).await;
        self.root.stop(None);
        let _ = self.root.wait(None).await;
    }

    async fn wait_until_idle(&self, patience: Duration) {
        let end = self.node.env.monotonic().saturating_add(patience);
        while self.stats().actors > 0 && self.node.env.monotonic() < end {
            self.node.env.sleep(SHUTDOWN_LOOK).await;
        }
    }
}
