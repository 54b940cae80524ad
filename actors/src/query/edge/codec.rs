//! Batches between nodes: each item of an edge's stream is one frame of an Arrow IPC stream, followed by one byte that says
//! what the item is. The schema travels once, in front of the first batch. The last item is always an end or a failure: an
//! edge that stops without one was cut off, and its rows are no answer.

use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamEncoder;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_kernel::{Error, ErrorCode, FragmentKey, Result, wire};

const BATCH: u8 = 1;
const END: u8 = 2;
const FAILURE: u8 = 3;

/// Asks for a slot of a task's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenEdge {
    /// The producer.
    pub(crate) producer: FragmentKey,
    /// The slot.
    pub(crate) slot: u32,
}

/// The producer's side of an edge's stream.
pub(crate) struct EdgeEncoder {
    encoder: Option<StreamEncoder>,
    rows: u64,
}

impl EdgeEncoder {
    pub(crate) fn new() -> Self {
        Self { encoder: None, rows: 0 }
    }

    /// The item of a batch.
    ///
    /// # Errors
    /// A type that Arrow IPC cannot carry.
    pub(crate) fn batch(&mut self, batch: &RecordBatch) -> Result<Bytes> {
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            none => none.insert(StreamEncoder::try_new(batch.schema_ref()).map_err(unencodable)?),
        };
        let buffers = encoder.encode(batch).map_err(unencodable)?;
        let mut item = Vec::with_capacity(buffers.iter().map(Buffer::len).sum::<usize>() + 1);
        for buffer in &buffers {
            item.extend_from_slice(buffer);
        }
        item.push(BATCH);
        self.rows += batch.num_rows() as u64;
        Ok(item.into())
    }

    /// The last item of a complete output.
    ///
    /// # Errors
    /// None in practice; encoding is fallible by its type.
    pub(crate) fn end(&self) -> Result<Bytes> {
        last(&self.rows, END)
    }

    /// The last item of a failed output.
    ///
    /// # Errors
    /// None in practice; encoding is fallible by its type.
    pub(crate) fn failure(error: &Error) -> Result<Bytes> {
        last(error, FAILURE)
    }
}

fn last<T: Serialize>(value: &T, kind: u8) -> Result<Bytes> {
    let mut item = wire::encode(value)?;
    item.push(kind);
    Ok(item.into())
}

fn unencodable(error: ArrowError) -> Error {
    Error::new(ErrorCode::Unsupported, format!("a batch cannot travel between nodes: {error}"))
}

/// What an item was.
#[derive(Debug)]
pub(crate) enum EdgeItem {
    /// Rows.
    Batch(RecordBatch),
    /// The output is complete.
    End,
    /// The producer failed.
    Failure(Error),
}

/// The consumer's side of an edge's stream.
pub(crate) struct EdgeDecoder {
    decoder: StreamDecoder,
    schema: SchemaRef,
    rows: u64,
}

impl EdgeDecoder {
    /// Expects batches of `schema`.
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Self { decoder: StreamDecoder::new(), schema, rows: 0 }
    }

    /// Reads an item.
    ///
    /// # Errors
    /// It is malformed, of another schema, or the end names another number of rows than have come.
    pub(crate) fn item(&mut self, item: Bytes) -> Result<EdgeItem> {
        let Some((&kind, body)) = item.split_last() else {
            return Err(malformed("an empty item"));
        };
        match kind {
            BATCH => {
                // The last byte stays where it is: the decoder gives out a batch without buffers (rows of no column, or of
                // NULLs only) only once something follows it.
                let mut buffer = Buffer::from(item);
                let decoded = self.decoder.decode(&mut buffer).map_err(malformed)?;
                let batch = decoded.ok_or_else(|| malformed("an item without a batch"))?;
                if buffer.len() != 1 {
                    return Err(malformed("something behind a batch"));
                }
                self.rows += batch.num_rows() as u64;
                Ok(EdgeItem::Batch(with_schema(batch, &self.schema)?))
            }
            END => {
                let rows: u64 = wire::decode(body)?;
                if rows != self.rows {
                    return Err(malformed(format!("the producer sent {rows} rows, {} arrived", self.rows)));
                }
                Ok(EdgeItem::End)
            }
            FAILURE => Ok(EdgeItem::Failure(wire::decode(body)?)),
            other => Err(malformed(format!("an item of kind {other}"))),
        }
    }
}

