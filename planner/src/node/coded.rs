//! Partial aggregation that tells groups apart by codes and numbers instead of by text, and adds up runs of rows at once.

use std::fmt;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::{StreamExt, TryStreamExt, stream};
use shoal_kernel::Error;

use crate::error::error_to_datafusion;
use crate::groups::Groups;
use crate::runs::{Reduction, Runs};

/// Groups that are collected before what they came to is handed on: a later stage puts equal ones together.
const GROUPS_MAX: usize = 256 * 1024;

/// Bytes of text in their keys that are collected before that.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// Does the work of the partial [`AggregateExec`] that is its input, whose own input gives text as dictionaries.
#[derive(Debug, Clone)]
pub(crate) struct CodedAggregateExec {
    aggregate: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl CodedAggregateExec {
    /// `like` has the schema of the aggregation over plain text.
    pub(crate) fn new(aggregate: Arc<dyn ExecutionPlan>, like: &PlanProperties) -> Self {
        Self { aggregate, properties: Arc::new(like.clone()) }
    }

    pub(super) fn decode(schema: SchemaRef, aggregate: Arc<dyn ExecutionPlan>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            aggregate.output_partitioning().clone(),
            aggregate.pipeline_behavior(),
            aggregate.boundedness(),
        );
        Self { aggregate, properties: Arc::new(properties) }
    }
}

impl DisplayAs for CodedAggregateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CodedAggregateExec")
    }
}

impl ExecutionPlan for CodedAggregateExec {
    fn name(&self) -> &str {
        "CodedAggregateExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.aggregate]
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
        match children.as_slice() {
            [aggregate] => Ok(Arc::new(Self { aggregate: Arc::clone(aggregate), ..self.as_ref().clone() })),
            _ => Err(error_to_datafusion(Error::internal("a coded aggregation has one input"))),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(aggregate) = self.aggregate.downcast_ref::<AggregateExec>() else {
            return Err(error_to_datafusion(Error::internal("a coded aggregation without an aggregation")));
        };
        let schema = self.schema();
        let reservation =
            MemoryConsumer::new(format!("CodedAggregateExec[{partition}]")).register(context.memory_pool());
        let input_schema = aggregate.input().schema();
        let reductions = aggregate.aggr_expr().iter().map(|call| Reduction::of(call, &input_schema));
        let run = Run {
            reductions: reductions.collect::<Result<_>>()?,
            runs: Runs::default(),
            keys: aggregate.group_expr().expr().iter().map(|(expr, _)| Arc::clone(expr)).collect(),
            calls: aggregate.aggr_expr().to_vec(),
            batch_rows: context.session_config().batch_size().max(1),
            schema: Arc::clone(&schema),
            reservation,
            collected: None,
        };
        let rows = aggregate.input().execute(partition, context)?;
        let answers = stream::try_unfold((run, Some(rows)), |(mut run, rows)| async move {
            let Some(mut rows) = rows else { return Ok(None) };
            while let Some(batch) = rows.next().await {
                if let Some(full) = run.add(&batch?)? {
                    return Ok(Some((full, (run, Some(rows)))));
                }
            }
            let last = run.emit()?;
            Ok::<_, DataFusionError>(last.map(|last| (last, (run, None))))
        });
        let batches = answers.map_ok(|batches| stream::iter(batches.into_iter().map(Ok))).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}

/// What has been seen since the last time that something was handed on.
struct Collected {
    groups: Groups,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
}

struct Run {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    calls: Vec<Arc<AggregateFunctionExpr>>,
    /// How to add up runs of rows at once, by call, where that is known.
    reductions: Vec<Option<Reduction>>,
    runs: Runs,
    batch_rows: usize,
    schema: SchemaRef,
    reservation: MemoryReservation,
    collected: Option<Collected>,
}

impl Run {
    /// Takes rows; gives what has been collected if that has become much.
    fn add(&mut self, batch: &RecordBatch) -> Result<Option<Vec<RecordBatch>>> {
        let rows = batch.num_rows();
        if rows == 0 {
            return Ok(None);
        }
        let array = |expr: &Arc<dyn PhysicalExpr>| expr.evaluate(batch)?.into_array(rows);
        let keys = self.keys.iter().map(array).collect::<Result<Vec<ArrayRef>>>()?;
        let collected = match &mut self.collected {
            Some(collected) => collected,
            none => {
                let accumulators =
                    self.calls.iter().map(|call| call.create_groups_accumulator()).collect::<Result<_>>()?;
                let types = self.schema.fields().iter().take(keys.len()).map(|field| field.data_type().clone());
                none.insert(Collected { groups: Groups::new(types.collect()), accumulators })
            }
        };
        let (indices, total) = collected.groups.place(&keys, rows)?;
        let in_runs = self.runs.find(indices);
        let calls = self.calls.iter().zip(&self.reductions).zip(&mut collected.accumulators);
        for ((call, reduction), accumulator) in calls {
            if let Some(reduction) = reduction.as_ref().filter(|_| in_runs) {
                let values = reduction.argument().map(array).transpose()?;
                if let Some(states) = reduction.states(values.as_ref(), &self.runs) {
                    accumulator.merge_batch(&states, self.runs.groups(), total)?;
                    continue;
                }
            }
            let arguments = call.expressions().iter().map(array).collect::<Result<Vec<ArrayRef>>>()?;
            accumulator.update_batch(&arguments, indices, None, total)?;
        }
        let bytes = collected.accumulators.iter().map(|accumulator| accumulator.size()).sum::<usize>();
        let held = self.reservation.try_resize(bytes + collected.groups.memory_bytes());
        let few = total < GROUPS_MAX && collected.groups.text_bytes() < TEXT_BYTES_MAX;
        // Without room for them a later stage has to bear the groups: this one starts again with nothing.
        if held.is_ok() && few { Ok(None) } else { self.emit() }
    }

    /// Hands on what has been collected.
    fn emit(&mut self) -> Result<Option<Vec<RecordBatch>>> {
        let Some(mut collected) = self.collected.take() else { return Ok(None) };
        let rows = collected.groups.len();
        let mut columns = collected.groups.finish()?;
        for accumulator in &mut collected.accumulators {
            columns.extend(accumulator.state(EmitTo::All)?);
        }
        self.reservation.free();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let all = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        let step = self.batch_rows;
        Ok(Some((0..rows).step_by(step).map(|start| all.slice(start, step.min(rows - start))).collect()))
    }
}
