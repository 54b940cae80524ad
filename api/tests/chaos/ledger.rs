//! What clients have sent, what became of it, and what answers may therefore show.
//!
//! All nodes run on one machine and have one clock. So of two writes of which one was acknowledged before the other one began, the
//! second has the newer version, whatever nodes they went through; and a write whose outcome nobody knows has a version of some
//! moment before everything had come to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// Violations that are told.
const TOLD_MAX: usize = 20;

/// Microseconds, logical part and node.
pub type Version = (u64, u64, u64);

/// `1795404778301004.0@n3520061259#0`; the number of the row is left out.
pub fn version(text: &str) -> Option<Version> {
    let (time, place) = text.split_once("@n")?;
    let (micros, logical) = time.split_once('.')?;
    let (node, _) = place.split_once('#')?;
    Some((micros.parse().ok()?, logical.parse().ok()?, node.parse().ok()?))
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is acknowledged, with its version if it has one.
    Acknowledged(Option<Version>),
    /// Certainly without effect.
    Refused,
    /// It may have happened, or may happen.
    Unknown,
}

/// A change of one row of the table with keys.
#[derive(Debug, Clone, Copy)]
struct Change {
    writer: i64,
    /// Unlike every other one's; none of a deletion.
    value: Option<i64>,
    start: Instant,
    node: usize,
    /// None while it is under way, or is to be sent again.
    outcome: Option<Outcome>,
    end: Option<Instant>,
    /// Its version is of no later moment.
    latest: Option<Instant>,
}

impl Change {
    fn acknowledged(&self) -> Option<Instant> {
        matches!(self.outcome, Some(Outcome::Acknowledged(_))).then_some(self.end?)
    }

    fn version(&self) -> Option<Version> {
        match self.outcome {
            Some(Outcome::Acknowledged(version)) => version,
            _ => None,
        }
    }
}

/// An event that was sent; its number is its place among those of its writer.
#[derive(Debug, Clone, Copy)]
struct Event {
    kind: i64,
    start: Instant,
    outcome: Option<Outcome>,
    end: Option<Instant>,
}

impl Event {
    /// Whether an answer must have it that was asked for after that moment.
    fn stands_since(&self, moment: Instant) -> bool {
        matches!(self.outcome, Some(Outcome::Acknowledged(_))) && self.end.is_some_and(|end| end < moment)
    }

    /// Whether an answer may have it that was complete at that moment.
    fn may_stand(&self, moment: Instant) -> bool {
        self.outcome != Some(Outcome::Refused) && self.start < moment
    }
}

/// A change under way.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    key: i64,
    place: usize,
}

/// Events under way.
#[derive(Debug, Clone)]
pub struct Batch {
    pub writer: usize,
    pub numbers: std::ops::Range<usize>,
    pub kinds: Vec<i64>,
}

/// A complete answer.
#[derive(Debug)]
pub struct Sight {
    pub start: Instant,
    pub end: Instant,
    /// Whether it must show all that was acknowledged before it began: reads at quorum must, and those of equal replicas at rest.
    pub exact: bool,
    /// Where it was asked.
    pub node: usize,
    pub what: Seen,
}

