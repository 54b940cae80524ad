//! Real nodes: three processes of the binary, real flights, queries at each of them, one of them killed.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shoal::client::{Client, ClientError};

use crate::support::{PATIENCE, Process, until};

pub const BINARY: &str = env!("CARGO_BIN_EXE_shoal");

impl Process {
    /// Its number.
    fn id(&self) -> String {
        format!("n{}", self.client.cluster().unwrap()["node"])
    }

    /// Waits until it ends by itself.
    fn ends(mut self) -> Option<i32> {
        until("the process ends", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap().code()
    }

    /// As a service manager stops it.
    pub fn terminate(mut self) -> Option<i32> {
        self.signal("TERM");
        self.child.wait().unwrap().code()
    }
}

/// A port that is free for streams and datagrams.
pub fn cluster_port() -> String {
    loop {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address.to_string();
        }
    }
}

pub fn nodes(directory: &Path, count: usize) -> Vec<Process> {
    let mut nodes: Vec<Process> = Vec::new();
    for _ in 0..count {
        one_more(&mut nodes, directory, &[]);
    }
    nodes
}

/// Starts another node of a cluster.
pub fn one_more(nodes: &mut Vec<Process>, directory: &Path, more: &[&str]) {
    one_more_of(BINARY, nodes, directory, more);
}

pub fn one_more_of(binary: &str, nodes: &mut Vec<Process>, directory: &Path, more: &[&str]) {
    let data = directory.join(format!("n{}", nodes.len())).display().to_string();
    let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let address = cluster_port();
    let mut command = vec![binary, "start", "--data-dir", &data, "--http", &http, "--cluster", &address];
    command.extend(["--set", "disk_reserve_bytes=1048576", "--set", "replace_after_ms=3000"]);
    command.extend(more);
    let first = nodes.first().map(|node| node.argument("--cluster").to_owned());
    if let Some(first) = &first {
        command.extend(["--join", first]);
    }
    nodes.push(Process::start(command.into_iter().map(String::from).collect(), None));
    let count = nodes.len();
    until("every node sees all of them", || {
        nodes.iter().all(|node| {
            node.client.ready().is_ok()
                && node.client.cluster().is_ok_and(|seen| seen["nodes"].as_array().unwrap().len() == count)
        })
    });
}

