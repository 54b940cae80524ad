//! The simulated network: streams that stall, datagrams that get lost, links that are cut.
//!
//! A link is one direction between two hosts. A cut link carries nothing: datagrams vanish, while what a stream sent waits,
//! as TCP would send it again, and arrives some time after the link is whole. Nobody is told of a cut.

mod datagram;
mod link;
mod request;
mod stream;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use shoal_kernel::env::{BoxDatagram, BoxListener, BoxStream, Network};

pub use link::LinkFaults;
pub use request::{Answer, NoAnswer, Reply, request};

use crate::trace::Kind;
use crate::world::{Action, Core, CrashKind, HostId, Shared, Target};
use datagram::{SimDatagram, Socket};
use link::Link;
use stream::{Backlog, Connection, SimListener, SimStream};

/// First of the ports that are given to those who ask for port 0, and to the near end of an outgoing stream.
const EPHEMERAL_PORT_FIRST: u16 = 32_768;
/// Attempts to open a stream whose peer does not answer, and the wait after each, as Linux does it.
const CONNECT_WAITS_SECONDS: [u64; 5] = [1, 2, 4, 8, 16];

/// Everything on the wire and at its ends.
#[derive(Default)]
pub(crate) struct NetworkState {
    links: BTreeMap<(HostId, HostId), Link>,
    listeners: BTreeMap<SocketAddr, Backlog>,
    sockets: BTreeMap<SocketAddr, Socket>,
    connections: BTreeMap<u64, Connection>,
    connections_made: u64,
    ports: BTreeMap<HostId, u16>,
}

impl NetworkState {
    pub(crate) fn add_host(&mut self, seed: u64, hosts: usize) {
        let Some(new) = hosts.checked_sub(1).and_then(|index| u16::try_from(index).ok()).map(HostId) else { return };
        for old in (0..=new.0).map(HostId) {
            for pair in [(old, new), (new, old)] {
                self.links.insert(pair, Link::new(seed, pair));
            }
        }
    }

    fn port(&mut self, host: HostId) -> u16 {
        let next = self.ports.entry(host).or_insert(EPHEMERAL_PORT_FIRST);
        let port = *next;
        *next = next.checked_add(1).unwrap_or(EPHEMERAL_PORT_FIRST);
        port
    }

    /// Streams that somebody holds, at one end at least.
    pub(crate) fn open_connections(&self) -> usize {
        self.connections.values().filter(|connection| connection.is_held()).count()
    }
}

/// One life's door to the network.
pub(crate) struct SimNetwork {
    shared: Arc<Shared>,
    host: HostId,
    life: u64,
}

impl SimNetwork {
    pub(crate) fn new(shared: Arc<Shared>, host: HostId, life: u64) -> Self {
        Self { shared, host, life }
    }

    async fn wait(&self, micros: u64) {
        let until = self.shared.now_micros() + micros;
        self.shared.at(self.host, self.life, until).await;
    }

