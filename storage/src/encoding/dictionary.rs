//! The distinct values of a column chunk, in order: its pages then hold codes.

use arrow::array::{Array, ArrayData, ArrayRef, make_array};
use arrow::buffer::Buffer;
use arrow::datatypes::DataType;
use hashbrown::HashTable;
use shoal_kernel::{Error, Result};
use xxhash_rust::xxh3::xxh3_64;

use super::{Effort, Input, Physical, bytes, malformed, narrow, physical, words, words_of};

/// More distinct values than this are not worth a dictionary.
const VALUES_MAX: usize = 48 * 1024;
/// Nor are values that take more bytes than this together: a dictionary is decoded as a whole.
const BYTES_MAX: usize = 4 << 20;
/// After so many rows of which more than this share (of 8) are distinct, there will be no dictionary.
const SAMPLE_ROWS: usize = 4096;
const SAMPLE_DISTINCT_EIGHTHS: usize = 7;

/// A decoded dictionary.
#[derive(Debug, Clone)]
pub(crate) struct Dictionary {
    values: ArrayRef,
    /// Of strings: where each begins and ends.
    bounds: Vec<u32>,
    bytes: Vec<u8>,
}

impl Dictionary {
    /// The distinct values, ascending (strings by their bytes), as an array of the column's type.
    pub(crate) fn values(&self) -> &ArrayRef {
        &self.values
    }

    /// Bytes of memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.values.get_array_memory_size() + self.bounds.len() * 4 + self.bytes.len()
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn bounds(&self) -> &[u32] {
        &self.bounds
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Decodes a dictionary of that column type.
    pub(crate) fn decode(page: &[u8], data_type: &DataType) -> Result<Self> {
        let mut input = Input(page);
        let count = input.u32()? as usize;
        if count == 0 || count > VALUES_MAX {
            return Err(malformed("impossible dictionary"));
        }
        let builder = ArrayData::builder(data_type.clone()).len(count);
        let (data, bounds, bytes) = match physical(data_type) {
            Physical::Words { width, .. } => {
                (builder.add_buffer(narrow(&mut input, width, count, None)?).build(), Vec::new(), Vec::new())
            }
            Physical::Bytes { wide_offsets } => {
                let (bounds, bytes) = bytes::read(&mut input, count)?;
                let offsets = bytes::offsets(bounds.clone(), wide_offsets)?;
                let data = builder.add_buffer(offsets).add_buffer(Buffer::from_slice_ref(&bytes)).build();
                (data, bounds, bytes)
            }
            _ => return Err(malformed(format_args!("a column of type {data_type} has no dictionary"))),
        };
        Ok(Self { values: make_array(data.map_err(malformed)?), bounds, bytes })
    }
}

/// A dictionary in the making: the encoded distinct values, and the code of each row.
pub(super) struct Coded {
    pub(super) dictionary: Vec<u8>,
    /// Per page.
    pub(super) codes: Vec<Vec<u64>>,
}

/// Distinct values of the pages and their codes, unless there are too many. NULLs have code 0.
pub(super) fn encode(pages: &[ArrayRef]) -> Result<Option<Coded>> {
    let Some(first) = pages.first() else { return Ok(None) };
    let data: Vec<ArrayData> = pages.iter().map(|page| page.to_data()).collect();
    match physical(first.data_type()) {
        Physical::Words { width, signed } if width > 1 => {
            let order = |word: u64| if signed { word ^ (1 << 63) } else { word };
            let words: Vec<Vec<u64>> = data.iter().map(|data| words_of(data, width, signed)).collect();
            let rows = words.iter().map(|page| page.iter().copied().map(order));
            let Some(coded) = code(pages, rows, |word| xxh3_64(&word.to_le_bytes()), |_| width) else {
                return Ok(None);
            };
            let values: Vec<u64> = coded.values.iter().copied().map(order).collect();
            let mut dictionary = count(values.len())?;
            words::write(&values, None, signed, Effort::Full, &mut dictionary);
            Ok(Some(Coded { dictionary, codes: coded.codes }))
        }
        Physical::Bytes { wide_offsets } => {
            let rows = data.iter().map(|data| bytes::values(data, wide_offsets));
            let Some(coded) = code(pages, rows, |bytes| xxh3_64(bytes), |bytes| bytes.len()) else { return Ok(None) };
            let mut dictionary = count(coded.values.len())?;
            bytes::write(coded.values.iter().copied(), Effort::Full, &mut dictionary)?;
            Ok(Some(Coded { dictionary, codes: coded.codes }))
        }
        _ => Ok(None),
    }
}

fn count(values: usize) -> Result<Vec<u8>> {
    let count = u32::try_from(values).map_err(|_| Error::internal("a dictionary of more than 2^32 values"))?;
    Ok(count.to_le_bytes().to_vec())
}

struct Values<T> {
    /// Ascending.
    values: Vec<T>,
    codes: Vec<Vec<u64>>,
}

fn code<T: Copy + Ord>(
    pages: &[ArrayRef],
    rows: impl Iterator<Item = impl Iterator<Item = T>>,
    hash: impl Fn(&T) -> u64,
    size: impl Fn(&T) -> usize,
) -> Option<Values<T>> {
    let mut values: Vec<T> = Vec::new();
    let mut known: HashTable<u32> = HashTable::new();
    let mut codes: Vec<Vec<u64>> = Vec::with_capacity(pages.len());
    let (mut seen, mut bytes) = (0, 0);
    for (page, rows) in pages.iter().zip(rows) {
        let mut of_page = Vec::with_capacity(page.len());
        for (row, value) in rows.enumerate() {
            if page.is_null(row) {
                of_page.push(0);
                continue;
            }
            let entry = known.entry(hash(&value), |at| values[*at as usize] == value, |at| hash(&values[*at as usize]));
            let place = *entry
                .or_insert_with(|| {
                    values.push(value);
                    bytes += size(&value);
                    values.len() as u32 - 1
                })
                .get();
            of_page.push(u64::from(place));
            seen += 1;
            let hopeless = seen == SAMPLE_ROWS && values.len() * 8 > SAMPLE_ROWS * SAMPLE_DISTINCT_EIGHTHS;
            if hopeless || values.len() > VALUES_MAX || bytes > BYTES_MAX {
                return None;
            }
        }
        codes.push(of_page);
    }
    if values.is_empty() {
        return None;
    }
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_unstable_by_key(|&at| values[at as usize]);
    let mut rank = vec![0u64; values.len()];
    order.iter().zip(0..).for_each(|(&at, code)| rank[at as usize] = code);
    codes.iter_mut().flatten().for_each(|code| *code = rank[*code as usize]);
    Some(Values { values: order.iter().map(|&at| values[at as usize]).collect(), codes })
}