fn import(node: &Process, file: &str, table: &str, key: &str) {
    let file = Path::new("demo").join(file);
    let output = Command::new(BINARY)
        .args(["import", file.to_str().unwrap(), "--table", table, "--create", "--primary-key", key])
        .args(["--url", node.client.url()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub fn rows(client: &Client, sql: &str) -> Result<Vec<Vec<Value>>, ClientError> {
    let answer = client.sql_json(sql, None)?;
    let rows = answer["results"][0]["rows"].as_array().unwrap();
    Ok(rows.iter().map(|row| row.as_array().unwrap().clone()).collect())
}

/// The queries of a file in sqllogictest's form, each with its expected rows, values parted by tabs.
fn cases(text: &str) -> Vec<(String, Vec<String>)> {
    text.split("\n\n")
        .filter_map(|block| {
            let block: String =
                block.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
            let (head, expected) = block.split_once("----\n")?;
            let (directive, sql) = head.split_once('\n')?;
            assert!(directive.starts_with("query "), "{directive}");
            Some((sql.trim().to_owned(), expected.lines().map(str::to_owned).collect()))
        })
        .collect()
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn same(given: &str, expected: &str) -> bool {
    given == expected
        || matches!((given.parse::<f64>(), expected.parse::<f64>()),
            (Ok(given), Ok(expected)) if (given - expected).abs() <= 1e-9 * expected.abs().max(1.0))
}

/// What does not agree, for people.
fn check(client: &Client, cases: &[(String, Vec<String>)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (sql, expected) in cases {
        match rows(client, sql) {
            Err(error) => wrong.push(format!("{sql}\n  {error}")),
            Ok(rows) => {
                let given: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(shown).collect()).collect();
                let agrees = given.len() == expected.len()
                    && given.iter().zip(expected).all(|(given, expected)| {
                        let expected: Vec<&str> = expected.split('\t').collect();
                        given.len() == expected.len()
                            && given.iter().zip(expected).all(|(given, expected)| same(given, expected))
                    });
                if !agrees {
                    let given: Vec<String> = given.iter().map(|row| row.join("\t")).collect();
                    wrong.push(format!("{sql}\n  gave {given:?}\n  not {expected:?}"));
                }
            }
        }
    }
    wrong
}

#[test]
fn three_nodes_answer_alike_and_survive_the_loss_of_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut nodes = nodes(directory.path(), 3);
    import(&nodes[0], "flights.parquet", "flights", "id");
    import(&nodes[1], "airports.csv", "airports", "iata");
    // Once more: nothing is written twice.
    import(&nodes[2], "flights.parquet", "flights", "id");

    let cases = cases(include_str!("../../../actors/tests/slt/flights.slt"));
    assert!(cases.len() >= 30);
    for node in &nodes {
        let wrong = check(&node.client, &cases);
        assert!(wrong.is_empty(), "at {}:\n{}", node.client.url(), wrong.join("\n"));
    }

    nodes[1].kill();
    let count = "SELECT count(*), sum(delay) FROM flights";
    for place in [0, 2] {
        let node = &nodes[place];
        // A query that ran into the loss may end in an error that says so; it is never wrong.
        until("queries are right again", || match rows(&node.client, count) {
            Ok(rows) => {
                assert_eq!(rows, [[json!(300_000), json!(2_270_588)]]);
                true
            }
            Err(error) => {
                assert!(error.retryable(), "{error}");
                false
            }
        });
        let wrong = check(&node.client, &cases);
        assert!(wrong.is_empty(), "with a node lost, at {}:\n{}", node.client.url(), wrong.join("\n"));
    }
    let insert = "CREATE TABLE notes (id BIGINT NOT NULL, text VARCHAR, PRIMARY KEY (id)); INSERT INTO notes VALUES (1, 'a'), (2, 'b')";
    nodes[0].client.sql_json(insert, None).unwrap();
    let change = "INSERT INTO notes VALUES (3, 'c'); DELETE FROM notes WHERE id = 3; UPDATE notes SET text = upper(text) WHERE id = 2";
    let done = nodes[2].client.sql_json(change, None).unwrap();
    let told: Vec<(&Value, &Value)> =
        done["results"].as_array().unwrap().iter().map(|entry| (&entry["tag"], &entry["rows"])).collect();
    let one = json!(1);
    assert_eq!(told, [(&json!("INSERT"), &one), (&json!("DELETE"), &one), (&json!("UPDATE"), &one)]);
    // Nobody is passed over in silence.
    let error = nodes[0].client.sql_json("FLUSH TABLE notes", None).unwrap_err().to_string();
    assert!(error.contains("1 of 3 replicas"), "{error}");

    nodes[1].again();
    until("the lost node has caught up", || {
        nodes[1].client.ready().is_ok()
            && nodes[1].client.cluster().is_ok_and(|seen| {
                seen["partitions"].as_array().unwrap().iter().all(|partition| {
                    let replicas = partition["replicas"].as_array().unwrap();
                    replicas.iter().all(|replica| replica["lag"] == 0 && replica["digest"] == replicas[0]["digest"])
                })
            })
    });
    assert_eq!(rows(&nodes[1].client, "SELECT text FROM notes ORDER BY id").unwrap(), [[json!("a")], [json!("B")]]);
    let statements = "DELETE FROM notes WHERE id = 1; FLUSH; OPTIMIZE TABLE notes";
    let shell = Command::new(BINARY).args(["sql", "--url", nodes[1].client.url(), "-e", statements]).output().unwrap();
    let said = String::from_utf8_lossy(&shell.stdout);
    assert!(shell.status.success(), "{said}{}", String::from_utf8_lossy(&shell.stderr));
    for line in ["DELETE 1 at quorum", "FLUSH", "OPTIMIZE TABLE"] {
        assert!(said.lines().any(|said| said == line), "{line} is not in {said}");
    }
    for node in nodes {
        assert_eq!(node.terminate(), Some(0));
    }
}

/// Two of three processes are killed. The last one goes on at level one, and says that it cannot at quorum; when the others are back, they
/// have what it took.
#[test]
fn one_of_three_goes_on_at_level_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        // A change of the catalog waits for its quorum as long as the request may take.
        one_more(&mut nodes, directory.path(), &["--set", "request_timeout_ms=5000"]);
    }
    let create = "CREATE TABLE kv (k BIGINT PRIMARY KEY, v VARCHAR) WITH (write_level = 'one')";
    nodes[0].client.sql_json(create, None).unwrap();
    nodes[0].client.sql_json("CREATE TABLE strict (k BIGINT PRIMARY KEY)", None).unwrap();
    nodes[0].client.sql_json("INSERT INTO kv VALUES (1, 'before')", None).unwrap();
    nodes[0].client.sql_json("INSERT INTO strict VALUES (1)", None).unwrap();
    until("all have the row", || {
        nodes.iter().all(|node| rows(&node.client, "SELECT k FROM kv").is_ok_and(|kv| kv.len() == 1))
    });
    nodes[0].kill();
    nodes[1].kill();
    let last = &nodes[2].client;
    let done = until_ok(|| last.sql_json("INSERT INTO kv VALUES (2, 'alone'), (1, 'changed')", None));
    assert_eq!(done["results"][0]["level"], "one", "{done}");
    let read = "SELECT k, v FROM kv ORDER BY k";
    let kept = [[json!(1), json!("changed")], [json!(2), json!("alone")]];
    until("it answers", || rows(last, read).is_ok_and(|kv| kv == kept));
    let error = last.sql_json("INSERT INTO strict VALUES (2)", None).unwrap_err();
    assert!(error.to_string().contains("1 of 3 replicas have the rows on disk, level quorum needs 2"), "{error}");
    let error = last.sql_json("CREATE TABLE more (k BIGINT PRIMARY KEY)", None).unwrap_err();
    assert_eq!(error.code(), Some("no_catalog_quorum"), "{error}");

    nodes[0].again();
    nodes[1].again();
    until("the others have it, too", || nodes.iter().all(|node| rows(&node.client, read).is_ok_and(|kv| kv == kept)));
    until_ok(|| nodes[0].client.sql_json("INSERT INTO strict VALUES (3)", None));
    for node in nodes {
        assert_eq!(node.terminate(), Some(0));
    }
}

#[test]
fn a_data_directory_has_one_process() {
    let directory = tempfile::tempdir().unwrap();
    let nodes = nodes(directory.path(), 1);
    let data = directory.path().join("n0");
    let second = Command::new(BINARY)
        .args(["start", "--http", "127.0.0.1:0", "--cluster", &cluster_port(), "--data-dir", data.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("lock") || said.contains("another process"), "{said}");
    drop(nodes);
}

#[test]
fn the_demo_loads_and_answers() {
    let output = Command::new(BINARY)
        .args([
            "demo",
            "--format",
            "csv",
            "-e",
            "SELECT count(*) AS n FROM flights; SELECT count(*) AS n FROM airports",
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("n\r\n300000\r\n") && said.contains("n\r\n3376\r\n"), "{said}");
}

/// Rows come to all nodes at once, each with other columns and types: the tables' columns become what takes all of them, every
/// row is there, and a resend is recognised whatever has become of its columns.
#[test]
fn rows_from_all_sides_shape_their_table() {
    const NDJSON: &str = "application/x-ndjson";
    let directory = tempfile::tempdir().unwrap();
    let nodes = nodes(directory.path(), 3);
    let first = b"{\"n\": 1, \"who\": {\"id\": 7}}\n{\"n\": 2}\n";
    let send = |node: &Process, body: &[u8], token: &str| {
        until_ok(|| node.client.ingest("seen", NDJSON, body, Some(token), Some("all")))
    };
    nodes[1].client.sql_json("CREATE TABLE seen WITH (schemaless = true)", None).unwrap();
    assert_eq!(send(&nodes[0], first, "first")["accepted"], 2);
    std::thread::scope(|scope| {
        for (number, node) in nodes.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..6 {
                    let n = match round {
                        0 | 1 => json!(round),
                        2 | 3 => json!(f64::from(round) + 0.5),
                        _ => json!(format!("text {round}")),
                    };
                    let mut row = json!({"n": n, "who": {"id": round}, "number": number});
                    row[format!("only_{number}_{round}")] = json!(round);
                    row["who"][format!("of_{number}")] = json!(true);
                    let body = format!("{row}\n");
                    let token = format!("{number}-{round}");
                    let path = "seen";
                    let sent =
                        until_ok(|| node.client.ingest(path, NDJSON, body.as_bytes(), Some(&token), Some("all")));
                    assert_eq!(sent["accepted"], 1);
                }
            });
        }
    });
    for node in &nodes {
        let again = send(node, first, "first");
        assert_eq!((&again["duplicate"], &again["accepted"]), (&json!(true), &json!(2)));
        let found = rows(&node.client, "SELECT count(*), count(DISTINCT number) FROM seen").unwrap();
        assert_eq!(found, [[json!(20), json!(3)]]);
        let found = rows(&node.client, "SELECT n FROM seen WHERE number IS NULL OR number = 1 ORDER BY n").unwrap();
        let found: Vec<&str> = found.iter().map(|row| row[0].as_str().unwrap()).collect();
        assert_eq!(found, ["0", "1", "1", "2", "2.5", "3.5", "text 4", "text 5"]);
        let found = rows(&node.client, "SELECT count(only_0_0), count(only_2_5), count(who) FROM seen").unwrap();
        assert_eq!(found, [[json!(1), json!(1), json!(19)]]);
        let found = rows(&node.client, "SELECT who['id'] FROM seen WHERE n = '2.5' AND who['of_1']").unwrap();
        assert_eq!(found, [[json!(2)]]);
    }
}

