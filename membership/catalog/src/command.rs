//! Changes to the agreed state, one by one.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use shoal_kernel::{
    Cutoff, Epoch, Hlc, KeyRange, NodeId, PartitionId, ReadLevel, SchemaChange, TableId, TableSchema, Ttl, WriteLevel,
};

use crate::state::{NodeAttributes, NodeState, Partitioning, TableOptions};

/// A table to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTable {
    /// Its name.
    pub name: String,
    /// Its rows.
    pub schema: TableSchema,
    /// How its keys are spread.
    pub partitioning: Partitioning,
    /// For range partitioning: where partitions 2.. start (encoded partition keys, ascending). Empty gives one partition.
    pub split_points: Vec<Vec<u8>>,
    /// Its settings.
    pub options: TableOptions,
    /// An existing table of that name is no error.
    pub if_not_exists: bool,
}

/// A table to be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlteredTable {
    /// Which one.
    pub table: TableId,
    /// Changes of its rows, in order: all of them or none.
    pub changes: Vec<SchemaChange>,
    /// The level of a write that names none, if it changes.
    pub write_level: Option<WriteLevel>,
    /// The level of a read that names none, if it changes.
    pub read_level: Option<ReadLevel>,
    /// How long rows are kept, if that changes.
    pub ttl: Option<TtlChange>,
    /// Whether rows that are loaded change its columns, if that changes.
    pub schemaless: Option<bool>,
    /// How wide windows are that are made from now on, if that changes.
    pub partition_size_hint: Option<u64>,
    /// How many bytes a partition may have before it is split, if that changes.
    pub partition_bytes_max: Option<u64>,
    /// How many rows a partition may have before it is split, if that changes.
    pub partition_rows_max: Option<u64>,
}

impl AlteredTable {
    /// Nothing changes.
    pub const fn of(table: TableId) -> Self {
        Self {
            table,
            changes: Vec::new(),
            write_level: None,
            read_level: None,
            ttl: None,
            schemaless: None,
            partition_size_hint: None,
            partition_bytes_max: None,
            partition_rows_max: None,
        }
    }
}

/// A change of how long rows are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TtlChange {
    /// For so long.
    Keep(Ttl),
    /// For ever, from where the cut-off is.
    Forever,
}

