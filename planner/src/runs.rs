//! Aggregation by runs: rows in the order of a table's key are of one group for a while. Each run is brought to one partial
//! state in a tight loop, and only these states are added to the groups.

use std::sync::Arc;

use arrow::array::types::{
    ArrowPrimitiveType, Date32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow::array::{
    Array, ArrayRef, ArrowNativeTypeOp, AsArray, Float64Array, Int64Array, PrimitiveArray, UInt64Array,
};
use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::{CastExpr, Literal};

/// Runs that are shorter on average are added row by row.
const RUN_ROWS_MIN: usize = 4;
/// Sums that are kept side by side, so that one addition need not wait for the last.
const LANES: usize = 8;

/// Neighbouring rows of one group.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    /// The group of each run.
    groups: Vec<usize>,
    /// Where each run ends.
    ends: Vec<usize>,
}

impl Runs {
    /// Finds the runs; says whether they are long enough to be worth it.
    pub(crate) fn find(&mut self, groups: &[usize]) -> bool {
        self.groups.clear();
        self.ends.clear();
        let runs_max = groups.len() / RUN_ROWS_MIN;
        let mut end = 0;
        for run in groups.chunk_by(|one, next| one == next) {
            if self.groups.len() == runs_max {
                return false;
            }
            end += run.len();
            self.groups.extend(run.first());
            self.ends.push(end);
        }
        true
    }

    /// The group of each run.
    pub(crate) fn groups(&self) -> &[usize] {
        &self.groups
    }

    /// What the values of each run come to.
    fn of<'a, V, R>(&'a self, values: &'a [V], mut reduce: impl FnMut(&[V]) -> R) -> impl Iterator<Item = R> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let run = &values[start..end];
            start = end;
            reduce(run)
        })
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        let mut start = 0;
        self.ends.iter().map(move |&end| end - std::mem::replace(&mut start, end))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Count,
    Sum,
    Mean,
    Least,
    Greatest,
}

/// An aggregate function whose partial states can be computed from runs.
#[derive(Debug)]
pub(crate) struct Reduction {
    kind: Kind,
    /// `None` if only the number of rows matters.
    argument: Option<Arc<dyn PhysicalExpr>>,
    /// What the values are added as.
    sum_type: DataType,
}

impl Reduction {
    /// How to compute that function's states over rows of that schema, if they are of a kind that is known here.
    pub(crate) fn of(call: &AggregateFunctionExpr, schema: &Schema) -> Result<Option<Self>> {
        let kind = match call.fun().name() {
            "count" => Kind::Count,
            "sum" => Kind::Sum,
            "avg" => Kind::Mean,
            "min" => Kind::Least,
            "max" => Kind::Greatest,
            _ => return Ok(None),
        };
        let arguments = call.expressions();
        let [given] = arguments.as_slice() else { return Ok(None) };
        let data_type = given.data_type(schema)?;
        let states: Vec<DataType> = call.state_fields()?.iter().map(|field| field.data_type().clone()).collect();
        let expected: &[DataType] = match kind {
            Kind::Count => &[DataType::Int64],
            Kind::Mean => &[DataType::UInt64, DataType::Float64],
            Kind::Sum | Kind::Least | Kind::Greatest => std::slice::from_ref(&data_type),
        };
        let is_known = match kind {
            Kind::Count => true,
            Kind::Sum => matches!(data_type, DataType::Int64 | DataType::UInt64 | DataType::Float64),
            Kind::Mean => data_type == DataType::Float64,
            // What is the least of floats depends on their order if one of them is none.
            Kind::Least | Kind::Greatest => {
                data_type.is_integer() || matches!(data_type, DataType::Date32 | DataType::Timestamp(_, _))
            }
        };
        if !is_known || states != expected {
            return Ok(None);
        }
        let argument = match (kind, given.downcast_ref::<Literal>()) {
            (Kind::Count, Some(literal)) if !literal.value().is_null() => None,
            (Kind::Sum | Kind::Mean, _) => Some(narrow(given, schema)?.unwrap_or_else(|| Arc::clone(given))),
            _ => Some(Arc::clone(given)),
        };
        Ok(Some(Self { kind, argument, sum_type: data_type }))
    }

