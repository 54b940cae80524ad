//! Asks some other nodes for their time, so that this node's clock is held against most clocks and not only against itself
//! ([`NodeClock`](super::clock::NodeClock)).
//!
//! - **Owned by** the node's supervisor; **owns** nothing.
//! - **Budget**: the supervisor's. Who does not answer is not counted this time.
//! - **Survives**: nothing; without it a node believes its own clock again after [`BELIEVED_FOR`](super::clock::BELIEVED_FOR).

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use shoal_kernel::{NodeId, Rare};

use super::context::NodeContext;
use crate::clocks::{clocks_of, lower_median};
use crate::later::later;

/// Between two turns.
const TURN: Duration = Duration::from_secs(2);
/// Nodes asked in one turn.
const ASKED_MAX: usize = 8;
/// Of fewer clocks nobody knows which one is wrong.
const CLOCKS_MIN: usize = 3;

pub(super) struct PeerClocks;

/// The next turn.
pub(super) struct Turn;

pub(super) struct State {
    context: Arc<NodeContext>,
    /// The clock was far from the others last time.
    far: bool,
}

impl Actor for PeerClocks {
    type Msg = Turn;
    type State = State;
    type Arguments = Arc<NodeContext>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        context: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let _ = myself.cast(Turn);
        Ok(State { context, far: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        Turn: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.turn().await;
        later(&state.context.env, "clock turn", &myself, TURN, Turn);
        Ok(())
    }
}

impl State {
    async fn turn(&mut self) {
        let context = &self.context;
        let catalog = context.agreement.catalog().borrow().clone();
        let there = |node: &NodeId| *node != context.node && !context.liveness.is_down(*node);
        let peers: Vec<NodeId> = catalog.active_nodes().map(|node| node.id).filter(there).collect();
        // Other ones every time, where there are many.
        let first = usize::try_from(context.env.random("peer clocks")).unwrap_or(0) % peers.len().max(1);
        let asked = peers.iter().cycle().skip(first).take(peers.len().min(ASKED_MAX));
        let asked: Vec<NodeId> = asked.copied().collect();
        let most_micros = lower_median(clocks_of(context, &asked).await, CLOCKS_MIN);
        let ahead = most_micros.map(|micros| context.clock.hear(micros));
        // Not a number while nobody knows.
        metrics::gauge!("shoal_clock_ahead_seconds").set(ahead.map_or(f64::NAN, |ahead| ahead as f64 / 1e6));
        let Some(ahead) = ahead else { return };
        let far = ahead.unsigned_abs() > context.config.clock_skew_max_ms.saturating_mul(1_000);
        if far {
            context.env.reached(Rare::ClockFarOff);
        }
        if far && !self.far {
            let ahead_ms = ahead / 1_000;
            tracing::warn!(ahead_ms, "this node's clock is far from those of most others; synchronise it (NTP)");
        }
        self.far = far;
    }
}
