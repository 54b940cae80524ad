//! Logs that are synced behind the acknowledgements: what a loss of power may take, and what nobody may be told afterwards.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use shoal_kernel::{Applied, ErrorCode, Hlc, LogId, NodeId, Result, Version};
use shoal_storage::{PullCursor, Recovery, Replay, Rows, Store, StoreOptions, Write};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;
use crate::model::{Change, Model, pull_once, write};

fn lazy() -> StoreOptions {
    StoreOptions { sync_commits: false, compaction_fan_in: 2, wal_segment_bytes_max: 900, ..options() }
}

fn try_open(disk: &MemoryDisk, log: u64) -> Result<(Arc<Store>, Recovery)> {
    open_with(&disk.shared(), &upsert_schema(), lazy(), log)
}

fn open_lazy(disk: &MemoryDisk, log: u64) -> (Arc<Store>, Recovery) {
    try_open(disk, log).unwrap()
}

fn one(n: i64) -> Write {
    put(n as u64, rows(&[(n, None, n)]))
}

fn commit_each(store: &Store, mut numbers: RangeInclusive<i64>) {
    assert!(numbers.all(|n| commit(store, one(n)).rows == 1));
}

fn first(n: i64) -> Table {
    table(&(1..=n).map(|n| (n, None, n)).collect::<Vec<_>>())
}

/// The contents after each commit, and which of them a loss of power cannot undo.
struct Outcome {
    contents: Vec<Table>,
    /// Place of the last content that was made durable.
    durable: usize,
    /// The last one was not acknowledged.
    in_flight: bool,
    finished: bool,
    follower: Arc<Store>,
    cursor: PullCursor,
}

/// Commits, syncs, flushes, compacts and feeds a peer, until the end or until the power goes.
fn workload(disk: &MemoryDisk) -> Outcome {
    let (follower, _) = open(&MemoryDisk::default().shared());
    let mut outcome = Outcome {
        contents: vec![Table::default()],
        durable: 0,
        in_flight: false,
        finished: false,
        follower,
        cursor: PullCursor::default(),
    };
    let mut model = Model::default();
    let Ok((store, _)) = try_open(disk, 7) else { return outcome };
    for round in 0..16i64 {
        let version = Version::new(Hlc(10 + round as u64), NodeId(1), 0);
        let change = match round % 5 {
            4 => Change::Delete(vec![round - 1, 40]),
            // Nothing that was here before, so that every content is another one.
            _ => Change::Put((0..4).map(|at| (at * 7 + round, round * 100 + at)).collect()),
        };
        let committed = store.commit(vec![write(&mut model, version, &change)], 0);
        let acknowledged = committed.is_ok_and(|results| results.iter().all(Result::is_ok));
        outcome.contents.push(model.visible());
        outcome.in_flight = !acknowledged;
        if !acknowledged {
            return outcome;
        }
        if round % 3 == 0 {
            let Ok(pulled) = store.pull(&outcome.cursor, 200) else { return outcome };
            outcome.cursor = pulled.next.clone();
            outcome.follower.commit(pulled.into_writes(), 0).unwrap();
        }
        let done = match round % 8 {
            2 => store.sync(),
            4 => store.set_meta(vec![round as u8]),
            6 => store.flush().and_then(|_| store.compact()).map(drop),
            _ => continue,
        };
        if done.is_err() {
            return outcome;
        }
        outcome.durable = outcome.contents.len() - 1;
    }
    store.close();
    outcome.finished = disk.shared().exists(Path::new(DIR)).is_ok();
    outcome
}

fn check(disk: &MemoryDisk, outcome: &Outcome, loss: Loss, what: &str) -> (Arc<Store>, Recovery) {
    let (store, recovery) = try_open(disk, 8).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = read(&store.snapshot());
    let (last, places) = (outcome.contents.len() - 1, outcome.contents.iter().rposition(|content| *content == found));
    let place = places.unwrap_or_else(|| panic!("{what}: {found:?} was never there"));
    // A process that ends takes nothing that was acknowledged.
    let least = match loss {
        Loss::Nothing => last - usize::from(outcome.in_flight),
        _ => outcome.durable,
    };
    assert!(place >= least, "{what}: content {place} of {last}, {least} was durable");
    let told = outcome.cursor.log_id == LogId(7) && outcome.cursor.position > store.snapshot().position().1;
    assert!(!told || recovery.log_id == LogId(8), "{what}: a position is given twice under one log");
    assert_eq!(store.verify().unwrap(), [], "{what}");
    (store, recovery)
}

