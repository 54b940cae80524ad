//! Conditions of a scan: whether a page can hold a matching row, and which rows of a decoded column match.

use std::cmp::Ordering;
use std::mem::discriminant;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, LargeStringArray, Scalar,
    StringArray, UInt64Array,
};
use arrow::compute::kernels::cmp;
use arrow::compute::{cast, ilike, like, nilike, nlike, or, prep_null_mask_filter};
use arrow::datatypes::DataType;
use serde::{Deserialize, Serialize};
use shoal_kernel::{ColumnPredicate, CompareOp, Datum, Error, Result};

use crate::key::Values;

/// Beyond this many values a list is judged by zone maps alone.
const IN_VALUES_EVALUATED_MAX: usize = 16;
/// Longer strings are cut in zone maps.
const ZONE_TEXT_BYTES_MAX: usize = 64;

/// What is known of the values of a column in a run of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Zone {
    pub(crate) rows: u32,
    pub(crate) nulls: u32,
    /// Not above any value; `None` if not known.
    pub(crate) min: Option<Datum>,
    /// Not below any value; `None` if not known.
    pub(crate) max: Option<Datum>,
}

impl Zone {
    pub(crate) fn of(array: &ArrayRef) -> Self {
        let (mut min, mut max) = (None, None);
        if let Ok(values) = Values::of(array)
            && let Some((low, high)) = values.extremes()
        {
            min = Some(lower_bound(values.datum(low)));
            max = upper_bound(values.datum(high));
        }
        Self { rows: array.len() as u32, nulls: array.logical_null_count() as u32, min, max }
    }

    /// The zone of both runs together.
    pub(crate) fn union(self, other: &Self) -> Self {
        // A run of NULLs has no bounds and does not take away those of the other.
        let bound = |ours: Option<Datum>, theirs: &Option<Datum>, keep: Ordering| match (ours, theirs) {
            (ours, None) if other.nulls == other.rows => ours,
            (None, theirs) if self.nulls == self.rows => theirs.clone(),
            (Some(ours), Some(theirs)) => {
                Some(if theirs.partial_cmp(&ours) == Some(keep) { theirs.clone() } else { ours })
            }
            _ => None,
        };
        Self {
            rows: self.rows + other.rows,
            nulls: self.nulls + other.nulls,
            min: bound(self.min, &other.min, Ordering::Less),
            max: bound(self.max, &other.max, Ordering::Greater),
        }
    }
}

fn lower_bound(value: Datum) -> Datum {
    match value {
        Datum::Text(text) if text.len() > ZONE_TEXT_BYTES_MAX => {
            let end = (0..=ZONE_TEXT_BYTES_MAX).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
            Datum::Text(text[..end].to_owned())
        }
        Datum::Bytes(bytes) if bytes.len() > ZONE_TEXT_BYTES_MAX => Datum::Bytes(bytes[..ZONE_TEXT_BYTES_MAX].to_vec()),
        other => other,
    }
}

fn upper_bound(value: Datum) -> Option<Datum> {
    match &value {
        Datum::Text(text) if text.len() > ZONE_TEXT_BYTES_MAX => None,
        Datum::Bytes(bytes) if bytes.len() > ZONE_TEXT_BYTES_MAX => None,
        _ => Some(value),
    }
}

/// Whether a bound is a value itself, not a beginning of one or a zero of either sign. What was cut at the end of a character has
/// at least as many bytes as are left of the most that a character takes.
pub(crate) fn exact_bound(bound: &Datum) -> bool {
    const CUT_BYTES_MIN: usize = ZONE_TEXT_BYTES_MAX - 3;
    match bound {
        Datum::Text(text) => text.len() < CUT_BYTES_MIN,
        Datum::Bytes(bytes) => bytes.len() < ZONE_TEXT_BYTES_MAX,
        Datum::Float(number) => *number != 0.0,
        _ => true,
    }
}

/// Whether every row of the zone surely satisfies the condition.
pub(crate) fn must_match(predicate: &ColumnPredicate, zone: &Zone) -> bool {
    // Where no row may break it.
    let holds = |op: CompareOp, value: &Datum| zone.nulls == 0 && !may_compare(op.negated(), value, zone);
    match predicate {
        ColumnPredicate::IsNull { .. } => zone.nulls == zone.rows,
        ColumnPredicate::IsNotNull { .. } => zone.nulls == 0,
        ColumnPredicate::Compare { op, value, .. } => holds(*op, value),
        ColumnPredicate::In { values, .. } => values.iter().any(|value| holds(CompareOp::Eq, value)),
        ColumnPredicate::Like { .. } => false,
    }
}

