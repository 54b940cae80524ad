//! What all hosts share: time, the heap of events, the network's state, the trace.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use shoal_kernel::Rare;

use super::{CrashKind, HostId};
use crate::entropy;
use crate::network::NetworkState;
use crate::queue::EventQueue;
use crate::trace::{Kind, Trace};

/// Something that happens at a moment.
pub(crate) enum Action {
    /// A future is polled.
    Wake(Waker),
    /// Code runs.
    Run(Box<dyn FnOnce() + Send>),
}

/// Where it happens. An event for an earlier life of a host is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    World,
    Host { host: HostId, life: u64 },
}

pub(crate) struct Event {
    pub(crate) target: Target,
    pub(crate) action: Action,
}

/// A host, as the others see it.
#[derive(Debug, Default)]
pub(crate) struct HostState {
    /// Counts starts; 0 before the first.
    pub(crate) life: u64,
    pub(crate) up: bool,
    /// Its machine answers for it: connection attempts are refused, not lost.
    pub(crate) machine_up: bool,
    /// Goes down as soon as its present step is over; until then nothing that it does has an effect.
    pub(crate) doomed: Option<CrashKind>,
    /// When it is started again, if nobody does before: its program has ended by itself.
    pub(crate) starts_again_at: Option<u64>,
    /// By how much its wall clock is off, and what it has gained per second since a moment.
    wall_offset_micros: i64,
    wall_drift: i64,
    drifts_since_micros: u64,
    /// Seeds given, by stream.
    pub(crate) seeds: BTreeMap<&'static str, u64>,
    /// Tasks of its present life that have not ended, by name.
    pub(super) tasks: BTreeMap<&'static str, u64>,
}

/// The shared state behind its lock.
pub(crate) struct Core {
    pub(crate) seed: u64,
    pub(crate) now_micros: u64,
    events: EventQueue<Event>,
    pub(crate) hosts: Vec<HostState>,
    pub(crate) network: NetworkState,
    trace: Trace,
    sometimes: BTreeMap<Rare, u64>,
    pub(crate) power_losses: Vec<(u64, u16)>,
    stray_threads: u64,
}

impl HostState {
    /// By how much the wall clock is off now.
    pub(crate) fn wall_offset_micros(&self, now_micros: u64) -> i64 {
        let seconds = now_micros.saturating_sub(self.drifts_since_micros) as f64 / 1e6;
        // The cast saturates; a drift of some percent over a run is far below that.
        self.wall_offset_micros + (self.wall_drift as f64 * seconds) as i64
    }
}

/// A task of a host, counted for as long as it has not ended.
pub(super) struct Counted {
    shared: Arc<Shared>,
    host: HostId,
    life: u64,
    name: &'static str,
}

impl Counted {
    pub(super) fn new(shared: &Arc<Shared>, host: HostId, life: u64, name: &'static str) -> Self {
        let mut core = shared.core();
        if core.lives(host, life) {
            *core.hosts[host.index()].tasks.entry(name).or_default() += 1;
        }
        Self { shared: shared.clone(), host, life, name }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        if core.lives(self.host, self.life)
            && let Some(count) = core.hosts[self.host.index()].tasks.get_mut(self.name)
        {
            *count -= 1;
        }
    }
}

impl Core {
    pub(crate) fn add_host(&mut self) {
        self.hosts.push(HostState::default());
        self.network.add_host(self.seed, self.hosts.len());
    }

    pub(crate) fn schedule(&mut self, at_micros: u64, target: Target, action: Action) {
        self.events.plan(at_micros.max(self.now_micros), Event { target, action });
    }

    pub(crate) fn next_at(&self) -> Option<u64> {
        self.events.next_at()
    }

    pub(crate) fn pop_due(&mut self) -> Option<Event> {
        self.events.pop_until(self.now_micros).map(|(_, event)| event)
    }

    pub(super) fn take_events(&mut self) -> EventQueue<Event> {
        std::mem::take(&mut self.events)
    }

    pub(crate) fn trace(&mut self, kind: Kind, what: fmt::Arguments<'_>) {
        let now = self.now_micros;
        self.trace.line(now, kind, what);
    }

    /// Lines of the trace so far. A message carries the number along: whatever its sender did before is among them, which is
    /// what makes one event the cause of another.
    pub(crate) fn trace_lines(&self) -> u64 {
        self.trace.lines()
    }

    /// Whether the host is in that life, and what it does still counts.
    pub(crate) fn lives(&self, host: HostId, life: u64) -> bool {
        self.hosts.get(host.index()).is_some_and(|state| state.up && state.life == life && state.doomed.is_none())
    }

    pub(crate) fn sometimes(&mut self, what: Rare) {
        *self.sometimes.entry(what).or_default() += 1;
    }
}

/// What all hosts share.
pub struct Shared(Mutex<Core>);

