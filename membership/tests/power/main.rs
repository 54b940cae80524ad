//! The catalog under power loss and failing disks, in virtual time, from seeds: what was acknowledged is there afterwards, and
//! the same seed gives the same run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod world;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_schema::DataType;
use async_trait::async_trait;
use rand::{RngExt, SeedableRng};
use shoal_catalog::*;
use shoal_kernel::env::Rng;
use shoal_kernel::{Applied, Column, ColumnId, Env, Error, ErrorCode, NodeId, Result, TableKind, TableSchema};
use shoal_membership::*;
use tokio::runtime::{Builder, RngSeed};
use world::{MemoryDisk, Trace, Virtual};

const NODES: u32 = 3;
const SEEDS: u64 = 30;

/// Seeds that found something: a message lost on the way took the whole deadline with it; a change of voters stayed half done;
/// a restarted leader served reads without knowing how far it had committed.
const FOUND: [u64; 3] = [10, 34, 111];

fn address(id: u32) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], u16::try_from(id).unwrap()))
}

fn table(name: &str) -> Command {
    let key = Column { id: ColumnId(0), name: "k".into(), data_type: DataType::Int64, nullable: false };
    Command::CreateTable(NewTable {
        name: name.into(),
        schema: TableSchema::new(vec![key], TableKind::Upsert { primary_key: vec![ColumnId(0)] }),
        partitioning: Partitioning::Range { columns: vec![ColumnId(0)] },
        split_points: vec![],
        options: TableOptions::default(),
        if_not_exists: false,
    })
}

#[derive(Default)]
struct Wires(Mutex<BTreeMap<SocketAddr, Agreement>>);

/// Every message takes a moment, some are lost.
struct Wire {
    wires: Arc<Wires>,
    rng: Mutex<Rng>,
}

#[async_trait]
#[allow(clippy::disallowed_methods, reason = "this is the network")]
impl PeerRpc for Wire {
    async fn call(&self, to: SocketAddr, message: Vec<u8>, timeout: Duration) -> Result<Vec<u8>> {
        let (there, back, lost) = {
            let mut rng = self.rng.lock().unwrap();
            (rng.random_range(1..15u64), rng.random_range(1..15u64), rng.random_range(0..100) < 3)
        };
        let unknown = || Error::new(ErrorCode::NodeLost, "no answer").with_applied(Applied::Unknown);
        let work = async {
            tokio::time::sleep(Duration::from_millis(there)).await;
            let peer = self.wires.0.lock().unwrap().get(&to).cloned();
            let Some(peer) = peer.filter(|_| !lost) else { return std::future::pending().await };
            let answer = peer.handle(&message).await;
            tokio::time::sleep(Duration::from_millis(back)).await;
            answer
        };
        tokio::time::timeout(timeout, work).await.unwrap_or_else(|_| Err(unknown()))
    }
}

struct Life {
    seed: u64,
    disks: BTreeMap<u32, Arc<MemoryDisk>>,
    trace: Arc<Trace>,
}

impl Life {
    fn new(seed: u64, disks: impl Fn(u32) -> MemoryDisk) -> Self {
        let disks = (1..=NODES).map(|id| (id, Arc::new(disks(id)))).collect();
        Self { seed, disks, trace: Arc::default() }
    }

    /// Runs the cluster until the work is done; then it is dropped with everything in it.
    fn run<T>(&self, work: impl AsyncFnOnce(Cluster) -> T) -> T {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .rng_seed(RngSeed::from_bytes(&self.seed.to_le_bytes()))
            .build()
            .unwrap();
        runtime.block_on(async {
            let start = tokio_now();
            let (disks, trace, seed) = (self.disks.clone(), self.trace.clone(), self.seed);
            work(Cluster { wires: Arc::default(), disks, trace, seed, start }).await
        })
    }
}

#[allow(clippy::disallowed_methods, reason = "the world's clock")]
fn tokio_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

struct Cluster {
    wires: Arc<Wires>,
    disks: BTreeMap<u32, Arc<MemoryDisk>>,
    trace: Arc<Trace>,
    seed: u64,
    start: tokio::time::Instant,
}

impl Cluster {
    fn env(&self, id: u32) -> Env {
        let rng = Mutex::new(Rng::seed_from_u64(self.seed ^ u64::from(id) << 32));
        Env::new(Virtual { node: id, start: self.start, disk: self.disks[&id].clone(), trace: self.trace.clone(), rng })
    }

