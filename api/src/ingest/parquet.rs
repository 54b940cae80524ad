//! A Parquet file. Its directory stands at its end, so it is collected first.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::record_batch::RecordBatch;
use bytes::{Bytes, BytesMut};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use shoal_kernel::{Error, ErrorCode, Result};

use super::adapt::Adapter;
use super::{BATCH_ROWS, Bounds, Decoded, Decoder, OnError, Target};

pub(super) struct ParquetDecoder {
    adapter: Adapter,
    body: BytesMut,
}

impl ParquetDecoder {
    pub(super) fn new(target: Target, on_error: OnError, bounds: Bounds) -> Self {
        Self { adapter: Adapter::new(target, on_error, bounds), body: BytesMut::new() }
    }
}

fn malformed(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::InvalidRequest, format!("the body is no Parquet file: {what}"))
}

fn read(body: Bytes, adapter: &mut Adapter) -> Result<()> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(body).map_err(malformed)?;
    adapter.check(builder.schema())?;
    for batch in builder.with_batch_size(BATCH_ROWS).build().map_err(malformed)? {
        adapter.push(&batch.map_err(malformed)?)?;
    }
    Ok(())
}

/// All of a file.
pub(super) fn batches(body: &Bytes) -> Result<Vec<RecordBatch>> {
    let body = body.clone();
    let all = || -> Result<Vec<RecordBatch>> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(body).map_err(malformed)?;
        let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(malformed)?;
        reader.map(|batch| batch.map_err(malformed)).collect()
    };
    catch_unwind(AssertUnwindSafe(all)).unwrap_or_else(|_| Err(malformed("it contradicts itself")))
}

impl Decoder for ParquetDecoder {
    fn push(&mut self, bytes: Bytes) -> Result<()> {
        self.body.extend_from_slice(&bytes);
        Ok(())
    }

    fn take_batches(&mut self) -> Vec<RecordBatch> {
        self.adapter.take_batches()
    }

    fn finish(mut self: Box<Self>) -> Result<Decoded> {
        let body = std::mem::take(&mut self.body).freeze();
        let adapter = &mut self.adapter;
        // A stranger's file: a hole in the reader's checks must cost this request only.
        catch_unwind(AssertUnwindSafe(|| read(body, adapter)))
            .unwrap_or_else(|_| Err(malformed("it contradicts itself")))?;
        Ok(self.adapter.finish())
    }
}
