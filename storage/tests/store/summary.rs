//! Measures that statistics tell of some of the rows, held against the rows themselves.

use std::cmp::Ordering;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int32Array, Int64Array,
    RecordBatch, StringArray, UInt64Array,
};
use arrow::datatypes::DataType;
use shoal_kernel::{
    ColumnId, ColumnPredicate, CompareOp, Datum, LogId, Measure, ScanSpec, SchemaChange, Slice, Summary, SummaryPart,
    TableKind, TableSchema,
};
use shoal_storage::{Snapshot, Store, datum_at};

use crate::disk::MemoryDisk;
use crate::fixture::*;

/// Rows of a page.
const PAGE: i64 = 8192;

/// Where a value stands among others: floats have NaN last, and the two zeros apart.
fn order(one: &Datum, other: &Datum) -> Ordering {
    match (one, other) {
        (Datum::Float(one), Datum::Float(other)) => one.total_cmp(other),
        _ => one.partial_cmp(other).unwrap(),
    }
}

/// What a measure comes to over values of its column (anything, for rows).
fn fold(measure: &Measure, values: &[Datum]) -> Datum {
    let given = || values.iter().filter(|value| **value != Datum::Null);
    match measure {
        Measure::Rows => Datum::Int(values.len() as i64),
        Measure::Values(_) => Datum::Int(given().count() as i64),
        Measure::Sum(_) => given().fold(Datum::Null, |sum, value| add(&sum, value)),
        Measure::Least(_) => given().min_by(|one, other| order(one, other)).cloned().unwrap_or(Datum::Null),
        Measure::Greatest(_) => given().max_by(|one, other| order(one, other)).cloned().unwrap_or(Datum::Null),
    }
}

/// What two parts come to together.
fn both(measure: &Measure, one: &Datum, other: &Datum) -> Datum {
    match measure {
        Measure::Rows | Measure::Values(_) | Measure::Sum(_) => add(one, other),
        _ => fold(measure, &[one.clone(), other.clone()]),
    }
}

fn add(one: &Datum, other: &Datum) -> Datum {
    match (one, other) {
        (Datum::Null, value) | (value, Datum::Null) => value.clone(),
        (Datum::Int(one), Datum::Int(other)) => Datum::Int(one.wrapping_add(*other)),
        (Datum::UInt(one), Datum::UInt(other)) => Datum::UInt(one.wrapping_add(*other)),
        _ => panic!("{one:?} and {other:?} have no sum"),
    }
}

/// Adds up a scan without help: every measure, over its column.
fn measured(snapshot: &Snapshot, spec: &ScanSpec, measures: &[Measure]) -> Vec<Datum> {
    let mut totals: Vec<Datum> = measures.iter().map(|measure| fold(measure, &[])).collect();
    for batch in snapshot.scan(spec).unwrap() {
        let batch = batch.unwrap();
        let rows = vec![Datum::Bool(true); batch.num_rows()];
        let values = |array: &ArrayRef| (0..array.len()).map(|row| datum_at(array, row).unwrap()).collect();
        let columns: Vec<Vec<Datum>> = batch.columns().iter().map(values).collect();
        for (total, measure) in totals.iter_mut().zip(measures) {
            let place = measure.column().map(|column| spec.columns.iter().position(|id| *id == column).unwrap());
            let values = place.map_or(&rows, |place| &columns[place]);
            *total = both(measure, total, &fold(measure, values));
        }
    }
    totals
}

/// The row of the told part.
fn told(snapshot: &Snapshot, spec: &ScanSpec) -> Vec<Datum> {
    let batches: Vec<RecordBatch> = snapshot.scan(spec).unwrap().map(|batch| batch.unwrap()).collect();
    let batches: Vec<&RecordBatch> = batches.iter().filter(|batch| batch.num_rows() > 0).collect();
    let [batch] = batches.as_slice() else { panic!("{} batches", batches.len()) };
    assert_eq!(batch.num_rows(), 1);
    batch.columns().iter().map(|column| datum_at(column, 0).unwrap()).collect()
}

/// Every measure of every column, of the rows that satisfy the conditions: with statistics and without.
pub fn check(snapshot: &Snapshot, schema: &TableSchema, predicates: Vec<ColumnPredicate>) {
    check_measures(snapshot, schema, predicates, false);
}

/// The same of the upsert table, and of the rows on either side of a middle.
pub fn check_halves(snapshot: &Snapshot, table: &Table) {
    let middle = table.values().map(|(_, n)| *n).max().unwrap_or(0) / 2;
    for op in [None, Some(CompareOp::LtEq), Some(CompareOp::Gt)] {
        check(snapshot, &upsert_schema(), op.map(|op| compare(3, op, Datum::Int(middle))).into_iter().collect());
    }
}

