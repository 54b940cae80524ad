//! The store beside a map that is obviously right.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use shoal_kernel::env::Disk;
use shoal_kernel::{Hlc, NodeId, Version};
use shoal_storage::{Digest, PagePool, PullCursor, Rows, Snapshot, Store, StoreOptions, Write};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;
use crate::summary::check_halves;

/// What a key holds: its version, and its row unless it was deleted.
#[derive(Debug, Clone, Default)]
pub struct Model(BTreeMap<i64, (Version, Option<Row>)>);

type Row = (Option<String>, i64);

impl Model {
    fn set(&mut self, key: i64, version: Version, row: Option<Row>) {
        let entry = self.0.entry(key).or_insert((version, row.clone()));
        if version > entry.0 {
            *entry = (version, row);
        }
    }

    /// What another one holds, where it is newer.
    pub fn take(&mut self, other: Self) {
        for (key, (version, row)) in other.0 {
            self.set(key, version, row);
        }
    }

    /// Forgets keys.
    pub fn retain(&mut self, keep: impl Fn(i64) -> bool) {
        self.0.retain(|id, _| keep(*id));
    }

    pub fn visible(&self) -> Table {
        self.0.iter().filter_map(|(key, (_, row))| Some((*key, row.clone()?))).collect()
    }
}

#[derive(Debug, Clone)]
pub enum Change {
    Put(Vec<(i64, i64)>),
    Delete(Vec<i64>),
}

impl Change {
    /// Leaves out keys.
    pub fn retain(self, keep: impl Fn(i64) -> bool) -> Self {
        match self {
            Self::Put(rows) => Self::Put(rows.into_iter().filter(|(id, _)| keep(*id)).collect()),
            Self::Delete(ids) => Self::Delete(ids.into_iter().filter(|id| keep(*id)).collect()),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<(u64, Change)>),
    Flush,
    Compact,
    /// A page of a compaction: what follows happens in the middle of it.
    Merge,
    Optimize,
    Reopen(bool),
    Hold,
    Alter,
    Pull(usize),
}

/// A write with its version, and what it does to the model.
pub fn write(model: &mut Model, version: Version, change: &Change) -> Write {
    let rows = match change {
        Change::Put(put) => {
            let named: Vec<_> =
                put.iter().map(|(key, n)| (*key, (n % 3 != 0).then(|| format!("name {n}")), *n)).collect();
            for (ordinal, (key, name, n)) in named.iter().enumerate() {
                model.set(*key, version.with_ordinal(ordinal as u32), Some((name.clone(), *n)));
            }
            Rows::Put(rows(&named.iter().map(|(key, name, n)| (*key, name.as_deref(), *n)).collect::<Vec<_>>()))
        }
        Change::Delete(deleted) => {
            for (ordinal, key) in deleted.iter().enumerate() {
                model.set(*key, version.with_ordinal(ordinal as u32), None);
            }
            Rows::Delete(keys(deleted))
        }
    };
    Write { version, token: None, rows }
}

pub fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => prop::collection::vec((0i64..60, 0i64..1000), 1..12).prop_map(Change::Put),
        1 => prop::collection::vec(0i64..60, 1..6).prop_map(Change::Delete),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec((0u64..50, change()), 1..4).prop_map(Step::Commit),
        3 => Just(Step::Flush),
        2 => Just(Step::Compact),
        3 => Just(Step::Merge),
        1 => Just(Step::Optimize),
        1 => any::<bool>().prop_map(Step::Reopen),
        2 => Just(Step::Hold),
        1 => Just(Step::Alter),
        2 => (1usize..4000).prop_map(Step::Pull),
    ]
}

/// Pulls one part into the follower.
pub fn pull_once(from: &Store, into: &Store, cursor: &mut PullCursor, bytes_max: usize) -> bool {
    // The other one hears of changes before it hears of rows.
    into.adopt(altered(from.schema_version())).unwrap();
    let pulled = from.pull(cursor, bytes_max).unwrap();
    let (next, done) = (pulled.next.clone(), pulled.done);
    for result in into.commit(pulled.into_writes(), 0).unwrap() {
        result.unwrap();
    }
    *cursor = next;
    done
}

