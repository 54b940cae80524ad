//! Columns of the system tables: a name, and how its value is read off a row. The schema and the rows of a table come of the same list.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use shoal_kernel::{Error, Result};

/// A column of a table whose rows are made of `R`.
pub(super) struct Column<R> {
    name: &'static str,
    value: Value<R>,
}

enum Value<R> {
    Text(fn(&R) -> Option<String>),
    Number(fn(&R) -> Option<u64>),
    Flag(fn(&R) -> Option<bool>),
}

/// A column of text.
pub(super) const fn text<R>(name: &'static str, value: fn(&R) -> Option<String>) -> Column<R> {
    Column { name, value: Value::Text(value) }
}

/// A column of numbers; those that no BIGINT can hold are its largest.
pub(super) const fn number<R>(name: &'static str, value: fn(&R) -> Option<u64>) -> Column<R> {
    Column { name, value: Value::Number(value) }
}

/// A column of true and false.
pub(super) const fn flag<R>(name: &'static str, value: fn(&R) -> Option<bool>) -> Column<R> {
    Column { name, value: Value::Flag(value) }
}

pub(super) fn schema<R>(columns: &[Column<R>]) -> SchemaRef {
    let fields = columns.iter().map(|column| {
        let data_type = match column.value {
            Value::Text(_) => DataType::Utf8,
            Value::Number(_) => DataType::Int64,
            Value::Flag(_) => DataType::Boolean,
        };
        Field::new(column.name, data_type, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

pub(super) fn batch<R>(columns: &[Column<R>], rows: &[R]) -> Result<RecordBatch> {
    let arrays = columns.iter().map(|column| -> ArrayRef {
        match column.value {
            Value::Text(value) => Arc::new(rows.iter().map(value).collect::<StringArray>()),
            Value::Number(value) => {
                let saturated = |row| value(row).map(|number| i64::try_from(number).unwrap_or(i64::MAX));
                Arc::new(rows.iter().map(saturated).collect::<Int64Array>())
            }
            Value::Flag(value) => Arc::new(rows.iter().map(value).collect::<BooleanArray>()),
        }
    });
    RecordBatch::try_new(schema(columns), arrays.collect())
        .map_err(|error| Error::internal(format!("the rows of a system table do not fit its columns: {error}")))
}
