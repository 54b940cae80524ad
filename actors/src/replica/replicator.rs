//! Pulls what peers accepted and this replica did not.
//!
//! The replicator of a replica that is leaving pulls nothing more: it asks the voters how far they have got.
//!
//! Owned by the replica actor; its cursors are kept in the replica's store. **Budget**: none of its own; a peer that does not answer
//! is asked again next turn, and if it panics the replica ends with it and is opened anew at that one's expense. Every turn it looks how far each
//! peer's log goes, which this node asks for all its replicas at once ([`heads`]), and if it goes beyond the cursor, asks the peer
//! what it accepted since, by version. What this replica got from a gateway itself is recognised and costs no
//! rows; from the first unknown accept on, rows are pulled in bounded batches and committed like any write.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::{Array, AsArray, FixedSizeBinaryArray};
use arrow::compute::filter_record_batch;
use arrow::record_batch::RecordBatch;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use shoal_catalog::{Partition, ReplicaState as Role};
use shoal_kernel::level::quorum;
use shoal_kernel::schema::{TOMBSTONE_COLUMN, VERSION_COLUMN};
use shoal_kernel::{Epoch, Error, ErrorCode, Hlc, LogId, NodeId, PartitionId, Planted, Rare, Result, Version};
use shoal_storage::{PullCursor, Rows, Write};

use super::handle::ReplicaHandle;
use super::heads::{self, Head};
use super::message::{PulledAnswer, RecentAnswer, ReplicaAnswer, ReplicaCall, ReplicaMessage};
use super::moment;
use super::serve;
use super::state::Event;
use crate::batch;
use crate::later::later;
use crate::node::context::NodeContext;
use crate::rounds::Rounds;

/// Pause between two turns.
const TURN: Duration = Duration::from_millis(1_000);
/// The same while the replica does not serve: somebody may be waiting for it.
const TURN_EAGER: Duration = Duration::from_millis(100);
/// How long a peer may take for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows of one answer, in bytes.
pub(crate) const PULL_BYTES_MAX: u64 = 4 << 20;

/// Bytes that are pulled at once, at most: what is pulled is committed as a whole, and the memtables are to have room for it.
pub(super) fn pull_bytes_max(context: &NodeContext) -> u64 {
    PULL_BYTES_MAX.min(context.config.memtables_bytes_max / 2)
}
/// Answers taken from one peer before the next gets its turn.
const PULLS_PER_TURN: u32 = 16;
/// Answers of these that are taken as quickly as they come.
const PULLS_UNPACED: u32 = 2;
/// Cursors that moved are made durable this often; what is lost is pulled again, which changes nothing.
const CURSORS_KEPT_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Replicator;

pub(super) struct Arguments {
    pub(super) context: Arc<NodeContext>,
    pub(super) handle: Arc<ReplicaHandle>,
    pub(super) replica: ActorRef<ReplicaMessage>,
    pub(super) partition: Partition,
    pub(super) feed: Feed,
}

pub(super) enum ReplicatorMessage {
    /// A turn by the clock.
    Turn,
    /// A turn at once.
    Now,
    /// The catalog's newest word.
    Partition(Partition),
}

pub(super) struct State {
    context: Arc<NodeContext>,
    handle: Arc<ReplicaHandle>,
    replica: ActorRef<ReplicaMessage>,
    partition: Partition,
    feed: Feed,
    kept: BTreeMap<NodeId, PullCursor>,
    kept_at: Duration,
}

/// What a replica pulls from its peers: for the replicator's turns, and for reads at quorum that cannot wait for them. Goes on
/// with the turn that was under way when the replica stops; nothing but rows comes of that.
#[derive(Clone)]
pub(super) struct Feed {
    context: Arc<NodeContext>,
    handle: Arc<ReplicaHandle>,
    replica: ActorRef<ReplicaMessage>,
    partition: PartitionId,
    peers: Arc<Mutex<Peers>>,
}

#[derive(Default)]
struct Peers {
    cursors: BTreeMap<NodeId, PullCursor>,
    /// Where a peer's log had been pulled to its end: everything up to there is here, or what it has lost against. Further back that
    /// is not so, for a row that has lost against a later one is not handed out, and the later one may not have come yet.
    complete: BTreeMap<NodeId, (LogId, u64)>,
    /// Accepts that a peer which is up had more than its cursor, when last asked.
    behind: BTreeMap<NodeId, u64>,
    rounds: BTreeMap<NodeId, Rounds<Result<Option<Heard>>>>,
}