fn until_ok(mut attempt: impl FnMut() -> Result<Value, ClientError>) -> Value {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if error.retryable() && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn operate(through: &Process, arguments: &[&str]) -> Result<String, String> {
    crate::support::operate(BINARY, through, arguments)
}

/// Waits until there is something.
fn until_some<T>(what: &str, find: impl Fn() -> Option<T>) -> T {
    let mut found = None;
    until(what, || {
        found = find();
        found.is_some()
    });
    found.unwrap()
}

/// Waits until every partition has so many voting replicas, all of them on these nodes and equal, and none beside.
fn until_placed(through: &Process, on: &[&str], voters: usize) {
    let placed = |cluster: Value| {
        cluster["partitions"].as_array().unwrap().iter().all(|partition| {
            let replicas = partition["replicas"].as_array().unwrap();
            replicas.len() == voters
                && replicas.iter().all(|replica| {
                    replica["state"] == "voting"
                        && on.contains(&format!("n{}", replica["node"]).as_str())
                        && replica["digest"] == replicas[0]["digest"]
                        && replica["problem"].is_null()
                })
        })
    };
    until("replicas are where they belong", || through.client.cluster().is_ok_and(placed));
}

fn recover(data: &str, how: &[&str]) -> (bool, String) {
    let mut command = Command::new(BINARY);
    let command = command.args(["cluster", "recover", "--data-dir", data]).args(how).output().unwrap();
    let text = String::from_utf8_lossy(&command.stdout).into_owned() + &String::from_utf8_lossy(&command.stderr);
    (command.status.success(), text)
}

/// Three of five voters are gone for good, and of the two that are left the one that has missed something takes over.
#[test]
fn who_had_got_further_than_the_recovered_catalog_keeps_its_rows() {
    let directory = tempfile::tempdir().unwrap();
    let mut nodes = Vec::new();
    for _ in 0..5 {
        one_more(
            &mut nodes,
            directory.path(),
            &["--set", "request_timeout_ms=3000", "--set", "replace_after_ms=600000"],
        );
    }
    let make = "CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT) WITH (replication_factor = 5)";
    until("five nodes have a replica each", || {
        let made = nodes[0].client.sql_json(&format!("DROP TABLE IF EXISTS t; {make}"), None);
        made.is_ok()
            && nodes.iter().all(|node| {
                node.client.cluster().unwrap()["partitions"][0]["replicas"]
                    .as_array()
                    .is_some_and(|replicas| replicas.len() == 5)
            })
    });
    let ids: Vec<String> = nodes.iter().map(Process::id).collect();
    nodes[0].kill();
    let beyond =
        "INSERT INTO t VALUES (1, 1), (2, 2); ALTER TABLE t ADD COLUMN w BIGINT; CREATE TABLE u (k BIGINT PRIMARY KEY)";
    until("the catalog has a leader", || nodes[1].client.sql_json("SHOW TABLES", None).is_ok());
    until("the changes are made", || nodes[1].client.sql_json(beyond, None).is_ok());
    nodes.iter_mut().skip(1).for_each(Process::kill);
    nodes.truncate(2);

    let data = [0, 1].map(|node| directory.path().join(format!("n{node}")).display().to_string());
    let lost = ids[2..].join(",");
    for data in &data {
        let (done, told) = recover(data, &["--lost", &lost, "--dry-run"]);
        assert!(done && told.contains("ends with term"), "{told}");
    }
    let (done, told) = recover(&data[0], &["--lost", &lost]);
    assert!(done, "{told}");
    nodes[0].again();
    until("the catalog takes changes", || nodes[0].client.sql_json("ALTER TABLE t ADD COLUMN x VARCHAR", None).is_ok());
    let mut further = nodes.pop().unwrap();
    further.again();
    let command = further.command.clone();
    assert_eq!(further.ends(), Some(1));
    let (done, told) = recover(&data[1], &["--follow"]);
    assert!(done && told.contains("has forgotten its catalog"), "{told}");
    nodes.push(Process::start(command, None));
    for id in &ids[2..] {
        until("the lost one is given up", || operate(&nodes[0], &["remove", "--disk-is-lost", id]).is_ok());
    }
    until("its rows are there, and the columns of the catalog that was recovered", || {
        nodes.iter().all(|node| {
            let rows = rows(&node.client, "SELECT k, v, x FROM t ORDER BY k");
            rows.is_ok_and(|rows| rows == [[json!(1), json!(1), Value::Null], [json!(2), json!(2), Value::Null]])
        })
    });
    let gone = rows(&nodes[1].client, "SELECT * FROM u").unwrap_err().to_string();
    assert!(gone.contains("'u'"), "{gone}");
    nodes[1].client.sql_json("INSERT INTO t VALUES (3, 3, 'x'); CREATE TABLE u (k BIGINT PRIMARY KEY)", None).unwrap();
}

/// Two of three voters are gone for good: the third becomes the whole of the catalog.
#[test]
fn a_catalog_is_recovered_from_the_last_of_its_voters() {
    let directory = tempfile::tempdir().unwrap();
    let mut nodes = Vec::new();
    for _ in 0..3 {
        // Changes of the catalog wait for a majority as long as the request may take.
        one_more(&mut nodes, directory.path(), &["--set", "request_timeout_ms=3000"]);
    }
    let make = "CREATE TABLE t (k BIGINT PRIMARY KEY); INSERT INTO t VALUES (1), (2), (3)";
    nodes[0].client.sql_json(make, None).unwrap();
    let ids: Vec<String> = nodes.iter().map(Process::id).collect();
    let lost = format!("{},{}", ids[1], ids[2]);
    let data = directory.path().join("n0").display().to_string();
    let recover = |lost: &str| recover(&data, &["--lost", lost]);
    let (done, told) = recover(&lost);
    assert!(!done && told.contains("in use by another process"), "{told}");
    nodes[2].kill();
    nodes[1].kill();
    let create = "CREATE TABLE IF NOT EXISTS u (k BIGINT PRIMARY KEY)";
    let refused = nodes[0].client.sql_json(create, None).unwrap_err().to_string();
    assert!(refused.contains("majority of the catalog's voters"), "{refused}");

    nodes[0].kill();
    for (lost, why) in [(ids[1].as_str(), "a majority of the catalog's voters is left"), ("n7", "n7 is no member")] {
        let (done, told) = recover(lost);
        assert!(!done && told.contains(why), "{told}");
    }
    let (done, told) = recover(&lost);
    assert!(done && told.contains(&format!("shoal cluster remove {} --disk-is-lost", ids[1])), "{told}");
    nodes[0].again();
    until("the catalog takes changes", || nodes[0].client.sql_json(create, None).is_ok());
    for id in &ids[1..] {
        until("the lost one is given up", || operate(&nodes[0], &["remove", "--disk-is-lost", id]).is_ok());
    }
    nodes[0].client.sql_json("INSERT INTO t VALUES (4)", None).unwrap();
    assert_eq!(rows(&nodes[0].client, "SELECT count(*), sum(k) FROM t").unwrap(), [[json!(4), json!(10)]]);
    // It is a cluster like any other: one that comes gets a vote and replicas.
    nodes.truncate(1);
    one_more(&mut nodes, directory.path().join("later").as_path(), &[]);
    until("the newcomer votes, and holds what it should", || {
        let cluster = nodes[0].client.cluster().unwrap();
        cluster["nodes"].as_array().unwrap().iter().all(|node| node["voter"] == true && node["replicas"] == 2)
    });
}

#[test]
fn moves_for_balance_wait_while_they_are_paused() {
    let directory = tempfile::tempdir().unwrap();
    let mut nodes = nodes(directory.path(), 1);
    let make = "CREATE TABLE u (k BIGINT PRIMARY KEY) PARTITION BY HASH(k) PARTITIONS 6 WITH (replication_factor = 1)";
    nodes[0].client.sql_json(make, None).unwrap();
    nodes[0].client.sql_json("INSERT INTO u VALUES (1), (2), (3), (4), (5), (6), (7)", None).unwrap();
    assert!(operate(&nodes[0], &["rebalance", "--pause"]).unwrap().contains("shoal cluster rebalance"));
    one_more(&mut nodes, directory.path(), &[]);
    let held = |node: &Process| {
        let cluster = nodes[0].client.cluster().unwrap();
        let nodes = cluster["nodes"].as_array().unwrap().clone();
        nodes.into_iter().find(|found| format!("n{}", found["id"]) == node.id()).unwrap()["replicas"].as_u64().unwrap()
    };
    until("the moves are known", || {
        operate(&nodes[1], &["rebalance", "--dry-run"]).is_ok_and(|told| told.contains("3 to move; balance is paused"))
    });
    // Placement has had several turns.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!([held(&nodes[0]), held(&nodes[1])], [6, 0]);
    let done = operate(&nodes[1], &["rebalance"]).unwrap();
    assert!(done.contains("all nodes carry about the same"), "{done}");
    assert_eq!([held(&nodes[0]), held(&nodes[1])], [3, 3]);
    assert_eq!(operate(&nodes[0], &["rebalance", "--dry-run"]).unwrap().trim(), "nothing to move");
    assert_eq!(rows(&nodes[1].client, "SELECT count(*), sum(k) FROM u").unwrap(), [[json!(7), json!(28)]]);
}

#[test]
fn replicas_are_spread_over_zones() {
    let directory = tempfile::tempdir().unwrap();
    let mut nodes = Vec::new();
    one_more(&mut nodes, directory.path(), &["--zone", "left"]);
    one_more(&mut nodes, directory.path(), &["--zone", "left"]);
    let make = "CREATE TABLE t (k BIGINT PRIMARY KEY) PARTITION BY HASH(k) PARTITIONS 4 WITH (replication_factor = 2); INSERT INTO t VALUES (1), (2), (3), (4), (5), (6), (7), (8)";
    nodes[0].client.sql_json(make, None).unwrap();
    one_more(&mut nodes, directory.path(), &["--zone", "right"]);
    let right = nodes[2].id();
    until("every partition has a replica on the right", || {
        let cluster = nodes[0].client.cluster().unwrap();
        cluster["partitions"].as_array().unwrap().iter().all(|partition| {
            let replicas = partition["replicas"].as_array().unwrap();
            let there = |replica: &Value| format!("n{}", replica["node"]) == right && replica["state"] == "voting";
            replicas.len() == 2 && replicas.iter().any(there)
        })
    });
    let seen = operate(&nodes[0], &["status"]).unwrap();
    assert!(seen.lines().any(|line| line.contains(&right) && line.contains("right")), "{seen}");
    // Without the left side everything is still there.
    nodes[0].kill();
    nodes[1].kill();
    until("the right side answers", || {
        rows(&nodes[2].client, "SELECT count(*) FROM t").is_ok_and(|rows| rows == [[json!(8)]])
    });
}

#[test]
fn nodes_come_and_go_and_their_replicas_with_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut nodes = nodes(directory.path(), 3);
    let make = "CREATE TABLE t (k BIGINT PRIMARY KEY, v VARCHAR) PARTITION BY HASH(k) PARTITIONS 6 WITH (replication_factor = 2)";
    nodes[0].client.sql_json(make, None).unwrap();
    let values: Vec<String> = (0..5_000).map(|key| format!("({key}, 'value {key}')")).collect();
    nodes[1].client.sql_json(&format!("INSERT INTO t VALUES {}", values.join(", ")), None).unwrap();
    let sum = "SELECT count(*), sum(k), count(DISTINCT v) FROM t";
    let whole = [[json!(5_000), json!(12_497_500), json!(5_000)]];

    // A fourth node gets its share of the twelve replicas.
    one_more(&mut nodes, directory.path(), &[]);
    until("the replicas are spread", || {
        let cluster = nodes[0].client.cluster().unwrap();
        cluster["nodes"].as_array().unwrap().iter().all(|node| node["replicas"] == 3)
    });
    let ids: Vec<String> = nodes.iter().map(Process::id).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    until_placed(&nodes[3], &ids, 2);
    assert_eq!(rows(&nodes[3].client, sum).unwrap(), whole);

    // One is drained and taken back.
    assert!(operate(&nodes[0], &["drain", ids[3]]).unwrap().contains("holds nothing any more"));
    until_placed(&nodes[0], &ids[..3], 2);
    assert_eq!(rows(&nodes[3].client, sum).unwrap(), whole, "it answers, by what others hold");
    let seen = operate(&nodes[3], &["status"]).unwrap();
    assert!(seen.lines().any(|line| line.contains(ids[3]) && line.contains("draining")), "{seen}");
    operate(&nodes[3], &["activate", ids[3]]).unwrap();

    // One leaves: its process ends, and what it held is elsewhere.
    let left = operate(&nodes[0], &["decommission", ids[1]]).unwrap();
    assert!(left.contains("has left the cluster"), "{left}");
    assert_eq!(nodes.remove(1).ends(), Some(0));
    let stay = [ids[0], ids[2], ids[3]];
    until_placed(&nodes[0], &stay, 2);
    assert_eq!(rows(&nodes[2].client, sum).unwrap(), whole);

    // One dies without a word: others take its place after replace_after_ms.
    let error = operate(&nodes[0], &["remove", "--disk-is-lost", ids[2]]).unwrap_err();
    assert!(error.contains("answers; only a node that is gone for good"), "{error}");
    nodes.remove(1).kill();
    let stay = [ids[0], ids[3]];
    until("all replicas that vote are on live nodes", || {
        let cluster = nodes[0].client.cluster().unwrap();
        cluster["partitions"].as_array().unwrap().iter().all(|partition| {
            let voting =
                partition["replicas"].as_array().unwrap().iter().filter(|replica| replica["state"] == "voting");
            let voting: Vec<String> = voting.map(|replica| format!("n{}", replica["node"])).collect();
            voting.len() == 2 && voting.iter().all(|node| stay.contains(&node.as_str()))
        })
    });
    nodes[1].client.sql_json("UPDATE t SET v = 'changed' WHERE k = 1", None).unwrap();
    operate(&nodes[0], &["remove", "--disk-is-lost", ids[2]]).unwrap();
    until_placed(&nodes[1], &stay, 2);
    assert_eq!(rows(&nodes[0].client, sum).unwrap(), whole);

    // What cannot be.
    let error = operate(&nodes[0], &["drain", "n7"]).unwrap_err();
    assert!(error.contains("there is no node n7"), "{error}");
    operate(&nodes[0], &["drain", "--no-wait", ids[0]]).unwrap();
    let error = operate(&nodes[0], &["drain", ids[3]]).unwrap_err();
    assert!(error.contains("the only node that could hold replicas"), "{error}");
}

