use std::sync::Arc;

use arrow::array::{
    BinaryArray, BooleanArray, Decimal128Array, FixedSizeBinaryArray, FixedSizeListArray, Float32Array, Float64Array,
    Int8Array, Int32Array, Int64Array, LargeListArray, LargeStringArray, ListArray, NullArray, StringArray,
    StructArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{Field, Int32Type};
use proptest::prelude::*;

use super::*;

fn round_trip(array: ArrayRef) {
    for effort in [Effort::Quick, Effort::Full] {
        let page = encode_page(&array, effort).unwrap();
        let back = decode_page(&page, array.data_type(), array.len(), None, None).unwrap();
        assert_eq!(&back, &array, "{effort:?}");
        // A slice must not drag its parent along, nor be read from the wrong place.
        if array.len() > 3 {
            let slice = array.slice(1, array.len() - 2);
            let page = encode_page(&slice, effort).unwrap();
            assert_eq!(&decode_page(&page, slice.data_type(), slice.len(), None, None).unwrap(), &slice);
        }
        for cut in 0..page.len().min(64) {
            let _ = decode_page(&page[..cut], array.data_type(), array.len(), None, None);
        }
    }
}

/// Encodes an array as a chunk of pages, and reads it back whole and in part.
fn chunk_round_trip(array: &ArrayRef) -> bool {
    const PAGE_ROWS: usize = 100;
    let pages: Vec<ArrayRef> = (0..array.len())
        .step_by(PAGE_ROWS)
        .map(|start| array.slice(start, PAGE_ROWS.min(array.len() - start)))
        .collect();
    let chunk = encode_chunk(&pages).unwrap();
    let data_type = array.data_type();
    let dictionary = chunk.dictionary.as_ref().map(|bytes| Dictionary::decode(bytes, data_type).unwrap());
    if let Some(bytes) = &chunk.dictionary {
        (0..bytes.len().min(64)).for_each(|cut| drop(Dictionary::decode(&bytes[..cut], data_type)));
    }
    for (page, bytes) in pages.iter().zip(&chunk.pages) {
        let decode =
            |wanted: Option<&[u32]>| decode_page(bytes, data_type, page.len(), dictionary.as_ref(), wanted).unwrap();
        assert_eq!(&decode(None), page);
        // Many rows, and so few that they are looked for one by one.
        for step in [3, 7] {
            let wanted: Vec<u32> = (0..page.len() as u32).step_by(step).collect();
            assert_eq!(&decode(Some(&wanted)), &take(page, &UInt32Array::from(wanted.clone()), None).unwrap());
        }
        assert_eq!(decode(Some(&[])).len(), 0);
        for cut in 0..bytes.len().min(64) {
            let _ = decode_page(&bytes[..cut], data_type, page.len(), dictionary.as_ref(), None);
        }
        if let Some(dictionary) = &dictionary
            && let Some((codes, nulls)) = decode_codes(bytes, page.len(), dictionary, None).unwrap()
        {
            let codes = UInt32Array::new(codes.into(), nulls);
            assert_eq!(&take(dictionary.values(), &codes, None).unwrap(), page);
        }
    }
    chunk.dictionary.is_some()
}

#[test]
fn decimals_of_64_bits_are_numbers_and_wider_ones_are_not() {
    let prices = |last: i128| -> ArrayRef {
        let values =
            (0..700).map(|row: i128| (row % 7 != 3).then_some((row * 7919 % 100_003) - 50_000)).chain([Some(last)]);
        Arc::new(values.collect::<Decimal128Array>().with_precision_and_scale(38, 2).unwrap())
    };
    for last in [0, i128::from(i64::MAX), i128::from(i64::MIN)] {
        assert_eq!(encode_page(&prices(last), Effort::Full).unwrap()[0], TAG_WORDS);
        // What logs hold, and segments of older builds.
        assert_eq!(encode_page(&prices(last), Effort::Quick).unwrap()[0], TAG_FIXED);
        round_trip(prices(last));
        chunk_round_trip(&prices(last));
    }
    for last in [i128::from(i64::MAX) + 1, i128::from(i64::MIN) - 1, i128::MAX, i128::MIN] {
        assert_eq!(encode_page(&prices(last), Effort::Full).unwrap()[0], TAG_FIXED);
        round_trip(prices(last));
        chunk_round_trip(&prices(last));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn numbers(values in prop::collection::vec(prop::option::weighted(0.9, any::<i64>()), 0..300), shift in 0u32..64) {
        let values: Vec<Option<i64>> = values.into_iter().map(|value| value.map(|value| value >> shift)).collect();
        round_trip(Arc::new(Int64Array::from(values.clone())));
        round_trip(Arc::new(UInt64Array::from_iter(values.iter().map(|value| value.map(|value| value as u64)))));
        round_trip(Arc::new(Int32Array::from_iter(values.iter().map(|value| value.map(|value| value as i32)))));
        round_trip(Arc::new(Int8Array::from_iter(values.iter().map(|value| value.map(|value| value as i8)))));
        round_trip(Arc::new(Decimal128Array::from_iter(values.iter().map(|value| value.map(i128::from)))));
    }

    #[test]
    fn few_numbers_far_apart(picks in prop::collection::vec(0usize..5, 1..400), values in prop::array::uniform5(any::<i64>())) {
        round_trip(Arc::new(TimestampMicrosecondArray::from_iter_values(picks.iter().map(|&pick| values[pick])).with_timezone("UTC")));
    }

    /// Steps, steps of steps and exceptions, of which some rows are wanted: few of them are added up, not unpacked.
    #[test]
    fn steps(
        start: i64,
        steps in prop::collection::vec(prop_oneof![30 => -3i64..40, 1 => any::<i64>()], 1..400),
        wanted in prop::collection::btree_set(0u32..400, 0..40),
    ) {
        let sums = |steps: &[i64]| {
            let mut at = start;
            steps.iter().map(|step| { at = at.wrapping_add(*step); at }).collect::<Vec<i64>>()
        };
        for values in [sums(&steps), sums(&sums(&steps))] {
            let array: ArrayRef = Arc::new(Int64Array::from(values));
            round_trip(array.clone());
            let page = encode_page(&array, Effort::Full).unwrap();
            let wanted: Vec<u32> = wanted.iter().copied().filter(|row| (*row as usize) < array.len()).collect();
            let found = decode_page(&page, array.data_type(), array.len(), None, Some(&wanted)).unwrap();
            assert_eq!(&found, &take(&array, &UInt32Array::from(wanted), None).unwrap());
        }
    }

    #[test]
    fn strings(values in prop::collection::vec(prop::option::of(".{0,12}"), 0..200)) {
        round_trip(Arc::new(StringArray::from(values.clone())));
        round_trip(Arc::new(LargeStringArray::from(values.clone())));
        round_trip(Arc::new(BinaryArray::from_iter(values.iter().map(|value| value.as_ref().map(String::as_bytes)))));
    }

    #[test]
    fn few_strings(picks in prop::collection::vec(prop::option::of(0u8..4), 0..900)) {
        let name = |pick: &Option<u8>| pick.map(|pick| format!("carrier {pick} of the long name"));
        round_trip(Arc::new(StringArray::from_iter(picks.iter().map(name))));
    }

    #[test]
    fn chunks(
        picks in prop::collection::vec(prop::option::weighted(0.8, 0usize..40), 1..450),
        values in prop::collection::vec(any::<i64>(), 40),
        floats in prop::collection::vec(any::<f64>(), 40),
    ) {
        let number = |pick: &Option<usize>| pick.map(|pick| values[pick]);
        let text = |pick: &Option<usize>| pick.map(|pick| "päge/".repeat(pick % 5) + &values[pick].to_string());
        let float = |pick: &Option<usize>| pick.map(|pick| if floats[pick].is_nan() { 0.5 } else { floats[pick] });
        chunk_round_trip(&(Arc::new(Int64Array::from_iter(picks.iter().map(number))) as _));
        chunk_round_trip(&(Arc::new(StringArray::from_iter(picks.iter().map(text))) as _));
        chunk_round_trip(&(Arc::new(LargeStringArray::from_iter(picks.iter().map(text))) as _));
        chunk_round_trip(&(Arc::new(Float64Array::from_iter(picks.iter().map(float))) as _));
        chunk_round_trip(&(Arc::new(BooleanArray::from_iter(picks.iter().map(|pick| pick.map(|pick| pick > 7)))) as _));
    }

    #[test]
    fn decimals(units in prop::collection::vec(prop::option::of(prop_oneof![Just(0), -1_000_000i64..1_000_000]), 1..300), digits in 0i32..7) {
        let value = |units: &Option<i64>| units.map(|units| match units {
            0 => -0.0,
            units => units as f64 / 10f64.powi(digits),
        });
        round_trip(Arc::new(Float64Array::from_iter(units.iter().map(value))));
        round_trip(Arc::new(Float32Array::from_iter(units.iter().map(|units| value(units).map(|value| value as f32)))));
    }

    #[test]
    fn steps_with_outliers(steps in prop::collection::vec((0u8..30, any::<i32>()), 1..900)) {
        // A series after the other: regular steps, and a jump now and then.
        let mut at = 0i64;
        let step = |&(kind, far): &(u8, i32)| {
            at = at.wrapping_add(if kind == 0 { i64::from(far) << 20 } else { 10_000_000 + i64::from(kind % 2) });
            at
        };
        round_trip(Arc::new(Int64Array::from_iter_values(steps.iter().map(step))));
    }

    #[test]
    fn bits_and_floats(values in prop::collection::vec(prop::option::of(any::<f64>()), 0..100)) {
        let values: Vec<_> = values.into_iter().map(|value| value.filter(|value| !value.is_nan())).collect();
        round_trip(Arc::new(BooleanArray::from_iter(values.iter().map(|value| value.map(|value| value > 0.0)))));
        round_trip(Arc::new(Float64Array::from(values)));
    }

    #[test]
    fn arbitrary_bytes_are_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), tag in 0u8..10, rows in 0usize..40) {
        for data_type in [
            DataType::Int64, DataType::Utf8, DataType::Boolean, DataType::Decimal128(10, 2), DataType::Float64, DataType::Float32,
        ] {
            let page: Vec<u8> = [tag, 0].into_iter().chain(bytes.iter().copied()).collect();
            let _ = decode_page(&page, &data_type, rows, None, None);
        }
    }
}

