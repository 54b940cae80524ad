//! Which faults come when, drawn from a seed; and what is measured of each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use shoal_kernel::ReadLevel;

use crate::cluster::{Cluster, NODES, REQUEST_TIMEOUT};
use crate::load::{Load, Wish};
use crate::net::Way;

/// Within this after everything is repaired, all replicas are to be equal.
const EQUAL_WITHIN: Duration = Duration::from_secs(30);
/// How long clients are served before something happens.
const BEFORE: Duration = Duration::from_millis(1_500);
/// How long clients go on after everything is repaired, before all comes to rest.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// Within this after everything is repaired, every client is to be served.
const SERVED_WITHIN: Duration = Duration::from_secs(30);
/// Somebody must notice by then that a node is away, or links are not what the test believes.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// Goals for the failure of one node.
const WRITES_WITHIN: Duration = Duration::from_secs(2);
const QUERIES_WITHIN: Duration = Duration::from_secs(1);
const DETECTED_WITHIN: Duration = Duration::from_millis(1_500);

/// What happens to a node. There is one fault at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and later a start.
    Kill,
    /// `SIGTERM`, and a start some time after it has ended in good order.
    Terminate,
    /// `SIGSTOP`, and later `SIGCONT`.
    Stop,
    /// Nothing reaches it or leaves it.
    CutOff,
    /// The same, but for clients.
    CutOffFromNodes,
    /// What it sends to nodes goes nowhere.
    Mute,
    /// What nodes send to it goes nowhere.
    Deaf,
    /// What it sends to one of the others goes nowhere.
    OneWay { to: usize },
    /// It and another one are cut off from the other three.
    Minority { with: usize },
    /// `kill -9`; then its disk is emptied, it joins anew, and the former one is given up.
    Wipe,
}

impl Fault {
    fn name(self) -> String {
        match self {
            Self::Kill => "kill -9".into(),
            Self::Terminate => "SIGTERM".into(),
            Self::Stop => "SIGSTOP".into(),
            Self::CutOff => "cut off".into(),
            Self::CutOffFromNodes => "cut off from nodes".into(),
            Self::Mute => "mute".into(),
            Self::Deaf => "deaf".into(),
            Self::OneWay { to } => format!("one way to place {} cut", to + 1),
            Self::Minority { with } => format!("cut off with place {}", with + 1),
            Self::Wipe => "disk wiped".into(),
        }
    }

    fn needs_links(self) -> bool {
        !matches!(self, Self::Kill | Self::Terminate | Self::Stop | Self::Wipe)
    }

    /// Whether it is the failure of one node, which the goals are for, and all others are to notice it.
    fn is_of_one_node(self) -> bool {
        !matches!(self, Self::Mute | Self::Deaf | Self::OneWay { .. } | Self::Minority { .. })
    }

    /// The ways that are cut.
    fn ways(self, node: usize) -> Vec<Way> {
        let others = (0..NODES).filter(|other| *other != node);
        match self {
            Self::Kill | Self::Terminate | Self::Stop | Self::Wipe => Vec::new(),
            Self::Mute => others.map(|other| Way::between(node, other)).collect(),
            Self::Deaf => others.map(|other| Way::between(other, node)).collect(),
            Self::OneWay { to } => vec![Way::between(node, to)],
            Self::CutOffFromNodes => others.map(|other| Way::between(node, other)).flat_map(both).collect(),
            Self::CutOff => {
                let ways = others.map(|other| Way::between(node, other)).chain([Way::to_clients(node)]);
                ways.flat_map(both).collect()
            }
            Self::Minority { with } => {
                let others: Vec<usize> = others.filter(|other| *other != with).collect();
                let ways = others.iter().flat_map(|other| [Way::between(node, *other), Way::between(with, *other)]);
                ways.flat_map(both).collect()
            }
        }
    }
}

fn both(way: Way) -> [Way; 2] {
    [way, way.back()]
}

/// A fault at its place in the schedule.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    pub fault: Fault,
    pub node: usize,
    pub lasts: Duration,
}

/// Rounds of all faults, each time in another order, on other nodes and for as long as is drawn.
pub struct Schedule {
    random: StdRng,
    links: bool,
    round: Vec<Fault>,
    /// How long faults last, in milliseconds.
    lasts: std::ops::Range<u64>,
}

impl Schedule {
    pub fn new(seed: u64, links: bool, lasts: std::ops::Range<u64>) -> Self {
        Self { random: StdRng::seed_from_u64(seed), links, round: Vec::new(), lasts }
    }

