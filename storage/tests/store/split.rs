//! One store becomes two, whatever happens on the way.

use std::path::Path;
use std::sync::Arc;

use arrow::array::UInt32Array;
use arrow::compute::take_record_batch;
use proptest::prelude::*;
use shoal_kernel::env::Disk;
use shoal_kernel::{
    ColumnId, ColumnPredicate, CompareOp, Datum, ErrorCode, FetchSpec, Hlc, KeyRange, LogId, NodeId, PartitionId,
    TableId, TableSchema, Version,
};
use shoal_storage::{
    NoSplitPoint, PagePool, PullCursor, Recovery, Rows, Split, SplitChild, SplitPoint, Store, StoreOptions, Write,
    fingerprint_of,
};

use crate::changes::apply;
use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;
use crate::model::{Change, Model, change, pull_all, write};
use crate::summary::check_halves;

const LEFT: &str = "/data/p2";
const RIGHT: &str = "/data/p3";

fn small_options() -> StoreOptions {
    StoreOptions { compaction_fan_in: 2, wal_segment_bytes_max: 600, pool: Arc::new(PagePool::new(2000)), ..options() }
}

fn try_open(disk: &MemoryDisk, dir: &str, schema: &Arc<TableSchema>) -> shoal_kernel::Result<(Arc<Store>, Recovery)> {
    Store::open(disk.shared(), Path::new(dir), schema.clone(), small_options(), LogId(7), 9)
}

fn open_at(disk: &MemoryDisk, dir: &str) -> Arc<Store> {
    try_open(disk, dir, &upsert_schema()).unwrap_or_else(|error| panic!("{dir}: {error}")).0
}

const CHILDREN: [&str; 2] = ["p2", "p3"];

fn split_at(store: &Store, at: &[u8]) -> shoal_kernel::Result<u64> {
    store.split(&halves_at(store, at, CHILDREN))
}

fn key(id: i64) -> Vec<u8> {
    Datum::Int(id).encode()
}

fn halves(all: &Table, at: i64) -> [Table; 2] {
    let half =
        |right: bool| all.iter().filter(move |(id, _)| (**id >= at) == right).map(|(id, row)| (*id, row.clone()));
    [half(false).collect(), half(true).collect()]
}

#[derive(Debug, Clone)]
enum Step {
    Commit(u64, Change),
    Flush,
    Compact,
    Reopen,
    Optimize,
    Alter,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u64..50, change()).prop_map(|(time, change)| Step::Commit(time, change)),
        2 => Just(Step::Flush),
        1 => Just(Step::Compact),
        1 => Just(Step::Reopen),
        1 => Just(Step::Optimize),
        1 => Just(Step::Alter),
    ]
}