#[test]
fn nested_and_odd_types() {
    let list: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(1), None]),
        None,
        Some(vec![]),
        Some(vec![Some(9); 40]),
    ]));
    round_trip(list.clone());
    let field = Arc::new(Field::new("l", list.data_type().clone(), true));
    round_trip(Arc::new(StructArray::from(vec![(field, list)])));
    round_trip(Arc::new(NullArray::new(7)));
    round_trip(Arc::new(FixedSizeBinaryArray::try_from_iter([[1u8; 16], [2; 16], [3; 16], [4; 16]].iter()).unwrap()));
}

/// Places with names and numbers, some of them NULL at any level, and lists of them.
fn nested(rows: usize) -> [ArrayRef; 4] {
    let number = Int64Array::from_iter((0..rows).map(|row| (row % 7 != 3).then_some(1_000_000 + row as i64)));
    let name = StringArray::from_iter((0..rows).map(|row| (row % 5 != 1).then(|| format!("host-{}", row % 9))));
    let fields =
        vec![Arc::new(Field::new("number", DataType::Int64, true)), Arc::new(Field::new("name", DataType::Utf8, true))];
    let nulls = |every: usize| NullBuffer::from_iter((0..rows).map(|row| row % every != 2));
    let columns: Vec<ArrayRef> = vec![Arc::new(number), Arc::new(name)];
    let place: ArrayRef = Arc::new(StructArray::new(fields.into(), columns, Some(nulls(11))));

    let item = Arc::new(Field::new_list_field(place.data_type().clone(), true));
    let lengths = (0..rows).scan(rows, |left, row| {
        let length = (row % 4).min(*left);
        *left -= length;
        Some(length)
    });
    let lengths: Vec<usize> = lengths.collect();
    let items = place.slice(0, lengths.iter().sum());
    let list =
        ListArray::new(item.clone(), OffsetBuffer::from_lengths(lengths.clone()), items.clone(), Some(nulls(13)));
    let large = LargeListArray::new(item.clone(), OffsetBuffer::from_lengths(lengths), items, None);
    let pairs = FixedSizeListArray::new(item, 2, place.slice(0, rows / 2 * 2), None);
    [place, Arc::new(list), Arc::new(large), Arc::new(pairs)]
}

