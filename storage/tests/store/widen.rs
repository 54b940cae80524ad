//! Columns that are given wider types: a value is the same value whenever it comes, and reads the same for ever.

use std::sync::Arc;

use arrow::array::cast::AsArray;
use arrow::array::types::TimestampMicrosecondType;
use arrow::array::{ArrayRef, Date32Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit};
use shoal_kernel::{ColumnId, ErrorCode, SchemaChange, TableSchema};
use shoal_storage::{Store, StoreOptions, Write, fingerprint_of};

use crate::disk::{Loss, MemoryDisk};
use crate::fixture;
use crate::fixture::*;

fn widen(column: u32, into: u32, data_type: DataType) -> SchemaChange {
    SchemaChange::Widen { column: ColumnId(column), into: ColumnId(into), data_type }
}

fn changed(schema: &Arc<TableSchema>, change: &SchemaChange) -> Arc<TableSchema> {
    Arc::new(TableSchema { version: schema.version + 1, ..schema.changed(change).unwrap() })
}

/// Schemas of events whose third column is of these types, one after the other.
fn versions(types: &[DataType]) -> Vec<Arc<TableSchema>> {
    let mut columns = event_schema().columns.clone();
    columns[2] = fixture::column(3, "n", types[0].clone(), true);
    let mut versions = vec![Arc::new(TableSchema::new(columns, event_schema().kind.clone()))];
    for (id, data_type) in (3..).zip(&types[1..]) {
        versions.push(changed(&versions[versions.len() - 1], &widen(id, id + 1, data_type.clone())));
    }
    versions
}

/// Events of that version of the schema, one for each value, as a client writes the values; those that the type does not take
/// are left out.
fn sent(schema: &TableSchema, values: &[&str]) -> RecordBatch {
    let data_type = &schema.columns[2].data_type;
    let texts: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
    let typed = cast(&texts, data_type).unwrap();
    let times = events(&(0..values.len()).map(|row| (row as i64, "d", 0)).collect::<Vec<_>>());
    let columns = vec![times.column(0).clone(), times.column(1).clone(), typed.clone()];
    let batch = RecordBatch::try_new(schema.numbered(), columns).unwrap();
    let taken = arrow::compute::is_not_null(&typed).unwrap();
    arrow::compute::filter_record_batch(&batch, &taken).unwrap()
}

/// All values of the last column, as text, in the order of the events.
fn shown(store: &Store, schema: &TableSchema) -> Vec<String> {
    let spec = shoal_kernel::ScanSpec { schema_version: schema.version, ..scan_all(&[1, schema.columns[2].id.0]) };
    let mut found = Vec::new();
    for batch in store.snapshot().scan(&spec).unwrap() {
        let batch = batch.unwrap();
        let times = batch.column(0).as_primitive::<TimestampMicrosecondType>().values();
        let values = cast(batch.column(1), &DataType::Utf8).unwrap();
        found.extend(
            times.iter().zip(values.as_string::<i32>()).map(|(time, value)| (*time, value.unwrap().to_owned())),
        );
    }
    found.sort();
    found.into_iter().map(|(_, value)| value).collect()
}

fn few() -> StoreOptions {
    StoreOptions { compaction_fan_in: 2, ..options() }
}

fn token(store: &Store, write: Write) -> Result<bool, ErrorCode> {
    let accepted = store.commit(vec![write], 0).unwrap().remove(0);
    accepted.map(|accepted| accepted.duplicate).map_err(|error| error.code())
}

/// Columns as they may be widened, with values of each type as clients write them.
fn histories() -> Vec<(Vec<DataType>, Vec<&'static str>)> {
    use DataType::{Boolean, Date32, Decimal128, Float64, Int32, Int64, Utf8};
    let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
    vec![
        (vec![Int32, Int64, Float64, Utf8], vec!["7", "-8", "5000000000"]),
        (vec![Int64, Float64, Utf8], vec!["7", "0", "-123456"]),
        (vec![Int64, Utf8], vec!["7", "9223372036854775807", "-1"]),
        (vec![Int32, Decimal128(12, 2), Decimal128(20, 4), Utf8], vec!["7", "-8", "0"]),
        (vec![Date32, micros, Utf8], vec!["2026-01-31", "1969-07-20"]),
        (vec![Boolean, Utf8], vec!["true", "false"]),
    ]
}

