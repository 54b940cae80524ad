//! Whether every complete answer is that of the replicas that it names, as of the positions that it names.
//!
//! Whether a query was allowed to see just these is another matter, and another promise's.

use std::collections::{BTreeMap, BTreeSet};

use shoal_actors::service::Moment;
use shoal_catalog::PartitionBounds;
use shoal_kernel::PartitionId;

use super::Evidence;
use super::answers::{tell, whole_answer};
use super::expiry::may_be_gone;
use super::writes::pairs;
use crate::cluster::{Cell, Question, Read, Shown, Target};
use crate::entropy::EPOCH_MICROS;

/// What the answer must be; nothing where that is not known.
fn wanted(evidence: &Evidence, read: &Read) -> Option<Vec<Vec<Cell>>> {
    let seen = read.seen.as_ref()?;
    let partitions: BTreeSet<_> = seen.iter().map(|moment| moment.partition).collect();
    if partitions.len() < seen.len() {
        return None;
    }
    let mut contents = evidence.ledger.contents(seen)?;
    match read.question {
        Question::Point { key } => contents.retain(|found, _| *found == key),
        Question::Range { low, high } | Question::Notes { low, high } => {
            contents.retain(|key, _| (low..=high).contains(key));
        }
        Question::Events | Question::EventCount => drop_gone(evidence, read, &mut contents),
        Question::Aggregate | Question::Groups | Question::Join => {}
    }
    let rows = contents.into_iter().map(|(key, shown)| (key, shown.value)).collect();
    Some(whole_answer(read.question, &rows))
}

/// Events also have to be young enough for the cut-off that the query was planned with, and that replicas took them with, which
/// may be above the one that they showed. Those that the answer leaves out are left out, if they may be gone; of a count, as many.
fn drop_gone(evidence: &Evidence, read: &Read, contents: &mut BTreeMap<i64, Shown>) {
    let Some(ttl) = evidence.events_ttl else { return };
    let gone = |row: &Shown| row.at.is_some_and(|at| may_be_gone(evidence, ttl, virtual_micros(at), read.ended));
    match (read.question, read.rows.first().map(Vec::as_slice)) {
        (Question::EventCount, Some([Cell::Int(count), ..])) => {
            let missing = contents.len().saturating_sub(usize::try_from(*count).unwrap_or(0));
            let gone: Vec<i64> = contents.iter().filter(|(_, row)| gone(row)).map(|(id, _)| *id).collect();
            for id in gone.into_iter().take(missing) {
                contents.remove(&id);
            }
        }
        _ => {
            let shown = pairs(&read.rows);
            contents.retain(|id, row| shown.contains_key(id) || !gone(row));
        }
    }
}

/// Keys of the table that the answer should have been read from and were not, or twice, of tables whose partitions are no windows.
fn unread(evidence: &Evidence, read: &Read) -> Option<String> {
    if matches!(read.question, Question::Point { .. } | Question::Range { .. } | Question::Notes { .. }) {
        return None;
    }
    let target = read.question.target();
    let seen = read.seen.as_ref().filter(|_| !evidence.windows(target))?;
    let table = target.table();
    let (own, others): (Vec<_>, Vec<_>) =
        evidence.views.first()?.status.partitions.iter().partition(|partition| partition.table == table);
    for partition in own {
        match &partition.bounds {
            PartitionBounds::Bucket(_) if seen.iter().all(|moment| moment.partition != partition.id) => {
                return Some(format!("{}: {} of {table} was not read", tell(read), partition.id));
            }
            PartitionBounds::Bucket(_) => {}
            // The partitions of the time lay side by side, whichever those were.
            PartitionBounds::Range(_) => {
                let is_other = |id: PartitionId| others.iter().any(|partition| partition.id == id);
                let read_from: Vec<_> = seen.iter().map(|at| at.partition).filter(|id| !is_other(*id)).collect();
                // Partitions below the cut-off need not be read.
                let expires = target == Target::Events && evidence.events_ttl.is_some();
                let gap = evidence.ledger.gap(&read_from, expires)?;
                return Some(format!("{}: {table} was not read as a whole, {gap}", tell(read)));
            }
        }
    }
    None
}

/// A time in microseconds since 1970 as one of the run.
fn virtual_micros(micros: i64) -> i64 {
    micros.saturating_sub(i64::try_from(EPOCH_MICROS).unwrap_or(i64::MAX))
}

/// A replica's cut-off that is above what may have been agreed upon, by the clocks.
fn early_cutoff(evidence: &Evidence, read: &Read) -> Option<String> {
    let ttl = evidence.events_ttl?;
    let early = |moment: &&Moment| {
        let last_gone = moment.cutoff_micros.map(|cutoff| virtual_micros(cutoff).saturating_sub(1));
        last_gone.is_some_and(|at| !may_be_gone(evidence, ttl, at, read.ended))
    };
    let moment = read.seen.iter().flatten().find(early)?;
    let cutoff = virtual_micros(moment.cutoff_micros?) as f64 / 1e6;
    let (partition, node) = (moment.partition, moment.node);
    Some(format!("{}: {partition} on {node} has dropped what is older than {cutoff:.3} s", tell(read)))
}

pub(super) fn answers_come_from_whole_replicas(evidence: &Evidence) -> Vec<String> {
    let lacking = |read: &Read| {
        let moment = read.seen.iter().flatten().find(|moment| !evidence.ledger.was_whole(moment))?;
        let Moment { partition, node, position, log_id, .. } = moment;
        Some(format!("{}: {partition} on {node} was not whole yet at {position} of {log_id}", tell(read)))
    };
    evidence.facts.reads.iter().filter_map(lacking).collect()
}

pub(super) fn answers_are_what_was_seen(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    for read in &evidence.facts.reads {
        let Some(wanted) = wanted(evidence, read) else { continue };
        evidence.judged.set(evidence.judged.get() + 1);
        let notes = matches!(read.question, Question::Notes { .. });
        let width = if notes { 2 } else { usize::MAX };
        let shown = || read.rows.iter().map(|row| &row[..row.len().min(width)]);
        if shown().eq(wanted.iter().map(Vec::as_slice)) {
            continue;
        }
        let differing = shown().zip(&wanted).find(|(shown, wanted)| *shown != wanted.as_slice());
        let (rows, wanted) = (read.rows.len(), wanted.len());
        let seen = read.seen.iter().flatten().map(|moment| {
            let cutoff = moment.cutoff_micros.map(virtual_micros);
            let without = cutoff.map_or_else(String::new, |cutoff| format!(" without what is before {cutoff} us"));
            format!("{} on {} at {} of {}{without}", moment.partition, moment.node, moment.position, moment.log_id)
        });
        let seen = seen.collect::<Vec<_>>().join(", ");
        found.push(format!(
            "{}: {rows} rows instead of {wanted}, the first that differ {differing:?}; it saw {seen}",
            tell(read)
        ));
    }
    found.extend(evidence.facts.reads.iter().filter_map(|read| early_cutoff(evidence, read)));
    found.extend(evidence.facts.reads.iter().filter_map(|read| unread(evidence, read)));
    found.extend(evidence.ledger.shortened());
    found
}
