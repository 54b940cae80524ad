//! Damaged files, failing syncs, full disks.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch};
use arrow::datatypes::DataType;
use shoal_kernel::{Applied, ColumnId, ErrorCode, LogId, TableKind, TableSchema};
use shoal_storage::StoreOptions;

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;

fn file(disk: &MemoryDisk, starts: &str) -> PathBuf {
    let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(starts);
    disk.files().into_iter().rfind(named).unwrap()
}

fn three_commits(disk: &MemoryDisk) {
    let (store, _) = open(&disk.shared());
    for n in 1..4 {
        commit(&store, put(n as u64, rows(&[(n, None, n)])));
    }
}

#[test]
fn every_cut_of_the_log_loses_whole_records_only() {
    let disk = MemoryDisk::default();
    three_commits(&disk);
    let log = file(&disk, "wal-");
    let whole = disk.bytes(&log);
    let mut rows_seen = Vec::new();
    for length in (0..whole.len()).rev() {
        let cut = disk.restart(Loss::Nothing);
        cut.tamper(&log, |bytes| bytes.truncate(length));
        let (store, recovery) = open_with(&cut.shared(), &upsert_schema(), options(), 8).unwrap();
        let rows = store.snapshot().rows();
        if recovery.in_doubt {
            // Only when not even the file's own header is left does nobody know what it held.
            assert_eq!((recovery.log_id, rows), (LogId(8), 0));
        } else {
            assert_eq!(recovery.log_id, LogId(7));
            assert_eq!(recovery.records_replayed, rows);
        }
        rows_seen.push(rows);
        // The place of the cut record is taken by the next one, and that survives.
        commit(&store, put(50, rows_of_fifty()));
        assert_eq!(open(&cut.restart(Loss::Everything).shared()).0.snapshot().rows(), rows + 1);
    }
    assert!(rows_seen.is_sorted_by(|more, less| more >= less) && rows_seen[0] == 2);
}

fn rows_of_fifty() -> arrow::array::RecordBatch {
    rows(&[(50, None, 50)])
}

/// Bytes of a client's that read like a record, one that calls everything before it durable, make no damage of a cut.
#[test]
fn rows_that_look_like_records_are_rows() {
    let columns = vec![column(1, "id", DataType::Int64, false), column(2, "bytes", DataType::Binary, true)];
    let schema = Arc::new(TableSchema::new(columns, TableKind::Upsert { primary_key: vec![ColumnId(1)] }));
    let numbers = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    // No payload, at a position far away, with one entry, and nothing before it that was not synced.
    let mut record = [b"SHWF".to_vec(), numbers(&[0, 0, 1 << 8, 1, 0, 0])].concat();
    record.extend(crc32fast::hash(&record).to_le_bytes());
    // Nothing that would be stored in fewer bytes.
    record.extend((0..200_u32).map(|at| (at * 37 % 251) as u8));
    for sync_commits in [true, false] {
        let disk = MemoryDisk::default();
        let options = || StoreOptions { sync_commits, ..options() };
        let (store, _) = open_with(&disk.shared(), &schema, options(), 7).unwrap();
        let log = file(&disk, "wal-");
        let header = disk.bytes(&log).len();
        for n in 0..3 {
            let ids: ArrayRef = Arc::new(Int64Array::from(vec![n]));
            let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&record]));
            commit(&store, put(n as u64 + 1, RecordBatch::try_new(schema.arrow(), vec![ids, bytes]).unwrap()));
        }
        let whole = disk.bytes(&log);
        assert_eq!(whole.windows(32).filter(|window| *window == &record[..32]).count(), 3, "as it is");
        for length in header..whole.len() {
            let cut = disk.restart(Loss::Nothing);
            cut.tamper(&log, |bytes| bytes.truncate(length));
            let (store, recovery) = open_with(&cut.shared(), &schema, options(), 8).unwrap();
            assert_eq!((recovery.in_doubt, recovery.unclean), (false, !sync_commits), "{length} bytes");
            let records = (length - header) / ((whole.len() - header) / 3);
            assert_eq!(store.snapshot().rows(), records as u64, "{length} bytes");
        }
    }
}

