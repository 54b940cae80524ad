//! Schemas that change while rows are there, and while they come.

use std::path::Path;
use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::types::{Float64Type, Int64Type};
use arrow::array::{
    Array, ArrayRef, Date32Array, Float64Array, Int64Array, RecordBatch, StringArray, Time64MicrosecondArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, TimeUnit};
use arrow::util::display::array_value_to_string;
use shoal_kernel::{
    ColumnId, ColumnPredicate, CompareOp, Datum, ErrorCode, LogId, SchemaChange, TableKind, TableSchema,
};
use shoal_storage::{CompactionProgress, Digest, Finding, Severity, Store, StoreOptions, examine_store};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture;
use crate::fixture::*;

fn changed(schema: &Arc<TableSchema>, changes: &[SchemaChange]) -> Arc<TableSchema> {
    let next = changes.iter().fold(schema.as_ref().clone(), |schema, change| schema.changed(change).unwrap());
    Arc::new(TableSchema { version: schema.version + 1, ..next })
}

fn add(id: u32, name: &str, data_type: DataType) -> SchemaChange {
    SchemaChange::Add(fixture::column(id, name, data_type, true))
}

fn widen(column: u32, into: u32, data_type: DataType) -> SchemaChange {
    SchemaChange::Widen { column: ColumnId(column), into: ColumnId(into), data_type }
}

/// The same rows, each column named by its number only.
fn numbered(schema: &TableSchema, batch: &RecordBatch) -> RecordBatch {
    RecordBatch::try_new(schema.numbered(), batch.columns().to_vec()).unwrap()
}

fn column_of(store: &Store, id: u32, predicates: Vec<ColumnPredicate>) -> Vec<Option<String>> {
    let spec = shoal_kernel::ScanSpec { predicates, ..scan_all(&[id]) };
    let mut values = Vec::new();
    for batch in store.snapshot().scan(&spec).unwrap() {
        let text = arrow::compute::cast(batch.unwrap().column(0), &DataType::Utf8).unwrap();
        values.extend(text.as_string::<i32>().iter().map(|value| value.map(str::to_owned)));
    }
    values.sort();
    values
}

fn some(values: &[&str]) -> Vec<Option<String>> {
    values.iter().map(|value| Some((*value).to_owned())).collect()
}

/// Of versions, and of contents.
fn digests(store: &Store) -> [Digest; 2] {
    [store.digest().unwrap(), store.content_digest().unwrap()]
}

/// All that a deep look finds, by that schema.
fn examined(disk: &MemoryDisk, schema: Option<&Arc<TableSchema>>) -> Vec<Finding> {
    examine_store(&disk.shared(), Path::new(DIR), schema.cloned(), true).unwrap().findings
}

/// In memory, in the log and in segments, before and after a restart, a column is what it was widened to.
#[test]
fn a_widened_column_shows_old_and_new_values() {
    let disk = MemoryDisk::default();
    let old = upsert_schema();
    let (store, _) = open(&disk.shared());
    commit(&store, put(1, rows(&[(1, None, 10)])));
    store.flush().unwrap();
    commit(&store, put(2, rows(&[(2, None, 20)])));
    let new = changed(&old, &[widen(3, 4, DataType::Float64)]);
    let before = store.snapshot();
    store.adopt(new.clone()).unwrap();
    store.adopt(new.clone()).unwrap();

    let floats: ArrayRef = Arc::new(Float64Array::from(vec![15.5]));
    let base = rows(&[(3, None, 0)]);
    let batch =
        RecordBatch::try_new(new.arrow(), vec![base.column(0).clone(), base.column(1).clone(), floats]).unwrap();
    commit(&store, put(3, batch));
    // Made for the older schema, and on its way until now.
    commit(&store, put(4, numbered(&old, &rows(&[(4, None, 40)]))));
    assert_eq!(read(&before), table(&[(1, None, 10), (2, None, 20)]));

    let check = |store: &Store| {
        assert_eq!(column_of(store, 4, vec![]), some(&["10.0", "15.5", "20.0", "40.0"]));
        let above = |value| {
            vec![ColumnPredicate::Compare { column: ColumnId(4), op: CompareOp::Gt, value: Datum::Float(value) }]
        };
        assert_eq!(column_of(store, 4, above(15.0)), some(&["15.5", "20.0", "40.0"]));
        assert_eq!(column_of(store, 4, above(39.5)), some(&["40.0"]));
        assert_eq!(column_of(store, 4, vec![ColumnPredicate::IsNull { column: ColumnId(4) }]), []);
        let stale = store.snapshot().scan(&scan_all(&[3])).map(drop).unwrap_err();
        assert_eq!(stale.code(), ErrorCode::SchemaChanged);
    };
    check(&store);
    let digest = digests(&store);
    for loss in [Loss::Everything, Loss::Nothing] {
        let disk = disk.restart(loss);
        // Its catalog may be behind what the directory knows.
        let (store, _) = open(&disk.shared());
        assert_eq!(store.schema_version(), 2);
        check(&store);
        assert_eq!(digests(&store), digest);
    }
    store.flush().unwrap();
    check(&store);
    while store.compact().unwrap() {}
    store.optimize(&|| true).unwrap();
    check(&store);
    assert_eq!(digests(&store), digest);
    assert_eq!(store.verify().unwrap(), []);
}

