//! Rows of a VALUES list that are all plain constants. DataFusion would take a plan and some rules to find the same: most of what an
//! INSERT costs.

use arrow::array::{Array, ArrayRef, new_null_array};
use arrow::compute::cast_with_options;
use datafusion::common::ScalarValue;
use datafusion::common::format::DEFAULT_CAST_OPTIONS;
use shoal_catalog::Table;
use sqlparser::ast::{self, Expr, SetExpr, UnaryOperator, Value};

use crate::sql::{normalised, plain_query};

/// The columns that a list gives, with the types of the table, in the table's order; those that it leaves out are NULL, but for the ones
/// named `absent`. Nothing if anything in it is more than a constant, or wrong: then it is to be planned, which says what is wrong.
pub(crate) fn columns(table: &Table, insert: &ast::Insert, absent: &[&str]) -> Option<Vec<ArrayRef>> {
    let source = bare_source(insert)?;
    let SetExpr::Values(list) = source.body.as_ref() else { return None };
    let names: Vec<String> = if insert.columns.is_empty() {
        table.schema.columns.iter().map(|column| column.name.clone()).collect()
    } else {
        let given = insert.columns.iter().map(|name| match name.0.as_slice() {
            [name] => name.as_ident().map(normalised),
            _ => None,
        });
        given.collect::<Option<_>>()?
    };
    let has_each_once = names.iter().enumerate().all(|(place, name)| !names[..place].contains(name));
    let fits = list.rows.iter().all(|row| row.content.len() == names.len());
    if !has_each_once || !fits || list.rows.is_empty() {
        return None;
    }
    let wanted = table.schema.columns.iter().filter(|column| !absent.contains(&column.name.as_str()));
    let arrays = wanted.map(|column| {
        let Some(place) = names.iter().position(|name| *name == column.name) else {
            return Some(new_null_array(&column.data_type, list.rows.len()));
        };
        let values = list.rows.iter().map(|row| constant(&row.content[place])).collect::<Option<Vec<_>>>()?;
        let array = array(values, list.rows.len())?;
        if array.data_type() == &column.data_type {
            return Some(array);
        }
        cast_with_options(&array, &column.data_type, &DEFAULT_CAST_OPTIONS).ok()
    });
    arrays.collect()
}

/// What an INSERT writes that has no clauses but a table, columns and that.
fn bare_source(insert: &ast::Insert) -> Option<&ast::Query> {
    let ast::Insert {
        insert_token: _,
        optimizer_hints,
        or,
        ignore,
        into: _,
        table: _,
        table_alias,
        columns: _,
        overwrite,
        source,
        assignments,
        partitioned,
        after_columns,
        has_table_keyword: _,
        on,
        returning,
        output,
        replace_into,
        priority,
        insert_alias,
        settings,
        format_clause,
        multi_table_insert_type,
        multi_table_into_clauses,
        multi_table_when_clauses,
        multi_table_else_clause,
    } = insert;
    let is_bare = optimizer_hints.is_empty()
        && or.is_none()
        && !ignore
        && table_alias.is_none()
        && !overwrite
        && assignments.is_empty()
        && partitioned.is_none()
        && after_columns.is_empty()
        && on.is_none()
        && returning.is_none()
        && output.is_none()
        && !replace_into
        && priority.is_none()
        && insert_alias.is_none()
        && settings.is_none()
        && format_clause.is_none()
        && multi_table_insert_type.is_none()
        && multi_table_into_clauses.is_empty()
        && multi_table_when_clauses.is_empty()
        && multi_table_else_clause.is_none();
    source.as_deref().filter(|source| is_bare && matches!(plain_query(source), Some((_, None, None))))
}

/// A constant as DataFusion would have it.
pub(crate) fn constant(expr: &Expr) -> Option<ScalarValue> {
    let whole = |digits: &str| digits.parse().ok().map(|number| ScalarValue::Int64(Some(number)));
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Null => Some(ScalarValue::Null),
            Value::Boolean(value) => Some(ScalarValue::Boolean(Some(*value))),
            Value::SingleQuotedString(text) => Some(ScalarValue::Utf8(Some(text.clone()))),
            Value::Number(digits, false) => whole(digits),
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match expr.as_ref() {
            Expr::Value(value) => match &value.value {
                Value::Number(digits, false) => whole(&format!("-{digits}")),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// Constants of one type, beside NULLs.
fn array(mut values: Vec<ScalarValue>, rows: usize) -> Option<ArrayRef> {
    let first = values.iter().find(|value| !value.is_null()).map(ScalarValue::data_type);
    let Some(data_type) = first else { return Some(new_null_array(&arrow::datatypes::DataType::Null, rows)) };
    for value in &mut values {
        if value.is_null() {
            *value = ScalarValue::try_from(&data_type).ok()?;
        } else if value.data_type() != data_type {
            return None;
        }
    }
    ScalarValue::iter_to_array(values).ok()
}