/// Two children beside a copy of the whole: what one of them takes, the copy takes too.
fn run(before: Vec<Step>, at: i64, keep: bool, after: Vec<Step>) {
    let mut disk = MemoryDisk::default();
    let mut parent = open_at(&disk, DIR);
    let mut model = Model::default();
    let mut node = 0;
    if keep {
        parent.keep_changes_from(Some(0)).unwrap();
    }
    for step in before {
        match step {
            Step::Commit(time, change) => {
                node += 1;
                let change = write(&mut model, Version::new(Hlc(time), NodeId(node), 0), &change);
                commit(&parent, with_token(change, &format!("token {node}")));
            }
            Step::Flush => drop(parent.flush().unwrap()),
            Step::Compact => drop(parent.compact().unwrap()),
            Step::Optimize => drop(parent.optimize(&|| true).unwrap()),
            Step::Alter => alter(&parent),
            Step::Reopen => {
                disk = disk.restart(Loss::Everything);
                parent = open_at(&disk, DIR);
            }
        }
    }
    let held = parent.snapshot();
    let expected = model.visible();
    let (digest, content) = (parent.digest().unwrap(), parent.content_digest().unwrap());
    split_at(&parent, &key(at)).unwrap();
    let refused = parent.commit(vec![put(99, rows(&[(1, None, 1)]))], 0).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Moved);
    assert_eq!(read(&held), expected, "snapshots of the parent go on");

    disk = disk.restart(Loss::Everything);
    assert_eq!(try_open(&disk, DIR, &upsert_schema()).err().unwrap().code(), ErrorCode::Moved);
    let split = Split { children: CHILDREN.map(String::from).to_vec() };
    assert_eq!(Store::split_of(&disk.shared(), Path::new(DIR)).unwrap(), Some(split));
    let mut stores = [open_at(&disk, LEFT), open_at(&disk, RIGHT)];
    let tables = halves(&expected, at);
    for (number, (store, table)) in stores.iter().zip(&tables).enumerate() {
        assert_eq!(&read(&store.snapshot()), table);
        check_halves(&store.snapshot(), table);
        assert_eq!(store.snapshot().position(), parent.snapshot().position());
        assert_eq!(store.schema_version(), parent.schema_version());
        assert_eq!(store.verify().unwrap(), []);
        assert_eq!(store.meta(), CHILDREN[number].as_bytes());
        (1..=node).for_each(|node| {
            let token = format!("token {node}");
            assert_eq!(store.token(&token), parent.token(&token));
        });
        let point = ColumnPredicate::Compare { column: ColumnId(1), op: CompareOp::GtEq, value: Datum::Int(at) };
        let spec = shoal_kernel::ScanSpec { predicates: vec![point], addresses: true, ..scan_all(&[]) };
        let found: usize = store.snapshot().scan(&spec).unwrap().map(|batch| batch.unwrap().num_rows()).sum();
        assert_eq!(found, if number == 0 { 0 } else { table.len() });
        if keep {
            let mut built = Table::new();
            apply(store, 7, 0, store.snapshot().position().1, &mut built).unwrap();
            assert_eq!(&built, table, "the change log is inherited");
        }
    }
    let sums = stores.each_ref().map(|store| (store.digest().unwrap(), store.content_digest().unwrap()));
    assert_eq!(sums[0].0.sum.wrapping_add(sums[1].0.sum), digest.sum);
    assert_eq!(sums[0].0.tombstones + sums[1].0.tombstones, digest.tombstones);
    assert_eq!(sums[0].1.sum.wrapping_add(sums[1].1.sum), content.sum);

    let mut models = tables.map(|_| model.clone());
    for (number, model) in models.iter_mut().enumerate() {
        model.retain(|id| (id >= at) == (number == 1));
    }
    for step in after {
        for (number, (store, model)) in stores.iter_mut().zip(&mut models).enumerate() {
            match &step {
                Step::Commit(time, change) => {
                    node += 1;
                    let change = change.clone().retain(|id| (id >= at) == (number == 1));
                    let change = write(model, Version::new(Hlc(*time), NodeId(node), 0), &change);
                    commit(store, change);
                }
                Step::Flush => drop(store.flush().unwrap()),
                Step::Compact => drop(store.compact().unwrap()),
                Step::Optimize => drop(store.optimize(&|| true).unwrap()),
                Step::Alter => alter(store),
                Step::Reopen => {
                    disk = disk.restart(Loss::Nothing);
                    *store = open_at(&disk, [LEFT, RIGHT][number]);
                }
            }
            assert_eq!(read(&store.snapshot()), model.visible());
            check_halves(&store.snapshot(), &model.visible());
            assert_eq!(store.verify().unwrap(), []);
        }
        // A disk that was started anew is another one for both.
        if matches!(step, Step::Reopen) {
            stores = [open_at(&disk, LEFT), open_at(&disk, RIGHT)];
        }
    }
    for (store, model) in stores.iter().zip(&models) {
        let fresh = open_at(&MemoryDisk::default(), DIR);
        pull_all(store, &fresh, &mut PullCursor::default(), 500);
        assert_eq!(read(&fresh.snapshot()), model.visible());
        store.optimize(&|| true).unwrap();
        assert_eq!(read(&store.snapshot()), model.visible());
        assert_eq!(store.digest().unwrap(), fresh.digest().unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn children_are_together_the_parent(
        before in prop::collection::vec(step(), 1..25),
        at in 0i64..60,
        keep in any::<bool>(),
        after in prop::collection::vec(step(), 0..10),
    ) {
        run(before, at, keep, after);
    }
}

/// Some rows in segments, of which some are masked, some in the log only.
fn filled(disk: &MemoryDisk) -> shoal_kernel::Result<Arc<Store>> {
    let (store, _) = try_open(disk, DIR, &upsert_schema())?;
    let some = |first: i64, n: i64| (0..40).map(|at| (first + at, Some("row"), n)).collect::<Vec<_>>();
    for (time, batch) in [(1, some(0, 1)), (2, some(20, 2))] {
        store.commit(vec![put(time, rows(&batch))], 0)?.remove(0)?;
        store.flush()?;
    }
    store.adopt(altered(2))?;
    store.commit(vec![put(3, rows(&some(50, 3)))], 0)?.remove(0)?;
    store.commit(vec![delete(4, keys(&[1, 31, 70]))], 0)?.remove(0)?;
    Ok(store)
}

/// What is there after a crash: the parent or both of its children, and the key that they were split at.
fn survivors(disk: &MemoryDisk, what: &str) -> (Table, bool) {
    match try_open(disk, DIR, &upsert_schema()) {
        Ok((parent, recovery)) => {
            assert!(!recovery.created && !recovery.in_doubt, "{what}: {recovery:?}");
            assert_eq!(parent.verify().unwrap(), [], "{what}");
            for dir in [LEFT, RIGHT] {
                assert!(!disk.files().contains(&Path::new(dir).join("MANIFEST")), "{what}: {dir} counts already");
            }
            (read(&parent.snapshot()), false)
        }
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::Moved, "{what}: {error}");
            let mut all = Table::new();
            for dir in [LEFT, RIGHT] {
                let (child, recovery) =
                    try_open(disk, dir, &upsert_schema()).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(
                    !recovery.created && !recovery.in_doubt && recovery.quarantined.is_empty(),
                    "{what}: {recovery:?}"
                );
                assert_eq!(child.verify().unwrap(), [], "{what}");
                assert_eq!(child.schema_version(), 2, "{what}");
                for (id, row) in read(&child.snapshot()) {
                    assert_eq!(all.insert(id, row), None, "{what}: {id} is in both");
                }
            }
            (all, true)
        }
    }
}

