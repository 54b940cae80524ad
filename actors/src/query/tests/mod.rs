//! Queries over an in-process cluster of three nodes with real transports.

mod answers;
mod cluster;
mod endings;
mod failures;
mod leaks;
