//! One object per row. Lines that are no rows have a single key that begins with one `$`; a column whose name begins with
//! `$` gets a second one, so that no row can be mistaken for them.
//!
//! `{"$result":{…}}` says what a statement without rows did, and separates the second and later tables of a text with
//! several statements, with their columns; those of the last table stand in `$end` too.

use std::collections::BTreeSet;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use serde_json::{Value, json};
use shoal_actors::service::CommandDone;
use shoal_kernel::{QueryId, Result};

use super::json::command_json;
use super::{Encoder, RowForm, Told, Totals, columns_json, write_rows};
use crate::http::problem::Problem;

pub(super) struct NdjsonEncoder {
    query: QueryId,
    names: Vec<String>,
    columns: Option<Value>,
}

impl NdjsonEncoder {
    pub(super) fn new(query: QueryId) -> Self {
        Self { query, names: Vec::new(), columns: None }
    }
}

fn line(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(value.to_string().as_bytes());
    out.push(b'\n');
}

/// Keys of a row: unique, so that no value hides another, and never those of a line that is no row.
fn keys(schema: &SchemaRef) -> Vec<String> {
    let mut taken = BTreeSet::new();
    schema
        .fields()
        .iter()
        .map(|field| {
            let base = if field.name().starts_with('$') { format!("${}", field.name()) } else { field.name().clone() };
            let mut name = base.clone();
            let mut count = 1;
            while !taken.insert(name.clone()) {
                name = format!("{base}_{count}");
                count += 1;
            }
            Value::String(name).to_string()
        })
        .collect()
}

impl Encoder for NdjsonEncoder {
    fn schema(&mut self, schema: &SchemaRef, out: &mut Vec<u8>) -> Result<()> {
        self.names = keys(schema);
        let columns = columns_json(schema);
        if self.columns.is_some() {
            line(&json!({"$result": {"type": "table", "columns": &columns}}), out);
        }
        self.columns = Some(columns);
        Ok(())
    }

    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let length = out.len();
        if let Err(error) = write_rows(batch, 0..batch.num_rows(), RowForm::Object(&self.names), b'\n', out) {
            out.truncate(length);
            return Err(error);
        }
        out.push(b'\n');
        Ok(())
    }

    fn table_end(&mut self, _out: &mut Vec<u8>) {}

    fn command(&mut self, done: &CommandDone, out: &mut Vec<u8>) -> Result<()> {
        line(&json!({"$result": command_json(done)}), out);
        Ok(())
    }

    fn end(&mut self, totals: &Totals, out: &mut Vec<u8>) -> Result<()> {
        let mut end = json!({
            "query_id": self.query.to_string(), "rows": totals.rows, "elapsed_ms": totals.elapsed_ms(),
            "columns": self.columns,
        });
        if let Some(level) = totals.read_level {
            end["read_level"] = json!(level);
        }
        line(&json!({"$end": end}), out);
        Ok(())
    }

    fn error(&mut self, problem: &Problem, out: &mut Vec<u8>) -> Told {
        out.extend_from_slice(b"{\"$error\":");
        out.extend_from_slice(&problem.to_json());
        out.extend_from_slice(b"}\n");
        Told::InBody
    }
}
