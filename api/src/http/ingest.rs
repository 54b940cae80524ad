//! `/api/v1/tables/{table}/ingest`: rows in. Nothing is written before the whole body has been read and checked.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use actix_web::web::{Bytes, Data, Json, Path, Payload};
use actix_web::{HttpRequest, error::PayloadError};
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use serde::Serialize;
use shoal_actors::service::WriteRequest;
use shoal_kernel::{Error, ErrorCode, WriteLevel, limits};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::evolve::{fit, whole};
use super::problem::{Failure, RefusedRows};
use super::sql::media_type;
use super::{Doors, parameters};
use crate::ingest::infer::Body;
use crate::ingest::{Bounds, Cutter, Decoded, InputFormat, Joined, OnError, Piece, RowError, Target, decoder};

/// Pieces of one body that are read, or wait to be, at the same time.
const PIECES_READ_AT_ONCE: usize = 4;

/// What was written.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IngestReport {
    /// Rows written.
    accepted: u64,
    /// Rows left out (`on_error=skip`).
    rejected: u64,
    /// What is wrong with the first of them.
    errors: Vec<RowError>,
    /// The level reached by every partition; absent if there was nothing to write.
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<String>,
    /// The greatest version given.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// The idempotency key was known: the rows stand already, and nothing was written anew.
    duplicate: bool,
}

/// Writes rows. All of the body or, with `on_error=skip`, its good rows.
#[utoipa::path(
    post, path = "/api/v1/tables/{table}/ingest", tag = "ingest",
    params(("table" = String, Path),
        ("ack" = Option<String>, Query, description = "`one`, `quorum` or `all`; the table's default if absent"),
        ("on_error" = Option<String>, Query, description = "`fail` (default) or `skip`"),
        ("create" = Option<bool>, Query, description = "Makes the table if it does not exist: a schemaless table of events, with the columns that the rows have"),
        ("timeout_ms" = Option<u64>, Query),
        ("Idempotency-Key" = Option<String>, Header, description = "Makes the request harmless to send again, for a day")),
    request_body(description = "Rows", content(("application/x-ndjson"), ("text/csv"), ("application/vnd.apache.arrow.stream"), ("application/vnd.apache.parquet"))),
    responses((status = 200, body = IngestReport),
        (status = 422, description = "Rows do not fit the table; nothing was written", content_type = "application/problem+json", body = super::problem::Problem),
        (status = "4XX", description = "Nothing was written", content_type = "application/problem+json", body = super::problem::Problem),
        (status = "5XX", description = "`applied` says whether anything was written", content_type = "application/problem+json", body = super::problem::Problem))
)]
pub(super) async fn post(
    request: HttpRequest,
    doors: Data<Doors>,
    table: Path<String>,
    payload: Payload,
) -> Result<Json<IngestReport>, Failure> {
    let given = parameters(&request, &["ack", "on_error", "timeout_ms", "create"])?;
    let invalid = |message: String| Failure::invalid(message);
    let level: Option<WriteLevel> = given.get("ack").map(|text| text.parse()).transpose().map_err(invalid)?;
    let on_error = match given.get("on_error").map(String::as_str) {
        None | Some("fail") => OnError::Fail,
        Some("skip") => OnError::Skip,
        Some(other) => return Err(Failure::invalid(format!("on_error is '{other}'; use fail or skip"))),
    };
    let timeout = match given.get("timeout_ms").map(|text| (text, text.parse::<u64>())) {
        None => None,
        Some((_, Ok(ms))) if ms > 0 => Some(Duration::from_millis(ms)),
        Some((text, _)) => {
            return Err(Failure::invalid(format!("timeout_ms is '{text}', not a positive whole number")));
        }
    };
    let create = match given.get("create").map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => return Err(Failure::invalid(format!("create is '{other}'; use true or false"))),
    };
    let token = token(request.headers())?;
    let format = input_format(&request)?;
    let known = match doors.backend.table(&table).await {
        Ok(table) => Some(table),
        Err(error) if error.code() == ErrorCode::UnknownTable && create => None,
        Err(error) if error.code() == ErrorCode::UnknownTable => return Err(creatable(error).into()),
        Err(error) => return Err(error.into()),
    };

    let strict = known.clone().filter(|table| !table.options.schemaless);
    let (written_as, decoded) = match strict {
        Some(table) => {
            let target = Target::of_table(&table);
            (None, decode(&request, &doors, payload, format, target, on_error).await?)
        }
        None => {
            let (parts, room) = spool(&request, &doors, payload).await?;
            let body = Body { format, bytes: whole(parts), on_error, bounds: bounds(&doors) };
            match fit(&doors, &table, known, body, room).await? {
                Some(Ok((table, decoded))) => (Some(table), decoded),
                Some(Err(refused)) => (None, refused),
                None => (None, Decoded::default()),
            }
        }
    };
    metrics::counter!("shoal_ingest_rows_rejected_total").increment(decoded.rejected);
    if decoded.rejected > 0 && on_error == OnError::Fail {
        return Err(refused(decoded));
    }
    let mut report = IngestReport {
        accepted: 0,
        rejected: decoded.rejected,
        errors: decoded.errors,
        level: None,
        version: None,
        duplicate: false,
    };
    if decoded.rows > 0 {
        let write = WriteRequest { table: table.into_inner(), batches: decoded.batches, level, token, timeout };
        let written = match written_as {
            Some(table) => doors.backend.write_as(table, write).await?,
            None => doors.backend.write(write).await?,
        };
        metrics::counter!("shoal_ingest_rows_total").increment(written.rows);
        report.accepted = written.rows;
        report.level = Some(written.level.to_string());
        report.version = Some(written.version.to_string());
        report.duplicate = written.duplicate;
    }
    Ok(Json(report))
}

