//! The plan of faults, drawn from the seed.

use serde::{Deserialize, Serialize};

use super::Fault;
use crate::disk::DiskFaults;
use crate::network::LinkFaults;
use crate::random::Stream;
use crate::world::CrashKind;

/// A fault with its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFault {
    /// When it begins, in milliseconds of virtual time.
    pub at_ms: u64,
    /// How long it lasts.
    pub for_ms: u64,
    /// What it is.
    pub fault: Fault,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// One node is cut off.
    Isolation,
    /// The nodes fall apart into two groups.
    Partition,
    /// One direction between two nodes is cut.
    OneWay,
    /// Two nodes do not reach each other, while others reach both.
    BrokenLink,
    /// A node is cut off and back, again and again.
    Flapping,
    /// Datagrams of a node are lost, doubled and reordered; its streams slow down.
    Loss,
    /// A node's links are late, and perhaps narrow.
    Delay,
    /// Streams of a node carry wrong bits now and then.
    Corruption,
    /// Streams between two nodes are reset.
    Reset,
    /// A process is killed.
    Kill,
    /// A machine loses its power.
    PowerLoss,
    /// A machine loses its power in the middle of a job.
    PowerLossInJob,
    /// All nodes go down at once.
    Blackout,
    /// All nodes are restarted, one after the other.
    RollingRestart,
    /// A node stands still.
    Pause,
    /// A wall clock jumps, and jumps back.
    Skew,
    /// A wall clock that is ahead is right again after its machine has been down for a moment.
    StepBack,
    /// A wall clock runs too fast or too slow.
    Drift,
    /// Writes, reads and syncs of a disk fail now and then.
    DiskErrors,
    /// A disk is slow.
    SlowDisk,
    /// A disk has no room left.
    DiskFull,
    /// Reads of a disk return a flipped bit now and then.
    BitFlips,
    /// A bit on a disk is flipped for good.
    Damage,
    /// More clients come than the nodes can serve.
    Storm,
    /// A node is drained, and takes part again.
    Drain,
    /// A node leaves the cluster, and its machine comes back with an empty disk.
    Decommission,
    /// Replicas are not moved for balance.
    PausedBalance,
    /// A table is backed up.
    Backup,
    /// Nodes stop in good order, one after the other, and come back.
    OrderlyRestart,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 29] = [
        Self::Isolation,
        Self::Partition,
        Self::OneWay,
        Self::BrokenLink,
        Self::Flapping,
        Self::Loss,
        Self::Delay,
        Self::Corruption,
        Self::Reset,
        Self::Kill,
        Self::PowerLoss,
        Self::PowerLossInJob,
        Self::Blackout,
        Self::RollingRestart,
        Self::Pause,
        Self::Skew,
        Self::StepBack,
        Self::Drift,
        Self::DiskErrors,
        Self::SlowDisk,
        Self::DiskFull,
        Self::BitFlips,
        Self::Damage,
        Self::Storm,
        Self::Drain,
        Self::Decommission,
        Self::PausedBalance,
        Self::Backup,
        Self::OrderlyRestart,
    ];

    /// Whether it may destroy what a disk holds.
    pub fn destroys(self) -> bool {
        matches!(self, Self::BitFlips | Self::Damage)
    }

    /// Whether it happens to disks alone.
    pub fn is_of_disks(self) -> bool {
        matches!(self, Self::DiskErrors | Self::SlowDisk | Self::DiskFull | Self::BitFlips | Self::Damage)
    }
}

