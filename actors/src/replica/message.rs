//! What replicas hear: from gateways and from each other over the network, and from within their node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use shoal_catalog::Partition;
use shoal_kernel::{Cutoff, Epoch, Error, Hlc, LogId, NodeId, PartitionId, Result, TableSchema, Version};
use shoal_storage::{DigestMoment, PullCursor, SegmentStatus, TokenRecord};
use tokio::sync::oneshot;

use super::heads::Head;
use super::promises::Reserved;
use super::purge::Place;
use super::recent::RecentAccept;
use super::state::{Event, Meta, Ticket};

/// A request to a replica of another node (or this one; the way is the same).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ReplicaCall {
    /// Accept rows.
    Write(WriteCall),
    /// What is known of an idempotency token?
    Token { partition: PartitionId, token: String },
    /// Promise to accept no version for a token under a lower ballot, and say what was accepted.
    Prepare(PrepareCall),
    /// Accept a version for a token.
    Reserve(ReserveCall),
    /// What was accepted after this position, by version?
    Recent { partition: PartitionId, log_id: LogId, after: u64 },
    /// How far do you hold, durably, what a peer accepted?
    Cursor { partition: PartitionId, of: NodeId },
    /// Rows accepted after the cursor.
    Pull { partition: PartitionId, cursor: PullCursor, bytes_max: u64 },
    /// How are your replicas? With digests of versions alone, or of content as well.
    Status { by_content: bool },
    /// Which of these replicas serve, and in which epoch?
    Serving { partitions: Vec<PartitionId> },
    /// What does your wall clock say?
    Wall,
    /// Carry out a task on each of these replicas.
    Maintain { partitions: Vec<PartitionId>, task: MaintenanceTask },
    /// At which key would you split your replica, and how many rows has it?
    SplitPoint { partition: PartitionId },
    /// What do you hold, by bucket?
    Digest { partition: PartitionId },
    /// Rows and tombstones of these buckets, from behind an identity on.
    Buckets { partition: PartitionId, buckets: BTreeSet<u8>, after: ByteBuf, bytes_max: u64 },
    /// Take no more writes from gateways with versions up to there, durably, and say where your log ends.
    Fence { partition: PartitionId, epoch: Epoch, until: Hlc },
    /// Do you hold in segments what these logs hold up to these places?
    Holds { partition: PartitionId, epoch: Epoch, logs: Vec<Place> },
    /// Compare yourself with all your peers and pull what you lack, within so long.
    Repair { partition: PartitionId, patience_ms: u64 },
    /// How much is on your disk, and how much more may be?
    Load,
    /// Which logs has yours gone on from?
    Lineage { partition: PartitionId },
    /// How much have queries read of your replicas lately?
    Asked,
    /// How far do the logs of those of your replicas go of which I have one, too?
    Heads,
    /// Of which segments do your replicas consist?
    Segments,
}

/// What a replica can be asked to do for its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MaintenanceTask {
    /// Everything that was accepted before goes into segments.
    Flush,
    /// That, and then into as few segments as can be.
    Optimize,
}

/// Rows for one partition, all of one version.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WriteCall {
    pub(crate) partition: PartitionId,
    pub(crate) epoch: Epoch,
    /// Row `i` gets ordinal `i`, unless they are a part.
    pub(crate) version: Version,
    pub(crate) token: Option<String>,
    /// The rows are keys, and each of them is deleted.
    pub(crate) deletes: bool,
    /// Other rows of the same write belong to other partitions, which came of the same one.
    pub(crate) part: Option<PartOfWrite>,
    /// One batch, as an Arrow IPC stream.
    #[serde(with = "serde_bytes")]
    pub(crate) rows: Vec<u8>,
}

/// What a part knows of the whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PartOfWrite {
    /// The ordinals of its rows.
    pub(crate) ordinals: Vec<u32>,
    /// Of all rows.
    pub(crate) fingerprint: u128,
}

/// The first half of a ballot on the version of a token's rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PrepareCall {
    pub(crate) partition: PartitionId,
    pub(crate) epoch: Epoch,
    pub(crate) token: String,
    pub(crate) ballot: Version,
}

