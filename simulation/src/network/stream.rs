//! Streams: in order and whole, or broken; never told of a cut.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use shoal_kernel::Rare;
use shoal_kernel::env::{BoxStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use xxhash_rust::xxh3::xxh3_64;

use super::deliver;
use crate::random::Stream;
use crate::trace::Kind;
use crate::world::{Action, Core, HostId, Shared, Target};

/// Bytes that one end may have sent and the other not yet read.
const WINDOW_BYTES: usize = 256 << 10;
/// Bytes read after which the sender is told.
const ACKNOWLEDGE_BYTES: usize = 32 << 10;
/// Streams that wait to be accepted; further ones are refused.
const BACKLOG_MAX: usize = 128;
/// One in so many writes takes only a part, as a socket may: framing must not lean on whole writes.
const SHORT_WRITE_ONE_IN: u64 = 64;
/// After a cut has been mended, or a host is back: the sender's next attempt comes within this time.
const RESEND_MICROS_MAX: u64 = 800_000;

/// An end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The end that connected.
    Near,
    /// The end that accepted.
    Far,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }
}

enum Segment {
    Data(Bytes),
    /// That many bytes have been read.
    Acknowledge(usize),
    /// No more data follows.
    Finish,
    /// The stream is broken.
    Reset,
}

/// One end: what has arrived for it, and what it has sent.
struct End {
    host: HostId,
    life: u64,
    arrived: VecDeque<Bytes>,
    finished: bool,
    broken: bool,
    /// The owner has dropped it, or died.
    closed: bool,
    read_since_acknowledged: usize,
    in_flight: usize,
    sent_finish: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Segments overtake nothing: the last one's arrival at the other end.
    last_arrival_micros: u64,
    /// Waits for the link to be whole. With each segment, the lines that the trace had when it was sent.
    held: VecDeque<(u64, Segment)>,
}

impl End {
    fn new(host: HostId, life: u64) -> Self {
        Self {
            host,
            life,
            arrived: VecDeque::new(),
            finished: false,
            broken: false,
            closed: false,
            read_since_acknowledged: 0,
            in_flight: 0,
            sent_finish: false,
            reader: None,
            writer: None,
            last_arrival_micros: 0,
            held: VecDeque::new(),
        }
    }
}

/// Both ends.
pub(super) struct Connection {
    near: End,
    far: End,
}

impl Connection {
    pub(super) fn is_held(&self) -> bool {
        !self.near.closed || !self.far.closed
    }

    fn end(&mut self, side: Side) -> &mut End {
        match side {
            Side::Near => &mut self.near,
            Side::Far => &mut self.far,
        }
    }
}

/// Streams that wait to be accepted.
#[derive(Default)]
pub(super) struct Backlog {
    waiting: VecDeque<(u64, SocketAddr)>,
    acceptor: Option<Waker>,
}

/// Puts a new stream into the backlog of whoever listens. Runs when the request has reached the far host.
pub(super) fn open(core: &mut Core, host: HostId, life: u64, address: SocketAddr) -> io::Result<u64> {
    let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
    let peer = HostId::of(address).ok_or_else(refused)?;
    let peer_life = core.hosts.get(peer.index()).map_or(0, |state| state.life);
    let number = core.network.connections_made + 1;
    let port = core.network.port(host);
    let backlog = core.network.listeners.get_mut(&address).ok_or_else(refused)?;
    if backlog.waiting.len() >= BACKLOG_MAX {
        return Err(refused());
    }
    backlog.waiting.push_back((number, host.address(port)));
    let acceptor = backlog.acceptor.take();
    core.network.connections_made = number;
    core.network.connections.insert(number, Connection { near: End::new(host, life), far: End::new(peer, peer_life) });
    core.trace(Kind::Network, format_args!("{host} opens tcp#{number} to {peer} port {}", address.port()));
    if let Some(acceptor) = acceptor {
        let now = core.now_micros;
        core.schedule(now, Target::Host { host: peer, life: peer_life }, Action::Wake(acceptor));
    }
    Ok(number)
}

fn send(shared: &Arc<Shared>, core: &mut Core, number: u64, side: Side, segment: Segment) {
    let after = core.trace_lines();
    send_again(shared, core, number, side, (after, segment));
}

