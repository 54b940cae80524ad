//! Rows from outside: NDJSON, CSV, Arrow IPC streams and Parquet become record batches with the table's columns and types.
//!
//! A decoder takes bytes as they come and hands out batches; whatever is wrong with a row is noted with its line (of a text)
//! or its number (of a columnar body), from 1. Whether bad rows spoil the request or are left out is [`OnError`].

mod adapt;
mod arrow;
mod cell;
mod column;
mod csv;
pub mod infer;
mod line;
mod ndjson;
mod parquet;
mod pieces;
mod rows;
mod target;

use ::arrow::record_batch::RecordBatch;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_kernel::{Error, ErrorCode, Result};
use utoipa::ToSchema;

pub use pieces::{Cutter, Piece};
pub use rows::{Joined, Part};
pub use target::{Target, TargetColumn};

/// Errors that are reported one by one; further ones are only counted.
pub const ERRORS_REPORTED_MAX: usize = 100;

/// Rows of a batch that a decoder makes out of text.
pub const BATCH_ROWS: usize = 8192;
/// A batch ends with the row with which its rows had so many bytes of text.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// The format of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputFormat {
    /// A JSON object per line.
    Ndjson,
    /// Comma-separated values with a header line.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl InputFormat {
    /// The format a content type names.
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => {
                Some(Self::Ndjson)
            }
            "text/csv" | "application/csv" => Some(Self::Csv),
            "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
            "application/vnd.apache.parquet" | "application/x-parquet" => Some(Self::Parquet),
            _ => None,
        }
    }

    /// The content types that are understood, for messages.
    pub const MEDIA_TYPES: &'static str =
        "application/x-ndjson, text/csv, application/vnd.apache.arrow.stream, application/vnd.apache.parquet";
}

/// What a bad row does to its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Nothing of the request is written.
    #[default]
    Fail,
    /// The good rows are written, the bad ones reported.
    Skip,
}

/// Bounds of one body.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of one line or record of text.
    pub line_bytes_max: usize,
    /// Bytes that the rows may take once decoded.
    pub decoded_bytes_max: usize,
}

/// One bad row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RowError {
    /// Line of a text, or number of the row, from 1.
    pub line: u64,
    /// The column, if it is one column's fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The stable word that programs match on.
    pub code: RowErrorCode,
    /// What is wrong, in one sentence.
    pub message: String,
}

/// What can be wrong with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RowErrorCode {
    /// It is not in the body's format.
    Malformed,
    /// It names a column that the table does not have.
    UnknownColumn,
    /// It names a column twice.
    DuplicateColumn,
    /// It lacks a column that must not be null.
    MissingColumn,
    /// It has null where the table has NOT NULL.
    NullValue,
    /// A value is of another type than its column.
    WrongType,
    /// A value does not fit its column.
    OutOfRange,
    /// It has more or fewer fields than the header.
    FieldCount,
}

/// What a whole body came to.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The good rows.
    pub batches: Vec<RecordBatch>,
    /// How many they are.
    pub rows: u64,
    /// How many were bad.
    pub rejected: u64,
    /// The first of the bad ones, by line.
    pub errors: Vec<RowError>,
}

/// Takes in one body.
pub trait Decoder: Send {
    /// Takes in the next bytes.
    ///
    /// # Errors
    /// The body as a whole is no good: a limit is exceeded, a header is wrong, it is not of its format.
    fn push(&mut self, bytes: Bytes) -> Result<()>;

    /// Batches that are ready; for those who need not wait for the end.
    fn take_batches(&mut self) -> Vec<RecordBatch>;

    /// The body has ended.
    ///
    /// # Errors
    /// As for `push`, or it ended in the middle.
    fn finish(self: Box<Self>) -> Result<Decoded>;
}

/// A decoder of a body for a table.
pub fn decoder(format: InputFormat, target: Target, on_error: OnError, bounds: Bounds) -> Box<dyn Decoder> {
    match format {
        InputFormat::Ndjson => Box::new(ndjson::NdjsonDecoder::new(target, on_error, bounds)),
        InputFormat::Csv => Box::new(csv::CsvDecoder::new(target, on_error, bounds)),
        InputFormat::Arrow => Box::new(arrow::ArrowDecoder::new(target, on_error, bounds)),
        InputFormat::Parquet => Box::new(parquet::ParquetDecoder::new(target, on_error, bounds)),
    }
}

fn line_too_long(line: u64, bounds: &Bounds) -> Error {
    Error::new(
        ErrorCode::LimitExceeded,
        format!("line {line} is longer than {} bytes (ingest_line_bytes_max)", bounds.line_bytes_max),
    )
}

fn too_large_decoded(bounds: &Bounds) -> Error {
    Error::new(
        ErrorCode::LimitExceeded,
        format!("the rows take more than {} bytes once decoded (ingest_decoded_bytes_max)", bounds.decoded_bytes_max),
    )
    .with_help("send them in several requests")
}
