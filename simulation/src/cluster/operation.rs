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
/// Writes of a thousand with an idempotency key whose client mistakes another one for it.
const MISTAKEN_PERMILLE: u64 = 60;
/// Keys that a DELETE may name.
const DELETED_MAX: u64 = 4;
/// Unique values that each operation may give; more than its rows.
const VALUES: i64 = 10;
/// Operations that a client may number.
const OPERATIONS_MAX: i64 = 1_000_000;

/// How many of so many operations are of each kind: of a hundred, usually.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mix {
    /// Rows are upserted.
    pub upserts: u64,
    /// A row is updated.
    pub updates: u64,
    /// Rows are deleted.
    pub deletes: u64,
    /// Events are inserted.
    pub events: u64,
    /// Replicas are flushed, merged, repaired.
    pub upkeep: u64,
    /// A partition is split.
    pub splits: u64,
    /// Something is asked.
    pub questions: u64,
    /// A table is made or dropped.
    pub tables: u64,
    /// A column comes, widens or goes.
    pub columns: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            upserts: 28,
            updates: 7,
            deletes: 9,
            events: 14,
            upkeep: 1,
            splits: 1,
            questions: 37,
            tables: 2,
            columns: 1,
        }
    }
}

impl Mix {
    /// The usual one for half of the seeds; for others a few kinds are left out and a few come much oftener.
    pub(super) fn draw(stream: &mut Stream) -> Self {
        let mut mix = Self::default();
        if stream.chance(500) {
            return mix;
        }
        for share in mix.shares() {
            *share *= stream.pick(&[0, 1, 1, 1, 5]).copied().unwrap_or(1);
        }
        // Every table is partitions that have to move when nodes come and go.
        mix.tables = mix.tables.min(3);
        // Something is written, and somebody looks.
        mix.upserts = mix.upserts.max(7);
        mix.questions = mix.questions.max(10);
        mix
    }

    /// In the order in which operations are drawn.
    fn shares(&mut self) -> [&mut u64; 9] {
        let Self { upserts, updates, deletes, events, upkeep, splits, questions, tables, columns } = self;
        [upserts, updates, deletes, events, upkeep, splits, questions, tables, columns]
    }

    /// The place of a kind among [`Self::shares`].
    fn pick(mut self, stream: &mut Stream) -> usize {
        let shares = self.shares().map(|share| *share);
        let mut place = stream.below(shares.iter().sum::<u64>().max(1));
        let chosen = shares.iter().position(|share| {
            let here = place < *share;
            place = place.saturating_sub(*share);
            here
        });
        chosen.unwrap_or(0)
    }
}

/// What all operations of a run have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) seed: u64,
    pub(super) nodes: u16,
    pub(super) mix: Mix,
    /// Bounds that are put on what was drawn, so that nothing else is drawn because of them.
    pub(super) rows_max: Option<usize>,
    pub(super) keys_max: Option<i64>,
}

impl Frame {
    fn bound(&self, work: &mut Work) {
        let (rows_max, keys) =
            (self.rows_max.unwrap_or(usize::MAX).max(1), self.keys_max.unwrap_or(KEYS).clamp(1, KEYS));
        let range = |low: &mut i64, high: &mut i64| {
            let wide = *high - *low;
            *low %= keys;
            *high = (*low + wide).min(keys - 1);
        };
        match work {
            Work::Write { target, rows, .. } => {
                rows.truncate(rows_max);
                if *target == Target::Upserts {
                    rows.iter_mut().for_each(|(key, _)| *key %= keys);
                }
            }
            Work::Delete { low, high, .. }
            | Work::Ask { question: Question::Range { low, high } | Question::Notes { low, high }, .. } => {
                range(low, high)
            }
            Work::Ask { question: Question::Point { key }, .. } => *key %= keys,
            _ => {}
        }
    }
}

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

/// Which idempotency key a write has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    None,
    /// One of its own: it may be sent again.
    Own,
    /// By mistake that of the last write that this client had acknowledged, if there is one.
    Former,
}

