//! `/api/v1/sql`: statements in, answers out, streamed.

use std::collections::VecDeque;
use std::time::Duration;

use actix_web::http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;
use shoal_actors::service::SqlRequest;
use shoal_kernel::{Error, ErrorCode, QueryId, ReadLevel, WriteLevel, limits};
use utoipa::ToSchema;

use super::answer::Answer;
use super::problem::Failure;
use super::{Doors, QUERY_ID, parameters};
use crate::format::Format;
use crate::statement;

/// Bytes that are held back before an answer begins, so that most errors still get a status of their own.
const HOLD_BACK_BYTES: usize = 64 << 10;

/// Statements of one request.
const STATEMENTS_MAX: usize = 1000;

/// Bytes of a JSON body beyond those of its SQL text: names, escapes, white space.
const ENVELOPE_BYTES_MAX: usize = 1 << 20;

/// A request for answers.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SqlBody {
    /// One or more statements, separated by semicolons; they run in order and stop at the first error.
    query: String,
    /// `json` (default), `ndjson`, `csv` or `arrow`; wins over the `Accept` header.
    format: Option<String>,
    /// `default` or `shoal`; there is one database.
    database: Option<String>,
    /// The deadline of each statement, in milliseconds.
    timeout_ms: Option<u64>,
    /// The level of reads: `one` or `quorum`; the highest default of the tables that are read if absent.
    consistency: Option<String>,
    /// The level of writes: `one`, `quorum` or `all`; the table's default if absent.
    ack: Option<String>,
}

const PARAMETERS: &[&str] = &["query", "format", "database", "timeout_ms", "consistency", "ack"];

