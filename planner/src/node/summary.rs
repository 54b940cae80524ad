//! Partial aggregation of which statistics have done a part.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::StreamExt;
use shoal_kernel::{Error, Measure, ScanSpec, SummaryPart};

use super::LeafScanExec;
use crate::error::error_to_datafusion;

/// Gives the partial states of its input, a partial [`AggregateExec`] over the rows that statistics do not tell enough of, and
/// before them one that is told of the other rows.
#[derive(Debug, Clone)]
pub(crate) struct SummaryExec {
    aggregate: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl SummaryExec {
    pub(crate) fn new(aggregate: Arc<dyn ExecutionPlan>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(aggregate.schema()),
            aggregate.output_partitioning().clone(),
            aggregate.pipeline_behavior(),
            aggregate.boundedness(),
        );
        Self { aggregate, properties: Arc::new(properties) }
    }

    /// The scan below.
    fn leaf(&self) -> Option<&LeafScanExec> {
        self.aggregate.downcast_ref::<AggregateExec>()?.input().downcast_ref()
    }

    /// The other part of what is scanned below.
    fn told(&self, partition: usize) -> Option<ScanSpec> {
        let mut told = self.leaf()?.scans().get(partition)?.clone();
        told.summary.as_mut()?.part = SummaryPart::Told;
        Some(told)
    }
}

impl DisplayAs for SummaryExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scan = self.leaf().and_then(|leaf| leaf.scans().first());
        let columns = scan.map_or(&[][..], |scan| &scan.columns);
        let schema = self.leaf().map(LeafScanExec::schema);
        let name = |measure: &Measure| {
            let place = columns.iter().position(|column| Some(*column) == measure.column());
            let name = schema.as_ref().zip(place).map_or("?", |(schema, place)| schema.field(place).name().as_str());
            match measure {
                Measure::Rows => "rows".to_owned(),
                Measure::Values(_) => format!("values of {name}"),
                Measure::Sum(_) => format!("sum of {name}"),
                Measure::Least(_) => format!("least {name}"),
                Measure::Greatest(_) => format!("greatest {name}"),
            }
        };
        let measures = scan.and_then(|scan| scan.summary.as_ref()).map_or(&[][..], |summary| &summary.measures);
        write!(f, "SummaryExec: statistics=[{}]", measures.iter().map(name).collect::<Vec<_>>().join(", "))
    }
}

impl ExecutionPlan for SummaryExec {
    fn name(&self) -> &str {
        "SummaryExec"
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
            [aggregate] => Ok(Arc::new(Self::new(Arc::clone(aggregate)))),
            _ => Err(error_to_datafusion(Error::internal("a summary has one input"))),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(told) = self.told(partition) else {
            return Err(error_to_datafusion(Error::internal("a summary stands above no scan that has a rest")));
        };
        let schema = self.schema();
        let told = super::inputs(&context)?.scan(&told, Arc::clone(&schema), None).map_err(error_to_datafusion)?;
        let rest = self.aggregate.execute(partition, context)?;
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, make_cooperative(told).chain(rest))))
    }
}
