//! `bugs`: plants bugs and sees to it that the default swarm finds them.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use shoal_kernel::Planted;
use shoal_simulation::apart;
use shoal_simulation::run::{RunOptions, RunReport};

use crate::Outcome;
use crate::arguments::{cores, planted, time};

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
    /// Writes the table there, as Markdown.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The seed that found a bug, and what it said.
struct Found {
    seed: u64,
    report: RunReport,
}

pub fn run(arguments: &BugsArguments) -> io::Result<Outcome> {
    let bugs = if arguments.bugs.is_empty() { Planted::ALL } else { &arguments.bugs };
    let mut out = io::stdout();
    if arguments.list {
        for bug in bugs {
            writeln!(out, "{bug}\n    {}", bug.what())?;
        }
        return Ok(Outcome::Held);
    }
    let program = std::env::current_exe()?;
    let mut table = String::from("| Bug | What is wrong | Found by | Seeds | Seconds |\n|---|---|---|---:|---:|\n");
    let mut missed = 0;
    for bug in bugs {
        if io::stderr().is_terminal() {
            write!(io::stderr(), "\r{bug} ...\x1b[K")?;
        }
        let started = Instant::now();
        let found = search(&program, *bug, arguments);
        let seconds = started.elapsed().as_secs();
        let (by, seeds) = match &found {
            Some(Found { seed, report }) => {
                let promise = report.violations.first().map_or("", |violation| violation.invariant.as_ref());
                (format!("`{promise}`"), seed.to_string())
            }
            None => {
                missed += 1;
                ("**nobody**".to_owned(), format!("more than {}", arguments.seeds))
            }
        };
        let row = format!("| `{bug}` | {} | {by} | {seeds} | {seconds} |", bug.what());
        if io::stderr().is_terminal() {
            write!(io::stderr(), "\r\x1b[K")?;
        }
        writeln!(out, "{row}")?;
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{row}");
    }
    if let Some(path) = &arguments.output {
        std::fs::write(path, table)?;
    }
    writeln!(out, "{} of {} bugs were found", bugs.len() - missed, bugs.len())?;
    Ok(if missed == 0 { Outcome::Held } else { Outcome::Broken })
}

/// The lowest seed of the default swarm that breaks a promise, as far as seeds and time go.
fn search(program: &Path, bug: Planted, arguments: &BugsArguments) -> Option<Found> {
    let (next, done, started) = (AtomicU64::new(1), AtomicBool::new(false), Instant::now());
    let found: Mutex<Option<Found>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..cores().get() {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) && started.elapsed() < arguments.time {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > arguments.seeds {
                        return;
                    }
                    let options = RunOptions { seed, planted: Some(bug), ..RunOptions::default() };
                    let report = apart::run(program, &options, None);
                    if report.violations.is_empty() {
                        continue;
                    }
                    done.store(true, Ordering::Relaxed);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    if found.as_ref().is_none_or(|other| seed < other.seed) {
                        *found = Some(Found { seed, report });
                    }
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}
