//! What all query actors of a node share: the ways out, the budgets, and who runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use datafusion::execution::memory_pool::MemoryPool;
use ractor::{ActorCell, ActorRef, SpawnErr};
use shoal_kernel::{Env, Error, ErrorCode, NodeId, Planted, QueryId, Rare, Result, wire};
use tokio::sync::{Semaphore, oneshot};

use super::admission::Admission;
use super::coordinator::{Event, QueryMessage, QueryView};
use super::edge::EdgeTable;
use super::edge::codec::OpenEdge;
use super::message::{Failure, Notice, Reply, Report, Request, RunningOn, StartTasks, Status};
use super::ports::{Engine, LocalReplicas, Placement};
use super::service::{QueryLimits, RunningQuery};
use super::spill::SpillSpace;
use super::tasks::{self, TaskGroup, TasksMessage};
use super::{by_key, locked, ports};
use crate::transport::{Route, Transport};

/// How long starting tasks on a node may take: decoding plans and pinning snapshots, no rows.
const START_TIMEOUT: Duration = Duration::from_millis(10_000);
/// How long another node may take before it is asked whether it is there at all.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// How long it may take to answer that, which costs it nothing.
const LOOK_TIMEOUT: Duration = Duration::from_millis(150);
/// How long a node that did not is passed over, if membership does not suspect it by then.
const SILENT_FOR: Duration = Duration::from_secs(2);

/// Characters of a query's text that are shown.
const SQL_SHOWN_CHARS: usize = 1000;

/// A node's share in all queries.
pub(crate) struct QueryNode {
    pub(crate) env: Env,
    pub(crate) id: NodeId,
    pub(crate) transport: Transport,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) replicas: Arc<dyn LocalReplicas>,
    pub(crate) placement: Arc<dyn Placement>,
    pub(crate) limits: QueryLimits,
    pub(crate) memory: Arc<dyn MemoryPool>,
    /// Where tasks put what memory does not hold, if they may.
    pub(crate) spill: Option<Arc<SpillSpace>>,
    pub(crate) edges: EdgeTable,
    pub(crate) admission: Admission,
    /// A place for each read by key that is under way here.
    pub(super) key_reads: Semaphore,
    /// Nodes that did not say whether they are there.
    silent: Mutex<BTreeMap<NodeId, Silence>>,
    root: ActorCell,
    registry: Mutex<Registry>,
    actors: Arc<AtomicUsize>,
}

struct Silence {
    /// The node is passed over so long.
    until: Duration,
    /// When the queries of this node were told.
    told_at: Duration,
}

#[derive(Default)]
struct Registry {
    queries: BTreeMap<QueryId, (ActorRef<QueryMessage>, Arc<Mutex<QueryView>>)>,
    tasks: BTreeMap<(QueryId, u32), (ActorRef<TasksMessage>, Arc<TaskGroup>)>,
    stopping: bool,
}

/// Counts a live actor until it is dropped.
pub(crate) struct ActorCount(Arc<AtomicUsize>);

impl Drop for ActorCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The surroundings of a node's queries.
pub(super) struct Surroundings {
    pub(super) env: Env,
    pub(super) id: NodeId,
    pub(super) transport: Transport,
    pub(super) engine: Arc<dyn ports::Engine>,
    pub(super) replicas: Arc<dyn LocalReplicas>,
    pub(super) placement: Arc<dyn Placement>,
    pub(super) limits: QueryLimits,
    pub(super) memory: Arc<dyn MemoryPool>,
}

impl QueryNode {
    pub(super) fn new(surroundings: Surroundings, root: ActorCell) -> Arc<Self> {
        let Surroundings { env, id, transport, engine, replicas, placement, limits, memory } = surroundings;
        let planted = limits.planted;
        let spill = limits.spill.clone().filter(|limits| limits.bytes_max > 0);
        let spill = spill.map(|limits| SpillSpace::new(&env, limits));
        let bounded = planted != Some(Planted::UnboundedQueue);
        let admission =
            Admission::new(limits.queries_max, if bounded { limits.queries_queued_max } else { usize::MAX });
        Arc::new(Self {
            env,
            id,
            transport,
            engine,
            replicas,
            placement,
            limits,
            memory,
            spill,
            edges: EdgeTable::default(),
            admission,
            key_reads: Semaphore::new(by_key::READS_MAX),
            silent: Mutex::default(),
            root,
            registry: Mutex::default(),
            actors: Arc::default(),
        })
    }

