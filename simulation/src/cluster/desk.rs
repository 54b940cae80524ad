//! Where clients find the nodes that run at present.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use object_store::memory::InMemory;
use shoal_actors::service::{NodeConfig, NodeEnd};
use shoal_actors::{Node, ObjectStores};
use shoal_kernel::{Env, NodeId};

use super::objects::Stores;
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
    /// The number of the node that runs on a host, or ran last.
    identities: Mutex<BTreeMap<u16, NodeId>>,
    client: Mutex<Option<Env>>,
    /// What nodes have put into the store of objects.
    objects: Arc<InMemory>,
}

impl Desk {
    /// The way of a node to the store of objects.
    fn objects(&self, env: &Env, failing_permille: u64) -> Arc<dyn ObjectStores> {
        Arc::new(Stores { env: env.clone(), objects: self.objects.clone(), failing_permille })
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u16, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node of a host, if it has started.
    pub(super) fn node(&self, host: u16) -> Option<Running> {
        self.running().get(&host).cloned()
    }

    /// The number of the node that runs on a host, or ran last.
    pub(super) fn identity(&self, host: u16) -> Option<NodeId> {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).get(&host).copied()
    }

    fn arrived(&self, host: u16, running: Running) {
        self.identities.lock().unwrap_or_else(PoisonError::into_inner).insert(host, running.node.id());
        self.running().insert(host, running);
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

/// Empties the directory of a node that has left, so that another one can join from the same machine.
async fn begin_anew(env: &Env, data_dir: PathBuf) {
    let disk = env.disk();
    let emptied = env.blocking(move || disk.remove_dir_all(&data_dir).and_then(|()| disk.sync_dir(Path::new("/"))));
    let emptied = emptied.await;
    env.trace(|| format!("its directory is emptied: {emptied:?}"));
}

/// The program of a node's host. A node that fails ends its process, as the binary does.
pub(super) async fn host(
    env: Env,
    host: u16,
    mut config: NodeConfig,
    objects_failing_permille: u64,
    desk: Arc<Desk>,
    shared: Arc<Shared>,
) {
    config.object_stores = Some(desk.objects(&env, objects_failing_permille));
    let place = Place { desk, host };
    match Node::start(env.clone(), config.clone()).await {
        Ok(node) => {
            place.desk.arrived(host, Running { node: node.clone(), env: env.clone() });
            let end = node.ended().await;
            env.trace(|| match &end {
                NodeEnd::Failed(error) => format!("ends: {error}"),
                NodeEnd::Removed => "ends: it is no member any more".to_owned(),
            });
            drop(place);
            node.shutdown().await;
            if matches!(end, NodeEnd::Removed) {
                begin_anew(&env, config.data_dir).await;
            }
        }
        Err(error) => env.trace(|| format!("does not start: {error}")),
    }
    shared.end_process(HostId(host), START_AGAIN);
}
