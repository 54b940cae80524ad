//! Proposals, from any node.

use std::net::SocketAddr;
use std::time::Duration;

use openraft::LogIdOptionExt;
use openraft::error::{CheckIsLeaderError, ClientWriteError, ForwardToLeader, RaftError};
use shoal_catalog::{Command, CommandOutcome};
use shoal_kernel::{Applied, Error, ErrorCode, NodeId, Rare, Result};

use super::message::{Request, Response};
use super::types::{Outcome, Peer, Proposal};
use super::{Agreement, Inner, PROPOSALS_MAX, no_quorum, stopped};

/// Wait before the leader is looked for again, in milliseconds.
const RETRY_MS: u64 = 50;

/// How long one attempt to propose may take, in milliseconds. Asking again is harmless.
const PROPOSE_MS_MAX: u64 = 3_000;

/// One round of asking.
pub(super) enum Attempt<T> {
    Done(T),
    /// Another node leads; perhaps known.
    Elsewhere(Option<(NodeId, SocketAddr)>),
    /// Not now. Says whether it may have had an effect all the same.
    Failed(Applied),
}

impl Agreement {
    /// Has a command agreed upon, and waits until this node shows its effect. On any node.
    ///
    /// # Errors
    /// The catalog refuses the command; too much is under way; this node belongs to no cluster yet; or no quorum was found in
    /// time: `applied: false` if the command was certainly never proposed, `applied: unknown` if it may still be agreed upon
    /// later.
    pub async fn propose(&self, command: Command, timeout: Duration) -> Result<CommandOutcome> {
        let node = &self.0;
        self.check_member()?;
        let Ok(_place) = node.proposing.try_acquire() else {
            return Err(Error::new(
                ErrorCode::Overloaded,
                format!("{PROPOSALS_MAX} changes of the catalog are under way on this node (PROPOSALS_MAX)"),
            )
            .with_retry_after_ms(200));
        };
        let deadline = node.env.monotonic() + timeout;
        let id = u128::from(node.config.node.0) << 96 | u128::from(node.env.random("proposal"));
        let proposal = Proposal { id, command };
        let mut applied = Applied::False;
        let mut hint = None;
        let (led_by, mut attempts) = (self.leader(), 0u32);
        while !node.remaining(deadline).is_zero() {
            if let Some(problem) = node.problem() {
                return Err(problem.with_applied(applied));
            }
            attempts += 1;
            if attempts == 2 && applied != Applied::False {
                node.env.reached(Rare::ProposalRepeated);
            }
            match node.propose_once(&proposal, hint.take(), deadline).await {
                Attempt::Done(outcome) => {
                    let outcome = outcome.map_err(|refused| self.catalog().borrow().explain(refused))?;
                    self.0.shown(outcome.version, deadline).await;
                    if led_by.is_some() && self.leader().is_some_and(|leader| Some(leader) != led_by) {
                        node.env.reached(Rare::LeaderChanged);
                    }
                    return Ok(outcome);
                }
                Attempt::Elsewhere(Some(leader)) => hint = Some(leader),
                Attempt::Elsewhere(None) => {}
                Attempt::Failed(effect) => applied = applied_of(applied, effect),
            }
            node.pause(deadline).await;
        }
        Err(no_quorum(timeout).with_applied(applied))
    }

    pub(super) fn check_member(&self) -> Result<()> {
        if self.is_member() {
            return Ok(());
        }
        Err(Error::new(ErrorCode::NotReady, "this node has not joined a cluster yet"))
    }
}

fn applied_of(before: Applied, now: Applied) -> Applied {
    if before == Applied::False { now } else { before }
}

impl Inner {
    /// The leader and its address, as far as this node knows.
    pub(super) fn leader(&self) -> Option<(NodeId, SocketAddr)> {
        self.metrics(|metrics| {
            let leader = metrics.current_leader?;
            let peer = metrics.membership_config.membership().get_node(&leader)?;
            Some((leader, self.peers.address_of(leader, peer.address)))
        })
    }

    /// Waits a moment, for elections to settle.
    pub(super) async fn pause(&self, deadline: Duration) {
        self.env.sleep(Duration::from_millis(RETRY_MS).min(self.remaining(deadline))).await;
    }

    /// Waits until this node shows a version of the catalog, at most to the deadline: whoever made a table wants to use it.
    async fn shown(&self, version: u64, deadline: Duration) {
        let mut catalog = self.machine.catalog();
        let reached = catalog.wait_for(|catalog| catalog.version >= version);
        let _ = self.env.timeout(self.remaining(deadline), reached).await;
    }

    async fn propose_once(
        &self,
        proposal: &Proposal,
        hint: Option<(NodeId, SocketAddr)>,
        deadline: Duration,
    ) -> Attempt<Outcome> {
        let Some((leader, address)) = hint.or_else(|| self.leader()) else {
            return Attempt::Elsewhere(None);
        };
        if leader == self.config.node {
            return self.lead(proposal.clone(), deadline).await;
        }
        let timeout = self.remaining(deadline).min(Duration::from_millis(PROPOSE_MS_MAX));
        let request = Request::Propose { proposal: proposal.clone(), timeout_ms: millis(timeout) };
        match self.peers.call(Some(leader), address, request, timeout).await {
            Ok(Response::Decided(outcome)) => Attempt::Done(outcome),
            Ok(Response::NotLeader(hint)) => Attempt::Elsewhere(hint),
            Ok(_) => Attempt::Failed(Applied::Unknown),
            Err(error) => Attempt::Failed(error.applied()),
        }
    }

    /// Proposes as the leader.
    pub(super) async fn lead(&self, proposal: Proposal, deadline: Duration) -> Attempt<Outcome> {
        let leading = self.env.timeout(self.remaining(deadline), self.leading.acquire()).await;
        let Ok(Ok(_place)) = leading else { return Attempt::Failed(Applied::False) };
        // A leader that was cut off would take the command into its log and never know: first be sure of a quorum.
        match self.confirm(deadline).await {
            Attempt::Done(_) => {}
            Attempt::Elsewhere(hint) => return Attempt::Elsewhere(hint),
            Attempt::Failed(_) => return Attempt::Failed(Applied::False),
        }
        match self.env.timeout(self.remaining(deadline), self.raft.client_write(proposal)).await {
            Ok(Ok(written)) => Attempt::Done(written.data),
            // Perhaps it stood in the log already when another leader took over, and may come back with a third.
            Ok(Err(_)) | Err(_) => Attempt::Failed(Applied::Unknown),
        }
    }

    /// Asks a quorum whether this node still leads; gives the index that holds everything agreed upon by now.
    pub(super) async fn confirm(&self, deadline: Duration) -> Attempt<Option<u64>> {
        match self.env.timeout(self.remaining(deadline), self.raft.get_read_log_id()).await {
            Ok(Ok((read, _))) => Attempt::Done(read.index()),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
                Attempt::Elsewhere(hint_of(forward))
            }
            Ok(Err(_)) | Err(_) => Attempt::Failed(Applied::False),
        }
    }
}

pub(super) fn hint_of(forward: ForwardToLeader<NodeId, Peer>) -> Option<(NodeId, SocketAddr)> {
    Some((forward.leader_id?, forward.leader_node?.address))
}

/// The error of a change of membership that did not come about.
pub(super) fn write_error(error: RaftError<NodeId, ClientWriteError<NodeId, Peer>>) -> Error {
    match error {
        RaftError::Fatal(fatal) => stopped(&fatal),
        RaftError::APIError(error) => {
            Error::new(ErrorCode::NotReady, format!("the membership cannot change now: {error}"))
        }
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