/// Whether a row of the zone may satisfy the condition.
pub(crate) fn may_match(predicate: &ColumnPredicate, zone: &Zone) -> bool {
    match predicate {
        ColumnPredicate::IsNull { .. } => zone.nulls > 0,
        ColumnPredicate::IsNotNull { .. } | ColumnPredicate::Like { .. } => zone.nulls < zone.rows,
        ColumnPredicate::Compare { op, value, .. } => may_compare(*op, value, zone),
        ColumnPredicate::In { values, .. } => values.iter().any(|value| may_compare(CompareOp::Eq, value, zone)),
    }
}

fn may_compare(op: CompareOp, value: &Datum, zone: &Zone) -> bool {
    if zone.nulls == zone.rows {
        return false;
    }
    // Zero has two signs, which some orders tell apart: left to whoever filters above.
    if matches!(value, Datum::Float(number) if *number == 0.0 || number.is_nan()) {
        return true;
    }
    let order = |bound: &Option<Datum>| {
        let bound = bound.as_ref().filter(|bound| discriminant(*bound) == discriminant(value))?;
        bound.partial_cmp(value)
    };
    let (min, max) = (order(&zone.min), order(&zone.max));
    match op {
        CompareOp::Eq => min != Some(Ordering::Greater) && max != Some(Ordering::Less),
        CompareOp::NotEq => min != Some(Ordering::Equal) || max != Some(Ordering::Equal),
        CompareOp::Lt => min.is_none_or(Ordering::is_lt),
        CompareOp::LtEq => min.is_none_or(Ordering::is_le),
        CompareOp::Gt => max.is_none_or(Ordering::is_gt),
        CompareOp::GtEq => max.is_none_or(Ordering::is_ge),
    }
}

/// A condition made ready to be evaluated on columns of one type.
pub(crate) enum Evaluator {
    Compare(CompareOp, Scalar<ArrayRef>),
    In(Vec<Scalar<ArrayRef>>),
    Like { pattern: Scalar<ArrayRef>, negated: bool, ignore_case: bool },
    Null(bool),
}

impl Evaluator {
    /// `None` if the condition cannot be judged exactly here; then rows that break it are returned too.
    pub(crate) fn new(predicate: &ColumnPredicate, data_type: &DataType) -> Option<Self> {
        match predicate {
            ColumnPredicate::Compare { op, value, .. } => Some(Self::Compare(*op, scalar(value, data_type)?)),
            ColumnPredicate::In { values, .. } if values.len() <= IN_VALUES_EVALUATED_MAX => {
                Some(Self::In(values.iter().map(|value| scalar(value, data_type)).collect::<Option<_>>()?))
            }
            ColumnPredicate::In { .. } => None,
            ColumnPredicate::Like { pattern, negated, ignore_case, .. } => {
                let pattern: ArrayRef = match data_type {
                    DataType::Utf8 => Arc::new(StringArray::from(vec![pattern.as_str()])),
                    DataType::LargeUtf8 => Arc::new(LargeStringArray::from(vec![pattern.as_str()])),
                    _ => return None,
                };
                Some(Self::Like { pattern: Scalar::new(pattern), negated: *negated, ignore_case: *ignore_case })
            }
            ColumnPredicate::IsNull { .. } => Some(Self::Null(true)),
            ColumnPredicate::IsNotNull { .. } => Some(Self::Null(false)),
        }
    }

    /// Whether only being NULL or not counts: `Some(true)` asks for NULLs.
    pub(crate) fn of_nulls(&self) -> Option<bool> {
        match self {
            Self::Null(wanted) => Some(*wanted),
            _ => None,
        }
    }

