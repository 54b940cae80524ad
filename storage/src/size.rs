//! How much rows take, by what they show.

use arrow::array::{Array, AsArray, OffsetSizeTrait, RecordBatch};
use arrow::datatypes::DataType;
use shoal_kernel::limits::{VALUE_BYTES_MAX, VALUE_ITEMS_MAX, WRITE_BYTES_MAX};
use shoal_kernel::{Error, ErrorCode, Result};

/// Bytes of the values that a batch shows. Of a slice only its own part counts, also below lists, where arrow's own measure
/// takes the whole child: a batch of lists that is cut in pieces would weigh as often as there are pieces. Of a buffer that
/// columns share each counts its own.
pub fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| array_bytes(column.as_ref())).sum()
}

/// Bytes of the values that an array shows.
pub(crate) fn array_bytes(array: &dyn Array) -> usize {
    let nulls = if array.null_count() > 0 { array.len().div_ceil(8) } else { 0 };
    let child = |values: &dyn Array, start: usize, end: usize| array_bytes(values.slice(start, end - start).as_ref());
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            let (start, end) = (offsets.first().copied(), offsets.last().copied());
            nulls + size_of_val(offsets) + child(list.values(), place(start), place(end))
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let offsets = list.value_offsets();
            let place = |offset: Option<&i64>| offset.and_then(|offset| usize::try_from(*offset).ok()).unwrap_or(0);
            nulls + size_of_val(offsets) + child(list.values(), place(offsets.first()), place(offsets.last()))
        }
        DataType::Map(_, _) => {
            let map = array.as_map();
            let offsets = map.value_offsets();
            let (start, end) = (offsets.first().copied(), offsets.last().copied());
            nulls + size_of_val(offsets) + child(map.entries(), place(start), place(end))
        }
        DataType::FixedSizeList(_, width) => {
            let (list, width) = (array.as_fixed_size_list(), place(Some(*width)));
            let start = place(Some(list.value_offset(0)));
            nulls + child(list.values(), start, start + width * list.len())
        }
        DataType::Struct(_) => {
            nulls + array.as_struct().columns().iter().map(|column| array_bytes(column.as_ref())).sum::<usize>()
        }
        _ => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()),
    }
}

/// Batches that belong together, each with the number of rows before it.
pub fn with_rows_before(batches: &[RecordBatch]) -> impl Iterator<Item = (usize, &RecordBatch)> {
    batches.iter().scan(0, |rows, batch| {
        let before = *rows;
        *rows += batch.num_rows();
        Some((before, batch))
    })
}

/// The most rows from the first on that take so many bytes together; at least one, if there is one.
pub fn rows_within(batch: &RecordBatch, bytes_max: usize) -> usize {
    let rows = batch.num_rows();
    if batch_bytes(batch) <= bytes_max {
        return rows;
    }
    let (mut fit, mut beyond) = (1, rows);
    while fit + 1 < beyond {
        let middle = fit + (beyond - fit) / 2;
        match batch_bytes(&batch.slice(0, middle)) <= bytes_max {
            true => fit = middle,
            false => beyond = middle,
        }
    }
    fit.min(rows)
}

/// Refuses a value beyond [`VALUE_BYTES_MAX`] or [`VALUE_ITEMS_MAX`], and a row beyond [`WRITE_BYTES_MAX`]. So many rows of the
/// request came before the batch.
///
/// # Errors
/// [`ErrorCode::LimitExceeded`], with row and column.
pub fn check_values(batch: &RecordBatch, rows_before: usize) -> Result<()> {
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let kind = column.data_type();
        // Many items may take few bytes; of the rest, what is short together is short one by one.
        if kind.is_primitive() || !kind.is_nested() && array_bytes(column.as_ref()) <= VALUE_BYTES_MAX {
            continue;
        }
        let mut sizes = vec![ValueSize::default(); column.len()];
        let bounds: Vec<usize> = (0..=column.len()).collect();
        measure(column.as_ref(), &bounds, &mut sizes);
        for (row, size) in sizes.iter().enumerate() {
            let too_much = match (size.bytes > VALUE_BYTES_MAX, size.items > VALUE_ITEMS_MAX) {
                (true, _) => format!("{} bytes, more than the {VALUE_BYTES_MAX} allowed", size.bytes),
                (_, true) => format!("{} items, more than the {VALUE_ITEMS_MAX} allowed", size.items),
                _ => continue,
            };
            let (row, name) = (rows_before + row + 1, field.name());
            let message = format!("the value of '{name}' in row {row} has {too_much}");
            return Err(Error::new(ErrorCode::LimitExceeded, message).with_help("cut it into several rows"));
        }
    }
    let mut start = 0;
    while start < batch.num_rows() {
        let count = rows_within(&batch.slice(start, batch.num_rows() - start), WRITE_BYTES_MAX);
        let bytes = batch_bytes(&batch.slice(start, count));
        if bytes > WRITE_BYTES_MAX {
            let row = rows_before + start + 1;
            let message = format!("row {row} has {bytes} bytes, more than the {WRITE_BYTES_MAX} allowed");
            return Err(Error::new(ErrorCode::LimitExceeded, message).with_help("cut it into several rows"));
        }
        start += count;
    }
    Ok(())
}

