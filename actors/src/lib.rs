//! Who does the work: nodes, partitions, replicas, queries, shards and merges as supervised actors, and the transport
//! between nodes that carries their messages.
//!
//! Doors (`api`) and the simulator see [`Node`] and the types of [`service`]; nothing else.

mod backup;
mod batch;
mod clocks;
pub mod doctor;
mod failures;
mod gateway;
mod later;
pub mod node;
mod placement;
pub mod query;
pub mod recovery;
mod replica;
mod room;
mod rounds;
pub mod service;
pub mod transport;

pub use backup::ObjectStores;
pub use node::Node;
pub use shoal_planner::{ObjectOptions, without_secrets};