/// A change. Every command may be sent twice (its first answer was lost): applying it again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first node names the cluster.
    Found {
        /// A random number.
        cluster_id: u64,
    },
    /// A node joins for the first time. Refused if a node at another address has its number: the newcomer picks another.
    AddNode {
        /// Its number.
        id: NodeId,
        /// What it says of itself.
        attributes: NodeAttributes,
    },
    /// A node that owns its number says what has changed of it.
    PutNode {
        /// Its number.
        id: NodeId,
        /// What it says of itself.
        attributes: NodeAttributes,
    },
    /// A node's role changes.
    SetNodeState {
        /// Which node.
        id: NodeId,
        /// Its new state.
        state: NodeState,
    },
    /// A node votes in consensus, or no longer does.
    SetVoter {
        /// Which node.
        id: NodeId,
        /// Whether it votes.
        voter: bool,
    },
    /// A node is no member any more.
    RemoveNode {
        /// Which node.
        id: NodeId,
        /// Its disk is gone for good, and its replicas with it. If not, it must hold none.
        lost: bool,
    },
    /// `CREATE TABLE`. Replicas are placed over the active nodes here, deterministically, fewest replicas first.
    CreateTable(NewTable),
    /// `DROP TABLE`.
    DropTable {
        /// Its name.
        name: String,
        /// An unknown name is no error.
        if_exists: bool,
    },
    /// `ALTER TABLE`. Nothing is rewritten: replicas follow when they hear of it.
    AlterTable(AlteredTable),
    /// Rows of a table below the cut-off are gone. An earlier one than the table has changes nothing, and so does one of a table
    /// that keeps its rows for ever by now.
    Expire {
        /// The table.
        table: TableId,
        /// The cut-off.
        cutoff: Cutoff,
    },
    /// Partitions for what no partition of the table holds yet of these ranges: windows of its keys.
    AddWindows {
        /// The table, one of windows.
        table: TableId,
        /// The ranges.
        windows: Vec<KeyRange>,
    },
    /// The windows of a table that lie below its cut-off go, all but its oldest partition.
    DropWindows {
        /// The table.
        table: TableId,
    },
    /// A replica starts on a node; it joins and counts for nothing yet. The epoch stays.
    AddReplica {
        /// Which partition.
        partition: PartitionId,
        /// Where.
        node: NodeId,
    },
    /// A joining replica has caught up with N-W+1 voters: it votes from the next epoch on.
    PromoteReplica {
        /// Which partition.
        partition: PartitionId,
        /// Where.
        node: NodeId,
        /// The epoch the decision was based on; if it has moved on, the command is refused.
        epoch: Epoch,
    },
    /// A replica that was leaving goes: enough voters hold what it holds.
    RemoveReplica {
        /// Which partition.
        partition: PartitionId,
        /// Where.
        node: NodeId,
        /// The epoch the decision was based on.
        epoch: Epoch,
    },
    /// A replica is on its way out: it keeps its rows until others hold them. One that votes does so no longer from the next epoch on.
    RetireReplica {
        /// Which partition.
        partition: PartitionId,
        /// Where.
        node: NodeId,
        /// The epoch the decision was based on.
        epoch: Epoch,
    },
    /// A majority of the voters holds everything that was acknowledged at quorum in epochs before this one.
    SettlePartition {
        /// Which partition.
        partition: PartitionId,
        /// Since which epoch.
        epoch: Epoch,
    },
    /// A partition by range becomes two, on the same nodes.
    SplitPartition {
        /// Which partition.
        partition: PartitionId,
        /// The first key of the second one: an encoded partition key.
        at: Vec<u8>,
        /// The epoch the decision was based on.
        epoch: Epoch,
    },
    /// Tombstones of a partition up to that time may go: every replica holds all rows up to there, and takes no more of them.
    /// Refused if the partition has changed since its replicas were asked.
    RaisePurge {
        /// Which partition.
        partition: PartitionId,
        /// [`crate::Partition::changed`] as it was.
        changed: u64,
        /// Up to when; an earlier time than is agreed on already changes nothing.
        purged: Hlc,
    },
    /// A node says that it cannot keep its replica running, or that it runs again.
    MarkReplica {
        /// Which partition.
        partition: PartitionId,
        /// On which node.
        node: NodeId,
        /// Whether it has failed.
        failed: bool,
    },
    /// Replicas are moved for balance, or no longer. Those on their way for it alone are called off.
    PauseBalance {
        /// Whether they are not.
        paused: bool,
    },
    /// Behind a recovery of the catalog on one node: what others may have agreed on beyond what that node knew, with nodes that are
    /// lost, is not met again under the same number.
    Recover,
    /// A table gets another name.
    RenameTable {
        /// Which one.
        table: TableId,
        /// Its new name.
        to: String,
    },
}

/// What an applied command changed; nodes act on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Membership of the cluster changed.
    Nodes,
    /// A table was made, changed or dropped.
    Table(TableId),
    /// A partition's epoch or replicas changed, or it came or went.
    Partition(PartitionId),
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandOutcome {
    /// What changed, in order; empty if nothing did.
    pub effects: Vec<Effect>,
    /// The catalog's version afterwards.
    pub version: u64,
}

/// Why a command was refused. The state has not changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CatalogError {
    /// A table of that name exists.
    #[error("table '{0}' exists already")]
    TableExists(String),
    /// No such table.
    #[error("there is no table '{0}'")]
    UnknownTable(String),
    /// The table has been dropped since the command was made.
    #[error("{0} has been dropped")]
    TableGone(TableId),
    /// The command was made for a version of the table's schema that others have left behind.
    #[error("table '{0}' was altered by somebody else at the same time")]
    StaleSchema(String),
    /// No such node.
    #[error("there is no node {0}")]
    UnknownNode(NodeId),
    /// No such partition.
    #[error("there is no partition {0}")]
    UnknownPartition(PartitionId),
    /// Another node has this number.
    #[error("node number {0} is taken by a node at {1}")]
    NodeNumberTaken(NodeId, SocketAddr),
    /// The decision was based on an older epoch.
    #[error("partition {partition} is at {actual}, the command was made for {expected}")]
    StaleEpoch {
        /// Which partition.
        partition: PartitionId,
        /// As the command expected.
        expected: Epoch,
        /// As it is.
        actual: Epoch,
    },
    /// The voters of the partition do not hold yet what was acknowledged before they were the voters.
    #[error("the voters of {0} are still catching up with those before them")]
    Unsettled(PartitionId),
    /// Somebody else has split the partition meanwhile, at another key.
    #[error("{0} has been split at another key meanwhile")]
    SplitElsewhere(PartitionId),
    /// The cluster has been founded, by another id.
    #[error("the cluster is founded already")]
    Founded,
    /// Nodes or replicas cannot be changed so; says why, and what could be done.
    #[error("{0}")]
    Refused(String),
    /// The definition makes no sense; says why.
    #[error("{0}")]
    Invalid(String),
}
