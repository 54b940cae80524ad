//! Structs and lists, shredded: what they are made of is encoded as columns of its own within the page, each in the form that
//! suits it.

use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::{Array, ArrayRef, FixedSizeListArray, GenericListArray, OffsetSizeTrait, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, FieldRef, Fields};
use shoal_kernel::limits::VALUE_ITEMS_MAX;
use shoal_kernel::{Error, ErrorCode, Result};

use super::{Dictionary, Effort, EncodedChunk, Input, decode_page, encode_chunk, encode_page, malformed, words};
use crate::segment::PAGE_ROWS;

/// Values that the lists of one page may have together.
const VALUES_MAX: usize = 64 << 20;

const _: () = assert!(PAGE_ROWS * VALUE_ITEMS_MAX <= VALUES_MAX);

/// Whether values of the type are shredded.
pub(super) fn is_shredded(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Struct(_) | DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _)
    )
}

/// Writes what the values are made of; their validity is written already.
pub(super) fn write(array: &ArrayRef, effort: Effort, out: &mut Vec<u8>) -> Result<()> {
    match array.data_type() {
        DataType::Struct(_) => {
            array.as_struct().columns().iter().try_for_each(|column| write_column(column, effort, out))
        }
        DataType::List(_) => write_list(array.as_list::<i32>(), effort, out),
        DataType::LargeList(_) => write_list(array.as_list::<i64>(), effort, out),
        DataType::FixedSizeList(_, size) => {
            let (list, size) = (array.as_fixed_size_list(), length(*size)?);
            let first = length(list.value_offset(0))?;
            write_column(&list.values().slice(first, list.len() * size), effort, out)
        }
        other => Err(Error::internal(format!("a column of type {other} is not shredded"))),
    }
}

fn write_list<O: OffsetSizeTrait>(list: &GenericListArray<O>, effort: Effort, out: &mut Vec<u8>) -> Result<()> {
    let offsets = list.value_offsets();
    let lengths: Vec<u64> = offsets.windows(2).map(|pair| (pair[1] - pair[0]).as_usize() as u64).collect();
    words::write(&lengths, None, false, effort, out);
    let first = offsets.first().map_or(0, |first| first.as_usize());
    let end = offsets.last().map_or(0, |last| last.as_usize());
    if end - first > VALUES_MAX {
        let message = format!("the lists of a page have more than {VALUES_MAX} items");
        return Err(Error::new(ErrorCode::LimitExceeded, message));
    }
    write_column(&list.values().slice(first, end - first), effort, out)
}

/// A column within a page: the bytes of its dictionary, if it has one, and those of its page.
fn write_column(column: &ArrayRef, effort: Effort, out: &mut Vec<u8>) -> Result<()> {
    let EncodedChunk { dictionary, pages } = match effort {
        Effort::Full => encode_chunk(std::slice::from_ref(column))?,
        Effort::Quick => EncodedChunk { dictionary: None, pages: vec![encode_page(column, effort)?] },
    };
    for bytes in [dictionary.unwrap_or_default(), pages.concat()] {
        let length = u32::try_from(bytes.len())
            .map_err(|_| Error::new(ErrorCode::LimitExceeded, "a part of nested values takes more than 4 GiB"))?;
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&bytes);
    }
    Ok(())
}

/// Reads all values. `None` if values of this type are not shredded.
pub(super) fn read(
    input: &mut Input<'_>,
    data_type: &DataType,
    rows: usize,
    nulls: Option<NullBuffer>,
) -> Result<Option<ArrayRef>> {
    Ok(Some(match data_type {
        DataType::Struct(fields) => read_struct(input, fields, rows, nulls)?,
        DataType::List(field) => read_list::<i32>(input, field, rows, nulls)?,
        DataType::LargeList(field) => read_list::<i64>(input, field, rows, nulls)?,
        DataType::FixedSizeList(field, size) => {
            let values = length(*size)?.checked_mul(rows).filter(|values| *values <= VALUES_MAX);
            let values = read_column(input, field.data_type(), values.ok_or_else(too_many)?)?;
            let list = FixedSizeListArray::try_new_with_length(field.clone(), *size, values, nulls, rows);
            Arc::new(list.map_err(malformed)?)
        }
        _ => return Ok(None),
    }))
}

fn read_struct(input: &mut Input<'_>, fields: &Fields, rows: usize, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
    let columns = fields.iter().map(|field| read_column(input, field.data_type(), rows)).collect::<Result<Vec<_>>>()?;
    let values = StructArray::try_new_with_length(fields.clone(), columns, nulls, rows).map_err(malformed)?;
    Ok(Arc::new(values))
}

fn read_list<O: OffsetSizeTrait>(
    input: &mut Input<'_>,
    field: &FieldRef,
    rows: usize,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef> {
    let lengths: Vec<u64> = words::read(input, rows, None)?;
    let mut offsets = Vec::with_capacity(rows + 1);
    let mut end = 0_usize;
    offsets.push(O::usize_as(0));
    for length in lengths {
        let next = usize::try_from(length).ok().and_then(|length| end.checked_add(length));
        end = next.filter(|end| *end <= VALUES_MAX).ok_or_else(too_many)?;
        offsets.push(O::usize_as(end));
    }
    let values = read_column(input, field.data_type(), end)?;
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    let list = GenericListArray::<O>::try_new(field.clone(), offsets, values, nulls).map_err(malformed)?;
    Ok(Arc::new(list))
}

fn read_column(input: &mut Input<'_>, data_type: &DataType, rows: usize) -> Result<ArrayRef> {
    let (dictionary, page) = (part(input)?, part(input)?);
    let dictionary = (!dictionary.is_empty()).then(|| Dictionary::decode(dictionary, data_type)).transpose()?;
    decode_page(page, data_type, rows, dictionary.as_ref(), None)
}

fn part<'a>(input: &mut Input<'a>) -> Result<&'a [u8]> {
    let length = input.u32()? as usize;
    input.take(length)
}

fn length(size: i32) -> Result<usize> {
    usize::try_from(size).map_err(|_| malformed("lists of a negative length"))
}

fn too_many() -> Error {
    malformed("lists of more items than a page may have")
}
