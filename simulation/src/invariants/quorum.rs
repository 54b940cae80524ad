//! Whether answers at quorum saw what had been acknowledged at quorum.

use shoal_kernel::{ReadLevel, WriteLevel};

use super::Evidence;
use super::answers::tell;
use super::expiry::may_have_expired;
use super::late::may_be_lost;
use super::writes::{deletions, is_certain, may_beat};
use crate::cluster::{Question, Read, Target, Write};

/// Whether the question asks for that key or event of that table.
fn asks_for(question: Question, target: Target, key: i64) -> bool {
    match question {
        Question::Point { key: asked } => target != Target::Events && key == asked,
        Question::Range { low, high } | Question::Notes { low, high } => {
            target != Target::Events && (low..=high).contains(&key)
        }
        Question::Aggregate | Question::Groups | Question::Join => target != Target::Events,
        Question::Events | Question::EventCount => target == Target::Events,
    }
}

/// Whether an answer at quorum must have seen everything of the write.
fn binds(evidence: &Evidence, write: &Write, read: &Read) -> bool {
    let acknowledged = write.level().is_some_and(|level| level >= WriteLevel::Quorum) && write.ended < read.begun;
    let whole = write.target != Target::Deletes || is_certain(write);
    let lasts = || !may_be_lost(evidence, write, read.ended) && !may_have_expired(evidence, write, read.ended);
    acknowledged && whole && lasts()
}

pub(super) fn quorum_reads_see_quorum_writes(evidence: &Evidence) -> Vec<String> {
    let mut found = evidence.facts.missed.clone();
    let deletions = deletions(evidence);
    for read in evidence.facts.reads.iter().filter(|read| read.level == ReadLevel::Quorum) {
        let seen = read.seen.as_ref().and_then(|seen| evidence.ledger.versions(seen));
        let Some(seen) = seen else { continue };
        for write in evidence.facts.writes.iter().filter(|write| binds(evidence, write, read)) {
            // Events are told apart by what they are; of a key, the newest version counts, whoever's it is.
            let least = match write.target {
                Target::Events => Some(0),
                Target::Upserts | Target::Deletes => write.version_at_least(),
            };
            let Some(least) = least else { continue };
            // Of a key that was deleted nothing need be left.
            let beaten = |key: &i64| deletions.get(key).is_some_and(|all| all.iter().any(|one| may_beat(one, write)));
            let may_be_none = |key: &i64| match write.target {
                Target::Events => false,
                Target::Upserts => beaten(key),
                Target::Deletes => true,
            };
            let missing = |key: &i64| match seen.get(key) {
                Some(version) => version >> 32 < least,
                None => !may_be_none(key),
            };
            let mut keys = write.rows.iter().map(|(key, _)| *key);
            let key = keys.find(|key| asks_for(read.question, write.target, *key) && missing(key));
            if let Some(key) = key {
                found.push(format!("{}: {key} is missing, or older; {}", tell(read), super::writes::tell(write)));
            }
        }
    }
    found
}