/// What one value takes: bytes of what it is made of, and items of its lists.
#[derive(Clone, Default)]
struct ValueSize {
    bytes: usize,
    items: usize,
}

/// What each item of a list and each field of a struct takes beside its bytes: an offset and whether it is NULL.
const ENTRY_BYTES: usize = 5;

/// Adds to each value what an array has of it: the rows from its bound to the next one.
fn measure(array: &dyn Array, bounds: &[usize], sizes: &mut [ValueSize]) {
    match array.data_type() {
        DataType::Utf8 => measure_bytes(array.as_string::<i32>().value_offsets(), bounds, sizes),
        DataType::LargeUtf8 => measure_bytes(array.as_string::<i64>().value_offsets(), bounds, sizes),
        DataType::Binary => measure_bytes(array.as_binary::<i32>().value_offsets(), bounds, sizes),
        DataType::LargeBinary => measure_bytes(array.as_binary::<i64>().value_offsets(), bounds, sizes),
        DataType::Struct(_) => {
            for column in array.as_struct().columns() {
                sizes.iter_mut().zip(lengths(bounds)).for_each(|(size, rows)| size.bytes += rows * ENTRY_BYTES);
                measure(column.as_ref(), bounds, sizes);
            }
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            measure_items(list.values().as_ref(), &inner(list.value_offsets(), bounds), sizes);
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            measure_items(list.values().as_ref(), &inner(list.value_offsets(), bounds), sizes);
        }
        DataType::Map(_, _) => {
            let map = array.as_map();
            measure_items(map.entries(), &inner(map.value_offsets(), bounds), sizes);
        }
        DataType::FixedSizeList(_, width) => {
            let (list, width) = (array.as_fixed_size_list(), place(Some(*width)));
            let start = place(Some(list.value_offset(0)));
            let inner: Vec<usize> = bounds.iter().map(|bound| start + bound * width).collect();
            measure_items(list.values().as_ref(), &inner, sizes);
        }
        DataType::Utf8View | DataType::BinaryView => {
            for (part, size) in bounds.windows(2).zip(sizes) {
                size.bytes += array_bytes(array.slice(part[0], part[1] - part[0]).as_ref());
            }
        }
        fixed => {
            let width = match fixed {
                DataType::FixedSizeBinary(width) => place(Some(*width)),
                other => other.primitive_width().unwrap_or_default(),
            };
            sizes.iter_mut().zip(lengths(bounds)).for_each(|(size, rows)| size.bytes += rows * width);
        }
    }
}

fn measure_bytes<O: OffsetSizeTrait>(offsets: &[O], bounds: &[usize], sizes: &mut [ValueSize]) {
    for (part, size) in bounds.windows(2).zip(sizes) {
        size.bytes += (offsets[part[1]] - offsets[part[0]]).as_usize();
    }
}

fn measure_items(items: &dyn Array, bounds: &[usize], sizes: &mut [ValueSize]) {
    for (size, items) in sizes.iter_mut().zip(lengths(bounds)) {
        size.items += items;
        size.bytes += items * ENTRY_BYTES;
    }
    measure(items, bounds, sizes);
}

fn lengths(bounds: &[usize]) -> impl Iterator<Item = usize> {
    bounds.windows(2).map(|part| part[1] - part[0])
}

/// Where the items of lists begin that begin at `bounds`.
fn inner<O: OffsetSizeTrait>(offsets: &[O], bounds: &[usize]) -> Vec<usize> {
    bounds.iter().map(|bound| offsets[*bound].as_usize()).collect()
}

