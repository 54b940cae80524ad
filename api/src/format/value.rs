//! Rows as JSON: arrays by position or objects by name.
//!
//! Integers are numbers at every width (a reader that keeps numbers as doubles loses digits beyond 2^53), decimals are
//! strings (so that no reader rounds them), NaN and the infinities are null, dates and times are ISO 8601 strings, binary
//! values hexadecimal strings, lists arrays, structs objects.

use std::sync::{Arc, LazyLock};

use arrow::array::Array;
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{Encoder, EncoderFactory, EncoderOptions, NullableEncoder, make_encoder};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Value, json};
use shoal_kernel::Result;

use super::encoding;

/// How a row looks.
#[derive(Debug, Clone, Copy)]
pub enum RowForm<'a> {
    /// `[…]`, by position.
    Array,
    /// `{…}`, with these names, already written as JSON strings.
    Object(&'a [String]),
}

static OPTIONS: LazyLock<EncoderOptions> = LazyLock::new(|| {
    EncoderOptions::default().with_explicit_nulls(true).with_encoder_factory(Arc::new(DecimalsAsStrings))
});

/// `[{"name":…,"type":…},…]`.
pub fn columns_json(schema: &SchemaRef) -> Value {
    let column = |field: &FieldRef| json!({"name": field.name(), "type": super::type_name(field.data_type())});
    Value::Array(schema.fields().iter().map(column).collect())
}

/// Appends rows `first..first + length` with `separator` between them.
///
/// # Errors
/// A column's type has no JSON form.
pub fn write_rows(
    batch: &RecordBatch,
    rows: std::ops::Range<usize>,
    form: RowForm<'_>,
    separator: u8,
    out: &mut Vec<u8>,
) -> Result<()> {
    let schema = batch.schema();
    let mut columns = schema
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(field, array)| make_encoder(field, array, &OPTIONS))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(encoding)?;
    let (open, close) = match form {
        RowForm::Array => (b'[', b']'),
        RowForm::Object(_) => (b'{', b'}'),
    };
    let first = rows.start;
    for row in rows {
        if row > first {
            out.push(separator);
        }
        out.push(open);
        for (place, column) in columns.iter_mut().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            if let RowForm::Object(names) = form {
                out.extend_from_slice(names.get(place).map_or(b"\"\"", |name| name.as_bytes()));
                out.push(b':');
            }
            if column.is_null(row) {
                out.extend_from_slice(b"null");
            } else {
                column.encode(row, out);
            }
        }
        out.push(close);
    }
    Ok(())
}

#[derive(Debug)]
struct DecimalsAsStrings;

impl EncoderFactory for DecimalsAsStrings {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> std::result::Result<Option<NullableEncoder<'a>>, ArrowError> {
        let is_decimal = matches!(
            array.data_type(),
            DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..)
        );
        if !is_decimal {
            return Ok(None);
        }
        let digits = ArrayFormatter::try_new(array, &FormatOptions::new())?;
        Ok(Some(NullableEncoder::new(Box::new(QuotedDigits(digits)), array.nulls().cloned())))
    }
}

struct QuotedDigits<'a>(ArrayFormatter<'a>);

impl Encoder for QuotedDigits<'_> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        use std::io::Write;
        // Writing into memory does not fail, and digits need no escape.
        let _ = write!(out, "\"{}\"", self.0.value(row));
    }
}
