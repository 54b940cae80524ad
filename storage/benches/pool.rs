//! What the page pool spares: scans and lookups with pages in the pool, and with none.
//!
//! `cargo bench -p shoal-storage --bench pool` (add `-- 4` for four times the rows). The operating system has all files in memory
//! throughout, so what is measured are calls, copies, checksums and decoded dictionaries, not a disk. Nothing here asserts a time.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures by the real clock on real files")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{
    Column, ColumnId, ColumnPredicate, CompareOp, Datum, Hlc, LogId, NodeId, PartitionId, Result, ScanSpec, TableId,
    TableKind, TableSchema, Version,
};
use shoal_storage::{PagePool, Rows, Snapshot, Store, StoreOptions, Write};

const ROWS: i64 = 1 << 20;
const BATCH_ROWS: i64 = 1 << 16;
/// The quickest counts: whatever else the machine does only adds to it.
const ROUNDS: usize = 40;
const LOOKUPS: i64 = 500;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let scale = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_i64);
    let (rows, dir) = (ROWS * scale.clamp(1, 64), tempfile::tempdir()?);
    let store = open(dir.path(), 0)?;
    for first in (0..rows).step_by(BATCH_ROWS as usize) {
        let version = Version::new(Hlc(first as u64 + 1), NodeId(1), 0);
        let write = Write { version, token: None, rows: Rows::Put(batch(first)?) };
        for done in store.commit(vec![write], 0)? {
            done?;
        }
    }
    store.flush()?;
    let stored = store.status().disk_bytes;
    store.close();
    drop(store);
    println!("{rows} rows of 8 columns, {} MB in one segment; best of {ROUNDS} scans\n", stored / 1_000_000);

    let kinds = [
        ("two columns of packed numbers", vec![1, 2]),
        ("two columns of floats", vec![5, 6]),
        ("text with dictionaries", vec![3]),
        ("text without", vec![4]),
        ("all columns", (1..=8).collect()),
    ];
    let title = "ms per scan, with a pool for";
    println!("{title:<32} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}", "MB", "nothing", "once", "all", "half", "an 8th");
    for (what, columns) in &kinds {
        let whole = open(dir.path(), 4 << 30)?;
        let once = time(|| scan(&whole.snapshot(), columns))?;
        let bytes = whole.pool().status().bytes;
        let stores = [open(dir.path(), 0)?, whole, open(dir.path(), bytes / 2)?, open(dir.path(), bytes / 8)?];
        let [nothing, all, half, eighth] = best(&stores, |store| time(|| scan(&store.snapshot(), columns)))?;
        let megabytes = bytes as f64 / 1e6;
        println!("{what:<32} {megabytes:>8.1} {nothing:>8.2} {once:>8.2} {all:>8.2} {half:>8.2} {eighth:>8.2}");
    }

    println!("\n{:<41} {:>8} {:>17}", "us per row looked up by its key", "nothing", "all");
    let stores = [open(dir.path(), 0)?, open(dir.path(), 4 << 30)?];
    let kinds = [("two columns", vec![1, 2]), ("text with dictionaries", vec![3]), ("all columns", (1..=8).collect())];
    for (what, columns) in kinds {
        let [nothing, all] = best(&stores, |store| look_up(store, rows, &columns))?;
        println!("{what:<41} {nothing:>8.2} {all:>17.2}");
    }
    Ok(())
}

fn schema() -> Arc<TableSchema> {
    let column =
        |id: u32, data_type: DataType| Column { id: ColumnId(id), name: format!("c{id}"), data_type, nullable: false };
    let columns = vec![
        column(1, DataType::Int64),
        column(2, DataType::Int64),
        column(3, DataType::Utf8),
        column(4, DataType::Utf8),
        column(5, DataType::Float64),
        column(6, DataType::Float64),
        column(7, DataType::Int64),
        column(8, DataType::Int64),
    ];
    Arc::new(TableSchema::new(columns, TableKind::Upsert { primary_key: vec![ColumnId(1)] }))
}

/// Source: splitmix64, https://prng.di.unimi.it/splitmix64.c (public domain).
fn mixed(n: i64) -> u64 {
    let mixed = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn batch(first: i64) -> Result<RecordBatch, Failure> {
    let rows = first..first + BATCH_ROWS;
    let numbers = |of: fn(i64) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(rows.clone().map(of))) };
    let floats = |of: fn(i64) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values(rows.clone().map(of))) };
    let texts = |of: fn(i64) -> String| -> ArrayRef { Arc::new(StringArray::from_iter_values(rows.clone().map(of))) };
    let columns = vec![
        numbers(|n| n),
        numbers(|n| (mixed(n) % 100_000) as i64),
        texts(|n| format!("host-{}", mixed(n) % 2_000)),
        texts(|n| format!("{:016x}", mixed(n))),
        floats(|n| mixed(n) as f64 / u64::MAX as f64),
        floats(|n| (mixed(n) % 10_000) as f64 / 100.0),
        numbers(|n| (mixed(n) % 4) as i64),
        numbers(|n| mixed(n) as i64),
    ];
    Ok(RecordBatch::try_new(schema().arrow(), columns)?)
}

fn open(dir: &Path, pool_bytes: u64) -> Result<Arc<Store>, Failure> {
    let disk = env(&RealOptions { blocking_threads: 1, blocking_jobs_max: 1, compute_threads: 1 })?.disk();
    let pool = Arc::new(PagePool::new(usize::try_from(pool_bytes)?));
    let options = StoreOptions {
        disk_reserve_bytes: 0,
        memtable_bytes_max: 4 << 30,
        memtables_bytes_max: 8 << 30,
        pool,
        ..StoreOptions::default()
    };
    Ok(Store::open(disk, dir, schema(), options, LogId(1), 0)?.0)
}

fn spec(columns: &[u32]) -> ScanSpec {
    ScanSpec::of(TableId(1), PartitionId(1), 1, columns.iter().map(|&id| ColumnId(id)).collect())
}

fn scan(snapshot: &Snapshot, columns: &[u32]) -> Result<usize> {
    snapshot.scan(&spec(columns))?.map(|batch| batch.map(|batch| batch.num_rows())).sum()
}

/// Milliseconds.
fn time<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The least of each store, which take turns.
fn best<const N: usize>(stores: &[Arc<Store>; N], measure: impl Fn(&Store) -> Result<f64>) -> Result<[f64; N]> {
    let mut best = [f64::INFINITY; N];
    for _ in 0..ROUNDS {
        for (best, store) in best.iter_mut().zip(stores) {
            *best = best.min(measure(store)?);
        }
    }
    Ok(best)
}

/// Microseconds of one lookup.
fn look_up(store: &Store, rows: i64, columns: &[u32]) -> Result<f64> {
    let snapshot = store.snapshot();
    let one = |n: i64| {
        let value = Datum::Int((mixed(n) % rows as u64) as i64);
        let predicate = ColumnPredicate::Compare { column: ColumnId(1), op: CompareOp::Eq, value };
        snapshot.scan(&ScanSpec { predicates: vec![predicate], ..spec(columns) })?.try_for_each(|batch| batch.map(drop))
    };
    let time = time(|| (0..LOOKUPS).try_for_each(one))?;
    Ok(time * 1e3 / LOOKUPS as f64)
}
