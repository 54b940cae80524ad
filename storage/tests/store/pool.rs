//! The page pool: what it spares, what it never hides, and who sees what in it.

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use shoal_kernel::{ColumnId, ErrorCode, FetchSpec, PartitionId, Result, ScanSpec, TableId};
use shoal_storage::{PagePool, PoolStatus, Snapshot, Store, StoreOptions};

use crate::disk::MemoryDisk;
use crate::fixture::*;

const ROWS: i64 = 30_000;

fn open_pooled(disk: &MemoryDisk, pool: &Arc<PagePool>) -> Arc<Store> {
    let options = StoreOptions { pool: pool.clone(), compaction_fan_in: 2, ..options() };
    open_with(&disk.shared(), &upsert_schema(), options, 7).unwrap().0
}

/// Two segments of four pages each; names repeat, so they have dictionaries.
fn fill(store: &Store, name: &str) {
    for half in 0..2 {
        let names: Vec<String> = (0..ROWS).map(|n| format!("{name} {}", n % 50)).collect();
        let batch: Vec<_> = (0..ROWS).map(|n| (2 * n + half, Some(names[n as usize].as_str()), n)).collect();
        commit(store, put(1 + half as u64, rows(&batch)));
        store.flush().unwrap();
    }
}

/// A disk with a store of such segments that was closed.
fn filled() -> MemoryDisk {
    let disk = MemoryDisk::default();
    let store = open_pooled(&disk, &Arc::new(PagePool::new(1 << 20)));
    fill(&store, "name");
    store.close();
    disk
}

fn scan(snapshot: &Snapshot) -> Result<RecordBatch> {
    let mut scan = snapshot.scan(&ScanSpec { addresses: true, ..scan_all(&[1, 2, 3]) })?;
    let batches = scan.by_ref().collect::<Result<Vec<_>>>()?;
    Ok(concat_batches(&scan.schema(), &batches).unwrap())
}

fn segment(disk: &MemoryDisk) -> std::path::PathBuf {
    let is_segment = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "seg");
    disk.files().into_iter().find(is_segment).unwrap()
}

/// A bit of the first page, which holds keys.
fn flip(disk: &MemoryDisk) {
    disk.tamper(&segment(disk), |bytes| bytes[48] ^= 0x10);
}

#[test]
fn what_is_in_the_pool_is_not_read_again_and_is_the_same() {
    let (disk, pool) = (MemoryDisk::default(), Arc::new(PagePool::new(64 << 20)));
    let store = open_pooled(&disk, &pool);
    fill(&store, "name");
    let snapshot = store.snapshot();
    let cold = scan(&snapshot).unwrap();
    assert_eq!(cold.num_rows() as i64, 2 * ROWS);
    let (reads, before) = (disk.reads(), pool.status());
    assert!(before.bytes > 0 && before.bytes <= before.bytes_max, "{before:?}");
    assert_eq!(scan(&snapshot).unwrap(), cold);
    let spec = FetchSpec {
        table: TableId(1),
        partition: PartitionId(1),
        schema_version: 1,
        columns: vec![ColumnId(2), ColumnId(3)],
    };
    let addresses = [5, 1 << 32 | 20_000, 29_999];
    let fetched = snapshot.fetch(&spec, &addresses).unwrap();
    assert_eq!(disk.reads(), reads, "all of it was there");
    let after = pool.status();
    assert_eq!((after.misses, after.bytes), (before.misses, before.bytes));
    assert!(after.hits > before.hits);

    // Without a pool, every page is read each time, and everything is the same.
    let none = Arc::new(PagePool::new(0));
    drop((store, snapshot));
    let store = open_pooled(&disk, &none);
    let snapshot = store.snapshot();
    let mut reads = Vec::new();
    for _ in 0..2 {
        let before = disk.reads();
        assert_eq!(scan(&snapshot).unwrap(), cold);
        reads.push(disk.reads() - before);
    }
    assert!(reads[0] == reads[1] && reads[0] >= 2 * 4 * 3, "{reads:?}");
    assert_eq!(snapshot.fetch(&spec, &addresses).unwrap(), fetched);
    assert_eq!((none.status().hits, none.status().bytes), (0, 0));
    assert_eq!(store.verify().unwrap(), []);
}

#[test]
fn a_pool_that_is_too_small_spares_what_it_can() {
    let (disk, large) = (filled(), Arc::new(PagePool::new(64 << 20)));
    let store = open_pooled(&disk, &large);
    let before = disk.reads();
    let whole = scan(&store.snapshot()).unwrap();
    let (all, bytes) = (disk.reads() - before, large.status().bytes);
    drop(store);
    let small = Arc::new(PagePool::new(bytes as usize * 2 / 3));
    let store = open_pooled(&disk, &small);
    let reads: Vec<u64> = (0..4)
        .map(|_| {
            let before = disk.reads();
            assert_eq!(scan(&store.snapshot()).unwrap(), whole);
            assert!(small.status().bytes <= small.status().bytes_max);
            disk.reads() - before
        })
        .collect();
    assert!(reads[0] >= all, "{reads:?} of {all}");
    assert!(reads[1..].iter().sum::<u64>() < 3 * all && !reads.contains(&0), "{reads:?} of {all}");
}