#[test]
fn power_cut_at_every_operation_of_a_split() {
    let disk = MemoryDisk::default();
    let expected = read(&filled(&disk).unwrap().snapshot());
    let (mut operation, mut seen, mut finished) = (1, [0, 0], false);
    while !finished {
        let running = disk.restart(Loss::Nothing);
        let store = open_at(&running, DIR);
        running.cut_power_after(operation);
        finished = split_at(&store, &key(45)).is_ok();
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn(operation * 2), Loss::Torn(operation * 2 + 1)] {
            let what = format!("cut at {operation}, {loss:?}");
            let restarted = running.restart(loss);
            // And once more while whoever opens the parent finishes what was begun.
            for again in [3, 10] {
                let again_disk = restarted.restart(Loss::Nothing);
                again_disk.cut_power_after(again);
                let _ = try_open(&again_disk, DIR, &upsert_schema());
                assert_eq!(survivors(&again_disk.restart(loss), &format!("{what}, then at {again}")).0, expected);
            }
            let (found, split) = survivors(&restarted, &what);
            assert_eq!(found, expected, "{what}");
            assert!(split || !finished, "{what}: a split that was reported has happened");
            seen[usize::from(split)] += 1;
            if !split {
                // What the attempt left behind is in nobody's way.
                split_at(&open_at(&restarted, DIR), &key(45)).unwrap();
                assert_eq!(survivors(&restarted.restart(Loss::Everything), &what), (expected.clone(), true));
            }
        }
        operation += 1;
    }
    assert!(operation > 30 && seen[0] > 20 && seen[1] > 4, "{operation} operations, {seen:?}");
}

