//! A run in a process of its own.
//!
//! Some libraries count for the life of the process (identities of actors and tasks, generations of runtimes), and what
//! they count orders their maps. A second run in the same process would start from other numbers, and be another run. So
//! every seed gets a fresh process, which also makes runs use all cores, and keeps one that aborts from taking the others
//! with it.
#![allow(clippy::disallowed_methods, reason = "starts processes that simulate; nothing here is simulated")]

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
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

/// Runs in two programs, or twice in one, and says where the traces part; nothing if they do not.
///
/// # Errors
/// A trace cannot be written beside other temporary files, or read back.
pub fn first_difference(one: &Path, other: &Path, options: &RunOptions) -> io::Result<Option<String>> {
    let place =
        |which: &str| std::env::temp_dir().join(format!("shoal-sim-{}-{}-{which}", std::process::id(), options.seed));
    let paths = [place("one"), place("other")];
    for (program, path) in [one, other].into_iter().zip(&paths) {
        run(program, options, Some(path));
    }
    let lines = |path: &Path| -> io::Result<_> { Ok(BufReader::new(std::fs::File::open(path)?).lines()) };
    let found = parted(lines(&paths[0])?, lines(&paths[1])?);
    for path in &paths {
        std::fs::remove_file(path)?;
    }
    found
}

fn parted(
    mut one: impl Iterator<Item = io::Result<String>>,
    mut other: impl Iterator<Item = io::Result<String>>,
) -> io::Result<Option<String>> {
    for line in 1u64.. {
        let (one, other) = (one.next().transpose()?, other.next().transpose()?);
        match (one, other) {
            (None, None) => break,
            (one, other) if one == other => {}
            (one, other) => {
                let end = || "the end".to_owned();
                let (one, other) = (one.unwrap_or_else(end), other.unwrap_or_else(end));
                return Ok(Some(format!("event {line} differs:\n    {one}\n    {other}")));
            }
        }
    }
    Ok(None)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_event_that_differs_is_named() {
        let lines = |text: &'static str| text.lines().map(|line| Ok(line.to_owned()));
        assert_eq!(parted(lines("a\nb"), lines("a\nb")).unwrap(), None);
        let differs = parted(lines("a\nb\nc"), lines("a\nx\nc")).unwrap().unwrap();
        assert_eq!(differs, "event 2 differs:\n    b\n    x");
        let shorter = parted(lines("a"), lines("a\nb")).unwrap().unwrap();
        assert_eq!(shorter, "event 2 differs:\n    the end\n    b");
    }
}
