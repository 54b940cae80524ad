//! What is said over the connection.

use serde::Deserialize;
use serde_json::{Value, json};
use shoal_actors::service::{CommandDone, Progress, QuerySummary};
use shoal_kernel::{Error, QueryId, ReadLevel};

use crate::http::problem::Problem;

/// How rows travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// As JSON text.
    Json,
    /// As Arrow IPC.
    Arrow,
}

impl Protocol {
    pub(super) const NAMES: [&'static str; 2] = ["shoal.v1.json", "shoal.v1.arrow"];

    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "shoal.v1.json" => Some(Self::Json),
            "shoal.v1.arrow" => Some(Self::Arrow),
            _ => None,
        }
    }
}

/// What a client says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Request {
    Start { id: String, sql: String, credit: Option<u64>, timeout_ms: Option<u64>, consistency: Option<ReadLevel> },
    Cancel { id: String },
    Credit { id: String, bytes: u64 },
}

pub(super) fn schema(id: &str, query: QueryId, columns: &Value) -> String {
    json!({"type": "schema", "id": id, "query_id": query.to_string(), "columns": columns}).to_string()
}

pub(super) fn command(id: &str, done: &CommandDone) -> String {
    let version = done.version.map(|version| version.to_string());
    json!({
        "type": "command", "id": id, "tag": done.tag, "rows": done.rows, "level": done.level, "version": version,
    })
    .to_string()
}

pub(super) fn progress(id: &str, progress: &Progress) -> String {
    json!({
        "type": "progress", "id": id, "queued": progress.queued, "tasks_done": progress.tasks_done, "tasks": progress.tasks,
        "rows_scanned": progress.rows_scanned, "bytes_scanned": progress.bytes_scanned,
    })
    .to_string()
}

pub(super) fn end(id: &str, query: QueryId, summary: &QuerySummary) -> String {
    json!({
        "type": "end", "id": id, "query_id": query.to_string(), "rows": summary.rows,
        "elapsed_ms": summary.elapsed_micros as f64 / 1000.0, "restarts": summary.restarts,
        "read_level": summary.read_level,
        "rows_scanned": summary.progress.rows_scanned, "bytes_scanned": summary.progress.bytes_scanned,
    })
    .to_string()
}

/// `id` is absent for what is no query's fault.
pub(super) fn error(id: Option<&str>, query: Option<QueryId>, error: &Error) -> String {
    json!({"type": "error", "id": id, "error": Problem::new(error, query)}).to_string()
}
