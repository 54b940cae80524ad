//! A task that computes for long without a pause hears that it is to stop.
//!
//! A task is stopped between two of its steps. A join on anything but equality compares every row of one side with every row of the other,
//! and takes a step only when it has found enough, which may be hours later. So its condition looks each time that it is evaluated.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{NestedLoopJoinExec, NestedLoopJoinExecBuilder};
use shoal_kernel::{Error, ErrorCode};

use crate::error::error_to_datafusion;
use crate::graph::TaskInputs;

/// The plan of a task with such conditions.
pub(crate) fn heed_stop(plan: Arc<dyn ExecutionPlan>, inputs: &Arc<dyn TaskInputs>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some((join, filter)) =
            node.downcast_ref::<NestedLoopJoinExec>().and_then(|join| Some((join, join.filter()?)))
        else {
            return Ok(Transformed::no(node));
        };
        let condition = Heeding { condition: Arc::clone(filter.expression()), inputs: Arc::clone(inputs) };
        let indices = filter.column_indices().to_vec();
        let filter = JoinFilter::new(Arc::new(condition), indices, Arc::clone(filter.schema()));
        let join = NestedLoopJoinExecBuilder::from(join).with_filter(Some(filter)).build()?;
        Ok(Transformed::yes(Arc::new(join) as Arc<dyn ExecutionPlan>))
    })
    .data()
}

/// A condition that fails once its task is to stop.
#[derive(Debug)]
struct Heeding {
    condition: Arc<dyn PhysicalExpr>,
    inputs: Arc<dyn TaskInputs>,
}

impl fmt::Display for Heeding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.condition.fmt(f)
    }
}

impl PartialEq for Heeding {
    fn eq(&self, other: &Self) -> bool {
        self.condition.eq(&other.condition) && Arc::ptr_eq(&self.inputs, &other.inputs)
    }
}

impl Eq for Heeding {}

impl Hash for Heeding {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.condition.hash(state);
    }
}

impl PhysicalExpr for Heeding {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.condition.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.condition.nullable(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        if self.inputs.is_stopped() {
            return Err(error_to_datafusion(Error::new(ErrorCode::Cancelled, "the task was stopped")));
        }
        self.condition.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.condition]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let condition = children.into_iter().next().unwrap_or_else(|| Arc::clone(&self.condition));
        Ok(Arc::new(Self { condition, inputs: Arc::clone(&self.inputs) }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.condition.fmt_sql(f)
    }
}