/// Which faults may be drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultMenu {
    /// Hosts that faults happen to: 0 to below this.
    pub hosts: u16,
    /// The kinds, each as likely as the other; one that is there twice is twice as likely.
    pub kinds: Vec<FaultKind>,
    /// Shortest and longest wait between the beginnings of two faults, in milliseconds.
    pub gap_ms: (u64, u64),
    /// The one host whose disk may return flipped bits: a replica that reads damage empties itself, and no more of them may
    /// do so than the write levels cover.
    pub flips: Option<u16>,
    /// That host never comes back, so that everything on its disk may be damaged, also what only an operator could replace.
    pub flips_are_final: bool,
    /// The host that is started for the first time under faults, if there is one.
    pub joins: Option<u16>,
    /// The host that loses its disk, if one does.
    pub wiped: Option<u16>,
    /// Hosts whose nodes may be drained or decommissioned: so many must stay that what happens to disks destroys no last copy.
    pub drained: Vec<u16>,
}

/// Some of the kinds, by the seed, and some of these several times: rare combinations occur because others are left out.
/// Source: Groce et al., "Swarm Testing" (ISSTA 2012).
pub fn draw_kinds(seed: u64) -> Vec<FaultKind> {
    let mut stream = Stream::new(seed, "fault kinds", 0);
    let mut rates = Stream::new(seed, "fault rates", 0);
    let some = FaultKind::ALL.into_iter().filter(|_| stream.chance(600));
    let some: Vec<FaultKind> =
        some.flat_map(|kind| std::iter::repeat_n(kind, if rates.chance(200) { OFTENER } else { 1 })).collect();
    if some.is_empty() { FaultKind::ALL.to_vec() } else { some }
}

/// Shortest and longest wait between the beginnings of two faults, usually.
pub const GAP_MS: (u64, u64) = (300, 6_000);
/// And in some seeds: one fault upon the other, or hardly any.
const GAPS_MS: [(u64, u64); 6] = [GAP_MS, GAP_MS, GAP_MS, GAP_MS, (50, 1_500), (3_000, 15_000)];
/// How much oftener some kinds are drawn in a seed.
const OFTENER: usize = 4;
/// How closely faults follow each other, by the seed.
pub fn draw_gap_ms(seed: u64) -> (u64, u64) {
    Stream::new(seed, "fault gaps", 0).pick(&GAPS_MS).copied().unwrap_or(GAP_MS)
}

/// Shortest and longest fault.
const LENGTH_MS: (u64, u64) = (500, 9_000);
/// A node may stand still for longer.
const PAUSE_MS: (u64, u64) = (1_000, 30_000);
const STORM_MS_MAX: u64 = 2_000;
/// To drain a node takes as long as its replicas take to be filled elsewhere.
const DRAIN_MS_MORE: u64 = 20_000;
/// How far a clock is ahead that steps back, so that peers bear with it; and how long its machine is down.
const STEP_MICROS: (u64, u64) = (100_000, 450_000);
const STEP_DOWN_MS: (u64, u64) = (20, 200);
/// Of a thousand faults so many meet a backup, where there are any: under way, or so soon after they have ended. Who is out of some others' reach,
/// or has just come back, lacks most.
const BACKED_UP_PERMILLE: u64 = 350;
const BACKED_UP_AFTER_MS: u64 = 700;
/// Parts of paths: what damage happens to. The first are of replicas, which heal by themselves; a node that cannot read the
/// last ones needs an operator.
const DAMAGED: [&str; 6] = ["/wal-", ".seg", "/MANIFEST", "/META", "/catalog/log", "/catalog/"];
const DAMAGED_REPLICA: usize = 4;

