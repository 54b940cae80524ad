//! The world in a box: the code that runs in production, on virtual time, a virtual network and virtual disks, every
//! random choice drawn from one seed.
//!
//! - [`entropy`] replaces the operating system's clock, randomness and waiting on the threads that simulate;
//! - [`world`] holds the hosts, one tokio runtime each, and moves time from event to event;
//! - [`network`] and [`disk`] are the two doors of [`shoal_kernel::Env`] that can fail;
//! - [`faults`] are drawn from the seed; [`cluster`] runs nodes and clients under them;
//! - [`invariants`] are the promises, checked against what clients saw;
//! - [`scale`] drives thousands of membership cores, and a catalog of a million partitions, without whole nodes;
//! - [`minimize`] makes a run that fails small;
//! - [`trace`] is what "the same run" means, and [`apart`] what makes it so.
//!
//! Nothing outside this crate knows that it is being simulated.

pub mod apart;
pub mod cluster;
pub mod disk;
pub mod echo;
pub mod entropy;
pub mod faults;
pub mod invariants;
pub mod minimize;
pub mod network;
pub mod panics;
mod queue;
pub mod random;
pub mod run;
pub mod scale;
pub mod story;
pub mod trace;
pub mod world;
