//! Threads for blocking work, fed through a bounded channel.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::RealOptions;
use crate::env::{BlockingJob, BlockingLost, BoxFuture};

struct Work {
    job: BlockingJob,
    answer: oneshot::Sender<Box<dyn Any + Send>>,
    // Held until the job has run, so that the number of queued jobs has a bound.
    _place: OwnedSemaphorePermit,
}

/// The pool. Its threads end when it is dropped and the queue is empty.
pub(super) struct BlockingPool {
    queue: Sender<Work>,
    places: Arc<Semaphore>,
}

impl BlockingPool {
    pub(super) fn start(options: &RealOptions) -> std::io::Result<Self> {
        let jobs_max = options.blocking_jobs_max.max(1);
        // As many places as the channel has slots: a send never blocks an async thread.
        let (queue, jobs) = bounded::<Work>(jobs_max);
        for number in 0..options.blocking_threads.max(1) {
            let jobs: Receiver<Work> = jobs.clone();
            std::thread::Builder::new().name(format!("shoal-io-{number}")).spawn(move || {
                for work in jobs {
                    // A job whose caller has gone still runs: it may hold the second half of a file operation.
                    if let Ok(output) = catch_unwind(AssertUnwindSafe(work.job)) {
                        let _ = work.answer.send(output);
                    }
                }
            })?;
        }
        Ok(Self { queue, places: Arc::new(Semaphore::new(jobs_max)) })
    }

    pub(super) fn run(&self, job: BlockingJob) -> BoxFuture<'static, Result<Box<dyn Any + Send>, BlockingLost>> {
        let (queue, places) = (self.queue.clone(), self.places.clone());
        Box::pin(async move {
            let place = places.acquire_owned().await.map_err(|_| BlockingLost)?;
            let (answer, output) = oneshot::channel();
            queue.send(Work { job, answer, _place: place }).map_err(|_| BlockingLost)?;
            output.await.map_err(|_| BlockingLost)
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::env::real::{RealOptions, env};

    #[tokio::test]
    async fn a_panic_costs_its_caller_and_nobody_else() {
        let env = env(&RealOptions { blocking_threads: 1, blocking_jobs_max: 2, compute_threads: 1 }).unwrap();
        #[allow(clippy::panic, reason = "the panic is what is tested")]
        let lost = env.blocking(|| -> u32 { panic!("expected by the test") }).await;
        assert!(lost.is_err());
        let sums = futures::future::join_all((0..100u32).map(|n| env.blocking(move || n))).await;
        assert_eq!(sums.into_iter().map(Result::unwrap).sum::<u32>(), 4950);
    }
}
