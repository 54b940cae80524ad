//! Decoding the log after a start, on as many threads as there are, in order.
//!
//! Whoever opens the store goes through the frames one after the other. Others may help by decoding frames ahead of it; it
//! never waits for one that nobody has begun, so help that comes late or never costs nothing but time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use shoal_kernel::env::{Disk, DiskFile, OpenMode};
use shoal_kernel::{Error, Result};

use super::frame::{HEADER_BYTES, read_entries};
use super::recover::{FrameAt, Recovered};
use crate::damage::{corrupt, damaged};
use crate::layout::Layout;
use crate::rows::Incoming;

/// Bytes of frames that were begun and not yet applied, unless one alone has more: what is decoded takes several times that.
const AHEAD_BYTES_MAX: u64 = 16 << 20;

/// Reading the log back: to be watched, and to be helped with.
#[derive(Default)]
pub struct Replay {
    bytes_total: AtomicU64,
    bytes_done: AtomicU64,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// While frames are wanted.
    job: Option<Arc<Job>>,
    /// The first frame that nobody has begun.
    next: usize,
    /// Bytes of frames that helpers have begun, and that have not been applied.
    ahead_bytes: u64,
    decoded: BTreeMap<usize, Result<Vec<Incoming>>>,
}

struct Job {
    layout: Arc<Layout>,
    frames: Vec<(Arc<dyn DiskFile>, FrameAt)>,
}

impl Job {
    fn bytes(&self, number: usize) -> u64 {
        self.frames.get(number).map_or(0, |(_, frame)| frame.header.payload_bytes as u64)
    }

    fn decode(&self, number: usize) -> Result<Vec<Incoming>> {
        let (file, frame) = self.frames.get(number).ok_or_else(|| Error::internal("a frame beyond the last"))?;
        let header = &frame.header;
        let mut payload = vec![0; header.payload_bytes];
        let read = file.read_exact_at(&mut payload, frame.start + HEADER_BYTES as u64);
        let whole = read.map_err(Error::from).and_then(|()| match header.payload(&payload, &frame.salt) {
            Some(payload) => read_entries(&self.layout, &frame.columns, payload, header.entries),
            None => Err(corrupt("a record was whole before and now is not")),
        });
        let name = frame.path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        whole.map_err(|error| damaged(error, name, Some(frame.start)))
    }
}

impl Replay {
    /// Bytes of records that have been read back, and of all that are to be; both zero until that is known.
    pub fn progress(&self) -> (u64, u64) {
        (self.bytes_done.load(Ordering::Relaxed), self.bytes_total.load(Ordering::Relaxed))
    }

    /// Decodes records ahead of the one who opens the store, as long as there are any; returns at once if there are none.
    /// Blocks.
    pub fn help(&self) {
        while let Some(taken) = self.take() {
            let entries = taken.job.decode(taken.number);
            taken.give(entries);
        }
    }

    fn take(&self) -> Option<Taken<'_>> {
        let mut queue = self.lock();
        loop {
            let job = queue.job.clone().filter(|job| queue.next < job.frames.len())?;
            let (number, bytes) = (queue.next, job.bytes(queue.next));
            if queue.ahead_bytes == 0 || queue.ahead_bytes + bytes <= AHEAD_BYTES_MAX {
                queue.next += 1;
                queue.ahead_bytes += bytes;
                return Some(Taken { replay: self, job, number });
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn entries(&self, job: &Job, number: usize) -> Result<Vec<Incoming>> {
        let mut queue = self.lock();
        loop {
            if let Some(entries) = queue.decoded.remove(&number) {
                queue.ahead_bytes -= job.bytes(number);
                self.changed.notify_all();
                return entries;
            }
            if queue.next <= number {
                queue.next = number + 1;
                drop(queue);
                return job.decode(number);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frame in a helper's hands.
struct Taken<'a> {
    replay: &'a Replay,
    job: Arc<Job>,
    number: usize,
}

impl Taken<'_> {
    fn give(&self, entries: Result<Vec<Incoming>>) {
        let mut queue = self.replay.lock();
        if queue.job.is_some() {
            queue.decoded.entry(self.number).or_insert(entries);
        }
        drop(queue);
        self.replay.changed.notify_all();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Somebody waits for it.
            self.give(Err(Error::internal("decoding a record panicked")));
        }
    }
}

/// Lets helpers go, however the replay ends.
struct Ends<'a>(&'a Replay);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        *self.0.lock() = Queue::default();
        self.0.changed.notify_all();
    }
}

/// Hands out every record that was found, with its position, in order.
pub(crate) fn replay(
    replay: &Replay,
    disk: &Arc<dyn Disk>,
    layout: &Arc<Layout>,
    recovered: Recovered,
    mut deliver: impl FnMut(u64, Incoming) -> Result<()>,
) -> Result<()> {
    let mut files: BTreeMap<Arc<Path>, Arc<dyn DiskFile>> = BTreeMap::new();
    let mut frames = Vec::with_capacity(recovered.frames.len());
    for frame in recovered.frames {
        let file = match files.get(&frame.path) {
            Some(file) => file.clone(),
            None => disk.open(&frame.path, OpenMode::Read)?,
        };
        files.insert(frame.path.clone(), file.clone());
        frames.push((file, frame));
    }
    let job = Arc::new(Job { layout: layout.clone(), frames });
    replay.bytes_total.store((0..job.frames.len()).map(|number| job.bytes(number)).sum(), Ordering::Relaxed);
    let _ends = Ends(replay);
    replay.lock().job = Some(job.clone());
    for (number, (_, frame)) in job.frames.iter().enumerate() {
        let entries = replay.entries(&job, number)?;
        for (position, incoming) in (frame.header.first_position..).zip(entries) {
            deliver(position, incoming)?;
        }
        replay.bytes_done.fetch_add(job.bytes(number), Ordering::Relaxed);
    }
    Ok(())
}