#[derive(Debug)]
pub enum Seen {
    /// All rows of those keys: key, writer, value.
    Rows { keys: RangeInclusive<i64>, rows: Vec<[i64; 3]> },
    /// All events of a writer from a number on: writer, number, kind.
    Events { writer: usize, from: i64, rows: Vec<[i64; 3]> },
    /// How many events there are by writer or by kind, and the sum of their numbers.
    Totals { by: By, rows: Vec<[i64; 3]> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Writer,
    Kind,
}

/// What was done, for the report.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    pub acknowledged: u64,
    pub unknown: u64,
    pub refused: u64,
    pub exact: u64,
    pub possible: u64,
    pub errors: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Books {
    rows: BTreeMap<i64, Vec<Change>>,
    /// Which change brought a value.
    values: BTreeMap<i64, Entry>,
    events: Vec<Vec<Event>>,
    kinds: i64,
    sights: Vec<Sight>,
    wrong: Vec<String>,
    counts: Counts,
}

/// What all clients write down.
#[derive(Debug)]
pub struct Ledger {
    born: Instant,
    books: Mutex<Books>,
}

impl Ledger {
    /// For so many writers of events, of so many kinds.
    pub fn new(writers: usize, kinds: i64) -> Self {
        let books = Books {
            rows: BTreeMap::new(),
            values: BTreeMap::new(),
            events: vec![Vec::new(); writers],
            kinds,
            sights: Vec::new(),
            wrong: Vec::new(),
            counts: Counts::default(),
        };
        Self { born: Instant::now(), books: Mutex::new(books) }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Before a row is sent, with the value that it gets; or before it is deleted.
    pub fn begin(&self, key: i64, writer: i64, deletes: bool, node: usize) -> (Entry, i64) {
        let mut books = self.books();
        let value = i64::try_from(books.values.len()).unwrap();
        let changes = books.rows.entry(key).or_default();
        let entry = Entry { key, place: changes.len() };
        let value_given = (!deletes).then_some(value);
        let start = Instant::now();
        changes.push(Change { writer, value: value_given, start, node, outcome: None, end: None, latest: None });
        if !deletes {
            books.values.insert(value, entry);
        }
        (entry, value)
    }

    /// When it is known what became of it, or it will not be sent again.
    pub fn settle(&self, entry: Entry, outcome: Outcome) {
        let mut books = self.books();
        books.count(outcome);
        let change = books.change(entry);
        let now = Instant::now();
        (change.outcome, change.end) = (Some(outcome), Some(now));
        if matches!(outcome, Outcome::Acknowledged(_)) {
            change.latest = Some(change.latest.unwrap_or(now));
        }
    }

    /// Before events are sent.
    pub fn begin_events(&self, writer: usize, kinds: Vec<i64>) -> Batch {
        let mut books = self.books();
        let events = &mut books.events[writer];
        let first = events.len();
        let start = Instant::now();
        events.extend(kinds.iter().map(|kind| Event { kind: *kind, start, outcome: None, end: None }));
        Batch { writer, numbers: first..events.len(), kinds }
    }

    pub fn settle_events(&self, batch: &Batch, outcome: Outcome) {
        let mut books = self.books();
        books.count(outcome);
        let end = Some(Instant::now());
        for event in &mut books.events[batch.writer][batch.numbers.clone()] {
            (event.outcome, event.end) = (Some(outcome), end);
        }
    }

    /// How many events a writer has sent.
    pub fn sent(&self, writer: usize) -> i64 {
        i64::try_from(self.books().events[writer].len()).unwrap()
    }

    pub fn saw(&self, sight: Sight) {
        let mut books = self.books();
        match sight.exact {
            true => books.counts.exact += 1,
            false => books.counts.possible += 1,
        }
        books.sights.push(sight);
    }

    /// An error that a client got.
    pub fn failed(&self, code: &str) {
        *self.books().counts.errors.entry(code.to_owned()).or_default() += 1;
    }

    /// What must not be, whatever was sent.
    pub fn wrong(&self, what: String) {
        self.books().wrong.push(what);
    }

    pub fn counts(&self) -> Counts {
        self.books().counts.clone()
    }

    /// Everything has come to rest: whatever nobody waits for any more has happened by now, or will not happen.
    pub fn rested(&self) {
        let now = Instant::now();
        for change in self.books().rows.values_mut().flatten() {
            if change.outcome == Some(Outcome::Unknown) {
                change.latest = Some(change.latest.unwrap_or(now));
            }
        }
    }

    /// Judges all answers since it was last asked: nothing, or what is wrong with them.
    pub fn judge(&self) -> Result<(), String> {
        let mut books = self.books();
        let sights = std::mem::take(&mut books.sights);
        for sight in &sights {
            books.learn(sight);
        }
        let histories: BTreeMap<i64, History> =
            books.rows.iter().map(|(key, changes)| (*key, History::of(changes))).collect();
        let judge = Judge { books: &books, histories: &histories, born: self.born };
        let mut wrong = books.wrong.clone();
        wrong.extend(judge.order());
        for sight in &sights {
            judge.sight(sight, &mut wrong);
        }
        if wrong.is_empty() {
            return Ok(());
        }
        let mut told = format!("{} violations", wrong.len());
        for one in wrong.iter().take(TOLD_MAX) {
            let _ = write!(told, "\n- {one}");
        }
        Err(told)
    }
}

impl Books {
    fn change(&mut self, entry: Entry) -> &mut Change {
        &mut self.rows.get_mut(&entry.key).unwrap()[entry.place]
    }

    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Acknowledged(_) => self.counts.acknowledged += 1,
            Outcome::Refused => self.counts.refused += 1,
            Outcome::Unknown => self.counts.unknown += 1,
        }
    }

