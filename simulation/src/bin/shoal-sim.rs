//! `shoal-sim`: runs seeds, says what broke, and replays what broke.
#![allow(
    clippy::disallowed_methods,
    reason = "a program at the edge: it reads and writes the files that its user names, outside of every simulation"
)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use shoal_simulation::invariants::INVARIANTS;
use shoal_simulation::run::{NODES_MAX, Planted, RunOptions, RunReport, Subject};
use shoal_simulation::{apart, entropy};

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
    /// Runs again what `run --record` has written, and compares the hash.
    Replay(ReplayArguments),
    /// Lists the promises that every run of the cluster is held to.
    Invariants,
    /// Does one run for another process of this program.
    #[command(hide = true, name = apart::ARGUMENT)]
    Apart,
}

#[derive(Args)]
struct RunArguments {
    /// The seed, or the first one; 1, or the scenario's, unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds, counting up.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Nodes of the cluster.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: Option<u16>,
    /// Virtual minutes under load and faults, 1 unless given; the heal and the checks come on top.
    #[arg(long)]
    minutes: Option<f64>,
    /// What is simulated.
    #[arg(long, value_enum)]
    subject: Option<SubjectName>,
    /// A TOML file that fixes what is drawn from the seed otherwise; see simulation/scenarios.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Runs so many seeds at a time; by default as many as there are cores.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// Writes every event of the run, one line each.
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    trace: Option<PathBuf>,
    /// Writes down what is needed to run exactly this again, with its faults spelled out.
    #[arg(long, value_name = "FILE", conflicts_with = "seeds")]
    record: Option<PathBuf>,
    /// Switches on a bug, to see that it is found.
    #[arg(long, value_enum)]
    planted: Option<PlantedName>,
    /// Runs every seed twice and compares the hashes.
    #[arg(long)]
    twice: bool,
    /// Goes on after a seed that fails.
    #[arg(long)]
    keep_going: bool,
}

#[derive(Args)]
struct ReplayArguments {
    /// What `run --record` has written.
    file: PathBuf,
    /// Writes every event of the run, one line each.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SubjectName {
    /// Whole nodes under a workload.
    Cluster,
    /// Supervised actors that echo messages: proves the simulator itself.
    Echo,
}

#[derive(Clone, Copy, ValueEnum)]
enum PlantedName {
    /// A write is acknowledged before its fsync.
    SkipFsync,
    /// A write is acknowledged at quorum when one replica has answered.
    AcknowledgeEarly,
    /// The older version wins.
    WrongTieBreak,
}

