//! Compaction step by step: what dies meanwhile, what is left behind, what is read afterwards, and how much is written.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_kernel::{ColumnId, ColumnPredicate, CompareOp, Datum, ErrorCode, Planted};
use shoal_storage::{CompactionProgress, Store, StoreOptions};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;

fn few() -> StoreOptions {
    StoreOptions { compaction_fan_in: 2, ..options() }
}

fn store_with(disk: &MemoryDisk, options: StoreOptions) -> Arc<Store> {
    open_with(&disk.shared(), &upsert_schema(), options, 7).unwrap().0
}

fn segment_files(disk: &MemoryDisk) -> BTreeSet<String> {
    let names = disk.files().into_iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.ends_with(".seg")).collect()
}

/// Two segments of one tier, of two pages each, that are due to be merged.
fn two_due(disk: &MemoryDisk, options: StoreOptions) -> Arc<Store> {
    let store = store_with(disk, options);
    for part in 0..2_i64 {
        let batch: Vec<_> = (0..16_384).map(|n| (n * 2 + part, Some("first"), n)).collect();
        commit(&store, put(1 + part as u64, rows(&batch)));
        store.flush().unwrap();
    }
    assert_eq!(store.status().segments_overdue, 2);
    store
}

/// A step of one page.
fn step(store: &Store) -> CompactionProgress {
    store.compact_step(1).unwrap().progress
}

#[test]
fn it_goes_page_by_page_and_says_how_far_it_has_come() {
    let disk = MemoryDisk::default();
    let store = two_due(&disk, few());
    let expected = read(&store.snapshot());
    let input_bytes = store.status().disk_bytes - store.status().wal_bytes;
    let (mut steps, mut read_bytes, mut written) = (0, 0, 0);
    loop {
        let step = store.compact_step(1).unwrap();
        (steps, read_bytes, written) = (steps + 1, read_bytes + step.bytes_read, written + step.bytes_written);
        assert_eq!(read(&store.snapshot()), expected);
        match step.progress {
            CompactionProgress::Running => assert_eq!(store.status().segments_overdue, 0, "it does not wait any more"),
            CompactionProgress::Done => break,
            CompactionProgress::Idle => panic!("it was due"),
        }
    }
    assert_eq!((steps, step(&store)), (5, CompactionProgress::Idle), "four pages and the end");
    let status = store.status();
    assert_eq!((status.segments, read_bytes), (1, input_bytes));
    assert_eq!(written, status.disk_bytes - status.wal_bytes);
}

/// Rows that are replaced, deleted and flushed between any two pages, and rows that lose against what is there.
#[test]
fn what_dies_meanwhile_is_dead_in_the_new_segment() {
    let run = |options: StoreOptions| {
        let disk = MemoryDisk::default();
        let store = two_due(&disk, options);
        let mut expected = read(&store.snapshot());
        let mut time = 10;
        loop {
            let base = time as i64 * 1_000;
            // Behind and before the page at which the merge is.
            for key in [base % 32_768, 32_767 - base % 32_768, 5] {
                commit(&store, put(time, rows(&[(key, Some("new"), base)])));
                expected.insert(key, (Some("new".into()), base));
            }
            let gone = [(base + 77) % 32_768, 31_000 - base % 20_000];
            commit(&store, delete(time + 1, keys(&gone)));
            gone.iter().for_each(|key| drop(expected.remove(key)));
            // Late, and equal: the row of that very version again.
            commit(&store, put(1, rows(&[(5, Some("late"), 0), (gone[0], Some("late"), 0)])));
            commit(&store, put(time, rows(&[(5, Some("new"), base)])));
            if time % 4 == 0 {
                store.flush().unwrap();
            }
            time += 2;
            if step(&store) != CompactionProgress::Running {
                break;
            }
        }
        assert!(time > 18, "there were some pages");
        (disk, store, expected)
    };
    let (disk, store, expected) = run(few());
    assert_eq!(read(&store.snapshot()), expected);
    let digest = store.digest().unwrap();
    for loss in [Loss::Nothing, Loss::Everything] {
        let reopened = open(&disk.restart(loss).shared()).0;
        assert_eq!((read(&reopened.snapshot()), reopened.digest().unwrap()), (expected.clone(), digest));
    }
    store.optimize(&|| true).unwrap();
    assert_eq!((read(&store.snapshot()), store.digest().unwrap()), (expected, digest));

    // And without it they come back to life.
    let (_, store, expected) = run(StoreOptions { planted: Some(Planted::MasksNotCarried), ..few() });
    assert!(store.snapshot().rows() > expected.len() as u64);
}

