//! What a node answers to others about queries.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{Error, ErrorCode, NodeId, QueryId, Result, wire};

use super::coordinator::{Event, QueryMessage};
use super::edge::codec::OpenEdge;
use super::edge::remote;
use super::message::{Notice, Reply, Request};
use super::node::QueryNode;
use super::{by_key, tasks};
use crate::transport::{Handler, StreamSender};

/// `Route::Query`: starting, releasing, asking, cancelling, reports.
pub(super) struct QueryHandler(pub(super) Weak<QueryNode>);

/// `Route::Edge`: streams of rows, and slots given back.
pub(super) struct EdgeHandler(pub(super) Weak<QueryNode>);

impl Handler for QueryHandler {
    fn call(&self, _from: NodeId, message: Bytes) -> BoxFuture<'static, Result<Bytes>> {
        let node = self.0.clone();
        Box::pin(async move {
            let node = node.upgrade().ok_or_else(gone)?;
            let reply = match wire::decode::<Request>(&message)? {
                Request::Start(start) => Reply::Started(tasks::start(&node, start).await),
                Request::Release { query, attempt } => Reply::Released(node.release(query, attempt).await),
                Request::IsCurrent { query, attempt } => Reply::Current(node.is_current(query, attempt)),
                Request::Cancel { query } => Reply::Cancelled(cancel(&node, query)),
                Request::Running => Reply::Running(node.running_on()),
                Request::Read(question) => Reply::Read(by_key::answer(&node, question).await),
            };
            Ok(wire::encode(&reply)?.into())
        })
    }

    fn cast(&self, from: NodeId, message: Bytes) {
        let Some(node) = self.0.upgrade() else { return };
        match wire::decode::<Notice>(&message) {
            Ok(Notice::Status(status)) => node.hear_status(from, status),
            Err(error) => tracing::warn!(%from, %error, "a notice about a query makes no sense"),
        }
    }
}

impl Handler for EdgeHandler {
    fn cast(&self, from: NodeId, message: Bytes) {
        let Some(node) = self.0.upgrade() else { return };
        match wire::decode::<OpenEdge>(&message) {
            Ok(edge) => node.discard_edge(node.id, edge),
            Err(error) => tracing::warn!(%from, %error, "a notice about an edge makes no sense"),
        }
    }

    fn open(&self, _from: NodeId, header: Bytes, out: StreamSender) -> BoxFuture<'static, ()> {
        let node = self.0.clone();
        Box::pin(async move {
            match node.upgrade() {
                Some(node) => remote::serve(node, header, out).await,
                None => out.fail(gone()).await,
            }
        })
    }
}

/// Cancels a query that is coordinated here.
///
/// # Errors
/// There is none of that id.
pub(super) fn cancel(node: &Arc<QueryNode>, query: QueryId) -> Result<()> {
    let unknown = || Error::new(ErrorCode::NotFound, format!("no query {query} runs"));
    let actor = node.query(query).ok_or_else(unknown)?;
    let cancelled = Error::new(ErrorCode::Cancelled, "the query was cancelled");
    actor.send_message(QueryMessage::Event(Event::Stopped(cancelled))).map_err(|_| unknown())
}

fn gone() -> Error {
    Error::new(ErrorCode::NotReady, "the node is stopping")
}
