//! The tasks of one attempt of a query on this node, and their supervisor.
//!
//! Owned by the node's query root; started and released by the query's coordinator, here or on another node. Owns the shard
//! and merge actors of the attempt, their outputs, and the pinned snapshots. Restart budget: none, a failed task fails its
//! attempt and the coordinator decides. Nothing survives it: [`TasksMessage::Release`] leaves no actor, no batch and no
//! snapshot behind. It dies by itself when its coordinator is down, silent or has moved on, and when the deadline has passed.

mod group;
mod message;
mod state;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use shoal_kernel::env::TaskHandle;
use shoal_kernel::{Error, FragmentId, FragmentKey, PartitionId, Result};
use shoal_planner::{Fragment, Place};

pub(crate) use group::TaskGroup;
pub(crate) use message::TasksMessage;

use self::state::{Effect, Event, REPORT_EVERY, TasksCore};
use self::worker::{TaskActor, TaskMessage, TaskStart};
use super::edge::TaskOutput;
use super::message::{Failure, Report, Status};
use super::node::{ActorCount, QueryNode};
use crate::query::message::FragmentTasks;

/// How long a question to the coordinator may take.
const ASK_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long a replica may take to learn what a quorum holds. Less than the coordinator waits for tasks to start, so that the
/// error says what was missing.
const QUORUM_TIMEOUT: Duration = Duration::from_millis(5_000);
/// Partitions of one query that do so at once.
const PINS_AT_ONCE: usize = 64;

/// The supervisor.
pub(crate) struct TasksActor;

/// What it starts with: the outputs are known to the node's table of edges already.
pub(crate) struct TasksStart {
    pub(crate) group: Arc<TaskGroup>,
    /// Monotonic time.
    pub(crate) deadline: Duration,
    pub(crate) fragments: Vec<FragmentTasks>,
    pub(crate) outputs: BTreeMap<(FragmentId, u32), Arc<TaskOutput>>,
}

pub(crate) struct TasksState {
    group: Arc<TaskGroup>,
    core: TasksCore,
    tasks: BTreeMap<(FragmentId, u32), ActorRef<TaskMessage>>,
    ticker: TaskHandle,
    _count: ActorCount,
}

impl Drop for TasksState {
    fn drop(&mut self) {
        self.ticker.abort();
        // Also when the actor is killed: consumers elsewhere must see an error, never silence.
        self.group.node.edges.end(self.group.query, self.group.attempt);
        self.group.node.forget_tasks(self.group.query, self.group.attempt);
    }
}

impl Actor for TasksActor {
    type Msg = TasksMessage;
    type State = TasksState;
    type Arguments = TasksStart;

