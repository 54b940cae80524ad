//! A column being filled.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, NullBufferBuilder, StringArray,
    UInt64Array, new_null_array,
};
use arrow::buffer::{Buffer, OffsetBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use serde_json::Value;
use shoal_kernel::limits::VALUE_BYTES_MAX;

use super::TargetColumn;
use super::cell::{Cell, Scalar, convert, integer_bounds};

/// Values of one column, in the widest form of their family; the array gets its exact type at the end.
pub(super) struct ColumnBuilder {
    data_type: DataType,
    /// Whether a row may leave it out or give null.
    optional: bool,
    /// Whether some row has given a value or null.
    present: bool,
    /// Rows so far.
    rows: usize,
    values: Values,
    nulls: NullBufferBuilder,
}

/// Null takes a place here, too.
enum Values {
    Bool(Vec<bool>),
    /// With the least and the greatest that a number may be.
    Integer(Vec<i64>, i64, i64),
    Unsigned(Vec<u64>),
    Float(Vec<f64>),
    Decimal(Vec<i128>),
    Text(Bytes),
    Binary(Bytes),
    Nested(Vec<Value>),
    /// A type that text cannot carry: nothing but nulls reaches it.
    Nulls,
}

/// Values of any length, one after the other.
struct Bytes {
    bytes: Vec<u8>,
    /// Where each ends, after a zero.
    ends: Vec<i32>,
}

impl Bytes {
    fn new() -> Self {
        Self { bytes: Vec::new(), ends: vec![0] }
    }

    /// The rows of a batch are bounded in bytes ([`super::BATCH_BYTES_MAX`]), so that the ends fit.
    fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.ends.push(self.bytes.len() as i32);
    }

    fn truncate(&mut self, rows: usize) {
        self.ends.truncate(rows + 1);
        self.bytes.truncate(self.ends.last().map_or(0, |end| *end as usize));
    }

    fn finish(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let Self { bytes, ends } = std::mem::replace(self, Self::new());
        (OffsetBuffer::new(ends.into()), bytes.into())
    }
}

impl ColumnBuilder {
    pub(super) fn new(column: &TargetColumn) -> Self {
        let data_type = &column.data_type;
        let values = match data_type {
            DataType::Boolean => Values::Bool(Vec::new()),
            DataType::Timestamp(..) => Values::Integer(Vec::new(), i64::MIN, i64::MAX),
            // No number is taken for these.
            DataType::Date32 | DataType::Time64(_) => Values::Integer(Vec::new(), i64::MAX, i64::MIN),
            DataType::UInt64 => Values::Unsigned(Vec::new()),
            DataType::Float32 | DataType::Float64 => Values::Float(Vec::new()),
            DataType::Decimal128(..) => Values::Decimal(Vec::new()),
            DataType::Utf8 => Values::Text(Bytes::new()),
            DataType::Binary => Values::Binary(Bytes::new()),
            _ if data_type.is_nested() => Values::Nested(Vec::new()),
            _ => match integer_bounds(data_type) {
                Some((least, greatest)) => Values::Integer(Vec::new(), least, greatest),
                None => Values::Nulls,
            },
        };
        let optional = column.nullable || column.filled;
        let nulls = NullBufferBuilder::new(0);
        Self { data_type: data_type.clone(), optional, present: false, rows: 0, values, nulls }
    }

    /// Rows so far.
    pub(super) const fn len(&self) -> usize {
        self.rows
    }

    /// Whether a row, also one of an earlier batch, has given a value or null.
    pub(super) const fn present(&self) -> bool {
        self.present
    }

    /// Takes a value if it is good and can be told to be so at once. What is left may be good as well.
    pub(super) fn append_good(&mut self, cell: Cell<'_>) -> Option<()> {
        match (&mut self.values, cell) {
            (_, Cell::Null) => return self.optional.then(|| self.append(Scalar::Null)),
            (Values::Text(values), Cell::Text(value)) if value.len() <= VALUE_BYTES_MAX => {
                values.push(value.as_bytes())
            }
            (Values::Integer(values, least, greatest), Cell::Integer(value))
                if (*least..=*greatest).contains(&value) =>
            {
                values.push(value);
            }
            (_, cell) => {
                let scalar = convert(cell, &self.data_type).ok()?;
                // Whether a nested value fits is only known once an array has been made of it.
                let told = !matches!(scalar, Scalar::Nested(_)) && scalar.bytes() <= VALUE_BYTES_MAX;
                return told.then(|| self.append(scalar));
            }
        }
        self.given();
        Some(())
    }

    /// A value has been appended.
    fn given(&mut self) {
        self.nulls.append_non_null();
        self.rows += 1;
        self.present = true;
    }