/// Text from a number is what the number was, not what it had become in between.
#[test]
fn widened_twice() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    let first = upsert_schema();
    commit(&store, put(1, rows(&[(1, None, i64::MAX)])));
    store.flush().unwrap();
    let second = changed(&first, &[widen(3, 4, DataType::Float64)]);
    let third = changed(&second, &[widen(4, 5, DataType::Utf8)]);
    store.adopt(third.clone()).unwrap();
    let base = rows(&[(2, Some("x"), 0)]);
    let text: ArrayRef = Arc::new(StringArray::from(vec!["word"]));
    let columns = vec![base.column(0).clone(), base.column(1).clone(), text];
    commit(&store, put(2, RecordBatch::try_new(third.arrow(), columns).unwrap()));
    assert_eq!(column_of(&store, 5, vec![]), some(&["9223372036854775807", "word"]));
    let like = ColumnPredicate::Like { column: ColumnId(5), pattern: "9%".into(), negated: false, ignore_case: false };
    assert_eq!(column_of(&store, 5, vec![like]), some(&["9223372036854775807"]));
}

#[test]
fn rows_name_their_columns_by_number() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    let old = upsert_schema();
    let renamed = SchemaChange::Rename { column: ColumnId(2), to: "title".into() };
    let new = changed(&old, &[renamed, add(4, "name", DataType::Utf8)]);

    // Ahead of this store: it has not heard of the column, and loses nothing by saying so.
    let base = rows(&[(1, Some("t"), 1)]);
    let columns = base.columns().iter().cloned().chain([Arc::new(StringArray::from(vec!["n"])) as ArrayRef]).collect();
    let ahead = RecordBatch::try_new(new.numbered(), columns).unwrap();
    let refused = store.commit(vec![put(1, ahead.clone())], 0).unwrap().remove(0).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Moved);

    store.adopt(new.clone()).unwrap();
    commit(&store, put(1, ahead));
    commit(&store, put(2, numbered(&old, &rows(&[(2, Some("old"), 2)]))));
    assert_eq!(column_of(&store, 2, vec![]), some(&["old", "t"]));
    assert_eq!(column_of(&store, 4, vec![]), [None, Some("n".to_owned())]);

    // A snapshot can be seen under a schema that its store has not heard of.
    let newer = changed(&new, &[add(5, "later", DataType::Int64), widen(3, 6, DataType::Utf8)]);
    let snapshot = store.snapshot().under(newer).unwrap();
    let batches: Vec<_> = snapshot.scan(&scan_all(&[5, 6])).unwrap().map(Result::unwrap).collect();
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 2);
    assert!(batches.iter().all(|batch| batch.column(0).null_count() == batch.num_rows()));
    assert!(batches.iter().all(|batch| batch.column(1).null_count() == 0));
}

