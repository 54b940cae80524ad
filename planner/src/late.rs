//! Late materialisation of wide rows: `ORDER BY … LIMIT k` reads the columns that decide, picks its k rows, and only then asks
//! for the other columns of these.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::sorts::sort::SortExec;

use crate::node::{LateFetchExec, LeafScanExec, Output};

/// Rows up to which fetching one by one is surely cheaper than reading all.
const ROWS_MAX: usize = 1_000;
/// Fewer columns are not worth the second look.
const COLUMNS_MIN: usize = 2;

/// Rewrites every sort that keeps few rows of a scan.
pub(crate) fn fetch_late(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_down(|node| {
        Ok(match rewrite(&node)? {
            Some(rewritten) => Transformed::new(rewritten, true, TreeNodeRecursion::Jump),
            None => Transformed::no(node),
        })
    })
    .data()
}

fn rewrite(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(sort) = plan.downcast_ref::<SortExec>() else { return Ok(None) };
    let Some(fetch) = sort.fetch().filter(|fetch| *fetch <= ROWS_MAX) else { return Ok(None) };
    let filter = sort.input().downcast_ref::<FilterExec>();
    if filter.is_some_and(|filter| filter.fetch().is_some()) {
        // A limit of its own, from before the sort.
        return Ok(None);
    }
    let below = filter.map_or(sort.input(), |filter| filter.input());
    let Some(leaf) = below.downcast_ref::<LeafScanExec>() else { return Ok(None) };
    let (Some((table, schema_version)), Some(columns)) = (leaf.table(), leaf.columns()) else { return Ok(None) };
    let leaf_schema = leaf.schema();

    // The columns that decide, by name: those of one table all have different ones.
    let sorts = sort.expr().iter().map(|sort| &sort.expr);
    let deciding: Vec<&Arc<dyn PhysicalExpr>> = sorts.chain(filter.map(FilterExec::predicate)).collect();
    let mut early: BTreeSet<usize> = BTreeSet::new();
    for expr in deciding {
        if expr.exists(|inner| Ok(inner.is::<ScalarSubqueryExpr>()))? {
            return Ok(None);
        }
        for column in collect_columns(expr) {
            early.insert(leaf_schema.index_of(column.name())?);
        }
    }
    let early: Vec<usize> = early.into_iter().collect();
    let (mut outputs, mut fetched) = (Vec::new(), Vec::new());
    for field in sort.schema().fields() {
        let place = leaf_schema.index_of(field.name())?;
        outputs.push(match (early.iter().position(|early| *early == place), columns.get(place)) {
            (Some(at), _) => Output::Input(at as u32),
            (None, Some(column)) => {
                fetched.push(*column);
                Output::Fetched(fetched.len() as u32 - 1)
            }
            (None, None) => return Ok(None),
        });
    }
    if fetched.len() < COLUMNS_MIN {
        return Ok(None);
    }

    let mut input: Arc<dyn ExecutionPlan> = Arc::new(leaf.addressed(&early)?);
    let schema = input.schema();
    if let Some(filter) = filter {
        let predicate = reassign_expr_columns(Arc::clone(filter.predicate()), &schema)?;
        let narrow = FilterExec::try_new(predicate, input)?;
        input = Arc::new(narrow.with_default_selectivity(filter.default_selectivity())?);
    }
    let sorts = sort
        .expr()
        .iter()
        .map(|sort| Ok(PhysicalSortExpr::new(reassign_expr_columns(Arc::clone(&sort.expr), &schema)?, sort.options)))
        .collect::<Result<Vec<_>>>()?;
    let Some(sorts) = LexOrdering::new(sorts) else { return Ok(None) };
    let picked =
        SortExec::new(sorts, input).with_fetch(Some(fetch)).with_preserve_partitioning(sort.preserve_partitioning());
    if picked.properties().output_partitioning().partition_count() != leaf.partitions().len() {
        return Ok(None);
    }
    let (input, partitions) = (Arc::new(picked), leaf.partitions());
    let late = LateFetchExec::new(input, table, partitions, schema_version, fetched, outputs, plan.properties());
    Ok(Some(Arc::new(late)))
}