/// The idempotency key, if there is one.
pub(super) fn token(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let token = value.to_str().ok().filter(|token| !token.is_empty());
    match token {
        Some(token) if token.len() <= limits::TOKEN_BYTES_MAX => Ok(Some(token.to_owned())),
        _ => Err(Error::new(
            ErrorCode::InvalidRequest,
            format!("the Idempotency-Key must be 1 to {} visible ASCII characters", limits::TOKEN_BYTES_MAX),
        )),
    }
}

fn input_format(request: &HttpRequest) -> Result<InputFormat, Failure> {
    let unsupported = |message: String| {
        let help = format!("send one of {}", InputFormat::MEDIA_TYPES);
        Failure::from(Error::new(ErrorCode::InvalidRequest, message).with_help(help))
            .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE)
    };
    if let Some(encoding) = request.headers().get(CONTENT_ENCODING).filter(|value| *value != "identity") {
        return Err(unsupported(format!("the body is encoded as {encoding:?}, which is not taken")));
    }
    let media_type = media_type(request.headers());
    InputFormat::from_media_type(&media_type)
        .ok_or_else(|| unsupported(format!("the body's content type is '{media_type}'")))
}

fn refused(decoded: Decoded) -> Failure {
    let first =
        decoded.errors.first().map_or_else(String::new, |error| format!("; line {}: {}", error.line, error.message));
    let rows = if decoded.rejected == 1 { "row does" } else { "rows do" };
    let message = format!("{} {rows} not fit the table, so nothing was written{first}", decoded.rejected);
    Failure::from(
        Error::new(ErrorCode::InvalidRows, message).with_help("correct them, or send on_error=skip to leave them out"),
    )
    .with_rows(RefusedRows { accepted: 0, rejected: decoded.rejected, errors: decoded.errors })
}

/// Reads and checks the body.
async fn decode(
    request: &HttpRequest,
    doors: &Doors,
    payload: Payload,
    format: InputFormat,
    target: Target,
    on_error: OnError,
) -> Result<Decoded, Failure> {
    let mut receiving = Receiving::new(request, doors, payload)?;
    if format == InputFormat::Ndjson {
        return decode_pieces(receiving, Cutter::new(target, on_error, bounds(doors)), bounds(doors)).await;
    }
    let mut decoder = decoder(format, target, on_error, bounds(doors));
    while let Some(chunk) = receiving.next().await? {
        decoder.push(chunk)?;
    }
    // The rest can be long work (a Parquet file is decoded here), and this thread serves others too. It takes the body's room along:
    // if the request is given up, the work goes on.
    let room = receiving.room;
    aside(move || {
        let decoded = decoder.finish();
        drop(room);
        decoded
    })
    .await
}

/// Reads the body's pieces on other threads while the rest is still to come.
async fn decode_pieces(mut receiving: Receiving<'_>, mut cutter: Cutter, bounds: Bounds) -> Result<Decoded, Failure> {
    // A piece takes its room along: if the body is given up, it may be read still.
    let read = |piece: Piece, room| aside(move || Ok((piece.read()?, room)));
    let mut reading = FuturesOrdered::new();
    let mut joined = Joined::new(bounds);
    while let Some(chunk) = receiving.next().await? {
        let Some(piece) = cutter.push(chunk)? else {
            continue;
        };
        if reading.len() >= PIECES_READ_AT_ONCE
            && let Some(done) = reading.next().await
        {
            let (part, room) = done?;
            joined.add(part)?;
            receiving.room.put_back(room);
        }
        let room = receiving.room.part(piece.bytes());
        reading.push_back(read(piece, room));
    }
    let last = cutter.finish();
    let room = receiving.room.part(last.bytes());
    reading.push_back(read(last, room));
    while let Some(done) = reading.next().await {
        let (part, room) = done?;
        joined.add(part)?;
        receiving.room.put_back(room);
    }
    Ok(joined.finish()?)
}

/// Begins long work on a thread for it.
fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> impl Future<Output = Result<T, Failure>> {
    let begun = actix_web::web::block(work);
    async { Ok(begun.await.map_err(|_| Error::internal("decoding the body was interrupted"))??) }
}