/// The same of a whole table, and each measure by itself. Gives the number of rows that were told of, by measure.
fn check_each(snapshot: &Snapshot, schema: &TableSchema) -> Vec<(Measure, i64)> {
    check_measures(snapshot, schema, Vec::new(), true)
}

fn check_measures(
    snapshot: &Snapshot,
    schema: &TableSchema,
    predicates: Vec<ColumnPredicate>,
    each: bool,
) -> Vec<(Measure, i64)> {
    let ids: Vec<u32> = schema.columns.iter().map(|column| column.id.0).collect();
    let plain = ScanSpec { predicates, ..scan_all(&ids) };
    let mut measures = vec![Measure::Rows];
    for column in &schema.columns {
        measures.extend([Measure::Values(column.id), Measure::Least(column.id), Measure::Greatest(column.id)]);
        measures.extend(column.data_type.is_integer().then_some(Measure::Sum(column.id)));
    }
    let expected = measured(snapshot, &plain, &measures);
    let count = |measures: Vec<Measure>, expected: &[Datum], of: u32| {
        let mut rows = 0;
        let mut totals: Vec<Datum> = measures.iter().map(|measure| fold(measure, &[])).collect();
        for slice in Slice::all(of) {
            let part = |part| {
                let summary = Some(Summary { measures: measures.clone(), part });
                let columns = measures.iter().filter_map(Measure::column).collect();
                ScanSpec { slice, summary, columns, ..plain.clone() }
            };
            let told = told(snapshot, &part(SummaryPart::Told));
            let Datum::Int(rows_told) = told[0] else { panic!("{told:?}") };
            rows += rows_told;
            let rest = measured(snapshot, &part(SummaryPart::Rest), &measures);
            let parts = totals.iter().zip(told.iter().zip(&rest)).zip(&measures);
            totals = parts.map(|((total, (told, rest)), of)| both(of, &both(of, told, rest), total)).collect();
        }
        assert!(same(&totals, expected), "{measures:?} in {of}: {totals:?}, and the rows say {expected:?}");
        rows
    };
    count(measures.clone(), &expected, 3);
    let alone = measures.iter().zip(&expected).filter(|_| each).map(|(measure, value)| {
        (*measure, count(vec![Measure::Rows, *measure], &[expected[0].clone(), value.clone()], 1))
    });
    alone.collect()
}

/// Whether these are the same values: NaN is one, and zeros differ.
fn same(one: &[Datum], other: &[Datum]) -> bool {
    let is_same = |(one, other): (&Datum, &Datum)| match (one, other) {
        (Datum::Float(one), Datum::Float(other)) => one.to_bits() == other.to_bits(),
        (one, other) => one == other,
    };
    one.len() == other.len() && one.iter().zip(other).all(is_same)
}

/// A column of every kind: `id` is the key, and the others say how they are filled.
fn wide_schema() -> Arc<TableSchema> {
    Arc::new(TableSchema::new(
        vec![
            column(1, "id", DataType::Int64, false),
            column(2, "small", DataType::Int32, true),
            column(3, "large", DataType::UInt64, false),
            column(4, "text", DataType::Utf8, true),
            column(5, "long_text", DataType::Utf8, false),
            column(6, "float", DataType::Float64, true),
            column(7, "zeros", DataType::Float64, false),
            column(8, "some_nan", DataType::Float64, false),
            column(9, "real", DataType::Float32, false),
            column(10, "price", DataType::Decimal128(30, 2), false),
            column(11, "day", DataType::Date32, false),
            column(12, "flag", DataType::Boolean, true),
            column(13, "nothing", DataType::Int64, true),
        ],
        TableKind::Upsert { primary_key: vec![ColumnId(1)] },
    ))
}