/// What tells events apart does not change with the schema: a copy that is made after a column was dropped has as many rows as
/// the original, and rows that come a second time are still known.
#[test]
fn events_keep_their_identity() {
    let (one, two) = (MemoryDisk::default(), MemoryDisk::default());
    let schema = event_schema();
    let few = || StoreOptions { compaction_fan_in: 2, ..options() };
    let (first, _) = open_with(&one.shared(), &schema, few(), 7).unwrap();
    let sent: Vec<(i64, &str, i64)> = (0..50).map(|n| (n / 10, "d", n)).collect();
    for (time, part) in sent.chunks(25).enumerate() {
        commit(&first, put(time as u64 + 1, events(part)));
        first.flush().unwrap();
    }
    // Differs from its neighbours in the column that goes.
    let new = changed(&schema, &[SchemaChange::Drop(ColumnId(3)), add(4, "word", DataType::Utf8)]);
    first.adopt(new.clone()).unwrap();
    assert_eq!(first.snapshot().rows(), 50);
    let gone = first.snapshot().scan(&scan_all(&[3])).map(drop).unwrap_err();
    assert_eq!(gone.code(), ErrorCode::SchemaChanged);

    let (second, _) = open_with(&two.shared(), &new, few(), 8).unwrap();
    copy(&first, &second);
    copy(&second, &first);
    assert_eq!((first.snapshot().rows(), second.snapshot().rows()), (50, 50));
    assert_eq!(digests(&first), digests(&second));
    // A resend of a writer that has not heard of the change.
    let again = commit(&first, put(9, numbered(&schema, &events(&sent))));
    assert_eq!(again.rows, 50);
    assert_eq!(first.snapshot().rows(), 50);
    while first.compact().unwrap() {}
    first.optimize(&|| true).unwrap();
    second.flush().unwrap();
    assert_eq!(first.status().segments, 1, "segments of both schemas are merged");
    assert_eq!(digests(&first), digests(&second));
    let (reopened, _) = open_with(&one.restart(Loss::Everything).shared(), &schema, few(), 9).unwrap();
    assert_eq!(digests(&reopened), digests(&second));
}

/// An integer is the same event whatever its column's width.
#[test]
fn a_wider_integer_is_the_same_event() {
    let disk = MemoryDisk::default();
    let narrow = fixture::column(3, "n", DataType::Int32, true);
    let mut columns = event_schema().columns.clone();
    columns[2] = narrow;
    let old = Arc::new(TableSchema::new(columns, event_schema().kind.clone()));
    let (store, _) = open_with(&disk.shared(), &old, options(), 7).unwrap();
    let wide = events(&[(1, "d", 7)]);
    let cast = arrow::compute::cast(wide.column(2), &DataType::Int32).unwrap();
    let slim = RecordBatch::try_new(old.arrow(), vec![wide.column(0).clone(), wide.column(1).clone(), cast]).unwrap();
    commit(&store, put(1, slim));
    store.flush().unwrap();
    store.adopt(changed(&old, &[widen(3, 4, DataType::Int64)])).unwrap();
    commit(&store, put(2, wide));
    assert_eq!(store.snapshot().rows(), 1);
    assert_eq!(column_of(&store, 4, vec![]), some(&["7"]));
}

/// A power cut at any moment of the change leaves one schema or the other, and every row.
#[test]
fn a_crash_while_the_schema_changes() {
    let old = upsert_schema();
    let new = changed(&old, &[widen(3, 4, DataType::Float64), add(5, "extra", DataType::Utf8)]);
    for operation in 0..12 {
        for loss in [Loss::Everything, Loss::Nothing] {
            let disk = MemoryDisk::default();
            let (store, _) = open(&disk.shared());
            commit(&store, put(1, rows(&[(1, None, 10)])));
            disk.cut_power_at(disk.operations() + operation);
            let adopted = store.adopt(new.clone());
            let disk = disk.restart(loss);
            let (store, recovery) = open(&disk.shared());
            assert!(!recovery.in_doubt);
            let version = store.schema_version();
            assert!(adopted.is_err() || version == 2, "operation {operation}");
            let n = if version == 2 { 4 } else { 3 };
            let batches: Vec<_> = store.snapshot().scan(&scan_all(&[1, n])).unwrap().map(Result::unwrap).collect();
            assert_eq!(batches[0].column(0).as_primitive::<Int64Type>().value(0), 1);
            match version {
                2 => assert_eq!(batches[0].column(1).as_primitive::<Float64Type>().value(0), 10.0),
                _ => assert_eq!(batches[0].column(1).as_primitive::<Int64Type>().value(0), 10),
            }
            store.adopt(new.clone()).unwrap();
            commit(&store, put(2, numbered(&old, &rows(&[(2, None, 20)]))));
            assert_eq!(column_of(&store, 4, vec![]), some(&["10.0", "20.0"]));
        }
    }
}

#[test]
fn a_schema_of_another_table_is_refused() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    let stranger = TableSchema { version: 5, ..event_schema().as_ref().clone() };
    assert_eq!(store.adopt(Arc::new(stranger)).unwrap_err().code(), ErrorCode::Unsupported);
    assert_eq!(store.schema_version(), 1);
}

