//! Where a part of a plan can run, and which operators leave it there.

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode, SortMergeJoinExec};
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::union::InterleaveExec;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use shoal_kernel::PartitionId;

use crate::graph::Place;
use crate::node::{CodedAggregateExec, LateFetchExec, SummaryExec};

/// Where a part of a plan runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Placement {
    /// In one task, with all of its partitions.
    Local,
    /// Task `i` at a replica of partition `i` of this list.
    Leaf(Vec<PartitionId>),
    /// In so many tasks, each with the rows whose keys hash to it.
    Hashed(u32),
}

impl Placement {
    /// Number of tasks.
    pub(super) fn tasks(&self) -> usize {
        match self {
            Self::Local => 1,
            Self::Leaf(partitions) => partitions.len(),
            Self::Hashed(tasks) => *tasks as usize,
        }
    }

    /// A place for every task.
    pub(super) fn places(&self) -> Vec<Place> {
        match self {
            Self::Local => vec![Place::Coordinator],
            Self::Leaf(partitions) => partitions.iter().copied().map(Place::Replica).collect(),
            Self::Hashed(tasks) => vec![Place::Anywhere; *tasks as usize],
        }
    }
}

/// Whether output partition `i` of an operator comes from partition `i` of its inputs alone, without anything shared
/// between partitions. With a `single` partition, operators that want all rows together qualify too.
pub(super) fn is_partition_wise(plan: &Arc<dyn ExecutionPlan>, single: bool) -> bool {
    if plan.is::<FilterExec>()
        || plan.is::<ProjectionExec>()
        || plan.is::<LocalLimitExec>()
        || plan.is::<UnnestExec>()
        || plan.is::<CooperativeExec>()
        || plan.is::<SortMergeJoinExec>()
        || plan.is::<InterleaveExec>()
        || plan.is::<LateFetchExec>()
        || plan.is::<CodedAggregateExec>()
        || plan.is::<SummaryExec>()
    {
        return true;
    }
    if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
        return match aggregate.mode() {
            AggregateMode::Partial | AggregateMode::FinalPartitioned | AggregateMode::SinglePartitioned => true,
            AggregateMode::Final | AggregateMode::Single => single,
            _ => false,
        };
    }
    if let Some(sort) = plan.downcast_ref::<SortExec>() {
        return single || sort.preserve_partitioning();
    }
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        return *join.partition_mode() == PartitionMode::Partitioned;
    }
    if let Some(window) = plan.downcast_ref::<WindowAggExec>() {
        return single || !window.partition_keys().is_empty();
    }
    if let Some(window) = plan.downcast_ref::<BoundedWindowAggExec>() {
        return single || !window.partition_keys().is_empty();
    }
    single && plan.is::<GlobalLimitExec>()
}

/// Whether an operator's expressions read the result of a scalar subquery. That result lives in the task that ran the
/// subquery, so the operator must run there.
pub(super) fn reads_subquery(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut found = false;
    plan.apply_expressions(&mut |expr: &Arc<dyn PhysicalExpr>| {
        found |= expr.exists(|inner| Ok(inner.is::<ScalarSubqueryExpr>()))?;
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}
