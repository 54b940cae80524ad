//! Digests: what they see, and what they cost.

use arrow::array::{Array, ArrayRef, Float64Array, RecordBatch};
use arrow::datatypes::DataType;
use shoal_kernel::{ColumnId, SchemaChange, TableSchema};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;

#[test]
fn a_digest_reads_nothing_also_after_a_restart() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    commit(&store, put(1, rows(&(0..9_000).map(|id| (id, Some("x"), id)).collect::<Vec<_>>())));
    store.flush().unwrap();
    commit(&store, put(2, rows(&(0..900).map(|id| (id * 7, None, id)).collect::<Vec<_>>())));
    commit(&store, delete(3, keys(&[1, 2, 8_999])));
    let known = |store: &shoal_storage::Store, disk: &MemoryDisk| {
        let before = disk.reads();
        let known = (store.digest().unwrap(), store.digest_buckets().unwrap());
        assert_eq!(disk.reads(), before);
        known
    };
    let digest = known(&store, &disk);
    assert_eq!((digest.0.rows, digest.0.tombstones, digest.0.sum), (8_997, 3, digest.1.sum()));
    drop(store);
    for _ in 0..2 {
        let disk = disk.restart(Loss::Everything);
        let (store, _) = open(&disk.shared());
        assert_eq!(known(&store, &disk), digest);
        assert_eq!(store.verify().unwrap(), []);
        store.optimize(&|| true).unwrap();
        assert_eq!(known(&store, &disk), digest);
        let again = disk.restart(Loss::Everything);
        assert_eq!(known(&open(&again.shared()).0, &again), digest);
    }
}

#[test]
fn buckets_tell_where_and_content_tells_what() {
    let with = |row: (i64, Option<&str>, i64), time: u64| {
        let (store, _) = open(&MemoryDisk::default().shared());
        commit(&store, put(1, rows(&(0..2_000).map(|id| (id, None, id)).collect::<Vec<_>>())));
        commit(&store, put(time, rows(&[row])));
        store
    };
    let (one, same, newer) = (with((7, None, 1), 2), with((7, None, 1), 2), with((7, None, 1), 3));
    let other = with((7, Some("other"), 1), 2);
    let buckets = one.digest_buckets().unwrap();
    assert_eq!(buckets.differing(&same.digest_buckets().unwrap()), [0usize; 0]);
    assert_eq!(buckets.differing(&newer.digest_buckets().unwrap()).len(), 1, "the bucket of one key");
    assert_eq!(buckets.sums().len(), 256);
    assert!(buckets.sums().iter().all(|sum| *sum != 0), "keys are spread over all buckets");
    assert_eq!(one.digest().unwrap(), other.digest().unwrap(), "the same versions of the same keys");
    assert_ne!(one.content_digest().unwrap(), other.content_digest().unwrap());
    assert_eq!(one.content_digest().unwrap(), same.content_digest().unwrap());
}

#[test]
fn columns_that_come_and_go_change_no_digest() {
    let disk = MemoryDisk::default();
    let schema = event_schema();
    let (old, _) = open_with(&disk.shared(), &schema, options(), 1).unwrap();
    commit(&old, put(1, events(&[(1, "a", 1), (2, "b", 2)])));
    old.flush().unwrap();
    commit(&old, put(2, events(&[(3, "c", 3)])));
    let digest = old.digest_buckets().unwrap();
    drop(old);
    let narrow = schema.changed(&SchemaChange::Drop(ColumnId(3))).unwrap();
    let wide = narrow.changed(&SchemaChange::Add(column(4, "extra", DataType::Float64, true))).unwrap();
    let changed = std::sync::Arc::new(TableSchema { version: 2, ..wide });
    let (new, _) = open_with(&disk.shared(), &changed, options(), 1).unwrap();
    assert_eq!(new.digest_buckets().unwrap(), digest);
    assert_eq!(new.verify().unwrap(), []);
    // A replica that has got them after the change.
    let (fresh, _) = open_with(&MemoryDisk::default().shared(), &changed, options(), 2).unwrap();
    for (time, all) in [(1, vec![(1, "a", 1), (2, "b", 2)]), (2, vec![(3, "c", 3)])] {
        let base = events(&all);
        let extra: ArrayRef = std::sync::Arc::new(Float64Array::from(vec![None; base.num_rows()]));
        assert_eq!(extra.null_count(), base.num_rows());
        let arrays = [base.column(0).clone(), base.column(1).clone(), extra];
        commit(
            &fresh,
            put(
                time,
                RecordBatch::try_from_iter_with_nullable(
                    ["_ts", "_dedup", "extra"].into_iter().zip(arrays).map(|(name, array)| (name, array, true)),
                )
                .unwrap(),
            ),
        );
    }
    assert_eq!(fresh.digest_buckets().unwrap(), digest);
}
