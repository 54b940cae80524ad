//! Asks some other nodes for their time, so that this node's clock is held against most clocks and not only against itself
//! ([`NodeClock`](super::clock::NodeClock)).
//!
//! - **Owned by** the node's supervisor; **owns** nothing.
//! - **Budget**: the supervisor's. Who does not answer is not counted this time.
//! - **Survives**: nothing; without it a node believes its own clock again after [`BELIEVED_FOR`](super::clock::BELIEVED_FOR).

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use shoal_kernel::{NodeId, Rare};

use super::context::NodeContext;
use crate::later::later;
use crate::replica::message::{ReplicaAnswer, ReplicaCall};
use crate::replica::serve;

/// Between two turns.
const TURN: Duration = Duration::from_secs(2);
/// How long a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
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
        let answers = join_all(asked.map(|node| clock_of(context, *node))).await;
        let at = context.env.monotonic();
        let own = Clock { micros: context.env.wall_micros(), at };
        let clocks: Vec<u64> = answers.into_iter().flatten().chain([own]).map(|clock| clock.shows(at)).collect();
        if clocks.len() < CLOCKS_MIN {
            return;
        }
        let ahead = context.clock.hear(lower_median(clocks), at);
        metrics::gauge!("shoal_clock_ahead_seconds").set(ahead as f64 / 1e6);
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

/// What a clock showed when this node's monotonic clock showed `at`.
struct Clock {
    micros: u64,
    at: Duration,
}

impl Clock {
    /// What it shows later.
    fn shows(&self, at: Duration) -> u64 {
        let since = u64::try_from(at.saturating_sub(self.at).as_micros()).unwrap_or(u64::MAX);
        self.micros.saturating_add(since)
    }
}

/// Asks a node. It may have looked at its clock at any time on the way there and back, so half of that is taken.
async fn clock_of(context: &NodeContext, node: NodeId) -> Option<Clock> {
    let began = context.env.monotonic();
    let Ok(ReplicaAnswer::Wall(micros)) = serve::call(context, node, &ReplicaCall::Wall, ANSWER_TIMEOUT).await else {
        return None;
    };
    let taken = context.env.monotonic().saturating_sub(began);
    Some(Clock { micros, at: began + taken / 2 })
}

fn lower_median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}
