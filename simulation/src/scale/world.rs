//! Many nodes' gossip on one queue of events: no runtime, no task and no socket for any of them.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::SeedableRng;
use shoal_kernel::env::Rng;
use shoal_kernel::{NodeId, Result};
use shoal_membership::SwimConfig;
use shoal_membership::swim::protocol::{Core, Effects, Identity, SEAL_BYTES};

use super::traffic::Traffic;
use super::views::Views;
use crate::queue::EventQueue;
use crate::random::{Stream, draw};

/// The port of every node; each has an address of its own.
const PORT: u16 = 7_700;

/// Every node starts as if it had lived before.
const FIRST_GENERATION: u64 = 1_700_000_000;

/// Datagrams that a socket keeps for a process that does not read; further ones are lost. Of the sizes that gossip has, the usual buffer
/// holds a few hundred.
const UNREAD_MAX: usize = 256;

/// How datagrams travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// Shortest time of a datagram on its way, in microseconds.
    pub latency_micros_min: u64,
    /// Longest of the usual times, in microseconds.
    pub latency_micros_max: u64,
    /// One datagram in a hundred takes up to so much longer, in microseconds.
    pub jitter_micros_max: u64,
    /// Datagrams of a thousand that get lost.
    pub loss_permille: u64,
}

impl Default for Weather {
    fn default() -> Self {
        Self { latency_micros_min: 200, latency_micros_max: 2_000, jitter_micros_max: 20_000, loss_permille: 1 }
    }
}

/// What happens next, to whom.
enum What {
    Start(usize),
    Wake(usize),
    Arrive { from: usize, to: usize, body: Box<[u8]> },
    Resume(usize),
}

#[derive(Default)]
struct Node {
    /// None before it starts and after it has crashed.
    core: Option<Core>,
    /// The wake-up that counts; others in the queue are passed over.
    wake_at: Option<u64>,
    /// Its process stands still until then.
    stalled_until: Option<u64>,
    /// What has come meanwhile, in order, as its socket keeps it.
    unread: VecDeque<Box<[u8]>>,
}

/// The nodes, what is on its way between them, and what everybody thinks of everybody. Nodes are numbered from zero.
pub(super) struct World {
    seed: u64,
    seeds: Vec<SocketAddr>,
    weather: Weather,
    /// Virtual microseconds since the start.
    now: u64,
    queue: EventQueue<What>,
    nodes: Vec<Node>,
    halved: bool,
    way: Stream,
    pub(super) views: Views,
    pub(super) traffic: Traffic,
}

fn address(node: usize) -> SocketAddr {
    let number = u32::try_from(node).unwrap_or(u32::MAX);
    SocketAddr::from((Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits().saturating_add(number)), PORT))
}

fn node_at(address: SocketAddr) -> Option<usize> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    usize::try_from(ip.to_bits().checked_sub(Ipv4Addr::new(10, 0, 0, 0).to_bits())?).ok()
}

fn number(node: usize) -> NodeId {
    NodeId(u32::try_from(node + 1).unwrap_or(u32::MAX))
}

fn node_of(number: NodeId) -> Option<usize> {
    usize::try_from(number.0.checked_sub(1)?).ok()
}

impl World {
    /// So many nodes, none of them started; the first ones are known to all as those to ask.
    pub(super) fn new(nodes: usize, seeds: usize, seed: u64, weather: Weather) -> Self {
        Self {
            seed,
            seeds: (0..seeds.min(nodes)).map(address).collect(),
            weather,
            now: 0,
            queue: EventQueue::default(),
            nodes: (0..nodes).map(|_| Node::default()).collect(),
            halved: false,
            way: Stream::new(seed, "scale way", 0),
            views: Views::new(nodes),
            traffic: Traffic::new(nodes),
        }
    }

    /// Virtual microseconds since the start.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Nodes that are up, in order.
    pub(super) fn up(&self) -> impl Iterator<Item = usize> {
        self.nodes.iter().enumerate().filter(|(_, node)| node.core.is_some()).map(|(at, _)| at)
    }

    /// Which half of a partition a node is in.
    pub(super) fn half(node: usize) -> usize {
        node % 2
    }

    /// A node starts at that time, in virtual microseconds.
    pub(super) fn start_at(&mut self, node: usize, at: u64) {
        self.queue.plan(at, What::Start(node));
    }

    /// A node ends without a word.
    pub(super) fn crash(&mut self, node: usize) {
        if let Some(node) = self.nodes.get_mut(node) {
            *node = Node::default();
        }
        self.views.gone(node);
    }

    /// A node's process stands still until that time, in virtual microseconds; what is sent to it waits.
    pub(super) fn stall(&mut self, node: usize, until: u64) {
        if let Some(stalled) = self.nodes.get_mut(node) {
            stalled.stalled_until = Some(until);
            self.queue.plan(until, What::Resume(node));
        }
    }