/// Two stores on disks of their own, whose segments have the same numbers.
#[test]
fn stores_do_not_meet_what_others_left() {
    let pool = Arc::new(PagePool::new(64 << 20));
    let disks = [MemoryDisk::default(), MemoryDisk::default()];
    let stores = [0, 1].map(|at| open_pooled(&disks[at], &pool));
    fill(&stores[0], "one");
    fill(&stores[1], "other");
    for _ in 0..2 {
        for (store, name) in stores.iter().zip(["one", "other"]) {
            let rows = read(&store.snapshot());
            assert!(rows.values().all(|(found, _)| found.as_ref().unwrap().starts_with(name)));
        }
    }
    // The directory of a replica that was emptied: its store has a new life, while a reader holds on to the old one.
    let held = stores[0].snapshot();
    let old = scan(&held).unwrap();
    let [store, _] = stores;
    store.close();
    drop(store);
    disks[0].shared().remove_dir_all(Path::new(DIR)).unwrap();
    let store = open_pooled(&disks[0], &pool);
    fill(&store, "new");
    let rows = read(&store.snapshot());
    assert!(rows.values().all(|(found, _)| found.as_ref().unwrap().starts_with("new")));
    assert_eq!(scan(&held).unwrap(), old, "its pages are there yet");
}

#[test]
fn what_nobody_can_read_any_more_is_forgotten() {
    let (disk, pool) = (MemoryDisk::default(), Arc::new(PagePool::new(64 << 20)));
    let store = open_pooled(&disk, &pool);
    fill(&store, "name");
    // Writers look up keys, and versions of what they replace.
    commit(&store, put(9, rows(&[(4, None, 4), (5, None, 5)])));
    let held = store.snapshot();
    let before = scan(&held).unwrap();
    let warm = pool.status();
    assert!(warm.bytes > 0);
    while store.compact().unwrap() {}
    assert_eq!(store.status().segments, 1);
    let reads = disk.reads();
    assert_eq!(scan(&held).unwrap(), before);
    assert_eq!(disk.reads(), reads, "merging has left a reader what it had");
    drop(held);
    store.recheck();
    assert_eq!(pool.status().bytes, 0, "the merged segments have gone, and what came out was not read yet");
    assert_eq!(scan(&store.snapshot()).unwrap().num_rows(), before.num_rows());
    assert!(pool.status().bytes > 0);
    store.close();
    drop(store);
    assert_eq!(pool.status().bytes, 0, "the store has gone");
}

/// Walks through everything leave the pool to those who come back.
#[test]
fn checks_and_digests_take_no_room() {
    let (disk, pool) = (filled(), Arc::new(PagePool::new(64 << 20)));
    let store = open_pooled(&disk, &pool);
    assert_eq!(store.verify().unwrap(), []);
    assert_eq!(pool.status(), PoolStatus { bytes_max: 64 << 20, ..PoolStatus::default() });
    scan(&store.snapshot()).unwrap();
    let (warm, reads) = (pool.status(), disk.reads());
    store.content_digest().unwrap();
    assert_eq!(store.verify().unwrap(), []);
    assert!(disk.reads() >= reads + 2 * 2 * 4 * 3);
    assert_eq!(pool.status().bytes, warm.bytes);
    let reads = disk.reads();
    scan(&store.snapshot()).unwrap();
    assert_eq!(disk.reads(), reads, "nothing was lost to them");
}

/// Whether that meets damage.
type Finder = fn(&Store) -> bool;

/// Damage under a page that is in the pool is found by whoever looks for it, and from then on by everybody.
#[test]
fn a_flipped_bit_below_the_pool_is_found() {
    let finds: [(&str, Finder); 3] = [
        ("verify", |store| !store.verify().unwrap().is_empty()),
        ("content digest", |store| store.content_digest().is_err_and(|error| error.code() == ErrorCode::Corruption)),
        ("compaction", |store| store.compact().is_err_and(|error| error.code() == ErrorCode::Corruption)),
    ];
    for (what, finds) in finds {
        let (disk, pool) = (MemoryDisk::default(), Arc::new(PagePool::new(64 << 20)));
        let store = open_pooled(&disk, &pool);
        fill(&store, "name");
        let before = scan(&store.snapshot()).unwrap();
        flip(&disk);
        assert_eq!(scan(&store.snapshot()).unwrap(), before, "{what}: those bytes were checked when they were read");
        store.recheck();
        assert!(store.status().problems.is_empty(), "{what}: nobody has met it");
        assert!(finds(&store), "{what}");
        assert_eq!(store.status().problems.len(), 1, "{what}");
        assert_eq!(
            scan(&store.snapshot()).unwrap_err().code(),
            ErrorCode::Corruption,
            "{what}: its pages are forgotten"
        );
        store.recheck();
        assert_eq!(store.status().problems.len(), 1, "{what}");
        flip(&disk);
        store.recheck();
        assert!(store.status().problems.is_empty(), "{what}: it has passed");
        assert_eq!(scan(&store.snapshot()).unwrap(), before, "{what}");
    }
}
