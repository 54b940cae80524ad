//! What became of writes.

use std::collections::{BTreeMap, BTreeSet};

use shoal_kernel::{NodeId, WriteLevel};

use super::Evidence;
use super::expiry::may_have_expired;
use super::late::{may_be_lost, replicas_at_least};
use crate::cluster::{Cell, Ending, Outcome, Question, Read, Target, Write};
use crate::faults::{Fault, PlannedFault};
use crate::world::HostId;

/// Writes to the upsert table, by key, each with its value there. Of a write that names a key twice the last row counts.
pub(super) fn by_key(evidence: &Evidence) -> BTreeMap<i64, Vec<(i64, &Write)>> {
    let mut keys: BTreeMap<i64, Vec<(i64, &Write)>> = BTreeMap::new();
    for write in evidence.facts.writes.iter().filter(|write| write.target == Target::Upserts) {
        let rows: BTreeMap<i64, i64> = write.rows.iter().copied().collect();
        for (key, value) in rows {
            keys.entry(key).or_default().push((value, write));
        }
    }
    keys
}

/// Deletions that may have had an effect, by key.
pub(super) fn deletions(evidence: &Evidence) -> BTreeMap<i64, Vec<&Write>> {
    let mut keys: BTreeMap<i64, Vec<&Write>> = BTreeMap::new();
    let writes = evidence.facts.writes.iter();
    for write in writes.filter(|write| write.target == Target::Deletes && write.outcome != Outcome::NotApplied) {
        for (key, _) in &write.rows {
            keys.entry(*key).or_default().push(write);
        }
    }
    keys
}

/// Whether it certainly deleted each of its keys.
pub(super) fn is_certain(deletion: &Write) -> bool {
    matches!(deletion.outcome, Outcome::Acknowledged { .. }) && !deletion.partial
}

/// Whether a deletion of its key may have beaten a row.
pub(super) fn may_beat(deletion: &Write, row: &Write) -> bool {
    deletion.version().zip(row.version_at_least()).is_none_or(|(deletion, row)| deletion > row)
}

/// Whole scans of the upsert table at rest, as (key, value).
fn scans(evidence: &Evidence) -> impl Iterator<Item = (&Read, BTreeMap<i64, i64>)> {
    let whole = |read: &&Read| read.at_rest && matches!(read.question, Question::Range { .. });
    evidence.facts.reads.iter().filter(whole).map(|read| (read, pairs(&read.rows)))
}

/// Rows of two integers.
pub(super) fn pairs(rows: &[Vec<Cell>]) -> BTreeMap<i64, i64> {
    let pair = |row: &Vec<Cell>| match row.as_slice() {
        [Cell::Int(first), Cell::Int(second), ..] => Some((*first, *second)),
        _ => None,
    };
    rows.iter().filter_map(pair).collect()
}

/// Whether a read at rest must find the write: the run's ending promises that it survives.
fn survives(evidence: &Evidence, write: &Write, read: &Read) -> bool {
    // A replica that reads damage empties itself: its disk is as good as lost.
    let flips = |planned: &PlannedFault| match &planned.fault {
        Fault::Disk { disk, .. } => disk.flip_permille > 0,
        fault => matches!(fault, Fault::Damage { .. }),
    };
    let whole = evidence.ending == Ending::HealAll && !evidence.plan.iter().any(flips);
    write.level().is_some_and(|level| whole || level >= WriteLevel::Quorum) && !may_be_lost(evidence, write, read.begun)
}

pub(super) fn tell(write: &Write) -> String {
    let outcome = match write.outcome {
        Outcome::Acknowledged { level, version } => format!("acknowledged at {level} as {version}"),
        Outcome::NotApplied => "refused without effect".to_owned(),
        Outcome::Unknown => "of unknown outcome".to_owned(),
    };
    let begun = write.begun as f64 / 1e6;
    let (id, node, times) = (write.id, HostId(write.node), write.attempts);
    format!("operation {id}, written at {begun:.3} s through {node}, sent {times} times, {outcome}")
}

