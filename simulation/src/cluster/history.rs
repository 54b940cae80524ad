//! What clients did and what they were told.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use shoal_actors::service::{ClusterStatus, Moment};
use shoal_kernel::{Hlc, ReadLevel, Version, WriteLevel};

use super::operation::{Altering, OperationId};
use crate::entropy::EPOCH_MICROS;

/// What a client knows of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged at this level; this is the greatest version that it was given.
    Acknowledged {
        /// The level reached.
        level: WriteLevel,
        /// The version.
        version: Version,
    },
    /// It was refused, certainly without effect.
    NotApplied,
    /// Nobody knows.
    Unknown,
}

/// Which table was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The upsert table: rows are (key, value), each value is written once in a run.
    Upserts,
    /// The event table: rows are (id, amount), each id belongs to one write.
    Events,
    /// The upsert table, from which keys are deleted: rows are (key, 0).
    Deletes,
}

/// What a write makes of its rows' note: a column of the upsert table that comes and goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The rows have none.
    None,
    /// Twice the value.
    Given,
    /// The one that the row had.
    Kept,
}

/// A write, with all its resends.
#[derive(Debug, Clone)]
pub struct Write {
    /// The operation that it is.
    pub id: OperationId,
    /// Which table.
    pub target: Target,
    /// Its rows, in order.
    pub rows: Vec<(i64, i64)>,
    /// Their note.
    pub note: Note,
    /// When it was first sent, in microseconds of virtual time.
    pub begun: u64,
    /// When its outcome was known; the end of time while it is not.
    pub ended: u64,
    /// The node that acknowledged it, or the last one asked.
    pub node: u16,
    /// When it was sent for the last time.
    pub sent: u64,
    /// How often it was sent.
    pub attempts: u32,
    /// The oldest catalog that a node knew when it was sent to it.
    pub sent_at_catalog: u64,
    /// The newest catalog that any node knew when its outcome was known.
    pub done_at_catalog: u64,
    /// The outcome. What found no row to change is refused without effect.
    pub outcome: Outcome,
    /// Some of the keys were not found, and so not deleted; nobody knows which.
    pub partial: bool,
    /// The time that its events bring, in microseconds of virtual time.
    pub at: Option<i64>,
}

impl Write {
    /// The greatest version under which its rows stand, without the row's place in its batch.
    pub fn version(&self) -> Option<u128> {
        match self.outcome {
            Outcome::Acknowledged { version, .. } => Some(version.0 >> 32),
            Outcome::NotApplied | Outcome::Unknown => None,
        }
    }

    /// A version that none of its rows stands below, as far as that is known. Rows of several partitions differ in the logical
    /// part of the time. Two attempts at once can leave them under two versions, of which the acknowledgement names the
    /// greater.
    pub fn version_at_least(&self) -> Option<u128> {
        match self.outcome {
            Outcome::Acknowledged { version, .. } if self.attempts == 1 => {
                Some(Version::new(Hlc::from_micros(version.time().micros()), version.node(), 0).0 >> 32)
            }
            _ => self.version().filter(|_| self.rows.len() == 1),
        }
    }

    /// The time of its events, in microseconds of virtual time: the one that they brought, or that of their version.
    pub fn event_time(&self) -> Option<i64> {
        let Outcome::Acknowledged { version, .. } = self.outcome else { return self.at };
        let given = i64::try_from(version.time().micros()).ok()?.checked_sub(i64::try_from(EPOCH_MICROS).ok()?);
        self.at.or(given)
    }

    /// The level of its acknowledgement.
    pub fn level(&self) -> Option<WriteLevel> {
        match self.outcome {
            Outcome::Acknowledged { level, .. } => Some(level),
            Outcome::NotApplied | Outcome::Unknown => None,
        }
    }
}

/// A question to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The row of one key.
    Point {
        /// The key.
        key: i64,
    },
    /// Rows of a range of keys, both ends included, in order.
    Range {
        /// First key.
        low: i64,
        /// Last key.
        high: i64,
    },
    /// Rows of a range of keys with their notes.
    Notes {
        /// First key.
        low: i64,
        /// Last key.
        high: i64,
    },
    /// Number of rows, sum, least and greatest value.
    Aggregate,
    /// Number of rows by remainder of the key.
    Groups,
    /// Every row with the name that belongs to it.
    Join,
    /// Every event, in order of its id.
    Events,
    /// Number of events, and of different ids.
    EventCount,
}

impl Target {
    /// The table's name.
    pub fn table(self) -> &'static str {
        match self {
            Self::Upserts | Self::Deletes => "kv",
            Self::Events => "ev",
        }
    }
}

