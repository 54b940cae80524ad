//! Reads of a few rows by key: one question to one replica, without an actor, a task or an edge, and without waiting for a turn.
//!
//! There is one attempt. Whatever is in its way is an error here, and the same statement is then run as a query, which knows how to
//! go round it: so nothing is lost by giving up early.

use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use shoal_kernel::{Error, ErrorCode, Hlc, NodeId, PartitionId, QueryId, ReadLevel, Result, ScanSpec};
use shoal_planner::KeyRead;

use super::edge::output::batch_bytes;
use super::message::{Reply, Request};
use super::node::{QueryNode, laggard, stopping};
use super::scan::reached;
use super::service::{QueryService, RunOptions};
use crate::batch;
use crate::service::{Moment, Progress, QueryEvent, QueryStream, QuerySummary};

/// Reads that a node answers at once; others wait.
pub(super) const READS_MAX: usize = 32;
/// Bytes of Arrow memory that one may find.
const BYTES_MAX: usize = 1 << 20;
/// How long another node may take: much longer than such a read does.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long this node may take, with what its replica has to hear of others for a read at quorum.
const PATIENCE_HERE: Duration = Duration::from_secs(1);

/// Read these rows of a replica of yours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReadRows {
    scan: ScanSpec,
    read_level: ReadLevel,
    timeout_ms: u64,
}

/// What was read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RowsRead {
    /// Each batch as an Arrow IPC stream.
    batches: Vec<ByteBuf>,
    /// The replica, as it was then, if somebody observes the node.
    seen: Option<Vec<Moment>>,
    /// None of the rows is newer.
    newest: Hlc,
}

/// Rows that were found by key.
pub(crate) struct Found {
    pub(crate) batches: Vec<RecordBatch>,
    seen: Option<Vec<Moment>>,
    /// None of them is newer.
    pub(crate) newest: Hlc,
}

impl QueryService {
    /// Answers a read by key.
    ///
    /// # Errors
    /// As [`Self::find_by_key`].
    pub async fn read_by_key(&self, read: &KeyRead, id: QueryId, options: &RunOptions) -> Result<QueryStream> {
        let node = &self.node;
        let began = node.env.monotonic();
        let found = self.find_by_key(read, id, options).await?;
        metrics::counter!("shoal_key_reads_total").increment(1);
        let answer = read.answer(&found.batches)?;
        let rows = answer.as_ref().map_or(0, |batch| batch.num_rows() as u64);
        let bytes: usize = found.batches.iter().map(batch_bytes).sum();
        let elapsed = node.env.monotonic().saturating_sub(began);
        let progress =
            Progress { queued: None, tasks_done: 1, tasks: 1, rows_scanned: rows, bytes_scanned: bytes as u64 };
        let summary = QuerySummary {
            rows,
            elapsed_micros: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            read_level: Some(options.read_level),
            progress,
            seen: found.seen,
            ..QuerySummary::default()
        };
        let said = [
            Some(QueryEvent::Schema(read.schema.clone())),
            answer.map(QueryEvent::Batch),
            Some(QueryEvent::End(summary)),
        ];
        let (events, stream) = QueryStream::channel(id, said.len());
        for event in said.into_iter().flatten() {
            // There is room for all.
            let _ = events.try_send(event);
        }
        Ok(stream)
    }

    /// Finds rows by key.
    ///
    /// # Errors
    /// The id is none for a query here, or the replica that was asked has not answered as quickly as it should, cannot be read, or has
    /// found more than such a read is for.
    pub(crate) async fn find_by_key(&self, read: &KeyRead, id: QueryId, options: &RunOptions) -> Result<Found> {
        let node = &self.node;
        node.taking()?;
        if id.coordinator() != node.id || node.query(id).is_some() {
            return Err(Error::new(ErrorCode::InvalidRequest, format!("{id} is no id for a query here")));
        }
        let from = replica_of(node, read.scan.partition)?;
        match from == node.id {
            true => read_here(node, read.scan.clone(), options.read_level, options.timeout.min(PATIENCE_HERE)).await,
            false => ask(node, from, &read.scan, options).await,
        }
    }
}

