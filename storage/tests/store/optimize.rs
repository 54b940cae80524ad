//! Optimising: as few segments as can be, nothing that is dead, and no harm in being stopped or cut off.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;

use shoal_kernel::{ErrorCode, Planted};
use shoal_storage::{PullCursor, Store, StoreOptions};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;

const YES: fn() -> bool = || true;

fn filled(disk: &MemoryDisk, options: StoreOptions) -> Arc<Store> {
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), options, 7).unwrap();
    let all: Vec<_> = (0..20_000).map(|n| (n, Some("first"), n)).collect();
    commit(&store, put(1, rows(&all)));
    store.flush().unwrap();
    for part in 0..3 {
        let some: Vec<_> = (0..4_000).map(|n| (n * 5 + part, Some("second"), -n)).collect();
        commit(&store, put(2 + part as u64, rows(&some)));
        store.flush().unwrap();
    }
    commit(&store, delete(9, keys(&(0..20_000).step_by(2).collect::<Vec<_>>())));
    store
}

fn segment_files(disk: &MemoryDisk) -> Vec<PathBuf> {
    disk.files().into_iter().filter(|path| path.to_str().unwrap().ends_with(".seg")).collect()
}

#[test]
fn one_segment_is_left_with_rows_and_tombstones_and_is_left_alone() {
    let disk = MemoryDisk::default();
    let store = filled(&disk, options());
    let (expected, digest) = (read(&store.snapshot()), store.digest().unwrap());
    assert_eq!(expected.len(), 10_000);
    assert_eq!(store.optimize(&YES).unwrap(), 5, "the memtable is flushed first");
    assert_eq!(store.status().segments, 1);
    assert_eq!((read(&store.snapshot()), store.digest().unwrap()), (expected.clone(), digest));
    assert_eq!(digest.tombstones, 10_000, "an older row may come yet");
    // Each key once: what a peer without any of it is sent.
    let pulled = store.pull(&PullCursor::default(), usize::MAX).unwrap();
    assert_eq!(pulled.batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 20_000);

    let files = segment_files(&disk);
    assert_eq!(files.len(), 1);
    assert_eq!(store.optimize(&YES).unwrap(), 0);
    assert_eq!(segment_files(&disk), files, "it is not written again");
    commit(&store, put(1, rows(&[(4, Some("late"), 4)])));
    assert_eq!(read(&store.snapshot()), expected, "the tombstone is newer");
    assert_eq!(store.verify().unwrap(), []);
    let (store, _) = open(&disk.restart(Loss::Everything).shared());
    assert_eq!((read(&store.snapshot()), store.digest().unwrap()), (expected, digest));
}

#[test]
fn segments_have_as_many_rows_as_they_may() {
    // The 10,000 tombstones are flushed as one segment, which is not cut if it is full already.
    for (rows_max, segments) in [(20_000, 1), (19_999, 2), (8_192, 3), (1_000, 11), (50_000, 1)] {
        let disk = MemoryDisk::default();
        let store = filled(&disk, StoreOptions { segment_rows_max: rows_max, ..options() });
        let (expected, digest) = (read(&store.snapshot()), store.digest().unwrap());
        store.optimize(&YES).unwrap();
        assert_eq!(store.status().segments, segments, "{rows_max}");
        assert_eq!((read(&store.snapshot()), store.digest().unwrap()), (expected, digest));
        assert_eq!(store.optimize(&YES).unwrap(), 0, "{rows_max}");
        // Rows that die later are found in whichever segment they lie.
        commit(&store, delete(20, keys(&[1, 8_193, 19_999])));
        assert_eq!(read(&store.snapshot()).len(), 9_997);
        store.optimize(&YES).unwrap();
        assert_eq!(store.status().segments, segments, "{rows_max}");
        assert_eq!(read(&store.snapshot()).len(), 9_997);
    }
}

#[test]
fn whoever_gives_up_has_done_no_harm() {
    let disk = MemoryDisk::default();
    let store = filled(&disk, StoreOptions { segment_rows_max: 1_000, ..options() });
    let (expected, digest) = (read(&store.snapshot()), store.digest().unwrap());
    for steps in [0_u32, 1, 7] {
        let left = Cell::new(steps);
        let goes_on = || left.replace(left.get().saturating_sub(1)) > 0;
        assert_eq!(store.optimize(&goes_on).unwrap_err().code(), ErrorCode::Cancelled);
        assert_eq!(segment_files(&disk).len(), store.status().segments, "nothing half written stays");
        assert_eq!((read(&store.snapshot()), store.digest().unwrap()), (expected.clone(), digest));
    }
    // What came while it ran wins there too.
    commit(&store, put(30, rows(&[(7, Some("new"), 7)])));
    store.optimize(&YES).unwrap();
    assert_eq!(read(&store.snapshot())[&7], (Some("new".into()), 7));
}

#[test]
fn rows_that_die_meanwhile_are_dead_in_the_new_segments() {
    let disk = MemoryDisk::default();
    let store = filled(&disk, StoreOptions { segment_rows_max: 1_000, ..options() });
    let meanwhile = Cell::new(Some(delete(40, keys(&[1, 5_001, 19_999]))));
    let goes_on = || {
        if let Some(write) = meanwhile.take() {
            commit(&store, write);
        }
        true
    };
    store.optimize(&goes_on).unwrap();
    let left = read(&store.snapshot());
    assert_eq!((left.len(), left.contains_key(&5_001)), (9_997, false));
    // In no manifest yet, and in the log.
    assert_eq!(read(&open(&disk.restart(Loss::Everything).shared()).0.snapshot()), left);
    store.optimize(&YES).unwrap();
    assert_eq!(read(&open(&disk.restart(Loss::Everything).shared()).0.snapshot()), left);
}

#[test]
fn a_tombstone_that_is_dropped_is_missed() {
    let bug = StoreOptions { planted: Some(Planted::TombstoneDropped), ..options() };
    let disk = MemoryDisk::default();
    let store = filled(&disk, bug);
    let digest = store.digest().unwrap();
    store.optimize(&YES).unwrap();
    assert_ne!(store.digest().unwrap(), digest);
    commit(&store, put(1, rows(&[(4, Some("late"), 4)])));
    assert!(read(&store.snapshot()).contains_key(&4), "it has come back to life");
}