fn malformed(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Corruption, format!("an edge carried what it should not: {what}"))
}

/// The same rows under the consumer's schema: operators compare schemas by identity of names and metadata, which differ
/// harmlessly between the plan's pieces.
///
/// # Errors
/// The types differ: the pieces are not of one plan.
pub(crate) fn with_schema(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if batch.schema_ref() == schema {
        return Ok(batch);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), batch.columns().to_vec(), &options)
        .map_err(|error| Error::internal(format!("an edge carries another schema than its consumer expects: {error}")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::datatypes::Schema;

    use super::*;

    fn batch(rows: i64) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter((0..rows).map(|n| (n % 3 != 0).then_some(n))));
        let words: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|n| format!("word {n}"))));
        RecordBatch::try_from_iter_with_nullable([("n", numbers, true), ("w", words, true)]).unwrap()
    }

    #[test]
    fn carries_batches_and_slices_and_checks_the_count() {
        let mut encoder = EdgeEncoder::new();
        let whole = batch(100);
        let mut decoder = EdgeDecoder::new(whole.schema());
        for part in [whole.slice(0, 10), whole.slice(10, 85), whole.slice(95, 0), whole.slice(95, 5)] {
            let item = encoder.batch(&part).unwrap();
            let EdgeItem::Batch(arrived) = decoder.item(item).unwrap() else { panic!("not a batch") };
            assert_eq!(arrived, part);
        }
        assert!(matches!(decoder.item(encoder.end().unwrap()).unwrap(), EdgeItem::End));
        let mut short = EdgeDecoder::new(whole.schema());
        assert_eq!(short.item(encoder.end().unwrap()).unwrap_err().code(), ErrorCode::Corruption);
    }

    #[test]
    fn carries_rows_without_columns() {
        let schema = Arc::new(Schema::empty());
        let options = RecordBatchOptions::new().with_row_count(Some(7));
        let counted = RecordBatch::try_new_with_options(schema.clone(), vec![], &options).unwrap();
        let item = EdgeEncoder::new().batch(&counted).unwrap();
        let EdgeItem::Batch(arrived) = EdgeDecoder::new(schema).item(item).unwrap() else { panic!("not a batch") };
        assert_eq!(arrived.num_rows(), 7);

        let nulls: ArrayRef = Arc::new(arrow::array::NullArray::new(3));
        let nulls = RecordBatch::try_from_iter([("n", nulls)]).unwrap();
        let (mut encoder, mut decoder) = (EdgeEncoder::new(), EdgeDecoder::new(nulls.schema()));
        for _ in 0..2 {
            let EdgeItem::Batch(arrived) = decoder.item(encoder.batch(&nulls).unwrap()).unwrap() else {
                panic!("no batch")
            };
            assert_eq!(arrived, nulls);
        }
    }

    #[test]
    fn failures_keep_their_type() {
        let error = Error::new(ErrorCode::Evaluation, "division by zero").with_help("filter zeros");
        let item = EdgeEncoder::failure(&error).unwrap();
        let EdgeItem::Failure(arrived) = EdgeDecoder::new(batch(1).schema()).item(item).unwrap() else {
            panic!("no failure")
        };
        assert_eq!(arrived, error);
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        let schema = batch(1).schema();
        for item in [&b""[..], &[9], &[1, 2, 3, BATCH], &[255; 20]] {
            assert!(EdgeDecoder::new(schema.clone()).item(Bytes::copy_from_slice(item)).is_err(), "{item:?}");
        }
        let mut cut = EdgeEncoder::new().batch(&batch(50)).unwrap().to_vec();
        cut.truncate(cut.len() / 2);
        cut.push(BATCH);
        assert!(EdgeDecoder::new(schema).item(cut.into()).is_err());
    }
}
