//! What runs at this node, under the ids that clients know: for progress, and to stop it also between two statements.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use shoal_actors::service::Progress;
use shoal_kernel::{Error, ErrorCode, QueryId, Result};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

/// Characters of the SQL text that are shown.
const SQL_SHOWN_CHARS: usize = 1000;

type Entries = Arc<Mutex<BTreeMap<QueryId, Entry>>>;

/// The running requests of one node.
#[derive(Default)]
pub(crate) struct Running {
    entries: Entries,
}

struct Entry {
    sql: String,
    progress: Progress,
    cancel: CancellationToken,
}

/// A running query, as clients see it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RunningQuery {
    /// Its id.
    pub(crate) id: String,
    /// Its text, cut if long.
    pub(crate) sql: String,
    /// Its place in the line, from 1, while it waits to be admitted.
    pub(crate) queued: Option<u32>,
    /// Tasks that have finished.
    pub(crate) tasks_done: u32,
    /// Tasks in all.
    pub(crate) tasks: u32,
    /// Rows read from replicas.
    pub(crate) rows_scanned: u64,
    /// Bytes read from replicas.
    pub(crate) bytes_scanned: u64,
}

fn lock(entries: &Entries) -> MutexGuard<'_, BTreeMap<QueryId, Entry>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    /// Enters a request.
    ///
    /// # Errors
    /// The id is taken.
    pub(crate) fn enter(&self, id: QueryId, sql: &str) -> Result<Guard> {
        let cancel = CancellationToken::new();
        let mut entries = lock(&self.entries);
        if entries.contains_key(&id) {
            return Err(Error::new(ErrorCode::InvalidRequest, format!("query {id} is running already"))
                .with_help("a query id is for one request; leave it out to be given one"));
        }
        let sql = shoal_actors::without_secrets(sql).chars().take(SQL_SHOWN_CHARS).collect();
        entries.insert(id, Entry { sql, progress: Progress::default(), cancel: cancel.clone() });
        drop(entries);
        metrics::gauge!("shoal_requests_running").increment(1.0);
        Ok(Guard { id, cancel, entries: self.entries.clone() })
    }

    /// Stops a request; false if none of that id runs here.
    pub(crate) fn cancel(&self, id: QueryId) -> bool {
        let entries = lock(&self.entries);
        let entry = entries.get(&id);
        if let Some(entry) = entry {
            entry.cancel.cancel();
        }
        entry.is_some()
    }

    /// What runs, by id.
    pub(crate) fn list(&self) -> Vec<RunningQuery> {
        lock(&self.entries).iter().map(|(id, entry)| show(*id, entry)).collect()
    }

    /// One of them.
    pub(crate) fn get(&self, id: QueryId) -> Option<RunningQuery> {
        lock(&self.entries).get(&id).map(|entry| show(id, entry))
    }
}

fn show(id: QueryId, entry: &Entry) -> RunningQuery {
    RunningQuery {
        id: id.to_string(),
        sql: entry.sql.clone(),
        queued: entry.progress.queued,
        tasks_done: entry.progress.tasks_done,
        tasks: entry.progress.tasks,
        rows_scanned: entry.progress.rows_scanned,
        bytes_scanned: entry.progress.bytes_scanned,
    }
}

/// A request's place in the list; leaves it when dropped.
pub(crate) struct Guard {
    pub(crate) id: QueryId,
    pub(crate) cancel: CancellationToken,
    entries: Entries,
}

impl Guard {
    pub(crate) fn progress(&self, progress: Progress) {
        if let Some(entry) = lock(&self.entries).get_mut(&self.id) {
            entry.progress = progress;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        lock(&self.entries).remove(&self.id);
        metrics::gauge!("shoal_requests_running").decrement(1.0);
    }
}
