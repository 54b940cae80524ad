//! A blocking client of the REST door, for the command line.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use shoal_kernel::ReadLevel;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::http::QUERY_ID;

/// Time to connect, beyond which the node counts as away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an answer that is read whole.
const ANSWER_BYTES_MAX: u64 = 1 << 30;

/// Bytes of a problem document that are read.
const PROBLEM_BYTES_MAX: u64 = 1 << 20;

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// The connection broke in the middle of an answer.
    #[error("the answer was cut off: {0}")]
    CutOff(String),
    /// The node answered with an error.
    #[error("{0}")]
    Refused(Box<Refusal>),
}

impl ClientError {
    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::CutOff(_) => true,
            Self::Refused(refusal) => refusal.retryable,
        }
    }

    /// The error's code, if the node gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => Some(&refusal.code),
            _ => None,
        }
    }
}

/// A problem document, as far as people want to see it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// The stable word.
    pub code: String,
    /// What happened.
    pub detail: String,
    /// What to do.
    pub help: Option<String>,
    /// Whether it was carried out all the same.
    pub applied: String,
    /// Whether trying again may help.
    pub retryable: bool,
    /// Places in the SQL text.
    pub spans: Vec<Place>,
    /// Bad rows of an ingest.
    pub errors: Vec<Value>,
}

/// Where in the SQL text.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)?;
        if self.applied == "unknown" {
            f.write_str(" (it may have been applied)")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  {help}")?;
        }
        for error in self.errors.iter().skip(1).take(9) {
            write!(f, "\n  line {}: {}", error["line"], error["message"].as_str().unwrap_or_default())?;
        }
        Ok(())
    }
}

/// One node's REST door.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    url: String,
    /// The level of reads, if not what the tables ask for.
    read_level: Option<ReadLevel>,
}

impl Client {
    /// `url` such as `http://127.0.0.1:9175`.
    pub fn new(url: &str) -> Self {
        Self { agent: agent(None), url: url.trim_end_matches('/').to_owned(), read_level: None }
    }

    /// The same, giving up each request that is not answered whole within this time.
    pub fn within(self, time: Duration) -> Self {
        Self { agent: agent(Some(time)), ..self }
    }

    /// The same, reading at that level.
    pub fn reading_at(self, read_level: Option<ReadLevel>) -> Self {
        Self { read_level, ..self }
    }

