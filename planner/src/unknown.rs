//! Names that mean nothing: found in the statement, so that the error has a place and a suggestion.

use std::ops::ControlFlow;

use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::sql::parser::Statement as SqlStatement;
use shoal_catalog::Catalog;
use shoal_kernel::{Error, ErrorCode, Result, suggest};
use sqlparser::ast::{self, Expr, Spanned, TableFactor, Visit, Visitor};
use sqlparser::tokenizer::Span;

use crate::error::error_from_datafusion;
use crate::session::{CATALOG, SCHEMA, SYSTEM_SCHEMA};
use crate::sql::{at, normalised};

const INFORMATION_SCHEMA: &str = "information_schema";

/// Checks that every table of the statement exists.
pub(crate) fn check_tables(state: &SessionState, catalog: &Catalog, statement: &ast::Statement) -> Result<()> {
    let wrapped = SqlStatement::Statement(Box::new(statement.clone()));
    let references = state.resolve_table_references(&wrapped).map_err(error_from_datafusion)?;
    for reference in references {
        let resolved = reference.clone().resolve(CATALOG, SCHEMA);
        let known = match (&*resolved.catalog, &*resolved.schema) {
            (CATALOG, SCHEMA) => {
                catalog.table(&resolved.table).is_some() || state.table_functions().contains_key(&*resolved.table)
            }
            (CATALOG, INFORMATION_SCHEMA) => true,
            (CATALOG, SYSTEM_SCHEMA) => {
                let names = system_tables(state);
                if names.contains(&resolved.table.to_string()) {
                    continue;
                }
                let message = format!("there is no table '{SYSTEM_SCHEMA}.{}'", resolved.table);
                let error = Error::new(ErrorCode::UnknownTable, message);
                let span = place_of_table(statement, &resolved.table);
                return Err(at(error.with_help(format!("the tables there are {}", names.join(", "))), span));
            }
            _ => false,
        };
        if known {
            continue;
        }
        let span = place_of_table(statement, &resolved.table);
        return Err(at(unknown_table(catalog, &resolved.table), span));
    }
    Ok(())
}

fn system_tables(state: &SessionState) -> Vec<String> {
    let schema = state.catalog_list().catalog(CATALOG).and_then(|database| database.schema(SYSTEM_SCHEMA));
    schema.map(|schema| schema.table_names()).unwrap_or_default()
}

/// The error for a table that does not exist.
pub(crate) fn unknown_table(catalog: &Catalog, name: &str) -> Error {
    let error = Error::new(ErrorCode::UnknownTable, format!("there is no table '{name}'"));
    let mut names: Vec<&str> = catalog.tables.values().map(|table| table.name.as_str()).collect();
    names.sort_unstable();
    match suggest::closest(name, names.iter().copied()) {
        Some(near) => error.with_help(format!("did you mean '{near}'?")),
        None if names.is_empty() => error.with_help("no table has been created yet"),
        None => error.with_help("SHOW TABLES lists them"),
    }
}

/// The planner's error, or a better one if a function that the statement calls does not exist.
pub(crate) fn explain_error(state: &SessionState, statement: &ast::Statement, error: DataFusionError) -> Error {
    let error = error_from_datafusion(error);
    if !matches!(error.code(), ErrorCode::InvalidStatement | ErrorCode::Internal) {
        return error;
    }
    let mut calls = Calls { state, unknown: None };
    let _ = statement.visit(&mut calls);
    let Some((name, span)) = calls.unknown else { return error };
    let mut names: Vec<&str> = state
        .scalar_functions()
        .keys()
        .chain(state.aggregate_functions().keys())
        .chain(state.window_functions().keys())
        .map(String::as_str)
        .collect();
    names.sort_unstable();
    let missing = at(Error::new(ErrorCode::UnknownFunction, format!("there is no function '{name}'")), span);
    match suggest::closest(&name, names) {
        Some(near) => missing.with_help(format!("did you mean '{near}'?")),
        None => missing,
    }
}

struct Calls<'a> {
    state: &'a SessionState,
    unknown: Option<(String, Span)>,
}

impl Visitor for Calls<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let Expr::Function(call) = expr else { return ControlFlow::Continue(()) };
        let name = call.name.0.iter().filter_map(|part| part.as_ident()).map(normalised).collect::<Vec<_>>().join(".");
        let known = self.state.scalar_functions().contains_key(&name)
            || self.state.aggregate_functions().contains_key(&name)
            || self.state.window_functions().contains_key(&name)
            || self.state.higher_order_functions().contains_key(&name)
            || PLANNED_SPECIALLY.contains(&name.as_str());
        if known {
            return ControlFlow::Continue(());
        }
        self.unknown = Some((name, call.name.span()));
        ControlFlow::Break(())
    }
}

/// Functions that are no functions any more once planned.
const PLANNED_SPECIALLY: [&str; 6] = ["unnest", "grouping", "struct", "row", "make_map", "map"];

struct FindTable<'a> {
    name: &'a str,
    span: Span,
}

impl Visitor for FindTable<'_> {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        match factor {
            TableFactor::Table { name, .. } => self.check(name),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_relation(&mut self, relation: &ast::ObjectName) -> ControlFlow<()> {
        self.check(relation)
    }
}

impl FindTable<'_> {
    fn check(&mut self, name: &ast::ObjectName) -> ControlFlow<()> {
        let last = name.0.last().and_then(|part| part.as_ident()).map(normalised);
        if last.as_deref() == Some(self.name) {
            self.span = name.span();
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

fn place_of_table(statement: &ast::Statement, name: &str) -> Span {
    let mut find = FindTable { name, span: Span::empty() };
    let _ = statement.visit(&mut find);
    find.span
}
