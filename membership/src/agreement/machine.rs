//! The catalog behind the log: applies what is committed, and keeps snapshots.

use std::collections::VecDeque;
use std::io::{self, Cursor};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{AnyError, EntryPayload, OptionalSend, StorageIOError};
use serde::{Deserialize, Serialize};
use shoal_catalog::{Catalog, Command, CommandOutcome};
use shoal_kernel::{Env, Error, ErrorCode, Planted, Rare, Result, wire};
use tokio::sync::watch;

use super::journal::{Journal, REMEDY};
use super::recover;
use super::types::{Entry, LogId, Membership, Outcome, Peer, Proposal, SnapshotMeta, StorageError, TypeConfig};
use super::{AgreementConfig, CatalogObserver};
use shoal_kernel::NodeId;

/// Name of the snapshot file.
pub(super) const FILE: &str = "snapshot";

/// Name of the file that says that others have agreed on something else, and that this node does not start with what it has.
pub(super) const DIVERGED: &str = "diverged";

/// Name of the file that says that this node has forgotten its catalog, and has not had the newest one since.
pub(super) const FOLLOWS: &str = "follows";

/// The version of the format that this build writes, and the only one it reads.
const FORMAT_VERSION: u32 = 10;

/// Outcomes that are remembered, so that a proposal sent again is not applied again. More than can be on their way at once.
const OUTCOMES_MAX: usize = 512;

/// Everything that is replicated; the content of a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct State {
    applied: Option<LogId>,
    membership: Membership,
    catalog: Catalog,
    recent: VecDeque<(u128, Outcome)>,
    /// Where the catalog was recovered: the entries behind those that made one node the only voter.
    recoveries: Vec<LogId>,
}

impl State {
    fn apply(&mut self, entry: Entry) -> Outcome {
        self.applied = Some(entry.log_id);
        let outcome = match entry.payload {
            EntryPayload::Blank => Ok(CommandOutcome { effects: Vec::new(), version: self.catalog.version }),
            EntryPayload::Normal(proposal) => self.decide(proposal),
            EntryPayload::Membership(membership) => {
                self.membership = Membership::new(Some(entry.log_id), membership);
                Ok(CommandOutcome { effects: Vec::new(), version: self.catalog.version })
            }
        };
        self.catalog.mirror_voters(&self.membership.voter_ids().collect());
        outcome
    }

    fn decide(&mut self, proposal: Proposal) -> Outcome {
        if let Some((_, outcome)) = self.recent.iter().find(|(id, _)| *id == proposal.id) {
            return outcome.clone();
        }
        if let (Command::Recover, Some(at)) = (&proposal.command, self.applied) {
            self.recoveries.push(at);
        }
        let outcome = self.catalog.apply(proposal.command);
        if self.recent.len() >= OUTCOMES_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((proposal.id, outcome.clone()));
        outcome
    }

    /// Where a later state has been recovered without what this one had applied by then.
    fn left_behind_by(&self, later: &Self) -> Option<LogId> {
        let applied = self.applied?;
        let without_us = |recovery: &&LogId| {
            let before = LogId::new(recovery.leader_id, recovery.index - 1);
            applied.index >= before.index && applied != before
        };
        later.recoveries.iter().filter(|recovery| !self.recoveries.contains(recovery)).find(without_us).copied()
    }
}

/// The state machine. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(super) struct Machine(Arc<Inner>);

struct Inner {
    env: Env,
    path: PathBuf,
    node: NodeId,
    observer: Option<Arc<dyn CatalogObserver>>,
    planted: Option<Planted>,
    state: Mutex<State>,
    snapshot: Mutex<Option<Saved>>,
    // Held while the snapshot file is written: a snapshot that is built and one that arrives must not overtake each other.
    saving: tokio::sync::Mutex<()>,
    catalog: watch::Sender<Arc<Catalog>>,
    applied: watch::Sender<Option<u64>>,
    /// The catalog is not shown before it is the newest: this node has gone back to its beginning.
    held_back: AtomicBool,
    /// Others have agreed on something else than this node.
    diverged: watch::Sender<Option<Error>>,
}

#[derive(Clone)]
struct Saved {
    meta: SnapshotMeta,
    bytes: Arc<Vec<u8>>,
}

