//! Pages: the values of one column for a run of rows, encoded by what makes them small and quick to decode.
//!
//! A page is self-contained given its Arrow type, its number of rows and, if its column chunk has one, the dictionary. The
//! same form serves segments (with every effort to be small) and the log (cheap encodings only). Byte layouts are in
//! `FORMAT.md`. Decoding trusts nothing: bytes that passed their checksum and still make no sense are an error, never a panic.

mod blob;
mod bytes;
mod decimal;
mod describe;
mod dictionary;
mod ipc;
mod nested;
mod packed;
mod words;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, BooleanArray, UInt32Array, make_array, new_null_array};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow::compute::take;
use arrow::datatypes::{DataType, Decimal128Type, TimeUnit};
use shoal_kernel::{Error, ErrorCode, Result};

pub(crate) use describe::describe;
pub(crate) use dictionary::Dictionary;

const TAG_WORDS: u8 = 1;
const TAG_BITS: u8 = 2;
const TAG_BYTES: u8 = 3;
const TAG_IPC: u8 = 4;
const TAG_FIXED: u8 = 5;
/// Codes into the chunk's dictionary.
const TAG_CODES: u8 = 6;
const TAG_DECIMALS: u8 = 7;
const TAG_NULLS: u8 = 8;
const TAG_NESTED: u8 = 9;

/// Plain pages of fewer bits per row gain nothing from a dictionary.
const DICTIONARY_BITS_MIN: usize = 10;

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

/// A column of one row group, encoded.
#[derive(Debug)]
pub(crate) struct EncodedChunk {
    /// What the codes of the pages stand for, if it was worth it.
    pub(crate) dictionary: Option<Vec<u8>>,
    pub(crate) pages: Vec<Vec<u8>>,
}

/// Encodes the pages of a column chunk in the form that measures smallest.
pub(crate) fn encode_chunk(arrays: &[ArrayRef]) -> Result<EncodedChunk> {
    let plain = || arrays.iter().map(|array| encode_page(array, Effort::Full)).collect::<Result<Vec<_>>>();
    let is_text = arrays.first().is_some_and(|array| matches!(physical(array.data_type()), Physical::Bytes { .. }));
    if is_text {
        // Codes are also what is quickest to compare and to group by, so text is measured only where it hardly repeats.
        return match dictionary::encode(arrays)? {
            Some(coded) => coded_chunk(arrays, coded),
            None => Ok(EncodedChunk { dictionary: None, pages: plain()? }),
        };
    }
    let pages = plain()?;
    let bytes: usize = pages.iter().map(Vec::len).sum();
    let rows: usize = arrays.iter().map(|array| array.len()).sum();
    if bytes * 8 > rows * DICTIONARY_BITS_MIN
        && let Some(coded) = dictionary::encode(arrays)?
    {
        let chunk = coded_chunk(arrays, coded)?;
        let coded_bytes = chunk.pages.iter().chain(&chunk.dictionary).map(Vec::len).sum::<usize>();
        if coded_bytes < bytes / 8 * 7 {
            return Ok(chunk);
        }
    }
    Ok(EncodedChunk { dictionary: None, pages })
}

/// Whether a column chunk repeats itself so that a dictionary may pay.
pub(crate) fn repeats(arrays: &[ArrayRef]) -> Result<bool> {
    Ok(dictionary::encode(arrays)?.is_some())
}

fn coded_chunk(arrays: &[ArrayRef], coded: dictionary::Coded) -> Result<EncodedChunk> {
    let page = |(array, codes): (&ArrayRef, &Vec<u64>)| {
        let mut out = Vec::new();
        let validity = start_page(TAG_CODES, array, &mut out);
        words::write(codes, validity, false, Effort::Full, &mut out);
        out
    };
    let pages = arrays.iter().zip(&coded.codes).map(page).collect();
    Ok(EncodedChunk { dictionary: Some(coded.dictionary), pages })
}

/// Writes kind, flags and validity; gives the validity if it is one to mind.
fn start_page<'a>(tag: u8, array: &'a ArrayRef, out: &mut Vec<u8>) -> Option<&'a NullBuffer> {
    let validity = array.nulls().filter(|nulls| nulls.null_count() > 0);
    out.extend_from_slice(&[tag, if validity.is_some() { FLAG_VALIDITY } else { 0 }]);
    if let Some(nulls) = validity {
        write_bits(nulls.inner(), out);
    }
    validity
}

