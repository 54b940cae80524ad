//! One JSON document, written as the rows come.

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use serde_json::json;
use shoal_actors::service::CommandDone;
use shoal_kernel::{QueryId, Result};

use super::{Encoder, RowForm, Told, Totals, columns_json, write_rows};
use crate::http::problem::Problem;

pub(super) struct JsonEncoder {
    query: QueryId,
    results: usize,
    begun: bool,
    in_table: bool,
    rows_in_table: u64,
}

impl JsonEncoder {
    pub(super) fn new(query: QueryId) -> Self {
        Self { query, results: 0, begun: false, in_table: false, rows_in_table: 0 }
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if !self.begun {
            out.extend_from_slice(b"{\"results\":[");
            self.begun = true;
        }
    }

    fn next_result(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        if self.results > 0 {
            out.push(b',');
        }
        self.results += 1;
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        if self.in_table {
            out.extend_from_slice(b"]}");
            self.in_table = false;
        }
        out.push(b']');
    }
}

/// A statement without rows, as an entry of `results`.
pub(crate) fn command_json(done: &CommandDone) -> serde_json::Value {
    let mut entry = json!({"type": "command", "tag": done.tag});
    if let Some(rows) = done.rows {
        entry["rows"] = json!(rows);
    }
    if let Some(level) = done.level {
        entry["level"] = json!(level);
    }
    if let Some(version) = done.version {
        entry["version"] = json!(version.to_string());
    }
    entry
}

impl Encoder for JsonEncoder {
    fn schema(&mut self, schema: &SchemaRef, out: &mut Vec<u8>) -> Result<()> {
        self.next_result(out);
        out.extend_from_slice(b"{\"type\":\"table\",\"columns\":");
        out.extend_from_slice(columns_json(schema).to_string().as_bytes());
        out.extend_from_slice(b",\"rows\":[");
        self.in_table = true;
        self.rows_in_table = 0;
        Ok(())
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let length = out.len();
        if self.rows_in_table > 0 {
            out.push(b',');
        }
        if let Err(error) = write_rows(batch, 0..batch.num_rows(), RowForm::Array, b',', out) {
            // Back to what was whole, so that the error can still be said in valid JSON.
            out.truncate(length);
            return Err(error);
        }
        self.rows_in_table += batch.num_rows() as u64;
        Ok(())
    }

    fn table_end(&mut self, out: &mut Vec<u8>) {
        if self.in_table {
            out.extend_from_slice(b"]}");
            self.in_table = false;
        }
    }

    fn command(&mut self, done: &CommandDone, out: &mut Vec<u8>) -> Result<()> {
        self.next_result(out);
        out.extend_from_slice(command_json(done).to_string().as_bytes());
        Ok(())
    }

    fn end(&mut self, totals: &Totals, out: &mut Vec<u8>) -> Result<()> {
        self.close(out);
        let level = totals.read_level.map_or_else(String::new, |level| format!(",\"read_level\":\"{level}\""));
        let tail = format!(
            ",\"query_id\":\"{}\",\"rows\":{},\"elapsed_ms\":{}{level},\"end\":true}}\n",
            self.query,
            totals.rows,
            totals.elapsed_ms()
        );
        out.extend_from_slice(tail.as_bytes());
        Ok(())
    }

    fn error(&mut self, problem: &Problem, out: &mut Vec<u8>) -> Told {
        self.close(out);
        out.extend_from_slice(b",\"error\":");
        out.extend_from_slice(&problem.to_json());
        out.extend_from_slice(b"}\n");
        Told::InBody
    }
}
