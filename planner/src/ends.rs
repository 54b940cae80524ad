//! Newest points without reading the rest: what asks only for the greatest or least value of the key's next column, series by
//! series, is told by the rows at the ends of the key's order.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::JoinType;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateInputMode};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use shoal_kernel::{ColumnId, KeyEnds};

use crate::node::LeafScanExec;

/// Tells scans which rows are enough.
pub(crate) fn read_ends(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let rewritten = match below_aggregate(&node)? {
            Some(rewritten) => Some(rewritten),
            None => beside_aggregate(&node)?,
        };
        Ok(rewritten.map_or_else(|| Transformed::no(node), Transformed::yes))
    })
    .data()
}

/// A first aggregation right above a scan.
fn below_aggregate(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(aggregate) = plan.downcast_ref::<AggregateExec>() else { return Ok(None) };
    let Some(leaf) = aggregate.input().downcast_ref::<LeafScanExec>() else { return Ok(None) };
    let Some(ends) = ends_wanted(aggregate, leaf) else { return Ok(None) };
    let leaf: Arc<dyn ExecutionPlan> = Arc::new(leaf.at_ends(ends));
    replace_children_if_necessary(Arc::clone(plan), vec![leaf]).map(Some)
}

/// The rows that the aggregation needs, if these are few.
fn ends_wanted(aggregate: &AggregateExec, leaf: &LeafScanExec) -> Option<KeyEnds> {
    let columns = leaf.columns()?;
    let simple = aggregate.mode().input_mode() == AggregateInputMode::Raw
        && aggregate.group_expr().is_single()
        && aggregate.filter_expr().iter().all(Option::is_none);
    if !simple {
        return None;
    }
    let id = |expr: &Arc<dyn PhysicalExpr>| columns.get(expr.downcast_ref::<Column>()?.index()).copied();
    let groups = aggregate.group_expr().expr();
    let (prefix, rest) = leaf.key().split_at_checked(groups.len())?;
    let grouped: Vec<ColumnId> = groups.iter().map(|(expr, _)| id(expr)).collect::<Option<_>>()?;
    if !prefix.iter().all(|column| grouped.contains(column)) {
        return None;
    }
    let schema = leaf.schema();
    let mut ends = KeyEnds { columns: prefix.len() as u32, first: false, last: false };
    for call in aggregate.aggr_expr() {
        let by = match call.fun().name() {
            "min" | "max" => call.expressions().first().cloned()?,
            // Rows of one group do not differ in what they are grouped by.
            _ => sorted_by(call, |expr| id(expr).is_some_and(|id| grouped.contains(&id)))?,
        };
        // Of floats, SQL's order is another one than the key's.
        let data_type = by.data_type(&schema).ok()?;
        let is_ordered_alike = data_type.is_integer()
            || matches!(data_type, DataType::Utf8 | DataType::Date32 | DataType::Timestamp(_, _));
        if !is_ordered_alike || id(&by).as_ref() != rest.first() {
            return None;
        }
        ends.first |= call.fun().name() != "max";
        ends.last |= call.fun().name() != "min";
    }
    // Which values there are, one row of each tells.
    ends.last |= !ends.first && !groups.is_empty();
    (ends.first || ends.last).then_some(ends)
}

/// What the first or last value is chosen by, if that is one column beside those that are the same in all rows.
fn sorted_by(
    call: &AggregateFunctionExpr,
    is_same: impl Fn(&Arc<dyn PhysicalExpr>) -> bool,
) -> Option<Arc<dyn PhysicalExpr>> {
    let is_one_row = matches!(call.fun().name(), "first_value" | "last_value") && !call.ignore_nulls();
    let mut sorts = call.order_bys().iter().map(|sort| &sort.expr).filter(|expr| !is_same(expr));
    match (sorts.next(), sorts.next()) {
        (Some(sort), None) if is_one_row => Some(Arc::clone(sort)),
        _ => None,
    }
}

