//! Nested columns, as a stream of Arrow IPC with one batch of one column.
//!
//! Arrow's own reader of streams trusts what it reads: lengths that lie outside of the bytes, and types that do not exist, end
//! it with a panic. So the type is not read but known, and all lengths are looked at before Arrow sees them.
//! Format: <https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc>

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::ipc::reader::read_record_batch;
use arrow::ipc::writer::StreamWriter;
use arrow::ipc::{MessageHeader, MetadataVersion, RecordBatch as Outline, root_as_message};
use shoal_kernel::{Error, Result};

use super::{Input, malformed};

/// Stands before the length of every message.
const CONTINUATION: u32 = u32::MAX;
/// Values at one level of one page.
const VALUES_MAX: i64 = 64 << 20;

fn schema(data_type: &DataType) -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new("", data_type.clone(), true)]))
}

pub(super) fn write(array: &ArrayRef) -> Result<Vec<u8>> {
    let failed = |error| Error::internal(format!("cannot encode a column of type {}: {error}", array.data_type()));
    let schema = schema(array.data_type());
    let options = RecordBatchOptions::new().with_row_count(Some(array.len()));
    let batch = RecordBatch::try_new_with_options(schema.clone(), vec![array.clone()], &options).map_err(failed)?;
    let mut out = Vec::new();
    let mut writer = StreamWriter::try_new(&mut out, &schema).map_err(failed)?;
    writer.write(&batch).map_err(failed)?;
    writer.finish().map_err(failed)?;
    drop(writer);
    Ok(out)
}

pub(super) fn read(bytes: &[u8], data_type: &DataType, rows: usize) -> Result<ArrayRef> {
    let mut input = Input(bytes);
    loop {
        if input.u32()? != CONTINUATION {
            return Err(malformed("no message"));
        }
        let length = input.u32()? as usize;
        if length == 0 {
            return Err(malformed("no batch"));
        }
        // Copied to where its numbers are aligned.
        let metadata = Buffer::from(input.take(length)?);
        let message = root_as_message(&metadata).map_err(malformed)?;
        let body = usize::try_from(message.bodyLength()).map_err(malformed)?;
        let body = input.take(body)?;
        match message.header_type() {
            MessageHeader::Schema => continue,
            MessageHeader::RecordBatch if message.version() == MetadataVersion::V5 => {}
            _ => return Err(malformed("a message that is no batch")),
        }
        let batch = message.header_as_record_batch().ok_or_else(|| malformed("a batch without an outline"))?;
        check(&batch, data_type, body.len())?;
        let decoded = read_record_batch(
            &Buffer::from(body),
            batch,
            schema(data_type),
            &Default::default(),
            None,
            &message.version(),
        );
        let decoded = decoded.map_err(malformed)?;
        return match decoded.columns().first() {
            Some(array) if array.data_type() == data_type && array.len() == rows => Ok(array.clone()),
            _ => Err(malformed("a batch of another length")),
        };
    }
}

/// Whether what a batch says of its parts fits into its body.
fn check(batch: &Outline<'_>, data_type: &DataType, body: usize) -> Result<()> {
    let fits = |offset: i64, length: i64| {
        let end = usize::try_from(offset).ok().zip(usize::try_from(length).ok());
        end.and_then(|(offset, length)| offset.checked_add(length)).is_some_and(|end| end <= body)
    };
    let buffers = batch.buffers().into_iter().flatten().all(|buffer| fits(buffer.offset(), buffer.length()));
    let mut nodes = batch.nodes().into_iter().flatten();
    let nodes =
        nodes.all(|node| (0..=VALUES_MAX).contains(&node.length()) && (0..=node.length()).contains(&node.null_count()));
    let views = batch.variadicBufferCounts().map_or(0, |counts| counts.len());
    match buffers && nodes && views == 0 && batch.compression().is_none() && !has_views(data_type) {
        true => Ok(()),
        false => Err(malformed("a batch whose parts do not fit into it")),
    }
}

/// No table has such columns.
fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => has_views(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        _ => false,
    }
}
