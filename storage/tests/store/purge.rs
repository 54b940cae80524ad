//! Tombstones that go for good, and what they had buried, which does not come back.

use proptest::prelude::*;
use shoal_kernel::{ErrorCode, Hlc};
use shoal_storage::{PullCursor, Store, StoreOptions};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;
use crate::model::pull_once;

fn tombstones(store: &Store) -> u64 {
    store.digest().unwrap().tombstones
}

#[test]
fn tombstones_go_and_nothing_rises() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    commit(&store, put(1, rows(&(0..1_000).map(|id| (id, Some("x"), id)).collect::<Vec<_>>())));
    store.flush().unwrap();
    commit(&store, delete(2, keys(&(0..300).collect::<Vec<_>>())));
    commit(&store, delete(5, keys(&[400, 401])));
    // What came again after its deletion, and a deletion of what never was.
    commit(&store, put(6, rows(&[(7, None, 70)])));
    commit(&store, delete(3, keys(&[5_000])));
    assert_eq!((tombstones(&store), store.old_tombstones(Hlc(4)).unwrap()), (302, 0), "they are not in segments yet");
    let table = read(&store.snapshot());
    assert_eq!(store.purge(Hlc(4)).unwrap(), Some(300));
    assert_eq!((tombstones(&store), store.purged()), (2, Hlc(4)));
    assert_eq!(store.purge(Hlc(4)).unwrap(), Some(0));
    assert_eq!(store.purge(Hlc(1)).unwrap(), Some(0), "it never goes back");
    let digest = store.digest_moment().unwrap();
    let check = |store: &Store| {
        assert_eq!(read(&store.snapshot()), table);
        assert_eq!(store.digest_moment().unwrap(), digest);
        assert_eq!(store.verify().unwrap(), []);
    };
    check(&store);
    let before = store.status().segment_rows;
    store.optimize(&|| true).unwrap();
    assert_eq!((before, store.status().segment_rows), (1_303, 701), "merges leave them out");
    check(&store);
    drop(store);
    let disk = disk.restart(Loss::Everything);
    check(&open(&disk.shared()).0);
}

#[test]
fn nothing_rises_after_a_loss_of_power() {
    // Synced late: what buries a tombstone lies in the log alone.
    let late = StoreOptions { sync_commits: false, ..options() };
    let disk = MemoryDisk::default();
    let open = |disk: &MemoryDisk, log| open_with(&disk.shared(), &upsert_schema(), late.clone(), log).unwrap().0;
    let store = open(&disk, 1);
    commit(&store, put(1, rows(&[(1, None, 1), (2, None, 2)])));
    commit(&store, delete(2, keys(&[1, 2])));
    store.flush().unwrap();
    commit(&store, put(3, rows(&[(1, None, 3)])));
    assert_eq!(store.purge(Hlc(2)).unwrap(), Some(1), "the other one has lost, and what it lost against is flushed");
    let after = disk.restart(Loss::Everything);
    let store = open(&after, 2);
    assert_eq!(read(&store.snapshot()), table(&[(1, None, 3)]));
    assert_eq!((tombstones(&store), store.verify().unwrap()), (0, vec![]));
}

#[test]
fn late_writes_are_refused_and_resends_known() {
    let (store, _) = open(&MemoryDisk::default().shared());
    commit(&store, with_token(put(3, rows(&[(1, None, 1)])), "t"));
    assert_eq!(store.fence(Hlc(4)).1, 1);
    let refused = |write| store.commit(vec![write], 0).unwrap().remove(0).unwrap_err();
    for write in [put(4, rows(&[(2, None, 2)])), delete(3, keys(&[1])), with_token(put(2, rows(&[(2, None, 2)])), "u")]
    {
        assert_eq!(refused(write).code(), ErrorCode::ClockSkew);
    }
    assert!(commit(&store, with_token(put(3, rows(&[(1, None, 1)])), "t")).duplicate);
    commit(&store, put(5, rows(&[(2, None, 2)])));
}

#[test]
fn history_is_taken_and_buries_what_it_meets() {
    let [source, target] =
        [1, 2].map(|log| open_with(&MemoryDisk::default().shared(), &upsert_schema(), options(), log).unwrap().0);
    commit(&source, put(1, rows(&[(1, None, 1), (2, None, 2)])));
    commit(&source, delete(2, keys(&[1, 3])));
    commit(&target, put(1, rows(&[(1, None, 1)])));
    target.fence(Hlc(4));
    assert_eq!(target.purge(Hlc(4)).unwrap(), Some(0));
    pull_once(&source, &target, &mut PullCursor::default(), 1 << 20);
    assert_eq!(read(&target.snapshot()), table(&[(2, None, 2)]));
    assert_eq!(tombstones(&target), 1, "one had something to bury");
    assert_eq!((source.purge(Hlc(4)).unwrap(), target.purge(Hlc(4)).unwrap()), (Some(2), Some(1)));
    assert_eq!(source.digest_moment().unwrap(), target.digest_moment().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Two stores that hold the same, one of which purges as it goes: the same rows, also after a crash.
    #[test]
    fn rows_are_as_without_a_purge(
        steps in prop::collection::vec((0i64..12, 0u8..3, 0u8..6), 1..60),
    ) {
        let disk = MemoryDisk::default();
        let (purging, _) = open(&disk.shared());
        let (keeping, _) = open(&MemoryDisk::default().shared());
        let mut time = 0;
        for (key, what, then) in steps {
            time += 1;
            for store in [&purging, &keeping] {
                match what {
                    0 => commit(store, delete(time, keys(&[key, key + 1]))),
                    _ => commit(store, put(time, rows(&[(key, None, time.cast_signed())]))),
                };
            }
            match then {
                0 => drop(purging.flush().unwrap()),
                1 => drop(purging.compact().unwrap()),
                2 => drop(purging.purge(Hlc(time.saturating_sub(3))).unwrap()),
                _ => {}
            }
            prop_assert_eq!(read(&purging.snapshot()), read(&keeping.snapshot()));
        }
        prop_assert!(purging.purge(Hlc(time)).unwrap().is_some());
        prop_assert_eq!(tombstones(&purging), 0);
        prop_assert_eq!(purging.verify().unwrap(), vec![]);
        let rows = read(&keeping.snapshot());
        drop(purging);
        let disk = disk.restart(Loss::Everything);
        let (purging, _) = open(&disk.shared());
        prop_assert_eq!(read(&purging.snapshot()), rows);
        prop_assert_eq!(tombstones(&purging), 0);
    }
}
