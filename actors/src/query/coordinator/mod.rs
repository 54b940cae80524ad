//! The query actor: one per query, on the node that was asked.
//!
//! Owned by the node's query root. Owns the query's attempts (placing, starting and releasing tasks on all nodes), the way of
//! the rows to the client, and the deadline. Restart budget: an attempt that failed for a reason of the cluster's is made
//! again, up to [`state::ATTEMPTS_MAX`] times with growing pauses, while no row has left; the actor itself is never
//! restarted. If it dies the client gets an error, its tasks here are released at once and those elsewhere when they ask
//! next. Nothing survives it.

mod delivery;
mod explain;
mod message;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use shoal_kernel::env::TaskHandle;
use shoal_kernel::{Error, ErrorCode, FragmentKey, Hlc, NodeId, Planted, QueryId, Rare, Result};
use shoal_planner::{FragmentGraph, Place};
use tokio::sync::{mpsc, watch};

pub(crate) use message::QueryMessage;
pub(crate) use state::Event;

use self::delivery::{Delivery, Gate};
use self::state::{Effect, QueryCore};
use super::admission::{Entry, Permit};
use super::assign::{Assignment, assign};
use super::locked;
use super::message::{FragmentTasks, Report, StartTasks, Status};
use super::node::{ActorCount, QueryNode, laggard};
use super::ports::Replan;
use super::service::RunOptions;
use crate::service::{Moment, Progress, QueryEvent, QuerySummary};

/// The client hears at most this often how far its query is.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// How long a node may take to let go of an attempt before the query goes on without its answer.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Attempts that a query may leave because a node of theirs fell silent. Then it waits for it: a silence is no proof, and the attempts
/// that are left may be needed.
const LEAVES_MAX: u32 = state::ATTEMPTS_MAX / 2;
/// A query that has worked for less than this begins anew elsewhere when a node of its falls silent. One that has worked longer waits
/// until it is certain that the node is gone, which takes a fraction of that.
const WORK_TO_REPEAT: Duration = Duration::from_millis(5_000);

/// What everybody may know of a running query.
#[derive(Debug, Clone)]
pub(crate) struct QueryView {
    /// Its text.
    pub(crate) sql: Arc<str>,
    /// The current attempt, from 0.
    pub(crate) attempt: u32,
    /// Whether it waits to be admitted.
    pub(crate) queued: bool,
    /// How far it is.
    pub(crate) progress: Progress,
    /// When it came, in monotonic time.
    pub(crate) began: Duration,
}

/// The query actor.
pub(crate) struct QueryActor;

/// What it starts with.
pub(crate) struct QueryStart {
    pub(crate) node: Arc<QueryNode>,
    pub(crate) id: QueryId,
    pub(crate) graph: FragmentGraph,
    pub(crate) replan: Option<Replan>,
    pub(crate) options: RunOptions,
    pub(crate) entry: Entry,
    pub(crate) events: mpsc::Sender<QueryEvent>,
    /// Room kept for the last event: whoever does not read still gets to know how it ended.
    pub(crate) last_word: mpsc::OwnedPermit<QueryEvent>,
}

pub(crate) struct QueryState {
    node: Arc<QueryNode>,
    id: QueryId,
    graph: FragmentGraph,
    replan: Option<Replan>,
    options: RunOptions,
    core: QueryCore,
    // Gone once the last word has been said, so that the stream ends with it.
    events: Option<mpsc::Sender<QueryEvent>>,
    client: Option<TaskHandle>,
    last_word: Option<mpsc::OwnedPermit<QueryEvent>>,
    permit: Option<Permit>,
    assignment: Assignment,
    gate: Arc<Gate>,
    /// When the attempt began, in monotonic time.
    started_at: Duration,
    /// Nodes that have not started their tasks yet.
    unstarted: usize,
    /// Whether all have.
    started: watch::Sender<bool>,
    rows: Arc<AtomicU64>,
    reports: BTreeMap<NodeId, Report>,
    view: Arc<Mutex<QueryView>>,
    began: Duration,
    deadline: Duration,
    delivery: Option<TaskHandle>,
    helpers: Vec<TaskHandle>,
    _count: ActorCount,
}

impl Drop for QueryState {
    fn drop(&mut self) {
        for helper in self.helpers.iter().chain(&self.delivery).chain(&self.client) {
            helper.abort();
        }
        self.node.forget_query(self.id);
        if let Some(last_word) = self.last_word.take() {
            // The actor was killed or panicked.
            last_word.send(QueryEvent::Error(Error::internal(format!("the actor of query {} died", self.id))));
            let (node, id, attempt) = (self.node.clone(), self.id, self.core.attempt());
            self.node.env.spawn("release a dead query", async move {
                node.release(id, attempt).await;
            });
        }
    }
}

