//! People who change the cluster while it is under faults: they ask one node after the other until one has done it.

use std::time::Duration;

use shoal_actors::service::NodeChange;
use shoal_kernel::{Env, ErrorCode, NodeId};

use super::client::{Failed, NODE_TIMEOUT, Office};
use crate::faults::{Fault, PlannedFault};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// What one of them has to do.
pub(super) struct Operator {
    office: Office,
    env: Env,
    from_micros: u64,
    until_micros: u64,
    host: u16,
    task: Task,
}

enum Task {
    /// Drains or decommissions a node; in the end it takes part again, if it has not left.
    Empty(NodeChange),
    /// Removes the node whose disk is lost, once another has come in its place.
    Remove,
    /// Pauses balance, and resumes it in the end.
    Pause,
}

impl Operator {
    /// None for what needs nobody.
    pub(super) fn of(office: Office, env: Env, planned: PlannedFault) -> Option<Self> {
        let (host, task) = match planned.fault {
            Fault::Drain { host } => (host, Task::Empty(NodeChange::Drain)),
            Fault::Decommission { host } => (host, Task::Empty(NodeChange::Decommission)),
            Fault::Wipe { host } => (host, Task::Remove),
            Fault::PausedBalance => (0, Task::Pause),
            _ => return None,
        };
        let from_micros = planned.at_ms * 1_000;
        let until_micros = from_micros + planned.for_ms * 1_000;
        Some(Self { office, env, from_micros, until_micros, host, task })
    }

    pub(super) async fn work(self) {
        // A moment before: whoever runs there is to be known.
        self.wait(self.from_micros.saturating_sub(1_000)).await;
        match self.task {
            Task::Empty(change) => {
                let Some(id) = self.office.desk.identity(self.host) else { return };
                self.try_until(id, change, Some(self.until_micros)).await;
                self.wait(self.until_micros).await;
                self.try_until(id, NodeChange::Activate, None).await;
                // What was asked for before, and given up, may be carried out after this.
                self.env.sleep(NODE_TIMEOUT).await;
                self.try_until(id, NodeChange::Activate, None).await;
            }
            Task::Remove => {
                let Some(id) = self.office.desk.identity(self.host) else { return };
                self.wait(self.until_micros).await;
                self.try_until(id, NodeChange::Remove, None).await;
            }
            Task::Pause => {
                self.pause_until(true, Some(self.until_micros)).await;
                self.wait(self.until_micros).await;
                self.pause_until(false, None).await;
                self.env.sleep(NODE_TIMEOUT).await;
                self.pause_until(false, None).await;
            }
        }
    }

    /// Asks until somebody has done it, or it is too late.
    async fn pause_until(&self, paused: bool, until_micros: Option<u64>) {
        for turn in 0u16.. {
            let through = turn % self.office.nodes;
            if until_micros.is_some_and(|until| self.office.shared.now_micros() >= until)
                || self.office.pause_balance(&self.env, through, paused, NODE_TIMEOUT).await.is_ok()
            {
                return;
            }
            self.env.sleep(PAUSE).await;
        }
    }

    async fn wait(&self, micros: u64) {
        let now = self.office.shared.now_micros();
        self.env.sleep(Duration::from_micros(micros.saturating_sub(now))).await;
    }

    /// Asks until somebody has done it, or says that there is nothing to do, or it is too late.
    async fn try_until(&self, id: NodeId, change: NodeChange, until_micros: Option<u64>) {
        for turn in 0u16.. {
            if until_micros.is_some_and(|until| self.office.shared.now_micros() >= until) {
                return;
            }
            let through = (self.host + 1 + turn) % self.office.nodes;
            match self.office.change_node(&self.env, through, id, change, NODE_TIMEOUT).await {
                Ok(()) => return,
                Err(Failed::Error(error)) if error.code() == ErrorCode::NotFound => return,
                // The last node that could hold replicas stays; one that is to be removed may seem to be there for a while.
                Err(Failed::Error(error))
                    if error.code() == ErrorCode::InvalidRequest && change != NodeChange::Remove =>
                {
                    return;
                }
                Err(_) => self.env.sleep(PAUSE).await,
            }
        }
    }
}
