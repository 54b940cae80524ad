//! `/api/v1/ws`.

use std::net::TcpStream;
use std::time::Duration;

use arrow::ipc::reader::StreamReader;
use serde_json::{Value, json};
use shoal::Limits;
use shoal_actors::service::QueryEvent;
use shoal_kernel::{Error, ErrorCode};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, WebSocket, client};

use crate::scripted::{Script, World, batch, insert_of, table_of};

struct Connection(WebSocket<TcpStream>);

impl Connection {
    fn open(world: &World, protocol: Option<&str>) -> Self {
        let mut request = format!("ws://{}/api/v1/ws", world.address).into_client_request().unwrap();
        if let Some(protocol) = protocol {
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        let stream = TcpStream::connect(world.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (socket, response) = client(request, stream).unwrap();
        let answered = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().unwrap());
        assert_eq!(answered, protocol);
        Self(socket)
    }

    fn say(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).unwrap();
    }

    fn start(&mut self, id: &str, sql: &str, credit: u64) {
        self.say(json!({"type": "start", "id": id, "sql": sql, "credit": credit}));
    }

    /// The next message that is no progress, ping or pong.
    fn hear(&mut self) -> Message {
        loop {
            let message = self.0.read().unwrap();
            let is_progress = message.is_text() && message.to_text().unwrap().contains("\"type\":\"progress\"");
            if !message.is_ping() && !message.is_pong() && !is_progress {
                return message;
            }
        }
    }

    fn hear_json(&mut self) -> Value {
        serde_json::from_str(self.hear().to_text().unwrap()).unwrap()
    }

    /// Messages until one `end` or `error` of that query.
    fn hear_to_end(&mut self, id: &str) -> Vec<Value> {
        let mut heard = Vec::new();
        loop {
            let message = self.hear_json();
            let ends = message["id"] == id && (message["type"] == "end" || message["type"] == "error");
            heard.push(message);
            if ends {
                return heard;
            }
        }
    }
}

#[test]
fn rows_come_before_the_query_is_finished() {
    let world = World::new();
    let mut events = table_of(&[batch(1, 2)]);
    events.pop();
    world.script("SELECT 1", Script::Hang(events));
    let mut connection = Connection::open(&world, Some("shoal.v1.json"));
    connection.say(json!({"type": "start", "id": "q", "sql": "SELECT 1"}));
    let schema = connection.hear_json();
    assert_eq!((&schema["type"], &schema["id"]), (&json!("schema"), &json!("q")));
    assert_eq!(schema["columns"][1], json!({"name": "name", "type": "VARCHAR"}));
    let rows = connection.hear_json();
    assert_eq!(rows, json!({"type": "batch", "id": "q", "rows": [[1, "name 1, \"quoted\"", null], [2, null, 1.0]]}));
    let progress: Value = serde_json::from_str(connection.0.read().unwrap().to_text().unwrap()).unwrap();
    assert_eq!((&progress["type"], &progress["tasks"]), (&json!("progress"), &json!(2)));
    connection.say(json!({"type": "cancel", "id": "q"}));
    let error = connection.hear_json();
    assert_eq!((&error["type"], &error["error"]["code"]), (&json!("error"), &json!("cancelled")));
    world.until(|log| log.dropped == ["SELECT 1"]);
}

#[test]
fn each_query_ends_once() {
    let world = World::new();
    world.script("SELECT 1", Script::Say(table_of(&[batch(1, 3)]))).script("INSERT 1", Script::Say(insert_of(2)));
    world.script("SELECT x", Script::Refuse(Error::new(ErrorCode::UnknownColumn, "no column x")));
    let late =
        vec![QueryEvent::Schema(batch(1, 1).schema()), QueryEvent::Error(Error::new(ErrorCode::NodeLost, "gone"))];
    world.script("SELECT y", Script::Say(late)).script("SELECT z", Script::Say(vec![]));
    let mut connection = Connection::open(&world, None);
    for (id, sql, last, code) in [
        ("a", "SELECT 1", "end", Value::Null),
        ("b", "INSERT 1", "end", Value::Null),
        ("c", "SELECT x", "error", json!("unknown_column")),
        ("d", "SELECT y", "error", json!("node_lost")),
        ("e", "SELECT z", "error", json!("internal_error")),
        // An id is free again after its end.
        ("a", "SELECT 1", "end", Value::Null),
    ] {
        connection.start(id, sql, 1000);
        let heard = connection.hear_to_end(id);
        let end = heard.last().unwrap();
        assert_eq!((&end["type"], &end["error"]["code"]), (&json!(last), &code), "{sql}");
        // Both may cross the end, and say nothing then.
        connection.say(json!({"type": "cancel", "id": id}));
        connection.say(json!({"type": "credit", "id": id, "bytes": 5}));
    }
    connection.start("f", "INSERT 1", 0);
    let heard = connection.hear_to_end("f");
    assert_eq!(heard[0]["type"], "command");
    assert_eq!(
        (&heard[0]["tag"], &heard[0]["rows"], &heard[0]["level"]),
        (&json!("INSERT"), &json!(2), &json!("quorum"))
    );
    assert_eq!(heard.len(), 2);
}

