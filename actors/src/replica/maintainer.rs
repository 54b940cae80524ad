//! Flushes and compacts one replica's store, one step at a time, on threads for blocking work.
//!
//! Owned by the replica actor; holds nothing that a restart could lose. Damage is the replica's to judge; any other error of
//! the store ends it, and with it the replica, which is then opened anew.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use shoal_kernel::{Env, ErrorCode};
use shoal_storage::Store;

use super::message::ReplicaMessage;
use crate::later::later;

/// How often the age of the memtable and the need for compaction are looked at.
const TURN: Duration = Duration::from_secs(1);
/// How long to leave a full disk alone.
const DISK_FULL_PAUSE: Duration = Duration::from_secs(5);
/// How long to leave a damaged file alone that nobody can replace.
const DAMAGE_PAUSE: Duration = Duration::from_secs(60);

pub(super) struct Maintainer;

pub(super) struct Arguments {
    pub(super) env: Env,
    pub(super) store: Arc<Store>,
    pub(super) replica: ActorRef<ReplicaMessage>,
}

pub(super) enum MaintainerMessage {
    /// Rows were committed: perhaps the memtable is full.
    Committed,
    /// A turn.
    Turn,
}

impl Actor for Maintainer {
    type Msg = MaintainerMessage;
    type State = Arguments;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        later(&arguments.env, "maintainer turn", &myself, TURN, MaintainerMessage::Turn);
        Ok(arguments)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let compacts = matches!(message, MaintainerMessage::Turn);
        let store = state.store.clone();
        let step = state
            .env
            .blocking(move || {
                if store.maintenance_due() {
                    store.flush()?;
                }
                if compacts {
                    store.recheck();
                    store.compact()?;
                }
                Ok(())
            })
            .await
            .map_err(shoal_kernel::Error::from)
            .and_then(|done| done);
        let pause = match step {
            Ok(()) => TURN,
            // Reads go on; there may be room again later.
            Err(error) if error.code() == ErrorCode::DiskFull => DISK_FULL_PAUSE,
            Err(error) if error.code() == ErrorCode::Corruption => {
                let _ = state.replica.cast(ReplicaMessage::Damaged(error));
                DAMAGE_PAUSE
            }
            Err(error) => return Err(error.into()),
        };
        if compacts {
            later(&state.env, "maintainer turn", &myself, pause, MaintainerMessage::Turn);
        }
        Ok(())
    }
}
