//! One error type for everything that can reach a user, typed from its origin to the door and across the wire.
//!
//! An error answers three questions without being read by a person: what kind it is ([`ErrorCode`]), whether the request
//! had an effect ([`Applied`]), and whether sending it again can help ([`Error::retryable`]).

use std::fmt;

use serde::{Deserialize, Serialize};

/// A result whose error can cross any boundary.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether a failed request had an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Applied {
    /// Certainly without effect.
    False,
    /// It may have happened, or may still appear.
    Unknown,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::False => "false",
            Self::Unknown => "unknown",
        })
    }
}

/// A place in the SQL text: lines and columns from 1, as editors count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    /// Line of the first character.
    pub line: u64,
    /// Column of the first character.
    pub column: u64,
    /// Line of the last character.
    pub end_line: u64,
    /// Column after the last character.
    pub end_column: u64,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $sqlstate:literal, $http:literal, $retryable:literal;)+) => {
        /// What went wrong, as a stable word that programs may match on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $($(#[$doc])* $variant,)+ }

        impl ErrorCode {
            /// Every code, for the documentation and its test.
            pub const ALL: &'static [ErrorCode] = &[$(Self::$variant),+];

            /// The stable word.
            pub fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),+ } }

            /// The SQLSTATE that PostgreSQL clients understand.
            pub fn sqlstate(self) -> &'static str { match self { $(Self::$variant => $sqlstate),+ } }

            /// The HTTP status that carries it.
            pub fn http_status(self) -> u16 { match self { $(Self::$variant => $http),+ } }

            /// Whether the same request may succeed later without being changed.
            pub fn retryable(self) -> bool { match self { $(Self::$variant => $retryable),+ } }
        }
    };
}

codes! {
    /// The SQL text does not parse.
    Syntax = "syntax_error", "42601", 400, false;
    /// A table, column or function that does not exist, or is ambiguous.
    UnknownTable = "unknown_table", "42P01", 404, false;
    /// No such column.
    UnknownColumn = "unknown_column", "42703", 400, false;
    /// No such function, or not with these argument types.
    UnknownFunction = "unknown_function", "42883", 400, false;
    /// The statement is well formed and means nothing sensible: types do not fit, grouping is wrong.
    InvalidStatement = "invalid_statement", "42000", 400, false;
    /// A value failed while the query ran: division by zero, a cast, an overflow.
    Evaluation = "evaluation_error", "22000", 400, false;
    /// A table of that name exists.
    TableExists = "table_exists", "42P07", 409, false;
    /// Valid, and not built.
    Unsupported = "unsupported", "0A000", 501, false;
    /// A parameter, header, option or body that is not what the door expects.
    InvalidRequest = "invalid_request", "22023", 400, false;
    /// Rows that do not fit the table; nothing of the request was applied.
    InvalidRows = "invalid_rows", "22000", 422, false;
    /// Rows whose time lies before what the table keeps (`ttl`).
    RowsExpired = "rows_expired", "22008", 422, false;
    /// The same idempotency key with other rows.
    TokenConflict = "idempotency_conflict", "23505", 409, false;
    /// No such thing: a query id, a path.
    NotFound = "not_found", "02000", 404, false;
    /// The request, a result or a query is larger than a limit allows; the message names the limit.
    LimitExceeded = "limit_exceeded", "54000", 413, false;
    /// Too much at once; try again after a moment.
    Overloaded = "overloaded", "53300", 429, true;
    /// The disk has no room above its reserve; reads go on.
    DiskFull = "disk_full", "53100", 507, true;
    /// Not enough memory for this query.
    OutOfMemory = "out_of_memory", "53200", 503, true;
    /// Fewer replicas answered than the level needs.
    NotEnoughReplicas = "not_enough_replicas", "58030", 503, true;
    /// No live, caught-up replica holds a partition that the query needs.
    PartitionUnavailable = "partition_unavailable", "58030", 503, true;
    /// A node was lost while the query ran, after rows had left for the client.
    NodeLost = "node_lost", "57P01", 503, true;
    /// The replica set has moved on; the sender's map was old. Re-routed inside, seldom seen outside.
    Moved = "moved", "57P04", 503, true;
    /// A table was altered while the request was under way, and what it was planned for is gone.
    SchemaChanged = "schema_changed", "40001", 503, true;
    /// The catalog has no quorum; tables keep serving, DDL waits.
    NoCatalogQuorum = "no_catalog_quorum", "57P03", 503, true;
    /// The node is starting or stopping.
    NotReady = "not_ready", "57P03", 503, true;
    /// The deadline passed.
    Timeout = "timeout", "57014", 504, true;
    /// Cancelled by the client or an operator.
    Cancelled = "cancelled", "57014", 499, false;
    /// A clock is further ahead than the cluster allows.
    ClockSkew = "clock_skew", "58000", 503, true;
    /// A checksum did not match: what was read is not what was written.
    Corruption = "corruption", "XX001", 500, true;
    /// The disk answered with an error.
    Io = "io_error", "58030", 500, true;
    /// A peer spoke a protocol or file version that this build does not know.
    IncompatibleVersion = "incompatible_version", "XX000", 500, false;
    /// Not permitted.
    Forbidden = "forbidden", "42501", 403, false;
    /// A broken invariant: please report it.
    Internal = "internal_error", "XX000", 500, false;
    /// Changes that a reader asked for are no longer kept: it must begin again from the rows as they are now.
    ChangesGone = "changes_gone", "55000", 410, false;
    /// The other nodes have a catalog that does not continue what this node had agreed on with nodes that are lost.
    CatalogDiverged = "catalog_diverged", "XX000", 500, false;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The error. Boxed inside, so that a `Result` stays one word wide.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Error(Box<Body>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    code: ErrorCode,
    message: String,
    applied: Applied,
    spans: Vec<Span>,
    help: Option<String>,
    retry_after_ms: Option<u64>,
    /// For whoever looks after the node that the file lies on: it stays there.
    #[serde(skip)]
    file: Option<FilePlace>,
}

/// A place on this node's disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FilePlace {
    /// The file's name.
    pub file: String,
    /// The byte where what cannot be read begins, if that is known.
    pub offset: Option<u64>,
}

