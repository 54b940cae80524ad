//! What compaction costs and what it saves: write amplification, space amplification, and scans of what was overwritten.
//!
//! `cargo bench -p shoal-storage --bench amplification` (add `-- 4` for four times the rows). Nothing here asserts a time.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures by the real clock on real files")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimeUnit};
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{
    Column, ColumnId, Hlc, LogId, NodeId, PartitionId, Result, ScanSpec, TableId, TableKind, TableSchema, Version,
};
use shoal_storage::{CompactionProgress, Rows, Store, StoreOptions, Write};

/// Rows of one flush. A memtable has some hundred thousand; what counts is how many flushes a table has.
const FLUSH_ROWS: i64 = 16_384;
const FLUSHES: i64 = 16;
const SCANS: usize = 15;
const HOUR_MICROS: i64 = 3_600_000_000;
const START_MICROS: i64 = 493_440 * HOUR_MICROS;
/// Events span 30 days.
const SPAN_MICROS: i64 = 30 * 24 * HOUR_MICROS;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let scale = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_u32);
    // All keys in an order of its own: by an odd factor, as their number is a power of two.
    let flushes = FLUSHES * i64::from(scale.clamp(1, 256).next_power_of_two());
    let keys = flushes * FLUSH_ROWS;
    println!("flushes of {FLUSH_ROWS} rows; {keys} keys, or {} events\n", 8 * keys);
    println!("{:<44} {:>6} {:>6} {:>9} {:>9} {:>9}", "", "write", "write", "space", "space", "segments");
    println!("{:<44} {:>6} {:>6} {:>9} {:>9} {:>9}", "", "bytes", "rows", "mean", "most", "most");
    let mut random = Random(1);
    amplification("upserts, keys at random", true, 11 * flushes, |flush| match flush < flushes {
        true => (flush * FLUSH_ROWS..(flush + 1) * FLUSH_ROWS).collect(),
        false => (0..FLUSH_ROWS).map(|_| random.below(keys)).collect(),
    })?;
    let events = 8 * keys;
    let in_order = |n: i64| START_MICROS + (i128::from(n) * i128::from(SPAN_MICROS) / i128::from(events)) as i64;
    amplification("events in order", false, 8 * flushes, |flush| {
        (flush * FLUSH_ROWS..(flush + 1) * FLUSH_ROWS).map(in_order).collect()
    })?;
    let mut random = Random(2);
    amplification("events, one in ten late by up to 30 days", false, 8 * flushes, |flush| {
        let late = |n: i64, random: &mut Random| in_order(if random.below(10) == 0 { random.below(n + 1) } else { n });
        (flush * FLUSH_ROWS..(flush + 1) * FLUSH_ROWS).map(|n| late(n, &mut random)).collect()
    })?;
    let mut random = Random(3);
    amplification("events, all of them from anywhere in 30 days", false, 8 * flushes, |_| {
        (0..FLUSH_ROWS).map(|_| in_order(random.below(events))).collect()
    })?;
    overwrites(flushes)
}

/// Source: splitmix64, https://prng.di.unimi.it/splitmix64.c (public domain).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: i64) -> i64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.unsigned_abs()) as i64
    }
}

struct Table {
    store: Arc<Store>,
    upserts: bool,
    writes: u64,
    flushed_bytes: u64,
    flushed_rows: u64,
    merged_bytes: u64,
    _dir: tempfile::TempDir,
}

impl Table {
    fn new(upserts: bool) -> Result<Self, Failure> {
        let dir = tempfile::tempdir()?;
        let disk = env(&RealOptions { blocking_threads: 1, blocking_jobs_max: 1, compute_threads: 1 })?.disk();
        let options = StoreOptions { segments_overdue_max: usize::MAX, ..StoreOptions::default() };
        let (store, _) = Store::open(disk, dir.path(), schema(upserts), options, LogId(1), 9)?;
        Ok(Self { store, upserts, writes: 0, flushed_bytes: 0, flushed_rows: 0, merged_bytes: 0, _dir: dir })
    }

    /// Commits and flushes rows of these keys, or times.
    fn write(&mut self, keys: &[i64]) -> Result<(), Failure> {
        self.writes += 1;
        let first: ArrayRef = match self.upserts {
            true => Arc::new(Int64Array::from_iter_values(keys.iter().copied())),
            false => Arc::new(TimestampMicrosecondArray::from_iter_values(keys.iter().copied()).with_timezone("UTC")),
        };
        let base = self.writes as i64 * FLUSH_ROWS;
        let columns: Vec<ArrayRef> = vec![
            first,
            Arc::new(StringArray::from_iter_values(keys.iter().map(|key| format!("name {}", key % 1_000)))),
            Arc::new(Int64Array::from_iter_values((base..).take(keys.len()))),
        ];
        let batch = RecordBatch::try_new(schema(self.upserts).arrow(), columns)?;
        let version = Version::new(Hlc(self.writes), NodeId(1), 0);
        for done in self.store.commit(vec![Write { version, token: None, rows: Rows::Put(batch) }], 0)? {
            done?;
        }
        let flushed = self.store.flush()?;
        self.flushed_bytes += flushed.bytes;
        self.flushed_rows += flushed.rows;
        Ok(())
    }

