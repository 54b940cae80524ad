//! The transport over real loopback sockets.

mod calls;
mod hostile;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::env::{BoxFuture, Env};
use shoal_kernel::{Error, ErrorCode, NodeId, Result};
use tokio::sync::Notify;

use super::*;

/// Far beyond what anything here takes on an idle machine; only a hang runs into it.
const SOON: Duration = Duration::from_secs(60);

fn real() -> Env {
    env(&RealOptions { blocking_threads: 1, blocking_jobs_max: 8, compute_threads: 1 }).unwrap()
}

fn config(node: u32) -> TransportConfig {
    TransportConfig::new(NodeId(node), SocketAddr::from(([127, 0, 0, 1], 0)), "secret")
}

/// Answers calls as their first word says.
#[derive(Default)]
struct Echo {
    casts: Arc<std::sync::Mutex<Vec<Bytes>>>,
    entered: Arc<Notify>,
}

impl Handler for Echo {
    fn call(&self, _from: NodeId, message: Bytes) -> BoxFuture<'static, Result<Bytes>> {
        let entered = self.entered.clone();
        async move {
            match &message[..] {
                b"fail" => Err(Error::new(ErrorCode::DiskFull, "as asked")
                    .with_applied(Applied::Unknown)
                    .with_help("ask for something else")),
                b"panic" => panic!("as asked"),
                b"hang" => {
                    entered.notify_one();
                    std::future::pending().await
                }
                _ => Ok(message),
            }
        }
        .boxed()
    }

    fn cast(&self, _from: NodeId, message: Bytes) {
        assert_ne!(&message[..], b"panic", "as asked");
        lock(&self.casts).push(message);
        self.entered.notify_one();
    }
}

async fn start(env: &Env, config: TransportConfig) -> Transport {
    Transport::start(env, config).await.unwrap()
}

/// Nodes 1, 2, … that know each other.
async fn cluster<const N: usize>(env: &Env, tune: impl Fn(&mut TransportConfig)) -> [Transport; N] {
    let mut nodes = Vec::new();
    for node in 1..=N {
        let mut config = config(node as u32);
        tune(&mut config);
        nodes.push(start(env, config).await);
    }
    for one in &nodes {
        for other in &nodes {
            one.set_address(other.node(), other.local_address());
        }
    }
    nodes.try_into().unwrap()
}

/// Stops the nodes and looks for what they left behind.
async fn stop(nodes: impl IntoIterator<Item = Transport>) {
    for node in nodes {
        node.0.env.timeout(SOON, node.shutdown()).await.unwrap();
        let stats = node.stats();
        assert_eq!(
            (stats.connections, stats.tasks, stats.calls_in_flight, stats.calls_serving),
            (0, 0, 0, 0),
            "{node:?}: {stats:?}"
        );
        assert_eq!((stats.streams_receiving, stats.streams_sending), (0, 0), "{node:?}: {stats:?}");
        assert_eq!(Arc::strong_count(&node.0), 1, "something still holds {node:?}");
    }
}

/// Waits until it holds.
async fn eventually(env: &Env, what: &str, holds: impl Fn() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        env.sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
