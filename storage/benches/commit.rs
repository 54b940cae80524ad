//! What a commit costs: new rows, and rows that replace others in memory and in segments. Time spent on the disk is small
//! where the temporary directory lies in memory (`TMPDIR=/dev/shm cargo bench -p shoal-storage`). No asserts on time.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures by the real clock on real files")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use shoal_kernel::env::real;
use shoal_kernel::{Column, ColumnId, Error, Hlc, LogId, NodeId, Result, TableKind, TableSchema, Version};
use shoal_storage::{Rows, Store, StoreOptions, Write};

const BATCH_ROWS: i64 = 5_000;
const BATCHES: i64 = 100;
const HOSTS: i64 = 1_000;
const GAUGES: u32 = 10;
const RUNS: usize = 5;

fn schema() -> Arc<TableSchema> {
    let column = |id: u32, name: &str, data_type: DataType| Column {
        id: ColumnId(id),
        name: name.into(),
        data_type,
        nullable: false,
    };
    let mut columns =
        vec![column(1, "host", DataType::Utf8), column(2, "at", DataType::Int64), column(3, "region", DataType::Utf8)];
    columns.extend((0..GAUGES).map(|gauge| column(4 + gauge, &format!("g{gauge}"), DataType::Float64)));
    Arc::new(TableSchema::new(columns, TableKind::Upsert { primary_key: vec![ColumnId(1), ColumnId(2)] }))
}

/// Rows of which `key` says host and time.
fn batch(schema: &TableSchema, key: impl Fn(i64) -> (i64, i64)) -> Result<RecordBatch> {
    let keys: Vec<(i64, i64)> = (0..BATCH_ROWS).map(key).collect();
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(keys.iter().map(|(host, _)| format!("host_{host}")))),
        Arc::new(Int64Array::from_iter_values(keys.iter().map(|(_, at)| *at))),
        Arc::new(StringArray::from_iter_values(keys.iter().map(|(host, _)| format!("region-{}", host % 9)))),
    ];
    for gauge in 0..i64::from(GAUGES) {
        let value = |(host, at): &(i64, i64)| ((host * 31 + at * 7 + gauge * 13) % 1000) as f64 / 10.0;
        columns.push(Arc::new(Float64Array::from_iter_values(keys.iter().map(value))));
    }
    RecordBatch::try_new(schema.arrow(), columns).map_err(|error| Error::internal(error.to_string()))
}

fn commit_all(store: &Store, batches: &[RecordBatch], first: u64) -> Result<Duration> {
    let start = Instant::now();
    for (number, batch) in (first..).zip(batches) {
        let version = Version::new(Hlc(number), NodeId(1), 0);
        let write = Write { version, token: None, rows: Rows::Put(batch.clone()) };
        store.commit(vec![write], 0)?.remove(0)?;
    }
    Ok(start.elapsed())
}

fn main() -> Result<()> {
    let env = real::env(&real::RealOptions::default())?;
    let schema = schema();
    let fresh = (0..BATCHES)
        .map(|number| batch(&schema, |row| (row % HOSTS, number * (BATCH_ROWS / HOSTS) + row / HOSTS)))
        .collect::<Result<Vec<_>>>()?;
    let scattered = |number: i64, row: i64| (number * BATCH_ROWS + row) * 7_919 % (BATCHES * BATCH_ROWS);
    let replacing = (0..BATCHES)
        .map(|number| batch(&schema, |row| (scattered(number, row) % HOSTS, scattered(number, row) / HOSTS)))
        .collect::<Result<Vec<_>>>()?;
    let rows = (BATCHES * BATCH_ROWS) as f64;
    let mut best = [f64::MAX; 5];
    for _ in 0..RUNS {
        let dir = tempfile::tempdir()?;
        let options = StoreOptions { disk_reserve_bytes: 0, memtables_bytes_max: 4 << 30, ..StoreOptions::default() };
        let open = |log| Store::open(env.disk(), dir.path(), schema.clone(), options.clone(), LogId(log), 9);
        let (store, _) = open(1)?;
        let mut figures = vec![commit_all(&store, &fresh, 1)?, commit_all(&store, &replacing, 1_000)?];
        let start = Instant::now();
        store.flush()?;
        figures.push(start.elapsed());
        figures.push(commit_all(&store, &replacing, 2_000)?);
        store.flush()?;
        drop(store);
        let (store, _) = open(2)?;
        let start = Instant::now();
        store.digest()?;
        figures.push(start.elapsed());
        for (best, figure) in best.iter_mut().zip(figures) {
            *best = best.min(figure.as_secs_f64());
        }
    }
    let what = ["new rows", "rows in memory replaced", "flush", "rows of segments replaced", "digest after a restart"];
    for (what, seconds) in what.iter().zip(best) {
        println!("{what:<28} {:>8.1} ms  {:>7.0} ns a row", seconds * 1e3, seconds * 1e9 / rows);
    }
    Ok(())
}
