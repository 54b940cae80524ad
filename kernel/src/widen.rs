//! Which types a column may change to. Nothing is rewritten for it: old values are converted whenever they are read.

use arrow_schema::{DataType, TimeUnit};

/// Whether a column of one type may become one of the other: every value has a meaning there that does not depend on who reads
/// it. Integers beyond 2^53 are rounded when they are read as doubles; what is stored keeps every digit.
pub fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::{
        Boolean, Date32, Decimal128, Float32, Float64, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64,
    };
    let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
    match (from, to) {
        (from, to) if from == to => false,
        (Int8, Int16 | Int32 | Int64) | (Int16, Int32 | Int64) | (Int32, Int64) => true,
        (UInt8, UInt16 | UInt32 | UInt64) | (UInt16, UInt32 | UInt64) | (UInt32, UInt64) => true,
        (UInt8, Int16 | Int32 | Int64) | (UInt16, Int32 | Int64) | (UInt32, Int64) => true,
        (from, Float64) if from.is_integer() => true,
        (Float32, Float64) => true,
        (from, Decimal128(precision, scale)) if from.is_integer() => {
            integer_digits(from).is_some_and(|digits| i16::from(*precision) - i16::from(*scale) >= digits)
        }
        (Decimal128(digits, scale), Decimal128(more_digits, more_scale)) => {
            scale <= more_scale
                && i16::from(*digits) - i16::from(*scale) <= i16::from(*more_digits) - i16::from(*more_scale)
        }
        (Date32, to) if *to == micros => true,
        (Boolean | Float32 | Float64 | Decimal128(..) | Date32 | DataType::Time64(_), DataType::Utf8) => true,
        (DataType::Timestamp(TimeUnit::Microsecond, _), DataType::Utf8) => true,
        // As JSON.
        (DataType::List(_) | DataType::Struct(_), DataType::Utf8) => true,
        (DataType::List(from), DataType::List(to)) => is_or_widens(from.data_type(), to.data_type()),
        // Fields are matched by name; those that come new are NULL.
        (DataType::Struct(from), DataType::Struct(to)) => from.iter().all(|field| {
            to.iter().any(|wider| {
                wider.name() == field.name()
                    && wider.is_nullable()
                    && is_or_widens(field.data_type(), wider.data_type())
            })
        }),
        (from, DataType::Utf8) => from.is_integer(),
        _ => false,
    }
}

fn is_or_widens(from: &DataType, to: &DataType) -> bool {
    from == to || widens(from, to)
}

/// Decimal digits that hold every value of an integer type.
fn integer_digits(data_type: &DataType) -> Option<i16> {
    Some(match data_type {
        DataType::Int8 | DataType::UInt8 => 3,
        DataType::Int16 | DataType::UInt16 => 5,
        DataType::Int32 | DataType::UInt32 => 10,
        DataType::Int64 => 19,
        DataType::UInt64 => 20,
        _ => return None,
    })
}

/// The types that a column may change to, in SQL's words: for the error of one that it may not.
pub fn wider_types(from: &DataType) -> Vec<&'static str> {
    let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
    let candidates = [
        ("SMALLINT", DataType::Int16),
        ("INT", DataType::Int32),
        ("BIGINT", DataType::Int64),
        ("SMALLINT UNSIGNED", DataType::UInt16),
        ("INT UNSIGNED", DataType::UInt32),
        ("BIGINT UNSIGNED", DataType::UInt64),
        ("DOUBLE", DataType::Float64),
        ("TIMESTAMP", micros),
        ("VARCHAR", DataType::Utf8),
    ];
    let mut names: Vec<&'static str> =
        candidates.iter().filter(|(_, to)| widens(from, to)).map(|(name, _)| *name).collect();
    if from.is_integer() || matches!(from, DataType::Decimal128(..)) {
        names.push("a DECIMAL with room for every digit");
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_get_fields_and_lists_wider_items() {
        use DataType::{Float64, Int64, List, Struct, Utf8};
        let field = |name: &str, data_type| arrow_schema::Field::new(name, data_type, true);
        let list = |item| List(field("item", item).into());
        let one = Struct(vec![field("a", Int64)].into());
        let two = Struct(vec![field("b", list(Int64)), field("a", Float64)].into());
        let other = Struct(vec![field("b", list(Utf8))].into());
        for (from, to) in [
            (one.clone(), two.clone()),
            (list(one.clone()), list(two.clone())),
            (list(Int64), list(Float64)),
            (one.clone(), Utf8),
            (list(Int64), list(Utf8)),
        ] {
            assert!(widens(&from, &to), "{from} to {to}");
            assert!(!widens(&to, &from), "{to} to {from}");
        }
        assert!(!widens(&one, &other) && !widens(&one, &list(Int64)) && !widens(&one, &one));
    }

    #[test]
    fn only_what_keeps_its_meaning() {
        use DataType::{Binary, Decimal128, Float32, Float64, Int32, Int64, UInt32, UInt64, Utf8};
        for (from, to) in [
            (Int32, Int64),
            (UInt32, Int64),
            (Int64, Float64),
            (Float32, Float64),
            (Float64, Utf8),
            (Int32, Decimal128(12, 2)),
            (Decimal128(9, 2), Decimal128(11, 4)),
        ] {
            assert!(widens(&from, &to), "{from} to {to}");
            assert!(!widens(&to, &from), "{to} to {from}");
        }
        for (from, to) in [
            (Int64, Int64),
            (UInt64, Int64),
            (Int64, Float32),
            (Int32, Decimal128(11, 2)),
            (Decimal128(9, 2), Decimal128(9, 3)),
            (Binary, Utf8),
            (Utf8, Binary),
        ] {
            assert!(!widens(&from, &to), "{from} to {to}");
        }
        assert_eq!(wider_types(&Int32), ["BIGINT", "DOUBLE", "VARCHAR", "a DECIMAL with room for every digit"]);
        assert!(wider_types(&Binary).is_empty());
    }
}
