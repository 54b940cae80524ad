//! What a store held is in the copies of its files, whatever becomes of the store meanwhile.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use shoal_kernel::env::{Disk, OpenMode};
use shoal_kernel::{Datum, ErrorCode, Hlc, LogId, NodeId, Result, TableSchema, Version};
use shoal_storage::{Checkpoint, CheckpointOutline, PagePool, Snapshot, Store, StoreOptions};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;
use crate::model::{Change, Model, change, write};

const COPY: &str = "/copy";

fn small_options() -> StoreOptions {
    StoreOptions { compaction_fan_in: 2, wal_segment_bytes_max: 600, pool: Arc::new(PagePool::new(2000)), ..options() }
}

fn open_at(disk: &MemoryDisk, dir: &str) -> Arc<Store> {
    Store::open(disk.shared(), Path::new(dir), upsert_schema(), small_options(), LogId(7), 9).unwrap().0
}

/// Copies the files of a checkpoint to a disk, so many bytes at a time.
fn copy(checkpoint: &Checkpoint, to: &MemoryDisk, step: usize) -> CheckpointOutline {
    let outline = CheckpointOutline::parse(checkpoint.outline()).unwrap();
    to.create_dir_all(Path::new(COPY)).unwrap();
    for (reader, file) in checkpoint.readers().zip(outline.files()) {
        let mut reader = reader.unwrap();
        assert_eq!((reader.name(), reader.bytes()), (file.name.as_str(), file.bytes));
        let local = to.open(&Path::new(COPY).join(&file.local_name), OpenMode::CreateNew).unwrap();
        let mut at = 0;
        loop {
            let part = reader.read(step).unwrap();
            if part.is_empty() {
                break;
            }
            local.write_all_at(&part, at).unwrap();
            at += part.len() as u64;
        }
        assert_eq!(at, file.bytes);
    }
    outline
}

fn open_copy(outline: &CheckpointOutline, disk: &MemoryDisk, schema: &Arc<TableSchema>) -> Result<Snapshot> {
    outline.open(disk.shared(), Path::new(COPY), schema.clone(), &options())
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
                let change = write(&mut self.model, Version::new(Hlc(time), NodeId(self.writes), 0), &change);
                commit(&self.store, change);
            }
            Step::Flush => drop(self.store.flush().unwrap()),
            Step::Compact => drop(self.store.compact().unwrap()),
            Step::Optimize => drop(self.store.optimize(&|| true).unwrap()),
            Step::Alter => alter(&self.store),
            Step::Reopen => {
                self.disk = self.disk.restart(Loss::Everything);
                self.store = open_at(&self.disk, &self.dir);
            }
            Step::Split(at) if at < self.below => {
                let dirs = [format!("{}l", self.writes), format!("{}r", self.writes)];
                let halves = halves_at(&self.store, &Datum::Int(at).encode(), dirs.each_ref().map(String::as_str));
                // The directory of an earlier half of the same name may be there.
                if self.store.split(&halves).is_ok() {
                    self.dir = format!("/data/{}", dirs[0]);
                    self.store = open_at(&self.disk, &self.dir);
                    self.below = at;
                    self.model.retain(|id| id < at);
                }
            }
            Step::Split(_) => {}
        }
    }
}

fn run(before: Vec<Step>, after: Vec<Step>, chunk: usize) {
    let disk = MemoryDisk::default();
    let store = open_at(&disk, DIR);
    let mut world = World { disk, dir: DIR.into(), store, model: Model::default(), below: i64::MAX, writes: 0 };
    before.into_iter().for_each(|step| world.step(step));
    let expected = world.model.visible();
    let schema = altered(world.store.schema_version());
    let checkpoint = world.store.checkpoint().unwrap();
    assert_eq!((checkpoint.rows(), checkpoint.schema_version()), (expected.len() as u64, schema.version));
    let early = MemoryDisk::default();
    let outline = copy(&checkpoint, &early, chunk);
    assert_eq!(read(&open_copy(&outline, &early, &schema).unwrap()), expected);

    // The same files have the same names; and what comes later is none of its business.
    let again = world.store.checkpoint().unwrap();
    assert_eq!(again.outline(), checkpoint.outline());
    after.into_iter().for_each(|step| world.step(step));
    let late = MemoryDisk::default();
    let outline = copy(&checkpoint, &late, 1 << 20);
    let newer = altered(world.store.schema_version());
    assert_eq!(read(&open_copy(&outline, &late, &newer).unwrap()), expected, "after the store has gone on");
    let older = open_copy(&outline, &late, &altered(schema.version - 1)).err();
    assert!(schema.version == 1 || older.is_some_and(|error| error.code() == ErrorCode::InvalidRequest));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn copies_hold_what_the_store_held(
        before in prop::collection::vec(step(), 0..25),
        after in prop::collection::vec(step(), 0..12),
        chunk in 1usize..900,
    ) {
        run(before, after, chunk);
    }
}

