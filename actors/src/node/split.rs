//! `ALTER TABLE … SPLIT`: which partition, at which key, and the catalog's word on it. The replicas follow by themselves.

use std::time::Duration;

use futures::stream::StreamExt;
use shoal_catalog::{Catalog, Partition, Table};
use shoal_kernel::{Applied, Error, ErrorCode, Result};
use shoal_planner::SplitWish;

use super::Inner;
use super::statement::{ALTER_TABLE, REFRESH_TIMEOUT};
use crate::placement::splits;
use crate::replica::message::{ReplicaAnswer, ReplicaCall};
use crate::replica::serve;
use crate::service::CommandDone;

/// How long a replica may take to say where it would be split: it reads a page of keys.
const POINT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long replicas of a partition that has just been made are waited for, whatever the request's own deadline.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// Partitions that are asked about at once.
const PARTITIONS_AT_ONCE: usize = 32;

/// Where a partition would be split in halves, or why it cannot be; and how many rows it has.
struct Median {
    at: std::result::Result<Vec<u8>, String>,
    rows: u64,
}

impl Inner {
    /// Partitions that have just been made are waited for.
    pub(super) async fn split(&self, name: &str, how: &SplitWish, timeout: Duration) -> Result<CommandDone> {
        let until = self.context.env.monotonic().saturating_add(timeout.min(PATIENCE));
        loop {
            let left = until.saturating_sub(self.context.env.monotonic());
            match self.try_split(name, how, left).await {
                Err(error) if may_pass(&error) && left > PAUSE => self.context.env.sleep(PAUSE).await,
                done => return done,
            }
        }
    }

    async fn try_split(&self, name: &str, how: &SplitWish, timeout: Duration) -> Result<CommandDone> {
        let until = self.context.env.monotonic().saturating_add(timeout);
        let catalog = self.context.agreement.linearizable(REFRESH_TIMEOUT.min(timeout)).await?;
        let table = catalog.table(name).ok_or_else(|| catalog.unknown_table(name))?;
        let (partition, at) = match how {
            SplitWish::At(key) => {
                let missing = || invalid(format!("no partition of '{name}' holds this key yet"));
                let partition = catalog.partition_for(table, key).ok_or_else(missing)?;
                if catalog.range_of(partition.id).is_some_and(|range| range.start == *key) {
                    return Err(invalid(format!("{} of '{name}' begins at this key already", partition.id)));
                }
                (partition, key.clone())
            }
            SplitWish::Partition(id) => {
                let gone = || invalid(format!("'{name}' has no partition {id} any more"));
                let partition = catalog.partitions.get(id).ok_or_else(gone)?;
                (partition, cut(partition, self.median(partition).await?)?)
            }
            SplitWish::Largest => self.largest(&catalog, table).await?,
        };
        let left = until.saturating_sub(self.context.env.monotonic());
        splits::split(&self.context, &catalog, partition, at, left).await?;
        Ok(CommandDone { tag: ALTER_TABLE.into(), rows: None, level: None, version: None })
    }

    /// The partition with most rows among those that can be split, and where.
    async fn largest<'a>(&self, catalog: &'a Catalog, table: &'a Table) -> Result<(&'a Partition, Vec<u8>)> {
        let asked: Vec<_> = catalog.partitions_of(table).map(|partition| self.median(partition)).collect();
        let medians: Vec<Result<Median>> = futures::stream::iter(asked).buffered(PARTITIONS_AT_ONCE).collect().await;
        let mut medians: Vec<(&Partition, Median)> = catalog
            .partitions_of(table)
            .zip(medians)
            .map(|(partition, median)| Ok((partition, median?)))
            .collect::<Result<_>>()?;
        medians.sort_by_key(|(_, median)| std::cmp::Reverse((median.at.is_ok(), median.rows)));
        let Some((partition, median)) = medians.into_iter().next() else {
            return Err(invalid(format!("'{}' has no partitions yet", table.name)));
        };
        Ok((partition, cut(partition, median)?))
    }

    /// As its first replica says that answers.
    async fn median(&self, partition: &Partition) -> Result<Median> {
        let mut last = None;
        for voter in partition.voters().filter(|voter| !self.context.liveness.is_down(*voter)) {
            let call = ReplicaCall::SplitPoint { partition: partition.id };
            match serve::call(&self.context, voter, &call, POINT_TIMEOUT).await {
                Ok(ReplicaAnswer::SplitPoint { at, rows }) => return Ok(Median { at, rows }),
                Ok(_) => last = Some(serve::unexpected()),
                Err(error) => last = Some(error),
            }
        }
        let down = || Error::new(ErrorCode::PartitionUnavailable, format!("no replica of {} is up", partition.id));
        Err(last.unwrap_or_else(down).with_applied(Applied::False))
    }
}

/// Whether replicas may only not be ready yet.
fn may_pass(error: &Error) -> bool {
    let passing = [ErrorCode::NotReady, ErrorCode::PartitionUnavailable, ErrorCode::Moved, ErrorCode::NodeLost];
    passing.contains(&error.code()) && error.applied() != Applied::Unknown
}

fn cut(partition: &Partition, median: Median) -> Result<Vec<u8>> {
    median.at.map_err(|why| invalid(format!("{} cannot be split: {why}", partition.id)))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidRequest, message).with_applied(Applied::False)
}