/// Encodes the values of an array.
pub(crate) fn encode_page(array: &ArrayRef, effort: Effort) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    if effort == Effort::Full && !array.is_empty() && array.null_count() == array.len() {
        return Ok(vec![TAG_NULLS, 0]);
    }
    let data = array.to_data();
    match physical(array.data_type()) {
        Physical::Words { width, signed } => {
            let words = words_of(&data, width, signed);
            let write = match array.data_type() {
                DataType::Float64 => {
                    Some(decimal::write::<u64> as fn(&[u64], Option<&NullBuffer>, &mut Vec<u8>) -> bool)
                }
                DataType::Float32 => Some(decimal::write::<u32> as _),
                _ => None,
            };
            if let Some(write) = write.filter(|_| effort == Effort::Full) {
                let validity = start_page(TAG_DECIMALS, array, &mut out);
                if write(&words, validity, &mut out) {
                    return Ok(out);
                }
                out.clear();
            }
            let validity = start_page(TAG_WORDS, array, &mut out);
            words::write(&words, validity, signed, effort, &mut out);
        }
        Physical::Bits => {
            start_page(TAG_BITS, array, &mut out);
            let bits = arrow::array::cast::AsArray::as_boolean(array).values().clone();
            write_bits(&bits, &mut out);
        }
        Physical::Bytes { wide_offsets } => {
            start_page(TAG_BYTES, array, &mut out);
            bytes::write(bytes::values(&data, wide_offsets), effort, &mut out)?;
        }
        Physical::Fixed { width } => {
            if effort == Effort::Full
                && let Some(words) = words_of_decimals(array)
            {
                let validity = start_page(TAG_WORDS, array, &mut out);
                words::write(&words, validity, true, effort, &mut out);
                return Ok(out);
            }
            start_page(TAG_FIXED, array, &mut out);
            let start = data.offset() * width;
            blob::write(&data.buffers()[0].as_slice()[start..start + data.len() * width], effort, &mut out)?;
        }
        Physical::Other if nested::is_shredded(array.data_type()) => {
            start_page(TAG_NESTED, array, &mut out);
            nested::write(array, effort, &mut out)?;
        }
        Physical::Other => {
            out.extend_from_slice(&[TAG_IPC, 0]);
            blob::write(&ipc::write(array)?, effort, &mut out)?;
        }
    }
    Ok(out)
}

/// Kind and validity of a page, and where its body begins.
fn open_page<'a>(page: &'a [u8], rows: usize) -> Result<(u8, Option<NullBuffer>, Input<'a>)> {
    let mut input = Input(page);
    let (tag, flags) = (input.u8()?, input.u8()?);
    if flags & !FLAG_VALIDITY != 0 {
        return Err(malformed(format_args!("unknown flags {flags:#x}")));
    }
    let nulls = match flags & FLAG_VALIDITY {
        0 => None,
        _ => Some(NullBuffer::new(read_bits(&mut input, rows)?)),
    };
    Ok((tag, nulls, input))
}

/// The codes of a page, if it has any, of all rows or the wanted ones (ascending), all within the dictionary; and which of
/// these rows are not NULL.
pub(crate) fn decode_codes(
    page: &[u8],
    rows: usize,
    dictionary: &Dictionary,
    wanted: Option<&[u32]>,
) -> Result<Option<(Vec<u32>, Option<NullBuffer>)>> {
    let (tag, nulls, mut input) = open_page(page, rows)?;
    if tag != TAG_CODES {
        return Ok(None);
    }
    let codes: Vec<u32> = words::read(&mut input, rows, wanted)?;
    match codes.iter().fold(0, |most, &code| most.max(code)) as usize >= dictionary.len() {
        true => Err(malformed("code outside the dictionary")),
        false => Ok(Some((codes, pick_nulls(nulls, wanted)))),
    }
}

fn pick_nulls(nulls: Option<NullBuffer>, wanted: Option<&[u32]>) -> Option<NullBuffer> {
    match wanted {
        None => nulls,
        Some(wanted) => nulls.map(|nulls| wanted.iter().map(|&row| nulls.is_valid(row as usize)).collect()),
    }
}

/// Decodes what [`encode_page`] or [`encode_chunk`] made of an array of that type and length: all of its rows, or the wanted
/// ones (ascending).
pub(crate) fn decode_page(
    page: &[u8],
    data_type: &DataType,
    rows: usize,
    dictionary: Option<&Dictionary>,
    wanted: Option<&[u32]>,
) -> Result<ArrayRef> {
    if let Some(dictionary) = dictionary
        && let Some((codes, nulls)) = decode_codes(page, rows, dictionary, wanted)?
    {
        return from_codes(codes, nulls, data_type, dictionary);
    }
    decode_plain(page, data_type, rows, wanted)
}

/// The values that checked codes stand for.
fn from_codes(
    codes: Vec<u32>,
    nulls: Option<NullBuffer>,
    data_type: &DataType,
    dictionary: &Dictionary,
) -> Result<ArrayRef> {
    let Physical::Bytes { wide_offsets } = physical(data_type) else {
        let indices = UInt32Array::new(codes.into(), nulls);
        return take(dictionary.values(), &indices, None).map_err(malformed);
    };
    let rows = codes.len();
    let (bounds, bytes) = bytes::gather(&codes, nulls.as_ref(), dictionary)?;
    let builder = ArrayData::builder(data_type.clone()).len(rows).nulls(nulls);
    let data = builder.add_buffer(bytes::offsets(bounds, wide_offsets)?).add_buffer(Buffer::from_vec(bytes));
    // SAFETY: the offsets ascend from zero to the length of the bytes, and each value is one of the dictionary's, which were
    // validated as a whole when it was decoded.
    Ok(make_array(unsafe { data.build_unchecked() }))
}

