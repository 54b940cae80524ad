//! The five processes, and whether they are well.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use shoal::client::Client;
use tempfile::TempDir;

use crate::net::Net;
use crate::support::{PATIENCE, Process, operate, until};

pub const NODES: usize = 5;
/// Replicas of each partition.
const REPLICAS: usize = 3;
/// The deadline of a request at a node. What a client has given up happens within it or never.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a node may take to say how the cluster is.
const LOOK: Duration = Duration::from_secs(8);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

pub struct Cluster {
    binary: String,
    pub net: Net,
    nodes: Vec<Process>,
    /// Their numbers.
    pub numbers: Vec<u64>,
    directory: TempDir,
}

impl Cluster {
    pub fn start(binary: String, routed: bool) -> Self {
        let net = Net::new(routed, NODES);
        let mut cluster =
            Self { binary, net, nodes: Vec::new(), numbers: Vec::new(), directory: tempfile::tempdir().unwrap() };
        for node in 0..NODES {
            let others: Vec<usize> = (0..node).collect();
            let process = cluster.process(node, &others);
            cluster.nodes.push(process);
        }
        until("all nodes see each other", || cluster.unwell(false).is_none());
        cluster.numbers = (0..NODES).map(|node| cluster.number(node)).collect();
        cluster
    }

    fn process(&self, node: usize, others: &[usize]) -> Process {
        let mut command = self.net.at(node);
        let (data, http, address) =
            (self.data(node).display().to_string(), self.net.http(node), self.net.cluster(node));
        let timeout = format!("request_timeout_ms={}", REQUEST_TIMEOUT.as_millis());
        let given = [&self.binary, "start", "--data-dir", &data, "--http", &http, "--cluster", &address];
        command.extend(given.map(String::from));
        // Small memtables, so that rows are flushed and merged; everything that tells whether a node is up is as by default.
        for setting in ["disk_reserve_bytes=1048576", "memtable_bytes_max=1048576", &timeout] {
            command.extend(["--set", setting].map(String::from));
        }
        if !others.is_empty() {
            let others: Vec<&str> = others.iter().map(|other| self.nodes[*other].argument("--cluster")).collect();
            command.extend(["--join".to_owned(), others.join(",")]);
        }
        Process::start(command, Some(self.directory.path().join(format!("place{}.log", node + 1))))
    }

    fn data(&self, node: usize) -> PathBuf {
        self.directory.path().join(format!("place{}", node + 1))
    }

    fn number(&self, node: usize) -> u64 {
        self.client(node).cluster().unwrap()["node"].as_u64().unwrap()
    }

    pub fn url(&self, node: usize) -> String {
        self.nodes[node].client.url().to_owned()
    }

    /// A client that waits no longer for the node than it may take.
    pub fn client(&self, node: usize) -> Client {
        self.nodes[node].client.clone().within(LOOK)
    }

    pub fn signal(&self, node: usize, name: &str) {
        self.nodes[node].signal(name);
    }

    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// As a service manager stops it.
    pub fn terminate(&mut self, node: usize) {
        self.nodes[node].signal("TERM");
        let end = self.nodes[node].child.wait().unwrap();
        assert!(end.success(), "place {} ended with {end}", node + 1);
    }

    pub fn again(&mut self, node: usize) {
        self.nodes[node].again();
    }

    /// Empties the disk of a node that was killed and starts one in its place, as an operator does, who then gives the former one up.
    pub fn replace(&mut self, node: usize) {
        let former = self.numbers[node];
        std::fs::remove_dir_all(self.data(node)).unwrap();
        let others: Vec<usize> = (0..NODES).filter(|other| *other != node).collect();
        self.nodes[node] = self.process(node, &others);
        until("the node in its place is ready", || self.client(node).ready().is_ok());
        self.numbers[node] = self.number(node);
        let id = format!("n{former}");
        let remove = ["remove", "--disk-is-lost", id.as_str()];
        until("the lost one is given up", || operate(&self.binary, &self.nodes[others[0]], &remove).is_ok());
    }

    /// What is not as it should be: all nodes are ready and see each other, and, if that is asked, all partitions have all their replicas,
    /// equal ones.
    pub fn unwell(&self, equal: bool) -> Option<String> {
        (0..self.nodes.len()).find_map(|node| {
            let client = self.client(node);
            if let Err(error) = client.ready() {
                return Some(format!("place {} is not ready: {error}", node + 1));
            }
            let seen = match client.cluster() {
                Ok(seen) => seen,
                Err(error) => return Some(format!("place {}: {error}", node + 1)),
            };
            let others = list(&seen["nodes"]);
            let away = others.iter().find(|other| other["swim"] != "alive");
            if let Some(away) = away.or_else(|| others.first().filter(|_| others.len() != NODES)) {
                return Some(format!("place {} sees {} nodes, among them {away}", node + 1, others.len()));
            }
            let partitions = list(&seen["partitions"]);
            let differing = partitions.iter().filter(|_| equal).find(|partition| !is_whole(partition))?;
            Some(format!("place {} sees {differing}", node + 1))
        })
    }

    /// Waits until all nodes are well and their replicas equal; since when it took how long.
    pub fn until_equal(&self, since: Instant) -> Result<Duration, String> {
        loop {
            let Some(problem) = self.unwell(true) else { return Ok(since.elapsed()) };
            if since.elapsed() > PATIENCE {
                return Err(problem);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Asks a node until it calls another one down; when that was.
    pub fn sees_down(&self, node: usize, number: u64, give_up: impl Fn() -> bool) -> Option<Instant> {
        let client = self.client(node);
        while !give_up() {
            if let Ok(seen) = client.cluster() {
                let found = list(&seen["nodes"]).iter().find(|other| other["id"] == number);
                if found.is_some_and(|found| found["swim"] == "down") {
                    return Some(Instant::now());
                }
            }
            std::thread::sleep(PAUSE);
        }
        None
    }

    /// Has each replica of the tables compared with the others. They were told to be equal, so nothing must differ.
    pub fn compare(&self) -> Result<(), String> {
        for table in ["kv", "events", "kinds"] {
            let answer = self.client(0).within(PATIENCE).sql_json(&format!("REPAIR TABLE {table}"), None);
            let answer = answer.map_err(|error| format!("REPAIR TABLE {table}: {error}"))?;
            let unlike: BTreeSet<String> = list(&answer["results"][0]["rows"])
                .iter()
                .filter(|row| row[1] != REPLICAS || row[2] != 0 || row[3] != 0)
                .map(Value::to_string)
                .collect();
            if !unlike.is_empty() {
                return Err(format!("REPAIR TABLE {table} found {unlike:?}"));
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.directory.disable_cleanup(true);
            println!("what the nodes logged and wrote is kept in {}", self.directory.path().display());
        }
    }
}

fn is_whole(partition: &Value) -> bool {
    let replicas = list(&partition["replicas"]);
    replicas.len() == REPLICAS
        && replicas.iter().all(|replica| {
            replica["state"] == "voting"
                && replica["lag"] == 0
                && replica["problem"].is_null()
                && replica["failed"] == false
                && replica["digest"] == replicas[0]["digest"]
        })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
