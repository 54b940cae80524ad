//! What backups hold.

use std::collections::BTreeMap;

use shoal_kernel::WriteLevel;

use super::Evidence;
use super::late::may_be_lost;
use super::writes::{by_key, deletions, is_certain, may_beat, tell};
use crate::cluster::{Backup, Outcome, Target, Write};

pub(super) fn backups_hold_what_was_acknowledged(evidence: &Evidence) -> Vec<String> {
    let restored = evidence.facts.backups.iter().filter_map(|backup| Some((backup, backup.restored.as_deref()?)));
    let check = |(backup, rows): (&Backup, &[(i64, i64)])| {
        let found = match backup.target {
            Target::Upserts | Target::Deletes => of_upserts(evidence, backup, rows),
            Target::Events => of_events(evidence, backup, rows),
        };
        let (from, to) = (backup.begun as f64 / 1e6, backup.ended as f64 / 1e6);
        let name = backup.name.clone();
        found.into_iter().map(move |what| format!("backup {name}, taken from {from:.3} to {to:.3} s: {what}"))
    };
    restored.flat_map(check).collect()
}

/// Whether a backup must hold a write, or something newer.
fn must_hold(evidence: &Evidence, backup: &Backup, write: &Write) -> bool {
    write.level().is_some_and(|level| level >= WriteLevel::Quorum)
        && write.ended < backup.begun
        && !may_be_lost(evidence, write, backup.ended)
}

/// Whether a write can have left a row in a backup.
fn may_hold(backup: &Backup, write: &Write) -> bool {
    write.outcome != Outcome::NotApplied && write.begun <= backup.ended
}

fn of_upserts(evidence: &Evidence, backup: &Backup, rows: &[(i64, i64)]) -> Vec<String> {
    let mut found = Vec::new();
    let (keys, deletions) = (by_key(evidence), deletions(evidence));
    let mut shown = BTreeMap::new();
    for (key, value) in rows {
        if let Some(other) = shown.insert(*key, *value) {
            found.push(format!("key {key} is there twice, with {other} and {value}"));
        }
        let source = keys.get(key).and_then(|writes| writes.iter().find(|(written, _)| written == value));
        match source {
            None => found.push(format!("key {key} has {value}, which nobody wrote")),
            Some((_, write)) if !may_hold(backup, write) => {
                found.push(format!("key {key} has {value}, which it cannot have: {}", tell(write)));
            }
            Some((_, write)) => {
                // Deleted after it had been written, and before the backup was begun.
                let deleted =
                    |one: &&&Write| is_certain(one) && must_hold(evidence, backup, one) && write.ended < one.begun;
                if let Some(deletion) = deletions.get(key).and_then(|all| all.iter().find(deleted)) {
                    found.push(format!("key {key} has {value}, which was deleted before: {}", tell(deletion)));
                }
            }
        }
    }
    for (key, writes) in &keys {
        let source = shown.get(key).and_then(|value| writes.iter().find(|(written, _)| written == value));
        for (value, write) in writes.iter().filter(|(_, write)| must_hold(evidence, backup, write)) {
            let beats = |one: &&Write| may_hold(backup, one) && may_beat(one, write);
            let lost = match (shown.get(key), source) {
                (None, _) => !deletions.get(key).is_some_and(|all| all.iter().any(beats)),
                (Some(_), Some((_, other))) => {
                    let older = other.version().zip(write.version_at_least());
                    older.is_some_and(|(other, write)| other < write) && other.ended < write.begun
                }
                (Some(_), None) => false,
            };
            if lost {
                found.push(format!("key {key} lacks {value}: {}", tell(write)));
            }
        }
    }
    found
}

fn of_events(evidence: &Evidence, backup: &Backup, rows: &[(i64, i64)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut shown = BTreeMap::new();
    for (id, amount) in rows {
        if shown.insert(*id, *amount).is_some() {
            found.push(format!("event {id} is there twice"));
        }
    }
    let events = || evidence.facts.writes.iter().filter(|write| write.target == Target::Events);
    let written: BTreeMap<i64, (i64, &Write)> =
        events().flat_map(|write| write.rows.iter().map(move |(id, amount)| (*id, (*amount, write)))).collect();
    for (id, amount) in &shown {
        match written.get(id) {
            Some((written, write)) if written == amount && may_hold(backup, write) => {}
            Some((_, write)) => {
                found.push(format!("event {id} is there with {amount}, which it cannot: {}", tell(write)))
            }
            None => found.push(format!("event {id} is there, which nobody wrote")),
        }
    }
    // Those that have had their time may be gone.
    for write in events().filter(|write| evidence.events_ttl.is_none() && must_hold(evidence, backup, write)) {
        if let Some((id, _)) = write.rows.iter().find(|(id, _)| !shown.contains_key(id)) {
            found.push(format!("event {id} is not there: {}", tell(write)));
        }
    }
    found
}
