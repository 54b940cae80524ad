//! The interactive shell.

#![allow(
    clippy::disallowed_methods,
    reason = "the shell reads the clock for people and owns a thread that shows progress"
)]

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};
use serde_json::Value;

use super::interrupt::Interrupts;
use super::{Exit, output};
use crate::client::{Client, ClientError};
use crate::statement;

/// Rows that are drawn; the rest is counted.
const ROWS_SHOWN_MAX: usize = 1000;

/// Progress is shown once a query has taken this long.
const PROGRESS_AFTER: Duration = Duration::from_millis(500);

const HELP: &str = "  SELECT …;     run SQL; a statement goes on over lines until its ;
  \\d            tables
  \\d TABLE      columns of a table
  \\cluster      nodes and what they hold
  \\timing       show or hide how long statements take
  \\?            this
  \\q            leave";

/// Commands that a shell has beyond the ordinary ones.
pub(super) trait Extras {
    /// Lines for `\?`.
    fn help(&self) -> &str;

    /// Carries out a command, such as `kill` with the arguments `["2"]`; `None` if it is none of these.
    fn command(&mut self, name: &str, arguments: &[&str]) -> Option<Result<String, String>>;

    /// The node to ask, if it is not always the same.
    fn client(&mut self) -> Option<Client>;
}

/// Just the ordinary ones.
pub(super) struct NoExtras;

impl Extras for NoExtras {
    fn help(&self) -> &str {
        ""
    }

    fn command(&mut self, _: &str, _: &[&str]) -> Option<Result<String, String>> {
        None
    }

    fn client(&mut self) -> Option<Client> {
        None
    }
}

/// A failed statement, with its place marked if the node named one.
pub(super) struct StatementError {
    pub(super) error: ClientError,
    pub(super) mark: Option<String>,
}

/// Runs one statement under an id of its own, so that Ctrl-C can stop it and its progress can be shown.
pub(super) fn run_statement<T>(
    client: &Client,
    interrupts: &Interrupts,
    sql: &str,
    run: impl FnOnce(&str, &str) -> Result<T, ClientError>,
) -> (Result<T, StatementError>, bool) {
    let id = format!("00000000-{:016x}", random());
    let progress = ProgressLine::start(client.clone(), id.clone());
    let (outcome, interrupted) = interrupts.during(client, &id, || run(&id, sql));
    progress.stop();
    let outcome = outcome.map_err(|error| {
        let mark = match &error {
            ClientError::Refused(refusal) => {
                refusal.spans.first().and_then(|place| output::mark(sql, place.line, place.column))
            }
            _ => None,
        };
        StatementError { error, mark }
    });
    (outcome, interrupted)
}

/// Ids need not be secret, only different: two shells on one node must not share one.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// A line on standard error that says how far the query is.
struct ProgressLine {
    stop: Option<mpsc::SyncSender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl ProgressLine {
    fn start(client: Client, id: String) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { stop: None, thread: None };
        }
        let (stop, stopped) = mpsc::sync_channel(1);
        let show = move || {
            let mut wait = PROGRESS_AFTER;
            let mut shown = false;
            while stopped.recv_timeout(wait) == Err(mpsc::RecvTimeoutError::Timeout) {
                wait = Duration::from_millis(250);
                if let Ok(progress) = client.progress(&id) {
                    let count = |name: &str| progress[name].as_u64().unwrap_or(0);
                    if let Some(place) = progress["queued"].as_u64() {
                        eprint!("\r\x1b[Kwaiting, {place} in line (Ctrl-C stops)");
                        shown = true;
                        continue;
                    }
                    eprint!(
                        "\r\x1b[K{} of {} tasks, {} rows, {:.1} MB read (Ctrl-C stops)",
                        count("tasks_done"),
                        count("tasks"),
                        count("rows_scanned"),
                        count("bytes_scanned") as f64 / 1e6
                    );
                    shown = true;
                }
            }
            if shown {
                eprint!("\r\x1b[K");
            }
        };
        let thread = std::thread::Builder::new().name("shoal-progress".into()).spawn(show).ok();
        Self { stop: Some(stop), thread }
    }

    fn stop(self) {
        drop(self.stop);
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
    }
}

/// A shell over one node.
pub(super) struct Shell<'a> {
    client: Client,
    interrupts: Interrupts,
    extras: &'a mut dyn Extras,
    timing: bool,
}

impl<'a> Shell<'a> {
    pub(super) fn new(client: Client, interrupts: Interrupts, extras: &'a mut dyn Extras) -> Self {
        Self { client, interrupts, extras, timing: true }
    }

    /// Reads and runs until the person leaves.
    pub(super) fn run(mut self, greeting: &str) -> Result<(), Exit> {
        let config = Config::builder().auto_add_history(false).build();
        let mut editor: Editor<(), FileHistory> =
            Editor::with_config(config).map_err(|error| Exit::failed(format!("no terminal: {error}")))?;
        let history = history_file();
        if let Some(path) = &history {
            // The first time there is none.
            let _ = editor.load_history(path);
        }
        println!("{greeting}");
        let mut pending = String::new();
        loop {
            let prompt = if pending.is_empty() { "shoal> " } else { "    -> " };
            match editor.readline(prompt) {
                Ok(line) => {
                    if pending.is_empty() && line.trim().is_empty() {
                        continue;
                    }
                    if pending.is_empty() && line.trim_start().starts_with('\\') {
                        let _ = editor.add_history_entry(line.trim());
                        if self.meta(line.trim()) {
                            break;
                        }
                        continue;
                    }
                    if !pending.is_empty() {
                        pending.push('\n');
                    }
                    pending.push_str(&line);
                    if statement::is_complete(&pending) {
                        let text = std::mem::take(&mut pending);
                        // The history is a file: what is secret is not for it.
                        let _ = editor.add_history_entry(shoal_actors::without_secrets(text.trim()));
                        self.statements(&text);
                    }
                }
                // Ctrl-C throws away what was typed.
                Err(ReadlineError::Interrupted) => pending.clear(),
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(Exit::failed(format!("the terminal is gone: {error}"))),
            }
        }
        if let Some(path) = &history {
            let _ = editor.save_history(path);
        }
        Ok(())
    }

