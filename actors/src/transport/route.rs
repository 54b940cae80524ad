//! What a node does with what it hears.

use bytes::Bytes;
use futures::FutureExt;
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{Error, ErrorCode, NodeId, Result};

use super::stream::StreamSender;

/// The part of a node that a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Route {
    /// Raft and joining.
    Agreement = 1,
    /// Replicas: writes, pulls, digests.
    Replica = 2,
    /// Queries: start, cancel, progress.
    Query = 3,
    /// Edges of running queries.
    Edge = 4,
    /// The echo of tests.
    Echo = 5,
    /// Backups and restores.
    Backup = 6,
}

impl Route {
    pub(super) const ALL: [Self; 6] =
        [Self::Agreement, Self::Replica, Self::Query, Self::Edge, Self::Echo, Self::Backup];

    pub(super) fn from_byte(byte: u8) -> Result<Self> {
        Self::ALL.into_iter().find(|route| *route as u8 == byte).ok_or_else(|| {
            Error::new(ErrorCode::Unsupported, format!("this build knows no route {byte}; the sender may be newer"))
        })
    }
}

/// The error of a message that nobody here takes.
pub(super) fn nobody(route: Route) -> Error {
    Error::new(ErrorCode::Unsupported, format!("nobody on this node takes such messages for {route:?}"))
}

/// Takes the messages of one route. A panic inside costs its message and nothing else.
pub trait Handler: Send + Sync + 'static {
    /// Answers a call. Runs as a task of its own and to its end, even when the caller has gone, unless the transport stops.
    fn call(&self, from: NodeId, message: Bytes) -> BoxFuture<'static, Result<Bytes>> {
        let _ = (from, message);
        async { Err(Error::new(ErrorCode::Unsupported, "this route answers no calls")) }.boxed()
    }

    /// Takes a message without an answer. Runs inside the connection's reader and must not block.
    fn cast(&self, from: NodeId, message: Bytes) {
        let _ = (from, message);
    }

    /// Produces a stream. The future may end before the stream does, if it hands `out` to somebody else.
    fn open(&self, from: NodeId, header: Bytes, out: StreamSender) -> BoxFuture<'static, ()> {
        let _ = (from, header);
        async move { out.fail(Error::new(ErrorCode::Unsupported, "this route opens no streams")).await }.boxed()
    }
}
