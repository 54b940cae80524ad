//! Replicas that have lost rows behind the backs of their logs, and get them back: when somebody asks, and by themselves.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use std::path::Path;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use shoal_actors::Node;
use shoal_actors::service::{CatalogObserver, Moment, NodeConfig, Observer, SqlRequest};
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{Epoch, Error, ErrorCode, KeyRange, NodeId, PartitionId, Result, WriteLevel};
use shoal_storage::Write;

use common::{eventually, free_address};

/// Only observed nodes lose rows.
#[derive(Debug)]
struct Witness;

impl CatalogObserver for Witness {
    fn applied(&self, _node: NodeId, _catalog: &shoal_catalog::Catalog) {}
}

impl Observer for Witness {
    fn opened(&self, _at: Moment, _ancestors: &[PartitionId], _range: &KeyRange) {}
    fn copied(&self, _at: Moment, _from: Moment) {}

    fn stands(&self, _at: Moment, _sealed: Epoch, _whole: bool) {}
    fn handed_over(&self, _at: Moment, _voters: &[NodeId]) {}
    fn acknowledged(&self, _at: Moment, _epoch: Epoch) {}
    fn writing(&self, _at: Moment, _group: &[Write]) {}
    fn written(&self, _at: Moment, _positions: &[Option<u64>]) {}
}

async fn nodes(dir: &Path, repair_every_ms: u64) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..3 {
        let mut config = NodeConfig::new(dir.join(format!("n{number}")), free_address(), free_address());
        config.disk_reserve_bytes = 0;
        config.join = nodes.iter().map(Node::cluster_address).collect();
        config.repair_every_ms = repair_every_ms;
        config.observer = Some(Arc::new(Witness));
        let node = Node::start(env(&RealOptions::default()).unwrap(), config).await.unwrap();
        eventually("the node is ready", || async { node.ready() }).await;
        nodes.push(node);
    }
    nodes
}

async fn sql(node: &Node, text: &str) -> Result<()> {
    let request = SqlRequest { write_level: Some(WriteLevel::All), ..SqlRequest::new(text) };
    node.sql(request).await?.collect().await.map(drop)
}

/// Two tables, one with tombstones.
async fn fill(node: &Node) {
    for text in [
        "CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT) PARTITION BY RANGE(k) SPLIT AT (500)",
        "CREATE TABLE e (id BIGINT)",
    ] {
        sql(node, text).await.unwrap();
    }
    let pairs: Vec<String> = (0..1_000).map(|k| format!("({k}, {k})")).collect();
    let events: Vec<String> = (0..300).map(|id| format!("({id})")).collect();
    for text in [
        format!("INSERT INTO t (k, v) VALUES {}", pairs.join(", ")),
        format!("INSERT INTO e (id) VALUES {}", events.join(", ")),
        "DELETE FROM t WHERE k >= 400 AND k < 600".to_owned(),
    ] {
        // Not every replica may serve yet.
        eventually("all have it", || sql(node, &text)).await;
    }
}

/// What REPAIR TABLE says, by column.
async fn repair(node: &Node, table: &str) -> Result<Vec<Vec<i64>>> {
    let (_, batches, _) = node.sql(SqlRequest::new(format!("REPAIR TABLE {table}"))).await?.collect().await?;
    let columns = batches[0].columns().iter();
    Ok(columns.map(|column| column.as_primitive::<Int64Type>().values().to_vec()).collect())
}

async fn all_equal(node: &Node) -> Result<()> {
    for partition in node.cluster().await.partitions {
        let first = partition.replicas.first().and_then(|replica| replica.digest.clone());
        if first.is_none() || partition.replicas.iter().any(|replica| replica.digest != first) {
            return Err(Error::internal(format!("{partition:?}")));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_repaired_when_somebody_asks() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path(), 0).await;
    fill(&nodes[0]).await;
    eventually("replicas are equal", || all_equal(&nodes[0])).await;
    let calm = repair(&nodes[1], "t").await.unwrap();
    assert_eq!((calm.len(), &calm[1..]), (4, &[vec![3, 3], vec![0, 0], vec![0, 0]][..]));

    let lost = nodes[2].lose_rows(4).await.unwrap();
    assert!(lost > 300, "{lost}");
    assert!(all_equal(&nodes[0]).await.is_err());
    let told = repair(&nodes[1], "t").await.unwrap();
    assert_eq!(told[1], [3, 3]);
    assert!(told[2].iter().all(|buckets| (50..=256).contains(buckets)), "{told:?}");
    let events = repair(&nodes[0], "e").await.unwrap();
    assert_eq!(told[3].iter().chain(&events[3]).sum::<i64>().unsigned_abs(), lost);
    all_equal(&nodes[0]).await.unwrap();
    assert_eq!(common::numbers(&nodes[2], "SELECT count(*), sum(k) FROM t").await.unwrap(), [800, 399_600]);

    // Who cannot be reached is named; the others are repaired.
    let lost = nodes[1].lose_rows(4).await.unwrap();
    assert!(lost > 300);
    let gone = nodes[2].id();
    nodes[2].shutdown().await;
    let error = repair(&nodes[0], "t").await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotEnoughReplicas);
    assert!(error.message().contains(&format!("on {gone}")), "{error}");
    assert_eq!(repair(&nodes[0], "nothing").await.unwrap_err().code(), ErrorCode::UnknownTable);
    for partition in nodes[0].cluster().await.partitions.iter().filter(|partition| partition.table == "t") {
        let up = partition.replicas.iter().filter(|replica| replica.node != gone);
        let digests: Vec<_> = up.map(|replica| replica.digest.clone()).collect();
        assert_eq!(digests[0], digests[1]);
    }
    for node in &nodes[..2] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_repair_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path(), 1_000).await;
    fill(&nodes[0]).await;
    eventually("replicas are equal", || all_equal(&nodes[0])).await;
    assert!(nodes[1].lose_rows(3).await.unwrap() > 400);
    eventually("replicas are equal again", || all_equal(&nodes[0])).await;
    assert_eq!(common::numbers(&nodes[1], "SELECT count(*), sum(k) FROM t").await.unwrap(), [800, 399_600]);
    for node in &nodes {
        node.shutdown().await;
    }
}
