//! A replica's part of a backup.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::{ObjectStoreExt, UploadPart};
use shoal_kernel::{Error, PartitionId, Planted, Result};
use shoal_storage::{CheckpointFile, CheckpointOutline, SegmentReader};
use tokio::sync::mpsc;

use super::message::{Done, Uploaded};
use super::object::{Objects, named_by_content, not_put};
use crate::node::context::NodeContext;
use crate::replica::directory::ReplicaDirectory;
use crate::replica::quorum;

/// Bytes of an object that are sent at once; one that is not longer is sent whole.
pub(crate) const PART_BYTES: usize = 8 << 20;
/// Parts of one object on their way.
const PARTS_AT_ONCE: usize = 3;
/// How long a replica may take to get what a majority holds.
const QUORUM_PATIENCE: Duration = Duration::from_secs(60);
/// How long a request waits for a replica that the catalog has placed here just now.
const PLACE_PATIENCE: Duration = Duration::from_secs(2);

/// Stores what this node's replica of a partition holds, and everything that was acknowledged at quorum before.
///
/// # Errors
/// The replica is not fit to answer, or too few others are; or as the store of objects says. What has been stored stays, and is not
/// sent again.
pub(crate) async fn upload(
    context: &Arc<NodeContext>,
    directory: &ReplicaDirectory,
    partition: PartitionId,
    objects: &Objects,
    news: &mpsc::Sender<Done>,
) -> Result<Uploaded> {
    let _place = context.backups.place().await;
    let handle = directory.wait(&context.env, partition, PLACE_PATIENCE).await?;
    // From here on its store holds what a majority held after the backup had begun.
    let running = match context.config.has(Planted::BackupBehind) {
        true => handle.running()?,
        false => quorum::snapshot(context, &handle, QUORUM_PATIENCE).await?.0,
    };
    let store = running.store.clone();
    let checkpoint = context.env.blocking(move || store.checkpoint()).await?;
    let checkpoint = checkpoint.inspect_err(|error| running.blame(error))?;
    let outline = format!("outlines/{}.chk", named_by_content(checkpoint.outline()));
    let mut uploaded = Uploaded {
        rows: checkpoint.rows(),
        files: 0,
        bytes: checkpoint.outline().len() as u64,
        bytes_copied: 0,
        outline,
        schema_version: checkpoint.schema_version(),
    };
    let checkpoint = Arc::new(checkpoint);
    for (place, file) in CheckpointOutline::parse(checkpoint.outline())?.files().enumerate() {
        let CheckpointFile { name, bytes, .. } = file;
        let name = format!("segments/{name}.seg");
        uploaded.files += 1;
        uploaded.bytes += bytes;
        if objects.length(&name).await? == Some(bytes) {
            let _ = news.try_send(Done { rows: 0, bytes });
        } else {
            let checkpoint = checkpoint.clone();
            let reader = context.env.blocking(move || checkpoint.reader(place)).await?;
            let reader = reader.inspect_err(|error| running.blame(error))?;
            put(context, objects, &name, reader, news).await.inspect_err(|error| running.blame(error))?;
            uploaded.bytes_copied += bytes;
        }
    }
    let length = checkpoint.outline().len() as u64;
    if objects.length(&uploaded.outline).await? != Some(length) {
        objects.put(&uploaded.outline, checkpoint.outline().to_vec().into()).await?;
        uploaded.bytes_copied += length;
    }
    let _ = news.try_send(Done { rows: uploaded.rows, bytes: length });
    metrics::counter!("shoal_backup_bytes_total").increment(uploaded.bytes);
    metrics::counter!("shoal_backup_copied_bytes_total").increment(uploaded.bytes_copied);
    Ok(uploaded)
}

/// Sends a file, a few parts at a time.
async fn put(
    context: &NodeContext,
    objects: &Objects,
    name: &str,
    reader: SegmentReader,
    news: &mpsc::Sender<Done>,
) -> Result<()> {
    let path = objects.path(name);
    let failed = |error: object_store::Error| not_put(&objects.name(name), &error);
    let (mut reader, mut part) = next(context, reader, news).await?;
    if reader.bytes() <= PART_BYTES as u64 {
        return objects.store().put(&path, part.into()).await.map(drop).map_err(failed);
    }
    let mut sending = objects.store().put_multipart(&path).await.map_err(failed)?;
    let sent = async {
        let mut parts: FuturesUnordered<UploadPart> = FuturesUnordered::new();
        while !part.is_empty() {
            while parts.len() >= PARTS_AT_ONCE {
                if let Some(sent) = parts.next().await {
                    sent.map_err(failed)?;
                }
            }
            parts.push(sending.put_part(part.into()));
            (reader, part) = next(context, reader, news).await?;
        }
        while let Some(sent) = parts.next().await {
            sent.map_err(failed)?;
        }
        Ok::<_, Error>(())
    };
    let sent = sent.await;
    if let Err(error) = sent {
        // What has been sent of it is of no use to anybody.
        let _ = sending.abort().await;
        return Err(error);
    }
    sending.complete().await.map(drop).map_err(failed)
}

/// Reads the next part, when there is room for it in what backups may take.
async fn next(
    context: &NodeContext,
    mut reader: SegmentReader,
    news: &mpsc::Sender<Done>,
) -> Result<(SegmentReader, Vec<u8>)> {
    let (reader, part) = context
        .env
        .blocking(move || {
            let part = reader.read(PART_BYTES);
            (reader, part)
        })
        .await?;
    let part = part?;
    let bytes = part.len() as u64;
    context.backups.pay(bytes).await;
    let _ = news.try_send(Done { rows: 0, bytes });
    Ok((reader, part))
}