/// Where the header of a torn record is lost, records are looked for among its rows, and there may be any that a client can make
/// up: with checksums as of a file without a salt, and of one with a salt of zeros. What the store itself wrote is known.
#[test]
fn rows_behind_a_lost_header_are_no_records() {
    let numbers = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let salts: [&[u8]; 2] = [&[], &[0; 8]];
    // Of every position that could come next, each with one entry, no payload, and nothing before it that was not synced.
    let forged = |salt: &[u8], position: u32| {
        let payload_crc = crc32fast::hash(salt);
        let header = [b"SHWF".to_vec(), numbers(&[0, position, 0, 1, payload_crc, 0])].concat();
        let header_crc = crc32fast::hash(&[salt, &header].concat());
        [header, header_crc.to_le_bytes().to_vec()].concat()
    };
    let records: Vec<u8> = (1..9).flat_map(|position| salts.map(|salt| forged(salt, position)).concat()).collect();
    let columns = vec![column(1, "id", DataType::Int64, false), column(2, "bytes", DataType::Binary, true)];
    let schema = Arc::new(TableSchema::new(columns, TableKind::Upsert { primary_key: vec![ColumnId(1)] }));
    // Nothing that would be stored in fewer bytes.
    let filler = (0..2000_u32).map(|at| (at * 37 % 251) as u8).collect::<Vec<u8>>();
    let bytes = [records.clone(), filler].concat();
    for sync_commits in [true, false] {
        let disk = MemoryDisk::default();
        let options = || StoreOptions { sync_commits, ..options() };
        let (store, _) = open_with(&disk.shared(), &schema, options(), 7).unwrap();
        let log = file(&disk, "wal-");
        let mut starts = Vec::new();
        for n in 0..3 {
            starts.push(disk.bytes(&log).len());
            let ids: ArrayRef = Arc::new(Int64Array::from(vec![n]));
            let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&bytes]));
            commit(&store, put(n as u64 + 1, RecordBatch::try_new(schema.arrow(), vec![ids, bytes]).unwrap()));
        }
        let whole = disk.bytes(&log);
        assert!(whole.windows(records.len()).any(|window| window == records), "as they are");
        for lost in [0_u8, 0xa5] {
            for cut in [0, 1000] {
                let torn = disk.restart(Loss::Nothing);
                torn.tamper(&log, |bytes| {
                    bytes[starts[2]..starts[2] + 40].fill(lost);
                    bytes.truncate(whole.len() - cut);
                });
                let (store, recovery) = open_with(&torn.shared(), &schema, options(), 8).unwrap();
                assert_eq!((store.snapshot().rows(), recovery.records_replayed), (2, 2));
                // It may have been whole once.
                assert!(recovery.in_doubt && recovery.log_id == LogId(8));
                drop(store);
                let (store, recovery) = open_with(&torn.shared(), &schema, options(), 9).unwrap();
                assert_eq!((store.snapshot().rows(), recovery.in_doubt), (2, false), "it was cut off");
            }
            let damaged = disk.restart(Loss::Nothing);
            damaged.tamper(&log, |bytes| bytes[starts[1]..starts[1] + 40].fill(lost));
            let opened = open_with(&damaged.shared(), &schema, options(), 8);
            match sync_commits {
                true => assert_eq!(opened.err().unwrap().code(), ErrorCode::Corruption),
                // Nothing says that it was synced.
                false => assert!(opened.unwrap().1.in_doubt),
            }
        }
    }
}

