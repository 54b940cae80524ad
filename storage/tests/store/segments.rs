//! Segments: what is read from them, and how little.

use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::types::{Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow::array::{Array, ArrayRef, Decimal128Array, Float64Array, Int64Array, ListArray, RecordBatch};
use arrow::datatypes::{DataType, Field};
use shoal_kernel::{ColumnId, ColumnPredicate, CompareOp, Datum, ErrorCode, Slice, TableKind, TableSchema};
use shoal_storage::{PagePool, Snapshot, StoreOptions};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture::*;

fn compare(column: u32, op: CompareOp, value: Datum) -> ColumnPredicate {
    ColumnPredicate::Compare { column: ColumnId(column), op, value }
}

fn ids(snapshot: &Snapshot, predicates: Vec<ColumnPredicate>) -> Vec<i64> {
    let spec = shoal_kernel::ScanSpec { predicates, ..scan_all(&[1]) };
    let batches: Vec<RecordBatch> = snapshot.scan(&spec).unwrap().collect::<Result<_, _>>().unwrap();
    let mut ids: Vec<i64> =
        batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect();
    ids.sort_unstable();
    ids
}

/// Even keys in one segment, some of them replaced by a second one; 20,000 rows are three pages. Nothing is kept in memory.
fn two_segments(disk: &MemoryDisk) -> std::sync::Arc<shoal_storage::Store> {
    let none = StoreOptions { pool: Arc::new(PagePool::new(0)), ..options() };
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), none, 7).unwrap();
    let first: Vec<_> = (0..20_000).map(|n| (n * 2, Some("first"), n)).collect();
    commit(&store, put(1, rows(&first)));
    store.flush().unwrap();
    let second: Vec<_> = (0..3_000).map(|n| (n * 5, None, -n)).collect();
    commit(&store, put(2, rows(&second)));
    store.flush().unwrap();
    store
}

#[test]
fn scans_are_rows_minus_masks_and_compaction_changes_nothing() {
    let disk = MemoryDisk::default();
    let store = two_segments(&disk);
    let expected: Table = (0..20_000)
        .map(|n| (n * 2, (Some("first".to_owned()), n)))
        .chain((0..3_000).map(|n| (n * 5, (None, -n))))
        .collect();
    let before = store.snapshot();
    assert_eq!(read(&before), expected);
    let digest = store.digest().unwrap();
    assert_eq!(store.status().segments, 2);
    assert!(!store.compact().unwrap(), "two segments of different sizes stay apart");

    drop(store);
    let few = StoreOptions { compaction_fan_in: 2, ..options() };
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), few, 7).unwrap();
    assert_eq!(store.digest().unwrap(), digest, "masks are in the manifest");
    let held = store.snapshot();
    // Of about one size with the second one.
    commit(&store, put(3, rows(&(0..3_000).map(|n| (n * 7, Some("third"), n)).collect::<Vec<_>>())));
    store.flush().unwrap();
    commit(&store, put(4, rows(&[(0, Some("young"), 0)])));
    let now = read(&store.snapshot());
    assert!(store.compact().unwrap());
    assert_eq!(read(&store.snapshot()), now);
    assert_eq!(read(&held), expected, "the files of a snapshot stay as long as it does");
    assert_eq!(store.verify().unwrap(), []);
    drop((held, before));
    let files = || disk.files().iter().filter(|path| path.to_str().unwrap().ends_with(".seg")).count();
    store.flush().unwrap();
    assert_eq!(files(), store.status().segments);
    let (store, _) = open(&disk.restart(Loss::Everything).shared());
    assert_eq!(read(&store.snapshot()), now);
}

