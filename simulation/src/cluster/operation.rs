//! What clients do: operations, each drawn from a stream of its own, so that leaving one out changes no other.

use serde::{Deserialize, Serialize};
use shoal_kernel::{ReadLevel, WriteLevel};

use super::history::{Note, Question, Target};
use crate::random::Stream;

/// Keys of the upsert table; the first of them are hot.
pub(super) const KEYS: i64 = 60;
const HOT_KEYS: u64 = 6;
/// Shortest and longest wait of a client between the moments at which it would begin two operations.
const THINK_MS: (u64, u64) = (20, 400);
const ROWS_MAX: u64 = 5;
/// Questions at quorum, of a thousand.
const QUORUM_PERMILLE: u64 = 400;
/// Keys that a DELETE may name.
const DELETED_MAX: u64 = 4;
/// Unique values that each operation may give; more than its rows.
const VALUES: i64 = 10;
/// Operations that a client may number.
const OPERATIONS_MAX: i64 = 1_000_000;

/// Names an operation: which client's, and its place among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "(u64, u64)", from = "(u64, u64)")]
pub struct OperationId {
    /// The client.
    pub client: u64,
    /// Its how-manieth operation, from 0.
    pub number: u64,
}

impl From<(u64, u64)> for OperationId {
    fn from((client, number): (u64, u64)) -> Self {
        Self { client, number }
    }
}

impl From<OperationId> for (u64, u64) {
    fn from(id: OperationId) -> Self {
        (id.client, id.number)
    }
}

impl std::fmt::Display for OperationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.client, self.number)
    }
}

/// An operation as it was drawn.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) id: OperationId,
    /// How long after the beginning of the one before it would begin.
    pub(super) think_ms: u64,
    /// Who is asked first.
    pub(super) node: u16,
    pub(super) work: Work,
    /// What is drawn while it goes on: whom to ask next, and when.
    pub(super) later: Stream,
}

#[derive(Debug)]
pub(super) enum Work {
    Write {
        target: Target,
        rows: Vec<(i64, i64)>,
        level: WriteLevel,
        /// With an idempotency key: it may be sent again.
        tokened: bool,
        /// Through the door for rows, not as an INSERT.
        as_rows: bool,
        /// As an UPDATE of the one row: if there is none, nothing is written.
        updates: bool,
        note: Note,
        /// Without waiting for an answer, it is sent to another node as well, after so many milliseconds.
        again_after_ms: Option<u64>,
    },
    /// Rows of the upsert table whose keys lie between two, both included.
    Delete {
        low: i64,
        high: i64,
        level: WriteLevel,
    },
    Upkeep(Upkeep),
    Alter(Altering),
    /// A partition is split, of the one table or the other.
    Split {
        target: Target,
        /// At this key, if it is one of upserts; else in halves, the largest.
        at: Option<i64>,
    },
    Ask {
        question: Question,
        manner: Manner,
        level: ReadLevel,
    },
    Table {
        /// It is dropped again.
        dropping: bool,
    },
}

/// What is done to every replica of the upsert table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upkeep {
    /// Its segments are written.
    Flushes,
    /// And merged.
    Merges,
    /// It is compared with its peers.
    Repairs,
}

/// What becomes of the column of notes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Altering {
    /// It comes, unless it is there.
    Adds,
    /// Its notes become decimals.
    Widens,
    /// It goes, if it is there.
    Drops,
}

/// How a client reads an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it comes.
    Whole,
    /// So, and if the node is not up, the moment it is.
    Eager,
    /// With pauses of so many milliseconds between the parts.
    Slow(u64),
    /// It asks for an end after so many milliseconds.
    Cancelling(u64),
    /// It goes away after so many milliseconds.
    Leaving(u64),
    /// It reads nothing, until the deadline.
    Stalled,
}

