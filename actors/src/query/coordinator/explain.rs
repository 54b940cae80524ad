//! `EXPLAIN ANALYZE`: what ran where, and what it did.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use shoal_kernel::{FragmentId, NodeId};
use shoal_planner::{Edge, FragmentGraph};

use crate::query::assign::Assignment;
use crate::query::message::{Report, TaskReport};
use crate::service::QuerySummary;

/// The columns of the answer: one of text.
pub(super) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("plan", DataType::Utf8, false)]))
}

/// The answer, line by line, from the root down.
pub(super) fn analyzed(
    graph: &FragmentGraph,
    assignment: &Assignment,
    reports: &BTreeMap<NodeId, Report>,
    summary: &QuerySummary,
) -> RecordBatch {
    let lines = lines(graph, assignment, reports, summary);
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(lines));
    // A column of that very schema: this cannot fail, and if it did an empty answer is better than none.
    RecordBatch::try_new(schema(), vec![column]).unwrap_or_else(|_| RecordBatch::new_empty(schema()))
}

fn lines(
    graph: &FragmentGraph,
    assignment: &Assignment,
    reports: &BTreeMap<NodeId, Report>,
    summary: &QuerySummary,
) -> Vec<String> {
    let tasks: BTreeMap<(FragmentId, u32), TaskReport> =
        reports.values().flat_map(|report| &report.tasks).map(|task| ((task.fragment, task.task), *task)).collect();
    let mut lines = vec![format!(
        "{} rows in {} ms, attempt {}, {} rows and {} bytes scanned{}",
        summary.rows,
        summary.elapsed_micros / 1_000,
        summary.restarts + 1,
        summary.progress.rows_scanned,
        summary.progress.bytes_scanned,
        summary.read_level.map_or_else(String::new, |level| format!(", read at {level}"))
    )];
    for fragment in graph.fragments.iter().rev() {
        let edge = match &fragment.output {
            Edge::Gather => "gather".to_owned(),
            Edge::Hash { slots, .. } => format!("hash to {slots}"),
            Edge::Broadcast { slots } => format!("broadcast to {slots}"),
        };
        lines.push(format!("fragment {} ({} tasks, {edge})", fragment.id, fragment.tasks.len()));
        lines.extend(fragment.label.lines().map(|line| format!("    {line}")));
        for (task, node) in (0u32..).zip(assignment.of(fragment.id)) {
            let mut line = format!("  task {task} on {node}:");
            match tasks.get(&(fragment.id, task)) {
                Some(done) => {
                    let (elapsed, waited) = (done.elapsed_micros / 1_000, done.waited_micros / 1_000);
                    let _ = write!(
                        line,
                        " {} rows, {} bytes, {elapsed} ms, of them {waited} ms waiting",
                        done.rows, done.bytes
                    );
                }
                None => line.push_str(" no report"),
            }
            lines.push(line);
        }
    }
    lines
}