    /// Which rows match; never NULL.
    pub(crate) fn evaluate(&self, array: &ArrayRef) -> Result<BooleanArray> {
        let failed = |error| Error::internal(format!("a condition could not be evaluated: {error}"));
        let matches = match self {
            Self::Compare(op, value) => match op {
                CompareOp::Eq => cmp::eq(array, value),
                CompareOp::NotEq => cmp::neq(array, value),
                CompareOp::Lt => cmp::lt(array, value),
                CompareOp::LtEq => cmp::lt_eq(array, value),
                CompareOp::Gt => cmp::gt(array, value),
                CompareOp::GtEq => cmp::gt_eq(array, value),
            },
            Self::In(values) => {
                let nothing = BooleanArray::from(vec![false; array.len()]);
                values.iter().try_fold(nothing, |found, value| or(&found, &prep(cmp::eq(array, value)?)))
            }
            Self::Like { pattern, negated, ignore_case } => match (negated, ignore_case) {
                (false, false) => like(array, pattern),
                (true, false) => nlike(array, pattern),
                (false, true) => ilike(array, pattern),
                (true, true) => nilike(array, pattern),
            },
            Self::Null(true) => arrow::compute::is_null(array),
            Self::Null(false) => arrow::compute::is_not_null(array),
        };
        Ok(prep(matches.map_err(failed)?))
    }
}

fn prep(matches: BooleanArray) -> BooleanArray {
    if matches.null_count() == 0 { matches } else { prep_null_mask_filter(&matches) }
}