#[test]
fn predicates_prune_and_never_lose_a_row() {
    let disk = MemoryDisk::default();
    let store = two_segments(&disk);
    let snapshot = store.snapshot();
    let all = read(&snapshot);
    for (op, bound) in [(CompareOp::Eq, 39_998), (CompareOp::Lt, 10), (CompareOp::GtEq, 39_990), (CompareOp::NotEq, 0)]
    {
        let holds = |id: &i64| match op {
            CompareOp::Eq => *id == bound,
            CompareOp::Lt => *id < bound,
            CompareOp::GtEq => *id >= bound,
            _ => *id != bound,
        };
        let expected: Vec<i64> = all.keys().copied().filter(holds).collect();
        assert_eq!(ids(&snapshot, vec![compare(1, op, Datum::Int(bound))]), expected, "{op:?}");
    }
    let named = vec![compare(2, CompareOp::Eq, Datum::Text("first".into())), compare(3, CompareOp::Lt, Datum::Int(9))];
    let expected: Vec<i64> = all.iter().filter(|(_, row)| row.0.is_some() && row.1 < 9).map(|(id, _)| *id).collect();
    assert_eq!(ids(&snapshot, named), expected);
    let null = ColumnPredicate::IsNull { column: ColumnId(2) };
    assert_eq!(ids(&snapshot, vec![null]).len(), 3_000);

    let reads = |predicates: Vec<ColumnPredicate>| {
        let before = disk.reads();
        let found = ids(&snapshot, predicates);
        (found.len(), disk.reads() - before)
    };
    assert_eq!(reads(vec![compare(1, CompareOp::Eq, Datum::Int(39_998))]), (1, 1), "one page of one column");
    assert_eq!(reads(vec![compare(1, CompareOp::Eq, Datum::Int(39_997))]).0, 0);
    assert_eq!(reads(vec![compare(1, CompareOp::Gt, Datum::Int(40_000))]), (0, 0));
    let before = disk.reads();
    let counted: usize = snapshot.scan(&scan_all(&[])).unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!((counted, disk.reads()), (all.len(), before), "counting reads nothing");
    let limited = shoal_kernel::ScanSpec { limit: Some(10_000), ..scan_all(&[3]) };
    let rows: usize = snapshot.scan(&limited).unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(rows, 10_000);
    let unknown = snapshot.scan(&scan_all(&[9])).err().unwrap();
    assert_eq!(unknown.code(), ErrorCode::UnknownColumn);
}

#[test]
fn slices_are_together_the_whole() {
    let (store, _) = open(&MemoryDisk::default().shared());
    for (time, from) in [(1, 0), (2, 40_000), (3, 50_000)] {
        let batch: Vec<_> = (from..from + 30_000).map(|id| (id, Some("x"), id % 7)).collect();
        commit(&store, put(time, rows(&batch)));
        if time < 3 {
            store.flush().unwrap();
        }
    }
    let snapshot = store.snapshot();
    let third = ColumnPredicate::Compare { column: ColumnId(3), op: CompareOp::Eq, value: Datum::Int(3) };
    for predicates in [Vec::new(), vec![third]] {
        let whole = ids(&snapshot, predicates.clone());
        for of in [1, 2, 3, 7, 100] {
            let slice = |slice| {
                let spec = shoal_kernel::ScanSpec { slice, predicates: predicates.clone(), ..scan_all(&[1]) };
                let batches = snapshot.scan(&spec).unwrap().map(Result::unwrap);
                batches
                    .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
                    .collect::<Vec<_>>()
            };
            let slices: Vec<Vec<i64>> = Slice::all(of).map(slice).collect();
            let most = slices.iter().map(Vec::len).max().unwrap_or(0);
            assert!(of > 7 || most < whole.len() / of as usize + 10_000, "{of} slices, one of {most} rows");
            let mut all = slices.concat();
            all.sort_unstable();
            assert_eq!(all, whole, "{of} slices");
        }
        let counted = |slice| {
            let spec = shoal_kernel::ScanSpec { slice, ..scan_all(&[]) };
            snapshot.scan(&spec).unwrap().map(|batch| batch.unwrap().num_rows()).sum::<usize>()
        };
        assert_eq!(Slice::all(3).map(counted).sum::<usize>(), 70_000);
    }
}

