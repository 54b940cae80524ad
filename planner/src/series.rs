//! Names that users of time series know functions by. Plans have DataFusion's own: whoever decodes one needs nothing of this.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::functions::datetime::date_bin;
use datafusion::functions_aggregate::first_last::{first_value_udaf, last_value_udaf};
use datafusion::logical_expr::AggregateUDF;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawAggregateExpr};

/// Adds `time_bucket`, `first` and `last`.
pub(crate) fn add(state: &mut SessionStateBuilder) {
    let bucket = date_bin().as_ref().clone().with_aliases(["time_bucket"]);
    state.scalar_functions().get_or_insert_default().push(Arc::new(bucket));
    let ends = ends().map(|(function, alias)| Arc::new(function.as_ref().clone().with_aliases([alias])));
    state.aggregate_functions().get_or_insert_default().extend(ends);
    state.expr_planners().get_or_insert_default().push(Arc::new(SeriesPlanner));
}

fn ends() -> [(Arc<AggregateUDF>, &'static str); 2] {
    [(first_value_udaf(), "first"), (last_value_udaf(), "last")]
}

/// Reads `last(value, time)` as `last_value(value ORDER BY time)`. A row without a time comes before all others, and is taken only if there is
/// no other.
#[derive(Debug)]
struct SeriesPlanner;

impl ExprPlanner for SeriesPlanner {
    fn plan_aggregate(&self, mut call: RawAggregateExpr) -> Result<PlannerResult<RawAggregateExpr>> {
        let Some((function, alias)) = ends().into_iter().find(|(function, _)| function.name() == call.func.name())
        else {
            return Ok(PlannerResult::Original(call));
        };
        if call.args.len() == 2 && call.order_by.is_empty() && !call.distinct {
            call.order_by.extend(call.args.pop().map(|time| time.sort(true, alias == "last")));
        }
        call.func = function;
        Ok(PlannerResult::Original(call))
    }
}
