//! Examining a directory: everything that is damaged is named, nothing is changed, and what is sound is called so.

use std::path::{Path, PathBuf};

use shoal_kernel::env::OpenMode;
use shoal_kernel::{ErrorCode, Planted};
use shoal_storage::{Finding, Severity, StoreOptions, StoreReport, dump_segment, examine_store};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;

/// All that a deep look finds.
pub fn examine(disk: &MemoryDisk) -> StoreReport {
    examine_store(&disk.shared(), Path::new(DIR), Some(upsert_schema()), true).unwrap()
}

pub fn findings(disk: &MemoryDisk) -> Vec<Finding> {
    examine(disk).findings
}

fn named(disk: &MemoryDisk, part: &str) -> PathBuf {
    disk.files().into_iter().find(|path| path.to_str().unwrap().contains(part)).unwrap()
}

/// Two segments with dead rows and tombstones, and a log with a record.
fn filled(count: i64) -> MemoryDisk {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    commit(
        &store,
        with_token(put(1, rows(&(0..count).map(|n| (n * 3, Some("some text"), n)).collect::<Vec<_>>())), "t"),
    );
    store.flush().unwrap();
    commit(&store, delete(2, keys(&[3, 6])));
    commit(&store, put(3, rows(&[(9, None, 1), (count * 3, Some("new"), 2)])));
    store.flush().unwrap();
    commit(&store, put(4, rows(&[(12, None, 1)])));
    store.set_meta(vec![7; 40]).unwrap();
    drop(store);
    disk.restart(Loss::Nothing)
}

#[test]
fn a_sound_directory_is_counted_and_left_alone() {
    let disk = filled(9000);
    let before = disk.content();
    let report = examine(&disk);
    assert_eq!(report.findings, []);
    assert_eq!(
        report.segments.iter().map(|segment| (segment.rows, segment.dead, segment.tombstones)).collect::<Vec<_>>(),
        [(9000, 3, 0), (4, 0, 2)]
    );
    assert_eq!((report.segment_rows, report.log_records, report.log_rows), (8999, 1, 1));
    assert_eq!((report.flushed, report.position, report.tokens), (Some(3), Some(4), 1));
    assert_eq!((report.meta, report.bytes), (vec![7; 40], disk.used_bytes()));
    // Without a schema everything but the order of keys is checked.
    assert_eq!(examine_store(&disk.shared(), Path::new(DIR), None, true).unwrap().findings, []);
    assert_eq!(disk.content(), before);
}

#[test]
fn every_flipped_byte_is_found_where_it_is() {
    let disk = filled(200);
    for (path, bytes) in disk.content() {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        for at in 0..bytes.len() {
            let flipped = disk.restart(Loss::Nothing);
            flipped.tamper(&path, |bytes| bytes[at] ^= 0x10);
            let found = examine_store(&flipped.shared(), Path::new(DIR), None, false).unwrap().findings;
            let here = |finding: &&Finding| finding.severity == Severity::Damage && finding.problem.file == name;
            let finding = found.iter().find(here).unwrap_or_else(|| panic!("{name} byte {at}: {found:?}"));
            // It begins before the byte: at its page, record or part.
            assert!(finding.problem.offset.is_none_or(|offset| offset <= at as u64), "byte {at}: {finding:?}");
            assert!(!finding.remedy.is_empty());
        }
    }
}

#[test]
fn what_a_crash_leaves_is_no_damage() {
    let disk = filled(9000);
    let log = named(&disk, "wal-");
    let torn = disk.restart(Loss::Nothing);
    torn.tamper(&log, |bytes| bytes.truncate(bytes.len() - 5));
    let stranger = |name: &str| torn.shared().open(&Path::new(DIR).join(name), OpenMode::CreateNew).unwrap();
    for name in ["MANIFEST.new", "seg-00000000000000ff.seg", "notes.txt"] {
        stranger(name);
    }
    let found = findings(&torn);
    assert!(found.iter().all(|finding| finding.severity == Severity::Note), "{found:?}");
    let files: Vec<&str> = found.iter().map(|finding| finding.problem.file.as_str()).collect();
    assert_eq!(
        files,
        ["MANIFEST.new", "notes.txt", "seg-00000000000000ff.seg", log.file_name().unwrap().to_str().unwrap()]
    );
    assert!(found[3].problem.offset.is_some() && found[3].problem.message.contains("torn tail"));
}

