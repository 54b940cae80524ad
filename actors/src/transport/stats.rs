//! Counters: for metrics, and for proving that nothing is left over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the transport is doing and has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransportStats {
    /// Connections, in both directions, dialling ones included.
    pub connections: u64,
    /// Tasks running.
    pub tasks: u64,
    /// Calls waiting for their answer.
    pub calls_in_flight: u64,
    /// Calls being answered.
    pub calls_serving: u64,
    /// Streams being consumed here.
    pub streams_receiving: u64,
    /// Streams being produced here.
    pub streams_sending: u64,
    /// Bytes read from sockets.
    pub bytes_in: u64,
    /// Bytes written to sockets.
    pub bytes_out: u64,
    /// Frames received whole.
    pub frames_in: u64,
    /// Frames written whole.
    pub frames_out: u64,
    /// Replies that nobody waited for any more.
    pub replies_late: u64,
    /// Items of streams that nobody read any more.
    pub items_late: u64,
    /// Casts that were thrown away: no handler, a full queue, a lost connection.
    pub casts_dropped: u64,
    /// Connections that were refused or gave up in the handshake.
    pub handshakes_failed: u64,
    /// Connections closed because the peer broke the protocol or bytes were damaged.
    pub protocol_errors: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) calls_in_flight: AtomicU64,
    pub(super) calls_serving: AtomicU64,
    pub(super) streams_receiving: AtomicU64,
    pub(super) streams_sending: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
    pub(super) frames_in: AtomicU64,
    pub(super) frames_out: AtomicU64,
    pub(super) replies_late: AtomicU64,
    pub(super) items_late: AtomicU64,
    pub(super) casts_dropped: AtomicU64,
    pub(super) handshakes_failed: AtomicU64,
    pub(super) protocol_errors: AtomicU64,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

impl Counters {
    /// Everything but connections and tasks, which are counted where they are kept.
    pub(super) fn read(&self) -> TransportStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TransportStats {
            connections: 0,
            tasks: 0,
            calls_in_flight: get(&self.calls_in_flight),
            calls_serving: get(&self.calls_serving),
            streams_receiving: get(&self.streams_receiving),
            streams_sending: get(&self.streams_sending),
            bytes_in: get(&self.bytes_in),
            bytes_out: get(&self.bytes_out),
            frames_in: get(&self.frames_in),
            frames_out: get(&self.frames_out),
            replies_late: get(&self.replies_late),
            items_late: get(&self.items_late),
            casts_dropped: get(&self.casts_dropped),
            handshakes_failed: get(&self.handshakes_failed),
            protocol_errors: get(&self.protocol_errors),
        }
    }
}

/// One of something that is going on; counts down when dropped.
pub(super) struct InUse {
    counters: Arc<Counters>,
    which: fn(&Counters) -> &AtomicU64,
}

impl InUse {
    pub(super) fn new(counters: &Arc<Counters>, which: fn(&Counters) -> &AtomicU64) -> Self {
        add(which(counters), 1);
        Self { counters: counters.clone(), which }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        (self.which)(&self.counters).fetch_sub(1, Ordering::Relaxed);
    }
}