impl Actor for QueryActor {
    type Msg = QueryMessage;
    type State = QueryState;
    type Arguments = QueryStart;

    async fn pre_start(
        &self,
        myself: ActorRef<QueryMessage>,
        start: QueryStart,
    ) -> Result<QueryState, ActorProcessingErr> {
        let QueryStart { node, id, graph, replan, options, entry, events, last_word } = start;
        let began = node.env.monotonic();
        let progress = Progress { tasks: tasks_of(&graph), ..Progress::default() };
        let queued = matches!(entry, Entry::Wait(_));
        if queued {
            node.env.reached(Rare::QueryQueued);
        }
        let view = Arc::new(Mutex::new(QueryView { sql: options.sql.clone(), attempt: 0, queued, progress, began }));
        node.remember_query(id, myself.clone(), view.clone())?;
        let count = node.count_actor();
        let mut state = QueryState {
            core: QueryCore::new(node.id),
            deadline: began.saturating_add(options.timeout),
            node,
            id,
            graph,
            replan,
            options,
            events: Some(events),
            client: None,
            last_word: Some(last_word),
            permit: None,
            assignment: Assignment::default(),
            gate: Arc::default(),
            started_at: began,
            unstarted: 0,
            started: watch::Sender::new(false),
            rows: Arc::default(),
            reports: BTreeMap::new(),
            view,
            began,
            delivery: None,
            helpers: Vec::new(),
            _count: count,
        };
        state.watch(&myself, entry);
        let schema = if state.options.analyze { explain::schema() } else { state.graph.schema.clone() };
        state.tell(QueryEvent::Schema(schema));
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<QueryMessage>,
        message: QueryMessage,
        state: &mut QueryState,
    ) -> Result<(), ActorProcessingErr> {
        let event = match message {
            QueryMessage::Turn(Ok(permit)) => {
                locked(&state.view).queued = false;
                state.permit = Some(permit);
                Event::Admitted
            }
            QueryMessage::Turn(Err(error)) => Event::Stopped(error),
            QueryMessage::Planned(planned) => match planned.and_then(|graph| state.adopt(graph)) {
                Ok(()) => state.place(),
                Err(error) => Event::Placed(Err(error)),
            },
            QueryMessage::Event(Event::NodeSilent(node)) if !state.does_without(node) => return Ok(()),
            QueryMessage::Event(event) => {
                state.count_start(&event);
                event
            }
            QueryMessage::Status { from, status } => match state.hear(from, status) {
                Some(event) => event,
                None => return Ok(()),
            },
            QueryMessage::Delivered { attempt, result: Ok(()) } => Event::Complete { attempt },
            QueryMessage::Delivered { attempt, result: Err(error) } => {
                Event::Failed { attempt, failure: super::message::Failure::plain(error) }
            }
            QueryMessage::Released { attempt, node, report } => {
                let failures = report.as_ref().map(|report| report.failures.clone()).unwrap_or_default();
                // Where nothing is left that could report, what was heard before stands.
                let news = |report: &Report| attempt == state.core.attempt() && *report != Report::default();
                if let Some(report) = report.filter(news) {
                    state.reports.insert(node, report);
                }
                Event::Released { attempt, node, failures }
            }
            QueryMessage::Tick => {
                state.tell_progress();
                return Ok(());
            }
        };
        state.step(&myself, event);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<QueryMessage>,
        _: SupervisionEvent,
        _: &mut QueryState,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

impl QueryState {
    /// Starts the watchers: admission, deadline, the client's going away, the clock of progress.
    fn watch(&mut self, myself: &ActorRef<QueryMessage>, entry: Entry) {
        match entry {
            Entry::Run(permit) => drop(myself.send_message(QueryMessage::Turn(Ok(permit)))),
            Entry::Wait(ticket) => {
                let myself = myself.clone();
                self.helpers.push(self.node.env.spawn("query turn", async move {
                    let turn = ticket.turn().await;
                    let _ = myself.send_message(QueryMessage::Turn(turn));
                }));
            }
        }
        let (env, timeout, actor) = (self.node.env.clone(), self.options.timeout, myself.clone());
        self.helpers.push(self.node.env.spawn("query deadline", async move {
            env.sleep(timeout).await;
            let _ = actor.send_message(QueryMessage::Event(Event::Expired));
        }));
        let actor = myself.clone();
        self.client = self.events.clone().map(|events| {
            self.node.env.spawn("query client", async move {
                events.closed().await;
                let gone = Error::new(shoal_kernel::ErrorCode::Cancelled, "the client has gone");
                let _ = actor.send_message(QueryMessage::Event(Event::Stopped(gone)));
            })
        });
        let (env, actor) = (self.node.env.clone(), myself.clone());
        self.helpers.push(self.node.env.spawn("query progress", async move {
            loop {
                env.sleep(PROGRESS_EVERY).await;
                if actor.send_message(QueryMessage::Tick).is_err() {
                    return;
                }
            }
        }));
    }

    fn step(&mut self, myself: &ActorRef<QueryMessage>, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.core.step(event) {
                events.extend(self.perform(myself, effect));
            }
        }
        locked(&self.view).attempt = self.core.attempt();
    }

    fn perform(&mut self, myself: &ActorRef<QueryMessage>, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Place => match self.replan.clone().filter(|_| self.is_outdated()) {
                Some(replan) => {
                    self.node.env.reached(Rare::QueryReplanned);
                    let (planned, myself) = (replan(), myself.clone());
                    self.helpers.push(self.node.env.spawn("query plan", async move {
                        let _ = myself.send_message(QueryMessage::Planned(planned.await));
                    }));
                    None
                }
                None => Some(self.place()),
            },
            Effect::Start => {
                self.start(myself);
                None
            }
            Effect::Seal => {
                let sent = self.gate.seal();
                self.end_delivery();
                Some(Event::Sealed(sent))
            }
            Effect::Release(node) => {
                let (owner, myself) = (self.node.clone(), myself.clone());
                let (id, attempt) = (self.id, self.core.attempt());
                if self.is_silent(node) && !(self.core.is_complete() && self.lacks_report(node)) {
                    // It is told, and whether it hears that makes no difference: it asks by itself before long.
                    let told = async move { drop(owner.release_on(node, id, attempt, RELEASE_TIMEOUT).await) };
                    self.node.env.spawn("query release", told);
                    return Some(Event::Released { attempt, node, failures: Vec::new() });
                }
                self.helpers.push(self.node.env.spawn("query release", async move {
                    let report = owner.release_on(node, id, attempt, RELEASE_TIMEOUT).await;
                    let _ = myself.send_message(QueryMessage::Released { attempt, node, report });
                }));
                None
            }
            Effect::Rest(time) => {
                metrics::counter!("shoal_query_restarts_total").increment(1);
                let (env, myself) = (self.node.env.clone(), myself.clone());
                self.helpers.push(self.node.env.spawn("query rest", async move {
                    env.sleep(time).await;
                    let _ = myself.send_message(QueryMessage::Event(Event::Rested));
                }));
                None
            }
            Effect::Conclude(end) => {
                self.conclude(end);
                None
            }
            Effect::Stop => {
                self.end_delivery();
                if self.node.limits.planted != Some(Planted::ActorLeaked) {
                    myself.stop(None);
                }
                None
            }
        }
    }

