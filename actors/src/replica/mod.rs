//! A replica: one partition on one node, as a supervised actor.
//!
//! - **Owned by** the node's [`supervisor`]; owns its [`replicator`] (pulls what peers accepted), [`maintainer`] (flushes
//!   and compacts) and [`repair::Repairer`] (compares digests), which die and restart with it.
//! - **Owns** the [`Store`] of its directory. It alone commits; readers take snapshots through the [`handle`].
//! - **Restarts** at any error of its store (a failed fsync among them) and at any end of a child: the store is opened and replayed anew.
//!   Back-off from 100 ms, doubling to 30 s, without end: a replica that cannot be opened stays visible with its problem, and after
//!   `replica_failures_max` in a row others have one in its place.
//! - **Survives a restart**: everything acknowledged, and a loss of power as far as the table's `fsync` promises; the sealed
//!   epoch; whether it counts; how far it has pulled from each peer. Lost and harmless: the memory of recent accepts, and
//!   writes not yet acknowledged.

mod asked;
mod compactor;
pub(crate) mod directory;
pub(crate) mod fill;
pub(crate) mod handle;
pub(crate) mod heads;
pub(crate) mod inherit;
mod late_sync;
pub(crate) mod lend;
pub(crate) mod maintainer;
pub(crate) mod message;
pub(crate) mod open;
pub(crate) mod opening;
pub(crate) mod promises;
pub(crate) mod purge;
pub(crate) mod quorum;
mod recent;
pub(crate) mod repair;
pub(crate) mod replicator;
pub(crate) mod serve;
pub(crate) mod state;
pub(crate) mod supervisor;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use serde::{Deserialize, Serialize};
use shoal_catalog::{Partition, ReplicaState as Role};
use shoal_kernel::{
    Applied, Epoch, Error, ErrorCode, Fsync, Hlc, LogId, NodeId, PartitionId, Planted, Rare, Result, TableSchema,
    Version, wire,
};
use shoal_storage::{Accepted, PullCursor, Rows, Store, TokenRecord};
use tokio::sync::oneshot;

use self::handle::{ReplicaHandle, Running};
use self::heads::Head;
use self::late_sync::LateSync;
use self::maintainer::{Maintainer, MaintainerMessage};
use self::message::{CoreReport, Promised, RecentAnswer, ReplicaMessage, Written};
use self::promises::{Promises, Reserved};
use self::purge::{Place, Purger};
use self::recent::Recent;
use self::repair::Repairer;
use self::replicator::{Feed, Replicator, ReplicatorMessage};
use self::state::{Effect, Event, Meta, ReplicaCore, Ticket};
use crate::node::context::NodeContext;
use crate::service::Moment;

pub(crate) use self::serve::ReplicaService;

/// How long the catalog may take for a promotion before it is proposed again.
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that a reservation takes beside its token, about.
const RESERVATION_BYTES: usize = 128;
/// How long to wait before a store whose disk is full is asked again to go over to a new schema.
const SCHEMA_PAUSE: Duration = Duration::from_secs(1);
/// How long to wait before it is proposed again.
const PROPOSAL_PAUSE: Duration = Duration::from_millis(500);
/// Before a joining replica is compared again with those who did not agree.
const COMPARE_PAUSE: Duration = Duration::from_secs(1);

/// The owner's blob in the store.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Durable {
    core: Meta,
    cursors: BTreeMap<NodeId, PullCursor>,
    /// No version up to it is taken from a gateway any more.
    fence: Hlc,
    /// The accept log that all this was written beside. If the store now goes on with another one, its end was in doubt when
    /// it was opened, perhaps some lives ago, and the replica has not counted since.
    log_id: LogId,
}

impl Durable {
    /// Whether the replica that this is of was taken from the node, and given back: deletions have been forgotten since, to which every
    /// replica of the partition had agreed by a fence. Who is given something back begins by joining; nobody else is taken for that.
    fn is_of_earlier_life(&self, partition: &Partition, node: NodeId) -> bool {
        let joins = partition.replica(node).is_some_and(|replica| replica.state == Role::Joining);
        joins && self.fence < partition.purged
    }
}