/// Draws an operation.
pub(super) fn draw(seed: u64, id: OperationId, nodes: u16) -> Operation {
    let place = (id.client << 32) | id.number;
    let mut stream = Stream::new(seed, "operation", place);
    let think_ms = stream.between(THINK_MS.0, THINK_MS.1);
    let node = pick_node(&mut stream, nodes);
    let number = i64::try_from(id.number).unwrap_or(i64::MAX) % OPERATIONS_MAX;
    let first_value = (i64::try_from(id.client).unwrap_or(0) * OPERATIONS_MAX + number) * VALUES + 1;
    let work = match stream.below(100) {
        0..=27 => {
            let rows = stream.between(1, ROWS_MAX).cast_signed();
            let rows = (0..rows).map(|row| (key(&mut stream), first_value + row)).collect();
            let (level, tokened) = (level(&mut stream), stream.chance(500));
            let (as_rows, again_after_ms) = (stream.chance(500), again(&mut stream, tokened));
            let note = if stream.chance(300) { Note::Given } else { Note::None };
            let target = Target::Upserts;
            Work::Write { target, rows, level, tokened, as_rows, updates: false, note, again_after_ms }
        }
        28..=34 => {
            let rows = vec![(key(&mut stream), first_value)];
            let (target, level) = (Target::Upserts, level(&mut stream));
            let (note, again_after_ms) = (Note::Kept, None);
            Work::Write { target, rows, level, tokened: false, as_rows: false, updates: true, note, again_after_ms }
        }
        35..=43 => {
            let low = key(&mut stream);
            let more = if stream.chance(700) { 0 } else { stream.below(DELETED_MAX).cast_signed() };
            Work::Delete { low, high: (low + more).min(KEYS - 1), level: level(&mut stream) }
        }
        44..=57 => {
            let rows = stream.between(1, ROWS_MAX).cast_signed();
            let rows = (0..rows).map(|row| (first_value + row, key(&mut stream))).collect();
            let level = level(&mut stream);
            let (as_rows, again_after_ms) = (stream.chance(500), again(&mut stream, true));
            let target = Target::Events;
            let note = Note::None;
            Work::Write { target, rows, level, tokened: true, as_rows, updates: false, note, again_after_ms }
        }
        58 => Work::Upkeep(match stream.below(5) {
            0 | 1 => Upkeep::Merges,
            2 | 3 => Upkeep::Flushes,
            _ => Upkeep::Repairs,
        }),
        59 => {
            let (target, at) = match stream.below(4) {
                0 => (Target::Upserts, Some(key(&mut stream))),
                1 | 2 => (Target::Upserts, None),
                _ => (Target::Events, None),
            };
            Work::Split { target, at }
        }
        60..=96 => {
            let (question, manner) = (question(&mut stream), manner(&mut stream));
            let level = if stream.chance(QUORUM_PERMILLE) { ReadLevel::Quorum } else { ReadLevel::One };
            Work::Ask { question, manner, level }
        }
        97 | 98 => Work::Table { dropping: stream.chance(500) },
        _ => Work::Alter(match stream.below(4) {
            0 | 1 => Altering::Adds,
            2 => Altering::Widens,
            _ => Altering::Drops,
        }),
    };
    Operation { id, think_ms, node, work, later: Stream::new(seed, "retries", place) }
}

pub(super) fn pick_node(stream: &mut Stream, nodes: u16) -> u16 {
    u16::try_from(stream.below(u64::from(nodes))).unwrap_or(0)
}

fn key(stream: &mut Stream) -> i64 {
    let bound = if stream.chance(500) { HOT_KEYS } else { KEYS.unsigned_abs() };
    stream.below(bound).cast_signed()
}

fn level(stream: &mut Stream) -> WriteLevel {
    match stream.below(4) {
        0 => WriteLevel::One,
        1 => WriteLevel::All,
        _ => WriteLevel::Quorum,
    }
}

/// Some clients are hasty: two attempts at one write are under way at once.
fn again(stream: &mut Stream, tokened: bool) -> Option<u64> {
    let (hasty, after_ms) = (stream.chance(150), stream.between(0, 60));
    (tokened && hasty).then_some(after_ms)
}

fn manner(stream: &mut Stream) -> Manner {
    let millis = stream.between(0, 40);
    match stream.below(50) {
        // Most answers take some milliseconds.
        0 | 1 => Manner::Cancelling(millis / 8),
        2 | 3 => Manner::Leaving(millis / 8),
        4..=6 => Manner::Slow(20 + 10 * millis),
        7 => Manner::Stalled,
        8..=20 => Manner::Eager,
        _ => Manner::Whole,
    }
}

fn question(stream: &mut Stream) -> Question {
    match stream.below(10) {
        0..=2 => Question::Point { key: key(stream) },
        3 | 4 => {
            let low = key(stream);
            let high = (low + stream.below(30).cast_signed()).min(KEYS - 1);
            if stream.chance(300) { Question::Notes { low, high } } else { Question::Range { low, high } }
        }
        5 => Question::Aggregate,
        6 => Question::Groups,
        7 => Question::Join,
        8 => Question::Events,
        _ => Question::EventCount,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn values_are_unique_and_operations_repeat() {
        let mut seen = BTreeSet::new();
        for client in 0..5 {
            for number in 0..500 {
                let id = OperationId { client, number };
                let operation = draw(3, id, 3);
                assert_eq!(format!("{operation:?}"), format!("{:?}", draw(3, id, 3)));
                if let Work::Write { target, rows, .. } = operation.work {
                    for (first, second) in rows {
                        let value = if target == Target::Events { first } else { second };
                        assert!(seen.insert(value), "{value} of {id}");
                    }
                }
            }
        }
    }
}
