//! Readers, a writer and maintenance at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shoal_kernel::{Hlc, NodeId, Version};
use shoal_storage::{PagePool, PullCursor, StoreOptions};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;
use crate::model::{Change, Model, pull_all, write};

const KEYS: i64 = 50;

/// A failed thread must not leave the others waiting for the end.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_snapshot_shows_whole_commits_only() {
    let small = StoreOptions { compaction_fan_in: 2, pool: Arc::new(PagePool::new(4000)), ..options() };
    let (store, _) = open_with(&MemoryDisk::default().shared(), &upsert_schema(), small, 1).unwrap();
    let generation = |n: i64| rows(&(0..KEYS).map(|key| (key, None, n)).collect::<Vec<_>>());
    commit(&store, put(1, generation(0)));
    let stop = AtomicBool::new(false);
    let check = || {
        let found = read(&store.snapshot());
        let generations: std::collections::BTreeSet<i64> = found.values().map(|row| row.1).collect();
        assert_eq!((found.len() as i64, generations.len()), (KEYS, 1), "{generations:?}");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = StopAtEnd(&stop);
            for n in 1..150 {
                commit(&store, put(n as u64 + 1, generation(n)));
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                store.flush().unwrap();
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                store.compact().unwrap();
            }
        });
        while !stop.load(Ordering::Relaxed) {
            check();
        }
    });
    check();
    assert_eq!(store.verify().unwrap(), []);
    let (follower, _) = open(&MemoryDisk::default().shared());
    pull_all(&store, &follower, &mut PullCursor::default(), 1000);
}

/// Two writers that replace and delete each other's rows, late and early, while everything that moves rows runs.
#[test]
fn whatever_moves_rows_meanwhile_the_newest_wins() {
    let small = StoreOptions {
        compaction_fan_in: 2,
        pool: Arc::new(PagePool::new(4000)),
        wal_segment_bytes_max: 4000,
        ..options()
    };
    let disk = MemoryDisk::default();
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), small.clone(), 1).unwrap();
    let stop = AtomicBool::new(false);
    let models = std::thread::scope(|scope| {
        let writer = |number: u32| {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                let _stop = StopAtEnd(stop);
                let mut model = Model::default();
                for n in 0..400_i64 {
                    // Times that go up and down: some rows come late.
                    let version = Version::new(Hlc((n * 37 % 400) as u64 + 1), NodeId(number), 0);
                    let base = n * 7 % 90;
                    let change = match n % 5 {
                        0 => Change::Delete((0..9).map(|at| (base + at * 11) % 90).collect()),
                        _ => Change::Put((0..12).map(|at| ((base + at * 5) % 90, n)).collect()),
                    };
                    commit(store, write(&mut model, version, &change));
                }
                model
            })
        };
        let writers = [writer(1), writer(2)];
        let repeat = |work: fn(&shoal_storage::Store)| {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    work(store);
                }
            });
        };
        repeat(|store| {
            store.flush().unwrap();
        });
        repeat(|store| {
            store.compact_step(1).unwrap();
        });
        repeat(|store| {
            store.optimize(&|| true).unwrap();
        });
        repeat(|store| drop(read(&store.snapshot())));
        writers.map(|writer| writer.join().unwrap())
    });
    let [mut model, other] = models;
    model.take(other);
    assert_eq!(read(&store.snapshot()), model.visible());
    assert_eq!(store.verify().unwrap(), []);
    let digest = store.digest().unwrap();
    let (reopened, _) = open_with(&disk.restart(Loss::Everything).shared(), &upsert_schema(), small, 2).unwrap();
    assert_eq!((read(&reopened.snapshot()), reopened.digest().unwrap()), (model.visible(), digest));
}
