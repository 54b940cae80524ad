//! What a large store takes to load, to open again and to keep in memory, and what its log waits for; on the real disk.
//!
//! ```text
//! cargo bench -p shoal-storage --bench reopen -- load <dir> <rows>   # ends as if killed, with full memtables
//! cargo bench -p shoal-storage --bench reopen -- open <dir> <threads>  # replays with helpers, scans everything, stops
//! cargo bench -p shoal-storage --bench reopen -- files <dir>         # one write and one sync: growing, given out ahead, reused
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark measures the real world, and ends when that fails"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimeUnit};
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::env::{Disk, OpenMode};
use shoal_kernel::{
    Column, ColumnId, Hlc, LogId, NodeId, PartitionId, ScanSpec, TableId, TableKind, TableSchema, Version,
};
use shoal_storage::{Replay, Rows, Store, StoreOptions, Write};

const BATCH_ROWS: usize = 5_000;
const HOSTS: usize = 1_000;
const FIELDS: u32 = 5;

fn schema() -> Arc<TableSchema> {
    let column =
        |id, name: &str, data_type, nullable| Column { id: ColumnId(id), name: name.into(), data_type, nullable };
    let mut columns = vec![
        column(1, "host", DataType::Utf8, false),
        column(2, "ts", DataType::Timestamp(TimeUnit::Microsecond, None), false),
    ];
    columns.extend((0..FIELDS).map(|field| column(3 + field, &format!("f{field}"), DataType::Float64, true)));
    Arc::new(TableSchema::new(columns, TableKind::Upsert { primary_key: vec![ColumnId(1), ColumnId(2)] }))
}

/// Every host once per ten seconds, as they report.
fn batch(first: usize) -> RecordBatch {
    let rows = first..first + BATCH_ROWS;
    let host = StringArray::from_iter_values(rows.clone().map(|row| format!("host_{}", row % HOSTS)));
    let ts = TimestampMicrosecondArray::from_iter_values(rows.clone().map(|row| (row / HOSTS) as i64 * 10_000_000));
    let mut columns: Vec<ArrayRef> = vec![Arc::new(host), Arc::new(ts)];
    columns.extend((0..FIELDS as usize).map(|field| {
        let value = |row: usize| ((row * (field + 7)).wrapping_mul(2_654_435_761) % 10_000) as f64 / 100.0;
        Arc::new(Float64Array::from_iter_values(rows.clone().map(value))) as ArrayRef
    }));
    RecordBatch::try_new(schema().arrow(), columns).unwrap()
}

/// A line of /proc/self/status, in MiB.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    found.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

fn say(what: &str, since: Instant) {
    let (now, peak) = (memory("VmRSS:"), memory("VmHWM:"));
    println!("{what}: {:.2} s, {now} MiB resident, {peak} MiB at most", since.elapsed().as_secs_f64());
}

fn open(disk: &Arc<dyn Disk>, dir: &Path, helpers: usize) -> Arc<Store> {
    let (replay, done) = (Replay::default(), AtomicBool::new(false));
    let since = Instant::now();
    let (store, recovery) = std::thread::scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    replay.help();
                    std::thread::yield_now();
                }
            });
        }
        let options = StoreOptions::default();
        let opened = Store::open_watched(disk.clone(), dir, schema(), options, LogId(1), 9, &replay).unwrap();
        done.store(true, Ordering::Relaxed);
        opened
    });
    say(&format!("opened, {} records and {} rows replayed", recovery.records_replayed, recovery.rows_replayed), since);
    store
}

