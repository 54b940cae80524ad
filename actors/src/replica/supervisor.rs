//! The replicas' supervisor: keeps one replica actor for every place that the catalog gives this node.
//!
//! - **Owned by** the node; **owns** every replica actor of the node, and their handles in the directory.
//! - **Budget**: a replica is restarted without end, after 100 ms doubling to 30 s; a minute without a failure starts the
//!   count anew. Beyond the fifth failure in a row its problem is an error in the log and stays in `/api/v1/cluster`. After
//!   `replica_failures_max` it is given up: the catalog hears of it ([`crate::placement`]), and other nodes get a replica in its place. If it runs
//!   for a minute after all, that is taken back.
//!   Files of one that was taken from this node, and could not be removed, are tried again after the same pauses, without end.
//! - **Survives**: it has no state but what the catalog and the directories say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use shoal_catalog::{Catalog, Partition, Table};
use shoal_kernel::{Applied, Cutoff, Error, ErrorCode, PartitionId, Planted, Rare};

use super::directory::ReplicaDirectory;
use super::handle::ReplicaHandle;
use super::inherit::{self, Estate};
use super::message::ReplicaMessage;
use super::{ReplicaActor, ReplicaArguments};
use crate::failures::{FORGIVEN_AFTER, Failures};
use crate::later::later;
use crate::node::context::NodeContext;

/// How long a dropped replica may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// After the start, what is left of replicas that are not here any more is looked for.
const SWEEP_AFTER: Duration = Duration::from_secs(1);
/// How long the newest catalog may take, and when it is asked for again.
const SWEEP_PATIENCE: Duration = Duration::from_secs(5);
const SWEEP_AGAIN: Duration = Duration::from_secs(2);
/// When it is tried again to write down which cluster the replicas are of.
const NOTE_AGAIN: Duration = Duration::from_secs(1);
/// Failures in a row before the log calls it an error.
const FAILURES_QUIET_MAX: u32 = 5;
/// Failures in a row that a simulation should have seen.
const FAILURES_RARE: u32 = 3;

pub(crate) struct ReplicaSupervisor;

pub(crate) struct Arguments {
    pub(crate) context: Arc<NodeContext>,
    pub(crate) directory: Arc<ReplicaDirectory>,
}

pub(crate) enum SupervisorMessage {
    /// The catalog has changed.
    Catalog(Arc<Catalog>),
    /// It is time to look for what earlier lives of the node have left.
    Sweep,
    /// So: the newest version of the catalog that had been agreed upon when that was asked for, if it could be.
    UpToDate(Result<u64, Error>),
    /// A replica's back-off has passed.
    Start(PartitionId),
    /// A replica's store has been opened, or could not be.
    Opened(PartitionId, Result<ActorRef<ReplicaMessage>, Error>),
    /// The store of a replica whose partition was split has been split among these, or could not be.
    Parted(PartitionId, Result<Vec<PartitionId>, Error>),
    /// It is time to try that again.
    Part(PartitionId),
    /// It is time to try again to remove what is left of a replica.
    Remove(PartitionId),
    /// It is time to try again what the catalog asks for.
    Reconcile,
    /// A replica that had been given up has been running for a while, if it has not failed since so many failures.
    Forgive(PartitionId, u32),
}

struct Child {
    handle: Arc<ReplicaHandle>,
    actor: Option<ActorRef<ReplicaMessage>>,
    /// Its store is being opened, by a task: one slow disk holds up nobody else.
    opening: bool,
    /// The catalog has taken it from this node meanwhile; it goes once the store has been opened. Two stores never share a directory.
    goes: bool,
    told: Partition,
    told_schema: u32,
    told_cutoff: Option<Cutoff>,
    failures: Failures,
}

pub(crate) struct State {
    context: Arc<NodeContext>,
    directory: Arc<ReplicaDirectory>,
    catalog: Arc<Catalog>,
    children: BTreeMap<PartitionId, Child>,
    /// Never iterated: ids of actors have no meaning beyond "the one that has just failed".
    by_actor: BTreeMap<ActorId, PartitionId>,
    /// Actors that failed before their start was reported.
    failed_early: BTreeMap<ActorId, Error>,
    /// Partitions of which there are files here.
    on_disk: BTreeSet<PartitionId>,
    /// The cluster that they are of, if anybody knows.
    cluster: Option<u64>,
    /// Those of which the store is being split; and how often that has failed.
    parting: BTreeMap<PartitionId, Parting>,
    /// Those of which something is left that could not be removed; and how often that has failed.
    left: BTreeMap<PartitionId, Failures>,
    /// It is to be tried again soon to write down the cluster.
    waits_to_note: bool,
}

