//! Running queries: fragments become shard and merge actors on the nodes where the data lies, and their rows an answer.
//!
//! ```text
//! node root ─ query root ┬ query actor (coordinator/)        one per query, where it was asked
//!                        └ tasks supervisor (tasks/)         one per attempt and node
//!                            ├ shard actor (tasks/worker.rs) one per task that reads replicas
//!                            └ merge actor (tasks/worker.rs) one per task that reads other tasks
//! ```
//!
//! [`QueryService`] is the door. A query is admitted whole ([`admission`]), its tasks get places ([`assign`]), every node
//! involved is told to start its share ([`message`]), rows flow over edges ([`edge`]) from leaves to the root and from there
//! to the client; then, or as soon as anything goes wrong, every node is told to release the attempt.
//!
//! A few rows by key are read without all that ([`by_key`]).
//!
//! What holds, whatever fails:
//! - An answer is whole or an error. Every edge ends with an explicit end that counts its rows, or it failed.
//! - Attempts are all or nothing: no row of an attempt is merged with rows of another. A query whose rows have begun to
//!   leave is never started again.
//! - All readers of a partition within one attempt share one snapshot of one replica.
//! - After a query nothing is left: no actor, no batch, no snapshot. If the coordinator cannot say so, nodes find out: they
//!   ask it every two seconds, and let go when it is down, silent, of another mind, or past the deadline.

mod admission;
mod assign;
mod by_key;
mod coordinator;
mod edge;
mod engine;
mod handler;
mod inputs;
mod memory;
mod message;
mod node;
mod ports;
mod scan;
mod service;
mod spill;
mod tasks;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use message::{RunningFragment, RunningOn};
pub use ports::{
    BatchIterator, Candidates, Engine, LocalReplicas, PartitionSnapshot, Placement, Reached, Replan, Router,
};
pub use service::{QueryLimits, QueryService, QueryStats, RunOptions, RunningQuery};
pub use spill::SpillLimits;
pub(crate) use spill::{SPILL_DIR, clean as clean_spilled};

use shoal_planner::error_to_datafusion as to_datafusion;

/// Locks; what a panic leaves behind a lock here is plain data that stays usable.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
