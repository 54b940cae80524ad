//! Order pushed down: a scan below `ORDER BY … LIMIT k` reads what may come first first, and passes over what comes behind the k
//! rows that the sort has kept so far.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, DynamicFilterPhysicalExpr, Literal, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use shoal_kernel::{Frontier, FrontierSource, ScanOrder};

use crate::datum::datum;
use crate::node::LeafScanExec;

/// Tells scans in which order their rows are wanted.
pub(crate) fn order_scans(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let ordered = match sorted_scan(&node) {
            Some((sort, leaf)) => match wanted_order(sort, leaf) {
                Some(order) => Some(with_scan(sort, leaf.ordered(order))?),
                None => None,
            },
            None => None,
        };
        Ok(ordered.map_or_else(|| Transformed::no(node), |input| Transformed::yes(Arc::new(input) as _)))
    })
    .data()
}

/// Lets scans that know the wanted order follow the sorts above them. For a plan that is about to run: what one tells the other
/// does not travel.
pub(crate) fn follow_sorts(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some((sort, leaf)) = sorted_scan(&node) else { return Ok(Transformed::no(node)) };
        let Some(data_type) = leaf.order().and_then(|_| Some(first_column(sort, leaf)?.2)) else {
            return Ok(Transformed::no(node));
        };
        let keys = sort.expr().iter().map(|sort| Arc::clone(&sort.expr)).collect();
        let filter = Arc::new(DynamicFilterPhysicalExpr::new(keys, lit(true)));
        let told = Arc::clone(&filter);
        let source = FrontierSource::new(move || frontier(&told.current().ok()?, &data_type));
        let following = with_scan(sort, leaf.following(source))?.with_dynamic_filter_expr(filter)?;
        Ok(Transformed::yes(Arc::new(following) as _))
    })
    .data()
}

/// A sort that keeps a number of rows, and the scan whose rows they are.
fn sorted_scan(plan: &Arc<dyn ExecutionPlan>) -> Option<(&SortExec, &LeafScanExec)> {
    let sort = plan.downcast_ref::<SortExec>().filter(|sort| sort.fetch().is_some())?;
    let filter = sort.input().downcast_ref::<FilterExec>();
    if filter.is_some_and(|filter| filter.fetch().is_some()) {
        // A limit of its own, from before the sort.
        return None;
    }
    let below = filter.map_or(sort.input(), |filter| filter.input());
    Some((sort, below.downcast_ref::<LeafScanExec>()?))
}

/// The column that is sorted by first, if it is one: its name, its place in the scan's schema, and its type.
fn first_column(sort: &SortExec, leaf: &LeafScanExec) -> Option<(String, usize, DataType)> {
    let name = sort.expr().first().expr.downcast_ref::<Column>()?.name().to_owned();
    // A filter may leave columns out; those of one table all have different names.
    let place = leaf.schema().index_of(&name).ok()?;
    let data_type = leaf.schema().field(place).data_type().clone();
    Some((name, place, data_type))
}

fn wanted_order(sort: &SortExec, leaf: &LeafScanExec) -> Option<ScanOrder> {
    let (_, place, data_type) = first_column(sort, leaf)?;
    let scans = leaf.scans();
    let is_plain = |scan: &shoal_kernel::ScanSpec| scan.limit.is_none() && scan.ends.is_none();
    if !scans.iter().all(is_plain) || !ScanOrder::is_on(&data_type) {
        return None;
    }
    let options = sort.expr().first().options;
    Some(ScanOrder {
        column: *scans.first()?.columns.get(place)?,
        descending: options.descending,
        nulls_first: options.nulls_first && leaf.schema().field(place).is_nullable(),
        ties: sort.expr().len() > 1,
    })
}

/// The same sort over another form of its scan.
fn with_scan(sort: &SortExec, leaf: LeafScanExec) -> Result<SortExec> {
    let leaf: Arc<dyn ExecutionPlan> = Arc::new(leaf);
    let input = match sort.input().is::<FilterExec>() {
        true => replace_children_if_necessary(Arc::clone(sort.input()), vec![leaf])?,
        false => leaf,
    };
    let preserves = sort.preserve_partitioning();
    Ok(SortExec::new(sort.expr().clone(), input).with_fetch(sort.fetch()).with_preserve_partitioning(preserves))
}

/// What a sort says of the rows that it would still take, as far as its first column tells: `a > 7 OR a = 7 AND …`, with
/// `a IS NULL OR` before it where NULLs come first, or `false` in its place if only NULLs are left to be kept.
fn frontier(filter: &Arc<dyn PhysicalExpr>, data_type: &DataType) -> Option<Frontier> {
    let mut sides = (filter, None);
    while let Some(either) = sides.0.downcast_ref::<BinaryExpr>().filter(|expr| *expr.op() == Operator::Or) {
        sides = (either.left(), Some(either.right()));
    }
    let (first, second) = sides;
    if let Some(literal) = first.downcast_ref::<Literal>() {
        return (*literal.value() == ScalarValue::Boolean(Some(false))).then_some(Frontier::Null);
    }
    [Some(first), second].into_iter().flatten().find_map(|side| {
        let comparison = side.downcast_ref::<BinaryExpr>()?;
        let constant = comparison.right().downcast_ref::<Literal>()?;
        let compares = matches!(comparison.op(), Operator::Gt | Operator::Lt) && comparison.left().is::<Column>();
        datum(constant.value(), data_type).filter(|_| compares).map(Frontier::Value)
    })
}
