//! Threads for tasks that compute for long between two awaits.

use tokio::runtime::{Builder, Runtime};

use super::RealOptions;
use crate::env::{BoxFuture, TaskHandle};

pub(super) struct ComputePool(Option<Runtime>);

impl ComputePool {
    pub(super) fn start(options: &RealOptions) -> std::io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(options.compute_threads.max(1))
            .thread_name("shoal-compute")
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    pub(super) fn spawn(&self, task: BoxFuture<'static, ()>) -> TaskHandle {
        match &self.0 {
            Some(runtime) => TaskHandle::new(runtime.spawn(task)),
            // Only while it is being dropped, when nobody is left to call.
            None => TaskHandle::new(tokio::spawn(task)),
        }
    }
}

impl Drop for ComputePool {
    fn drop(&mut self) {
        // The last handle may be dropped on an async thread, which must not wait for others.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
