//! The types that openraft is run with.

use std::io::Cursor;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use shoal_catalog::{CatalogError, Command, CommandOutcome};
use shoal_kernel::NodeId;

use super::runtime::Runtime;

openraft::declare_raft_types!(
    /// Consensus about the catalog.
    pub TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = NodeId,
        Node = Peer,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = Runtime,
);

pub(super) type Raft = openraft::Raft<TypeConfig>;
pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type LogId = openraft::LogId<NodeId>;
pub(super) type Vote = openraft::Vote<NodeId>;
pub(super) type Membership = openraft::StoredMembership<NodeId, Peer>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<NodeId, Peer>;
pub(super) type StorageError = openraft::StorageError<NodeId>;

/// What a proposal came to.
pub type Outcome = Result<CommandOutcome, CatalogError>;

/// A command on its way into the log. The number makes sending it again harmless: the state machine remembers the outcome of
/// recent proposals and repeats it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The node that asked (high 32 bits), then random bits.
    pub id: u128,
    /// What it asked for.
    pub command: Command,
}

/// A member of the consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Where other nodes reach it.
    pub address: SocketAddr,
}

impl Default for Peer {
    // openraft wants one; no member ever has it.
    fn default() -> Self {
        Self { address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)) }
    }
}
