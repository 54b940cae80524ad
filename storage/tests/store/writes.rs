//! What a commit means.

use shoal_kernel::{ErrorCode, LogId};
use shoal_storage::{Rows, Write};

use crate::disk::MemoryDisk;
use crate::fixture::*;

#[test]
fn newest_version_wins_whatever_the_order_of_arrival() {
    let disk = MemoryDisk::default().shared();
    let (store, recovery) = open(&disk);
    assert!(recovery.created);
    commit(&store, put(10, rows(&[(1, Some("a"), 1), (2, Some("b"), 2), (1, Some("later ordinal"), 3)])));
    let before = store.snapshot();
    commit(&store, put(20, rows(&[(2, None, 20)])));
    commit(&store, put(15, rows(&[(2, Some("late"), 15), (3, Some("c"), 3)])));
    commit(&store, delete(30, keys(&[3, 4])));
    commit(&store, put(25, rows(&[(4, Some("older than its tombstone"), 0)])));

    assert_eq!(read(&before), table(&[(1, Some("later ordinal"), 3), (2, Some("b"), 2)]));
    let after = table(&[(1, Some("later ordinal"), 3), (2, None, 20)]);
    assert_eq!(read(&store.snapshot()), after);
    let digest = store.digest().unwrap();
    assert_eq!((digest.rows, digest.tombstones), (2, 2));

    drop(store);
    let (store, recovery) = open(&disk);
    assert_eq!((recovery.records_replayed, recovery.created, recovery.in_doubt), (5, false, false));
    assert_eq!(read(&store.snapshot()), after);
    assert_eq!(store.digest().unwrap(), digest);
    assert_eq!(store.snapshot().position(), (LogId(7), 5));
}

#[test]
fn an_event_that_arrives_twice_is_one_row() {
    let disk = MemoryDisk::default().shared();
    let (store, _) = open_with(&disk, &event_schema(), options(), 1).unwrap();
    commit(&store, put(10, events(&[(5, "x", 1), (5, "x", 2), (6, "", 1)])));
    let digest = store.digest().unwrap();
    commit(&store, put(20, events(&[(5, "x", 2), (6, "", 1)])));
    assert_eq!(store.snapshot().rows(), 3);
    assert_eq!(store.digest().unwrap(), digest, "the first version stays");
    commit(&store, put(5, events(&[(6, "", 1)])));
    assert_eq!(store.snapshot().rows(), 3);
    assert_ne!(store.digest().unwrap(), digest, "the smallest version stays");
    let refused = store.commit(vec![delete(30, keys(&[1]))], 0).unwrap().remove(0);
    assert_eq!(refused.unwrap_err().code(), ErrorCode::Unsupported);
}

#[test]
fn a_token_makes_a_resend_harmless() {
    let disk = MemoryDisk::default().shared();
    let (store, _) = open(&disk);
    let first = commit(&store, with_token(put(10, rows(&[(1, None, 1)])), "t"));
    for round in 0..2 {
        let store = if round == 0 { store.clone() } else { open(&disk).0 };
        let again = commit(&store, with_token(put(99, rows(&[(1, None, 1)])), "t"));
        assert!(again.duplicate);
        assert_eq!((again.version, again.position), (version(10), first.position));
        let conflict = store.commit(vec![with_token(put(99, rows(&[(1, None, 2)])), "t")], 0).unwrap().remove(0);
        assert_eq!(conflict.unwrap_err().code(), ErrorCode::TokenConflict);
        assert_eq!(read(&store.snapshot()), table(&[(1, None, 1)]));
        assert_eq!(store.token("t").unwrap().version, version(10));
    }
    // Both in one group.
    let both = vec![with_token(put(40, rows(&[(5, None, 5)])), "u"), with_token(put(41, rows(&[(5, None, 5)])), "u")];
    let results = store.commit(both, 0).unwrap();
    assert_eq!(results.iter().map(|result| result.as_ref().unwrap().duplicate).collect::<Vec<_>>(), [false, true]);
    assert_eq!(results[0].as_ref().unwrap().position, results[1].as_ref().unwrap().position);
}

#[test]
fn rows_that_do_not_fit_have_no_effect() {
    let disk = MemoryDisk::default().shared();
    let (store, _) = open(&disk);
    let nameless = rows(&[(1, None, 1)]).project(&[0]).unwrap();
    let unknown = rows(&[(1, None, 1)]);
    let renamed = renamed_column(&unknown);
    for (batch, what) in [(nameless, "n may not be NULL"), (renamed, "unknown column")] {
        let write = Write { version: version(1), token: None, rows: Rows::Put(batch) };
        let results = store.commit(vec![write, put(2, rows(&[(7, None, 7)]))], 0).unwrap();
        assert_eq!(results[0].as_ref().unwrap_err().code(), ErrorCode::InvalidRows, "{what}");
        assert!(results[1].is_ok());
    }
    assert_eq!(read(&store.snapshot()), table(&[(7, None, 7)]));
}

fn renamed_column(batch: &arrow::array::RecordBatch) -> arrow::array::RecordBatch {
    let names = ["id", "title", "n"].into_iter().zip(batch.columns().iter().cloned());
    arrow::array::RecordBatch::try_from_iter(names).unwrap()
}

#[test]
fn tokens_are_kept_for_their_time_and_no_longer() {
    let disk = MemoryDisk::default();
    let few = || shoal_storage::StoreOptions {
        token_keep: std::time::Duration::from_micros(100),
        tokens_max: 2,
        ..options()
    };
    let schema = upsert_schema();
    let (store, _) = open_with(&disk.shared(), &schema, few(), 7).unwrap();
    let at = |micros: u64, token: &str, n: i64| {
        let version = shoal_kernel::Version::new(shoal_kernel::Hlc::from_micros(micros), shoal_kernel::NodeId(1), 0);
        Write { version, token: Some(token.into()), rows: Rows::Put(rows(&[(n, None, n)])) }
    };
    let one = |store: &shoal_storage::Store, write, now| store.commit(vec![write], now).unwrap().remove(0);
    one(&store, at(1000, "old", 1), 1000).unwrap();
    one(&store, at(1050, "new", 2), 1050).unwrap();
    let refused = one(&store, at(1060, "third", 3), 1060).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Overloaded);
    assert!(refused.message().contains("tokens_max"));
    store.flush().unwrap();
    drop(store);
    let (store, recovery) = open_with(&disk.shared(), &schema, few(), 7).unwrap();
    assert_eq!(recovery.records_replayed, 0, "tokens outlive their log");
    assert!(one(&store, at(1070, "old", 1), 1100).unwrap().duplicate);
    assert!(!one(&store, at(1101, "old", 9), 1101).unwrap().duplicate, "forgotten, so free again");
    assert!(one(&store, at(1102, "new", 2), 1102).unwrap().duplicate);
    assert_eq!(store.token("old").unwrap().version.time().micros(), 1101);
}

#[test]
fn the_parts_move_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<shoal_storage::Store>();
    shared::<shoal_storage::Snapshot>();
    sent::<shoal_storage::Scan>();
}
