//! The session actor: one per connection, owned by it. It reads the client's messages, starts and stops pumps, and hands out
//! credit; it sees no rows. Nothing survives it: when the connection ends, so do its queries. It is never restarted.

use std::collections::BTreeMap;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, StreamHandler, WrapFuture};
use actix_web::web::Data;
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, ProtocolError};
use shoal_actors::service::SqlRequest;
use shoal_kernel::{Error, ErrorCode, limits};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::credit::{Credit, INITIAL_CREDIT_BYTES};
use super::frames;
use super::message::{self, Protocol, Request};
use super::pump::Pump;
use crate::http::Doors;

/// Bytes of a client's name for a query.
const ID_BYTES_MAX: usize = 128;

/// Answers to the client's own messages that may wait for a full connection; beyond, the session ends.
const REPLIES_MAX: usize = 64;

/// The client is pinged this often within its idle time.
const PINGS_PER_IDLE: u32 = 4;

pub(super) struct Session {
    doors: Data<Doors>,
    connection: actix_ws::Session,
    protocol: Protocol,
    queries: BTreeMap<String, Query>,
    /// Ends every pump when the session does.
    cancel: CancellationToken,
    /// Heartbeats since the client was last heard.
    silent: u32,
    /// Replies on their way.
    replies: usize,
    _permit: OwnedSemaphorePermit,
}

struct Query {
    credit: Credit,
    cancel: CancellationToken,
}

impl Session {
    pub(super) fn new(
        doors: Data<Doors>,
        connection: actix_ws::Session,
        messages: AggregatedMessageStream,
        protocol: Protocol,
        permit: OwnedSemaphorePermit,
        context: &mut Context<Self>,
    ) -> Self {
        context.add_stream(messages);
        Self {
            doors,
            connection,
            protocol,
            queries: BTreeMap::new(),
            cancel: CancellationToken::new(),
            silent: 0,
            replies: 0,
            _permit: permit,
        }
    }

    fn heartbeat(&mut self, context: &mut Context<Self>) {
        self.silent += 1;
        if self.silent > PINGS_PER_IDLE {
            let reason = format!("nothing heard for {:?} (ws_idle_ms)", self.doors.limits.ws_idle);
            return self.close(CloseCode::Away, reason, context);
        }
        let mut connection = self.connection.clone();
        self.reply(async move { connection.ping(b"").await }, context);
    }

    /// Says something without waiting for it here. A client that asks and never reads cannot pile up answers.
    fn reply(
        &mut self,
        send: impl std::future::Future<Output = Result<(), actix_ws::Closed>> + 'static,
        context: &mut Context<Self>,
    ) {
        if self.replies >= REPLIES_MAX {
            context.stop();
            return;
        }
        self.replies += 1;
        let sent = send.into_actor(self).map(|sent, session: &mut Self, context| {
            session.replies -= 1;
            if sent.is_err() {
                context.stop();
            }
        });
        context.spawn(sent);
    }

    fn refuse(&mut self, id: Option<&str>, error: &Error, context: &mut Context<Self>) {
        let (mut connection, text) = (self.connection.clone(), message::error(id, None, error));
        self.reply(async move { connection.text(text).await }, context);
    }

    fn close(&mut self, code: CloseCode, reason: String, context: &mut Context<Self>) {
        self.cancel.cancel();
        let connection = self.connection.clone();
        let reason = CloseReason { code, description: Some(reason) };
        // A client that does not read cannot be told why, either: the session ends all the same.
        let told = async move { connection.close(Some(reason)).await };
        actix_web::rt::spawn(told);
        context.stop();
    }

    fn request(&mut self, request: Request, context: &mut Context<Self>) {
        match request {
            Request::Start { id, sql, credit, timeout_ms, consistency } => {
                let timeout = timeout_ms.map(Duration::from_millis);
                let request = SqlRequest { timeout, read_level: consistency, ..SqlRequest::new(sql) };
                self.start(id, request, credit, context);
            }
            // Both may have crossed the query's end, so an unknown id is no fault.
            Request::Cancel { id } => {
                if let Some(query) = self.queries.get(&id) {
                    query.cancel.cancel();
                }
            }
            Request::Credit { id, bytes } => {
                if let Some(query) = self.queries.get(&id) {
                    query.credit.grant(bytes);
                }
            }
        }
    }

