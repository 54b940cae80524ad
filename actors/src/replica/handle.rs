//! A replica as the rest of its node sees it: one handle for the life of the replica's place on the node, whatever happens
//! to the actor behind it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ractor::ActorRef;
use shoal_kernel::{Epoch, Error, ErrorCode, LogId, NodeId, PartitionId, Planted, Result, ScanSpec, Version};
use shoal_storage::{Snapshot, Store};
use tokio::sync::{OwnedSemaphorePermit, RwLock, Semaphore, SemaphorePermit, oneshot};

pub(crate) use super::asked::Asked;
use super::message::{CoreReport, MaintenanceTask, Promised, RecentAnswer, ReplicaMessage, Written};
use super::promises::Reserved;
use super::replicator::Feed;
use crate::room::Room;
use crate::service::NodeConfig;

/// Tasks that one replica may have been asked for and not have carried out.
const MAINTENANCE_WAITING_MAX: usize = 16;

/// The actor of the moment and its store.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) actor: ActorRef<ReplicaMessage>,
    pub(crate) store: Arc<Store>,
    pub(super) feed: Feed,
}

impl Running {
    /// Says that reading this store has failed. If it is damaged, the actor takes the replica out of service and fills it
    /// anew from its peers. A later life of the replica has another store, and is not blamed for this one.
    pub(crate) fn blame(&self, error: &Error) {
        if error.code() == ErrorCode::Corruption {
            let _ = self.actor.cast(ReplicaMessage::Damaged(error.clone()));
        }
    }
}

/// How far a replica is that is being filled by files.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fetching {
    /// Others are before it.
    Waits,
    /// Bytes that have come of a peer's files, and all that are to.
    From(NodeId, u64, u64),
}

/// A replica's place on this node.
pub(crate) struct ReplicaHandle {
    pub(crate) partition: PartitionId,
    running: Mutex<Option<Running>>,
    /// A store whose actor has ended: to be closed before the directory is touched again.
    retired: Mutex<Option<Arc<Store>>>,
    serves: AtomicBool,
    /// It is being filled from its peers.
    fills: AtomicBool,
    restarts: AtomicU32,
    /// It has failed so often in a row that others should have a replica in its place.
    given_up: AtomicBool,
    lag: Mutex<Option<u64>>,
    problem: Mutex<Option<Error>>,
    /// Bytes of its log that have been read back, and of all that are to be, while its store is being opened.
    replaying: Mutex<Option<(u64, u64)>>,
    /// It is being filled by files.
    fetching: Mutex<Option<Fetching>>,
    /// For writes that wait for it, or are being committed.
    queue: Room,
    maintenance: Semaphore,
    /// Read by whoever asks a peer for rows, from the question to the commit; written by whoever must be alone.
    pub(super) pulls: RwLock<()>,
    /// One repair at a time.
    pub(super) repairing: Semaphore,
    pub(crate) asked: Arc<Asked>,
}

impl ReplicaHandle {
    pub(crate) fn new(partition: PartitionId, config: &NodeConfig) -> Self {
        let queue_bytes_max =
            if config.has(Planted::UnboundedMailbox) { u64::MAX } else { config.replica_queue_bytes_max };
        Self {
            partition,
            running: Mutex::new(None),
            retired: Mutex::new(None),
            serves: AtomicBool::new(false),
            fills: AtomicBool::new(false),
            restarts: AtomicU32::new(0),
            given_up: AtomicBool::new(false),
            lag: Mutex::new(None),
            problem: Mutex::new(None),
            replaying: Mutex::new(None),
            fetching: Mutex::new(None),
            queue: Room::new(queue_bytes_max),
            maintenance: Semaphore::new(MAINTENANCE_WAITING_MAX),
            pulls: RwLock::new(()),
            repairing: Semaphore::new(1),
            asked: Arc::default(),
        }
    }