impl Question {
    /// The table that is asked.
    pub fn target(self) -> Target {
        match self {
            Self::Events | Self::EventCount => Target::Events,
            _ => Target::Upserts,
        }
    }

    /// In words, for counters.
    pub fn word(self) -> &'static str {
        match self {
            Self::Point { .. } => "point reads",
            Self::Range { .. } => "range scans",
            Self::Notes { .. } => "scans of notes",
            Self::Aggregate => "aggregates",
            Self::Groups => "group bys",
            Self::Join => "joins",
            Self::Events => "event scans",
            Self::EventCount => "event counts",
        }
    }
}

/// A value of an answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// NULL.
    Null,
    /// An integer.
    Int(i64),
    /// Anything else, as text.
    Text(String),
}

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Read {
    /// The operation that it is.
    pub id: OperationId,
    /// What was asked.
    pub question: Question,
    /// At which level.
    pub level: ReadLevel,
    /// Whom.
    pub node: u16,
    /// When it was asked, in microseconds of virtual time.
    pub begun: u64,
    /// When the answer was complete.
    pub ended: u64,
    /// The catalog that the node knew when it was asked.
    pub at_catalog: u64,
    /// Its rows.
    pub rows: Vec<Vec<Cell>>,
    /// The replicas that it was read from, as they were then, if all of them said so.
    pub seen: Option<Vec<Moment>>,
    /// Asked when nothing was written any more and replicas were equal.
    pub at_rest: bool,
}

/// A table that came or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableChange {
    /// Its name.
    pub name: String,
    /// True for CREATE, false for DROP.
    pub created: bool,
    /// The newest catalog that any node had come to when it was asked for.
    pub from_catalog: u64,
    /// And when it was told what had come of it.
    pub to_catalog: u64,
    /// Whether it was carried out; `None` if nobody knows.
    pub done: Option<bool>,
}

/// A change of the column of notes that was told to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotesChange {
    /// The operation.
    pub id: OperationId,
    /// What was asked for.
    pub altering: Altering,
    /// As of [`TableChange::from_catalog`].
    pub from_catalog: u64,
    /// As of [`TableChange::to_catalog`].
    pub to_catalog: u64,
}

/// A backup that was said to be whole.
#[derive(Debug, Clone)]
pub struct Backup {
    /// Of which table.
    pub target: Target,
    /// Its name.
    pub name: String,
    /// When it was asked for, in microseconds of virtual time.
    pub begun: u64,
    /// When it was said to be done.
    pub ended: u64,
    /// The rows of the table that was made of it; nothing if none was.
    pub restored: Option<Vec<(i64, i64)>>,
}

/// The column of notes was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotesDropped {
    /// When that was asked for, in microseconds of virtual time.
    pub begun: u64,
    /// When it was told to be done; the end of time if nobody knows.
    pub ended: u64,
    /// The newest catalog that any node knew then.
    pub done_at_catalog: u64,
}

/// What one node said of the cluster at the end.
#[derive(Debug, Clone)]
pub struct View {
    /// Which node.
    pub node: u16,
    /// What it said.
    pub status: ClusterStatus,
    /// Which of the tables that were ever asked for it knows.
    pub tables: BTreeMap<String, bool>,
}

/// Everything that clients did.
#[derive(Debug, Default)]
pub struct Facts {
    /// Writes, in the order of their beginning.
    pub writes: Vec<Write>,
    /// Complete answers.
    pub reads: Vec<Read>,
    /// Tables that came or went, in the order of their beginning.
    pub tables: Vec<TableChange>,
    /// Changes of the column of notes.
    pub notes_changed: Vec<NotesChange>,
    /// When the column of notes went, unless that was refused without effect.
    pub notes_dropped: Vec<NotesDropped>,
    /// Backups, in the order of their end.
    pub backups: Vec<Backup>,
    /// Writes of which two attempts at once were told different versions.
    pub disagreed: Vec<String>,
    /// Errors by which a node said that an invariant of its own is broken, or that a key was used for other rows.
    pub internal: Vec<String>,
    /// Tables that a node did not know although they had been created.
    pub unseen: Vec<String>,
    /// Rows that were acknowledged at quorum and then missed at quorum.
    pub missed: Vec<String>,
    /// Queries that a node had in hand beyond its limits.
    pub overfull: Vec<String>,
    /// Operations that clients began, in order.
    pub operations: Vec<OperationId>,
    /// Operations by outcome.
    pub counts: BTreeMap<&'static str, u64>,
}

/// The history; shared by all clients of a run.
#[derive(Debug, Default)]
pub struct History(Mutex<Facts>);

impl History {
    /// Everything so far.
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation.
    pub fn count(&self, what: &'static str) {
        *self.facts().counts.entry(what).or_default() += 1;
    }
}