fn filled(disk: &MemoryDisk) -> Arc<Store> {
    let store = open_at(disk, DIR);
    for number in 0..4 {
        let batch: Vec<_> = (0..30).map(|id| (id * (number + 1), Some("name"), number)).collect();
        commit(&store, put(u64::try_from(number).unwrap() + 1, rows(&batch)));
        if number < 3 {
            store.flush().unwrap();
        }
    }
    store
}

#[test]
fn power_cut_at_every_operation_of_a_checkpoint() {
    let (mut operation, mut finished) = (1, false);
    while !finished {
        let disk = MemoryDisk::default();
        let store = filled(&disk);
        let expected = read(&store.snapshot());
        disk.cut_power_after(operation);
        let checkpoint = store.checkpoint();
        finished = checkpoint.is_ok();
        for loss in [Loss::Everything, Loss::Nothing, Loss::Torn(operation)] {
            let restarted = disk.restart(loss);
            let again = open_at(&restarted, DIR);
            assert_eq!(read(&again.snapshot()), expected, "cut at {operation}, {loss:?}");
            let copied = MemoryDisk::default();
            let outline = copy(&again.checkpoint().unwrap(), &copied, 500);
            assert_eq!(read(&open_copy(&outline, &copied, &upsert_schema()).unwrap()), expected);
        }
        operation += 1;
    }
    assert!(operation > 5, "{operation} operations");
}

#[test]
fn every_damaged_byte_is_found() {
    let disk = MemoryDisk::default();
    let checkpoint = filled(&disk).checkpoint().unwrap();
    let copied = MemoryDisk::default();
    let outline = copy(&checkpoint, &copied, 4096);
    let code = |disk: &MemoryDisk| open_copy(&outline, disk, &upsert_schema()).err().map(|error| error.code());
    assert_eq!(code(&copied), None);
    let path = copied.files().into_iter().next().unwrap();
    for byte in 0..copied.bytes(&path).len() {
        copied.tamper(&path, |bytes| bytes[byte] ^= 4);
        assert_eq!(code(&copied), Some(ErrorCode::Corruption), "byte {byte}");
        copied.tamper(&path, |bytes| bytes[byte] ^= 4);
    }
    copied.tamper(&path, |bytes| bytes.truncate(bytes.len() - 1));
    assert_eq!(code(&copied), Some(ErrorCode::Corruption));
    for byte in 0..checkpoint.outline().len() {
        let mut bytes = checkpoint.outline().to_vec();
        bytes[byte] ^= 4;
        assert_eq!(CheckpointOutline::parse(&bytes).unwrap_err().code(), ErrorCode::Corruption, "byte {byte}");
    }
}

#[test]
fn what_is_damaged_here_is_not_copied() {
    let disk = MemoryDisk::default();
    let store = filled(&disk);
    let checkpoint = store.checkpoint().unwrap();
    let path = disk.files().into_iter().find(|path| path.extension().is_some_and(|end| end == "seg")).unwrap();
    let read = |reader: Result<shoal_storage::SegmentReader>| reader?.check_all(100);
    for byte in 0..disk.bytes(&path).len() {
        disk.tamper(&path, |bytes| bytes[byte] ^= 1);
        let failed: Vec<_> = checkpoint.readers().filter_map(|reader| read(reader).err()).collect();
        assert_eq!(failed.len(), 1, "byte {byte}");
        assert_eq!(failed[0].code(), ErrorCode::Corruption, "byte {byte}");
        assert!(failed[0].file().is_some(), "{}", failed[0]);
        disk.tamper(&path, |bytes| bytes[byte] ^= 1);
    }
}