/// A peer of which this replica holds everything that it held when asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) sealed: Epoch,
    pub(super) counts: bool,
    settled: bool,
    in_doubt: bool,
    /// Rows had to be pulled for that.
    pub(super) pulled: bool,
}

impl Actor for Replicator {
    type Msg = ReplicatorMessage;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let Arguments { context, handle, replica, partition, feed } = arguments;
        let _ = myself.cast(ReplicatorMessage::Turn);
        let kept = feed.peers().cursors.clone();
        Ok(State { context, handle, replica, partition, kept, feed, kept_at: Duration::ZERO })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ReplicatorMessage::Partition(partition) => state.partition = partition,
            ReplicatorMessage::Now => state.turn().await,
            ReplicatorMessage::Turn => {
                state.turn().await;
                let pause = if state.is_awaited() { TURN_EAGER } else { TURN };
                later(&state.context.env, "replicator turn", &myself, pause, ReplicatorMessage::Turn);
            }
        }
        Ok(())
    }
}

impl State {
    async fn turn(&mut self) {
        match self.partition.replica(self.context.node).map(|replica| replica.state) {
            Some(Role::Leaving) => {
                if let Err(error) = self.hand_over().await {
                    tracing::debug!(partition = %self.partition.id, %error, "the rows are not handed over yet");
                }
            }
            _ => self.round().await,
        }
    }

    /// Whether something waits for this replica to be quick.
    fn is_awaited(&self) -> bool {
        !self.handle.serves() || !self.partition.settled
    }

    /// Says so once a majority of the voters holds what this replica held when it had sealed its last epoch.
    async fn hand_over(&mut self) -> Result<()> {
        let epoch = self.partition.epoch;
        let early = self.context.config.has(Planted::LeavesEarly);
        if self.handle.report().await?.sealed < epoch && !early {
            return Ok(());
        }
        // From here on it takes nothing more.
        let store = self.handle.store()?;
        let (own, left_at) = (store.position(), moment(self.context.node, self.partition.id, &store));
        let voters: Vec<NodeId> = self.partition.voters().collect();
        let mut holding = 0;
        for voter in voters.iter().copied().filter(|voter| !self.context.liveness.is_down(*voter)) {
            let asked = ReplicaCall::Cursor { partition: self.partition.id, of: self.context.node };
            match self.feed.call(voter, &asked).await {
                Ok(ReplicaAnswer::Cursor(cursor)) => {
                    let there = cursor.log_id == own.0 && cursor.position >= own.1;
                    holding += usize::from(there || early);
                }
                Ok(_) => return Err(serve::unexpected()),
                Err(error) => {
                    tracing::debug!(partition = %self.partition.id, %voter, %error, "a voter does not say what it holds")
                }
            }
        }
        if holding >= quorum(voters.len()) {
            self.context.env.reached(Rare::HandedOver);
            if let Some(observer) = &self.context.config.observer {
                observer.handed_over(left_at, &voters);
            }
            let _ = self.replica.cast(ReplicaMessage::Event(Event::Drained(epoch)));
        }
        Ok(())
    }

    async fn round(&mut self) {
        let node = self.context.node;
        let mut peers: Vec<NodeId> = self.partition.replicas.iter().map(|replica| replica.node).collect();
        // A member of the set before may hold what the present members still lack; later it may have gone, and not know of what was
        // deleted since and is forgotten.
        if !self.partition.settled {
            peers.extend(self.partition.previous_voters.iter().copied());
        }
        peers.sort_unstable();
        peers.dedup();
        let catalog = self.context.agreement.catalog().borrow().clone();
        peers.retain(|peer| *peer != node && catalog.nodes.contains_key(peer));
        self.feed.peers().behind.retain(|peer, _| peers.contains(peer));
        for peer in peers {
            if self.context.liveness.is_down(peer) {
                // What it alone may hold is nothing that this replica could be behind by.
                self.feed.peers().behind.remove(&peer);
                continue;
            }
            if !self.is_awaited() && self.feed.is_level_with(peer).await {
                continue;
            }
            // One that is far behind has not got there: the other peers get their turn, and the rest comes with the next.
            match self.feed.round(peer).await {
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(partition = %self.partition.id, %peer, %error, "a peer could not be caught up with");
                    self.context.env.trace(|| format!("{} cannot catch up with {peer}: {error}", self.partition.id));
                }
            }
        }
        self.feed.tell_lag();
        let cursors = self.feed.cursors();
        let _ = self.replica.cast(ReplicaMessage::Event(Event::RoundDone));
        let now = self.context.env.monotonic();
        let due = self.partition.has_leaving() || now.saturating_sub(self.kept_at) >= CURSORS_KEPT_EVERY;
        if self.kept != cursors && due {
            self.kept = cursors.clone();
            self.kept_at = now;
            let _ = self.replica.cast(ReplicaMessage::Cursors(cursors));
        }
    }
}