    fn start(&mut self, id: String, request: SqlRequest, credit: Option<u64>, context: &mut Context<Self>) {
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            let message = format!("an id has 1 to {ID_BYTES_MAX} bytes");
            return self.refuse(None, &Error::new(ErrorCode::InvalidRequest, message), context);
        }
        if self.queries.contains_key(&id) {
            // Under the id it would look like the end of the query that has it.
            let message = format!("a query '{id}' is running in this session");
            return self.refuse(None, &Error::new(ErrorCode::InvalidRequest, message), context);
        }
        if self.queries.len() >= self.doors.limits.ws_queries_max {
            let message = format!("{} queries are running in this session (ws_queries_max)", self.queries.len());
            return self.refuse(Some(&id), &Error::new(ErrorCode::Overloaded, message), context);
        }
        let length = request.sql.len();
        if length > limits::SQL_BYTES_MAX {
            let message = format!("the SQL text has {length} bytes; sql_bytes_max is {}", limits::SQL_BYTES_MAX);
            return self.refuse(Some(&id), &Error::new(ErrorCode::LimitExceeded, message), context);
        }
        let query = self.doors.backend.new_query_id();
        let credit = Credit::new(credit.unwrap_or(INITIAL_CREDIT_BYTES));
        let cancel = self.cancel.child_token();
        self.queries.insert(id.clone(), Query { credit: credit.clone(), cancel: cancel.clone() });
        let request = SqlRequest { query_id: Some(query), ..request };
        let pump = Pump {
            id: id.clone(),
            query,
            connection: self.connection.clone(),
            protocol: self.protocol,
            credit,
            cancel,
        };
        let run = pump.run(self.doors.clone(), request).into_actor(self).map(move |(), session: &mut Self, _| {
            session.queries.remove(&id);
        });
        context.spawn(run);
    }
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        metrics::gauge!("shoal_ws_sessions").increment(1.0);
        let period = self.doors.limits.ws_idle / PINGS_PER_IDLE;
        context.run_interval(period.max(Duration::from_millis(1)), Self::heartbeat);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.cancel.cancel();
        metrics::gauge!("shoal_ws_sessions").decrement(1.0);
    }
}

impl StreamHandler<Result<AggregatedMessage, ProtocolError>> for Session {
    fn handle(&mut self, message: Result<AggregatedMessage, ProtocolError>, context: &mut Self::Context) {
        self.silent = 0;
        match message {
            Ok(AggregatedMessage::Text(text)) => match serde_json::from_str::<Request>(&text) {
                Ok(request) => self.request(request, context),
                Err(error) => {
                    let error =
                        Error::new(ErrorCode::InvalidRequest, format!("the message is not understood: {error}"))
                            .with_help("send start, cancel or credit as JSON objects with a type");
                    self.refuse(None, &error, context);
                }
            },
            Ok(AggregatedMessage::Binary(_)) => {
                let error = Error::new(ErrorCode::InvalidRequest, "clients send text messages only");
                self.refuse(None, &error, context);
            }
            Ok(AggregatedMessage::Ping(payload)) => {
                let mut connection = self.connection.clone();
                self.reply(async move { connection.pong(&payload).await }, context);
            }
            Ok(AggregatedMessage::Pong(_)) => {}
            Ok(AggregatedMessage::Close(reason)) => {
                self.cancel.cancel();
                actix_web::rt::spawn(self.connection.clone().close(reason));
                context.stop();
            }
            Err(error) if frames::is_too_large(&error) => {
                let bytes_max = self.doors.limits.ws_frame_bytes_max;
                self.close(
                    CloseCode::Size,
                    format!("a message is larger than {bytes_max} bytes (ws_frame_bytes_max)"),
                    context,
                );
            }
            Err(error) => self.close(CloseCode::Protocol, error.to_string(), context),
        }
    }

    fn finished(&mut self, context: &mut Self::Context) {
        context.stop();
    }
}
