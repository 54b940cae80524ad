//! The actors that run tasks: a *shard* reads replicas of its node, a *merge* reads other tasks.
//!
//! Owned by the [supervisor](super) of its attempt on this node. Owns the running plan, its inputs and the writing end of its
//! output. Never restarted: what it has put out cannot be taken back, so a failure goes up and the whole attempt is made
//! again elsewhere. Nothing survives it.
//!
//! Rows do not pass the mailbox: the actor starts a pump, a plain task that moves batches from the plan to the output's
//! slots and waits there for room. The mailbox hears of its end only.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use shoal_kernel::env::TaskHandle;
use shoal_kernel::{Error, FragmentId, FragmentKey, NodeId, Rare, Result};
use shoal_planner::{Edge, Fragment, error_from_datafusion};

use super::{TaskGroup, TasksMessage};
use crate::query::edge::TaskOutput;
use crate::query::edge::output::{BATCH_BYTES_TARGET, batch_bytes, cut};
use crate::query::inputs::Inputs;
use crate::query::message::TaskReport;
use crate::query::node::ActorCount;

/// What a task needs to run.
pub(super) struct TaskStart {
    pub(super) group: Arc<TaskGroup>,
    pub(super) key: FragmentKey,
    pub(super) fragment: Arc<Fragment>,
    pub(super) producers: BTreeMap<FragmentId, Vec<NodeId>>,
    pub(super) output: Arc<TaskOutput>,
    pub(super) supervisor: ActorRef<TasksMessage>,
}

/// Runs one task of a fragment; a shard if it reads replicas, a merge if it reads other tasks.
pub(super) struct TaskActor;

pub(super) enum TaskMessage {
    Ended(Result<()>),
}

pub(super) struct TaskState {
    pump: Option<TaskHandle>,
    key: FragmentKey,
    supervisor: ActorRef<TasksMessage>,
    _count: ActorCount,
}

impl Drop for TaskState {
    fn drop(&mut self) {
        // Also when the actor is killed and its own farewell is skipped.
        if let Some(pump) = &self.pump {
            pump.abort();
        }
    }
}

impl Actor for TaskActor {
    type Msg = TaskMessage;
    type State = TaskState;
    type Arguments = TaskStart;

    async fn pre_start(
        &self,
        myself: ActorRef<TaskMessage>,
        start: TaskStart,
    ) -> Result<TaskState, ActorProcessingErr> {
        let (key, supervisor, count) = (start.key, start.supervisor.clone(), start.group.node.count_actor());
        let (env, output) = (start.group.node.env.clone(), start.output.clone());
        let pump = env.compute("task", async move {
            // A panic in an operator costs its query, not the node; the supervisor is told like of any other failure.
            let result = AssertUnwindSafe(pump(start)).catch_unwind().await.unwrap_or_else(|_| {
                metrics::counter!("shoal_query_panics_total").increment(1);
                Err(Error::internal(format!("task {key} panicked; the log has the place")))
            });
            output.end(result.as_ref().map(drop).map_err(Clone::clone));
            let _ = myself.send_message(TaskMessage::Ended(result));
        });
        Ok(TaskState { pump: Some(pump), key, supervisor, _count: count })
    }

    async fn handle(
        &self,
        myself: ActorRef<TaskMessage>,
        TaskMessage::Ended(result): TaskMessage,
        state: &mut TaskState,
    ) -> Result<(), ActorProcessingErr> {
        let (fragment, task) = (state.key.fragment, state.key.task);
        let _ = state.supervisor.send_message(TasksMessage::Ended { fragment, task, result });
        myself.stop(None);
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<TaskMessage>, state: &mut TaskState) -> Result<(), ActorProcessingErr> {
        if let Some(pump) = state.pump.take() {
            pump.abort();
            // The plan, its inputs and its memory are gone when this returns.
            pump.join().await;
        }
        Ok(())
    }
}

/// What a task has done so far; noted when it ends, however it ends.
struct Meter {
    group: Arc<TaskGroup>,
    key: FragmentKey,
    began: Duration,
    rows: u64,
    bytes: u64,
    waited: Duration,
}

impl Drop for Meter {
    fn drop(&mut self) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.group.note_task(TaskReport {
            fragment: self.key.fragment,
            task: self.key.task,
            rows: self.rows,
            bytes: self.bytes,
            elapsed_micros: micros(self.group.node.env.monotonic().saturating_sub(self.began)),
            waited_micros: micros(self.waited),
        });
    }
}

/// Moves a task's rows from its plan into the slots of its output.
async fn pump(start: TaskStart) -> Result<()> {
    let TaskStart { group, key, fragment, producers, output, supervisor: _ } = start;
    let node = group.node.clone();
    let began = node.env.monotonic();
    let mut meter = Meter { group: group.clone(), key, began, rows: 0, bytes: 0, waited: Duration::ZERO };

    let inputs = Inputs::new(group.clone(), key, producers);
    let mut stream = node.engine.start(&fragment, key.task, inputs, group.memory())?;
    let mut router = node.engine.router(&fragment.output, stream.schema())?;
    if matches!(fragment.output, Edge::Broadcast { slots } if slots > 1) {
        node.env.reached(Rare::Broadcast);
    }
    loop {
        let next = tokio::select! {
            biased;
            // Every consumer has gone (a limit is reached, a join needs no more): there is nothing to work for.
            () = output.unwanted() => break,
            next = stream.next() => next,
        };
        let Some(batch) = next else { break };
        let batch = batch.map_err(error_from_datafusion)?;
        if batch.num_rows() == 0 {
            continue;
        }
        for (slot, part) in router.route(batch)? {
            for piece in cut(part, BATCH_BYTES_TARGET.min(node.limits.edge_window_bytes as usize), usize::MAX) {
                meter.rows += piece.num_rows() as u64;
                meter.bytes += batch_bytes(&piece) as u64;
                let before = node.env.monotonic();
                output.put(slot, piece).await?;
                meter.waited += node.env.monotonic().saturating_sub(before);
            }
        }
    }
    group.count_done();
    Ok(())
}
