//! Anti-entropy: compares what this replica holds with what its peers hold, and pulls what no log has told it of.
//!
//! Catch-up follows the peers' logs. What has come to differ in another way, by a bug or a disk that forgets, is found by digests:
//! every replica compares itself with one peer after another, and pulls the rows of the buckets that differ. Its peers do the same,
//! so each pair is repaired both ways. Rows that come so are news, and enter the log.
//!
//! The [`Repairer`] is owned by the replica actor. It keeps nothing but whose turn it is. **Budget**: none of its own; a comparison that
//! fails is followed by the next, and if it panics the replica ends with it and is opened anew at that one's expense.

pub(crate) mod comparison;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde_bytes::ByteBuf;
use shoal_catalog::ReplicaState as Role;
use shoal_kernel::{Error, ErrorCode, Hlc, NodeId, PartitionId, Rare, Result, Version};
use shoal_storage::{DigestMoment, Rows, Write};

use self::comparison::Comparison;
use super::handle::ReplicaHandle;
use super::message::{BucketsAnswer, DigestAnswer, Repaired, ReplicaAnswer, ReplicaCall};
use super::replicator::{pull_bytes_max, versions};
use super::serve;
use crate::batch;
use crate::later::later;
use crate::node::context::NodeContext;

/// How long a peer may take for one answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at a difference: longer than replicas take to pull what was on its way.
const LOOK_PAUSE: Duration = Duration::from_secs(3);
/// Looks at one peer.
const LOOKS_MAX: u32 = 6;
/// Comparisons of a joining replica with one voter, until nothing is found any more.
const COMPARISONS_MAX: u32 = 3;
/// Replicas of a node that pull rows in the background at once.
pub(crate) const PULLING_MAX: usize = 1;
/// After each of their answers: no more than 16 MiB a second.
const PULL_PAUSE: Duration = Duration::from_millis(250);

/// How thorough a repair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// What certainly differs, slowly.
    Background,
    /// Everything that may differ, at once: somebody waits.
    Asked,
}

/// The actor that compares this replica with its peers by and by.
pub(super) struct Repairer;

pub(super) struct Arguments {
    pub(super) context: Arc<NodeContext>,
    pub(super) handle: Arc<ReplicaHandle>,
}

/// It is time to compare with the next peer.
pub(super) struct Turn;

pub(super) struct State {
    context: Arc<NodeContext>,
    handle: Arc<ReplicaHandle>,
    /// The peer that was compared with last.
    last: Option<NodeId>,
}

impl Actor for Repairer {
    type Msg = Turn;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let Arguments { context, handle } = arguments;
        let state = State { context, handle, last: None };
        state.come_again(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        _turn: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.turn().await;
        state.come_again(&myself);
        Ok(())
    }
}

impl State {
    /// Each peer has its turn once in `repair_every_ms`, give or take a half, so that replicas do not go in step.
    fn come_again(&self, myself: &ActorRef<Turn>) {
        let every = self.context.config.repair_every_ms;
        if every == 0 {
            return;
        }
        let peers = peers(&self.context, self.handle.partition).map_or(1, |peers| peers.len().max(1)) as u64;
        let pause = (every / peers).max(2);
        let jitter = self.context.env.random("repair jitter") % pause;
        later(&self.context.env, "repair turn", myself, Duration::from_millis(pause / 2 + jitter), Turn);
    }

    async fn turn(&mut self) {
        let Ok(_alone) = self.handle.repairing.try_acquire() else { return };
        let partition = self.handle.partition;
        let Ok(peers) = peers(&self.context, partition) else { return };
        let up: Vec<NodeId> = peers.into_iter().filter(|peer| !self.context.liveness.is_down(*peer)).collect();
        let next = up.iter().find(|peer| self.last.is_none_or(|last| **peer > last)).or(up.first());
        let Some(peer) = next.copied() else { return };
        self.last = Some(peer);
        match repair_from(&self.context, &self.handle, peer, Manner::Background).await {
            Ok(FromPeer { buckets, rows, .. }) if rows > 0 => {
                let buckets = buckets.len();
                tracing::warn!(%partition, %peer, buckets, rows, "rows were missing that no log had told of; they are here now");
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%partition, %peer, %error, "a peer could not be compared with"),
        }
    }
}

/// What a repair from one peer found.
struct FromPeer {
    /// Buckets that differed.
    buckets: BTreeSet<u8>,
    /// Rows and tombstones that were news.
    rows: u64,
    /// Nothing else can have differed but what was on its way.
    is_sure: bool,
}

/// Compares a replica with all its peers and pulls what it lacks. Of peers that cannot be asked it says why.
///
/// # Errors
/// This replica cannot be repaired: it is leaving, not running, or has enough to do.
pub(crate) async fn repair(context: &NodeContext, handle: &ReplicaHandle) -> Result<Repaired> {
    let peers = peers(context, handle.partition)?;
    let _place = handle.place()?;
    let _alone = handle.repairing.acquire().await.map_err(|_| Error::internal("the repair's permit has gone"))?;
    let mut repaired = Repaired::default();
    for peer in peers {
        let done = match context.liveness.is_down(peer) {
            true => Err(Error::new(ErrorCode::NodeLost, format!("{peer} is down"))),
            false => repair_from(context, handle, peer, Manner::Asked).await,
        };
        match done {
            Ok(FromPeer { buckets, rows, .. }) => {
                repaired.compared += 1;
                repaired.buckets.extend(buckets);
                repaired.rows += rows;
            }
            Err(error) => repaired.failed.push((peer, error)),
        }
    }
    Ok(repaired)
}

