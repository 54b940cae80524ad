//! Rows of an answer as plain values.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Int32Type, Int64Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use arrow::util::display::array_value_to_string;

use super::history::Cell;

/// Every row of the batches, in order.
pub(super) fn rows(batches: &[RecordBatch]) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            rows.push(batch.columns().iter().map(|column| cell(column, row)).collect());
        }
    }
    rows
}

fn cell(column: &ArrayRef, row: usize) -> Cell {
    if column.is_null(row) {
        return Cell::Null;
    }
    match column.data_type() {
        DataType::Int64 => Cell::Int(column.as_primitive::<Int64Type>().value(row)),
        DataType::Int32 => Cell::Int(i64::from(column.as_primitive::<Int32Type>().value(row))),
        DataType::UInt64 => {
            Cell::Int(i64::try_from(column.as_primitive::<UInt64Type>().value(row)).unwrap_or(i64::MAX))
        }
        _ => Cell::Text(array_value_to_string(column, row).unwrap_or_else(|error| error.to_string())),
    }
}
