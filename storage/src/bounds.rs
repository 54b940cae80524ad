//! What is known of a column out of what is known of its forms. Values are stored in the oldest form that holds them, so a column
//! that was widened has values in several.

use arrow::datatypes::DataType;
use shoal_kernel::Datum;

use crate::predicate::Zone;

/// Of a column of that type, together with an older form of it. A row has a value in one form at most.
pub(crate) fn with_older(newer: Zone, data_type: &DataType, older: &Zone, older_type: &DataType) -> Zone {
    if older.nulls == older.rows {
        return newer;
    }
    let widened = |bound: &Option<Datum>| bound.as_ref().and_then(|bound| widened(bound, older_type, data_type));
    let (min, max) = (widened(&older.min), widened(&older.max));
    let (min, max) = match newer.nulls < newer.rows {
        true => (least(newer.min, min), greatest(newer.max, max)),
        false => (min, max),
    };
    Zone { rows: newer.rows, nulls: newer.nulls.saturating_sub(older.rows - older.nulls), min, max }
}

/// A bound as the wider type has it, where that keeps the order: of numbers. Those of other types say nothing.
fn widened(bound: &Datum, from: &DataType, to: &DataType) -> Option<Datum> {
    match (bound, to) {
        (Datum::Float(_), DataType::Float64) => Some(bound.clone()),
        (Datum::Int(value), DataType::Float64) if from.is_integer() => Some(Datum::Float(*value as f64)),
        (Datum::UInt(value), DataType::Float64) => Some(Datum::Float(*value as f64)),
        (Datum::Int(_), to) if from.is_integer() && to.is_signed_integer() => Some(bound.clone()),
        (Datum::UInt(_), to) if to.is_unsigned_integer() => Some(bound.clone()),
        (Datum::UInt(value), to) if to.is_signed_integer() => i64::try_from(*value).ok().map(Datum::Int),
        _ => None,
    }
}

fn least(one: Option<Datum>, other: Option<Datum>) -> Option<Datum> {
    let (one, other) = (one?, other?);
    Some(if other.encode() < one.encode() { other } else { one })
}

fn greatest(one: Option<Datum>, other: Option<Datum>) -> Option<Datum> {
    let (one, other) = (one?, other?);
    Some(if other.encode() > one.encode() { other } else { one })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(nulls: u32, min: Option<Datum>, max: Option<Datum>) -> Zone {
        Zone { rows: 10, nulls, min, max }
    }

    #[test]
    fn numbers_keep_their_order_when_they_are_widened() {
        let int = |value| Some(Datum::Int(value));
        let float = |value| Some(Datum::Float(value));
        let (int32, int64, double) = (DataType::Int32, DataType::Int64, DataType::Float64);
        let none = zone(10, None, None);
        assert_eq!(with_older(none.clone(), &int64, &zone(4, int(1), int(7)), &int32), zone(4, int(1), int(7)));
        assert_eq!(
            with_older(zone(6, int(5), int(9)), &int64, &zone(7, int(-1), int(7)), &int32),
            zone(3, int(-1), int(9))
        );
        let doubles = zone(6, float(0.5), float(9.5));
        assert_eq!(
            with_older(doubles.clone(), &double, &zone(7, int(-1), int(10)), &int64),
            zone(3, float(-1.0), float(10.0))
        );
        assert_eq!(with_older(doubles.clone(), &double, &none, &int64), doubles);
        // What is not known of one of them is not known.
        assert_eq!(with_older(zone(6, None, None), &double, &zone(7, int(1), int(2)), &int64), zone(3, None, None));
        assert_eq!(with_older(none.clone(), &DataType::Utf8, &zone(7, int(1), int(2)), &int64), zone(7, None, None));
        let time = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
        assert_eq!(with_older(none, &time, &zone(7, int(1), int(2)), &DataType::Date32), zone(7, None, None));
    }
}