impl Machine {
    /// Opens the last snapshot in a directory that exists, or starts empty.
    pub(super) async fn open(env: &Env, dir: PathBuf, config: &AgreementConfig) -> Result<Self> {
        let path = dir.join(FILE);
        let (disk, at) = (env.disk(), path.clone());
        let read = move || -> Result<_> {
            if disk.exists(&at.with_file_name(DIVERGED))? {
                return Err(recover::diverged("the catalog was recovered without what this node had agreed on"));
            }
            let held_back = disk.exists(&at.with_file_name(FOLLOWS))?;
            Ok((held_back, if disk.exists(&at)? { Some(disk.read(&at)?) } else { None }))
        };
        let (held_back, bytes) = env.blocking(read).await??;
        let (state, snapshot) = match bytes {
            None => (State::default(), None),
            Some(bytes) => {
                let state = decode(&bytes)?;
                let saved = Saved { meta: meta_of(&state), bytes: Arc::new(bytes) };
                (state, Some(saved))
            }
        };
        let machine = Self(Arc::new(Inner {
            env: env.clone(),
            path,
            node: config.node,
            observer: config.observer.clone(),
            planted: config.planted,
            catalog: watch::Sender::new(Arc::new(if held_back { Catalog::default() } else { state.catalog.clone() })),
            applied: watch::Sender::new(state.applied.map(|id| id.index)),
            state: Mutex::new(state),
            snapshot: Mutex::new(snapshot),
            saving: tokio::sync::Mutex::new(()),
            held_back: AtomicBool::new(held_back),
            diverged: watch::Sender::new(None),
        }));
        machine.tell();
        Ok(machine)
    }

    /// The newest applied catalog.
    pub(super) fn catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.0.catalog.subscribe()
    }

    /// The index of the last applied entry. Goes up after [`Machine::catalog`] shows what the entry did.
    pub(super) fn applied(&self) -> watch::Receiver<Option<u64>> {
        self.0.applied.subscribe()
    }

    /// The last change of the membership that was applied.
    pub(super) fn membership(&self) -> Membership {
        self.state().membership.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saved(&self) -> MutexGuard<'_, Option<Saved>> {
        self.0.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the catalog is not shown yet.
    pub(super) fn is_held_back(&self) -> bool {
        self.0.held_back.load(Ordering::Relaxed)
    }

    /// Shows the catalog from now on: it is the newest.
    pub(super) async fn release(&self) {
        let (disk, mark) = (self.0.env.disk(), self.0.path.with_file_name(FOLLOWS));
        match self.0.env.blocking(move || disk.remove_file(&mark)).await.map_err(Error::from).and_then(|done| Ok(done?))
        {
            Ok(()) => {}
            // The next start waits for the newest once more.
            Err(error) => tracing::debug!(%error, "the mark of a catalog that is taken anew stays"),
        }
        self.0.held_back.store(false, Ordering::Relaxed);
        self.publish();
    }

    /// Why this node takes no more part, if others have agreed on something else.
    pub(super) fn diverged(&self) -> watch::Receiver<Option<Error>> {
        self.0.diverged.subscribe()
    }

    /// Others have another entry there than was agreed upon here: from now on this node takes no more part, also after a restart.
    pub(super) async fn diverge(&self, index: u64) -> Error {
        let (disk, mark) = (self.0.env.disk(), self.0.path.with_file_name(DIVERGED));
        let marked = self.0.env.blocking(move || disk.replace(&mark, &index.to_le_bytes())).await;
        if let Err(error) = marked.map_err(Error::from).and_then(|done| Ok(done?)) {
            tracing::warn!(%error, "that the catalog has diverged cannot be noted");
        }
        let error = recover::diverged(format!(
            "the catalog was recovered on a node that had not got as far as this one: entry {index} is another one there"
        ));
        tracing::error!(%error, "this node takes no more part in the catalog");
        self.0.diverged.send_replace(Some(error.clone()));
        error
    }

    fn publish(&self) {
        // Copying and comparing cost what the catalog weighs; the version goes up with every change.
        let shown = self.0.catalog.borrow().version;
        let (catalog, applied) = {
            let state = self.state();
            let changed = state.catalog.version != shown;
            (changed.then(|| Arc::new(state.catalog.clone())), state.applied.map(|id| id.index))
        };
        if let Some(catalog) = catalog.filter(|_| !self.is_held_back()) {
            self.0.catalog.send_replace(catalog);
        }
        self.0.applied.send_replace(applied);
    }

    /// Tells whoever observes this node what its catalog is now.
    fn tell(&self) {
        if let Some(observer) = &self.0.observer {
            observer.applied(self.0.node, &self.state().catalog);
        }
    }

    /// Applies the next entry.
    fn apply_one(&self, entry: Entry) -> Outcome {
        let mut state = self.state();
        let keeps_epochs = self.0.planted == Some(Planted::TwoOwners);
        let before = keeps_epochs.then(|| state.catalog.partitions.clone());
        let outcome = state.apply(entry);
        for (id, known) in before.into_iter().flatten() {
            if let Some(partition) = state.catalog.partitions.get_mut(&id) {
                partition.epoch = known.epoch;
            }
        }
        outcome
    }

    /// Writes a snapshot file and makes it the current one, unless a newer one is there.
    async fn save(&self, saved: Saved) -> Result<()> {
        let _turn = self.0.saving.lock().await;
        if self.saved().as_ref().is_some_and(|current| current.meta.last_log_id > saved.meta.last_log_id) {
            return Ok(());
        }
        let (disk, path, bytes) = (self.0.env.disk(), self.0.path.clone(), saved.bytes.clone());
        self.0.env.blocking(move || disk.replace(&path, &bytes)).await??;
        *self.saved() = Some(saved);
        Ok(())
    }
}

