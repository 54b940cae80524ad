//! Rows of a replica as a stream: blocking steps off the async threads, a little ahead of the reader.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use shoal_kernel::{Env, Error, ErrorCode, FetchSpec, FrontierSource, Result, ScanSpec, TableId};
use tokio::sync::{mpsc, oneshot};

use super::edge::codec::with_schema;
use super::edge::output::batch_bytes;
use super::message::Failure;
use super::ports::{BatchIterator, PartitionSnapshot};
use super::tasks::TaskGroup;
use crate::query::to_datafusion;

/// Batches that wait for the reader.
const READ_AHEAD: usize = 2;
/// One blocking step reads about so much: enough to be worth the hop between threads, little enough to be cancelled soon.
const STEP_BYTES: usize = 1 << 20;
/// Batches of one blocking step: filters may leave nearly nothing of each.
const STEP_BATCHES_MAX: usize = 16;

enum Item {
    Batch(RecordBatch),
    Failed(Error),
    /// Said out loud, so that a reader that died cannot be taken for the end of the partition.
    End,
}

/// Starts a scan of a pinned partition.
///
/// # Errors
/// The partition was not pinned.
pub(super) fn scan(
    group: &Arc<TaskGroup>,
    spec: &ScanSpec,
    schema: SchemaRef,
    frontier: Option<FrontierSource>,
) -> Result<SendableRecordBatchStream> {
    let partition = spec.partition;
    let snapshot = group.pinned(partition)?;
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let env = group.node.env.clone();
    let reading = read(env.clone(), snapshot, spec.clone(), frontier, sender);
    env.spawn("scan", group.scans.track_future(reading));

    let group = group.clone();
    let expected = schema.clone();
    let state = (receiver, group, expected, false);
    let rows = futures::stream::unfold(state, move |(mut receiver, group, expected, ended)| async move {
        if ended {
            return None;
        }
        let result = match receiver.recv().await {
            Some(Item::Batch(batch)) => {
                group.count_scanned(batch.num_rows(), batch_bytes(&batch));
                with_schema(batch, &expected)
            }
            Some(Item::End) => return None,
            Some(Item::Failed(error)) => Err(error),
            None => Err(Error::internal(format!("the scan of partition {partition} stopped without an end"))),
        };
        let failed = result.is_err();
        if let Err(error) = &result {
            let replica = blames_replica(error.code()).then_some((partition, group.node.id));
            group.note_failure(Failure { error: error.clone(), lost: None, replica });
        }
        Some((result.map_err(to_datafusion), (receiver, group, expected, failed)))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows.boxed())))
}

/// Reads more columns of rows that a scan of a pinned partition found.
///
/// # Errors
/// This node holds no such replica, or what it holds cannot be read.
pub(super) async fn fetch(group: Arc<TaskGroup>, spec: FetchSpec, addresses: Vec<u64>) -> Result<RecordBatch> {
    let partition = spec.partition;
    let reading = async {
        let snapshot = reached(group.pinned(partition)?, spec.table, spec.schema_version).await?;
        let (sender, receiver) = oneshot::channel();
        let env = group.node.env.clone();
        // A task of its own, which whoever lets go of the snapshots waits for, also if the reader has gone.
        let fetching = async move {
            let fetched = env.blocking(move || snapshot.fetch(&spec, &addresses)).await;
            let _ = sender.send(fetched.map_err(Error::from).and_then(|fetched| fetched));
        };
        group.node.env.spawn("fetch", group.scans.track_future(fetching));
        receiver.await.unwrap_or_else(|_| Err(Error::internal("fetching rows broke off")))
    };
    let fetched = reading.await;
    match &fetched {
        Ok(batch) => group.count_scanned(0, batch_bytes(batch)),
        Err(error) => {
            let replica = blames_replica(error.code()).then_some((partition, group.node.id));
            group.note_failure(Failure { error: error.clone(), lost: None, replica });
        }
    }
    fetched
}

/// Whether another replica may well do better.
pub(super) fn blames_replica(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Corruption
            | ErrorCode::Io
            | ErrorCode::PartitionUnavailable
            | ErrorCode::NotEnoughReplicas
            | ErrorCode::Moved
    )
}

/// The snapshot under the schema that the reader was planned with, or a newer one.
pub(super) async fn reached(
    snapshot: Arc<dyn PartitionSnapshot>,
    table: TableId,
    schema_version: u32,
) -> Result<Arc<dyn PartitionSnapshot>> {
    match snapshot.behind(table, schema_version) {
        Some(reached) => reached.await,
        None => Ok(snapshot),
    }
}

async fn read(
    env: Env,
    snapshot: Arc<dyn PartitionSnapshot>,
    spec: ScanSpec,
    frontier: Option<FrontierSource>,
    sender: mpsc::Sender<Item>,
) {
    // A reader that says where it stands shall have said so before much has been read in vain.
    let mut batches_max = if frontier.is_some() { 1 } else { STEP_BATCHES_MAX };
    let snapshot = match reached(snapshot, spec.table, spec.schema_version).await {
        Ok(snapshot) => snapshot,
        Err(error) => {
            let _ = sender.send(Item::Failed(error)).await;
            return;
        }
    };
    let opened = env.blocking(move || snapshot.scan(&spec, frontier)).await;
    let mut batches = match opened.map_err(Error::from).and_then(|opened| opened) {
        Ok(batches) => batches,
        Err(error) => {
            let _ = sender.send(Item::Failed(error)).await;
            return;
        }
    };
    loop {
        let (rest, items) = match env.blocking(move || step(batches, batches_max)).await {
            Ok(stepped) => stepped,
            Err(lost) => {
                let _ = sender.send(Item::Failed(lost.into())).await;
                return;
            }
        };
        for item in items {
            if sender.send(item).await.is_err() {
                return;
            }
        }
        match rest {
            Some(rest) if !sender.is_closed() => {
                batches = rest;
                batches_max = STEP_BATCHES_MAX.min(2 * batches_max);
            }
            _ => return,
        }
    }
}

/// Reads at most so many batches; gives the iterator back if there may be more.
fn step(mut batches: BatchIterator, batches_max: usize) -> (Option<BatchIterator>, Vec<Item>) {
    let (mut items, mut bytes) = (Vec::new(), 0);
    for _ in 0..batches_max {
        match batches.next() {
            Some(Ok(batch)) if batch.num_rows() == 0 => {}
            Some(Ok(batch)) => {
                bytes += batch_bytes(&batch);
                items.push(Item::Batch(batch));
            }
            Some(Err(error)) => {
                items.push(Item::Failed(error));
                return (None, items);
            }
            None => {
                items.push(Item::End);
                return (None, items);
            }
        }
        if bytes >= STEP_BYTES {
            break;
        }
    }
    (Some(batches), items)
}
