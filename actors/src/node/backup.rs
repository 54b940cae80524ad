//! BACKUP: each partition is stored by a node that has a replica of it; the manifest is written last.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::StreamExt;
use shoal_catalog::{Catalog, Partition, PartitionBounds, Table};
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{Error, ErrorCode, NodeId, PartitionId, QueryId, Rare, Result, wire};
use shoal_planner::BackupPlace;
use tokio::sync::mpsc;

use super::Inner;
use super::statement::REFRESH_TIMEOUT;
use crate::backup::manifest::{Manifest, StoredPartition, StoredTable};
use crate::backup::message::{BackupCall, BackupNews, Done, Uploaded};
use crate::backup::{self, Objects, fetch, upload};
use crate::service::{Progress, QueryEvent, QueryStream, QuerySummary};
use crate::transport::{Handler, StreamSender};

/// Partitions that are stored at once, over all nodes.
const PARTITIONS_AT_ONCE: usize = 32;
/// How often all of it is begun anew, because partitions were split or moved meanwhile; what is stored is found again.
const ATTEMPTS_MAX: u32 = 5;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);
/// How often all replicas of a partition are asked, and the pause before the second time, which doubles.
const ROUNDS_MAX: u32 = 6;
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// The deadline of a statement that names none: thirty days. Whoever waits no longer goes away.
const PATIENCE: Duration = Duration::from_secs(30 * 86_400);
/// How often a client hears how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// How long a node may take to hear of a task.
const START_WAIT: Duration = Duration::from_secs(10);
/// News that may be on their way: a few bytes each.
const NEWS_CREDIT_BYTES: u32 = 64 << 10;
/// News that wait to be sent; those that find no room are not told.
const NEWS_WAITING_MAX: usize = 64;

/// What is known of a statement under way.
#[derive(Default)]
pub(super) struct Job {
    progress: Mutex<Progress>,
    /// Tables that are to go if it fails.
    pub(super) unfinished: Mutex<Vec<String>>,
}

impl Job {
    pub(super) fn expect(&self, tasks: usize) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        *progress = Progress { tasks: u32::try_from(tasks).unwrap_or(u32::MAX), ..Progress::default() };
    }

    fn add(&self, done: Done, tasks: u32) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.rows_scanned += done.rows;
        progress.bytes_scanned += done.bytes;
        progress.tasks_done += tasks;
    }

    fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the tasks that other nodes have for this one.
pub(super) struct Service(pub(super) Weak<Inner>);

impl Handler for Service {
    fn open(&self, _from: NodeId, header: Bytes, out: StreamSender) -> BoxFuture<'static, ()> {
        let inner = self.0.upgrade();
        async move {
            let Some(inner) = inner else {
                return out.fail(Error::new(ErrorCode::NotReady, "the node is stopping")).await;
            };
            match wire::decode::<BackupCall>(&header) {
                Ok(call) => inner.serve(call, out).await,
                Err(error) => out.fail(error.into()).await,
            }
        }
        .boxed()
    }
}

impl Inner {
    pub(super) fn start_backup(
        self: &Arc<Self>,
        id: QueryId,
        table: Option<String>,
        to: BackupPlace,
        timeout: Option<Duration>,
    ) -> QueryStream {
        self.start_job(id, "BACKUP", timeout, |inner, job| async move { inner.back_up(table, to, &job).await })
    }

    /// Runs a statement that takes its time, until it is done or nobody waits for it any more.
    pub(super) fn start_job<F>(
        self: &Arc<Self>,
        id: QueryId,
        tag: &'static str,
        timeout: Option<Duration>,
        work: impl FnOnce(Arc<Self>, Arc<Job>) -> F,
    ) -> QueryStream
    where
        F: Future<Output = Result<RecordBatch>> + Send + 'static,
    {
        let (events, stream) = QueryStream::channel(id, 4);
        let (inner, job, env) = (self.clone(), Arc::new(Job::default()), self.context.env.clone());
        let started = env.monotonic();
        let work = work(inner.clone(), job.clone());
        let limit = timeout.unwrap_or(PATIENCE);
        self.context.env.spawn("backup", async move {
            let outcome = {
                let mut work = pin!(env.timeout(limit, work));
                loop {
                    tokio::select! {
                        biased;
                        () = events.closed() => break None,
                        done = &mut work => break Some(done.unwrap_or_else(|_| Err(late(tag, limit)))),
                        () = env.sleep(PROGRESS_EVERY) => {
                            // Who reads slowly hears the next one.
                            let _ = events.try_send(QueryEvent::Progress(job.progress()));
                        }
                    }
                }
            };
            let undone = match &outcome {
                Some(Ok(_)) => Ok(()),
                _ => inner.give_up(&job).await,
            };
            match outcome {
                Some(Ok(rows)) => {
                    let elapsed = env.monotonic().saturating_sub(started);
                    let summary = QuerySummary {
                        rows: rows.num_rows() as u64,
                        elapsed_micros: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
                        progress: job.progress(),
                        ..QuerySummary::default()
                    };
                    for event in [QueryEvent::Schema(rows.schema()), QueryEvent::Batch(rows), QueryEvent::End(summary)]
                    {
                        if events.send(event).await.is_err() {
                            return;
                        }
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, statement = tag, "a statement failed");
                    let error = error.context(tag);
                    let error = undone.err().into_iter().fold(error, |error, left: Error| {
                        error.with_applied(shoal_kernel::Applied::Unknown).with_help(left.message().to_owned())
                    });
                    let _ = events.send(QueryEvent::Error(error)).await;
                }
                None => tracing::info!(statement = tag, "a statement was stopped: nobody waits for it any more"),
            }
        });
        stream
    }