fn encode(state: &State) -> Result<Vec<u8>> {
    // The state is encoded on its own, so that the version can be read when the rest cannot.
    Ok(wire::seal(&(FORMAT_VERSION, wire::encode(state)?))?)
}

fn decode(bytes: &[u8]) -> Result<State> {
    let (version, state): (u32, Vec<u8>) = wire::unseal(bytes).map_err(damaged)?;
    if version != FORMAT_VERSION {
        return Err(Error::new(
            ErrorCode::IncompatibleVersion,
            format!("the snapshot of the catalog has format {version}, this build reads {FORMAT_VERSION}"),
        ));
    }
    wire::decode(&state).map_err(damaged)
}

fn damaged(error: wire::WireError) -> Error {
    let error = Error::from(error).context("the snapshot of the catalog").in_file("catalog/snapshot", Some(0));
    error.with_help(REMEDY)
}

/// The catalog that a start from these files shows at first, and the index of the last entry applied to it.
///
/// # Errors
/// The snapshot is damaged or of another format.
pub(super) fn restored(snapshot: Option<&[u8]>, journal: &Journal) -> Result<(Catalog, Option<u64>)> {
    let mut state = snapshot.map(decode).transpose()?.unwrap_or_default();
    let committed = journal.committed.map_or(0, |id| id.index);
    let applied = state.applied.map(|id| id.index);
    for (index, entry) in &journal.entries {
        if *index <= committed && applied.is_none_or(|applied| *index > applied) {
            // What a command came to was told to whoever sent it.
            let _ = state.apply(entry.clone());
        }
    }
    Ok((state.catalog, state.applied.map(|id| id.index)))
}

/// The last entry that is in a snapshot, and the members that it names.
///
/// # Errors
/// As of [`restored`].
pub(super) fn members(snapshot: Option<&[u8]>) -> Result<(Option<LogId>, openraft::Membership<NodeId, Peer>)> {
    let state = snapshot.map(decode).transpose()?.unwrap_or_default();
    Ok((state.applied, state.membership.membership().clone()))
}

fn meta_of(state: &State) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: state.applied,
        last_membership: state.membership.clone(),
        // Two snapshots of one position hold the same bytes, so the position is name enough.
        snapshot_id: state.applied.map_or_else(|| "empty".to_owned(), |id| id.to_string()),
    }
}

fn snapshot_error(meta: &SnapshotMeta, error: &Error) -> StorageError {
    StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(error)).into()
}

fn snapshot_of(saved: &Saved) -> Snapshot<TypeConfig> {
    Snapshot { meta: saved.meta.clone(), snapshot: Box::new(Cursor::new(saved.bytes.to_vec())) }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (meta, bytes) = {
            let state = self.state();
            (meta_of(&state), encode(&state))
        };
        let bytes = bytes.map_err(|error| snapshot_error(&meta, &error))?;
        let saved = Saved { meta, bytes: Arc::new(bytes) };
        self.save(saved.clone()).await.map_err(|error| snapshot_error(&saved.meta, &error))?;
        Ok(snapshot_of(&saved))
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId>, openraft::StoredMembership<NodeId, Peer>), StorageError> {
        let state = self.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut outcomes = Vec::new();
        for entry in entries {
            let id = entry.log_id;
            let outcome = self.apply_one(entry);
            self.tell();
            self.0.env.trace(|| format!("catalog applied {id}: {outcome:?}"));
            outcomes.push(outcome);
        }
        self.publish();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let bytes = snapshot.into_inner();
        let state = decode(&bytes).map_err(|error| {
            let damaged = io::Error::new(io::ErrorKind::InvalidData, error);
            StorageError::from(StorageIOError::read_snapshot(Some(meta.signature()), &damaged))
        })?;
        let left_behind = self.state().left_behind_by(&state);
        if let Some(recovery) = left_behind {
            return Err(snapshot_error(meta, &self.diverge(recovery.index).await));
        }
        let saved = Saved { meta: meta.clone(), bytes: Arc::new(bytes) };
        self.0.env.reached(Rare::SnapshotInstalled);
        // First on disk, then in memory: what is shown must survive a restart.
        self.save(saved).await.map_err(|error| snapshot_error(meta, &error))?;
        *self.state() = state;
        self.tell();
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        Ok(self.saved().as_ref().map(snapshot_of))
    }
}