/// Rows whose other columns follow from the key and from `seed`.
fn wide(ids: impl Iterator<Item = i64>, seed: i64) -> RecordBatch {
    let ids: Vec<i64> = ids.collect();
    let mix = |id: &i64, salt: i64| (id.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed * 97 + salt)) >> 7;
    let long = "é".repeat(40);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids.clone())),
        Arc::new(Int32Array::from_iter(ids.iter().map(|id| (id % 5 != 0).then(|| mix(id, 1) as i32)))),
        Arc::new(UInt64Array::from_iter_values(ids.iter().map(|id| u64::MAX - mix(id, 2) as u64 % 1_000))),
        Arc::new(StringArray::from_iter(ids.iter().map(|id| (id % 3 != 0).then(|| format!("t{}", mix(id, 3)))))),
        Arc::new(StringArray::from_iter_values(ids.iter().map(|id| format!("{long}{}", mix(id, 4))))),
        Arc::new(Float64Array::from_iter(ids.iter().map(|id| (id % 7 != 0).then(|| mix(id, 5) as f64 + 0.5)))),
        Arc::new(Float64Array::from_iter_values(ids.iter().map(|id| if id % 2 == 0 { 0.0 } else { -0.0 }))),
        Arc::new(Float64Array::from_iter_values(ids.iter().map(|id| if id % 20_011 == 9 { f64::NAN } else { 1.5 }))),
        Arc::new(Float32Array::from_iter_values(ids.iter().map(|id| mix(id, 6) as f32))),
        Arc::new(
            Decimal128Array::from_iter_values(ids.iter().map(|id| i128::from(mix(id, 7)) << 20))
                .with_precision_and_scale(30, 2)
                .unwrap(),
        ),
        Arc::new(Date32Array::from_iter_values(ids.iter().map(|id| (id / 100) as i32))),
        Arc::new(BooleanArray::from_iter(ids.iter().map(|id| (id % 4 != 0).then_some(id % 4 == 1)))),
        Arc::new(Int64Array::from_iter(ids.iter().map(|_| None))),
    ];
    RecordBatch::try_new(wide_schema().arrow(), columns).unwrap()
}

fn compare(column: u32, op: CompareOp, value: Datum) -> ColumnPredicate {
    ColumnPredicate::Compare { column: ColumnId(column), op, value }
}

/// Questions about the whole and parts of it.
fn conditions() -> Vec<Vec<ColumnPredicate>> {
    let id = |op, value| compare(1, op, Datum::Int(value));
    vec![
        vec![id(CompareOp::GtEq, PAGE), id(CompareOp::Lt, 2 * PAGE)],
        vec![id(CompareOp::GtEq, 100), id(CompareOp::LtEq, 2 * PAGE + 50)],
        vec![id(CompareOp::NotEq, 3)],
        vec![compare(12, CompareOp::Eq, Datum::Bool(true))],
        vec![ColumnPredicate::IsNull { column: ColumnId(13) }, compare(11, CompareOp::Gt, Datum::Int(80))],
        vec![ColumnPredicate::IsNotNull { column: ColumnId(2) }],
        vec![compare(5, CompareOp::Gt, Datum::Text("d".into()))],
        vec![id(CompareOp::Lt, -1)],
    ]
}

/// Rows told of the whole table, by measure.
fn check_wide(snapshot: &Snapshot) -> Vec<(Measure, i64)> {
    conditions().into_iter().for_each(|conditions| check(snapshot, &wide_schema(), conditions));
    check_each(snapshot, &wide_schema())
}

fn rows_told(told: &[(Measure, i64)], of: Measure) -> i64 {
    told.iter().find(|(measure, _)| *measure == of).unwrap().1
}

#[test]
fn what_statistics_tell_is_what_rows_say() {
    let disk = MemoryDisk::default().shared();
    let (store, _) = open_with(&disk, &wide_schema(), options(), 7).unwrap();
    commit(&store, put(1, wide(0..3 * PAGE, 1)));
    let told = check_each(&store.snapshot(), &wide_schema());
    assert!(told.iter().all(|(_, rows)| *rows == 0), "of what is in memory nothing is told");
    store.flush().unwrap();
    let told = check_wide(&store.snapshot());
    let all = 3 * PAGE;
    use Measure::{Greatest, Least, Rows, Sum, Values};
    let column = ColumnId;
    for (measure, rows) in [
        (Rows, all),
        (Values(column(4)), all),
        (Sum(column(1)), all),
        (Sum(column(2)), all),
        (Sum(column(3)), all),
        (Least(column(1)), all),
        (Greatest(column(3)), all),
        (Least(column(4)), all),
        (Values(column(5)), all),
        // Bounds that were cut are no values.
        (Least(column(5)), 0),
        (Greatest(column(5)), 0),
        (Least(column(6)), all),
        // Of two zeros nobody knows which one is the least.
        (Least(column(7)), 0),
        // The first and the last page have a NaN.
        (Greatest(column(8)), PAGE),
        (Greatest(column(9)), 0),
        (Least(column(10)), all),
        (Greatest(column(11)), all),
        (Least(column(12)), all),
        (Least(column(13)), all),
        (Sum(column(13)), all),
    ] {
        assert_eq!(rows_told(&told, measure), rows, "{measure:?}");
    }

    // The extremes of a page are overwritten, and one of another is deleted: what is noted of these pages holds no more.
    let gone = keys(&[3 * PAGE - 1]);
    commit(&store, put(2, wide(std::iter::once(PAGE), 2)));
    commit(&store, delete(3, gone));
    let told = check_each(&store.snapshot(), &wide_schema());
    assert_eq!(rows_told(&told, Greatest(column(1))), PAGE, "one page is whole");
    assert_eq!(rows_told(&told, Rows), all - 2, "rows are counted without looking at them");
    store.flush().unwrap();
    check(&store.snapshot(), &wide_schema(), Vec::new());
    // A page with tombstones is not whole either.
    commit(&store, delete(4, keys(&[10, 20, 30])));
    commit(&store, put(5, wide(5..9, 5)));
    store.flush().unwrap();
    check(&store.snapshot(), &wide_schema(), Vec::new());
    store.compact().unwrap();
    check(&store.snapshot(), &wide_schema(), Vec::new());
    store.optimize(&|| true).unwrap();
    let told = check_wide(&store.snapshot());
    assert_eq!(rows_told(&told, Sum(column(1))), PAGE, "tombstones stay, in two of the pages");
}