    /// A value that was seen had its version by then.
    fn learn(&mut self, sight: &Sight) {
        let Seen::Rows { rows, .. } = &sight.what else { return };
        for [_, _, value] in rows {
            if let Some(entry) = self.values.get(value).copied() {
                let change = self.change(entry);
                change.latest = Some(change.latest.map_or(sight.end, |latest| latest.min(sight.end)));
            }
        }
    }
}

/// What was acknowledged of a key, in the order of the acknowledgements. A value may still be under way while another one is
/// acknowledged, so each entry has the greatest start and version so far.
struct Acknowledged(Vec<(Instant, Instant, Option<Version>)>);

impl Acknowledged {
    fn of(changes: &[Change], counts: impl Fn(&Change) -> bool) -> Self {
        let acknowledged = changes.iter().filter(|change| counts(change));
        let mut ends: Vec<_> =
            acknowledged.filter_map(|change| Some((change.acknowledged()?, change.start, change.version()))).collect();
        ends.sort();
        for place in 1..ends.len() {
            let (_, start, version) = ends[place - 1];
            ends[place].1 = ends[place].1.max(start);
            ends[place].2 = ends[place].2.max(version);
        }
        Self(ends)
    }

    /// Of those before a moment: the latest start and the greatest version.
    fn before(&self, moment: Instant) -> Option<(Instant, Option<Version>)> {
        let count = self.0.partition_point(|(end, _, _)| *end < moment);
        let (_, start, version) = self.0[..count].last()?;
        Some((*start, *version))
    }
}

struct History {
    all: Acknowledged,
    upserts: Acknowledged,
}

impl History {
    fn of(changes: &[Change]) -> Self {
        Self {
            all: Acknowledged::of(changes, |_| true),
            upserts: Acknowledged::of(changes, |change| change.value.is_some()),
        }
    }
}

/// Whether a change is certainly older than one that began at a moment, or than one of a version.
fn is_older(change: &Change, (start, version): (Instant, Option<Version>)) -> bool {
    change.latest.is_some_and(|latest| latest < start)
        || matches!((change.version(), version), (Some(own), Some(other)) if own < other)
}

struct Judge<'a> {
    books: &'a Books,
    histories: &'a BTreeMap<i64, History>,
    born: Instant,
}

