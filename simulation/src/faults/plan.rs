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

/// Which faults may be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultMenu {
    /// Hosts that faults happen to: 0 to below this.
    pub hosts: u16,
    /// Disks fail too, and not only lose what was not synced.
    pub disk_errors: bool,
    /// Clocks go wrong.
    pub clocks: bool,
}

/// Shortest and longest wait between the beginnings of two faults.
const GAP_MS: (u64, u64) = (300, 6_000);
/// Shortest and longest fault.
const LENGTH_MS: (u64, u64) = (500, 9_000);

/// Draws the faults of a period. Each has ended before the period does.
///
/// No fault destroys what was synced: as many hosts may be down at once as there are, and nothing acknowledged is lost.
pub fn draw_plan(seed: u64, menu: FaultMenu, from_ms: u64, until_ms: u64) -> Vec<PlannedFault> {
    let mut times = Stream::new(seed, "fault times", 0);
    let mut plan = Vec::new();
    let mut at_ms = from_ms;
    for number in 0.. {
        at_ms += times.between(GAP_MS.0, GAP_MS.1);
        let for_ms = times.between(LENGTH_MS.0, LENGTH_MS.1);
        if at_ms + for_ms >= until_ms || menu.hosts == 0 {
            break;
        }
        // A stream per fault: taking one away leaves the others as they are.
        plan.push(PlannedFault { at_ms, for_ms, fault: draw_fault(&mut Stream::new(seed, "fault", number), menu) });
    }
    plan
}

fn draw_fault(stream: &mut Stream, menu: FaultMenu) -> Fault {
    let hosts = u64::from(menu.hosts);
    let host = |stream: &mut Stream| u16::try_from(stream.below(hosts)).unwrap_or(0);
    let one = host(stream);
    let other = if hosts > 1 {
        u16::try_from((u64::from(one) + 1 + stream.below(hosts - 1)) % hosts).unwrap_or(0)
    } else {
        one
    };
    let kinds = 13 + u64::from(menu.clocks) + 2 * u64::from(menu.disk_errors);
    match stream.below(kinds) {
        0 | 1 => Fault::Partition { group: vec![one] },
        2 => Fault::Partition { group: (0..menu.hosts).filter(|_| stream.chance(500)).collect() },
        3 | 4 => Fault::OneWay { from: one, to: other },
        5 => Fault::Weather {
            host: one,
            link: LinkFaults {
                loss_permille: stream.between(20, 300),
                duplicate_permille: stream.between(0, 200),
                reorder_permille: stream.between(0, 300),
                ..LinkFaults::default()
            },
        },
        6 => Fault::Weather {
            host: one,
            link: LinkFaults {
                delay_micros: stream.between(1_000, 150_000),
                jitter_micros: stream.between(0, 80_000),
                bytes_per_milli: if stream.chance(500) { stream.between(50, 2_000) } else { 0 },
                ..LinkFaults::default()
            },
        },
        7 => Fault::Reset { one, other },
        8 => Fault::Crash { host: one, how: CrashKind::Process },
        9 => Fault::Crash { host: one, how: CrashKind::Power },
        10 => Fault::CrashInJob { host: one, after: stream.between(1, 60) },
        11 => Fault::Pause { host: one },
        12 => Fault::Blackout { how: if stream.chance(500) { CrashKind::Power } else { CrashKind::Process } },
        13 if menu.clocks => {
            Fault::Skew { host: one, offset_micros: i64::try_from(stream.below(800_000)).unwrap_or(0) - 400_000 }
        }
        13 | 14 => Fault::Disk {
            host: one,
            disk: DiskFaults {
                write_error_permille: stream.between(0, 20),
                sync_error_permille: stream.between(0, 20),
                slowdown: stream.between(0, 20),
                ..DiskFaults::default()
            },
        },
        _ => Fault::DiskFull { host: one, free_bytes: stream.between(0, 64 << 10) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MENU: FaultMenu = FaultMenu { hosts: 3, disk_errors: true, clocks: true };

    #[test]
    fn every_fault_ends_within_the_period() {
        let mut drawn = 0;
        for seed in 0..50 {
            let plan = draw_plan(seed, MENU, 10_000, 100_000);
            assert_eq!(plan, draw_plan(seed, MENU, 10_000, 100_000));
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
        let faults = draw_plan(3, MENU, 0, 200_000);
        let text = toml::to_string(&File { faults: faults.clone() }).unwrap();
        assert_eq!(toml::from_str::<File>(&text).unwrap().faults, faults);
    }
}
