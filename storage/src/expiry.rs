//! Which rows have had their time.

use std::cmp::Ordering;

use arrow::array::cast::AsArray;
use arrow::array::types::TimestampMicrosecondType;
use arrow::array::{Array, ArrayRef, BooleanArray, PrimitiveArray};
use arrow::temporal_conversions::timestamp_us_to_datetime;
use shoal_kernel::{ColumnId, ColumnPredicate, CompareOp, Cutoff, Datum, Error, ErrorCode, Result};

use crate::layout::Layout;
use crate::rows::Incoming;

/// Whether rows of a column of times lie at the cut-off or behind it; `first_row` numbers the first of them for the error.
///
/// # Errors
/// [`ErrorCode::RowsExpired`]: names the first row that does not; [`ErrorCode::InvalidRows`] if these are no times.
pub fn check_not_expired(times: &ArrayRef, cutoff: Cutoff, first_row: usize) -> Result<()> {
    let times = micros_of(times)?;
    match times.iter().position(|time| time.is_some_and(|time| time < cutoff.micros)) {
        Some(row) => Err(expired(&format!("row {}", first_row + row), times.value(row), Some(cutoff))),
        None => Ok(()),
    }
}

/// The error of a row that has had its time.
pub(crate) fn expired(what: &str, micros: i64, cutoff: Option<Cutoff>) -> Error {
    let shown =
        |micros| timestamp_us_to_datetime(micros).map_or_else(|| format!("{micros} us"), |time| format!("{time:?}"));
    let from = cutoff.map(|cutoff| shown(cutoff.micros)).unwrap_or_default();
    let message = format!("{what} has the time {}, and the table keeps rows from {from} on", shown(micros));
    Error::new(ErrorCode::RowsExpired, message)
        .with_help("leave such rows out, or raise the table's ttl before the next ones are that old")
}

/// Whether every row of a store with that cut-off satisfies the condition.
pub(crate) fn is_given(predicate: &ColumnPredicate, cutoff: Option<Cutoff>) -> bool {
    match (predicate, cutoff) {
        (ColumnPredicate::Compare { column, op, value }, Some(cutoff)) if *column == cutoff.column => {
            let order = value.partial_cmp(&Datum::Int(cutoff.micros));
            matches!((op, order), (CompareOp::GtEq, Some(Ordering::Less | Ordering::Equal)))
                || matches!((op, order), (CompareOp::Gt, Some(Ordering::Less)))
        }
        _ => false,
    }
}

/// The place of the cut-off's column.
pub(crate) fn time_place(layout: &Layout, column: ColumnId) -> Result<usize> {
    let place = layout.schema.index_of(column);
    place.ok_or_else(|| Error::internal("the cut-off is of a column that the table does not have"))
}

pub(crate) fn micros_of(times: &ArrayRef) -> Result<&PrimitiveArray<TimestampMicrosecondType>> {
    times.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| {
        let message = format!("the column that ttl goes by is of type {}", times.data_type());
        Error::new(ErrorCode::InvalidRows, message)
    })
}

impl Incoming {
    /// Which rows stay; `None` if all do.
    pub(crate) fn kept_from(&self, layout: &Layout, cutoff: Option<Cutoff>) -> Result<Option<BooleanArray>> {
        let Some(cutoff) = cutoff.filter(|_| self.rows() > 0) else { return Ok(None) };
        let times = micros_of(self.batch.column(time_place(layout, cutoff.column)?))?;
        let kept: BooleanArray = times.values().iter().map(|time| Some(*time >= cutoff.micros)).collect();
        Ok(kept.values().has_false().then_some(kept))
    }

    /// The time of the first row that does not stay.
    pub(crate) fn first_expired(&self, layout: &Layout, cutoff: Option<Cutoff>) -> Result<Option<i64>> {
        let Some(kept) = self.kept_from(layout, cutoff)? else { return Ok(None) };
        let Some(cutoff) = cutoff else { return Ok(None) };
        let times = micros_of(self.batch.column(time_place(layout, cutoff.column)?))?;
        Ok(kept.values().iter().position(|kept| !kept).map(|row| times.value(row)))
    }
}
