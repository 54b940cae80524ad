//! One value on its way into a column: first checked, then appended, so that a row is taken whole or not at all.

use std::borrow::Cow;

use arrow::array::types::{Date32Type, Decimal128Type, Time64MicrosecondType};
use arrow::compute::kernels::cast_utils::{Parser, parse_decimal, string_to_datetime};
use arrow::datatypes::{DataType, TimeUnit};
use chrono::{NaiveDate, Utc};
use serde_json::Value;

use super::RowErrorCode;
use super::column::nested;

/// A value as it stands in the body.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell<'a> {
    Null,
    Bool(bool),
    Integer(i64),
    Unsigned(u64),
    Float(f64),
    /// A JSON string.
    Text(Cow<'a, str>),
    /// A field of a CSV record: any type's text.
    Field(&'a str),
    /// A JSON array or object.
    Nested(Value),
}

/// A value as its column holds it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    /// Integers up to 64 bits, dates as days, times and time stamps as microseconds.
    Integer(i64),
    Unsigned(u64),
    Float(f64),
    Decimal(i128),
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
    Nested(Value),
}

impl Scalar<'_> {
    /// Bytes of text, or of bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

/// Why a value was not taken.
pub(super) type Refusal = (RowErrorCode, String);

/// Bounds of an integer type, if it is one that an `i64` holds.
pub(super) fn integer_bounds(data_type: &DataType) -> Option<(i64, i64)> {
    Some(match data_type {
        DataType::Int8 => (i8::MIN.into(), i8::MAX.into()),
        DataType::Int16 => (i16::MIN.into(), i16::MAX.into()),
        DataType::Int32 => (i32::MIN.into(), i32::MAX.into()),
        DataType::Int64 => (i64::MIN, i64::MAX),
        DataType::UInt8 => (0, u8::MAX.into()),
        DataType::UInt16 => (0, u16::MAX.into()),
        DataType::UInt32 => (0, u32::MAX.into()),
        _ => return None,
    })
}

/// Makes a value fit its column's type.
pub(super) fn convert<'a>(cell: Cell<'a>, data_type: &DataType) -> Result<Scalar<'a>, Refusal> {
    if cell == Cell::Null {
        return Ok(Scalar::Null);
    }
    if let Some((least, greatest)) = integer_bounds(data_type) {
        return integer(cell, data_type, least, greatest);
    }
    match data_type {
        DataType::UInt64 => match cell {
            Cell::Unsigned(value) => Ok(Scalar::Unsigned(value)),
            Cell::Integer(value) => {
                u64::try_from(value).map(Scalar::Unsigned).map_err(|_| out_of_range(&value, data_type))
            }
            Cell::Field(text) => text.trim().parse().map(Scalar::Unsigned).map_err(|_| refused(&cell, data_type)),
            _ => Err(refused(&cell, data_type)),
        },
        DataType::Boolean => match cell {
            Cell::Bool(value) => Ok(Scalar::Bool(value)),
            Cell::Field(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "t" | "yes" | "1" => Ok(Scalar::Bool(true)),
                "false" | "f" | "no" | "0" => Ok(Scalar::Bool(false)),
                _ => Err(refused(&cell, data_type)),
            },
            _ => Err(refused(&cell, data_type)),
        },
        DataType::Float32 | DataType::Float64 => float(cell, data_type),
        DataType::Utf8 => match cell {
            Cell::Text(text) => Ok(Scalar::Text(text)),
            Cell::Field(text) => Ok(Scalar::Text(Cow::Borrowed(text))),
            _ => Err(refused(&cell, data_type)),
        },
        DataType::Binary => {
            let bytes = text_of(&cell).and_then(hexadecimal);
            bytes.map(Scalar::Bytes).ok_or_else(|| refused(&cell, data_type))
        }
        DataType::Date32 => {
            let days = text_of(&cell).and_then(|text| Date32Type::parse(text.trim()));
            days.map(|days| Scalar::Integer(days.into())).ok_or_else(|| refused(&cell, data_type))
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            let micros = text_of(&cell).and_then(|text| Time64MicrosecondType::parse(text.trim()));
            micros.map(Scalar::Integer).ok_or_else(|| refused(&cell, data_type))
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => match (&cell, text_of(&cell)) {
            (Cell::Integer(micros), _) => Ok(Scalar::Integer(*micros)),
            (_, Some(text)) => usual_time(text)
                .or_else(|| Some(string_to_datetime(&Utc, text.trim()).ok()?.timestamp_micros()))
                .map(Scalar::Integer)
                .ok_or_else(|| refused(&cell, data_type)),
            _ => Err(refused(&cell, data_type)),
        },
        DataType::Decimal128(precision, scale) => decimal(cell, data_type, *precision, *scale),
        _ if data_type.is_nested() => match cell {
            Cell::Nested(value) => Ok(Scalar::Nested(value)),
            Cell::Field(text) => serde_json::from_str(text).map(Scalar::Nested).map_err(|_| refused(&cell, data_type)),
            _ => Err(refused(&cell, data_type)),
        },
        _ => Err((
            RowErrorCode::WrongType,
            format!(
                "columns of type {} are not taken from text; send Arrow or Parquet",
                crate::format::type_name(data_type)
            ),
        )),
    }
}

