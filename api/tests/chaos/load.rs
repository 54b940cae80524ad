//! The mixed load: clients that write, delete and ask through all nodes, each going on to the next node when one fails it; and
//! probes, which do so with little patience and remember when they were served.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use shoal::client::{Client, ClientError};
use shoal_kernel::ReadLevel;

use crate::ledger::{By, Ledger, Outcome, Seen, Sight, version};

/// The tables: rows with keys and events, both in several partitions, of which each node has some; and one to join.
pub const TABLES: [&str; 3] = [
    "CREATE TABLE kv (k BIGINT NOT NULL, writer BIGINT NOT NULL, n BIGINT NOT NULL, PRIMARY KEY (k)) PARTITION BY HASH (k) PARTITIONS 6 WITH (replication_factor = 3)",
    "CREATE TABLE events (writer BIGINT, n BIGINT, kind BIGINT) PARTITION BY HASH (_dedup) PARTITIONS 4 WITH (replication_factor = 3)",
    "CREATE TABLE kinds (kind BIGINT NOT NULL, name VARCHAR NOT NULL, PRIMARY KEY (kind)) WITH (replication_factor = 3)",
];
pub const KINDS: i64 = 5;
/// Keys that everybody writes to.
const KEYS: i64 = 48;
/// Keys of one probe.
const PROBED: i64 = 16;
const EVENT_WRITERS: usize = 2;
const KEY_WRITERS: usize = 3;
const READERS: usize = 3;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a probe does.
const PROBE_PATIENCE: Duration = Duration::from_millis(500);
/// The least pause between two requests of a client. It pauses for as long as its last request took, too, so that a slow machine is
/// not flooded.
const PAUSE: Duration = Duration::from_millis(20);
/// Attempts at a request of a key writer whose outcome is not known and that may be sent again.
const ATTEMPTS_MAX: usize = 8;

/// Where requests pass, unless everything is to come to rest.
#[derive(Debug, Default)]
struct Gate {
    /// Whether it is closed, and how many are inside.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, (bool, usize)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> Inside<'_> {
        let open = self.changed.wait_while(self.state(), |(closed, _)| *closed);
        open.unwrap_or_else(PoisonError::into_inner).1 += 1;
        Inside(self)
    }
}

struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.state().1 -= 1;
        self.0.changed.notify_all();
    }
}

/// What a probe asks for again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    Write,
    Read(ReadLevel),
}

#[derive(Debug)]
pub struct Probe {
    pub wish: Wish,
    /// How far behind the node that fails it begins.
    offset: usize,
    at: AtomicUsize,
    served: Mutex<Vec<Instant>>,
}

impl Probe {
    /// Whether it was served since a moment.
    pub fn served_since(&self, moment: Instant) -> bool {
        self.served.lock().unwrap().last().is_some_and(|last| *last > moment)
    }

    /// The longest time in which it was not served.
    pub fn gap(&self, from: Instant, to: Instant) -> Duration {
        let served = self.served.lock().unwrap();
        let first = served.partition_point(|moment| *moment < from).saturating_sub(1);
        let inside = served[first..].iter().copied().take_while(|moment| *moment < to);
        let mut last = from.min(served.get(first).copied().unwrap_or(from));
        let mut longest = Duration::ZERO;
        for moment in inside.chain([to]) {
            longest = longest.max(moment.saturating_duration_since(last));
            last = moment;
        }
        longest
    }
}

/// All clients and what they write down.
pub struct Load {
    urls: Vec<String>,
    seed: u64,
    pub ledger: Ledger,
    gate: Gate,
    over: AtomicBool,
    pub probes: Vec<Probe>,
}

