//! INSERT: the rows to write, with the table's columns and types.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{DmlStatement, LogicalPlan, LogicalPlanBuilder, WriteOp, dml::InsertOp};
use datafusion::physical_plan::collect;
use datafusion::prelude::Expr;
use shoal_catalog::{Catalog, Table};
use shoal_kernel::schema::{DEDUP_COLUMN, TS_COLUMN};
use shoal_kernel::{Error, ErrorCode, Result, TableKind, suggest};
use sqlparser::ast::{self, SetExpr, Spanned, TableObject};

use crate::error::error_from_datafusion;
use crate::literals;
use crate::planner::{logical_plan, physical_plan};
use crate::session::running;
use crate::sql::{at, normalised, table_name};
use crate::statement::{InsertSource, Statement};
use crate::unknown::unknown_table;

/// Plans an INSERT.
pub(crate) async fn plan(state: &SessionState, catalog: &Catalog, statement: ast::Statement) -> Result<Statement> {
    let ast::Statement::Insert(insert) = &statement else {
        return Err(Error::internal("another statement was planned as an INSERT"));
    };
    let TableObject::TableName(name) = &insert.table else {
        return Err(Error::new(ErrorCode::Unsupported, "rows can only be inserted into a table"));
    };
    let name = table_name(name)?;
    let table = catalog.table(&name.name).ok_or_else(|| at(unknown_table(catalog, &name.name), name.span))?;
    refuse_clauses(insert)?;
    let absent = absent_columns(table, insert)?;
    let source = match insert.source.as_ref().map(|source| source.body.as_ref()) {
        Some(SetExpr::Values(list)) => {
            let found = match literals::columns(table, insert, &absent) {
                Some(columns) => rows_of(table, &absent, vec![columns]),
                None => values(state, catalog, statement.clone(), table, &absent).await,
            };
            let rows = match found {
                Ok(rows) => rows,
                Err(error) => return Err(name_row(state, catalog, &statement, table, &absent, list, error).await),
            };
            InsertSource::Rows(rows)
        }
        _ => {
            let rows = rows_plan(state, catalog, statement.clone(), table, &absent).await?;
            InsertSource::Query(physical_plan(state, &rows).await?.graph)
        }
    };
    Ok(Statement::Insert { table: table.name.clone(), source })
}

/// The statement's rows as a plan, with the table's columns and types.
async fn rows_plan(
    state: &SessionState,
    catalog: &Catalog,
    statement: ast::Statement,
    table: &Table,
    absent: &[&str],
) -> Result<LogicalPlan> {
    let logical = logical_plan(state, catalog, statement).await?;
    let LogicalPlan::Dml(DmlStatement { op: WriteOp::Insert(InsertOp::Append), input, .. }) = logical else {
        return Err(Error::new(ErrorCode::Unsupported, "this form of INSERT is not supported"));
    };
    let wanted = table.schema.columns.iter().filter(|column| !absent.contains(&column.name.as_str()));
    let columns: Vec<Expr> = wanted.map(|column| datafusion::prelude::ident(&column.name)).collect();
    LogicalPlanBuilder::from(input.as_ref().clone())
        .project(columns)
        .and_then(LogicalPlanBuilder::build)
        .map_err(error_from_datafusion)
}

/// The error, with the number of the first row that makes the list fail. It is found by halving, so that a long list is
/// planned only a few times more.
async fn name_row(
    state: &SessionState,
    catalog: &Catalog,
    statement: &ast::Statement,
    table: &Table,
    absent: &[&str],
    list: &ast::Values,
    error: Error,
) -> Error {
    let by_value = matches!(error.code(), ErrorCode::Evaluation | ErrorCode::InvalidStatement);
    if !by_value || !error.spans().is_empty() {
        return error;
    }
    let (mut good, mut bad) = (0, list.rows.len());
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        let mut shorter = statement.clone();
        if let ast::Statement::Insert(insert) = &mut shorter
            && let Some(source) = &mut insert.source
            && let SetExpr::Values(list) = source.body.as_mut()
        {
            list.rows.truncate(middle);
        }
        match values(state, catalog, shorter, table, absent).await {
            Ok(_) => good = middle,
            Err(_) => bad = middle,
        }
    }
    let named = Error::new(ErrorCode::InvalidRows, format!("row {bad}: {}", error.message()));
    let named = error.help().map_or(named.clone(), |help| named.with_help(help));
    match list.rows.get(bad - 1).and_then(|row| row.first()) {
        Some(first) => at(named, first.span()),
        None => named,
    }
}