#[test]
fn of_the_rows_of_the_other_half_nothing_is_told() {
    let disk = MemoryDisk::default();
    let (store, _) = open_with(&disk.shared(), &wide_schema(), options(), 7).unwrap();
    commit(&store, put(1, wide(0..3 * PAGE, 1)));
    store.flush().unwrap();
    let at = PAGE + 100;
    store.split(&halves_at(&store, &Datum::Int(at).encode(), ["p2", "p3"])).unwrap();
    let counts = ["/data/p2", "/data/p3"].map(|dir| {
        let opened = Store::open(disk.shared(), Path::new(dir), wide_schema(), options(), LogId(7), 9);
        let told = check_wide(&opened.unwrap().0.snapshot());
        [Measure::Rows, Measure::Greatest(ColumnId(1))].map(|measure| rows_told(&told, measure))
    });
    // Of the page that both have, only the number of rows is known.
    assert_eq!(counts, [[at, PAGE], [3 * PAGE - at, PAGE]]);
}

#[test]
fn columns_that_changed_are_told_of_as_they_are_seen() {
    let disk = MemoryDisk::default().shared();
    let schema = wide_schema();
    let (store, _) = open_with(&disk, &schema, options(), 7).unwrap();
    commit(&store, put(1, wide(0..PAGE, 1)));
    store.flush().unwrap();
    let changes = [
        SchemaChange::Widen { column: ColumnId(2), into: ColumnId(14), data_type: DataType::Int64 },
        SchemaChange::Widen { column: ColumnId(11), into: ColumnId(15), data_type: DataType::Utf8 },
        SchemaChange::Drop(ColumnId(4)),
        SchemaChange::Add(column(16, "text", DataType::Int32, true)),
    ];
    let changed = changes.iter().fold(schema.as_ref().clone(), |schema, change| schema.changed(change).unwrap());
    let changed = Arc::new(TableSchema { version: 2, ..changed });
    store.adopt(changed.clone()).unwrap();
    let told = check_each(&store.snapshot(), &changed);
    for (measure, rows) in [
        (Measure::Sum(ColumnId(14)), PAGE),
        (Measure::Values(ColumnId(14)), PAGE),
        (Measure::Least(ColumnId(14)), PAGE),
        (Measure::Greatest(ColumnId(15)), 0),
        (Measure::Greatest(ColumnId(16)), PAGE),
    ] {
        assert_eq!(rows_told(&told, measure), rows, "{measure:?}");
    }
    // Rows of both schemas in one segment.
    commit(&store, put(2, narrow(&changed, PAGE / 2..PAGE + 10)));
    store.flush().unwrap();
    check(&store.snapshot(), &changed, Vec::new());
    store.optimize(&|| true).unwrap();
    for conditions in [vec![], vec![compare(14, CompareOp::Gt, Datum::Int(7))]] {
        check(&store.snapshot(), &changed, conditions);
    }
    let told = check_each(&store.snapshot(), &changed);
    assert_eq!(rows_told(&told, Measure::Sum(ColumnId(14))), PAGE + 10);
}

/// Rows of that schema with most columns left as they may be.
fn narrow(schema: &TableSchema, ids: std::ops::Range<i64>) -> RecordBatch {
    let rows = wide(ids.clone(), 9);
    let column = |column: &shoal_kernel::Column| -> ArrayRef {
        match column.name.as_str() {
            "small" => Arc::new(Int64Array::from_iter(ids.clone().map(|id| (id % 2 == 0).then_some(id << 33)))),
            "day" => Arc::new(StringArray::from_iter_values(ids.clone().map(|id| format!("day {id}")))),
            "text" => Arc::new(Int32Array::from_iter(ids.clone().map(|id| (id % 2 == 1).then_some(id as i32)))),
            name => rows.column_by_name(name).unwrap().clone(),
        }
    };
    RecordBatch::try_new(schema.numbered(), schema.columns.iter().map(column).collect()).unwrap()
}
