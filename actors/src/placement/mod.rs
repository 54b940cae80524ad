//! Placement: on every node, has those of its partitions split that have grown ([`splits`]), and tells the catalog which of its replicas
//! it cannot keep running; on the catalog's leader, proposes what
//! the partition map lacks, moves the cut-offs of tables on that keep their rows for a time, and drops windows when all their rows
//! have had their time.
//!
//! What the map lacks ([`Catalog::wanted_changes`]): replicas of tables that were made when there were fewer nodes, of nodes that
//! have been gone for longer than `replace_after_ms`, and of nodes that are being drained; and balance. A node that was told to
//! leave is taken out of the cluster once it holds nothing. Votes on the catalog go from nodes that are lost to others, and over zones.
//!
//! Owned by the node; remembers only since when nodes have been down, and that anew on every leader. Every proposal is fenced by
//! the partition's epoch, and cut-offs never go back, so a leader that has been replaced does no harm; a replica that it
//! adds late is one too many, which placement sees to. A failed turn is simply followed by the next. **Budget**: if it panics, the node's
//! [supervisor](crate::node) starts it anew, at most six times in a row.

mod load;
mod moves;
pub(crate) mod splits;

pub(crate) use self::load::load_of;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use shoal_catalog::{Catalog, Command, Load, Outlook, Partition};
use shoal_kernel::{NodeId, PartitionId, Rare};
use shoal_membership::SwimStats;
use shoal_membership::agreement::VOTERS_MAX;

use crate::clocks::agreed_micros;
use crate::later::later;
use crate::node::context::NodeContext;
use crate::node::laggards;
use crate::replica::directory::ReplicaDirectory;
use crate::replica::handle::ReplicaHandle;

const TURN: Duration = Duration::from_secs(1);
const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often nodes are asked what they carry.
const ASKS_EVERY: Duration = Duration::from_secs(10);
/// How long a node that could not take a vote is passed over.
const PASSED_OVER: Duration = Duration::from_secs(60);

pub(crate) struct Placement;

pub(crate) enum PlacementMessage {
    /// A turn by the clock.
    Turn,
}

pub(crate) struct State {
    context: Arc<NodeContext>,
    directory: Arc<ReplicaDirectory>,
    splits: splits::Splits,
    /// What the nodes carry, and when they are to be asked again.
    load: Load,
    asks_at: Duration,
    /// Since when nodes have been down, by the monotonic clock.
    down: BTreeMap<NodeId, Duration>,
    /// Until when nodes get no vote that could not take one.
    passed_over: BTreeMap<NodeId, Duration>,
    /// Tells the others which replicas are far behind.
    laggards: laggards::Teller,
}