    /// Opens a place for backups, if it may be used.
    pub(super) fn objects(&self, place: &BackupPlace) -> Result<Objects> {
        let config = &self.context.config;
        backup::open(config.object_stores.as_deref(), &config.backup_urls, place)
    }

    async fn back_up(&self, table: Option<String>, to: BackupPlace, job: &Job) -> Result<RecordBatch> {
        let objects = self.objects(&to)?;
        let begun_micros = self.context.env.wall_micros();
        let mut attempt = 1;
        let (manifest, uploads) = loop {
            match self.store_all(table.as_deref(), &to, &objects, begun_micros, job).await {
                Err(error)
                    if matches!(error.code(), ErrorCode::Moved | ErrorCode::SchemaChanged)
                        && attempt < ATTEMPTS_MAX =>
                {
                    attempt += 1;
                    self.context.env.reached(Rare::BackupRepeated);
                    self.context.env.sleep(ATTEMPT_PAUSE).await;
                }
                stored => break stored?,
            }
        };
        let name = format!("backups/{}.json", manifest.id);
        objects.put(&name, manifest.to_bytes()?.into()).await?;
        metrics::counter!("shoal_backups_total").increment(1);
        answer(&manifest, &uploads)
    }

    /// Stores what the partitions of the wanted tables hold; gives the manifest.
    async fn store_all(
        &self,
        table: Option<&str>,
        to: &BackupPlace,
        objects: &Objects,
        begun_micros: u64,
        job: &Job,
    ) -> Result<(Manifest, BTreeMap<PartitionId, (NodeId, Uploaded)>)> {
        // What was acknowledged before lies in partitions that the catalog has agreed on by now.
        let catalog = self.context.agreement.linearizable(REFRESH_TIMEOUT).await?;
        let wanted: Vec<&Table> = match table {
            Some(name) => vec![catalog.table(name).ok_or_else(|| catalog.unknown_table(name))?],
            None => catalog.tables.values().filter(|table| !super::restore::is_unfinished(&table.name)).collect(),
        };
        let partitions: Vec<&Partition> = wanted.iter().flat_map(|table| catalog.partitions_of(table)).collect();
        job.expect(partitions.len());
        // Collected first: see the gateway.
        let asked: Vec<_> = partitions.iter().map(|partition| self.store(partition, to, job)).collect();
        let mut done = futures::stream::iter(asked).buffered(PARTITIONS_AT_ONCE);
        let mut uploads = BTreeMap::new();
        let mut place = partitions.iter();
        while let (Some(stored), Some(partition)) = (done.next().await, place.next()) {
            let (node, uploaded) = stored.map_err(|error| error.context(partition.id))?;
            uploads.insert(partition.id, (node, uploaded));
        }
        drop(done);
        // Of a directory that is not shared, everybody sees a part.
        for (node, uploaded) in uploads.values() {
            let length = objects.length(&uploaded.outline).await?;
            if length.is_none() {
                let message =
                    format!("{node} has stored {}, and {} does not see it", uploaded.outline, self.context.node);
                return Err(Error::new(ErrorCode::InvalidRequest, message)
                    .with_help("file:// needs a directory that all nodes share, such as a mount; or use s3://"));
            }
        }
        // The definitions come last: no row is of a newer version of its schema.
        let newest = self.context.agreement.linearizable(REFRESH_TIMEOUT).await?;
        let tables =
            wanted.iter().map(|table| stored_table(&newest, &catalog, table, &uploads)).collect::<Result<_>>()?;
        let id = backup_id(begun_micros, self.context.env.random("backup id"));
        let manifest = Manifest { id, begun_micros, cluster_id: catalog.cluster_id, tables };
        Ok((manifest, uploads))
    }