impl fmt::Display for FilePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        self.offset.map_or(Ok(()), |offset| write!(f, " at byte {offset}"))
    }
}

impl Error {
    /// An error without effect. `message` is one sentence for a person, without the code.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(Body {
            code,
            message: message.into(),
            applied: Applied::False,
            spans: Vec::new(),
            help: None,
            retry_after_ms: None,
            file: None,
        }))
    }

    /// A broken invariant of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }

    /// Says whether the request had an effect.
    #[must_use]
    pub fn with_applied(mut self, applied: Applied) -> Self {
        self.0.applied = applied;
        self
    }

    /// Adds the remedy.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Adds a place in the SQL text.
    #[must_use]
    pub fn with_span(mut self, span: Span) -> Self {
        self.0.spans.push(span);
        self
    }

    /// Says when trying again makes sense.
    #[must_use]
    pub fn with_retry_after_ms(mut self, retry_after_ms: u64) -> Self {
        self.0.retry_after_ms = Some(retry_after_ms);
        self
    }

    /// Puts words before the message, such as the name of the file or partition.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }

    /// Says in which file what was read is wrong, and where; the message begins with it. A place that is known already stays.
    #[must_use]
    pub fn in_file(mut self, file: impl fmt::Display, offset: Option<u64>) -> Self {
        let place = FilePlace { file: file.to_string(), offset };
        self = self.context(&place);
        self.0.file.get_or_insert(place);
        self
    }

    /// What went wrong.
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// One sentence for a person.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Whether the request had an effect.
    pub fn applied(&self) -> Applied {
        self.0.applied
    }

    /// Places in the SQL text.
    pub fn spans(&self) -> &[Span] {
        &self.0.spans
    }

    /// The remedy, if one is known.
    pub fn help(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// The file whose content is the reason, on the node where the error arose.
    pub fn file(&self) -> Option<&FilePlace> {
        self.0.file.as_ref()
    }

    /// When trying again makes sense, in milliseconds.
    pub fn retry_after_ms(&self) -> Option<u64> {
        self.0.retry_after_ms
    }

    /// Whether the same request may succeed later without being changed.
    pub fn retryable(&self) -> bool {
        self.0.code.retryable()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.message)?;
        if self.0.applied == Applied::Unknown {
            f.write_str(" (applied: unknown)")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let code = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::DiskFull,
            std::io::ErrorKind::InvalidData => ErrorCode::Corruption,
            _ => ErrorCode::Io,
        };
        Self::new(code, error.to_string())
    }
}

impl From<crate::wire::WireError> for Error {
    fn from(error: crate::wire::WireError) -> Self {
        Self::new(ErrorCode::Corruption, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_has_a_word_of_its_own() {
        let words: BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert_eq!(code.sqlstate().len(), 5, "{code}");
            assert!((400..600).contains(&code.http_status()), "{code}");
        }
    }

    #[test]
    fn the_innermost_place_is_the_place() {
        let error = Error::new(ErrorCode::Corruption, "the checksum is wrong").in_file("seg-1", Some(16)).context("p7");
        assert_eq!(error.message(), "p7: seg-1 at byte 16: the checksum is wrong");
        let place = FilePlace { file: "seg-1".into(), offset: Some(16) };
        assert_eq!(error.in_file("p7", None).file(), Some(&place));
    }

    #[test]
    fn survives_the_wire_whole() {
        let error = Error::new(ErrorCode::NotEnoughReplicas, "1 of 2")
            .with_applied(Applied::Unknown)
            .with_help("try level one")
            .with_span(Span { line: 1, column: 2, end_line: 1, end_column: 5 });
        let bytes = crate::wire::encode(&error).unwrap();
        assert_eq!(crate::wire::decode::<Error>(&bytes).unwrap(), error);
    }
}
