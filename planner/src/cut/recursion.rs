//! What a recursive query needs before it can travel.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::work_table::WorkTableExec;

use crate::node::{ExchangeExec, ReplayExec};

/// The recursive term with the projection of its work table as a node above it: inside the table it is private and would be
/// lost on the way.
pub(super) fn unproject_work_table(query: &RecursiveQueryExec) -> Result<Arc<dyn ExecutionPlan>> {
    let whole = query.static_term().schema();
    Arc::clone(query.recursive_term())
        .transform_up(|node| {
            let Some(table) = node.downcast_ref::<WorkTableExec>() else { return Ok(Transformed::no(node)) };
            let wanted = table.schema();
            if table.name() != query.name() || wanted.fields().len() == whole.fields().len() {
                return Ok(Transformed::no(node));
            }
            let columns = wanted.fields().iter().map(|field| {
                let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(field.name(), whole.index_of(field.name())?));
                Ok((column, field.name().clone()))
            });
            let columns = columns.collect::<Result<Vec<_>>>()?;
            let table = Arc::new(WorkTableExec::new(table.name().into(), Arc::clone(&whole), None)?);
            Ok(Transformed::yes(Arc::new(ProjectionExec::try_new(columns, table)?) as Arc<dyn ExecutionPlan>))
        })
        .data()
}

/// The recursive term with every remote input kept, because it is read again in each round.
pub(super) fn replay_exchanges(term: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    term.transform_up(|node| {
        Ok(if node.is::<ExchangeExec>() {
            Transformed::yes(Arc::new(ReplayExec::new(node)) as Arc<dyn ExecutionPlan>)
        } else {
            Transformed::no(node)
        })
    })
    .data()
}