/// Draws the faults of a period. Each has ended before the period does.
///
/// No fault destroys what was synced, but those of the one disk that flips bits or is lost: as many hosts may be down at once as there
/// are, and nothing that a majority acknowledged is lost.
pub fn draw_plan(seed: u64, menu: &FaultMenu, from_ms: u64, until_ms: u64) -> Vec<PlannedFault> {
    let mut times = Stream::new(seed, "fault times", 0);
    let mut plan = Vec::new();
    let mut at_ms = from_ms;
    if let Some(host) = menu.joins {
        let at_ms = Stream::new(seed, "join", 0).between(from_ms, (from_ms + until_ms) / 2);
        plan.push(PlannedFault { at_ms, for_ms: 0, fault: Fault::Join { host } });
    }
    if let Some(host) = menu.wiped {
        let mut stream = Stream::new(seed, "wipe", 0);
        let for_ms = stream.between(LENGTH_MS.0, LENGTH_MS.1);
        let last_ms = until_ms.saturating_sub(for_ms + 1).max(from_ms + 1);
        plan.push(PlannedFault { at_ms: stream.between(from_ms + 1, last_ms), for_ms, fault: Fault::Wipe { host } });
    }
    for number in 0.. {
        at_ms += times.between(menu.gap_ms.0, menu.gap_ms.1);
        let for_ms = times.between(LENGTH_MS.0, LENGTH_MS.1);
        if at_ms + for_ms >= until_ms || menu.hosts == 0 {
            break;
        }
        // A stream per fault: taking one away leaves the others as they are.
        let mut stream = Stream::new(seed, "fault", number);
        let before = plan.len();
        plan.extend(draw_faults(&mut stream, menu, at_ms, for_ms).into_iter().map(|planned| match planned.fault {
            Fault::Pause { .. } => {
                PlannedFault { for_ms: stream.between(PAUSE_MS.0, PAUSE_MS.1).min(until_ms - at_ms - 1), ..planned }
            }
            Fault::Drain { .. } | Fault::Decommission { .. } => {
                PlannedFault { for_ms: planned.for_ms.min(until_ms - at_ms - 1), ..planned }
            }
            _ => planned,
        }));
        let mut stream = Stream::new(seed, "backup of a fault", number);
        if menu.kinds.contains(&FaultKind::Backup) && stream.chance(BACKED_UP_PERMILLE) {
            let drawn = plan.iter().skip(before);
            let ended_ms = drawn.map(|planned| planned.at_ms + planned.for_ms).max().unwrap_or(at_ms);
            let at_ms = stream.between(at_ms + 1, ended_ms + BACKED_UP_AFTER_MS);
            let backup = Fault::Backup { events: stream.chance(400) };
            plan.extend((at_ms + for_ms < until_ms).then_some(PlannedFault { at_ms, for_ms, fault: backup }));
        }
    }
    plan
}