    pub(super) fn opened(&self, running: Running) {
        *lock(&self.running) = Some(running);
        *lock(&self.problem) = None;
    }

    pub(super) fn stopped(&self) {
        self.serves.store(false, Ordering::Release);
        if let Some(running) = lock(&self.running).take() {
            *lock(&self.retired) = Some(running.store);
        }
    }

    /// Writes what is in memory into segments, for the end of the node: the next start need not replay it. Blocks.
    pub(crate) fn flush_at_end(&self) {
        self.stopped();
        let retired = lock(&self.retired).clone();
        if let Some(Err(error)) = retired.map(|store| store.flush()) {
            tracing::warn!(partition = %self.partition, %error, "a replica was not flushed at its end; its log has it all");
        }
    }

    /// Lets nothing write any more, whoever holds the store. Blocks.
    pub(crate) fn close(&self) {
        self.stopped();
        self.close_retired();
    }

    /// Waits until nothing writes to the store of an actor that has ended. Blocks.
    pub(crate) fn close_retired(&self) {
        let retired = lock(&self.retired).take();
        if let Some(store) = retired {
            store.close();
        }
    }

    pub(super) fn failed(&self, error: Error) {
        self.stopped();
        self.restarts.fetch_add(1, Ordering::Relaxed);
        *lock(&self.problem) = Some(error);
    }

    pub(super) fn set_given_up(&self, given_up: bool) {
        self.given_up.store(given_up, Ordering::Relaxed);
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    pub(super) fn set_fills(&self, fills: bool) {
        self.fills.store(fills, Ordering::Relaxed);
    }

    pub(super) fn fills(&self) -> bool {
        self.fills.load(Ordering::Relaxed)
    }

    pub(super) fn set_serves(&self, serves: bool) {
        self.serves.store(serves, Ordering::Release);
    }

    pub(crate) fn serves(&self) -> bool {
        self.serves.load(Ordering::Acquire)
    }

    pub(super) fn set_lag(&self, lag: u64) {
        *lock(&self.lag) = Some(lag);
    }

    pub(crate) fn lag(&self) -> Option<u64> {
        *lock(&self.lag)
    }

    pub(crate) fn restarts(&self) -> u32 {
        self.restarts.load(Ordering::Relaxed)
    }

    pub(crate) fn problem(&self) -> Option<Error> {
        lock(&self.problem).clone()
    }

    pub(super) fn set_replaying(&self, bytes: Option<(u64, u64)>) {
        *lock(&self.replaying) = bytes;
    }

    /// How far the replay of its log is, in words.
    pub(crate) fn replaying(&self) -> Option<String> {
        let (done, total) = (*lock(&self.replaying))?;
        Some(format!("replaying its log: {} of {} MiB", done >> 20, total >> 20))
    }

    pub(super) fn set_fetching(&self, fetching: Option<Fetching>) {
        *lock(&self.fetching) = fetching;
    }

    /// How far it has been filled by files, in words, while it is.
    pub(crate) fn fetching(&self) -> Option<String> {
        Some(match (*lock(&self.fetching))? {
            Fetching::Waits => "waiting to be filled by files of a peer".to_owned(),
            Fetching::From(peer, done, total) => {
                format!("being filled by files of {peer}: {} of {} KiB", done >> 10, total >> 10)
            }
        })
    }

    /// The store, whether or not the replica counts: peers may always pull.
    pub(crate) fn store(&self) -> Result<Arc<Store>> {
        self.running().map(|running| running.store)
    }

    /// A snapshot for a reader, and whom to blame for what it cannot read.
    ///
    /// # Errors
    /// The replica is down, or not fit to answer.
    pub(crate) fn snapshot(&self) -> Result<(Running, Snapshot)> {
        if !self.serves() {
            return Err(self.unavailable("does not serve reads just now"));
        }
        let running = self.running()?;
        let snapshot = running.store.snapshot();
        Ok((running, snapshot))
    }

    /// How many rows a scan would look at, if the replica is running.
    pub(crate) fn estimate(&self, spec: &ScanSpec) -> Option<u64> {
        self.running().ok()?.store.snapshot().estimate(spec).ok()
    }

    /// Waits for room, then hands a gateway's write to the actor and waits for its commit.
    pub(crate) async fn write(&self, epoch: Epoch, bytes: u64, write: shoal_storage::Write) -> Result<Written> {
        let _room = self.admit(bytes)?;
        self.ask(|answer| ReplicaMessage::Write { epoch, bytes, write, answer }).await?
    }

    /// Asks for the promise of a ballot; the inner error is the ballot in the way.
    pub(crate) async fn prepare(
        &self,
        epoch: Epoch,
        token: String,
        ballot: Version,
    ) -> Result<Result<Promised, Version>> {
        self.ask(|answer| ReplicaMessage::Prepare { epoch, token, ballot, answer }).await?
    }

    /// Has a version accepted for a token, and waits for its commit.
    pub(crate) async fn reserve(&self, epoch: Epoch, token: String, reserved: Reserved) -> Result<Written> {
        let _room = self.admit(token.len() as u64)?;
        self.ask(|answer| ReplicaMessage::Reserve { epoch, token, reserved, answer }).await?
    }

    /// The same as a write for rows pulled from a peer.
    pub(super) async fn pulled(
        &self,
        bytes: u64,
        write: shoal_storage::Write,
        writes: Vec<Version>,
    ) -> Result<Written> {
        self.ask(|answer| ReplicaMessage::Pulled { bytes, write, writes, answer }).await?
    }

    pub(crate) async fn recent(&self, log_id: LogId, after: u64) -> Result<RecentAnswer> {
        self.ask(|answer| ReplicaMessage::Recent { log_id, after, answer }).await
    }

    /// Has a task carried out, and waits for its end. If nobody waits any more, it is given up where that can be.
    pub(crate) async fn maintain(&self, task: MaintenanceTask) -> Result<()> {
        let _place = self.place()?;
        self.ask(|answer| ReplicaMessage::Maintain { task, answer }).await?
    }

    /// Lets somebody wait for a task, unless too many do.
    pub(super) fn place(&self) -> Result<SemaphorePermit<'_>> {
        self.maintenance.try_acquire().map_err(|_| {
            let message = format!("the replica of {} is being flushed, optimised and repaired already", self.partition);
            Error::new(ErrorCode::Overloaded, message).with_retry_after_ms(1_000)
        })
    }

