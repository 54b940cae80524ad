//! Rows that have had their time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::types::{Int64Type, TimestampMicrosecondType};
use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimeUnit};
use proptest::prelude::*;
use shoal_kernel::env::Disk;
use shoal_kernel::{ColumnId, Cutoff, Error, ErrorCode, Hlc, LogId, NodeId, TableKind, TableSchema, Version};
use shoal_storage::{ExpiryReport, PagePool, PullCursor, Rows, Snapshot, Store, StoreOptions, Write, examine_store};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;

/// Of events: by their `_ts`.
fn below(micros: i64) -> Cutoff {
    Cutoff { column: ColumnId(1), micros }
}

fn open_events(disk: &MemoryDisk) -> Arc<Store> {
    open_with(&disk.shared(), &event_schema(), options(), 7).unwrap().0
}

fn times(snapshot: &Snapshot) -> Vec<i64> {
    let mut times = Vec::new();
    for batch in snapshot.scan(&scan_all(&[1])).unwrap() {
        times.extend(batch.unwrap().column(0).as_primitive::<TimestampMicrosecondType>().values());
    }
    times.sort_unstable();
    assert_eq!(snapshot.rows(), times.len() as u64);
    times
}

fn digests(store: &Store) -> [shoal_storage::Digest; 2] {
    [store.digest().unwrap(), store.content_digest().unwrap()]
}

fn refused(store: &Store, write: Write) -> Error {
    store.commit(vec![write], 0).unwrap().remove(0).unwrap_err()
}

#[test]
fn what_was_dropped_stays_away() {
    let disk = MemoryDisk::default();
    let store = open_events(&disk);
    commit(&store, put(1, events(&[(10, "a", 1), (40, "b", 2)])));
    store.flush().unwrap();
    commit(&store, put(2, events(&[(20, "c", 3), (21, "d", 4)])));
    store.flush().unwrap();
    commit(&store, put(3, events(&[(25, "e", 5), (50, "f", 6)])));

    let report = store.expire(below(30)).unwrap().unwrap();
    assert_eq!(report, ExpiryReport { rows: 4, segments: 1 });
    assert_eq!(times(&store.snapshot()), [40, 50]);
    assert_eq!(store.digest().unwrap().rows, 2);
    assert_eq!(store.verify().unwrap(), []);

    // Not later, so nothing happens; the same after a restart.
    assert_eq!(store.expire(below(30)).unwrap().unwrap(), ExpiryReport::default());
    assert_eq!(store.expire(below(7)).unwrap().unwrap(), ExpiryReport::default());
    let before = digests(&store);
    let disk = disk.restart(Loss::Everything);
    let store = open_events(&disk);
    assert_eq!((digests(&store), store.cutoff()), (before, Some(below(30))));
    assert_eq!(refused(&store, put(9, events(&[(29, "late", 1)]))).code(), ErrorCode::RowsExpired);
    while store.compact().unwrap() {}
    store.optimize(&|| true).unwrap();
    assert_eq!((digests(&store), store.status().segment_rows), (before, 2));
    drop(store);
    let report = examine_store(&disk.shared(), Path::new(DIR), Some(event_schema()), true).unwrap();
    assert_eq!(report.findings, []);
}

#[test]
fn a_snapshot_keeps_the_files_that_it_shows() {
    let disk = MemoryDisk::default();
    let store = open_events(&disk);
    commit(&store, put(1, events(&[(10, "a", 1), (11, "b", 2)])));
    store.flush().unwrap();
    let files = || disk.files().iter().filter(|path| path.to_string_lossy().contains("seg")).count();
    assert_eq!(files(), 1);
    let pinned = store.snapshot();
    assert_eq!(store.expire(below(100)).unwrap().unwrap().segments, 1);
    assert_eq!((times(&pinned), times(&store.snapshot())), (vec![10, 11], vec![]));
    assert_eq!(files(), 1);
    drop(pinned);
    store.recheck();
    assert_eq!(files(), 0);
    assert_eq!(store.status().segments, 0);
}

#[test]
fn late_rows_are_refused_and_those_of_peers_are_passed_over() {
    let store = open_events(&MemoryDisk::default());
    let behind = open_events(&MemoryDisk::default());
    let first = with_token(put(1, events(&[(10, "a", 1)])), "t");
    let accepted = commit(&store, first.clone());
    commit(&behind, put(2, events(&[(11, "b", 2), (60, "c", 3)])));
    store.expire(below(50)).unwrap().unwrap();

    let error = refused(&store, put(3, events(&[(70, "d", 4), (49, "e", 5)])));
    assert_eq!(error.code(), ErrorCode::RowsExpired);
    assert!(error.message().contains("00:00:00.000049") && error.message().contains("00:00:00.000050"), "{error}");
    assert_eq!(refused(&store, with_token(put(3, events(&[(49, "e", 5)])), "u")).code(), ErrorCode::RowsExpired);
    // A resend is what it was the first time.
    let again = commit(&store, first);
    assert!(again.duplicate && again.version == accepted.version);

    let pulled = behind.pull(&PullCursor::default(), 1 << 20).unwrap();
    store.commit(pulled.into_writes(), 0).unwrap().into_iter().for_each(|taken| {
        taken.unwrap();
    });
    assert_eq!(times(&store.snapshot()), [60]);
    // What the other one still holds does not come back; then both hold the same.
    let given = store.pull(&PullCursor::default(), 1 << 20).unwrap();
    behind.commit(given.into_writes(), 0).unwrap().into_iter().for_each(|taken| {
        taken.unwrap();
    });
    assert_ne!(digests(&behind), digests(&store));
    behind.expire(below(50)).unwrap().unwrap();
    assert_eq!(digests(&behind), digests(&store));
}

