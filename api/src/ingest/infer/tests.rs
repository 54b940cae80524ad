//! Steps for bodies, one after the other, against a table that changes as they ask.

use arrow::array::{Array, AsArray, Float64Array, Int64Array, StringArray, UInt64Array};
use arrow::datatypes::{Field, Int64Type, Schema, TimeUnit};
use arrow::ipc::writer::StreamWriter;
use shoal_kernel::{ColumnId, TableId};

use super::*;
use crate::format::type_name;

const BOUNDS: Bounds = Bounds { line_bytes_max: 1 << 20, decoded_bytes_max: 1 << 30 };

fn body(format: InputFormat, bytes: impl Into<Vec<u8>>) -> Body {
    Body { format, bytes: bytes.into().into(), on_error: OnError::Fail, bounds: BOUNDS }
}

fn ndjson(text: &str) -> Body {
    body(InputFormat::Ndjson, text)
}

fn made(new: NewTable) -> Table {
    let NewTable { name, schema, partitioning, options, .. } = new;
    Table { id: TableId(1), name, schema, partitioning, options, cutoff: None, partitions: Vec::new() }
}

/// What becomes of a body, with the table changed as it asks.
#[track_caller]
fn load(table: &mut Option<Arc<Table>>, body: &Body) -> (Arc<Table>, RecordBatch) {
    for _ in 0..3 {
        match step(body, "t", table.as_ref()).unwrap() {
            Step::Write(written_as, decoded) => {
                assert_eq!(decoded.rejected, 0);
                let schema = decoded.batches[0].schema();
                return (written_as, arrow::compute::concat_batches(&schema, &decoded.batches).unwrap());
            }
            Step::Create(new) => *table = Some(Arc::new(made(new))),
            Step::Alter(changes) => {
                let mut next = table.as_deref().unwrap().clone();
                for change in &changes {
                    next.schema = next.schema.changed(change).unwrap();
                }
                next.schema.version += 1;
                *table = Some(Arc::new(next));
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("the table is never as it should be");
}

fn columns(table: &Table) -> Vec<String> {
    table.schema.columns.iter().map(|column| format!("{} {}", column.name, type_name(&column.data_type))).collect()
}

#[track_caller]
fn refused(table: Option<&Arc<Table>>, body: &Body) -> Vec<(u64, String)> {
    match step(body, "t", table) {
        Ok(Step::Refuse(decoded)) => decoded.errors.into_iter().map(|error| (error.line, error.message)).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_table_is_made_for_its_first_rows() {
    let mut table = None;
    let text = r#"{"at": "2026-01-31T12:00:00Z", "n": 1, "ok": true, "tags": ["a"], "who": {"id": 7, "names": ["x"]}, "none": null}
{"n": 2.5, "word": "x", "who": {"id": 8, "since": "2020-01-01T00:00:00Z"}}
"#;
    let (written_as, rows) = load(&mut table, &ndjson(text));
    let expected = [
        "at TIMESTAMP",
        "n DOUBLE",
        "ok BOOLEAN",
        "tags VARCHAR[]",
        "who STRUCT<id BIGINT, names VARCHAR[], since TIMESTAMP>",
        "word VARCHAR",
        "_ts TIMESTAMP",
        "_dedup VARCHAR",
    ];
    assert_eq!(columns(&written_as), expected);
    // What the node fills in is left to it.
    assert_eq!((rows.num_rows(), rows.num_columns()), (2, 6));
    assert!(matches!(step(&ndjson("\n"), "u", None), Ok(Step::Nothing)));
}

#[test]
fn columns_come_and_widen_and_the_same_rows_stay_the_same() {
    let mut table = None;
    let first = ndjson("{\"n\": 1}\n{\"n\": 2}");
    load(&mut table, &first);
    let whole = load(&mut table, &first);
    load(&mut table, &ndjson(r#"{"n": 0.5, "more": true}"#));
    load(&mut table, &ndjson(r#"{"n": "many"}"#));
    assert_eq!(columns(table.as_ref().unwrap()), ["n VARCHAR", "_ts TIMESTAMP", "_dedup VARCHAR", "more BOOLEAN"]);
    assert_eq!(table.as_ref().unwrap().schema.version, 3);

    // Sent again, the first rows are in the form that they had, and count as the same.
    let (written_as, rows) = load(&mut table, &first);
    assert_eq!(written_as.schema.columns[0].id, whole.0.schema.columns[0].id);
    assert_eq!(rows.column(0), whole.1.column(0));
    let root = |table: &Table| table.schema.root(table.schema.columns[0].id);
    assert_eq!((root(&written_as), root(&whole.0)), (ColumnId(0), ColumnId(0)));
    // Each body goes where all of it fits.
    let (_, rows) = load(&mut table, &ndjson("{\"n\": 3}\n{\"n\": [1, {\"a\": 2}]}\n{\"n\": true}"));
    let texts: Vec<_> = rows.column(0).as_string::<i32>().iter().flatten().collect();
    assert_eq!(texts, ["3", r#"[1,{"a":2}]"#, "true"]);
    let (_, rows) = load(&mut table, &ndjson("{\"n\": 3}\n{\"n\": 4.5}"));
    assert_eq!(rows.column(0).as_ref(), &Float64Array::from(vec![3.0, 4.5]) as &dyn Array);
    assert_eq!(table.as_ref().unwrap().schema.version, 3, "nothing had to change");
}

#[test]
fn structs_get_the_fields_that_come() {
    let mut table = None;
    load(&mut table, &ndjson(r#"{"o": {"a": 1}}"#));
    load(&mut table, &ndjson(r#"{"o": {"b": [{"c": 1}]}}"#));
    load(&mut table, &ndjson(r#"{"o": {"a": 0.5, "b": [{"d": "x"}, {}]}}"#));
    let expected = "o STRUCT<a DOUBLE, b STRUCT<c BIGINT, d VARCHAR>[]>";
    assert_eq!(columns(table.as_ref().unwrap())[0], expected);
    // A field that is null and not known is nothing new.
    load(&mut table, &ndjson(r#"{"o": {"a": 2, "z": null}, "zz": null}"#));
    assert_eq!(columns(table.as_ref().unwrap())[0], expected);
    load(&mut table, &ndjson(r#"{"o": 5}"#));
    assert_eq!(columns(table.as_ref().unwrap())[0], "o VARCHAR");
}

#[test]
fn what_is_no_row_is_named_before_anything_changes() {
    let mut table = None;
    load(&mut table, &ndjson(r#"{"a": 1}"#));
    let text = "{\"b\": 1}\n{\"b\": }\n{\"b\": 1, \"b\": 2}\n{\"_version\": 1}\n{\"\": 1}\n{\"_ts\": \"soon\"}\n[1]";
    let errors = refused(table.as_ref(), &ndjson(text));
    assert_eq!(errors.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7]);
    assert!(errors[1].1.contains("given twice") && errors[2].1.contains("reserved"), "{errors:?}");
    assert!(errors[4].1.contains("'_ts'"), "{errors:?}");
    assert_eq!(
        refused(None, &ndjson("{\"b\": 1}\n{")),
        [(2, errors[0].1.clone())]
            .map(|(line, _)| { (line, "not a JSON object: EOF while parsing an object at column 1".to_owned()) })
    );
    // Left out, the others decide.
    let skipping = Body { on_error: OnError::Skip, ..ndjson("{\"b\": 1}\n{\"c\": }\n") };
    assert!(matches!(step(&skipping, "t", table.as_ref()), Ok(Step::Alter(changes)) if changes.len() == 1));
}

#[test]
fn there_are_only_so_many_columns() {
    let most = shoal_kernel::limits::COLUMNS_PER_TABLE_MAX - 2;
    let object = |columns: usize| {
        let members: Vec<String> = (0..columns).map(|column| format!("\"c{column}\": 1")).collect();
        format!("{{{}}}", members.join(", "))
    };
    assert!(matches!(step(&ndjson(&object(most)), "t", None), Ok(Step::Create(_))));
    let errors = refused(None, &ndjson(&format!("{{\"c0\": 1}}\n{}", object(most + 1))));
    assert_eq!(errors[0].0, 2);
    assert!(errors[0].1.contains("4096"), "{errors:?}");
}

#[test]
fn csv_says_by_its_fields_what_it_holds() {
    let mut table = None;
    let text =
        "zip,n,share,when,ok,empty\n00501,1,0.5,2026-01-31 12:00:00,true,\n10115,2,1,2026-01-31T13:00:00Z,false,\n";
    let (_, rows) = load(&mut table, &body(InputFormat::Csv, text));
    let expected = ["zip VARCHAR", "n BIGINT", "share DOUBLE", "when TIMESTAMP", "ok BOOLEAN"];
    assert_eq!(columns(table.as_ref().unwrap())[..5], expected);
    assert_eq!(rows.column(0).as_ref(), &StringArray::from(vec!["00501", "10115"]) as &dyn Array);
    let (_, rows) = load(&mut table, &body(InputFormat::Csv, "n,new\n7,x\n"));
    assert_eq!(rows.column_by_name("n").unwrap().as_primitive::<Int64Type>().values(), &[7]);
    load(&mut table, &body(InputFormat::Csv, "n\nseven\n"));
    assert_eq!(columns(table.as_ref().unwrap())[1], "n VARCHAR");
    let errors = refused(table.as_ref(), &body(InputFormat::Csv, "n,fresh\n1\n"));
    assert_eq!(errors[0].0, 2);
    for (header, word) in [("a,a\n1,2\n", "twice"), ("_version\n1\n", "reserved"), ("a,\n1,2\n", "name")] {
        let error = step(&body(InputFormat::Csv, header), "t", None).unwrap_err();
        assert!(error.message().contains(word), "{error}");
    }
}

fn arrow(columns: Vec<(&str, arrow::array::ArrayRef)>) -> Body {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    body(InputFormat::Arrow, writer.into_inner().unwrap())
}

#[test]
fn columnar_bodies_bring_their_types() {
    let mut table = None;
    let micros =
        arrow::compute::cast(&Int64Array::from(vec![1_000]), &DataType::Timestamp(TimeUnit::Millisecond, None));
    let (_, rows) = load(
        &mut table,
        &arrow(vec![
            ("n", Arc::new(arrow::array::Int32Array::from(vec![5]))),
            ("at", micros.unwrap()),
            ("nothing", arrow::array::new_null_array(&DataType::Int8, 1)),
            ("bytes", Arc::new(arrow::array::BinaryArray::from(vec![&b"x"[..]]))),
        ]),
    );
    assert_eq!(columns(table.as_ref().unwrap())[..3], ["n BIGINT", "at TIMESTAMP", "bytes BYTEA"]);
    assert_eq!(rows.num_columns(), 3);
    // More than a BIGINT holds: every digit is kept.
    let (_, rows) = load(&mut table, &arrow(vec![("n", Arc::new(UInt64Array::from(vec![u64::MAX])))]));
    assert_eq!(rows.column(0).as_string::<i32>().value(0), "18446744073709551615");
    let mixed = arrow(vec![("bytes", Arc::new(Int64Array::from(vec![1])))]);
    assert_eq!(step(&mixed, "t", table.as_ref()).unwrap_err().code(), ErrorCode::InvalidRows);
}
