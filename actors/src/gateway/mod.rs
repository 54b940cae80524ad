//! The gateway: takes rows at any node and sees to it that enough replicas have them.
//!
//! Everything is checked before the first row is sent. Then every piece (rows of one partition) gets one version, goes to
//! **all** replicas in parallel, and is acknowledged once as many *counting* replicas as the level asks for have it on disk,
//! within one epoch. What the answer says about effects is exact: `applied: false` only if no replica can have taken a row.

mod deliver;
mod reserve;
mod route;
mod windows;

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use shoal_catalog::Table;
use shoal_kernel::limits::TOKEN_BYTES_MAX;
use shoal_kernel::{Applied, Error, ErrorCode, Hlc, Planted, Result, Version, WriteLevel};
use shoal_storage::{fingerprint_of, with_rows_before};

use self::deliver::{Delivery, Outcome, Parcel};
use self::reserve::Reservation;
use self::route::Stamp;
use crate::node::clock::STAMPS_PER_TICK;
use crate::node::context::NodeContext;
use crate::room::Room;
use crate::service::{WriteReport, WriteRequest};

/// Bytes of a client's idempotency key: what the pieces add to it must find room.
const CLIENT_TOKEN_BYTES_MAX: usize = TOKEN_BYTES_MAX - 16;
/// How long a write may wait for replicas that are missing, whatever the request's own deadline.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// Pieces of one request under way at once.
const PIECES_AT_ONCE: usize = 8;

/// How far [`Planted::DeleteBelowVersion`] is behind.
const BELOW_MICROS: u64 = 3_000_000;

/// What becomes of the rows of a request.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change {
    /// They are keys, whose rows are deleted.
    pub(crate) deletes: bool,
    /// They come from rows of the table that were not newer than this; each must beat the one that it comes from.
    pub(crate) read: Hlc,
}

/// The gateway of a node.
#[derive(Clone)]
pub(crate) struct Gateway {
    context: Arc<NodeContext>,
    /// For rows under way to replicas.
    room: Room,
    /// Tokens being written from here: a resend waits for nothing, it is told to come back.
    tokens: Arc<Mutex<BTreeSet<String>>>,
    /// A window is being made ahead.
    making_ahead: Arc<AtomicBool>,
    /// Held by the request that has windows made.
    making: Arc<tokio::sync::Mutex<()>>,
}

impl Gateway {
    pub(crate) fn new(context: Arc<NodeContext>) -> Self {
        let room = Room::new(context.config.inflight_bytes_max);
        Self { context, room, tokens: Arc::default(), making_ahead: Arc::default(), making: Arc::default() }
    }

    /// Writes rows; see the module.
    pub(crate) async fn write(&self, table: Arc<Table>, request: WriteRequest) -> Result<WriteReport> {
        self.change(table, request, Change::default()).await
    }