    /// Where it connects.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn unreachable(&self, error: ureq::Error) -> ClientError {
        ClientError::Unreachable { url: self.url.clone(), reason: error.to_string() }
    }

    fn checked(&self, response: Result<Response<Body>, ureq::Error>) -> Result<Response<Body>, ClientError> {
        let mut response = response.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.body_mut().with_config().limit(PROBLEM_BYTES_MAX).read_to_string().unwrap_or_default();
        let refusal = serde_json::from_str(&text).unwrap_or_else(|_| Refusal {
            code: "invalid_answer".into(),
            detail: format!("the answer is {status} without a problem document; is this a Shoal node?"),
            ..Refusal::default()
        });
        Err(ClientError::Refused(Box::new(refusal)))
    }

    /// Runs SQL; the body is read as it comes.
    ///
    /// # Errors
    /// The node cannot be reached or refuses.
    pub fn sql(&self, sql: &str, format: &str, query_id: Option<&str>) -> Result<Response<Body>, ClientError> {
        let mut request = self.agent.post(format!("{}/api/v1/sql", self.url));
        if let Some(id) = query_id {
            request = request.header(QUERY_ID, id);
        }
        let level = self.read_level;
        self.checked(request.send_json(serde_json::json!({"query": sql, "format": format, "consistency": level})))
    }

    /// Runs SQL and reads the whole answer as JSON.
    ///
    /// # Errors
    /// As for `sql`, or the answer is incomplete.
    pub fn sql_json(&self, sql: &str, query_id: Option<&str>) -> Result<Value, ClientError> {
        let response = self.sql(sql, "json", query_id)?;
        let mut body = Vec::new();
        let mut reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        reader.read_to_end(&mut body).map_err(|error| ClientError::CutOff(error.to_string()))?;
        let answer: Value = serde_json::from_slice(&body).map_err(|error| ClientError::CutOff(error.to_string()))?;
        if let Some(problem) = answer.get("error") {
            let refusal = Refusal::deserialize(problem).unwrap_or_default();
            return Err(ClientError::Refused(Box::new(refusal)));
        }
        if answer["end"] != true {
            return Err(ClientError::CutOff("it has no end".into()));
        }
        Ok(answer)
    }

    /// Writes rows.
    ///
    /// # Errors
    /// The node cannot be reached or refuses.
    pub fn ingest(
        &self,
        table: &str,
        media_type: &str,
        body: &[u8],
        token: Option<&str>,
        ack: Option<&str>,
    ) -> Result<Value, ClientError> {
        let mut request = self
            .agent
            .post(format!("{}/api/v1/tables/{}/ingest", self.url, path_segment(table)))
            .header("content-type", media_type);
        if let Some(ack) = ack {
            request = request.query("ack", ack);
        }
        if let Some(token) = token {
            request = request.header("idempotency-key", token);
        }
        read_json(self.checked(request.send(body))?)
    }

    /// The cluster as the node sees it.
    ///
    /// # Errors
    /// The node cannot be reached or refuses.
    pub fn cluster(&self) -> Result<Value, ClientError> {
        read_json(self.checked(self.agent.get(format!("{}/api/v1/cluster", self.url)).call())?)
    }

    /// Has a node do what an operator wants: `drain`, `activate`, `decommission` or `remove`.
    ///
    /// # Errors
    /// The node that is asked cannot be reached or refuses.
    pub fn change_node(&self, id: u32, change: &str) -> Result<(), ClientError> {
        let url = format!("{}/api/v1/cluster/nodes/{id}/{change}", self.url);
        self.checked(self.agent.post(url).send_empty()).map(|_| ())
    }

    /// What there is to move for balance.
    ///
    /// # Errors
    /// The node cannot be reached or refuses.
    pub fn balance(&self) -> Result<Value, ClientError> {
        read_json(self.checked(self.agent.get(format!("{}/api/v1/cluster/balance", self.url)).call())?)
    }

    /// Has moves for balance end or begin again: `pause` or `resume`.
    ///
    /// # Errors
    /// The node cannot be reached or refuses.
    pub fn change_balance(&self, change: &str) -> Result<(), ClientError> {
        let url = format!("{}/api/v1/cluster/balance/{change}", self.url);
        self.checked(self.agent.post(url).send_empty()).map(|_| ())
    }

    /// Whether the node takes requests.
    ///
    /// # Errors
    /// Not, or not yet.
    pub fn ready(&self) -> Result<(), ClientError> {
        self.checked(self.agent.get(format!("{}/readyz", self.url)).call()).map(|_| ())
    }

    /// A running query's progress.
    ///
    /// # Errors
    /// It runs no longer, or the node cannot be reached.
    pub fn progress(&self, query_id: &str) -> Result<Value, ClientError> {
        read_json(self.checked(self.agent.get(format!("{}/api/v1/queries/{query_id}", self.url)).call())?)
    }

    /// Stops a query.
    ///
    /// # Errors
    /// It runs no longer, or the node cannot be reached.
    pub fn cancel(&self, query_id: &str) -> Result<(), ClientError> {
        self.checked(self.agent.delete(format!("{}/api/v1/queries/{query_id}", self.url)).call()).map(|_| ())
    }
}

fn agent(within: Option<Duration>) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_global(within)
        .proxy(None)
        .build()
        .new_agent()
}

fn read_json(mut response: Response<Body>) -> Result<Value, ClientError> {
    response
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_json()
        .map_err(|error| ClientError::CutOff(error.to_string()))
}

fn path_segment(name: &str) -> String {
    use std::fmt::Write;
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            segment.push(char::from(byte));
        } else {
            // Writing into a string does not fail.
            let _ = write!(segment, "%{byte:02X}");
        }
    }
    segment
}