    /// What the states are computed from.
    pub(crate) fn argument(&self) -> Option<&Arc<dyn PhysicalExpr>> {
        self.argument.as_ref()
    }

    /// The state of each run, as the function's own partial state; `None` if rows have to be looked at one by one.
    pub(crate) fn states(&self, values: Option<&ArrayRef>, runs: &Runs) -> Option<Vec<ArrayRef>> {
        if values.is_some_and(|values| values.null_count() > 0) {
            return None;
        }
        let Some(values) = values else {
            return Some(vec![Arc::new(runs.lengths().map(|rows| rows as i64).collect::<Int64Array>())]);
        };
        Some(match self.kind {
            Kind::Count => vec![Arc::new(runs.lengths().map(|rows| rows as i64).collect::<Int64Array>())],
            Kind::Sum => vec![sums(values, runs, &self.sum_type)?],
            Kind::Mean => {
                let counts = runs.lengths().map(|rows| rows as u64).collect::<UInt64Array>();
                vec![Arc::new(counts), sums(values, runs, &self.sum_type)?]
            }
            Kind::Least => vec![extremes(values, runs, false)?],
            Kind::Greatest => vec![extremes(values, runs, true)?],
        })
    }
}

/// What is cast to the type that is added up, if adding it up as it is gives the same: small whole numbers.
fn narrow(expr: &Arc<dyn PhysicalExpr>, schema: &Schema) -> Result<Option<Arc<dyn PhysicalExpr>>> {
    let Some(cast) = expr.downcast_ref::<CastExpr>() else { return Ok(None) };
    let is_small = match cast.expr().data_type(schema)? {
        DataType::Int8 | DataType::Int16 | DataType::Int32 => *cast.cast_type() != DataType::UInt64,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => true,
        _ => false,
    };
    Ok(is_small.then(|| Arc::clone(cast.expr())))
}

/// The sum of each run. Whole numbers that become floats are few and small enough for their sum to be exact.
fn sums(values: &ArrayRef, runs: &Runs, sum_type: &DataType) -> Option<ArrayRef> {
    macro_rules! whole {
        ($($data_type:ident => $array:ty),*) => { match values.data_type() {
            $(DataType::$data_type => {
                let values = values.as_primitive::<$array>().values();
                let sums = runs.of(values, |run| run.iter().fold(0_i64, |sum, &value| sum.wrapping_add(i64::from(value))));
                Some(sums.collect::<Vec<i64>>())
            })*
            _ => None,
        } };
    }
    match values.data_type() {
        DataType::Float64 => {
            let values = values.as_primitive::<Float64Type>().values();
            return Some(Arc::new(runs.of(values, sum_of_floats).collect::<Float64Array>()));
        }
        DataType::UInt64 => {
            let values = values.as_primitive::<UInt64Type>().values();
            let sums = runs.of(values, |run| run.iter().fold(0_u64, |sum, value| sum.wrapping_add(*value)));
            return Some(Arc::new(sums.collect::<UInt64Array>()));
        }
        _ => {}
    }
    let sums = whole!(Int8 => Int8Type, Int16 => Int16Type, Int32 => Int32Type, Int64 => Int64Type, UInt8 => UInt8Type,
        UInt16 => UInt16Type, UInt32 => UInt32Type)?;
    match sum_type {
        DataType::Int64 => Some(Arc::new(Int64Array::from(sums))),
        DataType::UInt64 => Some(Arc::new(sums.into_iter().map(|sum| sum as u64).collect::<UInt64Array>())),
        DataType::Float64 => Some(Arc::new(sums.into_iter().map(|sum| sum as f64).collect::<Float64Array>())),
        _ => None,
    }
}

fn sum_of_floats(values: &[f64]) -> f64 {
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        lanes.iter_mut().zip(block).for_each(|(sum, value)| *sum += value);
    }
    lanes.iter().chain(rest).sum()
}