    async fn open(&self, id: u32) -> Result<Agreement> {
        let (cluster_address, http_address) = (address(id), address(100 + id));
        let attributes = NodeAttributes { cluster_address, http_address, zone: String::new() };
        let mut config = AgreementConfig::new(NodeId(id), attributes, "/data");
        config.snapshot_after_entries = 10;
        config.entries_kept = 2;
        let rng = Mutex::new(Rng::seed_from_u64(self.seed ^ u64::from(id) << 48));
        let wire = Arc::new(Wire { wires: self.wires.clone(), rng });
        let agreement = Agreement::open(&self.env(id), config, wire).await?;
        self.wires.0.lock().unwrap().insert(address(id), agreement.clone());
        Ok(agreement)
    }

    /// Starts all nodes and has them found and join.
    async fn form(&self) -> Result<Vec<Agreement>> {
        let mut nodes = Vec::new();
        for id in 1..=NODES {
            let node = self.open(id).await?;
            if id == 1 {
                node.found().await?;
            } else {
                node.join(&[address(1)], Duration::from_secs(60)).await?;
            }
            nodes.push(node);
        }
        Ok(nodes)
    }

    fn burnt(&self) -> bool {
        self.disks.values().any(|disk| disk.fuse().burnt())
    }

    /// Makes tables until a fuse burns; gives the names that were acknowledged, and those that may be there.
    async fn work(&self, tables: u32) -> (Vec<String>, Vec<String>) {
        let (mut sure, mut perhaps) = (Vec::new(), Vec::new());
        if let Ok(nodes) = self.form().await {
            for number in 0..tables {
                let name = format!("t{number:03}");
                match nodes[number as usize % nodes.len()].propose(table(&name), Duration::from_secs(5)).await {
                    Ok(_) => sure.push(name),
                    Err(error) => {
                        self.trace.note(&error.to_string());
                        if error.applied() == Applied::Unknown {
                            perhaps.push(name);
                        }
                    }
                }
                if self.burnt() {
                    break;
                }
            }
        }
        (sure, perhaps)
    }

    /// Starts all nodes again; gives the tables that all of them show.
    async fn recover(&self) -> Result<Vec<String>, String> {
        let mut nodes = Vec::new();
        for id in 1..=NODES {
            nodes.push(self.open(id).await.map_err(|error| format!("node {id} does not open: {error}"))?);
        }
        let all = || nodes.iter().map(|node| (node.clone(), node.is_member(), node.status())).collect::<Vec<_>>();
        let mut seen: Option<Vec<String>> = None;
        for node in nodes.iter().filter(|node| node.is_member()) {
            let catalog = match node.linearizable(Duration::from_secs(60)).await {
                Ok(catalog) => catalog,
                Err(error) => return Err(format!("{node:?} does not recover: {error}; {:#?}", all())),
            };
            let names: Vec<String> = catalog.tables.values().map(|table| table.name.clone()).collect();
            if seen.as_ref().is_some_and(|seen| *seen != names) {
                return Err(format!("{node:?} shows {names:?}, another {seen:?}; {:#?}", all()));
            }
            seen = Some(names);
        }
        // Whatever change of voters was under way comes to its end by itself.
        for node in nodes.iter().filter(|node| node.is_member()) {
            let mut rounds = 0;
            while node.status().changing {
                rounds += 1;
                if rounds > 60 {
                    return Err(format!("the voters are still changing; {:#?}", all()));
                }
                self.env(1).sleep(Duration::from_secs(1)).await;
            }
        }
        Ok(seen.unwrap_or_default())
    }
}

/// The power fails everywhere after so many operations on one disk. Gives the hash of everything that happened, or what was
/// broken.
fn power_loss(seed: u64, honest: bool) -> Result<u64, String> {
    let operations = Rng::seed_from_u64(seed).random_range(1..250);
    let before = Life::new(seed, |id| {
        let disk = if id == 1 + seed as u32 % NODES {
            MemoryDisk::new(operations, io::ErrorKind::Other)
        } else {
            MemoryDisk::new(i64::MAX, io::ErrorKind::Other)
        };
        if honest { disk } else { disk.lying() }
    });
    let (sure, perhaps) = before.run(async |cluster| cluster.work(40).await);
    let after = Life::new(seed, |id| before.disks[&id].after_power_loss(seed));
    let found = after.run(async |cluster| cluster.recover().await)?;
    if let Some(name) = sure.iter().find(|name| !found.contains(name)) {
        return Err(format!("'{name}' was acknowledged and is gone"));
    }
    if let Some(name) = found.iter().find(|name| !sure.contains(name) && !perhaps.contains(name)) {
        return Err(format!("'{name}' was refused and is there"));
    }
    Ok(before.trace.hash() ^ after.trace.hash().rotate_left(1))
}