/// A join of a table with its own newest (or oldest) points: only these have a partner.
fn beside_aggregate(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(join) = plan.downcast_ref::<HashJoinExec>() else { return Ok(None) };
    let (on_left, on_right): (Vec<_>, Vec<_>) = join.on().iter().cloned().unzip();
    // The side whose rows are only wanted if they have a partner, and the other one.
    let ways = match join.join_type() {
        JoinType::Inner => [true, false].as_slice(),
        JoinType::LeftSemi => &[true],
        JoinType::RightSemi => &[false],
        _ => &[],
    };
    for &points_left in ways {
        let (points, ends, on_points, on_ends) = match points_left {
            true => (join.left(), join.right(), &on_left, &on_right),
            false => (join.right(), join.left(), &on_right, &on_left),
        };
        let Some(only) = ends_joined(points, ends, on_points, on_ends) else { continue };
        let narrowed = Arc::clone(points).transform_down(|node| {
            Ok(match node.downcast_ref::<LeafScanExec>() {
                Some(leaf) => Transformed::yes(Arc::new(leaf.at_ends(only)) as _),
                None => Transformed::no(node),
            })
        });
        let narrowed = narrowed.data()?;
        let children = match points_left {
            true => vec![narrowed, Arc::clone(join.right())],
            false => vec![Arc::clone(join.left()), narrowed],
        };
        return replace_children_if_necessary(Arc::clone(plan), children).map(Some);
    }
    Ok(None)
}

/// Which rows of the one side can have a partner, if the other one is the ends of the same table.
fn ends_joined(
    points: &Arc<dyn ExecutionPlan>,
    ends: &Arc<dyn ExecutionPlan>,
    on_points: &[Arc<dyn PhysicalExpr>],
    on_ends: &[Arc<dyn PhysicalExpr>],
) -> Option<KeyEnds> {
    let leaf = below(points).downcast_ref::<LeafScanExec>()?;
    let columns = leaf.columns()?;
    let last = aggregate_of(ends)?;
    let mut first = last;
    while first.mode().input_mode() != AggregateInputMode::Raw {
        first = below(first.input()).downcast_ref::<AggregateExec>()?;
    }
    let source = first.input().downcast_ref::<LeafScanExec>()?;
    let only = source.ends()?;
    let groups = first.group_expr().expr().len();
    // One row per group comes out of it, and one of the points is that row.
    let is_same_table = source.table() == leaf.table()
        && only.first != only.last
        && first.aggr_expr().len() == 1
        && matches!(first.aggr_expr()[0].fun().name(), "min" | "max")
        && leaf.key().len() == groups + 1
        && on_points.len() == leaf.key().len();
    // What the ends were chosen from may only be more.
    let (chosen_from, asked_for) = (source.scans().first()?, leaf.scans().first()?);
    if !is_same_table || !chosen_from.predicates.iter().all(|predicate| asked_for.predicates.contains(predicate)) {
        return None;
    }
    let group_columns: Vec<ColumnId> = first
        .group_expr()
        .expr()
        .iter()
        .map(|(expr, _)| source.columns()?.get(expr.downcast_ref::<Column>()?.index()).copied())
        .collect::<Option<_>>()?;
    for (point, end) in on_points.iter().zip(on_ends) {
        let point = *columns.get(place_below(points, point)?)?;
        let end = place_below(ends, end)?;
        let partner = if end < groups { group_columns.get(end) } else { leaf.key().last() };
        if partner != Some(&point) {
            return None;
        }
    }
    // Each of the key's columns has its partner; they are as many as there are conditions, so none may stand twice.
    let places: std::collections::BTreeSet<usize> =
        on_points.iter().map(|point| place_below(points, point)).collect::<Option<_>>()?;
    (places.len() == on_points.len()).then_some(only)
}

/// The first node below that does more than hand rows on.
fn below(plan: &Arc<dyn ExecutionPlan>) -> &Arc<dyn ExecutionPlan> {
    if let Some(node) = plan.downcast_ref::<RepartitionExec>() {
        return below(node.input());
    }
    match plan.downcast_ref::<CoalescePartitionsExec>() {
        Some(node) => below(node.input()),
        None => plan,
    }
}

/// The aggregation that gives these rows, but for columns that are renamed or left out.
fn aggregate_of(plan: &Arc<dyn ExecutionPlan>) -> Option<&AggregateExec> {
    let plan = below(plan);
    match plan.downcast_ref::<ProjectionExec>() {
        Some(projection) => aggregate_of(projection.input()),
        None => plan.downcast_ref::<AggregateExec>(),
    }
}

/// Where a column of a plan stands in the scan or aggregation that it comes from.
fn place_below(plan: &Arc<dyn ExecutionPlan>, expr: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    let place = expr.downcast_ref::<Column>()?.index();
    match below(plan).downcast_ref::<ProjectionExec>() {
        Some(projection) => place_below(projection.input(), &projection.expr().get(place)?.expr),
        None => Some(place),
    }
}
