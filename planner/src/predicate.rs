//! WHERE conditions as the scan understands them.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator};
use shoal_kernel::{Column, ColumnPredicate, CompareOp, Datum, TableSchema};

use crate::datum::datum;

/// The parts of a condition that every wanted row meets and that a scan can check. What cannot be expressed is left out:
/// the filter above the scan checks the whole condition again.
pub(crate) fn lower(filter: &Expr, schema: &TableSchema) -> Vec<ColumnPredicate> {
    let mut predicates = Vec::new();
    collect(filter, schema, &mut predicates);
    predicates
}

/// Whether what [`lower`] makes of a condition is the whole of it, and is judged exactly by the scan: then no row needs to be
/// looked at again.
pub(crate) fn is_exact(filter: &Expr, schema: &TableSchema) -> bool {
    let judged = |parts: usize| {
        let lowered = lower(filter, schema);
        let exact = |predicate: &ColumnPredicate| {
            let column = schema.columns.iter().find(|column| column.id == predicate.column());
            column.is_some_and(|column| predicate.is_exact_on(&column.data_type))
        };
        lowered.len() == parts && lowered.iter().all(exact)
    };
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            is_exact(left, schema) && is_exact(right, schema)
        }
        // Each side may be a part of something larger that was left out.
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            is_exact(left, schema) && is_exact(right, schema) && judged(1)
        }
        Expr::Between(_) => judged(2),
        _ => judged(1),
    }
}

fn collect(filter: &Expr, schema: &TableSchema, out: &mut Vec<ColumnPredicate>) {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            collect(left, schema, out);
            collect(right, schema, out);
        }
        // The optimiser writes a short IN list as a chain of ORs.
        Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }) => out.extend(any_of(filter, schema)),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let found = match (column(left, schema), literal(right), column(right, schema), literal(left)) {
                (Some(column), Some(value), _, _) => compare_op(*op).map(|op| (column, op, value)),
                (_, _, Some(column), Some(value)) => op.swap().and_then(compare_op).map(|op| (column, op, value)),
                _ => None,
            };
            out.extend(found.and_then(|(column, op, value)| compare(column, op, value)));
        }
        Expr::Between(Between { expr, negated: false, low, high }) => {
            if let Some(column) = column(expr, schema) {
                out.extend(literal(low).and_then(|value| compare(column, CompareOp::GtEq, value)));
                out.extend(literal(high).and_then(|value| compare(column, CompareOp::LtEq, value)));
            }
        }
        Expr::InList(list) if !list.negated && !list.list.is_empty() => {
            if let Some(column) = column(&list.expr, schema) {
                // A NULL in the list matches no row, so leaving it out changes nothing.
                let known = list.list.iter().map(|item| literal(item));
                let values: Option<Vec<_>> = known
                    .filter(|value| !value.is_some_and(ScalarValue::is_null))
                    .map(|value| datum(value?, &column.data_type).filter(is_ordered))
                    .collect();
                out.extend(
                    values
                        .filter(|values| !values.is_empty())
                        .map(|values| ColumnPredicate::In { column: column.id, values }),
                );
            }
        }
        Expr::Like(like) if like.escape_char.is_none() => {
            let pattern = match literal(&like.pattern) {
                Some(
                    ScalarValue::Utf8(Some(text))
                    | ScalarValue::LargeUtf8(Some(text))
                    | ScalarValue::Utf8View(Some(text)),
                ) => text,
                _ => return,
            };
            out.extend(column(&like.expr, schema).filter(|column| column.data_type == DataType::Utf8).map(|column| {
                let (negated, ignore_case) = (like.negated, like.case_insensitive);
                ColumnPredicate::Like { column: column.id, pattern: pattern.clone(), negated, ignore_case }
            }));
        }
        Expr::IsNull(inner) => {
            out.extend(column(inner, schema).map(|column| ColumnPredicate::IsNull { column: column.id }));
        }
        Expr::IsNotNull(inner) => {
            out.extend(column(inner, schema).map(|column| ColumnPredicate::IsNotNull { column: column.id }));
        }
        Expr::Not(inner) => out.extend(flag(inner, schema, false)),
        Expr::Column(_) => out.extend(flag(filter, schema, true)),
        _ => {}
    }
}

/// `a = 1 OR a = 2 OR a IN (3, 4)`: one list, if every side is about the same column.
fn any_of(filter: &Expr, schema: &TableSchema) -> Option<ColumnPredicate> {
    let (mut sides, mut of, mut all) = (vec![filter], None, Vec::new());
    while let Some(side) = sides.pop() {
        if let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) = side {
            sides.extend([right.as_ref(), left.as_ref()]);
            continue;
        }
        let mut lowered = lower(side, schema);
        let values = match (lowered.pop()?, lowered.is_empty()) {
            (ColumnPredicate::Compare { column, op: CompareOp::Eq, value }, true) => (column, vec![value]),
            (ColumnPredicate::In { column, values }, true) => (column, values),
            _ => return None,
        };
        if *of.get_or_insert(values.0) != values.0 {
            return None;
        }
        all.extend(values.1);
    }
    of.map(|column| ColumnPredicate::In { column, values: all })
}

fn column<'a>(expr: &Expr, schema: &'a TableSchema) -> Option<&'a Column> {
    match expr {
        Expr::Column(column) => schema.column(&column.name),
        _ => None,
    }
}

fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        _ => None,
    }
}

fn flag(expr: &Expr, schema: &TableSchema, wanted: bool) -> Option<ColumnPredicate> {
    let column = column(expr, schema).filter(|column| column.data_type == DataType::Boolean)?;
    Some(ColumnPredicate::Compare { column: column.id, op: CompareOp::Eq, value: Datum::Bool(wanted) })
}

fn compare_op(op: Operator) -> Option<CompareOp> {
    Some(match op {
        Operator::Eq => CompareOp::Eq,
        Operator::NotEq => CompareOp::NotEq,
        Operator::Lt => CompareOp::Lt,
        Operator::LtEq => CompareOp::LtEq,
        Operator::Gt => CompareOp::Gt,
        Operator::GtEq => CompareOp::GtEq,
        _ => return None,
    })
}

fn compare(column: &Column, op: CompareOp, value: &ScalarValue) -> Option<ColumnPredicate> {
    let value = datum(value, &column.data_type).filter(is_ordered)?;
    // SQL here tells -0 from 0 and keys do not: around zero the condition that goes down is a wider one.
    let op = match (&value, op) {
        (Datum::Float(zero), CompareOp::Lt) if *zero == 0.0 => CompareOp::LtEq,
        (Datum::Float(zero), CompareOp::Gt) if *zero == 0.0 => CompareOp::GtEq,
        (Datum::Float(zero), CompareOp::NotEq) if *zero == 0.0 => return None,
        (_, op) => op,
    };
    Some(ColumnPredicate::Compare { column: column.id, op, value })
}

fn is_ordered(value: &Datum) -> bool {
    !matches!(value, Datum::Float(value) if value.is_nan())
}
