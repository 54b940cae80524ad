//! `minimize`: a seed that fails becomes a small file that fails in the same way.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use shoal_simulation::apart;
use shoal_simulation::minimize::{Limits, minimize as shrink};
use shoal_simulation::run::RunOptions;

use crate::arguments::{OneArguments, time};
use crate::{Outcome, Recording, tell};

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
    /// How long to go on: 90s, 10m, 2h.
    #[arg(long = "for", value_name = "TIME", value_parser = time, default_value = "2m")]
    time: Duration,
}

/// Sizes of a run, for people.
fn size(run: &RunOptions) -> String {
    let (faults, operations) = (run.faults.as_ref().map_or(0, Vec::len), run.operations.as_ref().map_or(0, Vec::len));
    format!("{faults} faults, {operations} operations, {} nodes, {} s", run.nodes(), run.seconds())
}

pub fn minimize(arguments: &MinimizeArguments) -> io::Result<Outcome> {
    let program = std::env::current_exe()?;
    let run = match &arguments.recording {
        Some(path) => Recording::read(path)?.run,
        None if arguments.usual => arguments.one.base(RunOptions::usual(1))?,
        None => arguments.one.base(RunOptions { seed: 1, ..RunOptions::default() })?,
    };
    let attempt = |run: &RunOptions| apart::run(&program, run, None);
    let mut out = io::stdout();
    let first = attempt(&run);
    writeln!(out, "{}", tell::line(run.seed, &first))?;
    if first.violations.is_empty() {
        writeln!(out, "no promise was broken, so there is nothing to make small")?;
        return Ok(Outcome::of(&first));
    }
    let limits = Limits { time: arguments.time, jobs: arguments.one.jobs() };
    let small = shrink(&run, &first, limits, attempt, |run, tried| {
        // Only for whoever watches.
        let _ = writeln!(io::stdout(), "after {tried} runs: {}", size(run));
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
    let why = if small.exhausted { "nothing more can go" } else { "the time is over (--for)" };
    writeln!(out, "{}; {why}, after {} runs", size(&small.run), small.tried)?;
    let again = format!("shoal-sim replay {} --trace trace.txt", arguments.output.display());
    writeln!(out, "{}", tell::what_broke(&small.report, &again))?;
    Ok(Outcome::Broken)
}
