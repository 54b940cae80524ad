//! `/api/v1/ws`: several queries over one connection, each with its own credit.
//!
//! Messages are JSON text. From the client:
//!
//! | message | meaning |
//! |---|---|
//! | `{"type":"start","id":"q1","sql":"…","credit":bytes?,"timeout_ms":n?,"consistency":level?}` | run one statement; `id` is the client's own name for it |
//! | `{"type":"credit","id":"q1","bytes":n}` | the client has room for so many more bytes of rows |
//! | `{"type":"cancel","id":"q1"}` | stop it |
//!
//! From the server: `schema`, `batch`, `command`, `progress`, then exactly one `end` or `error` per started query, each with
//! the `id`. An `error` whose `id` is null is about a message, not about a query. A query starts with
//! [`INITIAL_CREDIT_BYTES`] of credit unless it names its own; rows wait while its credit is used up, and only its rows.
//! One message may exceed the credit, so that no row is too large to pass. `cancel` and `credit` for a query that has ended
//! are ignored: they may have crossed its end.
//!
//! With the subprotocol `shoal.v1.json` (default) rows come as `{"type":"batch","id":…,"rows":[[…],…]}`. With
//! `shoal.v1.arrow` they come as binary messages: two bytes length of the id (big endian), the id, then a piece of an Arrow
//! IPC stream; the pieces of one query make up the whole stream, with its end-of-stream marker just before `end`.

mod credit;
mod frames;
mod message;
mod pump;
mod session;

use actix::Actor;
use actix_web::http::StatusCode;
use actix_web::http::header::SEC_WEBSOCKET_PROTOCOL;
use actix_web::web::{Data, Payload};
use actix_web::{FromRequest, HttpRequest, HttpResponse};
use shoal_kernel::{Error, ErrorCode};

use crate::http::Doors;
use crate::http::problem::Failure;
use message::Protocol;

pub use credit::INITIAL_CREDIT_BYTES;

/// Opens a session.
#[utoipa::path(get, path = "/api/v1/ws", tag = "websocket",
    responses((status = 101, description = "Subprotocols shoal.v1.json and shoal.v1.arrow: start, credit, cancel; schema, batch, command, progress, end, error"),
        (status = "4XX", description = "No WebSocket", content_type = "application/problem+json", body = crate::http::problem::Problem)))]
pub(crate) async fn open(request: HttpRequest, doors: Data<Doors>, payload: Payload) -> Result<HttpResponse, Failure> {
    let wanted = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).filter_map(|value| value.to_str().ok());
    let wanted: Vec<&str> = wanted.flat_map(|value| value.split(',')).map(str::trim).collect();
    let protocol = match wanted.iter().find_map(|name| Protocol::from_name(name)) {
        Some(protocol) => protocol,
        None if wanted.is_empty() => Protocol::Json,
        None => {
            return Err(Error::new(
                ErrorCode::InvalidRequest,
                format!("no known subprotocol among {}", wanted.join(", ")),
            )
            .with_help("ask for shoal.v1.json or shoal.v1.arrow")
            .into());
        }
    };
    let permit = doors.ws_sessions.clone().try_acquire_owned().map_err(|_| {
        Error::new(
            ErrorCode::Overloaded,
            format!("{} sessions are open (ws_sessions_max)", doors.limits.ws_sessions_max),
        )
    })?;
    let frame_bytes_max = doors.limits.ws_frame_bytes_max;
    let mut limited = frames::limited(payload.into_inner(), frame_bytes_max);
    let payload =
        Payload::from_request(&request, &mut limited).await.map_err(|error| Failure::invalid(error.to_string()))?;
    let (response, connection, messages) = actix_ws::handle_with_protocols(&request, payload, &Protocol::NAMES)
        .map_err(|error| {
            let status = error.as_response_error().status_code();
            let status = if status.is_client_error() { status } else { StatusCode::BAD_REQUEST };
            Failure::invalid(format!("this door speaks WebSocket: {error}")).with_status(status)
        })?;
    let messages =
        messages.max_frame_size(frame_bytes_max).aggregate_continuations().max_continuation_size(frame_bytes_max);
    session::Session::create(|context| session::Session::new(doors, connection, messages, protocol, permit, context));
    Ok(response)
}
