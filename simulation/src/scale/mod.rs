//! Membership and catalog alone, at sizes that whole nodes cannot be simulated at.
//!
//! Both are pure cores, so that thousands of them need neither a runtime nor a disk each: one queue of events drives them all.
//! The gossip is the one that runs in production, down to the bytes of its datagrams; only sockets and clocks are replaced.
//! [`gossip`] takes a number of nodes through a join storm, a quiet minute, a join, a crash of every tenth, a partition in halves
//! with its heal, and a minute in which every tenth is slow. [`catalog`] makes a map of as many partitions as asked for.
//! [`broken_bounds`] says which of the bounds in [`bounds`] do not hold.
//!
//! Nothing here looks at the real world but through [`Meter`], for the times and the memory of the catalog.

pub mod bounds;
mod catalog;
mod scenes;
mod table;
mod traffic;
mod views;
mod world;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use bounds::broken_bounds;
pub use catalog::{CatalogReport, catalog};
pub use scenes::{Crash, GossipReport, Join, PARTITION_SECONDS, Partition, Quiet, SLOW_SECONDS, Slow, Storm, gossip};
pub use table::{catalog_table, gossip_table};
pub use traffic::Rates;
pub use world::Weather;

/// Microseconds of a second.
const SECOND: u64 = 1_000_000;

/// Looks at the real world while a virtual one runs; its answers change nothing in that.
pub trait Meter {
    /// Real time since some moment in the past.
    fn elapsed(&mut self) -> Duration;
    /// Memory that the process has, in bytes; 0 if that is not known.
    fn resident_bytes(&mut self) -> u64;
    /// A scene has ended, of so many nodes, at this virtual microsecond.
    fn scene(&mut self, nodes: usize, scene: &str, now: u64);
}
