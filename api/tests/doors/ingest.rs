//! `/api/v1/tables/{table}/ingest`.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, StringViewArray};
use arrow::datatypes::{DataType, Decimal128Type, Field, Float64Type, Int64Type, Schema, TimestampMicrosecondType};
use arrow::ipc::writer::StreamWriter;
use parquet::arrow::ArrowWriter;
use serde_json::json;
use shoal::Limits;
use shoal_kernel::{Applied, Error, ErrorCode, WriteLevel};

use crate::scripted::{Answer, World};

const NDJSON: &str = "application/x-ndjson";
const CSV: &str = "text/csv";
const ARROW: &str = "application/vnd.apache.arrow.stream";
const PARQUET: &str = "application/vnd.apache.parquet";

fn written(world: &World) -> RecordBatch {
    world.log(|log| {
        let write = log.writes.last().expect("nothing was written");
        arrow::compute::concat_batches(&write.batches[0].schema(), &write.batches).unwrap()
    })
}

#[track_caller]
fn nothing_written(world: &World) {
    world.log(|log| assert!(log.writes.is_empty(), "something was written"));
}

#[test]
fn ndjson_becomes_typed_columns() {
    let world = World::new();
    let body = r#"{"id": 1, "name": "Ann \u00e9", "height": 1.7, "born": "1990-05-01T12:00:00Z", "tags": ["a", null], "balance": "12.30"}

{"balance": 0.1, "id": 2, "born": 5, "tags": null}
{"id": 3, "HEIGHT": 2}"#;
    let answer = world.ingest("people/ingest", NDJSON, body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        answer.json(),
        json!({"accepted": 3, "rejected": 0, "errors": [], "level": "quorum", "version": "5.0@n7#1", "duplicate": false})
    );
    let rows = written(&world);
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().values(), &[1, 2, 3]);
    let names = rows.column(1).as_string::<i32>();
    assert_eq!((names.value(0), names.is_null(1)), ("Ann é", true));
    assert_eq!(rows.column(2).as_primitive::<Float64Type>().value(2), 2.0);
    assert_eq!(rows.column(3).as_primitive::<TimestampMicrosecondType>().value(0), 641_563_200_000_000);
    assert_eq!(rows.column(3).as_primitive::<TimestampMicrosecondType>().value(1), 5);
    let tags: &ListArray = rows.column(4).as_list();
    assert_eq!((tags.value(0).len(), tags.is_null(1)), (2, true));
    assert_eq!(rows.column(5).as_primitive::<Decimal128Type>().values()[..2], [1230, 10]);
}

#[test]
fn the_57th_row_spoils_the_request_and_is_named() {
    let world = World::new();
    let mut body = String::new();
    for line in 1..=100 {
        let id = if line == 57 { json!("fifty-seven") } else { json!(line) };
        body.push_str(&json!({"id": id, "name": "x"}).to_string());
        body.push('\n');
    }
    let problem = world.ingest("people/ingest", NDJSON, body.as_bytes()).problem(422, "invalid_rows");
    assert_eq!(problem["accepted"], 0);
    assert_eq!(problem["rejected"], 1);
    assert_eq!(
        problem["errors"],
        json!([{"line": 57, "column": "id", "code": "wrong_type", "message": "column 'id': the string \"fifty-seven\" is no BIGINT"}])
    );
    assert!(problem["detail"].as_str().unwrap().contains("line 57"));
    assert_eq!(problem["applied"], "false");
    nothing_written(&world);

    let answer = world.ingest("people/ingest?on_error=skip", NDJSON, body.as_bytes()).json();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(99), &json!(1)));
    assert_eq!(answer["errors"][0]["line"], 57);
    assert_eq!(written(&world).num_rows(), 99);
}

