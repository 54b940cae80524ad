//! At which level a statement reads, and by which catalog it is planned for that.

use std::sync::Arc;
use std::time::Duration;

use shoal_catalog::Catalog;
use shoal_kernel::{Error, ErrorCode, Rare, ReadLevel, Result};
use shoal_planner::{InsertSource, Statement};
use tokio::sync::oneshot;

use super::Inner;
use super::statement::{REFRESH_TIMEOUT, table_of};
use crate::service::SqlRequest;

/// How long a statement waits for the newest catalog: for the round that was under way when it came, and its own.
const ASK_TIMEOUT: Duration = REFRESH_TIMEOUT.saturating_mul(2);

/// A statement as it is to be carried out.
pub(super) struct PlannedStatement {
    pub(super) statement: Statement,
    /// What it was planned on.
    pub(super) catalog: Arc<Catalog>,
    pub(super) read_level: ReadLevel,
}

impl Inner {
    /// Plans a statement. One that reads at quorum is planned on a catalog that holds everything agreed upon before, for a write
    /// may have made a partition of which this node has not heard.
    /// `by_key` says whether it may find its rows by key, without a plan.
    pub(super) async fn plan(&self, request: &SqlRequest, by_key: bool) -> Result<PlannedStatement> {
        // To plan takes about as long as to ask, so both are under way at once.
        let asked = (request.read_level == Some(ReadLevel::Quorum)).then(|| self.ask_catalog());
        let (statement, catalog) = self.plan_as_known(request, by_key).await?;
        let read_level = level_of_reads(request, &statement, &catalog)?;
        if read_level == ReadLevel::One {
            return Ok(PlannedStatement { statement, catalog, read_level });
        }
        let timeout = request.timeout.unwrap_or(ASK_TIMEOUT).min(ASK_TIMEOUT);
        let newest = match self.context.env.timeout(timeout, asked.unwrap_or_else(|| self.ask_catalog())).await {
            Ok(answered) => answered.unwrap_or_else(|_| Err(Error::new(ErrorCode::NotReady, "the node is stopping"))),
            Err(_) => Err(Error::new(ErrorCode::NoCatalogQuorum, "the catalog's leader has not answered in time")),
        };
        let newest = newest.map_err(|error| {
            error.context("a read at quorum has to know of all partitions").with_help(
                "try again, or read at level 'one': rows of partitions that were made a moment ago may then be missing",
            )
        })?;
        if newest.version <= catalog.version {
            return Ok(PlannedStatement { statement, catalog, read_level });
        }
        self.context.env.reached(Rare::QuorumByNewCatalog);
        let statement = self.plan_on(request, &newest, by_key).await?;
        let read_level = level_of_reads(request, &statement, &newest)?;
        Ok(PlannedStatement { statement, catalog: newest, read_level })
    }

    /// Asks for the newest catalog; one question to the leader serves all who wait for it.
    fn ask_catalog(&self) -> oneshot::Receiver<Result<Arc<Catalog>>> {
        let agreement = self.context.agreement.clone();
        self.catalog_rounds.ask(&self.context.env, "newest catalog", move || {
            let agreement = agreement.clone();
            async move { agreement.linearizable(REFRESH_TIMEOUT).await }
        })
    }
}

/// The level that the request names, or what its tables ask for. A statement that writes what it has read must have seen what
/// writes of its own level have left.
fn level_of_reads(request: &SqlRequest, statement: &Statement, catalog: &Catalog) -> Result<ReadLevel> {
    let to_change = |table: &String| -> Result<ReadLevel> {
        let level = match request.write_level {
            Some(level) => level,
            None => table_of(catalog, table)?.options.write_level,
        };
        Ok(level.of_reads())
    };
    let default = match statement {
        Statement::Query(query) => query.graph.read_level,
        Statement::KeyRead(read) => read.read_level,
        Statement::Insert { source: InsertSource::Query(graph), .. } => graph.read_level,
        Statement::Delete { table, keys: graph } | Statement::Update { table, rows: graph } => {
            graph.read_level.max(to_change(table)?)
        }
        Statement::KeyChange(change) => change.read.read_level.max(to_change(&change.table)?),
        // They read nothing.
        _ => return Ok(ReadLevel::One),
    };
    Ok(request.read_level.unwrap_or(default))
}
