//! Tables whose partitions are windows: rows that lie in none have one made, which is agreed upon before any of them is sent.

use std::collections::BTreeSet;
use std::time::Duration;

use arrow::array::RecordBatch;
use shoal_catalog::{Command, Table};
use shoal_kernel::{Applied, Datum, Error, ErrorCode, KeyRange, Rare, Result, Version};

use super::Gateway;
use super::route::{self, Piece, Split};

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
    pub(super) async fn pieces(&self, table: &Table, batches: &[RecordBatch], until: Duration) -> Result<Vec<Piece>> {
        let mut now = None;
        for _ in 0..ATTEMPTS {
            let catalog = self.context.agreement.catalog().borrow().clone();
            let windows = match route::split(&catalog, now.as_ref().unwrap_or(table), batches)? {
                Split::Pieces(pieces) => return Ok(pieces),
                Split::Missing(windows) => windows,
            };
            let current = self.with_windows(table, windows, until).await?;
            let mut first_row = 0;
            for batch in batches {
                route::check_kept(&current, batch, first_row)?;
                first_row += batch.num_rows();
            }
            now = Some(current);
        }
        Err(Error::new(ErrorCode::Moved, format!("the windows of '{}' come and go; send the rows again", table.name)))
    }

    /// The table with at least one partition: for what is agreed upon before it is known where rows go.
    pub(super) async fn with_some_partition(&self, table: &Table, own: Version, until: Duration) -> Result<Table> {
        let micros = i64::try_from(own.time().micros()).unwrap_or(i64::MAX);
        let window = table.window_of(&Datum::Int(micros).encode());
        self.with_windows(table, window.into_iter().collect(), until).await
    }

    /// The table as it is once the catalog has these windows.
    async fn with_windows(&self, table: &Table, windows: BTreeSet<KeyRange>, until: Duration) -> Result<Table> {
        let agreement = &self.context.agreement;
        let command = Command::AddWindows { table: table.id, windows: windows.into_iter().collect() };
        let left = until.saturating_sub(self.context.env.monotonic()).min(AGREED_WITHIN);
        // Whether or not there are windows now, no row has gone anywhere.
        let agreed = agreement.propose(command, left).await.map_err(|error| error.with_applied(Applied::False))?;
        let mut catalog = agreement.catalog();
        let shown = async { catalog.wait_for(|catalog| catalog.version >= agreed.version).await.is_ok() };
        if !self.context.env.timeout(left, shown).await.unwrap_or(false) {
            let message =
                format!("new windows of '{}' are agreed upon, and this node has not heard of them in time", table.name);
            return Err(Error::new(ErrorCode::Timeout, message));
        }
        self.context.env.reached(Rare::WindowMade);
        let catalog = agreement.catalog().borrow().clone();
        let now = catalog
            .tables
            .get(&table.id)
            .ok_or_else(|| Error::new(ErrorCode::UnknownTable, format!("table '{}' has been dropped", table.name)))?;
        // The rows have the columns of the schema that they came with.
        Ok(Table {
            partitions: now.partitions.clone(),
            options: now.options.clone(),
            cutoff: now.cutoff,
            ..table.clone()
        })
    }
}
