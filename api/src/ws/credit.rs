//! Credit of one query, in bytes.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

/// Credit of a query that names none when it starts.
pub const INITIAL_CREDIT_BYTES: u64 = 256 << 10;

/// No client needs more than this at once; it keeps sums far from overflow.
const CREDIT_BYTES_MAX: i64 = 1 << 40;

/// Shared by the session, which grants, and the pump, which spends; both live on the connection's thread.
#[derive(Clone)]
pub(super) struct Credit(Rc<Inner>);

struct Inner {
    bytes: Cell<i64>,
    granted: Notify,
}

impl Credit {
    pub(super) fn new(bytes: u64) -> Self {
        let credit = Self(Rc::new(Inner { bytes: Cell::new(0), granted: Notify::new() }));
        credit.grant(bytes);
        credit
    }

    pub(super) fn grant(&self, bytes: u64) {
        let more = i64::try_from(bytes).unwrap_or(CREDIT_BYTES_MAX);
        self.0.bytes.set(self.0.bytes.get().saturating_add(more).min(CREDIT_BYTES_MAX));
        self.0.granted.notify_one();
    }

    /// Waits until there is some.
    pub(super) async fn available(&self) {
        while self.0.bytes.get() <= 0 {
            self.0.granted.notified().await;
        }
    }

    /// Takes it; may go below zero by one message.
    pub(super) fn spend(&self, bytes: usize) {
        self.0.bytes.set(self.0.bytes.get() - i64::try_from(bytes).unwrap_or(CREDIT_BYTES_MAX));
    }
}
