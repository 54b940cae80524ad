//! Readers, a writer and maintenance at once.

use std::sync::atomic::{AtomicBool, Ordering};

use shoal_storage::{PullCursor, StoreOptions};

use crate::disk::MemoryDisk;
use crate::fixture::*;
use crate::model::pull_all;

const KEYS: i64 = 50;

#[test]
fn a_snapshot_shows_whole_commits_only() {
    let small = StoreOptions { compaction_fan_in: 2, cache_bytes_max: 4000, ..options() };
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
        // A failed thread must not leave the others waiting for the end.
        struct StopAtEnd<'a>(&'a AtomicBool);
        impl Drop for StopAtEnd<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
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
