//! Hashes that replicas compare with each other: of a row's content, and of a row as the digests count it.
//!
//! They are part of the protocol between nodes and, for event tables, of the order in which rows lie on disk, so they
//! depend on stored values alone: not on the order of columns, on encodings, or on columns that were added later and are NULL.
//! XXH3, 128 bits (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>).

use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Schema};
use shoal_kernel::{Column, ColumnId, Error, ErrorCode, Result, TableSchema, Version};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use crate::key::Values;
use crate::narrow::forms_of;

const ROW_SEED: u64 = 0x5_40a2;
const FINGERPRINT_SEED: u64 = 0x5_40a3;
const VERSION_SEED: u64 = 0x5_40a4;
const BUCKET_SEED: u64 = 0x5_40a5;

/// Hash of each row's content: the sum over stored columns of the hash of the value, seeded with the column's number. NULL adds
/// nothing. A value is in the oldest form of its column that holds it exactly, so that it has one hash however it came.
pub(crate) fn content_hashes(columns: &[(ColumnId, ArrayRef)], rows: usize) -> Result<Vec<u128>> {
    let mut hashes = vec![0u128; rows];
    for (id, array) in columns {
        add_column(&mut hashes, array, u64::from(id.0))?;
    }
    Ok(hashes)
}

fn add_column(hashes: &mut [u128], array: &ArrayRef, seed: u64) -> Result<()> {
    let column = Hasher::of(array)?;
    for (row, hash) in hashes.iter_mut().enumerate().filter(|(row, _)| array.is_valid(*row)) {
        *hash = hash.wrapping_add(column.hash(row, seed)?);
    }
    Ok(())
}

/// What the digest adds for one winning row or tombstone.
pub(crate) fn version_hash(key: &[u8], version: Version, tombstone: bool, scratch: &mut Vec<u8>) -> u128 {
    scratch.clear();
    scratch.extend_from_slice(key);
    scratch.extend_from_slice(&version.0.to_be_bytes());
    scratch.push(u8::from(tombstone));
    xxh3_128_with_seed(scratch, VERSION_SEED)
}

/// The bucket of the digest that a key belongs to.
pub(crate) fn key_bucket(key: &[u8], buckets: usize) -> usize {
    (xxh3_64_with_seed(key, BUCKET_SEED) % buckets as u64) as usize
}

/// What the content digest adds for one winning row or tombstone.
pub(crate) fn content_row_hash(
    key: &[u8],
    version: Version,
    tombstone: bool,
    content: u128,
    scratch: &mut Vec<u8>,
) -> u128 {
    scratch.clear();
    scratch.extend_from_slice(key);
    scratch.extend_from_slice(&version.0.to_be_bytes());
    scratch.push(u8::from(tombstone));
    // A tombstone has no content, whatever its columns hold.
    scratch.extend_from_slice(&if tombstone { 0 } else { content }.to_le_bytes());
    xxh3_128_with_seed(scratch, ROW_SEED)
}

/// Fingerprint of rows to put, in the table's columns and their order: what [`crate::TokenRecord::fingerprint`] holds of the
/// same write.
///
/// # Errors
/// A column has a type that cannot be stored.
pub fn fingerprint_of(schema: &TableSchema, rows: &RecordBatch) -> Result<u128> {
    Ok(fingerprint(false, &content_hashes(&contents(schema, rows)?, rows.num_rows())?))
}

/// The rows as their fingerprint sees them: each value in its form, and no column that holds nothing. What they weigh does not
/// change if the table's columns do.
///
/// # Errors
/// None but bugs.
pub fn contents_of(schema: &TableSchema, rows: &RecordBatch) -> Result<RecordBatch> {
    let held = contents(schema, rows)?.into_iter().filter(|(_, array)| array.null_count() < array.len());
    let (fields, columns): (Vec<Field>, Vec<ArrayRef>) =
        held.map(|(id, array)| (Field::new(id.0.to_string(), array.data_type().clone(), true), array)).unzip();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
        .map_err(|error| Error::internal(error.to_string()))
}

fn contents(schema: &TableSchema, rows: &RecordBatch) -> Result<Vec<(ColumnId, ArrayRef)>> {
    let forms = |column: &Column| Some(forms_of(schema, column.id, rows.column_by_name(&column.name)?.clone()));
    Ok(schema.columns.iter().filter_map(forms).collect::<Result<Vec<_>>>()?.concat())
}

/// Fingerprint of a write's rows in their order, by which a resend is told from another write under the same token.
pub(crate) fn fingerprint(delete: bool, contents: &[u128]) -> u128 {
    let mut bytes = Vec::with_capacity(contents.len() * 16 + 1);
    bytes.push(u8::from(delete));
    contents.iter().for_each(|content| bytes.extend_from_slice(&content.to_le_bytes()));
    xxh3_128_with_seed(&bytes, FINGERPRINT_SEED)
}

