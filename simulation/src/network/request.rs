//! Requests from a client's host into a node: the node's own handle is called, on the node's runtime, over the simulated
//! link. A request or answer that meets a cut link is lost; the client must have a deadline.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{deliver, link};
use crate::trace::Kind;
use crate::world::{HostId, Shared};

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// Nothing listens there: the request was not taken.
    Refused,
    /// The node went down after it had taken the request.
    Broken,
}

enum Slot<T> {
    Waiting(Option<Waker>),
    Full(Result<T, NoAnswer>),
}

/// An answer on its way.
pub struct Answer<T>(Arc<Mutex<Slot<T>>>);

impl<T> Future for Answer<T> {
    type Output = Result<T, NoAnswer>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *slot, Slot::Waiting(Some(context.waker().clone()))) {
            Slot::Full(answer) => Poll::Ready(answer),
            Slot::Waiting(_) => Poll::Pending,
        }
    }
}

/// The node's end: gives the answer, or says that there is none when it is dropped.
pub struct Reply<T: Send + 'static> {
    shared: Arc<Shared>,
    from: HostId,
    to: HostId,
    label: String,
    slot: Option<Arc<Mutex<Slot<T>>>>,
}

impl<T: Send + 'static> Reply<T> {
    /// Sends the answer.
    pub fn send(mut self, answer: T) {
        self.finish(Ok(answer));
    }

    fn finish(&mut self, answer: Result<T, NoAnswer>) {
        let Some(slot) = self.slot.take() else { return };
        let mut core = self.shared.core();
        // A node whose power is gone in the middle of its work says nothing more, whatever its code still does.
        let doomed = core.hosts.get(self.from.index()).is_some_and(|state| state.doomed.is_some());
        let answer = if doomed { Err(NoAnswer::Broken) } else { answer };
        let (from, to, after) = (self.from, self.to, core.trace_lines());
        let Some(transit) = link::passes(&mut core, from, to) else { return };
        let at = core.now_micros + transit;
        let (shared, label) = (self.shared.clone(), std::mem::take(&mut self.label));
        deliver(&mut core, to, at, move || {
            shared.trace(Kind::Network, format_args!("{from} -> {to} answer to {label} @{after}"));
            let before =
                std::mem::replace(&mut *slot.lock().unwrap_or_else(PoisonError::into_inner), Slot::Full(answer));
            if let Slot::Waiting(Some(waker)) = before {
                waker.wake();
            }
        });
    }
}

impl<T: Send + 'static> Drop for Reply<T> {
    fn drop(&mut self) {
        self.finish(Err(NoAnswer::Broken));
    }
}

/// Runs `job` on host `to`, a moment from now, and brings back what it replies. The job runs inside the host's runtime. The
/// label says in the trace who asks, and for what.
pub fn request<T: Send + 'static>(
    shared: &Arc<Shared>,
    from: HostId,
    to: HostId,
    label: String,
    job: impl FnOnce(Reply<T>) + Send + 'static,
) -> Answer<T> {
    let slot = Arc::new(Mutex::new(Slot::Waiting(None)));
    let reply = Reply { shared: shared.clone(), from: to, to: from, label: label.clone(), slot: Some(slot.clone()) };
    let mut core = shared.core();
    match link::passes(&mut core, from, to) {
        Some(transit) if core.hosts.get(to.index()).is_some_and(|state| state.up) => {
            let (at, after, shared) = (core.now_micros + transit, core.trace_lines(), shared.clone());
            deliver(&mut core, to, at, move || {
                shared.trace(Kind::Network, format_args!("{from} -> {to} request of {label} @{after}"));
                job(reply);
            });
        }
        passes => {
            let refused = passes.is_some() && core.hosts.get(to.index()).is_some_and(|state| state.machine_up);
            drop(core);
            let mut reply = reply;
            if refused {
                reply.finish(Err(NoAnswer::Refused));
            } else {
                reply.slot = None;
            }
        }
    }
    Answer(slot)
}
