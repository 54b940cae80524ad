//! Carries one query's events to the connection. Rows never pass the session's mailbox: they go from the query's bounded
//! stream to the connection's bounded queue, and wait here for credit.

use actix_web::web::Data;
use actix_ws::Closed;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::StreamEncoder;
use arrow::record_batch::RecordBatch;
use shoal_actors::service::{QueryEvent, QueryStream, SqlRequest};
use shoal_kernel::{Applied, Error, ErrorCode, QueryId};
use tokio_util::sync::CancellationToken;

use super::credit::Credit;
use super::message::{self, Protocol};
use crate::format::{RowForm, columns_json, write_rows};
use crate::http::Doors;

/// Bytes that a message of rows aims at; a batch becomes several messages, so that small credit moves large batches.
const MESSAGE_BYTES: usize = 64 << 10;

/// One query of a session.
pub(super) struct Pump {
    pub(super) id: String,
    pub(super) query: QueryId,
    pub(super) connection: actix_ws::Session,
    pub(super) protocol: Protocol,
    pub(super) credit: Credit,
    /// Cancelled by the client's `cancel`, or with the whole session.
    pub(super) cancel: CancellationToken,
}

/// Why a query's messages end.
enum Outcome {
    /// All has been said.
    Said,
    /// Nobody listens any more.
    Gone,
    /// This is still to be said.
    Failed(Error),
}

impl From<Closed> for Outcome {
    fn from(_: Closed) -> Self {
        Self::Gone
    }
}

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Pump {
    /// Runs the query to its `end` or `error`.
    pub(super) async fn run(mut self, doors: Data<Doors>, request: SqlRequest) {
        let cancel = self.cancel.clone();
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => Outcome::Failed(
                Error::new(ErrorCode::Cancelled, format!("query {} was cancelled", self.query))
                    .with_applied(Applied::Unknown),
            ),
            outcome = self.carry(doors, request) => outcome,
        };
        if let Outcome::Failed(error) = outcome {
            let text = message::error(Some(&self.id), Some(self.query), &error);
            let _ = self.connection.text(text).await;
        }
    }

    async fn carry(&mut self, doors: Data<Doors>, request: SqlRequest) -> Outcome {
        match doors.backend.sql(request).await {
            Ok(stream) => self.events(stream).await.unwrap_or_else(|outcome| outcome),
            Err(error) => Outcome::Failed(error),
        }
    }

    async fn events(&mut self, mut stream: QueryStream) -> Result<Outcome, Outcome> {
        let mut ipc = None;
        while let Some(event) = stream.next().await {
            match event {
                QueryEvent::Schema(schema) => ipc = self.schema(&schema).await?,
                QueryEvent::Batch(batch) => self.batch(&batch, &mut ipc).await?,
                QueryEvent::Progress(progress) => self.connection.text(message::progress(&self.id, &progress)).await?,
                QueryEvent::Done(done) => self.connection.text(message::command(&self.id, &done)).await?,
                QueryEvent::End(summary) => {
                    if let Some(stream) = ipc.take() {
                        self.binary(stream.finish().map_err(unsupported)?).await?;
                    }
                    self.connection.text(message::end(&self.id, self.query, &summary)).await?;
                    return Ok(Outcome::Said);
                }
                QueryEvent::Error(error) => return Err(Outcome::Failed(error)),
            }
        }
        Err(Outcome::Failed(Error::internal("the query ended without saying so").with_applied(Applied::Unknown)))
    }

    async fn schema(&mut self, schema: &SchemaRef) -> Result<Option<StreamEncoder>, Outcome> {
        self.connection.text(message::schema(&self.id, self.query, &columns_json(schema))).await?;
        if self.protocol == Protocol::Json {
            return Ok(None);
        }
        let mut stream = StreamEncoder::try_new(schema).map_err(unsupported)?;
        let empty = RecordBatch::new_empty(schema.clone());
        let begin = stream.encode(&empty).map_err(unsupported)?;
        self.binary(begin).await?;
        Ok(Some(stream))
    }

    async fn batch(&mut self, batch: &RecordBatch, ipc: &mut Option<StreamEncoder>) -> Result<(), Outcome> {
        // Memory is a fair guess of what the rows come to on the wire, good enough to cut them into pieces.
        let bytes =
            batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0)).sum::<usize>();
        let pieces = bytes.div_ceil(MESSAGE_BYTES).max(1);
        let rows_per_piece = batch.num_rows().div_ceil(pieces).max(1);
        let mut first = 0;
        while first < batch.num_rows() {
            let rows = rows_per_piece.min(batch.num_rows() - first);
            self.credit.available().await;
            let bytes = match ipc {
                Some(stream) => {
                    let encoded = stream.encode(&batch.slice(first, rows)).map_err(unsupported)?;
                    self.binary(encoded).await?
                }
                None => self.rows(batch, first..first + rows).await?,
            };
            self.credit.spend(bytes);
            first += rows;
        }
        Ok(())
    }

    async fn rows(&mut self, batch: &RecordBatch, rows: std::ops::Range<usize>) -> Result<usize, Outcome> {
        let mut text = Vec::with_capacity(MESSAGE_BYTES);
        text.extend_from_slice(b"{\"type\":\"batch\",\"id\":");
        text.extend_from_slice(serde_json::Value::from(self.id.as_str()).to_string().as_bytes());
        text.extend_from_slice(b",\"rows\":[");
        write_rows(batch, rows, RowForm::Array, b',', &mut text)?;
        text.extend_from_slice(b"]}");
        let bytes = text.len();
        let text = String::from_utf8(text).map_err(|_| Error::internal("JSON that is not UTF-8"))?;
        self.connection.text(text).await?;
        Ok(bytes)
    }

    async fn binary(&mut self, buffers: Vec<arrow::buffer::Buffer>) -> Result<usize, Outcome> {
        let length =
            u16::try_from(self.id.len()).map_err(|_| Error::internal("an id longer than the session takes"))?;
        let mut frame =
            Vec::with_capacity(2 + self.id.len() + buffers.iter().map(|buffer| buffer.len()).sum::<usize>());
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(self.id.as_bytes());
        for buffer in buffers {
            frame.extend_from_slice(&buffer);
        }
        let bytes = frame.len();
        self.connection.binary(frame).await?;
        Ok(bytes)
    }
}

fn unsupported(error: arrow::error::ArrowError) -> Error {
    Error::new(ErrorCode::Unsupported, format!("the rows cannot be written in this protocol: {error}"))
}
