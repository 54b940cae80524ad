//! One connection: what is pending on it, its writer, its reader and its pulse.
//!
//! A connection exists before it is connected: calls and casts queue up while it is being dialled, and fail with it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{Buf, Bytes, BytesMut};
use shoal_kernel::env::{BoxStream, ByteStream};
use shoal_kernel::{Applied, Env, Error, ErrorCode, NodeId, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::config::TransportConfig;
use super::frame::{self, Decoded, Frame, Kind, OUTCOME_ERROR, OUTCOME_OK};
use super::handshake::Lane;
use super::hub::Hub;
use super::lock;
use super::outbound::{Claim, Outbound, Refused};
use super::route::Route;
use super::stats::{Counters, add};
use super::stream::{Inbox, Outlet};

/// Bytes read at once, at least.
const READ_BYTES: usize = 64 << 10;
/// Payloads up to this size are copied together into one write.
const GATHERED_BYTES_MAX: usize = 32 << 10;

/// Who opened a connection. The dialler asks; the acceptor answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Dialler,
    Acceptor,
}

struct PendingCall {
    answer: oneshot::Sender<Result<Bytes>>,
    claim: Arc<Claim>,
}

#[derive(Default)]
struct Tables {
    // Set once, before anything is failed: why the connection is closed.
    closed: Option<Error>,
    next_id: u64,
    calls: BTreeMap<u64, PendingCall>,
    inboxes: BTreeMap<u64, Arc<Inbox>>,
    outlets: BTreeMap<u64, Arc<Outlet>>,
}

pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) lane: Lane,
    pub(super) role: Role,
    pub(super) outbound: Outbound,
    pub(super) up: CancellationToken,
    pub(super) closed: CancellationToken,
    peer: OnceLock<NodeId>,
    // Dialled by address, to join: nobody will miss it when it is idle.
    passing: bool,
    tables: Mutex<Tables>,
    env: Env,
    counters: Arc<Counters>,
    frame_bytes_max: usize,
    checks_frames: bool,
    pub(super) grants_credit: bool,
    streams_max: usize,
    calls_max: usize,
    // Counts reads that brought bytes.
    heard: AtomicU64,
    // Counts writes that took bytes.
    taken: AtomicU64,
    writing: AtomicBool,
}

impl Connection {
    pub(super) fn new(
        env: &Env,
        config: &TransportConfig,
        counters: &Arc<Counters>,
        number: u64,
        lane: Lane,
        role: Role,
        peer: Option<NodeId>,
    ) -> Self {
        let cell = OnceLock::new();
        if let Some(peer) = peer {
            let _ = cell.set(peer);
        }
        Self {
            number,
            lane,
            role,
            outbound: Outbound::new(config.outbound_bytes_max),
            up: CancellationToken::new(),
            closed: CancellationToken::new(),
            peer: cell,
            passing: role == Role::Dialler && peer.is_none(),
            tables: Mutex::default(),
            env: env.clone(),
            counters: counters.clone(),
            frame_bytes_max: config.frame_bytes_max,
            checks_frames: config.checks_frames,
            grants_credit: config.grants_credit,
            streams_max: config.streams_max,
            calls_max: config.calls_max,
            heard: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            writing: AtomicBool::new(false),
        }
    }

    /// The node at the other end; the zero id until it is known.
    pub(super) fn peer(&self) -> NodeId {
        self.peer.get().copied().unwrap_or_default()
    }

