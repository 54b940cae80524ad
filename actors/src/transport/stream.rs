//! Streams of items with credit: the same two ends whether the other one is on this node or behind a connection.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use shoal_kernel::{Error, ErrorCode, Result};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::credit::{self, Ledger, OverGranted, Owed};
use super::frame::{self, Frame, Kind};
use super::lock;
use super::stats::{Counters, InUse};

/// Nobody takes the stream's items any more; says why. The producer should stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stream closed: {0}")]
pub struct StreamClosed(pub Error);

impl From<StreamClosed> for Error {
    fn from(closed: StreamClosed) -> Self {
        closed.0
    }
}

/// The producer's state.
pub(super) struct Outlet {
    state: Mutex<OutletState>,
    credit_came: Notify,
    closed: CancellationToken,
    // Senders take turns, so that items keep their order and a large one is not starved.
    turn: tokio::sync::Mutex<()>,
}

struct OutletState {
    ledger: Ledger,
    reason: Option<Error>,
}

impl Outlet {
    pub(super) fn new(window_bytes: u32) -> Self {
        Self {
            state: Mutex::new(OutletState { ledger: Ledger::new(window_bytes), reason: None }),
            credit_came: Notify::new(),
            closed: CancellationToken::new(),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn grant(&self, cost: u32) -> Result<(), OverGranted> {
        lock(&self.state).ledger.grant(u64::from(cost))?;
        self.credit_came.notify_one();
        Ok(())
    }

    /// The first reason stays.
    pub(super) fn close(&self, reason: Error) {
        lock(&self.state).reason.get_or_insert(reason);
        self.closed.cancel();
        self.credit_came.notify_one();
    }

    /// The consumer wants no more.
    pub(super) fn cancel(&self) {
        self.close(Error::new(ErrorCode::Cancelled, "the consumer wants no more"));
    }

    /// Resolves when either side has ended the stream.
    pub(super) async fn ended(&self) {
        self.closed.cancelled().await;
    }

    /// Waits until the item may go.
    async fn spend(&self, cost: u64) -> Result<Spent<'_>, StreamClosed> {
        loop {
            {
                let mut state = lock(&self.state);
                if let Some(reason) = &state.reason {
                    return Err(StreamClosed(reason.clone()));
                }
                if state.ledger.spend(cost) {
                    return Ok(Spent { outlet: self, cost });
                }
            }
            self.credit_came.notified().await;
        }
    }
}

/// Credit taken for an item; given back unless the item went.
struct Spent<'a> {
    outlet: &'a Outlet,
    cost: u64,
}

impl Spent<'_> {
    fn gone(mut self) {
        self.cost = 0;
    }
}

impl Drop for Spent<'_> {
    fn drop(&mut self) {
        // Cannot be more than was spent.
        let _ = lock(&self.outlet.state).ledger.grant(self.cost);
    }
}

/// The consumer's state.
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    ready: Notify,
}

struct InboxState {
    items: VecDeque<Bytes>,
    ledger: Ledger,
    owed: Owed,
    end: Option<Result<()>>,
    // The receiver is gone: what still comes is thrown away.
    abandoned: bool,
}

/// The producer sent more than its credit.
#[derive(Debug)]
pub(super) struct Overrun;

/// What became of an item.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    Kept,
    Late,
}

impl Inbox {
    pub(super) fn new(window_bytes: u32) -> Self {
        Self {
            state: Mutex::new(InboxState {
                items: VecDeque::new(),
                ledger: Ledger::new(window_bytes),
                owed: Owed::default(),
                end: None,
                abandoned: false,
            }),
            ready: Notify::new(),
        }
    }

    pub(super) fn arrive(&self, item: Bytes) -> Result<Arrived, Overrun> {
        let mut state = lock(&self.state);
        if state.abandoned || state.end.is_some() {
            return Ok(Arrived::Late);
        }
        if !state.ledger.spend(credit::cost(item.len())) {
            return Err(Overrun);
        }
        state.items.push_back(item);
        drop(state);
        self.ready.notify_one();
        Ok(Arrived::Kept)
    }

    /// The first end stays.
    pub(super) fn end(&self, end: Result<()>) {
        lock(&self.state).end.get_or_insert(end);
        self.ready.notify_one();
    }

    /// Throws away what is there and what comes. Returns whether the producer may still be at work.
    fn abandon(&self) -> bool {
        let mut state = lock(&self.state);
        state.abandoned = true;
        state.items.clear();
        state.end.is_none()
    }
}

/// Where a consumer finds its producer.
pub(super) enum Source {
    Local(Arc<Outlet>),
    Remote { connection: Arc<Connection>, id: u64 },
}

/// The consumer's end. Dropping it cancels the stream.
pub struct StreamReceiver {
    inbox: Arc<Inbox>,
    source: Source,
    ended: bool,
    _in_use: InUse,
}

