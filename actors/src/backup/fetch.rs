//! A node's part of a restore: files of a partition come to its disk, are checked, read, and their rows written like any others.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use bytes::BytesMut;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::ObjectStoreExt;
use shoal_catalog::{Catalog, Table};
use shoal_kernel::env::OpenMode;
use shoal_kernel::{Column, Env, Error, ErrorCode, Result, ScanSpec, TableId, TableSchema, WriteLevel};
use shoal_storage::{CheckpointFile, CheckpointOutline, Scan, StoreOptions, batch_bytes, rows_within};
use tokio::sync::mpsc;

use super::message::{Done, FetchCall};
use super::object::{Objects, failure, named_by_content};
use super::upload::PART_BYTES;
use crate::gateway::Gateway;
use crate::node::context::NodeContext;
use crate::service::WriteRequest;

/// Bytes of an outline: some 16 for each row that has lost, and a few hundred for each file.
const OUTLINE_BYTES_MAX: u64 = 1 << 30;
/// Bytes of rows that are written at once.
const WRITE_BYTES: usize = 4 << 20;
/// Writes under way.
const WRITES_AT_ONCE: usize = 4;
/// How often a write is sent again, and the pause before that, which doubles.
const WRITE_ATTEMPTS_MAX: u32 = 8;
const WRITE_PAUSE: Duration = Duration::from_millis(100);
/// How long one attempt may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long this node may take to hear of the table.
const TABLE_PATIENCE: Duration = Duration::from_secs(10);
/// Where files lie while they are read, below the data directory. Emptied when the node starts.
pub(crate) const RESTORE_DIR: &str = "restore";

/// Removes what a restore that was cut short has left. Blocks.
pub(crate) fn clean(env: &Env, data_dir: &Path) -> Result<()> {
    let (disk, dir) = (env.disk(), data_dir.join(RESTORE_DIR));
    match disk.exists(&dir)? {
        true => Ok(disk.remove_dir_all(&dir)?),
        false => Ok(()),
    }
}

/// A directory that goes when it is dropped.
struct Temporary {
    env: Env,
    dir: PathBuf,
}

impl Temporary {
    async fn make(context: &NodeContext) -> Result<Self> {
        let env = context.env.clone();
        let dir = context.config.data_dir.join(RESTORE_DIR).join(format!("{:016x}", env.random("restore")));
        let (disk, made) = (env.disk(), dir.clone());
        // Whoever waits for it may go while it is being made: then it goes, too.
        let temporary = Self { env, dir };
        temporary.env.blocking(move || disk.create_dir_all(&made)).await??;
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let (env, dir) = (self.env.clone(), std::mem::take(&mut self.dir));
        self.env.spawn("restore.clean", async move {
            let disk = env.disk();
            // What cannot be removed now, the next start removes.
            let _ = env.blocking(move || disk.remove_dir_all(&dir)).await;
        });
    }
}

