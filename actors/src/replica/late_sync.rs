//! Syncs the log of a table with `fsync = 'interval'`, behind the acknowledgements.
//!
//! One sync is waited for at a time, and only while something needs it. A flush that is under way holds it up as little as
//! it holds up commits. If it fails, so does the replica: it is opened anew, and what was acknowledged since is in doubt.

use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use shoal_kernel::{Env, Error, Rare};
use shoal_storage::Store;

use super::message::ReplicaMessage;

/// When the next sync is due.
pub(super) struct LateSync {
    interval: Duration,
    /// One is waited for, or under way.
    planned: bool,
}

impl LateSync {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, planned: false }
    }

    /// The sync that was planned has ended.
    pub(super) fn ended(&mut self) {
        self.planned = false;
    }

    /// Plans a sync if one is needed: an interval from now, or from the moment when the last one began, as what was accepted
    /// beside that one has waited as long.
    pub(super) fn go_on(
        &mut self,
        env: &Env,
        store: &Arc<Store>,
        replica: &ActorRef<ReplicaMessage>,
        last_begun: Option<Duration>,
    ) {
        if self.planned || store.unsynced() == 0 {
            return;
        }
        self.planned = true;
        let waited = last_begun.map_or(Duration::ZERO, |begun| env.monotonic().saturating_sub(begun));
        let sleep = env.sleep(self.interval.saturating_sub(waited));
        let (tasks, store, replica) = (env.clone(), store.clone(), replica.clone());
        env.spawn("late sync", async move {
            sleep.await;
            let begun = tasks.monotonic();
            let synced = tasks.blocking(move || store.sync()).await.map_err(Error::from).and_then(|done| done);
            tasks.reached(Rare::LogSyncedLate);
            let _ = replica.cast(match synced {
                Ok(()) => ReplicaMessage::Synced { begun },
                Err(error) => ReplicaMessage::Failed(error),
            });
        });
    }
}
