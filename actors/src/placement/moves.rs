//! Replicas that come and go, and nodes that leave.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_catalog::{Catalog, Command, NodeState, Outlook, Partition};
use shoal_kernel::level::quorum;
use shoal_kernel::{NodeId, PartitionId, Rare};

use super::PROPOSAL_TIMEOUT;
use crate::node::context::NodeContext;
use crate::replica::message::{ReplicaAnswer, ReplicaCall, ReplicaReport};
use crate::replica::serve;

/// How long a node may take to say how its replicas are.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// Has the next changes agreed on.
pub(super) async fn carry_on(context: &NodeContext, catalog: &Catalog, outlook: &Outlook) {
    let mut reports = Reports { context, outlook, known: BTreeMap::new() };
    let moves = catalog.wanted_changes(outlook).into_iter();
    for command in moves.chain(departures(catalog)) {
        let rare = match &command {
            Command::RetireReplica { partition, node, .. } => {
                let Some(partition) = catalog.partitions.get(partition) else { continue };
                if !reports.can_do_without(partition, *node).await {
                    tracing::debug!(partition = %partition.id, %node, "too few of the other replicas serve");
                    continue;
                }
                Some(Rare::ReplicaRetired)
            }
            Command::AddReplica { .. } => Some(Rare::ReplicaMade),
            _ => None,
        };
        tracing::info!(?command, "placement proposes");
        if let Err(error) = context.agreement.propose(command, PROPOSAL_TIMEOUT).await {
            tracing::debug!(%error, "a placement was not taken; it is looked at anew next turn");
            return;
        }
        if let Some(rare) = rare {
            context.env.reached(rare);
        }
    }
}

/// Nodes that were told to leave, and neither hold anything nor vote any more.
fn departures(catalog: &Catalog) -> Vec<Command> {
    let leaving = catalog.nodes.values().filter(|node| node.state == NodeState::Leaving && !node.voter);
    let leaving = leaving.map(|node| node.id);
    let holds = |id: NodeId| catalog.partitions.values().any(|partition| partition.replica(id).is_some());
    leaving.filter(|id| !holds(*id)).map(|id| Command::RemoveNode { id, lost: false }).collect()
}

/// What nodes say of their replicas; each is asked at most once.
struct Reports<'a> {
    context: &'a NodeContext,
    outlook: &'a Outlook,
    known: BTreeMap<NodeId, BTreeMap<PartitionId, ReplicaReport>>,
}

impl Reports<'_> {
    /// Whether a majority of the other voters serves: then nothing that the partition can do depends on that one.
    async fn can_do_without(&mut self, partition: &Partition, node: NodeId) -> bool {
        let others: Vec<NodeId> = partition.voters().filter(|voter| *voter != node).collect();
        let mut serving = 0;
        for voter in &others {
            let report = self.of(*voter).await.get(&partition.id);
            serving += usize::from(report.is_some_and(|report| report.serves && report.epoch == partition.epoch));
        }
        serving >= quorum(others.len())
    }

    async fn of(&mut self, node: NodeId) -> &BTreeMap<PartitionId, ReplicaReport> {
        if !self.known.contains_key(&node) {
            let mut reports = BTreeMap::new();
            if self.outlook.alive.contains(&node) {
                let call = ReplicaCall::Status { by_content: false };
                if let Ok(ReplicaAnswer::Status(all)) = serve::call(self.context, node, &call, STATUS_TIMEOUT).await {
                    reports.extend(all.into_iter().map(|report| (report.partition, report)));
                }
            }
            self.known.insert(node, reports);
        }
        self.known.entry(node).or_default()
    }
}
