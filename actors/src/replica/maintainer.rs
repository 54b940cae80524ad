//! Flushes and compacts one replica's store, one step at a time, on threads for blocking work; and does so when it is asked.
//!
//! Owned by the replica actor; holds nothing that a restart could lose: who has asked for something is told that the replica
//! failed. Damage is the replica's to judge. **Budget**: none of its own; any other error of the store ends it, and with it the replica,
//! which is then opened anew at that one's expense. To compact or to optimise a store takes long, so each runs beside the mailbox: the memtable is flushed
//! meanwhile. Compaction keeps to the node's [`Pace`] and ends as soon as somebody wants the store optimised; that has somebody
//! who waits for it, and keeps to no pace.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use shoal_kernel::env::TaskHandle;
use shoal_kernel::{Cutoff, Env, Error, ErrorCode, Rare, Result};
use shoal_storage::{ExpiryReport, PoolStatus, Store};
use tokio::sync::oneshot;

use super::compactor::{Overdue, compact};
use super::message::{MaintenanceTask, ReplicaMessage};
use crate::later::later;
use crate::node::pace::Pace;

/// How often the age of the memtable and the need for compaction are looked at.
const TURN: Duration = Duration::from_secs(1);
/// How long to leave a full disk alone.
const DISK_FULL_PAUSE: Duration = Duration::from_secs(5);
/// How long to leave a damaged file alone that nobody can replace.
const DAMAGE_PAUSE: Duration = Duration::from_secs(60);

pub(super) struct Maintainer;

pub(super) struct Arguments {
    pub(super) env: Env,
    pub(super) store: Arc<Store>,
    pub(super) pace: Arc<Pace>,
    pub(super) replica: ActorRef<ReplicaMessage>,
}

pub(super) enum MaintainerMessage {
    /// Rows were committed: perhaps the memtable is full.
    Committed,
    /// A turn.
    Turn,
    /// Somebody wants a task carried out. How many may wait is the handle's to bound.
    Asked(MaintenanceTask, oneshot::Sender<Result<()>>),
    /// Rows below it are to be dropped.
    Cutoff(Cutoff),
    /// They were, or could not be yet, or it failed.
    Expired(Result<Option<ExpiryReport>>),
    /// Nothing is due to be merged any more, or it failed.
    Compacted(Result<()>),
    /// The store was optimised, or not.
    Optimised(Result<()>),
}

pub(super) struct State {
    env: Env,
    store: Arc<Store>,
    pace: Arc<Pace>,
    replica: ActorRef<ReplicaMessage>,
    overdue: Overdue,
    /// The task that merges what is due.
    compacting: Option<TaskHandle>,
    /// Not before then, after it has failed.
    compacts_after: Duration,
    /// The newest that was heard of.
    cutoff: Option<Cutoff>,
    /// Rows are being dropped.
    expiring: bool,
    optimising: bool,
    /// Who wants the store optimised after that.
    waiting: VecDeque<oneshot::Sender<Result<()>>>,
    /// Nobody owns the store any more.
    ended: Arc<AtomicBool>,
}

impl Drop for State {
    fn drop(&mut self) {
        // Also when the actor fails: whoever closes the store waits for the page that is under way.
        self.ended.store(true, Ordering::Relaxed);
        self.stop_compacting();
    }
}

/// What an error of the store asks for.
enum Verdict {
    /// It passes: leave the store alone for so long.
    Pause(Duration),
    /// Open it anew.
    End(Error),
}

impl Actor for Maintainer {
    type Msg = MaintainerMessage;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let Arguments { env, store, pace, replica } = arguments;
        later(&env, "maintainer turn", &myself, TURN, MaintainerMessage::Turn);
        Ok(State {
            env,
            store,
            pace,
            replica,
            overdue: Overdue::default(),
            compacting: None,
            compacts_after: Duration::ZERO,
            cutoff: None,
            expiring: false,
            optimising: false,
            waiting: VecDeque::new(),
            ended: Arc::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let store = state.store.clone();
        let done = match message {
            MaintainerMessage::Committed => state.blocking(move || flush_if_due(&store)).await,
            MaintainerMessage::Turn => {
                let done = state.blocking(move || flush_if_due(&store).map(|()| store.recheck())).await;
                let verdict = done.err().map(|error| state.judge(error));
                let pause = match verdict {
                    None => TURN,
                    Some(Verdict::Pause(pause)) => pause,
                    Some(Verdict::End(error)) => return Err(error.into()),
                };
                state.overdue.set(state.store.segments_overdue());
                tell_pool(state.store.pool().status());
                state.compact(&myself);
                state.expire(&myself);
                later(&state.env, "maintainer turn", &myself, pause, MaintainerMessage::Turn);
                return Ok(());
            }
            MaintainerMessage::Cutoff(cutoff) => {
                state.cutoff = Some(state.cutoff.map_or(cutoff, |known| known.later(cutoff)));
                state.expire(&myself);
                return Ok(());
            }
            MaintainerMessage::Expired(done) => {
                state.expiring = false;
                done.map(|report| state.tell_expired(report))
            }
            MaintainerMessage::Compacted(done) => {
                state.compacting = None;
                let Err(error) = done else { return Ok(()) };
                return match state.judge(error) {
                    Verdict::Pause(pause) => {
                        state.compacts_after = state.env.monotonic() + pause;
                        Ok(())
                    }
                    Verdict::End(error) => Err(error.into()),
                };
            }
            MaintainerMessage::Asked(MaintenanceTask::Flush, answer) => {
                let done = state.blocking(move || store.flush().map(drop)).await;
                let _ = answer.send(done.clone());
                done
            }
            MaintainerMessage::Asked(MaintenanceTask::Optimize, answer) => {
                state.waiting.push_back(answer);
                Ok(())
            }
            MaintainerMessage::Optimised(done) => {
                state.optimising = false;
                done
            }
        };
        state.optimise_next(&myself);
        match done.map_err(|error| state.judge(error)) {
            Err(Verdict::End(error)) => Err(error.into()),
            Ok(()) | Err(Verdict::Pause(_)) => Ok(()),
        }
    }
}

impl State {
    async fn blocking(&self, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        self.env.blocking(work).await.map_err(Error::from).and_then(|done| done)
    }