/// A run, written down.
#[derive(Serialize, Deserialize)]
struct Recording {
    /// The hash of its trace.
    hash: String,
    run: RunOptions,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    entropy::without_address_randomisation();
    let outcome = match cli.command {
        Command::Run(arguments) => base(&arguments, RunOptions::usual(1)).and_then(|base| run_seeds(&arguments, &base)),
        Command::Swarm(arguments) => base(&arguments, RunOptions { seed: 1, ..RunOptions::default() })
            .and_then(|base| run_seeds(&arguments, &base)),
        Command::Replay(arguments) => replay(&arguments),
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

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Held,
    Broken,
    NotCarriedOut,
}

/// What all seeds have in common: the scenario's file, and over it what the command line says.
fn base(arguments: &RunArguments, unless_given: RunOptions) -> io::Result<RunOptions> {
    let mut base = match &arguments.scenario {
        None => unless_given,
        Some(path) => {
            let wrong = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
            toml::from_str(&text).map_err(|error| wrong(&error))?
        }
    };
    base.seed = arguments.seed.unwrap_or(base.seed);
    base.nodes = arguments.nodes.or(base.nodes);
    // Bounded by what a person can wait for; the cast saturates.
    let seconds = arguments.minutes.map(|minutes| (minutes * 60.0).clamp(1.0, 1e6) as u64);
    base.seconds = seconds.or(base.seconds);
    base.subject = match arguments.subject {
        Some(SubjectName::Cluster) => Subject::Cluster,
        Some(SubjectName::Echo) => Subject::Echo,
        None => base.subject,
    };
    let planted = arguments.planted.map(|planted| match planted {
        PlantedName::SkipFsync => Planted::SkipFsync,
        PlantedName::AcknowledgeEarly => Planted::AcknowledgeEarly,
        PlantedName::WrongTieBreak => Planted::WrongTieBreak,
    });
    base.planted = planted.or(base.planted);
    Ok(base)
}

/// Runs every seed, several at a time, and tells of them in order.
fn run_seeds(arguments: &RunArguments, base: &RunOptions) -> io::Result<Outcome> {
    let program = std::env::current_exe()?;
    let jobs = arguments.jobs.map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from);
    let end = base.seed.saturating_add(arguments.seeds);
    let (next, stop) = (AtomicU64::new(base.seed), AtomicBool::new(false));
    let (reports, finished) = mpsc::sync_channel(jobs);
    thread::scope(|scope| {
        for _ in 0..jobs {
            let (reports, program, next, stop) = (reports.clone(), &program, &next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    // Nobody listens any more once a seed has failed.
                    if seed >= end || reports.send((seed, run_seed(program, arguments, base, seed))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(reports);
        let outcome = tell_in_order(arguments, base, finished);
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

fn run_seed(program: &Path, arguments: &RunArguments, base: &RunOptions, seed: u64) -> RunReport {
    let options = RunOptions { seed, ..base.clone() };
    let mut report = apart::run(program, &options, arguments.trace.as_deref());
    if arguments.twice && report.failure.is_none() {
        let again = apart::run(program, &options, None);
        if again.hash != report.hash {
            report.failure = Some(format!("the second run gave another hash, {}", again.hash));
        }
    }
    report
}

fn tell_in_order(
    arguments: &RunArguments,
    base: &RunOptions,
    finished: mpsc::Receiver<(u64, RunReport)>,
) -> io::Result<Outcome> {
    let mut out = io::stdout().lock();
    let mut totals = Totals::default();
    let mut worst = Outcome::Held;
    // Reports that are early wait for the seeds before them; at most one per job.
    let (mut early, mut turn) = (BTreeMap::new(), base.seed);
    'telling: for (seed, report) in finished {
        early.insert(seed, report);
        while let Some(report) = early.remove(&turn) {
            let options = RunOptions { seed: turn, ..base.clone() };
            if let Some(path) = &arguments.record {
                let run = RunOptions { faults: Some(report.plan.clone()), ..options.clone() };
                let text = toml::to_string(&Recording { hash: report.hash.clone(), run }).map_err(io::Error::other)?;
                std::fs::write(path, text)?;
            }
            progress(&mut out, turn, &report)?;
            totals.add(&report);
            if !report.passed() {
                tell(&mut out, &options, arguments.scenario.as_deref(), &report)?;
                worst = worst.max(if report.failure.is_some() { Outcome::NotCarriedOut } else { Outcome::Broken });
                if !arguments.keep_going {
                    break 'telling;
                }
            }
            turn += 1;
        }
    }
    totals.print(&mut out)?;
    Ok(worst)
}

fn replay(arguments: &ReplayArguments) -> io::Result<Outcome> {
    let text = std::fs::read_to_string(&arguments.file)?;
    let recording: Recording = toml::from_str(&text).map_err(io::Error::other)?;
    let report = apart::run(&std::env::current_exe()?, &recording.run, arguments.trace.as_deref());
    let mut out = io::stdout().lock();
    progress(&mut out, recording.run.seed, &report)?;
    if report.hash == recording.hash {
        writeln!(out, "the same run as recorded")?;
    } else {
        writeln!(out, "not the run that was recorded ({}): the program has changed since", recording.hash)?;
    }
    if report.passed() {
        return Ok(Outcome::Held);
    }
    tell(&mut out, &recording.run, None, &report)?;
    Ok(if report.failure.is_some() { Outcome::NotCarriedOut } else { Outcome::Broken })
}

fn list_invariants() -> io::Result<Outcome> {
    let mut out = io::stdout().lock();
    for invariant in INVARIANTS {
        writeln!(out, "{}\n    {}", invariant.name, invariant.text)?;
    }
    Ok(Outcome::Held)
}

fn progress(out: &mut impl Write, seed: u64, report: &RunReport) -> io::Result<()> {
    let operations: u64 = report.operations.values().sum();
    writeln!(
        out,
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
fn tell(out: &mut impl Write, options: &RunOptions, scenario: Option<&Path>, report: &RunReport) -> io::Result<()> {
    if let Some(failure) = &report.failure {
        writeln!(out, "\n  {failure}")?;
    }
    for violation in &report.violations {
        writeln!(out, "\n  broken: {violation}")?;
    }
    writeln!(out, "\n  what had happened to the world, the last of it:")?;
    for line in &report.story {
        writeln!(out, "    {line}")?;
    }
    let file = scenario.map(|path| format!(" --scenario {}", path.display())).unwrap_or_default();
    let command = if options.kinds.is_none() { "swarm" } else { "run" };
    let nodes = options.nodes.map(|nodes| format!(" --nodes {nodes}")).unwrap_or_default();
    let subject = if options.subject == Subject::Echo { " --subject echo" } else { "" };
    let planted = options.planted.map(|planted| format!(" --planted {}", planted.as_str())).unwrap_or_default();
    writeln!(
        out,
        "\n  to see it again:\n    shoal-sim {command} --seed {} --minutes {}{file}{nodes}{subject}{planted} --trace trace.txt\n",
        options.seed,
        options.seconds() as f64 / 60.0
    )
}

#[derive(Default)]
struct Totals {
    seeds: u64,
    passed: u64,
    virtual_micros: u64,
    cpu_micros: u64,
    operations: BTreeMap<Cow<'static, str>, u64>,
    /// Rare states, with how often, and by how many seeds.
    sometimes: BTreeMap<Cow<'static, str>, (u64, u64)>,
}

impl Totals {
    fn add(&mut self, report: &RunReport) {
        self.seeds += 1;
        self.passed += u64::from(report.passed());
        self.virtual_micros += report.virtual_micros;
        self.cpu_micros += report.cpu_micros;
        for (what, times) in &report.operations {
            *self.operations.entry(what.clone()).or_default() += times;
        }
        for (what, times) in &report.sometimes {
            let (total, seeds) = self.sometimes.entry(what.clone()).or_default();
            *total += times;
            *seeds += 1;
        }
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let speed = self.virtual_micros as f64 / self.cpu_micros.max(1) as f64;
        writeln!(out, "\n{} of {} seeds passed; {speed:.0} virtual seconds per CPU second", self.passed, self.seeds)?;
        writeln!(out, "operations:")?;
        for (what, times) in &self.operations {
            writeln!(out, "  {times:>8}  {what}")?;
        }
        writeln!(out, "sometimes:")?;
        for (what, (times, seeds)) in &self.sometimes {
            writeln!(out, "  {times:>8}  {what} (in {seeds} seeds)")?;
        }
        Ok(())
    }
}