pub(super) fn no_acknowledged_write_lost(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    let (keys, deletions) = (by_key(evidence), deletions(evidence));
    for (read, shown) in scans(evidence) {
        for (key, writes) in &keys {
            let deleted =
                |write: &Write| deletions.get(key).is_some_and(|all| all.iter().any(|one| may_beat(one, write)));
            let seen = shown.get(key);
            let source = seen.and_then(|value| writes.iter().find(|(written, _)| written == value));
            for (value, write) in writes.iter().filter(|(_, write)| survives(evidence, write, read)) {
                let lost = match (seen, source) {
                    (None, _) => !deleted(write),
                    // An older row, from a write that had ended before this one began.
                    (Some(_), Some((_, other))) => {
                        let older = other.version().zip(write.version_at_least());
                        older.is_some_and(|(other, write)| other < write) && other.ended < write.begun
                    }
                    // A row that nobody wrote is another promise's business.
                    (Some(_), None) => false,
                };
                if lost {
                    let last = source
                        .map_or_else(|| "nothing".to_owned(), |(value, other)| format!("{value}, {}", tell(other)));
                    let (node, scan) = (HostId(read.node), read.id);
                    found.push(format!(
                        "key {key} = {value}, {}; a scan through {node} at rest (operation {scan}) shows {last}",
                        tell(write)
                    ));
                }
            }
        }
    }
    let whole = |read: &&Read| read.at_rest && read.question == Question::Events;
    for read in evidence.facts.reads.iter().filter(whole) {
        let shown = pairs(&read.rows);
        for write in evidence
            .facts
            .writes
            .iter()
            .filter(|write| write.target == Target::Events && survives(evidence, write, read))
            .filter(|write| !may_have_expired(evidence, write, read.ended))
        {
            for (id, _) in write.rows.iter().filter(|(id, _)| !shown.contains_key(id)) {
                let (node, scan) = (HostId(read.node), read.id);
                found.push(format!(
                    "event {id}, {}; a scan through {node} at rest (operation {scan}) has none",
                    tell(write)
                ));
            }
        }
    }
    found
}

pub(super) fn newest_wins(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    let keys = by_key(evidence);
    for (read, shown) in scans(evidence) {
        for (key, value) in &shown {
            let Some(writes) = keys.get(key) else { continue };
            let Some((_, source)) = writes.iter().find(|(written, _)| written == value) else { continue };
            let Some(version) = source.version() else { continue };
            let newer = writes
                .iter()
                .find(|(_, write)| survives(evidence, write, read) && write.version_at_least() > Some(version));
            if let Some((other, write)) = newer {
                let (node, scan) = (HostId(read.node), read.id);
                found.push(format!(
                    "key {key} at rest through {node} (operation {scan}): {value}, {}; but {other}, {}",
                    tell(source),
                    tell(write)
                ));
            }
        }
    }
    found
}

pub(super) fn deleted_rows_stay_deleted(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    let (keys, deletions) = (by_key(evidence), deletions(evidence));
    let whole =
        |read: &&Read| matches!(read.question, Question::Point { .. } | Question::Range { .. } | Question::Join);
    for read in evidence.facts.reads.iter().filter(whole) {
        for (key, value) in pairs(&read.rows) {
            let writes = keys.get(&key).map_or(&[][..], Vec::as_slice);
            let Some((_, source)) = writes.iter().find(|(written, _)| *written == value) else { continue };
            let Some(version) = source.version() else { continue };
            let holds = |deletion: &&&Write| match read.at_rest {
                true => survives(evidence, deletion, read),
                false => {
                    let everywhere = deletion.level() == Some(WriteLevel::All) && deletion.ended < read.begun;
                    // A node that was cut off may not know that others have taken the place of its replica.
                    let known = !evidence.replicas_move() || read.at_catalog >= deletion.done_at_catalog;
                    everywhere && known && !may_be_lost(evidence, deletion, read.ended)
                }
            };
            let mut of_key = deletions.get(&key).into_iter().flatten().filter(|deletion| is_certain(deletion));
            if let Some(deletion) = of_key.find(|one| holds(one) && one.version_at_least() > Some(version)) {
                let (node, id) = (HostId(read.node), read.id);
                found.push(format!(
                    "key {key} through {node} (operation {id}): {value}, {}; deleted by {}",
                    tell(source),
                    tell(deletion)
                ));
            }
        }
    }
    found
}

