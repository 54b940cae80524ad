//! What the cluster agrees on, as a pure state machine.
//!
//! [`Catalog`] holds nodes, tables and the partition map; [`Catalog::apply`] takes one [`Command`] and says what changed.
//! It opens nothing, reads no clock and draws no random number: two nodes that apply the same commands hold the same bytes.
//! How the commands are agreed upon is `shoal-membership`'s business; this crate has never heard of Raft.

mod apply;
mod command;
mod error;
mod placement;
mod places;
mod recovery;
mod replicas;
mod splits;
mod state;
mod tables;
mod ttl;
mod voters;
mod windows;

pub use apply::{ZONE_BYTES_MAX, check_zone};
pub use command::{AlteredTable, CatalogError, Command, CommandOutcome, Effect, NewTable, TtlChange};
pub use placement::Outlook;
pub use places::{Load, Move};
pub use state::{
    Ancestor, Catalog, NodeAttributes, NodeRecord, NodeState, Partition, PartitionBounds, Partitioning, Replica,
    ReplicaState, SplitLimits, Table, TableOptions,
};
pub use tables::{NAME_BYTES_MAX, REPLICATION_FACTOR_MAX};
pub use voters::VoterSwap;
pub use windows::{WindowUnit, windows_kept};
