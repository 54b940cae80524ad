//! Who does the work: nodes, partitions, replicas, queries, shards and merges as supervised actors, and the transport
//! between nodes that carries their messages.
//!
//! Doors (`api`) and the simulator see [`Node`] and the types of [`service`]; nothing else.

pub mod query;
pub mod service;
pub mod transport;

pub use service::Node;
