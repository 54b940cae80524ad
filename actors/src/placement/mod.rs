//! Placement: on the catalog's leader, proposes what the partition map lacks (replicas for a table that was made when there
//! were fewer nodes). Every proposal is fenced by the partition's epoch, so a leader that has been replaced does no harm.
//!
//! Owned by the node; no state; a failed turn is simply followed by the next.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};

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
        }
        later(&context.env, "placement turn", &myself, TURN, PlacementMessage::Turn);
        Ok(())
    }
}
