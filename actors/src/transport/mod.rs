//! Frames, connections and streams between nodes: the same code over the real network and the simulated one.
//!
//! **Owned by** the node, which starts it first and stops it last. **Owns** the listening socket, every connection, and the
//! tasks that serve them; all are tracked, and none is left after [`Transport::shutdown`].
//!
//! Between two nodes there are up to two connections per direction of opening, made when first needed: *control* for casts
//! and calls, *bulk* for streams, so that bulk never delays control. Whoever opened a connection asks on it, the other side
//! answers. Every frame has a checksum; a bad one costs its connection. Silent connections are pinged and then closed.
//!
//! **Bounds**: frame length, bytes queued per writer, calls and streams per connection, calls served per route, accepted and
//! half-open connections ([`TransportConfig`]); items of a stream by its own credit (`credit.rs`), so that a stream nobody
//! reads holds up no other.
//!
//! **Loss**: a lost connection fails all that is pending on it, at once and typed; nothing is ever sent again by itself. The
//! next use dials anew; after failures it is refused for a pause that doubles, ended early when the peer itself shows up.
//! Nothing survives a restart but what the node hands in again: addresses, cluster id, handlers.

mod config;
mod connection;
mod credit;
mod frame;
mod handshake;
mod hear;
mod hub;
mod outbound;
mod route;
mod stats;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use shoal_kernel::{Applied, Env, Error, ErrorCode, NodeId, Result};

pub use config::TransportConfig;
pub use route::{Handler, Route};
pub use stats::TransportStats;
pub use stream::{StreamClosed, StreamReceiver, StreamSender};

use frame::{Frame, Kind};
use handshake::Lane;
use hub::{Hub, Peer};
use outbound::{Claim, Refused};
use stats::{InUse, add};
use stream::{Inbox, Outlet, Source};

/// Nodes of a cluster in which every one talks with every other.
const FEW_NODES: usize = 16;

/// A node's voice and ear. Cheap to clone; it stops at [`Transport::shutdown`], not when a handle is dropped.
#[derive(Clone)]
pub struct Transport(Arc<Hub>);

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transport({} at {})", self.0.config.node, self.0.local)
    }
}

impl Transport {
    /// Binds and listens.
    ///
    /// # Errors
    /// The address cannot be bound, or a setting makes no sense.
    pub async fn start(env: &Env, config: TransportConfig) -> Result<Self> {
        Ok(Self(Hub::start(env, config).await?))
    }

    /// Sets who takes the messages of a route. Until then they are refused as unsupported.
    pub fn register(&self, route: Route, handler: Arc<dyn Handler>) {
        self.0.register(route, handler);
    }

    /// Sets the cluster this node belongs to; 0 for not known yet. Two nodes of different clusters refuse each other.
    pub fn set_cluster(&self, cluster_id: u64) {
        self.0.set_cluster(cluster_id);
    }

    /// Notes where a node listens. A changed address counts from the next connection on.
    pub fn set_address(&self, node: NodeId, address: SocketAddr) {
        self.0.set_address(node, address);
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.0.config.node
    }

    /// Where this node listens.
    pub fn local_address(&self) -> SocketAddr {
        self.0.local
    }

    /// Sends a message and waits for its answer.
    ///
    /// # Errors
    /// The handler's own error; `NodeLost` (`applied: false` if the message never went out, `unknown` otherwise); `Timeout`
    /// (likewise); `Overloaded`, `LimitExceeded`, `Unsupported`, `Forbidden`, `IncompatibleVersion`, `NotReady` (never
    /// handed to a handler).
    pub async fn call(&self, to: NodeId, route: Route, message: Bytes, timeout: Duration) -> Result<Bytes> {
        if to == self.0.config.node {
            return self.call_self(route, message, timeout).await;
        }
        self.call_peer(Peer::Node(to), route, message, timeout).await
    }

    /// As [`Transport::call`], to whichever node listens there. For joining, before ids are known.
    ///
    /// # Errors
    /// As [`Transport::call`].
    pub async fn call_address(&self, to: SocketAddr, route: Route, message: Bytes, timeout: Duration) -> Result<Bytes> {
        if to == self.0.local {
            return self.call_self(route, message, timeout).await;
        }
        self.call_peer(Peer::Address(to), route, message, timeout).await
    }

    async fn call_self(&self, route: Route, message: Bytes, timeout: Duration) -> Result<Bytes> {
        let _in_use = InUse::new(&self.0.counters, |counters| &counters.calls_in_flight);
        let answer = self.0.call_self(route, message)?;
        self.within(timeout, self.0.config.node, answer, || false).await
    }

    async fn call_peer(&self, peer: Peer, route: Route, message: Bytes, timeout: Duration) -> Result<Bytes> {
        let _in_use = InUse::new(&self.0.counters, |counters| &counters.calls_in_flight);
        let connection = self.0.connection(peer, Lane::Control)?;
        let claim = Arc::new(Claim::default());
        let answer = connection.call(route, message, claim.clone());
        self.within(timeout, format!("{peer:?}"), answer, || claim.abandon()).await
    }

