//! What the plan does to the world.

mod plan;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::disk::DiskFaults;
use crate::network::LinkFaults;
use crate::trace::Kind;
use crate::world::{CrashKind, HostId, Simulation};

pub use plan::{FaultKind, FaultMenu, GAP_MS, PlannedFault, draw_gap_ms, draw_kinds, draw_plan};

/// A fault. Hosts are numbers from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Fault {
    /// Hosts of the group and the others no longer reach each other.
    Partition {
        /// One side; the other is everybody else.
        group: Vec<u16>,
    },
    /// One direction between two hosts is cut.
    OneWay {
        /// Whose messages are lost.
        from: u16,
        /// Who no longer hears them.
        to: u16,
    },
    /// Two hosts do not reach each other; a third one may reach both.
    Apart {
        /// One.
        one: u16,
        /// The other.
        other: u16,
    },
    /// Every link of a host has these faults, in both directions.
    Weather {
        /// The host.
        host: u16,
        /// What is wrong.
        link: LinkFaults,
    },
    /// Streams between two hosts are reset.
    Reset {
        /// One.
        one: u16,
        /// The other.
        other: u16,
    },
    /// A host goes down and is started again at the end.
    Crash {
        /// The host.
        host: u16,
        /// How.
        how: CrashKind,
    },
    /// A host loses its power right after so many further disk operations, in the middle of a job.
    CrashInJob {
        /// The host.
        host: u16,
        /// Changes of its disk until then.
        after: u64,
    },
    /// Every node goes down at once, and all are started again at the end.
    Blackout {
        /// How.
        how: CrashKind,
    },
    /// A host does nothing while the fault lasts.
    Pause {
        /// The host.
        host: u16,
    },
    /// A host's wall clock is off.
    Skew {
        /// The host.
        host: u16,
        /// By how much.
        offset_micros: i64,
    },
    /// A host's wall clock runs too fast or too slow.
    Drift {
        /// The host.
        host: u16,
        /// Microseconds gained per second.
        micros_per_second: i64,
    },
    /// A host's disk fails now and then, or is slow.
    Disk {
        /// The host.
        host: u16,
        /// What is wrong.
        disk: DiskFaults,
    },
    /// A host's disk has only so much room left.
    DiskFull {
        /// The host.
        host: u16,
        /// What is left.
        free_bytes: u64,
    },
    /// A bit of what lies on a host's disk is flipped for good.
    Damage {
        /// The host.
        host: u16,
        /// In some file with this in its path.
        part: String,
    },
    /// A host loses its disk, and is started with an empty one at the end: what runs there then is another node.
    Wipe {
        /// The host.
        host: u16,
    },
    /// A node is started for the first time, and joins.
    Join {
        /// The host.
        host: u16,
    },
    /// An operator has a node give its replicas away, and take part again at the end.
    Drain {
        /// The host.
        host: u16,
    },
    /// An operator has a node leave the cluster; its machine comes back with an empty disk. If it has not left by the end, it stays.
    Decommission {
        /// The host; not the first one, which would found a cluster of its own.
        host: u16,
    },
    /// Many more clients than usual are at work.
    Storm,
    /// An operator has no replicas moved for balance, until the end.
    PausedBalance,
    /// An operator stops a node in good order, and starts it again when it has been down for so long.
    Stop {
        /// The host.
        host: u16,
    },
    /// An operator backs up a table, trying until the end. It is restored when everything has been read.
    Backup {
        /// Whether it is the table of events.
        events: bool,
    },
}

impl Fault {
    /// Does it. `time` is how long it will last.
    pub fn begin(&self, simulation: &mut Simulation, time: Duration) {
        let shared = simulation.shared().clone();
        match self {
            Self::Partition { group } => across(simulation, group, |from, to| shared.cut(from, to)),
            Self::OneWay { from, to } => shared.cut(HostId(*from), HostId(*to)),
            Self::Apart { one, other } => {
                shared.cut(HostId(*one), HostId(*other));
                shared.cut(HostId(*other), HostId(*one));
            }
            Self::Weather { host, link } => {
                of_host(simulation, *host, |from, to| shared.set_link_faults(from, to, *link))
            }
            Self::Reset { one, other } => shared.reset_streams(HostId(*one), HostId(*other)),
            Self::Crash { host, how } => simulation.crash(HostId(*host), *how),
            Self::Blackout { how } => {
                for host in simulation.nodes() {
                    simulation.crash(host, *how);
                }
            }
            Self::CrashInJob { host, after } => {
                if let Some(disk) = simulation.disk(HostId(*host)).filter(|_| simulation.is_up(HostId(*host))) {
                    disk.crash_after(*after);
                }
            }
            Self::Pause { host } => simulation.pause(HostId(*host), time),
            Self::Skew { host, offset_micros } => shared.set_wall_offset_micros(HostId(*host), *offset_micros),
            Self::Drift { host, micros_per_second } => {
                shared.set_wall_drift(HostId(*host), *micros_per_second);
            }
            Self::Damage { host, part } => {
                if let Some(disk) = simulation.disk(HostId(*host)) {
                    disk.flip_bit(part);
                }
            }
            Self::Wipe { host } => {
                simulation.crash(HostId(*host), CrashKind::Power);
                if let Some(disk) = simulation.disk(HostId(*host)) {
                    disk.wipe();
                }
            }
            Self::Join { host } => {
                // The simulator may be out of descriptors; the heal starts it, or says so.
                let _ = simulation.start(HostId(*host));
            }
            // The clients and the operators know the plan.
            Self::Storm => shared.trace(Kind::Fault, format_args!("clients storm the nodes")),
            Self::PausedBalance => shared.trace(Kind::Fault, format_args!("balance is to be paused")),
            Self::Backup { .. } => shared.trace(Kind::Fault, format_args!("a table is to be backed up")),
            Self::Stop { host } => shared.trace(Kind::Fault, format_args!("{} is to stop", HostId(*host))),
            Self::Drain { host } => shared.trace(Kind::Fault, format_args!("{} is to be drained", HostId(*host))),
            Self::Decommission { host } => {
                shared.trace(Kind::Fault, format_args!("{} is to leave the cluster", HostId(*host)));
            }
            Self::Disk { host, disk: faults } => {
                if let Some(disk) = simulation.disk(HostId(*host)) {
                    disk.set_faults(*faults);
                }
            }
            Self::DiskFull { host, free_bytes } => {
                if let Some(disk) = simulation.disk(HostId(*host)) {
                    disk.squeeze(*free_bytes);
                }
            }
        }
    }