    /// The handshake is done.
    pub(super) fn set_up(&self, peer: NodeId) {
        let _ = self.peer.set(peer);
        self.up.cancel();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Reads that brought something.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Nothing is pending or queued.
    pub(super) fn is_idle(&self) -> bool {
        let tables = lock(&self.tables);
        tables.calls.is_empty() && tables.inboxes.is_empty() && tables.outlets.is_empty()
    }

    /// Why it is closed.
    pub(super) fn lost(&self) -> Error {
        let reason = lock(&self.tables).closed.clone();
        reason.unwrap_or_else(|| Error::new(ErrorCode::NodeLost, "the connection is closing"))
    }

    /// Fails everything that is pending and lets the connection's tasks end. The first reason stays.
    pub(super) fn close(&self, reason: Error) {
        let pending = {
            let mut tables = lock(&self.tables);
            if tables.closed.is_some() {
                return;
            }
            tables.closed = Some(reason.clone());
            let calls = std::mem::take(&mut tables.calls);
            let inboxes = std::mem::take(&mut tables.inboxes);
            let outlets = std::mem::take(&mut tables.outlets);
            (calls, inboxes, outlets)
        };
        add(&self.counters.casts_dropped, self.outbound.close());
        let (calls, inboxes, outlets) = pending;
        for call in calls.into_values() {
            let applied = if call.claim.abandon() { Applied::False } else { Applied::Unknown };
            let _ = call.answer.send(Err(reason.clone().with_applied(applied)));
        }
        for inbox in inboxes.into_values() {
            inbox.end(Err(reason.clone().with_applied(Applied::Unknown)));
        }
        for outlet in outlets.into_values() {
            outlet.close(reason.clone());
        }
        self.closed.cancel();
    }

    /// Sends a frame that cannot wait.
    pub(super) fn say(&self, frame: Frame) {
        if self.outbound.push_urgent(frame) == Err(Refused::Full) {
            self.close(Error::new(ErrorCode::NodeLost, format!("{} sends without reading", self.peer())));
        }
    }

    /// The frame of a `Reply` or `End`.
    pub(super) fn outcome(&self, kind: Kind, id: u64, result: Result<Bytes>) -> Frame {
        let max = frame::payload_bytes_max(self.frame_bytes_max);
        let result = match result {
            Ok(payload) if payload.len() > max => {
                Err(frame::too_large("an answer", payload.len(), self.frame_bytes_max).with_applied(Applied::Unknown))
            }
            other => other,
        };
        match result {
            Ok(payload) => Frame::new(kind, OUTCOME_OK, id, payload),
            Err(error) => {
                // An error is plain data and always encodes; were that to change, the peer reports an unreadable error.
                let mut payload = shoal_kernel::wire::encode(&error).unwrap_or_default();
                if payload.len() > max {
                    let short = Error::new(error.code(), "(message too long)").with_applied(error.applied());
                    payload = shoal_kernel::wire::encode(&short).unwrap_or_default();
                }
                Frame::new(kind, OUTCOME_ERROR, id, payload.into())
            }
        }
    }

    /// Sends a call and waits for its answer. Dropping the future gives the answer up.
    pub(super) async fn call(&self, route: Route, message: Bytes, claim: Arc<Claim>) -> Result<Bytes> {
        if message.len() > frame::payload_bytes_max(self.frame_bytes_max) {
            return Err(frame::too_large("a call", message.len(), self.frame_bytes_max));
        }
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut tables = lock(&self.tables);
            if let Some(reason) = &tables.closed {
                return Err(reason.clone());
            }
            if tables.calls.len() >= self.calls_max {
                return Err(Error::new(
                    ErrorCode::Overloaded,
                    format!("{} calls to {} are in flight (calls_max)", self.calls_max, self.peer()),
                ));
            }
            tables.next_id += 1;
            let id = tables.next_id;
            tables.calls.insert(id, PendingCall { answer, claim: claim.clone() });
            id
        };
        let _forget = ForgetCall { connection: self, id };
        // A refusal means that the connection was closed, which has failed the call already.
        let _ = self.outbound.push(Frame::new(Kind::Call, route as u8, id, message), Some(claim)).await;
        answered.await.unwrap_or_else(|_| Err(self.lost().with_applied(Applied::Unknown)))
    }