    /// From now on the two halves do not reach each other, or they do again.
    pub(super) fn set_halved(&mut self, halved: bool) {
        self.halved = halved;
        self.views.halved = halved;
    }

    /// Goes on until it holds, at most for so many microseconds. Whether it holds.
    pub(super) fn run(&mut self, micros: u64, holds: impl Fn(&Self) -> bool) -> Result<bool> {
        let until = self.now + micros;
        loop {
            if holds(self) {
                return Ok(true);
            }
            let Some((at, what)) = self.queue.pop_until(until) else {
                self.now = until;
                return Ok(false);
            };
            self.now = at;
            self.happen(what)?;
        }
    }

    fn happen(&mut self, what: What) -> Result<()> {
        let now = Duration::from_micros(self.now);
        match what {
            What::Start(node) => {
                let (id, address) = (number(node), address(node));
                let mut config = SwimConfig::new(id, address, "", "");
                config.seeds.clone_from(&self.seeds);
                let identity = Identity { node: id, address, generation: FIRST_GENERATION };
                let rng = Rng::seed_from_u64(draw(self.seed, "scale node", node as u64, 0));
                let core = Core::new(&config, identity, rng, now)?;
                if let Some(known) = self.nodes.get_mut(node) {
                    known.core = Some(core);
                }
                self.views.came(node);
                self.wake(node);
            }
            What::Wake(node) => {
                let due = |known: &&mut Node| known.wake_at == Some(self.now) && known.stalled_until.is_none();
                if let Some(known) = self.nodes.get_mut(node).filter(due) {
                    known.wake_at = None;
                    self.tick(node);
                }
            }
            What::Arrive { from, to, body } => {
                if self.halved && Self::half(from) != Self::half(to) {
                    return Ok(());
                }
                match self.nodes.get_mut(to) {
                    Some(known) if known.stalled_until.is_some() => {
                        if known.unread.len() < UNREAD_MAX {
                            known.unread.push_back(body);
                        }
                    }
                    _ => self.receive(to, &body),
                }
            }
            What::Resume(node) => self.resume(node),
        }
        Ok(())
    }

    /// A node's process goes on, in the order of what drives it in production: timers that are due, then what waits to be read; after a
    /// long sleep the other way round.
    fn resume(&mut self, node: usize) {
        let now = Duration::from_micros(self.now);
        let Some(known) = self.nodes.get_mut(node) else { return };
        (known.stalled_until, known.wake_at) = (None, None);
        let unread = std::mem::take(&mut known.unread);
        let (due, overslept) = known
            .core
            .as_ref()
            .map_or((false, false), |core| (core.wake_at().is_some_and(|at| at <= now), core.has_overslept(now)));
        if due && !overslept {
            self.tick(node);
        }
        unread.iter().for_each(|body| self.receive(node, body));
        if due && overslept {
            self.tick(node);
        }
        self.wake(node);
    }

    fn tick(&mut self, node: usize) {
        let now = Duration::from_micros(self.now);
        let core = self.nodes.get_mut(node).and_then(|known| known.core.as_mut());
        if let Some(effects) = core.map(|core| core.tick(now)) {
            self.perform(node, effects);
        }
    }

    fn receive(&mut self, node: usize, body: &[u8]) {
        let now = Duration::from_micros(self.now);
        if let Some(core) = self.nodes.get_mut(node).and_then(|known| known.core.as_mut()) {
            let effects = core.receive(body, now);
            self.traffic.received(node, body.len() + SEAL_BYTES);
            self.perform(node, effects);
        }
    }

    fn perform(&mut self, node: usize, effects: Effects) {
        for (about, state) in effects.opinions {
            if let Some(about) = node_of(about).filter(|about| *about != node) {
                self.views.thinks(node, about, state, self.now);
            }
        }
        for (to, body) in effects.sends {
            self.traffic.sent(node, body.len() + SEAL_BYTES);
            let Weather { latency_micros_min, latency_micros_max, jitter_micros_max, loss_permille } = self.weather;
            let lost = self.way.chance(loss_permille);
            let late = if self.way.chance(10) { self.way.below(jitter_micros_max) } else { 0 };
            let at = self.now + self.way.between(latency_micros_min, latency_micros_max) + late;
            if let Some(to) = node_at(to).filter(|to| !lost && *to < self.nodes.len()) {
                self.queue.plan(at, What::Arrive { from: node, to, body: body.into() });
            }
        }
        self.wake(node);
    }

    /// Plans a node's next wake-up, unless that is planned already.
    fn wake(&mut self, node: usize) {
        let now = self.now;
        let Some(known) = self.nodes.get_mut(node).filter(|known| known.stalled_until.is_none()) else { return };
        let Some(at) = known.core.as_ref().and_then(Core::wake_at) else { return };
        let micros = u64::try_from(at.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX).max(now);
        if known.wake_at.is_none_or(|planned| micros < planned) {
            known.wake_at = Some(micros);
            self.queue.plan(micros, What::Wake(node));
        }
    }
}