pub(super) fn deletes_beat_what_they_read(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    let keys = by_key(evidence);
    for (key, deletions) in deletions(evidence) {
        let writes = keys.get(&key).map_or(&[][..], Vec::as_slice);
        for deletion in deletions.into_iter().filter(|deletion| is_certain(deletion)) {
            // What every replica had before: none of them can have shown it an older row.
            let everywhere = writes
                .iter()
                .filter(|(_, write)| write.level() == Some(WriteLevel::All) && write.ended < deletion.begun);
            let newest = everywhere.max_by_key(|(_, write)| write.version_at_least());
            if let Some((value, write)) = newest
                && write.version_at_least() > deletion.version()
            {
                found.push(format!("key {key} = {value}, {}; deleted by {}", tell(write), tell(deletion)));
            }
        }
    }
    found
}

pub(super) fn versions_go_up(evidence: &Evidence) -> Vec<String> {
    // Another node may come in the place of one, with a clock of its own.
    let node = |write: &Write| match write.outcome {
        Outcome::Acknowledged { version, .. } => Some(version.node()),
        _ => None,
    };
    let mut by_node: BTreeMap<Option<NodeId>, Vec<&Write>> = BTreeMap::new();
    // A resend may stand under the version of an earlier attempt, at another node.
    for write in evidence.facts.writes.iter().filter(|write| write.attempts == 1 && write.version().is_some()) {
        by_node.entry(node(write)).or_default().push(write);
    }
    let mut found = Vec::new();
    for writes in by_node.into_values() {
        let (mut by_begin, mut by_end) = (writes.clone(), writes);
        by_begin.sort_by_key(|write| write.sent);
        by_end.sort_by_key(|write| write.ended);
        let mut ended = by_end.into_iter().peekable();
        let mut newest: Option<&Write> = None;
        for write in by_begin {
            while let Some(before) = ended.next_if(|before| before.ended < write.sent) {
                if newest.is_none_or(|newest| newest.version() < before.version()) {
                    newest = Some(before);
                }
            }
            if let Some(newest) = newest.filter(|newest| newest.version() >= write.version()) {
                found.push(format!("{}; and later, with a lower version, {}", tell(newest), tell(write)));
            }
        }
    }
    found
}

pub(super) fn attempts_agree(evidence: &Evidence) -> Vec<String> {
    evidence.facts.disagreed.clone()
}

pub(super) fn no_duplicate_after_resend(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    for read in &evidence.facts.reads {
        match read.question {
            Question::Events => {
                let mut seen = BTreeSet::new();
                let twice = |row: &&Vec<Cell>| row.first().is_some_and(|id| !seen.insert(id.clone()));
                if let Some(row) = read.rows.iter().find(twice) {
                    found.push(format!(
                        "event {row:?} stands twice in an answer of {} (operation {}) at {:.3} s",
                        HostId(read.node),
                        read.id,
                        read.ended as f64 / 1e6
                    ));
                }
            }
            Question::EventCount => {
                if let Some([all, different]) = read.rows.first().map(Vec::as_slice)
                    && all != different
                {
                    let (node, id) = (HostId(read.node), read.id);
                    found
                        .push(format!("{all:?} events of {different:?} different ids through {node} (operation {id})"));
                }
            }
            _ => {}
        }
    }
    found
}

