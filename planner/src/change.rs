//! DELETE and UPDATE: the query that reads what is to be written. What it reads is written as a whole afterwards.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{DmlStatement, LogicalPlan, LogicalPlanBuilder, WriteOp};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{Expr, ident};
use shoal_catalog::{Catalog, Table};
use shoal_kernel::{Error, ErrorCode, Result, suggest};
use sqlparser::ast::{self, AssignmentTarget, Ident, ObjectName, Spanned, TableFactor, TableWithJoins};
use sqlparser::parser::Parser;

use crate::cut::cut;
use crate::error::error_from_datafusion;
use crate::graph::FragmentGraph;
use crate::node::LeafScanExec;
use crate::planner::{Planned, logical_plan, physical_plan};
use crate::sql::{DIALECT, at, normalised, table_name};
use crate::statement::Statement;
use crate::unknown::unknown_table;

/// A DELETE or UPDATE.
pub(crate) struct Change {
    table: String,
    deletes: bool,
    /// Reads the keys that are to go, or the rows as they are to be.
    pub(crate) planned: Planned,
}

impl From<Change> for Statement {
    fn from(change: Change) -> Self {
        let Change { table, deletes, planned } = change;
        match deletes {
            true => Self::Delete { table, keys: planned.graph },
            false => Self::Update { table, rows: planned.graph },
        }
    }
}

/// Plans a DELETE or UPDATE.
pub(crate) async fn plan(state: &SessionState, catalog: &Catalog, statement: ast::Statement) -> Result<Change> {
    match statement {
        ast::Statement::Delete(delete) => plan_delete(state, catalog, delete).await,
        ast::Statement::Update(update) => plan_update(state, catalog, update).await,
        _ => Err(Error::internal("another statement was planned as a DELETE or UPDATE")),
    }
}

async fn plan_delete(state: &SessionState, catalog: &Catalog, delete: ast::Delete) -> Result<Change> {
    let from = match &delete.from {
        ast::FromTable::WithFromKeyword(from) if delete.tables.is_empty() => from.as_slice(),
        _ => return Err(refused("DELETE", "deleting without FROM", delete.span())),
    };
    refuse("DELETE", "USING", delete.using.as_ref().map(|_| delete.span()))?;
    refuse("DELETE", "RETURNING", delete.returning.as_ref().map(|_| delete.span()))?;
    refuse("DELETE", "OUTPUT", delete.output.as_ref().map(Spanned::span))?;
    refuse("DELETE", "ORDER BY", delete.order_by.first().map(Spanned::span))?;
    refuse("DELETE", "LIMIT", delete.limit.as_ref().map(Spanned::span))?;
    let [from] = from else { return Err(refused("DELETE", "more than one table", delete.span())) };
    let table = target(catalog, "DELETE", from)?;

    let names = table.schema.key_indices().into_iter().filter_map(|place| table.schema.columns.get(place));
    let names: Vec<String> = names.map(|column| Ident::with_quote('"', &column.name).to_string()).collect();
    let mut query = Parser::parse_sql(&DIALECT, &format!("SELECT {} FROM t", names.join(", ")))
        .map_err(|error| Error::internal(format!("the keys to delete cannot be asked for: {error}")))?;
    let Some(ast::Statement::Query(mut query)) = query.pop() else {
        return Err(Error::internal("a SELECT is no query"));
    };
    let ast::SetExpr::Select(select) = query.body.as_mut() else {
        return Err(Error::internal("a SELECT is no SELECT"));
    };
    select.from = vec![from.clone()];
    select.selection = delete.selection;
    let logical = logical_plan(state, catalog, ast::Statement::Query(query)).await?;
    let planned = physical_plan(state, &logical).await?;
    Ok(Change { table: table.name.clone(), deletes: true, planned })
}

async fn plan_update(state: &SessionState, catalog: &Catalog, mut update: ast::Update) -> Result<Change> {
    refuse("UPDATE", "FROM", update.from.as_ref().map(Spanned::span))?;
    refuse("UPDATE", "RETURNING", update.returning.as_ref().map(|_| update.span()))?;
    refuse("UPDATE", "OUTPUT", update.output.as_ref().map(Spanned::span))?;
    refuse("UPDATE", "OR", update.or.as_ref().map(|_| update.span()))?;
    refuse("UPDATE", "ORDER BY", update.order_by.first().map(Spanned::span))?;
    refuse("UPDATE", "LIMIT", update.limit.as_ref().map(Spanned::span))?;
    let table = target(catalog, "UPDATE", &update.table)?;
    check_assignments(table, &mut update.assignments)?;

    let planned = match updated_rows(state, catalog, table, update.clone()).await {
        Ok(planned) => planned,
        Err(error) => return Err(name_assignment(state, catalog, table, update, error).await),
    };
    Ok(Change { table: table.name.clone(), deletes: false, planned })
}

