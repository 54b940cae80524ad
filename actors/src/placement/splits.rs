//! Partitions that are split: because they have grown, or because somebody asks.
//!
//! Where to split only a replica knows, which looks at its keys. Of the voters that are up, the one with the lowest number looks
//! after its own replica's size; two that do are harmless, for the catalog takes one split of an epoch.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_catalog::{Catalog, Command, Partition, PartitionBounds, Partitioning};
use shoal_kernel::level::quorum;
use shoal_kernel::{Error, ErrorCode, PartitionId, Rare, Result};
use shoal_storage::SplitPoint;

use super::moves::serving;
use crate::node::context::NodeContext;
use crate::replica::directory::ReplicaDirectory;
use crate::replica::handle::ReplicaHandle;

/// Splits that a node begins in one turn.
const SPLITS_PER_TURN_MAX: usize = 8;
/// Fewer rows are not worth two partitions.
const ROWS_MIN: u64 = 2;
/// A partition without a key to split at is looked at again when it has grown to so many hundredths of its size.
const GROWTH_PERCENT: u64 = 125;

/// What a node remembers of the splits that it has asked for.
#[derive(Default)]
pub(super) struct Splits {
    /// The sizes at which partitions could not be split.
    refused: BTreeMap<PartitionId, u64>,
    /// The last partition that was looked at, where a turn ended early: the next one goes on behind it.
    last: Option<PartitionId>,
}

/// Splits what has outgrown its table's limits.
pub(super) async fn split_grown(context: &NodeContext, directory: &ReplicaDirectory, splits: &mut Splits) {
    let catalog = context.agreement.catalog().borrow().clone();
    splits.refused.retain(|id, _| catalog.partitions.contains_key(id));
    let mut handles = directory.all();
    if let Some(last) = splits.last.take() {
        let next = handles.partition_point(|handle| handle.partition <= last);
        handles.rotate_left(next);
    }
    let mut asked_for = 0;
    for handle in handles {
        let Some(partition) = catalog.partitions.get(&handle.partition) else { continue };
        let has_one_key = catalog
            .tables
            .get(&partition.table)
            .is_some_and(|table| matches!(table.partitioning, Partitioning::Value { .. }));
        if has_one_key || !is_looked_after_here(context, partition) || !handle.serves() {
            continue;
        }
        let Some(size) = outgrown(&catalog, partition, &handle) else { continue };
        let before = splits.refused.get(&partition.id);
        if before.is_some_and(|before| size < before.saturating_mul(GROWTH_PERCENT) / 100) {
            continue;
        }
        let at = match split_point(context, &catalog, partition, &handle).await {
            Ok(SplitPoint::At(key)) => key,
            Ok(SplitPoint::Refused(why)) => {
                tracing::warn!(partition = %partition.id, %why, "a partition has outgrown its limits and cannot be split");
                splits.refused.insert(partition.id, size);
                continue;
            }
            Err(error) => {
                tracing::debug!(partition = %partition.id, %error, "where to split a partition could not be told");
                continue;
            }
        };
        splits.last = Some(partition.id);
        match split(context, &catalog, partition, at, super::PROPOSAL_TIMEOUT).await {
            Ok(()) => context.env.reached(Rare::SplitBySize),
            Err(error) if matches!(error.code(), ErrorCode::NotReady | ErrorCode::Moved | ErrorCode::NotFound) => {
                tracing::debug!(partition = %partition.id, %error, "a partition was not split; it is looked at anew");
            }
            Err(error) if matches!(error.code(), ErrorCode::InvalidRequest | ErrorCode::InvalidStatement) => {
                tracing::warn!(partition = %partition.id, %error, "a partition has outgrown its limits and is not split");
                splits.refused.insert(partition.id, size);
            }
            // Nobody agrees on anything just now.
            Err(error) => {
                tracing::debug!(partition = %partition.id, %error, "a partition was not split");
                return;
            }
        }
        asked_for += 1;
        if asked_for == SPLITS_PER_TURN_MAX {
            return;
        }
    }
    splits.last = None;
}

/// Whether this is the voter that sees to the partition's size.
fn is_looked_after_here(context: &NodeContext, partition: &Partition) -> bool {
    let splittable = partition.settled && matches!(partition.bounds, PartitionBounds::Range(_));
    splittable && partition.voters().find(|voter| !context.liveness.is_down(*voter)) == Some(context.node)
}

/// The size of a partition, in rows, if it is beyond a limit of its table.
fn outgrown(catalog: &Catalog, partition: &Partition, handle: &ReplicaHandle) -> Option<u64> {
    let limits = catalog.tables.get(&partition.table)?.options.split;
    let status = handle.store().ok()?.status();
    // What cannot be read cannot be split either.
    if status.failed.is_some() || !status.problems.is_empty() {
        return None;
    }
    let rows = status.own_rows;
    (rows > limits.partition_rows_max || status.own_bytes > limits.partition_bytes_max).then_some(rows)
}

/// Where a replica of this node would be split.
///
/// # Errors
/// It does not run, or cannot be read.
pub(crate) async fn split_point(
    context: &NodeContext,
    catalog: &Catalog,
    partition: &Partition,
    handle: &ReplicaHandle,
) -> Result<SplitPoint> {
    let table = catalog.tables.get(&partition.table);
    let columns = table.map_or(1, |table| table.partitioning.columns().len());
    let running = handle.running()?;
    let looked = context
        .env
        .blocking(move || running.store.split_point(columns, ROWS_MIN).inspect_err(|error| running.blame(error)));
    looked.await?
}

/// Has a partition split in two.
///
/// # Errors
/// [`ErrorCode::NotReady`] if no majority of its voters serves, which may come: what a replica does not hold that only gets
/// word of the split, it must be able to get from them. Else as the catalog decides.
pub(crate) async fn split(
    context: &NodeContext,
    catalog: &Catalog,
    partition: &Partition,
    at: Vec<u8>,
    timeout: Duration,
) -> Result<()> {
    let serve = serving(context, &context.liveness.alive(), vec![partition]).await.len();
    let voters = partition.voters().count();
    if serve < quorum(voters) {
        let message =
            format!("{serve} of {voters} replicas of {} serve; it can be split when a majority does", partition.id);
        return Err(Error::new(ErrorCode::NotReady, message));
    }
    let Partition { id, epoch, .. } = *partition;
    let name = catalog.tables.get(&partition.table).map_or("?", |table| table.name.as_str());
    tracing::info!(partition = %id, table = name, "a partition is split");
    context.env.trace(|| format!("{id} is to be split at {at:02x?}"));
    let what = format!("splitting {id} of '{name}'");
    context.change_catalog(Command::SplitPartition { partition: id, at, epoch }, &what, timeout).await?;
    metrics::counter!("shoal_partition_splits_total").increment(1);
    Ok(())
}
