//! Events that are kept for a time only.

use std::collections::BTreeSet;

use super::Evidence;
use super::writes::pairs;
use crate::cluster::{Question, Read, Target, Write};
use crate::faults::{Fault, PlannedFault};
use crate::world::HostId;

/// How far ahead several clocks that are off may take the one that the cluster goes by.
const CLOCKS_AHEAD_MICROS: u64 = 10_000_000;
/// How long after its time an event may be there: the skew that is allowed for, a step of the cut-off, turns, and elections.
const LATE_MICROS: u64 = 10_000_000;

/// Whether an event may have been dropped before a moment.
pub(super) fn may_have_expired(evidence: &Evidence, write: &Write, before_micros: u64) -> bool {
    let (Some(ttl), Target::Events) = (evidence.events_ttl, write.target) else { return false };
    write.event_time().is_none_or(|at| may_be_gone(evidence, ttl, at, before_micros))
}

/// Whether an event of a time, in microseconds of virtual time, may have been dropped before a moment.
pub(super) fn may_be_gone(evidence: &Evidence, ttl: u64, at: i64, before_micros: u64) -> bool {
    let before = evidence.events_stay_from.map_or(before_micros, |stay| stay.min(before_micros));
    let lately = |planned: &&PlannedFault| {
        let until = (planned.at_ms + planned.for_ms) * 1_000;
        planned.at_ms * 1_000 <= before && until + 2 * CLOCKS_AHEAD_MICROS >= before
    };
    let off = evidence.plan.iter().filter(lately).filter_map(|planned| clock_of(&planned.fault));
    let off: BTreeSet<u16> = off.collect();
    // One clock alone decides nothing, unless there is no other.
    let ahead = if off.len() > 1 || evidence.nodes == 1 { CLOCKS_AHEAD_MICROS } else { 0 };
    i128::from(at) + i128::from(ttl) < i128::from(before) + i128::from(ahead)
}

fn clock_of(fault: &Fault) -> Option<u16> {
    match fault {
        Fault::Skew { host, .. } | Fault::Drift { host, .. } => Some(*host),
        _ => None,
    }
}

pub(super) fn expired_events_are_gone(evidence: &Evidence) -> Vec<String> {
    let (Some(ttl), Some(stay)) = (evidence.events_ttl, evidence.events_stay_from) else { return Vec::new() };
    let mut found = Vec::new();
    let whole = |read: &&Read| read.at_rest && read.question == Question::Events;
    for read in evidence.facts.reads.iter().filter(whole) {
        let shown = pairs(&read.rows);
        for write in evidence.facts.writes.iter().filter(|write| write.target == Target::Events) {
            let Some(at) = write.event_time() else { continue };
            let overdue = i128::from(at) + i128::from(ttl) + i128::from(LATE_MICROS) < i128::from(stay);
            if let Some((id, _)) = write.rows.iter().find(|(id, _)| overdue && shown.contains_key(id)) {
                let (node, scan, at) = (HostId(read.node), read.id, at as f64 / 1e6);
                found.push(format!(
                    "event {id} of operation {} has the time {at:.3} s; a scan through {node} (operation {scan}) shows it",
                    write.id
                ));
            }
        }
    }
    found
}
