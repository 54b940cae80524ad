//! One client: draws operations from its own stream, sends them to nodes, writes down what came back.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use shoal_actors::service::{CommandDone, SqlRequest, WriteReport, WriteRequest};
use shoal_kernel::schema::TS_COLUMN;
use shoal_kernel::{Applied, Env, Error, ErrorCode, WriteLevel};

use super::answer;
use super::desk::{Desk, Running};
use super::history::{Cell, History, Outcome, Question, Read, TableChange, Target, Write};
use crate::entropy::EPOCH_MICROS;
use crate::network::{NoAnswer, Reply, request};
use crate::random::Stream;
use crate::trace::Kind;
use crate::world::{HostId, Shared};

/// Keys of the upsert table; the first of them are hot.
pub(super) const KEYS: i64 = 60;
const HOT_KEYS: u64 = 6;
/// Names in the table that is joined.
pub(super) const NAMES: i64 = 6;
/// Groups of the GROUP BY.
pub(super) const GROUPS: i64 = 4;

const THINK_MS: (u64, u64) = (20, 400);
/// What a node is given, and what the client waits.
pub(super) const NODE_TIMEOUT: Duration = Duration::from_secs(5);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(8);
const ATTEMPTS_MAX: u32 = 4;
const ROWS_MAX: u64 = 5;

/// What every client works with.
#[derive(Clone)]
pub(super) struct Office {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Arc<Desk>,
    pub(super) history: Arc<History>,
    pub(super) host: HostId,
    pub(super) nodes: u16,
    /// Events bring their own time.
    pub(super) event_times: bool,
    pub(super) seed: u64,
}

/// Why a statement has no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// The node said so.
    Error(Error),
    /// Nobody was there to take it.
    Refused,
    /// The connection broke, or the client lost patience.
    Silence,
}

impl Failed {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Error(error) if error.applied() == Applied::False => Outcome::NotApplied,
            Self::Refused => Outcome::NotApplied,
            Self::Error(_) | Self::Silence => Outcome::Unknown,
        }
    }

    fn word(&self) -> String {
        match self {
            Self::Error(error) => format!("{error}"),
            Self::Refused => "refused".to_owned(),
            Self::Silence => "no answer".to_owned(),
        }
    }
}

/// The rare state that an error tells of.
fn told(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::NotEnoughReplicas => "a write found too few replicas",
        ErrorCode::PartitionUnavailable => "a query found no replica of a partition",
        ErrorCode::NodeLost => "a node was lost after rows had left for the client",
        ErrorCode::Moved => "a client was told that a partition had moved",
        ErrorCode::NoCatalogQuorum => "a change of tables found no quorum of the catalog",
        ErrorCode::NotReady => "a node was asked before it was ready",
        ErrorCode::Timeout => "a deadline passed",
        ErrorCode::ClockSkew => "a clock was too far ahead",
        ErrorCode::Overloaded => "a node was overloaded",
        ErrorCode::DiskFull => "a disk was full",
        _ => "a node answered with another error",
    }
}

/// Rows of an answer, and what a statement without rows did.
pub(super) type Answered = (Vec<Vec<Cell>>, Option<CommandDone>);

impl Office {
    /// Calls a node over the simulated network.
    async fn call<T: Send + 'static>(
        &self,
        env: &Env,
        node: u16,
        job: impl FnOnce(Running, Reply<Result<T, Error>>) + Send + 'static,
    ) -> Result<T, Failed> {
        let desk = self.desk.clone();
        let answer = request(&self.shared, self.host, HostId(node), move |reply| {
            // A node that is still starting takes nothing; dropping the reply says that it broke off.
            if let Some(running) = desk.node(node) {
                job(running, reply);
            } else {
                reply.send(Err(Error::new(ErrorCode::NotReady, "the node has not started yet")));
            }
        });
        match env.timeout(CLIENT_TIMEOUT, answer).await {
            Ok(Ok(result)) => result.map_err(|error| {
                if error.code() == ErrorCode::Internal {
                    self.history.facts().internal.push(format!("{error}, through node {node}"));
                }
                self.shared.sometimes(told(error.code()));
                Failed::Error(error)
            }),
            Ok(Err(NoAnswer::Refused)) => Err(Failed::Refused),
            Ok(Err(NoAnswer::Broken)) | Err(_) => Err(Failed::Silence),
        }
    }

    /// Runs a statement and reads its whole answer.
    pub(super) async fn sql(&self, env: &Env, node: u16, mut statement: SqlRequest) -> Result<Answered, Failed> {
        statement.timeout = Some(NODE_TIMEOUT);
        let shared = self.shared.clone();
        self.call(env, node, move |running, reply| {
            let Running { node, env } = running;
            env.spawn("client statement", async move {
                reply.send(run(&node, statement, &shared).await);
            });
        })
        .await
    }

    /// Writes rows through a node's own door for rows.
    async fn write(&self, env: &Env, node: u16, mut rows: WriteRequest) -> Result<WriteReport, Failed> {
        rows.timeout = Some(NODE_TIMEOUT);
        self.call(env, node, move |running, reply| {
            let Running { node, env } = running;
            env.spawn("client write", async move {
                reply.send(node.write(rows).await);
            });
        })
        .await
    }

    /// What a node says of the cluster.
    pub(super) async fn view(&self, env: &Env, node: u16) -> Option<super::history::View> {
        let names: Vec<String> = self.history.facts().tables.iter().map(|change| change.name.clone()).collect();
        let viewed = self.call(env, node, move |running, reply| {
            let Running { node: handle, env } = running;
            env.spawn("client view", async move {
                let status = handle.cluster().await;
                let mut tables = std::collections::BTreeMap::new();
                for name in names {
                    let there = handle.table(&name).await.is_ok();
                    tables.insert(name, there);
                }
                reply.send(Ok(super::history::View { node, status, tables }));
            });
        });
        viewed.await.ok()
    }

    fn trace(&self, what: std::fmt::Arguments<'_>) {
        self.shared.trace(Kind::Client, what);
    }
}