/// The second half.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ReserveCall {
    pub(crate) partition: PartitionId,
    pub(crate) epoch: Epoch,
    pub(crate) token: String,
    pub(crate) reserved: Reserved,
}

/// The answer to a [`ReplicaCall`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ReplicaAnswer {
    Written(Written),
    Token {
        record: Option<TokenRecord>,
        counts: bool,
    },
    Promised(Promised),
    /// A ballot that is not below this one has been promised.
    Refused(Version),
    Recent(RecentAnswer),
    Cursor(PullCursor),
    Pulled(PulledAnswer),
    Status(Vec<ReplicaReport>),
    Serving(Vec<(PartitionId, Epoch)>),
    /// Microseconds since 1970.
    Wall(u64),
    /// Replicas on which the task was not carried out, and why.
    Maintained(Vec<(PartitionId, Error)>),
    /// A partition key, or why there is none.
    SplitPoint {
        at: std::result::Result<Vec<u8>, String>,
        rows: u64,
    },
    Digest(DigestAnswer),
    Buckets(BucketsAnswer),
    Repaired(Repaired),
    Fenced(LogId, u64),
    Holds(bool),
    /// Bytes that the node can take before it refuses writes, and bytes on disk of its replicas.
    Load {
        room: u64,
        bytes: Vec<(PartitionId, u64)>,
    },
    Lineage(Vec<LogId>),
    /// Bytes that queries have read of replicas within some minutes.
    Asked(Vec<(PartitionId, u64)>),
    Heads(BTreeMap<PartitionId, Head>),
    Segments(Vec<(PartitionId, Vec<SegmentStatus>)>),
}

/// A write is on this replica's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Written {
    /// The version under which the rows stand; the first one if the token was known.
    pub(crate) version: Version,
    /// Whether the token was known.
    pub(crate) duplicate: bool,
    /// Whether this acknowledgement counts.
    pub(crate) counts: bool,
    /// Rows; of those that were pulled, the ones that were news.
    pub(crate) rows: u64,
}

/// A promise for a ballot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Promised {
    /// What the replica has accepted under the highest ballot.
    pub(crate) accepted: Option<Reserved>,
    /// Whether this promise counts.
    pub(crate) counts: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RecentAnswer {
    pub(crate) log_id: LogId,
    /// What the asker's place is worth in this log: if it was in another one, everything up to here is the same in both.
    pub(crate) after: u64,
    pub(crate) position: u64,
    pub(crate) sealed: Epoch,
    /// Whether the peer counts itself.
    pub(crate) counts: bool,
    /// Whether it is settled.
    pub(crate) settled: bool,
    /// Whether it may lack the end of what it has acknowledged.
    pub(crate) in_doubt: bool,
    /// None if some of them have been forgotten: ask for rows.
    pub(crate) accepts: Option<Vec<RecentAccept>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PulledAnswer {
    /// Batches with version and tombstone columns, each as an Arrow IPC stream.
    pub(crate) batches: Vec<ByteBuf>,
    pub(crate) tokens: Vec<TokenRecord>,
    pub(crate) next: PullCursor,
}

/// A replica's digest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DigestAnswer {
    pub(crate) moment: DigestMoment,
    /// It had pulled everything that its peers had told it of.
    pub(crate) caught_up: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BucketsAnswer {
    /// A batch with version and tombstone columns, as an Arrow IPC stream.
    pub(crate) batch: Option<ByteBuf>,
    /// Behind which identity to go on; none at the end.
    pub(crate) next: Option<ByteBuf>,
}

/// What a replica's comparison with its peers came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Repaired {
    /// Peers that it has compared itself with.
    pub(crate) compared: u32,
    /// Buckets that differed.
    pub(crate) buckets: BTreeSet<u8>,
    /// Rows and tombstones that it lacked.
    pub(crate) rows: u64,
    /// Peers that could not be compared with, and why.
    pub(crate) failed: Vec<(NodeId, Error)>,
}

