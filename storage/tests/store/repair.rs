//! Repair between stores whose logs say that nothing is missing.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_kernel::{Planted, TableSchema};
use shoal_storage::{Rows, Store, StoreOptions, Write, batch_bytes};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;

/// Buckets in which the two differ.
fn differing(one: &Store, other: &Store) -> BTreeSet<u8> {
    let (one, other) = (one.digest_moment().unwrap(), other.digest_moment().unwrap());
    one.buckets.differing(&other.buckets).into_iter().map(|bucket| u8::try_from(bucket).unwrap()).collect()
}

/// Takes over what another store holds in some buckets; gives the rows that were sent, those that were news, and the parts.
fn repair(from: &Store, into: &Store, buckets: &BTreeSet<u8>, bytes_max: usize) -> (u64, u64, u64) {
    let (mut sent, mut news, mut parts, mut after) = (0, 0, 0, Vec::new());
    loop {
        let part = from.rows_of_buckets(buckets, &after, bytes_max).unwrap();
        parts += 1;
        if let Some(batch) = part.batch {
            sent += batch.num_rows() as u64;
            let rows = Rows::Replicated(batch, Vec::new());
            news += commit(into, Write { version: version(0), token: None, rows }).rows;
        }
        match part.next {
            Some(next) => {
                assert!(next > after);
                after = next;
            }
            None => return (sent, news, parts),
        }
    }
}

fn pair(schema: &Arc<TableSchema>, options: &StoreOptions) -> [(MemoryDisk, Arc<Store>); 2] {
    [1, 2].map(|log| {
        let disk = MemoryDisk::default();
        let store = open_with(&disk.shared(), schema, options.clone(), log).unwrap().0;
        (disk, store)
    })
}

#[test]
fn rows_and_tombstones_that_one_has_lost_come_back() {
    let [(_, whole), (disk, torn)] = pair(&upsert_schema(), &options());
    for store in [&whole, &torn] {
        commit(store, put(1, rows(&(0..3_000).map(|id| (id, Some("x"), id)).collect::<Vec<_>>())));
        store.flush().unwrap();
        commit(store, put(2, rows(&(0..500).map(|id| (id * 3, None, id)).collect::<Vec<_>>())));
        commit(store, delete(3, keys(&(0..200).map(|id| id * 7).collect::<Vec<_>>())));
    }
    let digest = whole.digest().unwrap();
    assert_eq!(torn.lose(&|number| number % 100 == 0).unwrap(), 30);
    assert_eq!(torn.verify().unwrap(), []);
    let lost = torn.digest().unwrap();
    assert_eq!(lost.rows + lost.tombstones + 30, digest.rows + digest.tombstones);
    assert!(lost.tombstones < digest.tombstones, "{lost}");

    // A restart brings back nothing that was lost, nor does the log.
    drop(torn);
    let disk = disk.restart(Loss::Everything);
    let torn = open_with(&disk.shared(), &upsert_schema(), options(), 2).unwrap().0;
    assert_eq!(torn.digest().unwrap(), lost);

    // What differs is not all that there is, and is repaired from the one that has it; the other one learns nothing.
    let buckets = differing(&whole, &torn);
    assert!((20..=30).contains(&buckets.len()), "{}", buckets.len());
    assert_eq!(repair(&torn, &whole, &buckets, 1 << 20).1, 0);
    let position = torn.snapshot().position().1;
    let (sent, news, parts) = repair(&whole, &torn, &buckets, 4_000);
    assert!(sent < 600 && news == 30 && parts > 1, "{sent} rows, {news} of them news, in {parts} parts");
    assert!(torn.snapshot().position().1 > position, "peers are told");
    assert_eq!(torn.digest().unwrap(), digest);
    assert_eq!(read(&torn.snapshot()), read(&whole.snapshot()));
    assert_eq!(torn.content_digest().unwrap(), whole.content_digest().unwrap());
    // Which holds after a flush, a merge and a restart, and after a restart before any of them.
    for flushed in [false, true] {
        if flushed {
            torn.flush().unwrap();
            torn.optimize(&|| true).unwrap();
        }
        let again = disk.restart(Loss::Everything);
        let again = open_with(&again.shared(), &upsert_schema(), options(), 2).unwrap().0;
        assert_eq!((again.digest().unwrap(), again.verify().unwrap()), (digest, vec![]));
        assert_eq!(read(&again.snapshot()), read(&whole.snapshot()));
    }
}

#[test]
fn events_come_back_as_well() {
    let [(_, whole), (_, torn)] = pair(&event_schema(), &options());
    for store in [&whole, &torn] {
        for time in 1..50i64 {
            let rows: Vec<_> = (0..40).map(|n| (time * 10 + n % 3, ["", "d"][n as usize % 2], n)).collect();
            commit(store, put(time.unsigned_abs(), events(&rows)));
        }
    }
    assert_eq!(torn.lose(&|number| number % 7 == 0).unwrap(), 280);
    let (_, news, _) = repair(&whole, &torn, &differing(&whole, &torn), 10_000);
    assert_eq!((news, torn.digest().unwrap()), (280, whole.digest().unwrap()));
    assert_eq!(torn.content_digest().unwrap(), whole.content_digest().unwrap());
}

#[test]
fn both_ways_and_between_flushes() {
    let [(_, one), (_, other)] = pair(&upsert_schema(), &options());
    for store in [&one, &other] {
        commit(store, put(1, rows(&(0..2_000).map(|id| (id, Some("x"), id)).collect::<Vec<_>>())));
    }
    commit(&one, put(2, rows(&[(7, None, 70), (9, None, 90)])));
    commit(&other, delete(3, keys(&[9, 11])));
    let buckets = differing(&one, &other);
    assert_eq!(buckets.len(), 3);
    assert_eq!(repair(&one, &other, &buckets, 300).1, 1);
    assert_eq!(repair(&other, &one, &buckets, 300).1, 2);
    assert!(differing(&one, &other).is_empty());
    assert_eq!(read(&one.snapshot()), read(&other.snapshot()));

    // A part ends where it ended, whatever becomes of segments before the next.
    let all: BTreeSet<u8> = (0..=u8::MAX).collect();
    let empty = open_with(&MemoryDisk::default().shared(), &upsert_schema(), options(), 3).unwrap().0;
    let (mut after, mut time) = (Vec::new(), 10);
    loop {
        let part = one.rows_of_buckets(&all, &after, 5_000).unwrap();
        if let Some(batch) = part.batch {
            assert!(batch_bytes(&batch) < 12_000, "versions come on top");
            commit(&empty, Write { version: version(0), token: None, rows: Rows::Replicated(batch, Vec::new()) });
        }
        let Some(next) = part.next else { break };
        after = next;
        time += 1;
        commit(&one, put(time, rows(&[(5_000 + time as i64, None, 0)])));
        one.flush().unwrap();
        one.compact().unwrap();
    }
    let copy = read(&empty.snapshot());
    assert!(
        read(&one.snapshot()).into_iter().filter(|(id, _)| *id < 5_000).all(|row| copy.get(&row.0) == Some(&row.1))
    );
}

#[test]
fn the_planted_bug_hides_lost_tombstones() {
    let options = StoreOptions { planted: Some(Planted::DigestWithoutTombstones), ..options() };
    let [(_, whole), (_, torn)] = pair(&upsert_schema(), &options);
    for store in [&whole, &torn] {
        commit(store, delete(1, keys(&[1, 2, 3])));
    }
    assert_eq!(torn.lose(&|_| true).unwrap(), 3);
    assert!(differing(&whole, &torn).is_empty());
}
