//! `/api/v1/sql`, queries, health, metrics, the description.

use std::io::{Read, Write};
use std::net::TcpStream;

use arrow::ipc::reader::StreamReader;
use expect_test::expect;
use serde_json::{Value, json};
use shoal_actors::service::{NodeChange, QueryEvent, QuerySummary};
use shoal_kernel::{Applied, Error, ErrorCode, NodeId, ReadLevel, Span};

use crate::scripted::{Script, World, batch, insert_of, table_of};

fn query(sql: &str, format: &str) -> String {
    json!({"query": sql, "format": format}).to_string()
}

fn without(mut document: Value, member: &str) -> Value {
    document.as_object_mut().unwrap().remove(member);
    document
}

#[test]
fn json_is_typed() {
    let world = World::new();
    world.script("SELECT 1", Script::Say(table_of(&[batch(1, 2), batch(3, 1)])));
    let answer = world.sql(r#"{"query": "SELECT 1"}"#);
    assert_eq!((answer.status, answer.whole), (200, true));
    assert_eq!(answer.headers["content-type"], "application/json");
    let id = answer.headers["x-shoal-query-id"].clone();
    let document = answer.json();
    assert_eq!(document["query_id"], id.as_str());
    expect![[r#"{"elapsed_ms":1.5,"end":true,"results":[{"columns":[{"name":"id","type":"BIGINT"},{"name":"name","type":"VARCHAR"},{"name":"x","type":"DOUBLE"}],"rows":[[1,"name 1, \"quoted\"",null],[2,null,1.0],[3,"name 3, \"quoted\"",1.5]],"type":"table"}],"rows":3}"#]]
        .assert_eq(&without(document, "query_id").to_string());
}

#[test]
fn ndjson_ends_in_a_line_that_is_no_row() {
    let world = World::new();
    world.script("SELECT 1", Script::Say(table_of(&[batch(2, 2)])));
    let answer = world.sql(&query("SELECT 1", "ndjson"));
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let lines: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0], json!({"id": 2, "name": null, "x": 1.0}));
    assert_eq!(lines[2]["$end"]["rows"], 2);
    assert_eq!(lines[2]["$end"]["columns"][0], json!({"name": "id", "type": "BIGINT"}));

    world.script("INSERT 1", Script::Say(insert_of(9)));
    let answer = world.sql(&query("SELECT 1; INSERT 1; SELECT 1", "ndjson"));
    let lines: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[2]["$result"]["tag"], "INSERT");
    assert_eq!(lines[3]["$result"]["type"], "table");
    assert_eq!(lines.len(), 7);
}

#[test]
fn csv_tells_null_from_nothing() {
    let world = World::new();
    world.script("SELECT 1", Script::Say(table_of(&[batch(1, 3)])));
    let answer =
        world.send("POST", "/api/v1/sql", &[("content-type", "text/plain"), ("accept", "text/csv")], b"SELECT 1;");
    expect![[r#"
        id,name,x
        1,"name 1, ""quoted""",NaN
        2,,1.0
        3,"name 3, ""quoted""",1.5
    "#]]
    .assert_eq(&answer.text().replace('\r', ""));
}

#[test]
fn arrow_is_a_whole_stream() {
    let world = World::new();
    world.script("SELECT 1", Script::Say(table_of(&[batch(1, 3), batch(4, 2)])));
    world.script("INSERT 1", Script::Say(insert_of(9)));
    let accept = [("content-type", "text/plain"), ("accept", "application/vnd.apache.arrow.stream")];
    let answer = world.send("POST", "/api/v1/sql", &accept, b"SELECT 1");
    let batches: Vec<_> = StreamReader::try_new(&answer.body[..], None).unwrap().map(Result::unwrap).collect();
    let rows: Vec<_> = batches.into_iter().filter(|batch| batch.num_rows() > 0).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1].column(0), batch(4, 2).column(0));
    assert!(answer.body.ends_with(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]), "the end-of-stream marker");

    let answer = world.send("POST", "/api/v1/sql", &accept, b"INSERT 1");
    let done: Vec<_> = StreamReader::try_new(&answer.body[..], None).unwrap().map(Result::unwrap).collect();
    assert_eq!(done.last().unwrap().num_rows(), 1);
}