/// As [`send`], for a segment that was first sent when the trace had so many lines.
fn send_again(shared: &Arc<Shared>, core: &mut Core, number: u64, side: Side, (after, mut segment): (u64, Segment)) {
    let now = core.now_micros;
    let Some(connection) = core.network.connections.get_mut(&number) else { return };
    let to = connection.end(side.other()).host;
    let end = connection.end(side);
    let from = end.host;
    let Some(link) = core.network.links.get_mut(&(from, to)) else { return };
    // What waits keeps its order: nothing passes by.
    if link.cuts > 0 || !end.held.is_empty() {
        let bytes = if let Segment::Data(bytes) = &segment { bytes.len() } else { 0 };
        end.held.push_back((after, segment));
        if bytes > 0 {
            core.sometimes(Rare::StreamHeld);
            core.trace(Kind::Network, format_args!("{from} -> {to} tcp#{number} {bytes} B wait @{after}"));
        }
        return;
    }
    let bytes = if let Segment::Data(bytes) = &segment { bytes.len() } else { 0 };
    let mut transit = link.transit_micros(now, bytes);
    let mut corrupted = false;
    if let Segment::Data(bytes) = &mut segment
        && !bytes.is_empty()
        && link.corruption.chance(link.faults.corrupt_permille)
    {
        let mut wrong = bytes.to_vec();
        let bit = link.corruption.below(wrong.len() as u64 * 8);
        // Below the length by the draw.
        wrong[(bit / 8) as usize] ^= 1 << (bit % 8);
        *bytes = wrong.into();
        corrupted = true;
    }
    if link.loss.chance(link.faults.loss_permille) {
        // A lost segment is sent again after a time-out.
        transit += 200_000;
    }
    let at = (now + transit).max(end.last_arrival_micros);
    end.last_arrival_micros = at;
    if corrupted {
        core.sometimes(Rare::FrameCorrupted);
    }
    let shared = shared.clone();
    deliver(core, to, at, move || arrive(&shared, number, side.other(), segment, after));
}

/// A segment reaches an end. Runs on that end's host.
fn arrive(shared: &Arc<Shared>, number: u64, side: Side, segment: Segment, after: u64) {
    let mut core = shared.core();
    let Some(connection) = core.network.connections.get_mut(&number) else { return };
    let from = connection.end(side.other()).host;
    let end = connection.end(side);
    let to = end.host;
    let (mut wake_reader, mut wake_writer, mut answer) = (false, false, None);
    match &segment {
        Segment::Data(bytes) => {
            if end.closed || end.broken {
                answer = (!end.broken).then_some(Segment::Reset);
                end.broken = true;
            } else {
                end.arrived.push_back(bytes.clone());
                wake_reader = true;
            }
        }
        Segment::Acknowledge(read) => {
            end.in_flight = end.in_flight.saturating_sub(*read);
            wake_writer = true;
        }
        Segment::Finish => {
            end.finished = true;
            wake_reader = true;
        }
        Segment::Reset => {
            end.broken = true;
            (wake_reader, wake_writer) = (true, true);
        }
    }
    let reader = if wake_reader { end.reader.take() } else { None };
    let writer = if wake_writer { end.writer.take() } else { None };
    match &segment {
        Segment::Data(bytes) => {
            let hash = xxh3_64(bytes);
            core.trace(
                Kind::Network,
                format_args!("{from} -> {to} tcp#{number} {} B {hash:016x} @{after}", bytes.len()),
            );
        }
        Segment::Acknowledge(_) => {}
        Segment::Finish => core.trace(Kind::Network, format_args!("{from} -> {to} tcp#{number} ends @{after}")),
        Segment::Reset => core.trace(Kind::Network, format_args!("{from} -> {to} tcp#{number} resets @{after}")),
    }
    if let Some(answer) = answer {
        send(shared, &mut core, number, side, answer);
    }
    forget_if_over(&mut core, number);
    drop(core);
    for waker in [reader, writer].into_iter().flatten() {
        waker.wake();
    }
}

fn forget_if_over(core: &mut Core, number: u64) {
    let over = core.network.connections.get(&number).is_some_and(|connection| {
        let done = |end: &End| end.closed && (end.broken || end.finished);
        done(&connection.near) && done(&connection.far)
    });
    if over {
        core.network.connections.remove(&number);
    }
}

