//! Where everything of one node's transport meets: handlers, addresses, links to peers, and the tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_kernel::env::{BoxListener, BoxStream, TaskHandle};
use shoal_kernel::{Env, Error, ErrorCode, NodeId, Result};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::TransportConfig;
use super::connection::{self, Connection, Role, lost};
use super::handshake::{self, Dialled, Identity, Lane};
use super::lock;
use super::route::{Handler, Route};
use super::stats::{Counters, TransportStats, add};

/// Whom a link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    Node(NodeId),
    /// Whoever is there: used to join, before ids are known.
    Address(SocketAddr),
}

/// The way to a peer on one lane: at most one connection, and when the next may be dialled.
#[derive(Default)]
struct Link {
    connection: Option<Arc<Connection>>,
    failures: u32,
    not_before: Duration,
    last: Option<Error>,
}

#[derive(Default)]
struct State {
    stopping: bool,
    handlers: BTreeMap<Route, Arc<dyn Handler>>,
    addresses: BTreeMap<NodeId, SocketAddr>,
    links: BTreeMap<(Peer, Lane), Link>,
    connections: BTreeMap<u64, Arc<Connection>>,
    connections_made: u64,
    /// The version of the last handshake with each node.
    spoken: BTreeMap<NodeId, u16>,
}

pub(super) struct Hub {
    pub(super) env: Env,
    pub(super) config: TransportConfig,
    pub(super) counters: Arc<Counters>,
    pub(super) local: SocketAddr,
    pub(super) stop: CancellationToken,
    cluster: AtomicU64,
    state: Mutex<State>,
    tasks: TaskTracker,
    half_open: Arc<Semaphore>,
    accepted: Arc<Semaphore>,
    serving: BTreeMap<Route, Arc<Semaphore>>,
}

impl Hub {
    pub(super) async fn start(env: &Env, config: TransportConfig) -> Result<Arc<Self>> {
        let config = config.checked()?;
        let listener = env.network().listen(config.listen).await;
        let listener =
            listener.map_err(|error| Error::from(error).context(format!("cannot listen on {}", config.listen)))?;
        let hub = Arc::new(Self {
            env: env.clone(),
            local: listener.local_address()?,
            stop: CancellationToken::new(),
            counters: Arc::default(),
            cluster: AtomicU64::new(0),
            state: Mutex::default(),
            tasks: TaskTracker::new(),
            half_open: Arc::new(Semaphore::new(config.half_open_max)),
            accepted: Arc::new(Semaphore::new(config.accepted_max)),
            serving: Route::ALL.map(|route| (route, Arc::new(Semaphore::new(config.serving_max)))).into(),
            config,
        });
        hub.spawn("transport.accept", hub.clone().accept_all(listener));
        Ok(hub)
    }

    /// Runs a task that [`Hub::shutdown`] waits for.
    pub(super) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> TaskHandle {
        self.env.spawn(name, self.tasks.track_future(task))
    }

    pub(super) fn register(&self, route: Route, handler: Arc<dyn Handler>) {
        lock(&self.state).handlers.insert(route, handler);
    }

    pub(super) fn handler(&self, route: Route) -> Option<Arc<dyn Handler>> {
        lock(&self.state).handlers.get(&route).cloned()
    }

    pub(super) fn serving(&self, route: Route) -> Arc<Semaphore> {
        // Every route has one; a closed semaphore would refuse.
        self.serving.get(&route).cloned().unwrap_or_else(|| Arc::new(Semaphore::new(0)))
    }

    pub(super) fn set_cluster(&self, cluster: u64) {
        self.cluster.store(cluster, Ordering::Relaxed);
    }

    pub(super) fn set_address(&self, node: NodeId, address: SocketAddr) {
        let mut state = lock(&self.state);
        if state.addresses.insert(node, address) != Some(address) {
            state.forgive(node);
        }
    }

