//! Deletions that are forgotten once every replica has them, and not before.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use shoal_actors::Node;
use shoal_actors::service::{NodeChange, NodeConfig, SqlRequest};
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{Error, NodeId, Result};

use common::{PATIENCE, eventually, free_address, numbers};

async fn start(mut config: NodeConfig) -> Node {
    config.disk_reserve_bytes = 0;
    (config.purge_after_ms, config.purge_tombstones_min) = (1_500, 1);
    let node = Node::start(env(&RealOptions::default()).unwrap(), config).await.unwrap();
    eventually("the node is ready", || async { node.ready() }).await;
    node
}

async fn nodes(dir: &Path, number: usize) -> (Vec<NodeConfig>, Vec<Node>) {
    let (mut configs, mut nodes): (Vec<NodeConfig>, Vec<Node>) = (Vec::new(), Vec::new());
    for number in 0..number {
        let mut config = NodeConfig::new(dir.join(format!("n{number}")), free_address(), free_address());
        config.join = nodes.iter().map(Node::cluster_address).collect();
        configs.push(config.clone());
        nodes.push(start(config).await);
    }
    (configs, nodes)
}

async fn sql(node: &Node, text: &str) -> Result<()> {
    node.sql(SqlRequest::new(text)).await?.collect().await.map(drop)
}

/// Tombstones of every replica that answers: the last number of its digest.
async fn tombstones(node: &Node) -> Vec<u64> {
    let partitions = node.cluster().await.partitions;
    let digests =
        partitions.iter().flat_map(|partition| &partition.replicas).filter_map(|replica| replica.digest.as_ref());
    digests.map(|digest| digest.rsplit('-').next().unwrap().parse().unwrap()).collect()
}

async fn none_left(node: &Node) -> Result<()> {
    match tombstones(node).await {
        left if left == [0, 0, 0] => Ok(()),
        left => Err(Error::internal(format!("{left:?}"))),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_are_forgotten_once_all_have_them() {
    let dir = tempfile::tempdir().unwrap();
    let (configs, mut nodes) = nodes(dir.path(), 3).await;
    sql(&nodes[0], "CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT)").await.unwrap();
    let pairs: Vec<String> = (0..1_000).map(|k| format!("({k}, {k})")).collect();
    eventually("rows", || sql(&nodes[0], "INSERT INTO t (k, v) VALUES (5000, 1)")).await;
    sql(&nodes[0], &format!("INSERT INTO t (k, v) VALUES {}", pairs.join(", "))).await.unwrap();
    eventually("all have them", || sql(&nodes[0], "FLUSH")).await;
    eventually("a deletion", || sql(&nodes[1], "DELETE FROM t WHERE k >= 100 AND k < 300")).await;
    sql(&nodes[1], "FLUSH").await.unwrap();
    eventually("deletions are forgotten", || none_left(&nodes[0])).await;
    let count = "SELECT count(*), sum(k) FROM t WHERE k < 1000";
    let all = [800, (0..1_000).sum::<i64>() - (100..300).sum::<i64>()];
    for node in &nodes {
        assert_eq!(numbers(node, count).await.unwrap(), all);
    }
    // What was deleted may come again.
    sql(&nodes[2], "INSERT INTO t (k, v) VALUES (150, 1)").await.unwrap();

    // While one replica is away it may hold what was deleted, and nothing is forgotten.
    let gone = nodes.pop().unwrap();
    gone.shutdown().await;
    drop(gone);
    eventually("a deletion", || sql(&nodes[0], "DELETE FROM t WHERE k >= 500 AND k < 600")).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(tombstones(&nodes[0]).await, [100, 100]);
    nodes.push(start(configs[2].clone()).await);
    eventually("the deletion is everywhere", || async {
        sql(&nodes[0], "FLUSH").await?;
        none_left(&nodes[0]).await
    })
    .await;
    for node in &nodes {
        let left = eventually("it answers", || numbers(node, count)).await;
        assert_eq!(left, [701, all[1] + 150 - (500..600).sum::<i64>()]);
        node.shutdown().await;
    }
}

/// The directory of the table's partition, and who has a replica of it.
async fn holders(node: &Node) -> (String, BTreeSet<NodeId>) {
    let partition = node.cluster().await.partitions.remove(0);
    (partition.id.to_string(), partition.replicas.iter().map(|replica| replica.node).collect())
}

/// Copies the files of a directory.
fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_forgotten_does_not_come_back_with_a_replicas_earlier_life() {
    let dir = tempfile::tempdir().unwrap();
    let (configs, mut nodes) = nodes(dir.path(), 4).await;
    sql(&nodes[0], "CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT)").await.unwrap();
    eventually("rows", || sql(&nodes[0], "INSERT INTO t (k, v) VALUES (1, 1), (2, 2), (3, 3)")).await;
    let (partition, holders) = holders(&nodes[0]).await;
    let at = (1..4).find(|at| holders.contains(&nodes[*at].id())).unwrap();
    let id = nodes[at].id();
    eventually("all have them", || sql(&nodes[0], "FLUSH")).await;

    // A copy is made of its files, and the replica moves to another node.
    nodes[at].shutdown().await;
    let (files, copy) = (configs[at].data_dir.join("replicas").join(&partition), dir.path().join("copy"));
    copy_dir(&files, &copy);
    nodes[at] = start(configs[at].clone()).await;
    nodes[0].change_node(id, NodeChange::Drain, PATIENCE).await.unwrap();
    eventually("it has moved", || async {
        match files.exists() || self::holders(&nodes[0]).await.1.contains(&id) {
            true => Err(Error::internal("not yet")),
            false => Ok(()),
        }
    })
    .await;
    eventually("a deletion", || sql(&nodes[0], "DELETE FROM t WHERE k = 2")).await;
    eventually("it is forgotten", || async {
        sql(&nodes[0], "FLUSH").await?;
        none_left(&nodes[0]).await
    })
    .await;

    // The files are there as if nobody had removed them, and the replica comes back.
    copy_dir(&copy, &files);
    nodes[0].change_node(id, NodeChange::Activate, PATIENCE).await.unwrap();
    let other = (0..4).find(|at| !holders.contains(&nodes[*at].id())).unwrap();
    nodes[0].change_node(nodes[other].id(), NodeChange::Drain, PATIENCE).await.unwrap();
    eventually("it votes again", || async {
        match self::holders(&nodes[0]).await.1 {
            now if now == holders => Ok(()),
            now => Err(Error::internal(format!("{now:?}"))),
        }
    })
    .await;
    for node in &nodes {
        let left = eventually("it answers", || numbers(node, "SELECT count(*), sum(k) FROM t")).await;
        assert_eq!(left, [2, 4]);
    }
    for node in nodes {
        node.shutdown().await;
    }
}