#[test]
fn whoever_closes_the_store_waits_for_a_page_and_leaves_nothing_behind() {
    let disk = MemoryDisk::default();
    let store = two_due(&disk, few());
    let before = segment_files(&disk);
    assert_eq!(step(&store), CompactionProgress::Running);
    assert_eq!(segment_files(&disk).len(), 3, "one is being written");
    let snapshot = store.snapshot();
    let expected = read(&snapshot);
    store.close();
    assert_eq!(segment_files(&disk), before);
    assert_eq!(store.compact_step(1).unwrap_err().code(), ErrorCode::NotReady);
    assert_eq!(read(&snapshot), expected, "reads go on");
    let store = store_with(&disk, few());
    assert_eq!((read(&store.snapshot()), store.status().segments_overdue), (expected, 2));
    assert!(store.compact().unwrap());
}

/// The same by a loss of power: the next start finds files that no manifest names.
#[test]
fn orphans_are_removed_at_start() {
    let disk = MemoryDisk::default();
    let store = two_due(&disk, few());
    let (before, expected) = (segment_files(&disk), read(&store.snapshot()));
    assert_eq!(step(&store), CompactionProgress::Running);
    let crashed = disk.restart(Loss::Nothing);
    assert_eq!(segment_files(&crashed).len(), 3);
    let store = store_with(&crashed, few());
    assert_eq!(segment_files(&crashed), before);
    assert_eq!(read(&store.snapshot()), expected);
    while store.compact().unwrap() {}
    assert_eq!((segment_files(&crashed).len(), read(&store.snapshot())), (1, expected));
}

#[test]
fn files_stay_as_long_as_somebody_reads_them() {
    let disk = MemoryDisk::default();
    let store = two_due(&disk, few());
    let old = segment_files(&disk);
    let (held, scanned) = (store.snapshot(), store.snapshot());
    let expected = read(&held);
    let mut scan = scanned.scan(&scan_all(&[1, 2, 3])).unwrap();
    let first = scan.next().unwrap().unwrap().num_rows();
    drop(scanned);
    commit(&store, delete(9, keys(&(0..1_000).collect::<Vec<_>>())));
    assert!(store.compact().unwrap());
    store.recheck();
    assert!(segment_files(&disk).is_superset(&old));
    assert_eq!(read(&held), expected);
    drop(held);
    store.recheck();
    assert!(segment_files(&disk).is_superset(&old), "the scan goes on");
    assert_eq!(first + scan.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), expected.len());
    store.recheck();
    assert!(segment_files(&disk).is_disjoint(&old) && segment_files(&disk).len() == 1);
}