fn refuse_clauses(insert: &ast::Insert) -> Result<()> {
    let clause = if insert.on.is_some() {
        "ON CONFLICT: a row with an existing key replaces the older one by itself"
    } else if insert.returning.is_some() {
        "RETURNING"
    } else if insert.overwrite || insert.replace_into || insert.or.is_some() {
        "OVERWRITE and REPLACE"
    } else if insert.partitioned.is_some() {
        "PARTITION"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorCode::Unsupported, format!("INSERT does not support {clause}")))
}

/// Names of an event table's own columns that the statement leaves to the writer. Every other column that it leaves out
/// must be one that may be NULL.
fn absent_columns(table: &Table, insert: &ast::Insert) -> Result<Vec<&'static str>> {
    if insert.columns.is_empty() {
        return Ok(Vec::new());
    }
    let mut given = Vec::new();
    for column in &insert.columns {
        let name = column.0.last().and_then(|part| part.as_ident()).map(normalised).unwrap_or_default();
        if table.schema.column(&name).is_none() {
            let message = format!("there is no column '{name}' in '{}'", table.name);
            let error = at(Error::new(ErrorCode::UnknownColumn, message), column.span());
            let near = suggest::closest(&name, table.schema.columns.iter().map(|column| column.name.as_str()));
            return Err(match near {
                Some(near) => error.with_help(format!("did you mean '{near}'?")),
                None => error,
            });
        }
        given.push(name);
    }
    let own: &[&'static str] = match table.schema.kind {
        TableKind::Event => &[TS_COLUMN, DEDUP_COLUMN],
        TableKind::Upsert { .. } => &[],
    };
    let absent: Vec<_> = own.iter().copied().filter(|name| !given.iter().any(|given| given == name)).collect();
    let missing =
        table.schema.columns.iter().find(|column| {
            !column.nullable && !given.contains(&column.name) && !absent.contains(&column.name.as_str())
        });
    match missing {
        None => Ok(absent),
        Some(column) => {
            let message = format!("column '{}' is NOT NULL and is not given a value", column.name);
            Err(at(Error::new(ErrorCode::InvalidRows, message), insert.table.span()))
        }
    }
}

/// The rows of a VALUES list.
async fn values(
    state: &SessionState,
    catalog: &Catalog,
    statement: ast::Statement,
    table: &Table,
    absent: &[&str],
) -> Result<Vec<RecordBatch>> {
    let rows = rows_plan(state, catalog, statement, table, absent).await?;
    if reads_tables(&rows)? {
        let message = "VALUES cannot read tables";
        return Err(Error::new(ErrorCode::Unsupported, message).with_help("use INSERT INTO … SELECT"));
    }
    let physical = state.create_physical_plan(&rows).await.map_err(error_from_datafusion)?;
    let context = running(None, state.config().clone(), Arc::clone(state.runtime_env()));
    let batches = collect(physical, Arc::new(context)).await.map_err(error_from_datafusion)?;
    rows_of(table, absent, batches.into_iter().map(|batch| batch.columns().to_vec()).collect())
}

/// Rows of the table, but for some of its columns.
fn rows_of(table: &Table, absent: &[&str], batches: Vec<Vec<ArrayRef>>) -> Result<Vec<RecordBatch>> {
    let columns = table.schema.columns.iter().filter(|column| !absent.contains(&column.name.as_str()));
    let fields: Vec<_> =
        columns.map(|column| Field::new(&column.name, column.data_type.clone(), column.nullable)).collect();
    let schema = Arc::new(Schema::new(fields));
    let mut before = 0;
    let mut out = Vec::new();
    for columns in batches {
        for (field, array) in schema.fields().iter().zip(&columns) {
            let null = (0..array.len()).find(|row| !field.is_nullable() && array.is_null(*row));
            if let Some(row) = null {
                let message = format!("row {}: column '{}' is NOT NULL", before + row + 1, field.name());
                return Err(Error::new(ErrorCode::InvalidRows, message));
            }
        }
        let rows = columns.first().map_or(0, |column| column.len());
        before += rows;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options)
            .map_err(|error| error_from_datafusion(error.into()))?;
        out.push(batch);
    }
    Ok(out)
}

fn reads_tables(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        found |= matches!(node, LogicalPlan::TableScan(_));
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })
    .map_err(error_from_datafusion)?;
    Ok(found)
}
