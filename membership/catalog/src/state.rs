//! The agreed state.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use shoal_kernel::{
    ColumnId, Cutoff, Epoch, Fsync, Hlc, KeyRange, NodeId, PartitionId, ReadLevel, TableId, TableSchema, Ttl,
    WriteLevel,
};

use crate::places::Held;

/// A member of the cluster, alive or not: SWIM says who is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its number.
    pub id: NodeId,
    /// As it says itself.
    pub attributes: NodeAttributes,
    /// Whether it may hold replicas.
    pub state: NodeState,
    /// Whether it votes in the catalog's consensus (mirrors the consensus' own membership, for the eyes of users).
    pub voter: bool,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAttributes {
    /// Where other nodes reach it (streams and datagrams share the port number).
    pub cluster_address: SocketAddr,
    /// Where clients reach it.
    pub http_address: SocketAddr,
    /// With whom it fails: the name of a rack, a room or a data centre. All that name none are one zone.
    pub zone: String,
}

/// Whether a node may hold replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It takes part.
    Active,
    /// It gives its replicas away and takes no new ones.
    Draining,
    /// The same, and it leaves the cluster once it holds none.
    Leaving,
}

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its number.
    pub id: TableId,
    /// Its name, as resolved by SQL (unquoted identifiers are lower case).
    pub name: String,
    /// Its rows.
    pub schema: TableSchema,
    /// How its keys are spread.
    pub partitioning: Partitioning,
    /// Its settings.
    pub options: TableOptions,
    /// Rows below it are gone; `None` while none has been dropped. It stays when the table is told to keep its rows: replicas
    /// that had dropped them and replicas that had not would differ.
    pub cutoff: Option<Cutoff>,
    /// Its partitions: by start of range, or by bucket.
    pub partitions: Vec<PartitionId>,
}

/// How the keys of a table are spread over partitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Partitioning {
    /// By ranges of the encoded partition key.
    Range {
        /// The partition key, most significant first; part of the primary key.
        columns: Vec<ColumnId>,
    },
    /// By the hash of the encoded partition key: `partition_hash(key) % buckets`.
    Hash {
        /// The partition key.
        columns: Vec<ColumnId>,
        /// How many partitions, for the life of the table.
        buckets: u32,
    },
    /// One for each partition key that there are rows of, made when the first of them comes.
    Value {
        /// The partition key.
        columns: Vec<ColumnId>,
    },
}

impl Partitioning {
    /// The partition key.
    pub fn columns(&self) -> &[ColumnId] {
        match self {
            Self::Range { columns } | Self::Hash { columns, .. } | Self::Value { columns } => columns,
        }
    }
}

/// Settings of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableOptions {
    /// Replicas wanted of each partition; fewer while the cluster is smaller.
    pub replication_factor: u32,
    /// The level of a write that names none.
    pub write_level: WriteLevel,
    /// The level of a read that names none.
    pub read_level: ReadLevel,
    /// When replicas sync what they have written.
    pub fsync: Fsync,
    /// How long rows are kept; for ever if `None`.
    pub ttl: Option<Ttl>,
    /// Rows that are loaded add columns and give them wider types, as they need. Of tables of events only.
    pub schemaless: bool,
    /// The partitions are windows of so many units ([`crate::WindowUnit`]), made when their first rows come. Of tables that were
    /// made so only.
    pub partition_size_hint: Option<u64>,
    /// When partitions by range are split.
    pub split: SplitLimits,
}

/// How large a partition by range may become before it is split in two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitLimits {
    /// Bytes of a replica's segments on disk.
    pub partition_bytes_max: u64,
    /// Rows and tombstones of a replica.
    pub partition_rows_max: u64,
}

impl Default for SplitLimits {
    fn default() -> Self {
        Self { partition_bytes_max: 512 << 20, partition_rows_max: u64::MAX }
    }
}

impl Default for TableOptions {
    fn default() -> Self {
        Self {
            replication_factor: 3,
            write_level: WriteLevel::Quorum,
            read_level: ReadLevel::One,
            fsync: Fsync::Always,
            ttl: None,
            schemaless: false,
            partition_size_hint: None,
            split: SplitLimits::default(),
        }
    }
}

/// Which keys a partition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartitionBounds {
    /// Keys of a range.
    Range(KeyRange),
    /// Keys of one hash bucket.
    Bucket(u32),
}

/// A partition and who holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its number.
    pub id: PartitionId,
    /// Its table.
    pub table: TableId,
    /// Which keys it holds.
    pub bounds: PartitionBounds,
    /// The generation of its set of voting replicas; goes up with every change of that set.
    pub epoch: Epoch,
    /// Its replicas, by node.
    pub replicas: Vec<Replica>,
    /// The voting nodes of the epoch before, but for those whose disks are lost.
    pub previous_voters: Vec<NodeId>,
    /// How many of them hold together what was acknowledged by then: N-W+1, or fewer if no more are left.
    pub previous_needed: u32,
    /// A majority of the voters holds everything that was acknowledged at quorum in epochs before. Until then the set of voters
    /// stays as it is.
    pub settled: bool,
    /// The partition that was split into this one and others ([`Catalog::ancestors`]).
    pub parent: Option<PartitionId>,
    /// The partition that was there before any split: itself, if there was none.
    pub root: PartitionId,
    /// No replica holds, or takes, a row with a version up to that time that is older than a tombstone of its key: such tombstones
    /// go.
    pub purged: Hlc,
    /// The version of the catalog that changed it last.
    pub changed: u64,
}

