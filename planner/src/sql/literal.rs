//! Constants written in DDL as values of a column.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use shoal_kernel::{Datum, Error, ErrorCode, Result};
use sqlparser::ast::{Expr, Spanned, UnaryOperator, Value};

use super::text::at;
use crate::datum::datum;

/// The constant as a value of a column of that type.
///
/// # Errors
/// It is no constant, NULL, or does not fit the type; the error has its place.
pub(super) fn parse(expr: &Expr, column: &str, data_type: &DataType) -> Result<Datum> {
    let wrong = |message: String| at(Error::new(ErrorCode::InvalidStatement, message), expr.span());
    let Some((text, quoted)) = text(expr) else {
        return Err(wrong(format!("{expr} is not a constant")));
    };
    let is_text = matches!(data_type, DataType::Utf8 | DataType::Binary);
    if is_text && !quoted {
        return Err(wrong(format!("{expr} is not a constant of the type of column '{column}': put it in quotes")));
    }
    let value = ScalarValue::Utf8(Some(text)).cast_to(data_type).ok();
    value
        .and_then(|value| datum(&value, data_type))
        .ok_or_else(|| wrong(format!("{expr} is not a value of column '{column}', which has the type {data_type}")))
}

fn text(expr: &Expr) -> Option<(String, bool)> {
    match expr {
        Expr::Value(value) => match &value.value {
            Value::Number(digits, _) => Some((digits.clone(), false)),
            Value::SingleQuotedString(text) => Some((text.clone(), true)),
            Value::Boolean(value) => Some((value.to_string(), false)),
            _ => None,
        },
        Expr::TypedString(typed) => match &typed.value.value {
            Value::SingleQuotedString(text) => Some((text.clone(), true)),
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match text(expr)? {
            (digits, false) => Some((format!("-{digits}"), false)),
            _ => None,
        },
        Expr::Nested(inner) => text(inner),
        _ => None,
    }
}
