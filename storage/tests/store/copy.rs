//! A store that begins with a copy of another one holds what that one held, and goes on from there.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use shoal_kernel::env::{Disk, OpenMode};
use shoal_kernel::{Datum, ErrorCode, Hlc, KeyRange, LogId, NodeId, Result, Version};
use shoal_storage::{CopyHead, PagePool, Placing, PullCursor, Store, StoreCopy, StoreOptions};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;
use crate::model::{Change, Model, change, pull_all, write};

const BESIDE: &str = "/data/p1.filling";
const LENT: LogId = LogId(7);
const OWN: LogId = LogId(8);

fn small_options() -> StoreOptions {
    StoreOptions { compaction_fan_in: 2, wal_segment_bytes_max: 600, pool: Arc::new(PagePool::new(2000)), ..options() }
}

fn open_at(disk: &MemoryDisk, dir: &str, log: LogId) -> Arc<Store> {
    Store::open(disk.shared(), Path::new(dir), upsert_schema(), small_options(), log, 9).unwrap().0
}

/// Brings files of a copy to a disk, so many bytes at a time; those that are there already stay.
fn fetch(copy: &StoreCopy, to: &MemoryDisk, step: usize) -> Result<CopyHead> {
    let dir = Path::new(BESIDE);
    let head = CopyHead::parse(copy.head())?;
    to.create_dir_all(dir)?;
    let have = CopyHead::whole_files(to, dir)?;
    for (place, file) in head.files().enumerate() {
        assert_eq!(file.name, copy.names()[place]);
        if have.contains(&file.name) {
            CopyHead::check_file(&to.shared(), &dir.join(&file.local_name), &file.name)?;
            continue;
        }
        let path = dir.join(&file.name).with_extension("part");
        if to.exists(&path)? {
            to.remove_file(&path)?;
        }
        let (mut reader, local) = (copy.reader(place)?, to.open(&path, OpenMode::CreateNew)?);
        let mut at = 0;
        loop {
            let part = reader.read(step)?;
            if part.is_empty() {
                break;
            }
            local.write_all_at(&part, at)?;
            at += part.len() as u64;
        }
        assert_eq!(at, file.bytes);
        CopyHead::check_file(&to.shared(), &path, &file.name)?;
        local.sync()?;
        to.rename(&path, &dir.join(&file.local_name))?;
    }
    to.sync_dir(dir)?;
    Ok(head)
}

fn place(head: &CopyHead, disk: &MemoryDisk, options: &StoreOptions) -> Result<()> {
    let (range, meta) = (KeyRange::all(), b"own".to_vec());
    let placing = Placing { schema: upsert_schema(), range, meta, log_id: OWN, log_secret: 5, options };
    head.place_in(&disk.shared(), Path::new(BESIDE), placing)
}

/// Puts a copy in the place of an empty store.
fn filled_by(copy: &StoreCopy, step: usize) -> (MemoryDisk, Arc<Store>) {
    let disk = MemoryDisk::default();
    let empty = open_at(&disk, DIR, LogId(99));
    assert!(empty.is_empty());
    let head = fetch(copy, &disk, step).unwrap();
    place(&head, &disk, &small_options()).unwrap();
    empty.close();
    assert!(Store::take_over(&disk, Path::new(BESIDE), Path::new(DIR)).unwrap());
    assert!(!Store::take_over(&disk, Path::new(BESIDE), Path::new(DIR)).unwrap());
    let disk = disk.restart(Loss::Everything);
    let store = open_at(&disk, DIR, LogId(99));
    assert_eq!(store.meta(), b"own");
    (disk, store)
}

#[derive(Debug, Clone)]
enum Step {
    Commit(u64, Change),
    Flush,
    Compact,
    Optimize,
    Alter,
    Reopen,
    Split(i64),
    Purge(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u64..50, change()).prop_map(|(time, change)| Step::Commit(time, change)),
        2 => Just(Step::Flush),
        1 => Just(Step::Compact),
        1 => Just(Step::Optimize),
        1 => Just(Step::Alter),
        1 => Just(Step::Reopen),
        1 => (0i64..40).prop_map(Step::Split),
        1 => (0u64..20).prop_map(Step::Purge),
    ]
}

