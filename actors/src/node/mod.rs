//! A node: everything that runs on one machine's share of the cluster, behind one handle.
//!
//! Start order: identity and lock, clock, transport, agreement, SWIM, actors; then, in the background, joining. Stop order is
//! the reverse: requests are refused, queries end, actors stop (their stores stay recoverable at any moment), the lock goes
//! last. A crash at any point is the same as a stop, but for time.

mod backup;
mod change;
pub(crate) mod clock;
pub(crate) mod context;
pub(crate) mod identity;
pub(crate) mod laggards;
mod levels;
pub(crate) mod liveness;
mod maintain;
mod members;
mod over;
pub(crate) mod pace;
mod peer_clocks;
mod reading;
mod repair;
mod restore;
mod rpc;
mod split;
mod statement;
mod status;
mod supervisor;
mod system;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorRef};
use shoal_catalog::{Catalog, Command, NodeAttributes, Table};
use shoal_kernel::env::TaskHandle;
use shoal_kernel::{Env, Error, ErrorCode, NodeId, Planted, QueryId, Result};
use shoal_membership::{Agreement, AgreementConfig, CatalogObserver, Swim, SwimConfig};
use shoal_planner::Planner;
use shoal_storage::PagePool;

use self::clock::NodeClock;
use self::context::NodeContext;
use self::identity::Identity;
use self::liveness::Liveness;
use self::over::Over;
use self::pace::Pace;
use self::reading::{Places, Replicas};
use self::rpc::{AgreementIn, AgreementOut};
use self::supervisor::{NodeMessage, NodeSupervisor};
use crate::backup::{fetch, upload::PART_BYTES};
use crate::gateway::Gateway;
use crate::query::{QueryLimits, QueryService, QueryStats};
use crate::replica::ReplicaService;
use crate::replica::directory::ReplicaDirectory;
use crate::replica::heads::Heads;
use crate::replica::opening;
use crate::replica::replicator::PULL_BYTES_MAX;
use crate::rounds::Rounds;
use crate::service::{
    BalanceStatus, ClusterStatus, Evolution, NodeChange, NodeConfig, NodeEnd, QueryStream, SqlRequest, WriteReport,
    WriteRequest,
};
use crate::transport::{Route, Transport, TransportConfig};

/// How long replicas may go on with beginning to flush when the node stops.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);
/// How long actors and disks may take to end what they do.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one step of a merge at most: it holds a thread as long as it runs, and what waits for the merge to be given up.
const COMPACTION_STEP_BYTES_MAX: u64 = 1 << 20;
/// Answers of peers that replicas which are being filled may have in hand at once.
const FILLING_MAX: usize = 8;
/// Partitions of a node that are backed up or restored at once.
const BACKUPS_MAX: usize = 2;
/// Pause between two attempts to join.
const JOIN_PAUSE: Duration = Duration::from_millis(500);
/// How long one attempt to join may take.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A running node. Cheap to clone; the node stops at [`Node::shutdown`], not when a handle is dropped.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

/// How long a request waits for a node that is starting, and how often it looks.
const JOINING_PATIENCE: Duration = Duration::from_secs(3);
const JOINING_GLANCE: Duration = Duration::from_millis(20);

struct Inner {
    context: Arc<NodeContext>,
    directory: Arc<ReplicaDirectory>,
    gateway: Gateway,
    planner: Planner,
    catalog_rounds: Rounds<Result<Arc<Catalog>>>,
    queries: QueryService,
    root: ActorRef<NodeMessage>,
    over: Over,
    tasks: Mutex<Vec<TaskHandle>>,
    /// Why the node has not joined, while it has not.
    joining: Mutex<Option<Error>>,
    /// Held until the node has stopped.
    identity: Mutex<Option<Identity>>,
}