#[derive(Default)]
struct Parting {
    under_way: bool,
    /// It has failed, and is to be tried again later.
    waits: bool,
    failures: Failures,
    /// The catalog has taken everything that came of it from this node meanwhile; what there is goes when the split has ended.
    goes: bool,
}

impl Actor for ReplicaSupervisor {
    type Msg = SupervisorMessage;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let Arguments { context, directory } = arguments;
        later(&context.env, "replica sweep", &myself, SWEEP_AFTER, SupervisorMessage::Sweep);
        let (disk, replicas) = (context.env.disk(), context.replicas_dir());
        let looked = context.env.blocking(move || {
            if let Err(error) = super::open::sweep(&*disk, &replicas) {
                tracing::warn!(%error, "what is left of removed replicas could not be removed");
            }
            super::open::discard_copies(&*disk, &replicas)?;
            let cluster = super::open::cluster_of(&disk, &replicas)?;
            Ok::<_, Error>((inherit::on_disk(&*disk, &replicas)?, cluster))
        });
        // Without it nobody knows whether a replica has something to inherit, so none is started.
        let (on_disk, cluster) = looked.await??;
        Ok(State {
            context,
            directory,
            catalog: Arc::default(),
            children: BTreeMap::new(),
            by_actor: BTreeMap::new(),
            failed_early: BTreeMap::new(),
            on_disk,
            cluster,
            parting: BTreeMap::new(),
            left: BTreeMap::new(),
            waits_to_note: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Catalog(catalog) => state.reconcile(&myself, catalog).await,
            SupervisorMessage::Sweep => state.ask_for_sweep(&myself),
            SupervisorMessage::UpToDate(Ok(version)) if state.is_current(version) => state.sweep(&myself).await,
            SupervisorMessage::UpToDate(known) => {
                tracing::debug!(?known, "what earlier lives of the node have left stays for now");
                later(&state.context.env, "replica sweep", &myself, SWEEP_AGAIN, SupervisorMessage::Sweep);
            }
            SupervisorMessage::Start(partition) => state.start(&myself, partition).await,
            SupervisorMessage::Opened(partition, opened) => state.opened(&myself, partition, opened).await,
            SupervisorMessage::Parted(partition, parted) => state.parted(&myself, partition, parted).await,
            SupervisorMessage::Part(partition) => {
                if let Some(parting) = state.parting.get_mut(&partition) {
                    parting.waits = false;
                    state.part(&myself, partition).await;
                }
            }
            SupervisorMessage::Remove(partition) => state.remove_files(&myself, partition, None).await,
            SupervisorMessage::Reconcile => {
                state.waits_to_note = false;
                state.reconcile(&myself, state.catalog.clone()).await;
            }
            SupervisorMessage::Forgive(partition, failures) => {
                if let Some(child) = state.children.get_mut(&partition)
                    && child.failures.in_a_row() == failures
                    && child.actor.is_some()
                {
                    child.failures.forget();
                    child.handle.set_given_up(false);
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, error) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, typed(error)),
            SupervisionEvent::ActorTerminated(cell, ..) => (cell, Error::internal("the replica actor has ended")),
            _ => return Ok(()),
        };
        match state.by_actor.remove(&cell.get_id()) {
            Some(partition) => state.failed(&myself, partition, error),
            None if state.children.values().any(|child| child.opening) => {
                state.failed_early.insert(cell.get_id(), error);
            }
            None => {}
        }
        Ok(())
    }
}

