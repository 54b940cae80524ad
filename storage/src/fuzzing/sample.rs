//! Files that a store wrote, for fuzzers to begin with.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimeUnit};
use shoal_kernel::env::Disk;
use shoal_kernel::{Column, ColumnId, Hlc, LogId, NodeId, TableKind, TableSchema, Version};

use super::DIR;
use super::disk::Files;
use crate::encoding::{Effort, encode_chunk, encode_page};
use crate::options::StoreOptions;
use crate::rows::{Rows, Write};
use crate::store::Store;

/// Bytes that a reader takes, and which.
#[derive(Debug, Clone)]
pub struct Sample {
    /// `segment`, `log`, `manifest` or `page`.
    pub reader: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
}

fn column(id: u32, name: &str, data_type: DataType) -> Column {
    Column { id: ColumnId(id), name: name.into(), data_type, nullable: true }
}

fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

pub(super) fn upsert() -> Arc<TableSchema> {
    let columns = vec![
        Column { nullable: false, ..column(1, "id", DataType::Int64) },
        column(2, "name", DataType::Utf8),
        column(3, "n", DataType::Int64),
        column(4, "x", DataType::Float64),
    ];
    Arc::new(TableSchema::new(columns, TableKind::Upsert { primary_key: vec![ColumnId(1)] }))
}

pub(super) fn events() -> Arc<TableSchema> {
    let columns = vec![
        Column { nullable: false, ..column(1, "_ts", timestamp()) },
        column(2, "_dedup", DataType::Utf8),
        column(3, "n", DataType::Int64),
    ];
    Arc::new(TableSchema::new(columns, TableKind::Event))
}

/// Some rows of one of the two tables.
#[allow(clippy::expect_used, reason = "columns of one length that fit the table")]
pub(super) fn batch(schema: &TableSchema, rows: i64) -> RecordBatch {
    let numbers = |step: i64| Int64Array::from_iter((0..rows).map(|row| (row % 7 != 3).then_some(row * step % 1000)));
    let names: ArrayRef = Arc::new(StringArray::from_iter((0..rows).map(|row| match row % 5 {
        0 => None,
        at => Some(format!("name {at}")),
    })));
    let columns: Vec<ArrayRef> = match schema.is_upsert() {
        true => vec![
            Arc::new(Int64Array::from_iter_values((0..rows).map(|row| row * 3))),
            names,
            Arc::new(numbers(17)),
            Arc::new(Float64Array::from_iter_values((0..rows).map(|row| row as f64 / 4.0))),
        ],
        false => vec![
            Arc::new(TimestampMicrosecondArray::from_iter_values((0..rows).map(|row| row * 1000)).with_timezone("UTC")),
            names,
            Arc::new(numbers(5)),
        ],
    };
    RecordBatch::try_new(schema.arrow(), columns).expect("a batch of the table")
}

/// The files of a store with rows in segments and in its log.
#[allow(clippy::expect_used, reason = "a disk in memory that does not fail")]
fn files_of(schema: &Arc<TableSchema>, rows: i64, delete: bool) -> Vec<(String, Vec<u8>)> {
    let disk: Arc<dyn Disk> = Arc::new(Files::default());
    let options = StoreOptions { disk_reserve_bytes: 0, ..StoreOptions::default() };
    let opened = Store::open(disk.clone(), Path::new(DIR), schema.clone(), options, LogId(1), 9);
    let (store, _) = opened.expect("an empty store");
    let commit = |time: u64, token: Option<&str>, rows: Rows| {
        let version = Version::new(Hlc(time), NodeId(1), 0);
        let written = store.commit(vec![Write { version, token: token.map(str::to_owned), rows }], 0);
        written.and_then(|mut results| results.remove(0)).expect("a commit");
    };
    commit(1, Some("token"), Rows::Put(batch(schema, rows)));
    if delete {
        let keys: ArrayRef = Arc::new(Int64Array::from(vec![3, 9]));
        commit(2, None, Rows::Delete(RecordBatch::try_from_iter([("id", keys)]).expect("keys")));
    }
    store.flush().expect("a flush");
    commit(3, Some("other"), Rows::Put(batch(schema, 5)));
    store.flush().expect("a flush");
    commit(4, None, Rows::Put(batch(schema, 8)));
    commit(5, None, Rows::Put(batch(schema, 3)));
    drop(store);
    let names = disk.list(Path::new(DIR)).expect("a directory");
    names
        .into_iter()
        .map(|entry| (entry.name.clone(), disk.read(&Path::new(DIR).join(&entry.name)).expect("a file")))
        .collect()
}