/// What is counted without being read: never a row that is masked, deleted, late or the same again.
#[test]
fn counts_and_bounds_are_of_what_is_there() {
    let disk = MemoryDisk::default();
    let store = two_due(&disk, few());
    let counted = || {
        let before = disk.reads();
        let batches = store.snapshot().scan(&scan_all(&[])).unwrap();
        let rows: usize = batches.map(|batch| batch.unwrap().num_rows()).sum();
        assert_eq!(disk.reads(), before, "it is counted without reading");
        rows
    };
    let above = |bound: i64| {
        let predicate = ColumnPredicate::Compare { column: ColumnId(3), op: CompareOp::Gt, value: Datum::Int(bound) };
        let spec = shoal_kernel::ScanSpec { predicates: vec![predicate], ..scan_all(&[3]) };
        store.snapshot().scan(&spec).unwrap().map(|batch| batch.unwrap().num_rows()).sum::<usize>()
    };
    let check = |rows: usize, above_all: usize| {
        assert_eq!((counted(), store.snapshot().rows()), (rows, rows as u64));
        assert_eq!(above(16_382), above_all, "the greatest of `n`, which bounds of the segments still promise");
        assert_eq!(read(&store.snapshot()).len(), rows);
    };
    check(32_768, 2);
    // Both rows with the greatest `n` are replaced, one of them by the same key again; others are deleted.
    commit(&store, put(10, rows(&[(32_766, None, 0), (32_767, None, 1), (32_767, None, 2)])));
    commit(&store, delete(11, keys(&[3, 4, 3, 99_999])));
    check(32_766, 0);
    // Late and equal versions.
    commit(&store, put(2, rows(&[(32_766, Some("late"), 20_000), (3, Some("late"), 20_000)])));
    commit(&store, put(10, rows(&[(32_766, None, 20_000)])));
    check(32_766, 0);
    for maintain in
        [|store: &Store| assert!(store.flush().unwrap().rows > 0), |store: &Store| while store.compact().unwrap() {}]
    {
        maintain(&store);
        check(32_766, 0);
    }
    store.optimize(&|| true).unwrap();
    check(32_766, 0);
}

#[test]
fn writers_are_held_back_when_too_many_segments_wait() {
    let store = store_with(&MemoryDisk::default(), StoreOptions { segments_overdue_max: 8, ..options() });
    for n in 0..8 {
        commit(&store, put(1, rows(&[(n, None, n)])));
        store.flush().unwrap();
    }
    let write = || store.commit(vec![put(2, rows(&[(100, None, 1)]))], 0).unwrap().remove(0);
    let refused = write().unwrap_err();
    assert_eq!((refused.code(), refused.applied()), (ErrorCode::Overloaded, shoal_kernel::Applied::False));
    assert!(refused.retry_after_ms().is_some() && refused.message().contains("segments_overdue_max"), "{refused}");
    assert_eq!(store.snapshot().rows(), 8, "reads go on");
    assert_eq!(step(&store), CompactionProgress::Running);
    write().unwrap();
    while store.compact().unwrap() {}
    assert_eq!((store.status().segments, store.status().segments_overdue), (1, 0));
}

/// Keys that have been overwritten ten times are scanned with hardly more pages than those that were written once.
#[test]
fn ten_overwrites_cost_a_scan_next_to_nothing() {
    const KEYS: i64 = 16_384;
    const FLUSHES: i64 = 4;
    let pages_read = |disk: &MemoryDisk, store: &Store| {
        let before = disk.reads();
        let rows: usize =
            store.snapshot().scan(&scan_all(&[1, 3])).unwrap().map(|batch| batch.unwrap().num_rows()).sum();
        assert_eq!(rows as i64, KEYS);
        disk.reads() - before
    };
    // Keys in an order of their own in every round; each flush holds a quarter of them, from all over.
    let fill = |rounds: i64, options: StoreOptions, compacts: bool| {
        let disk = MemoryDisk::default();
        let store = store_with(&disk, options);
        for round in 0..rounds {
            for part in 0..FLUSHES {
                let mut ids: Vec<i64> =
                    (0..KEYS / FLUSHES).map(|n| ((part * KEYS / FLUSHES + n) * (7_919 + 2 * round)) % KEYS).collect();
                ids.sort_unstable();
                let batch: Vec<_> = ids.iter().map(|id| (*id, Some("name"), round)).collect();
                commit(&store, put(1 + round as u64, rows(&batch)));
                store.flush().unwrap();
                while compacts && store.compact().unwrap() {}
            }
        }
        (disk, store)
    };
    for compacts in [false, true] {
        let patient = || StoreOptions { segments_overdue_max: usize::MAX, ..options() };
        let (once_disk, once) = fill(1, patient(), compacts);
        let (often_disk, often) = fill(11, patient(), compacts);
        let (least, pages) = (pages_read(&once_disk, &once), pages_read(&often_disk, &often));
        // And a last page that is not full, of each of the two columns: the table has but two pages.
        assert!(pages * 10 <= least * 13 + 2 * 10, "compacts {compacts}: {pages} pages, {least} if written once");
        for store in [&once, &often] {
            store.optimize(&|| true).unwrap();
        }
        assert_eq!(pages_read(&often_disk, &often), pages_read(&once_disk, &once));
    }
}

