//! Lets the recursive term of a query read remote rows again in every round.

use std::fmt;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::{TryStreamExt, stream};
use shoal_kernel::Error;
use tokio::sync::Mutex;

use crate::error::error_to_datafusion;

/// One input partition, as far as it has been read. A reader that stops early leaves the rest to the next one: an operator
/// that finds its other side empty drops this one unread.
struct Tape {
    batches: Vec<RecordBatch>,
    rest: Option<SendableRecordBatchStream>,
    reservation: MemoryReservation,
}

impl Tape {
    /// The batch of that number. Losing the future loses no batch.
    async fn batch(&mut self, number: usize) -> Result<Option<RecordBatch>> {
        while number >= self.batches.len() {
            let Some(rest) = &mut self.rest else { return Ok(None) };
            match rest.try_next().await? {
                Some(batch) => {
                    self.reservation.try_grow(batch.get_array_memory_size())?;
                    self.batches.push(batch);
                }
                None => self.rest = None,
            }
        }
        Ok(self.batches.get(number).cloned())
    }
}

type Tapes = Vec<Mutex<Option<Tape>>>;

/// Reads its input once and keeps it, charged to the task's memory pool: an edge can be read once only, a recursive term
/// runs many times.
pub(crate) struct ReplayExec {
    input: Arc<dyn ExecutionPlan>,
    tapes: Arc<Tapes>,
}

impl ReplayExec {
    /// Keeps the rows of `input`.
    pub(crate) fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let partitions = input.output_partitioning().partition_count();
        Self { input, tapes: Arc::new((0..partitions).map(|_| Mutex::new(None)).collect()) }
    }
}

impl fmt::Debug for ReplayExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayExec").field("input", &self.input).finish_non_exhaustive()
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
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn reset_state(self: Arc<Self>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (tapes, input) = (Arc::clone(&self.tapes), Arc::clone(&self.input));
        let rows = stream::try_unfold(0, move |number| {
            let (tapes, input, context) = (Arc::clone(&tapes), Arc::clone(&input), Arc::clone(&context));
            async move {
                let Some(tape) = tapes.get(partition) else {
                    let message = format!("ReplayExec has no partition {partition}");
                    return Err(error_to_datafusion(Error::internal(message)));
                };
                let mut tape = tape.lock().await;
                if tape.is_none() {
                    let reservation = MemoryConsumer::new("ReplayExec").register(context.memory_pool());
                    let rest = Some(input.execute(partition, context)?);
                    *tape = Some(Tape { batches: Vec::new(), rest, reservation });
                }
                let batch = match tape.as_mut() {
                    Some(tape) => tape.batch(number).await?,
                    None => None,
                };
                Ok::<_, DataFusionError>(batch.map(|batch| (batch, number + 1)))
            }
        });
        Ok(make_cooperative(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows))))
    }
}