#[test]
fn power_cut_at_every_operation_takes_the_newest_and_is_told() {
    let (mut operation, mut lost, mut doubts) = (1, 0, 0);
    loop {
        let disk = MemoryDisk::default();
        disk.cut_power_at(operation);
        let outcome = workload(&disk);
        let seed = operation * 2;
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn(seed), Loss::Torn(seed + 1), Loss::Scattered(seed)] {
            let what = format!("cut at {operation}, {loss:?}");
            let restarted = disk.restart(loss);
            // And once more while recovering, somewhere.
            let (again, again_disk) = (2 + operation % 9, restarted.restart(Loss::Nothing));
            again_disk.cut_power_at(again);
            let _ = try_open(&again_disk, 8);
            check(&again_disk.restart(loss), &outcome, loss, &format!("{what}, then at {again}"));
            let (store, recovery) = check(&restarted, &outcome, loss, &what);
            lost += usize::from(read(&store.snapshot()) != *outcome.contents.last().unwrap());
            doubts += usize::from(recovery.in_doubt);
            if outcome.finished {
                assert!(!recovery.unclean && !recovery.in_doubt && recovery.log_id == LogId(7), "{what}: {recovery:?}");
                continue;
            }
            // A peer that knew the lost end goes on from where both agree, and misses nothing that came later.
            let mut cursor = outcome.cursor.clone();
            if cursor.log_id != recovery.log_id {
                let position = store.place_of(cursor.log_id, cursor.position).unwrap_or(0);
                cursor = PullCursor { log_id: recovery.log_id, position, round: None };
            }
            let (follower, _) = open(&MemoryDisk::default().shared());
            let mut copied = PullCursor::default();
            while !pull_once(&outcome.follower, &follower, &mut copied, 1 << 20) {}
            for n in 0..4i64 {
                commit(&store, put(1000 + n as u64, rows(&[(1000 + n, None, n)])));
            }
            while !pull_once(&store, &follower, &mut cursor, 300) {}
            let (has, wanted) = (read(&follower.snapshot()), read(&store.snapshot()));
            for (key, row) in &wanted {
                // It may hold a newer row, or have deleted this one: from what was lost here.
                let known = outcome.contents.iter().any(|content| content.get(key) != Some(row));
                assert!(has.get(key) == Some(row) || known, "{what}: key {key} was not handed out");
            }
            assert!((1000..1004).all(|key| has.contains_key(&key)), "{what}: {has:?}");
            store.flush().unwrap();
            assert_eq!(read(&open_lazy(&restarted.restart(Loss::Everything), 9).0.snapshot()), wanted, "{what}");
        }
        if outcome.finished {
            break;
        }
        operation += 1;
    }
    assert!(operation > 100 && lost > 50 && doubts > 5, "{operation} operations, {lost} lost, {doubts} in doubt");
}

#[test]
fn a_lost_end_begins_another_log_that_agrees_up_to_there() {
    let disk = MemoryDisk::default();
    let (store, _) = open_lazy(&disk, 7);
    commit_each(&store, 1..=3);
    assert_eq!((store.unsynced(), store.status().synced), (3, 0));
    store.sync().unwrap();
    assert_eq!(store.unsynced(), 0);
    commit_each(&store, 4..=6);

    let disk = disk.restart(Loss::Everything);
    let (store, recovery) = open_lazy(&disk, 8);
    assert!(recovery.unclean && !recovery.in_doubt);
    assert_eq!((recovery.log_id, read(&store.snapshot()), recovery.durable), (LogId(8), first(3), 0));
    assert_eq!(store.place_of(LogId(7), 6), Some(3));
    assert_eq!(store.place_of(LogId(7), 2), Some(2));
    assert_eq!(store.place_of(LogId(5), 2), None);
    assert!(store.has_synced_of(LogId(7)) && !store.has_synced_of(LogId(5)));
    assert_eq!(commit(&store, one(4)).position, 4);

    // The past is remembered over flushes and further lives.
    store.flush().unwrap();
    commit(&store, one(5));
    let disk = disk.restart(Loss::Everything);
    let (store, recovery) = open_lazy(&disk, 9);
    assert_eq!((recovery.log_id, read(&store.snapshot()), recovery.durable), (LogId(9), first(4), 4));
    assert_eq!((store.place_of(LogId(7), 6), store.place_of(LogId(8), 6)), (Some(3), Some(4)));
}

#[test]
fn a_closed_log_has_lost_nothing() {
    for (loss, syncs) in [(Loss::Everything, false), (Loss::Nothing, true), (Loss::Scattered(3), false)] {
        let disk = MemoryDisk::default();
        let (store, _) = open_lazy(&disk, 7);
        commit_each(&store, 1..=9);
        if syncs {
            store.sync().unwrap();
        }
        store.close();
        let disk = disk.restart(loss);
        let (store, recovery) = open_lazy(&disk, 8);
        assert!(!recovery.unclean && recovery.log_id == LogId(7), "{recovery:?}");
        assert_eq!(read(&store.snapshot()), first(9));
        // The mark vouches for one life only.
        assert!(open_lazy(&disk.restart(Loss::Everything), 8).1.unclean);
    }
}

