//! Row keys in their order-preserving form, and single values out of Arrow arrays.

use arrow::array::cast::AsArray;
use arrow::array::types::{
    Date32Type, Date64Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, TimeUnit};
use shoal_kernel::key::{encode_bytes, encode_decimal, encode_float, encode_int, encode_null, encode_uint};
use shoal_kernel::{Datum, Error, ErrorCode, Result};

/// The keys of the rows of a batch, end to end in one buffer. They compare by `memcmp` as the values compare.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedKeys {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl EncodedKeys {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The key of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn get(&self, row: usize) -> &[u8] {
        let start = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        &self.bytes[start..self.ends[row] as usize]
    }

    /// The keys, by row.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> + DoubleEndedIterator {
        (0..self.len()).map(|row| self.get(row))
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.ends.len() * 4
    }

    /// Appends a key that `write` puts together. Fails if all keys together pass 4 GiB.
    pub(crate) fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        write(&mut self.bytes);
        let end = u32::try_from(self.bytes.len())
            .map_err(|_| Error::new(ErrorCode::LimitExceeded, "the keys of one batch take more than 4 GiB"))?;
        self.ends.push(end);
        Ok(())
    }
}

/// The order-preserving keys of all rows, from the columns at the given places, most significant first.
///
/// # Errors
/// [`ErrorCode::Unsupported`] if a column is of a type that cannot be a key; [`ErrorCode::Internal`] if there is no such
/// column.
pub fn encode_keys(batch: &RecordBatch, columns: &[usize]) -> Result<EncodedKeys> {
    let column = |&column: &usize| {
        let array = batch.columns().get(column).cloned();
        array.ok_or_else(|| Error::internal(format!("there is no key column {column}")))
    };
    encode_columns(&columns.iter().map(column).collect::<Result<Vec<_>>>()?, batch.num_rows())
}

/// The keys of so many rows, from the columns in key order.
pub(crate) fn encode_columns(columns: &[ArrayRef], rows: usize) -> Result<EncodedKeys> {
    let values = columns.iter().map(|column| Values::of(column)).collect::<Result<Vec<_>>>()?;
    let mut keys = EncodedKeys::default();
    keys.bytes.reserve(rows * 10 * columns.len());
    keys.ends.reserve(rows);
    for row in 0..rows {
        keys.push_with(|out| values.iter().for_each(|column| column.encode(row, out)))?;
    }
    Ok(keys)
}

/// The value at a place.
///
/// # Errors
/// [`ErrorCode::Unsupported`] if the array's type has no [`Datum`].
pub fn datum_at(array: &dyn Array, row: usize) -> Result<Datum> {
    Ok(Values::of(array)?.datum(row))
}

/// The sum of a column's values, NULLs left out; `None` if it is not one of integers. No number of rows that a file can have
/// goes beyond 128 bits.
pub(crate) fn sum_of(array: &dyn Array) -> Option<i128> {
    fn sum<T: Into<i128>>(array: &dyn Array, at: &dyn Fn(usize) -> T) -> i128 {
        (0..array.len()).filter(|&row| array.is_valid(row)).map(|row| at(row).into()).sum()
    }
    let values = Values::of(array).ok().filter(|_| array.data_type().is_integer())?;
    match &values.kind {
        Kind::Int(at) => Some(sum(array, at)),
        Kind::UInt(at) => Some(sum(array, at)),
        _ => None,
    }
}

/// Bytes that a value of that type takes in an encoded key, without its tag; `None` for text and bytes.
pub(crate) fn encoded_width(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Boolean => Some(1),
        DataType::Decimal128(_, _) => Some(16),
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::FixedSizeBinary(_) => None,
        _ => Some(8),
    }
}

/// Whether a column of that type has an order that the engine knows: it may be a key, and it gets zone maps.
pub(crate) fn is_ordered(data_type: &DataType) -> bool {
    match data_type {
        DataType::Boolean
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal128(_, _)
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::FixedSizeBinary(_)
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(_, _) => true,
        other => other.is_integer(),
    }
}

/// One column, read by the kind of its values.
pub(crate) struct Values<'a> {
    array: &'a dyn Array,
    kind: Kind<'a>,
}