    /// The supervisor of all query actors of this node.
    pub(crate) fn root(&self) -> ActorCell {
        self.root.clone()
    }

    pub(crate) fn count_actor(&self) -> ActorCount {
        self.actors.fetch_add(1, Ordering::Relaxed);
        ActorCount(self.actors.clone())
    }

    pub(crate) fn actors(&self) -> usize {
        self.actors.load(Ordering::Relaxed)
    }

    // Queries that this node coordinates.

    /// Makes a query known.
    ///
    /// # Errors
    /// The id is in use, or the node is stopping.
    pub(crate) fn remember_query(
        &self,
        id: QueryId,
        actor: ActorRef<QueryMessage>,
        view: Arc<Mutex<QueryView>>,
    ) -> Result<()> {
        let mut registry = locked(&self.registry);
        if registry.stopping {
            return Err(stopping());
        }
        if registry.queries.contains_key(&id) {
            return Err(Error::new(ErrorCode::InvalidRequest, format!("a query with the id {id} runs already")));
        }
        registry.queries.insert(id, (actor, view));
        Ok(())
    }

    pub(crate) fn forget_query(&self, id: QueryId) {
        locked(&self.registry).queries.remove(&id);
    }

    pub(crate) fn query(&self, id: QueryId) -> Option<ActorRef<QueryMessage>> {
        locked(&self.registry).queries.get(&id).map(|(actor, _)| actor.clone())
    }

    /// Queries that this node coordinates, by id.
    pub(super) fn running(&self) -> Vec<RunningQuery> {
        let now = self.env.monotonic();
        let views: Vec<(QueryId, QueryView)> =
            locked(&self.registry).queries.iter().map(|(id, (_, view))| (*id, locked(view).clone())).collect();
        let running = |(id, view): (QueryId, QueryView)| RunningQuery {
            id,
            sql: view.sql.chars().take(SQL_SHOWN_CHARS).collect(),
            queued: if view.queued { self.admission.place(id) } else { None },
            attempt: view.attempt,
            progress: view.progress,
            elapsed: now.saturating_sub(view.began),
        };
        views.into_iter().map(running).collect()
    }

    /// What runs here, for whoever asks.
    pub(super) fn running_on(&self) -> RunningOn {
        let groups: Vec<Arc<TaskGroup>> =
            locked(&self.registry).tasks.values().map(|(_, group)| group.clone()).collect();
        let fragments = groups.iter().flat_map(|group| group.fragments());
        RunningOn { queries: self.running(), fragments: fragments.collect() }
    }

    /// Whether an attempt of a query that this node coordinates runs.
    pub(crate) fn is_current(&self, id: QueryId, attempt: u32) -> bool {
        locked(&self.registry).queries.get(&id).is_some_and(|(_, view)| locked(view).attempt == attempt)
    }

    pub(crate) fn queries(&self) -> Vec<ActorRef<QueryMessage>> {
        locked(&self.registry).queries.values().map(|(actor, _)| actor.clone()).collect()
    }

    // Tasks on this node.

    /// Makes the supervisor of an attempt's tasks known.
    ///
    /// # Errors
    /// The attempt was released in the meantime; the supervisor has been told.
    pub(crate) fn remember_tasks(&self, group: Arc<TaskGroup>, actor: ActorRef<TasksMessage>) -> Result<()> {
        let (query, attempt) = (group.query, group.attempt);
        let mut registry = locked(&self.registry);
        registry.tasks.insert((query, attempt), (actor.clone(), group));
        // Whoever releases marks the attempt first and looks here second; this side does it the other way round, so that
        // one of the two sees the other.
        let refused = if registry.stopping { Err(stopping()) } else { self.edges.check(query, attempt) };
        if refused.is_err() {
            registry.tasks.remove(&(query, attempt));
            drop(registry);
            let _ = actor.send_message(TasksMessage::Release(None));
        }
        refused
    }

    pub(crate) fn forget_tasks(&self, query: QueryId, attempt: u32) {
        locked(&self.registry).tasks.remove(&(query, attempt));
    }

