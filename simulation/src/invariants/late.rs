//! What a table that is synced behind its acknowledgements may lose.

use std::collections::BTreeSet;

use shoal_kernel::Fsync;

use super::Evidence;
use crate::cluster::{Target, Write};
use crate::faults::Fault;

/// How long a sync may take to begin and to end beyond its interval, on a disk without faults.
const SYNC_MICROS: u64 = 1_000_000;
/// How long a replica may need to be opened again: what it then reads back, it syncs.
const REOPEN_MICROS: u64 = 35_000_000;

/// Whether an acknowledged write may have been lost to loss of power before a moment. Everybody who held it when it was
/// acknowledged must have lost it, each before it was synced there.
pub(super) fn may_be_lost(evidence: &Evidence, write: &Write, before_micros: u64) -> bool {
    let fsync = match write.target {
        Target::Upserts | Target::Deletes => evidence.upserts_fsync,
        Target::Events => evidence.events_fsync,
    };
    let (Some(level), false) = (write.level(), fsync == Fsync::Always) else { return false };
    let due_micros = |ms: u32| write.ended.saturating_add(u64::from(ms) * 1_000 + SYNC_MICROS);
    let lost_it = |&&(at, host): &&(u64, u16)| {
        let unsynced = match fsync {
            Fsync::Interval { ms } => at <= due_micros(ms) || hindered(evidence, write, host, at),
            Fsync::Always | Fsync::Never => true,
        };
        (write.begun..before_micros).contains(&at) && unsynced
    };
    let mut hosts: BTreeSet<u16> = evidence.power_losses.iter().filter(lost_it).map(|(_, host)| *host).collect();
    // These may have lost what was synced, too.
    hosts.extend(evidence.ending.destroyed());
    hosts.extend(evidence.plan.iter().filter_map(|planned| match &planned.fault {
        Fault::Disk { host, disk } if disk.flip_permille > 0 => Some(*host),
        Fault::Damage { host, .. } => Some(*host),
        _ => None,
    }));
    hosts.len() >= level.needed(replicas_at_least(evidence, write.ended))
}

/// Replicas that every table has up to then: where nodes have not come yet, or are on their way out, fewer may be asked for.
pub(super) fn replicas_at_least(evidence: &Evidence, until_micros: u64) -> usize {
    usize::from(evidence.replicas).min(nodes_at_least(evidence, until_micros)).max(1)
}

/// Nodes that have taken part all the time, at least.
pub(super) fn nodes_at_least(evidence: &Evidence, until_micros: u64) -> usize {
    let begun = evidence.plan.iter().filter(|planned| planned.at_ms * 1_000 <= until_micros);
    // Who is to join is away before that.
    let joins = evidence.plan.iter().filter(|planned| matches!(planned.fault, Fault::Join { .. }));
    let away = begun.chain(joins).filter_map(|planned| match planned.fault {
        Fault::Join { host } | Fault::Drain { host } | Fault::Decommission { host } | Fault::Wipe { host } => {
            Some(host)
        }
        _ => None,
    });
    let away: BTreeSet<u16> = away.collect();
    usize::from(evidence.nodes).saturating_sub(away.len())
}

/// Whether a host may not have come to sync for another reason than its interval: it stood still, was down, its disk failed.
fn hindered(evidence: &Evidence, write: &Write, host: u16, until_micros: u64) -> bool {
    evidence.plan.iter().any(|planned| {
        let touches = match &planned.fault {
            Fault::Pause { host: one }
            | Fault::Crash { host: one, .. }
            | Fault::CrashInJob { host: one, .. }
            | Fault::Stop { host: one }
            | Fault::Disk { host: one, .. }
            | Fault::DiskFull { host: one, .. } => *one == host,
            Fault::Blackout { .. } | Fault::Storm | Fault::PausedBalance => true,
            _ => false,
        };
        let (from, to) = (planned.at_ms * 1_000, (planned.at_ms + planned.for_ms) * 1_000 + REOPEN_MICROS);
        touches && from <= until_micros && to >= write.begun
    })
}

#[cfg(test)]
mod tests {
    use shoal_kernel::{Hlc, NodeId, Version, WriteLevel};

    use super::*;
    use crate::cluster::{Note, OperationId, Outcome};
    use crate::faults::PlannedFault;

    fn write(level: WriteLevel) -> Write {
        let version = Version::new(Hlc::from_micros(1), NodeId(1), 0);
        Write {
            id: OperationId { client: 1, number: 1 },
            target: Target::Upserts,
            rows: vec![(1, 1)],
            note: Note::None,
            begun: 1_000_000,
            ended: 1_100_000,
            node: 0,
            sent: 1_000_000,
            attempts: 1,
            sent_at_catalog: 0,
            done_at_catalog: 0,
            outcome: Outcome::Acknowledged { level, version },
            partial: false,
            at: None,
        }
    }

    #[test]
    fn as_many_as_held_it_must_have_lost_it_in_time() {
        let (quorum, all, end) = (write(WriteLevel::Quorum), write(WriteLevel::All), u64::MAX);
        let seen = |fsync, power_losses: &[(u64, u16)]| Evidence {
            nodes: 3,
            replicas: 3,
            upserts_fsync: fsync,
            power_losses: power_losses.to_vec(),
            ..Evidence::default()
        };
        let twice = [(1_200_000, 0), (1_300_000, 2)];
        assert!(!may_be_lost(&seen(Fsync::Always, &twice), &quorum, end));
        for fsync in [Fsync::Never, Fsync::Interval { ms: 500 }] {
            assert!(may_be_lost(&seen(fsync, &twice), &quorum, end));
            assert!(!may_be_lost(&seen(fsync, &twice), &quorum, 1_250_000), "one of them later than it was seen");
            assert!(!may_be_lost(&seen(fsync, &twice), &all, end), "the third replica has it");
            assert!(!may_be_lost(&seen(fsync, &[(1_200_000, 0), (1_300_000, 0)]), &quorum, end), "the same node twice");
            assert!(!may_be_lost(&seen(fsync, &[(900_000, 0), (1_300_000, 2)]), &quorum, end), "before it was written");
        }
        let late = [(1_200_000, 0), (9_000_000, 2)];
        assert!(may_be_lost(&seen(Fsync::Never, &late), &quorum, end));
        assert!(!may_be_lost(&seen(Fsync::Interval { ms: 500 }, &late), &quorum, end), "it was synced by then");
        let mut slow = seen(Fsync::Interval { ms: 500 }, &late);
        slow.plan.push(PlannedFault { at_ms: 1_000, for_ms: 7_000, fault: Fault::Pause { host: 2 } });
        assert!(may_be_lost(&slow, &quorum, end));
    }
}
