//! Where clients find the nodes that run at present.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_actors::Node;
use shoal_actors::service::NodeConfig;
use shoal_kernel::Env;

use crate::world::{HostId, Shared};

/// Before a node that has ended, or does not start, is started again: the patience of whatever starts processes.
const START_AGAIN: Duration = Duration::from_secs(1);

/// A node that runs.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) node: Node,
    pub(super) env: Env,
}

/// Nodes by host, and the clients' own access to the world.
#[derive(Default)]
pub(super) struct Desk {
    running: Mutex<BTreeMap<u16, Running>>,
    client: Mutex<Option<Env>>,
}

impl Desk {
    fn running(&self) -> MutexGuard<'_, BTreeMap<u16, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node of a host, if it has started.
    pub(super) fn node(&self, host: u16) -> Option<Running> {
        self.running().get(&host).cloned()
    }

    /// The version of the catalog that the node of a host knows; none if it does not run.
    pub(super) fn catalog_known(&self, host: u16) -> u64 {
        self.node(host).map_or(0, |running| running.node.catalog_version())
    }

    /// The newest version of the catalog that any node knows.
    pub(super) fn newest_catalog(&self) -> u64 {
        self.running().values().map(|running| running.node.catalog_version()).max().unwrap_or(0)
    }

    pub(super) fn set_client(&self, env: Env) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(env);
    }

    pub(super) fn client(&self) -> Option<Env> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Takes the node off the desk when its host goes down.
struct Place {
    desk: Arc<Desk>,
    host: u16,
}

impl Drop for Place {
    fn drop(&mut self) {
        // Dropped outside of the lock: the last handle may do work.
        let gone = self.desk.running().remove(&self.host);
        drop(gone);
    }
}

/// The program of a node's host. A node that fails ends its process, as the binary does.
pub(super) async fn host(env: Env, host: u16, config: NodeConfig, desk: Arc<Desk>, shared: Arc<Shared>) {
    let place = Place { desk, host };
    match Node::start(env.clone(), config.clone()).await {
        Ok(node) => {
            place.desk.running().insert(host, Running { node: node.clone(), env: env.clone() });
            let error = node.failed().await;
            env.trace(|| format!("ends: {error}"));
            drop(place);
            node.shutdown().await;
        }
        Err(error) => env.trace(|| format!("does not start: {error}")),
    }
    shared.end_process(HostId(host), START_AGAIN);
}