/// Offsets of arrow are never negative.
fn place(offset: Option<i32>) -> usize {
    offset.and_then(|offset| usize::try_from(offset).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, FixedSizeListArray, Int64Array, ListArray, StringArray, StructArray};
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::{Field, Int64Type};

    use super::*;

    fn refusal(column: ArrayRef) -> Option<String> {
        let batch = RecordBatch::try_from_iter([("c", column)]).unwrap();
        check_values(&batch, 10).err().map(|error| error.to_string())
    }

    #[test]
    fn a_value_has_bounds() {
        let text = |bytes: usize| Arc::new(StringArray::from(vec!["short".to_owned(), "x".repeat(bytes)])) as ArrayRef;
        assert_eq!(refusal(text(VALUE_BYTES_MAX)), None);
        let refused = refusal(text(VALUE_BYTES_MAX + 1)).unwrap();
        assert!(
            refused.contains("the value of 'c' in row 12 has 250001 bytes, more than the 250000 allowed"),
            "{refused}"
        );

        let lists = |items: usize| {
            let list =
                ListArray::from_iter_primitive::<Int64Type, _, _>([None, Some(vec![Some(1); items]), Some(vec![])]);
            Arc::new(list) as ArrayRef
        };
        assert_eq!(refusal(lists(VALUE_ITEMS_MAX)), None);
        assert!(refusal(lists(VALUE_ITEMS_MAX + 1)).unwrap().contains("in row 12 has 4097 items"));
        // Of a part of an array only that part counts.
        assert_eq!(refusal(lists(VALUE_ITEMS_MAX + 1).slice(2, 1)), None);

        // Lists of structs of lists: 32 of 128 are 32 + 4096.
        let inner = ListArray::from_iter_primitive::<Int64Type, _, _>((0..32).map(|_| Some(vec![Some(1); 128])));
        let inner: ArrayRef = Arc::new(inner);
        let structs = StructArray::from(vec![(Arc::new(Field::new("l", inner.data_type().clone(), true)), inner)]);
        let item = Arc::new(Field::new("item", structs.data_type().clone(), true));
        let outer = |cuts: Vec<usize>| {
            let offsets = OffsetBuffer::from_lengths(cuts);
            Arc::new(ListArray::new(item.clone(), offsets, Arc::new(structs.clone()), None)) as ArrayRef
        };
        assert!(refusal(outer(vec![32])).unwrap().contains("has 4128 items"));
        assert_eq!(refusal(outer(vec![1, 31])), None);

        // What is NULL takes room, too.
        let nothing: ArrayRef = Arc::new(StringArray::new_null(4000));
        let fields = (0..20).map(|number| Arc::new(Field::new(format!("f{number}"), DataType::Utf8, true)));
        let wide = StructArray::from(fields.map(|field| (field, nothing.clone())).collect::<Vec<_>>());
        let item = Arc::new(Field::new("item", wide.data_type().clone(), true));
        let list = ListArray::new(item, OffsetBuffer::from_lengths([4000]), Arc::new(wide), None);
        assert!(refusal(Arc::new(list)).unwrap().contains("in row 11 has 420000 bytes"));

        let wide = FixedSizeListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1); 9_000])], 9_000);
        assert!(refusal(Arc::new(wide)).unwrap().contains("9000 items"));
        assert_eq!(refusal(Arc::new(Int64Array::from(vec![7; 100_000]))), None);
    }

    #[test]
    fn a_row_has_bounds() {
        let text = |row: usize| "x".repeat(if row == 2 { VALUE_BYTES_MAX } else { 1 });
        let column: ArrayRef = Arc::new(StringArray::from_iter_values((0..4).map(text)));
        let names: Vec<String> = (0..70).map(|number| format!("c{number}")).collect();
        let batch = RecordBatch::try_from_iter(names.iter().map(|name| (name, column.clone()))).unwrap();
        let error = check_values(&batch, 10).unwrap_err().to_string();
        assert!(error.contains("row 13 has 17500560 bytes, more than the 16777216 allowed"), "{error}");
        check_values(&batch.slice(0, 2), 0).unwrap();
    }

    #[test]
    fn as_many_rows_as_fit() {
        let texts = (0..100).map(|row| "x".repeat(if row < 50 { 1 } else { 1_000 }));
        let column: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        let batch = RecordBatch::try_from_iter([("c", column)]).unwrap();
        for (bytes, rows) in [(0, 1), (1_000, 50), (11_000, 60), (1 << 20, 100)] {
            assert_eq!(rows_within(&batch, bytes), rows, "{bytes}");
        }
        assert_eq!(rows_within(&batch.slice(0, 0), 0), 0);
    }

    #[test]
    fn pieces_weigh_together_what_the_whole_weighs() {
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>((0..1_000).map(|row| Some(vec![Some(row); 100])));
        let wide =
            FixedSizeListArray::from_iter_primitive::<Int64Type, _, _>((0..1_000).map(|row| Some([Some(row); 4])), 4);
        let inner: ArrayRef = Arc::new(lists.clone());
        let nested = StructArray::from(vec![(Arc::new(Field::new("l", inner.data_type().clone(), true)), inner)]);
        for column in
            [Arc::new(lists) as ArrayRef, Arc::new(wide), Arc::new(nested), Arc::new(Int64Array::from(vec![7; 1_000]))]
        {
            let batch = RecordBatch::try_from_iter([("c", column)]).unwrap();
            let whole = batch_bytes(&batch);
            let pieces: usize = (0..1_000).step_by(10).map(|start| batch_bytes(&batch.slice(start, 10))).sum();
            let schema = batch.schema();
            assert!(
                whole >= 8_000 && pieces >= whole && pieces < whole + whole / 5 + 2_000,
                "{schema}: {whole} {pieces}"
            );
        }
    }
}