/// What a scan gave the addresses of is found again, on the same snapshot, whatever has happened since.
#[test]
fn rows_are_fetched_by_their_addresses() {
    let disk = MemoryDisk::default();
    let (store, _) =
        open_with(&disk.shared(), &upsert_schema(), StoreOptions { compaction_fan_in: 2, ..options() }, 7).unwrap();
    let name = |id: i64| format!("name {}", id % 100);
    let table = |ids: std::ops::Range<i64>| {
        let names: Vec<_> = ids.map(|id| (id, name(id))).collect();
        rows(&names.iter().map(|(id, name)| (*id, Some(name.as_str()), id * 2)).collect::<Vec<_>>())
    };
    for (time, ids) in [(1, 0..20_000), (2, 30_000..45_000), (3, 15_000..35_000), (4, 50_000..50_100)] {
        commit(&store, put(time, table(ids)));
        if time < 3 {
            store.flush().unwrap();
        }
    }
    commit(&store, delete(5, keys(&[7, 30_001])));
    let snapshot = store.snapshot();
    let predicates = vec![compare(1, CompareOp::NotEq, Datum::Int(12))];
    let spec = shoal_kernel::ScanSpec { predicates, addresses: true, ..scan_all(&[1]) };
    let mut found: Vec<(i64, u64)> = Vec::new();
    for batch in snapshot.scan(&spec).unwrap() {
        let batch = batch.unwrap();
        assert_eq!(batch.schema().field(1).name(), shoal_kernel::ADDRESS_COLUMN);
        let ids = batch.column(0).as_primitive::<Int64Type>().values().to_vec();
        found.extend(ids.into_iter().zip(batch.column(1).as_primitive::<UInt64Type>().values().iter().copied()));
    }
    assert_eq!(found.len(), 45_000 + 100 - 3);
    store.flush().unwrap();
    while store.compact().unwrap() {}
    // In an order of no file, some of them twice.
    let wanted: Vec<(i64, u64)> =
        (0..3_000).map(|n| found[n * 7919 % found.len()]).chain([found[0], found[0]]).collect();
    let spec = shoal_kernel::FetchSpec {
        table: shoal_kernel::TableId(1),
        partition: shoal_kernel::PartitionId(1),
        schema_version: 1,
        columns: vec![ColumnId(3), ColumnId(2), ColumnId(1)],
    };
    let addresses: Vec<u64> = wanted.iter().map(|(_, address)| *address).collect();
    let batch = snapshot.fetch(&spec, &addresses).unwrap();
    let (doubles, ids) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(2).as_primitive::<Int64Type>());
    let names = batch.column(1).as_string::<i32>();
    for (row, (id, _)) in wanted.iter().enumerate() {
        assert_eq!((ids.value(row), doubles.value(row), names.value(row)), (*id, id * 2, name(*id).as_str()));
    }
    assert_eq!(snapshot.fetch(&spec, &[]).unwrap().num_rows(), 0);
    for stray in [u64::from(u32::MAX), 9 << 32, (2 << 32) | 90_000] {
        assert_eq!(snapshot.fetch(&spec, &[stray]).unwrap_err().code(), ErrorCode::InvalidRequest);
    }
}

/// Text that is wanted as a dictionary comes as one, whatever form it has: codes, plain pages, or memory.
#[test]
fn text_comes_as_a_dictionary_where_that_is_wanted() {
    let (store, _) = open(&MemoryDisk::default().shared());
    let name = |id: i64| match id {
        _ if id % 9 == 0 => None,
        10_000..20_000 => Some(format!("{id} of many")),
        _ => Some(format!("few {}", id % 4)),
    };
    let table = |ids: std::ops::Range<i64>| {
        let names: Vec<_> = ids.map(|id| (id, name(id))).collect();
        rows(&names.iter().map(|(id, name)| (*id, name.as_deref(), 0)).collect::<Vec<_>>())
    };
    for (time, ids) in [(1, 0..10_000), (2, 10_000..20_000), (3, 20_000..20_100)] {
        commit(&store, put(time, table(ids)));
        if time < 3 {
            store.flush().unwrap();
        }
    }
    let snapshot = store.snapshot();
    let odd =
        ColumnPredicate::In { column: ColumnId(1), values: [3, 12, 9_999, 10_005, 20_007].map(Datum::Int).to_vec() };
    for predicates in [Vec::new(), vec![odd]] {
        let spec = shoal_kernel::ScanSpec { predicates, coded: vec![ColumnId(2)], ..scan_all(&[1, 2]) };
        let mut seen = 0;
        let scan = snapshot.scan(&spec).unwrap();
        let schema = scan.schema();
        for batch in scan {
            let batch = batch.unwrap();
            assert_eq!(batch.schema(), schema);
            let ids = batch.column(0).as_primitive::<Int64Type>();
            let names = batch.column(1).as_dictionary::<UInt32Type>();
            let names = names.downcast_dict::<arrow::array::StringArray>().unwrap();
            for (id, found) in ids.values().iter().zip(names) {
                assert_eq!(found.map(str::to_owned), name(*id), "{id}");
                seen += 1;
            }
        }
        assert_eq!(seen, if spec.predicates.is_empty() { 20_100 } else { 5 });
    }
}

