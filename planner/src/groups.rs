//! Numbers for groups: each key column of a row becomes a word, text by way of its code, and equal rows of words are one group.

use std::sync::Arc;

use arrow::array::types::UInt32Type;
use arrow::array::{Array, ArrayData, ArrayRef, AsArray, StringArray, make_array};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};
use hashbrown::HashTable;
use shoal_kernel::Error;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::error_to_datafusion;

/// As many as one word has bits to tell which of them are NULL.
pub(crate) const KEY_COLUMNS_MAX: usize = 63;
/// Says that a place has not been given away yet.
const NONE: u32 = u32::MAX;

/// Whether values of that type fit a word, and are equal if their words are.
pub(crate) fn is_key(data_type: &DataType) -> bool {
    width_of(data_type).is_some()
}

fn width_of(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Int8 | DataType::UInt8 => Some(1),
        DataType::Int16 | DataType::UInt16 => Some(2),
        DataType::Int32 | DataType::UInt32 | DataType::Date32 | DataType::Time32(_) => Some(4),
        DataType::Int64 | DataType::UInt64 | DataType::Date64 | DataType::Time64(_) | DataType::Timestamp(_, _) => {
            Some(8)
        }
        _ => None,
    }
}

/// The groups met so far.
pub(crate) struct Groups {
    columns: Vec<KeyColumn>,
    /// Words of the groups, row by row: one per column, and one that tells which of them are NULL.
    words: Vec<u64>,
    by_words: HashTable<u32>,
    /// Of a single column of text: the group of each text.
    by_text: Vec<u32>,
    groups: usize,
    /// Bytes of text in the key columns of all groups, written out.
    text_bytes: usize,
    indices: Vec<usize>,
    /// The words of a batch's rows, column by column, and last those that tell which are NULL.
    lanes: Vec<u64>,
    /// 1 for each row of a batch whose words are not those of the row before, and for the first.
    begins: Vec<u8>,
    /// The words of one row.
    key: Vec<u64>,
}

enum KeyColumn {
    Text(Texts),
    Words { data_type: DataType, width: usize },
}

/// Distinct texts, numbered from 1; 0 stands for NULL.
#[derive(Default)]
struct Texts {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    numbers: HashTable<u32>,
    /// The dictionary that came last, and the numbers of its values as far as they were asked for.
    last: Option<(ArrayRef, Vec<u32>)>,
}

impl Texts {
    fn get(&self, number: u32) -> &[u8] {
        text(&self.bytes, &self.ends, number)
    }

    /// Bytes of the text of that number.
    fn bytes_of(&self, number: u64) -> usize {
        if number == 0 { 0 } else { self.get(number as u32).len() }
    }

    fn number(&mut self, value: &str) -> Result<u32> {
        let Self { bytes, ends, numbers, .. } = self;
        let hash = xxh3_64(value.as_bytes());
        let same = |number: &u32| text(bytes, ends, *number) == value.as_bytes();
        let again = |number: &u32| xxh3_64(text(bytes, ends, *number));
        if let Some(number) = numbers.find(hash, same) {
            return Ok(*number);
        }
        let number = ends.len() as u32 + 1;
        numbers.insert_unique(hash, number, again);
        bytes.extend_from_slice(value.as_bytes());
        let end = i32::try_from(bytes.len()).map_err(|_| too_much())?;
        ends.push(end as u32);
        Ok(number)
    }

    /// The numbers of a batch's rows.
    fn number_rows(&mut self, array: &ArrayRef, mut put: impl FnMut(usize, u32)) -> Result<()> {
        let Some(coded) = array.as_dictionary_opt::<UInt32Type>() else {
            return Err(unfit(array.data_type()));
        };
        let values = coded.values().as_string_opt::<i32>().ok_or_else(|| unfit(array.data_type()))?;
        let known = self.last.take().filter(|(last, _)| Arc::ptr_eq(last, coded.values()));
        let mut numbers = match known {
            Some((_, numbers)) => numbers,
            None => vec![NONE; values.len()],
        };
        for (row, &code) in coded.keys().values().iter().enumerate() {
            if coded.keys().is_null(row) {
                put(row, 0);
                continue;
            }
            let mut number = numbers[code as usize];
            if number == NONE {
                number = if values.is_null(code as usize) { 0 } else { self.number(values.value(code as usize))? };
                numbers[code as usize] = number;
            }
            put(row, number);
        }
        self.last = Some((Arc::clone(coded.values()), numbers));
        Ok(())
    }

