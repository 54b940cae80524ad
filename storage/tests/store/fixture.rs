//! Tables, rows and readings that the tests share.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::types::Int64Type;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimeUnit};
use shoal_kernel::env::Disk;
use shoal_kernel::{
    Column, ColumnId, Hlc, KeyRange, LogId, NodeId, PartitionId, Result, ScanSpec, SchemaChange, TableId, TableKind,
    TableSchema, Version,
};
use shoal_storage::{Accepted, PullCursor, Recovery, Rows, Snapshot, SplitChild, Store, StoreOptions, Write};

pub const DIR: &str = "/data/p1";

pub fn column(id: u32, name: &str, data_type: DataType, nullable: bool) -> Column {
    Column { id: ColumnId(id), name: name.into(), data_type, nullable }
}

/// `id BIGINT PRIMARY KEY, name VARCHAR, n BIGINT NOT NULL`
pub fn upsert_schema() -> Arc<TableSchema> {
    Arc::new(TableSchema::new(
        vec![
            column(1, "id", DataType::Int64, false),
            column(2, "name", DataType::Utf8, true),
            column(3, "n", DataType::Int64, false),
        ],
        TableKind::Upsert { primary_key: vec![ColumnId(1)] },
    ))
}

/// The upsert table after so many changes: a column comes with one, and goes with the next.
pub fn altered(version: u32) -> Arc<TableSchema> {
    let next = |schema: TableSchema, version: u32| {
        let ColumnId(id) = schema.next_column;
        let change = match version % 2 {
            0 => SchemaChange::Add(column(id, "extra", DataType::Utf8, true)),
            _ => SchemaChange::Drop(ColumnId(id - 1)),
        };
        TableSchema { version, ..schema.changed(&change).unwrap() }
    };
    Arc::new((2..=version).fold(upsert_schema().as_ref().clone(), next))
}

/// Makes the next change of the upsert table.
pub fn alter(store: &Store) {
    store.adopt(altered(store.schema_version() + 1)).unwrap();
}

pub fn event_schema() -> Arc<TableSchema> {
    Arc::new(TableSchema::new(
        vec![
            column(1, "_ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
            column(2, "_dedup", DataType::Utf8, true),
            column(3, "n", DataType::Int64, true),
        ],
        TableKind::Event,
    ))
}

pub fn options() -> StoreOptions {
    StoreOptions { disk_reserve_bytes: 0, ..StoreOptions::default() }
}

pub fn version(time: u64) -> Version {
    Version::new(Hlc(time), NodeId(1), 0)
}

pub fn open_with(
    disk: &Arc<dyn Disk>,
    schema: &Arc<TableSchema>,
    options: StoreOptions,
    log: u64,
) -> Result<(Arc<Store>, Recovery)> {
    Store::open(disk.clone(), Path::new(DIR), schema.clone(), options, LogId(log), 9)
}

pub fn open(disk: &Arc<dyn Disk>) -> (Arc<Store>, Recovery) {
    open_with(disk, &upsert_schema(), options(), 7).unwrap()
}

/// Rows of the upsert table.
pub fn rows(rows: &[(i64, Option<&str>, i64)]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
    ];
    RecordBatch::try_new(upsert_schema().arrow(), columns).unwrap()
}

pub fn keys(keys: &[i64]) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.iter().copied()));
    RecordBatch::try_from_iter([("id", column)]).unwrap()
}

pub fn events(rows: &[(i64, &str, i64)]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.0)).with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
    ];
    RecordBatch::try_new(event_schema().arrow(), columns).unwrap()
}

pub fn put(time: u64, batch: RecordBatch) -> Write {
    Write { version: version(time), token: None, rows: Rows::Put(batch) }
}

pub fn delete(time: u64, batch: RecordBatch) -> Write {
    Write { version: version(time), token: None, rows: Rows::Delete(batch) }
}

pub fn with_token(write: Write, token: &str) -> Write {
    Write { token: Some(token.into()), ..write }
}

/// Commits one write that must be accepted.
pub fn commit(store: &Store, write: Write) -> Accepted {
    store.commit(vec![write], 0).unwrap().remove(0).unwrap()
}

pub fn scan_all(columns: &[u32]) -> ScanSpec {
    ScanSpec::of(TableId(1), PartitionId(1), 1, columns.iter().map(|&id| ColumnId(id)).collect())
}

pub type Table = BTreeMap<i64, (Option<String>, i64)>;

/// All rows of the upsert table; two rows with one key are a failure.
pub fn read(snapshot: &Snapshot) -> Table {
    let mut table = Table::new();
    for batch in snapshot.scan(&scan_all(&[1, 2, 3])).unwrap() {
        let batch = batch.unwrap();
        let (id, name) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_string::<i32>());
        let n = batch.column(2).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let name = name.iter().nth(row).unwrap().map(str::to_owned);
            assert_eq!(table.insert(id.value(row), (name, n.value(row))), None, "key {} twice", id.value(row));
        }
    }
    assert_eq!(snapshot.rows(), table.len() as u64);
    table
}

pub fn table(rows: &[(i64, Option<&str>, i64)]) -> Table {
    rows.iter().map(|(id, name, n)| (*id, (name.map(str::to_owned), *n))).collect()
}

/// Brings all rows of one store to another.
pub fn copy(from: &Store, to: &Store) {
    let mut cursor = PullCursor::default();
    loop {
        let pulled = from.pull(&cursor, 1 << 20).unwrap();
        let (done, next) = (pulled.done, pulled.next.clone());
        for write in pulled.into_writes() {
            to.commit(vec![write], 0).unwrap().remove(0).unwrap();
        }
        if done {
            return;
        }
        cursor = next;
    }
}

/// The children of a split in two: the keys below that one, and the others.
pub fn halves_at(store: &Store, at: &[u8], dirs: [&str; 2]) -> [SplitChild; 2] {
    let KeyRange { start, end } = store.range().clone();
    let ranges = [KeyRange { start, end: Some(at.to_vec()) }, KeyRange { start: at.to_vec(), end }];
    let mut ranges = ranges.into_iter();
    dirs.map(|dir| SplitChild {
        dir: dir.to_owned(),
        range: ranges.next().unwrap_or_default(),
        meta: dir.as_bytes().to_vec(),
    })
}