#[test]
fn statements_run_in_order_and_stop_at_the_first_error() {
    let world = World::new();
    world.script("INSERT 1", Script::Say(insert_of(2))).script("SELECT 1", Script::Say(table_of(&[batch(1, 1)])));
    let fails = Error::new(ErrorCode::UnknownColumn, "no column 'nmae'")
        .with_help("did you mean 'name'?")
        .with_span(Span { line: 2, column: 8, end_line: 2, end_column: 12 });
    world.script("SELECT nmae", Script::Refuse(fails));
    let answer = world.sql(&query("INSERT 1; SELECT 1;", "json")).json();
    assert_eq!(answer["results"][0]["tag"], "INSERT");
    assert_eq!(answer["results"][0]["rows"], 2);
    assert_eq!(answer["results"][0]["level"], "quorum");
    assert_eq!(answer["results"][1]["rows"][0][0], 1);
    assert_eq!((&answer["end"], &answer["elapsed_ms"]), (&json!(true), &json!(2)));

    let problem = world.sql(&query("INSERT 1;\nSELECT nmae; SELECT 1", "json")).problem(400, "unknown_column");
    assert_eq!(problem["statement"], 2);
    assert_eq!(problem["completed"][0]["tag"], "INSERT");
    assert_eq!(problem["spans"][0], json!({"line": 2, "column": 8, "end_line": 2, "end_column": 12}));
    assert_eq!(problem["help"], "did you mean 'name'?");
    // The planner was given the statement where it stands in the text.
    assert_eq!(world.log(|log| log.requests.last().unwrap().sql.clone()), "\nSELECT nmae");
}

