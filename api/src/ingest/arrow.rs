//! An Arrow IPC stream, decoded as it comes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::buffer::Buffer;
use arrow::ipc::reader::StreamDecoder;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use shoal_kernel::{Error, ErrorCode, Result};

use super::adapt::Adapter;
use super::{Bounds, Decoded, Decoder, OnError, Target};

pub(super) struct ArrowDecoder {
    adapter: Adapter,
    stream: StreamDecoder,
    checked: bool,
}

impl ArrowDecoder {
    pub(super) fn new(target: Target, on_error: OnError, bounds: Bounds) -> Self {
        Self { adapter: Adapter::new(target, on_error, bounds), stream: StreamDecoder::new(), checked: false }
    }

    fn check_schema(&mut self) -> Result<()> {
        if !self.checked
            && let Some(schema) = self.stream.schema()
        {
            self.adapter.check(&schema)?;
            self.checked = true;
        }
        Ok(())
    }
}

fn malformed(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::InvalidRequest, format!("the body is no Arrow IPC stream: {what}"))
}

/// All of a stream.
pub(super) fn batches(body: &Bytes) -> Result<Vec<RecordBatch>> {
    let (mut stream, mut buffer, mut batches) = (StreamDecoder::new(), Buffer::from(body.clone()), Vec::new());
    while !buffer.is_empty() {
        let decoded = catch_unwind(AssertUnwindSafe(|| stream.decode(&mut buffer)))
            .map_err(|_| malformed("it contradicts itself"))?
            .map_err(malformed)?;
        batches.extend(decoded);
    }
    stream.finish().map_err(malformed)?;
    match stream.schema() {
        // What columns there are is known also without rows.
        Some(schema) if batches.is_empty() => Ok(vec![RecordBatch::new_empty(schema)]),
        Some(_) => Ok(batches),
        None => Err(malformed("it has no schema")),
    }
}

impl Decoder for ArrowDecoder {
    fn push(&mut self, bytes: Bytes) -> Result<()> {
        let mut buffer = Buffer::from(bytes);
        while !buffer.is_empty() {
            // The reader checks what it reads, but its flatbuffers were written by a stranger: a hole in those checks must
            // cost this request only.
            let decoded = catch_unwind(AssertUnwindSafe(|| self.stream.decode(&mut buffer)))
                .map_err(|_| malformed("it contradicts itself"))?
                .map_err(malformed)?;
            self.check_schema()?;
            if let Some(batch) = decoded {
                self.adapter.push(&batch)?;
            }
        }
        Ok(())
    }

    fn take_batches(&mut self) -> Vec<RecordBatch> {
        self.adapter.take_batches()
    }

    fn finish(mut self: Box<Self>) -> Result<Decoded> {
        self.stream.finish().map_err(malformed)?;
        self.check_schema()?;
        if !self.checked {
            return Err(malformed("it has no schema"));
        }
        Ok(self.adapter.finish())
    }
}
