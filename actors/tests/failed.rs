//! A replica that its node cannot keep running, while the node is well.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use shoal_actors::Node;
use shoal_actors::service::{Moment, NodeEnd, Observer, ReplicaStatus, SqlRequest};
use shoal_catalog::{Catalog, ReplicaState};
use shoal_kernel::{Epoch, Error, KeyRange, NodeId, PartitionId};
use shoal_membership::CatalogObserver;
use shoal_storage::Write;

use common::{PATIENCE, config, eventually, free_address, node, nodes, numbers, started};

async fn run(node: &Node, sql: &str) {
    eventually(sql, || async { node.sql(SqlRequest::new(sql)).await?.collect().await.map(drop) }).await;
}

/// The only partition there is.
async fn replicas(node: &Node) -> (PartitionId, Vec<ReplicaStatus>) {
    let partition = node.cluster().await.partitions.remove(0);
    (partition.id, partition.replicas)
}

fn voters(replicas: &[ReplicaStatus]) -> Vec<NodeId> {
    let voting = replicas.iter().filter(|replica| replica.state == ReplicaState::Voting && replica.reachable);
    voting.map(|replica| replica.node).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_take_the_place_of_a_replica_that_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = nodes(dir.path()).await;
    run(&nodes[0], "CREATE TABLE t (k BIGINT PRIMARY KEY) WITH (replication_factor = 2)").await;
    run(&nodes[0], "INSERT INTO t VALUES (1), (2), (3)").await;
    let (partition, held) = replicas(&nodes[0]).await;
    let number = nodes.iter().rposition(|node| held.iter().any(|replica| replica.node == node.id())).unwrap();
    let sick = nodes.remove(number);
    let (id, address) = (sick.id(), sick.cluster_address());
    sick.shutdown().await;

    // Nothing can be opened there.
    let (files, aside) = (dir.path().join(format!("n{number}/replicas/{partition}")), dir.path().join("aside"));
    std::fs::rename(&files, &aside).unwrap();
    std::fs::write(&files, "in the way").unwrap();
    let join = nodes.iter().map(Node::cluster_address).collect();
    nodes.push(node(dir.path().join(format!("n{number}")), address, join).await);
    eventually("another node has the replica", || async {
        let (_, replicas) = replicas(&nodes[0]).await;
        let failed: Vec<NodeId> =
            replicas.iter().filter(|replica| replica.failed).map(|replica| replica.node).collect();
        let voters = voters(&replicas);
        let moved = failed == [id] && voters.len() == 2 && !voters.contains(&id);
        if moved { Ok(()) } else { Err(Error::internal(format!("{replicas:?}"))) }
    })
    .await;
    run(&nodes[0], "INSERT INTO t VALUES (4)").await;
    assert_eq!(numbers(&nodes[2], "SELECT count(*) FROM t").await.unwrap(), [4]);

    // It can be opened again: it hands over what it has, and goes.
    std::fs::remove_file(&files).unwrap();
    std::fs::rename(&aside, &files).unwrap();
    eventually("the replica has gone in good order", || async {
        let (_, replicas) = replicas(&nodes[0]).await;
        let gone = replicas.len() == 2 && replicas.iter().all(|replica| !replica.failed && replica.node != id);
        if gone { Ok(()) } else { Err(Error::internal(format!("{replicas:?}"))) }
    })
    .await;
    for node in nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_take_the_place_of_a_replica_that_cannot_be_split() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path()).await;
    run(&nodes[0], "CREATE TABLE t (k BIGINT PRIMARY KEY) WITH (replication_factor = 2)").await;
    run(&nodes[0], "INSERT INTO t VALUES (1), (2), (3), (4)").await;
    let (partition, held) = replicas(&nodes[0]).await;
    let number = nodes.iter().rposition(|node| held.iter().any(|replica| replica.node == node.id())).unwrap();
    let id = nodes[number].id();

    // Neither half can be made there.
    let replicas_dir = dir.path().join(format!("n{number}/replicas"));
    let in_the_way = [1, 2].map(|step| replicas_dir.join(PartitionId(partition.0 + step).to_string()));
    in_the_way.iter().for_each(|path| std::fs::write(path, "in the way").unwrap());
    run(&nodes[0], "ALTER TABLE t SPLIT AT (3)").await;
    let halves = || async {
        let cluster = nodes[0].cluster().await;
        cluster.partitions.into_iter().map(|partition| partition.replicas).collect::<Vec<_>>()
    };
    eventually("another node has the halves", || async {
        let halves = halves().await;
        let moved = |replicas: &Vec<ReplicaStatus>| {
            let failed = replicas.iter().any(|replica| replica.node == id && replica.failed);
            failed && voters(replicas).len() == 2 && !voters(replicas).contains(&id)
        };
        if halves.len() == 2 && halves.iter().all(moved) { Ok(()) } else { Err(Error::internal(format!("{halves:?}"))) }
    })
    .await;
    assert!(nodes[number].ready().is_ok(), "it does what it can");
    run(&nodes[0], "INSERT INTO t VALUES (5)").await;
    assert_eq!(numbers(&nodes[number], "SELECT count(*) FROM t").await.unwrap(), [5]);

    in_the_way.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    eventually("the replicas have gone in good order", || async {
        let halves = halves().await;
        let gone = |replicas: &Vec<ReplicaStatus>| {
            replicas.len() == 2 && replicas.iter().all(|replica| !replica.failed && replica.node != id)
        };
        if halves.iter().all(gone) { Ok(()) } else { Err(Error::internal(format!("{halves:?}"))) }
    })
    .await;
    for node in nodes {
        node.shutdown().await;
    }
}