    /// Those of one round, in the order in which they are listed here.
    pub fn one_of_each(mut self) -> Vec<Planned> {
        let (to, with) = (0, 0);
        let all = [
            Fault::Kill,
            Fault::CutOff,
            Fault::Terminate,
            Fault::Stop,
            Fault::Minority { with },
            Fault::OneWay { to },
            Fault::Mute,
            Fault::Wipe,
        ];
        let links = self.links;
        all.into_iter().filter(|fault| links || !fault.needs_links()).map(|fault| self.planned(fault)).collect()
    }

    fn planned(&mut self, fault: Fault) -> Planned {
        let node = self.random.random_range(0..NODES);
        let other = (node + self.random.random_range(1..NODES)) % NODES;
        let fault = match fault {
            Fault::OneWay { .. } => Fault::OneWay { to: other },
            Fault::Minority { .. } => Fault::Minority { with: other },
            fault => fault,
        };
        Planned { fault, node, lasts: Duration::from_millis(self.random.random_range(self.lasts.clone())) }
    }
}

impl Iterator for Schedule {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        if self.round.is_empty() {
            let (to, with) = (0, 0);
            let twice = [
                Fault::Kill,
                Fault::Terminate,
                Fault::Stop,
                Fault::CutOff,
                Fault::OneWay { to },
                Fault::Minority { with },
            ];
            let once = [Fault::CutOffFromNodes, Fault::Mute, Fault::Deaf, Fault::Wipe];
            let all = twice.into_iter().chain(twice).chain(once);
            self.round = all.filter(|fault| self.links || !fault.needs_links()).collect();
            self.round.shuffle(&mut self.random);
        }
        let fault = self.round.pop()?;
        Some(self.planned(fault))
    }
}

/// What one fault has cost.
pub struct Cost {
    planned: Planned,
    writes: Duration,
    queries: Duration,
    quorum_queries: Duration,
    /// When each other node called it down.
    detected: Vec<Option<Duration>>,
    /// After everything was repaired.
    equal: Duration,
}

impl Cost {
    pub const HEAD: &str = "fault                     place   lasts  no writes  no queries  at quorum  called down by others   equal after";

    fn row(&self) -> String {
        let one = self.planned.fault.is_of_one_node();
        let marked = |time: Duration, goal: Duration| {
            let over = if one && time > goal { "*" } else { " " };
            format!("{:.2} s{over}", time.as_secs_f64())
        };
        let mut times: Vec<Duration> = self.detected.iter().flatten().copied().collect();
        times.sort();
        let detected = match (times.first(), times.last()) {
            (Some(first), Some(last)) => {
                format!(
                    "{}/{} {:.2}-{}",
                    times.len(),
                    self.detected.len(),
                    first.as_secs_f64(),
                    marked(*last, DETECTED_WITHIN)
                )
            }
            _ => format!("{}/{}", times.len(), self.detected.len()),
        };
        format!(
            "{:<25} {:>5} {:>5.1} s {:>10} {:>11} {:>10}  {:<22} {:>6.1} s",
            self.planned.fault.name(),
            self.planned.node + 1,
            self.planned.lasts.as_secs_f64(),
            marked(self.writes, WRITES_WITHIN),
            marked(self.queries, QUERIES_WITHIN),
            marked(self.quorum_queries, QUERIES_WITHIN),
            detected,
            self.equal.as_secs_f64()
        )
    }
}

/// The rows of a report, the greatest ones last.
pub fn report(costs: &[Cost]) {
    println!("\n{}", Cost::HEAD);
    for cost in costs {
        println!("{}", cost.row());
    }
    let ofs = costs.iter().filter(|cost| cost.planned.fault.is_of_one_node());
    let greatest = |what: fn(&Cost) -> Duration| ofs.clone().map(what).max().unwrap_or_default().as_secs_f64();
    let detected = |cost: &Cost| cost.detected.iter().flatten().max().copied().unwrap_or_default();
    println!(
        "failures of one node, at most: {:.2} s without a write at quorum (goal {:?}), {:.2} s without an answer at one and {:.2} s at \
         quorum (goal {:?}), called down by all others after {:.2} s (goal {:?}). * is over the goal. Equal {:.1} s after any fault \
         (limit {:?}).",
        greatest(|cost| cost.writes),
        WRITES_WITHIN,
        greatest(|cost| cost.queries),
        greatest(|cost| cost.quorum_queries),
        QUERIES_WITHIN,
        greatest(detected),
        DETECTED_WITHIN,
        costs.iter().map(|cost| cost.equal).max().unwrap_or_default().as_secs_f64(),
        EQUAL_WITHIN,
    );
}

