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

#[derive(Default)]
struct State {
    queue: VecDeque<Entry>,
    // Bytes of the frames in `queue` that hold no place.
    urgent_bytes: usize,
    ping: Option<u64>,
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
        Self { state: Mutex::default(), room: Semaphore::new(bytes_max), ready: Notify::new(), bytes_max }
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
        if lock(&self.state).urgent_bytes > self.bytes_max {
            return Err(Refused::Full);
        }
        self.append(Entry { frame, claim: None, places: 0 })
    }

    /// Queues a ping; one that is still queued is replaced.
    pub(super) fn ping(&self, id: u64) {
        lock(&self.state).ping = Some(id);
        self.ready.notify_one();
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
        if entry.places == 0 {
            state.urgent_bytes += entry.frame.wire_bytes();
        }
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
                let (ping, pong) = (state.ping.take(), state.pong.take());
                let pulse = [(Kind::Ping, ping), (Kind::Pong, pong)];
                for (kind, id) in pulse.into_iter().filter_map(|(kind, id)| Some((kind, id?))) {
                    batch.push(Entry { frame: Frame::bare(kind, id), claim: None, places: 0 });
                }
                let mut bytes = 0;
                while bytes < BATCH_BYTES
                    && let Some(entry) = state.queue.pop_front()
                {
                    bytes += entry.frame.wire_bytes();
                    if entry.places == 0 {
                        state.urgent_bytes -= entry.frame.wire_bytes();
                    }
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
        self.room.add_permits(entry.places);
    }

    /// Refuses everything from now on and drops what is queued. Returns the number of casts among it, of which nobody else
    /// learns.
    pub(super) fn close(&self) -> u64 {
        let dropped = {
            let mut state = lock(&self.state);
            state.closed = true;
            std::mem::take(&mut state.queue)
        };
        self.room.close();
        self.ready.notify_one();
        dropped.iter().filter(|entry| entry.frame.kind == Kind::Cast).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures::FutureExt;

    use super::*;

    fn frame(bytes: usize) -> Frame {
        Frame::new(Kind::Cast, 0, 0, Bytes::from(vec![0; bytes]))
    }

    fn take(outbound: &Outbound) -> Vec<Entry> {
        outbound.batch().now_or_never().flatten().unwrap_or_default()
    }

    #[test]
    fn casts_are_refused_and_calls_wait_when_full() {
        let outbound = Outbound::new(1024);
        outbound.try_push(frame(900)).unwrap();
        assert_eq!(outbound.try_push(frame(200)), Err(Refused::Full));
        let mut waiting = Box::pin(outbound.push(frame(200), None));
        assert!(waiting.as_mut().now_or_never().is_none());
        for entry in take(&outbound) {
            outbound.written(&entry);
        }
        assert_eq!(waiting.now_or_never(), Some(Ok(())));
        outbound.close();
        assert_eq!(outbound.try_push(frame(1)), Err(Refused::Closed));
        assert!(outbound.batch().now_or_never().is_some_and(|batch| batch.is_none()));
    }

    #[test]
    fn a_giant_passes_alone_and_urgent_frames_pass_it() {
        let outbound = Outbound::new(1024);
        assert_eq!(outbound.push(frame(100_000), None).now_or_never(), Some(Ok(())));
        assert!(outbound.push(frame(1), None).now_or_never().is_none());
        assert_eq!(outbound.push_urgent(frame(100)), Ok(()));
        outbound.ping(1);
        outbound.pong(1);
        outbound.pong(2);
        let kinds: Vec<_> = take(&outbound).iter().map(|entry| (entry.frame.kind, entry.frame.id)).collect();
        assert_eq!(kinds, [(Kind::Ping, 1), (Kind::Pong, 2), (Kind::Cast, 0), (Kind::Cast, 0)]);
    }

    #[test]
    fn urgent_frames_have_a_bound_too() {
        let outbound = Outbound::new(1024);
        let queued = (0..100).take_while(|_| outbound.push_urgent(frame(100)).is_ok()).count();
        assert!((5..15).contains(&queued), "{queued}");
        take(&outbound);
        assert_eq!(outbound.push_urgent(frame(100)), Ok(()));
    }

    #[test]
    fn a_dropped_push_queues_nothing_and_keeps_no_room() {
        let outbound = Outbound::new(1024);
        outbound.try_push(frame(1000)).unwrap();
        let mut given_up = Box::pin(outbound.push(frame(1000), None));
        assert!(given_up.as_mut().now_or_never().is_none());
        drop(given_up);
        for entry in take(&outbound) {
            outbound.written(&entry);
        }
        assert_eq!(outbound.room.available_permits(), 1024);
        assert!(take(&outbound).is_empty());
    }

    #[test]
    fn writer_and_caller_agree_on_what_was_sent() {
        let sent = Claim::default();
        assert!(sent.write());
        assert!(!sent.abandon());
        let abandoned = Claim::default();
        assert!(abandoned.abandon() && abandoned.abandon());
        assert!(!abandoned.write());
    }
}
