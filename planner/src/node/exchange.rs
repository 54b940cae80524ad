//! Where a fragment reads what another fragment has put out.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{Partitioning, PhysicalExpr};
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use futures::stream::select_all;
use serde::{Deserialize, Serialize};
use shoal_kernel::{Error, FragmentId};

use crate::error::error_to_datafusion;

/// How output partitions map to the producer's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ExchangeSource {
    /// Output partition `p` is what producer task `p` put into its one slot.
    Gather {
        /// Tasks of the producer.
        tasks: u32,
    },
    /// Output partition `i` is what all producer tasks put into slot `i`; task `i` of the consumer runs it.
    Hash {
        /// Tasks of the producer.
        tasks: u32,
        /// Slots of each of them.
        slots: u32,
    },
    /// The one output partition is what all producer tasks put into the slot of the task that reads it: all rows, in every task.
    Broadcast {
        /// Tasks of the producer.
        tasks: u32,
    },
}

impl ExchangeSource {
    pub(super) fn partitions(self) -> usize {
        match self {
            Self::Gather { tasks } => tasks as usize,
            Self::Hash { slots, .. } => slots as usize,
            Self::Broadcast { .. } => 1,
        }
    }
}

/// Reads the output of a fragment. Its properties (order, partitioning, equal and constant columns) are those of the part
/// of the plan that it stands for, because the plan above was made relying on them.
#[derive(Debug, Clone)]
pub(crate) struct ExchangeExec {
    fragment: FragmentId,
    source: ExchangeSource,
    properties: Arc<PlanProperties>,
}

impl ExchangeExec {
    /// Stands for a part of a plan with these properties, whose output `fragment` produces.
    pub(crate) fn new(fragment: FragmentId, source: ExchangeSource, properties: &PlanProperties) -> Self {
        let properties = PlanProperties::new(
            properties.eq_properties.clone(),
            match &properties.partitioning {
                same if same.partition_count() == source.partitions() => same.clone(),
                _ => Partitioning::UnknownPartitioning(source.partitions()),
            },
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Self { fragment, source, properties: Arc::new(properties) }
    }

    /// The fragment it reads.
    pub(crate) fn fragment(&self) -> FragmentId {
        self.fragment
    }

    /// How it reads.
    pub(crate) fn source(&self) -> ExchangeSource {
        self.source
    }
}

impl DisplayAs for ExchangeExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExchangeExec: ")?;
        match self.source {
            ExchangeSource::Gather { tasks } => write!(f, "gather {} from {tasks} tasks", self.fragment),
            ExchangeSource::Hash { tasks, slots } => {
                write!(f, "hash {} from {tasks} tasks into {slots}", self.fragment)
            }
            ExchangeSource::Broadcast { tasks } => write!(f, "all of {} from {tasks} tasks", self.fragment),
        }?;
        match self.properties.eq_properties.output_ordering() {
            Some(ordering) => write!(f, ", ordered by [{ordering}]"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for ExchangeExec {
    fn name(&self) -> &str {
        "ExchangeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition >= self.source.partitions() {
            let message = format!("the exchange with {} has no partition {partition}", self.fragment);
            return Err(error_to_datafusion(Error::internal(message)));
        }
        let inputs = super::inputs(&context)?;
        let schema = self.schema();
        let open = |task: u32| inputs.exchange(self.fragment, task, Arc::clone(&schema)).map_err(error_to_datafusion);
        let rows = match self.source {
            ExchangeSource::Gather { .. } => {
                open(u32::try_from(partition).map_err(|_| error_to_datafusion(Error::internal("too many tasks")))?)?
            }
            ExchangeSource::Hash { tasks, .. } | ExchangeSource::Broadcast { tasks } => {
                let producers = (0..tasks).map(open).collect::<Result<Vec<_>>>()?;
                Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&schema), select_all(producers)))
            }
        };
        Ok(make_cooperative(rows))
    }
}
