//! The doors: REST, WebSocket and the command line, and the binary `shoal` that they make up.
//!
//! Everything a door wants of a node goes through [`Backend`]; the doors know no storage, no partition and no other node.
//! Above the node the world is the ordinary one (sockets, files, clocks), so modules that need it say so where they allow it.

pub mod backend;
pub mod client;
pub mod command;
pub mod config;
pub mod format;
pub mod http;
pub mod ingest;
pub mod objects;
pub mod server;
pub mod statement;
pub mod ws;

pub use backend::{Backend, NodeBackend};
pub use server::{Limits, Server, ServerOptions};