#[test]
fn what_was_acknowledged_survives_a_power_loss_of_all() {
    for seed in (0..SEEDS).chain(FOUND) {
        if let Err(broken) = power_loss(seed, true) {
            panic!("seed {seed}: {broken}");
        }
    }
}

/// A node's disk fails after so many operations, its process is started again, and later the power fails everywhere.
fn failure_and_power_loss(seed: u64) -> Result<(), String> {
    let operations = Rng::seed_from_u64(seed).random_range(40..250);
    let first =
        Life::new(seed, |id| MemoryDisk::new(if id == 2 { operations } else { i64::MAX }, io::ErrorKind::Other));
    let (mut sure, _) = first.run(async |cluster| cluster.work(40).await);
    // A life draws other numbers than the one before: what tells two proposals apart is random.
    let second = Life::new(!seed, |id| first.disks[&id].after_restart());
    second.run(async |cluster| {
        let mut nodes = Vec::new();
        for id in 1..=NODES {
            nodes.push(cluster.open(id).await.map_err(|error| format!("node {id} does not start: {error}"))?);
        }
        for name in ["later0", "later1", "later2"] {
            let member = nodes.iter().find(|node| node.is_member()).ok_or("no node is a member")?;
            member.linearizable(Duration::from_secs(60)).await.map_err(|error| error.to_string())?;
            member.propose(table(name), Duration::from_secs(60)).await.map_err(|error| error.to_string())?;
            sure.push(name.to_owned());
        }
        Ok::<_, String>(())
    })?;
    let third = Life::new(seed, |id| second.disks[&id].after_power_loss(seed));
    let found = third.run(async |cluster| cluster.recover().await)?;
    match sure.iter().find(|name| !found.contains(name)) {
        Some(name) => Err(format!("'{name}' was acknowledged and is gone")),
        None => Ok(()),
    }
}

#[test]
fn what_a_failed_sync_left_in_memory_is_not_taken_for_durable() {
    for seed in 0..SEEDS {
        if let Err(broken) = failure_and_power_loss(seed) {
            panic!("seed {seed}: {broken}");
        }
    }
}

#[test]
fn a_disk_that_lies_is_found_out() {
    assert!((0..SEEDS).any(|seed| power_loss(seed, false).is_err()), "this test cannot fail");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 17, 31] {
        assert_eq!(power_loss(seed, true), power_loss(seed, true), "seed {seed}");
    }
    assert_ne!(power_loss(3, true), power_loss(4, true));
}

#[test]
fn a_full_disk_stops_one_node_and_says_so() {
    let life = Life::new(5, |id| MemoryDisk::new(if id == 2 { 120 } else { i64::MAX }, io::ErrorKind::StorageFull));
    life.run(async |cluster| {
        let nodes = cluster.form().await.unwrap();
        let mut number = 0;
        while nodes[1].status().problem.is_none() {
            nodes[0].propose(table(&format!("t{number}")), Duration::from_secs(20)).await.unwrap();
            number += 1;
        }
        assert!(number > 3, "the disk was full before the test began");
        assert_eq!(nodes[1].status().problem.unwrap().code(), ErrorCode::DiskFull);
        let refused = nodes[1].propose(table("refused"), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!((refused.code(), refused.applied()), (ErrorCode::DiskFull, Applied::False));
        // What it had applied is still there to read, and the others go on.
        assert!(nodes[1].catalog().borrow().table("t0").is_some());
        nodes[2].propose(table("after"), Duration::from_secs(20)).await.unwrap();
        assert!(nodes[2].catalog().borrow().table("after").is_some());
    });
}

#[test]
fn a_node_that_never_joined_says_so() {
    Life::new(1, |_| MemoryDisk::new(i64::MAX, io::ErrorKind::Other)).run(async |cluster| {
        let node = cluster.open(1).await.unwrap();
        assert!(!node.is_member());
        let refused = node.propose(table("t"), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!((refused.code(), refused.applied()), (ErrorCode::NotReady, Applied::False));
        // Nobody answers at the door.
        let refused = node.join(&[address(9)], Duration::from_secs(3)).await.unwrap_err();
        assert!(Error::from(refused).retryable());
    });
}