/// A store that is split goes on as its first half, and the model with it.
struct World {
    disk: MemoryDisk,
    dir: String,
    store: Arc<Store>,
    model: Model,
    below: i64,
    writes: u32,
}

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Commit(time, change) => {
                self.writes += 1;
                let change = change.retain(|id| id < self.below);
                // Above whatever was purged.
                let version = Version::new(Hlc(100 + time), NodeId(self.writes), 0);
                let change = write(&mut self.model, version, &change);
                commit(&self.store, with_token(change, &format!("token {}", self.writes)));
            }
            Step::Flush => drop(self.store.flush().unwrap()),
            Step::Compact => drop(self.store.compact().unwrap()),
            Step::Optimize => drop(self.store.optimize(&|| true).unwrap()),
            Step::Alter => alter(&self.store),
            Step::Purge(until) => drop(self.store.purge(Hlc(until)).unwrap()),
            Step::Reopen => {
                self.disk = self.disk.restart(Loss::Everything);
                self.store = open_at(&self.disk, &self.dir, LENT);
            }
            Step::Split(at) if at < self.below => {
                let dirs = [format!("{}l", self.writes), format!("{}r", self.writes)];
                let halves = halves_at(&self.store, &Datum::Int(at).encode(), dirs.each_ref().map(String::as_str));
                // The directory of an earlier half of the same name may be there.
                if self.store.split(&halves).is_ok() {
                    self.dir = format!("/data/{}", dirs[0]);
                    self.store = open_at(&self.disk, &self.dir, LENT);
                    self.below = at;
                    self.model.retain(|id| id < at);
                }
            }
            Step::Split(_) => {}
        }
    }
}

fn run(before: Vec<Step>, after: Vec<Step>, own: Vec<(u64, Change)>, chunk: usize) {
    let disk = MemoryDisk::default();
    let store = open_at(&disk, DIR, LENT);
    let mut world = World { disk, dir: DIR.into(), store, model: Model::default(), below: i64::MAX, writes: 0 };
    before.into_iter().for_each(|step| world.step(step));
    let (expected, digest) = (world.model.visible(), world.store.digest().unwrap());
    let (content, position) = (world.store.content_digest().unwrap(), world.store.snapshot().position().1);
    let (schema, purged, tokens) = (world.store.schema_version(), world.store.purged(), world.writes);
    let copy = world.store.copy().unwrap();
    assert_eq!(CopyHead::parse(copy.head()).unwrap().place(), (LENT, position));
    after.into_iter().for_each(|step| world.step(step));

    let (disk, store) = filled_by(&copy, chunk);
    assert_eq!(read(&store.snapshot()), expected);
    assert_eq!((store.digest().unwrap(), store.content_digest().unwrap()), (digest, content));
    assert_eq!(store.verify().unwrap(), []);
    assert_eq!(store.snapshot().position(), (OWN, position));
    assert_eq!((store.schema_version(), store.purged()), (schema, purged));
    let known = (1..=tokens).filter(|token| store.token(&format!("token {token}")).is_some()).count();
    let there = (1..=tokens).filter(|token| world.store.token(&format!("token {token}")).is_some()).count();
    assert_eq!(known, there, "keys");
    // Places in the log that was copied are worth as much here, up to where it was copied.
    assert_eq!(store.place_of(LENT, u64::MAX), Some(position));
    assert!(!store.has_synced_of(LENT) && store.past_logs().contains(&LENT));

    // It goes on with the lender behind the copy, and has all of it then.
    let mut cursor = PullCursor { log_id: LENT, position, round: None };
    if world.below == i64::MAX {
        pull_all(&world.store, &store, &mut cursor, 500);
        assert_eq!(read(&store.snapshot()), world.model.visible());
        assert_eq!(store.digest().unwrap().sum, world.store.digest().unwrap().sum);
    }
    // Who has nothing gets everything from it; who has the lender's log, what it has taken since.
    let mut model = Model::default();
    let fresh = open_at(&MemoryDisk::default(), DIR, LogId(3));
    for (number, (time, change)) in own.into_iter().enumerate() {
        let version = Version::new(Hlc(1000 + time), NodeId(u32::try_from(number).unwrap()), 0);
        commit(&store, write(&mut model, version, &change));
    }
    pull_all(&store, &fresh, &mut PullCursor::default(), 500);
    assert_eq!(read(&fresh.snapshot()), read(&store.snapshot()));
    assert_eq!(fresh.digest().unwrap().sum, store.digest().unwrap().sum);
    let again = open_at(&disk.restart(Loss::Everything), DIR, LogId(99));
    assert_eq!(read(&again.snapshot()), read(&store.snapshot()));
    assert_eq!(again.snapshot().position(), store.snapshot().position());
    // A copy of what began with a copy.
    let (_, third) = filled_by(&again.copy().unwrap(), 1 << 20);
    assert_eq!(third.digest().unwrap(), again.digest().unwrap());
    assert_eq!(third.place_of(LENT, u64::MAX), Some(position));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn who_begins_with_a_copy_goes_on_as_if_it_had_accepted_it(
        before in prop::collection::vec(step(), 0..25),
        after in prop::collection::vec(step(), 0..12),
        own in prop::collection::vec((0u64..50, change()), 0..4),
        chunk in 1usize..900,
    ) {
        run(before, after, own, chunk);
    }
}