/// Every file has a salt of its own.
#[test]
fn a_record_of_one_file_is_none_in_another() {
    let disk = MemoryDisk::default();
    let small = StoreOptions { wal_segment_bytes_max: 1, ..options() };
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), small, 7).unwrap();
    let mut logs = Vec::new();
    for n in 1..3 {
        commit(&store, put(n as u64, rows(&[(n, None, n)])));
        logs.push(file(&disk, "wal-"));
    }
    drop(store);
    let [first, second] = [&logs[0], &logs[1]].map(|log| disk.bytes(log));
    let frame = |bytes: &[u8]| bytes.windows(4).position(|window| window == b"SHWF").unwrap();
    let moved = disk.restart(Loss::Nothing);
    moved.tamper(&logs[0], |bytes| {
        bytes.truncate(frame(&first));
        bytes.extend_from_slice(&second[frame(&second)..]);
    });
    moved.shared().remove_file(&logs[1]).unwrap();
    let (store, recovery) = open_with(&moved.shared(), &upsert_schema(), options(), 8).unwrap();
    assert_eq!((recovery.in_doubt, store.snapshot().rows()), (true, 0));
}

#[test]
fn every_flipped_byte_of_the_log_is_seen() {
    let disk = MemoryDisk::default();
    three_commits(&disk);
    let log = file(&disk, "wal-");
    let (mut doubts, mut corruptions) = (0, 0);
    for at in 0..disk.bytes(&log).len() {
        let flipped = disk.restart(Loss::Nothing);
        flipped.tamper(&log, |bytes| bytes[at] ^= 0x10);
        match open_with(&flipped.shared(), &upsert_schema(), options(), 8) {
            Ok((store, recovery)) => {
                // The last record may be missing, and that is said; or it looks cut short, which no bit flip of ours does.
                assert!(recovery.in_doubt, "byte {at}: {recovery:?}");
                assert_eq!(recovery.log_id, LogId(8));
                assert_eq!(read(&store.snapshot()), table(&[(1, None, 1), (2, None, 2)]), "byte {at}");
                doubts += 1;
            }
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::Corruption, "byte {at}: {error}");
                let place = error.file().unwrap();
                assert!(place.file.starts_with("wal-") && place.offset.is_some_and(|offset| offset <= at as u64));
                assert!(error.help().is_some());
                corruptions += 1;
            }
        }
    }
    assert!(doubts > 50 && corruptions > 100, "{doubts} {corruptions}");
}

#[test]
fn damage_that_passes_is_no_longer_named() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    commit(&store, put(1, rows(&(0..200).map(|n| (n * 3, Some("x"), n)).collect::<Vec<_>>())));
    store.flush().unwrap();
    let segment = file(&disk, "seg-");
    let scan = || store.snapshot().scan(&scan_all(&[1, 2, 3])).unwrap().collect::<Result<Vec<_>, _>>().map(drop);
    let flip = || disk.tamper(&segment, |bytes| bytes[48] ^= 0x10);
    flip();
    assert_eq!(scan().unwrap_err().code(), ErrorCode::Corruption);
    store.recheck();
    assert_eq!(store.status().problems.len(), 1);
    flip();
    store.recheck();
    assert!(store.status().problems.is_empty());
    scan().unwrap();
}

