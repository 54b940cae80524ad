//! A run in a process of its own.
//!
//! Some libraries count for the life of the process (identities of actors and tasks, generations of runtimes), and what
//! they count orders their maps. A second run in the same process would start from other numbers, and be another run. So
//! every seed gets a fresh process, which also makes runs use all cores, and keeps one that aborts from taking the others
//! with it.
#![allow(clippy::disallowed_methods, reason = "starts processes that simulate; nothing here is simulated")]

use std::io::{self, BufWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::panics;
use crate::run::{self, RunOptions, RunReport};

/// The argument that makes [`serve`]'s program do one run.
pub const ARGUMENT: &str = "apart";

#[derive(Serialize, Deserialize)]
struct Order {
    run: RunOptions,
    trace: Option<PathBuf>,
}

/// Runs in a new process of `program`, which must call [`serve`] when its only argument is [`ARGUMENT`].
pub fn run(program: &Path, options: &RunOptions, trace: Option<&Path>) -> RunReport {
    let order = Order { run: options.clone(), trace: trace.map(Path::to_path_buf) };
    carried_out(program, &order).unwrap_or_else(|error| RunReport::failed(format!("no process for the run: {error}")))
}

fn carried_out(program: &Path, order: &Order) -> io::Result<RunReport> {
    let mut child = Command::new(program)
        .arg(ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        // An interrupt is for the one who waits for the report.
        .process_group(0)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has died already says so by its status.
        let _ = stdin.write_all(&serde_json::to_vec(order)?);
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Ok(RunReport::failed(format!("the process of the run ended with {}", output.status)));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Does one run as ordered on standard input, and reports on standard output. Address randomisation must be off
/// ([`crate::entropy::without_address_randomisation`]).
///
/// # Errors
/// Standard input or output failed, or the trace cannot be written where it was asked for.
pub fn serve() -> io::Result<()> {
    std::panic::set_hook(Box::new(panics::note));
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let order: Order = serde_json::from_str(&text)?;
    let trace: Option<Box<dyn Write + Send>> = match &order.trace {
        Some(path) => Some(Box::new(BufWriter::new(std::fs::File::create(path)?))),
        None => None,
    };
    let report = run::run(&order.run, trace);
    serde_json::to_writer(io::stdout().lock(), &report)?;
    Ok(())
}