/// Runs statements.
#[utoipa::path(
    post, path = "/api/v1/sql", tag = "sql", request_body(
        description = "A JSON object, or the SQL itself as text/plain (the other members as parameters then)",
        content((SqlBody = "application/json"), (String = "text/plain"))
    ),
    params(("X-Shoal-Query-Id" = Option<String>, Header, description = "The id to run under: 8 hexadecimal digits of the node (zeros: this one), a dash, 16 digits"),
           ("Idempotency-Key" = Option<String>, Header, description = "Makes a single INSERT of VALUES harmless to send again; INSERT … SELECT, DELETE and UPDATE are refused with one, as they may find other rows")),
    responses(
        (status = 200, description = "The results; the last record says end or error", content(("application/json"), ("application/x-ndjson"), ("text/csv"), ("application/vnd.apache.arrow.stream"))),
        (status = "4XX", description = "Not carried out", content_type = "application/problem+json", body = super::problem::Problem),
        (status = "5XX", description = "Failed; `applied` says whether it had an effect", content_type = "application/problem+json", body = super::problem::Problem))
)]
pub(super) async fn post(request: HttpRequest, doors: Data<Doors>, payload: Payload) -> Result<HttpResponse, Failure> {
    let content_type = media_type(request.headers());
    let body = read_body(payload, limits::SQL_BYTES_MAX + ENVELOPE_BYTES_MAX).await?;
    let content_type = match content_type.as_str() {
        // What curl sends unless told otherwise. No SQL begins with a brace.
        "" | "application/x-www-form-urlencoded" if body.trim_ascii_start().starts_with(b"{") => "application/json",
        "" | "application/x-www-form-urlencoded" => "text/plain",
        given => given,
    };
    let body = match content_type {
        "text/plain" | "application/sql" => {
            let query = String::from_utf8(body).map_err(|_| Failure::invalid("the SQL text is not UTF-8"))?;
            let mut body = from_parameters(&request)?;
            if !std::mem::replace(&mut body.query, query).is_empty() {
                return Err(Failure::invalid("the query is given both as the body and as a parameter"));
            }
            body
        }
        "application/json" => {
            parameters(&request, &[])?;
            serde_json::from_slice::<SqlBody>(&body).map_err(|error| malformed(&error))?
        }
        other => {
            return Err(Failure::from(
                Error::new(ErrorCode::InvalidRequest, format!("the body's content type is '{other}'"))
                    .with_help("send application/json, or the SQL itself as text/plain"),
            )
            .with_status(actix_web::http::StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
    };
    run(&request, doors, body, false).await
}

/// Runs statements that change nothing.
#[utoipa::path(
    get, path = "/api/v1/sql", tag = "sql",
    params(("query" = String, Query, description = "Statements that change nothing"), ("format" = Option<String>, Query), ("timeout_ms" = Option<u64>, Query), ("consistency" = Option<String>, Query), ("database" = Option<String>, Query)),
    responses((status = 200, description = "As for POST"), (status = "4XX", description = "Not carried out", content_type = "application/problem+json", body = super::problem::Problem))
)]
pub(super) async fn get(request: HttpRequest, doors: Data<Doors>) -> Result<HttpResponse, Failure> {
    let body = from_parameters(&request)?;
    if body.query.is_empty() {
        return Err(Failure::invalid("the parameter 'query' is missing"));
    }
    run(&request, doors, body, true).await
}

fn malformed(error: &serde_json::Error) -> Failure {
    let help = "send {\"query\": \"SELECT 1\"} as application/json, or the SQL itself as text/plain";
    Error::new(ErrorCode::InvalidRequest, format!("the body is not a query: {error}")).with_help(help).into()
}

fn from_parameters(request: &HttpRequest) -> Result<SqlBody, Failure> {
    let mut given = parameters(request, PARAMETERS)?;
    let timeout_ms = match given.remove("timeout_ms") {
        None => None,
        Some(text) => {
            Some(text.parse().map_err(|_| Failure::invalid(format!("timeout_ms is '{text}', not a whole number")))?)
        }
    };
    Ok(SqlBody {
        query: given.remove("query").unwrap_or_default(),
        format: given.remove("format"),
        database: given.remove("database"),
        timeout_ms,
        consistency: given.remove("consistency"),
        ack: given.remove("ack"),
    })
}

/// The body's media type, without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

async fn read_body(mut payload: Payload, bytes_max: usize) -> Result<Vec<u8>, Failure> {
    use futures::StreamExt;
    let mut body = Vec::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| Failure::invalid(format!("the body was cut off: {error}")))?;
        if body.len() + chunk.len() > bytes_max {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("the body is larger than {bytes_max} bytes (sql_bytes_max and its envelope)"),
            )
            .with_help("rows go through /api/v1/tables/{table}/ingest")
            .into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

async fn run(
    request: &HttpRequest,
    doors: Data<Doors>,
    body: SqlBody,
    read_only: bool,
) -> Result<HttpResponse, Failure> {
    let query = query_id(request, &doors)?;
    let answer = prepare(request, &doors, &body, query, read_only);
    let (format, statements) = answer.map_err(|error| Failure::of_query(error, query))?;
    tracing::Span::current().record("query_id", tracing::field::display(query));
    let guard = doors.running.enter(query, &body.query).map_err(|error| Failure::of_query(error, query))?;
    let mut answer = Answer::new(doors.clone(), guard, statements, format.encoder(query));
    let complete = answer.hold_back(HOLD_BACK_BYTES).await?;
    let mut response = HttpResponse::Ok();
    response.content_type(format.content_type()).insert_header((QUERY_ID, query.to_string()));
    if complete {
        return Ok(response.body(answer.take_bytes()));
    }
    Ok(response.streaming(answer.into_body()))
}

fn query_id(request: &HttpRequest, doors: &Doors) -> Result<QueryId, Failure> {
    let Some(given) = request.headers().get(QUERY_ID) else {
        return Ok(doors.backend.new_query_id());
    };
    let id = given.to_str().ok().and_then(|text| doors.parse_query_id(text));
    id.filter(|id| id.coordinator() == doors.backend.node()).ok_or_else(|| {
        Error::new(ErrorCode::InvalidRequest, "X-Shoal-Query-Id is not an id of this node")
            .with_help("send 00000000, a dash and 16 hexadecimal digits of your own, or leave it out")
            .into()
    })
}

/// Everything about a request that can be wrong before its first statement runs.
fn prepare(
    request: &HttpRequest,
    doors: &Doors,
    body: &SqlBody,
    query: QueryId,
    read_only: bool,
) -> Result<(Format, VecDeque<SqlRequest>), Error> {
    let invalid = |message: String| Error::new(ErrorCode::InvalidRequest, message);
    let format = match &body.format {
        Some(name) => Format::from_name(name)?,
        None => match request.headers().get(ACCEPT).map(|value| value.to_str().unwrap_or_default()) {
            None => Format::Json,
            Some(accept) => Format::from_accept(accept).ok_or_else(|| {
                invalid(format!("no answer can be written as '{accept}'"))
                    .with_help(format!("accept one of {}", Format::ALL.map(Format::content_type).join(", ")))
            })?,
        },
    };
    if let Some(database) = body.database.as_deref()
        && !matches!(database, "default" | "shoal")
    {
        return Err(invalid(format!("there is no database '{database}'")).with_help("leave it out, or use 'shoal'"));
    }
    let read_level: Option<ReadLevel> = body.consistency.as_deref().map(str::parse).transpose().map_err(invalid)?;
    let write_level: Option<WriteLevel> = body.ack.as_deref().map(str::parse).transpose().map_err(invalid)?;
    if body.timeout_ms == Some(0) {
        return Err(invalid("timeout_ms is 0: nothing can be done in no time".into()));
    }
    if body.query.len() > limits::SQL_BYTES_MAX {
        return Err(Error::new(
            ErrorCode::LimitExceeded,
            format!("the SQL text has {} bytes; sql_bytes_max is {}", body.query.len(), limits::SQL_BYTES_MAX),
        ));
    }
    let statements = statement::split(&body.query);
    if statements.is_empty() {
        return Err(Error::new(ErrorCode::Syntax, "there is no statement in the text"));
    }
    if statements.len() > STATEMENTS_MAX {
        return Err(Error::new(
            ErrorCode::LimitExceeded,
            format!("the text has {} statements; {STATEMENTS_MAX} may come in one request", statements.len()),
        ));
    }
    let token = super::ingest::token(request.headers())?;
    if token.is_some() && statements.len() > 1 {
        return Err(invalid("an Idempotency-Key is for one statement".into()));
    }
    let requests = statements.iter().enumerate().map(|(place, statement)| SqlRequest {
        sql: statement.in_place(),
        // Later statements run under ids of their own; the first one's stands for the request.
        query_id: Some(if place == 0 { query } else { doors.backend.new_query_id() }),
        read_level,
        write_level,
        token: token.clone(),
        read_only,
        timeout: body.timeout_ms.map(Duration::from_millis),
    });
    Ok((format, requests.collect()))
}