async fn run(
    node: &shoal_actors::Node,
    statement: SqlRequest,
    shared: &Shared,
) -> Result<(Vec<Vec<Cell>>, Option<CommandDone>), Error> {
    use shoal_actors::service::QueryEvent;
    let mut stream = node.sql(statement).await?;
    let (mut batches, mut done) = (Vec::new(), None);
    while let Some(event) = stream.next().await {
        match event {
            QueryEvent::Batch(batch) => batches.push(batch),
            QueryEvent::Done(command) => done = Some(command),
            QueryEvent::Schema(_) | QueryEvent::Progress(_) => {}
            QueryEvent::Error(error) => return Err(error),
            QueryEvent::End(summary) => {
                if summary.restarts > 0 {
                    shared.sometimes("a query was started again because a node was lost");
                }
                return Ok((answer::rows(&batches), done));
            }
        }
    }
    Err(Error::internal("the answer ended without an end").with_applied(Applied::Unknown))
}

/// A client's own work.
pub(super) struct Client {
    office: Office,
    env: Env,
    number: u64,
    stream: Stream,
    /// The next unique value, of this client alone.
    next_value: i64,
    tables: u64,
}

impl Client {
    pub(super) fn new(office: Office, env: Env, number: u64) -> Self {
        let stream = Stream::new(office.seed, "client", number);
        Self { office, env, number, stream, next_value: i64::try_from(number).unwrap_or(0) * 1_000_000 + 1, tables: 0 }
    }

    /// Works until the given moment, in microseconds of virtual time.
    pub(super) async fn work(mut self, until_micros: u64) {
        while self.office.shared.now_micros() < until_micros {
            let think = self.stream.between(THINK_MS.0, THINK_MS.1);
            self.env.sleep(Duration::from_millis(think)).await;
            let node = self.node();
            match self.stream.below(100) {
                0..=34 => self.upsert(node).await,
                35..=54 => self.events(node).await,
                55..=96 => {
                    let question = self.question();
                    ask(&self.office, &self.env, node, question, false).await;
                }
                _ => self.table(node).await,
            }
        }
    }

    fn node(&mut self) -> u16 {
        u16::try_from(self.stream.below(u64::from(self.office.nodes))).unwrap_or(0)
    }

    fn key(&mut self) -> i64 {
        let bound = if self.stream.chance(500) { HOT_KEYS } else { KEYS.unsigned_abs() };
        i64::try_from(self.stream.below(bound)).unwrap_or(0)
    }

    fn level(&mut self) -> WriteLevel {
        match self.stream.below(4) {
            0 => WriteLevel::One,
            1 => WriteLevel::All,
            _ => WriteLevel::Quorum,
        }
    }

    fn value(&mut self) -> i64 {
        self.next_value += 1;
        self.next_value - 1
    }

    fn question(&mut self) -> Question {
        match self.stream.below(10) {
            0..=2 => Question::Point { key: self.key() },
            3 | 4 => {
                let low = self.key();
                Question::Range { low, high: (low + i64::try_from(self.stream.below(30)).unwrap_or(0)).min(KEYS - 1) }
            }
            5 => Question::Aggregate,
            6 => Question::Groups,
            7 => Question::Join,
            8 => Question::Events,
            _ => Question::EventCount,
        }
    }

