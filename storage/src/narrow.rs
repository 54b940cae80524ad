//! Which form of a column holds a value.
//!
//! A column that was widened has several forms, one for each type that it has had. A value is stored in the oldest of them that
//! holds it exactly: the one out of which it is read back as it was given. So it is stored alike whenever it comes, before the
//! column was widened or after, in narrow rows or in wide ones; it is the same event, and it reads the same for ever.

use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, ListArray, StringArray, StructArray, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::kernels::cmp::eq;
use arrow::compute::{cast, nullif};
use arrow::datatypes::{DataType, FieldRef, Fields, TimeUnit};
use shoal_kernel::{ColumnId, Error, Result, TableSchema};

use crate::layout::{DAY_MICROS, convert};

/// No number, date or time takes more characters: a 128-bit decimal has 38 digits, a sign and a point.
const TEXT_BYTES_MAX: usize = 40;

/// A column's values by their forms: as [`split_off`] does with each of the older forms, oldest first.
///
/// # Errors
/// None but bugs.
pub(crate) fn forms_of(schema: &TableSchema, id: ColumnId, values: ArrayRef) -> Result<Vec<(ColumnId, ArrayRef)>> {
    let (mut forms, mut rest) = (Vec::new(), values);
    for older in schema.forms_before(id) {
        if let Some((moved, left)) = split_off(&rest, &older.data_type)? {
            forms.push((older.id, moved));
            rest = left;
        }
    }
    forms.push((id, rest));
    Ok(forms)
}

/// The values that a column of an older type holds exactly, and those that it does not; `None` if it holds none. Each value is in
/// one of the two, where the other has NULL.
///
/// # Errors
/// None but bugs.
pub(crate) fn split_off(values: &ArrayRef, older: &DataType) -> Result<Option<(ArrayRef, ArrayRef)>> {
    if values.null_count() == values.len() {
        return Ok(None);
    }
    let moved = narrow(values, older);
    if moved.null_count() == moved.len() {
        return Ok(None);
    }
    let left = nullif(values, &BooleanArray::new(validity(&moved), None));
    let left = left.map_err(|error| Error::internal(format!("values cannot be taken out of a column: {error}")))?;
    Ok(Some((moved, left)))
}

/// Values as ones of an older type of their column; NULL where that cannot hold them. What becomes of a value does not depend on
/// its neighbours.
fn narrow(values: &ArrayRef, older: &DataType) -> ArrayRef {
    let narrowed = match (values.data_type(), older) {
        (present, older) if present == older => Some(values.clone()),
        _ if values.null_count() == values.len() => None,
        (DataType::List(_), DataType::List(item)) => narrow_list(values.as_list(), item),
        (DataType::Struct(_), DataType::Struct(fields)) => narrow_struct(values.as_struct(), fields),
        // Lists and structs are not looked for in text.
        (present, older) if present.is_nested() || older.is_nested() => None,
        (DataType::Utf8, older) => narrow_plain(&candidates(values.as_string(), older), older),
        _ => narrow_plain(values, older),
    };
    narrowed.unwrap_or_else(|| new_null_array(older, values.len()))
}

/// `None` if the one type is never read as the other.
fn narrow_plain(values: &ArrayRef, older: &DataType) -> Option<ArrayRef> {
    if values.null_count() == values.len() {
        return None;
    }
    let narrowed = match (values.data_type(), older) {
        // One time beyond the calendar would keep all the others from being cast.
        (DataType::Timestamp(TimeUnit::Microsecond, None), DataType::Date32) => midnights(values.as_primitive()),
        _ => cast(values, older).ok()?,
    };
    let back = convert(&narrowed, values.data_type()).ok()?;
    // Floats are compared by their bits, so that neither a sign nor a NaN is lost.
    let same = eq(&back, values).ok()?;
    let lost = BooleanArray::new(!&is_true(&same), None);
    nullif(&narrowed, &lost).ok()
}

/// The days of times that are midnights.
fn midnights(times: &TimestampMicrosecondArray) -> ArrayRef {
    let day = |time: i64| if time % DAY_MICROS == 0 { i32::try_from(time / DAY_MICROS).ok() } else { None };
    let days: Date32Array = times.iter().map(|time| time.and_then(day)).collect();
    Arc::new(days)
}

/// The texts that may be how a value of that type reads. Most are not even tried.
fn candidates(texts: &StringArray, older: &DataType) -> ArrayRef {
    let may_have = |byte: u8| match older {
        DataType::Boolean => byte.is_ascii_lowercase(),
        DataType::Float32 | DataType::Float64 => byte.is_ascii_digit() || b"+-.eEinfNa".contains(&byte),
        DataType::Decimal128(..) => byte.is_ascii_digit() || b"-.".contains(&byte),
        older if older.is_integer() => byte.is_ascii_digit() || byte == b'-',
        _ => byte.is_ascii_digit() || b"+-:.TZ".contains(&byte),
    };
    let is_candidate = |text: &&str| text.len() <= TEXT_BYTES_MAX && text.bytes().all(may_have);
    let candidates: StringArray = texts.iter().map(|text| text.filter(is_candidate)).collect();
    Arc::new(candidates)
}