    fn compact(&mut self) -> Result<()> {
        loop {
            let step = self.store.compact_step(u64::MAX)?;
            self.merged_bytes += step.bytes_written;
            if step.progress == CompactionProgress::Idle {
                return Ok(());
            }
        }
    }

    fn segment_bytes(&self) -> u64 {
        let status = self.store.status();
        status.disk_bytes - status.wal_bytes
    }

    /// The median time of a scan of everything.
    fn scan(&self) -> Result<Duration> {
        let columns = vec![ColumnId(1), ColumnId(2), ColumnId(3)];
        let spec = ScanSpec::of(TableId(1), PartitionId(1), 1, columns);
        let mut times = Vec::new();
        for _ in 0..SCANS {
            let started = Instant::now();
            for batch in self.store.snapshot().scan(&spec)? {
                std::hint::black_box(batch?);
            }
            times.push(started.elapsed());
        }
        times.sort_unstable();
        Ok(times[SCANS / 2])
    }
}

/// `id BIGINT PRIMARY KEY, name, n`, or `_ts, _dedup, n`.
fn schema(upserts: bool) -> Arc<TableSchema> {
    let column = |id, name: &str, data_type| Column { id: ColumnId(id), name: name.into(), data_type, nullable: false };
    let (first, second, kind) = match upserts {
        true => (column(1, "id", DataType::Int64), "name", TableKind::Upsert { primary_key: vec![ColumnId(1)] }),
        false => {
            let micros = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
            (column(1, "_ts", micros), "_dedup", TableKind::Event)
        }
    };
    let columns = vec![first, column(2, second, DataType::Utf8), column(3, "n", DataType::Int64)];
    Arc::new(TableSchema::new(columns, kind))
}

/// Written by flushes and merges, over written by flushes; and what lies on the disk, over what would if everything had just
/// been optimised.
fn amplification(
    what: &str,
    upserts: bool,
    flushes: i64,
    mut keys: impl FnMut(i64) -> Vec<i64>,
) -> Result<(), Failure> {
    let mut table = Table::new(upserts)?;
    // Bytes, rows and segments after each flush, when nothing is due.
    let mut states = Vec::new();
    for flush in 0..flushes {
        table.write(&keys(flush))?;
        table.compact()?;
        states.push((table.segment_bytes(), table.store.snapshot().rows(), table.store.status().segments));
    }
    let (written, merged) = (table.flushed_bytes, table.merged_bytes);
    table.store.optimize(&|| true)?;
    let row_bytes = table.segment_bytes() as f64 / table.store.snapshot().rows() as f64;
    // The first few flushes are dictionaries and footers.
    let spaces: Vec<f64> = states
        .iter()
        .skip(states.len() / 8)
        .map(|(bytes, rows, _)| *bytes as f64 / (*rows as f64 * row_bytes))
        .collect();
    let mean = spaces.iter().sum::<f64>() / spaces.len() as f64;
    let most = spaces.iter().copied().fold(0.0, f64::max);
    let segments = states.iter().map(|state| state.2).max().unwrap_or(0);
    let by_bytes = (written + merged) as f64 / written as f64;
    let by_rows = merged as f64 / (row_bytes * table.flushed_rows as f64) + 1.0;
    println!("{what:<44} {by_bytes:>6.2} {by_rows:>6.2} {mean:>9.2} {most:>9.2} {segments:>9}");
    Ok(())
}

/// Scans of a table whose keys were written once, and of tables whose keys were overwritten ten times.
fn overwrites(flushes: i64) -> Result<(), Failure> {
    let keys = flushes * FLUSH_ROWS;
    println!("\nscans of {keys} keys, ms (ratio to those that were written once)");
    println!("{:<44} {:>15} {:>15} {:>15}", "", "only flushed", "compacted", "optimised");
    let mut once = Vec::new();
    for (what, rounds, random) in
        [("written once", 1, false), ("overwritten ten times", 11, false), ("ten times as often, at random", 11, true)]
    {
        let mut columns = Vec::new();
        for compacts in [false, true] {
            let mut table = Table::new(true)?;
            let mut source = Random(9);
            for flush in 0..rounds * flushes {
                let (round, part) = (flush / flushes, flush % flushes);
                let key = |n: i64| match random && round > 0 {
                    true => source.below(keys),
                    // All keys in each round, in an order of its own.
                    false => (part * FLUSH_ROWS + n) * (7_919 + 2 * round) % keys,
                };
                table.write(&(0..FLUSH_ROWS).map(key).collect::<Vec<_>>())?;
                if compacts {
                    table.compact()?;
                }
            }
            columns.push(table.scan()?);
            if compacts {
                table.store.optimize(&|| true)?;
                columns.push(table.scan()?);
            }
        }
        if once.is_empty() {
            once = columns.clone();
        }
        print!("{what:<44}");
        for (time, least) in columns.iter().zip(&once) {
            let text = format!("{:.2} ({:.2})", time.as_secs_f64() * 1e3, time.as_secs_f64() / least.as_secs_f64());
            print!(" {text:>15}");
        }
        println!();
    }
    Ok(())
}
