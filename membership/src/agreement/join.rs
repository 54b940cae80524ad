//! How a cluster comes to be, and how nodes join it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::error::{InitializeError, RaftError};
use shoal_catalog::{CatalogError, Command, NodeState, VoterSwap};
use shoal_kernel::{Error, ErrorCode, NodeId, Result};

use super::message::{Newcomer, Request, Response};
use super::propose::{Attempt, write_error};
use super::types::{Outcome, Peer, Proposal};
use super::{Agreement, Inner, VOTERS_MAX, no_quorum, stopped};

/// How long founding may take: one election of one, and two entries.
const FOUND_MS_MAX: u64 = 30_000;

/// How long one attempt to be admitted may take. It changes the membership up to three times.
const ADMIT_MS_MAX: u64 = 10_000;

/// How long the leader waits for a newcomer to catch up before it lets it vote. If it takes longer, it votes later.
const CATCH_UP_MS_MAX: u64 = 3_000;

/// A newcomer may vote once it lacks no more than this many entries.
const CATCH_UP_ENTRIES_MAX: u64 = 16;

/// Why a node could not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Another node has its number: pick another and join again.
    #[error("node number {0} is taken by a node at {1}")]
    NodeNumberTaken(NodeId, SocketAddr),
    /// Everything else.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl From<JoinError> for Error {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::NodeNumberTaken(node, address) => CatalogError::NodeNumberTaken(node, address).into(),
            JoinError::Failed(error) => error,
        }
    }
}

impl Agreement {
    /// Founds a cluster with this node as its only member. Does nothing if it has founded or joined one already.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn found(&self) -> Result<()> {
        let node = &self.0;
        let members = BTreeMap::from([(node.config.node, Peer { address: node.config.attributes.cluster_address })]);
        match node.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(RaftError::APIError(InitializeError::NotInMembers(error))) => {
                return Err(Error::internal(error.to_string()));
            }
            Err(RaftError::Fatal(fatal)) => return Err(node.log.failure().unwrap_or_else(|| stopped(&fatal))),
        }
        node.recovered.store(true, Ordering::Relaxed);
        let deadline = node.env.monotonic() + Duration::from_millis(FOUND_MS_MAX);
        while self.catalog().borrow().cluster_id == 0 {
            if node.remaining(deadline).is_zero() {
                return Err(no_quorum(Duration::from_millis(FOUND_MS_MAX)));
            }
            if self.is_leader() {
                node.finish_founding(deadline).await?;
            }
            node.pause(deadline).await;
        }
        Ok(())
    }

    /// Joins a cluster through any of its nodes. May be called again, also by a member: then it tells its address. The
    /// transport must answer with [`Agreement::handle`] before this is called.
    ///
    /// # Errors
    /// The number is taken; or no node of the cluster admitted this one in time.
    pub async fn join(&self, through: &[SocketAddr], timeout: Duration) -> Result<(), JoinError> {
        let node = &self.0;
        let deadline = node.env.monotonic() + timeout;
        let mut last = no_quorum(timeout);
        let mut doors: VecDeque<SocketAddr> = VecDeque::new();
        while !node.remaining(deadline).is_zero() {
            if let Some(problem) = node.problem() {
                return Err(problem.into());
            }
            let Some(door) = doors.pop_front() else {
                doors.extend(through.iter().filter(|address| **address != node.config.attributes.cluster_address));
                if doors.is_empty() {
                    return Err(Error::new(ErrorCode::InvalidRequest, "there is no other node to join through").into());
                }
                node.pause(deadline).await;
                continue;
            };
            let timeout = node.remaining(deadline).min(Duration::from_millis(ADMIT_MS_MAX));
            match node.peers.call(None, door, Request::Join(node.newcomer(!self.is_member())), timeout).await {
                Ok(Response::Joined { cluster }) => {
                    node.peers.belong_to(cluster);
                    if self.arrived(deadline).await {
                        node.recovered.store(true, Ordering::Relaxed);
                        return Ok(());
                    }
                }
                Ok(Response::Decided(Err(CatalogError::NodeNumberTaken(id, address)))) => {
                    return Err(JoinError::NodeNumberTaken(id, address));
                }
                Ok(Response::Decided(Err(refused))) => return Err(Error::from(refused).into()),
                Ok(Response::NotLeader(Some((_, leader)))) => doors.push_front(leader),
                Ok(Response::Removed) => {
                    let message = format!("{} was removed from the cluster", node.config.node);
                    let help = "start it with an empty data directory to join as a new node";
                    return Err(Error::new(ErrorCode::Forbidden, message).with_help(help).into());
                }
                Ok(_) => {}
                Err(error) if error.code() == ErrorCode::Forbidden => return Err(error.into()),
                Err(error) => last = error,
            }
            node.pause(deadline).await;
        }
        Err(last.into())
    }

    /// Waits until the log has told this node that it is a member.
    async fn arrived(&self, deadline: Duration) -> bool {
        let mut catalog = self.catalog();
        let me = self.0.config.node;
        let told = catalog.wait_for(|catalog| catalog.nodes.contains_key(&me));
        matches!(self.0.env.timeout(self.0.remaining(deadline), told).await, Ok(Ok(_)))
    }
}