/// What was written under any version of the schema is the same event under each later one, wherever it lies.
#[test]
fn an_event_comes_again_in_a_wider_type() {
    for (types, values) in histories() {
        for flushes in [false, true] {
            let disk = MemoryDisk::default();
            let schemas = versions(&types);
            let (store, _) = open_with(&disk.shared(), &schemas[0], few(), 7).unwrap();
            let mut writes = Vec::new();
            for (number, schema) in schemas.iter().enumerate() {
                store.adopt(schema.clone()).unwrap();
                let rows = sent(schema, &values);
                writes.push(with_token(put(number as u64 + 1, rows), &format!("token {number}")));
                let (rows, before) = (writes[number].rows.len() as u64, store.snapshot().rows());
                commit(&store, writes[number].clone());
                // What did not fit before is news.
                assert_eq!(store.snapshot().rows(), rows.max(before), "{types:?}");
                if flushes {
                    store.flush().unwrap();
                }
            }
            let last = &schemas[schemas.len() - 1];
            assert_eq!(shown(&store, last), values, "{types:?}");
            // However it is sent again.
            for write in &writes {
                assert_eq!(token(&store, write.clone()), Ok(true), "{types:?}");
                commit(&store, Write { token: None, ..write.clone() });
            }
            let digest = store.content_digest().unwrap();
            store.flush().unwrap();
            while store.compact().unwrap() {}
            store.optimize(&|| true).unwrap();
            assert_eq!(
                (shown(&store, last), store.content_digest().unwrap()),
                (values.iter().map(|v| (*v).to_owned()).collect(), digest)
            );
            assert_eq!(store.verify().unwrap(), []);
            let (store, _) = open_with(&disk.restart(Loss::Everything).shared(), &schemas[0], few(), 8).unwrap();
            assert_eq!((store.snapshot().rows(), store.content_digest().unwrap()), (values.len() as u64, digest));
        }
    }
}

/// A token's rows have one fingerprint, for gateways and replicas of every version of the schema.
#[test]
fn rows_in_a_wider_type_have_the_same_fingerprint() {
    for (types, values) in histories() {
        let schemas = versions(&types);
        let narrow = sent(&schemas[0], &values);
        let kept: Vec<&str> = values.iter().copied().take(narrow.num_rows()).collect();
        let expected = fingerprint_of(&schemas[0], &narrow).unwrap();
        for (at, schema) in schemas.iter().enumerate() {
            let disk = MemoryDisk::default();
            let rows = sent(schema, &kept);
            assert_eq!(fingerprint_of(schema, &rows).unwrap(), expected, "{types:?}");
            let (store, _) = open_with(&disk.shared(), schema, options(), 7).unwrap();
            commit(&store, with_token(put(1, rows), "token"));
            assert_eq!(store.token("token").unwrap().fingerprint, expected, "{types:?}");
            // Whoever has not heard of the last changes sends rows of an older schema.
            for older in &schemas[..at] {
                assert_eq!(token(&store, with_token(put(2, sent(older, &kept)), "token")), Ok(true));
            }
            let other = sent(schema, &kept[1..]);
            assert_eq!(token(&store, with_token(put(2, other), "token")), Err(ErrorCode::TokenConflict));
        }
    }
}

