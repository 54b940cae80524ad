//! `bugs`: plants bugs and sees to it that the default swarm finds them.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use shoal_kernel::Planted;
use shoal_simulation::apart;
use shoal_simulation::minimize::{Limits, minimize};
use shoal_simulation::run::{RunOptions, RunReport};

use crate::arguments::{JobsArguments, planted, time};
use crate::smaller::Size;
use crate::{Outcome, interrupt};

/// For which a run is made smaller, as `minimize` does unless told otherwise.
const MINIMIZE_TIME: Duration = Duration::from_secs(120);

#[derive(Args)]
pub struct BugsArguments {
    /// Only these; all unless given.
    #[arg(value_name = "BUG", value_parser = planted)]
    bugs: Vec<Planted>,
    /// Names them, and plants none.
    #[arg(long)]
    list: bool,
    /// Seeds that each may take.
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// Time that each may take: 90s, 10m, 2h.
    #[arg(long = "for", value_name = "TIME", value_parser = time, default_value = "5m")]
    time: Duration,
    /// Makes the first seed that finds a bug small, for two minutes at most, and shows how many faults and operations are left.
    #[arg(long)]
    minimize: bool,
    #[command(flatten)]
    jobs: JobsArguments,
    /// Writes the table there, as Markdown.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Writes what was learnt, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// The seed that found a bug, what it said, and the wall time that it took.
struct Found {
    seed: u64,
    report: RunReport,
    took: Duration,
}

/// What came of looking for one bug.
#[derive(Serialize)]
struct Row {
    bug: &'static str,
    what: &'static str,
    /// The promises that its first seed broke; none if it was not found.
    found_by: Vec<String>,
    seed: Option<u64>,
    /// Runs that came to an end.
    seeds_tried: u64,
    /// Those of them that said nothing: their process died, or could not be started.
    not_carried_out: u64,
    wall_seconds: u64,
    /// It was still being looked for at Ctrl-C.
    interrupted: bool,
    /// What is left of its first seed, if that was made smaller.
    left: Option<Size>,
}

impl Row {
    fn markdown(&self, minimized: bool) -> String {
        let Self { bug, what, seeds_tried, wall_seconds, .. } = self;
        let by = match self.found_by.first() {
            Some(promise) => format!("`{promise}`"),
            None if self.interrupted => "nobody yet".to_owned(),
            None => "**nobody**".to_owned(),
        };
        let seeds = self.seed.map_or_else(|| format!("none of {seeds_tried}"), |seed| seed.to_string());
        let left = match (minimized, &self.left) {
            (false, _) => String::new(),
            (true, None) => "  |  |".to_owned(),
            (true, Some(left)) => format!(" {} | {} |", left.faults, left.operations),
        };
        format!("| `{bug}` | {what} | {by} | {seeds} | {wall_seconds} |{left}")
    }
}

/// All bugs that were looked for; also the form of `--report`.
#[derive(Serialize)]
struct Bugs {
    bugs: Vec<Row>,
    found: usize,
    missed: usize,
    /// Ctrl-C came before all had been looked for.
    interrupted: bool,
    median_faults_left: Option<f64>,
    median_operations_left: Option<f64>,
}

impl Bugs {
    fn of(bugs: Vec<Row>, interrupted: bool) -> Self {
        let left =
            |what: fn(&Size) -> usize| median(bugs.iter().filter_map(|row| row.left.as_ref()).map(what).collect());
        let (faults, operations) = (left(|size| size.faults), left(|size| size.operations));
        Self {
            found: bugs.iter().filter(|row| row.seed.is_some()).count(),
            missed: bugs.iter().filter(|row| row.seed.is_none() && !row.interrupted).count(),
            bugs,
            interrupted,
            median_faults_left: faults,
            median_operations_left: operations,
        }
    }
}

/// Between the two in the middle, if there are two. None of nothing.
fn median(mut of: Vec<usize>) -> Option<f64> {
    of.sort_unstable();
    let (low, high) = (of.get(of.len().saturating_sub(1) / 2)?, of.get(of.len() / 2)?);
    Some((low + high) as f64 / 2.0)
}

pub fn run(arguments: &BugsArguments) -> io::Result<Outcome> {
    let wanted = if arguments.bugs.is_empty() { Planted::ALL } else { &arguments.bugs };
    let mut out = io::stdout();
    if arguments.list {
        for bug in wanted {
            writeln!(out, "{bug}\n    {}", bug.what())?;
        }
        return Ok(Outcome::Held);
    }
    let (program, stop) = (std::env::current_exe()?, interrupt::flag()?);
    let mut table = String::from("| Bug | What is wrong | Found by | Seeds | Seconds |");
    let (more, rule) = if arguments.minimize { (" Faults left | Operations left |", "---:|---:|") } else { ("", "") };
    table.push_str(&format!("{more}\n|---|---|---|---:|---:|{rule}\n"));
    let mut rows = Vec::new();
    for bug in wanted {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if io::stderr().is_terminal() {
            write!(io::stderr(), "\r{bug} ...\x1b[K")?;
        }
        let (mut row, found) = search(&program, *bug, arguments, &stop);
        if let Some(found) = found.filter(|_| arguments.minimize) {
            row.left = left(&program, *bug, &found, arguments, &stop);
        }
        if io::stderr().is_terminal() {
            write!(io::stderr(), "\r\x1b[K")?;
        }
        let text = row.markdown(arguments.minimize);
        writeln!(out, "{text}")?;
        table.push_str(&text);
        table.push('\n');
        rows.push(row);
    }
    let interrupted = rows.len() < wanted.len() || rows.iter().any(|row| row.interrupted);
    let bugs = Bugs::of(rows, interrupted);
    if let Some(path) = &arguments.output {
        std::fs::write(path, table)?;
    }
    if let Some(path) = &arguments.report {
        serde_json::to_writer_pretty(std::fs::File::create(path)?, &bugs)?;
    }
    writeln!(out, "{} of {} bugs were found", bugs.found, wanted.len())?;
    if let (Some(faults), Some(operations)) = (bugs.median_faults_left, bugs.median_operations_left) {
        writeln!(out, "median {faults} faults, {operations} operations")?;
    }
    let not_carried_out: u64 = bugs.bugs.iter().map(|row| row.not_carried_out).sum();
    if not_carried_out > 0 {
        writeln!(out, "{not_carried_out} runs could not be carried out: their processes died, or did not start")?;
    }
    if bugs.interrupted {
        writeln!(out, "interrupted: {} were not looked for to the end", wanted.len() - bugs.found - bugs.missed)?;
    }
    Ok(if bugs.missed == 0 { Outcome::Held } else { Outcome::Broken })
}

/// The lowest seed of the default swarm that breaks a promise, as far as seeds and time go, and until an end is asked for.
fn search(program: &Path, bug: Planted, arguments: &BugsArguments, stop: &AtomicBool) -> (Row, Option<Found>) {
    let (next, done, started) = (AtomicU64::new(1), AtomicBool::new(false), Instant::now());
    let (tried, not_carried_out) = (AtomicU64::new(0), AtomicU64::new(0));
    let found: Mutex<Option<Found>> = Mutex::new(None);
    let goes_on = || {
        let asked = done.load(Ordering::Relaxed) || stop.load(Ordering::Relaxed);
        !asked && started.elapsed() < arguments.time
    };
    thread::scope(|scope| {
        for _ in 0..arguments.jobs.get().get() {
            scope.spawn(|| {
                while goes_on() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > arguments.seeds {
                        return;
                    }
                    let begun = Instant::now();
                    let report = apart::run(program, &with(bug, seed), None);
                    tried.fetch_add(1, Ordering::Relaxed);
                    not_carried_out.fetch_add(u64::from(report.failure.is_some()), Ordering::Relaxed);
                    if report.violations.is_empty() {
                        continue;
                    }
                    done.store(true, Ordering::Relaxed);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    if found.as_ref().is_none_or(|other| seed < other.seed) {
                        *found = Some(Found { seed, report, took: begun.elapsed() });
                    }
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seeds_tried = tried.into_inner();
    let all_tried = seeds_tried >= arguments.seeds || started.elapsed() >= arguments.time;
    let broken = found.iter().flat_map(|found| &found.report.violations);
    let mut found_by: Vec<String> = Vec::new();
    for violation in broken {
        if found_by.iter().all(|promise| *promise != violation.invariant) {
            found_by.push(violation.invariant.to_string());
        }
    }
    let row = Row {
        bug: bug.as_str(),
        what: bug.what(),
        found_by,
        seed: found.as_ref().map(|found| found.seed),
        seeds_tried,
        not_carried_out: not_carried_out.into_inner(),
        wall_seconds: started.elapsed().as_secs(),
        interrupted: found.is_none() && !all_tried,
        left: None,
    };
    (row, found)
}

/// A seed of the default swarm with a bug in it.
fn with(bug: Planted, seed: u64) -> RunOptions {
    RunOptions { seed, planted: Some(bug), ..RunOptions::default() }
}

/// What is left of the seed that found a bug. Nothing can be said of one that had to be killed, or does not fail again.
fn left(program: &Path, bug: Planted, found: &Found, arguments: &BugsArguments, stop: &AtomicBool) -> Option<Size> {
    if found.report.hash.is_empty() || stop.load(Ordering::Relaxed) {
        return None;
    }
    let limits =
        Limits { until: Instant::now() + MINIMIZE_TIME, ordinary: found.took, jobs: arguments.jobs.get(), stop };
    let attempt = |run: &RunOptions, time| apart::run_within(program, run, None, time);
    let small = minimize(&with(bug, found.seed), &found.report, limits, attempt, |_, _| {}).ok()?;
    // Nothing was tried that failed again: that is no result.
    small.run.operations.as_ref()?;
    Some(Size::of(&small))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seed: Option<u64>, interrupted: bool) -> Row {
        let found_by = seed.map(|_| "a_promise".to_owned()).into_iter().collect();
        Row {
            bug: "a-bug",
            what: "It is wrong.",
            found_by,
            seed,
            seeds_tried: 212,
            not_carried_out: 0,
            wall_seconds: 300,
            interrupted,
            left: None,
        }
    }

    #[test]
    fn a_row_says_how_many_seeds_were_really_tried() {
        assert_eq!(row(Some(4), false).markdown(false), "| `a-bug` | It is wrong. | `a_promise` | 4 | 300 |");
        assert_eq!(row(None, false).markdown(false), "| `a-bug` | It is wrong. | **nobody** | none of 212 | 300 |");
        assert_eq!(row(None, true).markdown(true), "| `a-bug` | It is wrong. | nobody yet | none of 212 | 300 |  |  |");
    }

    #[test]
    fn what_was_interrupted_was_not_missed() {
        let bugs = Bugs::of(vec![row(Some(4), false), row(None, false), row(None, true)], true);
        assert_eq!((bugs.found, bugs.missed), (1, 1));
        assert_eq!(bugs.median_faults_left, None);
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(median(Vec::new()), None);
        assert_eq!(median(vec![3]), Some(3.0));
        assert_eq!(median(vec![9, 1, 2]), Some(2.0));
        assert_eq!(median(vec![4, 1, 9, 2]), Some(3.0));
    }
}