/// One kind may be several faults, one after the other.
fn draw_faults(stream: &mut Stream, menu: &FaultMenu, at_ms: u64, for_ms: u64) -> Vec<PlannedFault> {
    let Some(kind) = stream.pick(&menu.kinds).copied() else { return Vec::new() };
    let some_host = |stream: &mut Stream| u16::try_from(stream.below(u64::from(menu.hosts))).unwrap_or(0);
    match kind {
        FaultKind::Flapping => {
            let (group, times) = (vec![some_host(stream)], stream.between(2, 6));
            let turn_ms = (for_ms / times).max(2);
            let flap = |number| PlannedFault {
                at_ms: at_ms + number * turn_ms,
                for_ms: turn_ms / 2,
                fault: Fault::Partition { group: group.clone() },
            };
            (0..times).map(flap).collect()
        }
        FaultKind::RollingRestart => {
            in_turn(menu.hosts, at_ms, for_ms, |host| Fault::Crash { host, how: CrashKind::Process })
        }
        FaultKind::OrderlyRestart => in_turn(menu.hosts, at_ms, for_ms, |host| Fault::Stop { host }),
        FaultKind::StepBack => {
            let (host, down_ms) = (some_host(stream), stream.between(STEP_DOWN_MS.0, STEP_DOWN_MS.1));
            let offset_micros = stream.between(STEP_MICROS.0, STEP_MICROS.1).cast_signed();
            let ahead_ms = for_ms.saturating_sub(down_ms).max(1);
            let skew = Fault::Skew { host, offset_micros };
            let crash = Fault::Crash { host, how: CrashKind::Process };
            vec![
                PlannedFault { at_ms, for_ms: ahead_ms + down_ms / 2, fault: skew },
                PlannedFault { at_ms: at_ms + ahead_ms, for_ms: down_ms, fault: crash },
            ]
        }
        FaultKind::Damage => {
            let parts = if menu.flips_are_final { &DAMAGED[..] } else { &DAMAGED[..DAMAGED_REPLICA] };
            let (Some(host), Some(part)) = (menu.flips, stream.pick(parts)) else { return Vec::new() };
            let damage = Fault::Damage { host, part: (*part).to_owned() };
            if stream.chance(500) {
                return vec![PlannedFault { at_ms, for_ms, fault: damage }];
            }
            // While it is down: a log is read when it is opened.
            let crash = Fault::Crash { host, how: CrashKind::Power };
            vec![
                PlannedFault { at_ms, for_ms, fault: crash },
                PlannedFault { at_ms: at_ms + for_ms / 2, for_ms: 0, fault: damage },
            ]
        }
        FaultKind::Drain => {
            let for_ms = for_ms + stream.between(0, DRAIN_MS_MORE);
            let Some(host) = stream.pick(&menu.drained).copied() else { return Vec::new() };
            vec![PlannedFault { at_ms, for_ms, fault: Fault::Drain { host } }]
        }
        FaultKind::Decommission => {
            let for_ms = for_ms + stream.between(0, DRAIN_MS_MORE);
            let Some(host) = stream.pick(&menu.drained).copied().filter(|host| *host > 0) else { return Vec::new() };
            vec![PlannedFault { at_ms, for_ms, fault: Fault::Decommission { host } }]
        }
        FaultKind::PausedBalance => vec![PlannedFault { at_ms, for_ms, fault: Fault::PausedBalance }],
        FaultKind::Backup => vec![PlannedFault { at_ms, for_ms, fault: Fault::Backup { events: stream.chance(400) } }],
        // Short: what they leave to do takes longer than they last.
        FaultKind::Storm => vec![PlannedFault { at_ms, for_ms: for_ms.min(STORM_MS_MAX), fault: Fault::Storm }],
        kind => {
            let fault = draw_fault(kind, stream, menu);
            fault.map(|fault| PlannedFault { at_ms, for_ms, fault }).into_iter().collect()
        }
    }
}

/// The same for every host, one after the other.
fn in_turn(hosts: u16, at_ms: u64, for_ms: u64, fault: impl Fn(u16) -> Fault) -> Vec<PlannedFault> {
    let turn_ms = (for_ms / u64::from(hosts)).max(2);
    let planned =
        |host: u16| PlannedFault { at_ms: at_ms + u64::from(host) * turn_ms, for_ms: turn_ms / 2, fault: fault(host) };
    (0..hosts).map(planned).collect()
}

