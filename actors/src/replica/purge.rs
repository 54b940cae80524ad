//! When tombstones may go: agreed between all replicas of a partition, and then carried out by each.
//!
//! A tombstone may go once no replica holds, or can still get, an older row of its key. So for a time that lies `purge_after_ms`
//! back, by the clocks of most nodes, one replica asks all:
//!
//! 1. to take no more writes from gateways with versions up to that time, durably, and to say where their logs end: all rows up
//!    to that time that exist anywhere lie in these logs up to there;
//! 2. whether each holds, durably, what all others' logs hold up to there. Then every replica holds all of these rows and
//!    tombstones, or what has replaced them. It has them in segments, so that no doubt about the end of a log takes one back.
//!
//! Then the catalog agrees on the time ([`Command::RaisePurge`]), provided that the partition is as it was when the first was
//! asked: a replica that has come and gone meanwhile could have handed something over. All replicas vote: those that join or leave
//! hold less. One that is down keeps its tombstones, and everybody's.
//!
//! A replica that hears of the time waits until nothing is under way from a peer, as that may have been read before; what is
//! pulled afterwards comes from replicas of which none has an older row left.
//!
//! The [`Purger`] is owned by the replica actor. It keeps nothing that matters. **Budget**: none of its own; a round that fails is
//! followed by the next, and if it panics the replica ends with it and is opened anew at that one's expense.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use shoal_catalog::{Command, Partition, ReplicaState as Role};
use shoal_kernel::{Error, ErrorCode, Hlc, LogId, NodeId, Planted, Rare, Result};

use super::handle::ReplicaHandle;
use super::message::{ReplicaAnswer, ReplicaCall, ReplicaMessage};
use super::serve;
use crate::clocks::agreed_micros;
use crate::later::later;
use crate::node::context::NodeContext;

/// How often it is looked whether the catalog has agreed on a later time.
const TURN: Duration = Duration::from_secs(1);
/// How often at least it is looked whether to propose one.
const PROPOSES_EVERY_MAX: Duration = Duration::from_secs(600);
/// How long a merge may keep tombstones after it has ended.
const DROPS_AGAIN_MAX: Duration = Duration::from_secs(60);
/// How long a peer may take for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often peers are asked whether they hold everything, and how long to wait in between: for longer than they keep to themselves
/// what they have pulled.
const HOLDS_ATTEMPTS: u32 = 5;
const HOLDS_PAUSE: Duration = Duration::from_secs(3);
/// How long the catalog may take.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the log of a replica ended once it took no more old writes.
pub(crate) type Place = (NodeId, LogId, u64);

/// Where to begin for a replica that may have forgotten what it had promised to take no more: behind anything that it can have been
/// asked for, and before what is written now, as long as this node's clock is not wrong by half of the time that lies between.
pub(super) fn forgotten_fence(context: &NodeContext) -> Hlc {
    let back_micros = context.config.purge_after_ms.saturating_mul(1_000) / 2;
    match back_micros {
        0 => Hlc::default(),
        _ => Hlc::from_micros(context.env.wall_micros().saturating_sub(back_micros)),
    }
}

/// The actor.
pub(super) struct Purger;

pub(super) struct Arguments {
    pub(super) context: Arc<NodeContext>,
    pub(super) handle: Arc<ReplicaHandle>,
    pub(super) replica: ActorRef<ReplicaMessage>,
}

/// It is time to look.
pub(super) struct Turn;

pub(super) struct State {
    context: Arc<NodeContext>,
    handle: Arc<ReplicaHandle>,
    replica: ActorRef<ReplicaMessage>,
    /// Up to there tombstones have been dropped in this life of the replica: a restart may have brought some back.
    done: Hlc,
    /// When to try again to drop them, and how long after that if something is in the way once more.
    drops_at: Duration,
    drops_again: Duration,
    /// When to look again whether to propose something.
    proposes_at: Duration,
}

impl Actor for Purger {
    type Msg = Turn;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let Arguments { context, handle, replica } = arguments;
        let mut state = State {
            context,
            handle,
            replica,
            done: Hlc::default(),
            drops_at: Duration::ZERO,
            drops_again: TURN,
            proposes_at: Duration::ZERO,
        };
        state.wait();
        later(&state.context.env, "purger turn", &myself, TURN, Turn);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        _turn: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.turn().await;
        later(&state.context.env, "purger turn", &myself, TURN, Turn);
        Ok(())
    }
}

impl State {
    /// Replicas look at different times.
    fn wait(&mut self) {
        let every = self.purge_after() / 8;
        let every = every.clamp(TURN, PROPOSES_EVERY_MAX);
        let jitter = self.context.env.random("purge jitter") % (every.as_millis() as u64).max(1);
        self.proposes_at = self.context.env.monotonic() + every / 2 + Duration::from_millis(jitter);
    }

    fn purge_after(&self) -> Duration {
        Duration::from_millis(self.context.config.purge_after_ms)
    }

