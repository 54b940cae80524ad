//! From lines to events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Event, Fate, Message};

/// A line that is not one of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotATrace {
    /// Its number, from 1.
    pub line: u64,
}

impl fmt::Display for NotATrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} is not one that `shoal-sim run --trace` writes", self.line)
    }
}

impl std::error::Error for NotATrace {}

pub(super) fn events(trace: &str) -> Result<Vec<Event>, NotATrace> {
    (1..).zip(trace.lines()).map(|(line, text)| event(line, text).ok_or(NotATrace { line })).collect()
}

fn event(line: u64, text: &str) -> Option<Event> {
    let (time, rest) = text.trim_start().split_once(' ')?;
    let (seconds, micros) = time.split_once('.').filter(|(_, micros)| micros.len() == 6)?;
    let at_micros = seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
    let (kind, what) = rest.split_once(' ')?;
    let what = what.trim_start();
    let message = if kind == "net" { message(what) } else { None };
    let (process, text) = match (&message, what.split_once(' ')) {
        (Some(message), _) => {
            let whose = if message.fate == Fate::Arrived { &message.to } else { &message.from };
            (Some(whose.clone()), what)
        }
        (None, Some((first, rest))) if is_process(first) => (Some(first.to_owned()), rest),
        _ => (None, what),
    };
    Some(Event { line, at_micros, kind: kind.to_owned(), process, text: text.to_owned(), message })
}

/// `h1 -> h2 what @after`. A request or an answer names the client, which counts as a process of its own: clients on one host
/// know nothing of each other.
fn message(what: &str) -> Option<Message> {
    let (path, after) = what.rsplit_once(" @")?;
    let mut words = path.split(' ');
    let (from, arrow, to, first) = (words.next()?, words.next()?, words.next()?, words.next()?);
    if arrow != "->" {
        return None;
    }
    let client = words.nth(1).filter(|word| is_process(word));
    let (from, to) = match (first, client) {
        ("request", Some(client)) => (client, to),
        ("answer", Some(client)) => (from, client),
        _ => (from, to),
    };
    let fate = match path.rsplit(' ').next() {
        Some("lost") => Fate::Lost,
        Some("wait") => Fate::Waits,
        _ => Fate::Arrived,
    };
    Some(Message { from: from.to_owned(), to: to.to_owned(), after: after.parse().ok()?, fate })
}

fn is_process(word: &str) -> bool {
    word.strip_prefix(['h', 'c']).is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Hosts by the node that runs on them: every node says its own number when it hears something.
pub(super) fn nodes(events: &[Event]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for event in events.iter().filter(|event| event.kind == "note") {
        let mut words = event.text.split(' ');
        if let (Some("transport"), Some(node), Some(host)) = (words.next(), words.next(), &event.process) {
            found.entry(node.to_owned()).or_insert_with(|| host.clone());
        }
    }
    found
}

/// Operations that a text names, as `operation 3.102`.
pub(super) fn operations(text: &str) -> BTreeSet<String> {
    let named = text.split("operation ").skip(1);
    let id = |rest: &str| {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(rest.len());
        rest[..end].trim_end_matches('.').to_owned()
    };
    named.map(id).filter(|id| id.contains('.')).collect()
}