    async fn pre_start(
        &self,
        myself: ActorRef<TasksMessage>,
        start: TasksStart,
    ) -> Result<TasksState, ActorProcessingErr> {
        let TasksStart { group, deadline, fragments, mut outputs } = start;
        let node = group.node.clone();
        let core =
            TasksCore::new(outputs.keys().copied(), group.coordinator != node.id, node.env.monotonic(), deadline);
        let ticking = (node.env.clone(), myself.clone());
        let ticker = node.env.spawn("query tasks tick", async move {
            let (env, myself) = ticking;
            loop {
                env.sleep(REPORT_EVERY).await;
                if myself.send_message(TasksMessage::Tick).is_err() {
                    return;
                }
            }
        });
        let count = node.count_actor();
        let mut state = TasksState { group, core, tasks: BTreeMap::new(), ticker, _count: count };
        for FragmentTasks { fragment, tasks, producers } in fragments {
            let fragment: Arc<Fragment> = Arc::new(fragment);
            for task in tasks {
                let Some(output) = outputs.remove(&(fragment.id, task)) else { continue };
                let key =
                    FragmentKey { query: state.group.query, fragment: fragment.id, task, attempt: state.group.attempt };
                let start = TaskStart {
                    group: state.group.clone(),
                    key,
                    fragment: fragment.clone(),
                    producers: producers.clone(),
                    output,
                    supervisor: myself.clone(),
                };
                let (actor, _) = Actor::spawn_linked(None, TaskActor, start, myself.get_cell()).await?;
                state.tasks.insert((fragment.id, task), actor);
            }
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<TasksMessage>,
        message: TasksMessage,
        state: &mut TasksState,
    ) -> Result<(), ActorProcessingErr> {
        let event = match message {
            TasksMessage::Ended { fragment, task, result } => match state.ended(fragment, task, result) {
                Some(event) => event,
                None => return Ok(()),
            },
            TasksMessage::Gone { fragment, task } => {
                let died = Error::internal(format!("the actor of task {fragment}.{task} died"));
                match state.ended(fragment, task, Err(died)) {
                    Some(event) => event,
                    None => return Ok(()),
                }
            }
            TasksMessage::Tick => Event::Tick,
            TasksMessage::Answer(answer) => Event::Answer(answer),
            TasksMessage::NodeDown(node) if node == state.group.coordinator => Event::CoordinatorDown,
            TasksMessage::NodeDown(_) => return Ok(()),
            TasksMessage::Release(reply) => {
                let report = state.release().await;
                if let Some(reply) = reply {
                    let _ = reply.send(report);
                }
                myself.stop(None);
                return Ok(());
            }
        };
        let now = state.group.node.env.monotonic();
        for effect in state.core.step(event, now) {
            state.perform(&myself, effect);
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<TasksMessage>,
        event: SupervisionEvent,
        state: &mut TasksState,
    ) -> Result<(), ActorProcessingErr> {
        let (SupervisionEvent::ActorTerminated(actor, ..) | SupervisionEvent::ActorFailed(actor, _)) = event else {
            return Ok(());
        };
        let gone = state.tasks.iter().find(|(_, task)| task.get_id() == actor.get_id()).map(|(key, _)| *key);
        if let Some((fragment, task)) = gone {
            // Events of supervision overtake messages: what the task said before it ended is still in the mailbox.
            let _ = myself.send_message(TasksMessage::Gone { fragment, task });
        }
        Ok(())
    }
}

impl TasksState {
    /// Notes the end of a task; `None` if it is known already.
    fn ended(&mut self, fragment: FragmentId, task: u32, result: Result<()>) -> Option<Event> {
        self.tasks.remove(&(fragment, task))?;
        let failed = result.is_err();
        if let Err(error) = result {
            let failure = self.group.noted(&error).unwrap_or_else(|| Failure::plain(error));
            self.group.note_failure(failure);
        }
        Some(Event::Ended { fragment, task, failed })
    }

    fn perform(&self, myself: &ActorRef<TasksMessage>, effect: Effect) {
        let (node, query, attempt) = (&self.group.node, self.group.query, self.group.attempt);
        match effect {
            Effect::Report => {
                node.tell_coordinator(self.group.coordinator, Status { query, attempt, report: self.group.report() });
            }
            Effect::Ask => {
                let (node, myself, coordinator) = (node.clone(), myself.clone(), self.group.coordinator);
                node.env.clone().spawn("ask the coordinator", async move {
                    let answer = node.ask_current(coordinator, query, attempt, ASK_TIMEOUT).await;
                    let _ = myself.send_message(TasksMessage::Answer(answer));
                });
            }
            Effect::Abandon(why) => {
                tracing::info!(%query, attempt, why, "abandoning tasks");
                metrics::counter!("shoal_query_orphans_total").increment(1);
                let _ = myself.send_message(TasksMessage::Release(None));
            }
        }
    }

    /// Stops every task and lets go of everything.
    async fn release(&mut self) -> Report {
        self.ticker.abort();
        self.group.stop();
        // All at once, each in order; their pumps are gone when they have stopped.
        let tasks = std::mem::take(&mut self.tasks);
        for task in tasks.values() {
            task.stop(None);
        }
        for task in tasks.values() {
            let _ = task.wait(None).await;
        }
        let (query, attempt) = (self.group.query, self.group.attempt);
        self.group.node.edges.end(query, attempt);
        self.group.let_go().await;
        self.group.report()
    }
}

/// Starts the tasks that a coordinator wants on this node.
///
/// # Errors
/// A replica is not here or does not count, the attempt has ended already, or the node is stopping.
pub(crate) async fn start(node: &Arc<QueryNode>, start: super::message::StartTasks) -> Result<(), Failure> {
    node.taking().map_err(|error| refused(node, error))?;
    let (query, attempt) = (start.query, start.attempt);
    let deadline = node.env.monotonic().saturating_add(Duration::from_millis(start.timeout_ms));
    let group = TaskGroup::new(node.clone(), query, attempt, start.coordinator);
    // Pinned before anything runs: a query that cannot read all of its partitions fails here, whole.
    let places = start.fragments.iter().flat_map(|FragmentTasks { fragment, tasks, .. }| {
        tasks.iter().filter_map(|task| fragment.tasks.get(*task as usize)).map(|task| task.place)
    });
    let partitions: BTreeSet<PartitionId> = places.filter_map(replica_of).collect();
    let (level, timeout) = (start.read_level, Duration::from_millis(start.timeout_ms).min(QUORUM_TIMEOUT));
    let pins = partitions.into_iter().map(|partition| {
        let group = &group;
        async move {
            group.pin(partition, level, timeout).await.map_err(|error| Failure {
                lost: None,
                replica: super::scan::blames_replica(error.code()).then_some((partition, node.id)),
                error,
            })
        }
    });
    // Reads at quorum ask other nodes, for all partitions at the same time.
    futures::stream::iter(pins).buffer_unordered(PINS_AT_ONCE).try_collect::<()>().await?;
    let mut outputs = BTreeMap::new();
    for FragmentTasks { fragment, tasks, .. } in &start.fragments {
        for task in tasks {
            let key = FragmentKey { query, fragment: fragment.id, task: *task, attempt };
            let window = node.limits.edge_window_bytes as usize;
            let output = TaskOutput::new(key, fragment.output.slots(), window, &node.memory);
            outputs.insert((fragment.id, *task), output);
        }
    }
    node.edges.insert(query, attempt, outputs.values().cloned().collect()).map_err(Failure::plain)?;
    group.note_started(outputs.keys().map(|(fragment, _)| *fragment));
    let shared = group.clone();
    let arguments = TasksStart { group, deadline, fragments: start.fragments, outputs };
    match Actor::spawn_linked(None, TasksActor, arguments, node.root()).await {
        Ok((actor, _)) => node.remember_tasks(shared, actor).map_err(|error| refused(node, error)),
        Err(error) => {
            node.edges.end(query, attempt);
            Err(refused(node, node.not_started(format_args!("the tasks of {query}"), &error)))
        }
    }
}

fn replica_of(place: Place) -> Option<PartitionId> {
    match place {
        Place::Replica(partition) => Some(partition),
        Place::Anywhere | Place::Coordinator => None,
    }
}

/// Why a node starts no tasks. One that is stopping is not to be asked again.
fn refused(node: &QueryNode, error: Error) -> Failure {
    let lost = node.taking().is_err().then_some(node.id);
    Failure { lost, ..Failure::plain(error) }
}
