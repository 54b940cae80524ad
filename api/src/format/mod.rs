//! Answers as bytes: each format writes schema, rows and the outcome into a growing buffer, so that nothing larger than a
//! batch is ever held.
//!
//! | format | content type | rows | complete if |
//! |---|---|---|---|
//! | `json` | `application/json` | `{"results":[{"type":"table","columns":[…],"rows":[[…]]}],…}` | it is valid and has `"end":true`; a failure has `"error"` instead |
//! | `ndjson` | `application/x-ndjson` | one object per line | the last line is `{"$end":{…}}`; a failure ends in `{"$error":{…}}` |
//! | `csv` | `text/csv` | RFC 4180 with a header | the body ended in order; a failure closes the connection without the last chunk |
//! | `arrow` | `application/vnd.apache.arrow.stream` | an Arrow IPC stream | it has its end-of-stream marker; a failure closes the connection without it |

mod arrow;
mod csv;
mod json;
mod ndjson;
mod single;
mod types;
mod value;

use ::arrow::datatypes::SchemaRef;
use ::arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};
use shoal_actors::service::{CommandDone, QuerySummary};
use shoal_kernel::{Error, QueryId, ReadLevel, Result};

use crate::http::problem::Problem;

pub(crate) use json::command_json;
pub use types::type_name;
pub use value::{RowForm, columns_json, write_rows};

/// The format of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON document.
    #[default]
    Json,
    /// A JSON object per line.
    Ndjson,
    /// Comma-separated values.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
}

impl Format {
    /// All of them, in order of preference.
    pub const ALL: [Self; 4] = [Self::Json, Self::Ndjson, Self::Csv, Self::Arrow];

    /// The name that requests use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
            Self::Arrow => "arrow",
        }
    }

    /// The format of that name.
    ///
    /// # Errors
    /// No such format; suggests what there is.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            Error::new(shoal_kernel::ErrorCode::InvalidRequest, format!("'{name}' is not a format"))
                .with_help(shoal_kernel::suggest::help(name, Self::ALL.map(Self::name)))
        })
    }

    /// The content type of an answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }

    /// The format an `Accept` header asks for: the acceptable one with the greatest weight, the earlier if equal. `None` if
    /// it accepts none of them.
    pub fn from_accept(accept: &str) -> Option<Self> {
        let mut best: Option<(f32, Self)> = None;
        for item in accept.split(',') {
            let mut parts = item.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/json" | "application/*" | "*/*" | "" => Self::Json,
                "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Self::Ndjson,
                "text/csv" | "text/*" => Self::Csv,
                "application/vnd.apache.arrow.stream" => Self::Arrow,
                _ => continue,
            };
            let weight = parts
                .find_map(|part| part.strip_prefix("q="))
                .map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0));
            if weight > 0.0 && best.is_none_or(|(greatest, _)| weight > greatest) {
                best = Some((weight, format));
            }
        }
        best.map(|(_, format)| format)
    }

    /// An encoder for one answer.
    pub fn encoder(self, query: QueryId) -> Box<dyn Encoder> {
        match self {
            Self::Json => Box::new(json::JsonEncoder::new(query)),
            Self::Ndjson => Box::new(ndjson::NdjsonEncoder::new(query)),
            Self::Csv => Box::new(csv::CsvEncoder::default()),
            Self::Arrow => Box::new(arrow::ArrowEncoder::default()),
        }
    }
}

/// What the end of an answer says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Rows of all tables.
    pub rows: u64,
    /// Time of all statements, in microseconds.
    pub elapsed_micros: u64,
    /// The lowest level at which one of them read; none if none has.
    pub read_level: Option<ReadLevel>,
}

impl Totals {
    /// Adds what a statement came to.
    pub fn add(&mut self, summary: &QuerySummary) {
        self.rows += summary.rows;
        self.elapsed_micros += summary.elapsed_micros;
        self.read_level = self.read_level.into_iter().chain(summary.read_level).min();
    }

    /// Milliseconds, to the microsecond.
    pub fn elapsed_ms(&self) -> f64 {
        self.elapsed_micros as f64 / 1000.0
    }
}

/// Whether a failure could be said within the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The body says it; the response may end in order.
    InBody,
    /// The format has no words for it: the connection must be cut, so that nobody takes the body for complete.
    ByCutting,
}

/// Writes one answer: for each statement either `schema`, any number of `batch`, `table_end`; or `command`. Then exactly one
/// of `end` and `error`.
pub trait Encoder: Send {
    /// A table begins.
    ///
    /// # Errors
    /// A column's type, or a second table, has no place in this format.
    fn schema(&mut self, schema: &SchemaRef, out: &mut Vec<u8>) -> Result<()>;

    /// Rows of it.
    ///
    /// # Errors
    /// A value has no place in this format.
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()>;

    /// It is complete.
    fn table_end(&mut self, out: &mut Vec<u8>);

    /// A statement without rows was carried out.
    ///
    /// # Errors
    /// As for `schema`.
    fn command(&mut self, done: &CommandDone, out: &mut Vec<u8>) -> Result<()>;

    /// The answer is complete.
    ///
    /// # Errors
    /// The encoder's own failure; nothing has been said about the end then.
    fn end(&mut self, totals: &Totals, out: &mut Vec<u8>) -> Result<()>;

    /// The answer is not complete and never will be.
    fn error(&mut self, problem: &Problem, out: &mut Vec<u8>) -> Told;
}

/// A failure of the columnar libraries while writing.
fn encoding(error: ::arrow::error::ArrowError) -> Error {
    Error::new(shoal_kernel::ErrorCode::Unsupported, format!("the answer cannot be written in this format: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_weighed() {
        for (accept, format) in [
            ("*/*", Some(Format::Json)),
            ("text/csv", Some(Format::Csv)),
            ("text/csv;q=0.5, application/vnd.apache.arrow.stream", Some(Format::Arrow)),
            ("application/x-ndjson;q=0.2, text/csv; q=0.9", Some(Format::Csv)),
            ("text/html, */*;q=0.1", Some(Format::Json)),
            ("text/html", None),
            ("application/json;q=0", None),
        ] {
            assert_eq!(Format::from_accept(accept), format, "{accept}");
        }
    }
}