#[test]
fn every_flipped_byte_of_a_segment_is_seen() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    commit(&store, put(1, rows(&(0..200).map(|n| (n * 3, Some("x"), n)).collect::<Vec<_>>())));
    commit(&store, delete(2, keys(&[3, 6])));
    store.flush().unwrap();
    let expected = (read(&store.snapshot()), store.digest().unwrap());
    let segment = file(&disk, "seg-");
    for at in 0..disk.bytes(&segment).len() {
        let flipped = disk.restart(Loss::Nothing);
        flipped.tamper(&segment, |bytes| bytes[at] ^= 0x10);
        match open_with(&flipped.shared(), &upsert_schema(), options(), 8) {
            Err(error) => panic!("byte {at}: {error}"),
            Ok((store, recovery)) if !recovery.quarantined.is_empty() => {
                assert_eq!(store.snapshot().scan(&scan_all(&[1])).err().unwrap().code(), ErrorCode::Corruption);
                assert_eq!(store.digest().unwrap_err().code(), ErrorCode::Corruption);
                let refused = store.commit(vec![put(9, rows(&[(1, None, 1)]))], 0).unwrap().remove(0);
                assert_eq!(refused.unwrap_err().code(), ErrorCode::Corruption);
                assert_eq!(store.status().problems.len(), 1);
            }
            Ok((store, _)) => {
                let scanned: Result<Vec<_>, _> = store.snapshot().scan(&scan_all(&[1, 2, 3])).unwrap().collect();
                let damaged = !store.verify().unwrap().is_empty();
                if let Err(error) = &scanned {
                    assert_eq!(error.code(), ErrorCode::Corruption);
                    let place = error.file().unwrap();
                    assert_eq!(place.file, "seg-0000000000000001.seg");
                    assert!(place.offset.is_some_and(|offset| offset <= at as u64), "byte {at}: {error}");
                    assert!(error.message().contains("page 0 of column") && error.help().is_some(), "{error}");
                    assert!(damaged && !store.status().problems.is_empty());
                } else {
                    assert_eq!(read(&store.snapshot()), expected.0, "byte {at}");
                }
                assert!(damaged, "byte {at}");
            }
        }
    }
}

#[test]
fn every_flipped_byte_of_the_manifest_is_seen() {
    let disk = MemoryDisk::default();
    three_commits(&disk);
    open(&disk.shared()).0.flush().unwrap();
    let manifest = file(&disk, "MANIFEST");
    for at in 0..disk.bytes(&manifest).len() {
        let flipped = disk.restart(Loss::Nothing);
        flipped.tamper(&manifest, |bytes| bytes[at] ^= 0x10);
        let error = open_with(&flipped.shared(), &upsert_schema(), options(), 8).err().unwrap();
        assert_eq!(error.code(), ErrorCode::Corruption, "byte {at}: {error}");
        assert_eq!(error.file().unwrap().file, "MANIFEST");
        assert!(error.file().unwrap().offset.is_some_and(|offset| offset <= at as u64) && error.help().is_some());
    }
}

#[test]
fn a_lost_manifest_or_segment_is_not_an_empty_store() {
    let disk = MemoryDisk::default();
    three_commits(&disk);
    let without = disk.restart(Loss::Nothing);
    without.shared().remove_file(&file(&disk, "MANIFEST")).unwrap();
    let error = open_with(&without.shared(), &upsert_schema(), options(), 8).err().unwrap();
    assert_eq!(error.code(), ErrorCode::Corruption);

    open(&disk.shared()).0.flush().unwrap();
    disk.shared().remove_file(&file(&disk, "seg-")).unwrap();
    let (_, recovery) = open(&disk.shared());
    assert_eq!(recovery.quarantined[0].file, "seg-0000000000000001.seg");
}

#[test]
fn a_failed_fsync_ends_the_store_until_it_is_opened_again() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    commit(&store, put(1, rows(&[(1, None, 1)])));
    disk.fail_syncs(true);
    let error = store.commit(vec![put(2, rows(&[(2, None, 2)]))], 0).unwrap_err();
    assert_eq!((error.code(), error.applied()), (ErrorCode::Io, Applied::Unknown));
    disk.fail_syncs(false);
    let error = store.commit(vec![put(3, rows(&[(3, None, 3)]))], 0).unwrap_err();
    assert_eq!((error.code(), error.applied()), (ErrorCode::NotReady, Applied::False));
    assert!(store.status().failed.is_some());
    assert_eq!(read(&store.snapshot()), table(&[(1, None, 1)]), "reads go on");
    // What is read back was made durable before it is shown.
    let (store, recovery) = open(&disk.shared());
    assert_eq!(recovery.records_replayed, 2);
    let shown = read(&store.snapshot());
    assert_eq!(read(&open(&disk.restart(Loss::Everything).shared()).0.snapshot()), shown);
}