/// Keeps the body whole, with the room that it takes.
async fn spool(request: &HttpRequest, doors: &Doors, payload: Payload) -> Result<(Vec<Bytes>, Room), Failure> {
    let (mut receiving, mut parts) = (Receiving::new(request, doors, payload)?, Vec::new());
    while let Some(chunk) = receiving.next().await? {
        parts.push(chunk);
    }
    Ok((parts, receiving.room))
}

/// A body on its way, within its bounds.
struct Receiving<'d> {
    doors: &'d Doors,
    payload: Payload,
    room: Room,
    received: usize,
}

impl<'d> Receiving<'d> {
    fn new(request: &HttpRequest, doors: &'d Doors, payload: Payload) -> Result<Self, Failure> {
        check_length(request, doors)?;
        Ok(Self { doors, payload, room: Room::default(), received: 0 })
    }

    /// The next bytes, or `None` behind the last.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(chunk) = next_chunk(&mut self.payload, self.doors, self.received).await? else {
            metrics::counter!("shoal_ingest_bytes_total").increment(self.received as u64);
            return Ok(None);
        };
        self.received += chunk.len();
        let bytes_max = self.doors.limits.ingest_body_bytes_max;
        if self.received > bytes_max {
            return Err(too_large(bytes_max));
        }
        self.room.grow(self.doors, self.received)?;
        Ok(Some(chunk))
    }
}

fn bounds(doors: &Doors) -> Bounds {
    Bounds {
        line_bytes_max: doors.limits.ingest_line_bytes_max,
        decoded_bytes_max: doors.limits.ingest_decoded_bytes_max,
    }
}

/// Refuses a body that says that it is too long.
fn check_length(request: &HttpRequest, doors: &Doors) -> Result<(), Failure> {
    let bytes_max = doors.limits.ingest_body_bytes_max;
    let announced: Option<u64> =
        request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(too_large(bytes_max));
    }
    Ok(())
}

/// Says how the table would come to be.
fn creatable(error: Error) -> Error {
    let near = error.help().map(|help| format!("{help}; or ")).unwrap_or_default();
    error.with_help(format!("{near}send the rows with ?create=true to have it made for them"))
}

async fn next_chunk(payload: &mut Payload, doors: &Doors, received: usize) -> Result<Option<Bytes>, Failure> {
    let idle = doors.limits.body_idle;
    #[allow(clippy::disallowed_methods, reason = "a door reads the real clock")]
    let next = actix_web::rt::time::timeout(idle, payload.next()).await;
    match next {
        Ok(None) => Ok(None),
        Ok(Some(Ok(chunk))) => Ok(Some(chunk)),
        Ok(Some(Err(PayloadError::Incomplete(_) | PayloadError::Io(_)))) => {
            Err(Failure::invalid(format!("the body was cut off after {received} bytes; nothing was written")))
        }
        Ok(Some(Err(error))) => Err(Failure::invalid(format!(
            "the body cannot be read after {received} bytes: {error}; nothing was written"
        ))),
        Err(_) => Err(Failure::invalid(format!("no byte of the body came for {idle:?}; nothing was written"))
            .with_status(StatusCode::REQUEST_TIMEOUT)),
    }
}

fn too_large(bytes_max: usize) -> Failure {
    Error::new(
        ErrorCode::LimitExceeded,
        format!("the body is larger than {bytes_max} bytes (ingest_body_bytes_max); nothing was written"),
    )
    .with_help("send the rows in several requests, or raise the setting")
    .into()
}

/// Memory that a body under way has taken of what all of them may have.
#[derive(Default)]
pub(super) struct Room {
    kib: usize,
    permits: Option<OwnedSemaphorePermit>,
}

impl Room {
    fn grow(&mut self, doors: &Doors, bytes: usize) -> Result<(), Error> {
        let wanted = bytes.div_ceil(1024);
        let missing = u32::try_from(wanted.saturating_sub(self.kib)).unwrap_or(u32::MAX);
        if missing == 0 {
            return Ok(());
        }
        let more = doors.ingest_kib.clone().try_acquire_many_owned(missing).map_err(|_| {
            Error::new(
                ErrorCode::Overloaded,
                format!(
                    "bodies under way take all of {} bytes (ingest_memory_bytes_max); nothing was written",
                    doors.limits.ingest_memory_bytes_max
                ),
            )
            .with_retry_after_ms(1000)
        })?;
        self.kib = wanted;
        self.put_back(Some(more));
        Ok(())
    }

    /// The part of it that so many bytes of the body take, for as long as these are needed.
    fn part(&mut self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = self.permits.as_mut()?;
        permits.split(bytes.div_ceil(1024).min(permits.num_permits()))
    }

    fn put_back(&mut self, part: Option<OwnedSemaphorePermit>) {
        match (&mut self.permits, part) {
            (Some(permits), Some(part)) => permits.merge(part),
            (permits, part) => *permits = permits.take().or(part),
        }
    }
}
