//! Deletions that are forgotten once every replica has them, and not before.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use std::path::Path;
use std::time::Duration;

use shoal_actors::Node;
use shoal_actors::service::{NodeConfig, SqlRequest};
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{Error, Result};

use common::{eventually, free_address, numbers};

async fn start(mut config: NodeConfig) -> Node {
    config.disk_reserve_bytes = 0;
    (config.purge_after_ms, config.purge_tombstones_min) = (1_500, 1);
    let node = Node::start(env(&RealOptions::default()).unwrap(), config).await.unwrap();
    eventually("the node is ready", || async { node.ready() }).await;
    node
}

async fn nodes(dir: &Path) -> (Vec<NodeConfig>, Vec<Node>) {
    let (mut configs, mut nodes): (Vec<NodeConfig>, Vec<Node>) = (Vec::new(), Vec::new());
    for number in 0..3 {
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
    let (configs, mut nodes) = nodes(dir.path()).await;
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
