//! Developer commands: `cargo xtask test` is what CI runs and what the README names.
#![allow(clippy::disallowed_methods, reason = "a developer's tool: it measures its own steps by the real clock")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Developer commands of Shoal")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything that must hold before a change lands: format, lints, docs, licences, tests, simulation seeds.
    Test {
        /// Seeds that the simulator runs in release, each twice.
        #[arg(long, default_value_t = 100)]
        seeds: u32,
    },
    /// Format, lints and docs only.
    Lint,
    /// Simulation for hours: the swarm, over seeds that no other day has run.
    Soak {
        /// How long: 90s, 10m, 2h.
        #[arg(long = "for", default_value = "1h")]
        time: String,
    },
    /// Five real processes under kills, stops, cut links and wiped disks, in release.
    Chaos {
        /// How long: 90s, 10m, 2h.
        #[arg(long = "for", default_value = "10m", value_parser = seconds)]
        seconds: u64,
        /// What the schedule and the load are drawn from; another one each time if not given.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// A rolling upgrade of three processes under load, from the build of the commit that `api/tests/earlier-build` names.
    Upgrade,
    /// Simulation seeds only, each run twice, in release.
    Simulate {
        /// How many.
        #[arg(long, default_value_t = 200)]
        seeds: u32,
        /// The first.
        #[arg(long, default_value_t = 1)]
        from: u64,
    },
}

/// Seeds of the swarm that every change runs.
const SWARM_SEEDS: u32 = 60;

/// A command and what it is for.
struct Step {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

fn step(name: &'static str, arguments: &str) -> Step {
    let arguments = arguments.split_whitespace().map(str::to_owned).collect();
    Step { name, program: PathBuf::from("cargo"), arguments, environment: Vec::new() }
}

fn lint_steps() -> Vec<Step> {
    let mut docs = step("docs without warnings", "doc --workspace --no-deps --locked");
    // A public page may name the private modules that it is made of: the reader of the source follows them.
    docs.environment.push(("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links".to_owned()));
    vec![
        step("format", "fmt --all --check"),
        step("lints", "clippy --workspace --all-targets --locked -- -D warnings"),
        docs,
    ]
}

/// Release builds of what the tests run. Server and simulator at once: alone, each would ask its dependencies for other
/// features, and they would all be compiled twice.
fn release() -> Step {
    step("release builds", "build --release --locked --package shoal --package shoal-simulation --bins")
}

/// A run of the simulator in release, after [`release`].
fn shoal_sim(name: &'static str, arguments: &str) -> Result<Step, String> {
    let program = target()?.join("release").join("shoal-sim");
    Ok(Step { program, ..step(name, arguments) })
}

/// The directory of builds, which this program lies in.
fn target() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let target = program.parent().and_then(Path::parent).ok_or("no directory for builds")?;
    Ok(target.to_owned())
}

fn simulate(from: u64, seeds: u32) -> Result<Step, String> {
    shoal_sim("simulation seeds", &format!("run --seed {from} --seeds {seeds} --minutes 1 --twice"))
}

/// Every day begins elsewhere: a second soak of the same build learns something new.
fn seed_of_today() -> Result<u64, String> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_err(|error| error.to_string())?;
    Ok(now.as_secs())
}

fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(char::is_alphabetic).len());
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err("write 90s, 10m or 2h".into()),
    };
    let number: u64 = number.parse().map_err(|error| format!("'{number}': {error}"))?;
    number.checked_mul(unit).ok_or_else(|| "that is too long".into())
}

/// The test is built as ever; what it runs is the release build.
fn chaos(seconds: u64, seed: u64) -> Result<(), String> {
    let test = "nothing_is_lost_for_as_long_as_is_asked_for";
    let arguments = format!("test --locked --package shoal --test chaos -- --ignored --exact {test} --nocapture");
    let mut run = step("chaos", &arguments);
    run.environment.push(("CHAOS_BINARY", target()?.join("release").join("shoal").display().to_string()));
    run.environment.push(("CHAOS_SECONDS", seconds.to_string()));
    run.environment.push(("CHAOS_SEED", seed.to_string()));
    carry_out(vec![release(), run])
}

fn upgrade() -> Result<(), String> {
    carry_out(vec![upgrade_from(&earlier_build()?)])
}

fn upgrade_from(earlier: &Path) -> Step {
    // All packages, as the tests before: one alone would ask its dependencies for other features, and they would be compiled again.
    let test = "--run-ignored only -E test(an_upgrade_fails_no_request)";
    let mut run = step("a rolling upgrade", &format!("nextest run --workspace --locked {test}"));
    run.environment.push(("SHOAL_EARLIER", earlier.display().to_string()));
    run
}

/// The root of the clone that this was called in, as cargo says it: the path known to the compiler is that of the clone whose build lies in
/// the target directory, and clones may share that.
fn repository() -> Result<PathBuf, String> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").ok_or("call this as `cargo xtask`, which says where it is")?;
    Ok(Path::new(&package).join(".."))
}

