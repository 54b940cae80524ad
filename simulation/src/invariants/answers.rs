//! Whether every complete answer can be explained by what was written.

use std::collections::{BTreeMap, BTreeSet};

use shoal_kernel::WriteLevel;

use super::Evidence;
use super::expiry::may_have_expired;
use super::late::may_be_lost;
use super::writes::{by_key, deletions, is_certain, may_beat, pairs};
use crate::cluster::{Cell, GROUPS, NAMES, Note, Outcome, Question, Read, Target, Write};
use crate::world::HostId;

/// Rows that an answer can hold.
struct Model<'a> {
    evidence: &'a Evidence,
    keys: BTreeMap<i64, Vec<(i64, &'a Write)>>,
    deletions: BTreeMap<i64, Vec<&'a Write>>,
    /// Who wrote an event.
    events: BTreeMap<i64, (i64, &'a Write)>,
}

/// What one key can show to one question.
struct Possible {
    values: Vec<i64>,
    /// Some row must be shown.
    certain: bool,
}

impl<'a> Model<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let events = evidence.facts.writes.iter().filter(|write| write.target == Target::Events);
        let events = events.flat_map(|write| write.rows.iter().map(move |(id, amount)| (*id, (*amount, write))));
        Self { evidence, keys: by_key(evidence), deletions: deletions(evidence), events: events.collect() }
    }

    /// What the key can show to a question: anything written before its end, but nothing older than what every replica
    /// had acknowledged before its beginning; and nothing at all if a deletion may have beaten that.
    fn possible(&self, key: i64, read: &Read) -> Possible {
        let writes = self.keys.get(&key).map_or(&[][..], Vec::as_slice);
        let deletions = self.deletions.get(&key).map_or(&[][..], Vec::as_slice);
        let everywhere = || writes.iter().filter(|(_, write)| self.on_all(write, read));
        let deleted = deletions.iter().filter(|deletion| is_certain(deletion) && self.on_all(deletion, read));
        let everything = everywhere().map(|(_, write)| write).chain(deleted);
        let floor = everything.filter_map(|write| write.version_at_least()).max();
        let shown = |(_, write): &&(i64, &Write)| {
            write.begun < read.ended
                && write.outcome != Outcome::NotApplied
                && floor.is_none_or(|floor| write.version().is_none_or(|version| version >= floor))
        };
        let values = writes.iter().filter(shown).map(|(value, _)| *value).collect();
        let begun = || deletions.iter().filter(|deletion| deletion.begun < read.ended);
        let certain = everywhere().any(|(_, write)| !begun().any(|deletion| may_beat(deletion, write)));
        Possible { values, certain }
    }

    /// Whether every replica had the write before the question, the node that was asked knew who these were (it may have one of its
    /// own that counts no longer) and of all windows that it went to, and no replica can have lost it that no other could give it
    /// back, or dropped it because it had had its time.
    fn on_all(&self, write: &Write, read: &Read) -> bool {
        let everywhere = write.level() == Some(WriteLevel::All) && write.ended < read.begun;
        let stays = !self.evidence.windows(write.target) && !self.evidence.replicas_move();
        let known = stays || read.at_catalog >= write.done_at_catalog;
        let lasts =
            !may_be_lost(self.evidence, write, read.ended) && !may_have_expired(self.evidence, write, read.ended);
        everywhere && known && lasts
    }

    fn all_keys(&self) -> impl Iterator<Item = i64> + '_ {
        self.keys.keys().copied()
    }
}

pub(super) fn tell(read: &Read) -> String {
    let rest = if read.at_rest { " at rest" } else { "" };
    let (node, begun) = (HostId(read.node), read.begun as f64 / 1e6);
    format!("operation {}, {:?} through {node} at {begun:.3} s{rest}", read.id, read.question)
}

