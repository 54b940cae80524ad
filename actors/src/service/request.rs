//! Requests to a node and what comes back.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};
use shoal_catalog::{NewTable, Table};
use shoal_kernel::{Error, Hlc, Planted, QueryId, ReadLevel, SchemaChange, Version, WriteLevel};

use super::observer::{Moment, Observer};
use super::status::SettingStatus;
use crate::backup::ObjectStores;

/// How a node is set up. The doors read it from flags, environment and file; the simulator makes it up.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Where everything durable lies.
    pub data_dir: PathBuf,
    /// Where other nodes reach this one: streams (TCP) and SWIM (UDP) on the same port number.
    pub cluster_address: SocketAddr,
    /// Where clients reach it; told to the others for the console and for redirects.
    pub http_address: SocketAddr,
    /// With whom it fails: replicas of a partition are spread over zones. Nodes that name none are one zone.
    pub zone: String,
    /// Nodes to join through. Empty: found a cluster, or go on with the one in the data directory.
    pub join: Vec<SocketAddr>,
    /// Shared by all nodes of a cluster; authenticates every datagram and connection.
    pub cluster_secret: String,
    /// How far a peer's clock may be ahead, in milliseconds.
    pub clock_skew_max_ms: u64,
    /// Replicas of a node that has been down for so long are made anew on others, in milliseconds.
    pub replace_after_ms: u64,
    /// How often a replica compares what it holds with each of its peers, in milliseconds; 0 is never.
    pub repair_every_ms: u64,
    /// A deletion is forgotten once it is so old and every replica has it, in milliseconds; 0 is never. A write that takes longer is
    /// refused.
    pub purge_after_ms: u64,
    /// That is looked after when a replica has so many old deletions.
    pub purge_tombstones_min: u64,
    /// A memtable is sealed and flushed beyond this many bytes.
    pub memtable_bytes_max: u64,
    /// Bytes of memory that rows of one replica may take which are not flushed: beyond it writes are refused.
    pub memtables_bytes_max: u64,
    /// Memory that all replicas of this node keep pages of segments in together; 0 keeps none.
    pub page_pool_bytes_max: usize,
    /// Replicas of this node that compact at once.
    pub compactions_max: usize,
    /// Bytes that all of them may read and write in a second; 0 is no limit. What somebody asks for is not held back.
    pub compaction_bytes_per_second: u64,
    /// Bytes that all replicas together which are being filled may pull in a second; 0 is no limit. One that serves and has only been
    /// away for a moment is not held back.
    pub fill_bytes_per_second: u64,
    /// A replica that begins empty is filled by whole segment files from a peer with at least so many bytes of them; else row by row.
    pub fill_files_bytes_min: u64,
    /// Bytes that backups and restores may read of this node's disk, or write to it, in a second; 0 is no limit.
    pub backup_bytes_per_second: u64,
    /// Prefixes of the URLs that backups may be at.
    pub backup_urls: Vec<String>,
    /// Opens what is there. Without it there are no backups.
    pub object_stores: Option<Arc<dyn ObjectStores>>,
    /// A replica that has failed so often in a row is made anew on another node, though this one goes on starting it.
    pub replica_failures_max: u32,
    /// Queries pass over a replica that lacks more accepts of its peers', if they can.
    pub read_lag_max: u64,
    /// Writes to a replica are refused as overload while this many of its segments wait to be merged.
    pub segments_overdue_max: usize,
    /// Writes stop when less than this is free on the disk.
    pub disk_reserve_bytes: u64,
    /// Memory that all queries of this node may use together.
    pub query_memory_bytes_max: usize,
    /// Bytes that all queries of this node together may have on disk when memory does not hold them; 0 is none.
    pub spill_bytes_max: u64,
    /// Rows of a batch that operators hand on.
    pub query_batch_rows: usize,
    /// Queries that run at once; further ones wait.
    pub queries_max: usize,
    /// Queries that may wait; further ones are refused.
    pub queries_queued_max: usize,
    /// Tasks that the scan of one partition is split into at most: the node's cores, for want of a better number.
    pub scan_slices_max: usize,
    /// Rows that make such a task worth its while.
    pub scan_slice_rows_min: u64,
    /// Bytes that a task of a query may be ahead of whoever takes its rows.
    pub edge_window_bytes: u32,
    /// Bytes of rows under way from this node to replicas, those that are slow to answer included; beyond it writes are refused.
    pub inflight_bytes_max: u64,
    /// Bytes of writes that may wait for one replica of this node; beyond it they are refused, but for one alone.
    pub replica_queue_bytes_max: u64,
    /// The deadline of a request that names none, in milliseconds.
    pub request_timeout_ms: u64,
    /// All settings as they were given, for `system.settings`; the node goes by the fields above.
    pub settings: Vec<SettingStatus>,
    /// A bug planted on purpose, to prove that the simulator finds it; none outside tests.
    pub planted: Option<Planted>,
    /// Hears what replicas accept; queries then say what they saw. None outside tests.
    pub observer: Option<Arc<dyn Observer>>,
}