#[test]
fn a_query_without_credit_waits_alone() {
    let world = World::new();
    world.script("SELECT much", Script::Endless(batch(1, 1000)));
    let batches: Vec<_> = (0..100).map(|part| batch(part * 1000, 1000)).collect();
    world.script("SELECT some", Script::Say(table_of(&batches)));
    let mut connection = Connection::open(&world, Some("shoal.v1.json"));
    connection.start("stuck", "SELECT much", 0);
    assert_eq!(connection.hear_json()["type"], "schema");
    connection.start("flowing", "SELECT some", 100_000);
    let (mut rows, mut granted, mut received) = (0, 100_000, 0);
    loop {
        let message = connection.hear();
        let text = message.to_text().unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(value["id"], "flowing", "a query without credit said {text:.80}");
        match value["type"].as_str().unwrap() {
            "schema" => {}
            "batch" => {
                rows += value["rows"].as_array().unwrap().len();
                received += text.len();
                // One message may exceed the credit, no more.
                assert!(received <= granted + (200 << 10), "{received} of {granted}");
                if received + 50_000 > granted {
                    granted += 100_000;
                    connection.say(json!({"type": "credit", "id": "flowing", "bytes": 100_000}));
                }
            }
            "end" => break,
            other => panic!("{other}"),
        }
    }
    assert_eq!(rows, 100_000);
    // What the stuck one has taken is bounded by its queues.
    assert!(world.log(|log| log.batches_sent["SELECT much"]) < 10);
    connection.say(json!({"type": "credit", "id": "stuck", "bytes": 1}));
    let message = connection.hear_json();
    assert_eq!((&message["id"], &message["type"]), (&json!("stuck"), &json!("batch")));
    connection.say(json!({"type": "cancel", "id": "stuck"}));
    assert_eq!(connection.hear_to_end("stuck").last().unwrap()["error"]["code"], "cancelled");
}

#[test]
fn credit_that_is_not_granted_stops_rows() {
    let world = World::new();
    world.script("SELECT much", Script::Endless(batch(1, 1000)));
    let mut connection = Connection::open(&world, None);
    connection.start("q", "SELECT much", 100_000);
    connection.hear();
    let mut received = 0;
    connection.0.get_ref().set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    while let Ok(message) = connection.0.read() {
        received += message.len();
    }
    assert!((100_000..300_000).contains(&received), "{received}");
}