impl State {
    async fn reconcile(&mut self, myself: &ActorRef<SupervisorMessage>, catalog: Arc<Catalog>) {
        let node = self.context.node;
        if self.catalog.nodes.contains_key(&node) && !catalog.nodes.contains_key(&node) {
            if !self.children.is_empty() {
                // Somebody has given this node up for lost. What is here after all stays until somebody deletes it.
                tracing::warn!("this node was removed from the cluster; the replicas that it had stay on its disk");
            }
            return;
        }
        self.catalog = catalog.clone();
        if let Err(error) = self.note_cluster().await {
            tracing::warn!(%error, "which cluster the replicas are of could not be written down; none is started before it is");
            if !std::mem::replace(&mut self.waits_to_note, true) {
                later(&self.context.env, "replicas' cluster", myself, NOTE_AGAIN, SupervisorMessage::Reconcile);
            }
            return;
        }
        let here = |partition: &&Partition| partition.replica(node).is_some();
        let gone: Vec<PartitionId> =
            self.children.keys().filter(|id| catalog.partitions.get(id).filter(here).is_none()).copied().collect();
        for partition in gone {
            match catalog.ancestors.contains_key(&partition) {
                true => self.part(myself, partition).await,
                false => self.remove(myself, partition).await,
            }
        }
        for partition in catalog.partitions.values().filter(here) {
            if !self.children.contains_key(&partition.id)
                && let Some(from) = self.inherits_from(&catalog, partition)
            {
                self.part(myself, from).await;
                continue;
            }
            let table = catalog.tables.get(&partition.table);
            let schema = table.map(|table| &table.schema);
            let cutoff = table.and_then(|table| self.cutoff(table));
            match self.children.get_mut(&partition.id) {
                // Given back; it begins anew once the former one has gone.
                Some(child) if child.goes => {}
                Some(child) => {
                    if child.told != *partition {
                        child.told = partition.clone();
                        if let Some(actor) = &child.actor {
                            let _ = actor.cast(ReplicaMessage::Catalog(partition.clone()));
                        }
                    }
                    if let Some(schema) = schema.filter(|schema| schema.version != child.told_schema) {
                        child.told_schema = schema.version;
                        if let Some(actor) = &child.actor {
                            let _ = actor.cast(ReplicaMessage::Schema(Arc::new(schema.clone())));
                        }
                    }
                    if cutoff != child.told_cutoff {
                        child.told_cutoff = cutoff;
                        if let (Some(actor), Some(cutoff)) = (&child.actor, cutoff) {
                            let _ = actor.cast(ReplicaMessage::Cutoff(cutoff));
                        }
                    }
                }
                None => {
                    let handle = Arc::new(ReplicaHandle::new(partition.id, &self.context.config));
                    self.directory.insert(handle.clone());
                    self.on_disk.insert(partition.id);
                    self.children.insert(
                        partition.id,
                        Child {
                            handle,
                            actor: None,
                            opening: false,
                            goes: false,
                            told: partition.clone(),
                            told_schema: schema.map_or(0, |schema| schema.version),
                            told_cutoff: cutoff,
                            failures: Failures::default(),
                        },
                    );
                    self.start(myself, partition.id).await;
                }
            }
        }
    }

    /// From where on a table's rows are kept.
    fn cutoff(&self, table: &Table) -> Option<Cutoff> {
        match self.context.config.has(Planted::ExpiryByOwnClock) {
            true => Some(table.options.ttl?.cutoff(self.context.env.wall_micros())),
            false => table.cutoff,
        }
    }

    /// The partition whose files here are to be split before this one can be opened.
    fn inherits_from(&self, catalog: &Catalog, partition: &Partition) -> Option<PartitionId> {
        let node = self.context.node;
        let mut ancestors = catalog.ancestors_of(partition.id);
        let left = ancestors.find(|(id, ancestor)| self.on_disk.contains(id) && ancestor.holders.contains(&node));
        left.map(|(id, _)| id)
    }

    /// Begins to split the store of a replica whose partition was split. Its heirs are opened when that is done.
    async fn part(&mut self, myself: &ActorRef<SupervisorMessage>, id: PartitionId) {
        let child = self.children.get(&id);
        let busy = self.parting.get(&id).is_some_and(|parting| parting.under_way || parting.waits);
        // Nothing may be made where it was: its heirs would wait for that.
        if busy || child.is_some_and(|child| child.opening) || !self.on_disk.contains(&id) {
            return;
        }
        let Some(estate) = Estate::of(&self.context, &self.catalog, id) else {
            self.parting.remove(&id);
            self.remove(myself, id).await;
            return;
        };
        let actor = child.and_then(|child| child.actor.clone());
        let handle = child.map(|child| child.handle.clone());
        let parting = self.parting.entry(id).or_default();
        parting.under_way = true;
        if actor.is_none() {
            self.directory.set_unparted(id, parting.failures.in_a_row() >= self.context.config.replica_failures_max);
        }
        let (context, myself) = (self.context.clone(), myself.clone());
        self.context.env.spawn("replica split", async move {
            let store = handle.as_ref().and_then(|handle| handle.store().ok());
            let parted = match (actor, store) {
                (Some(actor), Some(store)) => estate.part_running(&context, store).await.inspect_err(|error| {
                    // Its store is done for. The next attempt opens it anew, or what is left of it.
                    if error.code() == ErrorCode::Corruption {
                        let _ = actor.cast(ReplicaMessage::Damaged(error.clone()));
                    } else if error.code() == ErrorCode::Moved || error.applied() == Applied::Unknown {
                        let _ = actor.cast(ReplicaMessage::Failed(error.clone()));
                    }
                }),
                _ => part_closed(&context, &estate, handle).await,
            };
            context.env.trace(|| match &parted {
                Ok(heirs) => format!("{id} has been split into {heirs:?}"),
                Err(error) => format!("{id} could not be split: {error}"),
            });
            let _ = myself.cast(SupervisorMessage::Parted(id, parted));
        });
    }