/// Microseconds of a time stamp in the form `2001-02-03 04:05:06.789`, if it is one: with a `T` or a space, up to six decimals
/// or none, with or without a `Z`. Most are.
fn usual_time(text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').unwrap_or(text).as_bytes();
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + u32::from(byte - b'0')))
    };
    let (&[y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1, b' ' | b'T', h0, h1, b':', n0, n1, b':', s0, s1], decimals) =
        text.split_first_chunk::<19>()?
    else {
        return None;
    };
    let micros = match decimals {
        [] => 0,
        [b'.', decimals @ ..] if (1..=6).contains(&decimals.len()) => {
            number(decimals)? * 10u32.pow(6 - decimals.len() as u32)
        }
        _ => return None,
    };
    let year = i32::try_from(number(&[y0, y1, y2, y3])?).ok()?;
    let date = NaiveDate::from_ymd_opt(year, number(&[m0, m1])?, number(&[d0, d1])?)?;
    let time = date.and_hms_micro_opt(number(&[h0, h1])?, number(&[n0, n1])?, number(&[s0, s1])?, micros)?;
    Some(time.and_utc().timestamp_micros())
}

/// The same for a column of a schemaless table: text takes every value, in its JSON form, also inside lists and structs.
pub(super) fn convert_any<'a>(cell: Cell<'a>, data_type: &DataType) -> Result<Scalar<'a>, Refusal> {
    match (cell, data_type) {
        (Cell::Nested(value), data_type) if data_type.is_nested() => Ok(Scalar::Nested(softened(value, data_type))),
        (cell @ (Cell::Null | Cell::Text(_) | Cell::Field(_)), DataType::Utf8) => convert(cell, data_type),
        (cell, DataType::Utf8) => Ok(Scalar::Text(Cow::Owned(match cell {
            Cell::Bool(value) => value.to_string(),
            Cell::Integer(value) => value.to_string(),
            Cell::Unsigned(value) => value.to_string(),
            Cell::Float(value) => Value::from(value).to_string(),
            Cell::Nested(value) => value.to_string(),
            Cell::Null | Cell::Text(_) | Cell::Field(_) => String::new(),
        }))),
        (cell, data_type) => convert(cell, data_type),
    }
}

/// Whether a column of a schemaless table takes a value as it is.
pub(super) fn takes(cell: &Cell<'_>, data_type: &DataType) -> bool {
    match convert_any(cell.clone(), data_type) {
        Ok(Scalar::Nested(value)) => nested(data_type, std::slice::from_ref(&value)).is_ok(),
        converted => converted.is_ok(),
    }
}

/// Makes text of what stands where a type has text, and leaves out fields that hold nothing and that the type does not have.
fn softened(value: Value, data_type: &DataType) -> Value {
    match (value, data_type) {
        (text @ (Value::Null | Value::String(_)), _) => text,
        (other, DataType::Utf8) => Value::String(other.to_string()),
        (Value::Array(items), DataType::List(item)) => {
            Value::Array(items.into_iter().map(|value| softened(value, item.data_type())).collect())
        }
        (Value::Object(fields), DataType::Struct(known)) => {
            let field = |(name, value): (String, Value)| match known.iter().find(|field| *field.name() == name) {
                Some(field) => Some((name, softened(value, field.data_type()))),
                None => (!value.is_null()).then_some((name, value)),
            };
            Value::Object(fields.into_iter().filter_map(field).collect())
        }
        (other, _) => other,
    }
}