    /// Whether a node has not answered lately, or not answered this query.
    fn is_silent(&self, node: NodeId) -> bool {
        self.core.suspects().nodes.contains(&node) || self.node.suspected().contains(&node)
    }

    /// Whether it is not known what a node has read for the attempt.
    fn lacks_report(&self, node: NodeId) -> bool {
        let tasks = self.graph.fragments.iter().map(|fragment| self.assignment.tasks_on(fragment.id, node).len()).sum();
        self.reports
            .get(&node)
            .is_none_or(|report| usize::try_from(report.tasks_done).is_ok_and(|done: usize| done < tasks))
    }

    /// Whether others can do what a node does for the attempt.
    fn can_do_without(&self, node: NodeId) -> bool {
        let (placement, failed) = (&self.node.placement, self.core.suspects());
        let silent = self.node.suspected();
        let fit = |partition, other: &NodeId| {
            *other != node
                && !silent.contains(other)
                && !failed.nodes.contains(other)
                && !failed.replicas.contains(&(partition, *other))
        };
        self.graph.fragments.iter().all(|fragment| {
            let mut tasks = fragment.tasks.iter().zip(self.assignment.of(fragment.id));
            tasks.all(|(task, place)| match task.place {
                Place::Replica(partition) if *place == node => {
                    placement.candidates(partition).all().any(|other| fit(partition, &other))
                }
                _ => true,
            })
        })
    }

