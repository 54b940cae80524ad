//! The story in words, and for other tools.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::select::telling;
use super::{Clock, Event, Story};

/// The story for people: one line an event, nodes by the names of their hosts. `all` shows every event of the trace.
pub fn text(story: &Story, operations: &[String], all: bool) -> String {
    let mut text = String::new();
    let seconds = story.events().last().map_or(0.0, |event| event.at_micros as f64 / 1e6);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} events in {seconds:.1} virtual seconds", story.events().len());
    for broken in story.broken() {
        let _ = writeln!(text, "broken: {broken}");
    }
    text.push('\n');
    let places = story.chosen(operations, all);
    let shown = places.iter().map(|place| &story.events()[*place]).filter(|event| all || telling(event));
    let mut before = None;
    for event in shown {
        // A hole in time is where the story goes on elsewhere.
        if before.is_some_and(|before| event.at_micros > before + 1_000_000) {
            text.push_str("          ...\n");
        }
        before = Some(event.at_micros);
        let process = event.process.as_deref().unwrap_or("");
        let (seconds, micros) = (event.at_micros / 1_000_000, event.at_micros % 1_000_000);
        let words = words(story, event);
        let _ = writeln!(text, "{seconds:>5}.{micros:06} {process:<4} {:<6} {words}", event.kind);
    }
    text
}

/// What happened, with nodes by the names of their hosts.
fn words(story: &Story, event: &Event) -> String {
    let mut text = event.text.clone();
    for (node, host) in story.nodes() {
        text = text.replace(node, host);
    }
    if let Some((_, rest)) = text.strip_prefix("transport ").and_then(|rest| rest.split_once(' ')) {
        // The host stands before it already.
        text = rest.to_owned();
    }
    match &event.message {
        // The line behind it is for programs.
        Some(_) => text.rsplit_once(" @").map_or(text.clone(), |(text, _)| text.to_owned()),
        None => text,
    }
}

#[derive(Serialize)]
struct Whole<'a> {
    /// Hosts by the node that runs on them.
    nodes: &'a BTreeMap<String, String>,
    broken: Vec<&'a str>,
    events: Vec<Timed<'a>>,
}

#[derive(Serialize)]
struct Timed<'a> {
    #[serde(flatten)]
    event: &'a Event,
    clock: &'a Clock,
}

/// The story as JSON: `nodes`, `broken`, and `events` with `line`, `at_micros`, `kind`, `process`, `text`, `message` (with
/// `from`, `to`, `after`, `fate`) and `clock`, which is what a space-time diagram needs.
///
/// # Errors
/// None that a trace can bring about.
pub fn json(story: &Story, operations: &[String], all: bool) -> serde_json::Result<String> {
    let places = story.chosen(operations, all);
    let timed = |place: usize| Timed { event: &story.events()[place], clock: story.clock(place) };
    let events = places.into_iter().map(timed).collect();
    serde_json::to_string_pretty(&Whole { nodes: story.nodes(), broken: story.broken().collect(), events })
}

/// The story in the format of ShiViz: for every event a line with its process and vector clock, and a line with what
/// happened. Its parser wants the expression `(?<host>\S*) (?<clock>{.*})\n(?<event>.*)`, which is its default.
///
/// ShiViz wants no gaps between the events of a process, so clocks count only the events that are shown.
pub fn shiviz(story: &Story, operations: &[String], all: bool) -> String {
    let places = story.chosen(operations, all);
    // Of each process, which of its events are shown, by their count in the whole trace.
    let mut shown: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for place in &places {
        if let Some(process) = story.events()[*place].process.as_deref() {
            let own = story.clock(*place).get(process).copied().unwrap_or(0);
            shown.entry(process).or_default().push(own);
        }
    }
    let mut text = String::new();
    for place in places {
        let event = &story.events()[place];
        let Some(process) = event.process.as_deref() else { continue };
        let clock: BTreeMap<&str, usize> = story
            .clock(place)
            .iter()
            .filter_map(|(other, count)| {
                let counted = shown.get(other.as_str())?.partition_point(|own| own <= count);
                (counted > 0).then_some((other.as_str(), counted))
            })
            .collect();
        let clock = serde_json::to_string(&clock).unwrap_or_default();
        let _ = writeln!(text, "{process} {clock}\n{}", words(story, event));
    }
    text
}