/// What a replica is started with.
pub(crate) struct ReplicaArguments {
    pub(crate) context: Arc<NodeContext>,
    pub(crate) handle: Arc<ReplicaHandle>,
    pub(crate) partition: Partition,
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) fsync: Fsync,
}

/// The actor.
pub(crate) struct ReplicaActor;

struct InHand {
    write: Option<shoal_storage::Write>,
    /// The writes it consists of, by version with ordinal 0.
    writes: Vec<Version>,
    /// The rows come from a peer.
    pulled: bool,
    /// The epoch that a gateway's rows were sent for.
    epoch: Option<Epoch>,
    /// It is a reservation, for this token.
    reserves: Option<String>,
    answer: oneshot::Sender<Result<Written>>,
}

/// Whether the core waits for a write of the durable part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Core,
    Nobody,
}

/// Somebody who waits until a fence is durable.
struct Fencing {
    until: Hlc,
    place: (LogId, u64),
    answer: oneshot::Sender<Result<(LogId, u64)>>,
}

/// Its state: the pure core, and what the effects need.
pub(crate) struct ReplicaShell {
    context: Arc<NodeContext>,
    handle: Arc<ReplicaHandle>,
    store: Arc<Store>,
    core: ReplicaCore,
    durable: Durable,
    /// It began empty, and has not counted since.
    refilling: bool,
    /// A write of `durable` is under way. Only one is, or an older one could end last.
    writing: Option<Told>,
    /// `durable` has changed since that write began.
    to_write: Option<Told>,
    /// The cursors of the last write that has ended.
    cursors_kept: BTreeMap<NodeId, PullCursor>,
    /// The fence of that write, and who waits for a later one, with the place in the log that they are told.
    fence_kept: Hlc,
    fencing: Vec<Fencing>,
    recent: Recent,
    promises: Promises,
    in_hand: BTreeMap<Ticket, InHand>,
    next_ticket: Ticket,
    replicator: ActorRef<ReplicatorMessage>,
    maintainer: ActorRef<MaintainerMessage>,
    late_sync: Option<LateSync>,
}

impl Actor for ReplicaActor {
    type Msg = ReplicaMessage;
    type State = ReplicaShell;
    type Arguments = ReplicaArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let ReplicaArguments { context, handle, partition, schema, fsync } = arguments;
        let form = open::Form { schema, fsync };
        let mut opened = open::open(&context, &partition, form.clone(), &handle).await?;
        if fill::by_files(&context, &partition, &form, &handle, &opened).await? {
            opened = open::open(&context, &partition, form, &handle).await?;
        }
        if context.config.has(Planted::CountsAtOnce) {
            (opened.in_doubt, opened.emptied) = (false, false);
        }
        let (in_doubt, refilling) = (opened.in_doubt, opened.emptied);
        let mut durable = opened.durable.unwrap_or_default();
        let meta = opened.known.then(|| durable.core.clone());
        let core = ReplicaCore::new(context.node, partition.clone(), meta, opened.emptied, opened.in_doubt);
        if opened.in_doubt {
            if !opened.blob_holds {
                // What was lost from the log's end may lie before the cursors.
                durable.cursors.clear();
            }
            durable.core = core.meta().clone();
        }
        let store = opened.store;
        durable.log_id = store.position().0;
        if core.lacks_everything() {
            durable.fence = durable.fence.max(purge::forgotten_fence(&context));
        }
        durable.fence = durable.fence.max(partition.purged);
        store.fence(durable.fence);
        if let Some(observer) = &context.config.observer {
            let catalog = context.agreement.catalog().borrow().clone();
            let ancestors: Vec<_> = catalog.ancestors_of(partition.id).map(|(id, _)| id).collect();
            let opened = moment(context.node, partition.id, &store);
            observer.opened(opened, &ancestors, &inherit::range(&partition));
            observer.stands(opened, core.meta().sealed, core.meta().counts);
        }
        let feed = Feed::new(context.clone(), handle.clone(), myself.clone(), durable.cursors.clone());
        handle.opened(Running { actor: myself.clone(), store: store.clone(), feed: feed.clone() });