enum Hasher<'a> {
    Plain(Values<'a>),
    List { items: Box<dyn Fn(usize) -> ArrayRef + 'a> },
    Struct { fields: Vec<(&'a str, &'a ArrayRef)> },
    Null,
}

impl<'a> Hasher<'a> {
    fn of(array: &'a ArrayRef) -> Result<Self> {
        Ok(match array.data_type() {
            DataType::Null => Self::Null,
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                Self::List { items: Box::new(move |row| list.value(row)) }
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                Self::List { items: Box::new(move |row| list.value(row)) }
            }
            DataType::FixedSizeList(_, _) => {
                let list = array.as_fixed_size_list();
                Self::List { items: Box::new(move |row| list.value(row)) }
            }
            DataType::Map(_, _) => {
                let map = array.as_map();
                Self::List { items: Box::new(move |row| std::sync::Arc::new(map.value(row)) as ArrayRef) }
            }
            DataType::Struct(fields) => {
                let columns = array.as_struct().columns();
                Self::Struct { fields: fields.iter().map(|field| field.name().as_str()).zip(columns).collect() }
            }
            other => Self::Plain(Values::of(array).map_err(|_| {
                Error::new(ErrorCode::Unsupported, format!("a column of type {other} cannot be stored"))
            })?),
        })
    }

    fn hash(&self, row: usize, seed: u64) -> Result<u128> {
        match self {
            Self::Plain(values) => Ok(values.with_bytes(row, |bytes| xxh3_128_with_seed(bytes, seed))),
            Self::List { items } => {
                let items = items(row);
                let hashes = content_hashes(&[(ColumnId(0), items.clone())], items.len())?;
                let mut bytes = Vec::with_capacity(hashes.len() * 16);
                hashes.iter().for_each(|hash| bytes.extend_from_slice(&hash.to_le_bytes()));
                Ok(xxh3_128_with_seed(&bytes, seed))
            }
            Self::Struct { fields } => {
                // Seeding each field with its name keeps the order of fields out of it.
                let mut sum = 1u128;
                for (name, array) in fields.iter().filter(|(_, array)| array.is_valid(row)) {
                    let name_seed = xxh3_128_with_seed(name.as_bytes(), seed) as u64;
                    sum = sum.wrapping_add(Hasher::of(array)?.hash(row, name_seed)?);
                }
                Ok(xxh3_128_with_seed(&sum.to_le_bytes(), seed))
            }
            Self::Null => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, Int64Array, StringArray};

    use super::*;

    #[test]
    fn content_does_not_depend_on_order_width_or_added_nulls() {
        let text: ArrayRef = Arc::new(StringArray::from(vec![Some("x"), None]));
        let narrow: ArrayRef = Arc::new(Int32Array::from(vec![7, -8]));
        let wide: ArrayRef = Arc::new(Int64Array::from(vec![7, -8]));
        let null: ArrayRef = Arc::new(Int64Array::from(vec![None, None]));
        let (a, b, c) = (ColumnId(1), ColumnId(2), ColumnId(3));
        let one = content_hashes(&[(a, text.clone()), (b, narrow)], 2).unwrap();
        let two = content_hashes(&[(b, wide.clone()), (c, null), (a, text.clone())], 2).unwrap();
        assert_eq!(one, two);
        assert_ne!(one, content_hashes(&[(a, text), (c, wide)], 2).unwrap());
    }

    #[test]
    fn the_row_hash_is_what_it_always_was() {
        // Compared between nodes of different builds: a change here makes every pair of replicas differ.
        let hash = content_row_hash(b"key", Version(5), false, 9, &mut Vec::new());
        assert_eq!(hash, content_row_hash(b"key", Version(5), false, 9, &mut vec![1, 2, 3]));
        assert_ne!(hash, content_row_hash(b"key", Version(5), true, 9, &mut Vec::new()));
        assert_eq!(
            content_row_hash(b"k", Version(1), true, 4, &mut Vec::new()),
            content_row_hash(b"k", Version(1), true, 0, &mut vec![])
        );
        let mut scratch = vec![7];
        const EXPECTED: [u128; 2] =
            [291_429_271_837_954_919_201_450_505_583_750_899_020, 266_599_631_748_593_441_163_706_489_361_500_286_060];
        let hashes = [false, true].map(|tombstone| version_hash(b"key", Version(5), tombstone, &mut scratch));
        assert_eq!((hashes, key_bucket(b"key", 256)), (EXPECTED, 235));
    }
}
