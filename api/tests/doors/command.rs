//! The binary.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::record_batch::RecordBatch;
use shoal_actors::service::{CommandDone, QueryEvent, QuerySummary};
use shoal_kernel::{Error, ErrorCode, Span};

use crate::scripted::{MICROS, Script, World, batch, insert_of, table_of};

pub fn shoal(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SHOAL_")) {
        command.env_remove(name);
    }
    let mut child = command.envs(environment.iter().copied()).spawn().unwrap();
    // It may end before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
pub fn ends(output: &Output, code: i32, words: &[&str]) {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "'{word}' is missing in:\n{said}");
    }
}

#[test]
fn answers_in_every_format() {
    let world = World::new();
    world.script("SELECT 1", Script::Say(table_of(&[batch(1, 2)]))).script("INSERT 1", Script::Say(insert_of(3)));
    let url = world.url("");
    let run = |arguments: &[&str], input: &str| shoal(&[&["sql", "--url", &url], arguments].concat(), &[], input);
    ends(&run(&["-e", "SELECT 1"], ""), 0, &["│  1 ┆ name 1, \"quoted\"", "2 rows"]);
    ends(&run(&["-e", "INSERT 1; SELECT 1"], ""), 0, &["INSERT 3 at quorum", "2 rows"]);
    let csv = run(&["--format", "csv", "-e", "SELECT 1"], "");
    assert!(csv.stdout.starts_with(b"id,name,x\r\n1,"));
    let json = run(&["--format", "json"], "-- a script\nSELECT 1;\nSELECT 1");
    assert_eq!(String::from_utf8(json.stdout).unwrap().lines().count(), 2);
    ends(&shoal(&["sql", "-e", "SELECT 1"], &[("SHOAL_URL", &url)], ""), 0, &["2 rows"]);
}

#[test]
fn exit_codes_tell_what_happened() {
    let world = World::new();
    let place = Span { line: 2, column: 8, end_line: 2, end_column: 12 };
    let error =
        Error::new(ErrorCode::UnknownColumn, "no column 'nmae'").with_help("did you mean 'name'?").with_span(place);
    world.script("SELECT nmae", Script::Refuse(error)).script("SELECT 1", Script::Say(table_of(&[batch(1, 1)])));
    let mut broken = vec![QueryEvent::Schema(batch(0, 1).schema())];
    broken.extend((0..8).map(|part| QueryEvent::Batch(batch(part * 4096, 4096))));
    broken.push(QueryEvent::Error(Error::new(ErrorCode::NodeLost, "node n3 was lost")));
    world.script("SELECT broken", Script::Say(broken));
    let url = world.url("");
    let run = |arguments: &[&str]| shoal(&[&["sql", "--url", &url], arguments].concat(), &[], "");
    ends(
        &run(&["-e", "SELECT 1;\nSELECT nmae; SELECT 1"]),
        1,
        &["1 row", "no column 'nmae'", "did you mean", "         ^"],
    );
    ends(&run(&["-e", "SELECT broken"]), 1, &["node n3 was lost"]);
    ends(&run(&["--format", "csv", "-e", "SELECT broken"]), 1, &["cut off"]);
    ends(&run(&[]), 2, &["no statement"]);
    ends(&run(&["--format", "xml"]), 2, &["possible values"]);
    ends(&shoal(&["sql", "--url", "http://127.0.0.1:9", "-e", "SELECT 1"], &[], ""), 3, &["cannot reach"]);
    ends(&shoal(&["slq"], &[], ""), 2, &["unrecognized subcommand"]);
}

#[test]
fn settings_that_are_wrong_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shoal.toml");
    std::fs::write(&file, "data_dir = 'x'\nhtp = '127.0.0.1:1'\n").unwrap();
    let file = file.to_str().unwrap();
    ends(
        &shoal(&["start", "--config", file], &[], ""),
        2,
        &["shoal.toml:2:1: unknown key 'htp'", "did you mean 'http'"],
    );
    ends(&shoal(&["start"], &[("SHOAL_CONFIG", file)], ""), 2, &["unknown key 'htp'"]);
    ends(&shoal(&["start"], &[("SHOAL_DATA_DRI", "x")], ""), 2, &["SHOAL_DATA_DRI", "did you mean 'data_dir'"]);
    ends(&shoal(&["start"], &[], ""), 2, &["data_dir"]);
    ends(&shoal(&["start", "--config", "/no/such.toml"], &[], ""), 2, &["/no/such.toml"]);
    let start = |more: &[&str]| shoal(&[&["start", "--data-dir", "/tmp/x"], more].concat(), &[], "");
    ends(&start(&["--http", "0.0.0.0:9175"]), 2, &["--http", "not a loopback address"]);
    ends(&start(&["--cluster", "10.0.0.1:9176"]), 2, &["--cluster", "not a loopback address"]);
    ends(&start(&["--set", "queries=1"]), 2, &["--set queries=1"]);
    ends(&start(&["--set", "queries_max=x"]), 2, &["queries_max is 'x'"]);
    // Flags win over the environment: the wrong value in the environment is not even looked at.
    let output = shoal(
        &["start", "--data-dir", "/tmp/x", "--http", "0.0.0.0:1"],
        &[("SHOAL_HTTP", "0.0.0.0:2"), ("SHOAL_CLUSTER", "127.0.0.1:3")],
        "",
    );
    ends(&output, 2, &["0.0.0.0:1"]);
}

