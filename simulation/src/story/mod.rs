//! A trace, read back: who did what, what caused what, and the part of it that a broken promise hangs on.
//!
//! Events of one process follow one another; a message is the effect of everything that its sender did before it was sent.
//! From these two rules comes a vector clock for every event, and from the clocks which events lie between the beginning of an
//! operation and its end. Source: Mattern, "Virtual Time and Global States of Distributed Systems" (1989).

mod parse;
mod select;
mod show;

use std::collections::BTreeMap;

use serde::Serialize;

pub use parse::NotATrace;
pub use show::{json, shiviz, text};

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It has arrived; the event is its receiver's.
    Arrived,
    /// It was lost; the event is its sender's.
    Lost,
    /// It waits for the link to be whole; the event is its sender's.
    Waits,
}

/// A message of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// The process that sent it.
    pub from: String,
    /// The process that it was for.
    pub to: String,
    /// The trace had so many lines when it was sent.
    pub after: u64,
    /// What became of it.
    pub fate: Fate,
}

/// One line of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Its number, from 1.
    pub line: u64,
    /// Virtual time in microseconds.
    pub at_micros: u64,
    /// `net`, `disk`, `fault`, `note`, `client` or `broken`.
    pub kind: String,
    /// Whose event it is: a host (`h1`) or a client (`c3`); nobody's, if it happened to the world.
    pub process: Option<String>,
    /// What happened.
    pub text: String,
    /// The message that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Message>,
}

/// How many events of each process an event follows, itself included.
pub type Clock = BTreeMap<String, u64>;

/// A whole trace.
#[derive(Debug)]
pub struct Story {
    events: Vec<Event>,
    /// Of every event, by place.
    clocks: Vec<Clock>,
    /// Hosts by the node that runs on them.
    nodes: BTreeMap<String, String>,
}

impl Story {
    /// Reads a trace.
    ///
    /// # Errors
    /// A line is not one of a trace.
    pub fn parse(trace: &str) -> Result<Self, NotATrace> {
        let events = parse::events(trace)?;
        let clocks = clocks(&events);
        let nodes = parse::nodes(&events);
        Ok(Self { events, clocks, nodes })
    }

    /// Every event, in order.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The promises that were found broken.
    pub fn broken(&self) -> impl Iterator<Item = &str> {
        self.events.iter().filter(|event| event.kind == "broken").map(|event| event.text.as_str())
    }

    /// Hosts by the node that runs on them.
    pub fn nodes(&self) -> &BTreeMap<String, String> {
        &self.nodes
    }

    fn clock(&self, place: usize) -> &Clock {
        &self.clocks[place]
    }

    /// Whether one event may have been a cause of another, or is the same.
    pub fn precedes(&self, one: usize, other: usize) -> bool {
        let Some(process) = &self.events[one].process else { return one <= other };
        let own = self.clock(one).get(process);
        own.is_some_and(|own| self.clock(other).get(process).is_some_and(|known| known >= own))
    }
}

fn clocks(events: &[Event]) -> Vec<Clock> {
    let mut clocks: Vec<Clock> = Vec::with_capacity(events.len());
    // Places of the events of each process, ascending.
    let mut of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        let Some(process) = event.process.as_deref() else {
            clocks.push(Clock::new());
            continue;
        };
        let mut clock =
            of.get(process).and_then(|own| own.last()).map_or_else(Clock::new, |last| clocks[*last].clone());
        if let Some(message) = event.message.as_ref().filter(|message| message.fate == Fate::Arrived) {
            let sent = of.get(message.from.as_str()).map_or(&[][..], Vec::as_slice);
            let before = sent.partition_point(|place| events[*place].line <= message.after);
            if let Some(cause) = before.checked_sub(1).map(|last| &clocks[sent[last]]) {
                for (other, count) in cause {
                    let known = clock.entry(other.clone()).or_default();
                    *known = (*known).max(*count);
                }
            }
        }
        *clock.entry(process.to_owned()).or_default() += 1;
        clocks.push(clock);
        of.entry(process).or_default().push(place);
    }
    clocks
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
    0.000000 fault  h1 starts
    0.000000 fault  h2 starts
    1.000000 client c3 operation 3.7 begins: a question through h1
    1.000100 note   h2 transport n22 heard Ping
    1.000200 net    h3 -> h1 request of c3 3.7 @3
    1.000200 note   h1 transport n11 heard nothing
    1.000300 net    h1 -> h2 tcp#4 70 B 85c8c35f3fc2b1e3 @6
    1.000300 disk   h2 sync /data/wal
    1.000350 net    h1 -> h2 udp 80 B 0011 lost @6
    1.000400 net    h2 -> h1 tcp#4 20 B f92369f32e69b300 @8
    1.000400 note   h2 something else
    1.000500 net    h1 -> h3 answer to c3 3.7 @10
    1.000500 client c3 operation 3.7 is told by h1: 3 rows
    2.000000 fault  the network is healed
    3.000000 broken complete_answers_are_exact: operation 3.7, Aggregate through h1: wrong
";

    #[test]
    fn causes_lie_between_the_beginning_and_the_end() {
        let story = Story::parse(TRACE).unwrap();
        let told = text(&story, &[], false);
        let lines: Vec<&str> = told.lines().collect();
        let has = |what: &str| lines.iter().any(|line| line.contains(what));
        assert!(has("operation 3.7 begins") && has("is told by h1: 3 rows"), "{told}");
        assert!(has("complete_answers_are_exact"), "{told}");
        // Neither a cause of the answer nor an effect of the question.
        assert!(!has("something else") && !has("Ping"), "{told}");
        let (begin, end) = (2, 12);
        let between: Vec<u64> = (0..story.events().len())
            .filter(|place| story.precedes(begin, *place) && story.precedes(*place, end))
            .map(|place| story.events()[place].line)
            .collect();
        assert_eq!(between, [3, 5, 6, 7, 8, 9, 10, 12, 13]);
    }

    #[test]
    fn nodes_are_shown_as_hosts() {
        let story = Story::parse(TRACE).unwrap();
        assert_eq!(story.nodes().get("n22").map(String::as_str), Some("h2"));
        assert!(!text(&story, &[], true).contains("n22"));
    }

    #[test]
    fn what_other_tools_read_is_well_formed() {
        let story = Story::parse(TRACE).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json(&story, &[], true).unwrap()).unwrap();
        assert_eq!(value["events"].as_array().unwrap().len(), story.events().len());
        assert_eq!(value["events"][4]["message"]["from"], "c3");
        let vectors = shiviz(&story, &[], true);
        let first: Vec<&str> = vectors.lines().skip_while(|line| !line.starts_with("c3 ")).take(2).collect();
        assert_eq!(first, ["c3 {\"c3\":1}", "operation 3.7 begins: a question through h1"]);
        // Every event follows one more of its own process than the one before.
        let own: Vec<&str> = vectors.lines().filter(|line| line.starts_with("h1 {")).collect();
        assert!(own[0].contains("\"h1\":1") && own[1].contains("\"h1\":2"), "{own:?}");
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        assert_eq!(Story::parse("one line\n").unwrap_err().line, 1);
        assert!(Story::parse("").unwrap().events().is_empty());
    }
}