impl Load {
    pub fn new(urls: Vec<String>, seed: u64) -> Self {
        let wishes = [Wish::Write, Wish::Read(ReadLevel::One), Wish::Read(ReadLevel::Quorum)];
        let probes = [0, 1].into_iter().flat_map(|offset| {
            wishes.map(|wish| Probe { wish, offset, at: AtomicUsize::new(offset), served: Mutex::default() })
        });
        let (gate, over, probes) = (Gate::default(), AtomicBool::new(false), probes.collect());
        Self { urls, seed, ledger: Ledger::new(EVENT_WRITERS, KINDS), gate, over, probes }
    }

    /// Makes the tables.
    pub fn prepare(&self) {
        let client = Client::new(&self.urls[0]);
        for table in TABLES {
            crate::support::until("the tables are made", || match client.sql_json(table, None) {
                Ok(_) => true,
                Err(error) if error.code() == Some("table_exists") => true,
                Err(error) if error.retryable() => false,
                Err(error) => panic!("{error}"),
            });
        }
        let kinds: Vec<String> = (0..KINDS).map(|kind| format!("({kind}, 'kind {kind}')")).collect();
        let insert = format!("INSERT INTO kinds VALUES {}", kinds.join(", "));
        crate::support::until("the kinds are written", || client.sql_json(&insert, None).is_ok());
    }

    /// Runs it, and beside it what is to happen meanwhile.
    pub fn during<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            for writer in 0..KEY_WRITERS {
                scope.spawn(move || self.clients(writer, PATIENCE).write_keys());
            }
            for writer in 0..EVENT_WRITERS {
                scope.spawn(move || self.clients(10 + writer, PATIENCE).write_events(writer));
            }
            for reader in 0..READERS {
                scope.spawn(move || self.clients(20 + reader, PATIENCE).read());
            }
            for (number, probe) in self.probes.iter().enumerate() {
                scope.spawn(move || self.clients(30 + number, PROBE_PATIENCE).probe(probe));
            }
            // Also if what happens meanwhile ends in a panic.
            let _ends = Ends(self);
            meanwhile()
        })
    }

    /// Lets no request begin, and waits until none is under way.
    pub fn pause(&self) {
        let mut state = self.gate.state();
        state.0 = true;
        let idle = self.gate.changed.wait_while(state, |(_, inside)| *inside > 0);
        drop(idle.unwrap_or_else(PoisonError::into_inner));
    }

    pub fn resume(&self) {
        self.gate.state().0 = false;
        self.gate.changed.notify_all();
    }

    /// Has the probes ask first at the node that is about to fail, and at the one behind it.
    pub fn aim(&self, node: usize) {
        for probe in &self.probes {
            probe.at.store((node + probe.offset) % self.urls.len(), Ordering::Relaxed);
        }
    }

    /// Reads everything through one node at level one, while everything is at rest and all replicas are equal. What it finds goes into
    /// the ledger to be judged, and comes back to be compared.
    pub fn read_all(&self, node: usize) -> Result<Vec<Vec<[i64; 3]>>, ClientError> {
        let client = Client::new(&self.urls[node]).within(PATIENCE * 10).reading_at(Some(ReadLevel::One));
        let mut whole = Vec::new();
        let mut read = |what: Question| -> Result<(), ClientError> {
            let start = Instant::now();
            let mut rows = numbers(&client.sql_json(&what.sql(), None)?);
            rows.sort_unstable();
            whole.push(rows.clone());
            self.ledger.saw(Sight { start, end: Instant::now(), exact: true, node, what: what.seen(rows) });
            Ok(())
        };
        read(Question::Rows(0..=i64::MAX))?;
        for writer in 0..EVENT_WRITERS {
            read(Question::Events(writer, 0))?;
        }
        read(Question::Totals(By::Writer))?;
        read(Question::Totals(By::Kind))?;
        Ok(whole)
    }

    fn clients(&self, number: usize, patience: Duration) -> Clients<'_> {
        let at = |level| -> Vec<Client> {
            let urls = self.urls.iter();
            urls.map(|url| Client::new(url).within(patience).reading_at(level)).collect()
        };
        Clients {
            load: self,
            number: i64::try_from(number).unwrap(),
            random: StdRng::seed_from_u64(self.seed ^ (number as u64) << 32),
            at: number % self.urls.len(),
            writes: at(None),
            ones: at(Some(ReadLevel::One)),
            quorums: at(Some(ReadLevel::Quorum)),
        }
    }
}

