//! Pages: the values of one column for a run of rows, encoded by what makes them small and quick to decode.
//!
//! A page is self-contained given its Arrow type and its number of rows. The same form serves segments (with every effort
//! to be small) and the log (cheap encodings only). Byte layouts are in `FORMAT.md`. Decoding trusts nothing: bytes that
//! passed their checksum and still make no sense are an error, never a panic.

mod blob;
mod bytes;
mod words;

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, make_array};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use shoal_kernel::{Error, ErrorCode, Result};

const TAG_WORDS: u8 = 1;
const TAG_BITS: u8 = 2;
const TAG_BYTES: u8 = 3;
const TAG_IPC: u8 = 4;
const TAG_FIXED: u8 = 5;

const FLAG_VALIDITY: u8 = 1;

/// How hard to look for a small form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effort {
    /// What costs next to nothing: for the log.
    Quick,
    /// Everything: for segments.
    Full,
}

/// How the values of a type lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Physical {
    /// Numbers of that many bytes; `signed` says how they compare, which only matters for size.
    Words {
        width: usize,
        signed: bool,
    },
    Bits,
    Bytes {
        wide_offsets: bool,
    },
    Fixed {
        width: usize,
    },
    Other,
}

fn physical(data_type: &DataType) -> Physical {
    let words = |width, signed| Physical::Words { width, signed };
    match data_type {
        DataType::Int8 => words(1, true),
        DataType::Int16 => words(2, true),
        DataType::Int32 | DataType::Date32 | DataType::Time32(_) => words(4, true),
        DataType::Int64
        | DataType::Date64
        | DataType::Time64(TimeUnit::Microsecond | TimeUnit::Nanosecond)
        | DataType::Timestamp(_, _)
        | DataType::Duration(_) => words(8, true),
        DataType::UInt8 => words(1, false),
        DataType::UInt16 => words(2, false),
        DataType::UInt32 | DataType::Float32 => words(4, false),
        DataType::UInt64 | DataType::Float64 => words(8, false),
        DataType::Boolean => Physical::Bits,
        DataType::Utf8 | DataType::Binary => Physical::Bytes { wide_offsets: false },
        DataType::LargeUtf8 | DataType::LargeBinary => Physical::Bytes { wide_offsets: true },
        DataType::Decimal128(_, _) => Physical::Fixed { width: 16 },
        DataType::FixedSizeBinary(width) => Physical::Fixed { width: usize::try_from(*width).unwrap_or(0) },
        _ => Physical::Other,
    }
}

pub(crate) fn malformed(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::Corruption, format!("malformed page: {what}"))
}

/// Encodes the values of an array.
pub(crate) fn encode_page(array: &ArrayRef, effort: Effort) -> Result<Vec<u8>> {
    let kind = physical(array.data_type());
    let mut out = Vec::new();
    if kind == Physical::Other {
        out.extend_from_slice(&[TAG_IPC, 0]);
        blob::write(&ipc_bytes(array)?, effort, &mut out)?;
        return Ok(out);
    }
    let validity = array.nulls().filter(|nulls| nulls.null_count() > 0);
    let tag = match kind {
        Physical::Words { .. } => TAG_WORDS,
        Physical::Bits => TAG_BITS,
        Physical::Bytes { .. } => TAG_BYTES,
        Physical::Fixed { .. } | Physical::Other => TAG_FIXED,
    };
    out.extend_from_slice(&[tag, if validity.is_some() { FLAG_VALIDITY } else { 0 }]);
    if let Some(nulls) = validity {
        write_bits(nulls.inner(), &mut out);
    }
    let data = array.to_data();
    match kind {
        Physical::Words { width, signed } => {
            words::write(&words_of(&data, width, signed), validity, signed, effort, &mut out)
        }
        Physical::Bits => {
            let bits = arrow::array::cast::AsArray::as_boolean(array).values().clone();
            write_bits(&bits, &mut out);
        }
        Physical::Bytes { wide_offsets } => bytes::write(&data, wide_offsets, effort, &mut out)?,
        Physical::Fixed { width } => {
            let start = data.offset() * width;
            blob::write(&data.buffers()[0].as_slice()[start..start + data.len() * width], effort, &mut out)?;
        }
        Physical::Other => {}
    }
    Ok(out)
}