    /// Writes or deletes rows that were chosen by reading the table; see the module.
    pub(crate) async fn change(&self, table: Arc<Table>, request: WriteRequest, change: Change) -> Result<WriteReport> {
        let level = request.level.unwrap_or(table.options.write_level);
        let deadline = request.timeout.unwrap_or(Duration::from_millis(self.context.config.request_timeout_ms));
        let held = request.token.as_deref().map(|token| self.hold(&table, token)).transpose()?.map(Arc::new);
        let deadline = deadline.min(WRITE_DEADLINE);
        let began = self.context.env.monotonic();
        let own = Version::new(self.context.clock.tick_above(change.read, deadline).await?, self.context.node, 0);
        let own = match self.context.config.has(Planted::DeleteBelowVersion) && change.deletes {
            true => Version::new(Hlc::from_micros(own.time().micros().saturating_sub(BELOW_MICROS)), own.node(), 0),
            false => own,
        };
        let until = began + deadline;
        let rows: u64 = request.batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let deletes = change.deletes;
        let times_missing = rows > 0 && route::needs_time(&table, &request.batches);
        let reserved = match request.token.as_ref().filter(|_| times_missing) {
            // Their time is part of what identifies the rows: a resend must find the same.
            Some(token) if !self.context.config.has(Planted::NewTimeOnRetry) => {
                Some((token, route::check(&table, &request.batches)?))
            }
            _ => None,
        };
        // An earlier request with this key may have had an effect; this one has had none.
        let in_doubt = |error: Error| error.with_applied(Applied::Unknown);
        let table = match reserved.is_some() && table.partitions.is_empty() {
            true => Arc::new(self.with_some_partition(&table, own, until).await.map_err(in_doubt)?),
            false => table,
        };
        let (context, agreed) = (self.context.clone(), true);
        let mut delivery = Delivery { context, table: table.clone(), level, deletes, until, held, agreed };
        let Reservation { version: mut base, fresh } = match reserved {
            Some((token, fingerprint)) => {
                let home = delivery.home(token).map_err(in_doubt)?;
                delivery.reserve(&home, token, own, fingerprint).await.map_err(in_doubt)?
            }
            None => Reservation { version: own, fresh: false },
        };
        let stamp = Stamp {
            micros: i64::try_from(base.time().micros()).unwrap_or(i64::MAX),
            dedup: request.token.clone().unwrap_or_else(|| format!("{}-{:016x}", base.node(), base.time().0)),
        };
        let mut batches = Vec::with_capacity(request.batches.len());
        for (first_row, batch) in with_rows_before(&request.batches) {
            let batch = match deletes {
                true => route::keys(&table, batch)?,
                false => route::shape(&table, batch, &stamp, first_row)?,
            };
            // Replicas know whether this is a resend, which may come later than its rows can be kept.
            if !deletes && request.token.is_none() {
                route::check_kept(&table, table.cutoff, &batch, first_row)?;
            }
            batches.push(batch);
        }
        if rows == 0 {
            return Ok(WriteReport { rows, level, version: base, duplicate: false });
        }
        let mut pieces = self.pieces(&table, &batches, deletes, until).await.map_err(|error| match request.token {
            Some(_) => error.with_applied(Applied::Unknown),
            None => error,
        })?;
        if let (true, Some(first)) = (self.context.config.has(Planted::WrongPartition), table.partitions.first()) {
            pieces.iter_mut().flat_map(|piece| &mut piece.parts).for_each(|part| part.partition = *first);
        }
        if pieces.len() as u64 > STAMPS_PER_TICK {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("the rows make {} pieces, one request may have {STAMPS_PER_TICK}", pieces.len()),
            )
            .with_help("send the rows in several requests"));
        }

        let per_attempt = self.context.config.has(Planted::VersionPerAttempt);
        if let (true, Some(token), Some(first)) =
            (table.schema.is_upsert() && !per_attempt, &request.token, pieces.first())
        {
            delivery.agreed = delivery.must_agree(&pieces).map_err(in_doubt)?;
            if delivery.agreed {
                let fingerprint = route::fingerprint(&table, &batches)?;
                let home = delivery.home_of(first).map_err(in_doubt)?;
                let reserved = delivery.reserve(&home, token, own, fingerprint).await;
                base = reserved.map_err(in_doubt)?.version;
            }
        }
        let version = |number: u64| Version::new(Hlc(base.time().0 + number), base.node(), 0);
        let mut parcels = Vec::with_capacity(pieces.len());
        for (number, piece) in (0..).zip(pieces) {
            let token = request.token.as_ref().map(|token| piece_token(token, piece.number));
            // Nobody asks for it while the key is new, and all of the piece goes to one partition.
            let is_asked_for = token.is_some() && (!fresh || piece.parts.iter().any(|part| part.ordinals.is_some()));
            let fingerprint = match is_asked_for {
                true => Some(fingerprint_of(&table.schema, &piece.rows)?),
                false => None,
            };
            let parcel = |part| Parcel { part, token: token.clone(), version: version(number), fingerprint };
            parcels.extend(piece.parts.into_iter().map(parcel));
        }
        let known = match &request.token {
            Some(_) if !fresh => delivery.known(&parcels).await.map_err(in_doubt)?,
            _ => vec![None; parcels.len()],
        };
        let parts = parcels.len();
        let mut waiting: VecDeque<_> = parcels.into_iter().zip(known).collect();
        let mut under_way = FuturesUnordered::new();
        let mut at_once = PIECES_AT_ONCE;
        let (mut outcomes, mut failures) = (Vec::new(), Vec::<Error>::new());
        loop {
            while under_way.len() < at_once && failures.is_empty() {
                let Some((parcel, known)) = waiting.pop_front() else { break };
                let again = parcel.clone();
                let parcel = Parcel { version: known.unwrap_or(parcel.version), ..parcel };
                let sent = delivery.clone().run(parcel, self.room.clone());
                under_way.push(async move { (sent.await, again, known) });
            }
            match under_way.next().await {
                Some((Ok(outcome), _, known)) => {
                    outcomes.push(Outcome { duplicate: outcome.duplicate || known.is_some(), ..outcome });
                }
                // The other parts of this request have taken the room, and will leave it.
                Some((Err(error), again, known)) if is_crowded(&error) && !under_way.is_empty() => {
                    at_once = under_way.len();
                    waiting.push_front((again, known));
                }
                Some((Err(error), ..)) => failures.push(error),
                None => break,
            }
        }
        let doubted = failures.iter().filter(|error| error.applied() != Applied::False).count();
        let untouched = outcomes.is_empty() && doubted == 0;
        let first = failures.into_iter().next();
        match first.map(|error| with_parts(error, parts, outcomes.len(), doubted)) {
            None => Ok(WriteReport {
                rows,
                level,
                version: outcomes.iter().map(|outcome| outcome.version).max().unwrap_or_default(),
                duplicate: outcomes.iter().all(|outcome| outcome.duplicate),
            }),
            // Other partitions may have taken their rows.
            Some(error) if untouched => Err(error),
            Some(error) if self.context.config.has(Planted::NotAppliedLies) => Err(error),
            Some(error) => Err(error.with_applied(Applied::Unknown)),
        }
    }

    /// Two writes of one token at once would only be in each other's way.
    fn hold(&self, table: &Table, token: &str) -> Result<HeldToken> {
        if token.is_empty() || token.len() > CLIENT_TOKEN_BYTES_MAX {
            return Err(Error::new(
                ErrorCode::InvalidRequest,
                format!("an idempotency key has 1 to {CLIENT_TOKEN_BYTES_MAX} bytes, this one has {}", token.len()),
            ));
        }
        let token = format!("{}\u{1f}{token}", table.id);
        if !self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone()) {
            return Err(Error::new(ErrorCode::Overloaded, "a request with this idempotency key is under way")
                .with_retry_after_ms(200));
        }
        Ok(HeldToken { token, tokens: self.tokens.clone() })
    }

    /// Bytes of rows under way.
    pub(crate) fn inflight_bytes(&self) -> u64 {
        self.room.taken_bytes()
    }
}

