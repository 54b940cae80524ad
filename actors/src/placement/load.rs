//! What the nodes carry, as they say themselves.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use shoal_catalog::Load;
use shoal_kernel::NodeId;

use crate::node::context::NodeContext;
use crate::replica::message::{ReplicaAnswer, ReplicaCall};
use crate::replica::serve;

/// How long a node may take to say what it carries.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks these nodes. Of one that does not answer in time what was known before holds.
pub(crate) async fn load_of(context: &NodeContext, nodes: &BTreeSet<NodeId>, before: &Load) -> Load {
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
