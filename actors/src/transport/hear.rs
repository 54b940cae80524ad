//! What to do with a frame that arrived, and with a message for this node that needed no frame.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::FutureExt;
use shoal_kernel::{Applied, Error, ErrorCode, NodeId, Result};
use tokio::sync::OwnedSemaphorePermit;

use super::connection::{AddOutlet, Connection, Role};
use super::frame::{self, Frame, FrameError, Kind, OUTCOME_OK};
use super::handshake::Lane;
use super::hub::Hub;
use super::route::{Handler, Route, nobody};
use super::stats::{InUse, add};
use super::stream::{Arrived, Inbox, Outlet, StreamSender};

/// The peer broke the protocol: the connection is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Violation {
    #[error("a {0:?} frame has no place on this connection")]
    Misplaced(Kind),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("stream {0} was opened twice")]
    OpenedTwice(u64),
    #[error("more credit than was spent on stream {0}")]
    OverGranted(u64),
    #[error("more items than credit on stream {0}")]
    Overrun(u64),
}

/// A call that may run, with its place among those served at once.
struct Admitted {
    handler: Arc<dyn Handler>,
    _place: OwnedSemaphorePermit,
    _in_use: InUse,
}

impl Admitted {
    async fn run(self, hub: &Hub, from: NodeId, message: Bytes) -> Result<Bytes> {
        let work = AssertUnwindSafe(async { self.handler.call(from, message).await }).catch_unwind();
        tokio::select! {
            biased;
            () = hub.stop.cancelled() => {
                Err(Error::new(ErrorCode::NotReady, "the node is stopping").with_applied(Applied::Unknown))
            }
            result = work => result.unwrap_or_else(|_| {
                Err(Error::internal("the handler of the call panicked").with_applied(Applied::Unknown))
            }),
        }
    }
}

impl Hub {
    /// Takes one frame. Never waits.
    pub(super) fn hear(self: &Arc<Self>, connection: &Arc<Connection>, frame: Frame) -> Result<(), Violation> {
        let (kind, id) = (frame.kind, frame.id);
        if !matches!(kind, Kind::Ping | Kind::Pong) {
            self.env.trace(|| {
                let (me, peer, bytes) = (self.config.node, connection.peer(), frame.payload.len());
                let what = match Route::from_byte(frame.tag) {
                    Ok(route) => format!(" for {route:?}"),
                    Err(_) => String::new(),
                };
                format!("transport {me} heard {kind:?} {id}{what} of {bytes} bytes from {peer}")
            });
        }
        match (connection.role, connection.lane, kind) {
            (_, _, Kind::Ping) => connection.outbound.pong(id),
            (_, _, Kind::Pong) => {}
            (Role::Acceptor, Lane::Control, Kind::Cast) => self.hear_cast(connection.peer(), frame.tag, frame.payload),
            (Role::Acceptor, Lane::Control, Kind::Call) => self.hear_call(connection, frame),
            (Role::Dialler, Lane::Control, Kind::Reply) => {
                if !connection.answer(id, outcome(frame)) {
                    add(&self.counters.replies_late, 1);
                }
            }
            (Role::Acceptor, Lane::Bulk, Kind::Open) => self.hear_open(connection, frame)?,
            (Role::Acceptor, Lane::Bulk, Kind::Credit) => {
                let granted = frame.as_number()?;
                // None: the stream has ended here, and the consumer does not know yet.
                if let Some(outlet) = connection.outlet(id) {
                    outlet.grant(granted).map_err(|_| Violation::OverGranted(id))?;
                }
            }
            (Role::Acceptor, Lane::Bulk, Kind::Cancel) => {
                if let Some(outlet) = connection.outlet(id) {
                    connection.forget_outlet(id);
                    outlet.cancel();
                }
            }
            (Role::Dialler, Lane::Bulk, Kind::Item) => {
                let arrived = match connection.inbox(id) {
                    Some(inbox) => inbox.arrive(frame.payload).map_err(|_| Violation::Overrun(id))?,
                    None => Arrived::Late,
                };
                if arrived == Arrived::Late {
                    add(&self.counters.items_late, 1);
                }
            }
            (Role::Dialler, Lane::Bulk, Kind::End) => {
                if let Some(inbox) = connection.inbox(id) {
                    connection.forget_inbox(id);
                    inbox.end(outcome(frame).map(drop));
                }
            }
            _ => return Err(Violation::Misplaced(kind)),
        }
        Ok(())
    }

    fn hear_cast(&self, from: NodeId, route: u8, message: Bytes) {
        let heard = Route::from_byte(route).is_ok_and(|route| self.deliver_cast(from, route, message));
        if !heard {
            add(&self.counters.casts_dropped, 1);
        }
    }

    /// Returns whether somebody took it.
    pub(super) fn deliver_cast(&self, from: NodeId, route: Route, message: Bytes) -> bool {
        let Some(handler) = self.handler(route) else { return false };
        // A panic must not take the connection with it.
        std::panic::catch_unwind(AssertUnwindSafe(|| handler.cast(from, message))).is_ok()
    }