/// The rows as they are to be, with the table's columns and types; all columns, so that they can be written as a whole.
async fn updated_rows(state: &SessionState, catalog: &Catalog, table: &Table, update: ast::Update) -> Result<Planned> {
    let logical = logical_plan(state, catalog, ast::Statement::Update(update)).await?;
    let LogicalPlan::Dml(DmlStatement { op: WriteOp::Update, input, .. }) = logical else {
        return Err(Error::new(ErrorCode::Unsupported, "this form of UPDATE is not supported"));
    };
    let columns: Vec<Expr> = table.schema.columns.iter().map(|column| ident(&column.name)).collect();
    let rows = LogicalPlanBuilder::from(input.as_ref().clone())
        .project(columns)
        .and_then(LogicalPlanBuilder::build)
        .map_err(error_from_datafusion)?;
    let Planned { logical, physical, broadcast, graph: FragmentGraph { read_level, .. } } =
        physical_plan(state, &rows).await?;
    let exact = physical.transform_up(|node| {
        Ok(match node.downcast_ref::<LeafScanExec>() {
            Some(scan) => Transformed::yes(Arc::new(scan.exact()) as Arc<dyn ExecutionPlan>),
            None => Transformed::no(node),
        })
    });
    let physical = exact.data().map_err(error_from_datafusion)?;
    let graph = cut(Arc::clone(&physical), broadcast).map_err(error_from_datafusion)?;
    Ok(Planned { logical, physical, broadcast, graph: FragmentGraph { read_level, ..graph } })
}

/// The error, with the place of the first value that makes the statement fail by itself.
async fn name_assignment(
    state: &SessionState,
    catalog: &Catalog,
    table: &Table,
    update: ast::Update,
    error: Error,
) -> Error {
    let by_value = matches!(error.code(), ErrorCode::Evaluation | ErrorCode::InvalidStatement);
    if !by_value || !error.spans().is_empty() {
        return error;
    }
    for assignment in &update.assignments {
        let alone = ast::Update { assignments: vec![assignment.clone()], selection: None, ..update.clone() };
        if let Err(error) = updated_rows(state, catalog, table, alone).await {
            return at(error, assignment.value.span());
        }
    }
    match &update.selection {
        Some(condition) => at(error, condition.span()),
        None => error,
    }
}

/// The table that is to be changed.
fn target<'a>(catalog: &'a Catalog, verb: &str, from: &TableWithJoins) -> Result<&'a Table> {
    let TableFactor::Table { name, args: None, .. } = &from.relation else {
        return Err(refused(verb, "anything but a table", from.span()));
    };
    refuse(verb, "joins", from.joins.first().map(Spanned::span))?;
    let name = table_name(name)?;
    let table = catalog.table(&name.name).ok_or_else(|| at(unknown_table(catalog, &name.name), name.span))?;
    if table.schema.is_upsert() {
        return Ok(table);
    }
    let message = format!("'{}' is a table of events, and {verb} needs a table with a primary key", table.name);
    let error = Error::new(ErrorCode::Unsupported, message)
        .with_help("events have no key to be changed or deleted by; they stay until the table is dropped");
    Err(at(error, name.span))
}

/// Checks what is set, and writes the columns' names as they are.
fn check_assignments(table: &Table, assignments: &mut [ast::Assignment]) -> Result<()> {
    let key: BTreeSet<usize> = table.schema.key_indices().into_iter().collect();
    let mut set = BTreeSet::new();
    for assignment in assignments {
        let span = assignment.target.span();
        let name = match &assignment.target {
            AssignmentTarget::ColumnName(name) => name.0.last().and_then(|part| part.as_ident()).map(normalised),
            AssignmentTarget::Tuple(_) => None,
        };
        let Some(name) = name else { return Err(refused("UPDATE", "setting several columns at once", span)) };
        let Some(place) = table.schema.columns.iter().position(|column| column.name == name) else {
            let message = format!("there is no column '{name}' in '{}'", table.name);
            let error = at(Error::new(ErrorCode::UnknownColumn, message), span);
            let near = suggest::closest(&name, table.schema.columns.iter().map(|column| column.name.as_str()));
            return Err(match near {
                Some(near) => error.with_help(format!("did you mean '{near}'?")),
                None => error,
            });
        };
        if key.contains(&place) {
            let message = format!("column '{name}' is part of the key of '{}', which cannot be changed", table.name);
            let error = Error::new(ErrorCode::InvalidStatement, message);
            return Err(at(error.with_help("insert the row under its new key, and delete the old one"), span));
        }
        if !set.insert(place) {
            return Err(at(Error::new(ErrorCode::InvalidStatement, format!("column '{name}' is set twice")), span));
        }
        let is_null = matches!(&assignment.value, ast::Expr::Value(value) if matches!(value.value, ast::Value::Null));
        if is_null && table.schema.columns.get(place).is_some_and(|column| !column.nullable) {
            let error = Error::new(ErrorCode::InvalidRows, format!("column '{name}' is NOT NULL"));
            return Err(at(error, assignment.value.span()));
        }
        let mut exact = Ident::with_quote('"', name);
        exact.span = span;
        assignment.target = AssignmentTarget::ColumnName(ObjectName::from(vec![exact]));
    }
    Ok(())
}

fn refuse(verb: &str, what: &str, found: Option<sqlparser::tokenizer::Span>) -> Result<()> {
    found.map_or(Ok(()), |span| Err(refused(verb, what, span)))
}

fn refused(verb: &str, what: &str, span: sqlparser::tokenizer::Span) -> Error {
    let error = Error::new(ErrorCode::Unsupported, format!("{verb} does not support {what}"));
    at(error.with_help("say which rows are meant with WHERE, which may hold subqueries"), span)
}
