//! Agreement about the catalog: consensus by openraft, on the node's own disk, over the node's own transport.
//!
//! Any node takes any request: a proposal goes to the leader, wherever that is, and is applied at most once however often it
//! has to be sent. The first nodes vote (up to [`VOTERS_MAX`]), the others follow. Without a quorum nothing can be agreed, and
//! the caller is told so; the last catalog applied stays readable, also over a restart.
//!
//! Owned by the node's membership actor. A failed write or sync stops the agreement for good (its errors and its status say
//! why); the owner calls [`Agreement::shutdown`] and opens a new one, which recovers from disk.

mod examine;
mod join;
mod journal;
mod log;
mod machine;
mod message;
mod network;
mod propose;
mod read;
mod recover;
mod runtime;
mod serve;
mod tend;
mod types;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::{Config, ServerState, SnapshotPolicy};
use shoal_catalog::{Catalog, NodeAttributes, VoterSwap};
use shoal_kernel::env::TaskHandle;
use shoal_kernel::{Env, Error, ErrorCode, NodeId, Planted, Result};
use tokio::sync::{Semaphore, watch};

pub use examine::{CatalogReport, examine};
pub use join::JoinError;
pub use journal::log_bytes;
pub use network::PeerRpc;
pub use recover::{Forgotten, LogEnd, Recovery, follow, recover};

use log::LogStore;
use machine::Machine;
use network::Peers;
use types::Raft;

/// Nodes that vote on the catalog; further ones only follow it.
pub const VOTERS_MAX: usize = 5;

/// Proposals that one node may have under way; further ones are refused as overload.
pub const PROPOSALS_MAX: usize = 64;

/// Proposals that the leader works on at once; further ones wait, within their deadline.
const LEADING_MAX: usize = 128;

/// For tests: hears of every state of the catalog that a node comes to.
pub trait CatalogObserver: fmt::Debug + Send + Sync {
    /// A node has applied the next change, or taken over what others had agreed upon: from now on it may show this.
    fn applied(&self, node: NodeId, catalog: &Catalog);
}

/// How a node takes part.
#[derive(Debug, Clone)]
pub struct AgreementConfig {
    /// The node's number.
    pub node: NodeId,
    /// What it tells the others of itself.
    pub attributes: NodeAttributes,
    /// The node's data directory; the agreement keeps to `catalog` below it.
    pub data_dir: PathBuf,
    /// The leader is heard at least this often, in milliseconds. Also bounds one message to a follower.
    pub heartbeat_ms: u64,
    /// A follower waits at least this long for the leader before it stands for election, in milliseconds.
    pub election_timeout_ms_min: u64,
    /// And less than this, at random.
    pub election_timeout_ms_max: u64,
    /// Entries after which the log is replaced by a snapshot.
    pub snapshot_after_entries: u64,
    /// Entries kept behind a snapshot, for followers that are not far behind.
    pub entries_kept: u64,
    /// A bug planted on purpose; none outside tests.
    pub planted: Option<Planted>,
    /// Hears what the catalog becomes; none outside tests.
    pub observer: Option<Arc<dyn CatalogObserver>>,
}

impl AgreementConfig {
    /// A node with every setting at its default.
    pub fn new(node: NodeId, attributes: NodeAttributes, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            node,
            attributes,
            data_dir: data_dir.into(),
            heartbeat_ms: 200,
            election_timeout_ms_min: 450,
            election_timeout_ms_max: 700,
            snapshot_after_entries: 500,
            entries_kept: 200,
            planted: None,
            observer: None,
        }
    }

    fn raft(&self) -> Result<Arc<Config>> {
        let config = Config {
            cluster_name: "shoal".into(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_timeout_ms_min,
            election_timeout_max: self.election_timeout_ms_max,
            install_snapshot_timeout: 10_000,
            max_payload_entries: 64,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_after_entries),
            replication_lag_threshold: self.snapshot_after_entries + self.entries_kept,
            max_in_snapshot_log_to_keep: self.entries_kept,
            snapshot_max_chunk_size: 1 << 20,
            ..Config::default()
        };
        let valid = config.validate().map_err(|error| Error::new(ErrorCode::InvalidRequest, error.to_string()))?;
        Ok(Arc::new(valid))
    }
}

