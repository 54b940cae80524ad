//! What values look like, and the type of the column that takes them all.

use std::collections::BTreeMap;

use arrow::compute::kernels::cast_utils::string_to_datetime;
use arrow::datatypes::{DataType, Field, TimeUnit};
use chrono::Utc;
use serde_json::Value;
use shoal_kernel::limits::{INFERRED_FIELDS_MAX, INFERRED_NESTING_MAX};

use crate::ingest::cell::Cell;

/// The least text that is taken for a moment: `2026-01-31T12:00:00`.
const MOMENT_BYTES_MIN: usize = 19;

/// What the values of a column have in common.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// Nothing but nulls so far.
    Nothing,
    Bool,
    Integer,
    Double,
    /// A date with a time of day.
    Moment,
    Text,
    List(Box<Self>),
    /// Fields in the order in which they were met.
    Struct(Vec<(String, Self)>),
    /// Of a columnar body: a type that text does not show.
    Other(DataType),
}

impl Shape {
    pub(super) fn of_cell(cell: &Cell<'_>) -> Self {
        match cell {
            Cell::Null => Self::Nothing,
            Cell::Bool(_) => Self::Bool,
            Cell::Integer(_) => Self::Integer,
            Cell::Unsigned(_) | Cell::Float(_) => Self::Double,
            Cell::Text(text) => Self::of_string(text),
            Cell::Field(text) => Self::of_field(text),
            Cell::Nested(value) => Self::of_value(value),
        }
    }

    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::Nothing,
            Value::Bool(_) => Self::Bool,
            Value::Number(number) if number.is_i64() => Self::Integer,
            Value::Number(_) => Self::Double,
            Value::String(text) => Self::of_string(text),
            Value::Array(items) => {
                Self::List(Box::new(items.iter().map(Self::of_value).fold(Self::Nothing, Self::join)))
            }
            Value::Object(fields) => {
                Self::Struct(fields.iter().map(|(name, value)| (name.clone(), Self::of_value(value))).collect())
            }
        }
    }

    fn of_string(text: &str) -> Self {
        if is_moment(text) { Self::Moment } else { Self::Text }
    }

    /// Of a field that may be any type's text. What reads as a number and would not be written so stays text: 00501 is no
    /// number.
    fn of_field(text: &str) -> Self {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_plain = digits.starts_with(|first: char| first.is_ascii_digit())
            && !(digits.len() > 1 && digits.starts_with('0') && !digits.starts_with("0."));
        match text {
            "true" | "false" => Self::Bool,
            _ if is_plain && text.parse::<i64>().is_ok() => Self::Integer,
            // Digits alone that do not fit are an identifier rather than a quantity.
            _ if is_plain && !digits.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<f64>().is_ok() => {
                Self::Double
            }
            _ => Self::of_string(text),
        }
    }

    pub(super) fn of_type(data_type: &DataType) -> Self {
        match data_type {
            DataType::Null => Self::Nothing,
            DataType::Boolean => Self::Bool,
            // Not every one of these is a signed integer of 64 bits, and row by row it is seen whether this one is.
            other if other.is_integer() => Self::Integer,
            DataType::Float16 | DataType::Float32 | DataType::Float64 => Self::Double,
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => Self::Moment,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text,
            DataType::Dictionary(_, values) => Self::of_type(values),
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                Self::List(Box::new(Self::of_type(item.data_type())))
            }
            DataType::Struct(fields) => {
                let field = |field: &std::sync::Arc<Field>| (field.name().clone(), Self::of_type(field.data_type()));
                Self::Struct(fields.iter().map(field).collect())
            }
            DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                Self::Other(DataType::Binary)
            }
            DataType::Time32(_) | DataType::Time64(_) => Self::Other(DataType::Time64(TimeUnit::Microsecond)),
            other => Self::Other(other.clone()),
        }
    }

    /// What takes the values of both: int before double, and text before nothing at all.
    pub(super) fn join(self, other: Self) -> Self {
        match (self, other) {
            (one, Self::Nothing) | (Self::Nothing, one) => one,
            (one, other) if one == other => one,
            (Self::Integer, Self::Double) | (Self::Double, Self::Integer) => Self::Double,
            (Self::List(one), Self::List(other)) => Self::List(Box::new(one.join(*other))),
            (Self::Struct(one), Self::Struct(other)) => {
                let mut fields = one;
                let mut places: BTreeMap<String, usize> =
                    fields.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect();
                for (name, shape) in other {
                    match places.get(&name) {
                        Some(&place) => {
                            let known = std::mem::replace(&mut fields[place].1, Self::Nothing);
                            fields[place].1 = known.join(shape);
                        }
                        None => {
                            places.insert(name.clone(), fields.len());
                            fields.push((name, shape));
                        }
                    }
                }
                Self::Struct(fields)
            }
            _ => Self::Text,
        }
    }

    /// The type of a column for such values; `None` if there are none yet.
    pub(super) fn data_type(&self) -> Option<DataType> {
        (*self != Self::Nothing).then(|| self.typed(0))
    }

    fn typed(&self, depth: usize) -> DataType {
        match self {
            Self::Nothing | Self::Text => DataType::Utf8,
            Self::Bool => DataType::Boolean,
            Self::Integer => DataType::Int64,
            Self::Double => DataType::Float64,
            Self::Moment => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::Other(data_type) => data_type.clone(),
            Self::List(_) | Self::Struct(_) if depth >= INFERRED_NESTING_MAX => DataType::Utf8,
            Self::List(item) => DataType::List(Field::new_list_field(item.typed(depth + 1), true).into()),
            // A field of which nothing is known has no type; a struct without fields is no type either.
            Self::Struct(fields) => {
                let known = || fields.iter().filter(|(_, shape)| *shape != Self::Nothing);
                match known().next().is_none() || self.leaves() > INFERRED_FIELDS_MAX {
                    true => DataType::Utf8,
                    false => {
                        let field = |(name, shape): &(String, Self)| Field::new(name, shape.typed(depth + 1), true);
                        DataType::Struct(known().map(field).collect())
                    }
                }
            }
        }
    }

    fn leaves(&self) -> usize {
        match self {
            Self::List(item) => item.leaves(),
            Self::Struct(fields) => fields.iter().map(|(_, shape)| shape.leaves().saturating_add(1)).sum(),
            _ => 0,
        }
    }

    pub(super) fn is_nested(&self) -> bool {
        matches!(self, Self::List(_) | Self::Struct(_))
    }
}