        let (replicator, _) = Actor::spawn_linked(
            None,
            Replicator,
            replicator::Arguments {
                context: context.clone(),
                handle: handle.clone(),
                replica: myself.clone(),
                partition,
                feed,
            },
            myself.get_cell(),
        )
        .await?;
        let (maintainer, _) = Actor::spawn_linked(
            None,
            Maintainer,
            maintainer::Arguments {
                env: context.env.clone(),
                store: store.clone(),
                pace: context.compaction.clone(),
                replica: myself.clone(),
            },
            myself.get_cell(),
        )
        .await?;
        let purging = purge::Arguments { context: context.clone(), handle: handle.clone(), replica: myself.clone() };
        Actor::spawn_linked(None, Purger, purging, myself.get_cell()).await?;
        let repairing = repair::Arguments { context: context.clone(), handle: handle.clone() };
        Actor::spawn_linked(None, Repairer, repairing, myself.get_cell()).await?;
        let promises = Promises::new(context.clock.last());
        let mut shell = ReplicaShell {
            context,
            handle,
            store,
            core,
            cursors_kept: durable.cursors.clone(),
            fence_kept: Hlc::default(),
            fencing: Vec::new(),
            durable,
            refilling,
            writing: None,
            to_write: None,
            recent: Recent::default(),
            promises,
            in_hand: BTreeMap::new(),
            next_ticket: 0,
            replicator,
            maintainer,
            late_sync: fsync.interval().map(LateSync::new),
        };
        let effects = shell.core.start();
        shell.perform(&myself, effects)?;
        if in_doubt && shell.core.meta().counts {
            // There is nobody whom it could ask, so this is what it holds. When it has peers, that is not to be doubted again.
            shell.persist(&myself, Told::Nobody);
        }
        Ok(shell)
    }

    async fn post_stop(&self, _myself: ActorRef<Self::Msg>, shell: &mut Self::State) -> Result<(), ActorProcessingErr> {
        shell.handle.stopped();
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        shell: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let event = match message {
            ReplicaMessage::Write { epoch, bytes, write, answer } => {
                let writes = vec![write.version.with_ordinal(0)];
                let in_hand =
                    InHand { write: Some(write), writes, pulled: false, epoch: Some(epoch), reserves: None, answer };
                match shell.context.config.has(Planted::EpochIgnored) {
                    // As history, which has no epoch.
                    true => Event::Pulled { ticket: shell.take(in_hand), bytes },
                    false => Event::Write { ticket: shell.take(in_hand), epoch, bytes },
                }
            }
            ReplicaMessage::Prepare { epoch, token, ballot, answer } => {
                let _ = answer.send(shell.prepare(epoch, &token, ballot));
                return Ok(());
            }
            ReplicaMessage::Reserve { epoch, token, reserved, answer } => {
                let bytes = (token.len() + RESERVATION_BYTES) as u64;
                match shell.reserve(token, reserved, answer) {
                    Some(ticket) => Event::Write { ticket, epoch, bytes },
                    None => return Ok(()),
                }
            }
            ReplicaMessage::Pulled { bytes, write, writes, answer } => {
                let in_hand = InHand { write: Some(write), writes, pulled: true, epoch: None, reserves: None, answer };
                Event::Pulled { ticket: shell.take(in_hand), bytes }
            }
            ReplicaMessage::Committed { tickets, outcome } => {
                shell.committed(&myself, &tickets, outcome)?;
                Event::Committed
            }
            ReplicaMessage::Catalog(partition) => {
                if shell.durable.is_of_earlier_life(&partition, shell.context.node) {
                    let id = partition.id;
                    let message = format!("{id} was taken from this node and given back, and has to begin anew");
                    return Err(Error::new(ErrorCode::Moved, message).into());
                }
                let _ = shell.replicator.cast(ReplicatorMessage::Partition(partition.clone()));
                Event::Catalog(Box::new(partition))
            }
            ReplicaMessage::Schema(schema) => {
                shell.adopt(&myself, schema);
                return Ok(());
            }
            ReplicaMessage::Cutoff(cutoff) => {
                let _ = shell.maintainer.cast(MaintainerMessage::Cutoff(cutoff));
                return Ok(());
            }
            ReplicaMessage::Event(event) => event,
            ReplicaMessage::Recent { log_id, after, answer } => {
                let _ = answer.send(shell.recent(log_id, after));
                return Ok(());
            }
            ReplicaMessage::Head { answer } => {
                let _ = answer.send(shell.head());
                return Ok(());
            }
            ReplicaMessage::Covers { from, accepts, answer } => {
                let _ = answer.send(shell.recent.covers(from, &accepts));
                return Ok(());
            }
            ReplicaMessage::Cursors(cursors) => {
                shell.durable.cursors = cursors;
                shell.persist(&myself, Told::Nobody);
                return Ok(());
            }
            ReplicaMessage::Cursor { of, answer } => {
                let _ = answer.send(shell.cursors_kept.get(&of).cloned().unwrap_or_default());
                return Ok(());
            }
            ReplicaMessage::Fence { epoch, until, answer } => {
                shell.fence(&myself, epoch, until, answer);
                return Ok(());
            }
            ReplicaMessage::Fenced { until, place, answer } => {
                shell.durable.fence = shell.durable.fence.max(until);
                shell.fencing.push(Fencing { until, place, answer });
                shell.persist(&myself, Told::Nobody);
                return Ok(());
            }
            ReplicaMessage::Holds { epoch, logs, answer } => {
                let _ = answer.send(shell.holds(epoch, &logs));
                return Ok(());
            }
            ReplicaMessage::Persisted(meta, cursors, fence) => {
                shell.cursors_kept = cursors;
                shell.fence_kept = fence;
                shell.tell_fenced();
                if let Some(observer) = &shell.context.config.observer {
                    observer.stands(shell.moment(), meta.sealed, meta.counts);
                }
                if meta.counts && shell.refilling {
                    shell.refilling = false;
                    open::refilled(&shell.context, shell.handle.partition).await;
                }
                match shell.persisted(&myself) {
                    Told::Core => Event::Persisted(meta),
                    Told::Nobody => return Ok(()),
                }
            }
            ReplicaMessage::Maintain { task, answer } => {
                let _ = shell.maintainer.cast(MaintainerMessage::Asked(task, answer));
                return Ok(());
            }
            ReplicaMessage::Report { answer } => {
                let _ = answer.send(shell.report());
                return Ok(());
            }
            ReplicaMessage::Damaged(error) if !open::has_peers(&shell.context, shell.core.partition()) => {
                // Nobody could fill it again: what can be read goes on being read, and the status names the file.
                tracing::error!(partition = %shell.handle.partition, %error, "the only replica is damaged");
                return Ok(());
            }
            ReplicaMessage::Damaged(error) => {
                shell.handle.set_serves(false);
                let store = shell.store.clone();
                shell.context.env.blocking(move || store.close()).await?;
                open::condemn(&shell.context, shell.core.partition(), &error).await?;
                return Err(error.into());
            }
            ReplicaMessage::Synced { begun } => {
                if let Some(late_sync) = &mut shell.late_sync {
                    late_sync.ended();
                    late_sync.go_on(&shell.context.env, &shell.store, &myself, Some(begun));
                }
                return Ok(());
            }
            ReplicaMessage::Failed(error) => return Err(error.into()),
        };
        let effects = shell.core.step(event);
        shell.perform(&myself, effects)
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        _shell: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            // The children hold no state worth more than a restart of the whole replica.
            SupervisionEvent::ActorFailed(_, error) => Err(error),
            SupervisionEvent::ActorTerminated(..) => Err("a child of the replica has ended".into()),
            _ => Ok(()),
        }
    }
}