/// Segments with replaced rows, one of nothing but tombstones, and tokens.
fn lender() -> Arc<Store> {
    let store = open_at(&MemoryDisk::default(), DIR, LENT);
    for number in 0..3 {
        let batch: Vec<_> = (0..30).map(|id| (id * (number + 1), Some("name"), number)).collect();
        let write = put(u64::try_from(number).unwrap() + 1, rows(&batch));
        commit(&store, with_token(write, &format!("token {number}")));
        store.flush().unwrap();
    }
    commit(&store, delete(9, keys(&[0, 1, 2, 1_000])));
    store.flush().unwrap();
    store
}

#[test]
fn tombstones_come_along() {
    let store = lender();
    let (_, filled) = filled_by(&store.copy().unwrap(), 1 << 20);
    assert_eq!(filled.digest().unwrap(), store.digest().unwrap());
    assert_eq!(filled.digest().unwrap().tombstones, 4);
    commit(&filled, put(8, rows(&[(1_000, None, 1)])));
    assert!(!read(&filled.snapshot()).contains_key(&1_000), "it was deleted by a later version");
}

/// Whatever is left of the power cut, the directory opens with nothing or with all of it, and the next attempt gets there.
#[test]
fn power_cut_at_every_operation_of_a_filling() {
    let store = lender();
    let (copy, expected) = (store.copy().unwrap(), read(&store.snapshot()));
    let begun = MemoryDisk::default();
    open_at(&begun, DIR, LogId(99)).close();
    let fill = |disk: &MemoryDisk| -> Result<()> {
        let head = fetch(&copy, disk, 500)?;
        place(&head, disk, &small_options())?;
        Store::take_over(disk, Path::new(BESIDE), Path::new(DIR)).map(drop)
    };
    let (mut operation, mut seen, mut finished) = (1, [0, 0], false);
    while !finished {
        let running = begun.restart(Loss::Nothing);
        running.cut_power_after(operation);
        finished = fill(&running).is_ok();
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn(operation * 2), Loss::Torn(operation * 2 + 1)] {
            let what = format!("cut at {operation}, {loss:?}");
            // And once more while whoever opens the replica finishes what was begun.
            for again in [2, 5, u64::MAX] {
                let disk = running.restart(loss);
                disk.cut_power_after(again);
                let _ = Store::take_over(&disk, Path::new(BESIDE), Path::new(DIR));
                let disk = disk.restart(loss);
                Store::take_over(&disk, Path::new(BESIDE), Path::new(DIR)).unwrap();
                let store = open_at(&disk, DIR, LogId(99));
                let is_filled = !store.is_empty();
                assert!(is_filled || !finished, "{what}: what was reported has happened");
                seen[usize::from(is_filled)] += 1;
                assert_eq!(store.verify().unwrap(), [], "{what}");
                if !is_filled {
                    store.close();
                    // What is there of files is whole, or is found not to be.
                    let names = CopyHead::whole_files(&disk, Path::new(BESIDE)).unwrap();
                    for name in names {
                        let path = Path::new(BESIDE).join(CopyHead::local_name(&name));
                        if CopyHead::check_file(&disk.shared(), &path, &name).is_err() {
                            disk.remove_file(&path).unwrap();
                        }
                    }
                    fill(&disk).unwrap();
                }
                let store = open_at(&disk.restart(Loss::Everything), DIR, LogId(99));
                assert_eq!(read(&store.snapshot()), expected, "{what}");
                assert_eq!(store.snapshot().position(), (OWN, 4), "{what}");
                assert!(store.token("token 2").is_some(), "{what}");
            }
        }
        operation += 1;
    }
    assert!(operation > 30 && seen[0] > 20 && seen[1] > 4, "{operation} operations, {seen:?}");
}