/// A partition that was split: its rows are those of the partitions that came of it. It is remembered for as long as one of
/// these is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// The keys that it held.
    pub range: KeyRange,
    /// The nodes that had a replica of it when it was split. What others have of it is not to be trusted.
    pub holders: Vec<NodeId>,
    /// The one that was split into it and others.
    pub parent: Option<PartitionId>,
    /// The one that was there before any split.
    pub root: PartitionId,
    /// How many of those that came of it are there, or have come to be ancestors themselves.
    pub children: u32,
}

impl Partition {
    /// Nodes whose acknowledgements count.
    pub fn voters(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.replicas.iter().filter(|replica| replica.state == ReplicaState::Voting).map(|replica| replica.node)
    }

    /// Whether its node has given up on the replica there.
    pub fn has_failed(&self, node: NodeId) -> bool {
        self.replica(node).is_some_and(|replica| replica.failed)
    }

    /// Nodes that are sent rows: those that vote, and those that will.
    pub fn takers(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.replicas.iter().filter(|replica| replica.state != ReplicaState::Leaving).map(|replica| replica.node)
    }

    /// Whether the voters would be those of the epoch before if this node voted no longer, or did again.
    pub fn reverts(&self, node: NodeId) -> bool {
        let others = self.voters().filter(|voter| *voter != node);
        let mut toggled: Vec<NodeId> =
            others.chain(Some(node).filter(|_| self.voters().all(|voter| voter != node))).collect();
        toggled.sort_unstable();
        toggled == self.previous_voters
    }

    /// Whether a replica is on its way out.
    pub fn has_leaving(&self) -> bool {
        self.replicas.iter().any(|replica| replica.state == ReplicaState::Leaving)
    }

    /// The replica on that node.
    pub fn replica(&self, node: NodeId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.node == node)
    }
}

/// A replica's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The node that holds it.
    pub node: NodeId,
    /// Whether it counts.
    pub state: ReplicaState,
    /// Its node has started it again and again in vain: another node is to have one in its place.
    pub failed: bool,
}

/// Whether a replica counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaState {
    /// New or emptied: it gets writes and pulls the rest, and counts for nothing.
    Joining,
    /// Its acknowledgements count.
    Voting,
    /// It counts no longer and takes no writes; it goes once enough voters hold what it holds.
    Leaving,
}

/// Everything that is agreed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Catalog {
    /// Names the cluster, so that strangers and old lives are recognised. Zero until the first node has founded it.
    pub cluster_id: u64,
    /// Changes so far: goes up by one with every command that changed something.
    pub version: u64,
    /// Members.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Tables.
    pub tables: BTreeMap<TableId, Table>,
    /// Partitions of all tables.
    pub partitions: BTreeMap<PartitionId, Partition>,
    /// Partitions that were split.
    pub ancestors: BTreeMap<PartitionId, Ancestor>,
    /// The next free number for tables and partitions.
    pub next_id: u64,
    /// Replicas are not moved for balance.
    pub balance_paused: bool,
    #[serde(skip)]
    pub(crate) held: Held,
}

impl Catalog {
    /// The table of that name.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.values().find(|table| table.name == name)
    }

    /// The partitions of a table, in its order.
    pub fn partitions_of<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = &'a Partition> + 'a {
        table.partitions.iter().filter_map(|id| self.partitions.get(id))
    }

    /// The partition that holds an encoded partition key. There is always one, but for a table whose partitions come
    /// with their rows ([`Table::has_windows`]).
    pub fn partition_for(&self, table: &Table, encoded: &[u8]) -> Option<&Partition> {
        let place = match &table.partitioning {
            Partitioning::Hash { buckets, .. } => {
                usize::try_from(shoal_kernel::key::partition_hash(encoded) % u64::from((*buckets).max(1))).ok()?
            }
            Partitioning::Range { .. } | Partitioning::Value { .. } => table
                .partitions
                .partition_point(|id| {
                    matches!(self.partitions.get(id).map(|partition| &partition.bounds),
                    Some(PartitionBounds::Range(range)) if range.begins_by(encoded))
                })
                .checked_sub(1)?,
        };
        let partition = self.partitions.get(table.partitions.get(place)?)?;
        match &partition.bounds {
            PartitionBounds::Range(range) => range.contains(encoded).then_some(partition),
            PartitionBounds::Bucket(_) => Some(partition),
        }
    }
}