    /// Whether the query goes on without a node that has fallen silent: not if nobody else can do its part, not if rows have left, which
    /// could not be taken back, and not if the work of a long time would be lost with it, for the node may only have been slow.
    fn does_without(&mut self, node: NodeId) -> bool {
        if !self.core.runs_on(node) {
            return !(self.core.is_complete() && self.lacks_report(node));
        }
        let worked = self.node.env.monotonic().saturating_sub(self.started_at);
        let leaves = worked < WORK_TO_REPEAT
            && self.core.attempt() <= LEAVES_MAX
            && self.can_do_without(node)
            && self.gate.seal_if_fresh();
        if leaves {
            self.node.env.reached(Rare::QueryLeavesSilent);
        }
        leaves
    }

    /// Rows may leave once all tasks of the attempt have started.
    fn count_start(&mut self, event: &Event) {
        if let Event::Started { attempt, result: Ok(()) } = event
            && self.core.is_current(*attempt)
        {
            self.unstarted = self.unstarted.saturating_sub(1);
            if self.unstarted == 0 {
                self.started.send_replace(true);
            }
        }
    }

    /// Whether the plan reads a partition that there is no more.
    fn is_outdated(&self) -> bool {
        let tasks = self.graph.fragments.iter().flat_map(|fragment| &fragment.tasks);
        tasks.into_iter().any(|task| match task.place {
            Place::Replica(partition) => self.node.placement.is_gone(partition),
            Place::Coordinator | Place::Anywhere => false,
        })
    }

    /// Goes over to another plan of the same query. The client has been told what its rows look like.
    fn adopt(&mut self, graph: FragmentGraph) -> Result<()> {
        if graph.schema != self.graph.schema {
            let message = "the table was altered while the query waited for its partitions";
            return Err(Error::new(ErrorCode::SchemaChanged, message));
        }
        locked(&self.view).progress.tasks = tasks_of(&graph);
        self.graph = graph;
        Ok(())
    }

    fn place(&mut self) -> Event {
        let placement = &self.node.placement;
        let (alive, mut suspects) = (placement.alive(), self.core.suspects().clone());
        if !suspects.nodes.is_empty() || !suspects.replicas.is_empty() {
            self.node.env.reached(Rare::QueryAvoidsNode);
        }
        // A query that waits for a node which is gone waits until that is certain, which takes longer than to suspect it.
        suspects.silent = self.node.suspected();
        let candidates = |partition| placement.candidates(partition);
        let placed = assign(&self.graph, self.node.id, &alive, candidates, &suspects);
        Event::Placed(placed.map(|assignment| {
            for node in &assignment.passed_over {
                self.node.env.reached(laggard(*node == self.node.id));
            }
            self.assignment = assignment;
            self.assignment.nodes()
        }))
    }

    /// Starts the attempt: tasks on every node at once, and the reading of the root's output.
    fn start(&mut self, myself: &ActorRef<QueryMessage>) {
        let (attempt, now) = (self.core.attempt(), self.node.env.monotonic());
        // Before any node can ask whether this attempt is the current one.
        locked(&self.view).attempt = attempt;
        self.reports.clear();
        self.gate = Arc::default();
        self.rows = Arc::default();
        self.started_at = now;
        self.unstarted = self.assignment.nodes().len();
        self.started = watch::Sender::new(self.unstarted == 0);
        let left = self.deadline.saturating_sub(now);
        let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        self.node.env.trace(|| {
            let nodes: Vec<String> = self.assignment.nodes().iter().map(ToString::to_string).collect();
            format!("query {} starts attempt {attempt} on {}", self.id, nodes.join(", "))
        });
        for to in self.assignment.nodes() {
            let fragments = self.graph.fragments.iter().filter_map(|fragment| {
                let tasks = self.assignment.tasks_on(fragment.id, to);
                let producers = fragment.inputs.iter().map(|input| (*input, self.assignment.of(*input).to_vec()));
                (!tasks.is_empty()).then(|| FragmentTasks {
                    fragment: fragment.clone(),
                    tasks,
                    producers: producers.collect(),
                })
            });
            let start = StartTasks {
                query: self.id,
                attempt,
                coordinator: self.node.id,
                timeout_ms,
                read_level: self.options.read_level,
                fragments: fragments.collect(),
            };
            let (node, myself) = (self.node.clone(), myself.clone());
            self.helpers.push(self.node.env.spawn("query start", async move {
                let result = node.start_on(to, start).await;
                let _ = myself.send_message(QueryMessage::Event(Event::Started { attempt, result }));
            }));
        }
        let Some(root) = self.graph.root() else { return };
        let delivery = Delivery {
            node: self.node.clone(),
            root: FragmentKey { query: self.id, fragment: root.id, task: 0, attempt },
            schema: self.graph.schema.clone(),
            gate: self.gate.clone(),
            started: self.started.subscribe(),
            rows: self.rows.clone(),
            client: self.events.clone().filter(|_| !self.options.analyze),
        };
        let myself = myself.clone();
        self.delivery = Some(self.node.env.spawn("query delivery", async move {
            let result = delivery.run().await;
            let _ = myself.send_message(QueryMessage::Delivered { attempt, result });
        }));
    }