    /// Opens a stream: returns its id and inbox when the connection is up and the request is queued.
    pub(super) async fn open(&self, route: Route, header: &[u8], window_bytes: u32) -> Result<(u64, Arc<Inbox>)> {
        if header.len() + 4 > frame::payload_bytes_max(self.frame_bytes_max) {
            return Err(frame::too_large("the header of a stream", header.len(), self.frame_bytes_max));
        }
        tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(self.lost()),
            () = self.up.cancelled() => {}
        }
        let inbox = Arc::new(Inbox::new(window_bytes));
        let id = {
            let mut tables = lock(&self.tables);
            if let Some(reason) = &tables.closed {
                return Err(reason.clone());
            }
            if tables.inboxes.len() >= self.streams_max {
                return Err(self.too_many_streams());
            }
            tables.next_id += 1;
            let id = tables.next_id;
            tables.inboxes.insert(id, inbox.clone());
            id
        };
        let mut payload = Vec::with_capacity(4 + header.len());
        payload.extend_from_slice(&window_bytes.to_le_bytes());
        payload.extend_from_slice(header);
        let forget = ForgetInbox { connection: self, id };
        let pushed = self.outbound.push(Frame::new(Kind::Open, route as u8, id, payload.into()), None).await;
        pushed.map_err(|_| self.lost())?;
        std::mem::forget(forget);
        Ok((id, inbox))
    }

    pub(super) fn too_many_streams(&self) -> Error {
        Error::new(
            ErrorCode::Overloaded,
            format!("{} streams with {} are open (streams_max)", self.streams_max, self.peer()),
        )
    }

    pub(super) fn forget_inbox(&self, id: u64) {
        lock(&self.tables).inboxes.remove(&id);
    }

    /// Returns whether it was there: whether the consumer still waits for an end.
    pub(super) fn forget_outlet(&self, id: u64) -> bool {
        lock(&self.tables).outlets.remove(&id).is_some()
    }

    /// Notes a stream that the peer wants produced.
    pub(super) fn add_outlet(&self, id: u64, outlet: Arc<Outlet>) -> Result<(), AddOutlet> {
        let mut tables = lock(&self.tables);
        if tables.closed.is_some() {
            return Err(AddOutlet::Closed);
        }
        if tables.outlets.contains_key(&id) {
            return Err(AddOutlet::Twice);
        }
        if tables.outlets.len() >= self.streams_max {
            return Err(AddOutlet::TooMany);
        }
        tables.outlets.insert(id, outlet);
        Ok(())
    }

    pub(super) fn outlet(&self, id: u64) -> Option<Arc<Outlet>> {
        lock(&self.tables).outlets.get(&id).cloned()
    }

    pub(super) fn inbox(&self, id: u64) -> Option<Arc<Inbox>> {
        lock(&self.tables).inboxes.get(&id).cloned()
    }

    /// Hands an answer to its caller. Returns whether one was waiting.
    pub(super) fn answer(&self, id: u64, result: Result<Bytes>) -> bool {
        let call = lock(&self.tables).calls.remove(&id);
        call.is_some_and(|call| call.answer.send(result).is_ok())
    }
}

/// Why a stream cannot be produced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddOutlet {
    Closed,
    Twice,
    TooMany,
}

struct ForgetCall<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for ForgetCall<'_> {
    fn drop(&mut self) {
        if let Some(call) = lock(&self.connection.tables).calls.remove(&self.id) {
            call.claim.abandon();
        }
    }
}

struct ForgetInbox<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for ForgetInbox<'_> {
    fn drop(&mut self) {
        self.connection.forget_inbox(self.id);
    }
}

/// An error of a connection that was up.
pub(super) fn lost(peer: NodeId, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::NodeLost, format!("the connection to {peer} was lost: {why}"))
}

/// Runs a connection that is up until it is closed, for whatever reason.
pub(super) async fn run(hub: &Arc<Hub>, connection: &Arc<Connection>, stream: BoxStream) {
    let (reader, writer) = tokio::io::split(stream);
    let writing = {
        let connection = connection.clone();
        hub.spawn("transport.write", async move {
            let ended = tokio::select! {
                biased;
                () = connection.closed.cancelled() => return,
                ended = write(&connection, writer) => ended,
            };
            if let Err(error) = ended {
                connection.close(lost(connection.peer(), error));
            }
        })
    };
    let reason = tokio::select! {
        biased;
        () = connection.closed.cancelled() => connection.lost(),
        reason = pulse(hub, connection) => reason,
        reason = read(hub, connection, reader) => reason,
    };
    connection.close(reason);
    writing.join().await;
}