/// How the agreement stands, for the eyes of users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgreementStatus {
    /// The current term.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// Index of the last entry in the log.
    pub last_log: Option<u64>,
    /// Index of the last entry applied.
    pub applied: Option<u64>,
    /// Nodes that vote.
    pub voters: Vec<NodeId>,
    /// Nodes that follow.
    pub learners: Vec<NodeId>,
    /// The voters are being changed: until that is done, majorities of the old and the new ones are needed.
    pub changing: bool,
    /// Why this node takes no more part, if it does not.
    pub problem: Option<Error>,
}

/// A node's part in the agreement. Cheap to clone; ends at [`Agreement::shutdown`], not when a handle is dropped.
#[derive(Clone)]
pub struct Agreement(Arc<Inner>);

struct Inner {
    env: Env,
    config: AgreementConfig,
    raft: Raft,
    log: LogStore,
    machine: Machine,
    peers: Peers,
    /// Was a member when it was opened.
    recovered: AtomicBool,
    /// When a leader or a candidate was heard last, in milliseconds of the monotonic clock.
    heard_ms: AtomicU64,
    /// Others have said that this node is no member any more.
    removed: watch::Sender<bool>,
    /// Newcomers are admitted one by one.
    door: tokio::sync::Mutex<()>,
    proposing: Semaphore,
    leading: Semaphore,
    tender: Mutex<Option<TaskHandle>>,
}

impl fmt::Debug for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Agreement({})", self.0.config.node)
    }
}

impl Agreement {
    /// Recovers from disk and takes part from now on. A node that was a member before needs no [`Agreement::join`].
    ///
    /// # Errors
    /// The disk cannot be read or written, what is on it is damaged or of another node, or the settings make no sense.
    pub async fn open(env: &Env, config: AgreementConfig, rpc: Arc<dyn PeerRpc>) -> Result<Self> {
        let dir = config.data_dir.join("catalog");
        let (disk, made) = (env.disk(), dir.clone());
        env.blocking(move || disk.create_dir_all(&made)).await??;
        let machine = Machine::open(env, dir.clone(), &config).await?;
        let log = LogStore::open(env, dir, &config).await?;
        let peers = Peers::new(rpc, config.node, config.attributes.cluster_address);
        let opening = Raft::new(config.node, config.raft()?, peers.clone(), log.clone(), machine.clone());
        let raft = runtime::seeded(env, opening).await.map_err(|error| stopped(&error))?;
        let member = raft.is_initialized().await.map_err(|error| stopped(&error))?;
        peers.belong_to(machine.catalog().borrow().cluster_id);
        let agreement = Self(Arc::new(Inner {
            env: env.clone(),
            config,
            raft,
            log,
            machine,
            peers,
            recovered: AtomicBool::new(member),
            heard_ms: AtomicU64::new(propose::millis(env.monotonic())),
            removed: watch::Sender::new(false),
            door: tokio::sync::Mutex::new(()),
            proposing: Semaphore::new(PROPOSALS_MAX),
            leading: Semaphore::new(LEADING_MAX),
            tender: Mutex::new(None),
        }));
        agreement.elect_alone().await;
        let task = env.spawn("agreement", tend::run(Arc::downgrade(&agreement.0)));
        *agreement.0.tender.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(agreement)
    }

    /// A node that votes alone need not wait for anybody before it leads.
    async fn elect_alone(&self) {
        let me = self.0.config.node;
        let voters = self
            .0
            .raft
            .with_raft_state(|state| state.membership_state.effective().membership().voter_ids().collect::<Vec<_>>());
        if voters.await.is_ok_and(|voters| voters == [me])
            && let Err(error) = self.0.raft.trigger().elect().await
        {
            tracing::debug!(%error, "the election starts by itself a little later");
        }
    }

    /// Whether this node has founded or joined a cluster, in this life or an earlier one.
    pub fn is_member(&self) -> bool {
        self.0.recovered.load(Ordering::Relaxed)
            || self.0.metrics(|metrics| metrics.membership_config.membership().get_node(&self.0.config.node).is_some())
    }

    /// The newest catalog that this node has applied.
    pub fn catalog(&self) -> watch::Receiver<Arc<Catalog>> {
        self.0.machine.catalog()
    }

    /// The leader, if one is known. An opinion: it may have been replaced without this node having heard.
    pub fn leader(&self) -> Option<NodeId> {
        self.0.metrics(|metrics| metrics.current_leader)
    }

    /// Whether this node believes it leads. Only an applied proposal proves it.
    pub fn is_leader(&self) -> bool {
        self.0.metrics(|metrics| metrics.state == ServerState::Leader)
    }