impl Actor for Placement {
    type Msg = PlacementMessage;
    type State = State;
    type Arguments = (Arc<NodeContext>, Arc<ReplicaDirectory>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (context, directory): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        later(&context.env, "placement turn", &myself, TURN, PlacementMessage::Turn);
        Ok(State {
            context,
            directory,
            splits: splits::Splits::default(),
            load: Load::default(),
            asks_at: Duration::ZERO,
            down: BTreeMap::new(),
            passed_over: BTreeMap::new(),
            laggards: laggards::Teller::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        _turn: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let context = state.context.clone();
        if context.agreement.is_leader() {
            let catalog = context.agreement.catalog().borrow().clone();
            let outlook = state.outlook(&catalog).await;
            moves::carry_on(&context, &catalog, &outlook).await;
            state.tend_voters(&outlook).await;
            expire(&context, &catalog).await;
            drop_windows(&context, &catalog).await;
        } else {
            state.down.clear();
            state.passed_over.clear();
            state.asks_at = Duration::ZERO;
        }
        gauge(&state.directory);
        gauge_gossip(&context.swim.stats());
        state.laggards.turn(&context, &state.directory);
        report_failed(&context, &state.directory).await;
        splits::split_grown(&context, &state.directory, &mut state.splits).await;
        later(&context.env, "placement turn", &myself, TURN, PlacementMessage::Turn);
        Ok(())
    }
}

impl State {
    /// Who answers, who has been gone for too long, and what they carry.
    async fn outlook(&mut self, catalog: &Catalog) -> Outlook {
        let (liveness, now) = (&self.context.liveness, self.context.env.monotonic());
        let is_down = |node: &NodeId| liveness.is_down(*node);
        self.down.retain(|node, _| is_down(node) && catalog.nodes.contains_key(node));
        for node in catalog.nodes.keys().copied().filter(is_down) {
            self.down.entry(node).or_insert(now);
        }
        let replace_after = Duration::from_millis(self.context.config.replace_after_ms);
        let gone = self.down.iter().filter(|(_, since)| now.saturating_sub(**since) >= replace_after);
        let lost: BTreeSet<NodeId> = gone.map(|(node, _)| *node).collect();
        let alive = liveness.alive();
        if now >= self.asks_at {
            self.load = load_of(&self.context, &alive, &self.load).await;
            self.load.bytes.retain(|partition, _| catalog.partitions.contains_key(partition));
            self.asks_at = now + ASKS_EVERY;
        }
        Outlook { alive, lost, load: self.load.clone() }
    }

    /// Has the vote of a node that is lost, or that others could give for it in a zone without one, go to another.
    async fn tend_voters(&mut self, outlook: &Outlook) {
        let context = self.context.clone();
        let now = context.env.monotonic();
        self.passed_over.retain(|_, until| *until > now);
        let catalog = context.agreement.catalog().borrow().clone();
        let passed_over = self.passed_over.keys().copied().collect();
        let Some(swap) = catalog.wanted_voter(outlook, context.node, VOTERS_MAX, &passed_over) else { return };
        tracing::info!(?swap, "a vote on the catalog goes to another node");
        context.env.trace(|| format!("placement has a vote go to another node: {swap:?}"));
        match context.agreement.swap_voter(swap).await {
            Ok(()) => context.env.reached(Rare::VoterReplaced),
            Err(error) => {
                tracing::debug!(%error, "it did not; another one is tried next turn");
                self.passed_over.insert(swap.to, now + PASSED_OVER);
            }
        }
    }
}

/// Figures of this node's replicas, for whoever watches it.
fn gauge(directory: &ReplicaDirectory) {
    let all = directory.all();
    let count = |is: fn(&ReplicaHandle) -> bool| all.iter().filter(|handle| is(handle)).count() as f64;
    metrics::gauge!("shoal_replicas").set(count(|_| true));
    metrics::gauge!("shoal_replicas_serving").set(count(ReplicaHandle::serves));
    metrics::gauge!("shoal_replicas_failed").set(count(ReplicaHandle::is_given_up));
    let lag = all.iter().filter_map(|handle| handle.lag()).max().unwrap_or(0);
    metrics::gauge!("shoal_replica_lag_max").set(lag as f64);
    metrics::gauge!("shoal_replica_queued_bytes")
        .set(all.iter().map(|handle| handle.queued_bytes()).sum::<u64>() as f64);
    let stores = all.iter().filter_map(|handle| handle.store().ok());
    metrics::gauge!("shoal_memtable_bytes").set(stores.map(|store| store.memtable_bytes()).sum::<u64>() as f64);
}

/// Figures of this node's gossip.
fn gauge_gossip(stats: &SwimStats) {
    let SwimStats { unwell, received, sent, failed, unauthentic, strangers, malformed } = *stats;
    metrics::gauge!("shoal_gossip_unwell").set(unwell as f64);
    for (outcome, count) in [
        ("received", received),
        ("sent", sent),
        ("failed", failed),
        ("unauthentic", unauthentic),
        ("stranger", strangers),
        ("malformed", malformed),
    ] {
        metrics::counter!("shoal_gossip_datagrams_total", "outcome" => outcome).absolute(count);
    }
}

/// Tells the catalog which replicas of this node have been given up, and which run again.
async fn report_failed(context: &NodeContext, directory: &ReplicaDirectory) {
    let catalog = context.agreement.catalog().borrow().clone();
    for handle in directory.all() {
        let partition = handle.partition;
        let known = catalog.partitions.get(&partition).and_then(|partition| partition.replica(context.node));
        let Some(known) = known.map(|replica| replica.failed) else { continue };
        // A new start of the node alone proves nothing.
        let failed = handle.is_given_up() || (known && handle.store().is_err());
        if known != failed && !mark(context, partition, failed).await {
            return;
        }
    }
    for heir in without_estate(&catalog, context.node, directory) {
        if !mark(context, heir, true).await {
            return;
        }
    }
}

/// The partitions of which this node should have replicas, and has none because the store that they are to come from cannot be split.
fn without_estate(catalog: &Catalog, node: NodeId, directory: &ReplicaDirectory) -> Vec<PartitionId> {
    let unparted = directory.unparted();
    if unparted.values().all(|given_up| !given_up) {
        return Vec::new();
    }
    let waits = |partition: &&Partition| {
        partition.replica(node).is_some_and(|replica| !replica.failed)
            && directory.get(partition.id).is_err()
            && catalog.ancestors_of(partition.id).any(|(id, _)| unparted.get(&id) == Some(&true))
    };
    catalog.partitions.values().filter(waits).map(|partition| partition.id).collect()
}

/// False if the catalog did not hear of it.
async fn mark(context: &NodeContext, partition: PartitionId, failed: bool) -> bool {
    let command = Command::MarkReplica { partition, node: context.node, failed };
    let what = format!("the mark of a failed replica of {partition}");
    match context.change_catalog(command, &what, PROPOSAL_TIMEOUT).await {
        Ok(_) if failed => context.env.reached(Rare::ReplicaGivenUp),
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(%error, "the catalog did not hear of a failed replica; it does next turn");
            return false;
        }
    }
    true
}

/// Has windows dropped of which every row has had its time.
async fn drop_windows(context: &NodeContext, catalog: &Catalog) {
    for command in catalog.wanted_windows() {
        if let Err(error) = context.agreement.propose(command, PROPOSAL_TIMEOUT).await {
            tracing::debug!(%error, "windows were not dropped; they are looked at anew next turn");
            return;
        }
        context.env.reached(Rare::WindowDropped);
    }
}

/// Has the cut-offs agreed on that are due.
async fn expire(context: &NodeContext, catalog: &Catalog) {
    if catalog.tables.values().all(|table| table.options.ttl.is_none()) {
        return;
    }
    let skew = Duration::from_millis(context.config.clock_skew_max_ms);
    // With all other clocks right this one is not further ahead than that, so most turns need not ask anybody.
    if catalog.wanted_cutoffs(context.env.wall_micros(), Duration::ZERO).is_empty() {
        return;
    }
    let Some(now_micros) = agreed_micros(context, catalog).await else { return };
    for command in catalog.wanted_cutoffs(now_micros, skew) {
        if let Err(error) = context.agreement.propose(command, PROPOSAL_TIMEOUT).await {
            tracing::debug!(%error, "a cut-off was not taken; it is looked at anew next turn");
            return;
        }
    }
}