pub(super) fn not_applied_means_not_applied(evidence: &Evidence) -> Vec<String> {
    let refused = |target| {
        let writes = evidence.facts.writes.iter();
        let writes = writes.filter(move |write| write.target == target && write.outcome == Outcome::NotApplied);
        writes.flat_map(|write| write.rows.iter().copied())
    };
    let upserts: BTreeSet<(i64, i64)> = refused(Target::Upserts).collect();
    let events: BTreeSet<i64> = refused(Target::Events).map(|(id, _)| id).collect();
    let mut found = Vec::new();
    for read in &evidence.facts.reads {
        for (first, second) in pairs(&read.rows) {
            let seen = match read.question {
                Question::Point { .. } | Question::Range { .. } | Question::Notes { .. } | Question::Join => {
                    upserts.contains(&(first, second))
                }
                Question::Events => events.contains(&first),
                Question::Aggregate | Question::Groups | Question::EventCount => false,
            };
            if seen {
                found.push(format!("{} shows ({first}, {second}), whose write was refused without effect", tell(read)));
            }
        }
    }
    found
}

pub(super) fn complete_answers_are_exact(evidence: &Evidence) -> Vec<String> {
    let model = Model::new(evidence);
    let mut found = Vec::new();
    for read in &evidence.facts.reads {
        let wrong = match read.question {
            Question::Point { key } => rows_of_keys(&model, read, &[key]),
            Question::Range { low, high } => rows_of_keys(&model, read, &(low..=high).collect::<Vec<_>>()),
            Question::Notes { low, high } => rows_of_keys(&model, read, &(low..=high).collect::<Vec<_>>())
                .or_else(|| read.rows.iter().find_map(|row| wrong_note(&model, read, row))),
            Question::Join => joined(&model, read),
            Question::Aggregate => aggregate(&model, read),
            Question::Groups => groups(&model, read),
            Question::Events => events(&model, read),
            Question::EventCount => event_count(&model, read),
        };
        found.extend(wrong.map(|wrong| format!("{}: {wrong}", tell(read))));
    }
    found.extend(at_rest(evidence));
    found
}

/// Rows (key, value, …) of exactly these keys, in order.
fn rows_of_keys(model: &Model<'_>, read: &Read, keys: &[i64]) -> Option<String> {
    let shown = pairs(&read.rows);
    let order: Vec<&Cell> = read.rows.iter().filter_map(|row| row.first()).collect();
    if order.windows(2).any(|pair| pair[0] >= pair[1]) {
        return Some("keys are not in order, or one stands twice".to_owned());
    }
    if shown.len() != read.rows.len() {
        return Some("a row is not of two integers".to_owned());
    }
    if let Some(stranger) = shown.keys().find(|key| !keys.contains(key)) {
        return Some(format!("key {stranger} was not asked for"));
    }
    for key in keys {
        let possible = model.possible(*key, read);
        match shown.get(key) {
            Some(value) if !possible.values.contains(value) => {
                return Some(format!(
                    "key {key} shows {value}, which was never written, or is older than what every replica had"
                ));
            }
            None if possible.certain => return Some(format!("key {key} is missing, though every replica had it")),
            _ => {}
        }
    }
    None
}