/// Reads what is stored of a partition and writes its rows. Gives their number.
///
/// # Errors
/// An object is not there, or is not what it was; the disk is full; or the rows cannot be written. Some may have been: to do it again
/// gives the same rows.
pub(crate) async fn fetch(
    context: &Arc<NodeContext>,
    gateway: &Gateway,
    call: &FetchCall,
    objects: &Objects,
    news: &mpsc::Sender<Done>,
) -> Result<u64> {
    let _place = context.backups.place().await;
    let into = table(context, call.into).await?;
    let temporary = Temporary::make(context).await?;
    let bytes = objects.read(&call.outline, OUTLINE_BYTES_MAX).await?;
    let damaged = |error: Error| error.context(objects.name(&call.outline));
    if call.outline != format!("outlines/{}.chk", named_by_content(&bytes)) {
        return Err(damaged(Error::new(ErrorCode::Corruption, "it is not what its name says")));
    }
    let outline = CheckpointOutline::parse(&bytes).map_err(damaged)?;
    let files: Vec<CheckpointFile> = outline.files().collect();
    make_sure_of_room(context, &files).await?;
    for file in &files {
        download(context, objects, file, &temporary.dir, news).await?;
    }
    let rows = outline.rows();
    let schema = Arc::new(revealed(&call.source.schema));
    let (disk, dir, shown) = (context.env.disk(), temporary.dir.clone(), schema.clone());
    // With a pool of its own: nobody else wants its pages.
    let options = StoreOptions::default();
    let (source, partition) = (call.source.id, call.partition);
    let scan = move || {
        let snapshot = outline.open(disk, &dir, shown.clone(), &options)?;
        let columns = shown.columns.iter().map(|column| column.id).collect();
        snapshot.scan(&ScanSpec::of(source, partition, shown.version, columns))
    };
    let scan = context.env.blocking(scan).await?.map_err(|error| error.context(&objects.url))?;
    // Replicas know the columns by number, also those that no statement can name any more.
    let into = Arc::new(Table { schema: schema.as_ref().clone(), ..into.as_ref().clone() });
    let written = copy(context, gateway, &into, scan, news).await?;
    drop(temporary);
    match written == rows {
        true => Ok(rows),
        false => Err(Error::internal(format!("{written} of {rows} rows of {} were read", call.partition))),
    }
}

/// The schema with the columns that were dropped, of a table of events: their values are part of what tells its rows apart, and
/// without them two rows could become one.
fn revealed(schema: &TableSchema) -> TableSchema {
    let mut revealed = schema.clone();
    if schema.is_upsert() {
        return revealed;
    }
    let dropped = schema.retired.iter().filter(|retired| retired.into.is_none());
    revealed.columns.extend(dropped.map(|retired| Column {
        id: retired.id,
        // A name that no column can have.
        name: format!("\u{1}{}", retired.id.0),
        data_type: retired.data_type.clone(),
        nullable: true,
    }));
    revealed.retired.retain(|retired| retired.into.is_some());
    revealed
}

/// The table that rows go to, once this node has heard of it.
async fn table(context: &NodeContext, id: TableId) -> Result<Arc<Table>> {
    let mut catalog = context.agreement.catalog();
    let known = catalog.wait_for(|catalog: &Arc<Catalog>| catalog.tables.contains_key(&id));
    let found = context.env.timeout(TABLE_PATIENCE, known).await.ok().and_then(|known| known.ok());
    let found = found.and_then(|catalog| catalog.tables.get(&id).cloned());
    found.map(Arc::new).ok_or_else(|| Error::new(ErrorCode::UnknownTable, format!("there is no {id}")))
}

async fn make_sure_of_room(context: &NodeContext, files: &[CheckpointFile]) -> Result<()> {
    let needed: u64 = files.iter().map(|file| file.bytes).sum();
    let (disk, dir) = (context.env.disk(), context.config.data_dir.clone());
    let free = context.env.blocking(move || disk.free_bytes(&dir)).await??;
    if free >= needed.saturating_add(context.config.disk_reserve_bytes) {
        return Ok(());
    }
    let message = format!(
        "files of {needed} bytes are to be read, and {free} bytes are free, of which {} stay so (disk_reserve_bytes)",
        context.config.disk_reserve_bytes
    );
    Err(Error::new(ErrorCode::DiskFull, message))
}