/// A value that the older type does not hold exactly is another one, and so is one that would read otherwise.
#[test]
fn what_differs_stays_apart() {
    let disk = MemoryDisk::default();
    let schemas = versions(&[DataType::Int64, DataType::Float64, DataType::Utf8]);
    let (store, _) = open_with(&disk.shared(), &schemas[0], few(), 7).unwrap();
    let at_zero = |schema: &TableSchema, value: &str| sent(schema, &[value]);
    commit(&store, put(1, at_zero(&schemas[0], "7")));
    commit(&store, put(2, at_zero(&schemas[0], "9223372036854775807")));
    store.adopt(schemas[1].clone()).unwrap();
    for value in ["7", "7.5", "-0.0", "9223372036854775807"] {
        commit(&store, put(3, at_zero(&schemas[1], value)));
    }
    store.adopt(schemas[2].clone()).unwrap();
    for value in ["7", "7.0", "07", "7.5", "seven"] {
        commit(&store, put(4, at_zero(&schemas[2], value)));
    }
    store.flush().unwrap();
    let mut values = shown(&store, &schemas[2]);
    values.sort();
    let expected =
        ["-0.0", "07", "7", "7.0", "7.5", "9.223372036854776e18", "9223372036854775807", "seven"].map(str::to_owned);
    assert_eq!(values, expected);
    assert_eq!(store.verify().unwrap(), []);
}

/// The bytes of a value of one form are not taken for one of another: days are no microseconds, cents no hundredths of a cent.
#[test]
fn forms_do_not_look_alike() {
    let micros = DataType::Timestamp(TimeUnit::Microsecond, None);
    for types in [[DataType::Date32, micros], [DataType::Decimal128(5, 2), DataType::Decimal128(9, 4)]] {
        let disk = MemoryDisk::default();
        let schemas = versions(&types);
        let (store, _) = open_with(&disk.shared(), &schemas[0], options(), 7).unwrap();
        let stored = |schema: &TableSchema| {
            let raw: ArrayRef = match &schema.columns[2].data_type {
                DataType::Date32 => Arc::new(Date32Array::from(vec![5])),
                DataType::Timestamp(..) => Arc::new(arrow::array::TimestampMicrosecondArray::from(vec![5])),
                other => {
                    let five = arrow::array::Decimal128Array::from(vec![5]);
                    Arc::new(five.with_data_type(other.clone()))
                }
            };
            let event = events(&[(1, "d", 0)]);
            let columns = vec![event.column(0).clone(), event.column(1).clone(), raw];
            RecordBatch::try_new(schema.numbered(), columns).unwrap()
        };
        commit(&store, put(1, stored(&schemas[0])));
        store.adopt(schemas[1].clone()).unwrap();
        commit(&store, put(2, stored(&schemas[1])));
        assert_eq!(store.snapshot().rows(), 2, "{types:?}");
    }
}

/// Of two replicas one took rows before the column was widened, the other the same rows, under the same version, afterwards. They
/// hold the same, and whatever the column becomes, they show the same.
#[test]
fn replicas_agree_whichever_form_they_were_sent() {
    for (types, values) in histories() {
        let schemas = versions(&types);
        let disks = [MemoryDisk::default(), MemoryDisk::default()];
        let [(one, _), (two, _)] =
            disks.each_ref().map(|disk| open_with(&disk.shared(), &schemas[0], few(), 7).unwrap());
        let narrow = sent(&schemas[0], &values);
        let kept: Vec<&str> = values.iter().copied().take(narrow.num_rows()).collect();
        commit(&one, put(1, narrow));
        one.flush().unwrap();
        for schema in &schemas[1..2] {
            one.adopt(schema.clone()).unwrap();
            two.adopt(schema.clone()).unwrap();
        }
        commit(&two, put(1, sent(&schemas[1], &kept)));
        two.flush().unwrap();
        for schema in &schemas[1..] {
            one.adopt(schema.clone()).unwrap();
            two.adopt(schema.clone()).unwrap();
            assert_eq!(one.content_digest().unwrap(), two.content_digest().unwrap(), "{types:?}");
            assert_eq!(shown(&one, schema), shown(&two, schema), "{types:?}");
            copy(&one, &two);
            copy(&two, &one);
            assert_eq!([one.snapshot().rows(), two.snapshot().rows()], [kept.len() as u64; 2], "{types:?}");
        }
    }
}

