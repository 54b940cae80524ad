//! DELETE and UPDATE: rows are read by an ordinary query, or a few by key, then written through the gateway.
//!
//! Nothing is written before everything has been read and checked, so that no part of the statement sees what another has
//! done, and an error before the first row is `applied: false`. What is written beats what was read, for its version lies
//! above everything that the readers held. It also beats whatever came between, unless that came later: a concurrent write
//! may be lost, as the newest version of a row wins.

use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use shoal_catalog::Table;
use shoal_kernel::{Applied, Error, ErrorCode, Hlc, QueryId, ReadLevel, Result};
use shoal_planner::{FragmentGraph, KeyChange};
use shoal_storage::{check_values, with_rows_before};

use super::Inner;
use crate::gateway::Change;
use crate::query::RunOptions;
use crate::service::{CommandDone, SqlRequest, WriteRequest};

/// Bytes of rows that are written at once.
const PART_BYTES: usize = 8 << 20;
/// So often the rows are read before it is given up to learn how new they are.
const READS_MAX: usize = 3;

/// A statement that changes the rows that it finds.
pub(super) struct FoundRows {
    /// Its words.
    pub(super) tag: &'static str,
    /// Of before the read: if it is dropped and made anew meanwhile, nothing is written to the new one.
    pub(super) table: Arc<Table>,
    /// Reads the rows as they are to be, or their keys.
    pub(super) graph: FragmentGraph,
    /// The level at which it reads them.
    pub(super) read_level: ReadLevel,
    pub(super) deletes: bool,
}

impl Inner {
    /// All rows of a query, and a time that none of them is newer than. Nothing has been written yet, so a query that some
    /// node has answered without the time, because it was lost or late, is asked again.
    async fn read_dated(
        self: &Arc<Self>,
        request: &SqlRequest,
        found: &FoundRows,
        first: QueryId,
        left: &impl Fn() -> Duration,
    ) -> Result<(Vec<RecordBatch>, Hlc)> {
        let FoundRows { tag, graph, read_level, .. } = found;
        let replan = self.replan_as_of(request, Some(found.table.clone()));
        let mut id = first;
        for _ in 0..READS_MAX {
            let options =
                RunOptions { read_level: *read_level, sql: request.sql.as_str().into(), ..RunOptions::new(left()) };
            if let (batches, Some(newest)) = self.collect(tag, graph.clone(), id, options, replan.clone()).await? {
                return Ok((batches, newest));
            }
            // The first may not have ended everywhere.
            id = self.new_query_id();
        }
        let message = "a node that was read is gone, and nobody can say how new its rows are";
        Err(Error::new(ErrorCode::NodeLost, message).with_applied(Applied::False))
    }

    pub(super) async fn change(
        self: &Arc<Self>,
        request: &SqlRequest,
        found: FoundRows,
        id: QueryId,
        left: impl Fn() -> Duration,
    ) -> Result<CommandDone> {
        let tag = found.tag;
        refuse_token(request, tag)?;
        let (batches, read) = self.read_dated(request, &found, id, &left).await?;
        let change = Change { deletes: found.deletes, read };
        self.write_found(request, tag, &found.table, batches, change, left).await
    }

    /// Changes rows that are found by key. Nothing if they cannot be found so, or the table has been altered meanwhile; then nothing was
    /// done.
    pub(super) async fn change_by_key(
        &self,
        request: &SqlRequest,
        change: &KeyChange,
        table: Arc<Table>,
        id: QueryId,
        options: &RunOptions,
        left: impl Fn() -> Duration,
    ) -> Result<Option<CommandDone>> {
        let (tag, deletes) = if change.deletes { ("DELETE", true) } else { ("UPDATE", false) };
        refuse_token(request, tag)?;
        let Ok(found) = self.queries.find_by_key(&change.read, id, options).await else { return Ok(None) };
        let Ok(rows) = change.rows(&found.batches) else { return Ok(None) };
        metrics::counter!("shoal_key_changes_total").increment(1);
        let (batches, change) = (rows.into_iter().collect(), Change { deletes, read: found.newest });
        match self.write_found(request, tag, &table, batches, change, left).await {
            Err(error) if error.code() == ErrorCode::SchemaChanged && error.applied() == Applied::False => Ok(None),
            done => done.map(Some),
        }
    }

    /// Writes what was found, in parts.
    async fn write_found(
        &self,
        request: &SqlRequest,
        tag: &str,
        table: &Arc<Table>,
        batches: Vec<RecordBatch>,
        change: Change,
        left: impl Fn() -> Duration,
    ) -> Result<CommandDone> {
        if !change.deletes {
            check_not_null(table, &batches)?;
            for (rows_before, batch) in with_rows_before(&batches) {
                check_values(batch, rows_before)?;
            }
        }
        let mut done = CommandDone { tag: tag.into(), rows: Some(0), level: None, version: None };
        let mut rows_before = 0;
        for batches in parts(batches) {
            let write = WriteRequest {
                table: table.name.clone(),
                batches,
                level: request.write_level,
                token: None,
                timeout: Some(left()),
            };
            let report = self.gateway.change(table.clone(), write, change).await;
            let report = report.map_err(|error| after(tag, rows_before, error))?;
            rows_before += report.rows;
            done = CommandDone {
                rows: Some(rows_before),
                level: Some(report.level),
                version: done.version.max(Some(report.version)),
                ..done
            };
        }
        Ok(done)
    }
}

fn refuse_token(request: &SqlRequest, tag: &str) -> Result<()> {
    if request.token.is_none() {
        return Ok(());
    }
    let message = format!("{tag} takes no idempotency key: sent again, it may find other rows than the first time");
    Err(Error::new(ErrorCode::Unsupported, message).with_help(
        "leave the key out; after an error that says 'applied: unknown' look first, or write conditions that hold only once",
    ))
}

/// Cuts rows into writes that each have a version and a deadline of their own: a version must not be old when it arrives.
/// There is always one, so that a statement that found nothing names its level, too.
fn parts(batches: Vec<RecordBatch>) -> Vec<Vec<RecordBatch>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for batch in batches {
        let more = batch.get_array_memory_size();
        if bytes > 0 && bytes + more > PART_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += more;
        if let Some(part) = parts.last_mut() {
            part.push(batch);
        }
    }
    parts
}

/// The error of a part, with what the parts before it have done.
fn after(tag: &str, rows: u64, error: Error) -> Error {
    if rows == 0 {
        return error;
    }
    error.context(format_args!("{tag} had changed {rows} rows before")).with_applied(Applied::Unknown)
}

fn check_not_null(table: &Arc<Table>, batches: &[RecordBatch]) -> Result<()> {
    for column in table.schema.columns.iter().filter(|column| !column.nullable) {
        let nulls =
            batches.iter().filter_map(|batch| batch.column_by_name(&column.name)).map(|array| array.null_count());
        let nulls: usize = nulls.sum();
        if nulls > 0 {
            let message = format!("column '{}' is NOT NULL, and its new value is NULL in {nulls} rows", column.name);
            return Err(Error::new(ErrorCode::InvalidRows, message)
                .with_help("use coalesce, or leave these rows out with WHERE"));
        }
    }
    Ok(())
}