fn integer<'a>(cell: Cell<'a>, data_type: &DataType, least: i64, greatest: i64) -> Result<Scalar<'a>, Refusal> {
    let value = match cell {
        Cell::Integer(value) => value,
        Cell::Unsigned(value) => i64::try_from(value).map_err(|_| out_of_range(&value, data_type))?,
        // 3.0 is the integer 3; beyond 2^53 a double no longer names one integer.
        Cell::Float(value) if value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0 => value as i64,
        Cell::Field(text) => match text.trim().parse::<i64>() {
            Ok(value) => value,
            Err(error) => {
                use std::num::IntErrorKind::{NegOverflow, PosOverflow};
                return Err(match error.kind() {
                    PosOverflow | NegOverflow => out_of_range(&text, data_type),
                    _ => refused(&cell, data_type),
                });
            }
        },
        _ => return Err(refused(&cell, data_type)),
    };
    if (least..=greatest).contains(&value) { Ok(Scalar::Integer(value)) } else { Err(out_of_range(&value, data_type)) }
}

fn float<'a>(cell: Cell<'a>, data_type: &DataType) -> Result<Scalar<'a>, Refusal> {
    let value = match &cell {
        Cell::Float(value) => *value,
        Cell::Integer(value) => *value as f64,
        Cell::Unsigned(value) => *value as f64,
        Cell::Field(text) => text.trim().parse().map_err(|_| refused(&cell, data_type))?,
        // JSON has no words for these.
        Cell::Text(text) => match text.as_ref() {
            "NaN" => f64::NAN,
            "Infinity" => f64::INFINITY,
            "-Infinity" => f64::NEG_INFINITY,
            _ => return Err(refused(&cell, data_type)),
        },
        _ => return Err(refused(&cell, data_type)),
    };
    if *data_type == DataType::Float32 && value.is_finite() && !(value as f32).is_finite() {
        return Err(out_of_range(&value, data_type));
    }
    Ok(Scalar::Float(value))
}

fn decimal<'a>(cell: Cell<'a>, data_type: &DataType, precision: u8, scale: i8) -> Result<Scalar<'a>, Refusal> {
    let text = match &cell {
        // The shortest text that reads back as the double: what was typed, up to 15 digits.
        Cell::Float(value) if value.abs() * 10f64.powi(scale.into()) < 1e15 => Cow::Owned(value.to_string()),
        Cell::Float(value) => {
            let message = format!("the number {value} may have lost digits: with more than 15, write it as a string");
            return Err((RowErrorCode::OutOfRange, message));
        }
        Cell::Integer(value) => Cow::Owned(value.to_string()),
        Cell::Unsigned(value) => Cow::Owned(value.to_string()),
        _ => Cow::Borrowed(text_of(&cell).ok_or_else(|| refused(&cell, data_type))?.trim()),
    };
    let looks_like_a_number = text.bytes().any(|byte| byte.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e' | b'E'));
    if !looks_like_a_number {
        return Err(refused(&cell, data_type));
    }
    parse_decimal::<Decimal128Type>(&text, precision, scale)
        .map(Scalar::Decimal)
        .map_err(|_| out_of_range(&text, data_type))
}

fn text_of<'c>(cell: &'c Cell<'_>) -> Option<&'c str> {
    match cell {
        Cell::Text(text) => Some(text),
        Cell::Field(text) => Some(text),
        _ => None,
    }
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x").unwrap_or(text).as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    digits.chunks(2).map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()).collect()
}

fn refused(cell: &Cell<'_>, data_type: &DataType) -> Refusal {
    let given = match cell {
        Cell::Null => "null".into(),
        Cell::Bool(value) => format!("the boolean {value}"),
        Cell::Integer(value) => format!("the number {value}"),
        Cell::Unsigned(value) => format!("the number {value}"),
        Cell::Float(value) => format!("the number {value}"),
        Cell::Text(text) => format!("the string \"{}\"", shortened(text)),
        Cell::Field(text) => format!("'{}'", shortened(text)),
        Cell::Nested(Value::Array(_)) => "an array".into(),
        Cell::Nested(_) => "an object".into(),
    };
    (RowErrorCode::WrongType, format!("{given} is no {}", crate::format::type_name(data_type)))
}