    async fn parted(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        id: PartitionId,
        parted: Result<Vec<PartitionId>, Error>,
    ) {
        let Some(parting) = self.parting.get_mut(&id) else { return };
        parting.under_way = false;
        let heirs = match parted {
            Ok(heirs) => heirs,
            Err(_) if parting.goes => Vec::new(),
            Err(error) => {
                parting.waits = true;
                parting.failures.add(self.context.env.monotonic());
                self.directory
                    .set_unparted(id, parting.failures.in_a_row() >= self.context.config.replica_failures_max);
                tracing::warn!(partition = %id, %error, "a replica could not be split; it is tried again");
                later(
                    &self.context.env,
                    "split back-off",
                    myself,
                    parting.failures.pause(),
                    SupervisorMessage::Part(id),
                );
                return;
            }
        };
        self.parting.remove(&id);
        self.directory.set_parted(id);
        self.remove(myself, id).await;
        if !heirs.is_empty() {
            metrics::counter!("shoal_replicas_split_total").increment(1);
        }
        for heir in heirs {
            // One that has been split since hands on what it has; one that has been dropped or taken away goes.
            self.on_disk.insert(heir);
            let partition = self.catalog.partitions.get(&heir);
            let is_here = partition.is_some_and(|partition| partition.replica(self.context.node).is_some());
            if !is_here && !self.catalog.ancestors.contains_key(&heir) {
                self.remove(myself, heir).await;
            }
        }
        self.reconcile(myself, self.catalog.clone()).await;
    }

    async fn start(&mut self, myself: &ActorRef<SupervisorMessage>, id: PartitionId) {
        if self.catalog.ancestors.contains_key(&id) {
            self.part(myself, id).await;
            return;
        }
        let Some(child) = self.children.get_mut(&id).filter(|child| child.actor.is_none() && !child.opening) else {
            return;
        };
        let Some(table) = self.catalog.tables.get(&child.told.table) else { return };
        child.opening = true;
        let arguments = ReplicaArguments {
            context: self.context.clone(),
            handle: child.handle.clone(),
            partition: child.told.clone(),
            schema: Arc::new(table.schema.clone()),
            fsync: table.options.fsync,
        };
        let (env, handle, myself) = (self.context.env.clone(), child.handle.clone(), myself.clone());
        self.context.env.spawn("replica start", async move {
            // The store of the life before may still be flushing.
            let opened = match env.blocking(move || handle.close_retired()).await {
                Ok(()) => Actor::spawn_linked(None, ReplicaActor, arguments, myself.get_cell()).await,
                Err(lost) => Err(ractor::SpawnErr::StartupFailed(Error::from(lost).into())),
            };
            let opened = match opened {
                Ok((actor, _)) => Ok(actor),
                Err(ractor::SpawnErr::StartupFailed(error)) => Err(typed(error)),
                Err(error) => Err(Error::internal(error.to_string())),
            };
            let _ = myself.cast(SupervisorMessage::Opened(id, opened));
        });
    }

