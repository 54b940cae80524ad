//! Opening a replica's directory, and giving up on one that is damaged.

use std::path::Path;
use std::sync::Arc;

use shoal_catalog::Partition;
use shoal_kernel::env::{Disk, REPLACEMENT};
use shoal_kernel::{Env, Epoch, Error, ErrorCode, Fsync, LogId, PartitionId, Rare, Result, TableSchema, wire};
use shoal_storage::{Replay, Store, StoreOptions};

use super::handle::ReplicaHandle;
use super::{Durable, opening};
use crate::node::context::NodeContext;

/// Beside a replica's directory: what is in there was given up and is to be removed.
pub(crate) const LOST: &str = "lost";
/// Beside a replica's directory: it began empty and has not counted since.
pub(crate) const REFILLING: &str = "refilling";
/// Beside a replica's directory: files of a peer, and once they are whole, the replica's store.
pub(crate) const FILLING: &str = "filling";
/// In the place of a replica's directory: what is left of one that was taken from this node.
pub(crate) const GONE: &str = "gone";

/// Among the replicas' directories: the number of the cluster that they are of. One that is not named there, because an earlier build made
/// it, may be anything.
pub(crate) const CLUSTER: &str = "cluster";

pub(super) struct Opened {
    pub(super) store: Arc<Store>,
    pub(super) durable: Option<Durable>,
    /// The replica has been here before.
    pub(super) known: bool,
    /// Its rows were given up; it must be filled from its peers.
    pub(super) emptied: bool,
    /// The end of its log is ambiguous, or may have been lost.
    pub(super) in_doubt: bool,
    /// Nothing is missing that was durable when the owner's blob was written.
    pub(super) blob_holds: bool,
}

/// What a table says of its replicas' stores.
#[derive(Clone)]
pub(super) struct Form {
    pub(super) schema: Arc<TableSchema>,
    pub(super) fsync: Fsync,
}

/// What a replica last made durable of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) sealed: Epoch,
    pub(crate) counts: bool,
    pub(crate) log_id: LogId,
}

/// Reads the owner's blob of a store; `None` if the replica has never been opened to the end.
///
/// # Errors
/// [`ErrorCode::Corruption`] if it makes no sense.
pub(crate) fn remembered(meta: &[u8]) -> Result<Option<Remembered>> {
    if meta.is_empty() {
        return Ok(None);
    }
    let durable: Durable = wire::decode(meta)?;
    Ok(Some(Remembered { sealed: durable.core.sealed, counts: durable.core.counts, log_id: durable.log_id }))
}

/// Opens the store. One that is corrupt, or of an earlier life, is put aside if others can fill it again.
pub(super) async fn open(
    context: &Arc<NodeContext>,
    partition: &Partition,
    form: Form,
    handle: &ReplicaHandle,
) -> Result<Opened> {
    let opened = try_open(context, partition, form.clone(), handle).await;
    if !has_peers(context, partition) {
        return opened;
    }
    match opened {
        Err(error) if error.code() == ErrorCode::Corruption => condemn(context, partition, &error).await?,
        Ok(Opened { store, durable: Some(durable), .. }) if durable.is_of_earlier_life(partition, context.node) => {
            context.env.blocking(move || store.close()).await?;
            outlived(context, partition).await?;
        }
        opened => return opened,
    }
    try_open(context, partition, form, handle).await
}

/// How a replica's store is opened.
pub(super) fn options(context: &NodeContext, form: &Form) -> StoreOptions {
    StoreOptions {
        memtable_bytes_max: context.config.memtable_bytes_max,
        memtables_bytes_max: context.config.memtables_bytes_max,
        disk_reserve_bytes: context.config.disk_reserve_bytes,
        segments_overdue_max: context.config.segments_overdue_max,
        pool: context.pool.clone(),
        sync_commits: form.fsync == Fsync::Always,
        planted: context.config.planted,
        ..StoreOptions::default()
    }
}

/// A name for an accept log that begins, and the secret of its files.
pub(super) fn new_log(env: &Env) -> (LogId, u128) {
    let log_id = LogId(env.random("log id"));
    let half = || u128::from(env.random("log secret"));
    (log_id, (half() << 64) | half())
}

