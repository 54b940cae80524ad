//! The catch-up feed between stores.

use std::collections::BTreeSet;

use proptest::prelude::*;
use shoal_kernel::{Hlc, LogId, NodeId, Version};
use shoal_storage::{PullCursor, Rows, Write, batch_bytes};

use crate::disk::MemoryDisk;
use crate::fixture::*;
use crate::model::{pull_all, pull_once};

#[test]
fn flush_and_compaction_between_two_calls_skip_nothing() {
    let (source, _) = open(&MemoryDisk::default().shared());
    let (target, _) = open(&MemoryDisk::default().shared());
    let mut cursor = PullCursor::default();
    let mut time = 0;
    for round in 0..40i64 {
        for _ in 0..5 {
            time += 1;
            let some = |at: i64| ((at * 37 + round * 11) % 3000, Some("row"), round * 1000 + at);
            commit(&source, put(time, rows(&(0..40).map(some).collect::<Vec<_>>())));
        }
        pull_once(&source, &target, &mut cursor, 700);
        match round % 4 {
            0 => drop(source.flush().unwrap()),
            2 => while source.compact().unwrap() {},
            _ => {
                time += 1;
                commit(&source, delete(time, keys(&[round * 3, round * 5])));
            }
        }
        pull_once(&source, &target, &mut cursor, 5000);
    }
    pull_all(&source, &target, &mut cursor, 3000);
    assert_eq!(read(&source.snapshot()), read(&target.snapshot()));
    assert_eq!(cursor.position, source.snapshot().position().1);

    // From here on only what is new.
    commit(&source, put(time + 1, rows(&[(5, None, 5)])));
    let pulled = source.pull(&cursor, 1 << 20).unwrap();
    assert_eq!(pulled.batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
    assert!(pulled.done && pulled.position == pulled.next.position);
    source.flush().unwrap();
    let pulled = source.pull(&cursor, 1 << 20).unwrap();
    assert_eq!(pulled.batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1, "positions are kept per row");
}

#[test]
fn wide_rows_come_in_small_parts() {
    let (source, _) = open(&MemoryDisk::default().shared());
    let wide = "w".repeat(10_000);
    // Narrow ones come first: the others are not judged by them.
    for n in 0..100i64 {
        commit(&source, put(n as u64 + 1, rows(&[(n, Some(if n < 40 { "n" } else { &wide }), n)])));
    }
    for flushed in [false, true] {
        if flushed {
            source.flush().unwrap();
        }
        let (mut cursor, mut seen) = (PullCursor::default(), 0);
        loop {
            let pulled = source.pull(&cursor, 50_000).unwrap();
            let part: usize = pulled.batches.iter().map(|batch| batch.num_rows()).sum();
            let bytes: usize = pulled.batches.iter().map(batch_bytes).sum();
            assert!(bytes <= 62_000, "{part} rows of {bytes} bytes in a part of 50 kB");
            seen += part;
            cursor = pulled.next;
            if pulled.done {
                break;
            }
        }
        assert_eq!(seen, 100);
    }
}

#[test]
fn a_cursor_of_another_log_starts_from_the_beginning() {
    let (source, _) = open(&MemoryDisk::default().shared());
    commit(&source, put(1, rows(&[(1, None, 1)])));
    for cursor in [
        PullCursor { log_id: LogId(99), position: 1, round: None },
        PullCursor { log_id: LogId(7), position: 500, round: None },
    ] {
        let pulled = source.pull(&cursor, 1000).unwrap();
        assert_eq!((pulled.batches.len(), pulled.done), (1, true));
        assert_eq!(pulled.next, PullCursor { log_id: LogId(7), position: 1, round: None });
    }
}

#[test]
fn tokens_travel_with_their_rows_and_the_lower_version_stays() {
    let (one, _) = open(&MemoryDisk::default().shared());
    let (two, _) = open(&MemoryDisk::default().shared());
    commit(&one, with_token(put(20, rows(&[(1, None, 1)])), "t"));
    commit(&two, with_token(put(10, rows(&[(1, None, 1)])), "t"));
    commit(&one, with_token(put(30, rows(&[(2, None, 2)])), "u"));
    one.flush().unwrap();
    let (mut forth, mut back) = (PullCursor::default(), PullCursor::default());
    pull_once(&one, &two, &mut forth, 1 << 20);
    pull_once(&two, &one, &mut back, 1 << 20);
    for store in [&one, &two] {
        assert_eq!(store.token("t").unwrap().version, version(10));
        assert_eq!(store.token("u").unwrap().version, version(30));
        assert_eq!(read(&store.snapshot()), table(&[(1, None, 1), (2, None, 2)]));
    }
    assert_eq!(one.digest().unwrap(), two.digest().unwrap());
    // Both come to rest.
    assert!(pull_once(&one, &two, &mut forth, 1 << 20) && pull_once(&two, &one, &mut back, 1 << 20));
    let positions = (one.snapshot().position(), two.snapshot().position());
    assert!(pull_once(&one, &two, &mut forth, 1 << 20) && pull_once(&two, &one, &mut back, 1 << 20));
    assert_eq!((one.snapshot().position(), two.snapshot().position()), positions);
}

#[test]
fn events_converge_on_the_smallest_version() {
    let schema = event_schema();
    let open = || open_with(&MemoryDisk::default().shared(), &schema, options(), 1).unwrap().0;
    let (one, two) = (open(), open());
    commit(&one, put(20, events(&[(1, "a", 1), (2, "b", 2)])));
    commit(&two, put(10, events(&[(1, "a", 1), (3, "c", 3)])));
    one.flush().unwrap();
    two.flush().unwrap();
    pull_once(&one, &two, &mut PullCursor::default(), 1 << 20);
    pull_once(&two, &one, &mut PullCursor::default(), 1 << 20);
    assert_eq!(one.digest().unwrap(), two.digest().unwrap());
    assert_eq!(one.snapshot().rows(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn three_event_stores_converge(
        steps in prop::collection::vec(
            (0usize..3, prop::collection::vec((0i64..6, 0u8..2, 0i64..3), 1..8), 0u64..9, any::<bool>()),
            1..30,
        ),
    ) {
        let schema = event_schema();
        let open = || open_with(&MemoryDisk::default().shared(), &schema, options(), 1).unwrap().0;
        let stores = [open(), open(), open()];
        let mut distinct = BTreeSet::new();
        for (number, (store, rows, time, flush)) in steps.into_iter().enumerate() {
            let rows: Vec<_> = rows.iter().map(|(ts, dedup, n)| (*ts, ["", "d"][*dedup as usize], *n)).collect();
            distinct.extend(rows.iter().copied());
            let version = Version::new(Hlc(time), NodeId(number as u32), 0);
            commit(&stores[store], Write { version, token: None, rows: Rows::Put(events(&rows)) });
            if flush {
                stores[store].flush().unwrap();
                stores[store].compact().unwrap();
            }
        }
        for _ in 0..2 {
            for (from, into) in [(0, 1), (1, 2), (2, 0), (1, 0), (0, 2)] {
                let mut cursor = PullCursor::default();
                while !pull_once(&stores[from], &stores[into], &mut cursor, 300) {}
            }
        }
        for store in &stores {
            prop_assert_eq!(store.digest().unwrap(), stores[0].digest().unwrap());
            prop_assert_eq!(store.snapshot().rows(), distinct.len() as u64);
        }
    }
}