/// Whichever schema a deep look is given, the directory knows the newest.
#[test]
fn an_altered_table_is_examined() {
    for upserts in [true, false] {
        let disk = MemoryDisk::default();
        let old = if upserts { upsert_schema() } else { event_schema() };
        let (dropped, kept) = if upserts { (2, 3) } else { (3, 5) };
        let batch = |first: i64| match upserts {
            true => rows(&(first..first + 50).map(|n| (n % 70, Some("text"), n)).collect::<Vec<_>>()),
            false => events(&(first..first + 50).map(|n| (n / 10, "d", n)).collect::<Vec<_>>()),
        };
        let few = || StoreOptions { compaction_fan_in: 2, ..options() };
        let (store, _) = open_with(&disk.shared(), &old, few(), 7).unwrap();
        commit(&store, put(1, batch(0)));
        store.flush().unwrap();
        commit(&store, put(2, batch(40)));
        let wide = changed(&old, &[add(4, "extra", DataType::Utf8), widen(3, 5, DataType::Float64)]);
        store.adopt(wide.clone()).unwrap();
        commit(&store, put(3, numbered(&old, &batch(60))));
        store.flush().unwrap();
        commit(&store, put(4, numbered(&old, &batch(100))));
        let mut drops = vec![SchemaChange::Drop(ColumnId(4))];
        drops.push(SchemaChange::Drop(ColumnId(if upserts { dropped } else { kept })));
        let new = changed(&wide, &drops);
        store.adopt(new.clone()).unwrap();
        commit(&store, put(5, numbered(&old, &batch(140))));
        let seen = (store.snapshot().rows(), digests(&store));
        drop(store);
        for schema in [None, Some(&old), Some(&wide), Some(&new)] {
            assert_eq!(examined(&disk.restart(Loss::Nothing), schema), [], "{upserts}");
        }
        let (store, _) = open_with(&disk.shared(), &old, few(), 7).unwrap();
        store.flush().unwrap();
        while store.compact().unwrap() {}
        store.optimize(&|| true).unwrap();
        assert_eq!((store.snapshot().rows(), digests(&store)), seen);
        drop(store);
        for schema in [None, Some(&old), Some(&new)] {
            assert_eq!(examined(&disk.restart(Loss::Nothing), schema), [], "{upserts}");
        }
    }
}

#[test]
fn every_flipped_byte_of_the_schema_is_seen() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    commit(&store, put(1, rows(&[(1, None, 10)])));
    store.adopt(changed(&upsert_schema(), &[widen(3, 4, DataType::Float64)])).unwrap();
    drop(store);
    let path = Path::new(DIR).join("SCHEMA");
    for at in 0..disk.bytes(&path).len() {
        let flipped = disk.restart(Loss::Nothing);
        flipped.tamper(&path, |bytes| bytes[at] ^= 0x10);
        let found = examined(&flipped, Some(&upsert_schema()));
        let is_named = |finding: &Finding| finding.severity == Severity::Damage && finding.problem.file == "SCHEMA";
        assert!(found.iter().any(is_named), "byte {at}: {found:?}");
        let refused = open_with(&flipped.shared(), &upsert_schema(), options(), 8).err().unwrap();
        assert_eq!(refused.code(), ErrorCode::Corruption, "byte {at}");
    }
}

/// What goes and what comes is told by the schema of now, whichever it was written under.
#[test]
fn changes_are_told_by_the_present_schema() {
    for flushes in [false, true] {
        let disk = MemoryDisk::default();
        let old = upsert_schema();
        let (store, _) = open(&disk.shared());
        commit(&store, put(1, rows(&[(1, None, 10), (2, None, 20)])));
        store.flush().unwrap();
        store.keep_changes_from(Some(1)).unwrap();
        commit(&store, put(2, rows(&[(1, None, 11)])));
        store.adopt(changed(&old, &[widen(3, 4, DataType::Float64), SchemaChange::Drop(ColumnId(2))])).unwrap();
        commit(&store, put(3, numbered(&old, &rows(&[(2, None, 21), (3, None, 30)]))));
        if flushes {
            store.flush().unwrap();
            store.optimize(&|| true).unwrap();
        }
        let mut told = Vec::new();
        for changed in store.changes(LogId(7), 1, 3).unwrap() {
            let changed = changed.unwrap();
            let names: Vec<&str> =
                changed.rows.schema_ref().fields().iter().map(|field| field.name().as_str()).collect();
            assert_eq!(names, ["id", "n"]);
            let (id, n) = (changed.rows.column(0).as_primitive::<Int64Type>(), changed.rows.column(1));
            let n = n.as_primitive::<Float64Type>();
            told.extend(changed.weights.iter().enumerate().map(|(row, weight)| (id.value(row), *weight, n.value(row))));
        }
        told.sort_by(|one, other| one.partial_cmp(other).unwrap());
        assert_eq!(told, [(1, -1, 10.0), (1, 1, 11.0), (2, -1, 20.0), (2, 1, 21.0), (3, 1, 30.0)], "{flushes}");
    }
}

