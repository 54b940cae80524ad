//! Power goes at every operation in turn: nothing acknowledged is lost, nothing is invented.

use std::sync::Arc;

use shoal_kernel::env::Disk;
use shoal_kernel::{Hlc, NodeId, Version};
use shoal_storage::{Store, StoreOptions};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;
use crate::model::{Change, Model, write};

pub fn small_options() -> StoreOptions {
    StoreOptions { compaction_fan_in: 2, wal_segment_bytes_max: 500, ..options() }
}

pub fn try_open(disk: &MemoryDisk) -> shoal_kernel::Result<(Arc<Store>, shoal_storage::Recovery)> {
    let shared: Arc<dyn Disk> = disk.shared();
    open_with(&shared, &upsert_schema(), small_options(), 7)
}

/// What was acknowledged, and what may be there beside it.
#[derive(Default)]
pub struct Outcome {
    pub acknowledged: Model,
    pub in_flight: Option<Model>,
    pub meta: Vec<Vec<u8>>,
    pub finished: bool,
}

/// Inserts, replaces, deletes, flushes and compacts until the end or until the power goes.
fn workload(disk: &MemoryDisk) -> Outcome {
    let mut outcome = Outcome { meta: vec![Vec::new()], ..Outcome::default() };
    let Ok((store, _)) = try_open(disk) else { return outcome };
    for round in 0..6i64 {
        for part in 0..2i64 {
            let version =
                Version::new(Hlc(10 + (round * 7 + part) as u64 % 5), NodeId((round * 2 + part + 1) as u32), 0);
            let change = match (round + part) % 4 {
                3 => Change::Delete(vec![round, round + 1, 40]),
                _ => Change::Put((0..8).map(|at| (at * (part + 1) + round, round * 100 + at)).collect()),
            };
            let mut next = outcome.acknowledged.clone();
            let committed = store.commit(vec![write(&mut next, version, &change)], 0);
            if committed.is_ok_and(|results| results.iter().all(Result::is_ok)) {
                outcome.acknowledged = next;
            } else {
                outcome.in_flight = Some(next);
                return outcome;
            }
        }
        let meta = vec![round as u8; 3];
        outcome.meta.push(meta.clone());
        if store.set_meta(meta.clone()).is_err() {
            return outcome;
        }
        outcome.meta = vec![meta];
        if round % 2 == 1 && store.flush().is_err() {
            return outcome;
        }
        // A page in one round, the rest of it in a later one.
        if round >= 2 && store.compact_step(1).is_err() {
            return outcome;
        }
    }
    outcome.finished = true;
    outcome
}

pub fn check(disk: &MemoryDisk, outcome: &Outcome, what: &str) -> (Arc<Store>, bool) {
    let (store, recovery) = try_open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = read(&store.snapshot());
    let acknowledged = outcome.acknowledged.visible();
    let in_flight = outcome.in_flight.as_ref().map(Model::visible);
    assert!(found == acknowledged || Some(&found) == in_flight.as_ref(), "{what}: {found:?} is not {acknowledged:?}");
    assert!(outcome.meta.contains(&store.meta()), "{what}: {:?}", store.meta());
    assert_eq!(store.verify().unwrap(), [], "{what}");
    (store, recovery.in_doubt)
}

#[test]
fn power_cut_at_every_operation() {
    let (mut operation, mut doubts) = (1, 0);
    loop {
        let disk = MemoryDisk::default();
        disk.cut_power_at(operation);
        let outcome = workload(&disk);
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn(operation * 2), Loss::Torn(operation * 2 + 1)] {
            let what = format!("cut at {operation}, {loss:?}");
            let restarted = disk.restart(loss);
            // And once more while recovering.
            for again in [2, 9, 14] {
                let again_disk = restarted.restart(Loss::Nothing);
                again_disk.cut_power_at(again);
                let _ = try_open(&again_disk);
                check(&again_disk.restart(loss), &outcome, &format!("{what}, then at {again}"));
            }
            let (store, in_doubt) = check(&restarted, &outcome, &what);
            doubts += usize::from(in_doubt);
            let before = read(&store.snapshot());
            commit(&store, put(1000, rows(&[(77, None, 77)])));
            store.flush().unwrap();
            while store.compact().unwrap() {}
            drop(store);
            let mut expected = before;
            expected.insert(77, (None, 77));
            assert_eq!(read(&try_open(&restarted.restart(Loss::Everything)).unwrap().0.snapshot()), expected, "{what}");
        }
        if outcome.finished {
            break;
        }
        operation += 1;
    }
    assert!(operation > 100, "the workload does too little: {operation}");
    assert!(doubts > 0, "a record that is whole and wrong must have been met");
}

#[test]
fn skipping_the_fsync_loses_what_was_acknowledged() {
    let disk = MemoryDisk::default();
    let planted = Some(shoal_kernel::Planted::SkipFsync);
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), StoreOptions { planted, ..options() }, 7).unwrap();
    commit(&store, put(1, rows(&[(1, None, 1)])));
    let (store, _) = open(&disk.restart(Loss::Everything).shared());
    assert_eq!(store.snapshot().rows(), 0, "the planted fault must be able to hurt");
}

#[test]
fn the_planted_tie_break_lets_the_older_row_win() {
    let planted = Some(shoal_kernel::Planted::WrongTieBreak);
    let options = StoreOptions { planted, ..options() };
    let (store, _) = open_with(&MemoryDisk::default().shared(), &upsert_schema(), options, 7).unwrap();
    commit(&store, put(1, rows(&[(1, None, 1)])));
    commit(&store, put(2, rows(&[(1, None, 2)])));
    assert_eq!(read(&store.snapshot()), table(&[(1, None, 1)]));
}