struct Ends<'a>(&'a Load);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
        self.0.resume();
    }
}

/// What is asked.
#[derive(Debug, Clone)]
enum Question {
    Rows(RangeInclusive<i64>),
    Events(usize, i64),
    Totals(By),
}

impl Question {
    fn sql(&self) -> String {
        match self {
            Self::Rows(keys) if keys.start() == keys.end() => {
                format!("SELECT k, writer, n FROM kv WHERE k = {}", keys.start())
            }
            Self::Rows(keys) => {
                let (start, end) = (keys.start(), keys.end());
                format!("SELECT k, writer, n FROM kv WHERE k >= {start} AND k <= {end}")
            }
            Self::Events(writer, from) => {
                format!("SELECT writer, n, kind FROM events WHERE writer = {writer} AND n >= {from}")
            }
            Self::Totals(By::Writer) => "SELECT writer, count(*), sum(n) FROM events GROUP BY writer".into(),
            Self::Totals(By::Kind) => "SELECT kinds.kind, count(*), sum(events.n) FROM events JOIN kinds ON events.kind = kinds.kind GROUP BY kinds.kind".into(),
        }
    }

    fn seen(self, rows: Vec<[i64; 3]>) -> Seen {
        match self {
            Self::Rows(keys) => Seen::Rows { keys, rows },
            Self::Events(writer, from) => Seen::Events { writer, from, rows },
            Self::Totals(by) => Seen::Totals { by, rows },
        }
    }
}

/// One client, which knows all nodes.
struct Clients<'a> {
    load: &'a Load,
    number: i64,
    random: StdRng,
    at: usize,
    writes: Vec<Client>,
    ones: Vec<Client>,
    quorums: Vec<Client>,
}