#[test]
fn every_fault_of_a_row_has_its_code() {
    let world = World::new();
    for (line, code, words) in [
        (r#"{"id": 1,}"#, "malformed", "column 10"),
        ("[1]", "malformed", "not a JSON object"),
        (r#"{"id": 1} trailing"#, "malformed", "trailing"),
        (r#"{"id": 1, "nmae": 2}"#, "unknown_column", "did you mean 'name'?"),
        (r#"{"id": 1, "id": 2}"#, "duplicate_column", "'id' is given twice"),
        (r#"{"name": "x"}"#, "missing_column", "'id' is missing"),
        (r#"{"id": null}"#, "null_value", "'id' may not be null"),
        (r#"{"id": 1, "name": 5}"#, "wrong_type", "the number 5 is no VARCHAR"),
        (r#"{"id": 1, "tags": [1]}"#, "wrong_type", "tags"),
        (r#"{"id": 1, "tags": {"a": 1}}"#, "wrong_type", "tags"),
        (r#"{"id": 99999999999999999999}"#, "wrong_type", "BIGINT"),
        (r#"{"id": 9223372036854775808}"#, "out_of_range", "BIGINT"),
        (r#"{"id": 1, "balance": "12345678901.00"}"#, "out_of_range", "DECIMAL(12,2)"),
    ] {
        let body = format!("{{\"id\": 5}}\n{line}\n{{\"id\": 6}}\n");
        let problem = world.ingest("people/ingest", NDJSON, body.as_bytes()).problem(422, "invalid_rows");
        let error = &problem["errors"][0];
        assert_eq!((&error["line"], &error["code"]), (&json!(2), &json!(code)), "{line}: {error}");
        assert!(error["message"].as_str().unwrap().contains(words), "{line}: {error}");
    }
    let body = [b"{\"id\": 1, \"name\": \"".as_slice(), &[0xff], b"\"}"].concat();
    let problem = world.ingest("people/ingest", NDJSON, &body).problem(422, "invalid_rows");
    assert_eq!(problem["errors"][0]["code"], "malformed");
    nothing_written(&world);
}

#[test]
fn csv_follows_its_header() {
    let world = World::new();
    let body = "name,ID,born,balance\r\n\"Ann, \"\"A\"\"\nB\",1,2001-02-03 04:05:06,1.25\r\n,2,,\r\n";
    let answer = world.ingest("people/ingest", CSV, body.as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let rows = written(&world);
    assert_eq!(rows.column(1).as_string::<i32>().value(0), "Ann, \"A\"\nB");
    assert!(rows.column(1).is_null(1) && rows.column(3).is_null(1) && rows.column(2).is_null(0));

    // The quoted line end counts as a line of the body.
    let body = "id,name\n1,\"a\nb\"\n2,x,y\nthree,z\n";
    let problem = world.ingest("people/ingest", CSV, body.as_bytes()).problem(422, "invalid_rows");
    let errors = problem["errors"].as_array().unwrap();
    assert_eq!((&errors[0]["line"], &errors[0]["code"]), (&json!(4), &json!("field_count")));
    assert_eq!((&errors[1]["line"], &errors[1]["code"]), (&json!(5), &json!("wrong_type")));

    let problem = world.ingest("people/ingest", CSV, b"id,nmae\n1,x\n").problem(400, "unknown_column");
    assert!(problem["detail"].as_str().unwrap().contains("did you mean 'name'?"));
    world.ingest("people/ingest", CSV, b"name\nx\n").problem(400, "invalid_request");
    world.ingest("people/ingest", CSV, b"id,id\n1,1\n").problem(400, "invalid_request");
    world.log(|log| assert_eq!(log.writes.len(), 1));
}

fn ipc(batches: &[RecordBatch]) -> Vec<u8> {
    let mut stream = StreamWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    batches.iter().for_each(|batch| stream.write(batch).unwrap());
    stream.into_inner().unwrap()
}

fn columns(ids: impl Array + 'static, names: impl Array + 'static) -> RecordBatch {
    let fields =
        vec![Field::new("name", names.data_type().clone(), true), Field::new("id", ids.data_type().clone(), true)];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), vec![Arc::new(names), Arc::new(ids)]).unwrap()
}

#[test]
fn columnar_bodies_are_matched_by_name_and_cast_without_loss() {
    let world = World::new();
    let batch = columns(Int32Array::from(vec![1, 2]), StringViewArray::from(vec![Some("a"), None]));
    let mut parquet = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut parquet, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    for (media_type, body) in [(ARROW, ipc(&[batch.clone(), batch.slice(0, 1)])), (PARQUET, parquet)] {
        let answer = world.ingest("people/ingest?ack=all", media_type, &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["level"], "all");
        let rows = written(&world);
        assert_eq!(rows.schema().field(0).name(), "id");
        assert_eq!(rows.column(0).as_primitive::<Int64Type>().value(1), 2);
        assert_eq!(rows.column(1).as_string::<i32>().value(0), "a");
        assert_eq!(rows.column(5).data_type(), &DataType::Decimal128(12, 2));
    }
}

#[test]
fn columnar_bodies_that_do_not_fit_are_refused() {
    let world = World::new();
    let names = || StringArray::from(vec!["a", "b", "c"]);
    let nulls = ipc(&[columns(Int64Array::from(vec![Some(1), None, Some(3)]), names())]);
    let problem = world.ingest("people/ingest", ARROW, &nulls).problem(422, "invalid_rows");
    assert_eq!((&problem["errors"][0]["line"], &problem["errors"][0]["code"]), (&json!(2), &json!("null_value")));
    let wide = ipc(&[columns(arrow::array::UInt64Array::from(vec![1, 2, u64::MAX]), names())]);
    let problem = world.ingest("people/ingest", ARROW, &wide).problem(422, "invalid_rows");
    assert_eq!((&problem["errors"][0]["line"], &problem["errors"][0]["code"]), (&json!(3), &json!("out_of_range")));
    let text = ipc(&[columns(names(), names())]);
    let problem = world.ingest("people/ingest", ARROW, &text).problem(422, "invalid_rows");
    assert!(problem["detail"].as_str().unwrap().contains("'id' is BIGINT; the body has VARCHAR"), "{problem}");

    let good = ipc(&[columns(Int64Array::from(vec![1, 2, 3]), names())]);
    world.ingest("people/ingest", ARROW, &good[..good.len() / 2]).problem(400, "invalid_request");
    world.ingest("people/ingest", ARROW, b"").problem(400, "invalid_request");
    world.ingest("people/ingest", PARQUET, b"PAR1 and nothing more").problem(400, "invalid_request");
    // Bytes that contradict each other must cost an error, never the process.
    for place in 0..good.len().min(600) {
        let mut damaged = good.clone();
        damaged[place] ^= 0x55;
        let answer = world.ingest("people/ingest", ARROW, &damaged);
        assert!([200, 400, 413, 422].contains(&answer.status), "{}", answer.text());
    }
    let answer = world.ingest("people/ingest?on_error=skip", ARROW, &nulls).json();
    assert_eq!((&answer["accepted"], &answer["rejected"]), (&json!(2), &json!(1)));
}

#[test]
fn event_tables_are_given_what_they_lack_by_the_node() {
    let world = World::new();
    assert_eq!(world.ingest("events/ingest", NDJSON, b"{\"what\": \"x\"}").status, 200);
    assert_eq!(written(&world).schema().fields().len(), 1);
    let body = b"{\"what\": \"x\", \"_ts\": \"2001-01-01\"}\n{\"what\": \"y\"}";
    assert_eq!(world.ingest("events/ingest", NDJSON, body).status, 200);
    let rows = written(&world);
    assert_eq!(rows.schema().fields().len(), 2);
    assert!(rows.column(0).is_null(1));
}

#[test]
fn tokens_levels_and_parameters() {
    let world = World::new();
    let send = |path: &str, token: &str| {
        let headers = [("content-type", NDJSON), ("idempotency-key", token)];
        world.send("POST", path, &headers, b"{\"id\": 1}\n")
    };
    assert_eq!(send("/api/v1/tables/people/ingest?ack=one", "t-1").json()["duplicate"], false);
    assert_eq!(send("/api/v1/tables/people/ingest?ack=one&timeout_ms=50", "t-1").json()["duplicate"], true);
    world.log(|log| {
        assert_eq!(log.writes[1].token.as_deref(), Some("t-1"));
        assert_eq!(log.writes[1].level, Some(WriteLevel::One));
        assert_eq!(log.writes[1].timeout, Some(std::time::Duration::from_millis(50)));
    });
    send("/api/v1/tables/people/ingest", &"x".repeat(256)).problem(400, "invalid_request");
    send("/api/v1/tables/people/ingest?ack=some", "t").problem(400, "invalid_request");
    send("/api/v1/tables/people/ingest?on_error=stop", "t").problem(400, "invalid_request");
    send("/api/v1/tables/people/ingest?timeout_ms=soon", "t").problem(400, "invalid_request");
    let problem = send("/api/v1/tables/people/ingest?akc=one", "t").problem(400, "invalid_request");
    assert_eq!(problem["help"], "did you mean 'ack'?");
    let problem = send("/api/v1/tables/event/ingest", "t").problem(404, "unknown_table");
    assert_eq!(problem["help"], "did you mean 'events'?; or send the rows with ?create=true to have it made for them");
    world.ingest("people/ingest", "text/html", b"x").problem(415, "invalid_request");
    let gzip = [("content-type", NDJSON), ("content-encoding", "gzip")];
    world.send("POST", "/api/v1/tables/people/ingest", &gzip, b"x").problem(415, "invalid_request");
    let empty = world.ingest("people/ingest", NDJSON, b"\n").json();
    assert_eq!(empty, json!({"accepted": 0, "rejected": 0, "errors": [], "duplicate": false}));
}

#[test]
fn errors_of_the_write_say_whether_it_was_applied() {
    let world = World::new();
    let error = Error::new(ErrorCode::NotEnoughReplicas, "1 of 2").with_applied(Applied::Unknown);
    *world.node.write_error.lock().unwrap() = Some(error);
    let answer = world.ingest("people/ingest", NDJSON, b"{\"id\": 1}");
    let problem = answer.problem(503, "not_enough_replicas");
    assert_eq!((&problem["applied"], &problem["retryable"]), (&json!("unknown"), &json!(true)));
    assert_eq!(answer.headers["retry-after"], "1");
}

fn limited() -> Limits {
    Limits { ingest_body_bytes_max: 1 << 20, ingest_line_bytes_max: 4096, ..Limits::default() }
}

#[test]
fn a_body_beyond_the_limit_is_refused_as_soon_as_that_is_known() {
    let world = World::with(limited());
    // By its announced length, before a byte of it.
    let mut stream = TcpStream::connect(world.address).unwrap();
    let head = "POST /api/v1/tables/people/ingest HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ncontent-length: 200000000\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let problem = Answer::read(&mut stream).problem(413, "limit_exceeded");
    assert!(problem["detail"].as_str().unwrap().contains("1048576 bytes (ingest_body_bytes_max)"));

    // By what comes, when no length is announced.
    let mut stream = TcpStream::connect(world.address).unwrap();
    let head = "POST /api/v1/tables/people/ingest HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let line = format!("{{\"id\": 1, \"name\": \"{}\"}}\n", "x".repeat(1000));
    for _ in 0..2000 {
        stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).unwrap();
    }
    // Were it not refused yet, this would be a body that is cut off.
    stream.shutdown(Shutdown::Write).unwrap();
    Answer::read(&mut stream).problem(413, "limit_exceeded");
    nothing_written(&world);

    let long = format!("{{\"id\": 1, \"name\": \"{}\"}}\n", "x".repeat(5000));
    for (media_type, body) in [(NDJSON, long.clone()), (CSV, format!("id,name\n1,\"{}", "x".repeat(9000)))] {
        let problem = world.ingest("people/ingest", media_type, body.as_bytes()).problem(413, "limit_exceeded");
        assert!(problem["detail"].as_str().unwrap().contains("ingest_line_bytes_max"), "{problem}");
    }
}

/// What a client that pushes 200 MB without listening gets to see in the end.
#[test]
fn two_hundred_megabytes_are_refused_by_default() {
    let world = World::new();
    let answer = world.ingest("people/ingest", NDJSON, &vec![b'\n'; 200_000_000]);
    answer.problem(413, "limit_exceeded");
    nothing_written(&world);
}

#[test]
fn bodies_under_way_share_their_memory() {
    let world = World::with(Limits { ingest_memory_bytes_max: 64 << 10, ..Limits::default() });
    let line = format!("{{\"id\": 1, \"name\": \"{}\"}}\n", "x".repeat(1000));
    let answer = world.ingest("people/ingest", NDJSON, line.repeat(100).as_bytes());
    let problem = answer.problem(429, "overloaded");
    assert!(problem["detail"].as_str().unwrap().contains("ingest_memory_bytes_max"));
    assert_eq!(answer.headers["retry-after"], "1");
    // It was given back.
    assert_eq!(world.ingest("people/ingest", NDJSON, line.repeat(50).as_bytes()).status, 200);
}

#[test]
fn a_body_that_is_cut_off_writes_nothing() {
    let world = World::new();
    for encoding in
        ["content-length: 1000\r\n\r\n{\"id\": 1}\n", "transfer-encoding: chunked\r\n\r\nb\r\n{\"id\": 1}\n\n\r\n"]
    {
        let mut stream = TcpStream::connect(world.address).unwrap();
        let head = "POST /api/v1/tables/people/ingest HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n";
        stream.write_all(format!("{head}{encoding}").as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let problem = Answer::read(&mut stream).problem(400, "invalid_request");
        assert!(problem["detail"].as_str().unwrap().contains("cut off"), "{problem}");
    }
    nothing_written(&world);
}

#[test]
fn a_body_that_stands_still_is_given_up() {
    let world = World::with(Limits { body_idle: std::time::Duration::from_millis(100), ..Limits::default() });
    let mut stream = TcpStream::connect(world.address).unwrap();
    let head = "POST /api/v1/tables/people/ingest HTTP/1.1\r\nhost: x\r\ncontent-type: text/csv\r\ncontent-length: 99\r\n\r\nid\n";
    stream.write_all(head.as_bytes()).unwrap();
    Answer::read(&mut stream).problem(408, "invalid_request");
}

#[test]
fn rows_make_and_change_their_table() {
    let world = World::new();
    let unknown = world.ingest("clicks/ingest", NDJSON, b"{\"n\": 1}").problem(404, "unknown_table");
    assert!(unknown["help"].as_str().unwrap().contains("?create=true"), "{unknown}");
    world.ingest("clicks/ingest?create=perhaps", NDJSON, b"{\"n\": 1}").problem(400, "invalid_request");
    // Nothing is made for a body that is no good, nor for none.
    let refused = world.ingest("clicks/ingest?create=true", NDJSON, b"{\"n\": 1}\n{").problem(422, "invalid_rows");
    assert_eq!(refused["errors"][0]["line"], 2);
    assert_eq!(world.ingest("clicks/ingest?create=true", NDJSON, b"\n").json()["accepted"], 0);
    assert!(!world.node.tables.lock().unwrap().contains_key("clicks"));

    let names = |world: &World| -> Vec<String> {
        let tables = world.node.tables.lock().unwrap();
        let columns = tables["clicks"].schema.columns.iter();
        columns.map(|column| format!("{} {}", column.name, column.data_type)).collect()
    };
    let answer = world.ingest("clicks/ingest?create=true", NDJSON, b"{\"n\": 1}\n{\"n\": 2}").json();
    assert_eq!(answer["accepted"], 2);
    assert_eq!(names(&world)[0], "n Int64");
    // From then on without being told.
    let answer = world.ingest("clicks/ingest", CSV, b"n,who\n0.5,Ann\n").json();
    assert_eq!(answer["accepted"], 1);
    assert_eq!(names(&world), ["n Float64", "_ts Timestamp(µs)", "_dedup Utf8", "who Utf8"]);
    // The first rows again: in the form that they had.
    world.ingest("clicks/ingest", NDJSON, b"{\"n\": 1}\n{\"n\": 2}");
    assert_eq!(written(&world).column(0).as_primitive::<Int64Type>().values(), &[1, 2]);
    world.log(|log| {
        let forms: Vec<u32> = log.written_as.iter().map(|table| table.schema.columns[0].id.0).collect();
        assert_eq!(forms, [0, 3, 0]);
    });
    let refused = world.ingest("clicks/ingest", NDJSON, b"{\"m\": 1}\n[]").problem(422, "invalid_rows");
    assert_eq!((&refused["errors"][0]["line"], names(&world).len()), (&json!(2), 4));
    let skipped = world.ingest("clicks/ingest?on_error=skip", NDJSON, b"{\"m\": 1}\n[]").json();
    assert_eq!((&skipped["accepted"], &skipped["rejected"], names(&world).len()), (&json!(1), &json!(1), 5));
    // Other tables keep their columns.
    world.ingest("events/ingest?create=true", NDJSON, b"{\"n\": 1}").problem(422, "invalid_rows");
}