    /// Has a partition stored by one of its replicas. What keeps all of them from it may pass, as an election or a start does.
    async fn store(&self, partition: &Partition, to: &BackupPlace, job: &Job) -> Result<(NodeId, Uploaded)> {
        let mut pause = ROUND_PAUSE;
        for _ in 1..ROUNDS_MAX {
            match self.store_once(partition, to, job).await {
                Err(error) if !self.context.agreement.catalog().borrow().partitions.contains_key(&partition.id) => {
                    let message = format!("{} was split or dropped meanwhile: {}", partition.id, error.message());
                    return Err(Error::new(ErrorCode::Moved, message));
                }
                Err(error) if may_pass(error.code()) => {
                    tracing::info!(partition = %partition.id, %error, "a partition cannot be backed up just now");
                    self.context.env.sleep(pause).await;
                    pause *= 2;
                }
                stored => return stored,
            }
        }
        self.store_once(partition, to, job).await
    }

    /// Asks its replicas one after the other, always the same one first, for others have other files.
    async fn store_once(&self, partition: &Partition, to: &BackupPlace, job: &Job) -> Result<(NodeId, Uploaded)> {
        let mut nodes: Vec<NodeId> = partition.voters().collect();
        nodes.sort_unstable();
        let turn = partition.id.0 as usize % nodes.len().max(1);
        nodes.rotate_left(turn);
        let mut last = Error::new(ErrorCode::PartitionUnavailable, "all nodes with a replica are down");
        for node in nodes {
            if self.context.liveness.is_down(node) {
                continue;
            }
            let (url, options) = (to.url.clone(), to.options.clone());
            let call = BackupCall::Upload { partition: partition.id, url, options };
            match self.hand(node, &call, job).await {
                Ok(BackupNews::Uploaded(uploaded)) => {
                    job.add(Done::default(), 1);
                    return Ok((node, uploaded));
                }
                Ok(_) => return Err(Error::internal("a node answered another question than it was asked")),
                Err(error) if error.retryable() && error.code() != ErrorCode::Moved => {
                    tracing::info!(%node, partition = %partition.id, %error, "another replica is to be backed up");
                    self.context.env.reached(Rare::BackupElsewhere);
                    last = error.context(node);
                }
                Err(error) => return Err(error.context(node)),
            }
        }
        Err(last)
    }

    /// Has a node do a task, and waits for its last word.
    pub(super) async fn hand(&self, node: NodeId, call: &BackupCall, job: &Job) -> Result<BackupNews> {
        let header = wire::encode(call)?.into();
        let transport = &self.context.transport;
        let mut news =
            transport.open(node, crate::transport::Route::Backup, header, NEWS_CREDIT_BYTES, START_WAIT).await?;
        while let Some(item) = news.next().await {
            match wire::decode(&item?)? {
                BackupNews::Progress(done) => job.add(done, 0),
                last => return Ok(last),
            }
        }
        Err(Error::new(ErrorCode::NodeLost, format!("{node} did not say how it went")))
    }

    /// Does a task for another node, or this one.
    async fn serve(&self, call: BackupCall, out: StreamSender) {
        let (news, mut heard) = mpsc::channel(NEWS_WAITING_MAX);
        let mut work = pin!(self.work(call, news));
        let mut closed = pin!(out.closed());
        let last = loop {
            let said = tokio::select! {
                biased;
                () = &mut closed => return,
                last = &mut work => break last,
                Some(done) = heard.recv() => tell(&out, &BackupNews::Progress(done)).await,
            };
            if said.is_err() {
                return;
            }
        };
        let told = match last {
            Ok(last) => tell(&out, &last).await,
            Err(error) => Err(error),
        };
        match told {
            Ok(()) => out.finish().await,
            Err(error) => out.fail(error).await,
        }
    }

    async fn work(&self, call: BackupCall, news: mpsc::Sender<Done>) -> Result<BackupNews> {
        let place = |url: &str, options| BackupPlace { url: url.to_owned(), options, backup: None };
        match call {
            BackupCall::Upload { partition, url, options } => {
                let objects = self.objects(&place(&url, options))?;
                let uploaded = upload::upload(&self.context, &self.directory, partition, &objects, &news).await?;
                Ok(BackupNews::Uploaded(uploaded))
            }
            BackupCall::Fetch(call) => {
                let objects = self.objects(&place(&call.url, call.options.clone()))?;
                let rows = fetch::fetch(&self.context, &self.gateway, &call, &objects, &news).await?;
                Ok(BackupNews::Fetched { rows })
            }
        }
    }

