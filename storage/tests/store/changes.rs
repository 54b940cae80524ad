//! Changes between two positions, beside a memory of all that was.

use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::types::Int64Type;
use proptest::prelude::*;
use shoal_kernel::{ErrorCode, Hlc, LogId, NodeId, Result, Version};
use shoal_storage::{PagePool, Store, StoreOptions};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;
use crate::model::{Change, Model, change, write};

fn small_options() -> StoreOptions {
    StoreOptions { compaction_fan_in: 2, wal_segment_bytes_max: 600, pool: Arc::new(PagePool::new(2000)), ..options() }
}

fn open_small(disk: &MemoryDisk) -> Arc<Store> {
    open_with(&disk.shared(), &upsert_schema(), small_options(), 7).unwrap().0
}

/// Applies a delta: what goes must be there exactly so, what comes must find its place free.
pub fn apply(store: &Store, log: u64, from: u64, to: u64, table: &mut Table) -> Result<()> {
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    for changed in store.changes(LogId(log), from, to)? {
        let changed = changed?;
        let (id, name) =
            (changed.rows.column(0).as_primitive::<Int64Type>(), changed.rows.column(1).as_string::<i32>());
        let n = changed.rows.column(2).as_primitive::<Int64Type>();
        assert_eq!(changed.rows.num_rows(), changed.weights.len());
        for (row, weight) in changed.weights.iter().enumerate() {
            let name = name.iter().nth(row).unwrap().map(str::to_owned);
            let rows = match weight {
                -1 => &mut gone,
                1 => &mut new,
                other => panic!("a weight of {other}"),
            };
            rows.push((id.value(row), (name, n.value(row))));
        }
    }
    for (id, row) in gone {
        assert_eq!(table.remove(&id), Some(row), "what goes at {id} was not there at {from}, to {to}");
    }
    for (id, row) in new {
        assert_eq!(table.insert(id, row), None, "what comes at {id} was there already at {from}, to {to}");
    }
    Ok(())
}

#[derive(Debug, Clone)]
enum Step {
    Commit(u64, Change),
    Flush,
    Compact,
    Optimize,
    Alter,
    Reopen(bool),
    /// Keep changes from that share of the positions, in percent.
    Keep(u64),
    LetGo,
    /// Shares of the positions, in percent.
    Read(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0u64..50, change()).prop_map(|(time, change)| Step::Commit(time, change)),
        3 => Just(Step::Flush),
        2 => Just(Step::Compact),
        1 => Just(Step::Optimize),
        1 => Just(Step::Alter),
        1 => any::<bool>().prop_map(Step::Reopen),
        1 => (0u64..101).prop_map(Step::Keep),
        1 => prop::option::of(Just(())).prop_map(|some| if some.is_some() { Step::LetGo } else { Step::Keep(50) }),
        4 => (0u64..101, 0u64..101).prop_map(|(from, to)| Step::Read(from, to)),
    ]
}