    /// Takes it away.
    ///
    /// # Errors
    /// A host cannot be started: the simulator itself has run out of descriptors.
    pub fn end(&self, simulation: &mut Simulation) -> std::io::Result<()> {
        let shared = simulation.shared().clone();
        match self {
            Self::Partition { group } => across(simulation, group, |from, to| shared.mend(from, to)),
            Self::OneWay { from, to } => shared.mend(HostId(*from), HostId(*to)),
            Self::Apart { one, other } => {
                shared.mend(HostId(*one), HostId(*other));
                shared.mend(HostId(*other), HostId(*one));
            }
            Self::Weather { host, .. } => {
                of_host(simulation, *host, |from, to| shared.set_link_faults(from, to, LinkFaults::default()));
            }
            Self::Crash { host, .. } | Self::CrashInJob { host, .. } | Self::Wipe { host } => {
                if let Some(disk) = simulation.disk(HostId(*host)) {
                    disk.disarm();
                }
                simulation.start(HostId(*host))?;
            }
            Self::Blackout { .. } => {
                for host in simulation.nodes() {
                    simulation.start(host)?;
                }
            }
            Self::Skew { host, .. } | Self::Drift { host, .. } => shared.set_wall_offset_micros(HostId(*host), 0),
            Self::Disk { host, .. } | Self::DiskFull { host, .. } => {
                if let Some(disk) = simulation.disk(HostId(*host)) {
                    disk.set_faults(DiskFaults::default());
                }
            }
            Self::Reset { .. }
            | Self::Pause { .. }
            | Self::Damage { .. }
            | Self::Join { .. }
            | Self::Drain { .. }
            | Self::Decommission { .. }
            | Self::PausedBalance
            | Self::Backup { .. }
            | Self::Stop { .. }
            | Self::Storm => {}
        }
        Ok(())
    }
}

impl Fault {
    /// A part of the paths of what it flips a bit of on a host's disk, if it does.
    pub fn damages(&self, disk_of: u16) -> Option<&str> {
        match self {
            Self::Damage { host, part } if *host == disk_of => Some(part),
            _ => None,
        }
    }

    /// Whether hosts are started at its end.
    pub fn is_crash(&self) -> bool {
        matches!(self, Self::Crash { .. } | Self::CrashInJob { .. } | Self::Blackout { .. } | Self::Wipe { .. })
    }

    /// Whether it keeps every message of one node from another.
    pub fn separates(&self, from: u16, to: u16) -> bool {
        match self {
            Self::Partition { group } => group.contains(&from) != group.contains(&to),
            Self::OneWay { from: source, to: target } => (*source, *target) == (from, to),
            Self::Apart { one, other } => (*one, *other) == (from, to) || (*one, *other) == (to, from),
            Self::Crash { host, .. } | Self::Wipe { host } => *host == from || *host == to,
            _ => false,
        }
    }
}

fn across(simulation: &Simulation, group: &[u16], mut each: impl FnMut(HostId, HostId)) {
    for from in simulation.nodes() {
        for to in simulation.nodes() {
            if group.contains(&from.0) != group.contains(&to.0) {
                each(from, to);
            }
        }
    }
}

fn of_host(simulation: &Simulation, host: u16, mut each: impl FnMut(HostId, HostId)) {
    for other in simulation.nodes().filter(|other| other.0 != host) {
        each(HostId(host), other);
        each(other, HostId(host));
    }
}

/// Runs to `until_micros` while the plan's faults come and go.
///
/// # Errors
/// As [`Fault::end`].
pub fn run_plan(simulation: &mut Simulation, plan: &[PlannedFault], until_micros: u64) -> std::io::Result<()> {
    let mut turns: Vec<(u64, usize, bool)> = Vec::new();
    for (index, planned) in plan.iter().enumerate() {
        turns.push((planned.at_ms * 1_000, index, true));
        turns.push(((planned.at_ms + planned.for_ms) * 1_000, index, false));
    }
    turns.sort();
    for (at_micros, index, begins) in turns.into_iter().filter(|turn| turn.0 < until_micros) {
        simulation.run_until(at_micros);
        let planned = &plan[index];
        if begins {
            planned.fault.begin(simulation, Duration::from_millis(planned.for_ms));
        } else {
            planned.fault.end(simulation)?;
        }
    }
    simulation.run_until(until_micros);
    Ok(())
}

/// Takes every fault away and starts every host that is down, except those that are lost for good.
///
/// # Errors
/// As [`Fault::end`].
pub fn heal_everything(simulation: &mut Simulation, lost: &[u16]) -> std::io::Result<()> {
    simulation.shared().heal_network();
    for host in simulation.hosts() {
        if let Some(disk) = simulation.disk(host) {
            disk.disarm();
            disk.set_faults(DiskFaults::default());
        }
        simulation.shared().set_wall_offset_micros(host, 0);
        if !lost.contains(&host.0) {
            simulation.start(host)?;
        }
    }
    Ok(())
}
