//! Settings of the transport.

use std::net::SocketAddr;
use std::time::Duration;

use shoal_kernel::{Error, ErrorCode, NodeId, Result, limits};

/// How the transport is set up. Every bound has its unit last.
#[derive(Debug, Clone)]
pub struct TransportConfig {
    /// This node.
    pub node: NodeId,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Shared by all nodes of the cluster; proves membership in the handshake. Never sent.
    pub secret: String,
    /// The longest frame that is sent or taken.
    pub frame_bytes_max: usize,
    /// Bytes that may wait in one connection's writer. Senders wait (calls, items) or are refused (casts) beyond; a
    /// connection whose frames that cannot wait (refusals, ends, credit, cancels) pile up beyond this is closed.
    pub outbound_bytes_max: usize,
    /// A connection that has been silent so long is pinged; also how often silence is looked for.
    pub ping_every_ms: u64,
    /// A connection that has been silent, or has not taken a byte, for so long is closed.
    pub ping_timeout_ms: u64,
    /// Deadline of connecting and shaking hands together.
    pub connect_timeout_ms: u64,
    /// Pause before the first new attempt to reach a node; doubled per failure, half of it random.
    pub reconnect_min_ms: u64,
    /// The longest such pause.
    pub reconnect_max_ms: u64,
    /// Streams open at once on one connection, in each role.
    pub streams_max: usize,
    /// Calls in flight at once on one connection.
    pub calls_max: usize,
    /// Calls of one route served at once; further ones are refused as overloaded.
    pub serving_max: usize,
    /// Connections accepted at once.
    pub accepted_max: usize,
    /// Accepted connections that have not finished their handshake; further ones are dropped.
    pub half_open_max: usize,
    /// Whether checksums of frames are looked at. Always, but where a simulation wants to see what happens otherwise.
    pub checks_frames: bool,
    /// Whoever takes items of a stream lets more of them come. Switched off for tests alone.
    pub grants_credit: bool,
}

impl TransportConfig {
    /// Every setting but the given ones at its default.
    pub fn new(node: NodeId, listen: SocketAddr, secret: impl Into<String>) -> Self {
        Self {
            node,
            listen,
            secret: secret.into(),
            frame_bytes_max: limits::FRAME_BYTES_MAX,
            outbound_bytes_max: 8 << 20,
            ping_every_ms: 500,
            ping_timeout_ms: 3000,
            connect_timeout_ms: 2000,
            reconnect_min_ms: 50,
            reconnect_max_ms: 1000,
            streams_max: 4096,
            calls_max: 16_384,
            serving_max: 1024,
            accepted_max: 4096,
            half_open_max: 64,
            checks_frames: true,
            grants_credit: true,
        }
    }

    pub(super) fn checked(self) -> Result<Self> {
        let refuse = |what: &str| Err(Error::new(ErrorCode::InvalidRequest, format!("transport: {what}")));
        if self.node == NodeId::default() {
            return refuse("node ids are not zero");
        }
        if self.frame_bytes_max < 1024 || self.frame_bytes_max > 1 << 30 {
            return refuse("frame_bytes_max must lie between 1 KiB and 1 GiB");
        }
        if self.outbound_bytes_max < 1024 || self.outbound_bytes_max > 1 << 30 {
            return refuse("outbound_bytes_max must lie between 1 KiB and 1 GiB");
        }
        if self.ping_every_ms == 0 || self.ping_timeout_ms <= self.ping_every_ms {
            return refuse("ping_timeout_ms must be greater than ping_every_ms, and that greater than zero");
        }
        if self.reconnect_min_ms == 0 || self.reconnect_max_ms < self.reconnect_min_ms {
            return refuse("reconnect_max_ms must not be less than reconnect_min_ms, nor that zero");
        }
        Ok(self)
    }

    /// The pause after so many failures in a row. `random` spreads nodes that lost the same peer.
    pub(super) fn reconnect_pause(&self, failures: u32, random: u64) -> Duration {
        let doubled = self.reconnect_min_ms.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let full_ms = doubled.min(self.reconnect_max_ms);
        let half_ms = full_ms / 2;
        Duration::from_millis(full_ms - half_ms + random % (half_ms + 1))
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(super) fn ping_every(&self) -> Duration {
        Duration::from_millis(self.ping_every_ms)
    }
}