    pub(crate) async fn report(&self) -> Result<CoreReport> {
        self.ask(|answer| ReplicaMessage::Report { answer }).await
    }

    pub(super) async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> ReplicaMessage) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let running = self.running()?;
        running.actor.cast(message(answer)).map_err(|_| self.unavailable("has stopped"))?;
        // The actor may fail with the message in hand: then nobody knows whether the rows reached the disk.
        answered.await.map_err(|_| self.unavailable("failed meanwhile").with_applied(shoal_kernel::Applied::Unknown))
    }

    /// Bytes of writes that wait for it, or are being committed.
    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queue.taken_bytes()
    }

    fn admit(&self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        self.queue.take(bytes).ok_or_else(|| {
            let message = format!("the replica of {} has too much to write (replica_queue_bytes_max)", self.partition);
            Error::new(ErrorCode::Overloaded, message).with_retry_after_ms(100)
        })
    }

    pub(crate) fn running(&self) -> Result<Running> {
        lock(&self.running).clone().ok_or_else(|| self.unavailable("is not running"))
    }

    fn unavailable(&self, why: &str) -> Error {
        let problem = self.problem().map(|error| format!(": {}", error.message())).unwrap_or_default();
        Error::new(ErrorCode::PartitionUnavailable, format!("the replica of {} {why}{problem}", self.partition))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