/// A row (key, value, note) whose note is not what its write, or the one before an UPDATE, has made it.
fn wrong_note(model: &Model<'_>, read: &Read, row: &[Cell]) -> Option<String> {
    let [Cell::Int(key), Cell::Int(value), note] = row else { return Some(format!("{row:?} is no row with its note")) };
    let note = match note {
        Cell::Null => None,
        Cell::Int(note) => Some(*note),
        Cell::Text(text) => match text.strip_suffix(".0").unwrap_or(text).parse::<i64>() {
            Ok(note) => Some(note),
            Err(_) => return Some(format!("the note of key {key} is {text}")),
        },
    };
    let writes = model.keys.get(key).map_or(&[][..], Vec::as_slice);
    let writer = |value: i64| writes.iter().find(|(written, _)| *written == value).map(|(_, write)| *write);
    let write = writer(*value)?;
    // The rows that the write may have begun with, as their notes.
    let before: Vec<Option<i64>> = match write.note {
        Note::None => vec![None],
        Note::Given => vec![Some(2 * value)],
        Note::Kept => {
            let asked = Read { begun: write.begun, ended: write.ended.min(read.ended), ..read.clone() };
            let found = model.possible(*key, &asked).values.into_iter().filter(|found| found != value);
            let notes = found.flat_map(|found| match writer(found).map(|write| write.note) {
                Some(Note::Given) => vec![Some(2 * found)],
                Some(Note::None) | None => vec![None],
                // It goes back to a write that may be any.
                Some(Note::Kept) => {
                    let given = writes.iter().filter(|(_, write)| write.note == Note::Given);
                    given.map(|(value, _)| Some(2 * value)).chain([None]).collect()
                }
            });
            notes.collect()
        }
    };
    let dropped = || {
        let since = match write.note {
            Note::Kept => 0,
            Note::None | Note::Given => write.begun,
        };
        let all = model.evidence.facts.notes_dropped.iter();
        let mut before = all.filter(|dropped| dropped.begun < read.ended && dropped.ended > 0);
        // A node that has not heard of it takes notes, and the replicas that have heard leave them out.
        before.any(|dropped| dropped.ended > since || dropped.done_at_catalog > write.sent_at_catalog)
    };
    let right = before.contains(&note) || note.is_none() && dropped();
    (!right).then(|| format!("key {key} shows {value} with the note {note:?}, which can only be one of {before:?}"))
}

fn joined(model: &Model<'_>, read: &Read) -> Option<String> {
    for row in &read.rows {
        match row.as_slice() {
            [Cell::Int(key), Cell::Int(_), Cell::Text(name)] if *name == format!("name {}", key % NAMES) => {}
            other => return Some(format!("{other:?} is not a row with its name")),
        }
    }
    rows_of_keys(model, read, &model.all_keys().collect::<Vec<_>>())
}

fn aggregate(model: &Model<'_>, read: &Read) -> Option<String> {
    let [row] = read.rows.as_slice() else { return Some(format!("{} rows", read.rows.len())) };
    let int = |place: usize| match row.get(place) {
        Some(Cell::Int(value)) => Some(*value),
        _ => None,
    };
    let count = int(0)?;
    let possible: Vec<Possible> = model.all_keys().map(|key| model.possible(key, read)).collect();
    let certain = possible.iter().filter(|key| key.certain).count() as i64;
    let at_most = possible.iter().filter(|key| !key.values.is_empty()).count() as i64;
    if !(certain..=at_most).contains(&count) {
        return Some(format!("count {count} is not from {certain} to {at_most}"));
    }
    let values = || possible.iter().flat_map(|key| key.values.iter().copied());
    for extreme in [int(2), int(3)].into_iter().flatten() {
        if !values().any(|value| value == extreme) {
            return Some(format!("least or greatest value {extreme} was never written"));
        }
    }
    let sum = int(1).unwrap_or(0);
    let bound = |pick: fn(i64, i64) -> i64| -> i64 {
        let of_key = |key: &Possible| {
            let best = key.values.iter().copied().reduce(pick).unwrap_or(0);
            if key.certain { best } else { pick(best, 0) }
        };
        possible.iter().map(of_key).sum()
    };
    let (low, high) = (bound(i64::min), bound(i64::max));
    (!(low..=high).contains(&sum)).then(|| format!("sum {sum} is not from {low} to {high}"))
}

fn groups(model: &Model<'_>, read: &Read) -> Option<String> {
    let shown = pairs(&read.rows);
    if shown.len() != read.rows.len() {
        return Some("a group stands twice".to_owned());
    }
    for group in 0..GROUPS {
        let keys: Vec<i64> = model.all_keys().filter(|key| key % GROUPS == group).collect();
        let possible: Vec<Possible> = keys.iter().map(|key| model.possible(*key, read)).collect();
        let certain = possible.iter().filter(|key| key.certain).count() as i64;
        let at_most = possible.iter().filter(|key| !key.values.is_empty()).count() as i64;
        let count = shown.get(&group).copied().unwrap_or(0);
        if !(certain..=at_most).contains(&count) {
            return Some(format!("group {group} has {count} rows, not from {certain} to {at_most}"));
        }
    }
    None
}

