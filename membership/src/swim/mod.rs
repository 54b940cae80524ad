//! Who answers: SWIM gossip over datagrams, by foca.
//!
//! Every node probes one other at a time; one that does not answer, directly or through others, is suspected, and unless it
//! objects, declared down. What is known spreads piggy-backed on the probes. A node that was declared down, or was away behind
//! a partition, comes back under a new generation, which beats whatever was said about the old one.
//!
//! The protocol's core is pure and driven by one task, which owns the socket. It has no supervisor of its own: nothing in it
//! fails for good, a datagram that cannot be sent or read is one that was lost. Over a restart only the generation survives.
//!
//! Source: Das, Gupta and Motivala, "SWIM: Scalable Weakly-consistent Infection-style Process Group Membership Protocol"
//! (2002).

mod core;
mod driver;
mod health;
mod heard;
mod identity;
mod known;
mod payload;
mod scale;
mod seal;
mod survey;
mod suspects;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_kernel::env::TaskHandle;
use shoal_kernel::{Env, Error, ErrorCode, NodeId, Result};
use tokio::sync::{mpsc, oneshot, watch};

use self::core::Core;
use self::driver::{Command, Driver};
use self::identity::Identity;
use self::seal::Seal;

pub use self::identity::{GENERATION_FILE, read_generation};
pub use self::payload::PAYLOAD_BYTES_MAX;

/// The protocol without a world: what [`Swim`] drives with a socket and a clock, and the simulator with a queue of events.
pub mod protocol {
    pub use super::core::{Core, Effects};
    pub use super::identity::Identity;
    pub use super::seal::SEAL_BYTES;
}

/// Requests to the driver that may wait; a further announcement is dropped, as a datagram would be.
const COMMANDS_MAX: usize = 64;

/// How a node gossips.
#[derive(Debug, Clone)]
pub struct SwimConfig {
    /// The node's number.
    pub node: NodeId,
    /// Where it sends and receives datagrams, and where others reach it.
    pub address: SocketAddr,
    /// Shared by all nodes; datagrams that were not made with it are dropped.
    pub secret: String,
    /// The cluster, once it is known; zero before. Datagrams of other clusters are dropped.
    pub cluster_id: u64,
    /// Addresses at which other nodes may be found.
    pub seeds: Vec<SocketAddr>,
    /// The node's data directory; the generation is kept in it.
    pub data_dir: PathBuf,
    /// How often a member is probed, in milliseconds. One that has not answered by then is suspected.
    pub probe_period_ms: u64,
    /// How long to wait for a direct answer before others are asked to probe, in milliseconds: well below the period, well
    /// above a round trip.
    pub probe_rtt_ms: u64,
    /// How long a suspect may object before it is down, in milliseconds; half as long if two others could not reach it either. Longer is
    /// calmer; shorter finds failures sooner. Holds for up to 15 nodes; among more it grows with the logarithm of their number, as the way of
    /// news does.
    pub suspicion_ms: u64,
    /// How often news is told to random members besides the probes, in milliseconds.
    pub gossip_ms: u64,
    /// How often a random member is asked for what this node has missed, in milliseconds.
    pub announce_ms: u64,
    /// How often members that are down are asked whether they are back, in milliseconds. This is what heals partitions.
    pub announce_to_down_ms: u64,
    /// How often seeds that are not members, or everybody if nobody answers, are asked, in milliseconds.
    pub seek_ms: u64,
    /// How long a member that is down is remembered, in milliseconds.
    pub forget_down_ms: u64,
}

impl SwimConfig {
    /// A node with every setting at its default: in a cluster of three, one that is killed is down after a second as a rule.
    pub fn new(node: NodeId, address: SocketAddr, secret: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            node,
            address,
            secret: secret.into(),
            cluster_id: 0,
            seeds: Vec::new(),
            data_dir: data_dir.into(),
            probe_period_ms: 200,
            probe_rtt_ms: 70,
            suspicion_ms: 800,
            gossip_ms: 200,
            announce_ms: 10_000,
            announce_to_down_ms: 2_000,
            seek_ms: 1_000,
            forget_down_ms: 24 * 60 * 60 * 1_000,
        }
    }
}

/// What is thought of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It did not answer lately, and has not objected yet.
    Suspect,
    /// Nobody reaches it, or it has left.
    Down,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where it is reached, or was last.
    pub address: SocketAddr,
    /// What is thought of it.
    pub state: MemberState,
    /// Its life; goes up with every start and every return.
    pub generation: u64,
    /// What it last told about itself with [`Swim::publish`] in this life; empty if nothing.
    pub payload: Arc<[u8]>,
}

/// Everybody that was heard of, this node included.
pub type Members = BTreeMap<NodeId, Member>;