/// Where a replica is.
fn moment(node: NodeId, partition: PartitionId, store: &Store) -> Moment {
    let (log_id, position) = store.position();
    let cutoff_micros = store.cutoff().map(|cutoff| cutoff.micros);
    Moment { partition, node, log_id, position, cutoff_micros }
}

impl ReplicaShell {
    fn take(&mut self, in_hand: InHand) -> Ticket {
        self.next_ticket += 1;
        self.in_hand.insert(self.next_ticket, in_hand);
        self.next_ticket
    }

    /// Takes out of hand what has come to its end.
    fn let_go(&mut self, ticket: Ticket) -> Option<InHand> {
        let in_hand = self.in_hand.remove(&ticket)?;
        if let (Some(token), Some(ballot)) = (&in_hand.reserves, in_hand.writes.first()) {
            self.promises.settle(token, *ballot);
        }
        Some(in_hand)
    }

    fn prepare(&mut self, epoch: Epoch, token: &str, ballot: Version) -> Result<Result<Promised, Version>> {
        let known = self.core.partition().epoch;
        if epoch != known {
            let partition = self.handle.partition;
            let message = format!("{partition} is at {known}, the ballot was made for {epoch}");
            return Err(Error::new(ErrorCode::Moved, message));
        }
        Ok(self.promises.prepare(token, ballot).map(|under_way| {
            let stored = self.store.token(token);
            let stored = stored.map(|record| {
                let TokenRecord { ballot, version, fingerprint, .. } = record;
                Reserved { ballot, version, fingerprint }
            });
            Promised { accepted: stored.max(under_way), counts: self.core.counts() }
        }))
    }