/// Pulls until nothing is left; the digests must then be equal.
pub fn pull_all(from: &Store, into: &Store, cursor: &mut PullCursor, bytes_max: usize) -> Digest {
    for _ in 0..10_000 {
        if pull_once(from, into, cursor, bytes_max) {
            let digest = from.digest().unwrap();
            assert_eq!(into.digest().unwrap(), digest);
            assert_eq!(into.digest_buckets().unwrap(), from.digest_buckets().unwrap());
            assert_eq!(into.content_digest().unwrap(), from.content_digest().unwrap());
            return digest;
        }
    }
    panic!("the feed does not end");
}

fn small_options() -> StoreOptions {
    StoreOptions { compaction_fan_in: 2, wal_segment_bytes_max: 600, pool: Arc::new(PagePool::new(2000)), ..options() }
}

fn run(steps: Vec<Step>) {
    let mut disk = MemoryDisk::default();
    let open = |disk: &MemoryDisk| {
        let shared: Arc<dyn Disk> = disk.shared();
        open_with(&shared, &upsert_schema(), small_options(), 7).unwrap()
    };
    let mut store = open(&disk).0;
    let follower_disk = MemoryDisk::default();
    let follower = open(&follower_disk).0;
    let mut cursor = PullCursor::default();
    let mut model = Model::default();
    let mut held: Vec<(Snapshot, Table)> = Vec::new();
    let mut node = 0;
    for step in steps {
        match step {
            Step::Commit(changes) => {
                let mut group = Vec::new();
                for (time, change) in &changes {
                    node += 1;
                    group.push(write(&mut model, Version::new(Hlc(*time), NodeId(node), 0), change));
                }
                for result in store.commit(group, 0).unwrap() {
                    result.unwrap();
                }
            }
            Step::Flush => drop(store.flush().unwrap()),
            Step::Compact => drop(store.compact().unwrap()),
            Step::Merge => _ = store.compact_step(1).unwrap(),
            Step::Optimize => _ = store.optimize(&|| true).unwrap(),
            Step::Reopen(power_cut) => {
                held.clear();
                let before = (store.digest().unwrap(), store.snapshot().position(), store.schema_version());
                disk = disk.restart(if power_cut { Loss::Everything } else { Loss::Nothing });
                let (opened, recovery) = open(&disk);
                assert!(!recovery.in_doubt && recovery.tail_bytes_cut == 0 && !recovery.created);
                let after = (opened.digest().unwrap(), opened.snapshot().position(), opened.schema_version());
                assert_eq!(after, before);
                store = opened;
            }
            Step::Alter => alter(&store),
            Step::Hold => held.push((store.snapshot(), model.visible())),
            Step::Pull(bytes_max) => drop(pull_once(&store, &follower, &mut cursor, bytes_max)),
        }
        assert_eq!(read(&store.snapshot()), model.visible());
        check_halves(&store.snapshot(), &model.visible());
        held.iter().for_each(|(snapshot, expected)| assert_eq!(&read(snapshot), expected));
        assert_eq!(store.verify().unwrap(), []);
    }
    let digest = pull_all(&store, &follower, &mut cursor, 500);
    assert_eq!(read(&follower.snapshot()), model.visible());
    assert_eq!((digest.rows + digest.tombstones) as usize, model.0.len());
    // And back: the follower has nothing that the first one lacks, so nothing is accepted and both come to rest.
    let position = store.snapshot().position();
    pull_all(&follower, &store, &mut PullCursor::default(), 1 << 20);
    assert_eq!(store.snapshot().position(), position);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(steps in prop::collection::vec(step(), 1..40)) {
        run(steps);
    }
}