/// A list goes over if all its items do.
fn narrow_list(lists: &ListArray, item: &FieldRef) -> Option<ArrayRef> {
    let items = narrow(lists.values(), item.data_type());
    let fit = fit(lists.values(), &items);
    let ends = lists.offsets().windows(2);
    let lists_fit: BooleanBuffer = ends
        .map(|ends| match (usize::try_from(ends[0]), usize::try_from(ends[1])) {
            (Ok(start), Ok(end)) => (start..end).all(|at| fit.value(at)),
            _ => false,
        })
        .collect();
    let nulls = NullBuffer::new(&lists_fit & &validity(lists));
    Some(Arc::new(ListArray::try_new(item.clone(), lists.offsets().clone(), items, Some(nulls)).ok()?))
}

/// A struct goes over if all its fields do, and those that came later are NULL.
fn narrow_struct(structs: &StructArray, fields: &Fields) -> Option<ArrayRef> {
    let mut valid = validity(structs);
    let mut columns = Vec::with_capacity(fields.len());
    for field in fields {
        let column = structs.column_by_name(field.name())?;
        let narrowed = narrow(column, field.data_type());
        valid = &valid & &fit(column, &narrowed);
        columns.push(narrowed);
    }
    for (field, column) in structs.fields().iter().zip(structs.columns()) {
        if fields.iter().all(|older| older.name() != field.name()) {
            valid = &valid & &!&validity(column);
        }
    }
    let nulls = Some(NullBuffer::new(valid));
    Some(Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, structs.len()).ok()?))
}

/// Where nothing was lost.
fn fit(values: &ArrayRef, narrowed: &ArrayRef) -> BooleanBuffer {
    &validity(narrowed) | &!&validity(values)
}

fn validity(array: &dyn Array) -> BooleanBuffer {
    array.nulls().map_or_else(|| BooleanBuffer::new_set(array.len()), |nulls| nulls.inner().clone())
}