/// A link is whole again: what waited is sent, each stream at its own next attempt.
pub(super) fn resume(shared: &Arc<Shared>, core: &mut Core, from: HostId, to: HostId) {
    let waiting: Vec<(u64, Side)> = core
        .network
        .connections
        .iter()
        .flat_map(|(number, connection)| {
            [
                (*number, Side::Near, &connection.near, &connection.far),
                (*number, Side::Far, &connection.far, &connection.near),
            ]
        })
        .filter(|(_, _, end, other)| end.host == from && other.host == to && !end.held.is_empty())
        .map(|(number, side, _, _)| (number, side))
        .collect();
    for (number, side) in waiting {
        let at = core.now_micros + resend_micros(core.seed, number, core.now_micros);
        let shared = shared.clone();
        core.schedule(
            at,
            Target::World,
            Action::Run(Box::new(move || {
                let mut core = shared.core();
                let held = match core.network.connections.get_mut(&number) {
                    Some(connection) => std::mem::take(&mut connection.end(side).held),
                    None => return,
                };
                for segment in held {
                    send_again(&shared, &mut core, number, side, segment);
                }
            })),
        );
    }
}

fn resend_micros(seed: u64, number: u64, now_micros: u64) -> u64 {
    Stream::new(seed ^ now_micros, "stream resend", number).below(RESEND_MICROS_MAX)
}

/// The ends of a host that went down have no owner any more. What they had not delivered is gone with them.
pub(super) fn abandon(core: &mut Core, host: HostId) {
    for connection in core.network.connections.values_mut() {
        for side in [Side::Near, Side::Far] {
            let end = connection.end(side);
            if end.host == host {
                (end.closed, end.broken) = (true, true);
                end.held.clear();
                end.arrived.clear();
                (end.reader, end.writer) = (None, None);
            }
        }
    }
    let over: Vec<u64> = core.network.connections.keys().copied().collect();
    over.into_iter().for_each(|number| forget_if_over(core, number));
}

/// Tells the other ends of abandoned streams of a host that they are broken.
pub(super) fn reset_stale(shared: &Arc<Shared>, core: &mut Core, host: HostId) {
    break_where(shared, core, |end, other| end.host == host && end.closed && end.broken && !other.broken);
}

/// Breaks every stream between two hosts, at both ends.
pub(super) fn reset_between(shared: &Arc<Shared>, core: &mut Core, one: HostId, other: HostId) {
    break_where(shared, core, |end, peer| {
        (end.host, peer.host) == (one, other) || (end.host, peer.host) == (other, one)
    });
}

fn break_where(shared: &Arc<Shared>, core: &mut Core, wanted: impl Fn(&End, &End) -> bool) {
    let breaking: Vec<(u64, Side)> = core
        .network
        .connections
        .iter()
        .flat_map(|(number, connection)| {
            let near = wanted(&connection.near, &connection.far).then_some((*number, Side::Near));
            let far = wanted(&connection.far, &connection.near).then_some((*number, Side::Far));
            [near, far].into_iter().flatten()
        })
        .collect();
    for (number, side) in breaking {
        send(shared, core, number, side, Segment::Reset);
    }
}

/// An end in the hands of its owner.
pub(super) struct SimStream {
    shared: Arc<Shared>,
    number: u64,
    side: Side,
}