fn draw_fault(kind: FaultKind, stream: &mut Stream, menu: &FaultMenu) -> Option<Fault> {
    let hosts = u64::from(menu.hosts);
    let one = u16::try_from(stream.below(hosts)).unwrap_or(0);
    let other = if hosts > 1 {
        u16::try_from((u64::from(one) + 1 + stream.below(hosts - 1)) % hosts).unwrap_or(0)
    } else {
        one
    };
    let weather = |link| Fault::Weather { host: one, link };
    let failing = |disk| Fault::Disk { host: one, disk };
    Some(match kind {
        FaultKind::Isolation => Fault::Partition { group: vec![one] },
        FaultKind::Partition => Fault::Partition { group: (0..menu.hosts).filter(|_| stream.chance(500)).collect() },
        FaultKind::OneWay => Fault::OneWay { from: one, to: other },
        FaultKind::BrokenLink => Fault::Apart { one, other },
        FaultKind::Loss => weather(LinkFaults {
            loss_permille: stream.between(20, 300),
            duplicate_permille: stream.between(0, 200),
            reorder_permille: stream.between(0, 300),
            ..LinkFaults::default()
        }),
        FaultKind::Delay => weather(LinkFaults {
            delay_micros: stream.between(1_000, 150_000),
            jitter_micros: stream.between(0, 80_000),
            bytes_per_milli: if stream.chance(500) { stream.between(50, 2_000) } else { 0 },
            ..LinkFaults::default()
        }),
        FaultKind::Corruption => {
            weather(LinkFaults { corrupt_permille: stream.between(2, 40), ..LinkFaults::default() })
        }
        FaultKind::Reset => Fault::Reset { one, other },
        FaultKind::Kill => Fault::Crash { host: one, how: CrashKind::Process },
        FaultKind::PowerLoss => Fault::Crash { host: one, how: CrashKind::Power },
        FaultKind::PowerLossInJob => Fault::CrashInJob { host: one, after: stream.between(1, 60) },
        FaultKind::Blackout => {
            Fault::Blackout { how: if stream.chance(500) { CrashKind::Power } else { CrashKind::Process } }
        }
        FaultKind::Pause => Fault::Pause { host: one },
        FaultKind::Skew => {
            // Mostly what peers bear with, sometimes more.
            let most = if stream.chance(400) { 2_000_000 } else { 400_000 };
            Fault::Skew { host: one, offset_micros: stream.below(2 * most).cast_signed() - most.cast_signed() }
        }
        FaultKind::Drift => Fault::Drift { host: one, micros_per_second: stream.below(100_000).cast_signed() - 50_000 },
        FaultKind::DiskErrors => failing(DiskFaults {
            read_error_permille: stream.between(0, 20),
            write_error_permille: stream.between(0, 20),
            sync_error_permille: stream.between(0, 20),
            ..DiskFaults::default()
        }),
        FaultKind::SlowDisk => failing(DiskFaults { slowdown: stream.between(1, 50), ..DiskFaults::default() }),
        FaultKind::DiskFull => Fault::DiskFull { host: one, free_bytes: stream.between(0, 64 << 10) },
        FaultKind::BitFlips => Fault::Disk {
            host: menu.flips?,
            disk: DiskFaults { flip_permille: stream.between(1, 10), ..DiskFaults::default() },
        },
        // Drawn where they are made into several.
        FaultKind::Flapping
        | FaultKind::RollingRestart
        | FaultKind::Storm
        | FaultKind::Drain
        | FaultKind::Decommission
        | FaultKind::PausedBalance
        | FaultKind::Backup
        | FaultKind::OrderlyRestart
        | FaultKind::StepBack
        | FaultKind::Damage => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn menu() -> FaultMenu {
        let kinds = FaultKind::ALL.to_vec();
        FaultMenu {
            hosts: 3,
            kinds,
            gap_ms: GAP_MS,
            flips: Some(1),
            flips_are_final: false,
            joins: None,
            wiped: None,
            drained: vec![0, 2],
        }
    }

    #[test]
    fn every_fault_ends_within_the_period() {
        let mut drawn = 0;
        for seed in 0..50 {
            let plan = draw_plan(seed, &menu(), 10_000, 100_000);
            assert_eq!(plan, draw_plan(seed, &menu(), 10_000, 100_000));
            assert!(plan.iter().all(|planned| planned.at_ms > 10_000 && planned.at_ms + planned.for_ms < 100_000));
            drawn += plan.len();
        }
        assert!(drawn > 400, "{drawn}");
    }

    #[test]
    fn a_plan_survives_its_file() {
        #[derive(Serialize, Deserialize)]
        struct File {
            faults: Vec<PlannedFault>,
        }
        let faults = draw_plan(3, &menu(), 0, 200_000);
        let text = toml::to_string(&File { faults: faults.clone() }).unwrap();
        assert_eq!(toml::from_str::<File>(&text).unwrap().faults, faults);
    }
}