#[test]
fn a_split_that_fails_leaves_the_parent_at_work() {
    let disk = MemoryDisk::default();
    let store = filled(&disk).unwrap();
    let expected = read(&store.snapshot());
    store.flush().unwrap();
    disk.fail_syncs(true);
    let error = split_at(&store, &key(45)).unwrap_err();
    assert_eq!(error.applied(), shoal_kernel::Applied::False, "{error}");
    disk.fail_syncs(false);
    commit(&store, put(9, rows(&[(500, None, 1)])));
    assert_eq!(store.snapshot().rows(), expected.len() as u64 + 1);
    let other = open_at(&disk, LEFT);
    drop(other);
    assert_eq!(split_at(&store, &key(45)).unwrap_err().code(), ErrorCode::InvalidRequest, "a store is there");
    let elsewhere = halves_at(&store, &key(45), ["p2x", "p3x"]);
    let mut same_dir = elsewhere.clone();
    same_dir[1].dir = "p2x".into();
    let mut same_keys = elsewhere.clone();
    same_keys[1].range = same_keys[0].range.clone();
    let outside = elsewhere.clone().map(|child| SplitChild { dir: format!("../{}", child.dir), ..child });
    for children in [&[][..], &halves_at(&store, &[], CHILDREN), &same_dir, &same_keys, &outside] {
        assert_eq!(store.split(children).unwrap_err().code(), ErrorCode::InvalidRequest);
    }
    store.split(&elsewhere).unwrap();
    let right = open_at(&disk, "/data/p3x");
    assert_eq!(right.range(), &KeyRange { start: key(45), end: None });
    assert_eq!(split_at(&right, &key(45)).unwrap_err().code(), ErrorCode::InvalidRequest);
    assert!(read(&right.snapshot()).contains_key(&500));
}

/// Whoever asks what became of a store hears nothing that a loss of power could still undo.
#[test]
fn a_split_that_is_told_of_has_happened_for_good() {
    let disk = MemoryDisk::default();
    let store = filled(&disk).unwrap();
    let (manifest, new) = (Path::new(DIR).join("MANIFEST"), Path::new(DIR).join("MANIFEST.new"));
    store.flush().unwrap();
    let before = disk.bytes(&manifest);
    split_at(&store, &key(45)).unwrap();
    let split = disk.bytes(&manifest);
    // As it is when the parent's manifest was renamed into place and its directory could not be synced.
    let world = disk.shared();
    world.replace(&manifest, &before).unwrap();
    world.replace(&new, &split).unwrap();
    world.rename(&new, &manifest).unwrap();
    for dir in [LEFT, RIGHT].map(Path::new) {
        world.rename(&dir.join("MANIFEST"), &dir.join("MANIFEST.split")).unwrap();
        world.sync_dir(dir).unwrap();
    }
    assert!(Store::split_of(&world, Path::new(DIR)).unwrap().is_some());
    assert!(survivors(&disk.restart(Loss::Everything), "told of").1);
}

#[test]
fn a_log_that_is_synced_late_is_whole_in_both_children() {
    let late = |disk: &MemoryDisk, dir: &str| {
        let options = StoreOptions { sync_commits: false, ..small_options() };
        Store::open(disk.shared(), Path::new(dir), upsert_schema(), options, LogId(8), 9).unwrap()
    };
    let disk = MemoryDisk::default();
    let (store, _) = late(&disk, DIR);
    commit(&store, put(1, rows(&(0..60).map(|id| (id, None, id)).collect::<Vec<_>>())));
    store.flush().unwrap();
    commit(&store, put(2, rows(&(30..60).map(|id| (id, Some("in the log"), id)).collect::<Vec<_>>())));
    let (expected, position) = (read(&store.snapshot()), store.snapshot().position());
    split_at(&store, &key(45)).unwrap();
    let disk = disk.restart(Loss::Everything);
    for (dir, expected) in [LEFT, RIGHT].iter().zip(halves(&expected, 45)) {
        let (child, recovery) = late(&disk, dir);
        assert!(!recovery.unclean && !recovery.in_doubt, "{recovery:?}");
        assert_eq!((read(&child.snapshot()), child.snapshot().position()), (expected, position));
    }
}