/// The value as an array of that type with one row; `None` if it cannot be given exactly.
pub(crate) fn scalar(value: &Datum, data_type: &DataType) -> Option<Scalar<ArrayRef>> {
    let array: ArrayRef = match value {
        Datum::Null => return None,
        Datum::Bool(value) => Arc::new(BooleanArray::from(vec![*value])),
        Datum::Int(value) => Arc::new(Int64Array::from(vec![*value])),
        Datum::UInt(value) => Arc::new(UInt64Array::from(vec![*value])),
        // A REAL compared with a DOUBLE constant is the reader's business: which width decides is a matter of SQL.
        Datum::Float(value) if *data_type == DataType::Float64 && *value != 0.0 && !value.is_nan() => {
            Arc::new(Float64Array::from(vec![*value]))
        }
        Datum::Float(_) => return None,
        Datum::Decimal(value) => match data_type {
            DataType::Decimal128(precision, scale) => {
                Arc::new(Decimal128Array::from(vec![*value]).with_precision_and_scale(*precision, *scale).ok()?)
            }
            _ => return None,
        },
        Datum::Text(value) => Arc::new(StringArray::from(vec![value.as_str()])),
        Datum::Bytes(value) => Arc::new(BinaryArray::from(vec![value.as_slice()])),
    };
    let fits = match (value, data_type) {
        (Datum::Int(_), DataType::Date32) => {
            let narrow = cast(&array, &DataType::Int32).ok()?;
            return cast(&narrow, data_type).ok().filter(|array| array.null_count() == 0).map(Scalar::new);
        }
        (Datum::Int(_), DataType::Time32(_)) => {
            let narrow = cast(&array, &DataType::Int32).ok()?;
            return cast(&narrow, data_type).ok().filter(|array| array.null_count() == 0).map(Scalar::new);
        }
        (Datum::Int(_), other) => other.is_signed_integer() || other.is_temporal(),
        (Datum::UInt(_), other) => other.is_unsigned_integer(),
        (Datum::Bool(_), DataType::Boolean) | (Datum::Float(_), _) | (Datum::Decimal(_), _) => true,
        (Datum::Text(_), other) => matches!(other, DataType::Utf8 | DataType::LargeUtf8),
        (Datum::Bytes(_), other) => matches!(other, DataType::Binary | DataType::LargeBinary),
        _ => false,
    };
    if !fits {
        return None;
    }
    // A constant beyond the column's range becomes NULL, which would match nothing.
    cast(&array, data_type).ok().filter(|array| array.null_count() == 0).map(Scalar::new)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Date32Array, Int32Array, TimestampMicrosecondArray};
    use shoal_kernel::ColumnId;

    use super::*;

    fn compare(op: CompareOp, value: Datum) -> ColumnPredicate {
        ColumnPredicate::Compare { column: ColumnId(0), op, value }
    }

    /// Whatever the zone rules out, no row matches; and evaluation agrees with comparing datums one by one.
    fn check(array: ArrayRef, constants: &[Datum]) {
        let zone = Zone::of(&array);
        let values = Values::of(&array).unwrap();
        for value in constants {
            for op in [CompareOp::Eq, CompareOp::NotEq, CompareOp::Lt, CompareOp::LtEq, CompareOp::Gt, CompareOp::GtEq]
            {
                let holds = |row: usize| {
                    let order = values.datum(row).partial_cmp(value);
                    array.is_valid(row)
                        && order.is_some_and(|order| match op {
                            CompareOp::Eq => order.is_eq(),
                            CompareOp::NotEq => order.is_ne(),
                            CompareOp::Lt => order.is_lt(),
                            CompareOp::LtEq => order.is_le(),
                            CompareOp::Gt => order.is_gt(),
                            CompareOp::GtEq => order.is_ge(),
                        })
                };
                let predicate = compare(op, value.clone());
                let expected: Vec<bool> = (0..array.len()).map(holds).collect();
                if !may_match(&predicate, &zone) {
                    assert!(!expected.contains(&true), "{predicate:?}");
                }
                if must_match(&predicate, &zone) {
                    assert!(!expected.contains(&false), "{predicate:?}");
                }
                if let Some(evaluator) = Evaluator::new(&predicate, array.data_type()) {
                    let found = evaluator.evaluate(&array).unwrap();
                    assert_eq!(found.values().iter().collect::<Vec<_>>(), expected, "{predicate:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_said_to_be_judged_exactly_can_be_judged() {
        use DataType::*;
        let types = [
            Boolean,
            Int8,
            Int16,
            Int32,
            Int64,
            UInt8,
            UInt16,
            UInt32,
            UInt64,
            Float32,
            Float64,
            Decimal128(9, 2),
            Utf8,
            LargeUtf8,
            Binary,
            Date32,
            Date64,
            Time32(arrow::datatypes::TimeUnit::Second),
            Time64(arrow::datatypes::TimeUnit::Microsecond),
            Timestamp(arrow::datatypes::TimeUnit::Microsecond, None),
            Timestamp(arrow::datatypes::TimeUnit::Second, Some("UTC".into())),
        ];
        let values = [
            Datum::Bool(true),
            Datum::Int(7),
            Datum::UInt(7),
            Datum::Float(0.5),
            Datum::Decimal(7),
            Datum::Text("x".into()),
            Datum::Bytes(vec![1]),
        ];
        let mut exact = 0;
        let column = ColumnId(1);
        for data_type in types {
            let like = ColumnPredicate::Like { column, pattern: "%".into(), negated: false, ignore_case: false };
            let of_value = |value: &Datum| {
                let many = vec![value.clone(); 17];
                [
                    ColumnPredicate::Compare { column, op: CompareOp::LtEq, value: value.clone() },
                    ColumnPredicate::In { column, values: vec![value.clone(); 16] },
                    ColumnPredicate::In { column, values: many },
                ]
            };
            let all = values.iter().flat_map(of_value).chain([like, ColumnPredicate::IsNull { column }]);
            for predicate in all.filter(|predicate| predicate.is_exact_on(&data_type)) {
                assert!(Evaluator::new(&predicate, &data_type).is_some(), "{predicate:?} on {data_type}");
                exact += 1;
            }
        }
        assert!(exact > 40);
    }

    #[test]
    fn zones_and_evaluation_agree_with_the_plain_meaning() {
        let ints: Vec<Datum> = [-5, 0, 1, 2, 7, i64::MAX].map(Datum::Int).to_vec();
        check(Arc::new(Int32Array::from(vec![Some(1), None, Some(2), Some(7)])), &ints);
        check(Arc::new(Int32Array::from(vec![None, None])), &ints);
        check(Arc::new(Date32Array::from(vec![0, 2])), &ints);
        check(Arc::new(TimestampMicrosecondArray::from(vec![1, 2]).with_timezone("UTC")), &ints);
        let long = "x".repeat(100);
        let texts: Vec<Datum> = ["", "a", "x", "y", &long].map(|text| Datum::Text(text.to_owned())).to_vec();
        check(Arc::new(StringArray::from(vec![Some("a"), Some(long.as_str()), None])), &texts);
        check(Arc::new(Float64Array::from(vec![1.5, -0.0, f64::INFINITY])), &[-1.0, 0.0, 1.5].map(Datum::Float));
    }
}
