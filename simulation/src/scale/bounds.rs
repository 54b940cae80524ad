//! What every size is held to. Times are virtual and do not depend on the machine.

use super::SECOND;
use super::catalog::CatalogReport;
use super::scenes::GossipReport;

/// What a quiet node of the largest cluster may send, as a multiple of what one of the smallest does.
pub const QUIET_GROWTH_MAX: f64 = 1.5;

/// Bytes that a quiet node may send in a second, on average.
pub const QUIET_BYTES_MAX: f64 = 850.0;

/// Bytes that a quiet node may send and receive in a second, all but one in a hundred: as much as it sends it receives, and some
/// are asked more often than others. What a single node does among thousands is measured and not bounded.
pub const QUIET_BUSY_BYTES_MAX: f64 = 2.5 * QUIET_BYTES_MAX;

/// From the first start of a storm until everybody sees everybody alive, in virtual microseconds.
pub const STORM_MICROS_MAX: u64 = 15 * SECOND;

/// Until a newcomer sees everybody alive, and everybody it, in virtual microseconds.
pub const JOIN_MICROS_MAX: u64 = 15 * SECOND;

/// Until somebody calls one of those down that have crashed, in virtual microseconds.
pub const FIRST_DETECTION_MICROS_MAX: u64 = 6 * SECOND;

/// Until every survivor calls all of them down, in virtual microseconds.
pub const CRASH_KNOWN_MICROS_MAX: u64 = 20 * SECOND;

/// From the heal of a partition until everybody sees everybody alive, in virtual microseconds.
pub const HEAL_MICROS_MAX: u64 = 20 * SECOND;

/// Bytes of a snapshot of the catalog, for each partition of three replicas.
pub const MAP_BYTES_PER_PARTITION_MAX: f64 = 48.0;

/// Bytes that the move of one replica adds to the catalog's log.
pub const MOVE_BYTES_MAX: usize = 512;

/// The bounds that do not hold, in words. None if all do.
pub fn broken_bounds(gossip: &[GossipReport], catalog: Option<&CatalogReport>) -> Vec<String> {
    let mut broken = Vec::new();
    let mut hold = |holds: bool, what: String| {
        if !holds {
            broken.push(what);
        }
    };
    for report in gossip {
        let nodes = report.nodes;
        let GossipReport { storm, quiet, join, crash, partition, slow, .. } = report;
        for (what, micros, most) in [
            ("all see all after a storm", storm.last_micros, STORM_MICROS_MAX),
            ("all see all after a join", join.last_micros, JOIN_MICROS_MAX),
            ("somebody misses a node that crashed", crash.first_micros, FIRST_DETECTION_MICROS_MAX),
            ("every survivor knows who crashed", crash.last_micros, CRASH_KNOWN_MICROS_MAX),
            ("all see all after a partition", partition.last_micros, HEAL_MICROS_MAX),
            ("all see all once nobody is slow", slow.last_micros, HEAL_MICROS_MAX),
        ] {
            hold(
                micros.is_some_and(|micros| micros <= most),
                format!("{nodes} nodes: {what} within {} s, not within {micros:?} us", most / SECOND),
            );
        }
        let bytes = quiet.rates.sent_bytes;
        hold(
            bytes <= QUIET_BYTES_MAX,
            format!("{nodes} nodes: a quiet node sends {QUIET_BYTES_MAX} B/s at most, not {bytes:.0}"),
        );
        let bytes = quiet.rates.busy_bytes;
        hold(
            bytes <= QUIET_BUSY_BYTES_MAX,
            format!(
                "{nodes} nodes: quiet, all but one in a hundred send and receive {QUIET_BUSY_BYTES_MAX} B/s at most, not {bytes:.0}"
            ),
        );
        hold(
            quiet.called_down + crash.called_down + slow.others_called_down == 0,
            format!(
                "{nodes} nodes: nobody is called down who is up and not slow, not {} + {} + {}",
                quiet.called_down, crash.called_down, slow.others_called_down
            ),
        );
    }
    let quiet = |report: &GossipReport| report.quiet.rates.sent_bytes;
    let smallest = gossip.iter().min_by_key(|report| report.nodes);
    let largest = gossip.iter().max_by_key(|report| report.nodes);
    if let (Some(smallest), Some(largest)) = (smallest, largest) {
        let growth = quiet(largest) / quiet(smallest);
        hold(
            growth <= QUIET_GROWTH_MAX,
            format!(
                "a quiet node of {} sends {QUIET_GROWTH_MAX} times what one of {} does at most, not {growth:.2} times",
                largest.nodes, smallest.nodes
            ),
        );
    }
    if let Some(catalog) = catalog {
        let bytes = catalog.bytes_per_partition();
        hold(
            bytes <= MAP_BYTES_PER_PARTITION_MAX,
            format!("a partition takes {MAP_BYTES_PER_PARTITION_MAX} B of a snapshot at most, not {bytes:.1}"),
        );
        hold(
            catalog.move_bytes <= MOVE_BYTES_MAX,
            format!("a move takes {MOVE_BYTES_MAX} B of the log at most, not {}", catalog.move_bytes),
        );
    }
    broken
}
