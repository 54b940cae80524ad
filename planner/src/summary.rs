//! Answers from statistics: an aggregation of whole tables, or of what statistics prove to be wanted whole, needs no rows where
//! storage knows what they come to. It reads the rest.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column, Literal};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use shoal_kernel::{ColumnId, Measure};

use crate::node::{LeafScanExec, SummaryExec};

/// Rewrites every first aggregation without groups whose functions statistics may know.
pub(crate) fn ask_statistics(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
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
    let Some(leaf) = aggregate.input().downcast_ref::<LeafScanExec>() else { return Ok(None) };
    let Some(columns) = leaf.columns() else { return Ok(None) };
    let simple = aggregate.group_expr().is_true_no_grouping()
        && aggregate.limit_options().is_none()
        && aggregate.filter_expr().iter().all(Option::is_none);
    if !simple || aggregate.aggr_expr().is_empty() {
        return Ok(None);
    }
    let schema = leaf.schema();
    let mut measures = Vec::new();
    for call in aggregate.aggr_expr() {
        match measure(call, &schema, columns)? {
            Some(measure) => measures.push(measure),
            None => return Ok(None),
        }
    }
    let counts_all = leaf.scans().iter().all(|scan| scan.predicates.is_empty());
    if counts_all && measures.iter().all(|measure| *measure == Measure::Rows) {
        // A scan without columns and conditions counts rows anyway, those of pages with masked ones too.
        return Ok(None);
    }
    let rest: Arc<dyn ExecutionPlan> = Arc::new(leaf.beside_statistics(measures));
    let (group, calls) = (aggregate.group_expr(), aggregate.aggr_expr().to_vec());
    let aggregation = |mode, input| {
        let group = if mode == AggregateMode::Partial { group.clone() } else { group.as_final() };
        let filters = vec![None; calls.len()];
        AggregateExec::try_new(mode, group, calls.clone(), filters, input, Arc::clone(&schema))
    };
    let summarised = |rest| -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(SummaryExec::new(Arc::new(aggregation(AggregateMode::Partial, rest)?))))
    };
    Ok(match aggregate.mode() {
        AggregateMode::Partial => Some(summarised(rest)?),
        // What statistics tell is added to what the rest comes to.
        AggregateMode::Single if leaf.scans().len() == 1 => {
            Some(Arc::new(aggregation(AggregateMode::Final, summarised(rest)?)?))
        }
        _ => None,
    })
}

/// What statistics have to know for that function, if they can. Its partial state is what they know.
fn measure(call: &AggregateFunctionExpr, schema: &SchemaRef, columns: &[ColumnId]) -> Result<Option<Measure>> {
    let arguments = call.expressions();
    let ([argument], true) = (arguments.as_slice(), !call.is_distinct() && call.order_bys().is_empty()) else {
        return Ok(None);
    };
    let id = |expr: &Arc<dyn PhysicalExpr>| columns.get(expr.downcast_ref::<Column>()?.index()).copied();
    let measure = match (call.fun().name(), argument.downcast_ref::<Literal>()) {
        ("count", Some(literal)) if !literal.value().is_null() => Some(Measure::Rows),
        ("count", None) => id(argument).map(Measure::Values),
        ("min", None) => id(argument).map(Measure::Least),
        ("max", None) => id(argument).map(Measure::Greatest),
        // Short integers are added as long ones.
        ("sum", None) => id(argument.downcast_ref::<CastExpr>().map_or(argument, CastExpr::expr)).map(Measure::Sum),
        _ => None,
    };
    let Some(measure) = measure else { return Ok(None) };
    let place = measure.column().and_then(|column| columns.iter().position(|id| *id == column));
    let of = place.map_or(&DataType::Null, |place| schema.field(place).data_type());
    if matches!(measure, Measure::Sum(_)) && !of.is_integer() {
        return Ok(None);
    }
    let states = call.state_fields()?;
    let known = measure.data_type(of);
    let added = !matches!(measure, Measure::Sum(_)) || argument.data_type(schema)? == known;
    let is_state = matches!(states.as_slice(), [state] if *state.data_type() == known);
    Ok((added && is_state).then_some(measure))
}