pub(super) fn acknowledged_at_its_level(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    for write in &evidence.facts.writes {
        let Outcome::Acknowledged { level, .. } = write.outcome else { continue };
        // An earlier attempt may have reached more nodes than this one.
        if write.attempts > 1 || level == WriteLevel::One {
            continue;
        }
        let (begun_ms, ended_ms) = (write.sent / 1_000, write.ended.div_ceil(1_000));
        let unreachable = |peer: u16| {
            evidence.plan.iter().any(|planned| {
                let until_ms = planned.at_ms + planned.for_ms;
                let lasts = planned.at_ms <= begun_ms && until_ms >= ended_ms;
                let fault = &planned.fault;
                // A host that is down for two reasons is up again when the first of them ends.
                let started_before = || {
                    let starts = |fault: &Fault| fault.is_crash() || matches!(fault, Fault::Join { .. });
                    let mut ends = evidence.plan.iter().filter(|other| fault.is_crash() && starts(&other.fault));
                    ends.any(|other| (planned.at_ms..until_ms).contains(&(other.at_ms + other.for_ms)))
                };
                let separates = fault.separates(write.node, peer) || fault.separates(peer, write.node);
                lasts && separates && !started_before()
            })
        };
        let holders = 1 + (0..evidence.nodes).filter(|peer| *peer != write.node && !unreachable(*peer)).count();
        if holders < level.needed(replicas_at_least(evidence, write.ended)) {
            found.push(format!("{}, while only {holders} nodes could have held it", tell(write)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use shoal_kernel::{Hlc, NodeId, ReadLevel, Version};

    use super::*;
    use crate::cluster::{Facts, Note, OperationId};

    const KEY: i64 = 7;

    /// A write at level all that took a tenth of a second from its begin; its version is of this time.
    fn write(target: Target, begun_ms: u64, version_ms: u64, value: i64) -> Write {
        let version = Version::new(Hlc::from_micros(version_ms * 1_000), NodeId(1), 0);
        Write {
            id: OperationId { client: 1, number: begun_ms },
            target,
            rows: vec![(KEY, value)],
            note: Note::None,
            begun: begun_ms * 1_000,
            ended: begun_ms * 1_000 + 100_000,
            node: 0,
            sent: begun_ms * 1_000,
            attempts: 1,
            sent_at_catalog: 0,
            done_at_catalog: 0,
            outcome: Outcome::Acknowledged { level: WriteLevel::All, version },
            partial: false,
            at: None,
        }
    }

    fn evidence(writes: Vec<Write>, shown: Option<i64>, at_rest: bool) -> Evidence {
        let rows = shown.map(|value| vec![Cell::Int(KEY), Cell::Int(value)]);
        let read = Read {
            id: OperationId { client: 2, number: 0 },
            question: Question::Range { low: 0, high: 9 },
            level: ReadLevel::One,
            node: 0,
            begun: 900_000,
            ended: 950_000,
            at_catalog: 0,
            seen: None,
            rows: rows.into_iter().collect(),
            at_rest,
        };
        Evidence { facts: Facts { writes, reads: vec![read], ..Facts::default() }, ..Evidence::default() }
    }

    #[test]
    fn a_row_that_has_come_back_is_found() {
        let (put, gone) = (write(Target::Upserts, 100, 100, 1), write(Target::Deletes, 300, 300, 0));
        for at_rest in [false, true] {
            let shown = |writes: &[&Write], value| {
                let evidence = evidence(writes.iter().map(|write| (*write).clone()).collect(), value, at_rest);
                (deleted_rows_stay_deleted(&evidence).len(), no_acknowledged_write_lost(&evidence).len())
            };
            assert_eq!(shown(&[&put, &gone], Some(1)), (1, 0));
            assert_eq!(shown(&[&put, &gone], None), (0, 0));
            let newer = write(Target::Upserts, 310, 310, 2);
            assert_eq!(shown(&[&put, &gone, &newer], Some(2)), (0, 0));
            assert_eq!(shown(&[&put, &gone, &newer], None), (0, usize::from(at_rest)), "nothing deletes the newer row");
            let partly = Write { partial: true, ..gone.clone() };
            assert_eq!(shown(&[&put, &partly], Some(1)), (0, 0), "this key may not have been found");
            assert_eq!(shown(&[&put, &partly], None), (0, 0));
            let unknown = Write { outcome: Outcome::Unknown, ended: u64::MAX, ..gone.clone() };
            assert_eq!(shown(&[&put, &unknown], Some(1)), (0, 0));
            assert_eq!(shown(&[&put, &unknown], None), (0, 0));
            let refused = Write { outcome: Outcome::NotApplied, ..gone.clone() };
            assert_eq!(shown(&[&put, &refused], None), (0, usize::from(at_rest)));
        }
    }

    #[test]
    fn a_tombstone_that_is_older_than_what_was_read_is_found() {
        let put = write(Target::Upserts, 100, 100, 1);
        for (version_ms, cases) in [(99, 1), (101, 0)] {
            let gone = write(Target::Deletes, 300, version_ms, 0);
            let evidence = evidence(vec![put.clone(), gone], None, true);
            assert_eq!(deletes_beat_what_they_read(&evidence).len(), cases);
        }
        // It may have read what was there before.
        let gone = write(Target::Deletes, 150, 99, 0);
        assert!(deletes_beat_what_they_read(&evidence(vec![put, gone], None, true)).is_empty());
    }
}
