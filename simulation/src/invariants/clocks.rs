//! How far ahead of the time versions may be.

use super::Evidence;
use super::late::{nodes_at_least, replicas_at_least};
use super::writes::tell;
use crate::cluster::Outcome;
use crate::entropy::EPOCH_MICROS;
use crate::faults::Fault;

/// How far a peer's clock may be ahead, as nodes are set up.
const SKEW_MAX_MICROS: u64 = 500_000;
/// Half of the time that a node may take to say what its clock says: so much is not known of it.
const UNKNOWN_MICROS: u64 = 250_000;
/// A hybrid clock keeps what it has followed; that has passed after this time.
const FOLLOWED_MICROS: u64 = 2 * SKEW_MAX_MICROS;
/// For so long a node goes by what it has heard of others' clocks.
const BELIEVED_MICROS: u64 = 11_000_000;
/// So long after a clock has gone wrong its node has heard of the others'.
const HEARD_MICROS: u64 = 3_000_000;
/// So long after nodes were down or out of reach they have heard of each other.
const BACK_MICROS: u64 = 6_000_000;
/// Of fewer clocks nobody knows which one is wrong.
const CLOCKS_MIN: usize = 3;

/// A clock that is wrong, and those that follow it.
struct Wrong {
    host: u16,
    from: u64,
    until: u64,
}

fn wrong_clocks(evidence: &Evidence) -> Vec<Wrong> {
    let of = |fault: &Fault| match fault {
        Fault::Skew { host, .. } | Fault::Drift { host, .. } => Some(*host),
        _ => None,
    };
    let wrong = evidence.plan.iter().filter_map(|planned| {
        let (from, until) = (planned.at_ms * 1_000, (planned.at_ms + planned.for_ms) * 1_000 + FOLLOWED_MICROS);
        Some(Wrong { host: of(&planned.fault)?, from, until })
    });
    wrong.collect()
}

pub(super) fn no_clock_is_followed_far(evidence: &Evidence) -> Vec<String> {
    let wrong = wrong_clocks(evidence);
    // Two clocks at once were wrong at some time that a node still goes by: then most may have been.
    let misled = |from: u64, until: u64| {
        wrong.iter().enumerate().any(|(place, one)| {
            let others = wrong.iter().take(place).filter(|other| other.host != one.host);
            let mut both = others.map(|other| (one.from.max(other.from), one.until.min(other.until)));
            both.any(|(begin, end)| begin < end && begin <= until && end + BELIEVED_MICROS >= from)
        })
    };
    // Nodes have heard of each other's clocks since one has gone wrong, if one has.
    let heard = |from: u64, until: u64| {
        let mut touching = evidence.plan.iter().filter(|planned| {
            planned.at_ms * 1_000 <= until && (planned.at_ms + planned.for_ms) * 1_000 + BACK_MICROS >= from
        });
        let clocks = nodes_at_least(evidence, until);
        clocks >= CLOCKS_MIN
            && touching.all(|planned| match planned.fault {
                Fault::Skew { .. } | Fault::Drift { .. } => planned.at_ms * 1_000 + HEARD_MICROS <= from,
                // A node whose disk fails may end.
                Fault::Disk { .. } | Fault::DiskFull { .. } => clocks > CLOCKS_MIN,
                Fault::Backup { .. } | Fault::PausedBalance => true,
                _ => false,
            })
    };
    let mut found = Vec::new();
    for write in evidence.facts.writes.iter().filter(|write| write.attempts == 1) {
        let Outcome::Acknowledged { level, version } = write.outcome else { continue };
        let by_several = level.needed(replicas_at_least(evidence, write.ended)) >= 2;
        if misled(write.begun, write.ended) || !(by_several || heard(write.begun, write.ended)) {
            continue;
        }
        // A replica with the right clock, or one that knew of most others, took it at its end at the latest.
        let ahead = version.time().micros().saturating_sub(EPOCH_MICROS + write.ended);
        if ahead > SKEW_MAX_MICROS + UNKNOWN_MICROS {
            found.push(format!("{}, {ahead} us ahead of the time", tell(write)));
        }
    }
    found
}