impl Clients<'_> {
    fn is_over(&self) -> bool {
        self.load.over.load(Ordering::Relaxed)
    }

    /// Goes on at the next node if this one has failed.
    fn after(&mut self, began: Instant, error: Option<&ClientError>) {
        if let Some(error) = error {
            self.at = (self.at + 1) % self.writes.len();
            let code = error.code().unwrap_or("unreachable");
            self.load.ledger.failed(code);
            // Nothing that this load asks for is wrong in itself, and no disk fails under it.
            let broken = matches!(code, "corruption" | "io_error" | "disk_full" | "incompatible_version");
            if broken || !error.retryable() {
                self.load.ledger.wrong(format!("a client was told: {error}"));
            }
        }
        if !self.is_over() {
            // Whoever was not served tries the next node at once.
            std::thread::sleep(if error.is_none() { PAUSE.max(began.elapsed()) } else { PAUSE });
        }
    }

    /// Sends one request of a write, and goes on at the next node if it fails.
    fn send(&mut self, request: impl FnOnce(&Client) -> Result<Value, ClientError>) -> (Outcome, Option<Value>) {
        let (began, answer) = {
            let _inside = self.load.gate.enter();
            (Instant::now(), request(&self.writes[self.at]))
        };
        self.after(began, answer.as_ref().err());
        match answer {
            Ok(answer) => {
                let given = answer["results"][0]["version"].as_str().or_else(|| answer["version"].as_str());
                (Outcome::Acknowledged(given.and_then(version)), Some(answer))
            }
            Err(ClientError::Refused(refusal)) if refusal.applied == "false" => (Outcome::Refused, None),
            // It was never sent.
            Err(ClientError::Unreachable { reason, .. }) if reason.contains("Connection refused") => {
                (Outcome::Refused, None)
            }
            Err(_) => (Outcome::Unknown, None),
        }
    }

    fn write_keys(mut self) {
        let mut sent = 0;
        while !self.is_over() {
            let key = self.random.random_range(0..KEYS);
            sent += 1;
            match self.random.random_range(0..10) {
                0 | 1 => self.delete(key),
                2 | 3 => self.insert([key, (key + 1) % KEYS, (key + 7) % KEYS]),
                4 | 5 => self.insert([key]),
                _ => self.upsert(key, &format!("kv-{}-{sent}", self.number)),
            }
        }
    }

    fn delete(&mut self, key: i64) {
        let ledger = &self.load.ledger;
        let start = Instant::now();
        let (entry, _) = ledger.begin(key, self.number, true, self.at);
        let node = self.at;
        let (outcome, answer) = self.send(|client| client.sql_json(&format!("DELETE FROM kv WHERE k = {key}"), None));
        if answer.is_some_and(|answer| answer["results"][0]["rows"] == 0) {
            // It has read at quorum, found nothing, and written nothing.
            ledger.settle(entry, Outcome::Refused);
            let what = Question::Rows(key..=key).seen(Vec::new());
            ledger.saw(Sight { start, end: Instant::now(), exact: true, node, what });
        } else {
            ledger.settle(entry, outcome);
        }
    }

    /// All of these rows, without a key to send them again by.
    fn insert<const N: usize>(&mut self, keys: [i64; N]) {
        let ledger = &self.load.ledger;
        let rows = keys.map(|key| (key, ledger.begin(key, self.number, false, self.at)));
        let values = rows.map(|(key, (_, value))| format!("({key}, {}, {value})", self.number));
        let statement = format!("INSERT INTO kv VALUES {}", values.join(", "));
        let (outcome, _) = self.send(|client| client.sql_json(&statement, None));
        let outcome = match outcome {
            // The greatest of several versions is told.
            Outcome::Acknowledged(_) if N > 1 => Outcome::Acknowledged(None),
            outcome => outcome,
        };
        for (_, (entry, _)) in rows {
            ledger.settle(entry, outcome);
        }
    }

    /// One row with a key to send it again by.
    fn upsert(&mut self, key: i64, token: &str) {
        let ledger = &self.load.ledger;
        let (entry, value) = ledger.begin(key, self.number, false, self.at);
        let row = format!("{{\"k\": {key}, \"writer\": {}, \"n\": {value}}}\n", self.number);
        let mut outcome = Outcome::Refused;
        for _ in 0..ATTEMPTS_MAX {
            let (attempt, _) = self.send(|client| rows(client, "kv", &row, Some(token)));
            match (outcome, attempt) {
                (_, Outcome::Acknowledged(_)) | (Outcome::Refused, _) => outcome = attempt,
                (Outcome::Unknown | Outcome::Acknowledged(_), _) => {}
            }
            if matches!(outcome, Outcome::Acknowledged(_)) || self.is_over() {
                break;
            }
        }
        ledger.settle(entry, outcome);
    }

    /// Each batch is sent until it is acknowledged, and some once more.
    fn write_events(mut self, writer: usize) {
        let ledger = &self.load.ledger;
        while !self.is_over() {
            let kinds = (0..self.random.random_range(1..6)).map(|_| self.random.random_range(0..KINDS)).collect();
            let batch = ledger.begin_events(writer, kinds);
            let mut body = String::new();
            for (number, kind) in batch.numbers.clone().zip(&batch.kinds) {
                let _ = writeln!(body, "{{\"writer\": {writer}, \"n\": {number}, \"kind\": {kind}}}");
            }
            let token = format!("events-{writer}-{}", batch.numbers.start);
            let mut outcome = Outcome::Refused;
            loop {
                let (attempt, _) = self.send(|client| rows(client, "events", &body, Some(&token)));
                match (outcome, attempt) {
                    (_, Outcome::Acknowledged(_)) | (Outcome::Refused, _) => outcome = attempt,
                    (Outcome::Unknown | Outcome::Acknowledged(_), _) => {}
                }
                if matches!(outcome, Outcome::Acknowledged(_)) || self.is_over() {
                    break;
                }
            }
            ledger.settle_events(&batch, outcome);
            if self.random.random_range(0..8) == 0 {
                self.at = self.random.random_range(0..self.writes.len());
                let (_, again) = self.send(|client| rows(client, "events", &body, Some(&token)));
                if again.is_some_and(|again| again["duplicate"] != true) {
                    ledger.wrong(format!("events {token} were acknowledged, and again as if they were new"));
                }
            }
        }
    }

    fn read(mut self) {
        while !self.is_over() {
            let key = self.random.random_range(0..KEYS);
            let writer = self.random.random_range(0..EVENT_WRITERS);
            let what = match self.random.random_range(0..8) {
                0..3 => Question::Rows(key..=key),
                3 | 4 => Question::Rows(key..=key + self.random.random_range(1..20)),
                5 => Question::Events(writer, self.load.ledger.sent(writer) - 40),
                6 => Question::Totals(By::Writer),
                _ => Question::Totals(By::Kind),
            };
            let level = if self.random.random_range(0..4) == 0 { ReadLevel::One } else { ReadLevel::Quorum };
            if self.random.random_range(0..10) == 0 {
                self.at = self.random.random_range(0..self.writes.len());
            }
            self.ask(&what, level);
        }
    }

    /// Whether there was an answer.
    fn ask(&mut self, what: &Question, level: ReadLevel) -> bool {
        let node = self.at;
        let clients = if level == ReadLevel::Quorum { &self.quorums } else { &self.ones };
        let (start, answer) = {
            let _inside = self.load.gate.enter();
            (Instant::now(), clients[node].sql_json(&what.sql(), None))
        };
        self.after(start, answer.as_ref().err());
        let Ok(answer) = answer else { return false };
        let ledger = &self.load.ledger;
        if answer["read_level"] != level.to_string() {
            ledger.wrong(format!("an answer at {level} was asked for; this one says {}", answer["read_level"]));
        }
        let exact = level == ReadLevel::Quorum;
        ledger.saw(Sight { start, end: Instant::now(), exact, node, what: what.clone().seen(numbers(&answer)) });
        true
    }

    fn probe(mut self, probe: &Probe) {
        let first = 1_000 * self.number;
        while !self.is_over() {
            self.at = probe.at.load(Ordering::Relaxed);
            let at = self.at;
            let served = match probe.wish {
                Wish::Read(level) => self.ask(&Question::Totals(By::Writer), level),
                Wish::Write => {
                    let key = first + self.random.random_range(0..PROBED);
                    let ledger = &self.load.ledger;
                    let (entry, value) = ledger.begin(key, self.number, false, at);
                    let row = format!("{{\"k\": {key}, \"writer\": {}, \"n\": {value}}}\n", self.number);
                    let (outcome, _) = self.send(|client| rows(client, "kv", &row, None));
                    ledger.settle(entry, outcome);
                    matches!(outcome, Outcome::Acknowledged(_))
                }
            };
            if served {
                probe.served.lock().unwrap().push(Instant::now());
            }
            // Unless it was sent elsewhere meanwhile.
            let _ = probe.at.compare_exchange(at, self.at, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

fn rows(client: &Client, table: &str, body: &str, token: Option<&str>) -> Result<Value, ClientError> {
    client.ingest(table, "application/x-ndjson", body.as_bytes(), token, Some("quorum"))
}

/// Rows of three whole numbers.
fn numbers(answer: &Value) -> Vec<[i64; 3]> {
    let rows = answer["results"][0]["rows"].as_array().unwrap();
    rows.iter().map(|row| [0, 1, 2].map(|column| row[column].as_i64().unwrap_or(i64::MIN))).collect()
}