/// An upsert table with rows of each type that its column has had, the same value in all of them: it reads the same everywhere,
/// before and after its rows are merged under any of the types.
#[test]
fn a_value_reads_the_same_whenever_it_was_written() {
    let types = [DataType::Float64, DataType::Utf8];
    for merged_under in 0..3 {
        let disk = MemoryDisk::default();
        let mut schema = upsert_schema();
        let (store, _) = open_with(&disk.shared(), &schema, few(), 7).unwrap();
        for (at, data_type) in std::iter::once(&DataType::Int64).chain(&types).enumerate() {
            if at > 0 {
                schema = changed(&schema, &widen(at as u32 + 2, at as u32 + 3, data_type.clone()));
                store.adopt(schema.clone()).unwrap();
            }
            let base = rows(&[(at as i64, None, 7)]);
            let value = cast(base.column(2), data_type).unwrap();
            let columns = vec![base.column(0).clone(), base.column(1).clone(), value];
            commit(&store, put(at as u64 + 1, RecordBatch::try_new(schema.numbered(), columns).unwrap()));
            store.flush().unwrap();
            if at >= merged_under {
                store.optimize(&|| true).unwrap();
            }
            let spec = shoal_kernel::ScanSpec { schema_version: schema.version, ..scan_all(&[schema.columns[2].id.0]) };
            let batches: Vec<_> = store.snapshot().scan(&spec).unwrap().map(Result::unwrap).collect();
            let column =
                arrow::compute::concat(&batches.iter().map(|batch| batch.column(0).as_ref()).collect::<Vec<_>>());
            let expected = cast(&column.as_ref().unwrap().slice(0, 1), &DataType::Utf8).unwrap();
            let shown = cast(&column.unwrap(), &DataType::Utf8).unwrap();
            assert_eq!(shown.len(), at + 1);
            assert!(shown.as_string::<i32>().iter().all(|text| text == Some(expected.as_string::<i32>().value(0))));
        }
    }
}

/// A table with a primary key has forgotten a column that was widened before it was dropped; a resend may still bring it, in any
/// form.
#[test]
fn a_resend_is_known_after_a_widened_column_was_dropped() {
    let old = upsert_schema();
    let wide = changed(&old, &widen(3, 4, DataType::Float64));
    let text = changed(&wide, &widen(4, 5, DataType::Utf8));
    let gone = changed(&text, &SchemaChange::Drop(ColumnId(5)));
    let write = |schema: &TableSchema, n: i64| {
        let base = rows(&[(1, Some("x"), n)]);
        let value = cast(base.column(2), &schema.columns[2].data_type).unwrap();
        let columns = vec![base.column(0).clone(), base.column(1).clone(), value];
        with_token(put(1, RecordBatch::try_new(schema.numbered(), columns).unwrap()), "token")
    };
    let forms = [&old, &wide, &text];
    for (at, first) in forms.into_iter().enumerate() {
        let disk = MemoryDisk::default();
        let (store, _) = open_with(&disk.shared(), first, options(), 7).unwrap();
        commit(&store, write(first, 7));
        store.adopt(gone.clone()).unwrap();
        let (reopened, _) = open_with(&disk.restart(Loss::Everything).shared(), &old, options(), 8).unwrap();
        for store in [store, reopened] {
            for (again, schema) in forms.into_iter().enumerate() {
                assert_eq!(token(&store, write(schema, 7)), Ok(true), "{at} {again}");
                assert_eq!(token(&store, write(schema, 8)), Err(ErrorCode::TokenConflict), "{at} {again}");
            }
            // Nothing of it is stored.
            let spec = shoal_kernel::ScanSpec { schema_version: gone.version, ..scan_all(&[1, 2]) };
            assert_eq!(store.snapshot().scan(&spec).unwrap().map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 1);
        }
    }
}
