//! Rows on the wire: one batch as an Arrow IPC stream.

use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use shoal_kernel::{Error, ErrorCode, Result};

/// Encodes one batch with its schema.
pub(crate) fn encode(batch: &RecordBatch) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(batch.get_array_memory_size() + 1024);
    let written = StreamWriter::try_new(&mut bytes, &batch.schema())
        .and_then(|mut writer| writer.write(batch).and_then(|()| writer.finish()));
    written.map_err(|error| Error::internal(format!("rows cannot be encoded: {error}")))?;
    Ok(bytes)
}

/// Decodes what [`encode`] made.
pub(crate) fn decode(bytes: &[u8]) -> Result<RecordBatch> {
    let malformed = |error: arrow::error::ArrowError| {
        Error::new(ErrorCode::Corruption, format!("rows from a peer do not decode: {error}"))
    };
    let mut reader = StreamReader::try_new(bytes, None).map_err(malformed)?;
    match reader.next() {
        Some(batch) => batch.map_err(malformed),
        None => Ok(RecordBatch::new_empty(reader.schema())),
    }
}
