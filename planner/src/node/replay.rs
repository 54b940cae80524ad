//! Lets the recursive term of a query read remote rows again in every round.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, ReplaceChildrenOptions,
};
use futures::{TryStreamExt, stream};
use shoal_kernel::Error;

use crate::error::error_to_datafusion;

/// The rows of one input partition, once they have been read.
#[derive(Debug)]
struct Kept {
    batches: Vec<RecordBatch>,
    /// Gives the memory back when the plan goes.
    _reservation: MemoryReservation,
}

/// Reads its input once and keeps it: an edge can be read once only, a recursive term runs many times.
#[derive(Debug)]
pub(crate) struct ReplayExec {
    input: Arc<dyn ExecutionPlan>,
    kept: Arc<Vec<Mutex<Option<Arc<Kept>>>>>,
}

impl ReplayExec {
    /// Keeps the rows of `input`, charged to the task's memory pool.
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        Self { input, kept: Arc::new((0..partitions).map(|_| Mutex::new(None)).collect()) }
    }
}

impl DisplayAs for ReplayExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplayExec")
    }
}

impl ExecutionPlan for ReplayExec {
    fn name(&self) -> &str {
        "ReplayExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match children.into_iter().next() {
            // The same rows: what was kept stays, which is what the node is for.
            Some(input) if Arc::ptr_eq(&input, &self.input) => Ok(self),
            Some(input) => Ok(Arc::new(Self::new(input))),
            None => Err(error_to_datafusion(Error::internal("ReplayExec needs an input"))),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        use datafusion::physical_plan::ChildrenPropertiesMode;
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let kept = Arc::clone(&self.kept);
        let Some(cell) = kept.get(partition) else {
            return Err(error_to_datafusion(Error::internal(format!("ReplayExec has no partition {partition}"))));
        };
        let before = cell.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = match before {
            Some(_) => None,
            None => Some(self.input.execute(partition, Arc::clone(&context))?),
        };
        let reservation = MemoryConsumer::new("ReplayExec").register(context.memory_pool());
        let kept = Arc::clone(&kept);
        let read = async move {
            let rows = match (before, first) {
                (Some(rows), _) => rows,
                (None, first) => {
                    let mut batches = Vec::new();
                    if let Some(mut first) = first {
                        while let Some(batch) = first.try_next().await? {
                            reservation.try_grow(batch.get_array_memory_size())?;
                            batches.push(batch);
                        }
                    }
                    let rows = Arc::new(Kept { batches, _reservation: reservation });
                    if let Some(cell) = kept.get(partition) {
                        *cell.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&rows));
                    }
                    rows
                }
            };
            Ok::<_, DataFusionError>(stream::iter(rows.batches.clone().into_iter().map(Ok)))
        };
        let rows = RecordBatchStreamAdapter::new(self.schema(), stream::once(read).try_flatten());
        Ok(make_cooperative(Box::pin(rows)))
    }
}