impl Feed {
    pub(super) fn new(
        context: Arc<NodeContext>,
        handle: Arc<ReplicaHandle>,
        replica: ActorRef<ReplicaMessage>,
        cursors: BTreeMap<NodeId, PullCursor>,
    ) -> Self {
        let partition = handle.partition;
        let peers = Arc::new(Mutex::new(Peers { cursors, ..Peers::default() }));
        Self { context, handle, replica, partition, peers }
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings this replica nearer to what the peer holds from now on, and tells the replica once it is there. At most one such
    /// round with a peer is under way, and serves all who asked before it began.
    ///
    /// # Errors
    /// The peer does not answer, or what it answers cannot be kept here.
    pub(super) async fn round(&self, peer: NodeId) -> Result<Option<Heard>> {
        let rounds = self.peers().rounds.entry(peer).or_default().clone();
        let feed = self.clone();
        let asked = rounds.ask(&self.context.env, "catch up", move || {
            let feed = feed.clone();
            async move {
                let asked_at = feed.epoch();
                let heard = feed.catch_up_with(peer).await?;
                if let Some(heard) = heard {
                    // Who had nothing of its own left in an epoch before may have been filled since, and have acknowledged more.
                    let is_stale = heard.sealed == Epoch(0) && feed.epoch() != asked_at;
                    feed.tell(peer, Heard { in_doubt: heard.in_doubt && !is_stale, ..heard });
                }
                Ok(heard)
            }
        });
        let stopped = || Error::new(ErrorCode::NotReady, "the node is stopping");
        asked.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// The partition's epoch, as far as this node knows; its replica hears of it after this.
    fn epoch(&self) -> Option<Epoch> {
        self.context.agreement.catalog().borrow().partitions.get(&self.partition).map(|partition| partition.epoch)
    }

    fn tell(&self, peer: NodeId, heard: Heard) {
        let Heard { sealed, counts, settled, in_doubt, .. } = heard;
        let event = Event::Heard { peer, sealed, counts, settled, in_doubt };
        let _ = self.replica.cast(ReplicaMessage::Event(event));
    }

    /// Whether this replica holds everything that the peer held a moment ago; if so, the replica is told. Costs the peer one question for all
    /// replicas of this node.
    async fn is_level_with(&self, peer: NodeId) -> bool {
        let Some(head) = heads::head(&self.context, peer, self.partition).await else { return false };
        let Head { log_id, position, sealed, counts, settled, in_doubt } = head;
        {
            let mut peers = self.peers();
            let cursor = peers.cursors.get(&peer);
            if cursor.is_none_or(|cursor| (cursor.log_id, cursor.position) != (log_id, position)) {
                return false;
            }
            peers.behind.insert(peer, 0);
            peers.complete.insert(peer, (log_id, position));
        }
        // It may have been asked for somebody else, a moment ago; only a round of this replica's own hears that nothing is left there.
        let in_doubt = in_doubt && sealed > Epoch(0);
        self.tell(peer, Heard { sealed, counts, settled, in_doubt, pulled: false });
        true
    }

    /// Brings this replica nearer to what the peer held when first asked; says so once it is there.
    async fn catch_up_with(&self, peer: NodeId) -> Result<Option<Heard>> {
        let known = self.peers().cursors.get(&peer).cloned().unwrap_or_default();
        let recent = ReplicaCall::Recent { partition: self.partition, log_id: known.log_id, after: known.position };
        let answer = self.call(peer, &recent).await?;
        let ReplicaAnswer::Recent(answer) = answer else {
            return Err(serve::unexpected());
        };
        let answer = match answer.log_id != known.log_id && answer.after == 0 && answer.position > 0 {
            true => self.ask_by_lineage(peer).await.unwrap_or(answer),
            false => answer,
        };
        let RecentAnswer { log_id, after, position, sealed, counts, settled, in_doubt, accepts } = answer;
        if self.context.config.has(Planted::NoCatchUp) {
            self.peers().behind.insert(peer, 0);
            return Ok(Some(Heard { sealed, counts, settled, in_doubt, pulled: false }));
        }
        if log_id != known.log_id && known.position > 0 {
            self.context.env.reached(Rare::LogBegunAnew);
            if after > 0 {
                self.context.env.reached(Rare::CursorMoved);
            }
        }
        let there = || PullCursor { log_id, position: after, ..PullCursor::default() };
        let mut cursor = if log_id == known.log_id { known } else { there() };
        if let Some(accepts) = accepts {
            let from = cursor.position;
            let covered = self.handle.ask(|answer| ReplicaMessage::Covers { from, accepts, answer }).await?;
            if covered > cursor.position {
                cursor = PullCursor { log_id, position: covered, ..PullCursor::default() };
            }
        }
        {
            let mut peers = self.peers();
            peers.behind.insert(peer, position.saturating_sub(cursor.position));
            if cursor.position >= position {
                peers.complete.insert(peer, (log_id, cursor.position));
            }
        }
        let (mut pulls, began) = (0, self.context.env.monotonic());
        while cursor.position < position {
            // Others want their turn, and whoever waits for this replica may go elsewhere.
            let long = pulls > PULLS_UNPACED && self.context.env.monotonic().saturating_sub(began) > TURN;
            if pulls == PULLS_PER_TURN || long {
                return Ok(None);
            }
            pulls += 1;
            // One that serves and is a little behind is to be there at once; one that is far behind, as after a day away, takes no more of the
            // node and its peers than one that begins anew.
            let paced = self.handle.fills() || (self.handle.serves() && pulls > PULLS_UNPACED);
            cursor = match paced {
                true => self.fill(peer, cursor).await?,
                false => self.pull(peer, cursor, u64::MAX).await?.0,
            };
            let mut peers = self.peers();
            peers.cursors.insert(peer, cursor.clone());
            peers.behind.insert(peer, position.saturating_sub(cursor.position));
            drop(peers);
            // The rest may take long.
            self.tell_lag();
        }
        self.peers().cursors.insert(peer, cursor);
        Ok(Some(Heard { sealed, counts, settled, in_doubt, pulled: pulls > 0 }))
    }

    /// Asks a peer of whose log nothing is known by a place in one that its log has gone on from: one of which this replica holds
    /// something, or its own. A peer that was filled by files has what it got from there.
    async fn ask_by_lineage(&self, peer: NodeId) -> Option<RecentAnswer> {
        let partition = self.partition;
        let lineage = self.call(peer, &ReplicaCall::Lineage { partition }).await;
        // A peer of an earlier build does not know; then it hands out everything.
        let Ok(ReplicaAnswer::Lineage(past)) = lineage else { return None };
        let (own_log, own_position) = self.handle.store().ok()?.position();
        let mut places: BTreeMap<LogId, u64> = self.peers().complete.values().copied().collect();
        places.insert(own_log, own_position);
        // The last one is nearest.
        let (log_id, after) = past.iter().rev().find_map(|log_id| Some((*log_id, *places.get(log_id)?)))?;
        match self.call(peer, &ReplicaCall::Recent { partition, log_id, after }).await {
            Ok(ReplicaAnswer::Recent(answer)) => {
                if answer.after > 0 {
                    self.context.env.reached(Rare::PeerKnownByLineage);
                }
                Some(answer)
            }
            _ => None,
        }
    }

    /// Says how many accepts of its peers this replica lacks.
    fn tell_lag(&self) {
        let lag = self.peers().behind.values().sum();
        self.handle.set_lag(lag);
    }

    /// How far each peer's log has been pulled: everything up to there is in the store.
    pub(super) fn cursors(&self) -> BTreeMap<NodeId, PullCursor> {
        self.peers().cursors.clone()
    }

    /// Pulls at the pace of a node's replicas that are being filled.
    async fn fill(&self, peer: NodeId, cursor: PullCursor) -> Result<PullCursor> {
        let pace = &self.context.filling;
        let place = pace.place().await;
        let (cursor, bytes) = self.pull(peer, cursor, pace.step_bytes()).await?;
        drop(place);
        let waited = pace.pay(bytes).await;
        if !waited.is_zero() {
            metrics::histogram!("shoal_fill_throttled_seconds").record(waited.as_secs_f64());
        }
        Ok(cursor)
    }

    /// Gives the cursor behind what was pulled, and its bytes.
    async fn pull(&self, peer: NodeId, cursor: PullCursor, bytes_max: u64) -> Result<(PullCursor, u64)> {
        let _under_way = self.handle.pulls.read().await;
        // Who has gone may not know of what was deleted since and is forgotten here; it was listed when it had not.
        let catalog = self.context.agreement.catalog().borrow().clone();
        let is_peer = catalog.partitions.get(&self.partition).is_some_and(|partition| {
            partition.replica(peer).is_some() || (!partition.settled && partition.previous_voters.contains(&peer))
        });
        if !is_peer {
            return Err(Error::new(ErrorCode::Moved, format!("{peer} has no replica of {} any more", self.partition)));
        }
        let bytes_max = bytes_max.min(pull_bytes_max(&self.context));
        let call = ReplicaCall::Pull { partition: self.partition, cursor: cursor.clone(), bytes_max };
        let ReplicaAnswer::Pulled(PulledAnswer { batches, tokens, next, .. }) = self.call(peer, &call).await? else {
            return Err(serve::unexpected());
        };
        let (mut tokens, last) = (Some(tokens), batches.len().saturating_sub(1));
        for (number, bytes) in batches.iter().enumerate() {
            // A token vouches for its rows, so it comes with the last of them.
            let tokens = if number == last { tokens.take() } else { None };
            let mut rows = batch::decode(bytes)?;
            if self.context.config.has(Planted::TombstonesNotPulled) {
                rows = without_tombstones(&rows)?;
            }
            let accepted = self.accept(rows, tokens.unwrap_or_default(), bytes.len() as u64).await;
            if !self.context.config.has(Planted::CursorBeforeRows) {
                accepted?;
            }
        }
        let bytes = batches.iter().map(|bytes| bytes.len() as u64).sum();
        metrics::counter!("shoal_catch_up_bytes_total").increment(bytes);
        if next == cursor {
            return Err(Error::internal(format!("{peer} sent nothing that moves the cursor")));
        }
        Ok((next, bytes))
    }

    async fn accept(&self, rows: RecordBatch, tokens: Vec<shoal_storage::TokenRecord>, bytes: u64) -> Result<()> {
        let mut writes = versions(&rows)?;
        if !writes.is_empty() {
            self.context.env.reached(Rare::RowsPulled);
        }
        if !tokens.is_empty() {
            self.context.env.reached(Rare::TokenElsewhere);
        }
        let newest = writes.last().copied().unwrap_or(Version::new(Hlc::default(), NodeId(0), 0));
        // What brought no rows has to be told to the next peer, too.
        writes.extend(tokens.iter().map(shoal_storage::TokenRecord::accepted_as));
        let write = Write { version: newest, token: None, rows: Rows::Replicated(rows, tokens) };
        self.handle.pulled(bytes, write, writes).await.map(drop)
    }

    async fn call(&self, peer: NodeId, call: &ReplicaCall) -> Result<ReplicaAnswer> {
        serve::call(&self.context, peer, call, CALL_TIMEOUT).await
    }
}

/// What [`Planted::TombstonesNotPulled`] leaves of pulled rows.
fn without_tombstones(rows: &RecordBatch) -> Result<RecordBatch> {
    let missing = || Error::new(ErrorCode::Corruption, "pulled rows do not say which are tombstones");
    let tombstones = rows.column_by_name(TOMBSTONE_COLUMN).and_then(|column| column.as_boolean_opt());
    let live = arrow::compute::not(tombstones.ok_or_else(missing)?);
    live.and_then(|live| filter_record_batch(rows, &live)).map_err(|error| Error::internal(error.to_string()))
}

/// The writes that pulled rows belong to, ascending.
pub(super) fn versions(rows: &RecordBatch) -> Result<Vec<Version>> {
    let column = rows
        .column_by_name(VERSION_COLUMN)
        .and_then(|column| column.as_any().downcast_ref::<FixedSizeBinaryArray>())
        .ok_or_else(|| Error::new(ErrorCode::Corruption, "pulled rows have no versions"))?;
    let mut versions = Vec::new();
    for row in 0..column.len() {
        let bytes: [u8; 16] = column
            .value(row)
            .try_into()
            .map_err(|_| Error::new(ErrorCode::Corruption, "pulled rows have versions of a wrong width"))?;
        let version = Version(u128::from_be_bytes(bytes)).with_ordinal(0);
        if versions.last() != Some(&version) {
            versions.push(version);
        }
    }
    versions.sort_unstable();
    versions.dedup();
    Ok(versions)
}
