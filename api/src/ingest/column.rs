//! A column being filled.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Decimal128Builder, Float64Builder, Int64Builder, StringBuilder,
    UInt64Builder, new_null_array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder;
use serde_json::Value;

use super::cell::{Scalar, integer_bounds};

/// Values of one column, in the widest form of their family; the array gets its exact type at the end.
pub(super) struct ColumnBuilder {
    data_type: DataType,
    values: Values,
}

enum Values {
    Bool(BooleanBuilder),
    Integer(Int64Builder),
    Unsigned(UInt64Builder),
    Float(Float64Builder),
    Decimal(Decimal128Builder),
    Text(StringBuilder),
    Binary(BinaryBuilder),
    Nested(Vec<Value>),
    /// A type that text cannot carry: nothing but nulls reaches it.
    Nulls(usize),
}

impl ColumnBuilder {
    pub(super) fn new(data_type: &DataType) -> Self {
        let values = match data_type {
            DataType::Boolean => Values::Bool(BooleanBuilder::new()),
            DataType::Date32 | DataType::Time64(_) | DataType::Timestamp(..) => Values::Integer(Int64Builder::new()),
            DataType::UInt64 => Values::Unsigned(UInt64Builder::new()),
            DataType::Float32 | DataType::Float64 => Values::Float(Float64Builder::new()),
            DataType::Decimal128(..) => Values::Decimal(Decimal128Builder::new().with_data_type(data_type.clone())),
            DataType::Utf8 => Values::Text(StringBuilder::new()),
            DataType::Binary => Values::Binary(BinaryBuilder::new()),
            _ if integer_bounds(data_type).is_some() => Values::Integer(Int64Builder::new()),
            _ if data_type.is_nested() => Values::Nested(Vec::new()),
            _ => Values::Nulls(0),
        };
        Self { data_type: data_type.clone(), values }
    }

    /// Appends a value that was converted for this column's type; any other counts as null.
    pub(super) fn append(&mut self, scalar: Scalar<'_>) {
        match (&mut self.values, scalar) {
            (Values::Bool(values), Scalar::Bool(value)) => values.append_value(value),
            (Values::Bool(values), _) => values.append_null(),
            (Values::Integer(values), Scalar::Integer(value)) => values.append_value(value),
            (Values::Integer(values), _) => values.append_null(),
            (Values::Unsigned(values), Scalar::Unsigned(value)) => values.append_value(value),
            (Values::Unsigned(values), _) => values.append_null(),
            (Values::Float(values), Scalar::Float(value)) => values.append_value(value),
            (Values::Float(values), _) => values.append_null(),
            (Values::Decimal(values), Scalar::Decimal(value)) => values.append_value(value),
            (Values::Decimal(values), _) => values.append_null(),
            (Values::Text(values), Scalar::Text(value)) => values.append_value(value),
            (Values::Text(values), _) => values.append_null(),
            (Values::Binary(values), Scalar::Bytes(value)) => values.append_value(value),
            (Values::Binary(values), _) => values.append_null(),
            (Values::Nested(values), Scalar::Nested(value)) => values.push(value),
            (Values::Nested(values), _) => values.push(Value::Null),
            (Values::Nulls(count), _) => *count += 1,
        }
    }

    /// The column so far; the builder is empty afterwards.
    pub(super) fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let array: ArrayRef = match &mut self.values {
            Values::Bool(values) => Arc::new(values.finish()),
            Values::Integer(values) => Arc::new(values.finish()),
            Values::Unsigned(values) => Arc::new(values.finish()),
            Values::Float(values) => Arc::new(values.finish()),
            Values::Decimal(values) => Arc::new(values.finish()),
            Values::Text(values) => Arc::new(values.finish()),
            Values::Binary(values) => Arc::new(values.finish()),
            Values::Nested(values) => return nested(&self.data_type, &std::mem::take(values)),
            Values::Nulls(count) => return Ok(new_null_array(&self.data_type, std::mem::take(count))),
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
