//! Late materialisation: the other columns of the few rows that are left.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{SchemaRef, UInt64Type};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::{TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use shoal_kernel::{ColumnId, Error, FetchSpec, PartitionId, TableId};

use crate::error::error_to_datafusion;

/// Takes rows whose last column is an address, and gives them back with columns that are read only now. Runs in the task that
/// scanned them, on the same snapshot; keeps their order. Its input is short: all of it is held.
#[derive(Debug, Clone)]
pub(crate) struct LateFetchExec {
    input: Arc<dyn ExecutionPlan>,
    body: Body,
    properties: Arc<PlanProperties>,
}

/// Where an output column comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Output {
    /// That column of the input.
    Input(u32),
    /// That one of the fetched columns.
    Fetched(u32),
}

/// What travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Body {
    table: TableId,
    /// By partition of the input.
    partitions: Vec<PartitionId>,
    schema_version: u32,
    columns: Vec<ColumnId>,
    outputs: Vec<Output>,
    schema: SchemaRef,
}

impl LateFetchExec {
    /// Fetches `columns` for the rows of `input`. `like` has the wanted schema, order and partitioning.
    pub(crate) fn new(
        input: Arc<dyn ExecutionPlan>,
        table: TableId,
        partitions: Vec<PartitionId>,
        schema_version: u32,
        columns: Vec<ColumnId>,
        outputs: Vec<Output>,
        like: &PlanProperties,
    ) -> Self {
        let schema = Arc::clone(like.eq_properties.schema());
        Self {
            input,
            body: Body { table, partitions, schema_version, columns, outputs, schema },
            properties: Arc::new(like.clone()),
        }
    }

    pub(super) fn encode(&self) -> shoal_kernel::Result<Vec<u8>> {
        Ok(shoal_kernel::wire::encode(&self.body)?)
    }

    pub(super) fn decode(bytes: &[u8], input: Arc<dyn ExecutionPlan>) -> shoal_kernel::Result<Self> {
        let body: Body = shoal_kernel::wire::decode(bytes)?;
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&body.schema)),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        Ok(Self { input, body, properties: Arc::new(properties) })
    }
}

impl DisplayAs for LateFetchExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fetched =
            self.body.outputs.iter().zip(self.body.schema.fields()).filter_map(|(output, field)| match output {
                Output::Fetched(_) => Some(field.name().as_str()),
                Output::Input(_) => None,
            });
        write!(f, "LateFetchExec: columns=[{}]", fetched.collect::<Vec<_>>().join(", "))
    }
}

impl ExecutionPlan for LateFetchExec {
    fn name(&self) -> &str {
        "LateFetchExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn fetch(&self) -> Option<usize> {
        self.input.fetch()
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
        let [input] = children.as_slice() else {
            return Err(error_to_datafusion(Error::internal("late fetching has one input")));
        };
        Ok(Arc::new(Self { input: Arc::clone(input), ..self.as_ref().clone() }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(&wanted) = self.body.partitions.get(partition) else {
            let message =
                format!("rows are fetched from {} partitions, not from {partition}", self.body.partitions.len());
            return Err(error_to_datafusion(Error::internal(message)));
        };
        let inputs = super::inputs(&context)?;
        let rows = self.input.execute(partition, context)?;
        let Body { table, schema_version, columns, outputs, schema, .. } = self.body.clone();
        let answer = Arc::clone(&schema);
        let fetching = async move {
            let arriving = rows.schema();
            let batches: Vec<RecordBatch> = rows.try_collect().await?;
            let found = concat_batches(&arriving, &batches)?;
            let addresses = found.columns().last().and_then(|column| column.as_primitive_opt::<UInt64Type>());
            let addresses = addresses.ok_or_else(|| error_to_datafusion(Error::internal("rows without addresses")))?;
            let spec = FetchSpec { table, partition: wanted, schema_version, columns };
            let fetched = inputs.fetch(spec, addresses.values().to_vec()).await.map_err(error_to_datafusion)?;
            let column = |output: &Output| {
                let (batch, place) = match output {
                    Output::Input(place) => (&found, *place),
                    Output::Fetched(place) => (&fetched, *place),
                };
                let column: Option<&ArrayRef> = batch.columns().get(place as usize);
                column.cloned().ok_or_else(|| error_to_datafusion(Error::internal("a fetched column is missing")))
            };
            let arrays = outputs.iter().map(column).collect::<Result<Vec<_>>>()?;
            let options = RecordBatchOptions::new().with_row_count(Some(addresses.len()));
            Ok(RecordBatch::try_new_with_options(schema, arrays, &options)?)
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(answer, stream::once(fetching))))
    }
}
