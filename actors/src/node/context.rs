//! What every actor of a node shares.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shoal_catalog::{Command, CommandOutcome};
use shoal_kernel::{Applied, Env, Error, ErrorCode, NodeId, Result};
use shoal_membership::{Agreement, Swim};
use shoal_storage::PagePool;
use tokio::sync::Semaphore;

use super::clock::NodeClock;
use super::liveness::Liveness;
use super::pace::Pace;
use crate::replica::heads::Heads;
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
    /// How far the replicas of other nodes have told to be.
    pub(crate) heads: Heads,
    /// Where all replicas keep pages of their segments.
    pub(crate) pool: Arc<PagePool>,
    /// What compaction may take.
    pub(crate) compaction: Arc<Pace>,
    /// What replicas may take that are being filled from their peers.
    pub(crate) filling: Arc<Pace>,
    /// A place for each replica that is being filled by files.
    pub(crate) fetching: Semaphore,
    /// A place for each copy of a replica that is held for a peer.
    pub(crate) lending: Arc<Semaphore>,
    /// What backups and restores may take.
    pub(crate) backups: Arc<Pace>,
    /// A place for each thread that helps replicas with the replay of their logs.
    pub(crate) replay_helpers: Arc<Semaphore>,
    /// A place for each replica that pulls rows in the background because digests differ.
    pub(crate) repairs: Semaphore,
}

impl NodeContext {
    /// Where a replica of this node lies.
    pub(crate) fn replica_dir(&self, partition: shoal_kernel::PartitionId) -> PathBuf {
        self.replicas_dir().join(partition.to_string())
    }

    /// Where all of them lie.
    pub(crate) fn replicas_dir(&self) -> PathBuf {
        self.config.data_dir.join("replicas")
    }

    /// Has the catalog changed, and waits until this node shows the change; `what` is what is done by it.
    ///
    /// # Errors
    /// As of [`Agreement::propose`], and [`ErrorCode::Timeout`] if it is agreed upon and not shown in time.
    pub(crate) async fn change_catalog(
        &self,
        command: Command,
        what: &str,
        timeout: Duration,
    ) -> Result<CommandOutcome> {
        let agreed = self.agreement.propose(command, timeout).await?;
        // It was waited for as long as there was time.
        match self.agreement.catalog().borrow().version >= agreed.version {
            true => Ok(agreed),
            false => {
                let message = format!("{what} is agreed upon, and this node has not heard of it in time");
                Err(Error::new(ErrorCode::Timeout, message).with_applied(Applied::Unknown))
            }
        }
    }
}