/// How the gossip goes; datagrams are counted since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SwimStats {
    /// How badly this node does by its own judgement, from 0 to 3: its timers come late, or others suspect it. It takes so many times
    /// longer to believe that somebody is down.
    pub unwell: u64,
    /// Received and handled.
    pub received: u64,
    /// Sent.
    pub sent: u64,
    /// Could not be sent or read; as good as lost.
    pub failed: u64,
    /// Dropped: not made with the secret, or damaged on the way.
    pub unauthentic: u64,
    /// Dropped: of another cluster.
    pub strangers: u64,
    /// Dropped: made with the secret, and yet not understood.
    pub malformed: u64,
}

#[derive(Default)]
struct Counters {
    unwell: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    failed: AtomicU64,
    unauthentic: AtomicU64,
    strangers: AtomicU64,
    malformed: AtomicU64,
}

/// A node's part in the gossip. Cheap to clone; ends at [`Swim::shutdown`], not when a handle is dropped.
#[derive(Clone)]
pub struct Swim(Arc<Inner>);

struct Inner {
    members: watch::Receiver<Arc<Members>>,
    commands: mpsc::Sender<Command>,
    payload: watch::Sender<Arc<[u8]>>,
    seal: Arc<Seal>,
    counters: Arc<Counters>,
    task: Mutex<Option<TaskHandle>>,
}

impl Swim {
    /// Takes a new generation, binds the socket and starts to gossip.
    ///
    /// # Errors
    /// The generation cannot be stored, or the address cannot be bound.
    pub async fn start(env: &Env, config: SwimConfig) -> Result<Self> {
        let generation = identity::next_generation(env, &config.data_dir).await?;
        let identity = Identity { node: config.node, address: config.address, generation };
        let socket = env.network().datagram(config.address).await.map_err(|error| {
            Error::from(error).context(format!("datagrams cannot be received at {}", config.address))
        })?;
        let seal = Arc::new(Seal::new(&config.secret, config.cluster_id));
        let counters = Arc::new(Counters::default());
        let core = Core::new(&config, identity, env.rng("swim"), env.monotonic())?;
        let (shown, members) = watch::channel(Arc::new(core.members()));
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let payload = watch::Sender::new(Arc::<[u8]>::from([]));
        let driver = Driver {
            env: env.clone(),
            core,
            socket,
            seal: seal.clone(),
            data_dir: config.data_dir,
            commands: inbox,
            payload: payload.subscribe(),
            members: shown,
            counters: counters.clone(),
        };
        let task = Mutex::new(Some(env.spawn("swim", driver.run())));
        Ok(Self(Arc::new(Inner { members, commands, payload, seal, counters, task })))
    }

    /// What is thought of everybody, as it changes.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.0.members.clone()
    }

    /// Asks a node at an address to be let in. May get lost; [`SwimConfig::seeds`] are asked again and again.
    pub fn announce(&self, address: SocketAddr) {
        if self.0.commands.try_send(Command::Announce(address)).is_err() {
            self.0.counters.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The cluster is known from now on; datagrams of others are dropped.
    pub fn belong_to(&self, cluster_id: u64) {
        self.0.seal.belong_to(cluster_id);
    }

    /// Tells all members something about this node; they see it as [`Member::payload`]. Replaces what was told before, if it is
    /// something else.
    ///
    /// # Errors
    /// It is longer than [`PAYLOAD_BYTES_MAX`].
    pub fn publish(&self, payload: &[u8]) -> Result<()> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("{} bytes do not fit into the {PAYLOAD_BYTES_MAX} that gossip carries", payload.len()),
            ));
        }
        self.0.payload.send_if_modified(|told| {
            let is_new = **told != *payload;
            if is_new {
                *told = Arc::from(payload);
            }
            is_new
        });
        Ok(())
    }

    /// What this node tells about itself; empty if nothing.
    pub fn told(&self) -> Arc<[u8]> {
        self.0.payload.borrow().clone()
    }

    /// What was counted since the start.
    pub fn stats(&self) -> SwimStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        SwimStats {
            unwell: read(&counters.unwell),
            received: read(&counters.received),
            sent: read(&counters.sent),
            failed: read(&counters.failed),
            unauthentic: read(&counters.unauthentic),
            strangers: read(&counters.strangers),
            malformed: read(&counters.malformed),
        }
    }

    /// Tells some members that this node goes, so that they need not find out. Gossip ends with it.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.0.commands.send(Command::Leave(done)).await.is_ok() {
            let _ = left.await;
        }
        self.shutdown().await;
    }

    /// Ends at once; the others find out by themselves.
    pub async fn shutdown(&self) {
        let task = self.0.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            task.join().await;
        }
    }
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
