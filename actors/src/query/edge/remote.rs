//! An edge whose producer runs on another node.

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use shoal_kernel::limits::FRAME_BYTES_MAX;
use shoal_kernel::{Error, ErrorCode, NodeId, Planted, Result, wire};

use super::codec::{EdgeDecoder, EdgeEncoder, EdgeItem, OpenEdge};
use crate::query::message::Failure;
use crate::query::node::QueryNode;
use crate::query::tasks::TaskGroup;
use crate::query::to_datafusion;
use crate::transport::{Route, StreamReceiver, StreamSender};

/// How long a slot may be asked for before its producer has started.
pub(crate) const START_WAIT: Duration = Duration::from_millis(10_000);

/// Room in a frame for its header.
const FRAME_RESERVE_BYTES: usize = 1 << 10;

/// Reads a slot on another node. Opened when it is first polled: until then its producer fills its own window only.
pub(crate) fn read(
    group: Arc<TaskGroup>,
    node: NodeId,
    edge: OpenEdge,
    schema: SchemaRef,
) -> SendableRecordBatchStream {
    let reader = RemoteEdge { group, node, edge, schema: schema.clone(), phase: Phase::Unopened };
    let rows = futures::stream::try_unfold(reader, RemoteEdge::next);
    Box::pin(RecordBatchStreamAdapter::new(schema, rows.boxed()))
}

enum Phase {
    Unopened,
    Open(StreamReceiver, EdgeDecoder),
    Ended,
}

struct RemoteEdge {
    group: Arc<TaskGroup>,
    node: NodeId,
    edge: OpenEdge,
    schema: SchemaRef,
    phase: Phase,
}

impl RemoteEdge {
    async fn next(mut self) -> Result<Option<(RecordBatch, Self)>, DataFusionError> {
        let item = self.item().await;
        match item {
            Ok(Some(batch)) => Ok(Some((batch, self))),
            Ok(None) => {
                self.phase = Phase::Ended;
                Ok(None)
            }
            Err(failure) => {
                self.phase = Phase::Ended;
                if failure.lost.is_some() {
                    self.group.note_failure(failure.clone());
                }
                Err(to_datafusion(failure.error))
            }
        }
    }

    /// The next batch, or `None` once the producer has said that it was all.
    async fn item(&mut self) -> Result<Option<RecordBatch>, Failure> {
        loop {
            match &mut self.phase {
                Phase::Unopened => {
                    let header = wire::encode(&self.edge).map_err(|error| Failure::plain(error.into()))?;
                    let node = &self.group.node;
                    let opened = node
                        .transport
                        .open(self.node, Route::Edge, header.into(), node.limits.edge_window_bytes, START_WAIT)
                        .await;
                    let receiver = opened.map_err(|error| Failure::lost(self.node, &error))?;
                    self.phase = Phase::Open(receiver, EdgeDecoder::new(self.schema.clone()));
                }
                Phase::Open(receiver, decoder) => {
                    let bytes = match receiver.next().await {
                        Some(Ok(bytes)) => bytes,
                        _ if self.group.node.limits.planted == Some(Planted::EndMissing) => return Ok(None),
                        // The producer's own failures come as items: an error of the stream is one of the way.
                        Some(Err(error)) => return Err(Failure::lost(self.node, &error)),
                        None => {
                            let cut = Error::new(ErrorCode::NodeLost, "its stream ended without saying so");
                            return Err(Failure::lost(self.node, &cut));
                        }
                    };
                    metrics::counter!("shoal_edge_received_bytes_total").increment(bytes.len() as u64);
                    match decoder.item(bytes).map_err(Failure::plain)? {
                        EdgeItem::Batch(batch) => return Ok(Some(batch)),
                        EdgeItem::End => return Ok(None),
                        EdgeItem::Failure(error) => return Err(Failure::plain(error)),
                    }
                }
                Phase::Ended => return Ok(None),
            }
        }
    }
}

impl Drop for RemoteEdge {
    fn drop(&mut self) {
        // An open stream is cancelled by dropping its receiver; one that was never opened has to be given back in words.
        if matches!(self.phase, Phase::Unopened) {
            self.group.node.discard_edge(self.node, self.edge);
        }
    }
}

/// Serves a slot of a task here to a consumer on another node.
pub(crate) async fn serve(node: Arc<QueryNode>, header: Bytes, out: StreamSender) {
    let closed = out.closed();
    tokio::pin!(closed);
    let claimed = async {
        let edge: OpenEdge = wire::decode(&header)?;
        let output = node.edges.find(&node.env, edge.producer, START_WAIT).await?;
        output.claim(edge.slot)
    };
    let claimed = tokio::select! {
        biased;
        () = &mut closed => return,
        claimed = claimed => claimed,
    };
    let mut reader = match claimed {
        Ok(reader) => reader,
        Err(error) => return finish(out, EdgeEncoder::failure(&error)).await,
    };
    let mut encoder = EdgeEncoder::new();
    loop {
        let next = tokio::select! {
            biased;
            () = &mut closed => return,
            next = reader.next() => next,
        };
        let item = match next {
            Some(Ok(batch)) => encoder.batch(&batch).and_then(fits_a_frame),
            Some(Err(error)) => return finish(out, EdgeEncoder::failure(&error)).await,
            None => return finish(out, encoder.end()).await,
        };
        let item = match item {
            Ok(item) => item,
            Err(error) => return finish(out, EdgeEncoder::failure(&error)).await,
        };
        metrics::counter!("shoal_edge_sent_bytes_total").increment(item.len() as u64);
        if out.send(item).await.is_err() {
            return;
        }
    }
}

/// Batches are cut to a fraction of a frame; only a single row can be larger than one.
fn fits_a_frame(item: Bytes) -> Result<Bytes> {
    let bytes_max = FRAME_BYTES_MAX - FRAME_RESERVE_BYTES;
    if item.len() <= bytes_max {
        return Ok(item);
    }
    Err(Error::new(
        ErrorCode::LimitExceeded,
        format!("a row takes {} bytes, more than {bytes_max} on an edge", item.len()),
    ))
}

async fn finish(out: StreamSender, last: Result<Bytes>) {
    match last {
        Ok(item) => {
            if out.send(item).await.is_ok() {
                out.finish().await;
            }
        }
        Err(error) => out.fail(error).await,
    }
}
