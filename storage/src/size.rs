//! How much rows take, by what they show.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;

/// Bytes of the values that a batch shows. Of a slice only its own part counts, also below lists, where arrow's own measure
/// takes the whole child: a batch of lists that is cut in pieces would weigh as often as there are pieces. Of a buffer that
/// columns share each counts its own.
pub fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| array_bytes(column.as_ref())).sum()
}

/// Bytes of the values that an array shows.
pub(crate) fn array_bytes(array: &dyn Array) -> usize {
    let nulls = if array.nulls().is_some() { array.len().div_ceil(8) } else { 0 };
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

/// Offsets of arrow are never negative.
fn place(offset: Option<i32>) -> usize {
    offset.and_then(|offset| usize::try_from(offset).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, FixedSizeListArray, Int64Array, ListArray, StructArray};
    use arrow::datatypes::{Field, Int64Type};

    use super::*;

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
