//! The part of a trace that matters.

use std::collections::BTreeSet;

use super::parse::operations;
use super::{Event, Fate, Story};

/// How long an operation that was never told anything may have had effects: longer than any client or node waits.
const UNTOLD_MICROS: u64 = 10_000_000;
/// Without any operation to start from, the last so many events are shown.
const LAST_EVENTS: usize = 400;

impl Story {
    /// Operations that broken promises name.
    fn blamed(&self) -> BTreeSet<String> {
        self.broken().flat_map(operations).collect()
    }

    /// Places of events: those between the beginning of each operation and its end, by cause and effect, and what happened to
    /// the world from the first of them to the last. Of all operations that broken promises name, unless some are given.
    pub(super) fn chosen(&self, given: &[String], all: bool) -> Vec<usize> {
        if all {
            return (0..self.events.len()).collect();
        }
        let wanted = if given.is_empty() { self.blamed() } else { given.iter().cloned().collect() };
        let mut chosen: BTreeSet<usize> = wanted.iter().flat_map(|operation| self.between(operation)).collect();
        if chosen.is_empty() {
            let telling = (0..self.events.len()).filter(|place| telling(&self.events[*place])).collect::<Vec<_>>();
            let first = telling.len().saturating_sub(LAST_EVENTS);
            return telling[first..].to_vec();
        }
        if let (Some(first), Some(last)) = (chosen.first().copied(), chosen.last().copied()) {
            chosen.extend((first..=last).filter(|place| self.events[*place].kind == "fault"));
        }
        chosen.extend((0..self.events.len()).filter(|place| self.events[*place].kind == "broken"));
        chosen.into_iter().collect()
    }

    fn between(&self, operation: &str) -> Vec<usize> {
        let of = |word: &str| format!("operation {operation} {word}");
        let (begins, told) = (of("begins"), of("is told"));
        let Some(begin) = self.events.iter().position(|event| event.text.starts_with(&begins)) else {
            return Vec::new();
        };
        let end = self.events.iter().rposition(|event| event.text.starts_with(&told)).filter(|end| *end > begin);
        let at = |place: usize| self.events[place].at_micros;
        let causes = |place: &usize| match end {
            Some(end) => self.precedes(*place, end),
            None => at(*place) <= at(begin) + UNTOLD_MICROS,
        };
        let last = end.unwrap_or(self.events.len() - 1);
        let own = |place: &usize| self.events[*place].process.is_some();
        (begin..=last).filter(own).filter(|place| self.precedes(begin, *place)).filter(causes).collect()
    }
}

/// Whether an event says something by itself. Most are the chatter of a cluster: gossip, heartbeats, writes and syncs that
/// went well.
pub(super) fn telling(event: &Event) -> bool {
    match event.kind.as_str() {
        "disk" => ["fails", "lost", "wrong", "full"].iter().any(|word| event.text.contains(word)),
        "net" => {
            let words = |word: &str| event.text.contains(word);
            let failed = event.message.as_ref().is_some_and(|message| message.fate != Fate::Arrived);
            // A heartbeat is a frame without a body.
            (failed && !words(" 22 B wait")) || words(" request ") || words(" answer ") || words("resets")
        }
        "note" => !event.text.starts_with("swim:"),
        _ => true,
    }
}