#[test]
fn every_damaged_byte_is_found() {
    let copy = lender().copy().unwrap();
    let disk = MemoryDisk::default();
    let head = fetch(&copy, &disk, 4096).unwrap();
    let file = head.files().next().unwrap();
    let path = Path::new(BESIDE).join(&file.local_name);
    let code = || CopyHead::check_file(&disk.shared(), &path, &file.name).err().map(|error| error.code());
    assert_eq!(code(), None);
    for byte in 0..disk.bytes(&path).len() {
        disk.tamper(&path, |bytes| bytes[byte] ^= 4);
        assert_eq!(code(), Some(ErrorCode::Corruption), "byte {byte}");
        disk.tamper(&path, |bytes| bytes[byte] ^= 4);
    }
    for byte in 0..copy.head().len() {
        let mut bytes = copy.head().to_vec();
        bytes[byte] ^= 4;
        assert_eq!(CopyHead::parse(&bytes).unwrap_err().code(), ErrorCode::Corruption, "byte {byte}");
    }
    // Another file of the copy in its place, or none.
    let other = Path::new(BESIDE).join(&head.files().nth(1).unwrap().local_name);
    let (first, second) = (disk.bytes(&path), disk.bytes(&other));
    disk.tamper(&path, |bytes| *bytes = second.clone());
    assert_eq!(code(), Some(ErrorCode::Corruption));
    assert_eq!(place(&head, &disk, &small_options()).unwrap_err().code(), ErrorCode::Corruption);
    disk.tamper(&other, |bytes| *bytes = first.clone());
    assert!(!Store::is_in(&disk, Path::new(BESIDE)).unwrap());
    assert!(place(&head, &disk, &small_options()).is_err(), "files are gone");
}

/// A log that is synced late is not taken for one that was not closed in good order.
#[test]
fn a_copy_goes_on_with_a_log_that_is_synced_late() {
    let options = || StoreOptions { sync_commits: false, ..small_options() };
    let disk = MemoryDisk::default();
    let head = fetch(&lender().copy().unwrap(), &disk, 1 << 20).unwrap();
    place(&head, &disk, &options()).unwrap();
    assert!(Store::take_over(&disk, Path::new(BESIDE), Path::new(DIR)).unwrap());
    let disk = disk.restart(Loss::Everything);
    let (store, recovery) = open_with(&disk.shared(), &upsert_schema(), options(), 99).unwrap();
    assert!(!recovery.unclean && !recovery.in_doubt && !recovery.created, "{recovery:?}");
    assert_eq!(store.snapshot().position(), (OWN, 4));
}

/// Files of an older copy are of use for a later one, and what is of none goes.
#[test]
fn files_that_have_come_are_not_fetched_again() {
    let store = lender();
    let disk = MemoryDisk::default();
    open_at(&disk, DIR, LogId(99)).close();
    let early = fetch(&store.copy().unwrap(), &disk, 1 << 20).unwrap();
    commit(&store, put(20, rows(&[(5, Some("later"), 1)])));
    let copy = store.copy().unwrap();
    let have = CopyHead::whole_files(&disk, Path::new(BESIDE)).unwrap();
    assert_eq!(have.len(), early.files().count());
    assert_eq!(copy.names().iter().filter(|name| !have.contains(name)).count(), 1);
    store.optimize(&|| true).unwrap();
    let merged = store.copy().unwrap();
    let head = fetch(&merged, &disk, 1 << 20).unwrap();
    place(&head, &disk, &small_options()).unwrap();
    assert_eq!(disk.list(Path::new(BESIDE)).unwrap().iter().filter(|entry| entry.name.ends_with(".seg")).count(), 1);
    assert!(CopyHead::whole_files(&disk, Path::new(BESIDE)).unwrap().is_empty());
    Store::take_over(&disk, Path::new(BESIDE), Path::new(DIR)).unwrap();
    assert_eq!(read(&open_at(&disk, DIR, LogId(99)).snapshot()), read(&store.snapshot()));
}
