//! Errors on the wire: RFC 9457 problem documents.

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, RETRY_AFTER};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError};
use serde::Serialize;
use shoal_actors::service::CommandDone;
use shoal_kernel::{Error, ErrorCode, QueryId, Span};
use utoipa::ToSchema;

use crate::format::command_json;
use crate::ingest::RowError;

/// The content type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A problem document.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Problem {
    /// `urn:shoal:error:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, in one sentence.
    pub detail: String,
    /// The stable word that programs match on.
    pub code: String,
    /// PostgreSQL's code for it.
    pub sqlstate: String,
    /// The query it happened to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_id: Option<String>,
    /// Places in the SQL text, lines and columns from 1.
    pub spans: Vec<Place>,
    /// The remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// `false`: certainly without effect. `unknown`: it may have happened, or may still appear.
    pub applied: String,
    /// When trying again makes sense, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Of a text with several statements: which one failed, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<usize>,
    /// Of a text with several statements: what those before it did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub completed: Vec<serde_json::Value>,
    /// Of an ingest: what is wrong with its rows.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub rows: Option<RefusedRows>,
}

/// A place in the SQL text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Place {
    /// Line of the first character.
    pub line: u64,
    /// Column of the first character.
    pub column: u64,
    /// Line of the last character.
    pub end_line: u64,
    /// Column after the last character.
    pub end_column: u64,
}

/// Rows that could not be taken.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct RefusedRows {
    /// Rows written: none.
    pub accepted: u64,
    /// Rows that are wrong.
    pub rejected: u64,
    /// The first of them.
    pub errors: Vec<RowError>,
}

impl From<Span> for Place {
    fn from(span: Span) -> Self {
        Self { line: span.line, column: span.column, end_line: span.end_line, end_column: span.end_column }
    }
}

impl Problem {
    /// The document of an error.
    pub fn new(error: &Error, query: Option<QueryId>) -> Self {
        let code = error.code();
        let mut title = code.as_str().replace('_', " ");
        if let Some(first) = title.get_mut(0..1) {
            first.make_ascii_uppercase();
        }
        Self {
            kind: format!("urn:shoal:error:{code}"),
            title,
            status: code.http_status(),
            detail: error.message().to_owned(),
            code: code.as_str().to_owned(),
            sqlstate: code.sqlstate().to_owned(),
            query_id: query.map(|id| id.to_string()),
            spans: error.spans().iter().copied().map(Place::from).collect(),
            help: error.help().map(str::to_owned),
            retryable: error.retryable(),
            applied: error.applied().to_string(),
            retry_after_ms: error.retry_after_ms(),
            statement: None,
            completed: Vec::new(),
            rows: None,
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> Vec<u8> {
        // Strings, numbers and lists always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A request that failed: an error with what its document says beside it.
#[derive(Debug)]
pub struct Failure {
    error: Error,
    problem: Box<Problem>,
}

impl Failure {
    /// The failure of a query.
    pub fn of_query(error: Error, query: QueryId) -> Self {
        Self { problem: Box::new(Problem::new(&error, Some(query))), error }
    }

    /// A request that is not what the door expects.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorCode::InvalidRequest, message).into()
    }

    /// With another HTTP status than its code's own.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.problem.status = status.as_u16();
        self
    }

    /// With the rows that were refused.
    #[must_use]
    pub fn with_rows(mut self, rows: RefusedRows) -> Self {
        self.problem.rows = Some(rows);
        self
    }

    /// With the statement of a text that failed (from 1), and what those before it did.
    #[must_use]
    pub fn at_statement(mut self, statement: usize, completed: Vec<CommandDone>) -> Self {
        self.problem.statement = Some(statement);
        self.problem.completed = completed.iter().map(command_json).collect();
        self
    }

    /// The document.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { problem: Box::new(Problem::new(&error, None)), error }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl ResponseError for Failure {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponseBuilder::new(self.status_code());
        response.insert_header((CONTENT_TYPE, PROBLEM_JSON));
        if let Some(query) = &self.problem.query_id {
            response.insert_header((super::QUERY_ID, query.as_str()));
        }
        // A code that can be retried always says when: a second is polite where nobody knows better.
        let retry_after_ms = self.problem.retry_after_ms.or_else(|| self.problem.retryable.then_some(1000));
        if let Some(ms) = retry_after_ms.filter(|_| matches!(self.problem.status, 429 | 503)) {
            response.insert_header((RETRY_AFTER, ms.div_ceil(1000).max(1).to_string()));
        }
        response.body(self.problem.to_json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_gives_its_document() {
        for code in ErrorCode::ALL {
            let failure = Failure::from(Error::new(*code, "what happened").with_help("what to do"));
            let response = failure.error_response();
            assert_eq!(response.status().as_u16(), code.http_status(), "{code}");
            assert_eq!(response.headers().get("content-type").unwrap(), PROBLEM_JSON);
            assert_eq!(
                response.headers().contains_key("retry-after"),
                matches!(code.http_status(), 429 | 503),
                "{code}"
            );
            let document: serde_json::Value = serde_json::from_slice(&failure.problem().to_json()).unwrap();
            assert_eq!(document["code"], code.as_str());
            assert_eq!(document["sqlstate"], code.sqlstate());
            assert_eq!(document["retryable"], code.retryable());
            assert_eq!(document["applied"], "false");
            assert_eq!(document["type"], format!("urn:shoal:error:{code}"));
        }
    }

    #[test]
    fn retry_after_is_rounded_up_to_seconds() {
        let failure = Failure::from(Error::new(ErrorCode::Overloaded, "full").with_retry_after_ms(1200));
        assert_eq!(failure.error_response().headers().get("retry-after").unwrap(), "2");
    }
}