#[test]
fn a_child_takes_its_own_rows_only() {
    let disk = MemoryDisk::default();
    split_at(&filled(&disk).unwrap(), &key(45)).unwrap();
    let (left, right) = (open_at(&disk, LEFT), open_at(&disk, RIGHT));
    for stray in [put(20, rows(&[(1, None, 1), (45, None, 1)])), delete(20, keys(&[45]))] {
        let refused = left.commit(vec![stray], 0).unwrap().remove(0).unwrap_err();
        assert_eq!((refused.code(), refused.applied()), (ErrorCode::Moved, shoal_kernel::Applied::False));
    }
    commit(&left, put(20, rows(&[(44, Some("mine"), 44)])));
    commit(&right, put(20, rows(&[(45, Some("mine"), 45)])));
    // From a peer that was not split yet, each takes what is its own, and comes to rest.
    let whole_disk = MemoryDisk::default();
    let whole = filled(&whole_disk).unwrap();
    commit(&whole, put(30, rows(&[(10, None, 30), (80, None, 30)])));
    for (child, id) in [(&left, 10), (&right, 80)] {
        for _ in 0..2 {
            let pulled = whole.pull(&PullCursor::default(), 1 << 20).unwrap();
            assert!(child.commit(pulled.into_writes(), 0).unwrap().iter().all(Result::is_ok));
        }
        let rows = read(&child.snapshot());
        assert_eq!(rows.get(&id), Some(&(None, 30)));
        assert!(rows.keys().all(|id| child.range().contains(&key(*id))));
        assert_eq!(child.snapshot().position().1, whole.snapshot().position().1 + 1);
    }
    // Rows are found by their address in a file that was cut.
    let spec = shoal_kernel::ScanSpec { addresses: true, ..scan_all(&[1]) };
    let fetch =
        FetchSpec { table: TableId(1), partition: PartitionId(1), schema_version: 1, columns: vec![ColumnId(1)] };
    let snapshot = right.snapshot();
    for batch in snapshot.scan(&spec).unwrap() {
        let batch = batch.unwrap();
        use arrow::array::cast::AsArray;
        let addresses = batch.column(1).as_primitive::<arrow::array::types::UInt64Type>().values().to_vec();
        assert_eq!(snapshot.fetch(&fetch, &addresses).unwrap().column(0), batch.column(0));
    }
}

#[test]
fn bytes_are_shared_until_a_merge_separates_them() {
    let disk = MemoryDisk::default();
    let store = open_at(&disk, DIR);
    commit(&store, put(1, rows(&(0..30_000).map(|id| (id, Some("some text"), id * 7 % 1000)).collect::<Vec<_>>())));
    store.flush().unwrap();
    let segment = store.status().disk_bytes;
    let SplitPoint::At(at) = store.split_point(1, 1000).unwrap() else { panic!("there are keys enough") };
    let before = disk.used_bytes();
    split_at(&store, &at).unwrap();
    assert!(disk.used_bytes() < before + segment / 2, "a split writes no rows");
    drop(store);
    let shared: Arc<dyn Disk> = disk.shared();
    for path in disk.files().iter().filter(|path| path.starts_with(DIR)) {
        shared.remove_file(path).unwrap();
    }
    let (left, right) = (open_at(&disk, LEFT), open_at(&disk, RIGHT));
    let counts = [left.snapshot().rows(), right.snapshot().rows()];
    assert_eq!(counts[0] + counts[1], 30_000);
    assert!(counts.iter().all(|rows| (10_000..20_000).contains(rows)), "{counts:?}");
    let reads = disk.reads();
    assert_eq!(left.snapshot().estimate(&scan_all(&[])).unwrap(), counts[0]);
    assert_eq!(disk.reads(), reads, "counting reads nothing");
    left.optimize(&|| true).unwrap();
    assert_eq!(left.snapshot().rows(), counts[0]);
    assert!(left.status().disk_bytes < segment * 2 / 3, "only what is inside is written again");
    assert_eq!(right.snapshot().rows(), counts[1]);
    // And once more in two.
    let SplitPoint::At(at) = right.split_point(1, 1000).unwrap() else { panic!("there are keys enough") };
    right.split(&halves_at(&right, &at, ["p4", "p5"])).unwrap();
    let rows: u64 = ["/data/p4", "/data/p5"].iter().map(|dir| open_at(&disk, dir).snapshot().rows()).sum();
    assert_eq!(rows, counts[1]);
}