    /// Takes a reservation in hand, unless a promise is in the way.
    fn reserve(
        &mut self,
        token: String,
        reserved: Reserved,
        answer: oneshot::Sender<Result<Written>>,
    ) -> Option<Ticket> {
        if self.promises.accept(&token, reserved).is_err() {
            let error = Error::new(ErrorCode::Moved, "another request with this idempotency key came between");
            let _ = answer.send(Err(error));
            return None;
        }
        let Reserved { ballot, version, fingerprint } = reserved;
        let write =
            shoal_storage::Write { version, token: Some(token.clone()), rows: Rows::Reserve { ballot, fingerprint } };
        Some(self.take(InHand {
            write: Some(write),
            writes: vec![ballot],
            pulled: false,
            epoch: None,
            reserves: Some(token),
            answer,
        }))
    }

    fn perform(&mut self, myself: &ActorRef<ReplicaMessage>, effects: Vec<Effect>) -> Result<(), ActorProcessingErr> {
        for effect in effects {
            match effect {
                Effect::Reject(ticket, error) => {
                    if error.code() == ErrorCode::Moved {
                        self.context.env.reached(Rare::StaleEpoch);
                    }
                    if let Some(in_hand) = self.let_go(ticket) {
                        let _ = in_hand.answer.send(Err(error));
                    }
                }
                Effect::Commit(tickets) => self.commit(myself, tickets),
                Effect::Persist(meta) => {
                    self.durable.core = meta;
                    self.persist(myself, Told::Core);
                }
                Effect::CatchUp => {
                    let _ = self.replicator.cast(ReplicatorMessage::Now);
                }
                Effect::Compare(enough) => self.compare(myself, enough),
                Effect::Propose(command) => self.propose(myself, *command),
            }
        }
        let hasty = self.context.config.has(Planted::AlwaysServes);
        let serves = self.core.serves() || hasty;
        self.handle.set_fills(self.core.fills());
        if serves != self.handle.serves() {
            let (id, epoch, counts) = (self.handle.partition, self.core.partition().epoch, self.core.counts());
            let word = if serves { "serves" } else { "does not serve" };
            self.context.env.trace(|| format!("{id} {word} at epoch {epoch}; it counts: {counts}"));
        }
        self.handle.set_serves(serves);
        Ok(())
    }