impl Node {
    /// Opens the data directory, joins or founds the cluster and starts every actor. Returns as soon as the node is up; it
    /// takes requests once [`Node::ready`] says so.
    ///
    /// # Errors
    /// The data directory is locked, unreadable or of another cluster; the cluster address cannot be bound.
    pub async fn start(env: Env, config: NodeConfig) -> Result<Self> {
        let identity = Identity::claim(&env, &config.data_dir).await?;
        let (world, dir) = (env.clone(), config.data_dir.clone());
        let cleaned = move || fetch::clean(&world, &dir).and_then(|()| crate::query::clean_spilled(&world, &dir));
        env.blocking(cleaned).await??;
        let node = identity.node;
        if config.has(Planted::ClockBoundForgotten) {
            let (disk, path) = (env.disk(), NodeClock::path(&config.data_dir));
            env.blocking(move || if disk.exists(&path)? { disk.remove_file(&path) } else { Ok(()) }).await??;
        }
        let believes_itself = config.has(Planted::OwnClockBelieved) || config.has(Planted::AnyClockTrusted);
        let clock = NodeClock::open(&env, &config.data_dir, config.clock_skew_max_ms, believes_itself).await?;
        let clock = Arc::new(clock);
        let mut transport_config = TransportConfig::new(node, config.cluster_address, config.cluster_secret.clone());
        transport_config.checks_frames = !config.has(Planted::NoFrameChecksum);
        transport_config.grants_credit = !config.has(Planted::CreditLeaked);
        let transport = Transport::start(&env, transport_config).await?;
        let rpc = Arc::new(AgreementOut(transport.clone()));
        let attributes = NodeAttributes {
            cluster_address: config.cluster_address,
            http_address: config.http_address,
            zone: config.zone.clone(),
        };
        let agreed = AgreementConfig {
            planted: config.planted,
            observer: config.observer.clone().map(|observer| observer as Arc<dyn CatalogObserver>),
            ..AgreementConfig::new(node, attributes, config.data_dir.clone())
        };
        let agreement = Agreement::open(&env, agreed, rpc).await?;
        transport.register(Route::Agreement, Arc::new(AgreementIn(agreement.clone())));
        let known = agreement.catalog().borrow().clone();
        let mut swim_config =
            SwimConfig::new(node, config.cluster_address, config.cluster_secret.clone(), config.data_dir.clone());
        swim_config.cluster_id = known.cluster_id;
        swim_config.seeds = config.join.clone();
        swim_config.seeds.extend(
            known.nodes.values().filter(|record| record.id != node).map(|record| record.attributes.cluster_address),
        );
        if config.has(Planted::NoSecondChance) {
            (swim_config.announce_to_down_ms, swim_config.seek_ms) = (u64::MAX / 4, u64::MAX / 4);
        }
        let swim = Swim::start(&env, swim_config).await?;
        let liveness = Liveness::new(node, swim.members(), agreement.catalog());
        let pool = Arc::new(PagePool::new(config.page_pool_bytes_max));
        let pace = |places, bytes_per_second, step_bytes_max| {
            Arc::new(Pace::new(env.clone(), places, bytes_per_second, step_bytes_max))
        };
        let compaction = pace(config.compactions_max, config.compaction_bytes_per_second, COMPACTION_STEP_BYTES_MAX);
        let filling = pace(FILLING_MAX, config.fill_bytes_per_second, PULL_BYTES_MAX);
        let backups = pace(BACKUPS_MAX, config.backup_bytes_per_second, PART_BYTES as u64);
        let replay_helpers = Arc::new(tokio::sync::Semaphore::new(opening::HELPERS_MAX));
        let context = Arc::new(NodeContext {
            env,
            node,
            config,
            clock,
            transport,
            agreement,
            swim,
            liveness,
            heads: Heads::default(),
            pool,
            compaction,
            filling,
            fetching: tokio::sync::Semaphore::new(crate::replica::fill::FETCHES_MAX),
            lending: Arc::new(tokio::sync::Semaphore::new(crate::replica::lend::LENT_MAX)),
            backups,
            replay_helpers,
            repairs: tokio::sync::Semaphore::new(crate::replica::repair::PULLING_MAX),
        });

        let directory = Arc::new(ReplicaDirectory::default());
        context.transport.register(Route::Replica, Arc::new(ReplicaService::new(context.clone(), directory.clone())));
        let over = Over::new();
        let arguments =
            supervisor::Arguments { context: context.clone(), directory: directory.clone(), over: over.clone() };
        let (root, root_runs) = Actor::spawn(None, NodeSupervisor, arguments)
            .await
            .map_err(|error| Error::internal(format!("the node's supervisor did not start: {error}")))?;
        let planner = Planner::new();
        let queries = QueryService::start(
            &context.env,
            context.transport.clone(),
            Arc::new(planner.clone()),
            Arc::new(Replicas::new(directory.clone(), context.clone())),
            Arc::new(Places::new(directory.clone(), context.clone())),
            QueryLimits::of(&context.config),
            Some(root.get_cell()),
        )
        .await?;
        let inner = Arc::new(Inner {
            gateway: Gateway::new(context.clone()),
            context,
            directory,
            planner,
            catalog_rounds: Rounds::default(),
            queries,
            root,
            over,
            tasks: Mutex::default(),
            joining: Mutex::new(Some(Error::new(ErrorCode::NotReady, "the node has not joined the cluster yet"))),
            identity: Mutex::new(Some(identity)),
        });
        inner.context.transport.register(Route::Backup, Arc::new(backup::Service(Arc::downgrade(&inner))));
        inner.keep_for_life("supervisor", async move {
            let _ = root_runs.await;
        });
        inner.watch_catalog();
        inner.watch_members();
        inner.join();
        Ok(Self(inner))
    }