    async fn upsert(&mut self, node: u16) {
        let rows = (0..self.stream.between(1, ROWS_MAX)).map(|_| (self.key(), self.value())).collect();
        let (level, tokened) = (self.level(), self.stream.chance(500));
        self.send(node, Target::Upserts, rows, level, tokened).await;
    }

    async fn events(&mut self, node: u16) {
        let rows = (0..self.stream.between(1, ROWS_MAX)).map(|_| (self.value(), self.key())).collect();
        let level = self.level();
        self.send(node, Target::Events, rows, level, true).await;
    }

    /// Sends a write, again and elsewhere while its outcome is unknown and it has a token.
    async fn send(&mut self, node: u16, target: Target, rows: Vec<(i64, i64)>, level: WriteLevel, tokened: bool) {
        let begun = self.office.shared.now_micros();
        let token = tokened.then(|| format!("client-{}-{}", self.number, self.next_value));
        let mut write =
            Write { target, rows, begun, ended: u64::MAX, node, sent: begun, attempts: 0, outcome: Outcome::Unknown };
        // Written down before it is sent: a read that ends before the answer arrives may already see it.
        let place = {
            let mut facts = self.office.history.facts();
            facts.writes.push(write.clone());
            facts.writes.len() - 1
        };
        let as_rows = self.stream.chance(500);
        loop {
            write.sent = self.office.shared.now_micros();
            write.attempts += 1;
            let sent = self.send_once(&write, level, token.clone(), as_rows).await;
            let (outcome, word) = match sent {
                Ok(report) => {
                    if report.duplicate {
                        self.office.shared.sometimes("a resend was recognised");
                    }
                    let outcome = Outcome::Acknowledged { level: report.level, version: report.version };
                    (outcome, format!("acknowledged at {} as {}", report.level, report.version))
                }
                Err(failed) => (failed.outcome(), failed.word()),
            };
            self.office
                .trace(format_args!("client {} write {place} at {} to {}: {word}", self.number, level, write.node));
            // Once an attempt may have been applied, a later refusal says nothing about it.
            write.outcome = match (write.outcome, outcome) {
                (Outcome::Unknown, Outcome::NotApplied) if write.attempts > 1 => Outcome::Unknown,
                (_, outcome) => outcome,
            };
            let give_up = token.is_none() || write.attempts >= ATTEMPTS_MAX;
            if write.outcome != Outcome::Unknown || give_up {
                break;
            }
            self.env.sleep(Duration::from_millis(self.stream.between(50, 1_000))).await;
            write.node = self.node();
        }
        let word = match write.outcome {
            Outcome::Acknowledged { .. } => "writes acknowledged",
            Outcome::NotApplied => "writes not applied",
            Outcome::Unknown => "writes of unknown outcome",
        };
        self.office.history.count(word);
        let mut facts = self.office.history.facts();
        if write.outcome != Outcome::Unknown {
            write.ended = self.office.shared.now_micros();
        }
        facts.writes[place] = write;
    }

    async fn send_once(
        &self,
        write: &Write,
        level: WriteLevel,
        token: Option<String>,
        as_rows: bool,
    ) -> Result<WriteReport, Failed> {
        let (table, columns) = match write.target {
            Target::Upserts => ("kv", ["k", "v"]),
            Target::Events => ("ev", ["id", "amount"]),
        };
        // The same in every attempt.
        let at_micros = i64::try_from(EPOCH_MICROS + write.begun).unwrap_or(i64::MAX);
        let at_micros = (write.target == Target::Events && self.office.event_times).then_some(at_micros);
        if as_rows {
            let batch = batch(columns, &write.rows, at_micros)
                .map_err(|error| Failed::Error(Error::internal(error.to_string())))?;
            let request = WriteRequest {
                table: table.to_owned(),
                batches: vec![batch],
                level: Some(level),
                token,
                timeout: None,
            };
            return self.office.write(&self.env, write.node, request).await;
        }
        let (time_column, time) = match at_micros {
            Some(at_micros) => (", _ts", format!(", to_timestamp_micros({at_micros})")),
            None => ("", String::new()),
        };
        let values: Vec<String> =
            write.rows.iter().map(|(first, second)| format!("({first}, {second}{time})")).collect();
        let [first, second] = columns;
        let text = format!("INSERT INTO {table} ({first}, {second}{time_column}) VALUES {}", values.join(", "));
        let request = SqlRequest { write_level: Some(level), token, ..SqlRequest::new(text) };
        let (_, done) = self.office.sql(&self.env, write.node, request).await?;
        match done {
            Some(CommandDone { level: Some(level), version: Some(version), rows, .. }) => {
                Ok(WriteReport { rows: rows.unwrap_or(0), level, version, duplicate: false })
            }
            other => Err(Failed::Error(
                Error::internal(format!("an INSERT ended with {other:?}")).with_applied(Applied::Unknown),
            )),
        }
    }