fn is_moment(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= MOMENT_BYTES_MIN
        && bytes[0].is_ascii_digit()
        && (bytes[4], bytes[7]) == (b'-', b'-')
        && matches!(bytes[10], b'T' | b' ')
        && string_to_datetime(&Utc, text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(value: serde_json::Value) -> Shape {
        Shape::of_value(&value)
    }

    fn joined(values: &[serde_json::Value]) -> String {
        let all = values.iter().map(Shape::of_value).fold(Shape::Nothing, Shape::join);
        all.data_type().map_or("nothing".into(), |data_type| crate::format::type_name(&data_type))
    }

    #[test]
    fn the_narrowest_type_that_takes_all() {
        use serde_json::json;
        for (values, expected) in [
            (vec![json!(null)], "nothing"),
            (vec![json!(1), json!(null), json!(-7)], "BIGINT"),
            (vec![json!(1), json!(1.5)], "DOUBLE"),
            (vec![json!(u64::MAX)], "DOUBLE"),
            (vec![json!(true), json!(1)], "VARCHAR"),
            (vec![json!("2026-01-31T12:00:00Z"), json!("2026-01-31 12:00:00.5+01:00")], "TIMESTAMP"),
            (vec![json!("2026-01-31")], "VARCHAR"),
            (vec![json!("2026-01-31T12:00:00Z"), json!("soon")], "VARCHAR"),
            (vec![json!([1, null]), json!([0.5])], "DOUBLE[]"),
            (vec![json!([])], "VARCHAR[]"),
            (vec![json!({})], "VARCHAR"),
            (vec![json!({"a": 1}), json!([1])], "VARCHAR"),
        ] {
            assert_eq!(joined(&values), expected, "{values:?}");
        }
    }

    #[test]
    fn objects_are_put_together() {
        use serde_json::json;
        let both = shape(json!({"a": 1, "b": null})).join(shape(json!({"c": [{"d": "x"}], "a": 2.5})));
        let item = Field::new_list_field(DataType::Struct(vec![Field::new("d", DataType::Utf8, true)].into()), true);
        let expected =
            vec![Field::new("a", DataType::Float64, true), Field::new("c", DataType::List(item.into()), true)];
        assert_eq!(both.data_type(), Some(DataType::Struct(expected.into())));
        let deep = (0..INFERRED_NESTING_MAX + 5).fold(json!(1), |inner, _| json!([inner]));
        let mut data_type = shape(deep).data_type().unwrap();
        let mut levels = 0;
        while let DataType::List(item) = data_type {
            (data_type, levels) = (item.data_type().clone(), levels + 1);
        }
        assert_eq!((levels, data_type), (INFERRED_NESTING_MAX, DataType::Utf8));
    }

    #[test]
    fn fields_of_a_csv_are_what_they_would_be_written_as() {
        for (text, expected) in [
            ("12", Shape::Integer),
            ("-0.5", Shape::Double),
            ("1e3", Shape::Double),
            ("00501", Shape::Text),
            ("+49", Shape::Text),
            ("99999999999999999999", Shape::Text),
            ("true", Shape::Bool),
            ("T", Shape::Text),
            ("NaN", Shape::Text),
            ("2026-01-31T12:00:00", Shape::Moment),
        ] {
            assert_eq!(Shape::of_field(text), expected, "{text}");
        }
    }
}
