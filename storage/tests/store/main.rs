//! The store from outside: what it promises, under faults.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails should say where, and stop")]

mod concurrency;
mod crash;
mod damage;
mod disk;
mod ends;
mod examine;
mod fixture;
mod model;
mod optimize;
mod pull;
mod segments;
mod upkeep;
mod writes;