    fn bindable(&self, core: &Core, address: SocketAddr) -> io::Result<()> {
        if HostId::of(address) != Some(self.host) {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        if core.lives(self.host, self.life) { Ok(()) } else { Err(io::ErrorKind::NotConnected.into()) }
    }
}

#[async_trait]
impl Network for SimNetwork {
    async fn listen(&self, mut address: SocketAddr) -> io::Result<BoxListener> {
        let mut core = self.shared.core();
        self.bindable(&core, address)?;
        if address.port() == 0 {
            address.set_port(core.network.port(self.host));
        }
        if core.network.listeners.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        core.network.listeners.insert(address, Backlog::default());
        Ok(Box::new(SimListener::new(self.shared.clone(), self.host, self.life, address)))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<BoxStream> {
        let Some(peer) = HostId::of(address) else { return Err(io::ErrorKind::HostUnreachable.into()) };
        for seconds in CONNECT_WAITS_SECONDS {
            let there = {
                let mut core = self.shared.core();
                if !core.lives(self.host, self.life) {
                    return Err(io::ErrorKind::NotConnected.into());
                }
                link::passes(&mut core, self.host, peer)
            };
            if let Some(micros) = there {
                self.wait(micros).await;
                let (answer, back) = {
                    let mut core = self.shared.core();
                    let machine_up = core.hosts.get(peer.index()).is_some_and(|state| state.machine_up);
                    match (machine_up, link::passes(&mut core, peer, self.host)) {
                        // Owned from its first moment on: a caller that gives up while the answer travels closes it.
                        (true, Some(back)) => {
                            let opened = stream::open(&mut core, self.host, self.life, address);
                            let near = |number| SimStream::new(self.shared.clone(), number, stream::Side::Near);
                            (Some(opened.map(near)), back)
                        }
                        _ => (None, 0),
                    }
                };
                if let Some(answer) = answer {
                    self.wait(back).await;
                    return Ok(Box::new(answer?));
                }
            }
            self.wait(seconds * 1_000_000).await;
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    async fn datagram(&self, mut address: SocketAddr) -> io::Result<BoxDatagram> {
        let mut core = self.shared.core();
        self.bindable(&core, address)?;
        if address.port() == 0 {
            address.set_port(core.network.port(self.host));
        }
        if core.network.sockets.contains_key(&address) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        core.network.sockets.insert(address, Socket::default());
        Ok(Box::new(SimDatagram::new(self.shared.clone(), self.host, self.life, address)))
    }
}

impl Shared {
    /// Cuts one direction between two hosts. Cuts add up: each wants its own [`Shared::mend`].
    pub fn cut(&self, from: HostId, to: HostId) {
        let mut core = self.core();
        if let Some(link) = core.network.links.get_mut(&(from, to)) {
            link.cuts += 1;
        }
        core.trace(Kind::Fault, format_args!("{from} no longer reaches {to}"));
    }

    /// Takes one cut away. Once there is none left, waiting parts of streams arrive soon after.
    pub fn mend(self: &Arc<Self>, from: HostId, to: HostId) {
        let mut core = self.core();
        let Some(link) = core.network.links.get_mut(&(from, to)).filter(|link| link.cuts > 0) else { return };
        link.cuts -= 1;
        if link.cuts == 0 {
            core.trace(Kind::Fault, format_args!("{from} reaches {to} again"));
            stream::resume(self, &mut core, from, to);
        }
    }

    /// Takes every cut and every fault of every link away.
    pub fn heal_network(self: &Arc<Self>) {
        let mut core = self.core();
        core.trace(Kind::Fault, format_args!("the network is healed"));
        let mut mended = Vec::new();
        for (pair, link) in &mut core.network.links {
            if link.cuts > 0 {
                mended.push(*pair);
            }
            (link.cuts, link.faults) = (0, LinkFaults::default());
        }
        for (from, to) in mended {
            stream::resume(self, &mut core, from, to);
        }
    }

    /// Replaces the faults of one direction between two hosts.
    pub fn set_link_faults(&self, from: HostId, to: HostId, faults: LinkFaults) {
        let mut core = self.core();
        if let Some(link) = core.network.links.get_mut(&(from, to)) {
            link.faults = faults;
        }
        core.trace(Kind::Fault, format_args!("{from} to {to}: {faults}"));
    }

    /// Resets every stream between two hosts, as a middle box that lost its table would.
    pub fn reset_streams(self: &Arc<Self>, one: HostId, other: HostId) {
        let mut core = self.core();
        core.trace(Kind::Fault, format_args!("streams between {one} and {other} are reset"));
        stream::reset_between(self, &mut core, one, other);
    }

    /// Streams that somebody holds, at one end at least.
    pub fn open_connections(&self) -> usize {
        self.core().network.open_connections()
    }
}

/// A host is up again: peers that still send on streams of its earlier life learn that those are gone.
pub(crate) fn host_started(shared: &Arc<Shared>, host: HostId) {
    let mut core = shared.core();
    stream::reset_stale(shared, &mut core, host);
}

/// A host went down. After the death of a process its machine resets its streams; after a loss of power nobody hears.
pub(crate) fn host_stopped(shared: &Arc<Shared>, host: HostId, kind: CrashKind) {
    let mut core = shared.core();
    core.network.listeners.retain(|address, _| HostId::of(*address) != Some(host));
    core.network.sockets.retain(|address, _| HostId::of(*address) != Some(host));
    stream::abandon(&mut core, host);
    if kind == CrashKind::Process {
        stream::reset_stale(shared, &mut core, host);
    }
}

/// Makes code run on a host, in its present life, at a moment.
fn deliver(core: &mut Core, host: HostId, at_micros: u64, job: impl FnOnce() + Send + 'static) {
    let life = core.hosts.get(host.index()).map_or(0, |state| state.life);
    core.schedule(at_micros, Target::Host { host, life }, Action::Run(Box::new(job)));
}
