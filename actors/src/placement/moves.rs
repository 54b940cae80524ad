//! Replicas that come and go, and nodes that leave.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use shoal_catalog::{Catalog, Command, NodeState, Outlook, Partition};
use shoal_kernel::level::quorum;
use shoal_kernel::{ErrorCode, NodeId, PartitionId, Rare};

use super::PROPOSAL_TIMEOUT;
use crate::node::context::NodeContext;
use crate::replica::message::{ReplicaAnswer, ReplicaCall};
use crate::replica::serve;

/// Changes that one turn has agreed on at most. The next turn looks at the nodes anew.
const CHANGES_MAX: usize = 64;
/// How long a node may take to say which of its replicas serve.
const SERVING_TIMEOUT: Duration = Duration::from_secs(2);

/// Has the next changes agreed on.
pub(super) async fn carry_on(context: &NodeContext, catalog: &Catalog, outlook: &Outlook) {
    let mut changes = departures(catalog);
    changes.extend(catalog.wanted_changes(outlook));
    let retiring = changes.iter().filter_map(|change| match change {
        Command::RetireReplica { partition, .. } => catalog.partitions.get(partition),
        _ => None,
    });
    let serving = serving(context, &outlook.alive, retiring.collect()).await;
    let mut agreed = 0;
    for command in changes {
        let rare = match &command {
            Command::RetireReplica { partition, node, .. } => {
                let partition = catalog.partitions.get(partition);
                if !partition.is_some_and(|partition| can_do_without(partition, *node, &serving)) {
                    tracing::debug!(?command, "too few of the other replicas serve");
                    continue;
                }
                Some(Rare::ReplicaRetired)
            }
            Command::AddReplica { .. } => Some(Rare::ReplicaMade),
            _ => None,
        };
        if agreed == CHANGES_MAX || !context.agreement.is_leader() {
            return;
        }
        tracing::info!(?command, "placement proposes");
        context.env.trace(|| format!("placement proposes {command:?}"));
        match context.agreement.propose(command, PROPOSAL_TIMEOUT).await {
            Ok(_) => {
                agreed += 1;
                metrics::counter!("shoal_placement_changes_total").increment(1);
                rare.into_iter().for_each(|rare| context.env.reached(rare));
            }
            // The partition has moved on; others have not.
            Err(error)
                if matches!(error.code(), ErrorCode::Moved | ErrorCode::InvalidRequest | ErrorCode::NotFound) =>
            {
                tracing::debug!(%error, "a placement was refused; it is looked at anew next turn");
            }
            Err(error) => {
                tracing::debug!(%error, "a placement was not taken; it is looked at anew next turn");
                return;
            }
        }
    }
}

/// Nodes that were told to leave, and neither hold anything nor vote any more.
fn departures(catalog: &Catalog) -> Vec<Command> {
    let leaving = catalog.nodes.values().filter(|node| node.state == NodeState::Leaving && !node.voter);
    let mut leaving: Vec<NodeId> = leaving.map(|node| node.id).collect();
    if !leaving.is_empty() {
        let held = catalog.count_held();
        leaving.retain(|node| !held.contains_key(node));
    }
    leaving.into_iter().map(|id| Command::RemoveNode { id, lost: false }).collect()
}

/// Whether a majority of the other voters serves: then nothing that the partition can do depends on that one.
fn can_do_without(partition: &Partition, node: NodeId, serving: &BTreeSet<(PartitionId, NodeId)>) -> bool {
    let others: Vec<NodeId> = partition.voters().filter(|voter| *voter != node).collect();
    let serve = others.iter().filter(|voter| serving.contains(&(partition.id, **voter))).count();
    serve >= quorum(others.len())
}

/// The replicas of these partitions that serve in the epoch that is known here.
pub(super) async fn serving(
    context: &NodeContext,
    alive: &BTreeSet<NodeId>,
    partitions: Vec<&Partition>,
) -> BTreeSet<(PartitionId, NodeId)> {
    let mut by_node: BTreeMap<NodeId, Vec<PartitionId>> = BTreeMap::new();
    for partition in &partitions {
        for voter in partition.voters().filter(|voter| alive.contains(voter)) {
            by_node.entry(voter).or_default().push(partition.id);
        }
    }
    let asked = by_node.into_iter().map(|(node, partitions)| async move {
        let call = ReplicaCall::Serving { partitions };
        (node, serve::call(context, node, &call, SERVING_TIMEOUT).await)
    });
    let epochs: BTreeMap<PartitionId, _> = partitions.iter().map(|partition| (partition.id, partition.epoch)).collect();
    let mut serving = BTreeSet::new();
    for (node, answer) in join_all(asked).await {
        if let Ok(ReplicaAnswer::Serving(replicas)) = answer {
            let current = replicas.into_iter().filter(|(id, epoch)| epochs.get(id) == Some(epoch));
            serving.extend(current.map(|(id, _)| (id, node)));
        }
    }
    serving
}
