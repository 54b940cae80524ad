//! Scans that want only the rows at the ends of the key's order.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::types::Int64Type;
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use shoal_kernel::{
    ColumnId, ColumnPredicate, CompareOp, Datum, KeyEnds, ScanSpec, SchemaChange, Slice, TableKind, TableSchema,
};
use shoal_storage::Snapshot;

use crate::disk::MemoryDisk;
use crate::fixture::*;

type Points = BTreeMap<(String, i64), i64>;

const KINDS: [(bool, bool); 3] = [(true, false), (false, true), (true, true)];

/// Points of series: a name, a time, and a value.
fn series_schema() -> Arc<TableSchema> {
    Arc::new(TableSchema::new(
        vec![
            column(1, "name", DataType::Utf8, false),
            column(2, "time", DataType::Int64, false),
            column(3, "value", DataType::Int64, true),
        ],
        TableKind::Upsert { primary_key: vec![ColumnId(1), ColumnId(2)] },
    ))
}

fn points(names: &[&str], times: std::ops::Range<i64>, value: i64) -> RecordBatch {
    let all: Vec<(&str, i64)> = times.flat_map(|time| names.iter().map(move |name| (*name, time))).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(all.iter().map(|(name, _)| *name))),
        Arc::new(Int64Array::from_iter_values(all.iter().map(|(_, time)| *time))),
        Arc::new(Int64Array::from_iter_values(all.iter().map(|_| value))),
    ];
    RecordBatch::try_new(series_schema().arrow(), columns).unwrap()
}

fn read_points(snapshot: &Snapshot, spec: &ScanSpec) -> Points {
    let mut points = Points::new();
    for batch in snapshot.scan(spec).unwrap() {
        let batch = batch.unwrap();
        let (times, values) =
            (batch.column(1).as_primitive::<Int64Type>(), batch.column(2).as_primitive::<Int64Type>());
        for (row, name) in batch.column(0).as_string::<i32>().iter().enumerate() {
            let key = (name.unwrap().to_owned(), times.value(row));
            assert_eq!(points.insert(key.clone(), values.value(row)), None, "{key:?} twice");
        }
    }
    points
}

/// The rows that matter, by definition.
fn ends_of(all: &Points, ends: KeyEnds) -> Points {
    let group = |(name, time): &(String, i64)| match ends.columns {
        0 => (String::new(), 0),
        1 => (name.clone(), 0),
        _ => (name.clone(), *time),
    };
    let mut groups: BTreeMap<(String, i64), Points> = BTreeMap::new();
    for (key, value) in all {
        groups.entry(group(key)).or_default().insert(key.clone(), *value);
    }
    let ends = groups.values().flat_map(|rows| {
        let first = ends.first.then(|| rows.first_key_value()).flatten();
        first.into_iter().chain(ends.last.then(|| rows.last_key_value()).flatten())
    });
    ends.map(|(key, value)| (key.clone(), *value)).collect()
}

/// Whatever is left out, the ends are there; and what is there is a row that satisfies the conditions.
fn check(snapshot: &Snapshot) {
    let limits = [None, Some((CompareOp::Lt, 3_900)), Some((CompareOp::GtEq, 3_990))];
    for limit in limits {
        let condition =
            limit.map(|(op, time)| ColumnPredicate::Compare { column: ColumnId(2), op, value: Datum::Int(time) });
        let plain = ScanSpec { predicates: condition.into_iter().collect(), ..scan_all(&[1, 2, 3]) };
        let all = read_points(snapshot, &plain);
        for columns in 0..=2 {
            for (first, last) in KINDS {
                let ends = KeyEnds { columns, first, last };
                let expected = ends_of(&all, ends);
                for of in [1, 3] {
                    let slices = Slice::all(of)
                        .map(|slice| read_points(snapshot, &ScanSpec { slice, ends: Some(ends), ..plain.clone() }));
                    let found: Points = slices.flatten().collect();
                    assert!(found.iter().all(|(key, value)| all.get(key) == Some(value)), "{ends:?} {limit:?}");
                    assert!(expected.iter().all(|(key, value)| found.get(key) == Some(value)), "{ends:?} {limit:?}");
                }
            }
        }
    }
}

#[test]
fn the_ends_of_series_are_found_and_little_else() {
    let disk = MemoryDisk::default().shared();
    let (store, _) = open_with(&disk, &series_schema(), options(), 7).unwrap();
    commit(&store, put(1, points(&["a", "b", "c"], 0..4_000, 1)));
    store.flush().unwrap();
    check(&store.snapshot());
    // Of one series the end is overwritten, of another it is deleted.
    commit(&store, put(2, points(&["a"], 3_990..4_010, 2)));
    let end = points(&["c"], 3_950..4_000, 0).project(&[0, 1]).unwrap();
    commit(&store, delete(3, end));
    store.flush().unwrap();
    commit(&store, put(4, points(&["d", "a"], 2_000..2_010, 4)));
    check(&store.snapshot());
    // Segments of every version of the schema lie in the order of the key.
    let renamed = SchemaChange::Rename { column: ColumnId(1), to: "series".into() };
    let added = SchemaChange::Add(column(4, "name", DataType::Utf8, true));
    let schema = series_schema().changed(&renamed).and_then(|schema| schema.changed(&added)).unwrap();
    store.adopt(Arc::new(TableSchema { version: 2, ..schema })).unwrap();
    let more = points(&["d", "b"], 2_005..2_010, 5);
    commit(&store, put(5, RecordBatch::try_new(series_schema().numbered(), more.columns().to_vec()).unwrap()));
    store.flush().unwrap();
    check(&store.snapshot());
    store.optimize(&|| true).unwrap();
    let snapshot = store.snapshot();
    check(&snapshot);

    let found = |columns, first, last| {
        let ends = Some(KeyEnds { columns, first, last });
        read_points(&snapshot, &ScanSpec { ends, ..scan_all(&[1, 2, 3]) })
    };
    let last: Vec<(String, i64)> = found(0, false, true).into_keys().collect();
    assert_eq!(last, [("d".to_owned(), 2_009)], "one row of one segment");
    let first: Vec<(String, i64)> = found(0, true, false).into_keys().collect();
    assert_eq!(first, [("a".to_owned(), 0)]);
    // Four series, and pages that end within one.
    assert!(found(1, false, true).len() <= 6);
    assert!(found(1, true, true).len() <= 12);
}