/// What bounds the bytes that are written: see ARCHITECTURE.
#[test]
fn rows_are_written_again_once_for_each_tier() {
    let disk = MemoryDisk::default();
    let store = store_with(&disk, options());
    let (flush_rows, flushes) = (8_192_i64, 16_i64);
    let mut most = 0;
    for n in 0..flushes {
        let batch: Vec<_> = (0..flush_rows).map(|row| (row * flushes + n, None, row)).collect();
        commit(&store, put(1, rows(&batch)));
        store.flush().unwrap();
        while store.compact().unwrap() {}
        most = most.max(store.status().segments);
    }
    // 16 flushes, 4 merges of 4, 1 of 16: a tree, each of its levels with all rows.
    assert_eq!((store.status().segments, segments_made(&disk)), (1, 16 + 4 + 1));
    assert!(most <= 6, "{most} segments at once");
    // Up to a quarter of dead rows stay where they are.
    let all = flush_rows * flushes;
    let overwrite = |time, keys: std::ops::Range<i64>| {
        commit(&store, put(time, rows(&keys.map(|key| (key, Some("new"), 0)).collect::<Vec<_>>())));
        store.flush().unwrap();
    };
    overwrite(2, 0..all / 4);
    assert!(!store.compact().unwrap());
    overwrite(3, all / 4..all / 4 + 1);
    let dead = |store: &Store| store.status().segment_rows - store.snapshot().rows();
    assert_eq!(dead(&store), (all / 4 + 1) as u64);
    assert!(store.compact().unwrap());
    assert_eq!((dead(&store), store.snapshot().rows()), (0, all as u64));
}

/// How many segments there have been, of which the last one made is still there.
fn segments_made(disk: &MemoryDisk) -> u64 {
    let last = segment_files(disk).pop_last().unwrap();
    u64::from_str_radix(&last[4..20], 16).unwrap()
}

/// Rewritten one by one they would be as many as before, and writers wait as long as there are too many.
#[test]
fn small_segments_with_many_dead_rows_are_merged_together() {
    let disk = MemoryDisk::default();
    let store = store_with(&disk, StoreOptions { compaction_fan_in: 64, ..options() });
    for part in 0..40_i64 {
        commit(&store, put(1, rows(&(0..100).map(|n| (part * 100 + n, Some("first"), n)).collect::<Vec<_>>())));
        store.flush().unwrap();
    }
    let again: Vec<_> = (0..4_000).filter(|n| n % 100 < 26).map(|n| (n, Some("again"), n)).collect();
    commit(&store, put(2, rows(&again)));
    store.flush().unwrap();
    assert_eq!((store.status().segments, store.status().segments_overdue), (41, 40));
    let (before, expected) = (segments_made(&disk), read(&store.snapshot()));
    while store.compact().unwrap() {}
    assert_eq!(segments_made(&disk) - before, 2, "each takes as many pages as one merge may hold");
    assert_eq!((store.status().segments, store.status().segments_overdue), (3, 0));
    assert_eq!(read(&store.snapshot()), expected);
}
