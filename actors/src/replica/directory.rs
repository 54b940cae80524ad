//! The replicas of one node, by partition.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_kernel::{Env, PartitionId, Result};
use tokio::sync::watch;

use super::absent;
use super::handle::ReplicaHandle;

/// A map that each node owns; shared by its gateway, its shards and its peers' requests.
pub(crate) struct ReplicaDirectory {
    handles: Mutex<BTreeMap<PartitionId, Arc<ReplicaHandle>>>,
    /// Replicas whose partitions were split, which are closed until their stores are split, too; and whether that was given up.
    unparted: Mutex<BTreeMap<PartitionId, bool>>,
    changed: watch::Sender<u64>,
}

impl Default for ReplicaDirectory {
    fn default() -> Self {
        Self { handles: Mutex::default(), unparted: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl ReplicaDirectory {
    /// The replica of that partition.
    pub(crate) fn get(&self, partition: PartitionId) -> Result<Arc<ReplicaHandle>> {
        self.lock().get(&partition).cloned().ok_or_else(|| absent(partition))
    }

    /// The same, waiting a while for one that the catalog has placed here just now.
    pub(crate) async fn wait(
        &self,
        env: &Env,
        partition: PartitionId,
        patience: Duration,
    ) -> Result<Arc<ReplicaHandle>> {
        let mut changed = self.changed.subscribe();
        let appeared = async {
            loop {
                if let Ok(handle) = self.get(partition)
                    && handle.store().is_ok()
                {
                    return Some(handle);
                }
                if changed.changed().await.is_err() {
                    return None;
                }
            }
        };
        match env.timeout(patience, appeared).await {
            Ok(Some(handle)) => Ok(handle),
            _ => self.get(partition),
        }
    }

    /// All of them, by partition.
    pub(crate) fn all(&self) -> Vec<Arc<ReplicaHandle>> {
        self.lock().values().cloned().collect()
    }

    pub(super) fn insert(&self, handle: Arc<ReplicaHandle>) {
        self.lock().insert(handle.partition, handle);
        self.notify();
    }

    pub(super) fn remove(&self, partition: PartitionId) {
        self.lock().remove(&partition);
        self.notify();
    }

    /// A replica of a partition that was split is closed until its store is split, too.
    pub(super) fn set_unparted(&self, partition: PartitionId, given_up: bool) {
        self.lock_unparted().insert(partition, given_up);
    }

    /// Its store has been split, or has gone.
    pub(super) fn set_parted(&self, partition: PartitionId) {
        self.lock_unparted().remove(&partition);
    }

    /// Those whose stores are to be split; and whether that was given up.
    pub(crate) fn unparted(&self) -> BTreeMap<PartitionId, bool> {
        self.lock_unparted().clone()
    }

    /// Wakes those who wait: a replica appeared, or one has been opened.
    pub(super) fn notify(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn lock_unparted(&self) -> std::sync::MutexGuard<'_, BTreeMap<PartitionId, bool>> {
        self.unparted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PartitionId, Arc<ReplicaHandle>>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