    fn judge(&self, error: Error) -> Verdict {
        match error.code() {
            // Reads go on; there may be room again later.
            ErrorCode::DiskFull => Verdict::Pause(DISK_FULL_PAUSE),
            ErrorCode::Corruption => {
                let _ = self.replica.cast(ReplicaMessage::Damaged(error));
                Verdict::Pause(DAMAGE_PAUSE)
            }
            ErrorCode::Cancelled => Verdict::Pause(TURN),
            _ => Verdict::End(error),
        }
    }

    /// Merges what is due, beside the mailbox, unless that is under way.
    fn compact(&mut self, myself: &ActorRef<MaintainerMessage>) {
        let is_due = self.store.segments_overdue() > 0 && self.env.monotonic() >= self.compacts_after;
        if self.optimising || self.compacting.is_some() || !is_due {
            return;
        }
        let (env, store, pace, myself) = (self.env.clone(), self.store.clone(), self.pace.clone(), myself.clone());
        self.compacting = Some(self.env.spawn("compact", async move {
            let done = compact(&env, &store, &pace).await;
            let _ = myself.cast(MaintainerMessage::Compacted(done));
        }));
    }

    /// Drops rows below the cut-off, beside the mailbox, unless that is under way or done. What fails is tried again next turn.
    fn expire(&mut self, myself: &ActorRef<MaintainerMessage>) {
        let is_new = |cutoff: &Cutoff| self.store.cutoff().is_none_or(|known| known.micros < cutoff.micros);
        let Some(cutoff) = self.cutoff.filter(|cutoff| !self.expiring && is_new(cutoff)) else { return };
        self.expiring = true;
        let (env, store, myself) = (self.env.clone(), self.store.clone(), myself.clone());
        self.env.spawn("expire", async move {
            let work = env.blocking(move || store.expire(cutoff));
            let done = work.await.map_err(Error::from).and_then(|done| done);
            let _ = myself.cast(MaintainerMessage::Expired(done));
        });
    }

    fn tell_expired(&self, report: Option<ExpiryReport>) {
        let Some(ExpiryReport { rows, segments }) = report.filter(|report| *report != ExpiryReport::default()) else {
            return;
        };
        metrics::counter!("shoal_ttl_rows_dropped_total").increment(rows);
        metrics::counter!("shoal_ttl_segments_dropped_total").increment(segments as u64);
        self.env.reached(Rare::RowsExpired);
        if segments > 0 {
            self.env.reached(Rare::SegmentExpired);
        }
    }

    fn stop_compacting(&mut self) {
        if let Some(task) = self.compacting.take() {
            task.abort();
        }
    }

    /// Starts on the next wish, if the one before has ended.
    fn optimise_next(&mut self, myself: &ActorRef<MaintainerMessage>) {
        if self.optimising {
            return;
        }
        let Some(answer) = self.waiting.pop_front() else { return };
        self.optimising = true;
        self.stop_compacting();
        let (env, store, ended, myself) = (self.env.clone(), self.store.clone(), self.ended.clone(), myself.clone());
        self.env.spawn("optimise", async move {
            let work = env.blocking(move || {
                let done = store.optimize(&|| !ended.load(Ordering::Relaxed) && !answer.is_closed()).map(drop);
                let _ = answer.send(done.clone());
                done
            });
            let done = work.await.map_err(Error::from).and_then(|done| done);
            let _ = myself.cast(MaintainerMessage::Optimised(done));
        });
    }
}

fn flush_if_due(store: &Store) -> Result<()> {
    if store.maintenance_due() { store.flush().map(drop) } else { Ok(()) }
}

/// All replicas of a node have one pool, and each of them tells the same of it.
fn tell_pool(pool: PoolStatus) {
    metrics::counter!("shoal_page_pool_hits_total").absolute(pool.hits);
    metrics::counter!("shoal_page_pool_misses_total").absolute(pool.misses);
    metrics::gauge!("shoal_page_pool_bytes").set(pool.bytes as f64);
    metrics::gauge!("shoal_page_pool_max_bytes").set(pool.bytes_max as f64);
}
