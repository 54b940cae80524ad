//! What the nodes carry, as they say themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use shoal_catalog::Load;
use shoal_kernel::{NodeId, PartitionId};

use crate::node::context::NodeContext;
use crate::replica::message::{ReplicaAnswer, ReplicaCall};
use crate::replica::serve;

/// How long a node may take to say what it carries.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What these nodes hold, and what is asked of it.
pub(crate) async fn load_of(context: &NodeContext, nodes: &BTreeSet<NodeId>, before: &Load) -> Load {
    let (held, asked) = futures::join!(held_by(context, nodes, before), asked_of(context, nodes));
    Load { asked, ..held }
}

/// What of partitions queries have read lately, divided by the number of their replicas. Of a node that does not answer nothing is
/// known to have been asked: it will be others that are asked now.
async fn asked_of(context: &NodeContext, nodes: &BTreeSet<NodeId>) -> BTreeMap<PartitionId, u64> {
    let asked = nodes.iter().map(|node| serve::call(context, *node, &ReplicaCall::Asked, ANSWER_TIMEOUT));
    let mut total: BTreeMap<PartitionId, u64> = BTreeMap::new();
    for answer in join_all(asked).await {
        let Ok(ReplicaAnswer::Asked(asked)) = answer else { continue };
        for (partition, bytes) in asked {
            let sum = total.entry(partition).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }
    let catalog = context.agreement.catalog().borrow().clone();
    let replicas = |id| catalog.partitions.get(&id).map_or(1, |partition| partition.replicas.len().max(1) as u64);
    total.into_iter().map(|(id, bytes)| (id, bytes / replicas(id))).collect()
}

/// Asks these nodes. Of one that does not answer in time what was known before holds.
async fn held_by(context: &NodeContext, nodes: &BTreeSet<NodeId>, before: &Load) -> Load {
    let asked = nodes
        .iter()
        .map(|node| async move { (*node, serve::call(context, *node, &ReplicaCall::Load, ANSWER_TIMEOUT).await) });
    let mut load = Load::default();
    for (node, answer) in join_all(asked).await {
        let Ok(ReplicaAnswer::Load { room, bytes }) = answer else { continue };
        load.room.insert(node, room);
        for (partition, of_replica) in bytes {
            let largest = load.bytes.entry(partition).or_default();
            *largest = of_replica.max(*largest);
        }
    }
    for (node, room) in before.room.iter().filter(|(node, _)| nodes.contains(node)) {
        load.room.entry(*node).or_insert(*room);
    }
    for (partition, bytes) in &before.bytes {
        load.bytes.entry(*partition).or_insert(*bytes);
    }
    load
}