#[test]
fn arrow_pieces_make_up_a_stream() {
    let world = World::new();
    let batches = [batch(1, 3000), batch(3001, 10)];
    world.script("SELECT 1", Script::Say(table_of(&batches)));
    let mut connection = Connection::open(&world, Some("shoal.v1.arrow"));
    connection.start("query one", "SELECT 1", 10 << 20);
    let mut stream = Vec::new();
    loop {
        match connection.hear() {
            Message::Binary(frame) => {
                let length = usize::from(u16::from_be_bytes([frame[0], frame[1]]));
                assert_eq!(&frame[2..2 + length], b"query one");
                stream.extend_from_slice(&frame[2 + length..]);
            }
            Message::Text(text) if text.contains("\"type\":\"end\"") => break,
            Message::Text(text) => assert!(text.contains("\"type\":\"schema\""), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    let read: Vec<_> = StreamReader::try_new(&stream[..], None).unwrap().map(Result::unwrap).collect();
    let read = arrow::compute::concat_batches(&batches[0].schema(), &read).unwrap();
    assert_eq!(read, arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap());
    assert!(stream.ends_with(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]));
}

#[test]
fn messages_that_make_no_sense_are_answered() {
    let world = World::with(Limits { ws_queries_max: 2, ..Limits::default() });
    world.script("SELECT 1", Script::Hang(vec![]));
    let mut connection = Connection::open(&world, None);
    for message in [
        json!({"type": "begin", "id": "x"}),
        json!({"type": "start", "id": "x"}),
        json!({"type": "start", "id": "", "sql": "SELECT 1"}),
        json!({"type": "start", "id": "x".repeat(200), "sql": "SELECT 1"}),
        json!({"type": "credit", "id": "x", "bytes": -5}),
        json!({"type": "cancel", "id": "x", "why": 1}),
        json!("start"),
    ] {
        connection.say(message);
        let error = connection.hear_json();
        assert_eq!((&error["type"], &error["id"]), (&json!("error"), &Value::Null));
        assert_eq!(error["error"]["code"], "invalid_request");
    }
    connection.0.send(Message::binary(vec![1, 2, 3])).unwrap();
    assert_eq!(connection.hear_json()["error"]["code"], "invalid_request");
    connection.start("a", "SELECT 1", 0);
    connection.start("a", "SELECT 1", 0);
    assert_eq!(connection.hear_json()["id"], Value::Null);
    connection.start("b", "SELECT 1", 0);
    connection.start("c", "SELECT 1", 0);
    let error = connection.hear_json();
    assert_eq!((&error["id"], &error["error"]["code"]), (&json!("c"), &json!("overloaded")));
    connection.0.send(Message::Ping(vec![9].into())).unwrap();
    assert!(matches!(connection.0.read().unwrap(), Message::Pong(payload) if payload == vec![9]));
}

#[test]
fn a_message_too_large_ends_the_session() {
    let world = World::with(Limits { ws_frame_bytes_max: 1024, ..Limits::default() });
    world.script("SELECT 1", Script::Hang(vec![]));
    let mut connection = Connection::open(&world, None);
    connection.start("a", "SELECT 1", 0);
    world.until(|log| log.requests.len() == 1);
    connection.say(json!({"type": "start", "id": "b", "sql": "x".repeat(2000)}));
    let closed = loop {
        match connection.hear() {
            Message::Close(frame) => break frame.unwrap(),
            other => assert!(other.to_text().unwrap().contains("cancelled"), "{other:?}"),
        }
    };
    assert_eq!(u16::from(closed.code), 1009);
    assert!(closed.reason.contains("ws_frame_bytes_max"));
    world.until(|log| log.dropped == ["SELECT 1"]);
}

#[test]
fn queries_end_with_their_connection() {
    let world = World::new();
    world.script("SELECT 1", Script::Hang(vec![])).script("SELECT much", Script::Endless(batch(1, 1000)));
    let mut connection = Connection::open(&world, None);
    connection.start("a", "SELECT 1", 0);
    connection.start("b", "SELECT much", 1 << 30);
    world.until(|log| log.requests.len() == 2);
    drop(connection);
    world.until(|log| log.dropped.len() == 2);
}

#[test]
fn a_client_that_answers_no_ping_is_given_up() {
    let limits = Limits { ws_idle: Duration::from_millis(200), ..Limits::default() };
    let world = World::with(limits);
    world.script("SELECT 1", Script::Hang(vec![]));
    let mut connection = Connection::open(&world, None);
    connection.start("a", "SELECT 1", 0);
    // It reads nothing, so it answers nothing.
    world.until(|log| log.dropped == ["SELECT 1"]);
}

#[test]
fn what_is_no_websocket_is_told_so() {
    let world = World::with(Limits { ws_sessions_max: 1, ..Limits::default() });
    let answer = world.get("/api/v1/ws");
    assert!((400..500).contains(&answer.status));
    assert_eq!(answer.json()["code"], "invalid_request");
    let headers = [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "x3JJHMbDL1EzLkh9GBhXDw=="),
        ("sec-websocket-protocol", "graphql"),
    ];
    let problem = world.send("GET", "/api/v1/ws", &headers, b"").problem(400, "invalid_request");
    assert!(problem["help"].as_str().unwrap().contains("shoal.v1.arrow"));
    let _first = Connection::open(&world, None);
    world.send("GET", "/api/v1/ws", &headers[..4], b"").problem(429, "overloaded");
}