/// Brings a file to the disk. It need not last.
async fn download(
    context: &NodeContext,
    objects: &Objects,
    file: &CheckpointFile,
    dir: &Path,
    news: &mpsc::Sender<Done>,
) -> Result<()> {
    let name = format!("segments/{}.seg", file.name);
    let failed = |error: object_store::Error| failure(&objects.name(&name), &error);
    let got = objects.store().get(&objects.path(&name)).await.map_err(failed)?;
    if got.meta.size != file.bytes {
        let message = format!("{} has {} bytes, not {}", objects.name(&name), got.meta.size, file.bytes);
        return Err(Error::new(ErrorCode::Corruption, message));
    }
    let (disk, path) = (context.env.disk(), dir.join(&file.local_name));
    let local = context.env.blocking(move || disk.open(&path, OpenMode::CreateNew)).await??;
    let mut stream = got.into_stream();
    let (mut waiting, mut at) = (BytesMut::new(), 0);
    loop {
        let chunk = stream.next().await.transpose().map_err(failed)?;
        let is_last = chunk.is_none();
        waiting.extend_from_slice(&chunk.unwrap_or_default());
        if waiting.len() >= PART_BYTES || is_last && !waiting.is_empty() {
            let (part, local) = (waiting.split().freeze(), local.clone());
            let length = part.len() as u64;
            context.env.blocking(move || local.write_all_at(&part, at)).await??;
            at += length;
            context.backups.pay(length).await;
            let _ = news.try_send(Done { rows: 0, bytes: length });
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Writes all rows of a scan.
async fn copy(
    context: &NodeContext,
    gateway: &Gateway,
    table: &Arc<Table>,
    mut scan: Scan,
    news: &mpsc::Sender<Done>,
) -> Result<u64> {
    let (mut written, mut under_way) = (0, FuturesUnordered::new());
    loop {
        let batch;
        (scan, batch) = context
            .env
            .blocking(move || {
                let batch = scan.next();
                (scan, batch)
            })
            .await?;
        let Some(batch) = batch.transpose()? else { break };
        let mut at = 0;
        while at < batch.num_rows() {
            let rest = batch.slice(at, batch.num_rows() - at);
            let length = rows_within(&rest, WRITE_BYTES).clamp(1, rest.num_rows());
            while under_way.len() >= WRITES_AT_ONCE {
                written += finished(under_way.next().await, news)?;
            }
            under_way.push(write(context, gateway, table.clone(), rest.slice(0, length)));
            at += length;
        }
    }
    while let Some(done) = under_way.next().await {
        written += finished(Some(done), news)?;
    }
    Ok(written)
}

fn finished(done: Option<Result<Done>>, news: &mpsc::Sender<Done>) -> Result<u64> {
    let done = done.transpose()?.unwrap_or_default();
    let _ = news.try_send(done);
    metrics::counter!("shoal_restore_rows_total").increment(done.rows);
    Ok(done.rows)
}

/// Writes rows until they are written, in smaller parts if one request may not have as many as that: narrow windows, say.
async fn write(context: &NodeContext, gateway: &Gateway, table: Arc<Table>, batch: RecordBatch) -> Result<Done> {
    let done = Done { rows: batch.num_rows() as u64, bytes: batch_bytes(&batch) as u64 };
    let mut waiting = vec![batch];
    while let Some(batch) = waiting.pop() {
        match write_at_once(context, gateway, &table, &batch).await {
            Err(error) if error.code() == ErrorCode::LimitExceeded && batch.num_rows() > 1 => {
                let half = batch.num_rows() / 2;
                waiting.extend([batch.slice(half, batch.num_rows() - half), batch.slice(0, half)]);
            }
            written => written?,
        }
    }
    Ok(done)
}

/// Nothing else writes to the table: to send an event again, or the only version of a row, changes nothing.
async fn write_at_once(
    context: &NodeContext,
    gateway: &Gateway,
    table: &Arc<Table>,
    batch: &RecordBatch,
) -> Result<()> {
    let mut pause = WRITE_PAUSE;
    let mut attempts = 1;
    loop {
        let request = WriteRequest {
            table: table.name.clone(),
            batches: vec![batch.clone()],
            level: Some(WriteLevel::Quorum),
            token: None,
            timeout: Some(WRITE_TIMEOUT),
        };
        match gateway.write(table.clone(), request).await {
            Err(error) if error.retryable() && attempts < WRITE_ATTEMPTS_MAX => {
                tracing::debug!(%error, "rows of a restore are written again");
                context.env.sleep(pause).await;
                pause *= 2;
                attempts += 1;
            }
            written => return written.map(drop),
        }
    }
}