/// The only segment of a small store.
pub(super) fn small_segment() -> &'static [u8] {
    static SEGMENT: OnceLock<Vec<u8>> = OnceLock::new();
    SEGMENT.get_or_init(|| {
        let mut files = files_of(&upsert(), 30, true).into_iter();
        files.find(|(name, _)| name.starts_with("seg-")).map(|(_, bytes)| bytes).unwrap_or_default()
    })
}

/// Files of every kind.
pub fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    for (schema, rows, delete) in [(upsert(), 30, true), (upsert(), 300, false), (events(), 100, false)] {
        for (name, bytes) in files_of(&schema, rows, delete) {
            let reader = match name.get(..4) {
                Some("seg-") => "segment",
                Some("MANI") => "manifest",
                _ => continue,
            };
            samples.push(Sample { reader, bytes });
        }
        samples.extend(pages_of(&schema).into_iter().map(|bytes| Sample { reader: "page", bytes }));
    }
    // A log as a store with nothing flushed leaves it: from the first record on.
    samples.extend(logs().into_iter().map(|bytes| Sample { reader: "log", bytes }));
    samples
}

#[allow(clippy::expect_used, reason = "a disk in memory that does not fail")]
fn logs() -> Vec<Vec<u8>> {
    let of = |schema: Arc<TableSchema>| {
        let disk: Arc<dyn Disk> = Arc::new(Files::default());
        let options = StoreOptions { disk_reserve_bytes: 0, ..StoreOptions::default() };
        let opened = Store::open(disk.clone(), Path::new(DIR), schema.clone(), options, LogId(1), 9);
        let (store, _) = opened.expect("an empty store");
        for time in 1..4 {
            let rows = Rows::Put(batch(&schema, time as i64 * 4));
            let write = Write { version: Version::new(Hlc(time), NodeId(1), 0), token: Some(format!("t{time}")), rows };
            store.commit(vec![write], 0).expect("a commit");
        }
        disk.read(&Path::new(DIR).join(crate::wal::file_name(1))).expect("a log")
    };
    vec![of(upsert()), of(events())]
}

/// Pages in every form, as [`super::page`] takes them.
#[allow(clippy::expect_used, reason = "columns that can be encoded")]
fn pages_of(schema: &TableSchema) -> Vec<Vec<u8>> {
    let types = super::page_types();
    let mut pages = Vec::new();
    let batch = batch(schema, 200);
    for array in batch.columns() {
        let Some(kind) = types.iter().position(|data_type| data_type == array.data_type()) else { continue };
        let chunk = encode_chunk(std::slice::from_ref(array)).expect("a chunk");
        let quick = encode_page(array, Effort::Quick).expect("a page");
        for (dictionary, page) in [(chunk.dictionary.unwrap_or_default(), chunk.pages[0].clone()), (Vec::new(), quick)]
        {
            let mut bytes = vec![kind as u8];
            bytes.extend_from_slice(&(array.len() as u16).to_le_bytes());
            bytes.extend_from_slice(&(dictionary.len() as u16).to_le_bytes());
            bytes.extend_from_slice(&dictionary);
            bytes.extend_from_slice(&page);
            pages.push(bytes);
        }
    }
    let list = arrow::array::ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>(
        (0..40).map(|row| (row % 3 != 0).then(|| vec![Some(row), None, Some(row * 2)])),
    );
    let page = encode_page(&(Arc::new(list) as ArrayRef), Effort::Full).expect("a page");
    pages.push([&[types.len() as u8 - 1, 40, 0, 0, 0][..], &page].concat());
    pages
}
