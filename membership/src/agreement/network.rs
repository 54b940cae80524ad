//! openraft's calls to peers, over whatever carries calls between nodes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use shoal_kernel::{Error, ErrorCode, NodeId, Result, wire};

use super::message::{Envelope, Request, Response};
use super::types::{Peer, TypeConfig};

/// Wait before a peer that could not be reached is tried again, in milliseconds.
const RETRY_MS: u64 = 200;

/// Carries a message to [`super::Agreement::handle`] of the node at an address, and its answer back.
#[async_trait]
pub trait PeerRpc: Send + Sync + 'static {
    /// Calls. `message` is opaque and at most a frame long.
    ///
    /// # Errors
    /// The peer did not answer in time. [`Error::applied`] is `False` only if it certainly has not seen the message.
    async fn call(&self, to: SocketAddr, message: Vec<u8>, timeout: Duration) -> Result<Vec<u8>>;
}

/// This node's way to its peers.
#[derive(Clone)]
pub(super) struct Peers(Arc<Inner>);

struct Inner {
    rpc: Arc<dyn PeerRpc>,
    me: NodeId,
    address: SocketAddr,
    cluster: AtomicU64,
    // Where peers were heard from last. Newer than the membership in the log, which cannot change without them.
    heard: Mutex<BTreeMap<NodeId, SocketAddr>>,
}

impl Peers {
    pub(super) fn new(rpc: Arc<dyn PeerRpc>, me: NodeId, address: SocketAddr) -> Self {
        Self(Arc::new(Inner { rpc, me, address, cluster: AtomicU64::new(0), heard: Mutex::default() }))
    }

    /// The cluster is known from now on; messages of others are refused.
    pub(super) fn belong_to(&self, cluster: u64) {
        self.0.cluster.store(cluster, Ordering::Relaxed);
    }

    /// Takes note of where a peer can be reached.
    pub(super) fn hear(&self, node: NodeId, address: SocketAddr) {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(node, address);
    }

    /// Where a peer can be reached, given where the log says it is.
    pub(super) fn address_of(&self, node: NodeId, logged: SocketAddr) -> SocketAddr {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).get(&node).copied().unwrap_or(logged)
    }

    /// Opens an inbound message.
    ///
    /// # Errors
    /// It is malformed, meant for another node, or comes from another cluster.
    pub(super) fn open(&self, message: &[u8]) -> Result<Request> {
        let envelope: Envelope = wire::decode(message)?;
        let cluster = self.0.cluster.load(Ordering::Relaxed);
        if cluster != 0 && envelope.cluster != 0 && envelope.cluster != cluster {
            return Err(Error::new(ErrorCode::Forbidden, format!("{} belongs to another cluster", envelope.from)));
        }
        if let Some(meant) = envelope.to.filter(|meant| *meant != self.0.me) {
            return Err(Error::new(ErrorCode::NotFound, format!("this is node {}, not {meant}", self.0.me)));
        }
        if !matches!(envelope.request, Request::Join(_)) {
            self.hear(envelope.from, envelope.from_address);
        }
        Ok(envelope.request)
    }

    /// Calls a node.
    ///
    /// # Errors
    /// As [`PeerRpc::call`], or the error that the node answered with.
    pub(super) async fn call(
        &self,
        to: Option<NodeId>,
        address: SocketAddr,
        request: Request,
        timeout: Duration,
    ) -> Result<Response> {
        let cluster = self.0.cluster.load(Ordering::Relaxed);
        let envelope = Envelope { cluster, from: self.0.me, from_address: self.0.address, to, request };
        let answer = self.0.rpc.call(address, wire::encode(&envelope)?, timeout).await?;
        match wire::decode(&answer)? {
            Response::Failed(error) => Err(error),
            response => Ok(response),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, node: &Peer) -> Link {
        Link { peers: self.clone(), target, logged: node.address }
    }
}

/// The way to one peer.
pub(super) struct Link {
    peers: Peers,
    target: NodeId,
    logged: SocketAddr,
}

impl Link {
    async fn call<E: std::error::Error>(
        &self,
        request: Request,
        option: &RPCOption,
    ) -> Result<Response, RPCError<NodeId, Peer, E>> {
        let address = self.peers.address_of(self.target, self.logged);
        let answer = self.peers.call(Some(self.target), address, request, option.hard_ttl()).await;
        answer.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))
    }
}

fn unexpected<E: std::error::Error>() -> RPCError<NodeId, Peer, E> {
    RPCError::Unreachable(Unreachable::new(&Error::internal("a peer answered another question")))
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, Peer, RaftError<NodeId>>> {
        match self.call(Request::Append(rpc), &option).await? {
            Response::Append(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, RPCError<NodeId, Peer, RaftError<NodeId, InstallSnapshotError>>> {
        match self.call(Request::Snapshot(rpc), &option).await? {
            Response::Snapshot(Ok(response)) => Ok(response),
            Response::Snapshot(Err(error)) => {
                Err(RPCError::RemoteError(RemoteError::new(self.target, RaftError::APIError(error))))
            }
            _ => Err(unexpected()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, Peer, RaftError<NodeId>>> {
        match self.call(Request::Vote(rpc), &option).await? {
            Response::Vote(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(RETRY_MS)))
    }
}
