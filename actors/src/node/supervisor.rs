//! The root of a node's actors.
//!
//! - **Owned by** [`super::Node`]; **owns** the replicas' supervisor and placement.
//! - **Budget**: a child that ends is started again after [`RESTART_PAUSE`], without end: each holds no state that the
//!   catalog and the disk do not, and a node without them would be worse than one that tries.
//! - **Survives**: nothing to survive.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use shoal_catalog::Catalog;

use super::context::NodeContext;
use crate::later::later;
use crate::placement::{Placement, PlacementMessage};
use crate::replica::directory::ReplicaDirectory;
use crate::replica::supervisor::{self, ReplicaSupervisor, SupervisorMessage};

const RESTART_PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct NodeSupervisor;

pub(crate) struct Arguments {
    pub(crate) context: Arc<NodeContext>,
    pub(crate) directory: Arc<ReplicaDirectory>,
}

pub(crate) enum NodeMessage {
    /// The catalog has changed.
    Catalog(Arc<Catalog>),
    /// Start what is missing.
    Start,
}

pub(crate) struct State {
    context: Arc<NodeContext>,
    directory: Arc<ReplicaDirectory>,
    catalog: Option<Arc<Catalog>>,
    replicas: Option<ActorRef<SupervisorMessage>>,
    placement: Option<ActorRef<PlacementMessage>>,
}

impl Actor for NodeSupervisor {
    type Msg = NodeMessage;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let Arguments { context, directory } = arguments;
        let _ = myself.cast(NodeMessage::Start);
        Ok(State { context, directory, catalog: None, replicas: None, placement: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NodeMessage::Catalog(catalog) => {
                if let Some(replicas) = &state.replicas {
                    let _ = replicas.cast(SupervisorMessage::Catalog(catalog.clone()));
                }
                state.catalog = Some(catalog);
            }
            NodeMessage::Start => {
                if let Err(error) = state.start(&myself).await {
                    tracing::error!(%error, "a part of the node did not start");
                    state.start_later(&myself);
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let cell = match event {
            SupervisionEvent::ActorFailed(cell, error) => {
                tracing::error!(%error, "a part of the node failed and is restarted");
                cell
            }
            SupervisionEvent::ActorTerminated(cell, ..) => cell,
            _ => return Ok(()),
        };
        state.replicas = state.replicas.take().filter(|child| child.get_id() != cell.get_id());
        state.placement = state.placement.take().filter(|child| child.get_id() != cell.get_id());
        state.start_later(&myself);
        Ok(())
    }
}

impl State {
    fn start_later(&self, myself: &ActorRef<NodeMessage>) {
        later(&self.context.env, "node restart", myself, RESTART_PAUSE, NodeMessage::Start);
    }

    async fn start(&mut self, myself: &ActorRef<NodeMessage>) -> Result<(), ActorProcessingErr> {
        if self.replicas.is_none() {
            let arguments = supervisor::Arguments { context: self.context.clone(), directory: self.directory.clone() };
            let (replicas, _) = Actor::spawn_linked(None, ReplicaSupervisor, arguments, myself.get_cell()).await?;
            if let Some(catalog) = &self.catalog {
                let _ = replicas.cast(SupervisorMessage::Catalog(catalog.clone()));
            }
            self.replicas = Some(replicas);
        }
        if self.placement.is_none() {
            let arguments = (self.context.clone(), self.directory.clone());
            let (placement, _) = Actor::spawn_linked(None, Placement, arguments, myself.get_cell()).await?;
            self.placement = Some(placement);
        }
        Ok(())
    }
}