#[test]
fn a_drain_outlives_the_leader_and_a_decommission_can_be_called_off() {
    let directory = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Process> = Vec::new();
    // Slow enough to be met half way: some seconds for each replica.
    for _ in 0..4 {
        one_more(&mut nodes, directory.path(), &["--set", "fill_bytes_per_second=30000"]);
    }
    let make = "CREATE TABLE t (k BIGINT PRIMARY KEY, v VARCHAR) PARTITION BY HASH(k) PARTITIONS 8 WITH (replication_factor = 2)";
    nodes[0].client.sql_json(make, None).unwrap();
    let values: Vec<String> = (0..8_000).map(|key| format!("({key}, md5('{key}') || md5('{key} again'))")).collect();
    nodes[1].client.sql_json(&format!("INSERT INTO t VALUES {}", values.join(", ")), None).unwrap();
    let sum = "SELECT count(*), sum(k), count(DISTINCT v) FROM t";
    let whole = [[json!(8_000), json!(31_996_000), json!(8_000)]];
    let ids: Vec<String> = nodes.iter().map(Process::id).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    until_placed(&nodes[0], &ids, 2);
    // Replicas on the node, and how many anywhere have come and are not whole yet.
    let held = |through: &Process, id: &str| {
        let cluster = through.client.cluster().ok()?;
        let of_node = |node: &&Value| format!("n{}", node["id"]) == id;
        let held = cluster["nodes"].as_array()?.iter().find(of_node)?["replicas"].as_u64()?;
        let partitions = cluster["partitions"].as_array()?.iter();
        let replicas = partitions.flat_map(|partition| partition["replicas"].as_array().unwrap());
        Some((held, replicas.filter(|replica| replica["state"] == "joining").count()))
    };

    let leader = until_some("there is a leader", || nodes[0].client.cluster().ok()?["leader"].as_u64());
    let leader = nodes.iter().position(|node| node.id() == format!("n{leader}")).unwrap();
    let (drained, other) = ((leader + 1) % 4, (leader + 2) % 4);
    operate(&nodes[other], &["drain", "--no-wait", ids[drained]]).unwrap();
    until("a replica moves", || held(&nodes[other], ids[drained]).is_some_and(|(_, joining)| joining > 0));
    nodes[leader].kill();
    assert!(held(&nodes[other], ids[drained]).unwrap().0 > 0, "there is something left to be done");
    nodes[leader].again();
    let stay: Vec<&str> = ids.iter().copied().filter(|id| *id != ids[drained]).collect();
    until_placed(&nodes[other], &stay, 2);
    assert_eq!(rows(&nodes[leader].client, sum).unwrap(), whole);
    operate(&nodes[other], &["activate", ids[drained]]).unwrap();
    until("it has its share again", || held(&nodes[other], ids[drained]).is_some_and(|(held, _)| held >= 3));
    until_placed(&nodes[other], &ids, 2);

    // Called off half way: it gives away no more, and its process stays.
    operate(&nodes[other], &["decommission", "--no-wait", ids[drained]]).unwrap();
    until("a replica moves away", || held(&nodes[other], ids[drained]).is_some_and(|(_, joining)| joining > 0));
    operate(&nodes[other], &["activate", ids[drained]]).unwrap();
    until_placed(&nodes[other], &ids, 2);
    until("it has its share still", || held(&nodes[other], ids[drained]).is_some_and(|(held, _)| held >= 3));
    assert!(nodes[drained].child.try_wait().unwrap().is_none(), "its process goes on");
    assert_eq!(rows(&nodes[drained].client, sum).unwrap(), whole);
}