/// A log that is synced late is durable up to the change once the change is.
#[test]
fn a_late_log_is_synced_before_the_schema_changes() {
    let disk = MemoryDisk::default();
    let old = upsert_schema();
    let late = || StoreOptions { sync_commits: false, ..options() };
    let (store, _) = open_with(&disk.shared(), &old, late(), 7).unwrap();
    commit(&store, put(1, rows(&[(1, None, 10)])));
    store.adopt(changed(&old, &[widen(3, 4, DataType::Float64)])).unwrap();
    commit(&store, put(2, numbered(&old, &rows(&[(2, None, 20)]))));
    assert_eq!(column_of(&store, 4, vec![]), some(&["10.0", "20.0"]));
    let (store, recovery) = open_with(&disk.restart(Loss::Everything).shared(), &old, late(), 8).unwrap();
    assert!(recovery.unclean && !recovery.in_doubt);
    assert_eq!((recovery.durable, store.schema_version()), (1, 2));
    assert_eq!(column_of(&store, 4, vec![]), some(&["10.0"]));
}

/// What is being merged while the schema changes ends by the layout that it began with.
#[test]
fn the_schema_changes_in_the_middle_of_a_merge() {
    let disk = MemoryDisk::default();
    let old = upsert_schema();
    let few = || StoreOptions { compaction_fan_in: 2, ..options() };
    let (store, _) = open_with(&disk.shared(), &old, few(), 7).unwrap();
    for time in 0..2 {
        let many: Vec<(i64, Option<&str>, i64)> = (0..9_000).map(|n| (n * 2 + time, Some("x"), n)).collect();
        commit(&store, put(time as u64 + 1, rows(&many)));
        store.flush().unwrap();
    }
    assert_eq!(store.compact_step(1).unwrap().progress, CompactionProgress::Running);
    let new = changed(&old, &[widen(3, 4, DataType::Utf8), SchemaChange::Drop(ColumnId(2))]);
    store.adopt(new.clone()).unwrap();
    commit(&store, put(9, numbered(&old, &rows(&[(5, None, -1)]))));
    store.flush().unwrap();
    let digest = digests(&store);
    while store.compact().unwrap() {}
    assert_eq!((digests(&store), store.snapshot().rows()), (digest, 18_000));
    store.optimize(&|| true).unwrap();
    assert_eq!((store.status().segments, digests(&store)), (1, digest));
    let values = column_of(&store, 4, vec![]);
    assert_eq!((values.len(), values[0].as_deref(), values[1].as_deref()), (18_000, Some("-1"), Some("0")));
    assert_eq!(store.verify().unwrap(), []);
    drop(store);
    assert_eq!(examined(&disk, None), []);
}

/// Rows of a writer that has heard of a dropped column sooner than this store: they are none the worse for it.
#[test]
fn rows_without_a_column_that_was_dropped_elsewhere_come_again() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    let old = upsert_schema();
    let new = changed(&old, &[SchemaChange::Drop(ColumnId(3))]);
    let all = rows(&[(1, Some("x"), 0)]);
    let batch = RecordBatch::try_new(new.numbered(), all.columns()[..2].to_vec()).unwrap();
    let refused = store.commit(vec![put(1, batch.clone())], 0).unwrap().remove(0).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Moved, "{refused}");
    // By name, nobody else can have meant it so.
    let unnumbered = all.project(&[0, 1]).unwrap();
    let refused = store.commit(vec![put(1, unnumbered)], 0).unwrap().remove(0).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::InvalidRows);
    store.adopt(new).unwrap();
    assert_eq!(commit(&store, put(1, batch)).rows, 1);
}

