//! Window functions on their way to other nodes.
//!
//! The encoding of physical plans has no place for `FILTER` and `IGNORE NULLS` of window functions and leaves them out
//! without a word. So a filter is written as a condition on the argument, where that says the same, and the rest is refused.

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::{NullTreatment, WindowFunction};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, WindowFunctionDefinition, when};
use shoal_kernel::{Error, ErrorCode};

use crate::error::error_to_datafusion;

/// Aggregates that take no notice of nulls: leaving a row out is the same as giving null for it.
const BLIND_TO_NULLS: [&str; 15] = [
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "count",
    "max",
    "mean",
    "median",
    "min",
    "stddev",
    "stddev_pop",
    "string_agg",
    "sum",
];

/// The plan with window functions that survive their encoding.
///
/// # Errors
/// A window function asks for what cannot be said otherwise.
pub(crate) fn portable(plan: LogicalPlan) -> Result<LogicalPlan> {
    let portable = plan.transform_up_with_subqueries(|plan| {
        if !matches!(plan, LogicalPlan::Window(_)) {
            return Ok(Transformed::no(plan));
        }
        // Operators above know the column by its name.
        let names = NamePreserver::new(&plan);
        let plan = plan.map_expressions(|expr| {
            let name = names.save(&expr);
            Ok(expr.transform_up(without_filter)?.update_data(|expr| name.restore(expr)))
        })?;
        plan.map_data(LogicalPlan::recompute_schema)
    })?;
    Ok(portable.data)
}

fn without_filter(expr: Expr) -> Result<Transformed<Expr>> {
    let Expr::WindowFunction(mut function) = expr else { return Ok(Transformed::no(expr)) };
    if function.params.null_treatment == Some(NullTreatment::IgnoreNulls) {
        return Err(refused("IGNORE NULLS", "rank the rows that are not null in a subquery, and join"));
    }
    let Some(condition) = function.params.filter.take() else {
        return Ok(Transformed::no(Expr::WindowFunction(function)));
    };
    if !blind_to_nulls(&function) || function.params.args.is_empty() {
        return Err(refused("FILTER", "leave the rows out in a subquery"));
    }
    let argument = function.params.args.remove(0);
    function.params.args.insert(0, when(*condition, argument).end()?);
    Ok(Transformed::new(Expr::WindowFunction(function), true, TreeNodeRecursion::Continue))
}

fn blind_to_nulls(function: &WindowFunction) -> bool {
    matches!(&function.fun, WindowFunctionDefinition::AggregateUDF(fun) if BLIND_TO_NULLS.contains(&fun.name()))
}

fn refused(clause: &str, help: &str) -> datafusion::error::DataFusionError {
    let message = format!("{clause} of this window function is not built yet");
    error_to_datafusion(Error::new(ErrorCode::Unsupported, message).with_help(help))
}