#[test]
fn structs_and_lists_are_shredded() {
    for rows in [0, 1, 2, 5, 300] {
        for array in nested(rows) {
            round_trip(array.clone());
            chunk_round_trip(&array);
        }
    }
    for array in nested(8192) {
        let page = encode_page(&array, Effort::Full).unwrap();
        let mut stream = Vec::new();
        blob::write(&ipc::write(&array).unwrap(), Effort::Full, &mut stream).unwrap();
        assert!(page.len() * 2 < stream.len(), "{}: {} of {}", array.data_type(), page.len(), stream.len());
    }
}

#[test]
fn nested_values_that_make_no_sense_are_refused() {
    for array in nested(40) {
        let page = encode_page(&array, Effort::Full).unwrap();
        for at in 0..page.len() {
            for bit in 0..8 {
                let mut flipped = page.clone();
                flipped[at] ^= 1 << bit;
                let decoded = decode_page(&flipped, array.data_type(), array.len(), None, None);
                // An error, or other values; never a panic, and never another number of rows.
                assert!(decoded.map_or(true, |decoded| decoded.len() == array.len()));
            }
        }
        assert!(decode_page(&page, &DataType::Int64, array.len(), None, None).is_err());
    }
    // More items than memory has, in a few bytes.
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1)])]);
    let mut page = vec![TAG_NESTED, 0];
    words::write(&[1 << 40], None, false, Effort::Full, &mut page);
    assert!(decode_page(&page, list.data_type(), 1, None, None).is_err());
}