#[derive(Debug)]
pub(super) enum Work {
    Write {
        target: Target,
        rows: Vec<(i64, i64)>,
        level: WriteLevel,
        token: Token,
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
pub enum Altering {
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
pub(super) fn draw(frame: &Frame, id: OperationId) -> Operation {
    let Frame { seed, nodes, mix, .. } = *frame;
    let place = (id.client << 32) | id.number;
    let mut stream = Stream::new(seed, "operation", place);
    let think_ms = stream.between(THINK_MS.0, THINK_MS.1);
    let node = pick_node(&mut stream, nodes);
    let number = i64::try_from(id.number).unwrap_or(i64::MAX) % OPERATIONS_MAX;
    let first_value = (i64::try_from(id.client).unwrap_or(0) * OPERATIONS_MAX + number) * VALUES + 1;
    let mistakes = Stream::new(seed, "mistaken tokens", place).chance(MISTAKEN_PERMILLE);
    let own = if mistakes { Token::Former } else { Token::Own };
    let mut work = match mix.pick(&mut stream) {
        0 => {
            let rows = stream.between(1, ROWS_MAX).cast_signed();
            let rows = (0..rows).map(|row| (key(&mut stream), first_value + row)).collect();
            let (level, token) = (level(&mut stream), if stream.chance(500) { own } else { Token::None });
            let (as_rows, again_after_ms) = (stream.chance(500), again(&mut stream, token));
            let note = if stream.chance(300) { Note::Given } else { Note::None };
            let target = Target::Upserts;
            Work::Write { target, rows, level, token, as_rows, updates: false, note, again_after_ms }
        }
        1 => {
            let rows = vec![(key(&mut stream), first_value)];
            let (target, level) = (Target::Upserts, level(&mut stream));
            let (note, again_after_ms) = (Note::Kept, None);
            let token = Token::None;
            Work::Write { target, rows, level, token, as_rows: false, updates: true, note, again_after_ms }
        }
        2 => {
            let low = key(&mut stream);
            let more = if stream.chance(700) { 0 } else { stream.below(DELETED_MAX).cast_signed() };
            Work::Delete { low, high: (low + more).min(KEYS - 1), level: level(&mut stream) }
        }
        3 => {
            let rows = stream.between(1, ROWS_MAX).cast_signed();
            let rows = (0..rows).map(|row| (first_value + row, key(&mut stream))).collect();
            let level = level(&mut stream);
            let (as_rows, again_after_ms) = (stream.chance(500), again(&mut stream, own));
            let target = Target::Events;
            let note = Note::None;
            Work::Write { target, rows, level, token: own, as_rows, updates: false, note, again_after_ms }
        }
        4 => Work::Upkeep(match stream.below(5) {
            0 | 1 => Upkeep::Merges,
            2 | 3 => Upkeep::Flushes,
            _ => Upkeep::Repairs,
        }),
        5 => {
            let (target, at) = match stream.below(4) {
                0 => (Target::Upserts, Some(key(&mut stream))),
                1 | 2 => (Target::Upserts, None),
                _ => (Target::Events, None),
            };
            Work::Split { target, at }
        }
        6 => {
            let (question, manner) = (question(&mut stream), manner(&mut stream));
            let level = if stream.chance(QUORUM_PERMILLE) { ReadLevel::Quorum } else { ReadLevel::One };
            Work::Ask { question, manner, level }
        }
        7 => Work::Table { dropping: stream.chance(500) },
        _ => Work::Alter(match stream.below(4) {
            0 | 1 => Altering::Adds,
            2 => Altering::Widens,
            _ => Altering::Drops,
        }),
    };
    frame.bound(&mut work);
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
fn again(stream: &mut Stream, token: Token) -> Option<u64> {
    let (hasty, after_ms) = (stream.chance(150), stream.between(0, 60));
    (token == Token::Own && hasty).then_some(after_ms)
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
        let frame = Frame { seed: 3, nodes: 3, mix: Mix::default(), rows_max: None, keys_max: None };
        let mut seen = BTreeSet::new();
        for client in 0..5 {
            for number in 0..500 {
                let id = OperationId { client, number };
                let operation = draw(&frame, id);
                assert_eq!(format!("{operation:?}"), format!("{:?}", draw(&frame, id)));
                if let Work::Write { target, rows, .. } = operation.work {
                    for (first, second) in rows {
                        let value = if target == Target::Events { first } else { second };
                        assert!(seen.insert(value), "{value} of {id}");
                    }
                }
            }
        }
    }

    #[test]
    fn bounds_change_nothing_else() {
        let whole = Frame { seed: 3, nodes: 3, mix: Mix::default(), rows_max: None, keys_max: None };
        let bounded = Frame { rows_max: Some(1), keys_max: Some(2), ..whole };
        for number in 0..500 {
            let id = OperationId { client: 1, number };
            let (one, other) = (draw(&whole, id), draw(&bounded, id));
            assert_eq!((one.think_ms, one.node), (other.think_ms, other.node));
            assert_eq!(std::mem::discriminant(&one.work), std::mem::discriminant(&other.work));
            match other.work {
                Work::Write { target, rows, .. } => {
                    assert!(rows.len() == 1 && (target == Target::Events || rows[0].0 < 2), "{rows:?}");
                }
                Work::Delete { low, high, .. } => assert!(low <= high && high < 2, "{low} to {high}"),
                _ => {}
            }
        }
    }
}
