//! The cluster as this node sees it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_kernel::{NodeId, PartitionId};
use shoal_membership::MemberState;

use super::context::NodeContext;
use crate::replica::message::{ReplicaAnswer, ReplicaCall, ReplicaReport};
use crate::replica::serve;
use crate::service::{ClusterStatus, NodeStatus, PartitionStatus, ReplicaStatus, SwimState};

/// How long a node may take to say how its replicas are.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn cluster(context: &Arc<NodeContext>, by_content: bool) -> ClusterStatus {
    let catalog = context.agreement.catalog().borrow().clone();
    let asked = catalog.nodes.keys().filter(|node| !context.liveness.is_down(**node)).map(|node| async {
        let answer = serve::call(context, *node, &ReplicaCall::Status { by_content }, STATUS_TIMEOUT).await;
        (*node, answer)
    });
    let mut reports: BTreeMap<(PartitionId, NodeId), ReplicaReport> = BTreeMap::new();
    for (node, answer) in futures::future::join_all(asked).await {
        if let Ok(ReplicaAnswer::Status(of_node)) = answer {
            reports.extend(of_node.into_iter().map(|report| ((report.partition, node), report)));
        }
    }
    let held = catalog.count_held();
    let nodes = catalog.nodes.values().map(|node| NodeStatus {
        id: node.id,
        attributes: node.attributes.clone(),
        state: node.state,
        swim: match context.liveness.state(node.id) {
            Some(MemberState::Alive) => SwimState::Alive,
            Some(MemberState::Suspect) => SwimState::Suspect,
            Some(MemberState::Down) => SwimState::Down,
            None => SwimState::Unknown,
        },
        voter: node.voter,
        replicas: held.get(&node.id).copied().unwrap_or(0),
    });
    let partitions = catalog.partitions.values().map(|partition| PartitionStatus {
        id: partition.id,
        table: catalog.tables.get(&partition.table).map(|table| table.name.clone()).unwrap_or_default(),
        bounds: partition.bounds.clone(),
        epoch: partition.epoch,
        replicas: partition
            .replicas
            .iter()
            .map(|replica| {
                let report = reports.remove(&(partition.id, replica.node));
                let reachable = report.is_some();
                let report = report.as_ref();
                ReplicaStatus {
                    node: replica.node,
                    state: replica.state,
                    failed: replica.failed,
                    reachable,
                    lag: report.and_then(|report| report.lag),
                    log_id: report.and_then(|report| report.log_id),
                    position: report.and_then(|report| report.position),
                    rows: report.and_then(|report| report.rows),
                    bytes: report.and_then(|report| report.bytes),
                    segments: report.and_then(|report| report.segments),
                    segments_overdue: report.and_then(|report| report.segments_overdue),
                    digest: report.and_then(|report| report.digest.clone()),
                    restarts: report.map(|report| report.restarts),
                    problem: report.and_then(|report| report.problem.clone()),
                }
            })
            .collect(),
    });
    let partitions = partitions.collect();
    ClusterStatus {
        cluster_id: catalog.cluster_id,
        node: context.node,
        catalog_version: catalog.version,
        leader: context.agreement.leader(),
        nodes: nodes.collect(),
        partitions,
    }
}
