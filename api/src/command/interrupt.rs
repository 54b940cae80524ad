//! Ctrl-C while a query runs: stops the query, not the shell.

#![allow(clippy::disallowed_methods, reason = "the shell owns a thread that listens for signals")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::client::Client;

/// Listens for Ctrl-C from now on.
#[derive(Clone, Default)]
pub(super) struct Interrupts {
    running: Arc<Mutex<Option<(Client, String)>>>,
    seen: Arc<AtomicBool>,
    cleanup: Arc<Mutex<Option<Cleanup>>>,
}

type Cleanup = Box<dyn FnOnce() + Send>;

impl Interrupts {
    /// Starts listening. Without the means to (no more threads, say) Ctrl-C ends the process, as ever.
    pub(super) fn listen() -> Self {
        let interrupts = Self::default();
        let listener = interrupts.clone();
        let started = std::thread::Builder::new().name("shoal-interrupts".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Ok(runtime) = runtime {
                runtime.block_on(async {
                    while tokio::signal::ctrl_c().await.is_ok() {
                        listener.interrupted();
                    }
                });
            }
        });
        drop(started);
        interrupts
    }

    fn interrupted(&self) {
        self.seen.store(true, Ordering::SeqCst);
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match running {
            // The query's own answer says that it was cancelled.
            Some((client, id)) => drop(client.cancel(&id)),
            None => {
                let cleanup = self.cleanup.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(cleanup) = cleanup {
                    cleanup();
                }
                std::process::exit(130)
            }
        }
    }

    /// What is done before Ctrl-C ends the process.
    pub(super) fn before_exit(&self, cleanup: impl FnOnce() + Send + 'static) {
        *self.cleanup.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(cleanup));
    }

    /// Runs something under a query's id. The flag says whether Ctrl-C was pressed meanwhile.
    pub(super) fn during<T>(&self, client: &Client, id: &str, work: impl FnOnce() -> T) -> (T, bool) {
        self.seen.store(false, Ordering::SeqCst);
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some((client.clone(), id.to_owned()));
        let outcome = work();
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
        (outcome, self.seen.load(Ordering::SeqCst))
    }
}
