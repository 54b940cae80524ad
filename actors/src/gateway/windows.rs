//! Tables whose partitions are windows: rows that lie in none have one made, which is agreed upon before any of them is sent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::RecordBatch;
use shoal_catalog::{Catalog, Command, PartitionBounds, Partitioning, Table};
use shoal_kernel::{Applied, Datum, Error, ErrorCode, KeyRange, PartitionId, Rare, Result, Version};
use shoal_storage::with_rows_before;
use tokio::sync::MutexGuard;

use super::route::{self, Part, Piece, Split};
use super::{Gateway, dropped};

/// How long it may take until windows are agreed upon.
const AGREED_WITHIN: Duration = Duration::from_secs(5);

/// What is looked for in vain so often is not there, whatever the catalog says.
const ATTEMPTS: usize = 3;

impl Gateway {
    /// The rows by partition, once there is one for each of them. `until` is the deadline, on the monotonic clock.
    ///
    /// # Errors
    /// The catalog cannot be asked for windows, or has too many; the rows are below the table's cut-off, and their windows have
    /// been dropped with all that was in them.
    pub(super) async fn pieces(
        &self,
        table: &Table,
        batches: &[RecordBatch],
        deletes: bool,
        until: Duration,
    ) -> Result<Vec<Piece>> {
        for _ in 0..ATTEMPTS {
            let catalog = self.context.agreement.catalog().borrow().clone();
            let windows = match route::split(&catalog, table, batches, deletes)? {
                Split::Pieces(pieces) => {
                    self.make_ahead(&catalog, table, &pieces);
                    return Ok(pieces);
                }
                Split::Missing(windows) => windows,
            };
            if let Some(now) = catalog.tables.get(&table.id).filter(|now| windows.iter().any(|at| now.has_passed(at))) {
                for (first_row, batch) in with_rows_before(batches) {
                    route::check_kept(table, now.cutoff, batch, first_row)?;
                }
            }
            self.make(table, windows, until).await?;
        }
        Err(Error::new(ErrorCode::Moved, format!("the windows of '{}' come and go; send the rows again", table.name)))
    }

    /// The table with at least one partition: for what is agreed upon before it is known where rows go.
    pub(super) async fn with_some_partition(&self, table: &Table, own: Version, until: Duration) -> Result<Table> {
        let micros = i64::try_from(own.time().micros()).unwrap_or(i64::MAX);
        let window = match table.partitioning {
            // Whose key is not known yet. No row has the empty one.
            Partitioning::Value { .. } => table.window_of(&[]),
            _ => table.window_of(&Datum::Int(micros).encode()),
        };
        let partitions = self.make(table, window.into_iter().collect(), until).await?;
        Ok(Table { partitions, ..table.clone() })
    }

    /// Has windows made, unless they are there by now; the table's partitions as they are then.
    async fn make(&self, table: &Table, windows: BTreeSet<KeyRange>, until: Duration) -> Result<Vec<PartitionId>> {
        let windows: Vec<KeyRange> = windows.into_iter().collect();
        let left = || until.saturating_sub(self.context.env.monotonic()).min(AGREED_WITHIN);
        let Some(_turn) = self.turn(table, &windows, left()).await? else {
            return self.partitions_now(table);
        };
        let command = Command::AddWindows { table: table.id, windows };
        let what = format!("making windows of '{}'", table.name);
        // Whether or not there are windows now, no row has gone anywhere.
        let made = self.context.change_catalog(command, &what, left()).await;
        made.map_err(|error| error.with_applied(Applied::False))?;
        self.context.env.reached(Rare::WindowMade);
        self.partitions_now(table)
    }

    fn partitions_now(&self, table: &Table) -> Result<Vec<PartitionId>> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        catalog.tables.get(&table.id).map(|now| now.partitions.clone()).ok_or_else(|| dropped(table))
    }

    /// Waits until no other request has windows made, or until these are there (`None`): who misses a window at the same time as
    /// others mostly finds that the first of them has had it made.
    async fn turn(&self, table: &Table, windows: &[KeyRange], left: Duration) -> Result<Option<MutexGuard<'_, ()>>> {
        let mut catalog = self.context.agreement.catalog();
        let is_there = |catalog: &Arc<Catalog>| {
            catalog.tables.get(&table.id).is_none_or(|now| catalog.missing(now, windows).is_empty())
        };
        let turn = async {
            tokio::select! {
                biased;
                _ = catalog.wait_for(is_there) => None,
                turn = self.making.lock() => Some(turn),
            }
        };
        self.context.env.timeout(left, turn).await.map_err(|_| {
            let message = "windows that other requests wait for could not be agreed upon in time";
            Error::new(ErrorCode::NoCatalogQuorum, message).with_applied(Applied::False)
        })
    }

    /// Begins to have the window behind that of the present made, if rows of the present have come and it is missing. Nobody waits
    /// for it: if it fails, the next rows try again. A clock that is wrong makes a window too early, or none.
    fn make_ahead(&self, catalog: &Catalog, table: &Table, pieces: &[Piece]) {
        let Some(now) = catalog.tables.get(&table.id).filter(|now| now.options.partition_size_hint.is_some()) else {
            return;
        };
        let Some(window) = catalog.window_ahead(now, self.context.env.wall_micros()) else { return };
        let before = |part: &Part| match catalog.partitions.get(&part.partition).map(|partition| &partition.bounds) {
            Some(PartitionBounds::Range(range)) => range.end.as_ref() == Some(&window.start),
            _ => false,
        };
        if !pieces.iter().flat_map(|piece| &piece.parts).any(before) || self.making_ahead.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let (context, making_ahead) = (self.context.clone(), self.making_ahead.clone());
        let command = Command::AddWindows { table: table.id, windows: vec![window] };
        self.context.env.spawn("window ahead", async move {
            if let Err(error) = context.agreement.propose(command, AGREED_WITHIN).await {
                tracing::debug!(%error, "a window was not made ahead");
            }
            making_ahead.store(false, Ordering::Relaxed);
        });
    }
}