/// Conditions on text are judged by the dictionary's values where a page holds codes, else row by row.
#[test]
fn text_is_compared_alike_in_codes_in_plain_pages_and_in_memory() {
    let (store, _) = open(&MemoryDisk::default().shared());
    let few = |id: i64| if id % 10 == 0 { None } else { Some(format!("Page/{}_%/checkout", id % 50)) };
    let many = |id: i64| Some(format!("{id} of many"));
    let table = |ids: std::ops::Range<i64>, name: &dyn Fn(i64) -> Option<String>| {
        let names: Vec<_> = ids.map(|id| (id, name(id))).collect();
        rows(&names.iter().map(|(id, name)| (*id, name.as_deref(), 0)).collect::<Vec<_>>())
    };
    commit(&store, put(1, table(0..20_000, &few)));
    commit(&store, put(2, table(100_000..110_000, &many)));
    store.flush().unwrap();
    commit(&store, put(3, table(200_000..200_500, &few)));
    let name_of = |id: i64| if (100_000..110_000).contains(&id) { many(id) } else { few(id) };
    let snapshot = store.snapshot();
    let all = ids(&snapshot, Vec::new());
    let like = |pattern: &str, negated, ignore_case| ColumnPredicate::Like {
        column: ColumnId(2),
        pattern: pattern.into(),
        negated,
        ignore_case,
    };
    let compare =
        |op, text: &str| ColumnPredicate::Compare { column: ColumnId(2), op, value: Datum::Text(text.into()) };
    type Judge<'a> = Box<dyn Fn(&str) -> bool + 'a>;
    let cases: Vec<(ColumnPredicate, Judge<'_>)> = vec![
        (like("%/checkout", false, false), Box::new(|name| name.ends_with("/checkout"))),
        (like("page/7\\_%", false, true), Box::new(|name| name.starts_with("Page/7_"))),
        (
            like("Page/_\\_\\%%", false, false),
            Box::new(|name| name.len() == "Page/7_%/checkout".len() && name.starts_with("Page")),
        ),
        (like("%many", true, false), Box::new(|name| !name.ends_with("many"))),
        (compare(CompareOp::Eq, "Page/3_%/checkout"), Box::new(|name| name == "Page/3_%/checkout")),
        (compare(CompareOp::Lt, "Page/3"), Box::new(|name| name < "Page/3")),
        (compare(CompareOp::NotEq, "100001 of many"), Box::new(|name| name != "100001 of many")),
    ];
    for (predicate, judge) in cases {
        let wanted: Vec<i64> = all.iter().copied().filter(|&id| name_of(id).is_some_and(|name| judge(&name))).collect();
        assert_eq!(ids(&snapshot, vec![predicate.clone()]), wanted, "{predicate:?}");
    }
    let nulls = ids(&snapshot, vec![ColumnPredicate::IsNull { column: ColumnId(2) }]);
    assert_eq!(nulls.len(), 2_050);
    let both = vec![ColumnPredicate::IsNotNull { column: ColumnId(2) }, like("%9\\_%", false, false)];
    assert_eq!(
        ids(&snapshot, both).len(),
        all.iter().filter(|id| !(100_000..200_000).contains(*id) && **id % 10 == 9).count()
    );
}

/// Were a mask on disk before the row that caused it, losing the log would lose the key altogether.
#[test]
fn masks_between_apply_and_flush_are_in_no_manifest() {
    let disk = MemoryDisk::default();
    let few = StoreOptions { compaction_fan_in: 2, ..options() };
    let (store, _) = open_with(&disk.shared(), &upsert_schema(), few, 7).unwrap();
    let old = table(&[(1, Some("old"), 1), (2, Some("old"), 2)]);
    for n in [1, 2] {
        commit(&store, put(n as u64, rows(&[(n, Some("old"), n)])));
        store.flush().unwrap();
    }
    for merged in [false, true] {
        commit(&store, put(3, rows(&[(1, Some("new"), 1)])));
        assert_eq!(store.compact().unwrap(), !merged);
        let new = table(&[(1, Some("new"), 1), (2, Some("old"), 2)]);
        assert_eq!(read(&store.snapshot()), new);
        assert_eq!(read(&open(&disk.restart(Loss::Everything).shared()).0.snapshot()), new);
        let lost = disk.restart(Loss::Everything);
        for path in lost.files().into_iter().filter(|path| path.to_str().unwrap().contains("wal-")) {
            lost.shared().remove_file(&path).unwrap();
        }
        let (without_log, recovery) = open(&lost.shared());
        assert!(recovery.in_doubt);
        assert_eq!(read(&without_log.snapshot()), old);
    }
}