async fn try_open(
    context: &Arc<NodeContext>,
    partition: &Partition,
    form: Form,
    handle: &ReplicaHandle,
) -> Result<Opened> {
    let (env, dir) = (context.env.clone(), context.replica_dir(partition.id));
    let options = options(context, &form);
    let (new_log_id, log_secret) = new_log(&env);
    let label = partition.id;
    let (disk, alone) = (env.disk(), !has_peers(context, partition));
    let watched = env.clone();
    let replay = Arc::new(Replay::default());
    let watch = replay.clone();
    let opened = env.blocking(move || -> Result<Opened> {
        let (lost, refilling) = (dir.with_extension(LOST), dir.with_extension(REFILLING));
        if disk.exists(&lost)? {
            // A crash may have left the condemned directory half removed.
            if disk.exists(&dir)? {
                disk.remove_dir_all(&dir)?;
            }
            disk.rename(&lost, &refilling)?;
        }
        Store::take_over(&*disk, &dir.with_extension(FILLING), &dir)?;
        disk.create_dir_all(&dir)?;
        let (store, recovery) =
            Store::open_watched(disk.clone(), &dir, form.schema, options, new_log_id, log_secret, &watch)?;
        if recovery.tail_bytes_cut > 0 {
            watched.reached(Rare::TailCut);
        }
        if recovery.in_doubt {
            watched.reached(Rare::LogInDoubt);
        }
        if recovery.unclean {
            watched.reached(Rare::LogUnclean);
            metrics::counter!("shoal_logs_unclean_total").increment(1);
        }
        let meta = store.meta();
        let durable: Option<Durable> = if meta.is_empty() { None } else { Some(wire::decode(&meta)?) };
        if let Some(problem) = recovery.quarantined.first().filter(|_| !alone) {
            return Err(problem.to_error());
        }
        let counted = durable.as_ref().is_some_and(|durable| durable.core.counts);
        let mut emptied = disk.exists(&refilling)?;
        if emptied && counted {
            disk.remove_file(&refilling)?;
            emptied = false;
        }
        Ok(Opened {
            known: durable.is_some(),
            emptied,
            in_doubt: recovery.in_doubt
                || recovery.unclean
                || durable.as_ref().is_some_and(|durable| durable.log_id != recovery.log_id),
            blob_holds: durable.as_ref().is_some_and(|durable| store.has_synced_of(durable.log_id)),
            durable,
            store,
        })
    });
    let opened = opening::watch(context, handle, replay, opened).await;
    opened?.map_err(|error| error.context(format_args!("replica of {label}")))
}

/// Gives up on what is on the disk: the next start begins empty and fills itself from its peers. Without peers the damage
/// stays where it is, and is reported.
pub(super) async fn condemn(context: &Arc<NodeContext>, partition: &Partition, error: &Error) -> Result<()> {
    if !has_peers(context, partition) {
        return Err(error.clone().context("damaged, and there is no other replica to restore it from"));
    }
    tracing::error!(partition = %partition.id, %error, "a replica is damaged; it is emptied and filled from its peers");
    context.env.trace(|| format!("{} is damaged and emptied: {error}", partition.id));
    empty(context, partition.id).await
}

/// Gives up on what is left of a replica that had been taken from this node, and was not removed before it was given back: with the rows that
/// it holds might come back what was deleted meanwhile.
async fn outlived(context: &Arc<NodeContext>, partition: &Partition) -> Result<()> {
    tracing::warn!(partition = %partition.id, "files of an earlier replica are here; it is emptied and filled from its peers");
    context.env.trace(|| format!("{} is of an earlier life and emptied", partition.id));
    empty(context, partition.id).await
}

async fn empty(context: &NodeContext, partition: PartitionId) -> Result<()> {
    metrics::counter!("shoal_replicas_condemned_total").increment(1);
    context.env.reached(Rare::ReplicaEmptied);
    let (disk, dir) = (context.env.disk(), context.replica_dir(partition));
    context
        .env
        .blocking(move || -> Result<()> {
            // The marker first: were the directory removed before it is durable, a crash would leave an empty replica that
            // believes it is a new one.
            disk.replace(&dir.with_extension(LOST), b"")?;
            if disk.exists(&dir)? {
                disk.remove_dir_all(&dir)?;
            }
            Ok(())
        })
        .await?
}