impl std::fmt::Debug for StreamReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamReceiver").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl StreamReceiver {
    pub(super) fn new(inbox: Arc<Inbox>, source: Source, counters: &Arc<Counters>) -> Self {
        Self { inbox, source, ended: false, _in_use: InUse::new(counters, |counters| &counters.streams_receiving) }
    }

    /// The next item, in the producer's order. `None`: the producer has finished. `Some(Err)`: it failed, or was lost; this
    /// comes once, after the items that had arrived, and `None` follows. Taking an item lets the producer send more.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        if self.ended {
            return None;
        }
        loop {
            {
                let mut state = lock(&self.inbox.state);
                if let Some(item) = state.items.pop_front() {
                    let slack = state.ledger.slack();
                    let due = state.owed.consumed(credit::cost(item.len()), slack);
                    if let Some(due) = due {
                        // What was consumed had been spent.
                        let _ = state.ledger.grant(u64::from(due));
                    }
                    let open = state.end.is_none();
                    drop(state);
                    if let Some(due) = due.filter(|_| open) {
                        self.grant(due);
                    }
                    return Some(Ok(item));
                }
                if let Some(end) = &state.end {
                    self.ended = true;
                    return end.clone().err().map(Err);
                }
            }
            self.inbox.ready.notified().await;
        }
    }

    fn grant(&self, due: u32) {
        match &self.source {
            Source::Local(outlet) => {
                let _ = outlet.grant(due);
            }
            Source::Remote { connection, id } if connection.grants_credit => {
                connection.say(Frame::number(Kind::Credit, *id, due));
            }
            Source::Remote { .. } => {}
        }
    }
}

impl Drop for StreamReceiver {
    fn drop(&mut self) {
        let wanted = self.inbox.abandon();
        match &self.source {
            Source::Local(outlet) => outlet.cancel(),
            Source::Remote { connection, id } => {
                connection.forget_inbox(*id);
                if wanted {
                    connection.say(Frame::bare(Kind::Cancel, *id));
                }
            }
        }
    }
}

/// Where a producer finds its consumer.
enum Sink {
    Local(Arc<Inbox>),
    Remote { connection: Arc<Connection>, id: u64 },
}

/// The producer's end. Dropping it without [`StreamSender::finish`] or [`StreamSender::fail`] fails the stream, so that a
/// producer that died is never taken for one that had no more.
pub struct StreamSender {
    outlet: Arc<Outlet>,
    sink: Sink,
    item_bytes_max: usize,
    ended: bool,
    _in_use: InUse,
}

impl std::fmt::Debug for StreamSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSender").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl StreamSender {
    pub(super) fn local(
        outlet: Arc<Outlet>,
        inbox: Arc<Inbox>,
        item_bytes_max: usize,
        counters: &Arc<Counters>,
    ) -> Self {
        Self::new(outlet, Sink::Local(inbox), item_bytes_max, counters)
    }

    pub(super) fn remote(
        outlet: Arc<Outlet>,
        connection: Arc<Connection>,
        id: u64,
        item_bytes_max: usize,
        counters: &Arc<Counters>,
    ) -> Self {
        Self::new(outlet, Sink::Remote { connection, id }, item_bytes_max, counters)
    }

    fn new(outlet: Arc<Outlet>, sink: Sink, item_bytes_max: usize, counters: &Arc<Counters>) -> Self {
        let in_use = InUse::new(counters, |counters| &counters.streams_sending);
        Self { outlet, sink, item_bytes_max, ended: false, _in_use: in_use }
    }

    /// Sends an item as soon as there is credit for it. An item may be larger than the whole window: it goes when no more
    /// than a quarter of the window is on its way. Dropping the future before it is done sends nothing.
    ///
    /// # Errors
    /// The consumer has cancelled (`Cancelled`), the connection is gone (`NodeLost`), or the item fits into no frame
    /// (`LimitExceeded`); say the last to the consumer with [`StreamSender::fail`].
    pub async fn send(&self, item: Bytes) -> Result<(), StreamClosed> {
        if item.len() > self.item_bytes_max {
            return Err(StreamClosed(frame::too_large("an item", item.len(), self.item_bytes_max)));
        }
        let _turn = self.outlet.turn.lock().await;
        let spent = self.outlet.spend(credit::cost(item.len())).await?;
        match &self.sink {
            Sink::Local(inbox) => {
                // Late or overrun means that the receiver went this very moment; the next send sees it closed.
                let _ = inbox.arrive(item);
            }
            Sink::Remote { connection, id } => {
                let frame = Frame::new(Kind::Item, 0, *id, item);
                connection.outbound.push(frame, None).await.map_err(|_| StreamClosed(connection.lost()))?;
            }
        }
        spent.gone();
        Ok(())
    }

    /// Ends the stream: the consumer has got everything.
    pub async fn finish(mut self) {
        self.end(Ok(()));
    }

    /// Ends the stream with an error, which the consumer gets after the items sent so far.
    pub async fn fail(mut self, error: Error) {
        self.end(Err(error));
    }

    /// Resolves when the consumer has cancelled, the connection is gone, or this end is dropped.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        self.outlet.closed.clone().cancelled_owned()
    }

    fn end(&mut self, end: Result<()>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match &self.sink {
            Sink::Local(inbox) => inbox.end(end),
            Sink::Remote { connection, id } => {
                if connection.forget_outlet(*id) {
                    connection.say(connection.outcome(Kind::End, *id, end.map(|()| Bytes::new())));
                }
            }
        }
        self.outlet.close(Error::new(ErrorCode::Cancelled, "the stream has ended"));
    }
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        self.end(Err(Error::new(ErrorCode::NodeLost, "the producer of the stream stopped without finishing it")));
    }
}