    /// The texts of these numbers.
    fn array(&self, numbers: impl Iterator<Item = u64> + Clone) -> Result<ArrayRef> {
        let nulls: NullBuffer = numbers.clone().map(|number| number != 0).collect();
        let lengths = numbers.clone().map(|number| if number == 0 { 0 } else { self.get(number as u32).len() });
        let total: usize = lengths.clone().sum();
        i32::try_from(total).map_err(|_| too_much())?;
        let mut bytes = Vec::with_capacity(total);
        numbers.filter(|number| *number != 0).for_each(|number| bytes.extend_from_slice(self.get(number as u32)));
        let offsets = OffsetBuffer::from_lengths(lengths);
        let nulls = Some(nulls).filter(|nulls| nulls.null_count() > 0);
        Ok(Arc::new(StringArray::try_new(offsets, Buffer::from_vec(bytes), nulls)?))
    }
}

fn text<'a>(bytes: &'a [u8], ends: &[u32], number: u32) -> &'a [u8] {
    let place = number as usize - 1;
    let start = if place == 0 { 0 } else { ends[place - 1] };
    &bytes[start as usize..ends[place] as usize]
}

fn too_much() -> DataFusionError {
    error_to_datafusion(Error::new(
        shoal_kernel::ErrorCode::LimitExceeded,
        "the texts of one group take more than 2 GiB",
    ))
}

fn unfit(data_type: &DataType) -> DataFusionError {
    error_to_datafusion(Error::internal(format!("a column of type {data_type} cannot be grouped by codes")))
}

impl Groups {
    /// Groups by columns that come out as these types.
    pub(crate) fn new(types: Vec<DataType>) -> Self {
        let column = |data_type: DataType| match width_of(&data_type) {
            Some(width) => KeyColumn::Words { data_type, width },
            None => KeyColumn::Text(Texts::default()),
        };
        Self {
            columns: types.into_iter().map(column).collect(),
            words: Vec::new(),
            by_words: HashTable::new(),
            by_text: Vec::new(),
            groups: 0,
            text_bytes: 0,
            indices: Vec::new(),
            lanes: Vec::new(),
            begins: Vec::new(),
            key: Vec::new(),
        }
    }

    /// Number of groups.
    pub(crate) fn len(&self) -> usize {
        self.groups
    }

