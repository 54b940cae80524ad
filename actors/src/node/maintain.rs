//! FLUSH and OPTIMIZE TABLE: every replica is asked, and every one that did not do it is named.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::StreamExt;
use shoal_kernel::{Applied, Error, ErrorCode, NodeId, PartitionId, Result};

use super::Inner;
use super::statement::REFRESH_TIMEOUT;
use crate::replica::message::{MaintenanceTask, ReplicaAnswer, ReplicaCall};
use crate::replica::serve;
use crate::service::CommandDone;

/// Nodes that are asked at once.
const NODES_AT_ONCE: usize = 32;
/// Replicas that an error names.
pub(super) const NAMED_MAX: usize = 8;

impl Inner {
    /// Has a task carried out by every replica of a table, or of all tables.
    pub(super) async fn maintain(
        &self,
        tag: &'static str,
        table: Option<&str>,
        task: MaintenanceTask,
        timeout: Duration,
    ) -> Result<CommandDone> {
        let until = self.context.env.monotonic() + timeout;
        // What was made elsewhere a moment ago is meant too. Without the catalog's quorum nothing can have been made.
        let newest = self.context.agreement.linearizable(REFRESH_TIMEOUT.min(timeout)).await;
        let catalog = newest.unwrap_or_else(|_| self.context.agreement.catalog().borrow().clone());
        let wanted = match table {
            Some(name) => Some(catalog.table(name).ok_or_else(|| catalog.unknown_table(name))?.id),
            None => None,
        };
        let mut by_node: BTreeMap<NodeId, Vec<PartitionId>> = BTreeMap::new();
        for partition in catalog.partitions.values().filter(|partition| wanted.is_none_or(|id| id == partition.table)) {
            for replica in &partition.replicas {
                by_node.entry(replica.node).or_default().push(partition.id);
            }
        }
        let replicas: usize = by_node.values().map(Vec::len).sum();
        // Collected first: see the gateway.
        let asked: Vec<_> =
            by_node.into_iter().map(|(node, partitions)| self.maintain_on(node, partitions, task, until)).collect();
        let failed: Vec<(PartitionId, NodeId, Error)> =
            futures::stream::iter(asked).buffered(NODES_AT_ONCE).flat_map(futures::stream::iter).collect().await;
        if failed.is_empty() {
            return Ok(CommandDone { tag: tag.into(), rows: None, level: None, version: None });
        }
        Err(not_all(tag, &failed, replicas))
    }

    /// Gives the replicas that did not do it, and why.
    async fn maintain_on(
        &self,
        node: NodeId,
        partitions: Vec<PartitionId>,
        task: MaintenanceTask,
        until: Duration,
    ) -> Vec<(PartitionId, NodeId, Error)> {
        let answer = if self.context.liveness.is_down(node) {
            Err(Error::new(ErrorCode::NodeLost, format!("{node} is down")))
        } else {
            let left = until.saturating_sub(self.context.env.monotonic());
            let call = ReplicaCall::Maintain { partitions: partitions.clone(), task };
            serve::call(&self.context, node, &call, left).await
        };
        match answer {
            Ok(ReplicaAnswer::Maintained(failed)) => {
                failed.into_iter().map(|(partition, error)| (partition, node, error)).collect()
            }
            Ok(_) => partitions.into_iter().map(|partition| (partition, node, serve::unexpected())).collect(),
            Err(error) => partitions.into_iter().map(|partition| (partition, node, error.clone())).collect(),
        }
    }
}

fn not_all(tag: &str, failed: &[(PartitionId, NodeId, Error)], replicas: usize) -> Error {
    let named =
        failed.iter().take(NAMED_MAX).map(|(partition, node, error)| format!("{partition} on {node} ({error})"));
    let mut names = named.collect::<Vec<_>>().join(", ");
    if failed.len() > NAMED_MAX {
        names += &format!(", and {} more", failed.len() - NAMED_MAX);
    }
    // Full disks are something that somebody can do something about.
    let code = match failed.iter().all(|(_, _, error)| error.code() == ErrorCode::DiskFull) {
        true => ErrorCode::DiskFull,
        false => ErrorCode::NotEnoughReplicas,
    };
    let count = failed.len();
    let applied = if count == replicas && failed.iter().all(|(_, _, error)| error.applied() == Applied::False) {
        Applied::False
    } else {
        Applied::Unknown
    };
    Error::new(code, format!("{tag} was not carried out by {count} of {replicas} replicas: {names}"))
        .with_applied(applied)
        .with_help("all others have done it; send it again when these are back, which does no harm to those")
}