    fn identity(&self) -> Identity<'_> {
        let mut nonce = [0; 32];
        for chunk in nonce.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.env.random("transport.nonce").to_le_bytes());
        }
        Identity {
            node: self.config.node,
            cluster: self.cluster.load(Ordering::Relaxed),
            secret: &self.config.secret,
            nonce,
            versions: handshake::VERSIONS,
        }
    }

    /// The connection to a peer: the one there is, or a new one that is being dialled.
    ///
    /// # Errors
    /// No address is known, or the last attempt failed a moment ago (with that attempt's error), or the node is stopping.
    pub(super) fn connection(self: &Arc<Self>, peer: Peer, lane: Lane) -> Result<Arc<Connection>> {
        let mut state = lock(&self.state);
        if state.stopping {
            return Err(Error::new(ErrorCode::NotReady, "the node is stopping"));
        }
        let address = match peer {
            Peer::Address(address) => Some(address),
            Peer::Node(node) => state.addresses.get(&node).copied(),
        };
        let number = state.connections_made + 1;
        let link = state.links.entry((peer, lane)).or_default();
        if let Some(connection) = link.connection.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let (node, address) = match (peer, address) {
            (Peer::Node(node), Some(address)) => (Some(node), address),
            (Peer::Address(_), Some(address)) => (None, address),
            (_, None) => return Err(Error::new(ErrorCode::NodeLost, format!("no address is known of {peer:?}"))),
        };
        let wait = link.not_before.saturating_sub(self.env.monotonic());
        if !wait.is_zero() {
            let last = link.last.clone().unwrap_or_else(|| Error::new(ErrorCode::NodeLost, "the peer was lost"));
            return Err(last.with_retry_after_ms(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)));
        }
        let connection =
            Arc::new(Connection::new(&self.env, &self.config, &self.counters, number, lane, Role::Dialler, node));
        link.connection = Some(connection.clone());
        state.connections_made = number;
        state.connections.insert(number, connection.clone());
        drop(state);
        self.spawn("transport.link", self.clone().run_link(peer, lane, address, connection.clone()));
        Ok(connection)
    }

    /// Dials a connection and keeps it until it is lost.
    async fn run_link(self: Arc<Self>, peer: Peer, lane: Lane, address: SocketAddr, connection: Arc<Connection>) {
        let expected = match peer {
            Peer::Node(node) => node,
            Peer::Address(_) => NodeId::default(),
        };
        let dialled = tokio::select! {
            biased;
            () = connection.closed.cancelled() => None,
            dialled = self.env.timeout(self.config.connect_timeout(), self.dial(address, lane, expected)) => Some(
                dialled.unwrap_or_else(|_| {
                    Err(Error::new(
                        ErrorCode::NodeLost,
                        format!("{address} did not answer within {} ms (connect_timeout_ms)", self.config.connect_timeout_ms),
                    ))
                }),
            ),
        };
        let up_at = self.env.monotonic();
        match dialled {
            None => {}
            Some(Ok((node, stream))) => {
                self.env.trace(|| format!("transport {} connected to {node} for {lane:?}", self.config.node));
                connection.set_up(node);
                connection::run(&self, &connection, stream).await;
            }
            Some(Err(error)) => {
                add(&self.counters.handshakes_failed, 1);
                tracing::debug!(%address, %error, "cannot connect to a peer");
                connection.close(error);
            }
        }
        self.link_lost(peer, lane, &connection, up_at);
    }

    async fn dial(&self, address: SocketAddr, lane: Lane, expected: NodeId) -> Result<(NodeId, BoxStream)> {
        // Once in the newest version, and in the peer's if that is an older one.
        let mut spoken = handshake::VERSIONS.newest;
        loop {
            let stream = self.env.network().connect(address).await;
            let mut stream = stream
                .map_err(|error| Error::new(ErrorCode::NodeLost, format!("cannot connect to {address}: {error}")))?;
            match handshake::dial(&mut stream, self.identity(), spoken, lane, expected).await? {
                Dialled::Welcome(node) => {
                    lock(&self.state).spoken.insert(node, spoken);
                    return Ok((node, stream));
                }
                Dialled::Speaks(older) => spoken = older,
            }
        }
    }

    /// Notes that a dialled connection is gone, and when the next may be tried.
    fn link_lost(&self, peer: Peer, lane: Lane, connection: &Arc<Connection>, up_at: Duration) {
        let now = self.env.monotonic();
        let random = self.env.random("transport.reconnect");
        let error = connection.lost();
        self.env.trace(|| format!("transport {} lost {:?} for {lane:?}", self.config.node, connection.peer()));
        let mut state = lock(&self.state);
        state.connections.remove(&connection.number);
        if let Peer::Address(_) = peer {
            // Whoever joins has a pace of its own.
            state.links.remove(&(peer, lane));
            return;
        }
        let link = state.links.entry((peer, lane)).or_default();
        let held_ms = now.saturating_sub(up_at).as_millis();
        // A connection that held for a while starts the count anew; one that breaks at once keeps counting.
        link.failures = if held_ms > u128::from(self.config.reconnect_max_ms) { 1 } else { link.failures + 1 };
        link.not_before = now + self.config.reconnect_pause(link.failures, random);
        link.last = Some(error.with_applied(shoal_kernel::Applied::False));
        link.connection = None;
    }

    async fn accept_all(self: Arc<Self>, mut listener: BoxListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => match self.half_open.clone().try_acquire_owned() {
                    Ok(place) => {
                        let hub = self.clone();
                        self.spawn("transport.accepted", async move {
                            let accepted = hub.shake_hands(stream, from).await;
                            drop(place);
                            if let Some((connection, stream, _place)) = accepted {
                                hub.run_accepted(connection, stream).await;
                            }
                        });
                    }
                    Err(_) => add(&self.counters.handshakes_failed, 1),
                },
                Err(error) => {
                    // Out of descriptors, or the peer went away in between: neither is a reason to stop listening, nor to
                    // spin.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return,
                        () = self.env.sleep(Duration::from_millis(self.config.reconnect_min_ms)) => {}
                    }
                }
            }
        }
    }

    async fn shake_hands(
        self: &Arc<Self>,
        mut stream: BoxStream,
        from: SocketAddr,
    ) -> Option<(Arc<Connection>, BoxStream, tokio::sync::OwnedSemaphorePermit)> {
        let place = self.accepted.clone().try_acquire_owned().ok();
        let shaken = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            shaken = self.env.timeout(
                self.config.connect_timeout(),
                handshake::accept(&mut stream, self.identity(), place.is_none()),
            ) => shaken,
        };
        let refusal = match (shaken, place) {
            (Ok(Ok(hello)), Some(place)) => match self.admit_connection(hello) {
                Some(connection) => return Some((connection, stream, place)),
                None => Error::new(ErrorCode::NotReady, "the node is stopping"),
            },
            (Ok(Err(error)), _) => error,
            (Ok(Ok(_)), None) => Error::new(ErrorCode::Overloaded, "accepted_max connections are open"),
            (Err(_), _) => Error::new(ErrorCode::Timeout, "no handshake within connect_timeout_ms"),
        };
        add(&self.counters.handshakes_failed, 1);
        tracing::warn!(%from, error = %refusal, "refused a connection");
        None
    }

    fn admit_connection(self: &Arc<Self>, hello: handshake::Hello) -> Option<Arc<Connection>> {
        let mut state = lock(&self.state);
        if state.stopping {
            return None;
        }
        state.connections_made += 1;
        state.spoken.insert(hello.node, hello.version);
        let number = state.connections_made;
        let (lane, node) = (hello.lane, hello.node);
        let connection = Arc::new(Connection::new(
            &self.env,
            &self.config,
            &self.counters,
            number,
            lane,
            Role::Acceptor,
            Some(node),
        ));
        connection.set_up(node);
        state.connections.insert(number, connection.clone());
        // It is alive: there is no reason to wait before dialling it.
        state.forgive(node);
        Some(connection)
    }

    async fn run_accepted(self: &Arc<Self>, connection: Arc<Connection>, stream: BoxStream) {
        connection::run(self, &connection, stream).await;
        lock(&self.state).connections.remove(&connection.number);
    }

    /// Closes every connection with a node, in both directions.
    pub(super) fn node_down(&self, node: NodeId) {
        let connections: Vec<_> = {
            let state = lock(&self.state);
            state.connections.values().filter(|connection| connection.peer() == node).cloned().collect()
        };
        for connection in connections {
            connection.close(lost(node, "the node is reported down"));
        }
    }

    /// Whether this node last talked in that version or a newer one with each of these, and `unknown` where it never did.
    pub(super) fn all_speak(&self, nodes: &BTreeSet<NodeId>, version: u16, unknown: bool) -> bool {
        let state = lock(&self.state);
        let mut others = nodes.iter().filter(|node| **node != self.config.node);
        others.all(|node| state.spoken.get(node).map_or(unknown, |spoken| *spoken >= version))
    }

    /// Reads that brought something from a node, on all connections that there are.
    pub(super) fn heard(&self, from: NodeId) -> u64 {
        let state = lock(&self.state);
        state.connections.values().filter(|connection| connection.peer() == from).map(|known| known.heard()).sum()
    }

    pub(super) fn stats(&self) -> TransportStats {
        TransportStats {
            connections: lock(&self.state).connections.len() as u64,
            tasks: self.tasks.len() as u64,
            ..self.counters.read()
        }
    }

    pub(super) async fn shutdown(&self) {
        let connections = {
            let mut state = lock(&self.state);
            state.stopping = true;
            std::mem::take(&mut state.connections)
        };
        for connection in connections.values() {
            connection.close(lost(connection.peer(), "this node is stopping"));
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let mut state = lock(&self.state);
        state.links.clear();
        // Handlers hold what they serve, which may hold the transport.
        state.handlers.clear();
    }
}

impl State {
    /// Lets a node be dialled at once.
    fn forgive(&mut self, node: NodeId) {
        for lane in [Lane::Control, Lane::Bulk] {
            if let Some(link) = self.links.get_mut(&(Peer::Node(node), lane)) {
                link.not_before = Duration::ZERO;
                link.failures = 0;
            }
        }
    }
}
