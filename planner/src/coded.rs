//! Grouping by text without decoding it: where a partial aggregation reads a scan, the text that it groups by comes as codes.
//! Grouping by columns of the key goes the same way, because its rows come in runs of one group.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::scalar_subquery::ScalarSubqueryExpr;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;

use crate::groups::{KEY_COLUMNS_MAX, is_key};
use crate::node::{CodedAggregateExec, LeafScanExec};

/// Rewrites every partial aggregation whose groups can be told apart by codes.
pub(crate) fn group_by_codes(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        Ok(match rewrite(&node)? {
            Some(rewritten) => Transformed::yes(rewritten),
            None => Transformed::no(node),
        })
    })
    .data()
}

fn rewrite(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(aggregate) = plan.downcast_ref::<AggregateExec>() else { return Ok(None) };
    let simple = *aggregate.mode() == AggregateMode::Partial
        && aggregate.group_expr().is_single()
        && aggregate.group_expr().expr().len() <= KEY_COLUMNS_MAX
        && aggregate.limit_options().is_none()
        && aggregate.filter_expr().iter().all(Option::is_none)
        && aggregate
            .aggr_expr()
            .iter()
            .all(|call| call.groups_accumulator_supported() && !call.is_distinct() && call.order_bys().is_empty());
    if !simple {
        return Ok(None);
    }
    let input = Input::of(aggregate);
    let Some(leaf) = input.leaf else { return Ok(None) };
    let (input_schema, leaf_schema) = (aggregate.input().schema(), leaf.schema());

    let (mut coded, mut others): (Vec<String>, Vec<&Arc<dyn PhysicalExpr>>) = (Vec::new(), Vec::new());
    for (expr, _) in aggregate.group_expr().expr() {
        let data_type = expr.data_type(&input_schema)?;
        match input.read_as_it_is(expr) {
            Some(column) if data_type == DataType::Utf8 => coded.push(column.name().to_owned()),
            _ if is_key(&data_type) => others.push(expr),
            _ => return Ok(None),
        }
    }
    let arguments: Vec<Arc<dyn PhysicalExpr>> =
        aggregate.aggr_expr().iter().flat_map(|call| call.expressions()).collect();
    let above: Vec<&Arc<dyn PhysicalExpr>> = others.into_iter().chain(&arguments).collect();
    for expr in above.iter().copied().chain(input.computed()) {
        // It has to be computed where the subquery ran, and dictionaries are not for travelling.
        if expr.exists(|inner| Ok(inner.is::<ScalarSubqueryExpr>()))? {
            return Ok(None);
        }
    }
    // What is computed with must stay what it is.
    let below = input.computed().flat_map(collect_columns).map(|column| column.name().to_owned());
    let computed: Vec<String> = above.into_iter().flat_map(|expr| input.columns_of(expr)).chain(below).collect();
    // Rows come in the order of the key: by its columns, groups come in runs, which is worth as much.
    let in_key_order = || {
        let columns = leaf.columns().unwrap_or_default();
        let of_key = |column: &String| {
            let place = leaf_schema.index_of(column).ok();
            place.and_then(|place| columns.get(place)).is_some_and(|id| leaf.key().contains(id))
        };
        let grouped = aggregate.group_expr().expr().iter().map(|(expr, _)| input.columns_of(expr));
        !leaf.key().is_empty() && grouped.clone().count() > 0 && grouped.flatten().all(|column| of_key(&column))
    };
    if coded.is_empty() && !in_key_order() || coded.iter().any(|name| computed.contains(name)) {
        return Ok(None);
    }
    let places = coded.iter().map(|name| Ok(leaf_schema.index_of(name)?)).collect::<Result<Vec<_>>>()?;
    let mut rows: Arc<dyn ExecutionPlan> = Arc::new(leaf.coded(&places));
    for operator in input.operators.into_iter().rev() {
        rows = replace_children_if_necessary(Arc::clone(operator), vec![rows])?;
    }
    let template = replace_children_if_necessary(Arc::clone(plan), vec![rows])?;
    Ok(Some(Arc::new(CodedAggregateExec::new(template, plan.properties()))))
}

/// What stands below an aggregation: a scan, rows of which may be left out, of whose columns something may be computed.
struct Input<'a> {
    /// The highest first.
    operators: Vec<&'a Arc<dyn ExecutionPlan>>,
    projection: Option<&'a ProjectionExec>,
    filter: Option<&'a FilterExec>,
    leaf: Option<&'a LeafScanExec>,
}

impl<'a> Input<'a> {
    fn of(aggregate: &'a AggregateExec) -> Self {
        let (mut operators, mut below) = (Vec::new(), aggregate.input());
        let projection = below.downcast_ref::<ProjectionExec>();
        if let Some(projection) = projection {
            operators.push(below);
            below = projection.input();
        }
        let filter = below.downcast_ref::<FilterExec>();
        if let Some(filter) = filter {
            operators.push(below);
            below = filter.input();
        }
        Self { operators, projection, filter, leaf: below.downcast_ref() }
    }

    /// The expression of the projection that a column above it is.
    fn projected(&self, column: &Column) -> Option<&'a Arc<dyn PhysicalExpr>> {
        Some(&self.projection?.expr().get(column.index())?.expr)
    }

    /// The column of the scan that an expression above is, if it is one.
    fn read_as_it_is<'b>(&self, expr: &'b Arc<dyn PhysicalExpr>) -> Option<&'b Column>
    where
        'a: 'b,
    {
        let column = expr.downcast_ref::<Column>()?;
        match self.projection {
            None => Some(column),
            Some(_) => self.projected(column)?.downcast_ref(),
        }
    }

    /// The columns of the scan that an expression above depends on.
    fn columns_of(&self, expr: &Arc<dyn PhysicalExpr>) -> Vec<String> {
        let mut columns = collect_columns(expr);
        if self.projection.is_some() {
            columns = columns.iter().filter_map(|column| self.projected(column)).flat_map(collect_columns).collect();
        }
        columns.into_iter().map(|column| column.name().to_owned()).collect()
    }

    /// What is computed of columns of the scan, beside what is handed on as it is.
    fn computed(&self) -> impl Iterator<Item = &'a Arc<dyn PhysicalExpr>> {
        let projected =
            self.projection.into_iter().flat_map(|projection| projection.expr().iter().map(|item| &item.expr));
        projected.filter(|expr| !expr.is::<Column>()).chain(self.filter.map(FilterExec::predicate))
    }
}
