//! One client: draws operations from its own stream, sends them to nodes, writes down what came back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema};
use shoal_actors::service::{CommandDone, Moment, NodeChange, QueryEvent, SqlRequest, WriteReport, WriteRequest};
use shoal_kernel::schema::TS_COLUMN;
use shoal_kernel::{Applied, Env, Error, ErrorCode, NodeId, QueryId, Rare, ReadLevel, WriteLevel};

use super::answer;
use super::desk::{Desk, Running};
use super::history::{
    Backup, Cell, History, Note, NotesChange, NotesDropped, Outcome, Question, Read, TableChange, Target, Write,
};
use super::ledger::Ledger;
use super::limits::Limits;
use super::objects::PLACE;
use super::operation::{self, Altering, Frame, KEYS, Manner, Operation, OperationId, Token, Upkeep, Work};
use super::states::States;
use crate::entropy::EPOCH_MICROS;
use crate::network::{NoAnswer, Reply, request};
use crate::random::Stream;
use crate::trace::Kind;
use crate::world::{HostId, Shared};

/// Names in the table that is joined.
pub(super) const NAMES: i64 = 6;
/// Groups of the GROUP BY.
pub(super) const GROUPS: i64 = 4;

/// The number of the client that only probes, and of the one that reads at the end.
pub(super) const PROBES: u64 = 1 << 31;
pub(super) const READER: u64 = PROBES + 1;
/// What a node is given, and what the client waits.
pub(super) const NODE_TIMEOUT: Duration = Duration::from_secs(5);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(8);
const ATTEMPTS_MAX: u32 = 4;
/// How long an eager client waits for a node to come up, and between two attempts.
const EAGER_MICROS: u64 = 2_000_000;
const EAGER_PAUSE: Duration = Duration::from_millis(20);
/// Keys of one window of the tables that get a new one with every row.
const WINDOW: u64 = 10;
/// Numbers of operations that a client has: their streams of random numbers are placed by client and number.
const OPERATIONS_PER_CLIENT_MAX: u64 = 1 << 32;