#[test]
fn damage_of_what_was_synced_is_damage_and_of_what_was_not_is_the_cut() {
    let disk = MemoryDisk::default();
    let roomy = StoreOptions { sync_commits: false, ..options() };
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), roomy, 7).unwrap();
    let log = disk.files().into_iter().find(|path| path.to_str().unwrap().contains("wal-")).unwrap();
    let mut ends = vec![disk.bytes(&log).len()];
    for n in 1..=6 {
        commit(&store, one(n));
        ends.push(disk.bytes(&log).len());
        if n == 3 {
            store.sync().unwrap();
        }
    }
    for n in 1..=6 {
        let damaged = disk.restart(Loss::Nothing);
        damaged.tamper(&log, |bytes| bytes[ends[n] - 2] ^= 1);
        match open_with(&damaged.shared(), &upsert_schema(), lazy(), 8) {
            Err(error) => assert!(n <= 3 && error.code() == ErrorCode::Corruption, "record {n}: {error}"),
            Ok((store, recovery)) => {
                assert!(n > 3 && recovery.in_doubt && recovery.unclean, "record {n}: {recovery:?}");
                assert_eq!(read(&store.snapshot()), first(n as i64 - 1));
                assert!(!store.has_synced_of(LogId(7)), "nobody knows whether it was synced");
            }
        }
    }
}

#[test]
fn a_failed_sync_behind_the_acknowledgements_ends_the_store() {
    for through_roll in [false, true] {
        let disk = MemoryDisk::default();
        let (store, _) = open_lazy(&disk, 7);
        commit_each(&store, 1..=2);
        disk.fail_syncs(true);
        let error = match through_roll {
            false => store.sync().unwrap_err(),
            true => store.flush().unwrap_err(),
        };
        assert_eq!((error.code(), error.applied()), (ErrorCode::Io, Applied::Unknown));
        assert!(error.message().contains("newest 2 records that were acknowledged are in doubt"), "{error}");
        disk.fail_syncs(false);
        let refused = store.commit(vec![one(3)], 0).unwrap_err();
        assert_eq!((refused.code(), refused.applied()), (ErrorCode::NotReady, Applied::False));
        assert_eq!(store.sync().unwrap_err().code(), ErrorCode::NotReady);
        assert!(store.status().failed.unwrap().contains("in doubt"));
        assert_eq!(read(&store.snapshot()), first(2), "reads go on");
        store.close();
        // What is read back is durable before it is shown, and under another log.
        let (store, recovery) = open_lazy(&disk, 8);
        assert!(recovery.unclean && recovery.log_id == LogId(8));
        assert_eq!(read(&store.snapshot()), first(2));
        assert_eq!(read(&open_lazy(&disk.restart(Loss::Everything), 9).0.snapshot()), first(2));
    }
}

#[test]
fn what_was_promised_to_other_replicas_is_synced_whatever_the_table_says() {
    let disk = MemoryDisk::default();
    let (store, _) = open_lazy(&disk, 7);
    commit(&store, with_token(one(1), "rows"));
    let reserve = Rows::Reserve { ballot: version(50), fingerprint: 1 };
    commit(&store, Write { version: version(9), token: Some("kept".into()), rows: reserve });
    commit(&store, with_token(one(2), "lost"));
    let (store, _) = open_lazy(&disk.restart(Loss::Everything), 8);
    assert_eq!(store.token("kept").map(|record| record.version), Some(version(9)));
    // A token is as durable as its rows: neither more nor less.
    assert!(store.token("rows").is_some() && store.token("lost").is_none());
    assert_eq!(read(&store.snapshot()), first(1));
}

#[test]
fn helpers_change_nothing_about_a_replay() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    for n in 0..300i64 {
        commit(&store, put(n as u64 + 1, rows(&(0..20).map(|at| (at * n % 500, Some("x"), n)).collect::<Vec<_>>())));
    }
    let expected = (store.digest().unwrap(), store.snapshot().position());
    let replay = Replay::default();
    let opened = std::sync::atomic::AtomicBool::new(false);
    let (store, recovery) = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !opened.load(std::sync::atomic::Ordering::Relaxed) {
                    replay.help();
                    std::thread::yield_now();
                }
            });
        }
        let schema = upsert_schema();
        let result = Store::open_watched(disk.shared(), Path::new(DIR), schema, options(), LogId(7), 9, &replay);
        opened.store(true, std::sync::atomic::Ordering::Relaxed);
        result.unwrap()
    });
    assert_eq!((recovery.records_replayed, recovery.rows_replayed), (300, 6000));
    assert_eq!((store.digest().unwrap(), store.snapshot().position()), expected);
    let (done, total) = replay.progress();
    assert!(done == total && total > 0);
    replay.help();
}
