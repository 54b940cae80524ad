//! The command line.
//!
//! Exit codes: 0 done; 1 it failed; 2 it was asked the wrong way; 3 no node could be reached; 130 interrupted.

mod cluster;
mod demo;
mod doctor;
mod import;
mod interrupt;
mod output;
mod shell;
mod sql;
mod start;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::ClientError;

/// Where clients connect unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:9175";

#[derive(Parser)]
#[command(name = "shoal", version, about = "Distributed SQL for events and time series", propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node
    Start(start::StartArguments),
    /// Run SQL: a shell, or -e, or a script on standard input
    Sql(sql::SqlArguments),
    /// Load a CSV, NDJSON or Parquet file into a table
    Import(import::ImportArguments),
    /// See the nodes of a cluster, drain them, take them out
    Cluster(cluster::ClusterArguments),
    /// Examine the data directory of a node that is stopped
    Doctor(doctor::DoctorArguments),
    /// Try Shoal: three nodes in this process, real data, a shell
    Demo(demo::DemoArguments),
}

/// Why a command ends early.
#[derive(Debug)]
struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    fn failed(message: impl std::fmt::Display) -> Self {
        Self { code: 1, message: message.to_string() }
    }

    fn usage(message: impl std::fmt::Display) -> Self {
        Self { code: 2, message: message.to_string() }
    }
}

impl From<ClientError> for Exit {
    fn from(error: ClientError) -> Self {
        let code = if matches!(error, ClientError::Unreachable { .. }) { 3 } else { 1 };
        Self { code, message: error.to_string() }
    }
}

impl From<shoal_kernel::Error> for Exit {
    fn from(error: shoal_kernel::Error) -> Self {
        let help = error.help().map(|help| format!("\n  {help}")).unwrap_or_default();
        Self::failed(format!("{error}{help}"))
    }
}

/// Reads the arguments and does what they say.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Start(arguments) => start::run(arguments),
        Command::Sql(arguments) => sql::run(arguments),
        Command::Import(arguments) => import::run(&arguments),
        Command::Cluster(arguments) => cluster::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Demo(arguments) => demo::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            if !exit.message.is_empty() {
                eprintln!("shoal: {}", exit.message);
            }
            ExitCode::from(exit.code)
        }
    }
}