impl Shared {
    pub(super) fn new(seed: u64, trace: Trace) -> Self {
        Self(Mutex::new(Core {
            seed,
            now_micros: 0,
            events: EventQueue::default(),
            hosts: Vec::new(),
            network: NetworkState::default(),
            trace,
            sometimes: BTreeMap::new(),
            power_losses: Vec::new(),
            stray_threads: 0,
        }))
    }

    /// Tasks of a host that have not ended, by name; nothing if it is down.
    pub fn tasks(&self, host: HostId) -> BTreeMap<&'static str, u64> {
        let core = self.core();
        let tasks = core.hosts.get(host.index()).filter(|state| state.up).map(|state| state.tasks.clone());
        tasks.unwrap_or_default()
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        // One thread uses it; a panic under the lock leaves counters and queues as they are.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtual time in microseconds.
    pub fn now_micros(&self) -> u64 {
        self.core().now_micros
    }

    pub(super) fn set_now_micros(&self, now: u64) {
        self.core().now_micros = now;
        entropy::set_now_micros(now);
    }

    /// Adds a line to the trace.
    pub fn trace(&self, kind: Kind, what: fmt::Arguments<'_>) {
        self.core().trace(kind, what);
    }

    /// The hash of the trace so far, and the number of its lines.
    pub fn trace_hash(&self) -> (u128, u64) {
        let core = self.core();
        (core.trace.hash(), core.trace.lines())
    }

    /// The last faults of the run, oldest first.
    pub fn story(&self) -> Vec<String> {
        self.core().trace.story().map(str::to_owned).collect()
    }

    /// Writes the trace's last lines.
    ///
    /// # Errors
    /// The trace could not be written whole.
    pub fn flush_trace(&self) -> std::io::Result<()> {
        self.core().trace.flush()
    }

    /// Counts a state that is rare and should be reached by some seeds.
    pub fn sometimes(&self, what: Rare) {
        self.core().sometimes(what);
    }

    /// When hosts lost their power, in order.
    pub fn power_losses(&self) -> Vec<(u64, u16)> {
        self.core().power_losses.clone()
    }

    /// Rare states reached, with how often.
    pub fn sometimes_reached(&self) -> BTreeMap<Rare, u64> {
        self.core().sometimes.clone()
    }

    /// Threads that libraries started on their own; a run with any is not reproducible.
    pub fn stray_threads(&self) -> u64 {
        self.core().stray_threads
    }

    pub(super) fn count_stray_thread(&self) {
        self.core().stray_threads += 1;
    }

    /// Ends a host's process from within, as soon as its present step is over; it is started again after a time.
    pub(crate) fn end_process(&self, host: HostId, start_again_after: Duration) {
        let mut core = self.core();
        let at = core.now_micros + super::micros(start_again_after);
        if let Some(state) = core.hosts.get_mut(host.index()).filter(|state| state.up && state.doomed.is_none()) {
            state.doomed = Some(CrashKind::Process);
            state.starts_again_at = Some(at);
            core.sometimes(Rare::ProcessEnded);
        }
    }

    /// Sets by how much a host's wall clock is off.
    pub fn set_wall_offset_micros(&self, host: HostId, offset: i64) {
        let mut core = self.core();
        let state = core.hosts.get_mut(host.index());
        let Some(state) = state.filter(|state| state.wall_offset_micros != offset || state.wall_drift != 0) else {
            return;
        };
        (state.wall_offset_micros, state.wall_drift) = (offset, 0);
        core.trace(Kind::Fault, format_args!("{host} has its wall clock off by {offset} us"));
    }

    /// Has a host's wall clock gain so much per second, or lose it.
    pub fn set_wall_drift(&self, host: HostId, micros_per_second: i64) {
        let mut core = self.core();
        let now = core.now_micros;
        let Some(state) = core.hosts.get_mut(host.index()) else { return };
        (state.wall_drift, state.drifts_since_micros) = (micros_per_second, now);
        core.trace(Kind::Fault, format_args!("{host} has a wall clock that gains {micros_per_second} us a second"));
    }

    /// Completes at a moment of virtual time, exactly.
    pub(crate) fn at(self: &Arc<Self>, host: HostId, life: u64, at_micros: u64) -> Moment {
        Moment { shared: self.clone(), target: Target::Host { host, life }, at_micros, asked: false }
    }
}

/// A future that completes at a moment of virtual time.
pub(crate) struct Moment {
    shared: Arc<Shared>,
    target: Target,
    at_micros: u64,
    asked: bool,
}

impl Future for Moment {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let shared = self.shared.clone();
        let mut core = shared.core();
        if core.now_micros >= self.at_micros {
            return Poll::Ready(());
        }
        // One event is enough for a future that stays in its task; a task that selects over it may poll it more often.
        if !self.asked {
            self.asked = true;
            core.schedule(self.at_micros, self.target, Action::Wake(context.waker().clone()));
        }
        Poll::Pending
    }
}