#[test]
fn a_column_that_came_later_is_null_in_old_rows() {
    let disk = MemoryDisk::default();
    let old = upsert_schema();
    let (store, _) = open(&disk.shared());
    commit(&store, put(1, rows(&[(1, Some("flushed"), 1)])));
    store.flush().unwrap();
    commit(&store, put(2, rows(&[(2, Some("logged"), 2)])));
    let digest = store.digest().unwrap();
    drop(store);

    let mut columns = old.columns.clone();
    columns.insert(1, column(9, "extra", DataType::Float64, true));
    let new = Arc::new(TableSchema { columns, version: 2, next_column: ColumnId(10), ..old.as_ref().clone() });
    let (store, _) = open_with(&disk.shared(), &new, options(), 7).unwrap();
    assert_eq!(read(&store.snapshot()), table(&[(1, Some("flushed"), 1), (2, Some("logged"), 2)]));
    assert_eq!(store.digest().unwrap(), digest, "replicas agree whatever schema they wrote under");
    let names = ["id", "extra", "name", "n"];
    let base = rows(&[(3, None, 3)]);
    let extra: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.5)]));
    let arrays = [base.column(0).clone(), extra, base.column(1).clone(), base.column(2).clone()];
    commit(&store, put(3, RecordBatch::try_from_iter(names.into_iter().zip(arrays)).unwrap()));
    store.flush().unwrap();
    let given = ids(&store.snapshot(), vec![compare(9, CompareOp::Gt, Datum::Float(1.0))]);
    assert_eq!(given, [3]);
    assert_eq!(ids(&store.snapshot(), vec![ColumnPredicate::IsNull { column: ColumnId(9) }]), [1, 2]);
}

#[test]
fn nested_and_decimal_columns_survive_everything() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), None]), None, Some(vec![])]);
    let schema = Arc::new(TableSchema::new(
        vec![
            column(1, "id", DataType::Int64, false),
            column(2, "items", DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true))), true),
            column(3, "price", DataType::Decimal128(20, 3), true),
        ],
        TableKind::Upsert { primary_key: vec![ColumnId(1)] },
    ));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2, 3])),
        Arc::new(list),
        Arc::new(Decimal128Array::from(vec![Some(1), None, Some(-5)]).with_precision_and_scale(20, 3).unwrap()),
    ];
    let batch = RecordBatch::try_new(schema.arrow(), columns).unwrap();
    let disk = MemoryDisk::default();
    let (store, _) = open_with(&disk.shared(), &schema, options(), 1).unwrap();
    commit(&store, put(1, batch.clone()));
    let read = |store: &shoal_storage::Store| {
        let batches = store.snapshot().scan(&scan_all(&[1, 2, 3])).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
        arrow::compute::concat_batches(&schema.arrow(), &batches).unwrap()
    };
    assert_eq!(read(&store), batch);
    drop(store);
    let (store, _) = open_with(&disk.shared(), &schema, options(), 1).unwrap();
    assert_eq!(read(&store), batch);
    store.flush().unwrap();
    assert_eq!(read(&store), batch);
    assert_eq!(store.verify().unwrap(), []);
    assert!(batch.column(1).is_nullable());
}

#[test]
fn rows_of_the_second_row_group_are_found() {
    let disk = MemoryDisk::default();
    let (store, _) = open(&disk.shared());
    let count = 70_000;
    commit(&store, put(1, rows(&(0..count).map(|n| (n, None, n)).collect::<Vec<_>>())));
    assert_eq!(store.flush().unwrap().rows, count as u64);
    assert_eq!(store.verify().unwrap(), []);
    let changed = [0, 65_535, 65_536, count - 1];
    commit(&store, put(2, rows(&changed.map(|n| (n, Some("changed"), -n)))));
    commit(&store, delete(3, keys(&[8_191, 8_192, 69_000])));
    let check = |store: &shoal_storage::Store| {
        let found = read(&store.snapshot());
        assert_eq!(found.len() as i64, count - 3);
        assert!(changed.iter().all(|n| found[n] == (Some("changed".to_owned()), -n)));
        assert_eq!(ids(&store.snapshot(), vec![compare(1, CompareOp::Eq, Datum::Int(69_999))]), [69_999]);
        assert_eq!(ids(&store.snapshot(), vec![compare(1, CompareOp::Eq, Datum::Int(69_000))]), Vec::<i64>::new());
    };
    check(&store);
    store.flush().unwrap();
    check(&store);
    check(&open(&disk.restart(Loss::Everything).shared()).0);
}
