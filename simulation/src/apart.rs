//! A run in a process of its own.
//!
//! Some libraries count for the life of the process (identities of actors and tasks, generations of runtimes), and what
//! they count orders their maps. A second run in the same process would start from other numbers, and be another run. So
//! every seed gets a fresh process, which also makes runs use all cores, and keeps one that aborts from taking the others
//! with it. One that does not end is killed after a while, and none outlives the process that asked for it.
#![allow(clippy::disallowed_methods, reason = "starts processes that simulate; nothing here is simulated")]

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::panics;
use crate::run::{self, RunOptions, RunReport, Violation};

/// The argument that makes [`serve`]'s program do one run.
pub const ARGUMENT: &str = "apart";

/// Wall time that a run may take. Most take seconds, in a debug build minutes: one that is at it for so long goes round in
/// circles.
pub const RUN_TIME_MAX: Duration = Duration::from_secs(600);

/// What a run breaks that had to be killed. Nothing else is known of such a run: its hash is empty, and so are its faults and
/// operations.
pub const EVERY_RUN_ENDS: &str = "every_run_ends";

#[derive(Serialize, Deserialize)]
struct Order {
    run: RunOptions,
    trace: Option<PathBuf>,
}

/// Runs in a new process of `program`, which must call [`serve`] when its only argument is [`ARGUMENT`]. Takes
/// [`RUN_TIME_MAX`] at most.
pub fn run(program: &Path, options: &RunOptions, trace: Option<&Path>) -> RunReport {
    run_within(program, options, trace, RUN_TIME_MAX)
}

/// As [`run()`], for so much wall time at most. A run that is not over by then is killed, and has broken [`EVERY_RUN_ENDS`].
pub fn run_within(program: &Path, options: &RunOptions, trace: Option<&Path>, time: Duration) -> RunReport {
    let order = Order { run: options.clone(), trace: trace.map(Path::to_path_buf) };
    let report = carried_out(program, &order, time);
    report.unwrap_or_else(|error| RunReport::failed(format!("no process for the run: {error}")))
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

fn carried_out(program: &Path, order: &Order, time: Duration) -> io::Result<RunReport> {
    let text = serde_json::to_vec(order)?;
    let mut command = Command::new(program);
    // An interrupt is for the one who waits for the report, so the group is another one.
    command.arg(ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0);
    ends_with_its_caller(&mut command);
    let mut child = command.spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let (ended, end) = mpsc::sync_channel(1);
    let (told, in_time) = thread::scope(|scope| {
        let talk = scope.spawn(move || {
            let told = talk(&text, stdin, stdout);
            // Nobody listens any more once the time is over.
            let _ = ended.send(());
            told
        });
        let in_time = end.recv_timeout(time) != Err(RecvTimeoutError::Timeout);
        if !in_time {
            // One that ends in this very moment is not there to be killed.
            let _ = child.kill();
        }
        (talk.join(), in_time)
    });
    let status = child.wait()?;
    if !in_time && !status.success() {
        let (seed, seconds) = (order.run.seed, time.as_secs_f64());
        let evidence = format!("seed {seed} was still at it after {seconds:.0} s of wall time, and was killed");
        let violations = vec![Violation { invariant: EVERY_RUN_ENDS.into(), evidence }];
        return Ok(RunReport { violations, ..RunReport::default() });
    }
    if !status.success() {
        return Ok(RunReport::failed(format!("the process of the run ended with {status}")));
    }
    let told = told.map_err(|_| io::Error::other("its report was not read"))?;
    Ok(serde_json::from_slice(&told?)?)
}

/// Says what is to be run, and hears what it came to.
fn talk(order: &[u8], stdin: Option<ChildStdin>, stdout: Option<ChildStdout>) -> io::Result<Vec<u8>> {
    if let Some(mut stdin) = stdin {
        // One that has died already says so by its status.
        let _ = stdin.write_all(order);
    }
    let mut told = Vec::new();
    if let Some(mut stdout) = stdout {
        stdout.read_to_end(&mut told)?;
    }
    Ok(told)
}

/// The process is killed when the thread that starts it ends, which waits for it as long as it can: a process in a group of
/// its own would go on otherwise, for ever if its run has no end.
fn ends_with_its_caller(command: &mut Command) {
    let caller = std::process::id();
    let prepare = move || {
        // SAFETY: sets a number of this process.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: only asks for a number.
        let parent = unsafe { libc::getppid() };
        // The caller may have ended before that was said.
        if u32::try_from(parent) == Ok(caller) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    };
    // SAFETY: between fork and exec it makes two system calls, and neither allocates nor locks.
    unsafe { command.pre_exec(prepare) };
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
    fn a_run_that_does_not_end_is_killed_and_says_so() {
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("for-ever");
        std::fs::write(&program, "#!/bin/sh\nexec sleep 3600\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let options = RunOptions { seed: 7, ..RunOptions::default() };
        let report = run_within(&program, &options, None, Duration::from_millis(100));
        assert_eq!(report.failure, None);
        let [Violation { invariant, evidence }] = &report.violations[..] else { panic!("{:?}", report.violations) };
        assert_eq!(invariant, EVERY_RUN_ENDS);
        assert!(evidence.starts_with("seed 7 was still at it"), "{evidence}");
    }

    #[test]
    fn a_program_that_reports_nothing_is_no_run() {
        let report = run_within(Path::new("/bin/false"), &RunOptions::default(), None, Duration::from_secs(60));
        assert!(report.failure.is_some_and(|failure| failure.contains("exit status: 1")));
    }

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