fn run(steps: Vec<Step>) {
    let mut disk = MemoryDisk::default();
    let mut store = open_small(&disk);
    let mut model = Model::default();
    // By position, from the empty store on.
    let mut past = vec![Table::new()];
    let (mut kept, mut node) = (None, 0);
    let last = |past: &Vec<Table>| past.len() as u64 - 1;
    for step in steps {
        match step {
            Step::Commit(time, change) => {
                node += 1;
                commit(&store, write(&mut model, Version::new(Hlc(time), NodeId(node), 0), &change));
                past.push(model.visible());
            }
            Step::Flush => drop(store.flush().unwrap()),
            Step::Compact => while store.compact().unwrap() {},
            Step::Optimize => drop(store.optimize(&|| true).unwrap()),
            Step::Alter => alter(&store),
            Step::Reopen(power_cut) => {
                disk = disk.restart(if power_cut { Loss::Everything } else { Loss::Nothing });
                store = open_small(&disk);
            }
            Step::Keep(percent) => {
                let from = last(&past) * percent / 100;
                match store.keep_changes_from(Some(from)) {
                    Ok(()) => kept = Some(from),
                    Err(error) => {
                        assert_eq!(error.code(), ErrorCode::ChangesGone);
                        assert!(from < store.changes_from() && kept.is_none_or(|kept| from < kept), "{from} {kept:?}");
                    }
                }
            }
            Step::LetGo => {
                store.keep_changes_from(None).unwrap();
                kept = None;
            }
            Step::Read(from, to) => {
                let (from, to) = (last(&past) * from.min(to) / 100, last(&past) * from.max(to) / 100);
                let mut table = past[from as usize].clone();
                match apply(&store, 7, from, to, &mut table) {
                    Ok(()) => assert_eq!(table, past[to as usize], "from {from} to {to}"),
                    Err(error) => {
                        assert_eq!(error.code(), ErrorCode::ChangesGone);
                        assert!(from < store.changes_from(), "{error}");
                    }
                }
            }
        }
        assert!(kept.is_none_or(|kept| store.changes_from() <= kept), "what was promised is kept");
        assert_eq!(read(&store.snapshot()), *past.last().unwrap());
        assert_eq!(store.verify().unwrap(), []);
    }
    for from in store.changes_from()..=last(&past) {
        let mut table = past[from as usize].clone();
        apply(&store, 7, from, last(&past), &mut table).unwrap();
        assert_eq!(table, *past.last().unwrap(), "from {from}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn agree_with_the_model(steps in prop::collection::vec(step(), 1..50)) {
        run(steps);
    }
}

#[test]
fn a_reader_far_behind_sees_every_row_and_then_they_go() {
    let disk = MemoryDisk::default();
    let store = open_small(&disk);
    let all = |round: i64| (0..10_000).map(|id| (id, Some("x"), id + round)).collect::<Vec<_>>();
    commit(&store, put(1, rows(&all(0))));
    store.keep_changes_from(Some(1)).unwrap();
    let before = read(&store.snapshot());
    for round in 1..5 {
        commit(&store, put(1 + round as u64, rows(&all(round))));
        store.flush().unwrap();
        while store.compact().unwrap() {}
    }
    commit(&store, delete(9, keys(&[3, 4])));
    store.flush().unwrap();
    drop(store);
    let store = open_small(&disk.restart(Loss::Everything));
    let mut table = before.clone();
    apply(&store, 7, 1, 6, &mut table).unwrap();
    assert_eq!(table, read(&store.snapshot()));
    let mut table = before;
    apply(&store, 7, 1, 2, &mut table).unwrap();
    assert_eq!(table.get(&7), Some(&(Some("x".to_owned()), 8)));
    assert_eq!(store.status().kept_rows, 40_002);
    // A point of its own finds the one row that is alive.
    let found: Vec<_> =
        store.snapshot().scan(&scan_all(&[1])).unwrap().map(|batch| batch.unwrap().num_rows()).collect();
    assert_eq!(found.iter().sum::<usize>(), 9_998);

    store.keep_changes_from(Some(4)).unwrap();
    assert_eq!(store.changes(LogId(7), 5, 6).unwrap().count(), 1, "only pages in which something changed are read");
    store.keep_changes_from(None).unwrap();
    while store.compact().unwrap() {}
    assert_eq!((store.status().kept_rows, store.changes_from()), (0, 6));
    assert_eq!(store.snapshot().rows(), 9_998);
    store.optimize(&|| true).unwrap();
    assert_eq!(store.status().segments, 1, "no history is left");
}

#[test]
fn a_range_that_is_gone_or_not_there_yet_is_refused() {
    let disk = MemoryDisk::default();
    let store = open_small(&disk);
    commit(&store, put(1, rows(&[(1, None, 1)])));
    commit(&store, put(2, rows(&[(1, None, 2)])));
    let refused = |log: u64, from: u64, to: u64| store.changes(LogId(log), from, to).err().unwrap().code();
    assert_eq!(refused(8, 0, 1), ErrorCode::ChangesGone, "another log");
    assert_eq!(refused(7, 1, 3), ErrorCode::InvalidRequest);
    assert_eq!(refused(7, 2, 1), ErrorCode::InvalidRequest);
    assert_eq!(store.keep_changes_from(Some(3)).unwrap_err().code(), ErrorCode::InvalidRequest);
    assert_eq!(store.changes(LogId(7), 1, 2).unwrap().count(), 1);
    store.flush().unwrap();
    assert_eq!(refused(7, 1, 2), ErrorCode::ChangesGone);
    assert_eq!(store.keep_changes_from(Some(1)).unwrap_err().code(), ErrorCode::ChangesGone);
    assert_eq!(store.changes(LogId(7), 2, 2).unwrap().count(), 0);
}