/// The least or greatest value of each run.
fn extremes(values: &ArrayRef, runs: &Runs, greatest: bool) -> Option<ArrayRef> {
    macro_rules! by_type {
        ($($pattern:pat => $array:ty),* $(,)?) => { match values.data_type() {
            $($pattern => Some(extremes_of::<$array>(values, runs, greatest)),)*
            _ => None,
        } };
    }
    by_type!(
        DataType::Int8 => Int8Type,
        DataType::Int16 => Int16Type,
        DataType::Int32 => Int32Type,
        DataType::Int64 => Int64Type,
        DataType::UInt8 => UInt8Type,
        DataType::UInt16 => UInt16Type,
        DataType::UInt32 => UInt32Type,
        DataType::UInt64 => UInt64Type,
        DataType::Date32 => Date32Type,
        DataType::Timestamp(TimeUnit::Second, _) => TimestampSecondType,
        DataType::Timestamp(TimeUnit::Millisecond, _) => TimestampMillisecondType,
        DataType::Timestamp(TimeUnit::Microsecond, _) => TimestampMicrosecondType,
        DataType::Timestamp(TimeUnit::Nanosecond, _) => TimestampNanosecondType,
    )
}

fn extremes_of<T: ArrowPrimitiveType>(values: &ArrayRef, runs: &Runs, greatest: bool) -> ArrayRef {
    let array = values.as_primitive::<T>();
    let least_of = |one: T::Native, other: T::Native| if other.is_lt(one) { other } else { one };
    let greatest_of = |one: T::Native, other: T::Native| if other.is_gt(one) { other } else { one };
    // No run is empty.
    let best: Vec<T::Native> = match greatest {
        true => runs.of(array.values(), |run| run.iter().copied().reduce(greatest_of).unwrap_or_default()).collect(),
        false => runs.of(array.values(), |run| run.iter().copied().reduce(least_of).unwrap_or_default()).collect(),
    };
    Arc::new(PrimitiveArray::<T>::new(best.into(), None).with_data_type(values.data_type().clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_where_they_are_long() {
        let mut runs = Runs::default();
        assert!(runs.find(&[3, 3, 3, 3, 3, 1, 1, 1]));
        assert_eq!(runs.groups(), [3, 1]);
        assert_eq!(runs.lengths().collect::<Vec<_>>(), [5, 3]);
        assert!(!runs.find(&[3, 3, 3, 1, 1, 1, 2, 2]), "three runs of eight rows");
        assert!(!runs.find(&[7]));
        assert!(runs.find(&[]));
    }

    #[test]
    fn runs_are_reduced() {
        let mut runs = Runs::default();
        assert!(runs.find(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4]));
        let small: ArrayRef =
            Arc::new(PrimitiveArray::<Int32Type>::from_iter_values([9, -5, 3, 1, 1, 1, 1, 1, 1, 7, 8, -9]));
        let whole = |array: &ArrayRef| array.as_primitive::<Int64Type>().values().to_vec();
        let floats = |array: &ArrayRef| array.as_primitive::<Float64Type>().values().to_vec();
        assert_eq!(whole(&sums(&small, &runs, &DataType::Int64).unwrap()), [13, 6]);
        assert_eq!(floats(&sums(&small, &runs, &DataType::Float64).unwrap()), [13.0, 6.0]);
        let halves: ArrayRef = Arc::new((1..=12).map(|number| f64::from(number) / 2.0).collect::<Float64Array>());
        assert_eq!(floats(&sums(&halves, &runs, &DataType::Float64).unwrap()), [22.5, 16.5]);
        let extreme =
            |greatest| extremes(&small, &runs, greatest).unwrap().as_primitive::<Int32Type>().values().to_vec();
        assert_eq!((extreme(false), extreme(true)), (vec![-5, -9], vec![9, 8]));
        let times: ArrayRef =
            Arc::new(PrimitiveArray::<TimestampMicrosecondType>::from_iter_values(0..12).with_timezone("UTC"));
        assert_eq!(extremes(&times, &runs, true).unwrap().data_type(), times.data_type());
    }
}
