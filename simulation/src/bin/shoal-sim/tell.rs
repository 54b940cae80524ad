//! Runs in words.

use std::fmt::Write as _;
use std::path::Path;

use shoal_simulation::run::{RunOptions, RunReport, Subject};

/// One run in one line.
pub fn line(seed: u64, report: &RunReport) -> String {
    let operations: u64 = report.operations.values().sum();
    format!(
        "seed {seed}: {} {}, {} faults, {operations} operations, {} events, {:.1} virtual s in {:.2} CPU s",
        if report.passed() { "ok" } else { "FAILED" },
        report.hash,
        report.plan.len(),
        report.lines,
        report.virtual_micros as f64 / 1e6,
        report.cpu_micros as f64 / 1e6,
    )
}

/// What broke, what had happened before, and how to see it again.
pub fn what_broke(report: &RunReport, again: &str) -> String {
    let mut text = String::new();
    let failure = report.failure.iter().map(|failure| format!("\n  {failure}\n"));
    let broken = report.violations.iter().map(|violation| format!("\n  broken: {violation}\n"));
    text.extend(failure.chain(broken));
    text.push_str("\n  what had happened to the world, the last of it:\n");
    text.extend(report.story.iter().map(|line| format!("    {line}\n")));
    // Writing to a string cannot fail.
    let _ = write!(text, "\n  to see it again:\n    {again}\n");
    text
}

/// The commands that run a seed again, and make it small if it came to an end.
pub fn again(options: &RunOptions, report: &RunReport, scenario: Option<&Path>) -> String {
    let file = scenario.map(|path| format!(" --scenario {}", path.display())).unwrap_or_default();
    let (command, usual) = if options.kinds.is_none() { ("swarm", "") } else { ("run", " --usual") };
    let nodes = options.nodes.map(|nodes| format!(" --nodes {nodes}")).unwrap_or_default();
    let subject = if options.subject == Subject::Echo { " --subject echo" } else { "" };
    let planted = options.planted.map(|planted| format!(" --planted {}", planted.as_str())).unwrap_or_default();
    let minutes = options.seconds() as f64 / 60.0;
    let run = format!("--seed {} --minutes {minutes}{file}{nodes}{subject}{planted}", options.seed);
    let again = format!("shoal-sim {command} {run} --trace trace.txt");
    if options.subject == Subject::Echo || report.hash.is_empty() {
        return again;
    }
    format!("{again}\n    shoal-sim explain trace.txt\n\n  to make it small:\n    shoal-sim minimize{usual} {run}")
}
