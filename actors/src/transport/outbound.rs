//! The bounded queue in front of a connection's writer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, Semaphore};

use super::frame::{Frame, Kind};
use super::lock;

/// Frames are handed to the writer in batches of about this size, to be written at once.
const BATCH_BYTES: usize = 256 << 10;

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The connection is closed.
    Closed,
    /// No room.
    Full,
}

/// Who decides about a queued call: the writer by writing it, or its caller by giving up. Tells afterwards whether the
/// peer can have seen it.
#[derive(Debug, Default)]
pub(super) struct Claim(AtomicU8);

impl Claim {
    const QUEUED: u8 = 0;
    const WRITTEN: u8 = 1;
    const ABANDONED: u8 = 2;

    fn settle(&self, to: u8) -> bool {
        let settled = self.0.compare_exchange(Self::QUEUED, to, Ordering::AcqRel, Ordering::Acquire);
        settled.is_ok() || settled == Err(to)
    }

    /// The writer is about to write it. False: do not.
    pub(super) fn write(&self) -> bool {
        self.settle(Self::WRITTEN)
    }

    /// Nobody waits any more. True: it was never written and never will be.
    pub(super) fn abandon(&self) -> bool {
        self.settle(Self::ABANDONED)
    }
}

pub(super) struct Entry {
    pub(super) frame: Frame,
    pub(super) claim: Option<Arc<Claim>>,
    // Places in `room` that the frame holds; none for frames that may not wait.
    places: usize,
}

struct State {
    queue: VecDeque<Entry>,
    bytes: usize,
    pong: Option<u64>,
    closed: bool,
}

pub(super) struct Outbound {
    state: Mutex<State>,
    // One place per byte. Fair: a large frame is not starved by small ones.
    room: Semaphore,
    ready: Notify,
    bytes_max: usize,
}

impl Outbound {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            state: Mutex::new(State { queue: VecDeque::new(), bytes: 0, pong: None, closed: false }),
            room: Semaphore::new(bytes_max),
            ready: Notify::new(),
            bytes_max,
        }
    }

    /// Queues a frame as soon as there is room. Dropping the future before it is done queues nothing. A frame larger than
    /// the whole queue passes when the queue is empty.
    pub(super) async fn push(&self, frame: Frame, claim: Option<Arc<Claim>>) -> Result<(), Refused> {
        let places = frame.wire_bytes().min(self.bytes_max);
        // Bounded by `TransportConfig::checked`.
        let permit = self.room.acquire_many(places as u32).await.map_err(|_| Refused::Closed)?;
        self.append(Entry { frame, claim, places })?;
        permit.forget();
        Ok(())
    }

    /// Queues a frame if there is room now.
    pub(super) fn try_push(&self, frame: Frame) -> Result<(), Refused> {
        let places = frame.wire_bytes().min(self.bytes_max);
        let permit = self.room.try_acquire_many(places as u32).map_err(|error| match error {
            tokio::sync::TryAcquireError::Closed => Refused::Closed,
            tokio::sync::TryAcquireError::NoPermits => Refused::Full,
        })?;
        self.append(Entry { frame, claim: None, places })?;
        permit.forget();
        Ok(())
    }

    /// Queues a frame that cannot wait. `Full` means that the peer makes us answer without reading: close the connection.
    pub(super) fn push_urgent(&self, frame: Frame) -> Result<(), Refused> {
        if lock(&self.state).bytes > 2 * self.bytes_max {
            return Err(Refused::Full);
        }
        self.append(Entry { frame, claim: None, places: 0 })
    }

    /// Queues the answer to a ping; one that is still queued is replaced.
    pub(super) fn pong(&self, id: u64) {
        lock(&self.state).pong = Some(id);
        self.ready.notify_one();
    }

    fn append(&self, entry: Entry) -> Result<(), Refused> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(Refused::Closed);
        }
        state.bytes += entry.frame.wire_bytes();
        state.queue.push_back(entry);
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// The next frames to write, in order; none when closed. There is one writer.
    pub(super) async fn batch(&self) -> Option<Vec<Entry>> {
        loop {
            {
                let mut state = lock(&self.state);
                if state.closed {
                    return None;
                }
                let mut batch = Vec::new();
                if let Some(id) = state.pong.take() {
                    let frame = Frame::bare(Kind::Pong, id);
                    state.bytes += frame.wire_bytes();
                    batch.push(Entry { frame, claim: None, places: 0 });
                }
                let mut bytes = 0;
                while bytes < BATCH_BYTES
                    && let Some(entry) = state.queue.pop_front()
                {
                    bytes += entry.frame.wire_bytes();
                    batch.push(entry);
                }
                if !batch.is_empty() {
                    return Some(batch);
                }
            }
            self.ready.notified().await;
        }
    }

    /// A frame of a batch is on its way: its room is free again.
    pub(super) fn written(&self, entry: &Entry) {
        let mut state = lock(&self.state);
        state.bytes = state.bytes.saturating_sub(entry.frame.wire_bytes());
        drop(state);
        self.room.add_permits(entry.places);
    }

    /// Refuses everything from now on and drops what is queued.
    pub(super) fn close(&self) {
        let dropped = {
            let mut state = lock(&self.state);
            state.closed = true;
            std::mem::take(&mut state.queue)
        };
        self.room.close();
        self.ready.notify_one();
        drop(dropped);
    }
}
