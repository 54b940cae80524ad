//! SQL constants as the kernel's key values.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use shoal_kernel::Datum;

/// Whether values of a type can be part of a key.
pub(crate) fn is_key_type(data_type: &DataType) -> bool {
    use DataType::{
        Binary, Boolean, Date32, Decimal128, Float32, Float64, Int8, Int16, Int32, Int64, Time64, Timestamp, UInt8,
        UInt16, UInt32, UInt64, Utf8,
    };
    matches!(
        data_type,
        Boolean
            | Int8
            | Int16
            | Int32
            | Int64
            | UInt8
            | UInt16
            | UInt32
            | UInt64
            | Float32
            | Float64
            | Decimal128(_, _)
            | Utf8
            | Binary
            | Date32
            | Time64(_)
            | Timestamp(_, _)
    )
}

/// The constant as a value of a column of `column_type`; `None` if it is NULL or of another type, so that comparing it with
/// the column's stored values would mean nothing.
pub(crate) fn datum(value: &ScalarValue, column_type: &DataType) -> Option<Datum> {
    if value.data_type() != *column_type || !is_key_type(column_type) {
        return None;
    }
    Some(match value {
        ScalarValue::Boolean(value) => Datum::Bool((*value)?),
        ScalarValue::Int8(value) => Datum::Int((*value)?.into()),
        ScalarValue::Int16(value) => Datum::Int((*value)?.into()),
        ScalarValue::Int32(value) | ScalarValue::Date32(value) => Datum::Int((*value)?.into()),
        ScalarValue::Int64(value)
        | ScalarValue::Time64Microsecond(value)
        | ScalarValue::Time64Nanosecond(value)
        | ScalarValue::TimestampSecond(value, _)
        | ScalarValue::TimestampMillisecond(value, _)
        | ScalarValue::TimestampMicrosecond(value, _)
        | ScalarValue::TimestampNanosecond(value, _) => Datum::Int((*value)?),
        ScalarValue::UInt8(value) => Datum::UInt((*value)?.into()),
        ScalarValue::UInt16(value) => Datum::UInt((*value)?.into()),
        ScalarValue::UInt32(value) => Datum::UInt((*value)?.into()),
        ScalarValue::UInt64(value) => Datum::UInt((*value)?),
        ScalarValue::Float32(value) => Datum::Float((*value)?.into()),
        ScalarValue::Float64(value) => Datum::Float((*value)?),
        ScalarValue::Decimal128(value, _, _) => Datum::Decimal((*value)?),
        ScalarValue::Utf8(value) => Datum::Text(value.clone()?),
        ScalarValue::Binary(value) => Datum::Bytes(value.clone()?),
        _ => return None,
    })
}