/// Panics on one node whenever many rows are to be written there at once.
#[derive(Debug, Default)]
struct Poisoned {
    node: AtomicU32,
    panics: AtomicU32,
}

/// Rows that are many.
const MANY: usize = 50;

impl CatalogObserver for Poisoned {
    fn applied(&self, _: NodeId, _: &Catalog) {}
}

impl Observer for Poisoned {
    fn opened(&self, _: Moment, _: &[PartitionId], _: &KeyRange) {}

    fn copied(&self, _: Moment, _: Moment) {}

    fn stands(&self, _: Moment, _: Epoch, _: bool) {}

    fn acknowledged(&self, _: Moment, _: Epoch) {}

    fn handed_over(&self, _: Moment, _: &[NodeId]) {}

    #[allow(clippy::panic, reason = "that is what is to be borne")]
    fn writing(&self, at: Moment, group: &[Write]) {
        let is_many = group.iter().any(|write| write.rows.len() >= MANY);
        if is_many && at.node == NodeId(self.node.load(Ordering::Relaxed)) {
            self.panics.fetch_add(1, Ordering::Relaxed);
            panic!("these rows cannot be borne here");
        }
    }

    fn written(&self, _: Moment, _: &[Option<u64>]) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_one_node_cannot_bear_cost_it_the_replica_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let poisoned = Arc::new(Poisoned::default());
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..3 {
        let join = nodes.iter().map(Node::cluster_address).collect();
        let mut config = config(dir.path().join(format!("n{number}")), free_address(), join);
        config.observer = Some(poisoned.clone());
        let node = started(config).await;
        eventually("the node is ready", || async { node.ready() }).await;
        nodes.push(node);
    }
    let table = "(k BIGINT PRIMARY KEY) WITH (replication_factor = 2, write_level = 'one')";
    run(&nodes[0], &format!("CREATE TABLE t {table}")).await;
    run(&nodes[0], &format!("CREATE TABLE u {table}")).await;
    let (_, held) = replicas(&nodes[0]).await;
    let sick = held[0].node;
    let number = nodes.iter().position(|node| node.id() == sick).unwrap();
    poisoned.node.store(sick.0, Ordering::Relaxed);

    // One replica takes them, and the other one is to have them from that.
    let rows: Vec<String> = (0..MANY).map(|key| format!("({key})")).collect();
    run(&nodes[(number + 1) % 3], &format!("INSERT INTO t VALUES {}", rows.join(", "))).await;
    eventually("another node has the replica", || async {
        let partitions = nodes[(number + 1) % 3].cluster().await.partitions;
        let of_t = partitions.into_iter().find(|partition| partition.table == "t");
        let replicas = of_t.map(|partition| partition.replicas).unwrap_or_default();
        let is_given_up = replicas.iter().any(|replica| replica.node == sick && replica.failed);
        let moved = is_given_up && voters(&replicas).len() == 2 && !voters(&replicas).contains(&sick);
        if moved { Ok(()) } else { Err(Error::internal(format!("{replicas:?}"))) }
    })
    .await;
    let panics = poisoned.panics.load(Ordering::Relaxed);
    assert!((7..20).contains(&panics), "it was tried {panics} times");

    // The node itself is well, and so are its other replicas.
    assert!(nodes[number].ready().is_ok());
    run(&nodes[number], "INSERT INTO u VALUES (1)").await;
    assert_eq!(numbers(&nodes[number], "SELECT count(*) FROM t").await.unwrap(), [MANY as i64]);
    assert_eq!(numbers(&nodes[number], "SELECT count(*) FROM u").await.unwrap(), [1]);
    for node in nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_look_for_its_replicas_ends_instead_of_seeming_well() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("replicas"), "in the way").unwrap();
    let node = started(config(dir.path(), free_address(), Vec::new())).await;
    let ended = tokio::time::timeout(PATIENCE, node.ended()).await.unwrap();
    let NodeEnd::Failed(error) = ended else { panic!("{ended:?}") };
    assert!(error.message().contains("has failed 7 times in a row"), "{error}");
    node.shutdown().await;
}
