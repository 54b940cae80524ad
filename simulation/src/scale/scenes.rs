//! The scenes that every size goes through, one after the other, in one world.

use std::collections::BTreeSet;

use serde::Serialize;
use shoal_kernel::Result;

use super::traffic::Rates;
use super::world::{Weather, World};
use super::{Meter, SECOND};
use crate::random::Stream;

/// Nodes that newcomers ask to be let in.
const SEEDS: usize = 3;

/// Between scenes, for news to die down, in virtual seconds: among 5,000 nodes 30 were not enough for one to tell all of a storm.
const LULL_SECONDS: u64 = 90;

/// How long the halves do not reach each other, in virtual seconds.
pub const PARTITION_SECONDS: u64 = 30;

/// How long some nodes are slow, in virtual seconds.
pub const SLOW_SECONDS: u64 = 60;

/// Shortest and longest time that a slow node stands still, in virtual microseconds.
const STALL_MICROS: (u64, u64) = (100_000, 2_000_000);

/// Shortest and longest time that it goes on in between, in virtual microseconds.
const BETWEEN_STALLS_MICROS: (u64, u64) = (20_000, 500_000);

/// After which a scene is given up, in virtual seconds.
const SCENE_SECONDS_MAX: u64 = 300;

/// What a size went through.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GossipReport {
    /// How many nodes there were.
    pub nodes: usize,
    /// All nodes start within one second.
    pub storm: Storm,
    /// Nothing happens.
    pub quiet: Quiet,
    /// One more node starts.
    pub join: Join,
    /// One node of ten crashes.
    pub crash: Crash,
    /// Halves do not reach each other.
    pub partition: Partition,
    /// One node of ten stands still again and again.
    pub slow: Slow,
}

/// All nodes start within one second. Times are from the first start, in virtual microseconds; none if it did not come to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Storm {
    /// Until the median node sees all others alive.
    pub median_micros: Option<u64>,
    /// Until everybody does.
    pub last_micros: Option<u64>,
    /// What it took until then.
    pub rates: Rates,
}

/// Nothing happens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quiet {
    /// For how long, in virtual microseconds.
    pub micros: u64,
    /// What it takes.
    pub rates: Rates,
    /// Nodes that somebody suspected.
    pub suspected: usize,
    /// Nodes that somebody called down.
    pub called_down: usize,
}

/// One more node starts. Times are from then, in virtual microseconds; none if it did not come to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Join {
    /// Until it sees all others alive.
    pub newcomer_micros: Option<u64>,
    /// Until everybody sees everybody alive.
    pub last_micros: Option<u64>,
    /// What the newcomer has sent and received until then, in bytes.
    pub newcomer_bytes: u64,
}

/// Some nodes end at once. Times are from then, in virtual microseconds; none if it did not come to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Crash {
    /// How many nodes end.
    pub nodes: usize,
    /// Until somebody calls one of them down.
    pub first_micros: Option<u64>,
    /// Until each of them was called down by somebody.
    pub each_micros: Option<u64>,
    /// Until the median survivor calls all of them down.
    pub median_micros: Option<u64>,
    /// Until every survivor does.
    pub last_micros: Option<u64>,
    /// What it took until then.
    pub rates: Rates,
    /// Survivors that somebody suspected.
    pub suspected: usize,
    /// Survivors that somebody called down.
    pub called_down: usize,
}

/// Halves of the survivors do not reach each other for a while. Times are from the heal, in virtual microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Partition {
    /// At its end, of all pairs across: the parts that are thought alive, suspect and down.
    pub across: [f64; 3],
    /// The same of all pairs within a half.
    pub within: [f64; 3],
    /// What the partition took.
    pub rates: Rates,
    /// Until the median node sees all others alive again.
    pub median_micros: Option<u64>,
    /// Until everybody does.
    pub last_micros: Option<u64>,
    /// What the heal took until then.
    pub heal_rates: Rates,
}

/// Some processes stand still for 0.1 to 2 seconds again and again, as on machines that have too much to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slow {
    /// How many nodes are slow.
    pub nodes: usize,
    /// Others that somebody suspected.
    pub others_suspected: usize,
    /// Others that somebody called down.
    pub others_called_down: usize,
    /// Slow nodes that somebody called down.
    pub called_down: usize,
    /// From the end of it until everybody sees everybody alive, in virtual microseconds; none if it did not come to it.
    pub last_micros: Option<u64>,
}

/// Takes a number of nodes through all scenes. Equal arguments give equal reports.
///
/// # Errors
/// The settings of the gossip are refused: a bug.
pub fn gossip(
    nodes: usize,
    quiet_seconds: u64,
    seed: u64,
    weather: Weather,
    meter: &mut dyn Meter,
) -> Result<GossipReport> {
    // One more than take part from the beginning: the newcomer.
    let mut world = World::new(nodes + 1, SEEDS, seed, weather);
    let storm = storm(&mut world, nodes, seed)?;
    meter.scene(nodes, "storm", world.now());
    lull(&mut world)?;
    let quiet = quiet(&mut world, quiet_seconds)?;
    meter.scene(nodes, "quiet", world.now());
    let join = join(&mut world, nodes)?;
    meter.scene(nodes + 1, "join", world.now());
    lull(&mut world)?;
    let crash = crash(&mut world, seed)?;
    meter.scene(nodes, "crash", world.now());
    lull(&mut world)?;
    let partition = partition(&mut world, meter)?;
    meter.scene(nodes, "heal", world.now());
    lull(&mut world)?;
    let slow = slow(&mut world, seed)?;
    meter.scene(nodes, "slow", world.now());
    Ok(GossipReport { nodes, storm, quiet, join, crash, partition, slow })
}

