//! People who change the cluster while it is under faults: they ask one node after the other until one has done it.

use std::future::Future;
use std::time::Duration;

use shoal_actors::service::{NodeChange, SqlRequest};
use shoal_kernel::{Env, ErrorCode, NodeId};

use super::client::{Failed, NODE_TIMEOUT, Office};
use super::history::{Backup, Cell, Target};
use super::objects::PLACE;
use crate::faults::{Fault, PlannedFault};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// What one of them has to do.
pub(super) struct Operator {
    office: Office,
    env: Env,
    from_micros: u64,
    until_micros: u64,
    /// When all links are whole again.
    healed_micros: u64,
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
    /// Backs up a table.
    BackUp(Target),
    /// Stops a node in good order; its process is started again some time after it has ended.
    Stop,
}

impl Operator {
    /// None for what needs nobody.
    pub(super) fn of(office: Office, env: Env, planned: PlannedFault, healed_micros: u64) -> Option<Self> {
        let (host, task) = match planned.fault {
            Fault::Drain { host } => (host, Task::Empty(NodeChange::Drain)),
            Fault::Decommission { host } => (host, Task::Empty(NodeChange::Decommission)),
            Fault::Wipe { host } => (host, Task::Remove),
            Fault::PausedBalance => (0, Task::Pause),
            Fault::Stop { host } => (host, Task::Stop),
            Fault::Backup { events: true } => (0, Task::BackUp(Target::Events)),
            Fault::Backup { events: false } => (0, Task::BackUp(Target::Upserts)),
            _ => return None,
        };
        let from_micros = planned.at_ms * 1_000;
        let until_micros = from_micros + planned.for_ms * 1_000;
        Some(Self { office, env, from_micros, until_micros, healed_micros, host, task })
    }

    pub(super) async fn work(self) {
        // A moment before: whoever runs there is to be known.
        self.wait(self.from_micros.saturating_sub(1_000)).await;
        match self.task {
            Task::Empty(change) => {
                let Some(id) = self.office.desk.identity(self.host) else { return };
                self.change_until(id, change, Some(self.until_micros)).await;
                self.wait(self.until_micros).await;
                self.change_until(id, NodeChange::Activate, None).await;
                self.wait_for_what_was_given_up().await;
                self.change_until(id, NodeChange::Activate, None).await;
            }
            Task::Remove => {
                let Some(id) = self.office.desk.identity(self.host) else { return };
                self.wait(self.until_micros).await;
                self.change_until(id, NodeChange::Remove, None).await;
            }
            Task::Pause => {
                self.pause_until(true, Some(self.until_micros)).await;
                self.wait(self.until_micros).await;
                self.pause_until(false, None).await;
                self.wait_for_what_was_given_up().await;
                self.pause_until(false, None).await;
            }
            Task::BackUp(target) => self.back_up(target).await,
            Task::Stop => {
                self.wait(self.from_micros).await;
                let down = Duration::from_micros(self.until_micros - self.from_micros);
                self.office.stop(&self.env, self.host, down).await;
            }
        }
    }

    async fn back_up(&self, target: Target) {
        let statement = &SqlRequest::new(format!("BACKUP TABLE {} TO '{PLACE}'", target.table()));
        let ask = |through| async move {
            let begun = self.office.shared.now_micros();
            let Ok(answered) = self.office.sql(&self.env, through, statement.clone()).await else { return false };
            let ended = self.office.shared.now_micros();
            // A table whose partitions are windows has none before its first row.
            if let Some(Cell::Text(name)) = answered.rows.into_iter().flatten().next() {
                let backup = Backup { target, name, begun, ended, restored: None };
                self.office.history.facts().backups.push(backup);
            }
            true
        };
        // One node as well as another.
        let first = u16::try_from(self.from_micros / 1_000 % u64::from(self.office.nodes)).unwrap_or(0);
        self.ask_around(first, Some(self.until_micros), ask).await;
    }

    async fn pause_until(&self, paused: bool, until_micros: Option<u64>) {
        let ask =
            |through| async move { self.office.pause_balance(&self.env, through, paused, NODE_TIMEOUT).await.is_ok() };
        self.ask_around(0, until_micros, ask).await;
    }

    async fn change_until(&self, id: NodeId, change: NodeChange, until_micros: Option<u64>) {
        let ask = |through| async move {
            match self.office.change_node(&self.env, through, id, change, NODE_TIMEOUT).await {
                Ok(()) => true,
                Err(Failed::Error(error)) if error.code() == ErrorCode::NotFound => true,
                // The last node that could hold replicas stays; one that is to be removed may seem to be there for a while.
                Err(Failed::Error(error)) => error.code() == ErrorCode::InvalidRequest && change != NodeChange::Remove,
                Err(_) => false,
            }
        };
        self.ask_around(self.host + 1, until_micros, ask).await;
    }

    /// Asks one node after the other until one has done it, or says that there is nothing to do, or it is too late.
    async fn ask_around<F>(&self, first: u16, until_micros: Option<u64>, ask: impl Fn(u16) -> F)
    where
        F: Future<Output = bool>,
    {
        for turn in 0u16.. {
            let through = (first + turn) % self.office.nodes;
            if until_micros.is_some_and(|until| self.office.shared.now_micros() >= until) || ask(through).await {
                return;
            }
            self.env.sleep(PAUSE).await;
        }
    }

    /// What was asked for before, and given up, may be carried out later: it may be on a link that is cut.
    async fn wait_for_what_was_given_up(&self) {
        self.wait(self.healed_micros).await;
        self.env.sleep(NODE_TIMEOUT).await;
    }

    async fn wait(&self, micros: u64) {
        let now = self.office.shared.now_micros();
        self.env.sleep(Duration::from_micros(micros.saturating_sub(now))).await;
    }
}
