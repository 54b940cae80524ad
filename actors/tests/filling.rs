//! Replicas that begin empty, and are filled by whole files of a peer: on a node that joins, and where one was damaged.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch, StringArray};
use shoal_actors::Node;
use shoal_actors::service::{CatalogObserver, Moment, Observer, SqlRequest, WriteRequest};
use shoal_kernel::{Epoch, Error, KeyRange, NodeId, PartitionId, Result, WriteLevel};
use shoal_storage::Write;

use common::{PATIENCE, config, eventually, free_address, numbers, started};

/// Notes which replicas have begun with a copy, and of whom.
#[derive(Debug, Default)]
struct Copies(Mutex<Vec<(Moment, Moment)>>);

impl CatalogObserver for Copies {
    fn applied(&self, _node: NodeId, _catalog: &shoal_catalog::Catalog) {}
}

impl Observer for Copies {
    fn opened(&self, _at: Moment, _ancestors: &[PartitionId], _range: &KeyRange) {}
    fn copied(&self, at: Moment, from: Moment) {
        self.0.lock().unwrap().push((at, from));
    }
    fn stands(&self, _at: Moment, _sealed: Epoch, _whole: bool) {}
    fn acknowledged(&self, _at: Moment, _epoch: Epoch) {}
    fn handed_over(&self, _at: Moment, _voters: &[NodeId]) {}
    fn writing(&self, _at: Moment, _group: &[Write]) {}
    fn written(&self, _at: Moment, _positions: &[Option<u64>]) {}
}

struct Cluster {
    dir: tempfile::TempDir,
    copies: Arc<Copies>,
    nodes: Vec<Node>,
    files_bytes_min: u64,
}

impl Cluster {
    async fn start(files_bytes_min: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Self { dir, copies: Arc::default(), nodes: Vec::new(), files_bytes_min };
        for _ in 0..3 {
            cluster.add(0).await;
        }
        cluster
    }

    async fn add(&mut self, fill_bytes_per_second: u64) {
        let join = self.nodes.iter().map(Node::cluster_address).collect();
        let mut config = config(self.dir.path().join(format!("n{}", self.nodes.len())), free_address(), join);
        config.observer = Some(self.copies.clone());
        config.fill_files_bytes_min = self.files_bytes_min;
        config.fill_bytes_per_second = fill_bytes_per_second;
        let node = started(config).await;
        eventually("the node is ready", || async { node.ready() }).await;
        self.nodes.push(node);
    }

    async fn sql(&self, text: &str) -> Result<()> {
        self.nodes[0].sql(SqlRequest::new(text)).await?.collect().await.map(drop)
    }

    /// A table in four partitions, with rows that were replaced and others that were deleted, all in segments.
    async fn load(&self, rows: i64) {
        let table = "CREATE TABLE t (k BIGINT PRIMARY KEY, name VARCHAR, v BIGINT) PARTITION BY HASH (k) PARTITIONS 4";
        self.sql(table).await.unwrap();
        for (from, to, token) in [(0, rows / 2, "one"), (rows / 2, rows, "two"), (0, rows / 4, "three")] {
            eventually("all have it", || self.write(from, to, token)).await;
        }
        self.sql(&format!("DELETE FROM t WHERE k >= {} AND k < {}", rows / 2, rows / 2 + 100)).await.unwrap();
        self.sql("FLUSH").await.unwrap();
    }

    async fn write(&self, from: i64, to: i64, token: &str) -> Result<bool> {
        let keys = from..to;
        let batch = RecordBatch::try_from_iter([
            ("k", Arc::new(keys.clone().collect::<Int64Array>()) as _),
            ("name", Arc::new(keys.clone().map(|k| Some(format!("name {k}"))).collect::<StringArray>()) as _),
            ("v", Arc::new(keys.map(|k| 3 * k).collect::<Int64Array>()) as _),
        ])
        .unwrap();
        let request = WriteRequest {
            table: "t".into(),
            batches: vec![batch],
            level: Some(WriteLevel::All),
            token: Some(token.into()),
            timeout: Some(Duration::from_secs(20)),
        };
        Ok(self.nodes[0].write(request).await?.duplicate)
    }

    /// Waits until every partition has three replicas, all of which serve and hold the same, and some are on the last node. Says on
    /// how many partitions it has one.
    async fn settled(&self) -> usize {
        let newest = self.nodes.last().unwrap().id();
        eventually("replicas are equal", || async {
            let mut there = 0;
            let mut partitions = self.nodes[0].cluster_by_content().await.partitions;
            partitions.retain(|partition| partition.table == "t");
            for partition in &partitions {
                let first = &partition.replicas[0];
                let same = partition.replicas.iter().all(|replica| {
                    let done = replica.lag == Some(0) && replica.problem.is_none();
                    done && replica.digest.is_some() && replica.digest == first.digest
                });
                if !same || partition.replicas.len() != 3 {
                    return Err(Error::internal(format!("{partition:?}")));
                }
                there += usize::from(partition.replicas.iter().any(|replica| replica.node == newest));
            }
            let waits = there == 0 || partitions.len() != 4;
            if waits { Err(Error::internal("the newest node has no replica yet")) } else { Ok(there) }
        })
        .await
    }