/// The node whose replica is read: this one, if it has one.
fn replica_of(node: &QueryNode, partition: PartitionId) -> Result<NodeId> {
    let candidates = node.placement.candidates(partition);
    let suspected = node.suspected();
    let answering = candidates.all().find(|candidate| !suspected.contains(candidate));
    if answering.is_some_and(|node| candidates.level.contains(&node)) {
        for other in &candidates.behind {
            node.env.reached(laggard(*other == node.id));
        }
    }
    answering.ok_or_else(|| {
        let message = format!("no replica of {partition} is on a node that answers");
        Error::new(ErrorCode::PartitionUnavailable, message)
    })
}

async fn ask(node: &QueryNode, from: NodeId, scan: &ScanSpec, options: &RunOptions) -> Result<Found> {
    let timeout = options.timeout.min(PATIENCE);
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let question = ReadRows { scan: scan.clone(), read_level: options.read_level, timeout_ms };
    match node.ask_watched(from, &Request::Read(question), timeout, true).await? {
        Reply::Read(read) => {
            let RowsRead { batches, seen, newest } = read?;
            let batches = batches.iter().map(|bytes| batch::decode(bytes)).collect::<Result<_>>()?;
            Ok(Found { batches, seen, newest })
        }
        _ => Err(Error::internal(format!("node {from} answered something else than was asked"))),
    }
}

/// Answers another node.
pub(super) async fn answer(node: &Arc<QueryNode>, question: ReadRows) -> Result<RowsRead> {
    node.taking()?;
    let ReadRows { scan, read_level, timeout_ms } = question;
    let found = read_here(node, scan, read_level, Duration::from_millis(timeout_ms)).await?;
    let Found { batches, seen, newest } = found;
    let batches = batches.iter().map(|rows| batch::encode(rows).map(ByteBuf::from)).collect::<Result<_>>()?;
    Ok(RowsRead { batches, seen, newest })
}

async fn read_here(node: &Arc<QueryNode>, scan: ScanSpec, level: ReadLevel, timeout: Duration) -> Result<Found> {
    let until = node.env.monotonic().saturating_add(timeout);
    let late = || Error::new(ErrorCode::Timeout, "a read by key has not ended in time");
    let found = async {
        let _place = node.key_reads.acquire().await.map_err(|_| stopping())?;
        let snapshot = match level {
            ReadLevel::One => node.replicas.snapshot(scan.partition)?,
            ReadLevel::Quorum => node.replicas.snapshot_at_quorum(scan.partition, timeout).await?,
        };
        let seen = node.limits.observed.then(|| snapshot.moment(scan.partition, node.id).into_iter().collect());
        let snapshot = reached(snapshot, scan.table, scan.schema_version).await?;
        let env = node.env.clone();
        let read = move || -> Result<Vec<RecordBatch>> {
            let (mut batches, mut bytes) = (Vec::new(), 0);
            for batch in snapshot.scan(&scan, None)? {
                let batch = batch?;
                bytes += batch_bytes(&batch);
                if bytes > BYTES_MAX {
                    let message = format!("a read by key found more than {BYTES_MAX} bytes");
                    return Err(Error::new(ErrorCode::LimitExceeded, message));
                }
                if batch.num_rows() > 0 {
                    batches.push(batch);
                }
                // Nobody waits any more.
                if env.monotonic() > until {
                    return Err(late());
                }
            }
            Ok(batches)
        };
        let batches = node.env.blocking(read).await??;
        // Asked afterwards: by then no row of the snapshot is above it.
        Ok(Found { batches, seen, newest: node.replicas.newest() })
    };
    node.env.timeout(timeout, found).await.unwrap_or_else(|_| Err(late()))
}