/// What every client works with.
#[derive(Clone)]
pub(super) struct Office {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Arc<Desk>,
    pub(super) history: Arc<History>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) host: HostId,
    pub(super) nodes: u16,
    pub(super) limits: Limits,
    /// Events bring their own time.
    pub(super) event_times: bool,
    /// How long events are kept, in microseconds.
    pub(super) events_ttl: Option<u64>,
    /// The setting of every table that says how many replicas it gets, if it is not the default.
    pub(super) copies: Option<String>,
    /// What clients do, and how long they wait for it.
    pub(super) frame: Frame,
    pub(super) patience: Duration,
    /// Sorts are to need more memory than nodes have.
    pub(super) wide_sorts: bool,
    /// The operations that are carried out, if not all.
    pub(super) only: Option<Arc<BTreeSet<OperationId>>>,
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

    /// Nobody is there yet who takes questions.
    fn is_not_up(&self) -> bool {
        match self {
            Self::Refused => true,
            Self::Error(error) => error.code() == ErrorCode::NotReady,
            Self::Silence => false,
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
fn told(code: ErrorCode) -> Option<Rare> {
    Some(match code {
        ErrorCode::NotEnoughReplicas => Rare::TooFewReplicas,
        ErrorCode::PartitionUnavailable => Rare::PartitionUnavailable,
        ErrorCode::NodeLost => Rare::LostAfterRows,
        ErrorCode::Moved => Rare::Moved,
        ErrorCode::NoCatalogQuorum => Rare::NoCatalogQuorum,
        ErrorCode::NotReady => Rare::NotReady,
        ErrorCode::Timeout => Rare::DeadlinePassed,
        ErrorCode::ClockSkew => Rare::ClockTooFarAhead,
        ErrorCode::Overloaded => Rare::Overloaded,
        ErrorCode::DiskFull => Rare::DiskFull,
        ErrorCode::RowsExpired => Rare::ExpiredRefused,
        ErrorCode::Cancelled => Rare::Cancelled,
        _ => return None,
    })
}

/// A whole answer.
pub(super) struct Answered {
    pub(super) rows: Vec<Vec<Cell>>,
    /// What a statement without rows did.
    pub(super) done: Option<CommandDone>,
    /// The replicas that were read.
    pub(super) seen: Option<Vec<Moment>>,
}

impl Office {
    /// Calls a node over the simulated network.
    async fn call<T: Send + 'static>(
        &self,
        env: &Env,
        node: u16,
        label: String,
        job: impl FnOnce(Running, Reply<Result<T, Error>>) + Send + 'static,
    ) -> Result<T, Failed> {
        let (desk, history, limits) = (self.desk.clone(), self.history.clone(), self.limits);
        let answer = request(&self.shared, self.host, HostId(node), label, move |reply| {
            // A node that is still starting takes nothing; dropping the reply says that it broke off.
            if let Some(running) = desk.node(node) {
                let beyond = limits.broken_by(&running.node);
                history.facts().overfull.extend(beyond.map(|what| format!("{} has {what}", HostId(node))));
                job(running, reply);
            } else {
                reply.send(Err(Error::new(ErrorCode::NotReady, "the node has not started yet")));
            }
        });
        match env.timeout(CLIENT_TIMEOUT, answer).await {
            Ok(Ok(result)) => result.map_err(|error| {
                if error.code() == ErrorCode::Internal {
                    self.history.facts().internal.push(format!("{error}, through {}", HostId(node)));
                }
                if let Some(rare) = told(error.code()) {
                    self.shared.sometimes(rare);
                }
                Failed::Error(error)
            }),
            Ok(Err(NoAnswer::Refused)) => Err(Failed::Refused),
            Ok(Err(NoAnswer::Broken)) | Err(_) => Err(Failed::Silence),
        }
    }

    /// What every statement that makes a table ends with.
    pub(super) fn copies(&self) -> String {
        self.copies.as_ref().map_or_else(String::new, |copies| format!(" WITH ({copies})"))
    }

    /// Runs a statement and reads its whole answer.
    pub(super) async fn sql(&self, env: &Env, node: u16, mut statement: SqlRequest) -> Result<Answered, Failed> {
        statement.timeout = Some(NODE_TIMEOUT);
        self.sql_in(env, node, "an observer".to_owned(), statement, Manner::Whole).await
    }

    /// Runs a statement and reads its answer in a manner.
    async fn sql_in(
        &self,
        env: &Env,
        node: u16,
        label: String,
        mut statement: SqlRequest,
        manner: Manner,
    ) -> Result<Answered, Failed> {
        statement.timeout.get_or_insert(self.patience);
        let shared = self.shared.clone();
        let answered = self.call(env, node, label, move |running, reply| {
            let Running { node, env } = running;
            let tasks = env.clone();
            tasks.spawn("client statement", async move {
                reply.send(run(&node, &env, statement, manner, &shared).await);
            });
        });
        answered.await?.ok_or(Failed::Silence)
    }

    /// Has a node changed, through one of them.
    pub(super) async fn change_node(
        &self,
        env: &Env,
        through: u16,
        id: NodeId,
        change: NodeChange,
        timeout: Duration,
    ) -> Result<(), Failed> {
        let label = format!("an operator: {change:?} {id}");
        self.call(env, through, label, move |running, reply| {
            let Running { node, env } = running;
            env.spawn("operator", async move {
                reply.send(node.change_node(id, change, timeout).await);
            });
        })
        .await
    }

    /// Has replicas moved for balance, or no longer, through one of the nodes.
    pub(super) async fn pause_balance(
        &self,
        env: &Env,
        through: u16,
        paused: bool,
        timeout: Duration,
    ) -> Result<(), Failed> {
        let label = format!("an operator: balance is paused: {paused}");
        self.call(env, through, label, move |running, reply| {
            let Running { node, env } = running;
            env.spawn("operator", async move {
                reply.send(node.pause_balance(paused, timeout).await);
            });
        })
        .await
    }

    /// Has a node stop in good order, and its process start again some time later.
    pub(super) async fn stop(&self, env: &Env, node: u16, down: Duration) {
        let shared = self.shared.clone();
        let told =
            self.call(env, node, "an operator: stop".to_owned(), move |running, reply: Reply<Result<(), Error>>| {
                let Running { node: stopping, env } = running;
                env.spawn("operator", async move {
                    stopping.shutdown().await;
                    shared.sometimes(Rare::NodeStopped);
                    shared.end_process(HostId(node), down);
                    drop(reply);
                });
            });
        // The connection breaks when the process ends, if not before.
        let _ = told.await;
    }

    /// Has a node lose one in so many rows behind the backs of its logs; says how many it has lost.
    pub(super) async fn lose_rows(&self, env: &Env, node: u16, one_in: u64) -> Result<u64, Failed> {
        self.call(env, node, format!("an accident: one in {one_in} rows is lost"), move |running, reply| {
            let Running { node, env } = running;
            env.spawn("loss of rows", async move {
                reply.send(node.lose_rows(one_in).await);
            });
        })
        .await
    }

    /// Writes rows through a node's own door for rows.
    async fn write(&self, env: &Env, node: u16, label: String, mut rows: WriteRequest) -> Result<WriteReport, Failed> {
        rows.timeout = Some(self.patience);
        self.call(env, node, label, move |running, reply| {
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
        let viewed = self.call(env, node, "an observer".to_owned(), move |running, reply| {
            let Running { node: handle, env } = running;
            env.spawn("client view", async move {
                let status = handle.cluster_by_content().await;
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

    fn trace(&self, id: OperationId, what: std::fmt::Arguments<'_>) {
        self.shared.trace(Kind::Client, format_args!("c{} operation {id} {what}", id.client));
    }
}

/// The answer, unless the client goes away before it is there.
async fn run(
    node: &shoal_actors::Node,
    env: &Env,
    mut statement: SqlRequest,
    manner: Manner,
    shared: &Shared,
) -> Result<Option<Answered>, Error> {
    if let Manner::Cancelling(after_ms) = manner {
        let query = QueryId::new(node.id(), env.random("client query"));
        statement.query_id = Some(query);
        let (node, sleeper) = (node.clone(), env.clone());
        env.spawn("client cancels", async move {
            sleeper.sleep(Duration::from_millis(after_ms)).await;
            // It may have ended before.
            let _ = node.cancel(query).await;
        });
    }
    let mut stream = node.sql(statement).await?;
    if let Manner::Leaving(after_ms) = manner {
        env.sleep(Duration::from_millis(after_ms)).await;
        shared.sometimes(Rare::ClientGone);
        return Ok(None);
    }
    if manner == Manner::Stalled {
        env.sleep(NODE_TIMEOUT + Duration::from_millis(500)).await;
        shared.sometimes(Rare::ClientStalled);
    }
    let (mut batches, mut done) = (Vec::new(), None);
    while let Some(event) = stream.next().await {
        match event {
            QueryEvent::Batch(batch) => batches.push(batch),
            QueryEvent::Done(command) => done = Some(command),
            QueryEvent::Schema(_) | QueryEvent::Progress(_) => {}
            QueryEvent::Error(error) => return Err(error),
            QueryEvent::End(summary) => {
                if summary.restarts > 0 {
                    shared.sometimes(Rare::QueryRestarted);
                }
                return Ok(Some(Answered { rows: answer::rows(&batches), done, seen: summary.seen }));
            }
        }
        if let Manner::Slow(pause_ms) = manner {
            env.sleep(Duration::from_millis(pause_ms)).await;
        }
    }
    Err(Error::internal("the answer ended without an end").with_applied(Applied::Unknown))
}

/// Who asks, and for which operation.
fn label(id: OperationId) -> String {
    format!("c{} {id}", id.client)
}

/// A client's own work.
pub(super) struct Client {
    office: Office,
    env: Env,
    number: u64,
    /// How many times as fast as usual it works.
    haste: u64,
    /// The node that it sends everything to, if it does.
    through: Option<u16>,
    /// The key of its last acknowledged write into each table.
    former: Mutex<BTreeMap<Target, String>>,
}

/// Through which door a write goes, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Rows,
    Insert,
    Update,
    Delete,
}

/// A write as it is sent.
struct Sending {
    id: OperationId,
    target: Target,
    rows: Vec<(i64, i64)>,
    note: Note,
    level: WriteLevel,
    token: Token,
    door: Door,
    again_after_ms: Option<u64>,
}

impl Client {
    pub(super) fn new(office: Office, env: Env, number: u64, haste: u64, through: Option<u16>) -> Self {
        Self { office, env, number, haste, through, former: Mutex::default() }
    }

    /// Works from one moment to another, in microseconds of virtual time. An operation begins at its own time, or as soon as
    /// the one before it has ended.
    pub(super) async fn work(self, times: Range<u64>) {
        let (mut begins_micros, until_micros) = (times.start, times.end);
        for number in 0..OPERATIONS_PER_CLIENT_MAX {
            let operation = operation::draw(&self.office.frame, OperationId { client: self.number, number });
            begins_micros += operation.think_ms * 1_000 / self.haste;
            if begins_micros >= until_micros {
                return;
            }
            if self.office.only.as_ref().is_some_and(|only| !only.contains(&operation.id)) {
                continue;
            }
            let wait = begins_micros.saturating_sub(self.office.shared.now_micros());
            self.env.sleep(Duration::from_micros(wait)).await;
            if self.office.shared.now_micros() >= until_micros {
                return;
            }
            self.office.history.facts().operations.push(operation.id);
            self.carry_out(operation).await;
        }
    }

    async fn carry_out(&self, operation: Operation) {
        let Operation { id, node, work, later, .. } = operation;
        let node = self.through.unwrap_or(node);
        match work {
            Work::Write { target, rows, level, token, as_rows, updates, note, again_after_ms } => {
                let door = match (updates, as_rows) {
                    (true, _) => Door::Update,
                    (false, true) => Door::Rows,
                    (false, false) => Door::Insert,
                };
                self.send(node, Sending { id, target, rows, note, level, token, door, again_after_ms }, later).await;
            }
            Work::Delete { low, high, level } => {
                let rows = (low..=high).map(|key| (key, 0)).collect();
                let (target, door) = (Target::Deletes, Door::Delete);
                let (note, token, again_after_ms) = (Note::None, Token::None, None);
                let sending = Sending { id, target, rows, note, level, token, door, again_after_ms };
                self.send(node, sending, later).await;
            }
            Work::Upkeep(upkeep) => self.upkeep(id, node, upkeep).await,
            Work::Alter(altering) => self.alter(id, node, altering).await,
            Work::Split { target, at } => self.split(id, node, target, at).await,
            Work::Ask { question, manner, level } => {
                ask(&self.office, &self.env, node, Asked { id, question, manner, level, at_rest: false }).await;
            }
            Work::Table { dropping } => {
                self.table(id, node, dropping).await;
                self.new_window(id, node).await;
            }
        }
    }

    /// Sends a write, again and elsewhere while its outcome is unknown and it has a token.
    async fn send(&self, node: u16, sending: Sending, mut later: Stream) {
        let begun = self.office.shared.now_micros();
        let Sending { id, target, rows, note, level, token, door, again_after_ms } = sending;
        let to = HostId(node);
        self.office.trace(id, format_args!("begins: {door:?} of {rows:?}, {target:?} at {level} through {to}"));
        let former = if token == Token::Former { self.former().get(&target).cloned() } else { None };
        let is_mistaken = former.is_some();
        if let Some(token) = &former {
            self.office.trace(id, format_args!("takes '{token}' for its key"));
        }
        let token =
            (token != Token::None).then(|| former.unwrap_or_else(|| format!("client-{}-{}", id.client, id.number)));
        let mut write = Write {
            id,
            target,
            rows,
            note,
            begun,
            ended: u64::MAX,
            node,
            sent: begun,
            attempts: 0,
            sent_at_catalog: u64::MAX,
            done_at_catalog: u64::MAX,
            outcome: Outcome::Unknown,
            partial: false,
            at: self.event_time(id, target, begun),
        };
        // Written down before it is sent: a read that ends before the answer arrives may already see it.
        let place = {
            let mut facts = self.office.history.facts();
            facts.writes.push(write.clone());
            facts.writes.len() - 1
        };
        loop {
            write.sent = self.office.shared.now_micros();
            write.attempts += 1;
            let catalog_at = |node| self.office.desk.catalog_known(node);
            write.sent_at_catalog = write.sent_at_catalog.min(catalog_at(write.node));
            let first = write.attempts == 1;
            let attempt = self.send_once(&write, level, token.clone(), door);
            let outcome = match again_after_ms.filter(|_| first) {
                None => {
                    let answer = attempt.await;
                    write.partial = matches!(&answer, Ok(report) if report.rows < write.rows.len() as u64);
                    self.heard(&write, is_mistaken, answer)
                }
                Some(after_ms) => {
                    let twin = Write { node: operation::pick_node(&mut later, self.office.nodes), ..write.clone() };
                    let second = async {
                        self.env.sleep(Duration::from_millis(after_ms)).await;
                        let catalog = catalog_at(twin.node);
                        (self.send_once(&twin, level, token.clone(), door).await, catalog)
                    };
                    let (one, (other, catalog)) = tokio::join!(attempt, second);
                    write.attempts += 1;
                    write.sent_at_catalog = write.sent_at_catalog.min(catalog);
                    self.both(&write, &self.heard(&write, false, one), &self.heard(&twin, false, other))
                }
            };
            // Once an attempt may have been applied, a later refusal says nothing about it.
            write.outcome = match (write.outcome, outcome) {
                (Outcome::Unknown, Outcome::NotApplied) if write.attempts > 1 => Outcome::Unknown,
                (_, outcome) => outcome,
            };
            let give_up = token.is_none() || is_mistaken || write.attempts >= ATTEMPTS_MAX;
            if write.outcome != Outcome::Unknown || give_up {
                break;
            }
            self.env.sleep(Duration::from_millis(later.between(50, 1_000))).await;
            let drawn = operation::pick_node(&mut later, self.office.nodes);
            write.node = self.through.unwrap_or(drawn);
        }
        let word = match write.outcome {
            Outcome::Acknowledged { .. } if door == Door::Update => "updates acknowledged",
            Outcome::Acknowledged { .. } if door == Door::Delete => "deletes acknowledged",
            Outcome::Acknowledged { .. } => "writes acknowledged",
            Outcome::NotApplied => "writes not applied",
            Outcome::Unknown => "writes of unknown outcome",
        };
        self.office.history.count(word);
        if let (Some(token), false, Outcome::Acknowledged { .. }) = (token, is_mistaken, write.outcome) {
            self.former().insert(target, token);
        }
        let mut facts = self.office.history.facts();
        if write.outcome != Outcome::Unknown {
            write.ended = self.office.shared.now_micros();
            write.done_at_catalog = self.office.desk.newest_catalog();
        }
        facts.writes[place] = write;
    }

    /// The time that events bring, the same in every attempt: mostly that of the write. Where events are kept for a time, some
    /// are old, and some older than that.
    fn event_time(&self, id: OperationId, target: Target, begun: u64) -> Option<i64> {
        let now = i64::try_from(begun).ok().filter(|_| target == Target::Events && self.office.event_times)?;
        let age = match (self.office.events_ttl, id.number % 8) {
            (Some(ttl), 1) if id.client != PROBES => ttl / 2,
            (Some(ttl), 2) if id.client != PROBES => ttl * 2,
            _ => 0,
        };
        Some(now.saturating_sub(i64::try_from(age).unwrap_or(i64::MAX)))
    }

    fn former(&self) -> MutexGuard<'_, BTreeMap<Target, String>> {
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the answer to an attempt says of the write.
    fn heard(&self, write: &Write, is_mistaken: bool, answer: Result<WriteReport, Failed>) -> Outcome {
        let (outcome, word) = match answer {
            Ok(report) if report.rows == 0 => (Outcome::NotApplied, "no row was found".to_owned()),
            Ok(report) => {
                if report.duplicate {
                    self.office.shared.sometimes(Rare::ResendRecognised);
                }
                let outcome = Outcome::Acknowledged { level: report.level, version: report.version };
                (outcome, format!("{} rows acknowledged at {} as {}", report.rows, report.level, report.version))
            }
            Err(failed) => {
                if let Failed::Error(error) = &failed
                    && error.code() == ErrorCode::TokenConflict
                {
                    if is_mistaken {
                        self.office.shared.sometimes(Rare::MistakeNoticed);
                    } else if write.note != Note::Given {
                        // The key is of these rows. A note may be another column's by now.
                        let what = format!("operation {} through {}: {error}", write.id, HostId(write.node));
                        self.office.history.facts().internal.push(what);
                    }
                }
                (failed.outcome(), failed.word())
            }
        };
        self.office.trace(write.id, format_args!("is told by {}: {word}", HostId(write.node)));
        outcome
    }

    /// What two attempts at once came to. Of two versions the greater one counts, as for two attempts in turn.
    fn both(&self, write: &Write, one: &Outcome, other: &Outcome) -> Outcome {
        match (*one, *other) {
            (Outcome::Acknowledged { level, version }, Outcome::Acknowledged { level: too, version: also }) => {
                self.office.shared.sometimes(Rare::AttemptsAtOnce);
                // Events that bring their time are the same under any version.
                if version != also && write.at.is_none() {
                    let told = format!("operation {}: one attempt was told {version}, the other {also}", write.id);
                    self.office.history.facts().disagreed.push(told);
                }
                Outcome::Acknowledged { level: level.max(too), version: version.max(also) }
            }
            (acknowledged @ Outcome::Acknowledged { .. }, _) | (_, acknowledged @ Outcome::Acknowledged { .. }) => {
                acknowledged
            }
            (Outcome::NotApplied, Outcome::NotApplied) => Outcome::NotApplied,
            _ => Outcome::Unknown,
        }
    }

    async fn send_once(
        &self,
        write: &Write,
        level: WriteLevel,
        token: Option<String>,
        door: Door,
    ) -> Result<WriteReport, Failed> {
        let table = write.target.table();
        let columns = match write.target {
            Target::Upserts | Target::Deletes => ["k", "v"],
            Target::Events => ["id", "amount"],
        };
        let epoch = i64::try_from(EPOCH_MICROS).unwrap_or(i64::MAX);
        let at_micros = write.at.map(|at| epoch.saturating_add(at));
        if door == Door::Rows {
            let batch = batch(columns, &write.rows, write.note, at_micros)
                .map_err(|error| Failed::Error(Error::internal(error.to_string())))?;
            let request = WriteRequest {
                table: table.to_owned(),
                batches: vec![batch],
                level: Some(level),
                token,
                timeout: None,
            };
            return self.office.write(&self.env, write.node, label(write.id), request).await;
        }
        let (time_column, time) = match at_micros {
            Some(at_micros) => (", _ts", format!(", to_timestamp_micros({at_micros})")),
            None => ("", String::new()),
        };
        let note_column = if write.note == Note::Given { ", note" } else { "" };
        let note = |value: i64| if write.note == Note::Given { format!(", {}", 2 * value) } else { String::new() };
        let row = |(first, second): &(i64, i64)| format!("({first}, {second}{}{time})", note(*second));
        let values: Vec<String> = write.rows.iter().map(row).collect();
        let [first, second] = columns;
        let ends = write.rows.first().zip(write.rows.last());
        let text = match (door, ends) {
            (Door::Update, Some(((key, value), _))) => format!("UPDATE {table} SET v = {value} WHERE k = {key}"),
            (Door::Delete, Some(((key, _), (last, _)))) if key == last => {
                format!("DELETE FROM {table} WHERE k = {key}")
            }
            (Door::Delete, Some(((low, _), (high, _)))) => {
                format!("DELETE FROM {table} WHERE k >= {low} AND k <= {high}")
            }
            _ => format!(
                "INSERT INTO {table} ({first}, {second}{note_column}{time_column}) VALUES {}",
                values.join(", ")
            ),
        };
        let request = SqlRequest { write_level: Some(level), token, ..SqlRequest::new(text) };
        let Answered { done, .. } =
            self.office.sql_in(&self.env, write.node, label(write.id), request, Manner::Whole).await?;
        match done {
            Some(CommandDone { level: Some(level), version: Some(version), rows, .. }) => {
                Ok(WriteReport { rows: rows.unwrap_or(0), level, version, duplicate: false })
            }
            other => Err(Failed::Error(
                Error::internal(format!("a write ended with {other:?}")).with_applied(Applied::Unknown),
            )),
        }
    }

    /// Has something done to every replica of the upsert table.
    async fn upkeep(&self, id: OperationId, node: u16, upkeep: Upkeep) {
        let (text, done, undone) = match upkeep {
            Upkeep::Flushes => ("FLUSH", "flushes and merges", "flushes and merges not whole"),
            Upkeep::Merges => ("OPTIMIZE TABLE kv", "flushes and merges", "flushes and merges not whole"),
            Upkeep::Repairs => ("REPAIR TABLE kv", "repairs", "repairs not whole"),
        };
        self.office.trace(id, format_args!("begins: {text} through {}", HostId(node)));
        let outcome = self.office.sql_in(&self.env, node, label(id), SqlRequest::new(text), Manner::Whole).await;
        let word = outcome.as_ref().map_or_else(Failed::word, |_| "done".to_owned());
        self.office.trace(id, format_args!("is told by {}: {word}", HostId(node)));
        self.office.history.count(if outcome.is_ok() { done } else { undone });
    }

    /// Has a partition split.
    async fn split(&self, id: OperationId, node: u16, target: Target, at: Option<i64>) {
        let table = if target == Target::Upserts { "kv" } else { "ev" };
        let at = at.map_or_else(String::new, |key| format!(" AT ({key})"));
        let text = format!("ALTER TABLE {table} SPLIT{at}");
        self.office.trace(id, format_args!("begins: {text} through {}", HostId(node)));
        let outcome = self.office.sql_in(&self.env, node, label(id), SqlRequest::new(text), Manner::Whole).await;
        let word = outcome.as_ref().map_or_else(Failed::word, |_| "done".to_owned());
        self.office.trace(id, format_args!("is told by {}: {word}", HostId(node)));
        self.office.history.count(if outcome.is_ok() { "splits" } else { "splits refused" });
    }

    /// Has the column of notes come, go, or get another type.
    async fn alter(&self, id: OperationId, node: u16, altering: Altering) {
        let change = match altering {
            Altering::Adds => "ADD COLUMN IF NOT EXISTS note BIGINT",
            Altering::Widens => "ALTER COLUMN note TYPE DOUBLE",
            Altering::Drops => "DROP COLUMN IF EXISTS note",
        };
        let begun = self.office.shared.now_micros();
        let from_catalog = self.office.ledger.catalog(States::newest);
        // Written down before it is sent: a read that ends before the answer arrives may already miss the notes.
        let place = (altering == Altering::Drops).then(|| {
            let mut facts = self.office.history.facts();
            facts.notes_dropped.push(NotesDropped { begun, ended: u64::MAX, done_at_catalog: u64::MAX });
            facts.notes_dropped.len() - 1
        });
        self.office.trace(id, format_args!("begins: ALTER TABLE kv {change} through {}", HostId(node)));
        let request = SqlRequest::new(format!("ALTER TABLE kv {change}"));
        let outcome = self.office.sql_in(&self.env, node, label(id), request, Manner::Whole).await;
        let word = outcome.as_ref().map_or_else(Failed::word, |_| "done".to_owned());
        self.office.trace(id, format_args!("is told by {}: {word}", HostId(node)));
        self.office.history.count(if outcome.is_ok() { "columns altered" } else { "columns not altered" });
        if outcome.is_ok() {
            let to_catalog = self.office.ledger.catalog(States::newest);
            let change = NotesChange { id, altering, from_catalog, to_catalog };
            self.office.history.facts().notes_changed.push(change);
        }
        let Some(place) = place else { return };
        let ended = match &outcome {
            Ok(_) => self.office.shared.now_micros(),
            // It is as if it had ended before it began.
            Err(failed) if failed.outcome() == Outcome::NotApplied => 0,
            Err(_) => return,
        };
        let done_at_catalog = self.office.desk.newest_catalog();
        self.office.history.facts().notes_dropped[place] = NotesDropped { begun, ended, done_at_catalog };
    }

    /// Asks another node about a table that has been created.
    async fn see(&self, id: OperationId, created_by: u16, name: &str) {
        let other = (created_by + 1) % self.office.nodes;
        let request = SqlRequest::new(format!("SELECT count(*) FROM {name}"));
        let answer = self.office.sql_in(&self.env, other, label(id), request, Manner::Whole).await;
        if let Err(Failed::Error(error)) = answer
            && error.code() == ErrorCode::UnknownTable
        {
            let (by, other) = (HostId(created_by), HostId(other));
            let unseen = format!("operation {id}: {name} had been created through {by}, and {other} says: {error}");
            self.office.history.facts().unseen.push(unseen);
        }
    }

    /// Asks another node, at quorum, about a table that has been dropped.
    async fn miss(&self, id: OperationId, dropped_by: u16, name: &str) {
        let other = (dropped_by + 1) % self.office.nodes;
        let read_level = Some(ReadLevel::Quorum);
        let request = SqlRequest { read_level, ..SqlRequest::new(format!("SELECT count(*) FROM {name}")) };
        let answer = self.office.sql_in(&self.env, other, label(id), request, Manner::Whole).await;
        if let Ok(Answered { rows, .. }) = answer {
            let (by, other) = (HostId(dropped_by), HostId(other));
            let seen = format!("operation {id}: {name} had been dropped through {by}, and {other} counts {rows:?}");
            self.office.history.facts().unseen.push(seen);
        }
    }

    /// Writes a row that needs a window of its own to a table which all may have known for long, and asks another node for it.
    async fn new_window(&self, id: OperationId, node: u16) {
        let name = format!("win_{}", id.client);
        let key = id.number * WINDOW;
        let other = (node + 1) % self.office.nodes;
        let copies = self.office.copies.as_ref().map_or_else(String::new, |copies| format!(", {copies}"));
        let create = format!(
            "CREATE TABLE IF NOT EXISTS {name} (a BIGINT PRIMARY KEY) WITH (partition_size_hint = {WINDOW}{copies})"
        );
        let write_level = Some(WriteLevel::Quorum);
        let insert = SqlRequest { write_level, ..SqlRequest::new(format!("INSERT INTO {name} VALUES ({key})")) };
        for request in [SqlRequest::new(create), insert] {
            self.office.trace(id, format_args!("begins: {} through {}", request.sql, HostId(node)));
            if self.office.sql_in(&self.env, node, label(id), request, Manner::Whole).await.is_err() {
                return;
            }
        }
        let count = format!("SELECT count(*) FROM {name} WHERE a = {key}");
        self.office.trace(id, format_args!("begins: {count} at quorum through {}", HostId(other)));
        let request = SqlRequest { read_level: Some(ReadLevel::Quorum), ..SqlRequest::new(count) };
        let answer = self.office.sql_in(&self.env, other, label(id), request, Manner::Whole).await;
        if let Ok(Answered { rows, .. }) = answer
            && rows != [[Cell::Int(1)]]
        {
            let (by, other) = (HostId(node), HostId(other));
            let missed =
                format!("operation {id}: row {key} of {name} was acknowledged by {by}, and {other} counts {rows:?}");
            self.office.history.facts().missed.push(missed);
        }
    }

    async fn table(&self, id: OperationId, node: u16, dropping: bool) {
        let name = format!("tmp_{}_{}", id.client, id.number);
        let copies = self.office.copies();
        let statements = [
            (true, format!("CREATE TABLE {name} (a BIGINT PRIMARY KEY, b BIGINT){copies}")),
            (false, format!("DROP TABLE {name}")),
        ];
        for (created, statement) in statements.into_iter().take(if dropping { 2 } else { 1 }) {
            let from_catalog = self.office.ledger.catalog(States::newest);
            let change = TableChange { name: name.clone(), created, from_catalog, to_catalog: u64::MAX, done: None };
            let place = {
                let mut facts = self.office.history.facts();
                facts.tables.push(change);
                facts.tables.len() - 1
            };
            self.office.trace(id, format_args!("begins: {statement} through {}", HostId(node)));
            let request = SqlRequest::new(statement);
            let outcome = self.office.sql_in(&self.env, node, label(id), request, Manner::Whole).await;
            let done = match &outcome {
                Ok(_) => Some(true),
                Err(failed) if failed.outcome() == Outcome::NotApplied => Some(false),
                Err(_) => None,
            };
            let word = outcome.as_ref().map_or_else(Failed::word, |_| "done".to_owned());
            self.office.trace(id, format_args!("is told by {}: {word}", HostId(node)));
            self.office.history.count(if done == Some(true) { "table changes" } else { "table changes failed" });
            {
                let to_catalog = self.office.ledger.catalog(States::newest);
                let change = &mut self.office.history.facts().tables[place];
                (change.to_catalog, change.done) = (to_catalog, done);
            }
            if done != Some(true) {
                return;
            }
            if created {
                self.see(id, node, &name).await;
            } else {
                self.miss(id, node, &name).await;
            }
        }
    }
}

fn batch(
    columns: [&str; 2],
    rows: &[(i64, i64)],
    note: Note,
    at_micros: Option<i64>,
) -> Result<RecordBatch, arrow::error::ArrowError> {
    // Only a key or a required column is not null; the fields say what the values are.
    let mut fields = columns.map(|name| Field::new(name, DataType::Int64, false)).to_vec();
    let column =
        |pick: fn(&(i64, i64)) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(rows.iter().map(pick))) };
    let mut values = vec![column(|row| row.0), column(|row| row.1)];
    if note == Note::Given {
        fields.push(Field::new("note", DataType::Int64, true));
        values.push(column(|row| 2 * row.1));
    }
    if let Some(at_micros) = at_micros {
        let times = TimestampMicrosecondArray::from_value(at_micros, rows.len());
        fields.push(Field::new(TS_COLUMN, times.data_type().clone(), false));
        values.push(Arc::new(times));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), values)
}

/// A question and how it is put.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) id: OperationId,
    pub(super) question: Question,
    pub(super) manner: Manner,
    pub(super) level: ReadLevel,
    pub(super) at_rest: bool,
}

/// Asks, and writes the answer down. True if there was one.
pub(super) async fn ask(office: &Office, env: &Env, node: u16, asked: Asked) -> bool {
    let Asked { id, question, manner, level, at_rest } = asked;
    let text = match question {
        Question::Point { key } => format!("SELECT k, v FROM kv WHERE k = {key}"),
        Question::Range { low, high } => {
            format!("SELECT k, v FROM kv WHERE k >= {low} AND k <= {high} ORDER BY k")
        }
        Question::Notes { low, high } => {
            format!("SELECT k, v, note FROM kv WHERE k >= {low} AND k <= {high} ORDER BY k")
        }
        Question::Aggregate => "SELECT count(*), sum(v), min(v), max(v) FROM kv".to_owned(),
        Question::Groups => format!("SELECT k % {GROUPS} AS g, count(*) FROM kv GROUP BY k % {GROUPS} ORDER BY g"),
        Question::Join => {
            format!("SELECT kv.k, kv.v, dim.name FROM kv JOIN dim ON kv.k % {NAMES} = dim.d ORDER BY kv.k")
        }
        Question::Events if office.wide_sorts => {
            "SELECT id, amount FROM (SELECT id, amount, lpad(CAST(id AS VARCHAR), 500, '0') AS wide FROM ev) ORDER BY wide"
                .to_owned()
        }
        Question::Events => "SELECT id, amount FROM ev ORDER BY id".to_owned(),
        Question::EventCount => "SELECT count(*), count(DISTINCT id) FROM ev".to_owned(),
    };
    let eager_until = office.shared.now_micros() + EAGER_MICROS;
    let (begun, at_catalog, outcome) = loop {
        let (begun, at_catalog) = (office.shared.now_micros(), office.desk.catalog_known(node));
        office.trace(id, format_args!("begins: {text} at {level} through {}, {manner:?}", HostId(node)));
        let request = SqlRequest { read_level: Some(level), ..SqlRequest::new(text.as_str()) };
        let outcome = office.sql_in(env, node, label(id), request, manner).await;
        let is_up = outcome.as_ref().err().is_none_or(|failed| !failed.is_not_up());
        if manner != Manner::Eager || is_up || office.shared.now_micros() >= eager_until {
            break (begun, at_catalog, outcome);
        }
        env.sleep(EAGER_PAUSE).await;
    };
    let ended = office.shared.now_micros();
    match outcome {
        Ok(Answered { rows, seen, .. }) => {
            office.trace(id, format_args!("is told by {}: {} rows", HostId(node), rows.len()));
            office.history.count(question.word());
            if level == ReadLevel::Quorum {
                office.history.count("answers at quorum");
            }
            office.history.facts().reads.push(Read {
                id,
                question,
                level,
                node,
                begun,
                ended,
                at_catalog,
                rows,
                seen,
                at_rest,
            });
            true
        }
        Err(failed) => {
            office.trace(id, format_args!("is told by {}: {}", HostId(node), failed.word()));
            let word = match manner {
                Manner::Whole | Manner::Eager => "questions without an answer",
                _ => "questions given up",
            };
            office.history.count(word);
            false
        }
    }
}

/// Makes a table of a backup, reads it and drops it. Nothing if any of that failed.
pub(super) async fn restored(
    office: &Office,
    env: &Env,
    node: u16,
    backup: &Backup,
    table: &str,
) -> Option<Vec<(i64, i64)>> {
    let columns = match backup.target {
        Target::Upserts | Target::Deletes => "k, v",
        Target::Events => "id, amount",
    };
    let (source, name) = (backup.target.table(), &backup.name);
    let statements = [
        format!("RESTORE TABLE {source} FROM '{PLACE}' AS {table} WITH (backup = '{name}')"),
        format!("SELECT {columns} FROM {table}"),
        format!("DROP TABLE {table}"),
    ];
    let mut answers = Vec::new();
    for statement in statements {
        let statement = SqlRequest { read_level: Some(ReadLevel::Quorum), ..SqlRequest::new(statement) };
        answers.push(office.sql(env, node, statement).await.ok()?);
    }
    let row = |row: &Vec<Cell>| match row.as_slice() {
        [Cell::Int(first), Cell::Int(second)] => Some((*first, *second)),
        _ => None,
    };
    answers[1].rows.iter().map(row).collect()
}

/// Writes one row of the upsert table at a level, as a client that does nothing else. True if it was acknowledged.
pub(super) async fn probe(office: &Office, env: &Env, node: u16, target: Target, number: i64) -> bool {
    let id = OperationId { client: PROBES, number: number.unsigned_abs() };
    let client = Client::new(office.clone(), env.clone(), id.client, 1, Some(node));
    let value = 1_000_000_000 + number;
    let (row, door) = match target {
        Target::Upserts if number % 2 == 0 => ((number % KEYS, value), Door::Rows),
        Target::Upserts => ((number % KEYS, value), Door::Insert),
        Target::Events if number % 2 == 0 => ((value, 0), Door::Rows),
        Target::Events => ((value, 0), Door::Insert),
        Target::Deletes => ((number % KEYS, 0), Door::Delete),
    };
    let sending = Sending {
        id,
        target,
        rows: vec![row],
        note: Note::None,
        level: WriteLevel::Quorum,
        token: if door == Door::Delete { Token::None } else { Token::Own },
        door,
        again_after_ms: None,
    };
    client.send(node, sending, Stream::new(office.seed, "probe", id.number)).await;
    let facts = office.history.facts();
    let sent = facts.writes.iter().rev().find(|write| write.id == id);
    sent.is_some_and(|write| match write.outcome {
        Outcome::Acknowledged { .. } => true,
        // There may be no row to delete.
        Outcome::NotApplied => target == Target::Deletes && write.partial,
        Outcome::Unknown => false,
    })
}
