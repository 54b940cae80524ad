//! One piece on its way to the replicas of its partition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, try_join_all};
use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt};
use shoal_catalog::{Partition, Table};
use shoal_kernel::level::quorum;
use shoal_kernel::{
    Applied, Epoch, Error, ErrorCode, NodeId, PartitionId, Planted, Rare, Result, Version, WriteLevel, wire,
};
use shoal_storage::fingerprint_of;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::reserve::{Home, conflict};
use super::route::{self, Part, Piece};
use super::{HeldToken, dropped, expired, not_enough};
use crate::batch;
use crate::node::context::NodeContext;
use crate::replica::message::{PartOfWrite, ReplicaAnswer, ReplicaCall, WriteCall, Written};
use crate::replica::serve;
use crate::room::Room;

/// How long one replica may take for one answer.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pieces asked about at once.
const LOOKUPS_AT_ONCE: usize = 8;
/// How long replicas that are there and not ready are asked again whether they know a token: to open takes moments, to be filled much longer.
const LOOKUP_WAIT_MAX: Duration = Duration::from_secs(3);
/// How long to wait before a replica that could not answer, or does not count yet, is asked again; doubled up to the longest.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Answers that may wait to be read; each node has at most one call under way per epoch.
const ANSWERS_MAX: usize = 32;

/// How a piece was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) version: Version,
    pub(super) duplicate: bool,
}

/// What holds for all pieces of a request.
#[derive(Clone)]
pub(super) struct Delivery {
    pub(super) context: Arc<NodeContext>,
    pub(super) table: Arc<Table>,
    pub(super) level: WriteLevel,
    /// The pieces hold keys, whose rows are deleted.
    pub(super) deletes: bool,
    /// The deadline, on the monotonic clock.
    pub(super) until: Duration,
    /// The claim on the client's token, which lasts as long as anything is under way.
    pub(super) held: Option<Arc<HeldToken>>,
    /// No other attempt at the token gives its rows another version. If not, a single replica may know better, but not several.
    pub(super) agreed: bool,
}

/// Rows for one partition as they are sent.
#[derive(Clone)]
pub(super) struct Parcel {
    pub(super) part: Part,
    pub(super) token: Option<String>,
    pub(super) version: Version,
    /// Of the whole piece, where it is known by that.
    pub(super) fingerprint: Option<u128>,
}

/// A parcel under way.
struct Sending {
    delivery: Delivery,
    call: WriteCall,
    room: Arc<OwnedSemaphorePermit>,
    /// `call` as it is sent, for the epoch that it names.
    message: Bytes,
    answer: mpsc::Sender<(Epoch, NodeId, Result<Written>)>,
    pending: BTreeSet<(Epoch, NodeId)>,
    acknowledged: BTreeMap<NodeId, Outcome>,
    /// Replicas that may yet take it, if asked again.
    later: BTreeSet<NodeId>,
    /// Replicas that will not take it in this epoch.
    refused: BTreeMap<NodeId, ErrorCode>,
    /// Some replica has the rows, or may.
    touched: bool,
    last: Option<Error>,
}