/// Whether the digests of so many of these voters agree with that of this replica, but for what is on its way. What they have and it has
/// not is pulled, and looked at once more.
pub(super) async fn agrees(context: &NodeContext, handle: &ReplicaHandle, voters: &[NodeId], enough: usize) -> bool {
    let Ok(_alone) = handle.repairing.acquire().await else { return false };
    let partition = handle.partition;
    let mut agreeing = 0;
    for voter in voters.iter().copied().filter(|voter| *voter != context.node && !context.liveness.is_down(*voter)) {
        for _ in 0..COMPARISONS_MAX {
            match repair_from(context, handle, voter, Manner::Background).await {
                Ok(FromPeer { buckets, is_sure, .. }) if buckets.is_empty() => {
                    agreeing += usize::from(is_sure);
                    break;
                }
                Ok(FromPeer { buckets, rows, .. }) => {
                    let buckets = buckets.len();
                    tracing::warn!(%partition, %voter, buckets, rows, "a replica that joins lacked rows that no log had told it of");
                }
                Err(error) => {
                    tracing::debug!(%partition, %voter, %error, "a voter could not be compared with");
                    break;
                }
            }
        }
        if agreeing >= enough {
            return true;
        }
    }
    false
}

/// Whom a replica compares itself with.
///
/// # Errors
/// It is none that takes rows.
fn peers(context: &NodeContext, id: PartitionId) -> Result<Vec<NodeId>> {
    let catalog = context.agreement.catalog().borrow().clone();
    let partition = catalog.partitions.get(&id).ok_or_else(|| super::absent(id))?;
    let own = partition.replica(context.node).ok_or_else(|| super::absent(id))?;
    if own.state == Role::Leaving {
        let message = format!("the replica of {id} is leaving and takes nothing any more");
        return Err(Error::new(ErrorCode::PartitionUnavailable, message));
    }
    Ok(partition.replicas.iter().map(|replica| replica.node).filter(|node| *node != context.node).collect())
}

async fn repair_from(context: &NodeContext, handle: &ReplicaHandle, peer: NodeId, manner: Manner) -> Result<FromPeer> {
    let mut comparison = Comparison::default();
    let mut is_sure = false;
    for look in 1..=LOOKS_MAX {
        let DigestAnswer { moment, caught_up } = ask_digest(context, handle.partition, peer).await?;
        let own = digest(context, handle).await?;
        let caught_up = caught_up && handle.lag() == Some(0);
        let comparable = comparison.look(&own, &moment, caught_up);
        is_sure = comparison.is_decided() || (comparable && caught_up);
        if comparison.is_decided() || look == LOOKS_MAX {
            break;
        }
        context.env.sleep(LOOK_PAUSE).await;
    }
    let found = comparison.differing().clone();
    metrics::counter!("shoal_repair_comparisons_total").increment(1);
    metrics::counter!("shoal_repair_buckets_differing_total").increment(found.len() as u64);
    let buckets: BTreeSet<u8> = match manner {
        Manner::Asked => comparison.suspects(),
        Manner::Background => found.clone(),
    };
    if buckets.is_empty() {
        return Ok(FromPeer { buckets, rows: 0, is_sure });
    }
    let _turn = match manner {
        Manner::Asked => None,
        Manner::Background => context.repairs.acquire().await.ok(),
    };
    let rows = pull(context, handle, peer, &buckets, manner).await?;
    Ok(FromPeer { buckets: found, rows, is_sure })
}

/// The digest of this node's replica.
pub(super) async fn digest(context: &NodeContext, handle: &ReplicaHandle) -> Result<DigestMoment> {
    let running = handle.running()?;
    let digest = move || running.store.digest_moment().inspect_err(|error| running.blame(error));
    context.env.blocking(digest).await?
}

async fn ask_digest(context: &NodeContext, partition: PartitionId, peer: NodeId) -> Result<DigestAnswer> {
    match serve::call(context, peer, &ReplicaCall::Digest { partition }, CALL_TIMEOUT).await? {
        ReplicaAnswer::Digest(answer) => Ok(answer),
        _ => Err(serve::unexpected()),
    }
}

/// Pulls what a peer holds in some buckets; gives the number of rows that were news.
async fn pull(
    context: &NodeContext,
    handle: &ReplicaHandle,
    peer: NodeId,
    buckets: &BTreeSet<u8>,
    manner: Manner,
) -> Result<u64> {
    let (partition, bytes_max) = (handle.partition, pull_bytes_max(context));
    let (mut after, mut news) = (ByteBuf::new(), 0);
    loop {
        let under_way = handle.pulls.read().await;
        let call = ReplicaCall::Buckets { partition, buckets: buckets.clone(), after: after.clone(), bytes_max };
        let ReplicaAnswer::Buckets(BucketsAnswer { batch, next }) =
            serve::call(context, peer, &call, CALL_TIMEOUT).await?
        else {
            return Err(serve::unexpected());
        };
        if let Some(bytes) = batch {
            let rows = batch::decode(&bytes)?;
            let writes = versions(&rows)?;
            let newest = writes.last().copied().unwrap_or(Version::new(Hlc::default(), NodeId(0), 0));
            let write = Write { version: newest, token: None, rows: Rows::Replicated(rows, Vec::new()) };
            let written = handle.pulled(bytes.len() as u64, write, writes).await?;
            if !written.duplicate {
                news += written.rows;
                metrics::counter!("shoal_repair_rows_total").increment(written.rows);
                context.env.reached(Rare::RowsRepaired);
                context.env.trace(|| format!("{partition} got {} rows from {peer} by repair", written.rows));
            }
        }
        drop(under_way);
        if manner == Manner::Background {
            context.env.sleep(PULL_PAUSE).await;
        }
        match next {
            Some(next) if next > after => after = next,
            Some(_) => return Err(Error::internal(format!("{peer} goes on where it has been"))),
            None => return Ok(news),
        }
    }
}