    fn admit(&self, route: Route) -> Result<Admitted> {
        let handler = self.handler(route).ok_or_else(|| nobody(route))?;
        let place = self.serving(route).try_acquire_owned().map_err(|_| {
            Error::new(
                ErrorCode::Overloaded,
                format!("{} calls for {route:?} are being served (serving_max)", self.config.serving_max),
            )
        })?;
        let in_use = InUse::new(&self.counters, |counters| &counters.calls_serving);
        Ok(Admitted { handler, _place: place, _in_use: in_use })
    }

    fn hear_call(self: &Arc<Self>, connection: &Arc<Connection>, frame: Frame) {
        let (id, from) = (frame.id, connection.peer());
        match Route::from_byte(frame.tag).and_then(|route| self.admit(route)) {
            Err(error) => connection.say(connection.outcome(Kind::Reply, id, Err(error))),
            Ok(admitted) => {
                let (hub, connection) = (self.clone(), connection.clone());
                self.spawn("transport.call", async move {
                    let result = admitted.run(&hub, from, frame.payload).await;
                    let reply = connection.outcome(Kind::Reply, id, result);
                    // Refused when the connection is closed; the caller has been told by that.
                    let _ = connection.outbound.push(reply, None).await;
                });
            }
        }
    }

    /// Answers a call of this node to itself. The handler runs to its end, even when the returned future is dropped.
    pub(super) fn call_self(
        self: &Arc<Self>,
        route: Route,
        message: Bytes,
    ) -> Result<impl Future<Output = Result<Bytes>> + use<>> {
        if message.len() > frame::payload_bytes_max(self.config.frame_bytes_max) {
            return Err(frame::too_large("a call", message.len(), self.config.frame_bytes_max));
        }
        let admitted = self.admit(route)?;
        let (answer, answered) = tokio::sync::oneshot::channel();
        let (hub, me) = (self.clone(), self.config.node);
        self.spawn("transport.call", async move {
            let _ = answer.send(admitted.run(&hub, me, message).await);
        });
        Ok(async move {
            answered.await.unwrap_or_else(|_| {
                Err(Error::new(ErrorCode::NotReady, "the node is stopping").with_applied(Applied::Unknown))
            })
        })
    }

    fn hear_open(self: &Arc<Self>, connection: &Arc<Connection>, frame: Frame) -> Result<(), Violation> {
        let Frame { id, tag, mut payload, .. } = frame;
        if payload.len() < 4 {
            return Err(FrameError::Payload(Kind::Open).into());
        }
        let window_bytes = payload.get_u32_le();
        let refuse = |error| connection.say(connection.outcome(Kind::End, id, Err(error)));
        let handler = Route::from_byte(tag).and_then(|route| self.handler(route).ok_or_else(|| nobody(route)));
        let handler = match handler {
            Ok(handler) => handler,
            Err(error) => {
                refuse(error);
                return Ok(());
            }
        };
        let outlet = Arc::new(Outlet::new(window_bytes));
        match connection.add_outlet(id, outlet.clone()) {
            Ok(()) => {}
            Err(AddOutlet::Twice) => return Err(Violation::OpenedTwice(id)),
            Err(AddOutlet::TooMany) => {
                refuse(connection.too_many_streams());
                return Ok(());
            }
            Err(AddOutlet::Closed) => return Ok(()),
        }
        let item_bytes_max = frame::payload_bytes_max(self.config.frame_bytes_max);
        let sender = StreamSender::remote(outlet, connection.clone(), id, item_bytes_max, &self.counters);
        self.produce(handler, connection.peer(), payload, sender);
        Ok(())
    }

    /// Lets a handler produce a stream. If it panics, the sender is dropped and the consumer told.
    pub(super) fn produce(
        self: &Arc<Self>,
        handler: Arc<dyn Handler>,
        from: NodeId,
        header: Bytes,
        sender: StreamSender,
    ) {
        let stop = self.stop.clone();
        self.spawn("transport.produce", async move {
            let work = AssertUnwindSafe(async move { handler.open(from, header, sender).await }).catch_unwind();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = work => {}
            }
        });
    }

    /// Ends a stream within this node when the transport stops, as a lost connection ends all others: its two ends may be
    /// in the hands of others, who wait for each other.
    pub(super) fn end_when_stopping(self: &Arc<Self>, inbox: Arc<Inbox>, outlet: Arc<Outlet>) {
        let stop = self.stop.clone();
        self.spawn("transport.stream", async move {
            tokio::select! {
                biased;
                () = outlet.ended() => {}
                () = stop.cancelled() => {
                    let stopping = Error::new(ErrorCode::NotReady, "the node is stopping");
                    inbox.end(Err(stopping.clone().with_applied(Applied::Unknown)));
                    outlet.close(stopping);
                }
            }
        });
    }
}

/// What a `Reply` or `End` says.
fn outcome(frame: Frame) -> Result<Bytes> {
    if frame.tag == OUTCOME_OK {
        return Ok(frame.payload);
    }
    Err(shoal_kernel::wire::decode(&frame.payload).unwrap_or_else(|error| {
        Error::from(error).with_applied(Applied::Unknown).context("the peer failed, unreadably")
    }))
}