    /// Takes a row that does not name the column, if it may do so.
    pub(super) fn leave_out(&mut self) -> Option<()> {
        self.optional.then(|| self.append_null())
    }

    /// Forgets all rows but the first.
    pub(super) fn truncate(&mut self, rows: usize) {
        self.nulls.truncate(rows);
        self.rows = self.rows.min(rows);
        match &mut self.values {
            Values::Bool(values) => values.truncate(rows),
            Values::Integer(values, ..) => values.truncate(rows),
            Values::Unsigned(values) => values.truncate(rows),
            Values::Float(values) => values.truncate(rows),
            Values::Decimal(values) => values.truncate(rows),
            Values::Text(values) | Values::Binary(values) => values.truncate(rows),
            Values::Nested(values) => values.truncate(rows),
            Values::Nulls => {}
        }
    }

    /// Appends a value that was converted for this column's type; any other counts as null.
    pub(super) fn append(&mut self, scalar: Scalar<'_>) {
        match (&mut self.values, scalar) {
            (Values::Bool(values), Scalar::Bool(value)) => values.push(value),
            (Values::Integer(values, ..), Scalar::Integer(value)) => values.push(value),
            (Values::Unsigned(values), Scalar::Unsigned(value)) => values.push(value),
            (Values::Float(values), Scalar::Float(value)) => values.push(value),
            (Values::Decimal(values), Scalar::Decimal(value)) => values.push(value),
            (Values::Text(values), Scalar::Text(value)) => values.push(value.as_bytes()),
            (Values::Binary(values), Scalar::Bytes(value)) => values.push(&value),
            (Values::Nested(values), Scalar::Nested(value)) => values.push(value),
            _ => {
                self.append_null();
                self.present = true;
                return;
            }
        }
        self.given();
    }

    /// Appends null for a row that does not name the column.
    pub(super) fn append_null(&mut self) {
        match &mut self.values {
            Values::Bool(values) => values.push(false),
            Values::Integer(values, ..) => values.push(0),
            Values::Unsigned(values) => values.push(0),
            Values::Float(values) => values.push(0.0),
            Values::Decimal(values) => values.push(0),
            Values::Text(values) | Values::Binary(values) => values.push(&[]),
            Values::Nested(values) => values.push(Value::Null),
            Values::Nulls => {}
        }
        self.nulls.append_null();
        self.rows += 1;
    }

    /// The column so far; the builder is empty afterwards.
    pub(super) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let rows = std::mem::take(&mut self.rows);
        let nulls = self.nulls.finish();
        let array: ArrayRef = match &mut self.values {
            Values::Bool(values) => Arc::new(BooleanArray::new(std::mem::take(values).into(), nulls)),
            Values::Integer(values, ..) => Arc::new(Int64Array::new(std::mem::take(values).into(), nulls)),
            Values::Unsigned(values) => Arc::new(UInt64Array::new(std::mem::take(values).into(), nulls)),
            Values::Float(values) => Arc::new(Float64Array::new(std::mem::take(values).into(), nulls)),
            Values::Decimal(values) => {
                let array = Decimal128Array::new(std::mem::take(values).into(), nulls);
                Arc::new(array.with_data_type(self.data_type.clone()))
            }
            Values::Text(values) => {
                let (ends, bytes) = values.finish();
                Arc::new(StringArray::try_new(ends, bytes, nulls)?)
            }
            Values::Binary(values) => {
                let (ends, bytes) = values.finish();
                Arc::new(BinaryArray::try_new(ends, bytes, nulls)?)
            }
            Values::Nested(values) => return nested(&self.data_type, &std::mem::take(values)),
            Values::Nulls => return Ok(new_null_array(&self.data_type, rows)),
        };
        match &self.data_type {
            exact if array.data_type() == exact => Ok(array),
            // Days are 32 bits wide; only the narrower type is taken for days.
            DataType::Date32 => cast(&cast(&array, &DataType::Int32)?, &DataType::Date32),
            other => cast(&array, other),
        }
    }
}

/// Lists and structs out of JSON values; says which value does not fit only by failing.
pub(super) fn nested(data_type: &DataType, values: &[Value]) -> Result<ArrayRef, ArrowError> {
    if values.is_empty() {
        return Ok(new_null_array(data_type, 0));
    }
    let mut decoder = ReaderBuilder::new_with_field(Field::new("value", data_type.clone(), true))
        .with_batch_size(values.len())
        .with_strict_mode(true)
        .build_decoder()?;
    decoder.serialize(values)?;
    let batch = decoder.flush()?.ok_or_else(|| ArrowError::JsonError("the values gave no rows".into()))?;
    Ok(batch.column(0).clone())
}