    async fn opened(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        id: PartitionId,
        opened: Result<ActorRef<ReplicaMessage>, Error>,
    ) {
        let table = self.children.get(&id).and_then(|child| self.catalog.tables.get(&child.told.table));
        let cutoff = table.and_then(|table| self.cutoff(table));
        let early = opened.as_ref().ok().and_then(|actor| self.failed_early.remove(&actor.get_id()));
        let Some(child) = self.children.get_mut(&id) else { return };
        child.opening = false;
        if child.goes {
            child.actor = opened.ok();
            self.remove(myself, id).await;
            // It may have been given back.
            self.reconcile(myself, self.catalog.clone()).await;
            return;
        }
        match (opened, early) {
            (Ok(actor), None) => {
                // The catalog may have moved on while the store was opened.
                let _ = actor.cast(ReplicaMessage::Catalog(child.told.clone()));
                if let Some(table) = self.catalog.tables.get(&child.told.table) {
                    let _ = actor.cast(ReplicaMessage::Schema(Arc::new(table.schema.clone())));
                    if let Some(cutoff) = cutoff {
                        let _ = actor.cast(ReplicaMessage::Cutoff(cutoff));
                    }
                }
                self.by_actor.insert(actor.get_id(), id);
                child.actor = Some(actor);
                child.failures.runs(self.context.env.monotonic());
                if child.handle.is_given_up() {
                    let forgive = SupervisorMessage::Forgive(id, child.failures.in_a_row());
                    later(&self.context.env, "replica forgiven", myself, FORGIVEN_AFTER, forgive);
                }
                self.directory.notify();
            }
            (Ok(_), Some(error)) | (Err(error), _) => self.failed(myself, id, error),
        }
        if self.catalog.ancestors.contains_key(&id) {
            // It was split while its store was opened.
            self.part(myself, id).await;
        }
    }

    fn failed(&mut self, myself: &ActorRef<SupervisorMessage>, id: PartitionId, error: Error) {
        let now = self.context.env.monotonic();
        let Some(child) = self.children.get_mut(&id) else { return };
        if self.catalog.ancestors.contains_key(&id) {
            // Its store was split while it took writes. If that has failed, it is tried again, whether the replica runs or not.
            child.actor = None;
            child.handle.stopped();
            self.context.env.trace(|| format!("{id} ends, its partition was split: {error}"));
            return;
        }
        child.failures.add(now);
        let failures = child.failures.in_a_row();
        child.actor = None;
        self.context.env.reached(Rare::ReplicaRestarted);
        if failures == FAILURES_RARE {
            self.context.env.reached(Rare::ReplicaRestartedOften);
        }
        self.context.env.trace(|| format!("{id} failed and is restarted: {error}"));
        if failures == self.context.config.replica_failures_max {
            child.handle.set_given_up(true);
        }
        if failures > FAILURES_QUIET_MAX {
            tracing::error!(partition = %id, failures, %error, "a replica keeps failing");
        } else {
            tracing::warn!(partition = %id, failures, %error, "a replica failed and is restarted");
        }
        metrics::counter!("shoal_replica_restarts_total").increment(1);
        child.handle.failed(error);
        later(&self.context.env, "replica back-off", myself, child.failures.pause(), SupervisorMessage::Start(id));
    }

    /// Writes down which cluster the replicas of this node are of, before there is any.
    async fn note_cluster(&mut self) -> Result<(), Error> {
        let cluster_id = self.catalog.cluster_id;
        if cluster_id == 0 || self.cluster.is_some() || !self.on_disk.is_empty() {
            return Ok(());
        }
        let (disk, replicas) = (self.context.env.disk(), self.context.replicas_dir());
        self.context.env.blocking(move || super::open::belong_to(&disk, &replicas, cluster_id)).await??;
        self.cluster = Some(cluster_id);
        Ok(())
    }

    /// Has the newest catalog asked for: what this node knows may be older than what lies on its disk. Nothing is removed that may be of
    /// another cluster, or that a catalog which was recovered may not know of.
    fn ask_for_sweep(&self, myself: &ActorRef<SupervisorMessage>) {
        let is_other = self.cluster.is_none_or(|cluster| ![0, cluster].contains(&self.catalog.cluster_id));
        if is_other || self.catalog.is_recovered() || self.on_disk.iter().all(|id| self.children.contains_key(id)) {
            return;
        }
        let (context, myself) = (self.context.clone(), myself.clone());
        self.context.env.spawn("replica sweep", async move {
            let newest = context.agreement.linearizable(SWEEP_PATIENCE).await;
            let _ = myself.cast(SupervisorMessage::UpToDate(newest.map(|catalog| catalog.version)));
        });
    }

    /// Whether this catalog, with this node in it, is as new as that version.
    fn is_current(&self, version: u64) -> bool {
        self.catalog.version >= version && self.catalog.nodes.contains_key(&self.context.node)
    }