/// A replica that began empty counts again, and remembers that: nothing need say any more that it began so. If the mark stays after all,
/// the next start removes it.
pub(super) async fn refilled(context: &NodeContext, partition: PartitionId) {
    context.env.reached(Rare::ReplicaRefilled);
    let (disk, mark) = (context.env.disk(), context.replica_dir(partition).with_extension(REFILLING));
    let removed = context.env.blocking(move || if disk.exists(&mark)? { disk.remove_file(&mark) } else { Ok(()) });
    if let Err(error) = removed.await.map_err(Error::from).and_then(|done| Ok(done?)) {
        tracing::debug!(%partition, %error, "the mark of a replica that was filled anew stays");
    }
}

/// Whether others could fill this replica again.
pub(super) fn has_peers(context: &NodeContext, partition: &Partition) -> bool {
    partition.voters().any(|voter| voter != context.node)
}

/// Removes everything of a replica that the catalog has taken from this node. The directory is first given a name under which
/// nobody would open what a crash leaves of it.
pub(super) fn remove(disk: &dyn Disk, dir: &Path) -> Result<()> {
    finish_removal(disk, dir)?;
    let (gone, filling) = (dir.with_extension(GONE), dir.with_extension(FILLING));
    if disk.exists(&filling)? {
        disk.remove_dir_all(&filling)?;
    }
    let is_there = disk.exists(dir)?;
    if is_there {
        disk.rename(dir, &gone)?;
    }
    // Also for a copy that was removed: what a loss of power brought back would be taken for one of the replica's next life here.
    if let Some(above) = dir.parent().filter(|above| disk.exists(above).unwrap_or(true)) {
        disk.sync_dir(above)?;
    }
    if is_there {
        disk.remove_dir_all(&gone)?;
    }
    // What they say of the directory has to outlive it.
    for beside in [LOST, REFILLING] {
        let path = dir.with_extension(beside);
        if disk.exists(&path)? {
            disk.remove_file(&path)?;
        }
    }
    Ok(())
}

/// Removes what an earlier attempt to do so has left.
pub(super) fn finish_removal(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let gone = dir.with_extension(GONE);
    if disk.exists(&gone)? {
        disk.remove_dir_all(&gone)?;
    }
    Ok(())
}

/// Removes copies that an earlier life of the node had fetched for replicas. They may be of a replica that was taken from this node since and
/// has come again: what was deleted in between, and is forgotten, would be back. One without a directory of its replica is in the
/// middle of taking its place.
pub(super) fn discard_copies(disk: &dyn Disk, replicas: &Path) -> Result<()> {
    if !disk.exists(replicas)? {
        return Ok(());
    }
    for entry in disk.list(replicas)? {
        let path = replicas.join(&entry.name);
        let is_copy = entry.is_dir && path.extension().is_some_and(|extension| extension == FILLING);
        if is_copy && disk.exists(&path.with_extension(""))? {
            disk.remove_dir_all(&path)?;
            disk.sync_dir(replicas)?;
        }
    }
    Ok(())
}

/// The cluster that the replicas of a node are of, if that was written down when the first of them was made.
pub(super) fn cluster_of(disk: &Arc<dyn Disk>, replicas: &Path) -> Result<Option<u64>> {
    let path = replicas.join(CLUSTER);
    if !disk.exists(&path)? {
        return Ok(None);
    }
    let bytes = disk.read(&path)?;
    Ok(std::str::from_utf8(&bytes).ok().and_then(|text| u64::from_str_radix(text.trim(), 16).ok()))
}

/// Writes down which cluster the replicas that are to be made are of.
pub(super) fn belong_to(disk: &Arc<dyn Disk>, replicas: &Path, cluster_id: u64) -> Result<()> {
    disk.create_dir_all(replicas)?;
    Ok(disk.replace(&replicas.join(CLUSTER), format!("{cluster_id:016x}\n").as_bytes())?)
}

/// Removes what a crash, or a disk that failed, has left of replicas that were being removed, and of the cluster's number.
pub(super) fn sweep(disk: &dyn Disk, replicas: &Path) -> Result<()> {
    if !disk.exists(replicas)? {
        return Ok(());
    }
    for entry in disk.list(replicas)? {
        let path = replicas.join(&entry.name);
        if entry.is_dir && path.extension().is_some_and(|extension| extension == GONE) {
            disk.remove_dir_all(&path)?;
        }
    }
    let begun = replicas.join(CLUSTER).with_extension(REPLACEMENT);
    if disk.exists(&begun)? {
        disk.remove_file(&begun)?;
    }
    Ok(())
}