/// Splits of splits cut the same page, whose own middle lies in none of the parts but one.
#[test]
fn parts_of_one_page_are_split_in_their_middle() {
    let disk = MemoryDisk::default();
    let mut stores = vec![open_at(&disk, DIR)];
    commit(&stores[0], put(1, rows(&(0..4_000).map(|id| (id, None, id)).collect::<Vec<_>>())));
    stores[0].flush().unwrap();
    for round in 1..=4 {
        let split = |(number, store): (usize, &Arc<Store>)| {
            let SplitPoint::At(at) = store.split_point(1, 10).unwrap() else { panic!("there are keys enough") };
            let names = [0, 1].map(|side| format!("p{round}{number}{side}"));
            store.split(&halves_at(store, &at, [&names[0], &names[1]])).unwrap();
            names.map(|name| open_at(&disk, &format!("/data/{name}")))
        };
        stores = stores.iter().enumerate().flat_map(split).collect();
        let counts: Vec<u64> = stores.iter().map(|store| store.snapshot().rows()).collect();
        assert!(counts.iter().all(|rows| rows.abs_diff(4_000 >> round) <= 1), "{counts:?}");
    }
}

#[test]
fn where_there_is_no_split_point_the_reason_is_told() {
    let refused = |store: &Store, columns| match store.split_point(columns, 10).unwrap() {
        SplitPoint::Refused(reason) => reason,
        SplitPoint::At(key) => panic!("{key:?}"),
    };
    let store = open_at(&MemoryDisk::default(), DIR);
    assert_eq!(refused(&store, 1), NoSplitPoint::TooFewRows { rows: 0, rows_min: 10 });
    commit(&store, put(1, rows(&(0..9).map(|id| (id, None, id)).collect::<Vec<_>>())));
    assert_eq!(refused(&store, 1), NoSplitPoint::TooFewRows { rows: 9, rows_min: 10 });
    assert_eq!(refused(&store, 1).to_string(), "there are 9 rows, fewer than 10");
    for columns in [0, 2] {
        assert_eq!(store.split_point(columns, 10).unwrap_err().code(), ErrorCode::InvalidRequest);
    }

    let open_events = || try_open(&MemoryDisk::default(), DIR, &event_schema()).unwrap().0;
    let same_time = open_events();
    commit(&same_time, put(1, events(&(0..50).map(|n| (77, "", n)).collect::<Vec<_>>())));
    assert_eq!(refused(&same_time, 1), NoSplitPoint::OneKey);
    same_time.flush().unwrap();
    assert_eq!(refused(&same_time, 1), NoSplitPoint::OneKey);
    assert_eq!(refused(&same_time, 1).to_string(), "all rows have one partition key");

    // Two times, of which nearly all rows have the first: the second is the only point there is.
    let two_times = open_events();
    let mut skewed: Vec<_> = (0..50).map(|n| (77, "", n)).collect();
    skewed.push((78, "", 1));
    commit(&two_times, put(1, events(&skewed)));
    for _ in 0..2 {
        let SplitPoint::At(at) = two_times.split_point(1, 10).unwrap() else { panic!("there are two times") };
        assert_eq!(at, Datum::Int(78).encode());
        two_times.flush().unwrap();
    }
}