fn decode_plain(page: &[u8], data_type: &DataType, rows: usize, wanted: Option<&[u32]>) -> Result<ArrayRef> {
    let (tag, nulls, mut input) = open_page(page, rows)?;
    let numbers = match (tag, physical(data_type)) {
        (TAG_WORDS, Physical::Words { width, .. }) => Some(narrow(&mut input, width, rows, wanted)?),
        (TAG_WORDS, Physical::Fixed { .. }) if matches!(data_type, DataType::Decimal128(..)) => {
            let words = words::read::<u64>(&mut input, rows, wanted)?;
            // As they were sign-extended.
            Some(Buffer::from_vec(words.into_iter().map(|word| i128::from(word as i64)).collect()))
        }
        (TAG_DECIMALS, Physical::Words { width: 4, .. }) => {
            Some(Buffer::from_vec(decimal::read::<u32>(&mut input, rows, wanted)?))
        }
        (TAG_DECIMALS, Physical::Words { width: 8, .. }) => {
            Some(Buffer::from_vec(decimal::read::<u64>(&mut input, rows, wanted)?))
        }
        _ => None,
    };
    if let Some(numbers) = numbers {
        let builder = ArrayData::builder(data_type.clone()).len(wanted.map_or(rows, <[u32]>::len));
        let data = builder.nulls(pick_nulls(nulls, wanted)).add_buffer(numbers).build();
        return Ok(make_array(data.map_err(malformed)?));
    }
    let builder = ArrayData::builder(data_type.clone()).len(rows).nulls(nulls.clone());
    let data = match (tag, physical(data_type)) {
        (TAG_NULLS, _) => return Ok(new_null_array(data_type, wanted.map_or(rows, <[u32]>::len))),
        (TAG_NESTED, _) => match nested::read(&mut input, data_type, rows, nulls)? {
            Some(values) => values.to_data(),
            None => return Err(malformed(format_args!("values of type {data_type} are not nested"))),
        },
        (TAG_IPC, _) => ipc::read(&blob::read(&mut input)?, data_type, rows)?.to_data(),
        (TAG_BITS, Physical::Bits) => BooleanArray::new(read_bits(&mut input, rows)?, nulls).into_data(),
        (TAG_BYTES, Physical::Bytes { wide_offsets }) => {
            let (bounds, bytes) = bytes::read(&mut input, rows)?;
            let builder = builder.add_buffer(bytes::offsets(bounds, wide_offsets)?);
            builder.add_buffer(Buffer::from_vec(bytes)).build().map_err(malformed)?
        }
        (TAG_FIXED, Physical::Fixed { width }) => {
            let values = blob::read(&mut input)?;
            if values.len() != rows * width {
                return Err(malformed("wrong length of fixed-size values"));
            }
            // Copied into a buffer with the alignment that 128-bit values need.
            let builder = builder.add_buffer(Buffer::from_slice_ref(&values));
            builder.align_buffers(true).build().map_err(malformed)?
        }
        (tag, _) => return Err(malformed(format_args!("encoding {tag} does not fit type {data_type}"))),
    };
    let all = make_array(data);
    match wanted {
        None => Ok(all),
        Some(wanted) => take(&all, &UInt32Array::from(wanted.to_vec()), None).map_err(malformed),
    }
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

/// Decimals as numbers of 64 bits, if that is what they are and all of them fit: they unpack many times faster than bytes decompress.
fn words_of_decimals(array: &ArrayRef) -> Option<Vec<u64>> {
    let decimals = array.as_primitive_opt::<Decimal128Type>()?;
    let word = |(row, value): (usize, &i128)| match decimals.is_valid(row) {
        true => i64::try_from(*value).ok().map(|value| value as u64),
        false => Some(0),
    };
    decimals.values().iter().enumerate().map(word).collect()
}

/// Reads numbers of that width in bytes.
fn narrow(input: &mut Input<'_>, width: usize, rows: usize, wanted: Option<&[u32]>) -> Result<Buffer> {
    Ok(match width {
        1 => Buffer::from_vec(words::read::<u8>(input, rows, wanted)?),
        2 => Buffer::from_vec(words::read::<u16>(input, rows, wanted)?),
        4 => Buffer::from_vec(words::read::<u32>(input, rows, wanted)?),
        _ => Buffer::from_vec(words::read::<u64>(input, rows, wanted)?),
    })
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
