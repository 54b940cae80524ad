//! Joins of a small side with a large one. All of the small side goes to every task that has rows of the large one, which stay where they
//! are: an aggregation above may then run at the replicas, too.

use std::sync::Arc;

use arrow::datatypes::{FieldRef, Schema};
use datafusion::common::JoinType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::execution::session_state::SessionState;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PartitionMode, SortMergeJoinExec,
};
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use crate::node::LeafScanExec;

/// Rows of a side that goes to every task of the other, at most: each of them holds them all.
const ROWS_MAX: usize = 64 * 1024;

/// The same, if nobody knows how large the other side is.
const ROWS_MAX_BLIND: usize = 8 * 1024;

/// Bytes of that side, at most, as far as they can be guessed.
const BYTES_MAX: usize = 8 << 20;

/// What a value is taken for that has no fixed width.
const TEXT_BYTES: usize = 32;

const NAME: &str = "broadcast_small_sides";

/// DataFusion's rules, and behind the one that says how each join is done, ours.
pub(crate) fn rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = PhysicalOptimizer::new().rules;
    // The rules that follow bring rows to where a join wants them.
    let place = rules.iter().position(|rule| rule.name() == "join_selection").map_or(0, |place| place + 1);
    rules.insert(place, Arc::new(BroadcastSmallSides));
    rules
}

/// Whether a statement's plan may have broadcasts. With a single partition DataFusion has every join by hash collect a side, however large.
pub(crate) fn is_on(state: &SessionState) -> bool {
    let rules = state.physical_optimizers();
    state.config().target_partitions() > 1 && rules.iter().any(|rule| rule.name() == NAME)
}

/// Has joins by hash collect a side that is small, instead of sending both sides to where their keys hash to.
#[derive(Debug)]
struct BroadcastSmallSides;

impl PhysicalOptimizerRule for BroadcastSmallSides {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(collect_small_side).data()
    }

    fn name(&self) -> &str {
        NAME
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn collect_small_side(plan: Arc<dyn ExecutionPlan>) -> Result<Transformed<Arc<dyn ExecutionPlan>>> {
    let Some(join) = plan.downcast_ref::<HashJoinExec>() else { return Ok(Transformed::no(plan)) };
    if join.null_aware || *join.partition_mode() != PartitionMode::Partitioned {
        return Ok(Transformed::no(plan));
    }
    let (left, right, kind) = (join.left(), join.right(), *join.join_type());
    if follows_probe(kind) && pays(left, right)? {
        let collected = join.builder().with_partition_mode(PartitionMode::CollectLeft).build()?;
        return Ok(Transformed::yes(Arc::new(collected)));
    }
    if kind.supports_swap() && follows_probe(kind.swap()) && pays(right, left)? {
        return join.swap_inputs(PartitionMode::CollectLeft).map(Transformed::yes);
    }
    Ok(Transformed::no(plan))
}

/// Whether a join wants all rows of its left side wherever there are rows of its right one, and that costs less than to bring both
/// together elsewhere. Of joins by hash the rule has decided it.
pub(crate) fn broadcasts_left(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    if let Some(join) = plan.downcast_ref::<HashJoinExec>() {
        return Ok(*join.partition_mode() == PartitionMode::CollectLeft && follows_probe(*join.join_type()));
    }
    if let Some(join) = plan.downcast_ref::<CrossJoinExec>() {
        return pays(join.left(), join.right());
    }
    match plan.downcast_ref::<NestedLoopJoinExec>() {
        Some(join) => Ok(follows_probe(*join.join_type()) && pays(join.left(), join.right())?),
        None => Ok(false),
    }
}

/// Whether each row of the answer hangs on one row of the right side. Of the other kinds, some rows are given because no row of the right
/// side, in any task, has met one of the left.
fn follows_probe(kind: JoinType) -> bool {
    matches!(kind, JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark)
}

/// Whether as many copies of the small side as the other has tasks are fewer rows than both together, and the other lies where tables do.
fn pays(small: &Arc<dyn ExecutionPlan>, large: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    if !large.exists(|node| Ok(node.is::<LeafScanExec>()))? {
        return Ok(false);
    }
    let Some(rows) = rows(small)?.filter(|rows| rows.saturating_mul(row_bytes(&small.schema())) <= BYTES_MAX) else {
        return Ok(false);
    };
    let copies = large.output_partitioning().partition_count();
    Ok(match self::rows(large)? {
        Some(others) => rows <= ROWS_MAX && rows.saturating_mul(copies) <= rows.saturating_add(others),
        None => rows <= ROWS_MAX_BLIND,
    })
}

/// About how many bytes a row takes.
fn row_bytes(schema: &Schema) -> usize {
    let bytes = |field: &FieldRef| field.data_type().primitive_width().unwrap_or(TEXT_BYTES);
    schema.fields().iter().map(bytes).sum()
}

/// How many rows there are, as far as anybody can tell. How many come of a join nobody can.
fn rows(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<usize>> {
    let is_join = |node: &Arc<dyn ExecutionPlan>| {
        node.is::<HashJoinExec>()
            || node.is::<CrossJoinExec>()
            || node.is::<NestedLoopJoinExec>()
            || node.is::<SortMergeJoinExec>()
    };
    if plan.exists(|node| Ok(is_join(node)))? {
        return Ok(None);
    }
    let statistics = StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new())?;
    Ok(statistics.num_rows.get_value().copied())
}