/// Whether there was no room to send it.
fn is_crowded(error: &Error) -> bool {
    error.code() == ErrorCode::Overloaded && error.applied() == Applied::False
}

/// The error of a request, with what became of its parts, if it has several.
fn with_parts(error: Error, parts: usize, written: usize, doubted: usize) -> Error {
    if parts == 1 {
        return error;
    }
    let left = parts.saturating_sub(written + doubted);
    error.context(format_args!("of {parts} parts of the rows {written} are written, {doubted} may be, {left} are not"))
}

fn dropped(table: &Table) -> Error {
    Error::new(ErrorCode::UnknownTable, format!("table '{}' has been dropped", table.name))
}

/// No partition of the table holds the rows.
fn expired() -> Error {
    Error::new(ErrorCode::RowsExpired, "the rows have had their time: their window has been dropped")
}

/// The pieces of one partition have tokens of their own, derived from the client's.
fn piece_token(token: &str, number: usize) -> String {
    format!("{token}\u{1f}{number}")
}

struct HeldToken {
    token: String,
    tokens: Arc<Mutex<BTreeSet<String>>>,
}

impl Drop for HeldToken {
    fn drop(&mut self) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.token);
    }
}

/// Writes at a level that says how many replicas must have it.
pub(crate) fn not_enough(
    code: ErrorCode,
    acknowledged: usize,
    needed: usize,
    replicas: usize,
    level: WriteLevel,
    why: Option<&Error>,
) -> Error {
    let why = why.map(|error| format!("; last answer: {error}")).unwrap_or_default();
    Error::new(
        code,
        format!("{acknowledged} of {replicas} replicas have the rows on disk, level {level} needs {needed}{why}"),
    )
    .with_help("send the same request again with the same idempotency key; or ask for a lower level")
}