impl Inner {
    pub(super) fn newcomer(&self, fresh: bool) -> Newcomer {
        Newcomer { node: self.config.node, attributes: self.config.attributes.clone(), fresh }
    }

    /// Writes the first entries. Called again until the cluster has a number: the node may have crashed in between.
    pub(super) async fn finish_founding(&self, deadline: Duration) -> Result<()> {
        let put = Command::PutNode { id: self.config.node, attributes: self.config.attributes.clone() };
        self.command(put, deadline).await?.map_err(Error::from)?;
        let cluster_id = self.env.random("cluster id").max(1);
        match self.command(Command::Found { cluster_id }, deadline).await? {
            Ok(_) | Err(CatalogError::Founded) => {}
            Err(refused) => return Err(refused.into()),
        }
        self.peers.belong_to(self.machine.catalog().borrow().cluster_id);
        Ok(())
    }

    /// Has a command agreed upon as the leader.
    async fn command(&self, command: Command, deadline: Duration) -> Result<Outcome> {
        let id = u128::from(self.config.node.0) << 96 | u128::from(self.env.random("proposal"));
        match self.lead(Proposal { id, command }, deadline).await {
            Attempt::Done(outcome) => Ok(outcome),
            Attempt::Elsewhere(_) => Err(Error::new(ErrorCode::NotReady, "the leader has just changed")),
            Attempt::Failed(applied) => Err(no_quorum(self.remaining(deadline)).with_applied(applied)),
        }
    }

    /// Lets a node in, as the leader: first into the catalog, which knows whose number it is, then into the consensus.
    /// Everything in it may be done again.
    pub(super) async fn admit(&self, newcomer: Newcomer) -> Result<Response> {
        let _turn = self.door.lock().await;
        let deadline = self.env.monotonic() + Duration::from_millis(ADMIT_MS_MAX);
        match self.confirm(deadline).await {
            Attempt::Done(_) => {}
            Attempt::Elsewhere(hint) => return Ok(Response::NotLeader(self.freshest(hint))),
            Attempt::Failed(applied) => {
                return Err(no_quorum(self.remaining(deadline)).with_applied(applied));
            }
        }
        let catalog = self.machine.catalog().borrow().clone();
        if catalog.cluster_id == 0 {
            return Err(Error::new(ErrorCode::NotReady, "the cluster is being founded"));
        }
        let Newcomer { node: id, attributes, fresh } = newcomer;
        let address = attributes.cluster_address;
        if !fresh && !catalog.nodes.contains_key(&id) {
            return Ok(Response::Removed);
        }
        if catalog.nodes.get(&id).is_none_or(|known| known.attributes != attributes) {
            let command = if fresh { Command::AddNode { id, attributes } } else { Command::PutNode { id, attributes } };
            let outcome = self.command(command, deadline).await?;
            if outcome.is_err() {
                return Ok(Response::Decided(outcome));
            }
        }
        self.peers.hear(id, address);
        self.seat(id, Peer { address }, deadline).await?;
        Ok(Response::Joined { cluster: catalog.cluster_id })
    }

