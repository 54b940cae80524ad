//! The root of a node's actors.
//!
//! - **Owned by** [`super::Node`]; **owns** the replicas' supervisor, placement and [`super::peer_clocks`], and is told of the end of what runs queries.
//! - **Budget**: a child that ends is started again, after 100 ms doubling to 30 s; a minute without a failure starts the count anew.
//!   At the [`FAILURES_MAX`]th failure in a row the node is over ([`Over`]): each child holds no state that the catalog and the disk do not,
//!   so a new process may do better, and a node that has ended is replaced by others, which one that seems to be well is not.
//!   What runs queries is not started again: the node is over at once.
//! - **Survives**: nothing to survive.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use shoal_catalog::Catalog;
use shoal_kernel::Error;

use super::context::NodeContext;
use super::over::Over;
use super::peer_clocks::{PeerClocks, Turn};
use crate::failures::Failures;
use crate::later::later;
use crate::placement::{Placement, PlacementMessage};
use crate::replica::directory::ReplicaDirectory;
use crate::replica::supervisor::{self, ReplicaSupervisor, SupervisorMessage};

/// Failures in a row that are borne.
const FAILURES_MAX: u32 = 7;

pub(crate) struct NodeSupervisor;

pub(crate) struct Arguments {
    pub(crate) context: Arc<NodeContext>,
    pub(crate) directory: Arc<ReplicaDirectory>,
    pub(super) over: Over,
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
    over: Over,
    failures: Failures,
    catalog: Option<Arc<Catalog>>,
    replicas: Option<ActorRef<SupervisorMessage>>,
    placement: Option<ActorRef<PlacementMessage>>,
    clocks: Option<ActorRef<Turn>>,
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
        let Arguments { context, directory, over } = arguments;
        let _ = myself.cast(NodeMessage::Start);
        let failures = Failures::default();
        Ok(State { context, directory, over, failures, catalog: None, replicas: None, placement: None, clocks: None })
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
                    state.failed(&myself, &error.to_string());
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
        let (ended, why) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell.get_id(), error.to_string()),
            SupervisionEvent::ActorTerminated(cell, ..) => (cell.get_id(), "it has ended".to_owned()),
            _ => return Ok(()),
        };
        if state.replicas.take_if(|child| child.get_id() == ended).is_some()
            || state.placement.take_if(|child| child.get_id() == ended).is_some()
            || state.clocks.take_if(|child| child.get_id() == ended).is_some()
        {
            state.failed(&myself, &why);
        } else {
            state.over.declare(Error::internal(format!("what runs the node's queries has failed: {why}")));
        }
        Ok(())
    }
}

impl State {
    fn failed(&mut self, myself: &ActorRef<NodeMessage>, why: &str) {
        self.failures.add(self.context.env.monotonic());
        let failures = self.failures.in_a_row();
        metrics::counter!("shoal_node_part_restarts_total").increment(1);
        if failures >= FAILURES_MAX {
            self.over
                .declare(Error::internal(format!("a part of the node has failed {failures} times in a row: {why}")));
            return;
        }
        tracing::error!(failures, why, "a part of the node failed and is restarted");
        later(&self.context.env, "node restart", myself, self.failures.pause(), NodeMessage::Start);
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
        if self.clocks.is_none() {
            let (clocks, _) = Actor::spawn_linked(None, PeerClocks, self.context.clone(), myself.get_cell()).await?;
            self.clocks = Some(clocks);
        }
        self.failures.runs(self.context.env.monotonic());
        Ok(())
    }
}