#[test]
fn events_are_split_by_their_time() {
    let disk = MemoryDisk::default();
    let (store, _) = try_open(&disk, DIR, &event_schema()).unwrap();
    commit(&store, put(1, events(&(0..200).map(|n| (n % 20, "", n)).collect::<Vec<_>>())));
    store.flush().unwrap();
    commit(&store, put(2, events(&(0..20).map(|n| (n, "late", n)).collect::<Vec<_>>())));
    let SplitPoint::At(at) = store.split_point(1, 10).unwrap() else { panic!("there are times enough") };
    let digest = store.digest().unwrap();
    split_at(&store, &at).unwrap();
    let [left, right] = [LEFT, RIGHT].map(|dir| try_open(&disk, dir, &event_schema()).unwrap().0);
    let (below, above) = (left.snapshot().rows(), right.snapshot().rows());
    assert_eq!(below + above, 220);
    assert!(below % 11 == 0 && (60..160).contains(&below), "whole times on either side: {below}");
    let sums = (left.digest().unwrap().sum, right.digest().unwrap().sum);
    assert_eq!(sums.0.wrapping_add(sums.1), digest.sum);
}

#[test]
fn a_store_falls_in_three_and_gives_up_what_nobody_is_to_have() {
    let disk = MemoryDisk::default();
    let store = filled(&disk).unwrap();
    let all = read(&store.snapshot());
    let range = |start, end| KeyRange { start: key(start), end: Some(key(end)) };
    let child = |dir: &str, range| SplitChild { dir: dir.into(), range, meta: Vec::new() };
    let children = [child("p2", range(0, 20)), child("p3", range(20, 40)), child("p4", range(60, 70))];
    assert_eq!(store.split(&children).unwrap(), store.status().position);
    for (dir, from, to) in [("/data/p2", 0, 20), ("/data/p3", 20, 40), ("/data/p4", 60, 70)] {
        let expected: Table = all.range(from..to).map(|(id, row)| (*id, row.clone())).collect();
        assert_eq!(read(&open_at(&disk, dir).snapshot()), expected, "{dir}");
    }
}

#[test]
fn a_part_of_a_write_has_the_versions_and_the_token_of_the_whole() {
    let disk = MemoryDisk::default();
    let store = open_at(&disk, DIR);
    let whole = rows(&[(10, None, 1), (50, None, 2), (11, None, 3), (51, None, 4)]);
    let fingerprint = fingerprint_of(&upsert_schema(), &whole).unwrap();
    let mut sent = put(5, whole.clone());
    sent.token = Some("t".into());
    commit(&store, sent.clone());
    split_at(&store, &key(45)).unwrap();

    let part = |places: [u32; 2], fingerprint| Write {
        rows: Rows::Part {
            deletes: false,
            rows: take_record_batch(&whole, &UInt32Array::from(places.to_vec())).unwrap(),
            ordinals: places.to_vec(),
            fingerprint,
        },
        ..sent.clone()
    };
    for (dir, places) in [(LEFT, [0, 2]), (RIGHT, [1, 3])] {
        // It is known to the child that has it from its parent, and taken in the same way by one that has not.
        let child = open_at(&disk, dir);
        assert!(commit(&child, part(places, fingerprint)).duplicate, "{dir}");
        let other = child.commit(vec![part(places, 7)], 0).unwrap().remove(0).unwrap_err();
        assert_eq!(other.code(), ErrorCode::TokenConflict, "{dir}");
        let fresh = open_at(&disk, &format!("{dir}x"));
        assert!(!commit(&fresh, part(places, fingerprint)).duplicate);
        assert_eq!(fresh.digest().unwrap(), child.digest().unwrap(), "{dir}");
    }
    let torn = Rows::Part { deletes: false, rows: whole, ordinals: vec![1], fingerprint };
    let error = open_at(&disk, LEFT).commit(vec![Write { token: None, rows: torn, ..sent }], 0).unwrap().remove(0);
    assert_eq!(error.unwrap_err().code(), ErrorCode::InvalidRequest);
}
