//! Hosts, events and time.
//!
//! # Why not an existing network simulator
//! Simulators that run one tokio runtime per host give every host a turn in every tick of virtual time, idle or not: the
//! tick costs even where nothing happens, and it rounds every latency. Here a runtime that runs out of work says when its
//! next timer is due (see [`crate::entropy`]), so that time jumps from event to event over all hosts, latencies are exact
//! to the microsecond, and a quiet cluster costs nothing. The seam is [`shoal_kernel::env::World`], which is small; owning
//! what lies behind it also gives a disk with torn blocks and streams that stall, which the plan of faults needs.
//!
//! # How a run goes
//! Everything happens on one thread. The heap holds events, ordered by time and then by the order in which they were made.
//! [`Simulation::run_until`] takes what is due, gives each host its share, and lets each host's runtime run until it has
//! nothing more to do. Hosts reach each other only through events.
//!
//! A crash first cuts the host off (its messages go nowhere, its disk is frozen) and then drops its runtime with every
//! task, socket and lock in it: destructors run, and change nothing any more.

mod env;
mod host;
mod state;

use std::future::Future;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use shoal_kernel::Env;

pub use env::SimWorld;
pub use state::Shared;
pub(crate) use state::{Action, Core, Target};

use crate::disk::SimDisk;
use crate::entropy;
use crate::trace::{Kind, Trace};
use host::Host;

/// A host: a node, or a place where clients live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u16);

impl HostId {
    /// Its address on the simulated network.
    pub fn ip(self) -> IpAddr {
        let [high, low] = (self.0 + 1).to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(10, 0, high, low))
    }

    /// A port of it.
    pub fn address(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// The host of an address.
    pub fn of(address: SocketAddr) -> Option<Self> {
        match address.ip() {
            IpAddr::V4(ip) => {
                let [a, b, high, low] = ip.octets();
                (a == 10 && b == 0).then(|| u16::from_be_bytes([high, low]).checked_sub(1).map(Self)).flatten()
            }
            IpAddr::V6(_) => None,
        }
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl std::fmt::Display for HostId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "h{}", self.0 + 1)
    }
}

/// How a host goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashKind {
    /// The process dies, the machine stays: what was written is in the page cache and survives; peers get a reset.
    Process,
    /// The power goes: what was not synced may be lost; peers hear nothing.
    Power,
}

/// What runs on a host, at its first start and at every later one.
pub type Program = Arc<dyn Fn(Env) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A world with its hosts. Lives on one thread, which must have been [`entropy::enter`]ed.
pub struct Simulation {
    shared: Arc<Shared>,
    hosts: Vec<Host>,
    nodes: Option<u16>,
}

impl Simulation {
    /// An empty world. Takes over the calling thread's clock and randomness.
    pub fn new(seed: u64, trace: Option<Box<dyn Write + Send>>) -> Self {
        entropy::enter(seed);
        Self { shared: Arc::new(Shared::new(seed, Trace::new(trace))), hosts: Vec::new(), nodes: None }
    }

    /// What all hosts share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Adds a host. It is down until [`Simulation::start`].
    pub fn add_host(&mut self, program: Program) -> HostId {
        let id = HostId(u16::try_from(self.hosts.len()).unwrap_or(u16::MAX));
        let disk = Arc::new(SimDisk::new(&self.shared, id));
        self.shared.core().add_host();
        self.hosts.push(Host::new(id, self.shared.clone(), disk, program));
        id
    }

