//! `shoal-sim`: runs seeds, says what broke, makes it small, and replays it.
#![allow(
    clippy::disallowed_methods,
    reason = "a program at the edge: it reads and writes the files that its user names, outside of every simulation"
)]

mod arguments;
mod bugs;
mod explain;
mod interrupt;
mod scale;
mod seeds;
mod smaller;
mod tell;
mod totals;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};
use shoal_simulation::invariants::INVARIANTS;
use shoal_simulation::run::{RunOptions, RunReport};
use shoal_simulation::{apart, entropy};

use arguments::RunArguments;
use bugs::BugsArguments;
use explain::ExplainArguments;
use scale::ScaleArguments;
use smaller::MinimizeArguments;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs Shoal in a box: the same nodes on virtual time, network and disks, under faults drawn from a seed.
///
/// The same seed gives the same run, event by event, in every build and on every day; its hash says so. A run under faults
/// is followed by a heal, and then every promise that Shoal makes is checked.
#[derive(Parser)]
#[command(
    name = "shoal-sim",
    version,
    after_help = "Exit codes: 0 every promise held, 1 one was broken, 2 the run could not be carried out."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one seed, or several: three nodes, three replicas, the usual faults, unless told otherwise.
    Run(RunArguments),
    /// Runs seeds of which each draws its own nodes, replicas and kinds of faults.
    Swarm(RunArguments),
    /// Runs again what `run --record` or `minimize` has written, and compares the hash.
    Replay(ReplayArguments),
    /// Makes a seed that fails small: fewer faults, operations and nodes, shorter, the same promise broken.
    Minimize(MinimizeArguments),
    /// Tells the story of a run from its trace: what happened, in order, and what caused what.
    Explain(ExplainArguments),
    /// Plants bugs, one after the other, and shows how soon each is found.
    Bugs(BugsArguments),
    /// Runs membership and catalog alone, with thousands of nodes and a million partitions, and prints what they cost.
    Scale(ScaleArguments),
    /// Lists the promises that every run of the cluster is held to.
    Invariants,
    /// Does one run for another process of this program.
    #[command(hide = true, name = apart::ARGUMENT)]
    Apart,
}

#[derive(Args)]
struct ReplayArguments {
    /// What `run --record` or `minimize` has written.
    file: PathBuf,
    /// Writes every event of the run, one line each.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// A run, written down.
#[derive(Serialize, Deserialize)]
struct Recording {
    /// The hash of its trace.
    hash: String,
    run: RunOptions,
}

impl Recording {
    /// What is needed to run exactly this again.
    fn of(options: &RunOptions, report: &RunReport) -> Self {
        Self { hash: report.hash.clone(), run: with_its_faults(options, report) }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, toml::to_string(self).map_err(io::Error::other)?)
    }

    fn read(path: &Path) -> io::Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        toml::from_str(&text).map_err(|error| wrong(&error))
    }
}

/// The run with its faults spelled out, if they are known: one that did not come to its end has reported none.
fn with_its_faults(options: &RunOptions, report: &RunReport) -> RunOptions {
    let plan = Some(&report.plan).filter(|_| !report.hash.is_empty()).cloned();
    RunOptions { faults: plan.or_else(|| options.faults.clone()), ..options.clone() }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    entropy::without_address_randomisation();
    let swarm = || RunOptions { seed: 1, ..RunOptions::default() };
    let outcome = match cli.command {
        Command::Run(arguments) => arguments.base(RunOptions::usual(1)).and_then(|base| seeds::run(&arguments, &base)),
        Command::Swarm(arguments) => arguments.base(swarm()).and_then(|base| seeds::run(&arguments, &base)),
        Command::Replay(arguments) => replay(&arguments),
        Command::Minimize(arguments) => smaller::minimize(&arguments),
        Command::Explain(arguments) => explain::explain(&arguments),
        Command::Bugs(arguments) => bugs::run(&arguments),
        Command::Scale(arguments) => scale::run(&arguments),
        Command::Invariants => list_invariants(),
        Command::Apart => apart::serve().map(|()| Outcome::Held),
    };
    match outcome {
        Ok(Outcome::Held) => ExitCode::SUCCESS,
        Ok(Outcome::Broken) => ExitCode::from(1),
        Ok(Outcome::NotCarriedOut) => ExitCode::from(2),
        Err(error) => {
            let _ = writeln!(io::stderr(), "shoal-sim: {error}");
            ExitCode::from(2)
        }
    }
}

/// What a run, or many, came to; the worst counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Held,
    Broken,
    NotCarriedOut,
}

impl Outcome {
    fn of(report: &RunReport) -> Self {
        match (&report.failure, report.passed()) {
            (Some(_), _) => Self::NotCarriedOut,
            (None, false) => Self::Broken,
            (None, true) => Self::Held,
        }
    }
}

fn replay(arguments: &ReplayArguments) -> io::Result<Outcome> {
    let recording = Recording::read(&arguments.file)?;
    let report = apart::run(&std::env::current_exe()?, &recording.run, arguments.trace.as_deref());
    let mut out = io::stdout().lock();
    writeln!(out, "{}", tell::line(recording.run.seed, &report))?;
    if report.hash == recording.hash {
        writeln!(out, "the same run as recorded")?;
    } else {
        writeln!(out, "not the run that was recorded ({}): the program has changed since", recording.hash)?;
    }
    if !report.passed() {
        let again = format!("shoal-sim replay {} --trace trace.txt", arguments.file.display());
        writeln!(out, "{}", tell::what_broke(&report, &again))?;
    }
    Ok(Outcome::of(&report))
}

fn list_invariants() -> io::Result<Outcome> {
    let mut out = io::stdout().lock();
    for invariant in INVARIANTS {
        writeln!(out, "{}\n    {}", invariant.name, invariant.text)?;
    }
    Ok(Outcome::Held)
}