/// The binary of the commit that is to be upgraded from. Built where everything is, so that dependencies are not compiled twice, and
/// kept beside.
fn earlier_build() -> Result<PathBuf, String> {
    let repository = repository()?;
    let named = repository.join("api/tests/earlier-build");
    let commit = std::fs::read_to_string(&named).map_err(|error| format!("{}: {error}", named.display()))?;
    let (commit, target) = (commit.trim(), target()?);
    let binary = target.join(format!("shoal-{commit}"));
    if binary.exists() {
        return Ok(binary);
    }
    let source = target.join(format!("source-{commit}"));
    std::fs::create_dir_all(&source).map_err(|error| format!("{}: {error}", source.display()))?;
    let archive = source.join("archive.tar");
    let tool = |name, program: &str, arguments: &[&dyn AsRef<OsStr>]| -> Result<(), String> {
        println!("\n== {name} ==");
        let status = Command::new(program).args(arguments.iter().map(AsRef::as_ref)).status();
        match status.map_err(|error| format!("{program}: {error}"))?.success() {
            true => Ok(()),
            false => Err(format!("{name}: {program} failed")),
        }
    };
    tool("the earlier commit", "git", &[&"-C", &repository, &"archive", &"--output", &archive, &commit])?;
    tool("its source", "tar", &[&"-xf", &archive, &"-C", &source])?;
    let manifest = source.join("Cargo.toml");
    let build = ["build", "--locked", "--workspace", "--bin", "shoal", "--manifest-path"];
    let build: Vec<&dyn AsRef<OsStr>> =
        build.iter().map(|word| word as &dyn AsRef<OsStr>).chain([&manifest as _]).collect();
    tool("the earlier build", "cargo", &build)?;
    let made = target.join("debug").join("shoal");
    std::fs::copy(&made, &binary).map_err(|error| format!("{}: {error}", made.display()))?;
    std::fs::remove_dir_all(&source).map_err(|error| format!("{}: {error}", source.display()))?;
    Ok(binary)
}

fn soak(time: &str) -> Result<(), String> {
    let from = seed_of_today()?;
    let swarm = shoal_sim("soak", &format!("swarm --seed {from} --for {time} --keep-going --report soak.json"))?;
    carry_out(vec![release(), swarm])
}

/// Runs that once failed, each in its file.
fn kept_seeds() -> Result<Vec<Step>, String> {
    let directory = repository()?.join("simulation/seeds");
    let entries = std::fs::read_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "toml"));
    files.sort();
    files.iter().map(|file| shoal_sim("a seed that was kept", &format!("replay {}", file.display()))).collect()
}

fn main() -> ExitCode {
    let task = Arguments::parse().command;
    let done = match &task {
        Task::Lint => carry_out(lint_steps()),
        Task::Simulate { seeds, from } => simulate(*from, *seeds).and_then(|run| carry_out(vec![release(), run])),
        Task::Test { seeds } => test(*seeds),
        Task::Soak { time } => soak(time),
        Task::Upgrade => upgrade(),
        Task::Chaos { seconds, seed } => seed.map_or_else(seed_of_today, Ok).and_then(|seed| chaos(*seconds, seed)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

fn test(seeds: u32) -> Result<(), String> {
    for tool in ["cargo-nextest", "cargo-deny"] {
        provide(tool).map_err(|why| format!("{tool} is needed and cannot be installed: {why}"))?;
    }
    let mut steps = lint_steps();
    steps.push(step("licences and bans", "deny --locked check licenses bans sources"));
    steps.push(step("examples in the docs", "test --workspace --doc --locked"));
    carry_out(std::mem::take(&mut steps))?;
    // Before the tests, which are built in the same place.
    let earlier = earlier_build()?;
    steps.push(step("tests", "nextest run --workspace --locked --no-fail-fast"));
    steps.push(upgrade_from(&earlier));
    steps.push(release());
    steps.push(simulate(1, seeds)?);
    steps.push(shoal_sim("the swarm", &format!("swarm --seed 1 --seeds {SWARM_SEEDS}"))?);
    steps.extend(kept_seeds()?);
    steps.push(same_in_both_builds()?);
    carry_out(steps)
}

fn carry_out(steps: Vec<Step>) -> Result<(), String> {
    for step in steps {
        println!("\n== {} ==", step.name);
        let started = Instant::now();
        let mut command = Command::new(&step.program);
        command.args(&step.arguments).envs(step.environment);
        // Cargo tells a program that it runs about the program's package. Build scripts of dependencies that look at the same
        // variables would be run anew whenever a build comes from here or from elsewhere, with all that hangs on them.
        let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
            command.env_remove(name);
        }
        let status = command.status().map_err(|error| format!("{} could not be started: {error}", step.name))?;
        if !status.success() {
            let (name, program, arguments) = (step.name, step.program.display(), step.arguments.join(" "));
            return Err(format!("{name} failed ({status}): {program} {arguments}"));
        }
        println!("== {}: ok, {:.0} s ==", step.name, started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// A few seeds give the same hashes in the debug build, which the tests have made, and in the release build.
fn same_in_both_builds() -> Result<Step, String> {
    let debug = target()?.join("debug").join("shoal-sim");
    shoal_sim("the same runs in debug and release", &format!("run --seeds 4 --minutes 1 --against {}", debug.display()))
}

/// Sees to it that a cargo subcommand is there.
fn provide(tool: &str) -> Result<(), String> {
    let there = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if there {
        return Ok(());
    }
    println!("xtask: installing {tool}");
    match Command::new("cargo").args(["install", "--locked", tool]).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(status.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
