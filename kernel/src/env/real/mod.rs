//! The real world: the operating system's clock and randomness, tokio's network and timers, files with fsync, and threads
//! for blocking work.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this is the one place outside the doors that may touch the world"
)]

mod blocking;
mod compute;
mod disk;
mod network;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{BlockingJob, BlockingLost, BoxFuture, Disk, Env, Network, TaskHandle, World};

/// How the real world is set up.
#[derive(Debug, Clone)]
pub struct RealOptions {
    /// Threads for blocking work.
    pub blocking_threads: usize,
    /// Jobs that may wait for such a thread; beyond, callers wait without blocking.
    pub blocking_jobs_max: usize,
    /// Threads for tasks that compute.
    pub compute_threads: usize,
}

impl Default for RealOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { blocking_threads: (2 * cores).clamp(4, 32), blocking_jobs_max: 1024, compute_threads: cores }
    }
}

struct RealWorld {
    start: std::time::Instant,
    disk: Arc<disk::RealDisk>,
    network: Arc<network::RealNetwork>,
    blocking: blocking::BlockingPool,
    compute: compute::ComputePool,
}

/// The real disk alone, for tools that need no clock, network or thread.
pub fn disk() -> Arc<dyn Disk> {
    Arc::new(disk::RealDisk)
}

/// The real world. Must be used inside a tokio runtime with timers and I/O.
///
/// # Errors
/// A thread could not be started.
pub fn env(options: &RealOptions) -> std::io::Result<Env> {
    Ok(Env::new(RealWorld {
        start: std::time::Instant::now(),
        disk: Arc::new(disk::RealDisk),
        network: Arc::new(network::RealNetwork),
        blocking: blocking::BlockingPool::start(options)?,
        compute: compute::ComputePool::start(options)?,
    }))
}

impl World for RealWorld {
    fn wall_micros(&self) -> u64 {
        // Before 1970 the clock is as good as unset.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }

    fn seed(&self, _stream: &'static str) -> u64 {
        match getrandom::u64() {
            Ok(seed) => seed,
            // Without the system's randomness (a seccomp filter, a broken chroot) ids would collide: better not to run.
            Err(error) => {
                tracing::error!(%error, "the operating system gives no randomness");
                std::process::abort()
            }
        }
    }

    fn spawn(&self, _name: &'static str, task: BoxFuture<'static, ()>) -> TaskHandle {
        TaskHandle::new(tokio::spawn(task))
    }

    fn compute(&self, _name: &'static str, task: BoxFuture<'static, ()>) -> TaskHandle {
        self.compute.spawn(task)
    }

    fn blocking(&self, job: BlockingJob) -> BoxFuture<'static, Result<Box<dyn Any + Send>, BlockingLost>> {
        self.blocking.run(job)
    }

    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    fn network(&self) -> Arc<dyn Network> {
        self.network.clone()
    }
}