/// The answer to `SELECT * FROM people LIMIT 0`.
fn people() -> Vec<QueryEvent> {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("born", MICROS, true),
    ]);
    table_of(&[RecordBatch::new_empty(schema.into())])
}

#[test]
fn files_are_imported_in_chunks_that_can_be_sent_again() {
    let world = World::new();
    world.script("SELECT * FROM \"people\" LIMIT 0", Script::Say(people()));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("people.csv");
    let mut text = String::from("name,id,born\n");
    (0..25).for_each(|id| text.push_str(&format!("00{id},{id},2001-01-01\n")));
    std::fs::write(&file, &text).unwrap();
    let url = world.url("");
    let import = || {
        shoal(
            &[
                "import",
                file.to_str().unwrap(),
                "--table",
                "people",
                "--batch-rows",
                "10",
                "--ack",
                "all",
                "--url",
                &url,
            ],
            &[],
            "",
        )
    };
    // The first chunk's first attempt fails in a way that may be tried again.
    *world.node.write_error.lock().unwrap() = Some(Error::new(ErrorCode::NotEnoughReplicas, "1 of 3"));
    ends(&import(), 0, &["25 rows in table people"]);
    let tokens = |world: &World| {
        world.log(|log| log.writes.iter().map(|write| write.token.clone().unwrap()).collect::<Vec<_>>())
    };
    let first = tokens(&world);
    assert_eq!(first.len(), 3);
    assert!(first[0].starts_with("import-") && first[0].ends_with("-0") && first[2].ends_with("-2"));
    world.log(|log| {
        let rows = &log.writes[1].batches[0];
        assert_eq!(rows.column_by_name("id").unwrap().as_primitive::<Int64Type>().value(0), 10);
        // Codes keep their zeros: the table's types are used, not guesses.
        assert_eq!(rows.column_by_name("name").unwrap().as_string::<i32>().value(0), "0010");
    });
    ends(&import(), 0, &["3 of 3 chunks stood there already"]);
    assert_eq!(tokens(&world)[3..], first);

    std::fs::write(&file, "id,name\n1,a\nx,b\n").unwrap();
    ends(&import(), 1, &["line 3", "'x' is no BIGINT"]);
    let missing = shoal(&["import", "/no/such.csv", "--table", "people", "--url", &url], &[], "");
    ends(&missing, 1, &["/no/such.csv"]);
    ends(&shoal(&["import", "people.txt", "--table", "people", "--url", &url], &[], ""), 2, &[".parquet"]);
}

#[test]
fn tables_are_made_from_the_data() {
    let world = World::new();
    let create = "CREATE TABLE IF NOT EXISTS \"flights\" (\"id\" BIGINT NOT NULL, \"ts\" TIMESTAMP, \"origin\" VARCHAR, \
                  \"destination\" VARCHAR, \"delay\" INTEGER, \"distance\" INTEGER, PRIMARY KEY (\"id\"))";
    let done = CommandDone { tag: "CREATE TABLE".into(), rows: None, level: None, version: None };
    world.script(create, Script::Say(vec![QueryEvent::Done(done), QueryEvent::End(QuerySummary::default())]));
    let file = "demo/flights.parquet";
    let url = world.url("");
    let import = |key: &str| {
        shoal(&["import", file, "--table", "flights", "--create", "--primary-key", key, "--url", &url], &[], "")
    };
    // The scripted node makes no tables: what matters is what it was asked for.
    ends(&import("id"), 1, &[create]);
    ends(&import("di"), 2, &["no column 'di'", "did you mean 'id'"]);
}
