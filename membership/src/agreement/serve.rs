//! What a node answers its peers.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::RaftLogId;
use openraft::error::RaftError;
use openraft::raft::AppendEntriesRequest;
use shoal_kernel::{Error, ErrorCode, NodeId, Result, wire};

use super::message::{Request, Response};
use super::propose::{Attempt, millis};
use super::types::TypeConfig;
use super::{Agreement, Inner, no_quorum, stopped};

/// The longest a peer may have this node wait on its behalf, in milliseconds.
const WAIT_MS_MAX: u64 = 60_000;

impl Agreement {
    /// Answers a message that a peer sent through [`super::PeerRpc::call`]. Refusals are answers, too.
    ///
    /// # Errors
    /// The answer cannot be encoded.
    pub async fn handle(&self, message: &[u8]) -> Result<Vec<u8>> {
        let response = match self.0.peers.open(message) {
            Ok(request) => self.0.answer(request).await.unwrap_or_else(Response::Failed),
            Err(error) => Response::Failed(error),
        };
        Ok(wire::encode(&response)?)
    }
}

impl Inner {
    async fn answer(&self, request: Request) -> Result<Response> {
        if matches!(request, Request::Append(_) | Request::Vote(_) | Request::Snapshot(_)) {
            self.heard_ms.store(millis(self.env.monotonic()), Ordering::Relaxed);
        }
        match request {
            Request::Append(request) => {
                self.check_agreed(&request).await?;
                match self.raft.append_entries(request).await {
                    Ok(response) => Ok(Response::Append(response)),
                    Err(error) => Err(self.fatal(error)),
                }
            }
            Request::Vote(request) => match self.raft.vote(request).await {
                Ok(response) => Ok(Response::Vote(response)),
                Err(error) => Err(self.fatal(error)),
            },
            Request::Snapshot(request) => match self.raft.install_snapshot(request).await {
                Ok(response) => Ok(Response::Snapshot(Ok(response))),
                Err(RaftError::APIError(mismatch)) => Ok(Response::Snapshot(Err(mismatch))),
                Err(RaftError::Fatal(fatal)) => Err(self.log.failure().unwrap_or_else(|| stopped(&fatal))),
            },
            Request::Propose { proposal, timeout_ms } => {
                let deadline = self.deadline(timeout_ms);
                self.respond(self.lead(proposal, deadline).await, timeout_ms, Response::Decided)
            }
            Request::ReadIndex { timeout_ms } => {
                let deadline = self.deadline(timeout_ms);
                self.respond(self.confirm(deadline).await, timeout_ms, Response::ReadAt)
            }
            Request::LogEnd if self.machine.is_held_back() => Err(Error::new(
                ErrorCode::NotReady,
                "this node has begun its catalog anew and has not got all of it yet",
            )),
            Request::LogEnd => Ok(Response::LogEnd(self.log_end())),
            Request::Join(newcomer) => self.admit(newcomer).await,
        }
    }

    /// Consensus takes it for given that what was agreed upon stays. After [`super::recover`] it does not on a node that had got further
    /// than the one that took over: the catalogs of the two would be different without a word.
    async fn check_agreed(&self, request: &AppendEntriesRequest<TypeConfig>) -> Result<()> {
        let entries = request.entries.iter().map(|entry| *entry.get_log_id());
        match self.log.contradicted(&request.vote, request.prev_log_id.into_iter().chain(entries)) {
            Some(other) => Err(self.machine.diverge(other.index).await),
            None => Ok(()),
        }
    }

    fn respond<T>(&self, attempt: Attempt<T>, timeout_ms: u64, done: impl FnOnce(T) -> Response) -> Result<Response> {
        match attempt {
            Attempt::Done(value) => Ok(done(value)),
            Attempt::Elsewhere(hint) => Ok(Response::NotLeader(self.freshest(hint))),
            Attempt::Failed(applied) => Err(no_quorum(Duration::from_millis(timeout_ms)).with_applied(applied)),
        }
    }

    /// A hint with the address where that node was heard last.
    pub(super) fn freshest(&self, hint: Option<(NodeId, SocketAddr)>) -> Option<(NodeId, SocketAddr)> {
        hint.map(|(node, logged)| (node, self.peers.address_of(node, logged)))
    }

    fn deadline(&self, timeout_ms: u64) -> Duration {
        self.env.monotonic() + Duration::from_millis(timeout_ms.min(WAIT_MS_MAX))
    }

    fn fatal(&self, error: RaftError<NodeId>) -> Error {
        match error {
            RaftError::Fatal(fatal) => self.log.failure().unwrap_or_else(|| stopped(&fatal)),
            RaftError::APIError(never) => match never {},
        }
    }
}