    /// Tells where a node can be reached (as SWIM found out), so that consensus reaches peers that came back elsewhere.
    pub fn learn_address(&self, node: NodeId, address: SocketAddr) {
        if node != self.0.config.node {
            self.0.peers.hear(node, address);
        }
    }

    /// How it stands.
    pub fn status(&self) -> AgreementStatus {
        let problem = self.0.problem();
        self.0.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            AgreementStatus {
                term: metrics.current_term,
                leader: metrics.current_leader,
                last_log: metrics.last_log_index,
                applied: metrics.last_applied.map(|id| id.index),
                voters: membership.voter_ids().collect(),
                learners: membership.learner_ids().collect(),
                changing: membership.get_joint_config().len() > 1,
                problem,
            }
        })
    }

    /// Waits until consensus has stopped on this node by itself, because its log can no longer be trusted to keep what it is
    /// given: only a new start, which reads the log again, mends that. Or because others have agreed on something else
    /// ([`ErrorCode::CatalogDiverged`]). Waits for ever if the node is shut down instead.
    pub async fn failed(&self) -> Error {
        let mut metrics = self.0.raft.metrics();
        let mut diverged = self.0.machine.diverged();
        loop {
            if let Some(problem) = self.0.problem().filter(|problem| problem.code() != ErrorCode::NotReady) {
                return problem;
            }
            let goes_on = tokio::select! {
                biased;
                changed = diverged.changed() => changed.is_ok(),
                changed = metrics.changed() => changed.is_ok(),
            };
            if !goes_on {
                return std::future::pending().await;
            }
        }
    }

    /// Waits until this node was a member and is none any more, by its own catalog or by the word of others.
    pub async fn removed(&self) {
        let me = self.0.config.node;
        let mut catalog = self.catalog();
        let by_catalog = async {
            catalog.wait_for(|catalog| catalog.nodes.contains_key(&me)).await?;
            catalog.wait_for(|catalog| !catalog.nodes.contains_key(&me)).await.map(drop)
        };
        let mut told = self.0.removed.subscribe();
        let by_others = async { told.wait_for(|removed| *removed).await.map(drop) };
        let heard = tokio::select! {
            biased;
            heard = by_catalog => heard,
            heard = by_others => heard,
        };
        if heard.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Has a vote go to another node, as the leader. Nothing happens if the voters have changed meanwhile.
    ///
    /// # Errors
    /// This node does not lead, or no majority agrees in time; [`ErrorCode::NotReady`] if the node does not follow closely enough to
    /// vote.
    pub async fn swap_voter(&self, swap: VoterSwap) -> Result<()> {
        self.0.swap_voter(swap).await
    }

    /// Takes no more part. What is on disk stays valid.
    pub async fn shutdown(&self) {
        let tender = self.0.tender.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = tender {
            task.abort();
        }
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop in order");
        }
    }
}

impl Inner {
    fn metrics<T>(&self, read: impl FnOnce(&openraft::RaftMetrics<NodeId, types::Peer>) -> T) -> T {
        read(&self.raft.metrics().borrow())
    }

    /// Why consensus has stopped on this node, if it has.
    fn problem(&self) -> Option<Error> {
        if let Some(diverged) = self.machine.diverged().borrow().clone() {
            return Some(diverged);
        }
        let fatal = self.metrics(|metrics| metrics.running_state.as_ref().err().cloned())?;
        Some(self.log.failure().unwrap_or_else(|| stopped(&fatal)))
    }

    /// Time in milliseconds from now until a deadline on the monotonic clock.
    fn remaining(&self, deadline: Duration) -> Duration {
        deadline.saturating_sub(self.env.monotonic())
    }
}

/// Consensus has stopped on this node.
fn stopped(fatal: &openraft::error::Fatal<NodeId>) -> Error {
    let code = match fatal {
        openraft::error::Fatal::Stopped => ErrorCode::NotReady,
        openraft::error::Fatal::StorageError(_) => ErrorCode::Io,
        openraft::error::Fatal::Panicked => ErrorCode::Internal,
    };
    Error::new(code, format!("the catalog's consensus has stopped on this node: {fatal}"))
}

/// Nothing can be agreed at the moment.
fn no_quorum(waited: Duration) -> Error {
    Error::new(
        ErrorCode::NoCatalogQuorum,
        format!("no majority of the catalog's voters could be reached within {} ms", waited.as_millis()),
    )
    .with_help("tables keep serving; try again once most of the voting nodes are back")
}