impl NodeConfig {
    /// Whether that bug was planted.
    pub(crate) fn has(&self, planted: Planted) -> bool {
        self.planted == Some(planted)
    }

    /// A node with every setting at its default.
    pub fn new(data_dir: impl Into<PathBuf>, cluster_address: SocketAddr, http_address: SocketAddr) -> Self {
        Self {
            data_dir: data_dir.into(),
            cluster_address,
            http_address,
            zone: String::new(),
            join: Vec::new(),
            cluster_secret: String::from("shoal"),
            clock_skew_max_ms: 500,
            replace_after_ms: 600_000,
            repair_every_ms: 600_000,
            purge_after_ms: 3_600_000,
            purge_tombstones_min: 1_000,
            memtable_bytes_max: 64 << 20,
            memtables_bytes_max: 256 << 20,
            page_pool_bytes_max: 256 << 20,
            compactions_max: 1,
            compaction_bytes_per_second: 64 << 20,
            fill_bytes_per_second: 64 << 20,
            fill_files_bytes_min: 16 << 20,
            backup_bytes_per_second: 64 << 20,
            backup_urls: vec!["s3://".into(), "file://".into()],
            object_stores: None,
            // Some ten seconds after the first failure.
            replica_failures_max: 7,
            read_lag_max: 1_000,
            segments_overdue_max: 64,
            disk_reserve_bytes: 256 << 20,
            query_memory_bytes_max: 2 << 30,
            spill_bytes_max: 16 << 30,
            query_batch_rows: 8_192,
            queries_max: 32,
            queries_queued_max: 256,
            scan_slices_max: 2,
            scan_slice_rows_min: 128 << 10,
            edge_window_bytes: 2 << 20,
            inflight_bytes_max: 256 << 20,
            replica_queue_bytes_max: 128 << 20,
            request_timeout_ms: 300_000,
            settings: Vec::new(),
            planted: None,
            observer: None,
        }
    }
}

/// A change of a table that rows ask for.
#[derive(Debug, Clone)]
pub enum Evolution {
    /// It is to be made, unless it exists.
    Create(Box<NewTable>),
    /// Its columns are to change.
    Alter {
        /// The table for which the changes were made.
        table: Arc<Table>,
        /// What is to change.
        changes: Vec<SchemaChange>,
    },
}

/// One SQL statement to run.
#[derive(Debug, Clone)]
pub struct SqlRequest {
    /// The text: exactly one statement.
    pub sql: String,
    /// The id to run it under; made by the node if absent.
    pub query_id: Option<QueryId>,
    /// The level of its reads; if absent, the highest default of the tables that it reads, and for UPDATE and DELETE what their
    /// write needs.
    pub read_level: Option<ReadLevel>,
    /// The level of its writes; the table's default if absent.
    pub write_level: Option<WriteLevel>,
    /// Makes an INSERT of VALUES harmless to send again. Statements that find their rows themselves are refused with one.
    pub token: Option<String>,
    /// Refuse anything that changes data or tables.
    pub read_only: bool,
    /// The deadline; the node's default if absent.
    pub timeout: Option<Duration>,
}

impl SqlRequest {
    /// A statement with every setting at its default.
    pub fn new(sql: impl Into<String>) -> Self {
        Self {
            sql: sql.into(),
            query_id: None,
            read_level: None,
            write_level: None,
            token: None,
            read_only: false,
            timeout: None,
        }
    }
}