    async fn turn(&mut self) {
        let catalog = self.context.agreement.catalog().borrow().clone();
        let Some(partition) = catalog.partitions.get(&self.handle.partition) else { return };
        let agreed = match self.context.config.has(Planted::PurgedEarly) {
            true => Hlc::from_micros(self.context.env.wall_micros()),
            false => partition.purged,
        };
        if agreed > self.done && self.context.env.monotonic() >= self.drops_at {
            match self.purge(agreed).await {
                Ok(true) => (self.done, self.drops_again) = (agreed, TURN),
                Ok(false) => {
                    self.drops_at = self.context.env.monotonic() + self.drops_again;
                    self.drops_again = (self.drops_again * 2).min(DROPS_AGAIN_MAX);
                }
                Err(error) => self.report(error),
            }
        }
        if self.context.env.monotonic() < self.proposes_at || self.purge_after().is_zero() {
            return;
        }
        self.wait();
        let table = catalog.tables.get(&partition.table);
        if !table.is_some_and(|table| table.schema.is_upsert()) || !self.is_proposer(partition) {
            return;
        }
        if let Err(error) = self.propose(partition).await {
            tracing::debug!(partition = %partition.id, %error, "tombstones are not purged yet");
            self.context.env.trace(|| format!("{} purges nothing yet: {error}", partition.id));
        }
    }

    fn report(&self, error: Error) {
        match error.code() {
            ErrorCode::Corruption => {
                let _ = self.replica.cast(ReplicaMessage::Damaged(error));
            }
            // They pass, and the store says by itself if it can take no more.
            _ => tracing::debug!(partition = %self.handle.partition, %error, "tombstones could not be dropped"),
        }
    }

    /// Drops tombstones up to that time. False if something is in the way.
    async fn purge(&self, until: Hlc) -> Result<bool> {
        let store = self.handle.store()?;
        let done = {
            // What a peer has answered before may hold what tombstones of that time keep away.
            let _nothing_under_way = self.handle.pulls.write().await;
            let purge = move || {
                // One that was emptied after the others had asked it does not remember.
                store.fence(until);
                store.purge(until)
            };
            self.context.env.blocking(purge).await??
        };
        if let Some(count) = done.filter(|count| *count > 0) {
            metrics::counter!("shoal_tombstones_purged_total").increment(count);
            self.context.env.reached(Rare::TombstonesPurged);
            self.context.env.trace(|| format!("{} drops {count} tombstones up to {until}", self.handle.partition));
        }
        Ok(done.is_some())
    }

    /// One replica of a partition that is at rest proposes: the voter with the least number.
    fn is_proposer(&self, partition: &Partition) -> bool {
        let all_vote = partition.replicas.iter().all(|replica| replica.state == Role::Voting);
        all_vote && partition.settled && partition.voters().min() == Some(self.context.node)
    }

    async fn propose(&self, partition: &Partition) -> Result<()> {
        let (id, epoch) = (partition.id, partition.epoch);
        let catalog = self.context.agreement.catalog().borrow().clone();
        if let Some(down) = partition.voters().find(|voter| self.context.liveness.is_down(*voter)) {
            return Err(Error::new(ErrorCode::NodeLost, format!("{down} is down, and may hold older rows")));
        }
        let Some(now_micros) = agreed_micros(&self.context, &catalog).await else {
            return Err(Error::new(ErrorCode::NotReady, "too few nodes say what time it is"));
        };
        let back = u64::try_from(self.purge_after().as_micros()).unwrap_or(u64::MAX);
        let until = Hlc::from_micros(now_micros.saturating_sub(back));
        let store = self.handle.store()?;
        let old = self.context.env.blocking(move || store.old_tombstones(until)).await?;
        let old = old.inspect_err(|error| self.report(error.clone()))?;
        if until <= partition.purged || old < self.context.config.purge_tombstones_min.max(1) {
            return Ok(());
        }
        let mut logs: Vec<Place> = Vec::new();
        for voter in partition.voters() {
            let call = ReplicaCall::Fence { partition: id, epoch, until };
            match serve::call(&self.context, voter, &call, CALL_TIMEOUT).await? {
                ReplicaAnswer::Fenced(log_id, position) => logs.push((voter, log_id, position)),
                _ => return Err(serve::unexpected()),
            }
        }
        let mut waiting: Vec<NodeId> = partition.voters().collect();
        for attempt in 1..=HOLDS_ATTEMPTS {
            let mut lacking = Vec::new();
            for voter in waiting {
                let call = ReplicaCall::Holds { partition: id, epoch, logs: logs.clone() };
                match serve::call(&self.context, voter, &call, CALL_TIMEOUT).await? {
                    ReplicaAnswer::Holds(true) => {}
                    ReplicaAnswer::Holds(false) => lacking.push(voter),
                    _ => return Err(serve::unexpected()),
                }
            }
            waiting = lacking;
            if waiting.is_empty() {
                let command = Command::RaisePurge { partition: id, changed: partition.changed, purged: until };
                return self.context.agreement.propose(command, PROPOSAL_TIMEOUT).await.map(drop);
            }
            if attempt < HOLDS_ATTEMPTS {
                self.context.env.sleep(HOLDS_PAUSE).await;
            }
        }
        Err(Error::new(ErrorCode::NotReady, format!("{waiting:?} do not hold everything yet")))
    }
}