    fn end_delivery(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            delivery.abort();
        }
    }

    /// A node's report: keeps its figures, and passes on its first failure.
    fn hear(&mut self, from: NodeId, status: Status) -> Option<Event> {
        let Status { attempt, report, .. } = status;
        if !self.core.is_current(attempt) {
            metrics::counter!("shoal_query_late_messages_total").increment(1);
            return None;
        }
        let failure = report.failures.first().cloned();
        if let Some(failure) = &failure {
            self.node.env.trace(|| format!("query {} attempt {attempt} failed on {from}: {}", self.id, failure.error));
        }
        self.reports.insert(from, report);
        failure.map(|failure| Event::Failed { attempt, failure })
    }

    fn progress(&self) -> Progress {
        let mut progress = Progress { queued: self.node.admission.place(self.id), ..locked(&self.view).progress };
        (progress.tasks_done, progress.rows_scanned, progress.bytes_scanned) = (0, 0, 0);
        for report in self.reports.values() {
            progress.tasks_done = progress.tasks_done.saturating_add(report.tasks_done);
            progress.rows_scanned += report.rows_scanned;
            progress.bytes_scanned += report.bytes_scanned;
        }
        progress
    }

    /// No row that the attempt has read is newer; nothing if some node that may have read some has not said so.
    fn newest(&self) -> Option<Hlc> {
        let nodes = self.assignment.nodes();
        let mut said = nodes.iter().map(|node| self.reports.get(node).and_then(|report| report.newest));
        said.try_fold(Hlc::default(), |newest, said| Some(newest.max(said?)))
    }

    /// What the attempt has read, if every node that may have read something has said so.
    fn seen(&self) -> Option<Vec<Moment>> {
        let nodes = self.assignment.nodes();
        let said = nodes.iter().map(|node| self.reports.get(node).and_then(|report| report.seen.clone()));
        said.collect::<Option<Vec<_>>>().map(|said| said.concat())
    }

    fn tell_progress(&mut self) {
        let progress = self.progress();
        locked(&self.view).progress = progress;
        if !self.options.analyze {
            self.tell(QueryEvent::Progress(progress));
        }
    }

    /// Tells the client, if there is room: whoever does not read rows has no use for figures either.
    fn tell(&self, event: QueryEvent) {
        if let Some(events) = &self.events {
            let _ = events.try_send(event);
        }
    }

    fn conclude(&mut self, end: Result<()>) {
        let Some(last_word) = self.last_word.take() else { return };
        self.node.env.trace(|| match &end {
            Ok(()) => format!("query {} is complete with {} rows", self.id, self.rows.load(Ordering::Relaxed)),
            Err(error) => format!("query {} failed: {error}", self.id),
        });
        let cancelled = matches!(&end, Err(error) if error.code() == ErrorCode::Cancelled);
        if cancelled && self.node.limits.planted == Some(Planted::SlotLeaked) {
            std::mem::forget(self.permit.take());
        }
        let elapsed = self.node.env.monotonic().saturating_sub(self.began);
        let elapsed_micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        metrics::histogram!("shoal_query_seconds").record(elapsed.as_secs_f64());
        last_word.send(match end {
            Ok(()) => {
                let mut summary = QuerySummary {
                    rows: self.rows.load(Ordering::Relaxed),
                    elapsed_micros,
                    restarts: self.core.attempt(),
                    read_level: Some(self.options.read_level),
                    progress: self.progress(),
                    newest: self.newest(),
                    seen: self.seen(),
                };
                if self.options.analyze {
                    let text = explain::analyzed(&self.graph, &self.assignment, &self.reports, &summary);
                    summary.rows = text.num_rows() as u64;
                    // Nothing but the schema has gone into the channel: there is room.
                    self.tell(QueryEvent::Batch(text));
                }
                metrics::counter!("shoal_queries_total", "end" => "complete").increment(1);
                QueryEvent::End(summary)
            }
            Err(error) => {
                metrics::counter!("shoal_queries_total", "end" => error.code().as_str()).increment(1);
                QueryEvent::Error(error)
            }
        });
        self.events = None;
        if let Some(client) = self.client.take() {
            client.abort();
        }
        self.end_delivery();
    }
}

fn tasks_of(graph: &FragmentGraph) -> u32 {
    u32::try_from(graph.fragments.iter().map(|fragment| fragment.tasks.len()).sum::<usize>()).unwrap_or(u32::MAX)
}
