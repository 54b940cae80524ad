//! Developer commands: `cargo xtask test` is what CI runs and what the README names.
#![allow(clippy::disallowed_methods, reason = "a developer's tool: it measures its own steps by the real clock")]

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
        #[arg(long, default_value_t = 8)]
        seeds: u32,
    },
    /// Format, lints and docs only.
    Lint,
    /// Simulation seeds only, each run twice, in release.
    Simulate {
        /// How many.
        #[arg(long, default_value_t = 80)]
        seeds: u32,
        /// The first.
        #[arg(long, default_value_t = 1)]
        from: u64,
    },
}

/// A command and what it is for.
struct Step {
    name: &'static str,
    program: &'static str,
    arguments: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
}

fn step(name: &'static str, arguments: &str) -> Step {
    let arguments = arguments.split_whitespace().map(str::to_owned).collect();
    Step { name, program: "cargo", arguments, environment: Vec::new() }
}

fn lint_steps() -> Vec<Step> {
    let mut docs = step("docs without warnings", "doc --workspace --no-deps --locked");
    // A public page may name the private modules that it is made of: the reader of the source follows them.
    docs.environment.push(("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"));
    vec![
        step("format", "fmt --all --check"),
        step("lints", "clippy --workspace --all-targets --locked -- -D warnings"),
        docs,
    ]
}

fn simulate(from: u64, seeds: u32) -> Step {
    let command = format!(
        "run --release --locked --package shoal-simulation --bin shoal-sim -- run --seed {from} --seeds {seeds} --minutes 1 --twice"
    );
    step("simulation seeds", &command)
}

fn main() -> ExitCode {
    let steps = match Arguments::parse().command {
        Task::Lint => lint_steps(),
        Task::Simulate { seeds, from } => vec![simulate(from, seeds)],
        Task::Test { seeds } => {
            for tool in ["cargo-nextest", "cargo-deny"] {
                if let Err(why) = provide(tool) {
                    eprintln!("xtask: {tool} is needed and cannot be installed: {why}");
                    return ExitCode::FAILURE;
                }
            }
            let mut steps = lint_steps();
            steps.push(step("licences and bans", "deny --locked check licenses bans sources"));
            steps.push(step("examples in the docs", "test --workspace --doc --locked"));
            steps.push(step("tests", "nextest run --workspace --locked --no-fail-fast"));
            steps.push(simulate(1, seeds));
            steps
        }
    };
    for step in steps {
        println!("\n== {} ==", step.name);
        let started = Instant::now();
        let mut command = Command::new(step.program);
        command.args(&step.arguments).envs(step.environment);
        match command.status() {
            Ok(status) if status.success() => {
                println!("== {}: ok, {:.0} s ==", step.name, started.elapsed().as_secs_f64())
            }
            Ok(status) => {
                eprintln!("xtask: {} failed ({status}): cargo {}", step.name, step.arguments.join(" "));
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("xtask: {} could not be started: {error}", step.name);
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
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