fn lull(world: &mut World) -> Result<()> {
    world.run(LULL_SECONDS * SECOND, |_| false)?;
    world.views.forget_errors();
    world.traffic.reset();
    Ok(())
}

/// Runs until everybody thinks what it should: when the median node did, and when the last, since the start.
fn settle(world: &mut World) -> Result<(Option<u64>, Option<u64>)> {
    let start = world.now();
    let all = world.run(SCENE_SECONDS_MAX * SECOND, |world| world.views.all_right())?;
    let median = world.views.median_right_at().map(|at| at.saturating_sub(start));
    Ok((median, all.then(|| world.now() - start)))
}

fn storm(world: &mut World, nodes: usize, seed: u64) -> Result<Storm> {
    let mut when = Stream::new(seed, "scale start", 0);
    for node in 0..nodes {
        world.start_at(node, when.below(SECOND));
    }
    // Nobody is up yet, and nobody thinks of anybody what it should before all are.
    world.run(SECOND, |_| false)?;
    world.views.expect_alive(world.now());
    let (median_micros, last_micros) = settle(world)?;
    let since = |settled: Option<u64>| settled.map(|micros| micros + SECOND);
    let (median_micros, last_micros) = (since(median_micros), since(last_micros));
    Ok(Storm { median_micros, last_micros, rates: world.traffic.rates(nodes, world.now()) })
}

fn quiet(world: &mut World, seconds: u64) -> Result<Quiet> {
    let micros = seconds * SECOND;
    world.run(micros, |_| false)?;
    let rates = world.traffic.rates(world.up().count(), micros);
    let (suspected, called_down) = (world.views.suspected.len(), world.views.called_down.len());
    world.traffic.reset();
    world.views.forget_errors();
    Ok(Quiet { micros, rates, suspected, called_down })
}

fn join(world: &mut World, newcomer: usize) -> Result<Join> {
    let start = world.now();
    world.start_at(newcomer, start);
    world.run(0, |_| false)?;
    world.views.expect_alive(start);
    let (_, last_micros) = settle(world)?;
    let newcomer_micros = world.views.right_at(newcomer).map(|at| at - start);
    Ok(Join { newcomer_micros, last_micros, newcomer_bytes: world.traffic.of(newcomer) })
}

/// One of ten of the nodes that are up, one at least.
fn a_tenth(world: &World, mut which: Stream) -> Vec<usize> {
    let mut order: Vec<usize> = world.up().collect();
    for at in (1..order.len()).rev() {
        let other = which.below(at as u64 + 1);
        order.swap(at, usize::try_from(other).unwrap_or(at));
    }
    order.truncate((order.len() / 10).max(1));
    order
}

fn crash(world: &mut World, seed: u64) -> Result<Crash> {
    let start = world.now();
    let order = a_tenth(world, Stream::new(seed, "scale crash", 0));
    order.iter().for_each(|node| world.crash(*node));
    world.views.expect_down(&order, start);
    let (median_micros, last_micros) = settle(world)?;
    let missed: Vec<Option<u64>> = order.iter().map(|node| world.views.missed_at[*node]).collect();
    let since = |at: u64| at - start;
    Ok(Crash {
        nodes: order.len(),
        first_micros: missed.iter().flatten().min().copied().map(since),
        each_micros: missed
            .iter()
            .copied()
            .collect::<Option<Vec<u64>>>()
            .and_then(|all| all.into_iter().max())
            .map(since),
        median_micros,
        last_micros,
        rates: world.traffic.rates(world.up().count(), world.now() - start),
        suspected: world.views.suspected.len(),
        called_down: world.views.called_down.len(),
    })
}

fn partition(world: &mut World, meter: &mut dyn Meter) -> Result<Partition> {
    let up = world.up().count();
    world.set_halved(true);
    world.run(PARTITION_SECONDS * SECOND, |_| false)?;
    meter.scene(up, "partition", world.now());
    let (across, within) = (world.views.across(), world.views.within());
    let rates = world.traffic.rates(up, PARTITION_SECONDS * SECOND);
    world.traffic.reset();
    world.set_halved(false);
    let start = world.now();
    world.views.expect_alive(start);
    let (median_micros, last_micros) = settle(world)?;
    let heal_rates = world.traffic.rates(up, world.now() - start);
    Ok(Partition { across, within, rates, median_micros, last_micros, heal_rates })
}

fn slow(world: &mut World, seed: u64) -> Result<Slow> {
    let slow = a_tenth(world, Stream::new(seed, "scale slow", 0));
    let end = world.now() + SLOW_SECONDS * SECOND;
    let mut when = Stream::new(seed, "scale stalls", 0);
    let mut next: BTreeSet<(u64, usize)> =
        slow.iter().map(|node| (world.now() + when.below(STALL_MICROS.1), *node)).collect();
    while let Some((at, node)) = next.pop_first().filter(|(at, _)| *at < end) {
        world.run(at - world.now(), |_| false)?;
        let until = at + when.between(STALL_MICROS.0, STALL_MICROS.1);
        world.stall(node, until);
        next.insert((until + when.between(BETWEEN_STALLS_MICROS.0, BETWEEN_STALLS_MICROS.1), node));
    }
    world.run(end + STALL_MICROS.1 - world.now(), |_| false)?;
    let errors =
        |seen: &BTreeSet<usize>, of_slow: bool| seen.iter().filter(|node| slow.contains(node) == of_slow).count();
    let (suspected, called_down) = (&world.views.suspected, &world.views.called_down);
    let mut report = Slow {
        nodes: slow.len(),
        others_suspected: errors(suspected, false),
        others_called_down: errors(called_down, false),
        called_down: errors(called_down, true),
        last_micros: None,
    };
    world.views.expect_alive(world.now());
    (_, report.last_micros) = settle(world)?;
    Ok(report)
}