    /// Where it is now.
    fn moment(&self) -> Moment {
        moment(self.context.node, self.handle.partition, &self.store)
    }

    fn commit(&mut self, myself: &ActorRef<ReplicaMessage>, tickets: Vec<Ticket>) {
        let writes: Vec<_> = tickets
            .iter()
            .filter_map(|ticket| self.in_hand.get_mut(ticket).and_then(|in_hand| in_hand.write.take()))
            .collect();
        for write in &writes {
            self.context.clock.hold(write.version.time());
        }
        let (env, store, myself) = (self.context.env.clone(), self.store.clone(), myself.clone());
        let now_micros = env.wall_micros();
        let (observer, node) = (self.context.config.observer.clone(), self.context.node);
        let partition = self.handle.partition;
        let commit = move || match observer {
            None => store.commit(writes, now_micros),
            Some(observer) => {
                let before = moment(node, partition, &store);
                observer.writing(before, &writes);
                let outcomes = store.commit(writes, now_micros)?;
                let news = |accepted: &Accepted| (!accepted.duplicate).then_some(accepted.position);
                let positions = outcomes.iter().map(|outcome| outcome.as_ref().ok().and_then(news));
                observer.written(before, &positions.collect::<Vec<_>>());
                Ok(outcomes)
            }
        };
        self.context.env.spawn("replica commit", async move {
            let outcome = match env.blocking(commit).await {
                Ok(outcome) => outcome,
                Err(lost) => Err(lost.into()),
            };
            let _ = myself.cast(ReplicaMessage::Committed { tickets, outcome });
        });
    }

    fn committed(
        &mut self,
        myself: &ActorRef<ReplicaMessage>,
        tickets: &[Ticket],
        outcome: Result<Vec<Result<shoal_storage::Accepted>>>,
    ) -> Result<()> {
        let counts = self.core.counts() || self.context.config.has(Planted::EpochIgnored);
        match outcome {
            Ok(results) => {
                for (ticket, result) in tickets.iter().zip(results) {
                    let Some(in_hand) = self.let_go(*ticket) else { continue };
                    let written = result.map(|accepted| {
                        // A gateway's write is whole; one that its token turned into an older write is not here at all.
                        if !in_hand.pulled && in_hand.writes.contains(&accepted.version.with_ordinal(0)) {
                            self.recent.know(in_hand.writes.iter().copied());
                        }
                        // A duplicate has not grown the log.
                        if !accepted.duplicate {
                            let (id, position) = (self.handle.partition, accepted.position);
                            let from = if in_hand.pulled { "pulled" } else { "took" };
                            self.context.env.trace(|| format!("{id} {from} {} as {position}", accepted.version));
                            self.recent.note(accepted.position, in_hand.writes);
                        }
                        if let (Some(observer), Some(epoch), true) =
                            (&self.context.config.observer, in_hand.epoch, counts)
                        {
                            observer.acknowledged(self.moment(), epoch);
                        }
                        let Accepted { version, duplicate, pulled, rows, .. } = accepted;
                        Written { version, duplicate: duplicate && !pulled, counts, rows }
                    });
                    // Met where the rows were looked up that these would have replaced.
                    if let Err(error) = &written
                        && error.code() == ErrorCode::Corruption
                    {
                        let _ = myself.cast(ReplicaMessage::Damaged(error.clone()));
                    }
                    let _ = in_hand.answer.send(written);
                }
                let _ = self.maintainer.cast(MaintainerMessage::Committed);
                if let Some(late_sync) = &mut self.late_sync {
                    late_sync.go_on(&self.context.env, &self.store, myself, None);
                }
                Ok(())
            }
            Err(error) => {
                // After a failed write or fsync nobody knows what the disk holds: as after a crash.
                let doubtful = error.clone().with_applied(Applied::Unknown);
                for ticket in tickets {
                    if let Some(in_hand) = self.let_go(*ticket) {
                        let _ = in_hand.answer.send(Err(doubtful.clone()));
                    }
                }
                Err(error)
            }
        }
    }

