//! Placement: on the catalog's leader, proposes what the partition map lacks (replicas for a table that was made when there
//! were fewer nodes), moves the cut-offs of tables on that keep their rows for a time, and drops windows
//! when all their rows have had their time. Every proposal is fenced by the
//! partition's epoch, and cut-offs never go back, so a leader that has been replaced does no harm.
//!
//! Owned by the node; no state; a failed turn is simply followed by the next.

mod clocks;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use shoal_catalog::Catalog;
use shoal_kernel::Rare;

use crate::later::later;
use crate::node::context::NodeContext;

const TURN: Duration = Duration::from_secs(1);
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) struct Placement;

pub(crate) enum PlacementMessage {
    /// A turn by the clock.
    Turn,
}

impl Actor for Placement {
    type Msg = PlacementMessage;
    type State = Arc<NodeContext>;
    type Arguments = Arc<NodeContext>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        context: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        later(&context.env, "placement turn", &myself, TURN, PlacementMessage::Turn);
        Ok(context)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        _turn: Self::Msg,
        context: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if context.agreement.is_leader() {
            let catalog = context.agreement.catalog().borrow().clone();
            for command in catalog.wanted_changes(&context.liveness.alive()) {
                tracing::info!(?command, "placement proposes");
                if let Err(error) = context.agreement.propose(command, PROPOSAL_TIMEOUT).await {
                    tracing::debug!(%error, "a placement was not taken; it is looked at anew next turn");
                    break;
                }
            }
            expire(context, &catalog).await;
            drop_windows(context, &catalog).await;
        }
        later(&context.env, "placement turn", &myself, TURN, PlacementMessage::Turn);
        Ok(())
    }
}

/// Has windows dropped of which every row has had its time.
async fn drop_windows(context: &NodeContext, catalog: &Catalog) {
    for command in catalog.wanted_windows() {
        if let Err(error) = context.agreement.propose(command, PROPOSAL_TIMEOUT).await {
            tracing::debug!(%error, "windows were not dropped; they are looked at anew next turn");
            return;
        }
        context.env.reached(Rare::WindowDropped);
    }
}

/// Has the cut-offs agreed on that are due.
async fn expire(context: &NodeContext, catalog: &Catalog) {
    if catalog.tables.values().all(|table| table.options.ttl.is_none()) {
        return;
    }
    let skew = Duration::from_millis(context.config.clock_skew_max_ms);
    // With all other clocks right this one is not further ahead than that, so most turns need not ask anybody.
    if catalog.wanted_cutoffs(context.env.wall_micros(), Duration::ZERO).is_empty() {
        return;
    }
    let Some(now_micros) = clocks::agreed_micros(context, catalog).await else { return };
    for command in catalog.wanted_cutoffs(now_micros, skew) {
        if let Err(error) = context.agreement.propose(command, PROPOSAL_TIMEOUT).await {
            tracing::debug!(%error, "a cut-off was not taken; it is looked at anew next turn");
            return;
        }
    }
}
