//! What tests of whole nodes share.
#![allow(dead_code, reason = "no test uses all of it")]

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use shoal_actors::Node;
use shoal_actors::service::{NodeConfig, SqlRequest};
use shoal_kernel::Error;
use shoal_kernel::env::real::{RealOptions, env};

/// How long something may take to come true.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// An address whose port is free for both streams and datagrams.
pub fn free_address() -> SocketAddr {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// Three nodes of a cluster, with directories named n0 to n2.
pub async fn nodes(dir: &Path) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..3 {
        let join = nodes.iter().map(Node::cluster_address).collect();
        nodes.push(node(dir.join(format!("n{number}")), free_address(), join).await);
    }
    nodes
}

/// A node that is ready.
pub async fn node(dir: impl AsRef<Path>, cluster_address: SocketAddr, join: Vec<SocketAddr>) -> Node {
    let node = started(config(dir, cluster_address, join)).await;
    eventually("the node is ready", || async { node.ready() }).await;
    node
}

/// The settings of a node, to be changed.
pub fn config(dir: impl AsRef<Path>, cluster_address: SocketAddr, join: Vec<SocketAddr>) -> NodeConfig {
    let mut config = NodeConfig::new(dir.as_ref(), cluster_address, free_address());
    config.disk_reserve_bytes = 0;
    config.join = join;
    config
}

/// A node that has been started.
pub async fn started(config: NodeConfig) -> Node {
    Node::start(env(&RealOptions::default()).unwrap(), config).await.unwrap()
}

/// Tries until it succeeds.
pub async fn eventually<T, F: Future<Output = Result<T, Error>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The first row of an answer that consists of integers.
pub async fn numbers(node: &Node, sql: &str) -> Result<Vec<i64>, Error> {
    let (_, batches, _) = node.sql(SqlRequest::new(sql)).await?.collect().await?;
    let columns = batches.iter().filter(|batch| batch.num_rows() > 0).flat_map(RecordBatch::columns);
    Ok(columns.map(|column| column.as_primitive::<Int64Type>().value(0)).collect())
}
