//! Many seeds, several at a time, told of in order.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use shoal_simulation::apart;
use shoal_simulation::run::{RunOptions, RunReport};

use crate::arguments::RunArguments;
use crate::totals::Totals;
use crate::{Outcome, Recording, interrupt, tell};

/// How often the bar moves while no seed ends.
const BAR_TICK: Duration = Duration::from_millis(200);

/// Runs every seed; ends early at the first that fails unless told otherwise, at the end of the time, and at Ctrl-C.
pub fn run(arguments: &RunArguments, base: &RunOptions) -> io::Result<Outcome> {
    let program = std::env::current_exe()?;
    let jobs = arguments.one.jobs().get();
    let end = base.seed.saturating_add(arguments.seeds());
    let (next, stop) = (AtomicU64::new(base.seed), interrupt::flag()?);
    let started = Instant::now();
    let in_time = || arguments.time.is_none_or(|time| started.elapsed() < time);
    let (reports, finished) = mpsc::sync_channel(jobs);
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (reports, program, next, stop) = (reports.clone(), &program, &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) && in_time() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    // Nobody listens any more once a seed has failed.
                    if seed >= end || reports.send((seed, run_seed(program, arguments, base, seed))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(reports);
        let outcome = tell_in_order(arguments, base, finished, &stop);
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

fn run_seed(program: &Path, arguments: &RunArguments, base: &RunOptions, seed: u64) -> RunReport {
    let options = RunOptions { seed, ..base.clone() };
    let mut report = apart::run(program, &options, arguments.trace.as_deref());
    let other = arguments.against.as_deref().or(arguments.twice.then_some(program));
    // One that had to be killed has no hash.
    if let Some(other) = other.filter(|_| report.failure.is_none() && !report.hash.is_empty()) {
        let again = apart::run(other, &options, None);
        if again.hash != report.hash {
            report.failure = Some(differs(program, other, &options, &again));
        }
    }
    report
}

/// Two runs of one seed were not the same: the event at which they part says which code looks at something that is not
/// simulated.
fn differs(program: &Path, other: &Path, options: &RunOptions, again: &RunReport) -> String {
    let killed =
        again.violations.first().filter(|_| again.hash.is_empty()).map(|violation| violation.evidence.as_str());
    let hash = again.failure.as_deref().or(killed).unwrap_or(&again.hash);
    let place = match apart::first_difference(program, other, options) {
        Ok(Some(difference)) => difference,
        Ok(None) => "two further runs were the same".to_owned(),
        Err(error) => format!("where they part could not be found out: {error}"),
    };
    format!("the second run was another one ({hash}); {place}")
}

fn tell_in_order(
    arguments: &RunArguments,
    base: &RunOptions,
    finished: mpsc::Receiver<(u64, RunReport)>,
    stop: &AtomicBool,
) -> io::Result<Outcome> {
    let mut out = io::stdout();
    let bar = bar(arguments);
    let mut totals = Totals::default();
    let mut worst = Outcome::Held;
    // Reports that are early wait for the seeds before them; at most one per job.
    let (mut early, mut turn) = (BTreeMap::new(), base.seed);
    'telling: for (seed, report) in finished {
        early.insert(seed, report);
        while let Some(report) = early.remove(&turn) {
            let options = RunOptions { seed: turn, ..base.clone() };
            if let Some(path) = &arguments.record {
                Recording::of(&options, &report).write(path)?;
            }
            totals.add(&options, &report);
            let mut text = String::new();
            if bar.is_hidden() || !report.passed() {
                text = tell::line(turn, &report);
            }
            if !report.passed() {
                let again = tell::again(&options, &report, arguments.one.scenario.as_deref());
                text = format!("{text}\n{}", tell::what_broke(&report, &again));
            }
            if !text.is_empty() {
                bar.suspend(|| writeln!(out, "{text}"))?;
            }
            bar.inc(1);
            bar.set_message(totals.short());
            worst = worst.max(Outcome::of(&report));
            turn += 1;
            if !report.passed() && !arguments.keep_going {
                break 'telling;
            }
        }
    }
    bar.finish_and_clear();
    writeln!(out, "{}", totals.text())?;
    if stop.load(Ordering::Relaxed) && turn < base.seed.saturating_add(arguments.seeds()) && arguments.time.is_none() {
        writeln!(out, "interrupted: seeds from {turn} on were not run")?;
    }
    let swarm = base.kinds.is_none() && base.planted.is_none() && arguments.one.scenario.is_none();
    if let Some(missing) = totals.too_tame().filter(|_| swarm) {
        writeln!(out, "\n{missing}")?;
        worst = worst.max(Outcome::Broken);
    }
    if let Some(path) = &arguments.report {
        serde_json::to_writer_pretty(std::fs::File::create(path)?, &totals)?;
    }
    Ok(worst)
}

/// For a person who watches; everybody else reads lines.
fn bar(arguments: &RunArguments) -> ProgressBar {
    if !io::stderr().is_terminal() || !io::stdout().is_terminal() || arguments.seeds() == 1 {
        return ProgressBar::hidden();
    }
    let (bar, template) = match arguments.time {
        None => (ProgressBar::new(arguments.seeds()), "{bar:30} {pos}/{len} seeds, {per_sec}, {eta} left; {msg}"),
        Some(_) => (ProgressBar::no_length(), "{spinner} {pos} seeds in {elapsed}, {per_sec}; {msg}"),
    };
    bar.enable_steady_tick(BAR_TICK);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
