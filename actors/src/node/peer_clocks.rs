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
        let answers = join_all(asked.map(|node| ahead_micros(context, *node))).await;
        let mut ahead: Vec<i64> = answers.into_iter().flatten().collect();
        // This node's own clock.
        ahead.push(0);
        if ahead.len() < CLOCKS_MIN {
            return;
        }
        let ahead = lower_median(ahead);
        context.clock.hear(ahead);
        metrics::gauge!("shoal_clock_ahead_seconds").set(-(ahead as f64) / 1e6);
        let far = ahead.unsigned_abs() > context.config.clock_skew_max_ms.saturating_mul(1_000);
        if far {
            context.env.reached(Rare::ClockFarOff);
        }
        if far && !self.far {
            let ahead_ms = -ahead / 1_000;
            tracing::warn!(ahead_ms, "this node's clock is far from those of most others; synchronise it (NTP)");
        }
        self.far = far;
    }
}

/// How far a node's clock is ahead of this one's, in microseconds. Half of the way there and back may have been the way back.
async fn ahead_micros(context: &NodeContext, node: NodeId) -> Option<i64> {
    let (asked, began) = (context.env.wall_micros(), context.env.monotonic());
    let Ok(ReplicaAnswer::Wall(theirs)) = serve::call(context, node, &ReplicaCall::Wall, ANSWER_TIMEOUT).await else {
        return None;
    };
    let taken = context.env.monotonic().saturating_sub(began);
    let mine = asked.saturating_add(u64::try_from(taken.as_micros() / 2).ok()?);
    Some(theirs.cast_signed().saturating_sub(mine.cast_signed()))
}

fn lower_median(mut values: Vec<i64>) -> i64 {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}