    fn statements(&mut self, text: &str) {
        if let Some(client) = self.extras.client() {
            self.client = client;
        }
        for statement in statement::split(text) {
            let start = Instant::now();
            let sql = statement.in_place();
            let client = &self.client;
            let (outcome, _) = run_statement(client, &self.interrupts, &sql, |id, sql| client.sql_json(sql, Some(id)));
            match outcome {
                Ok(answer) => {
                    for entry in answer["results"].as_array().map_or(&[][..], Vec::as_slice) {
                        println!("{}", output::result(entry, ROWS_SHOWN_MAX));
                    }
                    if self.timing {
                        let elapsed = start.elapsed().as_secs_f64() * 1000.0;
                        println!(
                            "{elapsed:.1} ms ({:.1} ms in the node)",
                            answer["elapsed_ms"].as_f64().unwrap_or(0.0)
                        );
                    }
                }
                Err(failed) => {
                    eprintln!("{}", failed.error);
                    if let Some(mark) = failed.mark {
                        eprintln!("{mark}");
                    }
                    return;
                }
            }
        }
    }

    /// Carries out a backslash command; true to leave.
    fn meta(&mut self, line: &str) -> bool {
        let mut words = line.trim_start_matches('\\').trim_end_matches(';').split_whitespace();
        let name = words.next().unwrap_or("?");
        let arguments: Vec<&str> = words.collect();
        let said = match (name, arguments.as_slice()) {
            ("q" | "quit", _) => return true,
            ("?" | "h" | "help", _) => Ok(format!("{HELP}{}", self.extras.help())),
            ("timing", _) => {
                self.timing = !self.timing;
                Ok(format!("timing is {}", if self.timing { "on" } else { "off" }))
            }
            ("d", []) => self.client.cluster().map(|cluster| tables(&cluster)).map_err(|error| error.to_string()),
            ("d", [table]) => self.columns(table),
            ("cluster", _) => self.client.cluster().map(|cluster| nodes(&cluster)).map_err(|error| error.to_string()),
            _ => self
                .extras
                .command(name, &arguments)
                .unwrap_or_else(|| Err(format!("there is no command \\{name}; \\? lists them"))),
        };
        match said {
            Ok(text) => println!("{text}"),
            Err(text) => eprintln!("{text}"),
        }
        let _ = std::io::stdout().flush();
        false
    }

    fn columns(&self, table: &str) -> Result<String, String> {
        let sql = format!("SELECT * FROM {table} LIMIT 0");
        let answer = self.client.sql_json(&sql, None).map_err(|error| error.to_string())?;
        let columns = answer["results"][0]["columns"].as_array().cloned().unwrap_or_default();
        let rows: Vec<Value> =
            columns.iter().map(|column| serde_json::json!([column["name"], column["type"]])).collect();
        let headed = serde_json::json!({
            "columns": [{"name": "column", "type": "VARCHAR"}, {"name": "type", "type": "VARCHAR"}], "rows": rows,
        });
        Ok(output::result(&headed, usize::MAX))
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn drawn(columns: &[(&str, &str)], rows: Vec<Value>) -> String {
    let columns: Vec<Value> =
        columns.iter().map(|(name, data_type)| serde_json::json!({"name": name, "type": data_type})).collect();
    output::result(&serde_json::json!({"columns": columns, "rows": rows}), usize::MAX)
}

fn tables(cluster: &Value) -> String {
    let mut tables = std::collections::BTreeMap::<&str, (u64, u64)>::new();
    for partition in items(&cluster["partitions"]) {
        let entry = tables.entry(partition["table"].as_str().unwrap_or_default()).or_default();
        entry.0 += 1;
        entry.1 +=
            items(&partition["replicas"]).iter().filter_map(|replica| replica["rows"].as_u64()).max().unwrap_or(0);
    }
    let rows = tables.into_iter().map(|(name, (partitions, rows))| serde_json::json!([name, partitions, rows]));
    drawn(&[("table", "VARCHAR"), ("partitions", "BIGINT"), ("rows", "BIGINT")], rows.collect())
}

fn nodes(cluster: &Value) -> String {
    let rows = items(&cluster["nodes"]).iter().map(|node| {
        let held: Vec<&Value> = items(&cluster["partitions"])
            .iter()
            .flat_map(|partition| items(&partition["replicas"]))
            .filter(|replica| replica["node"] == node["id"])
            .collect();
        // What a replica that does not answer lacks is not known.
        let lag: Option<u64> = held.iter().map(|replica| replica["lag"].as_u64()).sum();
        serde_json::json!([node["id"], node["http_address"], node["swim"], held.len(), lag])
    });
    let columns =
        [("node", "BIGINT"), ("http", "VARCHAR"), ("state", "VARCHAR"), ("replicas", "BIGINT"), ("lag", "BIGINT")];
    drawn(&columns, rows.collect())
}

fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let dir = state.join("shoal");
    std::fs::create_dir_all(&dir).ok()?;
    Some(dir.join("history"))
}