fn is_true(array: &BooleanArray) -> BooleanBuffer {
    array.values() & &validity(array)
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Decimal128Array, Float32Array, Float64Array, Int32Array, Int64Array, ListBuilder, StringBuilder,
    };
    use arrow::datatypes::{Field, Int32Type};
    use arrow::util::display::array_value_to_string;

    use super::*;

    /// What goes over to the older type, and what stays; `-` for NULL.
    fn split(values: ArrayRef, older: &DataType) -> (Vec<String>, Vec<String>) {
        let text = |array: &ArrayRef| -> Vec<String> {
            let value = |row| array_value_to_string(array, row).unwrap();
            (0..array.len()).map(|row| if array.is_null(row) { "-".to_owned() } else { value(row) }).collect()
        };
        let (moved, left) = split_off(&values, older).unwrap().unwrap();
        assert_eq!(moved.data_type(), older);
        // Alone, each value goes where it goes among others.
        for row in 0..values.len() {
            let alone = split_off(&values.slice(row, 1), older).unwrap().map(|(moved, _)| text(&moved));
            assert_eq!(alone.is_some(), moved.is_valid(row), "row {row} as {older}");
            assert!(alone.is_none_or(|alone| alone == text(&moved.slice(row, 1))), "row {row} as {older}");
        }
        (text(&moved), text(&left))
    }

    fn check(values: ArrayRef, older: &DataType, moved: &[&str], left: &[&str]) {
        let (found, rest) = split(values, older);
        assert_eq!((found, rest), (strings(moved), strings(left)), "{older}");
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn numbers_go_where_they_fit_exactly() {
        let doubles = Float64Array::from(vec![7.0, 7.5, -0.0, f64::NAN, 9.3e18, -9_223_372_036_854_775_808.0]);
        let expected = (["7", "-", "-", "-", "-", "-9223372036854775808"], ["-", "7.5", "-0.0", "NaN", "9.3e18", "-"]);
        check(Arc::new(doubles), &DataType::Int64, &expected.0, &expected.1);
        let wide = Int64Array::from(vec![Some(7), Some(1 << 40), None]);
        check(Arc::new(wide), &DataType::Int32, &["7", "-", "-"], &["-", "1099511627776", "-"]);
        let floats = Float64Array::from(vec![0.5, 0.1]);
        check(Arc::new(floats), &DataType::Float32, &["0.5", "-"], &["-", "0.1"]);
        let decimal = |values: Vec<i128>, precision, scale| {
            Decimal128Array::from(values).with_precision_and_scale(precision, scale).unwrap()
        };
        check(Arc::new(decimal(vec![700, 750], 12, 2)), &DataType::Int32, &["7", "-"], &["-", "7.50"]);
        let finer = decimal(vec![70_000, 75_001], 12, 4);
        check(Arc::new(finer), &DataType::Decimal128(5, 2), &["7.00", "-"], &["-", "7.5001"]);
        let day = 86_400_000_000;
        let times = TimestampMicrosecondArray::from(vec![day, day + 1, -day, i64::MAX]);
        let (moved, left) = split(Arc::new(times), &DataType::Date32);
        assert_eq!(moved, ["1970-01-02", "-", "1969-12-31", "-"]);
        assert_eq!((left[0].as_str(), left[1].as_str()), ("-", "1970-01-02T00:00:00.000001"));
    }

    /// How values read as text decides what is stored of text, and so belongs to the format: if one of these changes, rows that are
    /// sent again to an altered table are others than before.
    #[test]
    fn text_goes_where_it_reads_the_same() {
        let text = |texts: &[&str]| -> ArrayRef { Arc::new(StringArray::from(texts.to_vec())) };
        let micros = |zone: Option<&str>| DataType::Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
        let cases: [(DataType, &[&str], &[&str]); 9] = [
            (
                DataType::Int64,
                &["7", "-7", "9223372036854775807"],
                &["+7", "07", " 7", "7.0", "9223372036854775808", "-0"],
            ),
            (
                DataType::Float64,
                &["7.5", "7.0", "-0.0", "1e20", "1.5e-7", "100000000.0", "0.00001", "NaN", "inf", "-inf"],
                &["7", "7.50", ".5", "1E20", "infinity", "nan", "fine"],
            ),
            (DataType::Float32, &["0.1", "0.5"], &["0.10000000149011612"]),
            (DataType::Decimal128(9, 2), &["7.50", "-0.05", "7.00"], &["7", "7.5", "7.501", "1e2", "99999999.00"]),
            (DataType::Boolean, &["true", "false"], &["TRUE", "t", "1", "yes"]),
            (DataType::Date32, &["2026-01-31", "0001-01-01"], &["2026-1-31", "2026-02-30", "2026-01-31T00:00:00"]),
            (
                micros(None),
                &["2026-01-31T00:00:00", "1969-12-31T23:59:59.999999"],
                &["2026-01-31", "2026-01-31T00:00:00Z"],
            ),
            (micros(Some("+00:00")), &["2026-01-31T00:00:00Z"], &["2026-01-31T00:00:00", "2026-01-31T00:00:00+00:00"]),
            (DataType::Time64(TimeUnit::Microsecond), &["12:30:00", "12:30:00.000001"], &["12:30", "25:00:00"]),
        ];
        for (older, moved, left) in cases {
            let (found, rest) = split(text(&[moved, left].concat()), &older);
            assert!(found[..moved.len()].iter().all(|text| text != "-"), "{older}: {found:?}");
            assert!(found[moved.len()..].iter().all(|text| text == "-"), "{older}: {found:?}");
            assert_eq!(rest[moved.len()..], strings(left), "{older}");
            let back = convert(&split_off(&text(moved), &older).unwrap().unwrap().0, &DataType::Utf8).unwrap();
            assert_eq!(back.as_ref(), text(moved).as_ref() as &dyn Array, "{older}");
        }
        assert!(split_off(&text(&["a word", "7 or 8", &"7".repeat(50)]), &DataType::Int64).unwrap().is_none());
        assert!(split_off(&text(&["[1]"]), &DataType::new_list(DataType::Int64, true)).unwrap().is_none());
    }

    #[test]
    fn nested_values_go_over_as_a_whole() {
        let items = [Some(vec![Some(1), None]), Some(vec![Some(1), Some(70_000)]), None, Some(vec![])];
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(items));
        let older = DataType::new_list(DataType::Int16, true);
        check(lists, &older, &["[1, ]", "-", "-", "[]"], &["-", "[1, 70000]", "-", "-"]);
        // No item at all says nothing against a type, whatever else is there.
        let mut texts = ListBuilder::new(StringBuilder::new());
        let lists = [Some(vec![]), None, Some(vec![None]), Some(vec![Some("text")])];
        lists.into_iter().for_each(|list| texts.append_option(list));
        check(Arc::new(texts.finish()), &older, &["[]", "-", "[]", "-"], &["-", "-", "-", "[text]"]);

        let field = |name: &str, data_type| Arc::new(Field::new(name, data_type, true));
        let a: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.0), Some(0.5), Some(2.0), None]));
        let b: ArrayRef = Arc::new(Int32Array::from(vec![None, None, Some(5), None]));
        let fields = Fields::from(vec![field("b", DataType::Int32), field("a", DataType::Float64)]);
        let structs: ArrayRef = Arc::new(StructArray::new(fields, vec![b, a], None));
        let older = DataType::Struct(Fields::from(vec![field("a", DataType::Int64)]));
        check(structs, &older, &["{a: 1}", "-", "-", "{a: }"], &["-", "{b: , a: 0.5}", "{b: 5, a: 2.0}", "-"]);
    }

    #[test]
    fn a_column_of_nulls_has_nothing_to_give() {
        let nulls: ArrayRef = Arc::new(Date32Array::new_null(3));
        assert!(split_off(&nulls, &DataType::Date32).unwrap().is_none());
        let floats: ArrayRef = Arc::new(Float32Array::from(vec![0.5]));
        assert!(split_off(&floats, &DataType::Int8).unwrap().is_none());
    }
}
