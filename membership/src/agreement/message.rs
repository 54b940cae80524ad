//! What nodes say to each other about the catalog.

use std::net::SocketAddr;

use openraft::error::InstallSnapshotError;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use serde::{Deserialize, Serialize};
use shoal_catalog::NodeAttributes;
use shoal_kernel::{Error, NodeId};

use super::types::{Outcome, Proposal, TypeConfig};

/// A request with its sender, who may have moved since the receiver last heard of it.
#[derive(Serialize, Deserialize)]
pub(super) struct Envelope {
    /// The sender's cluster; zero while it does not know.
    pub(super) cluster: u64,
    pub(super) from: NodeId,
    pub(super) from_address: SocketAddr,
    /// Who is meant, if that matters: another node may listen on that address by now.
    pub(super) to: Option<NodeId>,
    pub(super) request: Request,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<NodeId>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
    Propose {
        proposal: Proposal,
        timeout_ms: u64,
    },
    Join(Newcomer),
    /// How far must the sender have applied to have seen everything committed by now?
    ReadIndex {
        timeout_ms: u64,
    },
    /// How far does the receiver's log go?
    LogEnd,
}

/// A node that wants to take part, or that tells what has changed of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Newcomer {
    pub(super) node: NodeId,
    pub(super) attributes: NodeAttributes,
    /// It has never been a member, so its number may be another's.
    pub(super) fresh: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Response {
    Append(AppendEntriesResponse<NodeId>),
    Vote(VoteResponse<NodeId>),
    Snapshot(Result<InstallSnapshotResponse<NodeId>, InstallSnapshotError>),
    Decided(Outcome),
    /// Ask that one, if it is known.
    NotLeader(Option<(NodeId, SocketAddr)>),
    Joined {
        cluster: u64,
    },
    ReadAt(Option<u64>),
    /// The sender is no member any more.
    Removed,
    Failed(Error),
    /// The index of the last entry, agreed upon or not.
    LogEnd(Option<u64>),
}