/// How a replica is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReplicaReport {
    pub(crate) partition: PartitionId,
    pub(crate) epoch: Epoch,
    pub(crate) serves: bool,
    pub(crate) lag: Option<u64>,
    pub(crate) log_id: Option<LogId>,
    pub(crate) position: Option<u64>,
    pub(crate) rows: Option<u64>,
    pub(crate) bytes: Option<u64>,
    pub(crate) segments: Option<u64>,
    pub(crate) segments_overdue: Option<u64>,
    pub(crate) digest: Option<String>,
    pub(crate) restarts: u32,
    pub(crate) problem: Option<String>,
}

/// What the replica actor hears. Rows that wait for a commit were admitted by bytes before they came here.
pub(crate) enum ReplicaMessage {
    /// Accept rows.
    Write { epoch: Epoch, bytes: u64, write: shoal_storage::Write, answer: oneshot::Sender<Result<Written>> },
    /// Promise for a ballot; the inner error is the ballot in the way.
    Prepare { epoch: Epoch, token: String, ballot: Version, answer: oneshot::Sender<Result<Result<Promised, Version>>> },
    /// Accept a version for a token.
    Reserve { epoch: Epoch, token: String, reserved: Reserved, answer: oneshot::Sender<Result<Written>> },
    /// Accept rows pulled from a peer.
    Pulled {
        bytes: u64,
        write: shoal_storage::Write,
        /// The writes that the rows belong to, by version with ordinal 0.
        writes: Vec<Version>,
        answer: oneshot::Sender<Result<Written>>,
    },
    /// Which accepts came after that position?
    Recent { log_id: LogId, after: u64, answer: oneshot::Sender<RecentAnswer> },
    /// How far its log goes.
    Head { answer: oneshot::Sender<Head> },
    /// How far does this replica know a peer's accepts?
    Covers { from: u64, accepts: Vec<RecentAccept>, answer: oneshot::Sender<u64> },
    /// The catalog's newest word on the partition.
    Catalog(Partition),
    /// The catalog's newest word on what the table's rows look like.
    Schema(Arc<TableSchema>),
    /// Rows of the table below it are gone, the catalog says.
    Cutoff(Cutoff),
    /// Something happened.
    Event(Event),
    /// A commit has ended.
    Committed { tickets: Vec<Ticket>, outcome: Result<Vec<Result<shoal_storage::Accepted>>> },
    /// How far the peers' logs have been pulled, to be remembered.
    Cursors(BTreeMap<NodeId, PullCursor>),
    /// How far are a peer's accepts held durably?
    Cursor { of: NodeId, answer: oneshot::Sender<PullCursor> },
    /// The durable part was written with this core, these cursors and this fence.
    Persisted(Meta, BTreeMap<NodeId, PullCursor>, Hlc),
    /// Take no more writes from gateways up to that version.
    Fence { epoch: Epoch, until: Hlc, answer: oneshot::Sender<Result<(LogId, u64)>> },
    /// The store takes none any more, and its log ended there.
    Fenced { until: Hlc, place: (LogId, u64), answer: oneshot::Sender<Result<(LogId, u64)>> },
    /// Is everything here, durably, that these logs hold?
    Holds { epoch: Epoch, logs: Vec<Place>, answer: oneshot::Sender<Result<bool>> },
    /// What was accepted before that time of the monotonic clock is durable.
    Synced { begun: Duration },
    /// Reading found damage on the disk.
    Damaged(Error),
    /// Something that the actor had others do has failed for good.
    Failed(Error),
    /// Carry out a task; answered once it is done.
    Maintain { task: MaintenanceTask, answer: oneshot::Sender<Result<()>> },
    /// Whether it may answer reads, and why not.
    Report { answer: oneshot::Sender<CoreReport> },
}

/// What only the actor itself can say.
pub(crate) struct CoreReport {
    pub(crate) epoch: Epoch,
    pub(crate) sealed: Epoch,
    pub(crate) serves: bool,
    pub(crate) counts: bool,
    pub(crate) problem: Option<&'static str>,
    /// The voters of that epoch.
    pub(crate) voters: Vec<NodeId>,
    /// Whether it, and any majority of the voters, holds everything that was acknowledged at quorum in epochs before.
    pub(crate) holds_past: bool,
}
