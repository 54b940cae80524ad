//! What every actor of a node shares.

use std::path::PathBuf;
use std::sync::Arc;

use shoal_kernel::{Env, NodeId};
use shoal_membership::{Agreement, Swim};
use shoal_storage::PagePool;
use tokio::sync::Semaphore;

use super::clock::NodeClock;
use super::liveness::Liveness;
use super::pace::Pace;
use crate::service::NodeConfig;
use crate::transport::Transport;

/// A node's shared parts. Every part is a cheap handle; none of them is global.
pub(crate) struct NodeContext {
    pub(crate) env: Env,
    pub(crate) node: NodeId,
    pub(crate) config: NodeConfig,
    pub(crate) clock: Arc<NodeClock>,
    pub(crate) transport: Transport,
    pub(crate) agreement: Agreement,
    pub(crate) swim: Swim,
    pub(crate) liveness: Liveness,
    /// Where all replicas keep pages of their segments.
    pub(crate) pool: Arc<PagePool>,
    /// What compaction may take.
    pub(crate) pace: Arc<Pace>,
    /// A place for each thread that helps replicas with the replay of their logs.
    pub(crate) replay_helpers: Arc<Semaphore>,
}

impl NodeContext {
    /// Where a replica of this node lies.
    pub(crate) fn replica_dir(&self, partition: shoal_kernel::PartitionId) -> PathBuf {
        self.config.data_dir.join("replicas").join(partition.to_string())
    }
}