#[test]
fn what_query_memory_does_not_hold_goes_to_disk() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Vec::new();
    let little = ["--set", "query_memory_bytes_max=12582912", "--set", "edge_window_bytes=262144"];
    one_more(&mut cluster, directory.path(), &little);
    let client = cluster[0].client.clone();
    client.sql_json("CREATE TABLE t (id BIGINT, v VARCHAR, PRIMARY KEY (id))", None).unwrap();
    for part in 0..4 {
        let (from, to) = (part * 100_000 + 1, (part + 1) * 100_000);
        let insert =
            format!("INSERT INTO t SELECT value, 'v' || (value * 7919 % 400009) FROM generate_series({from}, {to})");
        client.sql_json(&insert, None).unwrap();
    }
    let grouped = "SELECT count(*), sum(c), max(m) FROM (SELECT v, count(*) AS c, max(id) AS m FROM t GROUP BY v)";
    let sorted = "SELECT count(*), sum(CASE WHEN v >= before THEN 1 ELSE 0 END) FROM \
                  (SELECT v, lag(v) OVER (ORDER BY v, id) AS before FROM t)";
    assert_eq!(rows(&client, grouped).unwrap(), [[json!(400_000), json!(400_000), json!(400_000)]]);
    assert_eq!(rows(&client, sorted).unwrap(), [[json!(400_000), json!(399_999)]]);

    let metric = |name: &str| -> f64 {
        let mut answer = ureq::get(format!("{}/metrics", client.url())).call().unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        text.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok()).sum()
    };
    assert!(metric("shoal_spilled_bytes_total ") > 1e6);
    let left = || std::fs::read_dir(directory.path().join("n0/spill")).unwrap().count();
    until("the files are gone", || left() == 0 && metric("shoal_spill_bytes ") == 0.0);

    cluster.remove(0).terminate();
    std::fs::write(directory.path().join("n0/spill/0000000000000000"), "of an earlier life").unwrap();
    one_more(
        &mut cluster,
        directory.path(),
        &["--set", "query_memory_bytes_max=12582912", "--set", "spill_bytes_max=0"],
    );
    assert!(!directory.path().join("n0/spill").exists());
    let refused = rows(&cluster[0].client, grouped).unwrap_err();
    assert_eq!(refused.code(), Some("out_of_memory"), "{refused}");
}