#[test]
fn a_full_disk_refuses_writes_keeps_reading_and_recovers() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    commit(&store, put(1, rows(&[(1, None, 1)])));
    disk.limit(Some(disk.used_bytes() + 30));
    let batch = || rows(&(0..100).map(|n| (n, Some("some text"), n * 77)).collect::<Vec<_>>());
    for _ in 0..2 {
        let refused = store.commit(vec![put(2, batch())], 0).unwrap().remove(0).unwrap_err();
        assert_eq!((refused.code(), refused.applied()), (ErrorCode::DiskFull, Applied::False));
        assert_eq!(read(&store.snapshot()), table(&[(1, None, 1)]));
        assert_eq!(read(&open(&disk.restart(Loss::Nothing).shared()).0.snapshot()), table(&[(1, None, 1)]));
    }
    assert_eq!(store.flush().unwrap_err().code(), ErrorCode::DiskFull);
    disk.limit(None);
    commit(&store, put(3, batch()));
    store.flush().unwrap();
    assert_eq!(store.snapshot().rows(), 100);
    assert_eq!(open(&disk.restart(Loss::Everything).shared()).0.snapshot().rows(), 100);
    let files = disk.files().iter().filter(|path| path.to_str().unwrap().contains("seg-")).count();
    assert_eq!(files, store.status().segments, "nothing is left of the failed attempts");
}

#[test]
fn the_reserve_is_kept_free() {
    let disk = MemoryDisk::default();
    disk.limit(Some(1 << 20));
    let limited = StoreOptions { disk_reserve_bytes: 2 << 20, ..options() };
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), limited, 1).unwrap();
    let refused = store.commit(vec![put(1, rows(&[(1, None, 1)]))], 0).unwrap().remove(0).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::DiskFull);
    disk.limit(Some(4 << 20));
    commit(&store, put(1, rows(&[(1, None, 1)])));
}

#[test]
fn memory_that_is_not_flushed_has_a_bound() {
    let disk = MemoryDisk::default();
    let (store, _) = open_with(
        &disk.shared(),
        &upsert_schema(),
        StoreOptions { memtable_bytes_max: 100, memtables_bytes_max: 1000, ..options() },
        1,
    )
    .unwrap();
    let mut accepted = 0;
    let refused = loop {
        match store.commit(vec![put(accepted, rows(&[(accepted as i64, None, 1)]))], 0).unwrap().remove(0) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code(), ErrorCode::Overloaded);
    assert!(accepted > 0 && store.maintenance_due());
    store.flush().unwrap();
    assert!(!store.maintenance_due());
    commit(&store, put(accepted, rows(&[(1, None, 1)])));
}

#[test]
fn damage_before_the_last_file_of_the_log_is_corruption() {
    let disk = MemoryDisk::default();
    let small = StoreOptions { wal_segment_bytes_max: 1, ..options() };
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), small, 7).unwrap();
    for n in 1..5 {
        commit(&store, put(n as u64, rows(&[(n, None, n)])));
    }
    drop(store);
    let logs: Vec<PathBuf> = disk.files().into_iter().filter(|path| path.to_str().unwrap().contains("wal-")).collect();
    assert_eq!(logs.len(), 4);
    let fails = |disk: &MemoryDisk| open_with(&disk.shared(), &upsert_schema(), options(), 8).err().unwrap().code();
    for log in &logs[..3] {
        for change in [
            |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1),
            |bytes: &mut Vec<u8>| {
                let last = bytes.len() - 9;
                bytes[last] ^= 1;
            },
        ] {
            let damaged = disk.restart(Loss::Nothing);
            damaged.tamper(log, change);
            assert_eq!(fails(&damaged), ErrorCode::Corruption, "{log:?}");
        }
        let without = disk.restart(Loss::Nothing);
        without.shared().remove_file(log).unwrap();
        assert_eq!(fails(&without), ErrorCode::Corruption, "{log:?}");
    }
    assert_eq!(open(&disk.shared()).0.snapshot().rows(), 4);
}