    /// Has the store go over to a newer schema, beside the mailbox: it waits for the commit that is under way. Until then writes
    /// made for the new one are told to come again.
    fn adopt(&self, myself: &ActorRef<ReplicaMessage>, schema: Arc<TableSchema>) {
        if schema.version <= self.store.schema_version() {
            return;
        }
        let (env, store, myself) = (self.context.env.clone(), self.store.clone(), myself.clone());
        let (id, version) = (self.handle.partition, schema.version);
        self.context.env.spawn("replica schema", async move {
            let adopting = schema.clone();
            let adopted = env.blocking(move || store.adopt(adopting)).await.map_err(Error::from).and_then(|done| done);
            match adopted {
                Ok(()) => env.trace(|| format!("{id} has gone over to version {version} of its schema")),
                Err(error) if error.code() == ErrorCode::DiskFull => {
                    // Reads go on by the old one; there may be room again later.
                    env.sleep(SCHEMA_PAUSE).await;
                    let _ = myself.cast(ReplicaMessage::Schema(schema));
                }
                Err(error) => {
                    let _ = myself.cast(ReplicaMessage::Failed(error));
                }
            }
        });
    }

    fn persist(&mut self, myself: &ActorRef<ReplicaMessage>, told: Told) {
        if self.writing.is_some() {
            let core = told == Told::Core || self.to_write == Some(Told::Core);
            self.to_write = Some(if core { Told::Core } else { Told::Nobody });
            return;
        }
        self.writing = Some(told);
        let (env, store, myself) = (self.context.env.clone(), self.store.clone(), myself.clone());
        let durable = self.durable.clone();
        self.context.env.spawn("replica meta", async move {
            let (core, cursors, fence) = (durable.core.clone(), durable.cursors.clone(), durable.fence);
            let outcome = async {
                let bytes = wire::encode(&durable)?;
                env.blocking(move || store.set_meta(bytes)).await?
            };
            let message = match outcome.await {
                Ok(()) => ReplicaMessage::Persisted(core, cursors, fence),
                Err(error) => ReplicaMessage::Failed(error),
            };
            let _ = myself.cast(message);
        });
    }

    /// A write of the durable part has ended; the next one begins if something changed meanwhile.
    fn persisted(&mut self, myself: &ActorRef<ReplicaMessage>) -> Told {
        let told = self.writing.take().unwrap_or(Told::Nobody);
        if let Some(next) = self.to_write.take() {
            self.persist(myself, next);
        }
        told
    }

    /// Compares with the voters of the partition, and says whether so many of them agree.
    fn compare(&self, myself: &ActorRef<ReplicaMessage>, enough: usize) {
        let (context, handle, myself) = (self.context.clone(), self.handle.clone(), myself.clone());
        let (epoch, voters) = (self.core.partition().epoch, self.core.partition().voters().collect::<Vec<_>>());
        self.context.env.spawn("replica comparison", async move {
            let agrees = repair::agrees(&context, &handle, &voters, enough).await;
            context.env.trace(|| format!("{} is joining; enough voters agree: {agrees}", handle.partition));
            if !agrees {
                context.env.reached(Rare::JoinerDiffered);
                context.env.sleep(COMPARE_PAUSE).await;
            }
            let _ = myself.cast(ReplicaMessage::Event(Event::Compared(epoch, agrees)));
        });
    }

