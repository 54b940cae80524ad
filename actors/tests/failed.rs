//! A replica that its node cannot keep running, while the node is well.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use shoal_actors::Node;
use shoal_actors::service::{ReplicaStatus, SqlRequest};
use shoal_catalog::ReplicaState;
use shoal_kernel::{Error, NodeId, PartitionId};

use common::{eventually, node, nodes, numbers};

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