fn load(disk: &Arc<dyn Disk>, dir: &Path, rows: usize) {
    let store = open(disk, dir, 0);
    let full = StoreOptions::default().memtables_bytes_max - (32 << 20);
    let since = Instant::now();
    let mut loaded = 0;
    while loaded < rows || store.status().memtable_bytes < full {
        let version = Version::new(Hlc::from_micros(loaded as u64 + 1), NodeId(1), 0);
        let write = Write { version, token: None, rows: Rows::Put(batch(loaded)) };
        store.commit(vec![write], 0).unwrap().remove(0).unwrap();
        loaded += BATCH_ROWS;
        if loaded < rows && store.maintenance_due() {
            store.flush().unwrap();
            while store.compact().unwrap() {}
        }
        if loaded.is_multiple_of(rows / 10) {
            say(&format!("loaded {loaded} rows"), since);
        }
    }
    let status = store.status();
    say(
        &format!("loaded {loaded} rows, {} B of log, {} B of memtables", status.wal_bytes, status.memtable_bytes),
        since,
    );
    // As if killed: nothing is closed.
    std::process::exit(0);
}

fn reopen(disk: &Arc<dyn Disk>, dir: &Path, helpers: usize) {
    let store = open(disk, dir, helpers);
    let since = Instant::now();
    let spec = ScanSpec::of(TableId(1), PartitionId(1), 1, schema().columns.iter().map(|column| column.id).collect());
    let rows: usize = store.snapshot().scan(&spec).unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    say(&format!("scanned {rows} rows"), since);
    let since = Instant::now();
    store.flush().unwrap();
    store.close();
    say("flushed and closed", since);
}

/// How long one write of a log and its sync take. The kinds take turns, so that what else the machine does hits all of them.
fn files(disk: &Arc<dyn Disk>, dir: &Path) {
    disk.create_dir_all(dir).unwrap();
    let writes = 400;
    for bytes in [1_000, 100_000] {
        let frame: Vec<u8> = (0..bytes).map(|at| (at * 31) as u8).collect();
        let kinds = ["growing", "given out ahead", "reused"];
        let make = |kind: &str| {
            let file = disk.open(&dir.join(kind), OpenMode::CreateNew).unwrap();
            match kind {
                "given out ahead" => file.set_len((writes * bytes) as u64).unwrap(),
                "reused" => (0..writes).for_each(|at| file.write_all_at(&frame, (at * bytes) as u64).unwrap()),
                _ => {}
            }
            file.sync().unwrap();
            file
        };
        let files = kinds.map(make);
        disk.sync_dir(dir).unwrap();
        let mut times = kinds.map(|_| Vec::new());
        for at in 0..writes {
            for (file, times) in files.iter().zip(&mut times) {
                let since = Instant::now();
                file.write_all_at(&frame, (at * bytes) as u64).unwrap();
                file.sync().unwrap();
                times.push(since.elapsed());
            }
        }
        for (kind, mut times) in kinds.into_iter().zip(times) {
            times.sort();
            let (middle, late) = (times[writes / 2].as_micros(), times[writes * 95 / 100].as_micros());
            println!("{bytes} B, {kind}: median {middle} us, 95th percentile {late} us");
            disk.remove_file(&dir.join(kind)).unwrap();
        }
    }
    let mut times: Vec<Duration> = Vec::new();
    for at in 0..50 {
        let since = Instant::now();
        let path = dir.join(format!("roll-{at}"));
        disk.replace(&path, &[1; 200]).unwrap();
        times.push(since.elapsed());
        disk.remove_file(&path).unwrap();
    }
    times.sort();
    println!("a new file in place: median {} us, at most {} us", times[25].as_micros(), times[49].as_micros());
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let disk = env(&RealOptions::default()).unwrap().disk();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["load", dir, rows] => load(&disk, Path::new(dir), rows.parse().unwrap()),
        ["open", dir, threads] => reopen(&disk, Path::new(dir), threads.parse::<usize>().unwrap().saturating_sub(1)),
        ["files", dir] => files(&disk, Path::new(dir)),
        // As run with all other benchmarks, without a directory to work in.
        _ => println!("say: load <dir> <rows>, open <dir> <threads>, or files <dir>"),
    }
}
