//! Scans whose reader keeps the first rows of an order and says where it stands.

use std::cmp::{Ordering, Reverse};
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use shoal_kernel::{
    ColumnId, ColumnPredicate, CompareOp, Datum, Frontier, FrontierSource, LogId, ScanOrder, ScanSpec, Slice,
    TableKind, TableSchema,
};
use shoal_storage::{Snapshot, Store, datum_at};

use crate::disk::MemoryDisk;
use crate::fixture::*;

/// Rows of a page.
const PAGE: i64 = 8192;

fn schema() -> Arc<TableSchema> {
    Arc::new(TableSchema::new(
        vec![
            column(1, "id", DataType::Int64, false),
            column(2, "rising", DataType::Int64, true),
            column(3, "mixed", DataType::Int64, true),
            column(4, "word", DataType::Utf8, true),
        ],
        TableKind::Upsert { primary_key: vec![ColumnId(1)] },
    ))
}

/// Rows in which `rising` follows the key and has NULLs in every other page, `mixed` follows nothing, and words repeat.
fn batch(ids: impl Iterator<Item = i64>, seed: i64) -> RecordBatch {
    let ids: Vec<i64> = ids.collect();
    let mixed = |id: &i64| (id + seed).wrapping_mul(6_364_136_223_846_793_005) >> 40;
    let rising = |id: &i64| (id / PAGE % 2 == 0 || id % 50 > 0).then_some(id / 3 + seed);
    let word = |id: &i64| (id % 9 > 0).then(|| format!("{}{}", "w".repeat(60), mixed(id) % 70));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids.clone())),
        Arc::new(Int64Array::from_iter(ids.iter().map(rising))),
        Arc::new(Int64Array::from_iter(ids.iter().map(|id| (id % 4 > 0).then(|| mixed(id) % 1_000)))),
        Arc::new(StringArray::from_iter(ids.iter().map(word))),
    ];
    RecordBatch::try_new(schema().arrow(), columns).unwrap()
}

/// The value of the column that is sorted by first, and the key, which decides between equals if there are ties.
type Row = (Datum, i64);

fn compare(order: &ScanOrder, one: &Row, other: &Row) -> Ordering {
    let values = match (&one.0, &other.0) {
        (Datum::Null, Datum::Null) => Ordering::Equal,
        (Datum::Null, _) if order.nulls_first => Ordering::Less,
        (Datum::Null, _) => Ordering::Greater,
        (_, Datum::Null) if order.nulls_first => Ordering::Greater,
        (_, Datum::Null) => Ordering::Less,
        (one, other) if order.descending => other.partial_cmp(one).unwrap(),
        (one, other) => one.partial_cmp(other).unwrap(),
    };
    values.then(if order.ties { one.1.cmp(&other.1) } else { Ordering::Equal })
}

/// The first rows of the order as a reader gets them that says where it stands after each batch, or never; with the number of
/// rows that it was given, and of pages that were passed over.
fn first_rows(
    snapshot: &Snapshot,
    spec: &ScanSpec,
    order: &ScanOrder,
    rows_max: usize,
    tells: bool,
) -> (Vec<Row>, usize, u64) {
    let stand = Arc::new(Mutex::new(None));
    let told = stand.clone();
    let mut scan = snapshot.scan(spec).unwrap().following(FrontierSource::new(move || told.lock().unwrap().clone()));
    let (mut kept, mut given): (Vec<Row>, usize) = (Vec::new(), 0);
    for batch in scan.by_ref() {
        let batch = batch.unwrap();
        given += batch.num_rows();
        let value = |column: usize, row| datum_at(batch.column(column), row).unwrap();
        for row in 0..batch.num_rows() {
            let Datum::Int(id) = value(1, row) else { panic!("no key") };
            kept.push((value(0, row), id));
        }
        kept.sort_by(|one, other| compare(order, one, other));
        kept.truncate(rows_max);
        if let Some((last, _)) = kept.get(rows_max - 1).filter(|_| tells) {
            // NULLs that come last say nothing: whatever has a value comes before them.
            *stand.lock().unwrap() = match last {
                Datum::Null if order.nulls_first => Some(Frontier::Null),
                Datum::Null => None,
                value => Some(Frontier::Value(value.clone())),
            };
        }
    }
    (kept, given, scan.pages_passed())
}

