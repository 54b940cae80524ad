//! The store from outside: what it promises, under faults.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails should say where, and stop")]

mod changes;
mod checkpoint;
mod compaction;
mod concurrency;
mod copy;
mod crash;
mod damage;
mod digest;
mod disk;
mod ends;
mod examine;
mod expire;
mod fixture;
mod lazy;
mod model;
mod optimize;
mod order;
mod pool;
mod pull;
mod purge;
mod repair;
mod schema;
mod segments;
mod split;
mod summary;
mod upkeep;
mod widen;
mod writes;