#[test]
fn an_answer_names_the_level_at_which_it_was_read() {
    let world = World::new();
    let read_at = |read_level| {
        let end = QuerySummary { read_level: Some(read_level), ..QuerySummary::default() };
        Script::Say(vec![QueryEvent::Schema(batch(1, 1).schema()), QueryEvent::End(end)])
    };
    world.script("SELECT strict", read_at(ReadLevel::Quorum)).script("SELECT loose", read_at(ReadLevel::One));
    assert_eq!(world.sql(&query("SELECT strict", "json")).json()["read_level"], "quorum");
    assert_eq!(world.log(|log| log.requests.last().unwrap().read_level), None);
    world.sql(r#"{"query": "SELECT strict", "consistency": "quorum"}"#).json();
    assert_eq!(world.log(|log| log.requests.last().unwrap().read_level), Some(ReadLevel::Quorum));
    // Of several statements, the lowest.
    assert_eq!(world.sql(&query("SELECT strict; SELECT loose", "json")).json()["read_level"], "one");
    let answer = world.sql(&query("SELECT strict", "ndjson"));
    let lines = answer.text();
    assert!(lines.lines().last().unwrap().contains(r#""read_level":"quorum""#), "{lines}");
}

#[test]
fn every_code_has_its_status() {
    let world = World::new();
    for code in ErrorCode::ALL {
        let error = Error::new(*code, "so it is").with_applied(Applied::Unknown).with_retry_after_ms(2500);
        world.script("SELECT early", Script::Refuse(error.clone()));
        world.script(
            "SELECT late",
            Script::Say(vec![QueryEvent::Schema(batch(1, 1).schema()), QueryEvent::Error(error)]),
        );
        for sql in ["SELECT early", "SELECT late"] {
            let answer = world.sql(&query(sql, "json"));
            let problem = answer.problem(code.http_status(), code.as_str());
            assert_eq!(problem["applied"], "unknown");
            assert_eq!(problem["query_id"], answer.headers["x-shoal-query-id"].as_str());
            assert_eq!(
                answer.headers.get("retry-after").map(String::as_str),
                matches!(code.http_status(), 429 | 503).then_some("3")
            );
        }
    }
}

/// More than is held back, then an error.
fn long_then_broken() -> Script {
    let mut events = vec![QueryEvent::Schema(batch(0, 1).schema())];
    events.extend((0..8).map(|part| QueryEvent::Batch(batch(part * 4096, 4096))));
    events.push(QueryEvent::Error(Error::new(ErrorCode::NodeLost, "node n3 was lost")));
    Script::Say(events)
}

#[test]
fn an_error_in_the_middle_is_never_taken_for_the_end() {
    let world = World::new();
    world.script("SELECT 1", long_then_broken());

    let answer = world.sql(&query("SELECT 1", "json"));
    assert_eq!((answer.status, answer.whole), (200, true));
    let document = answer.json();
    assert_eq!(document["error"]["code"], "node_lost");
    assert_eq!(document["results"][0]["rows"].as_array().unwrap().len(), 8 * 4096);
    assert!(document.get("end").is_none());

    let answer = world.sql(&query("SELECT 1", "ndjson"));
    let last: Value = serde_json::from_str(answer.text().lines().last().unwrap()).unwrap();
    assert_eq!(last["$error"]["code"], "node_lost");

    for format in ["csv", "arrow"] {
        let answer = world.sql(&query("SELECT 1", format));
        assert_eq!(answer.status, 200);
        assert!(!answer.whole, "{format} must be cut");
        assert!(answer.body.len() > 64 << 10);
    }
}

#[test]
fn a_stream_without_an_end_is_an_error() {
    let world = World::new();
    world.script("SELECT 1", Script::Say(vec![QueryEvent::Schema(batch(1, 1).schema())]));
    world.sql(&query("SELECT 1", "json")).problem(500, "internal_error");
}

#[test]
fn long_answers_come_whole() {
    let world = World::new();
    let batches: Vec<_> = (0..50).map(|part| batch(part * 2000, 2000)).collect();
    world.script("SELECT 1", Script::Say(table_of(&batches)));
    let answer = world.sql(&query("SELECT 1", "json"));
    let document = answer.json();
    let rows = document["results"][0]["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 100_000);
    assert!(rows.iter().enumerate().all(|(place, row)| row[0] == place));
    assert_eq!(document["rows"], 100_000);
}

#[test]
fn get_reads_only() {
    let world = World::new();
    world.script("SELECT 1", Script::Say(table_of(&[batch(1, 1)])));
    let answer = world.get("/api/v1/sql?query=SELECT%201&format=csv&timeout_ms=50");
    assert_eq!(answer.status, 200, "{}", answer.text());
    world.log(|log| {
        assert!(log.requests[0].read_only);
        assert_eq!(log.requests[0].timeout, Some(std::time::Duration::from_millis(50)));
    });
    world.get("/api/v1/sql").problem(400, "invalid_request");
    let problem = world.get("/api/v1/sql?qurey=SELECT%201").problem(400, "invalid_request");
    assert_eq!(problem["help"], "did you mean 'query'?");
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let world = World::new();
    let big = json!({"query": format!("SELECT '{}'", "x".repeat(1 << 20))}).to_string();
    let many = "SELECT 1;".repeat(1001);
    for (body, status, code, words) in [
        ("{\"query\": \"SELECT 1\"", 400, "invalid_request", "not a query"),
        ("{\"querry\": \"SELECT 1\"}", 400, "invalid_request", "querry"),
        ("[]", 400, "invalid_request", "not a query"),
        (r#"{"query": "  -- nothing"}"#, 400, "syntax_error", "no statement"),
        (r#"{"query": "SELECT 1", "format": "cvs"}"#, 400, "invalid_request", "'cvs'"),
        (r#"{"query": "SELECT 1", "database": "other"}"#, 400, "invalid_request", "no database 'other'"),
        (r#"{"query": "SELECT 1", "consistency": "all"}"#, 400, "invalid_request", "one, quorum"),
        (r#"{"query": "SELECT 1", "consistency": "most"}"#, 400, "invalid_request", "most"),
        (r#"{"query": "SELECT 1", "ack": "two"}"#, 400, "invalid_request", "two"),
        (r#"{"query": "SELECT 1", "timeout_ms": 0}"#, 400, "invalid_request", "timeout_ms"),
        (r#"{"query": "SELEC 1"}"#, 400, "syntax_error", "SELEC"),
        (big.as_str(), 413, "limit_exceeded", "sql_bytes_max"),
        (json!({"query": many}).to_string().as_str(), 413, "limit_exceeded", "1001 statements"),
    ] {
        let problem = world.sql(body).problem(status, code);
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
        assert_eq!(problem["applied"], "false");
    }
    for database in ["default", "shoal"] {
        let body = json!({"query": "SELEC", "database": database}).to_string();
        world.sql(&body).problem(400, "syntax_error");
    }
    world.send("POST", "/api/v1/sql", &[("content-type", "text/html")], b"x").problem(415, "invalid_request");
    for origin in ["http://elsewhere.example", "null"] {
        world.send("POST", "/api/v1/sql", &[("origin", origin)], b"SELECT 1").problem(403, "forbidden");
    }
    let accept = [("content-type", "text/plain"), ("accept", "text/html")];
    world.send("POST", "/api/v1/sql", &accept, b"SELECT 1").problem(400, "invalid_request");
    let huge = vec![b' '; 4 << 20];
    world.send("POST", "/api/v1/sql", &[("content-type", "text/plain")], &huge).problem(413, "limit_exceeded");
    world.send("PUT", "/api/v1/sql", &[], b"").problem(405, "invalid_request");
    world.get("/api/v2/sql").problem(404, "not_found");
}

#[test]
fn what_curl_sends_by_itself_is_taken() {
    let world = World::new();
    let form = [("content-type", "application/x-www-form-urlencoded")];
    for body in ["SELECT 1", " {\"query\": \"SELECT 1\"}"] {
        world.script("SELECT 1", Script::Say(table_of(&[batch(1, 1)])));
        assert_eq!(world.send("POST", "/api/v1/sql", &form, body.as_bytes()).status, 200, "{body}");
    }
    // The test client calls its host by this name.
    let here = "http://shoal";
    world.script("SELECT 1", Script::Say(table_of(&[batch(1, 1)])));
    assert_eq!(world.send("POST", "/api/v1/sql", &[("origin", here)], b"SELECT 1").status, 200);
}

#[test]
fn clients_may_name_their_queries() {
    let world = World::new();
    world.script("SELECT 1", Script::Say(table_of(&[batch(1, 1)])));
    let send = |id: &str| {
        world.send("POST", "/api/v1/sql", &[("content-type", "text/plain"), ("x-shoal-query-id", id)], b"SELECT 1")
    };
    assert_eq!(send("00000000-00000000000000ff").headers["x-shoal-query-id"], "00000007-00000000000000ff");
    assert_eq!(send("00000007-00000000000000ff").status, 200);
    send("00000008-00000000000000ff").problem(400, "invalid_request");
    send("mine").problem(400, "invalid_request");
}

#[test]
fn a_running_query_is_seen_and_stopped() {
    let world = World::new();
    let mut events = table_of(&[batch(1, 1)]);
    events.pop();
    world.script("SELECT 1", Script::Hang(events));
    let headers = [("content-type", "text/plain"), ("x-shoal-query-id", "00000000-00000000000000aa")];
    let answer = std::thread::scope(|scope| {
        let running = scope.spawn(|| world.send("POST", "/api/v1/sql", &headers, b"SELECT 1"));
        let path = "/api/v1/queries/00000000-00000000000000aa";
        let seen = loop {
            let seen = world.get(path);
            if seen.status == 200 && seen.json()["tasks"] == 2 {
                break seen.json();
            }
        };
        assert_eq!(seen["sql"], "SELECT 1");
        assert_eq!(seen["rows_scanned"], 3);
        assert_eq!(world.get("/api/v1/queries").json()[0]["id"], "00000007-00000000000000aa");
        assert_eq!(
            world.send("POST", "/api/v1/sql", &headers, b"SELECT 1").problem(400, "invalid_request")["applied"],
            "false"
        );
        assert_eq!(world.send("DELETE", path, &[], b"").status, 204);
        running.join().unwrap()
    });
    answer.problem(499, "cancelled");
    world.until(|log| log.dropped == ["SELECT 1"]);
    assert_eq!(world.get("/api/v1/queries").json(), json!([]));

    world.send("DELETE", "/api/v1/queries/00000007-00000000000000aa", &[], b"").problem(404, "not_found");
    // One that runs elsewhere is the node's business.
    assert_eq!(world.send("DELETE", "/api/v1/queries/00000009-0000000000000abc", &[], b"").status, 204);
    world.send("DELETE", "/api/v1/queries/nonsense", &[], b"").problem(400, "invalid_request");
}

#[test]
fn operators_have_nodes_do_things() {
    let world = World::new();
    let post = |path: &str| world.send("POST", &format!("/api/v1/cluster/nodes/{path}"), &[], b"");
    for change in ["drain", "activate", "decommission", "remove"] {
        assert_eq!(post(&format!("7/{change}")).status, 204);
    }
    let wanted = [NodeChange::Drain, NodeChange::Activate, NodeChange::Decommission, NodeChange::Remove];
    world.until(|log| log.changed_nodes == wanted.map(|change| (NodeId(7), change)));
    post("8/drain").problem(404, "not_found");
    for nonsense in ["7/explode", "n7/drain", "-1/drain"] {
        post(nonsense).problem(400, "invalid_request");
    }
    assert_eq!(world.get("/api/v1/cluster/nodes/7/drain").status, 405);
}

#[test]
fn balance_is_shown_and_paused() {
    let world = World::new();
    let shown = world.get("/api/v1/cluster/balance").json();
    assert_eq!(shown["wanted"][0], json!({ "partition": 4, "table": "t", "from": 7, "to": 9, "bytes": 1 << 20 }));
    assert_eq!((&shown["paused"], &shown["moving"]), (&json!(true), &json!([3])));
    for change in ["pause", "resume"] {
        assert_eq!(world.send("POST", &format!("/api/v1/cluster/balance/{change}"), &[], b"").status, 204);
    }
    world.until(|log| log.paused == [true, false]);
    world.send("POST", "/api/v1/cluster/balance/stop", &[], b"").problem(400, "invalid_request");
}

#[test]
fn a_client_that_leaves_stops_its_query() {
    let world = World::new();
    world.script("SELECT slow", Script::Hang(vec![]));
    world.script("SELECT much", Script::Endless(batch(1, 1000)));
    for (sql, read) in [("SELECT slow", 0), ("SELECT much", 100_000)] {
        let mut stream = TcpStream::connect(world.address).unwrap();
        let head = format!(
            "POST /api/v1/sql HTTP/1.1\r\nhost: shoal\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{sql}",
            sql.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut some = vec![0; read];
        stream.read_exact(&mut some).unwrap();
        world.until(|log| log.requests.iter().any(|request| request.sql == sql));
        drop(stream);
        world.until(|log| log.dropped.iter().any(|dropped| dropped == sql));
    }
}

#[test]
fn a_client_that_does_not_read_holds_back_its_query() {
    let world = World::new();
    world.script("SELECT much", Script::Endless(batch(1, 1000)));
    let mut stream = TcpStream::connect(world.address).unwrap();
    let head =
        "POST /api/v1/sql HTTP/1.1\r\nhost: shoal\r\ncontent-type: text/plain\r\ncontent-length: 11\r\n\r\nSELECT much";
    stream.write_all(head.as_bytes()).unwrap();
    let sent = |world: &World| world.log(|log| log.batches_sent.get("SELECT much").copied().unwrap_or(0));
    let mut last = usize::MAX;
    // The sockets' own buffers fill first.
    for _ in 0..100 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        if sent(&world) == last {
            break;
        }
        last = sent(&world);
    }
    assert_eq!(sent(&world), last);
    assert!(last < 2000, "{last} batches of 40 kB were taken");
}

#[test]
fn health_metrics_and_cluster() {
    let world = World::new();
    assert_eq!(world.get("/healthz").text(), "ok\n");
    assert_eq!(world.get("/readyz").status, 200);
    *world.node.not_ready.lock().unwrap() = Some(Error::new(ErrorCode::NotReady, "it waits for the catalog"));
    let answer = world.get("/readyz");
    assert_eq!(answer.problem(503, "not_ready")["detail"], "it waits for the catalog");
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(world.get("/healthz").status, 200);

    let metrics = world.get("/metrics");
    assert!(
        metrics.text().contains("shoal_http_requests_total{route=\"/readyz\",status=\"503\"} 1"),
        "{}",
        metrics.text()
    );
    assert!(metrics.text().contains("shoal_ready 0"));

    let cluster = world.get("/api/v1/cluster").json();
    assert_eq!((&cluster["cluster_id"], &cluster["leader"]), (&json!("000000000000002a"), &json!(7)));
    let page = world.get("/");
    assert!(page.headers["content-type"].starts_with("text/html"));
    assert!(page.text().contains("it waits for the catalog"));
}

/// `UPDATE_EXPECT=1` writes the copy anew.
#[test]
fn the_description_is_the_committed_one() {
    let world = World::new();
    let served = world.get("/api/v1/openapi.json");
    assert_eq!(served.headers["content-type"], "application/json");
    expect_test::expect_file!["../../openapi.json"].assert_eq(served.text());
    let document = served.json();
    for path in
        ["/api/v1/sql", "/api/v1/tables/{table}/ingest", "/api/v1/queries/{id}", "/api/v1/cluster", "/api/v1/ws"]
    {
        assert!(document["paths"].get(path).is_some(), "{path}");
    }
}
