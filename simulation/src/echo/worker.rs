//! The actors of the echo cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use shoal_actors::transport::{Handler, Route, Transport, TransportConfig};
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{Env, Error, ErrorCode, NodeId, Result};

use crate::panics::PLANNED;

/// Where every host listens.
pub(super) const PORT: u16 = 9176;
const ROUND: Duration = Duration::from_millis(100);
const CALL_TIMEOUT: Duration = Duration::from_millis(900);
/// One round in so many ends in a panic.
const PANIC_ONE_IN: u64 = 200;
const COUNT: &str = "/data/COUNT";

/// What the checks look at, outside of every host.
#[derive(Default)]
pub(super) struct Board(Mutex<Facts>);

#[derive(Default)]
struct Facts {
    /// Who has heard whom.
    heard: BTreeSet<(u16, u16)>,
    /// The last count that each host said was on its disk.
    said: BTreeMap<u16, u64>,
    forgotten: Option<String>,
    operations: BTreeMap<&'static str, u64>,
}

impl Board {
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget_heard(&self) {
        self.facts().heard.clear();
    }

    pub(super) fn heard(&self) -> usize {
        self.facts().heard.len()
    }

    pub(super) fn forgotten(&self) -> Option<String> {
        self.facts().forgotten.clone()
    }

    pub(super) fn operations(&self) -> BTreeMap<&'static str, u64> {
        self.facts().operations.clone()
    }

    fn count(&self, what: &'static str) {
        *self.facts().operations.entry(what).or_default() += 1;
    }

    fn found(&self, host: u16, count: u64) {
        let mut facts = self.facts();
        let said = facts.said.get(&host).copied().unwrap_or(0);
        if count < said && facts.forgotten.is_none() {
            facts.forgotten = Some(format!("host {host} had synced {said} and found {count} after its restart"));
        }
    }
}

/// The program of a host: sockets, and the supervisor that keeps the worker alive.
pub(super) async fn host(env: Env, host: u16, peers: Vec<SocketAddr>, board: Arc<Board>) {
    // A host whose sockets fail is as good as down.
    let opened = async {
        let transport = connect(&env, host, &peers).await?;
        let place = Place { env: env.clone(), host, peers, board, transport };
        listen(&place).await?;
        Ok::<_, Error>(place)
    };
    let place = match opened.await {
        Ok(place) => place,
        Err(error) => return env.trace(|| format!("cannot listen: {error}")),
    };
    if let Ok((_, handle)) = Actor::spawn(None, Supervisor, place).await {
        let _ = handle.await;
    }
}

#[derive(Clone)]
struct Place {
    env: Env,
    host: u16,
    peers: Vec<SocketAddr>,
    board: Arc<Board>,
    transport: Transport,
}

impl Place {
    fn me(&self) -> SocketAddr {
        self.peers[usize::from(self.host)]
    }

    fn others(&self) -> impl Iterator<Item = (u16, SocketAddr)> + '_ {
        (0u16..).zip(self.peers.iter().copied()).filter(|(number, _)| *number != self.host)
    }
}

async fn listen(place: &Place) -> Result<()> {
    let socket = place.env.network().datagram(place.me()).await?;
    let here = place.clone();
    place.env.spawn("datagrams", async move {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.receive_from(&mut buffer).await {
            if let Some((number, _)) = here.others().find(|(_, address)| address.ip() == from.ip()) {
                here.board.facts().heard.insert((number, here.host));
                here.board.count("datagrams heard");
            }
        }
    });
    Ok(())
}

/// The transport with everybody's address, and an echo at its end.
async fn connect(env: &Env, host: u16, peers: &[SocketAddr]) -> Result<Transport> {
    let transport = Transport::start(env, TransportConfig::new(node(host), peers[usize::from(host)], "echo")).await?;
    transport.set_cluster(1);
    for (number, address) in (0u16..).zip(peers) {
        transport.set_address(node(number), *address);
    }
    transport.register(Route::Echo, Arc::new(Echo));
    Ok(transport)
}

fn node(host: u16) -> NodeId {
    NodeId(u32::from(host) + 1)
}

struct Echo;

impl Handler for Echo {
    fn call(&self, _: NodeId, message: Bytes) -> BoxFuture<'static, Result<Bytes>> {
        Box::pin(async { Ok(message) })
    }
}

struct Supervisor;

impl Actor for Supervisor {
    type Msg = ();
    type State = Place;
    type Arguments = Place;

    async fn pre_start(&self, myself: ActorRef<()>, place: Place) -> Result<Place, ActorProcessingErr> {
        Actor::spawn_linked(None, Worker, place.clone(), myself.get_cell()).await?;
        Ok(place)
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<()>,
        event: SupervisionEvent,
        place: &mut Place,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(..) | SupervisionEvent::ActorTerminated(..) = event {
            place.env.trace(|| "worker is started again".to_owned());
            place.board.count("restarts");
            Actor::spawn_linked(None, Worker, place.clone(), myself.get_cell()).await?;
        }
        Ok(())
    }
}

struct Worker;

struct Working {
    place: Place,
    count: u64,
}

impl Actor for Worker {
    type Msg = ();
    type State = Working;
    type Arguments = Place;

    async fn pre_start(&self, myself: ActorRef<()>, place: Place) -> Result<Working, ActorProcessingErr> {
        let disk = place.env.disk();
        let count = place.env.blocking(move || -> io::Result<u64> {
            disk.create_dir_all(Path::new("/data"))?;
            if !disk.exists(Path::new(COUNT))? {
                return Ok(0);
            }
            let bytes = disk.read(Path::new(COUNT))?;
            Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| io::ErrorKind::InvalidData)?))
        });
        let count = count.await??;
        place.board.found(place.host, count);
        myself.send_after(ROUND, || ());
        Ok(Working { place, count })
    }

    async fn handle(&self, myself: ActorRef<()>, (): (), state: &mut Working) -> Result<(), ActorProcessingErr> {
        state.round().await?;
        myself.send_after(ROUND, || ());
        Ok(())
    }
}

impl Working {
    async fn round(&mut self) -> Result<(), ActorProcessingErr> {
        let place = &self.place;
        if place.env.random("panic").is_multiple_of(PANIC_ONE_IN) {
            // The supervisor must have something to do.
            std::panic::resume_unwind(Box::new(PLANNED));
        }
        self.count += 1;
        let (disk, count) = (place.env.disk(), self.count);
        place.env.blocking(move || disk.replace(Path::new(COUNT), &count.to_le_bytes())).await??;
        place.board.facts().said.insert(place.host, self.count);
        let sender = place.env.network().datagram(SocketAddr::new(place.me().ip(), 0)).await?;
        for (_, peer) in place.others() {
            sender.send_to(&self.count.to_le_bytes(), peer).await?;
        }
        for (number, _) in place.others() {
            let word = match call(&place.transport, number, self.count).await {
                Ok(()) => "calls answered",
                Err(error) if error.code() == ErrorCode::Timeout => "calls timed out",
                Err(_) => "calls broken",
            };
            place.board.count(word);
            place.env.trace(|| format!("round {} to {number}: {word}", self.count));
        }
        Ok(())
    }
}

/// Sends a message that is long enough to be cut into pieces on its way, and compares what comes back.
async fn call(transport: &Transport, peer: u16, number: u64) -> Result<()> {
    let message: Bytes = (0..500u64).flat_map(|place| (number ^ place).to_le_bytes()).collect();
    let answer = transport.call(node(peer), Route::Echo, message.clone(), CALL_TIMEOUT).await?;
    if answer == message { Ok(()) } else { Err(Error::new(ErrorCode::Corruption, "not the echo")) }
}