    /// Bytes of text that [`Self::finish`] will write: a text is kept once and written for each of its groups.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text_bytes
    }

    /// Bytes of memory, roughly, with those that [`Self::finish`] will take.
    pub(crate) fn memory_bytes(&self) -> usize {
        let texts = self.columns.iter().map(|column| match column {
            KeyColumn::Text(texts) => texts.bytes.capacity() + texts.ends.capacity() * 4 + texts.numbers.capacity() * 5,
            KeyColumn::Words { .. } => 0,
        });
        let words = (self.words.capacity() + self.lanes.capacity() + self.indices.capacity()) * 8;
        texts.sum::<usize>() + words + self.text_bytes + self.by_words.capacity() * 5 + self.by_text.capacity() * 4
    }

    /// The group of each row, and how many groups there are now.
    pub(crate) fn place(&mut self, keys: &[ArrayRef], rows: usize) -> Result<(&[usize], usize)> {
        self.indices.clear();
        if let [KeyColumn::Text(texts)] = self.columns.as_mut_slice() {
            let (by_text, groups, words, indices) =
                (&mut self.by_text, &mut self.groups, &mut self.words, &mut self.indices);
            let key = keys.first().ok_or_else(|| unfit(&DataType::Null))?;
            let before = *groups;
            texts.number_rows(key, |_, number| {
                let place = number as usize;
                if place >= by_text.len() {
                    by_text.resize(place + 1, NONE);
                }
                if by_text[place] == NONE {
                    by_text[place] = *groups as u32;
                    *groups += 1;
                    words.push(u64::from(number));
                }
                indices.push(by_text[place] as usize);
            })?;
            self.text_bytes += self.words[before..].iter().map(|number| texts.bytes_of(*number)).sum::<usize>();
            return Ok((&self.indices, self.groups));
        }
        if rows == 0 {
            return Ok((&self.indices, self.groups));
        }
        self.read_words(keys, rows)?;
        let mut row = 0;
        while row < rows {
            // Rows that lie together are often of one group.
            let end = memchr::memchr(1, &self.begins[row + 1..]).map_or(rows, |more| row + 1 + more);
            self.key.clear();
            self.key.extend(self.lanes.iter().skip(row).step_by(rows));
            let group = self.group();
            self.indices.resize(end, group);
            row = end;
        }
        Ok((&self.indices, self.groups))
    }

    /// Reads the words of a batch's rows, and sees where others begin.
    fn read_words(&mut self, keys: &[ArrayRef], rows: usize) -> Result<()> {
        self.lanes.clear();
        self.lanes.resize(rows * (self.columns.len() + 1), 0);
        let (values, nulls) = self.lanes.split_at_mut(rows * self.columns.len());
        let columns = self.columns.iter_mut().zip(keys);
        for (at, ((column, array), lane)) in columns.zip(values.chunks_exact_mut(rows)).enumerate() {
            match column {
                KeyColumn::Text(texts) => texts.number_rows(array, |row, number| lane[row] = u64::from(number))?,
                KeyColumn::Words { width, .. } => fill(lane, nulls, at, array, *width),
            }
        }
        self.begins.clear();
        self.begins.resize(rows, 0);
        self.begins[0] = 1;
        for lane in self.lanes.chunks_exact(rows) {
            let differ = lane[1..].iter().zip(lane).map(|(word, before)| u8::from(word != before));
            self.begins[1..].iter_mut().zip(differ).for_each(|(begins, differs)| *begins |= differs);
        }
        Ok(())
    }

    /// The group of the words in `key`.
    fn group(&mut self) -> usize {
        let Self { words, key, .. } = self;
        let stride = key.len();
        let of = |group: &u32| &words[*group as usize * stride..(*group as usize + 1) * stride];
        let hash = hash(key);
        if let Some(group) = self.by_words.find(hash, |group| of(group) == key.as_slice()) {
            return *group as usize;
        }
        let group = self.groups;
        self.by_words.insert_unique(hash, group as u32, |group| self::hash(of(group)));
        words.extend_from_slice(key);
        let texts = self.columns.iter().zip(key.iter()).filter_map(|(column, number)| match column {
            KeyColumn::Text(texts) => Some(texts.bytes_of(*number)),
            KeyColumn::Words { .. } => None,
        });
        self.text_bytes += texts.sum::<usize>();
        self.groups += 1;
        group
    }

    /// The key columns of the groups, in the order of their numbers.
    pub(crate) fn finish(self) -> Result<Vec<ArrayRef>> {
        let alone = matches!(self.columns.as_slice(), [KeyColumn::Text(_)]);
        let stride = if alone { 1 } else { self.columns.len() + 1 };
        let mut arrays = Vec::with_capacity(self.columns.len());
        for (at, column) in self.columns.iter().enumerate() {
            let words = self.words.iter().skip(at).step_by(stride).copied();
            arrays.push(match column {
                KeyColumn::Text(texts) => texts.array(words)?,
                KeyColumn::Words { data_type, width } => {
                    let nulls = self.words.iter().skip(stride - 1).step_by(stride).map(|nulls| nulls >> at & 1 == 0);
                    let nulls: NullBuffer = nulls.collect();
                    let buffer = match width {
                        1 => Buffer::from_vec(words.map(|word| word as u8).collect::<Vec<_>>()),
                        2 => Buffer::from_vec(words.map(|word| word as u16).collect::<Vec<_>>()),
                        4 => Buffer::from_vec(words.map(|word| word as u32).collect::<Vec<_>>()),
                        _ => Buffer::from_vec(words.collect::<Vec<_>>()),
                    };
                    let nulls = Some(nulls).filter(|nulls| nulls.null_count() > 0);
                    let data = ArrayData::builder(data_type.clone()).len(self.groups).nulls(nulls).add_buffer(buffer);
                    make_array(data.build()?)
                }
            });
        }
        Ok(arrays)
    }
}

/// Puts the values of a column of numbers into its lane, and notes which are NULL.
fn fill(lane: &mut [u64], nulls: &mut [u64], at: usize, array: &ArrayRef, width: usize) {
    let data = array.to_data();
    let (offset, buffer) = (data.offset(), &data.buffers()[0]);
    macro_rules! values {
        ($native:ty) => {{
            let values = &buffer.typed_data::<$native>()[offset..offset + data.len()];
            lane.iter_mut().zip(values).for_each(|(word, &value)| *word = u64::from(value));
        }};
    }
    match width {
        1 => values!(u8),
        2 => values!(u16),
        4 => values!(u32),
        _ => values!(u64),
    }
    if let Some(given) = data.nulls() {
        for row in (0..data.len()).filter(|&row| given.is_null(row)) {
            lane[row] = 0;
            nulls[row] |= 1 << at;
        }
    }
}

/// Mixes the words of a key; from Knuth's multiplicative hashing, folded so that high bits count too.
fn hash(words: &[u64]) -> u64 {
    words.iter().fold(0, |hash, word| {
        let product = u128::from(hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        (product >> 64) as u64 ^ product as u64
    })
}
