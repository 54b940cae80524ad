//! What the fuzzers in `fuzz/` drive, and the tests that prove them alive: each reader, given bytes that nobody wrote.
//!
//! Only for fuzzers and tests. An entry takes the bytes as they are, and then with all checksums made right, for else no fuzzer
//! would ever come behind one. It tells whether the reader took them; what it must not do is panic, or take more memory than
//! a file of that size is worth.

mod disk;
mod sample;
mod seal;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use roaring::RoaringBitmap;
use shoal_kernel::env::Disk;
use shoal_kernel::{
    ColumnId, ColumnPredicate, CompareOp, Datum, Hlc, LogId, NodeId, PartitionId, ScanSpec, SegmentId, TableId,
    TableSchema, Version,
};

pub use sample::{Sample, samples};

use crate::encoding::{Dictionary, decode_page, describe};
use crate::manifest::{MANIFEST_FILE, Manifest, SegmentRecord};
use crate::options::StoreOptions;
use crate::pool::PagePool;
use crate::rows::{Rows, Write};
use crate::segment::segment_file;
use crate::store::{PullCursor, Recovery, Store};
use crate::wal::file_name;
use crate::{dump_segment, examine_store};
use disk::Files;

const DIR: &str = "/replica";
/// Bytes of a peer's round.
const PULL_BYTES: usize = 1 << 20;

/// A segment file, in a store that consists of it.
pub fn segment(bytes: &[u8]) -> bool {
    let sealed = seal::segment(bytes);
    let tables = [sample::upsert(), sample::events()];
    tables.iter().fold(false, |taken, schema| {
        let read = |bytes: &[u8]| {
            let files = Files::default();
            let id = SegmentId(1);
            let path = Path::new(DIR).join(segment_file(id));
            files.put(path.clone(), bytes);
            let disk: Arc<dyn Disk> = Arc::new(files);
            let _ = dump_segment(&disk, &path);
            let dead = serialised(&RoaringBitmap::from_iter([0]));
            let record =
                SegmentRecord { id, bytes: bytes.len() as u64, rows: 0..1, dead, history: false, deaths: Vec::new() };
            let manifest = Manifest {
                flushed: 1 << 20,
                next_segment: SegmentId(2),
                segments: vec![record],
                ..Manifest::new(LogId(1))
            };
            manifest.write(&disk, Path::new(DIR)).is_ok() && store(&disk, schema).is_some_and(is_whole)
        };
        let raw = read(bytes);
        read(&sealed) || raw || taken
    })
}

/// A log file, in a store that has flushed nothing.
pub fn log(bytes: &[u8]) -> bool {
    let sealed = seal::log(bytes);
    let tables = [sample::upsert(), sample::events()];
    tables.iter().fold(false, |taken, schema| {
        let read = |bytes: &[u8]| {
            let files = Files::default();
            files.put(Path::new(DIR).join(file_name(1)), bytes);
            let disk: Arc<dyn Disk> = Arc::new(files);
            let manifest = Manifest::new(LogId(1));
            manifest.write(&disk, Path::new(DIR)).is_ok() && store(&disk, schema).is_some_and(is_whole)
        };
        let raw = read(bytes);
        read(&sealed) || raw || taken
    })
}

/// A manifest, beside a segment that it may name.
pub fn manifest(bytes: &[u8]) -> bool {
    let read = |bytes: &[u8]| {
        let files = Files::default();
        files.put(Path::new(DIR).join(MANIFEST_FILE), bytes);
        files.put(Path::new(DIR).join(segment_file(SegmentId(1))), sample::small_segment());
        store(&(Arc::new(files) as Arc<dyn Disk>), &sample::upsert()).is_some()
    };
    let raw = read(bytes);
    read(&seal::sealed(bytes)) || raw
}