/// Decodes what [`encode_page`] made of an array of that type and length.
pub(crate) fn decode_page(page: &[u8], data_type: &DataType, rows: usize) -> Result<ArrayRef> {
    let mut input = Input(page);
    let (tag, flags) = (input.u8()?, input.u8()?);
    if flags & !FLAG_VALIDITY != 0 {
        return Err(malformed(format_args!("unknown flags {flags:#x}")));
    }
    if tag == TAG_IPC {
        return from_ipc_bytes(&blob::read(&mut input)?, data_type, rows);
    }
    let nulls = match flags & FLAG_VALIDITY {
        0 => None,
        _ => Some(NullBuffer::new(read_bits(&mut input, rows)?)),
    };
    let builder = ArrayData::builder(data_type.clone()).len(rows).nulls(nulls.clone());
    let data = match (tag, physical(data_type)) {
        (TAG_WORDS, Physical::Words { width, .. }) => {
            let values = words::read(&mut input, rows)?;
            builder.add_buffer(narrow(values, width)).build()
        }
        (TAG_BITS, Physical::Bits) => return Ok(Arc::new(BooleanArray::new(read_bits(&mut input, rows)?, nulls))),
        (TAG_BYTES, Physical::Bytes { wide_offsets }) => {
            let (offsets, values) = bytes::read(&mut input, rows, wide_offsets)?;
            builder.add_buffer(offsets).add_buffer(values).build()
        }
        (TAG_FIXED, Physical::Fixed { width }) => {
            let values = blob::read(&mut input)?;
            if values.len() != rows * width {
                return Err(malformed("wrong length of fixed-size values"));
            }
            // Copied into a buffer with the alignment that 128-bit values need.
            builder.add_buffer(Buffer::from_slice_ref(&values)).align_buffers(true).build()
        }
        (tag, _) => return Err(malformed(format_args!("encoding {tag} does not fit type {data_type}"))),
    };
    Ok(make_array(data.map_err(malformed)?))
}

fn words_of(data: &ArrayData, width: usize, signed: bool) -> Vec<u64> {
    let (start, end) = (data.offset(), data.offset() + data.len());
    let buffer = &data.buffers()[0];
    // Sign extension makes -1 and 0 neighbours; unsigned numbers and the bits of floats are taken as they are.
    macro_rules! widen {
        ($native:ty, $wide:ty) => {
            buffer.typed_data::<$native>()[start..end].iter().map(|&value| <$wide>::from(value) as u64).collect()
        };
    }
    match (width, signed) {
        (1, true) => widen!(i8, i64),
        (2, true) => widen!(i16, i64),
        (4, true) => widen!(i32, i64),
        (_, true) => widen!(i64, i64),
        (1, false) => widen!(u8, u64),
        (2, false) => widen!(u16, u64),
        (4, false) => widen!(u32, u64),
        (_, false) => widen!(u64, u64),
    }
}

fn narrow(words: Vec<u64>, width: usize) -> Buffer {
    match width {
        1 => Buffer::from_vec(words.into_iter().map(|word| word as u8).collect::<Vec<_>>()),
        2 => Buffer::from_vec(words.into_iter().map(|word| word as u16).collect::<Vec<_>>()),
        4 => Buffer::from_vec(words.into_iter().map(|word| word as u32).collect::<Vec<_>>()),
        _ => Buffer::from_vec(words),
    }
}

fn write_bits(bits: &BooleanBuffer, out: &mut Vec<u8>) {
    let bytes = bits.len().div_ceil(8);
    out.extend_from_slice(&bits.sliced().as_slice()[..bytes]);
    // Bits past the end are whatever the buffer held; equal pages must have equal bytes.
    if let (Some(last), 1..) = (out.last_mut(), bits.len() % 8) {
        *last &= (1u8 << (bits.len() % 8)) - 1;
    }
}

fn read_bits(input: &mut Input<'_>, rows: usize) -> Result<BooleanBuffer> {
    Ok(BooleanBuffer::new(Buffer::from(input.take(rows.div_ceil(8))?), 0, rows))
}

fn ipc_bytes(array: &ArrayRef) -> Result<Vec<u8>> {
    let failed = |error| Error::internal(format!("cannot encode a column of type {}: {error}", array.data_type()));
    let schema = Arc::new(Schema::new(vec![Field::new("", array.data_type().clone(), true)]));
    let options = RecordBatchOptions::new().with_row_count(Some(array.len()));
    let batch = RecordBatch::try_new_with_options(schema.clone(), vec![array.clone()], &options).map_err(failed)?;
    let mut out = Vec::new();
    let mut writer = StreamWriter::try_new(&mut out, &schema).map_err(failed)?;
    writer.write(&batch).map_err(failed)?;
    writer.finish().map_err(failed)?;
    drop(writer);
    Ok(out)
}

fn from_ipc_bytes(bytes: &[u8], data_type: &DataType, rows: usize) -> Result<ArrayRef> {
    let mut reader = StreamReader::try_new(bytes, None).map_err(malformed)?;
    let batch = reader.next().ok_or_else(|| malformed("no batch"))?.map_err(malformed)?;
    match batch.columns().first() {
        Some(array) if array.data_type() == data_type && array.len() == rows => Ok(array.clone()),
        _ => Err(malformed("a batch of another type or length")),
    }
}

/// Bytes still to be read.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(bytes).ok_or_else(|| malformed("cut short"))?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        let (head, tail) = self.0.split_first_chunk::<4>().ok_or_else(|| malformed("cut short"))?;
        self.0 = tail;
        Ok(u32::from_le_bytes(*head))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        let (head, tail) = self.0.split_first_chunk::<8>().ok_or_else(|| malformed("cut short"))?;
        self.0 = tail;
        Ok(u64::from_le_bytes(*head))
    }
}

#[cfg(test)]
mod tests;