    /// `never_sent` says after the deadline whether the message can have had no effect.
    async fn within<T>(
        &self,
        timeout: Duration,
        whom: impl std::fmt::Display,
        answer: impl Future<Output = Result<T>>,
        never_sent: impl FnOnce() -> bool,
    ) -> Result<T> {
        match self.0.env.timeout(timeout, answer).await {
            Ok(result) => result,
            Err(_) => {
                let applied = if never_sent() { Applied::False } else { Applied::Unknown };
                let message = format!("no answer of {whom} within {} ms", timeout.as_millis());
                Err(Error::new(ErrorCode::Timeout, message).with_applied(applied))
            }
        }
    }

    /// Whether tasks of a query may read a whole fragment each, on any of these nodes. In a large cluster most nodes never talk to each
    /// other, and those are taken to be of this build.
    pub fn broadcasts(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.0.all_speak(nodes, handshake::BROADCASTS, nodes.len() > FEW_NODES)
    }

    /// Whether a node that has talked to this one can read the segments that this build writes.
    pub fn reads_segments(&self, node: NodeId) -> bool {
        self.0.all_speak(&BTreeSet::from([node]), handshake::SEGMENTS_5, false)
    }

    /// Goes on as long as anything comes from a node, on any connection; another number is a sign of life.
    pub fn heard(&self, from: NodeId) -> u64 {
        self.0.heard(from)
    }

    /// Sends a message without an answer, at most once, perhaps never.
    ///
    /// # Errors
    /// It was certainly not sent: `Overloaded` (the queue is full), `LimitExceeded`, `NodeLost`, `NotReady`.
    pub fn cast(&self, to: NodeId, route: Route, message: Bytes) -> Result<()> {
        let hub = &self.0;
        if message.len() > frame::payload_bytes_max(hub.config.frame_bytes_max) {
            return Err(frame::too_large("a cast", message.len(), hub.config.frame_bytes_max));
        }
        if to == hub.config.node {
            if !hub.deliver_cast(to, route, message) {
                add(&hub.counters.casts_dropped, 1);
            }
            return Ok(());
        }
        let connection = hub.connection(Peer::Node(to), Lane::Control)?;
        connection.outbound.try_push(Frame::new(Kind::Cast, route as u8, 0, message)).map_err(|refused| {
            add(&hub.counters.casts_dropped, 1);
            match refused {
                Refused::Closed => connection.lost(),
                Refused::Full => Error::new(
                    ErrorCode::Overloaded,
                    format!("the queue to {to} is full (outbound_bytes_max = {})", hub.config.outbound_bytes_max),
                ),
            }
        })
    }

    /// Asks for a stream. `credit_bytes` is the window: what the producer may be ahead of the consumer, give or take one
    /// item. Returns when the request is queued on a live connection; a refusal by the peer is the stream's first word.
    ///
    /// # Errors
    /// As [`Transport::call`], all with `applied: false`.
    pub async fn open(
        &self,
        to: NodeId,
        route: Route,
        header: Bytes,
        credit_bytes: u32,
        timeout: Duration,
    ) -> Result<StreamReceiver> {
        let hub = &self.0;
        if to == hub.config.node {
            return self.open_self(route, header, credit_bytes);
        }
        let connection = hub.connection(Peer::Node(to), Lane::Bulk)?;
        let opened = connection.open(route, &header, credit_bytes);
        let (id, inbox) = self.within(timeout, to, opened, || true).await?;
        Ok(StreamReceiver::new(inbox, Source::Remote { connection, id }, &hub.counters))
    }

    fn open_self(&self, route: Route, header: Bytes, credit_bytes: u32) -> Result<StreamReceiver> {
        let hub = &self.0;
        if hub.stop.is_cancelled() {
            return Err(Error::new(ErrorCode::NotReady, "the node is stopping"));
        }
        let (inbox, outlet) = (Arc::new(Inbox::new(credit_bytes)), Arc::new(Outlet::new(credit_bytes)));
        let item_bytes_max = frame::payload_bytes_max(hub.config.frame_bytes_max);
        let sender = StreamSender::local(outlet.clone(), inbox.clone(), item_bytes_max, &hub.counters);
        match hub.handler(route) {
            Some(handler) => {
                hub.produce(handler, hub.config.node, header, sender);
                hub.end_when_stopping(inbox.clone(), outlet.clone());
            }
            None => inbox.end(Err(route::nobody(route))),
        }
        Ok(StreamReceiver::new(inbox, Source::Local(outlet), &hub.counters))
    }

    /// Membership says that the node is gone: fails what is pending with it and closes its connections. It may come back.
    pub fn node_down(&self, node: NodeId) {
        self.0.node_down(node);
    }

    /// Closes everything and waits until every task has ended. Handlers that are at work are dropped at their next await.
    /// Must not be called from inside a handler, for which it would wait.
    pub async fn shutdown(&self) {
        self.0.shutdown().await;
    }

    /// What is going on, and what has gone through.
    pub fn stats(&self) -> TransportStats {
        self.0.stats()
    }
}

/// Locks; a panic elsewhere while the lock was held leaves plain data behind, which the next holder can use.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