    fn propose(&self, myself: &ActorRef<ReplicaMessage>, command: shoal_catalog::Command) {
        let (context, myself) = (self.context.clone(), myself.clone());
        context.env.trace(|| format!("a replica proposes {command:?}"));
        self.context.env.spawn("replica proposal", async move {
            let settles = matches!(command, shoal_catalog::Command::SettlePartition { .. });
            match context.agreement.propose(command, PROPOSAL_TIMEOUT).await {
                Ok(_) if settles => context.env.reached(Rare::Settled),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the catalog did not take a replica's proposal"),
            }
            context.env.sleep(PROPOSAL_PAUSE).await;
            let _ = myself.cast(ReplicaMessage::Event(Event::ProposalEnded));
        });
    }

    fn head(&self) -> Head {
        let (log_id, position) = self.store.position();
        Head {
            log_id,
            position,
            sealed: self.core.vouched(),
            counts: self.core.counts(),
            settled: self.core.is_settled(),
            in_doubt: self.core.is_in_doubt(),
        }
    }

    fn recent(&self, log_id: LogId, after: u64) -> RecentAnswer {
        let Head { log_id: own_log, position, sealed, counts, settled, in_doubt } = self.head();
        let after = self.store.place_of(log_id, after).unwrap_or(0);
        let accepts = self.recent.after(after, position);
        RecentAnswer { log_id: own_log, after, position, sealed, counts, settled, in_doubt, accepts }
    }

    /// Whether it may speak for what was acknowledged in this epoch.
    fn check_counts(&self, epoch: Epoch) -> Result<()> {
        match self.core.partition().epoch == epoch && self.core.counts() {
            true => Ok(()),
            false => {
                let id = self.handle.partition;
                Err(Error::new(ErrorCode::Moved, format!("the replica of {id} does not count at {epoch}")))
            }
        }
    }

    /// Takes no more old writes, and says so once that is durable.
    fn fence(
        &self,
        myself: &ActorRef<ReplicaMessage>,
        epoch: Epoch,
        until: Hlc,
        answer: oneshot::Sender<Result<(LogId, u64)>>,
    ) {
        if let Err(error) = self.check_counts(epoch) {
            let _ = answer.send(Err(error));
            return;
        }
        let (env, store, myself) = (self.context.env.clone(), self.store.clone(), myself.clone());
        // The commit that is under way ends before.
        self.context.env.spawn("replica fence", async move {
            match env.blocking(move || store.fence(until)).await {
                Ok(place) => drop(myself.cast(ReplicaMessage::Fenced { until, place, answer })),
                Err(lost) => drop(answer.send(Err(lost.into()))),
            }
        });
    }

    fn tell_fenced(&mut self) {
        let kept = self.fence_kept;
        for Fencing { place, answer, .. } in self.fencing.extract_if(.., |fencing| fencing.until <= kept) {
            let _ = answer.send(Ok(place));
        }
    }

    /// Whether it holds, durably, what the others' logs hold up to these places.
    fn holds(&self, epoch: Epoch, logs: &[Place]) -> Result<bool> {
        self.check_counts(epoch)?;
        let mut others = logs.iter().filter(|(node, ..)| *node != self.context.node);
        Ok(others.all(|(node, log_id, position)| {
            let cursor = self.cursors_kept.get(node);
            *position == 0 || cursor.is_some_and(|cursor| cursor.log_id == *log_id && cursor.position >= *position)
        }))
    }

    fn report(&self) -> CoreReport {
        let partition = self.core.partition();
        CoreReport {
            voters: partition.voters().collect(),
            holds_past: partition.settled || self.core.is_settled(),
            epoch: partition.epoch,
            sealed: self.core.sealed(),
            serves: self.core.serves(),
            counts: self.core.counts(),
            problem: self.core.problem(),
        }
    }
}

/// The error of a replica that is asked for and is not there.
pub(crate) fn absent(partition: shoal_kernel::PartitionId) -> Error {
    Error::new(ErrorCode::PartitionUnavailable, format!("this node holds no replica of {partition}"))
}