fn out_of_range(value: &impl std::fmt::Display, data_type: &DataType) -> Refusal {
    (RowErrorCode::OutOfRange, format!("{value} does not fit {}", crate::format::type_name(data_type)))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROS: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

    #[test]
    fn takes_what_fits() {
        for (cell, data_type, scalar) in [
            (Cell::Integer(5), DataType::Int8, Scalar::Integer(5)),
            (Cell::Float(3.0), DataType::Int32, Scalar::Integer(3)),
            (Cell::Field(" -7 "), DataType::Int64, Scalar::Integer(-7)),
            (Cell::Unsigned(u64::MAX), DataType::UInt64, Scalar::Unsigned(u64::MAX)),
            (Cell::Integer(1), DataType::Float64, Scalar::Float(1.0)),
            (Cell::Float(1.1), DataType::Decimal128(10, 2), Scalar::Decimal(110)),
            (Cell::Text("12.345".into()), DataType::Decimal128(10, 3), Scalar::Decimal(12345)),
            (Cell::Text("1970-01-02".into()), DataType::Date32, Scalar::Integer(1)),
            (Cell::Text("1970-01-01T00:00:01Z".into()), MICROS, Scalar::Integer(1_000_000)),
            (Cell::Text("1970-01-01T01:00:00.5+01:00".into()), MICROS, Scalar::Integer(500_000)),
            (Cell::Field("1970-01-01 00:00:02"), MICROS, Scalar::Integer(2_000_000)),
            (Cell::Text("0aFf".into()), DataType::Binary, Scalar::Bytes(vec![10, 255])),
            (Cell::Field("T"), DataType::Boolean, Scalar::Bool(true)),
            (Cell::Null, DataType::Int8, Scalar::Null),
        ] {
            assert_eq!(convert(cell.clone(), &data_type), Ok(scalar), "{cell:?} as {data_type}");
        }
    }

    #[test]
    fn usual_times_are_what_they_are_in_any_form() {
        for text in [
            "2001-02-03 04:05:06",
            "2001-02-03T04:05:06Z",
            "1969-12-31T23:59:59.999999Z",
            "2001-02-03 04:05:06.7",
            "0000-01-01 00:00:00.000001",
            "9999-12-31 23:59:59.5Z",
            "2000-02-29 00:00:00",
        ] {
            let time = usual_time(text);
            assert!(time.is_some(), "{text}");
            assert_eq!(time, string_to_datetime(&Utc, text).ok().map(|time| time.timestamp_micros()), "{text}");
        }
        for text in [
            "2001-02-30 04:05:06",
            "2001-02-03 24:05:06",
            "2001-02-03 04:05:60",
            "2001-02-03 04:05:06.",
            "2001-02-03 04:05:06.1234567",
            "2001-02-03 04:05:06+01:00",
            "2001-02-03",
            "+001-02-03 04:05:06",
            "2001-02-03 04:05:0\u{e9}",
        ] {
            assert_eq!(usual_time(text), None, "{text}");
        }
    }

    #[test]
    fn refuses_what_does_not() {
        use RowErrorCode::{OutOfRange, WrongType};
        for (cell, data_type, code) in [
            (Cell::Integer(128), DataType::Int8, OutOfRange),
            (Cell::Integer(-1), DataType::UInt64, OutOfRange),
            (Cell::Float(1.5), DataType::Int32, WrongType),
            (Cell::Text("5".into()), DataType::Int32, WrongType),
            (Cell::Field("99999999999999999999"), DataType::Int64, OutOfRange),
            (Cell::Integer(5), DataType::Utf8, WrongType),
            (Cell::Text("true".into()), DataType::Boolean, WrongType),
            (Cell::Text("soon".into()), MICROS, WrongType),
            (Cell::Text("2001-02-30".into()), DataType::Date32, WrongType),
            (Cell::Float(1e40), DataType::Float32, OutOfRange),
            (Cell::Text("123456789.00".into()), DataType::Decimal128(5, 2), OutOfRange),
            (Cell::Text("abc".into()), DataType::Decimal128(5, 2), WrongType),
            (Cell::Nested(serde_json::json!([1])), DataType::Int32, WrongType),
        ] {
            assert_eq!(
                convert(cell.clone(), &data_type).map_err(|refusal| refusal.0),
                Err(code),
                "{cell:?} as {data_type}"
            );
        }
    }
}
