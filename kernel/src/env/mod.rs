//! The only door to the world: clock, randomness, files, network, tasks and blocking work.
//!
//! Everything between the doors (`api`) and the box (`simulation`) reaches the world through an [`Env`]. There are two
//! worlds: [`real`], and the simulator's, where time, network and disks are virtual and every random choice comes from a
//! seed. Code that uses anything else cannot be replayed; `clippy.toml` refuses it.
//!
//! Timers are tokio's in both worlds (the simulator runs each node on a paused tokio clock), reached through [`Env::sleep`]
//! and [`Env::timeout`], so that the reason stays in one place.

mod disk;
mod network;
pub mod real;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;

pub use disk::{Disk, DiskEntry, DiskFile, DiskLock, OpenMode, REPLACEMENT};
pub use network::{BoxDatagram, BoxListener, BoxStream, ByteStream, Datagram, Listener, Network};

use crate::error::{Error, ErrorCode};
use crate::rare::Rare;

/// A future on the heap that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A seeded generator. All randomness of the product comes out of these.
pub type Rng = rand::rngs::StdRng;

/// A unit of blocking work.
pub type BlockingJob = Box<dyn FnOnce() -> Box<dyn Any + Send> + Send>;

/// What a world must provide. Implemented twice; used through [`Env`].
pub trait World: Send + Sync + 'static {
    /// Wall clock: microseconds since the Unix epoch. May jump and may be skewed: for stamps only, never to measure.
    fn wall_micros(&self) -> u64;

    /// Time since some start, never going back.
    fn monotonic(&self) -> Duration;

    /// Completes after the given time.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;

    /// A seed for the stream of that name. Two calls with one name give two seeds; the streams of two names are independent,
    /// so that taking one user of randomness away shifts no other.
    fn seed(&self, stream: &'static str) -> u64;

    /// Runs a task. The handle is dropped freely; the task goes on.
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> TaskHandle;

    /// As [`Env::compute`]. A world without threads treats it like any other task.
    fn compute(&self, name: &'static str, task: BoxFuture<'static, ()>) -> TaskHandle {
        self.spawn(name, task)
    }

    /// Runs blocking work off the async threads. `Err` means that the work panicked or the world is being torn down.
    fn blocking(&self, job: BlockingJob) -> BoxFuture<'static, Result<Box<dyn Any + Send>, BlockingLost>>;

    /// The node's disk. Paths are relative to nothing: the caller passes the data directory.
    fn disk(&self) -> Arc<dyn Disk>;

    /// The node's network.
    fn network(&self) -> Arc<dyn Network>;

    /// Notes something for the trace; the real world drops it.
    fn trace(&self, _what: &dyn Fn() -> String) {}

    /// Counts a rare state; the real world does not.
    fn reached(&self, _state: Rare) {}
}

/// Blocking work that gave no result: it panicked, or its node is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("blocking work was lost: it panicked, or the node is stopping")]
pub struct BlockingLost;

impl From<BlockingLost> for Error {
    fn from(lost: BlockingLost) -> Self {
        Self::new(ErrorCode::Internal, lost.to_string()).with_applied(crate::Applied::Unknown)
    }
}

/// The deadline passed before the future completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

/// A spawned task. Dropping the handle leaves the task running.
#[derive(Debug)]
pub struct TaskHandle(tokio::task::JoinHandle<()>);

impl TaskHandle {
    /// Wraps tokio's handle; for implementations of [`World`].
    pub fn new(handle: tokio::task::JoinHandle<()>) -> Self {
        Self(handle)
    }

    /// Stops the task at its next await.
    pub fn abort(&self) {
        self.0.abort();
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for the task to end, however it ends.
    pub async fn join(self) {
        let _ = self.0.await;
    }
}

/// A node's access to its world. Cheap to clone.
#[derive(Clone)]
pub struct Env(Arc<dyn World>);

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}

impl Env {
    /// Gives access to a world.
    pub fn new(world: impl World) -> Self {
        Self(Arc::new(world))
    }

    /// Wall clock in microseconds since the Unix epoch: for stamps only, never to measure.
    pub fn wall_micros(&self) -> u64 {
        self.0.wall_micros()
    }

    /// Time since some start, never going back: to measure and to set deadlines.
    pub fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    /// Completes after the given time.
    pub fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.0.sleep(time)
    }

    /// Runs a future for at most the given time.
    ///
    /// # Errors
    /// [`Elapsed`]; the future has been dropped.
    pub async fn timeout<F: Future>(&self, time: Duration, future: F) -> Result<F::Output, Elapsed> {
        let sleep = self.sleep(time);
        tokio::pin!(future);
        // Biased, so that a result that is there wins over a deadline that passed at the same tick, in both worlds.
        tokio::select! {
            biased;
            output = &mut future => Ok(output),
            () = sleep => Err(Elapsed),
        }
    }

    /// A new generator of the stream of that name.
    pub fn rng(&self, stream: &'static str) -> Rng {
        Rng::seed_from_u64(self.0.seed(stream))
    }

    /// One random number of the stream of that name.
    pub fn random(&self, stream: &'static str) -> u64 {
        self.0.seed(stream)
    }

    /// Runs a task.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> TaskHandle {
        self.0.spawn(name, Box::pin(task))
    }

    /// Runs a task that computes for long between two awaits, such as a part of a query, on threads of its own kind: what
    /// must answer in time (gossip, consensus, deadlines) is not held up by it.
    pub fn compute(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> TaskHandle {
        self.0.compute(name, Box::pin(task))
    }

    /// Runs blocking work (files, long computations) off the async threads.
    ///
    /// # Errors
    /// The work panicked, or the node is stopping.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, BlockingLost> {
        let output = self.0.blocking(Box::new(move || Box::new(work()))).await?;
        output.downcast().map(|output| *output).map_err(|_| BlockingLost)
    }

    /// The node's disk.
    pub fn disk(&self) -> Arc<dyn Disk> {
        self.0.disk()
    }

    /// The node's network.
    pub fn network(&self) -> Arc<dyn Network> {
        self.0.network()
    }

    /// Notes something for the trace. The text is built only where a trace is kept. It must not hold addresses of memory,
    /// actor ids or anything else that differs between two runs of one seed.
    pub fn trace(&self, what: impl Fn() -> String) {
        self.0.trace(&what);
    }

    /// Says that a rare state was reached, for whoever counts how much a simulation has tested.
    pub fn reached(&self, state: Rare) {
        self.0.reached(state);
    }
}