    async fn table(&mut self, node: u16) {
        self.tables += 1;
        let name = format!("tmp_{}_{}", self.number, self.tables);
        let statements = [
            (true, format!("CREATE TABLE {name} (a BIGINT PRIMARY KEY, b BIGINT)")),
            (false, format!("DROP TABLE {name}")),
        ];
        let dropping = self.stream.chance(500);
        for (created, statement) in statements.into_iter().take(if dropping { 2 } else { 1 }) {
            let change =
                TableChange { name: name.clone(), created, begun: self.office.shared.now_micros(), done: None };
            let place = {
                let mut facts = self.office.history.facts();
                facts.tables.push(change);
                facts.tables.len() - 1
            };
            let outcome = self.office.sql(&self.env, node, SqlRequest::new(statement)).await;
            let done = match &outcome {
                Ok(_) => Some(true),
                Err(failed) if failed.outcome() == Outcome::NotApplied => Some(false),
                Err(_) => None,
            };
            let word = outcome.as_ref().map_or_else(Failed::word, |_| "done".to_owned());
            self.office.trace(format_args!("client {} table {name} created {created} at {node}: {word}", self.number));
            self.office.history.count(if done == Some(true) { "table changes" } else { "table changes failed" });
            self.office.history.facts().tables[place].done = done;
            if done != Some(true) {
                return;
            }
        }
    }
}

fn batch(
    columns: [&str; 2],
    rows: &[(i64, i64)],
    at_micros: Option<i64>,
) -> Result<RecordBatch, arrow::error::ArrowError> {
    // Only a key or a required column is not null; the fields say what the values are.
    let mut fields = columns.map(|name| Field::new(name, DataType::Int64, false)).to_vec();
    let column =
        |pick: fn(&(i64, i64)) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(rows.iter().map(pick))) };
    let mut values = vec![column(|row| row.0), column(|row| row.1)];
    if let Some(at_micros) = at_micros {
        let times = TimestampMicrosecondArray::from_value(at_micros, rows.len());
        fields.push(Field::new(TS_COLUMN, times.data_type().clone(), false));
        values.push(Arc::new(times));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), values)
}

/// Asks, and writes the answer down. True if there was one.
pub(super) async fn ask(office: &Office, env: &Env, node: u16, question: Question, at_rest: bool) -> bool {
    let text = match question {
        Question::Point { key } => format!("SELECT k, v FROM kv WHERE k = {key}"),
        Question::Range { low, high } => {
            format!("SELECT k, v FROM kv WHERE k >= {low} AND k <= {high} ORDER BY k")
        }
        Question::Aggregate => "SELECT count(*), sum(v), min(v), max(v) FROM kv".to_owned(),
        Question::Groups => format!("SELECT k % {GROUPS} AS g, count(*) FROM kv GROUP BY k % {GROUPS} ORDER BY g"),
        Question::Join => {
            format!("SELECT kv.k, kv.v, dim.name FROM kv JOIN dim ON kv.k % {NAMES} = dim.d ORDER BY kv.k")
        }
        Question::Events => "SELECT id, amount FROM ev ORDER BY id".to_owned(),
        Question::EventCount => "SELECT count(*), count(DISTINCT id) FROM ev".to_owned(),
    };
    let begun = office.shared.now_micros();
    let outcome = office.sql(env, node, SqlRequest::new(text)).await;
    let ended = office.shared.now_micros();
    match outcome {
        Ok((rows, _)) => {
            office.trace(format_args!("{} at {node}: {} rows", question.word(), rows.len()));
            office.history.count(question.word());
            office.history.facts().reads.push(Read { question, node, begun, ended, rows, at_rest });
            true
        }
        Err(failed) => {
            office.trace(format_args!("{} at {node}: {}", question.word(), failed.word()));
            office.history.count("questions without an answer");
            false
        }
    }
}

/// Writes one row of the upsert table at a level, as a client that does nothing else. True if it was acknowledged.
pub(super) async fn probe(office: &Office, env: &Env, node: u16, target: Target, number: i64) -> bool {
    let mut client = Client::new(office.clone(), env.clone(), u64::MAX >> 24);
    let value = 1_000_000_000 + number;
    client.next_value = value;
    let row = match target {
        Target::Upserts => (number % KEYS, value),
        Target::Events => (value, 0),
    };
    client.send(node, target, vec![row], WriteLevel::Quorum, true).await;
    let facts = office.history.facts();
    let sent = facts.writes.iter().rev().find(|write| write.rows == [row]);
    sent.is_some_and(|write| matches!(write.outcome, Outcome::Acknowledged { .. }))
}