impl Delivery {
    /// Delivers a parcel; if its partition is split meanwhile, to the parts of that.
    pub(super) fn run(self, parcel: Parcel, room: Room) -> BoxFuture<'static, Result<Outcome>> {
        Box::pin(async move {
            if let Some(outcome) = self.clone().send(&parcel, &room).await? {
                return Ok(outcome);
            }
            // Some replica may have taken it before.
            let in_doubt = |error: Error| error.with_applied(Applied::Unknown);
            let catalog = self.context.agreement.catalog().borrow().clone();
            let mut parts = route::recut(&catalog, &self.table, &parcel.part).map_err(in_doubt)?;
            if parts.len() > 1 {
                self.context.env.reached(Rare::WriteMetSplit);
                if self.context.config.has(Planted::SplitHalfSent) {
                    parts.truncate(1);
                }
            }
            let fingerprint = match parcel.fingerprint {
                // So far it was a whole piece.
                None if parcel.token.is_some() => Some(fingerprint_of(&self.table.schema, &parcel.part.rows)?),
                known => known,
            };
            let deliver = |part: Part| self.clone().run(Parcel { part, fingerprint, ..parcel.clone() }, room.clone());
            let outcomes = try_join_all(parts.into_iter().map(deliver)).await.map_err(in_doubt)?;
            let version = outcomes.iter().map(|outcome| outcome.version).min();
            let duplicate = outcomes.iter().all(|outcome| outcome.duplicate);
            version
                .map(|version| Outcome { version, duplicate })
                .ok_or_else(|| Error::internal("a parcel without rows"))
        })
    }

    /// Delivers a parcel to the replicas of its partition; `None` if that has been split.
    async fn send(self, parcel: &Parcel, room: &Room) -> Result<Option<Outcome>> {
        let Parcel { part, token, version, fingerprint } = parcel;
        let rows = batch::encode(&part.rows)?;
        let taken = room.take(rows.len() as u64).ok_or_else(|| {
            Error::new(ErrorCode::Overloaded, "this node has too many rows under way (inflight_bytes_max)")
                .with_retry_after_ms(200)
        })?;
        let (answer, mut answers) = mpsc::channel(ANSWERS_MAX);
        let of_whole = |ordinals: Vec<u32>| PartOfWrite { ordinals, fingerprint: fingerprint.unwrap_or_default() };
        let mut sending = Sending {
            call: WriteCall {
                partition: part.partition,
                epoch: Epoch::default(),
                version: *version,
                token: token.clone(),
                deletes: self.deletes,
                part: part.ordinals.clone().map(of_whole),
                rows,
            },
            delivery: self,
            // Shared by the sends that go on after the answer; given back when the last of them ends.
            room: Arc::new(taken),
            message: Bytes::new(),
            answer,
            pending: BTreeSet::new(),
            acknowledged: BTreeMap::new(),
            later: BTreeSet::new(),
            refused: BTreeMap::new(),
            // An earlier request with this token may have reached a replica that has not said so, or may be on its way.
            touched: token.is_some(),
            last: None,
        };
        sending.run(&mut answers).await.map_err(|error| {
            // What has not answered may still take the rows.
            let touched = (sending.touched || !sending.pending.is_empty())
                && !sending.delivery.context.config.has(Planted::NotAppliedLies);
            error.with_applied(if touched { Applied::Unknown } else { Applied::False })
        })
    }

    pub(super) fn left(&self) -> Duration {
        self.until.saturating_sub(self.context.env.monotonic())
    }

    /// The partition as this node knows it now; `None` if it has been split.
    pub(super) fn partition(&self, id: PartitionId) -> Result<Option<Partition>> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        match catalog.partitions.get(&id) {
            Some(partition) => Ok(Some(partition.clone())),
            None if catalog.ancestors.contains_key(&id) => Ok(None),
            None if catalog.tables.contains_key(&self.table.id) => Err(expired()),
            None => Err(dropped(&self.table)),
        }
    }

    /// Whether all attempts at a key have to agree on the version of its rows: under two versions the newer ones would hide what
    /// others have written in between. A single replica sees to that by itself.
    pub(super) fn must_agree(&self, pieces: &[Piece]) -> Result<bool> {
        let mut replicated = false;
        for part in pieces.iter().flat_map(|piece| &piece.parts) {
            let partition = self.partition(part.partition)?;
            replicated |= partition.is_none_or(|partition| partition.voters().count() > 1);
        }
        Ok(replicated)
    }

    /// The versions that the parcels' tokens have already, in the order of the parcels.
    pub(super) async fn known(&self, parcels: &[Parcel]) -> Result<Vec<Option<Version>>> {
        // Collected first: a stream over a borrowing closure is not Send for every lifetime, and the doors spawn this.
        let lookups: Vec<_> = parcels.iter().map(|parcel| self.known_parcel(parcel)).collect();
        futures::stream::iter(lookups).buffered(LOOKUPS_AT_ONCE).try_collect().await
    }

    /// The version that a token already has, if any replica knows it. Asks a majority, so that a write acknowledged at quorum
    /// cannot be missed, and asks again while some of it are about to be ready; sends no rows.
    async fn known_parcel(&self, parcel: &Parcel) -> Result<Option<Version>> {
        let (Some(token), Some(fingerprint)) = (parcel.token.clone(), parcel.fingerprint) else { return Ok(None) };
        let (begun, mut pause) = (self.context.env.monotonic(), RETRY_PAUSE_MIN);
        loop {
            let partition = match self.partition(parcel.part.partition)? {
                Some(partition) => partition,
                // What its replicas knew, those of any part of it know.
                None => self.now_at(&Home::Key(route::least_key(&self.table, &parcel.part.rows)?))?,
            };
            match self.look_up(&partition, token.clone(), fingerprint).await? {
                Lookup::Known(version) => return Ok(version),
                Lookup::TooFew { soon: true, .. }
                    if self.left() > pause && self.context.env.monotonic().saturating_sub(begun) < LOOKUP_WAIT_MAX => {}
                Lookup::TooFew { error, .. } => return Err(error),
            }
            self.context.env.reached(Rare::AskedAgain);
            self.context.env.sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    async fn look_up(&self, partition: &Partition, token: String, fingerprint: u128) -> Result<Lookup> {
        let voters: Vec<NodeId> = partition.voters().collect();
        let call = ReplicaCall::Token { partition: partition.id, token };
        let call: Bytes = wire::encode(&call)?.into();
        let timeout = CALL_TIMEOUT.min(self.left());
        let ask = |voter: NodeId| serve::call_encoded(&self.context, voter, call.clone(), timeout);
        let mut asked: FuturesUnordered<_> = voters.iter().map(|voter| ask(*voter)).collect();
        // A majority: what was acknowledged at quorum is then known, and what an unfinished attempt left on one replica of two.
        let needed = quorum(voters.len());
        let (mut answered, mut opening, mut lowest, mut last) = (0, 0, None::<Version>, None::<Error>);
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(ReplicaAnswer::Token { record, counts }) => {
                    if counts {
                        answered += 1
                    } else {
                        opening += 1
                    }
                    if let Some(record) = record {
                        if self.is_other(record.fingerprint, fingerprint) {
                            return Err(conflict());
                        }
                        lowest = Some(lowest.map_or(record.version, |lowest| lowest.min(record.version)));
                    }
                }
                Ok(_) => last = Some(serve::unexpected()),
                Err(error) => {
                    let is_opening = matches!(error.code(), ErrorCode::PartitionUnavailable | ErrorCode::NotReady);
                    opening += usize::from(is_opening);
                    last = Some(error);
                }
            }
            if answered >= needed {
                break;
            }
        }
        if answered >= needed || lowest.is_some() {
            return Ok(Lookup::Known(lowest));
        }
        let why = last.map(|error| format!("; last answer: {error}")).unwrap_or_default();
        let of = voters.len();
        let message =
            format!("{answered} of {of} replicas can say whether this idempotency key was used, {needed} must{why}");
        // An earlier request with this key may have had an effect; this one had none.
        let error = Error::new(ErrorCode::NotEnoughReplicas, message).with_applied(Applied::Unknown);
        Ok(Lookup::TooFew { error, soon: answered + opening >= needed })
    }
}