/// Memory follows what a page shows, not what its dictionary holds.
#[test]
fn one_long_text_among_short_ones_and_nulls() {
    let long = "x".repeat(300_000);
    let lone = StringArray::from_iter((0..8192).map(|row| (row == 4).then_some(long.as_str())));
    let beside = StringArray::from_iter_values((0..8192).map(|row| if row == 4 { long.as_str() } else { "b" }));
    for array in [lone, beside] {
        let array: ArrayRef = Arc::new(array);
        let chunk = encode_chunk(std::slice::from_ref(&array)).unwrap();
        let dictionary = chunk.dictionary.map(|bytes| Dictionary::decode(&bytes, &DataType::Utf8).unwrap());
        let back = decode_page(&chunk.pages[0], &DataType::Utf8, 8192, dictionary.as_ref(), None).unwrap();
        assert_eq!(&back, &array);
        assert!(back.get_array_memory_size() < 500_000, "{} bytes", back.get_array_memory_size());
    }
    let many = StringArray::from_iter_values((0..8192).map(|row| format!("{}{long:.2000}", row / 2)));
    assert!(encode_chunk(&[Arc::new(many) as ArrayRef]).unwrap().dictionary.is_none(), "8 MB of distinct values");
}

#[test]
fn small_forms_are_found() {
    let size = |array: ArrayRef| encode_page(&array, Effort::Full).unwrap().len();
    assert!(size(Arc::new(Int64Array::from(vec![7; 8192]))) < 16, "constant");
    assert!(
        size(Arc::new(Int64Array::from_iter_values((0..8192).map(|row| row % 1000)))) < 8192 * 10 / 8 + 32,
        "packed"
    );
    assert!(size(Arc::new(Int64Array::from_iter_values((0..8192).map(|row| row * 1_000_000)))) < 64, "delta");
    let series = Int64Array::from_iter_values((0..8192).map(|row| row % 655 * 10_000_000));
    assert!(size(Arc::new(series)) < 400, "steps with a jump back now and then");
    let walk = (0..8192).scan(50i64, |at, row| {
        *at = (*at + row * 31 % 7 - 3).clamp(0, 100);
        Some(*at)
    });
    assert!(size(Arc::new(Int64Array::from_iter_values(walk))) < 8192 * 3 / 8 + 600, "steps of a walk");
    let squares = Int64Array::from_iter_values((0..8192).map(|row| row * row));
    assert!(size(Arc::new(squares)) < 64, "steps of steps");
    let runs = Int64Array::from_iter_values((0..8192).map(|row| row / 500 * 7919 % 1000));
    assert!(size(Arc::new(runs)) < 200, "runs");
    let prices = Float64Array::from_iter_values((0..8192).map(|row| f64::from(row * 7919 % 10_000) / 100.0));
    assert!(size(Arc::new(prices)) < 8192 * 14 / 8 + 64, "decimals");
    assert_eq!(size(new_null_array(&DataType::Utf8, 8192)), 2, "NULLs");
    let names = StringArray::from_iter_values((0..8192).map(|row| format!("airport number {}", row * 7 % 50)));
    let chunk = encode_chunk(&[Arc::new(names) as ArrayRef]).unwrap();
    assert!(chunk.pages[0].len() < 8192 * 6 / 8 + 32 && chunk.dictionary.is_some_and(|bytes| bytes.len() < 1000));
    let long = StringArray::from_iter_values((0..8192).map(|row| format!("{row} came with the rain and went with it")));
    assert!(size(Arc::new(long)) < 8192 * 20, "lz4");
}