    /// Removes what is left of replicas that were taken from this node shortly before it went down, or while it was down; their
    /// partitions may have been split since.
    async fn sweep(&mut self, myself: &ActorRef<SupervisorMessage>) {
        let node = self.context.node;
        if self.catalog.is_recovered() || self.cluster != Some(self.catalog.cluster_id) {
            return;
        }
        let is_left = |id: &PartitionId| {
            let known = self.catalog.partitions.get(id).is_some_and(|partition| partition.replica(node).is_some());
            let in_use = self.children.contains_key(id) || self.parting.contains_key(id);
            let was_made = id.0 < self.catalog.next_id;
            was_made && !known && !in_use && Estate::of(&self.context, &self.catalog, *id).is_none()
        };
        let left: Vec<PartitionId> = self.on_disk.iter().filter(|id| is_left(id)).copied().collect();
        for partition in left {
            tracing::info!(%partition, "files of a replica are removed that this node has no more");
            self.context.env.reached(Rare::LeftReplicaRemoved);
            self.context.env.trace(|| format!("{partition} is not here any more, and its files go"));
            self.remove(myself, partition).await;
        }
    }

    /// The catalog has taken the partition from this node: stop it and free its disk.
    async fn remove(&mut self, myself: &ActorRef<SupervisorMessage>, id: PartitionId) {
        self.directory.remove(id);
        if let Some(parting) = self.parting.get_mut(&id).filter(|parting| parting.under_way) {
            parting.goes = true;
            return;
        }
        self.parting.remove(&id);
        self.directory.set_parted(id);
        if let Some(child) = self.children.get_mut(&id).filter(|child| child.opening) {
            child.goes = true;
            return;
        }
        let child = self.children.remove(&id);
        let handle = child.as_ref().map(|child| child.handle.clone());
        if let Some(actor) = child.and_then(|child| child.actor) {
            self.by_actor.remove(&actor.get_id());
            let _ = actor.stop_and_wait(None, Some(STOP_TIMEOUT)).await;
        }
        self.on_disk.remove(&id);
        self.left.insert(id, Failures::default());
        self.remove_files(myself, id, handle).await;
    }

    /// Frees the disk of what is left of a replica, and keeps trying if that fails.
    async fn remove_files(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        id: PartitionId,
        handle: Option<Arc<ReplicaHandle>>,
    ) {
        // It may have been given back meanwhile.
        let place = self.catalog.partitions.get(&id);
        let is_back = self.children.contains_key(&id)
            || self.parting.contains_key(&id)
            || place.is_some_and(|place| place.replica(self.context.node).is_some());
        let Some(failures) = self.left.get_mut(&id) else { return };
        let (disk, dir) = (self.context.env.disk(), self.context.replica_dir(id));
        let removed = self.context.env.blocking(move || {
            if let Some(handle) = handle {
                handle.close_retired();
            }
            match is_back {
                true => super::open::finish_removal(&*disk, &dir),
                false => super::open::remove(&*disk, &dir),
            }
        });
        match removed.await.map_err(Error::from).and_then(|done| done) {
            Ok(()) => drop(self.left.remove(&id)),
            Err(error) => {
                failures.add(self.context.env.monotonic());
                tracing::warn!(partition = %id, %error, "files of a replica that is not here any more could not be removed");
                let again = SupervisorMessage::Remove(id);
                later(&self.context.env, "replica removal", myself, failures.pause(), again);
            }
        }
    }
}

/// Splits what a replica that does not run has left. If that is damaged, its heirs begin empty, and are filled from their peers.
async fn part_closed(
    context: &Arc<NodeContext>,
    estate: &Estate,
    handle: Option<Arc<ReplicaHandle>>,
) -> Result<Vec<PartitionId>, Error> {
    if let Some(handle) = handle {
        context.env.blocking(move || handle.close_retired()).await?;
    }
    let parted = estate.part_closed(context).await;
    match &parted {
        Err(error) if error.code() == ErrorCode::Corruption && super::open::has_peers(context, &estate.partition) => {
            super::open::condemn(context, &estate.partition, error).await?;
        }
        _ => {}
    }
    parted
}

/// Errors that actors end with are ours; anything else is a panic that ractor caught.
fn typed(error: ActorProcessingErr) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(other) => Error::internal(other.to_string()),
    }
}
