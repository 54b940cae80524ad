//! Every door, over real sockets. Behind them stands a scripted node, except in `cluster` and `doctor`, where real ones do.
#![allow(clippy::disallowed_methods, reason = "tests of doors live in the real world")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what a test relies on is part of the test")]

mod backup;
mod cluster;
mod command;
mod doctor;
mod ingest;
mod objects;
mod rest;
mod scripted;
#[path = "../support/mod.rs"]
mod support;
mod system;
mod upgrade;
mod websocket;
