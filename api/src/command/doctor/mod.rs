//! `shoal doctor`: looks at a data directory that no node uses, changes nothing, and says what is wrong and what to do.

#![allow(clippy::disallowed_methods, reason = "the command line reads files of the real world")]

mod text;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use shoal_actors::doctor;
use shoal_kernel::env::real;

use super::Exit;

const EXAMPLES: &str = "\
Examples:
  shoal doctor /var/lib/shoal                        everything of a node that is stopped
  shoal doctor --deep /var/lib/shoal                 also compares statistics and keys with the rows
  shoal doctor /var/lib/shoal/replicas/p7            one replica
  shoal doctor --format json /var/lib/shoal          for programs
  shoal doctor --dump /var/lib/shoal/replicas/p7/seg-0000000000000001.seg

It changes nothing and refuses a directory in which a node runs.
Exit codes: 0 sound (notes are no damage), 1 damage was found, 2 it could not be examined.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DoctorArguments {
    /// The data directory of a node, or of one of its replicas
    #[arg(value_name = "DIR", required_unless_present = "dump")]
    dir: Option<PathBuf>,
    /// Show a segment file page by page instead
    #[arg(long, value_name = "SEGMENT", conflicts_with_all = ["dir", "deep"])]
    dump: Option<PathBuf>,
    /// Compare all statistics and keys with the rows, too
    #[arg(long)]
    deep: bool,
    /// How the report is written
    #[arg(long, value_enum, default_value = "table")]
    format: ReportFormat,
}

/// How the report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReportFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Damage has been printed; there is nothing to add.
const DAMAGED: Exit = Exit { code: 1, message: String::new() };

pub(super) fn run(arguments: &DoctorArguments) -> Result<(), Exit> {
    let disk = real::disk();
    if let Some(segment) = &arguments.dump {
        let segment = absolute(segment)?;
        let dump = doctor::dump(&disk, &segment).map_err(unusable)?;
        print(arguments.format, &dump, || text::dump(&dump))?;
        return if dump.problems.is_empty() { Ok(()) } else { Err(DAMAGED) };
    }
    let Some(dir) = &arguments.dir else { return Err(Exit::usage("name a directory")) };
    let dir = absolute(dir)?;
    let examined = doctor::examine(&disk, &dir, arguments.deep).map_err(unusable)?;
    print(arguments.format, &examined, || text::report(&examined))?;
    if examined.damaged() == 0 { Ok(()) } else { Err(DAMAGED) }
}

/// Its parents say what a directory is.
fn absolute(path: &Path) -> Result<PathBuf, Exit> {
    path.canonicalize().map_err(|error| Exit::usage(format!("{}: {error}", path.display())))
}

/// What could not be examined at all; a segment whose outline is gone is examined, and damaged.
fn unusable(error: shoal_kernel::Error) -> Exit {
    let damaged = error.code() == shoal_kernel::ErrorCode::Corruption;
    let code = if damaged { 1 } else { 2 };
    Exit { code, ..Exit::from(error) }
}

fn print(format: ReportFormat, report: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Exit> {
    let text = match format {
        ReportFormat::Table => text(),
        ReportFormat::Json => serde_json::to_string_pretty(report).map_err(Exit::failed)?,
    };
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(Exit::failed),
    }
}