/// A page: the first byte chooses its type, two more the number of rows, two the length of a dictionary before it.
pub fn page(bytes: &[u8]) -> bool {
    let [kind, rows_low, rows_high, dictionary_low, dictionary_high, rest @ ..] = bytes else { return false };
    let types = page_types();
    let Some(data_type) = types.get(usize::from(*kind) % types.len()) else { return false };
    let rows = usize::from(u16::from_le_bytes([*rows_low, *rows_high])) % (crate::segment::PAGE_ROWS + 1);
    let dictionary_bytes = usize::from(u16::from_le_bytes([*dictionary_low, *dictionary_high])).min(rest.len());
    let (dictionary, page) = rest.split_at(dictionary_bytes);
    let dictionary = if dictionary.is_empty() { None } else { Dictionary::decode(dictionary, data_type).ok() };
    let _ = describe(page, rows);
    let wanted: Vec<u32> = (0..rows as u32).step_by(3).collect();
    let some = decode_page(page, data_type, rows, dictionary.as_ref(), Some(&wanted));
    let all = decode_page(page, data_type, rows, dictionary.as_ref(), None);
    if let (Ok(all), Ok(some)) = (&all, &some) {
        assert!(all.len() == rows && some.len() == wanted.len(), "a page of {rows} rows gave {}", all.len());
    }
    all.is_ok()
}

fn page_types() -> Vec<DataType> {
    let list = DataType::List(Arc::new(arrow::datatypes::Field::new("item", DataType::Int64, true)));
    vec![
        DataType::Int64,
        DataType::Utf8,
        DataType::Float64,
        DataType::Boolean,
        DataType::Decimal128(20, 3),
        DataType::UInt8,
        DataType::Float32,
        DataType::LargeBinary,
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::FixedSizeBinary(5),
        list,
    ]
}

fn serialised(rows: &RoaringBitmap) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing into memory cannot fail.
    let _ = rows.serialize_into(&mut bytes);
    bytes
}

/// The segment of a small store, what it was written for, and a disk that holds another form of it under that path.
#[cfg(test)]
pub(crate) fn small_segment(
    change: impl FnOnce(&[u8]) -> Vec<u8>,
) -> (Arc<dyn Disk>, std::path::PathBuf, Arc<TableSchema>) {
    let (files, path) = (Files::default(), Path::new(DIR).join(segment_file(SegmentId(1))));
    files.put(path.clone(), &change(sample::small_segment()));
    (Arc::new(files), path, sample::upsert())
}

fn is_whole(recovery: Recovery) -> bool {
    recovery.quarantined.is_empty()
}

/// Does with a directory all that a replica does. Gives what opening it found, if it could be opened.
fn store(disk: &Arc<dyn Disk>, schema: &Arc<TableSchema>) -> Option<Recovery> {
    let _ = examine_store(disk, Path::new(DIR), Some(schema.clone()), true);
    let options =
        StoreOptions { disk_reserve_bytes: 0, pool: Arc::new(PagePool::new(1 << 20)), ..StoreOptions::default() };
    let (store, recovery) = Store::open(disk.clone(), Path::new(DIR), schema.clone(), options, LogId(2), 9).ok()?;
    let columns: Vec<ColumnId> = schema.columns.iter().map(|column| column.id).collect();
    let compared = ColumnPredicate::Compare { column: ColumnId(3), op: CompareOp::Gt, value: Datum::Int(2) };
    for predicates in [Vec::new(), vec![compared]] {
        let spec = ScanSpec {
            predicates,
            coded: vec![ColumnId(2)],
            ..ScanSpec::of(TableId(1), PartitionId(1), 1, columns.clone())
        };
        // It ends at the first error.
        let _ = store.snapshot().scan(&spec).map(Iterator::count);
    }
    let _ = store.digest();
    let _ = store.pull(&PullCursor::default(), PULL_BYTES);
    let version = Version::new(Hlc(1 << 40), NodeId(1), 0);
    let write = Write { version, token: Some("t".into()), rows: Rows::Put(sample::batch(schema, 12)) };
    let _ = store.commit(vec![write], 0);
    let _ = store.flush();
    let _ = store.compact();
    Some(recovery)
}