/// A resend of the same bytes is the same write, although the store has forgotten one of their columns meanwhile.
#[test]
fn a_resend_is_known_after_a_column_was_dropped() {
    {
        let name = "x";
        let disk = MemoryDisk::default();
        let (store, _) = open(&disk.shared());
        let old = upsert_schema();
        let write = |n| with_token(put(1, numbered(&old, &rows(&[(1, Some(name), n)]))), "token");
        commit(&store, write(7));
        store.adopt(changed(&old, &[SchemaChange::Drop(ColumnId(3))])).unwrap();
        assert!(commit(&store, write(7)).duplicate);
        let other = store.commit(vec![write(8)], 0).unwrap().remove(0).unwrap_err();
        assert_eq!(other.code(), ErrorCode::TokenConflict);
    }
}

/// A value beyond every calendar costs no reader the column.
#[test]
fn extremes_are_converted_too() {
    let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
    let cases: [(ArrayRef, DataType, [&str; 2]); 5] = [
        (Arc::new(Date32Array::from(vec![i32::MAX, 0])), micros, ["0", "9223372036854775807"]),
        (Arc::new(Date32Array::from(vec![i32::MAX, 0])), DataType::Utf8, ["1970-01-01", "2147483647"]),
        (
            Arc::new(TimestampMicrosecondArray::from(vec![i64::MIN, 0])),
            DataType::Utf8,
            ["-9223372036854775808", "1970-01-01T00:00:00"],
        ),
        (
            Arc::new(TimestampMicrosecondArray::from(vec![i64::MAX, 0]).with_timezone("+00:00")),
            DataType::Utf8,
            ["1970-01-01T00:00:00Z", "9223372036854775807"],
        ),
        (Arc::new(Time64MicrosecondArray::from(vec![-1, 0])), DataType::Utf8, ["-1", "00:00:00"]),
    ];
    for (values, wide, expected) in cases {
        let (narrow, rows) = (values.data_type().clone(), values.len() as i64);
        let columns =
            vec![fixture::column(1, "id", DataType::Int64, false), fixture::column(2, "v", narrow.clone(), false)];
        let old = Arc::new(TableSchema::new(columns, TableKind::Upsert { primary_key: vec![ColumnId(1)] }));
        let disk = MemoryDisk::default();
        let (store, _) = open_with(&disk.shared(), &old, options(), 7).unwrap();
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        commit(&store, put(1, RecordBatch::try_new(old.arrow(), vec![ids, values]).unwrap()));
        store.adopt(changed(&old, &[widen(2, 3, wide.clone())])).unwrap();
        for _ in 0..2 {
            let mut read = Vec::new();
            for batch in store.snapshot().scan(&scan_all(&[3])).unwrap() {
                let column = batch.unwrap().column(0).clone();
                let shown =
                    if wide.is_temporal() { arrow::compute::cast(&column, &DataType::Int64).unwrap() } else { column };
                read.extend((0..shown.len()).map(|row| array_value_to_string(&shown, row).unwrap()));
            }
            read.sort();
            assert_eq!(read, expected, "{narrow} as {wide}");
            assert_eq!(column_of_nulls(&store, 3), 0);
            store.flush().unwrap();
        }
    }
}

/// Rows that a condition finds to be NULL.
fn column_of_nulls(store: &Store, id: u32) -> usize {
    let predicates = vec![ColumnPredicate::IsNull { column: ColumnId(id) }];
    let spec = shoal_kernel::ScanSpec { predicates, ..scan_all(&[id]) };
    store.snapshot().scan(&spec).unwrap().map(|batch| batch.unwrap().num_rows()).sum()
}

/// Rows that are to be written back as a whole are not read under a newer schema: its columns would be lost.
#[test]
fn rows_to_be_written_back_are_read_under_their_own_schema() {
    let disk = MemoryDisk::default();
    let old = upsert_schema();
    let (store, _) = open(&disk.shared());
    commit(&store, put(1, rows(&[(1, None, 10)])));
    let before = store.snapshot();
    store.adopt(changed(&old, &[widen(3, 4, DataType::Float64)])).unwrap();
    let spec = shoal_kernel::ScanSpec { schema_exact: true, ..scan_all(&[1, 2]) };
    assert!(before.scan(&spec).is_ok());
    let refused = store.snapshot().scan(&spec).map(drop).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::SchemaChanged);
    let newer = shoal_kernel::ScanSpec { schema_version: 2, ..spec };
    assert!(store.snapshot().scan(&newer).is_ok());
}