fn events(model: &Model<'_>, read: &Read) -> Option<String> {
    let shown = pairs(&read.rows);
    for (id, amount) in &shown {
        match model.events.get(id) {
            Some((written, write)) if written == amount && write.begun < read.ended => {}
            _ => return Some(format!("event ({id}, {amount}) was never written")),
        }
    }
    let missing = model.events.iter().find(|(id, (_, write))| model.on_all(write, read) && !shown.contains_key(id));
    missing.map(|(id, _)| format!("event {id} is missing, though every replica had it"))
}

fn event_count(model: &Model<'_>, read: &Read) -> Option<String> {
    let Some([Cell::Int(count), ..]) = read.rows.first().map(Vec::as_slice) else { return Some("no count".to_owned()) };
    let certain = model.events.values().filter(|(_, write)| model.on_all(write, read)).count() as i64;
    let begun = |(_, write): &&(i64, &Write)| write.begun < read.ended && write.outcome != Outcome::NotApplied;
    let at_most = model.events.values().filter(begun).count() as i64;
    (!(certain..=at_most).contains(count)).then(|| format!("{count} events, not from {certain} to {at_most}"))
}

/// The answer to a question over all rows that it asks for, of a table.
pub(super) fn whole_answer(question: Question, rows: &BTreeMap<i64, i64>) -> Vec<Vec<Cell>> {
    let int = |value: Option<i64>| value.map_or(Cell::Null, Cell::Int);
    match question {
        Question::Point { .. } | Question::Range { .. } | Question::Notes { .. } | Question::Events => {
            rows.iter().map(|(key, value)| vec![Cell::Int(*key), Cell::Int(*value)]).collect()
        }
        Question::Aggregate => {
            let sum = (!rows.is_empty()).then(|| rows.values().sum());
            let (least, greatest) = (rows.values().min().copied(), rows.values().max().copied());
            vec![vec![Cell::Int(rows.len() as i64), int(sum), int(least), int(greatest)]]
        }
        Question::Groups => {
            let mut groups: BTreeMap<i64, i64> = BTreeMap::new();
            rows.keys().for_each(|key| *groups.entry(key % GROUPS).or_default() += 1);
            groups.into_iter().map(|(group, count)| vec![Cell::Int(group), Cell::Int(count)]).collect()
        }
        Question::Join => {
            let row = |(key, value): (&i64, &i64)| {
                vec![Cell::Int(*key), Cell::Int(*value), Cell::Text(format!("name {}", key % NAMES))]
            };
            rows.iter().map(row).collect()
        }
        Question::EventCount => vec![vec![Cell::Int(rows.len() as i64); 2]],
    }
}

/// At rest, aggregates are those of the rows that the same node shows.
fn at_rest(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    let mut tables: BTreeMap<(u16, Target), BTreeMap<i64, i64>> = BTreeMap::new();
    for read in evidence.facts.reads.iter().filter(|read| read.at_rest) {
        let table = (read.node, read.question.target());
        match read.question {
            Question::Range { .. } | Question::Events => {
                tables.insert(table, pairs(&read.rows));
            }
            Question::Aggregate | Question::Groups | Question::Join | Question::EventCount => {
                let wanted = tables.get(&table).map(|rows| whole_answer(read.question, rows));
                if let Some(wanted) = wanted.filter(|wanted| *wanted != read.rows) {
                    found.push(format!("{}: {:?} instead of {wanted:?}", tell(read), read.rows));
                }
            }
            Question::Point { .. } | Question::Notes { .. } => {}
        }
    }
    found
}
