//! Whole statements through planner, bytes, tasks and edges, inside one process.

#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this is tests")]

mod answers;
mod by_key;
mod cache;
mod errors;
mod graphs;
mod runner;
mod statements;
mod world;
