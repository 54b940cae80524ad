//! That a node cannot go on.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use shoal_kernel::Error;
use tokio::sync::watch;

/// Set once, by whatever part of a node nobody inside can mend: its process should end, so that others see that it is gone.
#[derive(Clone)]
pub(super) struct Over(Arc<Inner>);

struct Inner {
    why: watch::Sender<Option<Error>>,
    /// It is to end anyway, and so are its parts.
    stopping: AtomicBool,
}

impl Over {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { why: watch::Sender::new(None), stopping: AtomicBool::new(false) }))
    }

    /// The node is stopped in good order: from now on no part is missed. Says whether it was being stopped already.
    pub(super) fn stop(&self) -> bool {
        self.0.stopping.swap(true, Ordering::AcqRel)
    }

    /// Whether it is being stopped.
    pub(super) fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }

    /// The node cannot go on. The first reason stays.
    pub(super) fn declare(&self, error: Error) {
        if self.is_stopping() {
            return;
        }
        self.0.why.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(error);
            first
        });
    }

    /// Waits until it cannot.
    pub(super) async fn declared(&self) -> Error {
        let mut heard = self.0.why.subscribe();
        let known = heard.wait_for(Option::is_some).await.ok().and_then(|known| known.clone());
        known.unwrap_or_else(|| Error::internal("the node is gone"))
    }

    /// A task without which the node cannot go on: it ends only when the node does.
    pub(super) async fn unless_it_lasts(self, what: &'static str, task: impl Future<Output = ()>) {
        let why = match AssertUnwindSafe(task).catch_unwind().await {
            Ok(()) => "ended",
            Err(_) => "panicked",
        };
        self.declare(Error::internal(format!("the {what} of the node has {why}")));
    }
}

#[cfg(test)]
#[allow(clippy::panic, reason = "that is what is looked at")]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_first_part_that_ends_says_why() {
        let over = Over::new();
        assert!(over.declared().now_or_never().is_none());
        let task = over.clone().unless_it_lasts("catalog watcher", async { panic!("a bug") });
        assert!(task.now_or_never().is_some());
        over.declare(Error::internal("something else"));
        let error = over.declared().now_or_never().unwrap();
        assert_eq!(error.message(), "the catalog watcher of the node has panicked");

        let over = Over::new();
        assert!(!over.stop() && over.stop());
        assert!(over.clone().unless_it_lasts("catalog watcher", async {}).now_or_never().is_some());
        assert!(over.declared().now_or_never().is_none(), "everything ends when the node does");
    }
}
