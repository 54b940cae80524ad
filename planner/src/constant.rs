//! Queries whose answer the planner knows already.

use std::sync::Arc;

use arrow::array::StringArray;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::Result;
use datafusion::execution::session_state::SessionState;
use datafusion::physical_plan::streaming::StreamingTableExec;
use datafusion::physical_plan::{ExecutionPlan, collect};

use crate::cut::cut;
use crate::graph::FragmentGraph;

/// A query that answers with this table of text. Rows are given column by column.
pub(crate) fn text_query(names: &[&str], columns: Vec<Vec<Option<String>>>) -> Result<FragmentGraph> {
    let fields: Vec<_> = names.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|column| Arc::new(StringArray::from(column)) as _).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)?;
    cut(MemorySourceConfig::try_new_exec(&[vec![batch]], schema, None)?, false)
}

/// Replaces tables that live in this process (the information schema) by their rows, so that the plan can travel.
pub(crate) async fn materialise(plan: Arc<dyn ExecutionPlan>, state: &SessionState) -> Result<Arc<dyn ExecutionPlan>> {
    let mut tables = Vec::new();
    find(&plan, &mut tables);
    if tables.is_empty() {
        return Ok(plan);
    }
    // These tables tell of functions, too.
    let context = state.task_ctx();
    let mut rows: Vec<(SchemaRef, Vec<RecordBatch>)> = Vec::new();
    for table in tables {
        rows.push((table.schema(), collect(table, Arc::clone(&context)).await?));
    }
    // Both walks meet the tables in the same order.
    let mut rows = rows.into_iter();
    plan.transform_down(|node| {
        if !node.is::<StreamingTableExec>() {
            return Ok(Transformed::no(node));
        }
        match rows.next() {
            Some((schema, batches)) => Ok(Transformed::yes(
                MemorySourceConfig::try_new_exec(&[batches], schema, None)? as Arc<dyn ExecutionPlan>,
            )),
            None => Ok(Transformed::no(node)),
        }
    })
    .data()
}

fn find(plan: &Arc<dyn ExecutionPlan>, out: &mut Vec<Arc<dyn ExecutionPlan>>) {
    if plan.is::<StreamingTableExec>() {
        out.push(Arc::clone(plan));
    }
    for child in plan.children() {
        find(child, out);
    }
}