    pub(super) fn partition_done(&self, job: &Job) {
        job.add(Done::default(), 1);
    }
}

/// Whether replicas may be fit for it in a moment.
fn may_pass(code: ErrorCode) -> bool {
    use ErrorCode::{NodeLost, NotEnoughReplicas, NotReady, Overloaded, PartitionUnavailable, Timeout};
    matches!(code, NodeLost | NotEnoughReplicas | NotReady | Overloaded | PartitionUnavailable | Timeout)
}

async fn tell(out: &StreamSender, news: &BackupNews) -> Result<()> {
    let sent = out.send(wire::encode(news)?.into()).await;
    sent.map_err(|closed| closed.0)
}

fn late(tag: &str, limit: Duration) -> Error {
    Error::new(ErrorCode::Timeout, format!("{tag} was not done within {} ms", limit.as_millis()))
        .with_help("send it again: what is stored is found again; give it more time")
}

/// A name that sorts by time.
fn backup_id(micros: u64, number: u64) -> String {
    let time = i64::try_from(micros).ok().and_then(chrono::DateTime::from_timestamp_micros).unwrap_or_default();
    format!("{}-{:08x}", time.format("%Y%m%dT%H%M%S%.6fZ"), number as u32)
}

/// A table of the manifest: as it is now, with the partitions that were stored.
fn stored_table(
    newest: &Catalog,
    catalog: &Catalog,
    table: &Table,
    uploads: &BTreeMap<PartitionId, (NodeId, Uploaded)>,
) -> Result<StoredTable> {
    let Some(definition) = newest.tables.get(&table.id) else {
        let message = format!("'{}' was dropped meanwhile", table.name);
        return Err(Error::new(ErrorCode::UnknownTable, message));
    };
    let mut partitions = Vec::new();
    for partition in catalog.partitions_of(table) {
        let Some((_, uploaded)) = uploads.get(&partition.id) else {
            return Err(Error::internal(format!("{} was not stored", partition.id)));
        };
        if uploaded.schema_version > definition.schema.version {
            let message = format!("'{}' was altered meanwhile", table.name);
            return Err(Error::new(ErrorCode::SchemaChanged, message));
        }
        let range = match &partition.bounds {
            PartitionBounds::Range(range) => Some(range.clone()),
            PartitionBounds::Bucket(_) => None,
        };
        let &Uploaded { rows, bytes, ref outline, .. } = uploaded;
        partitions.push(StoredPartition { id: partition.id, range, rows, bytes, outline: outline.clone() });
    }
    Ok(StoredTable { definition: Table { partitions: Vec::new(), ..definition.clone() }, partitions })
}

/// A row for each partition.
fn answer(manifest: &Manifest, uploads: &BTreeMap<PartitionId, (NodeId, Uploaded)>) -> Result<RecordBatch> {
    let rows = manifest.tables.iter().flat_map(|table| {
        let name = table.definition.name.as_str();
        table.partitions.iter().filter_map(move |partition| Some((name, partition.id, &uploads.get(&partition.id)?.1)))
    });
    let rows: Vec<(&str, PartitionId, &Uploaded)> = rows.collect();
    let number = |value: &dyn Fn(&Uploaded) -> u64| -> ArrayRef {
        Arc::new(rows.iter().map(|row| value(row.2).cast_signed()).collect::<Int64Array>())
    };
    let backup = std::iter::repeat_n(manifest.id.as_str(), rows.len());
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("backup", Arc::new(StringArray::from_iter_values(backup))),
        ("table", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0)))),
        ("partition", Arc::new(rows.iter().map(|row| row.1.0.cast_signed()).collect::<Int64Array>())),
        ("rows", number(&|uploaded| uploaded.rows)),
        ("files", number(&|uploaded| uploaded.files)),
        ("bytes", number(&|uploaded| uploaded.bytes)),
        ("bytes_copied", number(&|uploaded| uploaded.bytes_copied)),
    ];
    table_of(columns)
}

pub(super) fn table_of(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    let columns = columns.into_iter().map(|(name, column)| (name, column, false));
    RecordBatch::try_from_iter_with_nullable(columns).map_err(|error| Error::internal(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_backups_sort_by_time() {
        assert_eq!(backup_id(1_700_000_000_123_456, 7), "20231114T221320.123456Z-00000007");
        assert!(backup_id(999, 9) < backup_id(1_000, 1));
    }
}