    fn copies(&self) -> Vec<(Moment, Moment)> {
        self.copies.0.lock().unwrap().clone()
    }
}

async fn join(rows: i64, files_bytes_min: u64) -> (Cluster, usize, Duration) {
    let mut cluster = Cluster::start(files_bytes_min).await;
    cluster.load(rows).await;
    let begun = Instant::now();
    cluster.add(0).await;
    let there = cluster.settled().await;
    (cluster, there, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_gets_files() {
    const ROWS: i64 = 20_000;
    let (cluster, there, _) = join(ROWS, 1).await;
    let newest = cluster.nodes[3].id();
    let copies = cluster.copies();
    let mine: Vec<_> = copies.iter().filter(|(at, _)| at.node == newest).collect();
    assert!(mine.len() >= there, "{there} replicas and {copies:?}");
    let sum: i64 = (0..ROWS).sum::<i64>() - (ROWS / 2..ROWS / 2 + 100).sum::<i64>();
    for node in &cluster.nodes {
        let seen = numbers(node, "SELECT count(*), sum(k), sum(v), count(name) FROM t").await.unwrap();
        assert_eq!(seen, [ROWS - 100, sum, 3 * sum, ROWS - 100]);
    }
    // It knows the idempotency keys, takes writes, and what it takes comes to the others.
    assert!(cluster.write(0, ROWS / 2, "one").await.unwrap(), "the key was used before");
    assert!(!cluster.write(ROWS, ROWS + 10, "four").await.unwrap());
    cluster.settled().await;
    for node in &cluster.nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_little_is_filled_by_rows() {
    let (cluster, _, _) = join(2_000, 1 << 30).await;
    assert_eq!(cluster.copies(), []);
    for node in &cluster.nodes {
        node.shutdown().await;
    }
}

/// The node that lends goes while its files are on their way.
#[tokio::test(flavor = "multi_thread")]
async fn a_lender_that_goes_is_replaced() {
    const ROWS: i64 = 100_000;
    let mut cluster = Cluster::start(1).await;
    cluster.load(ROWS).await;
    // So slow that the files are on their way for some seconds.
    cluster.add(200_000).await;
    let newest = cluster.nodes[3].id();
    let until = Instant::now() + PATIENCE;
    let lender = loop {
        let partitions = cluster.nodes[3].cluster().await.partitions;
        let mut problems = partitions.iter().flat_map(|partition| &partition.replicas);
        let lender = problems.find_map(|replica| {
            let how_far = replica.problem.as_ref().filter(|_| replica.node == newest)?;
            let (_, rest) = how_far.split_once("filled by files of ")?;
            Some(rest.split_once(':')?.0.to_owned())
        });
        // Statements are asked of the first node.
        if let Some(lender) = lender.filter(|lender| *lender != cluster.nodes[0].id().to_string()) {
            break lender;
        }
        assert!(Instant::now() < until, "nobody lends: {partitions:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let place = cluster.nodes.iter().position(|node| node.id().to_string() == lender).unwrap();
    let gone = cluster.nodes.remove(place);
    gone.shutdown().await;
    drop(gone);
    let sum: i64 = (0..ROWS).sum::<i64>() - (ROWS / 2..ROWS / 2 + 100).sum::<i64>();
    let newest = cluster.nodes.last().unwrap();
    eventually("replicas of the newest node serve", || async {
        let partitions = newest.cluster().await.partitions;
        let own = partitions.iter().flat_map(|partition| &partition.replicas);
        let mut own = own.filter(|replica| replica.node == newest.id()).peekable();
        let waits = own.peek().is_none() || own.any(|replica| replica.problem.is_some());
        if waits { Err(Error::internal(format!("{partitions:?}"))) } else { Ok(()) }
    })
    .await;
    let seen = numbers(newest, "SELECT count(*), sum(k), sum(v), count(name) FROM t").await.unwrap();
    assert_eq!(seen, [ROWS - 100, sum, 3 * sum, ROWS - 100]);
    for node in &cluster.nodes {
        node.shutdown().await;
    }
}

/// How long a join takes by files and by rows: `cargo nextest run --release --run-ignored only … --no-capture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn how_long_a_join_takes() {
    for (by, files_bytes_min) in [("files", 1), ("rows", u64::MAX)] {
        let (cluster, there, took) = join(1_000_000, files_bytes_min).await;
        println!("{there} replicas by {by} after {took:?}, {} copies", cluster.copies().len());
        for node in &cluster.nodes {
            node.shutdown().await;
        }
    }
}
