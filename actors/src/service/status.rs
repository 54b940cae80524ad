//! The cluster as one node sees it.

use serde::{Deserialize, Serialize};
use shoal_catalog::{NodeAttributes, NodeState, PartitionBounds, ReplicaState};
use shoal_kernel::{Epoch, Error, LogId, NodeId, PartitionId};

/// Everything at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster_id: u64,
    /// The node that answers.
    pub node: NodeId,
    /// Version of the catalog that it has applied.
    pub catalog_version: u64,
    /// The catalog's leader, if one is known.
    pub leader: Option<NodeId>,
    /// Members, by number.
    pub nodes: Vec<NodeStatus>,
    /// Partitions, by number.
    pub partitions: Vec<PartitionStatus>,
}

/// What SWIM thinks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwimState {
    /// It answers.
    Alive,
    /// It did not answer lately; others are being asked.
    Suspect,
    /// Nobody reaches it.
    Down,
    /// Never heard of since this node started.
    Unknown,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its number.
    pub id: NodeId,
    /// What it says of itself.
    pub attributes: NodeAttributes,
    /// Its role.
    pub state: NodeState,
    /// What SWIM thinks.
    pub swim: SwimState,
    /// Whether it votes on the catalog.
    pub voter: bool,
    /// Replicas that the catalog has placed on it, those that are leaving included.
    pub replicas: usize,
}

/// How evenly replicas are spread over the nodes, and what is being done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalanceStatus {
    /// Replicas are not moved for balance.
    pub paused: bool,
    /// Partitions whose replicas come, go or have just changed, for balance or another reason.
    pub moving: Vec<PartitionId>,
    /// Moves that balance asks for beyond these, the first of them.
    pub wanted: Vec<WantedMove>,
}

/// A replica that would be better elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedMove {
    /// Of which partition.
    pub partition: PartitionId,
    /// Its table's name.
    pub table: String,
    /// Where it is.
    pub from: NodeId,
    /// Where it should be.
    pub to: NodeId,
    /// Bytes on disk.
    pub bytes: u64,
}

/// What an operator can have a node do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeChange {
    /// Take replicas again.
    Activate,
    /// Give its replicas away and take no new ones.
    Drain,
    /// Give its replicas away and leave the cluster.
    Decommission,
    /// Be forgotten: it is gone for good, and what its disk held with it.
    Remove,
}

/// Why a node's part is over.
#[derive(Debug, Clone)]
pub enum NodeEnd {
    /// It cannot do its part any more; a new start may mend that.
    Failed(Error),
    /// It is no member of the cluster any more.
    Removed,
}

/// A setting of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingStatus {
    /// Its name.
    pub name: String,
    /// What was given; `None` is the default. Secrets are not shown.
    pub value: Option<String>,
    /// Its default, for the eye.
    pub default: String,
    /// Where it was given: a flag, a variable, a place in a file.
    pub given_in: Option<String>,
    /// What it means.
    pub about: String,
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// Its number.
    pub id: PartitionId,
    /// Its table's name.
    pub table: String,
    /// Its keys.
    pub bounds: PartitionBounds,
    /// The generation of its replica set.
    pub epoch: Epoch,
    /// Its replicas, by node.
    pub replicas: Vec<ReplicaStatus>,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its node.
    pub node: NodeId,
    /// Its role in the partition.
    pub state: ReplicaState,
    /// Its node has started it again and again in vain; another one gets a replica in its place.
    pub failed: bool,
    /// Whether it answered just now; the fields below are empty if not.
    pub reachable: bool,
    /// Accepts of its peers that it has not pulled yet; 0 is caught up.
    pub lag: Option<u64>,
    /// The life of its accept log.
    pub log_id: Option<LogId>,
    /// Accepts in that log.
    pub position: Option<u64>,
    /// Visible rows.
    pub rows: Option<u64>,
    /// Bytes on disk.
    pub bytes: Option<u64>,
    /// Segments.
    pub segments: Option<u64>,
    /// How many of them wait to be merged.
    pub segments_overdue: Option<u64>,
    /// Digest of its winning rows and tombstones, in hexadecimal; equal digests mean equal versions of equal keys.
    pub digest: Option<String>,
    /// Times it was restarted by its supervisor since the node started.
    pub restarts: Option<u32>,
    /// Why it does not serve, if it does not.
    pub problem: Option<String>,
}