    /// The node's number.
    pub fn id(&self) -> NodeId {
        self.0.context.node
    }

    /// Its access to the world.
    pub fn env(&self) -> &Env {
        &self.0.context.env
    }

    /// Where other nodes reach it.
    pub fn cluster_address(&self) -> SocketAddr {
        self.0.context.config.cluster_address
    }

    /// Whether the node has joined, applied the catalog and opened its replicas, but for those that it has given up.
    ///
    /// # Errors
    /// Not yet, or stopping; says what it waits for.
    pub fn ready(&self) -> Result<()> {
        self.0.takes_requests()?;
        if let Some(problem) = self.0.context.agreement.status().problem {
            if problem.code() == ErrorCode::CatalogDiverged {
                return Err(problem);
            }
            return Err(Error::new(ErrorCode::NotReady, format!("the catalog's log has failed: {problem}"))
                .with_help("restart the node; its tables are served meanwhile"));
        }
        let unparted = self.0.directory.unparted();
        let waiting: Vec<String> = self
            .0
            .directory
            .all()
            .iter()
            // One that is being filled answers nobody anyway.
            .filter(|handle| handle.store().is_err() && !handle.is_given_up() && handle.fetching().is_none())
            .map(|handle| match handle.replaying() {
                Some(how_far) => format!("{} ({how_far})", handle.partition),
                None => handle.partition.to_string(),
            })
            .chain(unparted.into_iter().filter(|(_, given_up)| !given_up).map(|(id, _)| format!("{id} (to be split)")))
            .collect();
        if waiting.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorCode::NotReady, format!("replicas are being opened: {}", waiting.join(", "))))
    }

    /// Starts one SQL statement. Parsing and planning errors come back here; everything later through the stream.
    ///
    /// # Errors
    /// The text does not parse or plan, or the node is overloaded.
    pub async fn sql(&self, request: SqlRequest) -> Result<QueryStream> {
        self.0.admit().await?;
        self.0.sql(request).await
    }

    /// Stops a query, wherever it was asked. Its stream ends with [`ErrorCode::Cancelled`].
    ///
    /// # Errors
    /// No such query runs.
    pub async fn cancel(&self, query: QueryId) -> Result<()> {
        self.0.queries.cancel(query).await
    }

    /// The definition of a table; asks the catalog's leader if this node has not heard of it.
    ///
    /// # Errors
    /// No such table; suggests names that are close.
    pub async fn table(&self, name: &str) -> Result<Arc<Table>> {
        self.0.admit().await?;
        self.0.table_refreshed(name).await
    }

    /// Names of all tables, in order.
    pub fn tables(&self) -> Vec<String> {
        let catalog = self.0.context.agreement.catalog().borrow().clone();
        let mut names: Vec<String> = catalog.tables.values().map(|table| table.name.clone()).collect();
        names.sort();
        names
    }

    /// How many changes the catalog has seen that this node knows.
    pub fn catalog_version(&self) -> u64 {
        self.0.context.agreement.catalog().borrow().version
    }

    /// Writes rows. Nothing is sent before all of them have been checked.
    ///
    /// # Errors
    /// Each says whether anything was applied.
    pub async fn write(&self, request: WriteRequest) -> Result<WriteReport> {
        self.0.admit().await?;
        let table = self.0.table_refreshed(&request.table).await?;
        self.0.gateway.write(table, request).await
    }

    /// The same for rows that were made for a definition of the table which others may have left behind meanwhile.
    ///
    /// # Errors
    /// As of [`Node::write`].
    pub async fn write_as(&self, table: Arc<Table>, request: WriteRequest) -> Result<WriteReport> {
        self.0.admit().await?;
        self.0.gateway.write(table, request).await
    }

    /// Tries to have a table made or changed, and gives it as it then is: somebody else may have been faster.
    ///
    /// # Errors
    /// The catalog has no quorum, or the table cannot be so.
    pub async fn evolve(&self, change: Evolution) -> Result<Arc<Table>> {
        self.0.admit().await?;
        self.0.evolve(change).await
    }

    /// The cluster as this node sees it; lags are asked of the replicas.
    pub async fn cluster(&self) -> ClusterStatus {
        status::cluster(&self.0.context, false).await
    }

    /// The same with digests that count the content of rows as well. Every replica reads what has changed since it was asked
    /// last, all of it at first.
    pub async fn cluster_by_content(&self) -> ClusterStatus {
        status::cluster(&self.0.context, true).await
    }

    /// What is in hand: all zero on a node at rest.
    pub fn in_hand(&self) -> InHand {
        let transport = self.0.context.transport.stats();
        let handles = self.0.directory.all();
        InHand {
            queries: self.0.queries.stats(),
            write_bytes: self.0.gateway.inflight_bytes(),
            queued_bytes: handles.iter().map(|handle| handle.queued_bytes()).sum(),
            queued_bytes_most: handles.iter().map(|handle| handle.queued_bytes()).max().unwrap_or(0),
            streams: transport.streams_receiving + transport.streams_sending,
        }
    }

    /// Bytes of memory that rows of one replica take which are not flushed: the most that one has.
    pub fn memtables_bytes_most(&self) -> u64 {
        let handles = self.0.directory.all();
        handles.iter().filter_map(|handle| handle.store().ok()).map(|store| store.memtable_bytes()).max().unwrap_or(0)
    }

    /// For tests: every replica of this node that has peers loses one in so many of its rows and tombstones, behind the back of its
    /// log, and it says how many. Only a comparison of digests can find that.
    ///
    /// # Errors
    /// Nobody observes the node, so this is no test; or as the disk reports.
    pub async fn lose_rows(&self, one_in: u64) -> Result<u64> {
        self.0.lose_rows(one_in).await
    }

    /// Changes what a node of the cluster is for: gives its replicas to others, say, or takes it out. Comes back once that is agreed
    /// on; how far it has got, [`Node::cluster`] tells.
    ///
    /// # Errors
    /// There is no such node, the cluster cannot do without it, or the catalog has no quorum.
    pub async fn change_node(&self, id: NodeId, change: NodeChange, timeout: Duration) -> Result<()> {
        self.0.admit().await?;
        self.0.change_node(id, change, timeout).await
    }

    /// How evenly replicas are spread, and what placement would still do about it.
    ///
    /// # Errors
    /// The node takes no requests.
    pub async fn balance(&self) -> Result<BalanceStatus> {
        self.0.admit().await?;
        self.0.balance().await
    }

    /// Has replicas moved for balance, or no longer: those on their way for it alone are called off. Comes back once that is agreed on.
    ///
    /// # Errors
    /// The catalog has no quorum.
    pub async fn pause_balance(&self, paused: bool, timeout: Duration) -> Result<()> {
        self.0.admit().await?;
        let command = Command::PauseBalance { paused };
        self.0.context.change_catalog(command, "the change of balance", timeout).await.map(drop)
    }

    /// Waits until the node's part is over by itself: its process should end. Replicas that fail are restarted by their supervisor;
    /// this is for what no supervisor can mend: the catalog's log has failed, or a part that every node has keeps failing.
    pub async fn ended(&self) -> NodeEnd {
        self.0.ended().await
    }

    /// Takes no more requests, ends what runs, and closes the data directory. What is in memory is flushed as far as time
    /// allows, so that the next start has little to replay; nothing depends on it.
    pub async fn shutdown(&self) {
        let inner = &self.0;
        if inner.over.stop() {
            return;
        }
        // As long as the others believe that this node is there, their queries may end in peace.
        inner.queries.drain().await;
        inner.context.swim.leave().await;
        inner.queries.shutdown().await;
        let tasks = std::mem::take(&mut *inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in &tasks {
            task.abort();
        }
        let _ = inner.root.stop_and_wait(None, Some(STOP_TIMEOUT)).await;
        let handles = inner.directory.all();
        let env = &inner.context.env;
        let until = env.monotonic() + FLUSH_PATIENCE;
        for handle in &handles {
            let left = until.saturating_sub(env.monotonic());
            if left.is_zero() {
                break;
            }
            let handle = handle.clone();
            let flushed = env.blocking(move || handle.flush_at_end());
            // What has begun goes on, and closing waits for it.
            let _ = env.timeout(left, flushed).await;
        }
        let closed = inner.context.env.blocking(move || handles.iter().for_each(|handle| handle.close()));
        let _ = inner.context.env.timeout(STOP_TIMEOUT, closed).await;
        inner.context.agreement.shutdown().await;
        inner.context.swim.shutdown().await;
        if !inner.context.config.has(Planted::StreamsLeftOpen) {
            inner.context.transport.shutdown().await;
        }
        inner.identity.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// What a node has in hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InHand {
    /// Queries asked here, and shards and merges that run here.
    pub queries: QueryStats,
    /// Bytes of rows on their way to replicas.
    pub write_bytes: u64,
    /// Bytes of writes that wait for replicas of this node, or are being committed by them.
    pub queued_bytes: u64,
    /// Of one replica, the most.
    pub queued_bytes_most: u64,
    /// Streams open to and from other nodes.
    pub streams: u64,
}

impl Inner {
    /// Lets a request in; one that comes a moment before the node has joined waits for that.
    async fn admit(&self) -> Result<()> {
        let env = &self.context.env;
        let until = env.monotonic() + JOINING_PATIENCE;
        loop {
            match self.takes_requests() {
                Err(_) if !self.over.is_stopping() && env.monotonic() < until => {
                    env.sleep(JOINING_GLANCE).await;
                }
                admitted => return admitted,
            }
        }
    }

    fn takes_requests(&self) -> Result<()> {
        if self.over.is_stopping() {
            return Err(Error::new(ErrorCode::NotReady, "the node is stopping"));
        }
        match &*self.joining.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    fn keep(&self, task: TaskHandle) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// Keeps a task that must not end before the node does.
    fn keep_for_life(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.keep(self.context.env.spawn(what, self.over.clone().unless_it_lasts(what, task)));
    }

    /// Tells transport and actors what the catalog says.
    fn watch_catalog(self: &Arc<Self>) {
        let (context, root) = (self.context.clone(), self.root.clone());
        let mut catalog = context.agreement.catalog();
        self.keep_for_life("catalog watcher", async move {
            loop {
                let now = catalog.borrow_and_update().clone();
                if now.cluster_id != 0 {
                    context.transport.set_cluster(now.cluster_id);
                    context.swim.belong_to(now.cluster_id);
                }
                for record in now.nodes.values().filter(|record| record.id != context.node) {
                    context.transport.set_address(record.id, record.attributes.cluster_address);
                    if !context.swim.members().borrow().contains_key(&record.id) {
                        context.swim.announce(record.attributes.cluster_address);
                    }
                }
                if root.cast(NodeMessage::Catalog(now)).is_err() || catalog.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Fails what waits for a node that SWIM has given up.
    fn watch_members(self: &Arc<Self>) {
        let (context, queries) = (self.context.clone(), self.queries.clone());
        let mut members = context.swim.members();
        self.keep_for_life("member watcher", async move {
            let (mut known, mut down, mut silent) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
            loop {
                let now = members.borrow_and_update().clone();
                for (node, member) in now.iter().filter(|(node, _)| **node != context.node) {
                    known.insert(*node);
                    // Gossip hears of a new address before the catalog, and even without its quorum.
                    context.agreement.learn_address(*node, member.address);
                    context.transport.set_address(*node, member.address);
                }
                // Also those in whose place another node has come, perhaps before anybody had missed them.
                for node in &known {
                    if !context.liveness.is_down(*node) {
                        down.remove(node);
                    } else if down.insert(*node) {
                        context.transport.node_down(*node);
                        queries.node_down(*node);
                    }
                }
                let suspected = context.liveness.suspected();
                for node in suspected.difference(&silent) {
                    queries.node_silent(*node);
                }
                silent = suspected;
                if members.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Founds or joins in the background, until it has worked or cannot work.
    fn join(self: &Arc<Self>) {
        let inner = self.clone();
        self.keep_for_life("join", async move {
            loop {
                match inner.try_join().await {
                    Ok(()) => {
                        *inner.joining.lock().unwrap_or_else(PoisonError::into_inner) = None;
                        drop(inner);
                        return std::future::pending().await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the node has not joined the cluster yet");
                        *inner.joining.lock().unwrap_or_else(PoisonError::into_inner) = Some(Error::new(
                            ErrorCode::NotReady,
                            format!("the node has not joined the cluster yet: {error}"),
                        ));
                    }
                }
                inner.context.env.sleep(JOIN_PAUSE).await;
            }
        });
    }

    async fn try_join(&self) -> Result<()> {
        let agreement = &self.context.agreement;
        if agreement.is_member() {
            return Ok(());
        }
        if self.context.config.join.is_empty() {
            return agreement.found().await;
        }
        Ok(agreement.join(&self.context.config.join, JOIN_TIMEOUT).await?)
    }
}