    pub(crate) fn tasks(&self) -> Vec<ActorRef<TasksMessage>> {
        locked(&self.registry).tasks.values().map(|(actor, _)| actor.clone()).collect()
    }

    /// Queries coordinated here, and attempts with tasks here.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let registry = locked(&self.registry);
        (registry.queries.len(), registry.tasks.len())
    }

    /// From now on nothing is started.
    pub(crate) fn stop_taking(&self) {
        locked(&self.registry).stopping = true;
    }

    /// Whether new work is taken.
    ///
    /// # Errors
    /// The node is stopping.
    pub(crate) fn taking(&self) -> Result<()> {
        if locked(&self.registry).stopping { Err(stopping()) } else { Ok(()) }
    }

    /// Why an actor could not be started: the only supervisor that takes none is that of a node which is stopping.
    pub(crate) fn not_started(&self, what: impl Display, error: &SpawnErr) -> Error {
        self.taking().err().unwrap_or_else(|| Error::internal(format!("{what} could not be started: {error}")))
    }

    // What this node asks of others, itself included.

    pub(super) async fn ask(&self, to: NodeId, request: &Request, timeout: Duration) -> Result<Reply> {
        let bytes = self.transport.call(to, Route::Query, wire::encode(request)?.into(), timeout).await?;
        Ok(wire::decode(&bytes)?)
    }

    /// The same for what is done in a moment as a rule. A node that takes longer is asked whether it is there at all; one that is busy says
    /// so, or something else. One that says nothing is passed over by all queries of this node, and this call given up, if it is to be.
    pub(super) async fn ask_watched(
        &self,
        to: NodeId,
        request: &Request,
        timeout: Duration,
        gives_up: bool,
    ) -> Result<Reply> {
        let answer = self.ask(to, request, timeout);
        tokio::pin!(answer);
        // There is no such query: any answer will do.
        let look = Request::IsCurrent { query: QueryId::new(to, 0), attempt: 0 };
        let mut patience = LOOK_AFTER;
        let answered = loop {
            if let Ok(answered) = self.env.timeout(patience, &mut answer).await {
                break answered;
            }
            patience *= 2;
            let before = self.transport.heard(to);
            tokio::select! {
                biased;
                answered = &mut answer => break answered,
                seen = self.ask(to, &look, LOOK_TIMEOUT) => match seen {
                    // What it says may have to queue behind much else.
                    Err(error) if error.code() == ErrorCode::Timeout && self.transport.heard(to) == before => {
                        self.fell_silent(to);
                        if gives_up {
                            return Err(error);
                        }
                    }
                    _ => {}
                },
            }
        };
        if answered.is_ok() {
            locked(&self.silent).remove(&to);
        }
        answered
    }

    fn fell_silent(&self, node: NodeId) {
        let now = self.env.monotonic();
        let is_news = {
            let mut silent = locked(&self.silent);
            let known = silent.get(&node).map(|silence| silence.told_at).filter(|told_at| now < *told_at + SILENT_FOR);
            silent.insert(node, Silence { until: now + SILENT_FOR, told_at: known.unwrap_or(now) });
            known.is_none()
        };
        // Everybody who waits for it finds this out, again and again; queries are told now and then.
        if is_news {
            self.env.reached(Rare::SilenceNoticed);
            self.tell_silent(node);
        }
    }

    /// Tells the queries of this node that another one does not answer.
    pub(super) fn tell_silent(&self, node: NodeId) {
        for query in self.queries() {
            let _ = query.send_message(QueryMessage::Event(Event::NodeSilent(node)));
        }
    }

    /// Nodes that have not answered lately, membership or this node.
    pub(super) fn suspected(&self) -> BTreeSet<NodeId> {
        let now = self.env.monotonic();
        let mut silent = locked(&self.silent);
        silent.retain(|_, silence| silence.until > now);
        silent.keys().copied().chain(self.placement.suspected()).collect()
    }

    /// Starts tasks on a node.
    ///
    /// # Errors
    /// The node cannot be reached, or it cannot start them.
    pub(crate) async fn start_on(self: &Arc<Self>, to: NodeId, start: StartTasks) -> Result<(), Failure> {
        if to == self.id {
            return tasks::start(self, start).await;
        }
        let timeout = START_TIMEOUT.min(Duration::from_millis(start.timeout_ms.max(1)));
        match self.ask_watched(to, &Request::Start(start), timeout, false).await {
            Ok(Reply::Started(result)) => result,
            Ok(_) => Err(Failure::plain(Error::internal(format!("node {to} answered something else than was asked")))),
            Err(error) => Err(Failure::lost(to, &error)),
        }
    }

    /// Stops everything of an attempt on a node; `None` if the node does not answer.
    pub(crate) async fn release_on(
        self: &Arc<Self>,
        to: NodeId,
        query: QueryId,
        attempt: u32,
        timeout: Duration,
    ) -> Option<Report> {
        if to == self.id {
            // What takes longer (a scan in a slow read) goes on letting go by itself.
            return self.env.timeout(timeout, self.release(query, attempt)).await.ok();
        }
        match self.ask(to, &Request::Release { query, attempt }, timeout).await {
            Ok(Reply::Released(report)) => Some(report),
            _ => None,
        }
    }

    /// Stops everything of an attempt on this node and waits until nothing is left of it.
    pub(crate) async fn release(&self, query: QueryId, attempt: u32) -> Report {
        self.edges.end(query, attempt);
        let tasks = locked(&self.registry).tasks.get(&(query, attempt)).cloned();
        let Some((tasks, _)) = tasks else { return Report::default() };
        let (reply, report) = oneshot::channel();
        if tasks.send_message(TasksMessage::Release(Some(reply))).is_err() {
            return Report::default();
        }
        let report = report.await.unwrap_or_default();
        // The report is given just before the supervisor itself ends.
        let _ = tasks.wait(None).await;
        report
    }

    /// Whether an attempt runs, as its coordinator says; `None` if it cannot be reached.
    pub(crate) async fn ask_current(
        &self,
        coordinator: NodeId,
        query: QueryId,
        attempt: u32,
        timeout: Duration,
    ) -> Option<bool> {
        if coordinator == self.id {
            return Some(self.is_current(query, attempt));
        }
        match self.ask(coordinator, &Request::IsCurrent { query, attempt }, timeout).await {
            Ok(Reply::Current(current)) => Some(current),
            _ => None,
        }
    }

    /// Cancels a query at its coordinator.
    ///
    /// # Errors
    /// There is no such query, or its coordinator cannot be reached.
    pub(crate) async fn cancel_at(&self, coordinator: NodeId, query: QueryId, timeout: Duration) -> Result<()> {
        match self.ask(coordinator, &Request::Cancel { query }, timeout).await? {
            Reply::Cancelled(result) => result,
            _ => Err(Error::internal(format!("node {coordinator} answered something else than was asked"))),
        }
    }

    /// Tells a query's coordinator how its tasks here are doing. May be lost: what matters travels along the edges too.
    pub(crate) fn tell_coordinator(&self, coordinator: NodeId, status: Status) {
        if coordinator == self.id {
            self.hear_status(self.id, status);
            return;
        }
        let Ok(bytes) = wire::encode(&Notice::Status(status)) else { return };
        if let Err(error) = self.transport.cast(coordinator, Route::Query, bytes.into()) {
            tracing::debug!(%coordinator, %error, "a status report was not sent");
        }
    }

    /// A report from a node with tasks of a query that this node coordinates.
    pub(crate) fn hear_status(&self, from: NodeId, status: Status) {
        match self.query(status.query) {
            Some(query) => drop(query.send_message(QueryMessage::Status { from, status })),
            None => metrics::counter!("shoal_query_late_messages_total").increment(1),
        }
    }

    /// Gives a slot back to its producer: nobody will read it.
    pub(crate) fn discard_edge(&self, producer: NodeId, edge: OpenEdge) {
        if producer == self.id {
            if let Some(output) = self.edges.get(edge.producer) {
                output.give_back(edge.slot);
            }
            return;
        }
        // If this is lost the producer works on until its window is full, and stops with its query at the latest.
        if let Ok(bytes) = wire::encode(&edge) {
            let _ = self.transport.cast(producer, Route::Edge, bytes.into());
        }
    }
}

/// A replica was passed over because it is far behind: this node's own, or another one's.
pub(super) fn laggard(own: bool) -> Rare {
    if own { Rare::LaggardPassedOver } else { Rare::LaggardToldOf }
}

pub(super) fn stopping() -> Error {
    Error::new(ErrorCode::NotReady, "the node is stopping")
}
