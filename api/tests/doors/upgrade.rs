//! Nodes of two builds side by side, as in a rolling upgrade.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use shoal::client::{Client, ClientError};

use crate::cluster::{BINARY, one_more_of, rows};
use crate::support::{Process, until};

/// What one client has seen.
#[derive(Default)]
struct Seen {
    /// Pairs of a write and a read of everything that this client has written.
    rounds: i64,
    /// What went wrong.
    failures: Vec<String>,
}

/// Writes row after row, and counts them after each, at quorum. A node that does not take the connection is passed over; whatever else is
/// not an answer is a failure.
fn client(number: usize, nodes: &[Client], ends: &AtomicBool, seen: &Mutex<Seen>) {
    let mut turn = number;
    let mut ask = |sql: &str| -> Option<Value> {
        for _ in 0..nodes.len() {
            turn += 1;
            match nodes[turn % nodes.len()].sql_json(sql, None) {
                Ok(answer) => return Some(answer),
                Err(ClientError::Unreachable { .. }) => {}
                Err(error) => {
                    seen.lock().unwrap().failures.push(format!("{sql}: {error}"));
                    return None;
                }
            }
        }
        seen.lock().unwrap().failures.push(format!("{sql}: no node takes the connection"));
        None
    };
    for round in 1.. {
        if ends.load(Ordering::Relaxed) {
            return;
        }
        let written = ask(&format!("INSERT INTO t VALUES ({number}, {round}, '{number}-{round}')"));
        let read = ask(&format!("SELECT count(*), max(n) FROM t WHERE client = {number}"));
        let mut seen = seen.lock().unwrap();
        match (written, read) {
            (Some(_), Some(answer)) if answer["results"][0]["rows"] == json!([[round, round]]) => seen.rounds = round,
            (Some(_), Some(answer)) => seen.failures.push(format!("{round} rows were written: {answer}")),
            _ => {}
        }
    }
}

/// Three nodes of an earlier build, which `SHOAL_EARLIER` names, become nodes of this one, one after the other, under load.
#[test]
#[ignore = "needs the binary of an earlier build: cargo xtask upgrade"]
fn an_upgrade_fails_no_request() {
    let earlier = std::env::var("SHOAL_EARLIER").expect("SHOAL_EARLIER names the earlier binary");
    assert!(content(&earlier) != content(BINARY), "that is no other build");
    let directory = tempfile::tempdir().unwrap();
    let mut nodes: Vec<Process> = Vec::new();
    for _ in 0..3 {
        one_more_of(&earlier, &mut nodes, directory.path(), &[]);
    }
    let make = "CREATE TABLE t (client BIGINT, n BIGINT, text VARCHAR, PRIMARY KEY (client, n)) PARTITION BY HASH(client, n) PARTITIONS 4 WITH (read_level = 'quorum')";
    until("the table is made, with three replicas", || {
        nodes[0].client.sql_json("DROP TABLE IF EXISTS t", None).is_ok()
            && nodes[0].client.sql_json(make, None).is_ok()
            && nodes[0].client.cluster().unwrap()["partitions"][0]["replicas"].as_array().unwrap().len() == 3
    });

    let ends = Arc::new(AtomicBool::new(false));
    let doors: Vec<Client> = nodes.iter().map(|node| node.client.clone()).collect();
    let seen: Vec<Arc<Mutex<Seen>>> = (0..3).map(|_| Arc::default()).collect();
    let clients: Vec<_> = seen
        .iter()
        .enumerate()
        .map(|(number, seen)| {
            let (doors, ends, seen) = (doors.clone(), ends.clone(), seen.clone());
            std::thread::spawn(move || client(number, &doors, &ends, &seen))
        })
        .collect();
    let rounds = || seen.iter().map(|seen| seen.lock().unwrap().rounds).collect::<Vec<_>>();
    let some_work = || {
        let before = rounds();
        until("clients have gone on", || rounds().iter().zip(&before).all(|(now, before)| *now > before + 10));
    };
    some_work();
    for number in 0..nodes.len() {
        let node = nodes.remove(number);
        let mut command = node.command.clone();
        assert_eq!(node.terminate(), Some(0));
        command[0] = BINARY.to_owned();
        nodes.insert(number, Process::start(command, None));
        until("the node takes part again", || nodes[number].client.ready().is_ok());
        some_work();
    }
    ends.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    for seen in &seen {
        assert_eq!(seen.lock().unwrap().failures, Vec::<String>::new());
    }
    let expected: i64 = rounds().iter().sum();
    assert_eq!(rows(&nodes[2].client, "SELECT count(*) FROM t").unwrap(), [[json!(expected)]]);
}

fn content(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path).unwrap()
}
