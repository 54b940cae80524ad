//! `minimize`: a seed that fails becomes a small file that fails in the same way.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use shoal_simulation::apart;
use shoal_simulation::minimize::{Limits, Minimized, minimize as shrink};
use shoal_simulation::run::{RunOptions, Violation};

use crate::arguments::{OneArguments, time};
use crate::{Outcome, Recording, interrupt, tell};

/// What the first run may take beyond the time that there is: what one takes is not known before.
const FIRST_RUN_TIME: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct MinimizeArguments {
    #[command(flatten)]
    one: OneArguments,
    /// What `run --record` has written, instead of a seed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "scenario", "nodes", "minutes", "subject", "planted"])]
    recording: Option<PathBuf>,
    /// The seed is one of `run`, not of `swarm`.
    #[arg(long, conflicts_with = "recording")]
    usual: bool,
    /// Where the small run is written, for `replay`.
    #[arg(long, value_name = "FILE", default_value = "minimized.toml")]
    output: PathBuf,
    /// How long to go on, with the first run: 90s, 10m, 2h. The run under way is brought to its end, at Ctrl-C, too.
    #[arg(long = "for", value_name = "TIME", value_parser = time, default_value = "2m")]
    time: Duration,
    /// Writes what is left of the run, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// How large a run is.
#[derive(Clone, Copy, Serialize)]
pub struct Size {
    pub faults: usize,
    pub operations: usize,
    nodes: u16,
    seconds: u64,
}

impl Size {
    /// Of a run whose faults and operations are spelled out.
    fn spelled_out(run: &RunOptions) -> Self {
        let faults = run.faults.as_ref().map_or(0, Vec::len);
        let operations = run.operations.as_ref().map_or(0, Vec::len);
        Self { faults, operations, nodes: run.nodes(), seconds: run.seconds() }
    }

    /// Of a run that may have been given back as it was, with all the operations that its clients began.
    pub fn of(small: &Minimized) -> Self {
        let operations = small.run.operations.as_ref().map_or(small.report.begun.len(), Vec::len);
        Self { operations, ..Self::spelled_out(&small.run) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, operations, nodes, seconds } = self;
        write!(f, "{faults} faults, {operations} operations, {nodes} nodes, {seconds} s")
    }
}

/// The form of `--report`.
#[derive(Serialize)]
struct Report<'a> {
    seed: u64,
    before: Size,
    after: Size,
    tried: u64,
    exhausted: bool,
    wall_seconds: f64,
    hash: &'a str,
    violations: &'a [Violation],
}

pub fn minimize(arguments: &MinimizeArguments) -> io::Result<Outcome> {
    let program = std::env::current_exe()?;
    let run = match &arguments.recording {
        Some(path) => Recording::read(path)?.run,
        None if arguments.usual => arguments.one.base(RunOptions::usual(1))?,
        None => arguments.one.base(RunOptions { seed: 1, ..RunOptions::default() })?,
    };
    let (stop, started) = (interrupt::flag()?, Instant::now());
    let mut limits =
        Limits { until: started + arguments.time, ordinary: FIRST_RUN_TIME, jobs: arguments.one.jobs(), stop: &stop };
    let attempt = |run: &RunOptions, time| apart::run_within(&program, run, None, time);
    let mut out = io::stdout();
    let first = attempt(&run, limits.time_of_a_run());
    limits.ordinary = started.elapsed();
    writeln!(out, "{}", tell::line(run.seed, &first))?;
    if first.violations.is_empty() {
        writeln!(out, "no promise was broken, so there is nothing to make small")?;
        return Ok(Outcome::of(&first));
    }
    if first.hash.is_empty() {
        let again = tell::again(&run, &first, arguments.one.scenario.as_deref());
        writeln!(out, "{}", tell::what_broke(&first, &again))?;
        writeln!(out, "a run that does not end says nothing of its faults and operations, and cannot be made small")?;
        return Ok(Outcome::Broken);
    }
    let small = shrink(&run, &first, limits, attempt, |run, tried| {
        // Only for whoever watches.
        let _ = writeln!(io::stdout(), "after {tried} runs: {}", Size::spelled_out(run));
    });
    let small = match small {
        Ok(small) => small,
        Err(report) => {
            writeln!(out, "with its faults and operations spelled out, the run no longer fails")?;
            writeln!(out, "{}", tell::line(run.seed, &report))?;
            return Ok(Outcome::NotCarriedOut);
        }
    };
    Recording { hash: small.report.hash.clone(), run: small.run.clone() }.write(&arguments.output)?;
    let why = match (small.exhausted, stop.load(Ordering::Relaxed)) {
        (true, _) => "nothing more can go",
        (false, true) => "interrupted",
        (false, false) => "the time is over (--for)",
    };
    let after = Size::of(&small);
    writeln!(out, "{after}; {why}, after {} runs", small.tried)?;
    let again = format!("shoal-sim replay {} --trace trace.txt", arguments.output.display());
    writeln!(out, "{}", tell::what_broke(&small.report, &again))?;
    if let Some(path) = &arguments.report {
        let report = Report {
            seed: run.seed,
            before: Size { faults: first.plan.len(), operations: first.begun.len(), ..Size::spelled_out(&run) },
            after,
            tried: small.tried,
            exhausted: small.exhausted,
            wall_seconds: started.elapsed().as_secs_f64(),
            hash: &small.report.hash,
            violations: &small.report.violations,
        };
        serde_json::to_writer_pretty(std::fs::File::create(path)?, &report)?;
    }
    Ok(Outcome::Broken)
}