    /// Makes a node a member of the consensus at that address, and a voter if voters are wanted.
    async fn seat(&self, id: NodeId, peer: Peer, deadline: Duration) -> Result<()> {
        // Whoever voted from that address does not listen there any more: its data directory was lost, or it has moved and
        // will ask for its vote again. Until then it would count as a voter that never answers.
        let gone: BTreeSet<NodeId> = self.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            let there = |voter: &NodeId| {
                *voter != self.config.node
                    && *voter != id
                    && membership.get_node(voter).is_some_and(|known| {
                        known.address == peer.address && self.peers.address_of(*voter, known.address) == peer.address
                    })
            };
            membership.voter_ids().filter(there).collect()
        });
        if !gone.is_empty() {
            self.change(ChangeMembers::RemoveVoters(gone), deadline).await?;
        }
        let known = self.metrics(|metrics| metrics.membership_config.membership().get_node(&id).copied());
        let change = match known {
            None => Some(ChangeMembers::AddNodes(BTreeMap::from([(id, peer)]))),
            Some(known) if known != peer => Some(ChangeMembers::SetNodes(BTreeMap::from([(id, peer)]))),
            Some(_) => None,
        };
        if let Some(change) = change {
            self.change(change, deadline).await?;
        }
        if !self.wants_voter(id) {
            return Ok(());
        }
        // One that is slow votes later; it asks again by itself.
        if self.catches_up(id, deadline).await {
            self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id])), deadline).await?;
        }
        Ok(())
    }

    /// Waits a little until a member holds nearly everything that is agreed: as a voter it would hold up the others before.
    async fn catches_up(&self, id: NodeId, deadline: Duration) -> bool {
        let patience = self.remaining(deadline).min(Duration::from_millis(CATCH_UP_MS_MAX));
        let wait = self.raft.wait(Some(patience));
        let caught_up = wait.metrics(
            |metrics| {
                let matched = metrics.replication.as_ref().and_then(|all| all.get(&id)).copied().flatten();
                matched.is_some_and(|id| Some(id.index + CATCH_UP_ENTRIES_MAX) >= metrics.last_log_index)
            },
            "a member catches up",
        );
        caught_up.await.is_ok()
    }

    pub(super) async fn swap_voter(&self, VoterSwap { from, to }: VoterSwap) -> Result<()> {
        let deadline = self.env.monotonic() + Duration::from_millis(ADMIT_MS_MAX);
        // Before the door: whoever wants in need not wait for one that does not answer.
        if !self.catches_up(to, deadline).await {
            return Err(Error::new(ErrorCode::NotReady, format!("{to} is too far behind to vote on the catalog")));
        }
        let _turn = self.door.lock().await;
        let mut voters: BTreeSet<NodeId> =
            self.metrics(|metrics| metrics.membership_config.membership().voter_ids().collect());
        if !voters.remove(&from) || !voters.insert(to) {
            return Ok(());
        }
        self.change(ChangeMembers::ReplaceAllVoters(voters), deadline).await
    }

    /// Whether a member follows only although voters are wanted.
    pub(super) fn wants_voter(&self, id: NodeId) -> bool {
        let on_its_way_out = {
            let catalog = self.machine.catalog();
            let state = catalog.borrow().nodes.get(&id).map(|node| node.state);
            state.is_some_and(|state| state != NodeState::Active)
        };
        !on_its_way_out
            && self.metrics(|metrics| {
                let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
                voters.len() < VOTERS_MAX && !voters.contains(&id)
            })
    }

    pub(super) async fn change(&self, change: ChangeMembers<NodeId, Peer>, deadline: Duration) -> Result<()> {
        match self.env.timeout(self.remaining(deadline), self.raft.change_membership(change, true)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(write_error(error)),
            Err(_) => Err(no_quorum(self.remaining(deadline))),
        }
    }
}