/// What a query says while it runs. For rows: one `Schema`, any number of `Batch` and `Progress`, one `End` or `Error`. For a
/// statement without rows: one `Done`, then `End`; or `Error`.
#[derive(Debug, Clone)]
pub enum QueryEvent {
    /// The columns, before the first batch.
    Schema(SchemaRef),
    /// Rows.
    Batch(RecordBatch),
    /// How far it is; at most four a second.
    Progress(Progress),
    /// A statement without rows has been carried out.
    Done(CommandDone),
    /// Everything has been said; the answer is complete.
    End(QuerySummary),
    /// The query failed; what came before is not the whole answer.
    Error(Error),
}

/// How far a query is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Its place in the line, from 1, while the query waits to be admitted.
    pub queued: Option<u32>,
    /// Tasks that have finished.
    pub tasks_done: u32,
    /// Tasks in all.
    pub tasks: u32,
    /// Rows read from replicas.
    pub rows_scanned: u64,
    /// Bytes of Arrow memory read from replicas.
    pub bytes_scanned: u64,
}

/// What a statement without rows did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandDone {
    /// `CREATE TABLE`, `INSERT`, `DELETE`, …
    pub tag: String,
    /// Rows written, if it writes rows.
    pub rows: Option<u64>,
    /// For writes: the level reached.
    pub level: Option<WriteLevel>,
    /// For writes: the greatest version given.
    pub version: Option<Version>,
}

/// The end of a complete answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QuerySummary {
    /// Rows of the answer.
    pub rows: u64,
    /// Time from request to end, in microseconds.
    pub elapsed_micros: u64,
    /// How often it was started again because a node was lost.
    pub restarts: u32,
    /// The level at which it read; none of a statement that answers without rows.
    pub read_level: Option<ReadLevel>,
    /// What was read.
    pub progress: Progress,
    /// No row that was read is newer, if all who read could say so. For statements that write what they have read.
    #[serde(skip)]
    pub newest: Option<Hlc>,
    /// The replicas that were read, as they were then, if all who read said so; only where somebody observes the nodes.
    #[serde(skip)]
    pub seen: Option<Vec<Moment>>,
}

/// A running query. Dropping it cancels the query.
pub struct QueryStream {
    /// The query's id.
    pub id: QueryId,
    pub(crate) events: tokio::sync::mpsc::Receiver<QueryEvent>,
}

impl QueryStream {
    /// A stream and its writing end; the writer waits once `capacity` events are unread.
    pub fn channel(id: QueryId, capacity: usize) -> (tokio::sync::mpsc::Sender<QueryEvent>, Self) {
        let (sender, events) = tokio::sync::mpsc::channel(capacity);
        (sender, Self { id, events })
    }

    /// The next event; `None` after `End` or `Error`.
    pub async fn next(&mut self) -> Option<QueryEvent> {
        self.events.recv().await
    }

    /// Reads everything: the columns (if any), all rows, and what statements without rows did.
    ///
    /// # Errors
    /// The query's own error.
    pub async fn collect(mut self) -> Result<(Option<SchemaRef>, Vec<RecordBatch>, Option<CommandDone>), Error> {
        let (mut schema, mut batches, mut done) = (None, Vec::new(), None);
        while let Some(event) = self.next().await {
            match event {
                QueryEvent::Schema(columns) => schema = Some(columns),
                QueryEvent::Batch(batch) => batches.push(batch),
                QueryEvent::Done(command) => done = Some(command),
                QueryEvent::Progress(_) => {}
                QueryEvent::End(_) => return Ok((schema, batches, done)),
                QueryEvent::Error(error) => return Err(error),
            }
        }
        Err(Error::internal("the query ended without saying so").with_applied(shoal_kernel::Applied::Unknown))
    }
}

/// Rows to write, all of one table, with the table's column names and types (a missing nullable column is NULL).
#[derive(Debug, Clone)]
pub struct WriteRequest {
    /// The table's name.
    pub table: String,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// The level; the table's default if absent.
    pub level: Option<WriteLevel>,
    /// The idempotency key.
    pub token: Option<String>,
    /// The deadline; the node's default if absent.
    pub timeout: Option<Duration>,
}

/// An acknowledged write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteReport {
    /// Rows written.
    pub rows: u64,
    /// The level reached by every partition.
    pub level: WriteLevel,
    /// The greatest version given; a resend names the version of the first time.
    pub version: Version,
    /// The token was known and nothing was written anew.
    pub duplicate: bool,
}