#[test]
fn only_times_of_the_key_and_always_the_same() {
    let store = open_events(&MemoryDisk::default());
    let of = |column| Cutoff { column: ColumnId(column), micros: 5 };
    assert_eq!(store.expire(of(3)).unwrap_err().code(), ErrorCode::Unsupported);
    store.expire(of(1)).unwrap().unwrap();
    assert_eq!(store.expire(of(2)).unwrap_err().code(), ErrorCode::Unsupported);
}

#[test]
fn what_the_cutoff_says_anyway_is_not_judged() {
    let disk = MemoryDisk::default();
    let store = open_events(&disk);
    commit(&store, put(1, events(&[(10, "a", 1), (60, "b", 2)])));
    store.expire(below(50)).unwrap().unwrap();
    let mut spec = scan_all(&[]);
    for (micros, rows) in [(40, 1), (50, 1), (60, 1), (61, 0)] {
        spec.predicates = vec![below(micros).predicate()];
        let reads = disk.reads();
        let counted: usize = store.snapshot().scan(&spec).unwrap().map(|batch| batch.unwrap().num_rows()).sum();
        assert_eq!((counted, disk.reads() == reads), (rows, micros != 60), "{micros}");
    }
}

/// `host BIGINT, at TIMESTAMP, n BIGINT, PRIMARY KEY (host, at)`: rows of any time lie in any page.
fn series_schema() -> Arc<TableSchema> {
    Arc::new(TableSchema::new(
        vec![
            column(1, "host", DataType::Int64, false),
            column(2, "at", DataType::Timestamp(TimeUnit::Microsecond, None), false),
            column(3, "n", DataType::Int64, true),
        ],
        TableKind::Upsert { primary_key: vec![ColumnId(1), ColumnId(2)] },
    ))
}

type Series = BTreeMap<(i64, i64), i64>;

fn series(rows: &[(i64, i64, i64)], columns: usize) -> RecordBatch {
    let all: [ArrayRef; 3] = [
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
    ];
    let names = ["host", "at", "n"];
    RecordBatch::try_from_iter(names.into_iter().zip(all).take(columns)).unwrap()
}

fn read_series(snapshot: &Snapshot) -> Series {
    let mut found = Series::new();
    for batch in snapshot.scan(&scan_all(&[1, 2, 3])).unwrap() {
        let batch = batch.unwrap();
        let int = |column: usize| batch.column(column).as_primitive::<Int64Type>();
        let at = batch.column(1).as_primitive::<TimestampMicrosecondType>();
        for row in 0..batch.num_rows() {
            assert!(at.is_valid(row));
            assert_eq!(found.insert((int(0).value(row), at.value(row)), int(2).value(row)), None);
        }
    }
    assert_eq!(snapshot.rows(), found.len() as u64);
    found
}

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<(i64, i64, i64)>),
    Delete(Vec<(i64, i64, i64)>),
    Flush,
    Merge,
    Compact,
    Optimize,
    Expire(i64),
    Reopen(bool),
    Hold,
}

fn step() -> impl Strategy<Value = Step> {
    let rows = || prop::collection::vec((0_i64..3, 0_i64..60, 0_i64..100), 1..12);
    prop_oneof![
        6 => rows().prop_map(Step::Put),
        2 => rows().prop_map(Step::Delete),
        3 => Just(Step::Flush),
        3 => Just(Step::Merge),
        1 => Just(Step::Compact),
        1 => Just(Step::Optimize),
        3 => (0_i64..50).prop_map(Step::Expire),
        1 => any::<bool>().prop_map(Step::Reopen),
        1 => Just(Step::Hold),
    ]
}

fn small_options() -> StoreOptions {
    StoreOptions { compaction_fan_in: 2, wal_segment_bytes_max: 600, pool: Arc::new(PagePool::new(2000)), ..options() }
}

fn open_series(disk: &MemoryDisk) -> Arc<Store> {
    let shared: Arc<dyn Disk> = disk.shared();
    Store::open(shared, Path::new(DIR), series_schema(), small_options(), LogId(7), 9).unwrap().0
}

