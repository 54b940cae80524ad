//! A process that writes, flushes and merges is killed a hundred times at random moments: what it said it had accepted is
//! there, exactly, and an examination finds nothing wrong.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails should say where, and stop")]
#![allow(clippy::disallowed_methods, reason = "real processes live in real time")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::cast::AsArray;
use arrow::array::types::Int64Type;
use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::DataType;
use shoal_kernel::env::real;
use shoal_kernel::{
    Column, ColumnId, Hlc, LogId, NodeId, PartitionId, ScanSpec, TableId, TableKind, TableSchema, Version,
};
use shoal_storage::{Recovery, Rows, Severity, Store, StoreOptions, Write as StoreWrite, examine_store};

const ROUNDS: u64 = 100;
const DIR: &str = "SHOAL_KILL_DIR";
const NEXT: &str = "SHOAL_KILL_NEXT";
const ROWS: i64 = 40;
const KEYS: i64 = 1500;

fn schema() -> Arc<TableSchema> {
    let column = |id: u32, name: &str| Column {
        id: ColumnId(id),
        name: name.into(),
        data_type: DataType::Int64,
        nullable: false,
    };
    let kind = TableKind::Upsert { primary_key: vec![ColumnId(1)] };
    Arc::new(TableSchema::new(vec![column(1, "id"), column(2, "n")], kind))
}

fn open(dir: &Path) -> (Arc<Store>, Recovery) {
    let options = StoreOptions {
        memtable_bytes_max: 24 << 10,
        wal_segment_bytes_max: 6 << 10,
        compaction_fan_in: 2,
        disk_reserve_bytes: 0,
        ..StoreOptions::default()
    };
    Store::open(real::disk(), dir, schema(), options, LogId(1), 9).unwrap()
}

/// The keys of a write: every fifth deletes them.
fn keys(number: u64) -> impl Iterator<Item = i64> {
    (0..ROWS).map(move |at| (number as i64 * 31 + at * 7) % KEYS)
}

fn deletes(number: u64) -> bool {
    number % 5 == 4
}

fn token(number: u64) -> Option<String> {
    number.is_multiple_of(3).then(|| format!("write {number}"))
}

fn write_of(number: u64) -> StoreWrite {
    let id: ArrayRef = Arc::new(Int64Array::from_iter_values(keys(number)));
    let n: ArrayRef = Arc::new(Int64Array::from_iter_values(keys(number).map(|_| number as i64)));
    let rows = match deletes(number) {
        true => Rows::Delete(RecordBatch::try_from_iter([("id", id)]).unwrap()),
        false => Rows::Put(RecordBatch::try_from_iter([("id", id), ("n", n)]).unwrap()),
    };
    StoreWrite { version: Version::new(Hlc(number), NodeId(1), 0), token: token(number), rows }
}

/// What the first so many writes leave.
fn model(writes: u64) -> BTreeMap<i64, i64> {
    let mut rows = BTreeMap::new();
    for number in 1..=writes {
        for key in keys(number) {
            match deletes(number) {
                true => rows.remove(&key),
                false => rows.insert(key, number as i64),
            };
        }
    }
    rows
}

fn read(store: &Store) -> BTreeMap<i64, i64> {
    let spec = ScanSpec::of(TableId(1), PartitionId(1), 1, vec![ColumnId(1), ColumnId(2)]);
    let mut rows = BTreeMap::new();
    for batch in store.snapshot().scan(&spec).unwrap() {
        let batch = batch.unwrap();
        let column = |at: usize| batch.column(at).as_primitive::<Int64Type>().values().to_vec();
        for (id, n) in column(0).into_iter().zip(column(1)) {
            assert_eq!(rows.insert(id, n), None, "key {id} twice");
        }
    }
    rows
}

/// Writes until it is killed, and says each number once its write is durable.
#[test]
#[ignore = "the process that killed_processes_lose_nothing_acknowledged kills"]
fn victim() {
    let (Ok(dir), Ok(next)) = (std::env::var(DIR), std::env::var(NEXT)) else { return };
    let (store, _) = open(Path::new(&dir));
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0_u64.. {
                let done = store.flush().map(drop).and_then(|()| store.compact().map(drop));
                let done = if round % 9 == 8 { done.and_then(|()| store.optimize(&|| true).map(drop)) } else { done };
                if let Err(error) = done {
                    failed.store(true, Ordering::Relaxed);
                    panic!("{error}");
                }
            }
        });
        let mut out = std::io::stdout().lock();
        for number in next.parse().unwrap().. {
            store.commit(vec![write_of(number)], 0).unwrap().remove(0).unwrap();
            writeln!(out, "\naccepted {number}").and_then(|()| out.flush()).unwrap();
            assert!(!failed.load(Ordering::Relaxed), "the upkeep has failed");
        }
    });
}

fn start(dir: &Path, next: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "victim", "--ignored", "--nocapture"]);
    command
        .env(DIR, dir)
        .env(NEXT, next.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// The number of the last write that the process spoke of to the end.
fn last_accepted(said: &str) -> Option<u64> {
    let whole = &said[..said.rfind('\n')? + 1];
    whole.lines().filter_map(|line| line.strip_prefix("accepted ")?.parse().ok()).next_back()
}

#[test]
fn killed_processes_lose_nothing_acknowledged() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("p1");
    let mut seed = 7_u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let (mut accepted, mut notes) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = start(&dir, accepted + 1);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        // Now and then it is killed while it starts.
        if round % 8 != 7 {
            while last_accepted(&said).is_none() && out.read_line(&mut said).unwrap() > 0 {}
        }
        std::thread::sleep(Duration::from_micros(random(60_000)));
        child.kill().unwrap();
        out.read_to_string(&mut said).unwrap();
        let mut complaint = String::new();
        child.stderr.take().unwrap().read_to_string(&mut complaint).unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "it ended by itself: {said}{complaint}");
        if !dir.exists() {
            continue;
        }

        let examined = examine_store(&real::disk(), &dir, Some(schema()), true).unwrap();
        let damage = examined.findings.iter().filter(|finding| finding.severity == Severity::Damage).count();
        assert_eq!(damage, 0, "round {round}: {:?}", examined.findings);
        notes += usize::from(!examined.findings.is_empty());
        let (store, recovery) = open(&dir);
        assert!(!recovery.in_doubt, "round {round}: {recovery:?}");
        let told = last_accepted(&said).unwrap_or(accepted);
        let found = read(&store);
        // The last write may have become durable before the process could say so.
        accepted = match found == model(told) {
            true => told,
            false => told + 1,
        };
        assert!(found == model(accepted), "round {round}: after {told} writes");
        for number in accepted.saturating_sub(50).max(1)..=accepted {
            let known = store.token(&format!("write {number}"));
            assert_eq!(known.is_some(), token(number).is_some(), "round {round}: the token of write {number}");
        }
        assert_eq!(store.verify().unwrap(), []);
        drop(store);
        let examined = examine_store(&real::disk(), &dir, Some(schema()), true).unwrap();
        assert_eq!(examined.findings, [], "round {round}, after the start");
    }
    assert!(accepted > ROUNDS, "the processes did too little: {accepted}");
    println!("{accepted} writes; after {notes} of {ROUNDS} kills something was left to be put in order");
}