/// Has one fault happen under load, waits until all is well again, and judges everything that was answered.
pub fn carry_out(planned: Planned, cluster: &mut Cluster, load: &Load) -> Cost {
    let Planned { fault, node, lasts } = planned;
    let number = cluster.numbers[node];
    let ways = fault.ways(node);
    std::thread::sleep(BEFORE);
    load.aim(node);
    let began = Instant::now();
    match fault {
        Fault::Kill | Fault::Wipe => cluster.kill(node),
        Fault::Terminate => cluster.terminate(node),
        Fault::Stop => cluster.signal(node, "STOP"),
        _ => cluster.net.cut(&ways),
    }
    let detected = watch(cluster, fault, node, number, began, lasts);
    match fault {
        Fault::Kill | Fault::Terminate => cluster.again(node),
        Fault::Wipe => cluster.replace(node),
        Fault::Stop => cluster.signal(node, "CONT"),
        _ => cluster.net.mend(&ways),
    }
    let healed = Instant::now();
    crate::support::until("all is well again", || cluster.unwell(false).is_none());
    std::thread::sleep(AFTERWARDS);
    let served = |within: Duration| {
        while let Some(probe) = load.probes.iter().find(|probe| !probe.served_since(healed)) {
            assert!(healed.elapsed() < within, "{:?} is not served for {within:?} although all is well", probe.wish);
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    served(SERVED_WITHIN);
    load.pause();
    let paused = Instant::now();
    let equal =
        cluster.until_equal(healed).unwrap_or_else(|problem| panic!("the replicas do not become equal: {problem}"));
    assert!(equal <= EQUAL_WITHIN, "the replicas were equal after {equal:?} only, not within {EQUAL_WITHIN:?}");
    // What clients gave up may still be under way: whatever was sent over a link that was cut is sent again when it is whole, after a
    // pause that is about as long as it was cut; and only then does the node begin with it.
    let under_way = healed.duration_since(began).saturating_sub(paused.duration_since(healed));
    let quiet = under_way + REQUEST_TIMEOUT + Duration::from_millis(500);
    std::thread::sleep(quiet.saturating_sub(paused.elapsed()));
    rest(cluster, load);
    let gap = |wish| {
        let probes = load.probes.iter().filter(|probe| probe.wish == wish);
        probes.map(|probe| probe.gap(began, paused)).max().unwrap_or_default()
    };
    let cost = Cost {
        planned,
        writes: gap(Wish::Write),
        queries: gap(Wish::Read(ReadLevel::One)),
        quorum_queries: gap(Wish::Read(ReadLevel::Quorum)),
        detected,
        equal,
    };
    load.resume();
    println!("{}", cost.row());
    cost
}

/// Judges all answers while nothing is under way, also what each node says about all rows.
pub fn rest(cluster: &Cluster, load: &Load) {
    let equal = cluster.until_equal(Instant::now());
    equal.unwrap_or_else(|problem| panic!("the replicas do not stay equal: {problem}"));
    load.ledger.rested();
    let first = load.read_all(0).unwrap();
    for node in 1..NODES {
        for (first, other) in first.iter().zip(load.read_all(node).unwrap()) {
            let unlike: Vec<_> = first.iter().zip(&other).filter(|(first, other)| first != other).take(10).collect();
            let (place, first, other) = (node + 1, first.len(), other.len());
            assert!(
                unlike.is_empty() && first == other,
                "places 1 and {place} read {first} and {other} rows, and others where they have the same number: {unlike:?}"
            );
        }
    }
    if let Err(wrong) = load.ledger.judge() {
        panic!("{wrong}");
    }
}

/// Lets the fault last, and when all others are to notice it, until one does; when each did.
fn watch(
    cluster: &Cluster,
    fault: Fault,
    node: usize,
    number: u64,
    began: Instant,
    lasts: Duration,
) -> Vec<Option<Duration>> {
    let over = AtomicBool::new(false);
    let watched = fault.is_of_one_node();
    std::thread::scope(|scope| {
        let over = &over;
        let others = (0..NODES).filter(|other| watched && *other != node);
        let watchers: Vec<_> = others
            .map(|other| {
                scope.spawn(move || {
                    let seen = cluster.sees_down(other, number, || over.load(Ordering::Relaxed));
                    seen.map(|moment| moment.duration_since(began))
                })
            })
            .collect();
        std::thread::sleep(lasts.saturating_sub(began.elapsed()));
        let noticed = || watchers.iter().filter(|watcher| watcher.is_finished()).count();
        while watched && noticed() == 0 && began.elapsed() < NOTICED_WITHIN {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(
            !watched || noticed() > 0,
            "nobody notices within {NOTICED_WITHIN:?} that place {} is {}",
            node + 1,
            fault.name()
        );
        over.store(true, Ordering::Relaxed);
        watchers.into_iter().map(|watcher| watcher.join().unwrap()).collect()
    })
}