/// Every order of every column: with a frontier and without. Gives the pages that were passed over, by the order, for one row.
fn check(snapshot: &Snapshot) -> Vec<(ScanOrder, u64)> {
    let mut passed = Vec::new();
    for column in 1..=4 {
        for flags in 0..8 {
            let [descending, nulls_first, ties] = [1, 2, 4].map(|flag| flags & flag > 0);
            let order = ScanOrder { column: ColumnId(column), descending, nulls_first, ties };
            let bound =
                ColumnPredicate::Compare { column: ColumnId(1), op: CompareOp::Lt, value: Datum::Int(2 * PAGE) };
            for (rows_max, predicates) in [(1, vec![]), (300, vec![bound])] {
                let spec = ScanSpec { predicates, ..scan_all(&[column, 1]) };
                let ordered = ScanSpec { order: Some(order), ..spec.clone() };
                let (expected, ..) = first_rows(snapshot, &spec, &order, rows_max, false);
                let (found, _, pages) = first_rows(snapshot, &ordered, &order, rows_max, true);
                let values = |rows: &[Row]| rows.iter().map(|row| format!("{:?}", row.0)).collect::<Vec<_>>();
                assert_eq!(values(&found), values(&expected), "{order:?}");
                assert!(!order.ties || found == expected, "{order:?}");
                if rows_max == 1 {
                    passed.push((order, pages));
                }
            }
        }
    }
    passed
}

fn passed(passed: &[(ScanOrder, u64)], column: u32, descending: bool, nulls_first: bool) -> u64 {
    let of = |order: &ScanOrder| {
        (order.column.0, order.descending, order.nulls_first, order.ties) == (column, descending, nulls_first, false)
    };
    passed.iter().find(|(order, _)| of(order)).unwrap().1
}

#[test]
fn pages_behind_the_frontier_are_passed_over_and_nothing_else() {
    let disk = MemoryDisk::default();
    let (store, _) = open_with(&disk.shared(), &schema(), options(), 7).unwrap();
    for part in 0..2 {
        commit(&store, put(part as u64 + 1, batch(part * 2 * PAGE..(part + 1) * 2 * PAGE, 0)));
        store.flush().unwrap();
    }
    let told = check(&store.snapshot());
    // Of four pages in the order of the key one is read, whichever end is wanted.
    for (column, descending, nulls_first, pages) in [
        (1, true, false, 3),
        (1, false, false, 3),
        (1, true, true, 3),
        (2, true, false, 3),
        (2, false, false, 3),
        // The first NULL is the first row: nothing comes before it.
        (2, false, true, 3),
        (3, true, true, 3),
    ] {
        assert_eq!(passed(&told, column, descending, nulls_first), pages, "{column} {descending} {nulls_first}");
    }
    // Rows that were replaced or deleted, rows in memory, tombstones.
    commit(&store, put(8, batch((3 * PAGE..4 * PAGE).step_by(3), -9_000)));
    commit(&store, delete(9, keys(&[0, 4 * PAGE - 1])));
    check(&store.snapshot());
    store.flush().unwrap();
    check(&store.snapshot());
    store.optimize(&|| true).unwrap();
    let told = check(&store.snapshot());
    assert_eq!(passed(&told, 1, true, false), 3);

    store.split(&halves_at(&store, &Datum::Int(PAGE + 7).encode(), ["p2", "p3"])).unwrap();
    for dir in ["/data/p2", "/data/p3"] {
        let opened = Store::open(disk.shared(), Path::new(dir), schema(), options(), LogId(7), 9);
        check(&opened.unwrap().0.snapshot());
    }
}

#[test]
fn rows_behind_the_frontier_are_left_out_of_pages_that_are_read() {
    let (store, _) = open_with(&MemoryDisk::default().shared(), &schema(), options(), 7).unwrap();
    commit(&store, put(1, batch(0..4 * PAGE, 0)));
    store.flush().unwrap();
    let order = ScanOrder { column: ColumnId(3), descending: true, nulls_first: false, ties: false };
    let spec = ScanSpec { order: Some(order), ..scan_all(&[3, 1]) };
    let (_, all, _) = first_rows(&store.snapshot(), &spec, &order, 500, false);
    let (_, given, _) = first_rows(&store.snapshot(), &spec, &order, 500, true);
    assert_eq!(all as i64, 4 * PAGE);
    // After the first page, few rows are better than the 500 best so far.
    assert!(given as i64 <= PAGE + 3 * 1_000, "{given} rows");
    // Each slice has its own.
    let sliced = Slice::all(3).map(|slice| {
        let spec = ScanSpec { slice, ..spec.clone() };
        first_rows(&store.snapshot(), &spec, &order, 5, true).0
    });
    let mut values: Vec<i64> =
        sliced.flatten().map(|(value, _)| if let Datum::Int(n) = value { n } else { 0 }).collect();
    values.sort_by_key(|value| Reverse(*value));
    let (expected, ..) = first_rows(&store.snapshot(), &scan_all(&[3, 1]), &order, 5, false);
    let expected: Vec<Datum> = expected.into_iter().map(|(value, _)| value).collect();
    assert_eq!(values[..5].iter().map(|value| Datum::Int(*value)).collect::<Vec<_>>(), expected);
}