impl Judge<'_> {
    /// A write that began when another one of its key had been acknowledged has the newer version.
    fn order(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (key, changes) in &self.books.rows {
            for change in changes {
                let Some(own) = change.version() else { continue };
                let before = self.histories[key].all.before(change.start).and_then(|(_, version)| version);
                if before.is_some_and(|before| before >= own) {
                    let change = self.told(change);
                    wrong.push(format!(
                        "key {key}: {change}, though a newer version had been acknowledged before it began"
                    ));
                }
            }
        }
        wrong
    }

    fn sight(&self, sight: &Sight, wrong: &mut Vec<String>) {
        let mut found: Vec<String> = Vec::new();
        match &sight.what {
            Seen::Rows { keys, rows } => self.rows(sight, keys, rows, &mut found),
            Seen::Events { writer, from, rows } => self.events(sight, *writer, *from, rows, &mut found),
            Seen::Totals { by, rows } => self.totals(sight, *by, rows, &mut found),
        }
        let level = if sight.exact { "exact" } else { "at one" };
        let (start, end, node) = (self.time(sight.start), self.time(sight.end), sight.node + 1);
        wrong.extend(
            found.into_iter().map(|what| format!("answer ({level}) at place {node}, {start} to {end}: {what}")),
        );
    }

    fn rows(&self, sight: &Sight, keys: &RangeInclusive<i64>, rows: &[[i64; 3]], wrong: &mut Vec<String>) {
        let mut seen = BTreeSet::new();
        for [key, writer, value] in rows {
            if !seen.insert(*key) {
                wrong.push(format!("key {key} is there twice"));
            }
            let sent = self.books.values.get(value).filter(|entry| entry.key == *key && keys.contains(key));
            let sent = sent.map(|entry| &self.books.rows[key][entry.place]).filter(|change| change.writer == *writer);
            let Some(change) = sent else {
                wrong.push(format!("key {key} has value {value} of writer {writer}, which nobody sent"));
                continue;
            };
            if change.outcome == Some(Outcome::Refused) || change.start >= sight.end {
                wrong.push(format!("key {key} has {}", self.told(change)));
            }
            let before = self.histories[key].all.before(sight.start);
            if sight.exact && before.is_some_and(|before| is_older(change, before)) {
                wrong.push(format!("key {key} has {}; {}", self.told(change), self.lately(*key, sight.start)));
            }
        }
        if !sight.exact {
            return;
        }
        for (key, changes) in self.books.rows.range(keys.clone()).filter(|(key, _)| !seen.contains(key)) {
            let Some(before) = self.histories[key].upserts.before(sight.start) else { continue };
            let gone = |change: &&Change| {
                change.value.is_none()
                    && change.outcome != Some(Outcome::Refused)
                    && change.start < sight.end
                    && !is_older(change, before)
            };
            if !changes.iter().any(|change| gone(&change)) {
                wrong.push(format!("key {key} is not there; {}", self.lately(*key, sight.start)));
            }
        }
    }

    fn events(&self, sight: &Sight, writer: usize, from: i64, rows: &[[i64; 3]], wrong: &mut Vec<String>) {
        let sent = &self.books.events[writer];
        let mut seen = BTreeSet::new();
        for [by, number, kind] in rows {
            let event = usize::try_from(*number).ok().and_then(|number| sent.get(number));
            let event =
                event.filter(|event| usize::try_from(*by) == Ok(writer) && event.kind == *kind && *number >= from);
            match event {
                None => wrong.push(format!("event {number} of kind {kind} of writer {by}, which nobody sent")),
                Some(event) if !event.may_stand(sight.end) => {
                    wrong.push(format!("event {number} of writer {writer}: {}", self.told_event(event)));
                }
                Some(_) => {}
            }
            if !seen.insert(*number) {
                wrong.push(format!("event {number} of writer {writer} is there twice"));
            }
        }
        for (number, event) in (0i64..).zip(sent).filter(|(number, _)| *number >= from) {
            if sight.exact && event.stands_since(sight.start) && !seen.contains(&number) {
                let event = self.told_event(event);
                wrong.push(format!("event {number} of writer {writer} is not there: {event}"));
            }
        }
    }

    fn totals(&self, sight: &Sight, by: By, rows: &[[i64; 3]], wrong: &mut Vec<String>) {
        let groups = match by {
            By::Writer => self.books.events.len(),
            By::Kind => usize::try_from(self.books.kinds).unwrap(),
        };
        let (mut least, mut most) = (vec![[0i64; 2]; groups], vec![[0i64; 2]; groups]);
        for (writer, events) in self.books.events.iter().enumerate() {
            for (number, event) in (0i64..).zip(events) {
                let group = match by {
                    By::Writer => writer,
                    By::Kind => usize::try_from(event.kind).unwrap(),
                };
                for (counted, bound) in [
                    (sight.exact && event.stands_since(sight.start), &mut least),
                    (event.may_stand(sight.end), &mut most),
                ] {
                    if counted {
                        bound[group][0] += 1;
                        bound[group][1] += number;
                    }
                }
            }
        }
        let mut given = vec![None; groups];
        for [group, count, sum] in rows {
            match usize::try_from(*group).ok().and_then(|group| given.get_mut(group)) {
                Some(given @ None) => *given = Some([*count, *sum]),
                _ => wrong.push(format!("the group {group} of {by:?} is there twice, or is none")),
            }
        }
        for (group, given) in given.into_iter().enumerate() {
            let given = given.unwrap_or_default();
            let fits = |place: usize| (least[group][place]..=most[group][place]).contains(&given[place]);
            if !fits(0) || !fits(1) {
                let (least, most) = (least[group], most[group]);
                let what = format!("{by:?} {group}: count and sum are {given:?}, not from {least:?} to {most:?}");
                wrong.push(what);
            }
        }
    }

    fn time(&self, moment: Instant) -> String {
        format!("{:.3}", moment.saturating_duration_since(self.born).as_secs_f64())
    }

    fn told(&self, change: &Change) -> String {
        let what = change.value.map_or_else(|| "a deletion".to_owned(), |value| format!("value {value}"));
        let (writer, node, start, outcome) = (change.writer, change.node + 1, self.time(change.start), &change.outcome);
        let end = change.end.map_or_else(|| "now".to_owned(), |end| self.time(end));
        format!("{what} of writer {writer} (at place {node}, {start} to {end}: {outcome:?})")
    }

    fn told_event(&self, event: &Event) -> String {
        let end = event.end.map_or_else(|| "now".to_owned(), |end| self.time(end));
        format!("sent at {}, {:?} at {end}", self.time(event.start), event.outcome)
    }

    /// What was last sent of a key before a moment.
    fn lately(&self, key: i64, moment: Instant) -> String {
        let before = self.books.rows[&key].iter().filter(|change| change.start < moment);
        let mut last: Vec<String> = before.rev().take(6).map(|change| self.told(change)).collect();
        last.reverse();
        format!("before that: {}", last.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is judged of the rows of a key that were seen after everything else, at quorum.
    fn judged(ledger: &Ledger, exact: bool, rows: &[[i64; 3]]) -> Result<(), String> {
        let (start, what) = (Instant::now(), Seen::Rows { keys: 1..=1, rows: rows.to_vec() });
        ledger.saw(Sight { start, end: Instant::now(), exact, node: 0, what });
        ledger.judge()
    }

    fn change(ledger: &Ledger, deletes: bool, outcome: Outcome) -> i64 {
        let (entry, value) = ledger.begin(1, 7, deletes, 0);
        ledger.settle(entry, outcome);
        value
    }

    const DONE: Outcome = Outcome::Acknowledged(None);

    #[test]
    fn a_lost_write_is_found() {
        let ledger = Ledger::new(1, 1);
        let old = change(&ledger, false, DONE);
        let new = change(&ledger, false, DONE);
        assert!(judged(&ledger, true, &[[1, 7, new]]).is_ok());
        assert!(judged(&ledger, false, &[[1, 7, old]]).is_ok(), "at one it may be behind");
        assert!(judged(&ledger, true, &[[1, 7, old]]).is_err());
        assert!(judged(&ledger, true, &[]).is_err());
        assert!(judged(&ledger, false, &[]).is_ok());
        assert!(judged(&ledger, true, &[[1, 7, new], [1, 7, new]]).is_err());
    }

    #[test]
    fn what_is_not_known_may_be_there_until_all_has_come_to_rest() {
        let ledger = Ledger::new(1, 1);
        let old = change(&ledger, false, DONE);
        let unknown = change(&ledger, false, Outcome::Unknown);
        for value in [old, unknown] {
            assert!(judged(&ledger, true, &[[1, 7, value]]).is_ok());
        }
        ledger.rested();
        let new = change(&ledger, false, DONE);
        assert!(judged(&ledger, true, &[[1, 7, new]]).is_ok());
        assert!(judged(&ledger, true, &[[1, 7, unknown]]).is_err());
    }

    #[test]
    fn what_was_refused_or_never_sent_must_not_be_there() {
        let ledger = Ledger::new(1, 1);
        let refused = change(&ledger, false, Outcome::Refused);
        for value in [refused, 1_000] {
            assert!(judged(&ledger, false, &[[1, 7, value]]).is_err());
        }
        assert!(judged(&ledger, true, &[]).is_ok());
    }

    #[test]
    fn a_deleted_row_must_not_come_back() {
        let ledger = Ledger::new(1, 1);
        let value = change(&ledger, false, DONE);
        change(&ledger, true, DONE);
        assert!(judged(&ledger, true, &[]).is_ok());
        assert!(judged(&ledger, true, &[[1, 7, value]]).is_err());
        change(&ledger, false, DONE);
        assert!(judged(&ledger, true, &[]).is_err());
    }

    #[test]
    fn versions_follow_the_order_of_writes() {
        let ledger = Ledger::new(1, 1);
        let newer = version("9.0@n5#0").unwrap();
        let older = version("8.7@n6#0").unwrap();
        change(&ledger, false, Outcome::Acknowledged(Some(older)));
        assert!(ledger.judge().is_ok());
        change(&ledger, false, Outcome::Acknowledged(Some(newer)));
        assert!(ledger.judge().is_ok());
        change(&ledger, false, Outcome::Acknowledged(Some(older)));
        assert!(ledger.judge().is_err());
    }

    #[test]
    fn events_are_counted() {
        let ledger = Ledger::new(2, 2);
        let first = ledger.begin_events(1, vec![0, 1]);
        ledger.settle_events(&first, DONE);
        let open = ledger.begin_events(1, vec![1]);
        let judged = |exact: bool, what: Seen| {
            let start = Instant::now();
            ledger.saw(Sight { start, end: Instant::now(), exact, node: 0, what });
            ledger.judge().is_ok()
        };
        let events = |rows: &[[i64; 3]]| Seen::Events { writer: 1, from: 0, rows: rows.to_vec() };
        assert!(judged(true, events(&[[1, 0, 0], [1, 1, 1]])));
        assert!(judged(true, events(&[[1, 0, 0], [1, 1, 1], [1, 2, 1]])));
        assert!(!judged(true, events(&[[1, 0, 0]])));
        assert!(judged(false, events(&[[1, 0, 0]])));
        assert!(!judged(false, events(&[[1, 0, 0], [1, 0, 0]])));
        assert!(!judged(false, events(&[[1, 0, 1]])));
        assert!(!judged(false, events(&[[1, 3, 0]])));
        let totals = |by, rows: &[[i64; 3]]| Seen::Totals { by, rows: rows.to_vec() };
        assert!(judged(true, totals(By::Writer, &[[1, 2, 1]])));
        assert!(judged(true, totals(By::Writer, &[[1, 3, 3]])));
        assert!(!judged(true, totals(By::Writer, &[[1, 4, 3]])));
        assert!(!judged(true, totals(By::Writer, &[])));
        assert!(judged(false, totals(By::Writer, &[])));
        assert!(judged(true, totals(By::Kind, &[[0, 1, 0], [1, 1, 1]])));
        assert!(!judged(true, totals(By::Kind, &[[1, 1, 1]])));
        ledger.settle_events(&open, Outcome::Refused);
        assert!(!judged(false, totals(By::Writer, &[[1, 3, 3]])));
    }
}
