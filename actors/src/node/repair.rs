//! REPAIR TABLE: every replica compares itself with all its peers and pulls what it lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use futures::stream::StreamExt;
use shoal_catalog::{Partition, ReplicaState};
use shoal_kernel::{Applied, Error, ErrorCode, NodeId, PartitionId, QueryId, Result};

use super::Inner;
use super::maintain::NAMED_MAX;
use super::statement::REFRESH_TIMEOUT;
use crate::replica::message::{Repaired, ReplicaAnswer, ReplicaCall};
use crate::replica::serve;
use crate::service::{Progress, QueryEvent, QueryStream, QuerySummary};

/// Replicas that are repaired at once.
const REPLICAS_AT_ONCE: usize = 4;

/// What became of a partition.
#[derive(Default)]
struct Outcome {
    /// Replicas that have compared themselves with their peers.
    compared: i64,
    buckets: BTreeSet<u8>,
    rows: u64,
}

impl Inner {
    /// Has all replicas of a table compared and repaired, and waits for it.
    ///
    /// # Errors
    /// Some could not be compared with some others: says which. The others are repaired.
    pub(super) async fn repair(&self, table: &str, timeout: Duration) -> Result<RecordBatch> {
        let until = self.context.env.monotonic() + timeout;
        let newest = self.context.agreement.linearizable(REFRESH_TIMEOUT.min(timeout)).await;
        let catalog = newest.unwrap_or_else(|_| self.context.agreement.catalog().borrow().clone());
        let wanted = catalog.table(table).ok_or_else(|| catalog.unknown_table(table))?.id;
        // Who is leaving takes nothing more; the others compare themselves with it.
        let takes = |partition: &Partition| {
            let staying = partition.replicas.iter().filter(|replica| replica.state != ReplicaState::Leaving);
            staying.map(|replica| (partition.id, replica.node)).collect::<Vec<_>>()
        };
        let partitions = catalog.partitions.values().filter(|partition| partition.table == wanted);
        let replicas: Vec<(PartitionId, NodeId)> = partitions.flat_map(takes).collect();
        let mut outcomes: BTreeMap<PartitionId, Outcome> = BTreeMap::new();
        let mut failed = Vec::new();
        // Collected first: see the gateway.
        let asked: Vec<_> = replicas.iter().map(|(partition, node)| self.repair_on(*partition, *node, until)).collect();
        let mut done = futures::stream::iter(asked).buffered(REPLICAS_AT_ONCE);
        let mut place = replicas.iter();
        while let (Some(repaired), Some((partition, node))) = (done.next().await, place.next()) {
            match repaired {
                Ok(repaired) => {
                    let outcome = outcomes.entry(*partition).or_default();
                    outcome.compared += 1;
                    outcome.buckets.extend(repaired.buckets);
                    outcome.rows += repaired.rows;
                    let with = |(peer, error)| format!("{partition} on {node} with {peer} ({error})");
                    failed.extend(repaired.failed.into_iter().map(with));
                }
                Err(error) => failed.push(format!("{partition} on {node} ({error})")),
            }
        }
        if failed.is_empty() { rows(&outcomes) } else { Err(not_all(&failed, &outcomes)) }
    }

    async fn repair_on(&self, partition: PartitionId, node: NodeId, until: Duration) -> Result<Repaired> {
        if self.context.liveness.is_down(node) {
            return Err(Error::new(ErrorCode::NodeLost, format!("{node} is down")));
        }
        let left = until.saturating_sub(self.context.env.monotonic());
        let patience_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        match serve::call(&self.context, node, &ReplicaCall::Repair { partition, patience_ms }, left).await? {
            ReplicaAnswer::Repaired(repaired) => Ok(repaired),
            _ => Err(serve::unexpected()),
        }
    }

    /// The stream of an answer that is there already.
    pub(super) fn answer(&self, id: QueryId, rows: RecordBatch, started: Duration) -> QueryStream {
        let elapsed = self.context.env.monotonic().saturating_sub(started);
        let summary = QuerySummary {
            rows: rows.num_rows() as u64,
            elapsed_micros: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            progress: Progress::default(),
            ..QuerySummary::default()
        };
        let (events, stream) = QueryStream::channel(id, 3);
        // Room for three, and three are sent.
        let _ = events.try_send(QueryEvent::Schema(rows.schema()));
        let _ = events.try_send(QueryEvent::Batch(rows));
        let _ = events.try_send(QueryEvent::End(summary));
        stream
    }

    /// See [`super::Node::lose_rows`].
    pub(super) async fn lose_rows(&self, one_in: u64) -> Result<u64> {
        if self.context.config.observer.is_none() {
            return Err(Error::new(ErrorCode::Forbidden, "rows are lost on purpose on observed nodes only"));
        }
        let catalog = self.context.agreement.catalog().borrow().clone();
        let mut lost = 0;
        for handle in self.directory.all() {
            let elsewhere = catalog.partitions.get(&handle.partition).map_or(0, |partition| partition.voters().count());
            let Ok(store) = handle.store() else { continue };
            if elsewhere > 1 {
                lost += self.context.env.blocking(move || store.lose(&|number| number % one_in.max(1) == 0)).await??;
            }
        }
        Ok(lost)
    }
}

/// A row for each partition.
fn rows(outcomes: &BTreeMap<PartitionId, Outcome>) -> Result<RecordBatch> {
    let column = |value: &dyn Fn(&PartitionId, &Outcome) -> i64| -> ArrayRef {
        Arc::new(outcomes.iter().map(|(id, outcome)| value(id, outcome)).collect::<Int64Array>())
    };
    let columns = [
        ("partition", column(&|id, _| id.0.cast_signed())),
        ("replicas_compared", column(&|_, outcome| outcome.compared)),
        ("buckets_differing", column(&|_, outcome| i64::try_from(outcome.buckets.len()).unwrap_or(i64::MAX))),
        ("rows_repaired", column(&|_, outcome| outcome.rows.cast_signed())),
    ];
    let columns = columns.into_iter().map(|(name, column)| (name, column, false));
    RecordBatch::try_from_iter_with_nullable(columns).map_err(|error| Error::internal(error.to_string()))
}

fn not_all(failed: &[String], outcomes: &BTreeMap<PartitionId, Outcome>) -> Error {
    let mut names = failed.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    if failed.len() > NAMED_MAX {
        names += &format!(", and {} more", failed.len() - NAMED_MAX);
    }
    let rows: u64 = outcomes.values().map(|outcome| outcome.rows).sum();
    let message = format!("REPAIR TABLE could not compare all replicas: {names}; {rows} rows were repaired");
    Error::new(ErrorCode::NotEnoughReplicas, message).with_applied(Applied::Unknown).with_help(
        "all others are compared and repaired; send it again when these are back, which does no harm to those",
    )
}
