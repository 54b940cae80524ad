//! How far the logs of another node's replicas go: asked for all of them at once. While nobody writes, what nodes say to each other does
//! not grow with the number of their partitions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use serde::{Deserialize, Serialize};
use shoal_kernel::{Epoch, LogId, NodeId, PartitionId};

use super::directory::ReplicaDirectory;
use super::message::{ReplicaAnswer, ReplicaCall, ReplicaMessage};
use super::serve;
use crate::node::context::NodeContext;
use crate::rounds::Rounds;

/// What was heard is good for so long: replicas that look for themselves share it, whenever in a second they do.
const GOOD_FOR: Duration = Duration::from_millis(500);
/// How long a peer may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long each of its replicas may take. One that has much in hand is left out, and asked for itself.
const REPLICA_TIMEOUT: Duration = Duration::from_millis(100);

/// How far a replica's log goes, and what its word is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) log_id: LogId,
    pub(crate) position: u64,
    pub(crate) sealed: Epoch,
    /// Whether it counts itself.
    pub(crate) counts: bool,
    /// Whether it is settled.
    pub(crate) settled: bool,
    /// Whether it may lack the end of what it has acknowledged.
    pub(crate) in_doubt: bool,
}

type Told = Arc<BTreeMap<PartitionId, Head>>;

/// What other nodes have told lately.
#[derive(Default)]
pub(crate) struct Heads(Mutex<BTreeMap<NodeId, OfNode>>);

#[derive(Default)]
struct OfNode {
    rounds: Rounds<Told>,
    /// With the time at which it was asked; if it has not answered, at which that was known.
    told: Option<(Duration, Told)>,
}

impl Heads {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, OfNode>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The head of a peer's replica, as it was at most [`GOOD_FOR`] ago. None if the peer has not said.
pub(super) async fn head(context: &Arc<NodeContext>, peer: NodeId, partition: PartitionId) -> Option<Head> {
    let asked = {
        let mut heads = context.heads.lock();
        let of_peer = heads.entry(peer).or_default();
        let young = |(at, _): &&(Duration, Told)| context.env.monotonic().saturating_sub(*at) <= GOOD_FOR;
        if let Some((_, told)) = of_peer.told.as_ref().filter(young) {
            return told.get(&partition).copied();
        }
        let context = context.clone();
        of_peer.rounds.ask(&context.env.clone(), "heads", move || ask(context.clone(), peer))
    };
    asked.await.ok()?.get(&partition).copied()
}

/// Asks the peer, and remembers what it says; nothing if it does not answer, or is of a build that does not know the question.
async fn ask(context: Arc<NodeContext>, peer: NodeId) -> Told {
    let asked_at = context.env.monotonic();
    let (at, told) = match serve::call(&context, peer, &ReplicaCall::Heads, CALL_TIMEOUT).await {
        Ok(ReplicaAnswer::Heads(told)) => (asked_at, told),
        answer => {
            tracing::debug!(%peer, ?answer, "a node does not say how far its replicas are");
            (context.env.monotonic(), BTreeMap::new())
        }
    };
    let told = Arc::new(told);
    let catalog = context.agreement.catalog().borrow().clone();
    let mut heads = context.heads.lock();
    heads.retain(|node, _| catalog.nodes.contains_key(node));
    if let Some(of_peer) = heads.get_mut(&peer) {
        of_peer.told = Some((at, told.clone()));
    }
    told
}

/// The heads of this node's replicas of partitions of which the asking node has one, too.
pub(super) async fn shared_with(context: &NodeContext, directory: &ReplicaDirectory, asking: NodeId) -> ReplicaAnswer {
    let catalog = context.agreement.catalog().borrow().clone();
    let is_shared = |id: PartitionId| catalog.partitions.get(&id).is_some_and(|it| it.replica(asking).is_some());
    let shared = directory.all().into_iter().filter(|handle| is_shared(handle.partition));
    let heads = shared.map(async |handle| {
        let head = context.env.timeout(REPLICA_TIMEOUT, handle.ask(|answer| ReplicaMessage::Head { answer })).await;
        Some((handle.partition, head.ok()?.ok()?))
    });
    ReplicaAnswer::Heads(join_all(heads).await.into_iter().flatten().collect())
}