    /// Hosts, up or down.
    pub fn hosts(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..u16::try_from(self.hosts.len()).unwrap_or(u16::MAX)).map(HostId)
    }

    /// From now on faults of the network happen among the first so many hosts only; the others are clients.
    pub fn set_nodes(&mut self, nodes: u16) {
        self.nodes = Some(nodes);
    }

    /// Hosts that faults of the network happen to.
    pub fn nodes(&self) -> impl Iterator<Item = HostId> + use<> {
        let nodes = self.nodes.unwrap_or(u16::MAX);
        self.hosts().filter(move |host| host.0 < nodes)
    }

    /// Whether the host is up.
    pub fn is_up(&self, host: HostId) -> bool {
        self.hosts.get(host.index()).is_some_and(Host::is_up)
    }

    /// The host's disk, which outlives its crashes.
    pub fn disk(&self, host: HostId) -> Option<Arc<SimDisk>> {
        self.hosts.get(host.index()).map(|host| host.disk().clone())
    }

    /// Starts a host that is down; nothing happens to one that is up.
    ///
    /// # Errors
    /// The operating system gives no more descriptors.
    pub fn start(&mut self, host: HostId) -> std::io::Result<()> {
        let Some(target) = self.hosts.get_mut(host.index()).filter(|target| !target.is_up()) else { return Ok(()) };
        self.shared.trace(Kind::Fault, format_args!("{host} starts"));
        target.start()
    }

    /// Takes a host down, and keeps one down that would start again by itself.
    pub fn crash(&mut self, host: HostId, kind: CrashKind) {
        if let Some(state) = self.shared.core().hosts.get_mut(host.index()) {
            state.starts_again_at = None;
        }
        let Some(target) = self.hosts.get_mut(host.index()).filter(|target| target.is_up()) else { return };
        self.shared.trace(Kind::Fault, format_args!("{host} crashes ({kind:?})"));
        target.crash(kind);
    }

    /// Starts hosts whose programs had ended by themselves, once their time has come.
    fn start_again(&mut self) {
        let due: Vec<HostId> = {
            let core = self.shared.core();
            let is_due = |host: &HostId| {
                core.hosts
                    .get(host.index())
                    .and_then(|state| state.starts_again_at)
                    .is_some_and(|at| at <= core.now_micros)
            };
            self.hosts().filter(is_due).collect()
        };
        for host in due {
            if let Err(error) = self.start(host) {
                self.shared.trace(Kind::Fault, format_args!("{host} cannot be started again: {error}"));
                self.shared.core().hosts[host.index()].starts_again_at = None;
            }
        }
    }

    /// Lets a host do nothing for a time, as a stopped process or a long pause of its machine would.
    pub fn pause(&mut self, host: HostId, time: Duration) {
        self.shared.trace(Kind::Fault, format_args!("{host} pauses for {} ms", time.as_millis()));
        if let Some(target) = self.hosts.get_mut(host.index()) {
            target.pause_until(self.shared.now_micros() + micros(time));
        }
    }

    /// Runs code in a running host's runtime, now. False if the host is down.
    pub fn run_on(&mut self, host: HostId, job: impl FnOnce() + Send + 'static) -> bool {
        let up = self.is_up(host);
        if up {
            let mut core = self.shared.core();
            let (now, life) = (core.now_micros, core.hosts[host.index()].life);
            core.schedule(now, Target::Host { host, life }, Action::Run(Box::new(job)));
        }
        up
    }

    /// Moves time to `until` (microseconds of virtual time) and lets everything happen that happens up to then.
    pub fn run_until(&mut self, until_micros: u64) {
        self.run_while(until_micros, || true);
    }

    /// As [`Simulation::run_until`], but ends as soon as the condition no longer holds. True if it ended early.
    pub fn run_while(&mut self, until_micros: u64, mut going_on: impl FnMut() -> bool) -> bool {
        loop {
            self.start_again();
            self.step_hosts();
            if !going_on() {
                return true;
            }
            let Some(next) = self.next_event_micros().filter(|next| *next <= until_micros) else {
                self.shared.set_now_micros(until_micros.max(self.shared.now_micros()));
                return false;
            };
            self.shared.set_now_micros(next);
            self.take_due();
        }
    }

    /// Drops every host, in order. Destructors run with the network cut and the disks frozen.
    pub fn shut_down(&mut self) {
        for host in &mut self.hosts {
            if host.is_up() {
                host.crash(CrashKind::Process);
            }
        }
    }

    fn step_hosts(&mut self) {
        loop {
            let mut stepped = false;
            for host in &mut self.hosts {
                if host.has_work() {
                    stepped = true;
                    if let Some(kind) = host.step() {
                        let id = host.id();
                        let how = match kind {
                            CrashKind::Process => "ends by itself",
                            CrashKind::Power => "loses its power in the middle of its work",
                        };
                        self.shared.trace(Kind::Fault, format_args!("{id} {how}"));
                        host.crash(kind);
                    }
                }
            }
            // Work for the present moment can come from a host that ran later in this round.
            if !stepped && !self.take_due() {
                return;
            }
        }
    }

    fn next_event_micros(&self) -> Option<u64> {
        let timers = self.hosts.iter().filter_map(Host::deadline_micros).min();
        let core = self.shared.core();
        let again = core.hosts.iter().filter_map(|host| host.starts_again_at).min();
        timers.into_iter().chain(core.next_at()).chain(again).min().map(|next| next.max(core.now_micros))
    }

    /// Hands out what is due. False if there was nothing.
    fn take_due(&mut self) -> bool {
        let mut found = false;
        loop {
            // Bound to a name of its own, so that the lock is free while the event happens.
            let due = self.shared.core().pop_due();
            let Some(event) = due else { return found };
            found = true;
            match event.target {
                Target::World => match event.action {
                    // The world's own events touch no host's runtime.
                    Action::Run(job) => job(),
                    Action::Wake(waker) => waker.wake(),
                },
                Target::Host { host, life } => {
                    if let Some(target) = self.hosts.get_mut(host.index()) {
                        target.give(life, event.action);
                    }
                }
            }
        }
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        // A destructor that panics must not take the report of the run with it.
        let _ = std::panic::catch_unwind(AssertUnwindSafe(|| self.shut_down()));
        // Events hold the state that holds them.
        let left = self.shared.core().take_events();
        drop(left);
    }
}

/// A duration in whole microseconds.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