/// Pings a silent peer; returns when it has been silent, or has not taken a byte, for too long, or is not needed.
///
/// Silence is counted in ticks and not by the clock: when this process was held up itself, the reader gets its turn before
/// the peer is judged.
async fn pulse(hub: &Arc<Hub>, connection: &Connection) -> Error {
    let ticks_max = hub.config.ping_timeout_ms.div_ceil(hub.config.ping_every_ms);
    let (mut silent, mut stuck, mut idle) = (0, 0, 0);
    let (mut heard_before, mut taken_before) = (0, 0);
    let mut pings = 0;
    loop {
        connection.env.sleep(hub.config.ping_every()).await;
        let (heard, taken) = (connection.heard.load(Ordering::Relaxed), connection.taken.load(Ordering::Relaxed));
        let writing = connection.writing.load(Ordering::Relaxed);
        silent = if heard != heard_before { 0 } else { silent + 1 };
        stuck = if taken != taken_before || !writing { 0 } else { stuck + 1 };
        idle = if connection.passing && connection.is_idle() { idle + 1 } else { 0 };
        (heard_before, taken_before) = (heard, taken);
        if silent > ticks_max {
            return lost(connection.peer(), "silent for too long (ping_timeout_ms)");
        }
        if stuck > ticks_max {
            return lost(connection.peer(), "it takes no more bytes (ping_timeout_ms)");
        }
        if idle > ticks_max {
            return lost(connection.peer(), "not needed any more");
        }
        if silent > 0 {
            pings += 1;
            connection.outbound.ping(pings);
        }
    }
}

async fn write(connection: &Connection, mut writer: WriteHalf<BoxStream>) -> std::io::Result<()> {
    let mut gathered = BytesMut::new();
    while let Some(batch) = connection.outbound.batch().await {
        connection.writing.store(true, Ordering::Relaxed);
        for entry in batch {
            if entry.claim.as_ref().is_none_or(|claim| claim.write()) {
                entry.frame.put_header(&mut gathered);
                add(&connection.counters.frames_out, 1);
                if entry.frame.payload.len() <= GATHERED_BYTES_MAX {
                    gathered.extend_from_slice(&entry.frame.payload);
                } else {
                    write_all(connection, &mut writer, Buf::chain(&gathered[..], &entry.frame.payload[..])).await?;
                    gathered.clear();
                }
            }
            connection.outbound.written(&entry);
        }
        write_all(connection, &mut writer, &gathered[..]).await?;
        gathered.clear();
        writer.flush().await?;
        connection.writing.store(false, Ordering::Relaxed);
    }
    Ok(())
}

async fn write_all(
    connection: &Connection,
    writer: &mut WriteHalf<impl ByteStream>,
    mut bytes: impl Buf,
) -> std::io::Result<()> {
    while bytes.has_remaining() {
        let written = writer.write_buf(&mut bytes).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        add(&connection.taken, 1);
        add(&connection.counters.bytes_out, written as u64);
    }
    Ok(())
}

async fn read(hub: &Arc<Hub>, connection: &Arc<Connection>, mut reader: ReadHalf<BoxStream>) -> Error {
    let mut buffer = BytesMut::new();
    loop {
        let missing = loop {
            match frame::decode(&mut buffer, connection.frame_bytes_max, connection.checks_frames) {
                Ok(Decoded::Missing(bytes)) => break bytes,
                Ok(Decoded::Frame(frame)) => {
                    add(&connection.counters.frames_in, 1);
                    if let Err(violation) = hub.hear(connection, frame) {
                        add(&connection.counters.protocol_errors, 1);
                        return lost(connection.peer(), violation);
                    }
                }
                Err(error) => {
                    add(&connection.counters.protocol_errors, 1);
                    return lost(connection.peer(), error);
                }
            }
        };
        buffer.reserve(missing.max(READ_BYTES));
        match reader.read_buf(&mut buffer).await {
            Ok(0) => return lost(connection.peer(), "closed by the peer"),
            Ok(bytes) => {
                add(&connection.heard, 1);
                add(&connection.counters.bytes_in, bytes as u64);
            }
            Err(error) => return lost(connection.peer(), error),
        }
    }
}