#[test]
fn what_is_missing_is_damage() {
    let disk = filled(9000);
    for (part, file) in [("MANIFEST", "MANIFEST"), ("seg-", "seg-0000000000000001.seg"), ("wal-", "wal-*.log")] {
        let without = disk.restart(Loss::Nothing);
        without.shared().remove_file(&named(&disk, part)).unwrap();
        let found = findings(&without);
        assert!(
            found.iter().any(|finding| finding.severity == Severity::Damage && finding.problem.file == file),
            "{found:?}"
        );
    }
}

#[test]
fn masks_of_another_segment_are_seen() {
    // A whole manifest of another store: its checksums hold, and it does not fit.
    let (disk, other) = (filled(9000), MemoryDisk::default());
    let (store, _) = open_with(&other.shared(), &upsert_schema(), StoreOptions::default(), 9).unwrap();
    drop(store);
    let manifest = named(&disk, "MANIFEST");
    let bytes = other.bytes(&named(&other, "MANIFEST"));
    disk.tamper(&manifest, |content| *content = bytes);
    let report = examine(&disk);
    // Its segments are no longer named, and the log begins behind what it says is flushed.
    assert!(report.findings.iter().any(|finding| finding.severity == Severity::Damage), "{:?}", report.findings);
}

#[test]
fn rows_that_live_twice_are_found() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    for round in 1..3 {
        commit(&store, put(round, rows(&[(1, None, round as i64), (round as i64 + 1, None, 1)])));
        store.flush().unwrap();
    }
    drop(store);
    assert_eq!(findings(&disk), []);
    // A bug forgets which rows have lost, and the next manifest has no masks.
    let forgets = StoreOptions { planted: Some(Planted::MasksForgotten), ..options() };
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), forgets, 7).unwrap();
    commit(&store, put(9, rows(&[(77, None, 1)])));
    store.flush().unwrap();
    drop(store);
    let found = findings(&disk);
    assert!(found[0].problem.message.contains("have one key, and neither is dead"), "{found:?}");
    assert_eq!(examine_store(&disk.shared(), Path::new(DIR), Some(upsert_schema()), false).unwrap().findings, []);
}

#[test]
fn a_segment_is_shown_page_by_page() {
    let disk = filled(9000);
    let path = named(&disk, "seg-");
    let dump = dump_segment(&disk.shared(), &path).unwrap();
    assert_eq!((dump.rows, dump.pages, dump.groups, dump.columns.len()), (9000, 2, 1, 6));
    assert_eq!((dump.bytes, dump.problems.len()), (disk.bytes(&path).len() as u64, 0));
    let text = &dump.columns[1];
    assert_eq!((text.id, text.dictionaries[0].values, text.pages[1].rows), (Some(2), Some(1), 808));
    assert_eq!(text.pages[0].encoding, "codes, constant");
    assert_eq!(
        (text.pages[0].min.as_deref(), text.pages[0].max.as_deref()),
        (Some("'some text'"), Some("'some text'"))
    );
    assert!(dump.columns.iter().flat_map(|column| &column.pages).all(|page| page.sound && page.stored_bytes > 0));
    let offset = text.pages[0].offset as usize;
    disk.tamper(&path, |bytes| bytes[offset] ^= 1);
    let damaged = dump_segment(&disk.shared(), &path).unwrap();
    assert!(!damaged.columns[1].pages[0].sound && damaged.columns[1].pages[1].sound);
    assert_eq!(damaged.problems[0].offset, Some(offset as u64));
    assert_eq!(dump_segment(&disk.shared(), &named(&disk, "MANIFEST")).unwrap_err().code(), ErrorCode::InvalidRequest);
}
