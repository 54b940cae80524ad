//! What tests of real nodes share: a node as a process, and patience.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use shoal::client::Client;

pub const PATIENCE: Duration = Duration::from_secs(120);

/// A node as a process. Killed when dropped.
pub struct Process {
    pub child: Child,
    pub client: Client,
    pub command: Vec<String>,
    log: Option<PathBuf>,
}

impl Process {
    /// Runs a command that becomes a node, and waits until it serves. It logs to that file what it logs for users, or else its
    /// warnings to where the test's own go.
    pub fn start(command: Vec<String>, log: Option<PathBuf>) -> Self {
        let mut started = Command::new(&command[0]);
        started.args(&command[1..]).stdout(Stdio::piped());
        match &log {
            None => started.env("SHOAL_LOG", "warn"),
            Some(path) => started
                .env("SHOAL_LOG", "info")
                .stderr(OpenOptions::new().create(true).append(true).open(path).unwrap()),
        };
        let mut child = started.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.split_whitespace().find(|word| word.starts_with("http://"));
        let url = url.unwrap_or_else(|| panic!("the node said '{line}'; {command:?}"));
        Self { client: Client::new(url), child, command, log }
    }

    /// What it was given for an argument.
    pub fn argument(&self, name: &str) -> &str {
        let place = self.command.iter().position(|argument| argument == name).unwrap();
        &self.command[place + 1]
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn again(&mut self) {
        *self = Self::start(self.command.clone(), self.log.clone());
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `shoal cluster …`; what it says, if it succeeds, or what is wrong.
pub fn operate(binary: &str, through: &Process, arguments: &[&str]) -> Result<String, String> {
    let command = Command::new(binary).arg("cluster").args(arguments).args(["--url", through.client.url()]).output();
    let output = command.unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

#[track_caller]
pub fn until(what: &str, mut happens: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happens() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