fn run(steps: Vec<Step>) {
    let mut disk = MemoryDisk::default();
    let mut store = open_series(&disk);
    let mut model = Series::new();
    let mut held: Vec<(Snapshot, Series)> = Vec::new();
    let mut cutoff = i64::MIN;
    let at_cutoff = |micros| Cutoff { column: ColumnId(2), micros };
    for (number, step) in (1_u64..).zip(steps) {
        let write = |rows| Write { version: Version::new(Hlc(number), NodeId(1), 0), token: None, rows };
        match step {
            Step::Put(rows) => {
                let taken = store.commit(vec![write(Rows::Put(series(&rows, 3)))], 0).unwrap().remove(0);
                if rows.iter().any(|row| row.1 < cutoff) {
                    assert_eq!(taken.unwrap_err().code(), ErrorCode::RowsExpired);
                } else {
                    taken.unwrap();
                    model.extend(rows.into_iter().map(|(host, at, n)| ((host, at), n)));
                }
            }
            Step::Delete(rows) => {
                store.commit(vec![write(Rows::Delete(series(&rows, 2)))], 0).unwrap().remove(0).unwrap();
                rows.iter().for_each(|(host, at, _)| _ = model.remove(&(*host, *at)));
            }
            Step::Flush => drop(store.flush().unwrap()),
            Step::Merge => _ = store.compact_step(1).unwrap(),
            Step::Compact => _ = store.compact().unwrap(),
            Step::Optimize => _ = store.optimize(&|| true).unwrap(),
            Step::Expire(micros) => {
                let there = store.snapshot().rows();
                cutoff = cutoff.max(micros);
                let report = store.expire(at_cutoff(micros)).unwrap().unwrap();
                model.retain(|(_, at), _| *at >= cutoff);
                assert!(report.rows >= there - model.len() as u64);
            }
            Step::Reopen(power_cut) => {
                held.clear();
                let before = (digests(&store), store.snapshot().position(), store.cutoff());
                disk = disk.restart(if power_cut { Loss::Everything } else { Loss::Nothing });
                store = open_series(&disk);
                assert_eq!((digests(&store), store.snapshot().position(), store.cutoff()), before);
            }
            Step::Hold => held.push((store.snapshot(), model.clone())),
        }
        assert_eq!(read_series(&store.snapshot()), model);
        held.iter().for_each(|(snapshot, expected)| assert_eq!(&read_series(snapshot), expected));
        assert_eq!(store.verify().unwrap(), []);
    }
    // A replica that hears of everything late holds the same in the end.
    let late = open_series(&MemoryDisk::default());
    let mut cursor = PullCursor::default();
    loop {
        let pulled = store.pull(&cursor, 500).unwrap();
        let (next, done) = (pulled.next.clone(), pulled.done);
        late.commit(pulled.into_writes(), 0).unwrap().into_iter().for_each(|taken| {
            taken.unwrap();
        });
        cursor = next;
        if done {
            break;
        }
    }
    if cutoff > i64::MIN {
        late.expire(at_cutoff(cutoff)).unwrap().unwrap();
    }
    assert_eq!(digests(&late), digests(&store));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(steps in prop::collection::vec(step(), 1..40)) {
        run(steps);
    }
}

/// A power cut at any moment leaves one cut-off or the other, and rows accordingly.
#[test]
fn a_crash_while_rows_are_dropped() {
    let mut cut_offs = std::collections::BTreeSet::new();
    let mut operation = 0;
    let mut finished = false;
    while !finished {
        finished = true;
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn(operation)] {
            let disk = MemoryDisk::default();
            let store = open_events(&disk);
            commit(&store, put(1, events(&[(10, "a", 1), (11, "b", 2)])));
            store.flush().unwrap();
            commit(&store, put(2, events(&[(12, "c", 3), (60, "d", 4)])));
            store.flush().unwrap();
            commit(&store, put(3, events(&[(13, "e", 5), (61, "f", 6)])));
            disk.cut_power_at(disk.operations() + operation);
            let dropped = store.expire(below(50));
            finished &= dropped.is_ok();
            let disk = disk.restart(loss);
            let store = open_events(&disk);
            let expected = match store.cutoff() {
                Some(_) => vec![60, 61],
                None => vec![10, 11, 12, 13, 60, 61],
            };
            assert_eq!(times(&store.snapshot()), expected, "operation {operation}");
            assert!(dropped.is_err() || store.cutoff().is_some(), "operation {operation}");
            assert_eq!(store.verify().unwrap(), [], "operation {operation}");
            cut_offs.insert(store.cutoff().is_some());
            store.expire(below(50)).unwrap().unwrap();
            assert_eq!((times(&store.snapshot()), store.verify().unwrap()), (vec![60, 61], vec![]));
        }
        operation += 1;
    }
    assert_eq!(cut_offs.len(), 2);
}