/// What replicas know of a token.
enum Lookup {
    /// Enough of them have answered.
    Known(Option<Version>),
    /// Enough may answer `soon`, when those that are there are ready.
    TooFew { error: Error, soon: bool },
}

impl Sending {
    /// Sends to every replica and counts acknowledgements of one epoch, asking again those that were not ready, until the
    /// level is reached or cannot be; `None` if the partition has been split.
    async fn run(&mut self, answers: &mut mpsc::Receiver<(Epoch, NodeId, Result<Written>)>) -> Result<Option<Outcome>> {
        let env = self.delivery.context.env.clone();
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let Some(partition) = self.delivery.partition(self.call.partition)? else { return Ok(None) };
            if partition.epoch != self.call.epoch {
                if self.call.epoch != Epoch::default() {
                    env.reached(Rare::NewerEpoch);
                }
                self.enter(&partition)?;
            }
            self.send(&partition);
            if let Some(outcome) = self.verdict(&partition)? {
                self.tell_rare(&partition);
                return Ok(Some(outcome));
            }
            let left = self.delivery.left();
            if left.is_zero() {
                return Err(self.short(&partition));
            }
            let wait = if self.later.is_empty() { left } else { pause.min(left) };
            match env.timeout(wait, answers.recv()).await {
                Ok(Some((epoch, node, answer))) => self.heard(&partition, epoch, node, answer)?,
                Ok(None) => return Err(Error::internal("the channel of a write's answers was closed")),
                Err(_) => {
                    if !self.later.is_empty() {
                        env.reached(Rare::AskedAgain);
                    }
                    self.later.clear();
                    pause = (pause * 2).min(RETRY_PAUSE_MAX);
                }
            }
        }
    }

    fn tell_rare(&self, partition: &Partition) {
        let context = &self.delivery.context;
        let (voters, acknowledged) = (partition.voters().count(), self.acknowledged.len());
        if voters > 1 && acknowledged == quorum(voters) && self.delivery.level == WriteLevel::Quorum {
            context.env.reached(Rare::ExactlyQuorum);
        }
        if voters > 1 && acknowledged == 1 {
            context.env.reached(Rare::OneOfMany);
        }
        if context.agreement.leader().is_none() {
            context.env.reached(Rare::WrittenWithoutCatalog);
        }
    }

    /// Acknowledgements count only within one epoch.
    fn enter(&mut self, partition: &Partition) -> Result<()> {
        if !self.delivery.agreed && partition.voters().count() > 1 {
            let message = "the rows have got more replicas meanwhile; send the same request again";
            return Err(Error::new(ErrorCode::Moved, message));
        }
        self.call.epoch = partition.epoch;
        self.message = wire::encode(&ReplicaCall::Write(self.call.clone()))?.into();
        self.acknowledged.clear();
        self.later.clear();
        self.refused.clear();
        Ok(())
    }

    /// Every replica that has not been asked is sent the rows by a task of its own, which goes on when the level is reached
    /// before it.
    fn send(&mut self, partition: &Partition) {
        for node in partition.takers() {
            let settled = self.acknowledged.contains_key(&node) || self.refused.contains_key(&node);
            if settled || self.later.contains(&node) || !self.pending.insert((partition.epoch, node)) {
                continue;
            }
            let (context, message, room) = (self.delivery.context.clone(), self.message.clone(), self.room.clone());
            let (answer, held, epoch) = (self.answer.clone(), self.delivery.held.clone(), partition.epoch);
            let timeout = CALL_TIMEOUT.min(self.delivery.left());
            self.delivery.context.env.spawn("replica write", async move {
                let written = match serve::call_encoded(&context, node, message, timeout).await {
                    Ok(ReplicaAnswer::Written(written)) => Ok(written),
                    Ok(_) => Err(serve::unexpected()),
                    Err(error) => Err(error),
                };
                drop((room, held));
                let _ = answer.send((epoch, node, written)).await;
            });
        }
    }

    fn heard(&mut self, partition: &Partition, epoch: Epoch, node: NodeId, answer: Result<Written>) -> Result<()> {
        self.pending.remove(&(epoch, node));
        self.touched |= !matches!(&answer, Err(error) if error.applied() == Applied::False);
        let (id, version) = (self.call.partition, self.call.version);
        self.delivery.context.env.trace(|| match &answer {
            Ok(Written { version, counts, .. }) => format!("{id}: {node} has {version}; it counts: {counts}"),
            Err(error) => format!("{id}: {node} does not say that it has {version}: {error}"),
        });
        let current = epoch == partition.epoch;
        let voting = partition.voters().any(|voter| voter == node);
        match answer {
            Ok(written) if current && (written.counts || !voting) => {
                let outcome = Outcome { version: written.version, duplicate: written.duplicate };
                self.acknowledged.insert(node, outcome);
            }
            // It has the rows and does not count yet, or counted in another epoch.
            Ok(_) => {
                self.later.insert(node);
            }
            Err(error) if error.code() == ErrorCode::TokenConflict => return Err(error),
            Err(error) => {
                if is_passing(error.code()) {
                    self.later.insert(node);
                } else if current {
                    self.refused.insert(node, error.code());
                }
                self.last = Some(error);
            }
        }
        Ok(())
    }

    /// The outcome once the level is reached; an error once it cannot be; nothing while it may be.
    fn verdict(&self, partition: &Partition) -> Result<Option<Outcome>> {
        let voters: Vec<NodeId> = partition.voters().collect();
        let needed = self.needed(voters.len());
        let acknowledged: Vec<&Outcome> = voters.iter().filter_map(|voter| self.acknowledged.get(voter)).collect();
        if acknowledged.len() >= needed {
            // Two that are at it at once both reach a majority, and meet in some replica: one of them was not the first there.
            let duplicate = acknowledged.iter().any(|outcome| outcome.duplicate);
            return match acknowledged.iter().map(|outcome| outcome.version).min() {
                Some(version) => Ok(Some(Outcome { version, duplicate })),
                None => Err(Error::internal("a level that needs no replica")),
            };
        }
        let liveness = &self.delivery.context.liveness;
        let hopeful = |voter: &&NodeId| {
            !self.acknowledged.contains_key(*voter)
                && !self.refused.contains_key(*voter)
                && (!self.later.contains(*voter) || !liveness.is_down(**voter))
        };
        if acknowledged.len() + voters.iter().filter(hopeful).count() < needed {
            return Err(self.short(partition));
        }
        Ok(None)
    }

    fn needed(&self, voters: usize) -> usize {
        let needed = self.delivery.level.needed(voters);
        if self.delivery.context.config.has(Planted::AcknowledgeEarly) { needed.min(1) } else { needed }
    }

    fn short(&self, partition: &Partition) -> Error {
        let voters: Vec<NodeId> = partition.voters().collect();
        let acknowledged = voters.iter().filter(|voter| self.acknowledged.contains_key(voter)).count();
        match &self.last {
            // With one replica its own words say it best.
            Some(error) if voters.len() == 1 && self.refused.len() == 1 => error.clone(),
            last => {
                let needed = self.needed(voters.len());
                let refused = |code| self.refused.values().filter(|refused| **refused == code).count();
                let can_reach = |code| voters.len() - refused(code).min(voters.len()) >= needed;
                if let Some(error) = last.as_ref().filter(|error| error.code() == ErrorCode::RowsExpired)
                    && !can_reach(ErrorCode::RowsExpired)
                {
                    return error.clone();
                }
                // Full disks are something that the client can do something about, if they are what it failed on.
                let code =
                    if can_reach(ErrorCode::DiskFull) { ErrorCode::NotEnoughReplicas } else { ErrorCode::DiskFull };
                not_enough(code, acknowledged, needed, voters.len(), self.delivery.level, last.as_ref())
            }
        }
    }
}

/// Whether asking the same replica again soon can help. Overload and a full disk do not pass at once.
pub(super) fn is_passing(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Moved
            | ErrorCode::PartitionUnavailable
            | ErrorCode::NodeLost
            | ErrorCode::NotReady
            | ErrorCode::Timeout
            | ErrorCode::Internal
    )
}