impl SimStream {
    pub(super) fn new(shared: Arc<Shared>, number: u64, side: Side) -> Self {
        Self { shared, number, side }
    }
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (number, side) = (self.number, self.side);
        let mut core = self.shared.core();
        let Some(connection) = core.network.connections.get_mut(&number) else { return Poll::Ready(Err(broken())) };
        let end = connection.end(side);
        let before = buffer.remaining();
        while buffer.remaining() > 0
            && let Some(first) = end.arrived.front_mut()
        {
            let part = first.len().min(buffer.remaining());
            buffer.put_slice(&first[..part]);
            first.advance(part);
            if first.is_empty() {
                end.arrived.pop_front();
            }
        }
        let read = before - buffer.remaining();
        if read == 0 && before > 0 {
            if end.broken {
                return Poll::Ready(Err(broken()));
            }
            if end.finished {
                return Poll::Ready(Ok(()));
            }
            end.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        end.read_since_acknowledged += read;
        if end.read_since_acknowledged >= ACKNOWLEDGE_BYTES {
            let read = std::mem::take(&mut end.read_since_acknowledged);
            send(&self.shared, &mut core, number, side, Segment::Acknowledge(read));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (number, side) = (self.number, self.side);
        let mut core = self.shared.core();
        let Some(connection) = core.network.connections.get_mut(&number) else { return Poll::Ready(Err(broken())) };
        let to = connection.end(side.other()).host;
        let end = connection.end(side);
        let (from, life) = (end.host, end.life);
        if end.broken || end.sent_finish {
            return Poll::Ready(Err(broken()));
        }
        let room = WINDOW_BYTES.saturating_sub(end.in_flight).min(bytes.len());
        if room == 0 && !bytes.is_empty() {
            end.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        if !core.lives(from, life) {
            return Poll::Ready(Err(broken()));
        }
        let mut len = room;
        if let Some(link) = core.network.links.get_mut(&(from, to))
            && link.splits.below(SHORT_WRITE_ONE_IN) == 0
            && room > 1
        {
            len = usize::try_from(link.splits.between(1, room as u64)).unwrap_or(room);
        }
        if let Some(connection) = core.network.connections.get_mut(&number) {
            connection.end(side).in_flight += len;
        }
        let segment = Segment::Data(Bytes::copy_from_slice(&bytes[..len]));
        send(&self.shared, &mut core, number, side, segment);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut core = self.shared.core();
        finish(&self.shared, &mut core, self.number, self.side);
        Poll::Ready(Ok(()))
    }
}

fn finish(shared: &Arc<Shared>, core: &mut Core, number: u64, side: Side) {
    let Some(connection) = core.network.connections.get_mut(&number) else { return };
    let end = connection.end(side);
    let (host, life, wanted) = (end.host, end.life, !end.sent_finish && !end.broken);
    if wanted {
        end.sent_finish = true;
    }
    if wanted && core.lives(host, life) {
        send(shared, core, number, side, Segment::Finish);
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let shared = self.shared.clone();
        let mut core = shared.core();
        let Some(connection) = core.network.connections.get_mut(&self.number) else { return };
        let end = connection.end(self.side);
        let (host, life) = (end.host, end.life);
        end.closed = true;
        let unread = !end.arrived.is_empty();
        let wakers = (end.reader.take(), end.writer.take());
        if core.lives(host, life) {
            if unread {
                // As TCP does it: data that nobody read is an error to its sender.
                send(&shared, &mut core, self.number, self.side, Segment::Reset);
                if let Some(connection) = core.network.connections.get_mut(&self.number) {
                    connection.end(self.side).broken = true;
                }
            } else {
                finish(&shared, &mut core, self.number, self.side);
            }
        }
        forget_if_over(&mut core, self.number);
        drop(core);
        drop(wakers);
    }
}

/// A listening socket.
pub(super) struct SimListener {
    shared: Arc<Shared>,
    host: HostId,
    life: u64,
    address: SocketAddr,
}

impl SimListener {
    pub(super) fn new(shared: Arc<Shared>, host: HostId, life: u64, address: SocketAddr) -> Self {
        Self { shared, host, life, address }
    }
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&mut self) -> io::Result<(BoxStream, SocketAddr)> {
        poll_fn(|context| {
            let mut core = self.shared.core();
            let gone = || Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            if !core.lives(self.host, self.life) {
                return gone();
            }
            let Some(backlog) = core.network.listeners.get_mut(&self.address) else { return gone() };
            match backlog.waiting.pop_front() {
                Some((number, from)) => {
                    let stream: BoxStream = Box::new(SimStream::new(self.shared.clone(), number, Side::Far));
                    Poll::Ready(Ok((stream, from)))
                }
                None => {
                    backlog.acceptor = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        if !core.lives(self.host, self.life) {
            return;
        }
        let Some(backlog) = core.network.listeners.remove(&self.address) else { return };
        for (number, _) in backlog.waiting {
            send(&self.shared, &mut core, number, Side::Far, Segment::Reset);
            if let Some(connection) = core.network.connections.get_mut(&number) {
                (connection.far.closed, connection.far.broken) = (true, true);
            }
        }
    }
}