type At<'a, T> = Box<dyn Fn(usize) -> T + 'a>;

enum Kind<'a> {
    Bool(At<'a, bool>),
    Int(At<'a, i64>),
    UInt(At<'a, u64>),
    Float(At<'a, f64>),
    Decimal(At<'a, i128>),
    Text(At<'a, &'a str>),
    Bytes(At<'a, &'a [u8]>),
}

impl<'a> Values<'a> {
    pub(crate) fn of(array: &'a dyn Array) -> Result<Self> {
        macro_rules! primitive {
            ($kind:ident, $arrow:ty, $as:ty) => {{
                let array = array.as_primitive::<$arrow>();
                Kind::$kind(Box::new(move |row| <$as>::from(array.value(row))))
            }};
        }
        let kind = match array.data_type() {
            DataType::Boolean => {
                let array = array.as_boolean();
                Kind::Bool(Box::new(move |row| array.value(row)))
            }
            DataType::Int8 => primitive!(Int, Int8Type, i64),
            DataType::Int16 => primitive!(Int, Int16Type, i64),
            DataType::Int32 => primitive!(Int, Int32Type, i64),
            DataType::Int64 => primitive!(Int, Int64Type, i64),
            DataType::UInt8 => primitive!(UInt, UInt8Type, u64),
            DataType::UInt16 => primitive!(UInt, UInt16Type, u64),
            DataType::UInt32 => primitive!(UInt, UInt32Type, u64),
            DataType::UInt64 => primitive!(UInt, UInt64Type, u64),
            DataType::Float32 => primitive!(Float, Float32Type, f64),
            DataType::Float64 => primitive!(Float, Float64Type, f64),
            DataType::Decimal128(_, _) => primitive!(Decimal, Decimal128Type, i128),
            DataType::Date32 => primitive!(Int, Date32Type, i64),
            DataType::Date64 => primitive!(Int, Date64Type, i64),
            DataType::Time32(TimeUnit::Second) => primitive!(Int, Time32SecondType, i64),
            DataType::Time32(TimeUnit::Millisecond) => primitive!(Int, Time32MillisecondType, i64),
            DataType::Time64(TimeUnit::Microsecond) => primitive!(Int, Time64MicrosecondType, i64),
            DataType::Time64(TimeUnit::Nanosecond) => primitive!(Int, Time64NanosecondType, i64),
            DataType::Timestamp(TimeUnit::Second, _) => primitive!(Int, TimestampSecondType, i64),
            DataType::Timestamp(TimeUnit::Millisecond, _) => primitive!(Int, TimestampMillisecondType, i64),
            DataType::Timestamp(TimeUnit::Microsecond, _) => primitive!(Int, TimestampMicrosecondType, i64),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => primitive!(Int, TimestampNanosecondType, i64),
            DataType::Utf8 => {
                let array = array.as_string::<i32>();
                Kind::Text(Box::new(move |row| array.value(row)))
            }
            DataType::LargeUtf8 => {
                let array = array.as_string::<i64>();
                Kind::Text(Box::new(move |row| array.value(row)))
            }
            DataType::Utf8View => {
                let array = array.as_string_view();
                Kind::Text(Box::new(move |row| array.value(row)))
            }
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                Kind::Bytes(Box::new(move |row| array.value(row)))
            }
            DataType::LargeBinary => {
                let array = array.as_binary::<i64>();
                Kind::Bytes(Box::new(move |row| array.value(row)))
            }
            DataType::FixedSizeBinary(_) => {
                let array = array.as_fixed_size_binary();
                Kind::Bytes(Box::new(move |row| array.value(row)))
            }
            other => {
                let message = format!("a column of type {other} cannot be part of a key");
                return Err(Error::new(ErrorCode::Unsupported, message));
            }
        };
        Ok(Self { array, kind })
    }

    pub(crate) fn encode(&self, row: usize, out: &mut Vec<u8>) {
        if self.array.is_null(row) {
            return encode_null(out);
        }
        match &self.kind {
            Kind::Bool(at) => Datum::Bool(at(row)).encode_into(out),
            Kind::Int(at) => encode_int(at(row), out),
            Kind::UInt(at) => encode_uint(at(row), out),
            Kind::Float(at) => encode_float(at(row), out),
            Kind::Decimal(at) => encode_decimal(at(row), out),
            Kind::Text(at) => encode_bytes(at(row).as_bytes(), out),
            Kind::Bytes(at) => encode_bytes(at(row), out),
        }
    }

    pub(crate) fn datum(&self, row: usize) -> Datum {
        if self.array.is_null(row) {
            return Datum::Null;
        }
        match &self.kind {
            Kind::Bool(at) => Datum::Bool(at(row)),
            Kind::Int(at) => Datum::Int(at(row)),
            Kind::UInt(at) => Datum::UInt(at(row)),
            Kind::Float(at) => Datum::Float(at(row)),
            Kind::Decimal(at) => Datum::Decimal(at(row)),
            Kind::Text(at) => Datum::Text(at(row).to_owned()),
            Kind::Bytes(at) => Datum::Bytes(at(row).to_vec()),
        }
    }

    /// Rows of the smallest and the greatest value. `None` if all are NULL, or a NaN leaves them without an order.
    pub(crate) fn extremes(&self) -> Option<(usize, usize)> {
        fn pick<T: PartialOrd>(array: &dyn Array, at: &dyn Fn(usize) -> T) -> Option<(usize, usize)> {
            let mut rows = (0..array.len()).filter(|&row| array.is_valid(row));
            let first = rows.next()?;
            let (mut low, mut high) = ((first, at(first)), (first, at(first)));
            for row in rows {
                let value = at(row);
                if value < low.1 {
                    low = (row, value);
                } else if value > high.1 {
                    high = (row, value);
                }
            }
            Some((low.0, high.0))
        }
        match &self.kind {
            Kind::Bool(at) => pick(self.array, at),
            Kind::Int(at) => pick(self.array, at),
            Kind::UInt(at) => pick(self.array, at),
            Kind::Float(at) => {
                let has_nan = (0..self.array.len()).any(|row| self.array.is_valid(row) && at(row).is_nan());
                if has_nan { None } else { pick(self.array, at) }
            }
            Kind::Decimal(at) => pick(self.array, at),
            Kind::Text(at) => pick(self.array, at),
            Kind::Bytes(at) => pick(self.array, at),
        }
    }

    /// Feeds the bytes that stand for the value (without NULLs and order) to `feed`.
    pub(crate) fn with_bytes<R>(&self, row: usize, feed: impl FnOnce(&[u8]) -> R) -> R {
        match &self.kind {
            Kind::Bool(at) => feed(&[u8::from(at(row))]),
            Kind::Int(at) => feed(&at(row).to_le_bytes()),
            Kind::UInt(at) => feed(&at(row).to_le_bytes()),
            Kind::Float(at) => feed(&at(row).to_bits().to_le_bytes()),
            Kind::Decimal(at) => feed(&at(row).to_le_bytes()),
            Kind::Text(at) => feed(at(row).as_bytes()),
            Kind::Bytes(at) => feed(at(row)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array, ListArray, StringArray, TimestampMicrosecondArray};

    use super::*;

    #[test]
    fn keys_are_the_columns_end_to_end() {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("a", Arc::new(Int32Array::from(vec![Some(-1), None]))),
            ("b", Arc::new(StringArray::from(vec!["x\0y", ""]))),
            ("t", Arc::new(TimestampMicrosecondArray::from(vec![1, 2]).with_timezone("UTC"))),
        ];
        let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
        let keys = encode_keys(&batch, &[1, 0, 2]).unwrap();
        for row in 0..2 {
            let expected: Vec<u8> =
                [1, 0, 2].iter().flat_map(|&c| datum_at(batch.column(c), row).unwrap().encode()).collect();
            assert_eq!(keys.get(row), expected);
        }
        assert!(keys.get(1) < keys.get(0));
    }

    #[test]
    fn a_list_is_no_key() {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1)])]);
        assert_eq!(datum_at(&list, 0).unwrap_err().code(), ErrorCode::Unsupported);
        assert!(!is_ordered(list.data_type()));
    }
}
