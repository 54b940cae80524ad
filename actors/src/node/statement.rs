//! One SQL statement, from text to the stream of its answer.

use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use shoal_catalog::{AlteredTable, Catalog, Command, Table};
use shoal_kernel::limits::SQL_BYTES_MAX;
use shoal_kernel::{Applied, Error, ErrorCode, Hlc, Planted, QueryId, Rare, Result};
use shoal_planner::{ExplainKind, FragmentGraph, InsertSource, PlanOptions, PlannedQuery, Slicing, Statement};

use super::Inner;
use super::change::FoundRows;
use super::levels::PlannedStatement;
use super::system::System;
use crate::query::{Replan, RunOptions};
use crate::replica::message::MaintenanceTask;
use crate::service::{CommandDone, Evolution, QueryEvent, QueryStream, QuerySummary, SqlRequest, WriteRequest};

/// How long a node that does not know a table asks the catalog's leader whether it exists.
pub(super) const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of rows that a statement which writes what it reads may hold; it is validated whole before its first row is sent.
const FOUND_BYTES_MAX: usize = 256 << 20;
/// The words of the statement.
pub(super) const ALTER_TABLE: &str = "ALTER TABLE";
/// How often a change of a table is made anew because somebody else's came between.
const ALTER_ATTEMPTS_MAX: u32 = 5;
/// How long a table that rows ask for may take to be agreed on.
const EVOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Consumer tasks of a hash edge at most.
const TARGET_PARTITIONS_MAX: usize = 8;

/// A table of the catalog by name.
pub(super) fn table_of(catalog: &Catalog, name: &str) -> Result<Arc<Table>> {
    match catalog.table(name) {
        Some(table) => Ok(Arc::new(table.clone())),
        None => Err(catalog.unknown_table(name)),
    }
}

/// What a planned DELETE or UPDATE finds.
fn found_rows(planned: PlannedStatement) -> Result<FoundRows> {
    let PlannedStatement { statement, catalog, read_level } = planned;
    let (tag, name, graph, deletes) = match statement {
        Statement::Delete { table, keys } => ("DELETE", table, keys, true),
        Statement::Update { table, rows } => ("UPDATE", table, rows, false),
        _ => return Err(Error::internal("a DELETE or UPDATE was planned as another statement")),
    };
    Ok(FoundRows { tag, table: table_of(&catalog, &name)?, graph, read_level, deletes })
}

impl Inner {
    pub(super) async fn sql(self: &Arc<Self>, request: SqlRequest) -> Result<QueryStream> {
        if request.sql.len() > SQL_BYTES_MAX {
            return Err(Error::new(
                ErrorCode::LimitExceeded,
                format!("the statement has {} bytes, more than the {SQL_BYTES_MAX} allowed", request.sql.len()),
            ));
        }
        let started = self.context.env.monotonic();
        let timeout = request.timeout.unwrap_or(Duration::from_millis(self.context.config.request_timeout_ms));
        let id = request.query_id.unwrap_or_else(|| self.new_query_id());
        let left = || timeout.saturating_sub(self.context.env.monotonic().saturating_sub(started));
        // Whoever asks for tables of the system waits for other nodes.
        let planned = self.context.env.timeout(left(), self.plan(&request, true)).await;
        let PlannedStatement { statement, catalog, read_level } = planned
            .map_err(|_| Error::new(ErrorCode::Timeout, "the deadline passed before the statement was planned"))??;
        let options = || RunOptions { read_level, sql: request.sql.as_str().into(), ..RunOptions::new(left()) };
        // As of the plan: rows have its columns, whatever has become of them meanwhile.
        let table = |name: &str| table_of(&catalog, name);
        match statement {
            Statement::Query(query) => {
                let analyze = query.explain == Some(ExplainKind::Analyze);
                let options = RunOptions { analyze, ..options() };
                self.queries.run_replanned(query.graph, id, options, self.replan(&request)).await
            }
            Statement::KeyRead(read) => {
                if let Ok(stream) = self.queries.read_by_key(&read, id, &options()).await {
                    return Ok(stream);
                }
                self.context.env.reached(Rare::KeyReadPlanned);
                let replan = self.replan(&request);
                self.queries.run_replanned(replan().await?, id, options(), replan).await
            }
            Statement::CreateTable(table) => {
                let done = self.propose(Command::CreateTable(table), "CREATE TABLE", left()).await?;
                Ok(self.done(id, done, started))
            }
            Statement::DropTable { name, if_exists } => {
                let forgets = self.context.config.has(Planted::DropForgotten);
                let (name, if_exists) = if forgets { (format!("not {name}"), true) } else { (name, if_exists) };
                let done = self.propose(Command::DropTable { name, if_exists }, "DROP TABLE", left()).await?;
                Ok(self.done(id, done, started))
            }
            Statement::AlterTable(altered) => {
                let done = self.alter(&request, altered, left).await?;
                Ok(self.done(id, done, started))
            }
            Statement::Split { table: name, how } => {
                let done = self.split(&name, &how, left()).await?;
                Ok(self.done(id, done, started))
            }
            Statement::Insert { table: name, source } => {
                let batches = match source {
                    InsertSource::Rows(batches) => batches,
                    InsertSource::Query(_) if request.token.is_some() => {
                        let message = "INSERT … SELECT takes no idempotency key: sent again, it may find other rows";
                        return Err(Error::new(ErrorCode::Unsupported, message)
                            .with_help("read the rows first, and send them as VALUES or to the table's ingest"));
                    }
                    InsertSource::Query(graph) => {
                        self.collect("INSERT … SELECT", graph, id, options(), self.replan(&request)).await?.0
                    }
                };
                let write = WriteRequest {
                    table: name.clone(),
                    batches,
                    level: request.write_level,
                    token: request.token.clone(),
                    timeout: Some(left()),
                };
                let report = self.gateway.write(table(&name)?, write).await?;
                let done = CommandDone {
                    tag: "INSERT".into(),
                    rows: Some(report.rows),
                    level: Some(report.level),
                    version: Some(report.version),
                };
                Ok(self.done(id, done, started))
            }
            statement @ (Statement::Delete { .. } | Statement::Update { .. }) => {
                let found = found_rows(PlannedStatement { statement, catalog, read_level })?;
                let done = self.change_found(&request, found, id, left).await?;
                Ok(self.done(id, done, started))
            }
            Statement::KeyChange(change) => {
                let table = table(&change.table)?;
                let done = match self.change_by_key(&request, &change, table, id, &options(), &left).await? {
                    Some(done) => done,
                    None => {
                        self.context.env.reached(Rare::KeyChangePlanned);
                        let found = found_rows(self.plan(&request, false).await?)?;
                        self.change_found(&request, found, id, left).await?
                    }
                };
                Ok(self.done(id, done, started))
            }
            Statement::Flush { table } => {
                let done = self.maintain("FLUSH", table.as_deref(), MaintenanceTask::Flush, left()).await?;
                Ok(self.done(id, done, started))
            }
            Statement::Repair { table } => {
                let rows = self.repair(&table, left()).await?;
                Ok(self.answer(id, rows, started))
            }
            Statement::Backup { table, to } => Ok(self.start_backup(id, table, to, request.timeout)),
            Statement::Restore { table, named, from } => {
                Ok(self.start_restore(id, table, named, from, request.timeout))
            }
            Statement::Optimize { table } => {
                let done = self.maintain("OPTIMIZE TABLE", Some(&table), MaintenanceTask::Optimize, left()).await?;
                Ok(self.done(id, done, started))
            }
        }
    }

    /// Plans on what this node knows; a table that it does not know may have been made elsewhere a moment ago.
    pub(super) async fn plan_as_known(&self, request: &SqlRequest, by_key: bool) -> Result<(Statement, Arc<Catalog>)> {
        let catalog: Arc<Catalog> = self.context.agreement.catalog().borrow().clone();
        let planned = match self.plan_on(request, &catalog, by_key).await {
            Err(error) if matches!(error.code(), ErrorCode::UnknownTable | ErrorCode::UnknownColumn) => {
                let newer = self.newest_catalog(&error).await?;
                if newer.version > catalog.version {
                    let planned = self.plan_on(request, &newer, by_key).await;
                    return planned.map(|statement| (statement, newer));
                }
                Err(error)
            }
            planned => planned,
        };
        planned.map(|statement| (statement, catalog))
    }

    /// Plans on a catalog.
    pub(super) async fn plan_on(
        &self,
        request: &SqlRequest,
        catalog: &Arc<Catalog>,
        by_key: bool,
    ) -> Result<Statement> {
        let config = &self.context.config;
        let directory = self.directory.clone();
        let alive = self.context.liveness.alive();
        let options = PlanOptions {
            target_partitions: alive.len().clamp(1, TARGET_PARTITIONS_MAX),
            broadcast: self.context.transport.broadcasts(&alive),
            read_only: request.read_only,
            read_level: request.read_level,
            now_micros: self.context.env.wall_micros(),
            row_counts: Arc::new(move |scan| directory.get(scan.partition).ok()?.estimate(scan)),
            slicing: Slicing {
                slices_max: u32::try_from(config.scan_slices_max).unwrap_or(u32::MAX),
                slice_rows_min: config.scan_slice_rows_min,
            },
            by_key,
            system: Some(Arc::new(System { context: self.context.clone(), queries: self.queries.clone() })),
            ..PlanOptions::default()
        };
        // On the heap: it is large, and part of every statement's future.
        Box::pin(self.planner.plan(&request.sql, catalog, &options)).await
    }

    /// What plans the query of a statement anew.
    pub(super) fn replan(self: &Arc<Self>, request: &SqlRequest) -> Replan {
        self.replan_as_of(request, None)
    }

    /// The same for a statement that writes what it finds, by the columns of that table.
    pub(super) fn replan_as_of(self: &Arc<Self>, request: &SqlRequest, table: Option<Arc<Table>>) -> Replan {
        let (inner, request) = (Arc::downgrade(self), request.clone());
        Arc::new(move || {
            let (inner, request, table) = (inner.clone(), request.clone(), table.clone());
            Box::pin(async move {
                let stopping = || Error::new(ErrorCode::NotReady, "the node is stopping");
                let inner = inner.upgrade().ok_or_else(stopping)?;
                let PlannedStatement { statement, catalog, .. } = inner.plan(&request, false).await?;
                if let Some(before) = table
                    && catalog.tables.get(&before.id).is_none_or(|now| now.schema.version != before.schema.version)
                {
                    let message = format!("'{}' was altered while its rows were waited for", before.name);
                    return Err(Error::new(ErrorCode::SchemaChanged, message).with_applied(Applied::False));
                }
                match statement {
                    Statement::Query(PlannedQuery { graph, .. })
                    | Statement::Insert { source: InsertSource::Query(graph), .. }
                    | Statement::Delete { keys: graph, .. }
                    | Statement::Update { rows: graph, .. } => Ok(graph),
                    _ => Err(Error::internal("a query was planned as another statement")),
                }
            })
        })
    }

    /// Changes the rows that a query finds.
    async fn change_found(
        self: &Arc<Self>,
        request: &SqlRequest,
        found: FoundRows,
        id: QueryId,
        left: impl Fn() -> Duration,
    ) -> Result<CommandDone> {
        match found.deletes {
            true => self.change(request, found, id, left).await,
            false => self.update(request, found, id, left).await,
        }
    }

    /// Changes rows. If their table has been altered and this node had not heard of it, the statement is planned again: nothing
    /// has been written then.
    async fn update(
        self: &Arc<Self>,
        request: &SqlRequest,
        found: FoundRows,
        id: QueryId,
        left: impl Fn() -> Duration,
    ) -> Result<CommandDone> {
        let (mut found, mut id) = (found, id);
        for _ in 0..ALTER_ATTEMPTS_MAX {
            match self.change(request, found, id, &left).await {
                Err(error) if error.code() == ErrorCode::SchemaChanged && error.applied() == Applied::False => {
                    self.context.env.reached(Rare::UpdatedWhileAltered);
                    self.newest_catalog(&error).await?;
                }
                done => return done,
            }
            found = found_rows(self.plan(request, false).await?)?;
            // The first may not have ended everywhere.
            id = self.new_query_id();
        }
        self.change(request, found, id, left).await
    }

    /// Has a change of a table agreed upon. If somebody else was faster, it is made anew for what that has left.
    async fn alter(
        &self,
        request: &SqlRequest,
        altered: Option<AlteredTable>,
        left: impl Fn() -> Duration,
    ) -> Result<CommandDone> {
        let (mut altered, mut attempts) = (altered, 0);
        loop {
            attempts += 1;
            match altered {
                Some(altered) => match self.alter_once(altered, left()).await {
                    Err(error) if error.code() == ErrorCode::SchemaChanged && attempts < ALTER_ATTEMPTS_MAX => {
                        self.context.env.reached(Rare::AlteredByOthers);
                    }
                    done => return done,
                },
                None if attempts > 1 => {
                    return Ok(CommandDone { tag: ALTER_TABLE.into(), rows: None, level: None, version: None });
                }
                // Nothing to do, as far as this node knows; it may be behind.
                None => {}
            }
            self.context.agreement.linearizable(REFRESH_TIMEOUT).await?;
            altered = match self.plan_as_known(request, false).await?.0 {
                Statement::AlterTable(altered) => altered,
                _ => return Err(Error::internal("an ALTER TABLE was planned as another statement")),
            };
        }
    }

    /// One attempt at it: `SchemaChanged` if columns were to be changed and there was nothing left to change.
    async fn alter_once(&self, altered: AlteredTable, timeout: Duration) -> Result<CommandDone> {
        let (table, changes_columns) = (altered.table, !altered.changes.is_empty());
        let outcome = self.context.change_catalog(Command::AlterTable(altered), ALTER_TABLE, timeout).await?;
        if changes_columns && outcome.effects.is_empty() {
            // Somebody else had made it, and what came after that may have undone it: there may be a new column of the name.
            let message = format!("the columns of {table} were changed meanwhile");
            return Err(Error::new(ErrorCode::SchemaChanged, message).with_applied(Applied::False));
        }
        Ok(CommandDone { tag: ALTER_TABLE.into(), rows: None, level: None, version: None })
    }

    /// See [`super::Node::evolve`].
    pub(super) async fn evolve(&self, change: Evolution) -> Result<Arc<Table>> {
        let (name, before, command) = match change {
            Evolution::Create(new) => (new.name.clone(), None, Command::CreateTable(*new)),
            Evolution::Alter { table, changes } => {
                let altered = AlteredTable { changes, ..AlteredTable::of(table.id) };
                (table.name.clone(), Some(table), Command::AlterTable(altered))
            }
        };
        let timeout = Duration::from_millis(self.context.config.request_timeout_ms).min(EVOLVE_TIMEOUT);
        let Err(error) = self.propose(command, ALTER_TABLE, timeout).await else { return self.table(&name) };
        if !matches!(error.code(), ErrorCode::SchemaChanged | ErrorCode::InvalidStatement | ErrorCode::UnknownTable) {
            return Err(error);
        }
        // A name or number that somebody else has taken is refused; then there is something new to look at.
        self.context.agreement.linearizable(REFRESH_TIMEOUT).await?;
        let now = self.table(&name)?;
        let is_as_before =
            before.is_some_and(|before| before.id == now.id && before.schema.version == now.schema.version);
        if is_as_before {
            return Err(error);
        }
        self.context.env.reached(Rare::AlteredByOthers);
        Ok(now)
    }

    /// A table by name, asking the leader if this node has not heard of it.
    pub(super) fn table(&self, name: &str) -> Result<Arc<Table>> {
        table_of(&self.context.agreement.catalog().borrow(), name)
    }

    /// A number that no query has.
    pub(super) fn new_query_id(&self) -> QueryId {
        QueryId::new(self.context.node, self.context.env.random("query id"))
    }

    /// The catalog with everything that was agreed upon before, for somebody whose table or column this node does not know.
    ///
    /// # Errors
    /// Nobody can be asked, so nobody knows whether the name is wrong.
    async fn newest_catalog(&self, unknown: &Error) -> Result<Arc<Catalog>> {
        if self.context.config.has(Planted::StaleCatalog) {
            return Ok(self.context.agreement.catalog().borrow().clone());
        }
        self.context.agreement.linearizable(REFRESH_TIMEOUT).await.map_err(|error| {
            let message = format!("{}, as far as this node knows; the catalog cannot be asked", unknown.message());
            Error::new(error.code(), message).with_help("try again, or at another node")
        })
    }

    pub(super) async fn table_refreshed(&self, name: &str) -> Result<Arc<Table>> {
        match self.table(name) {
            Err(error) => {
                self.newest_catalog(&error).await?;
                self.table(name)
            }
            found => found,
        }
    }

    async fn propose(&self, command: Command, tag: &str, timeout: Duration) -> Result<CommandDone> {
        // The next statement on this node sees it.
        self.context.change_catalog(command, tag, timeout).await?;
        Ok(CommandDone { tag: tag.to_owned(), rows: None, level: None, version: None })
    }

    /// All rows of a query, and the time that none of them is newer than, if that is known.
    pub(super) async fn collect(
        &self,
        tag: &str,
        graph: FragmentGraph,
        id: QueryId,
        options: RunOptions,
        replan: Replan,
    ) -> Result<(Vec<RecordBatch>, Option<Hlc>)> {
        let mut stream = self.queries.run_replanned(graph, id, options, replan).await?;
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while let Some(event) = stream.next().await {
            match event {
                QueryEvent::Batch(batch) => {
                    bytes += batch.get_array_memory_size();
                    if bytes > FOUND_BYTES_MAX {
                        return Err(Error::new(
                            ErrorCode::LimitExceeded,
                            format!("{tag} would write more than {FOUND_BYTES_MAX} bytes at once"),
                        )
                        .with_help("do it in several parts, with a WHERE for each"));
                    }
                    batches.push(batch);
                }
                QueryEvent::End(summary) => return Ok((batches, summary.newest)),
                QueryEvent::Error(error) => return Err(error),
                QueryEvent::Schema(_) | QueryEvent::Progress(_) | QueryEvent::Done(_) => {}
            }
        }
        Err(Error::new(ErrorCode::Cancelled, "the query was stopped before anything was written"))
    }

    /// The stream of a statement without rows.
    fn done(&self, id: QueryId, done: CommandDone, started: Duration) -> QueryStream {
        let elapsed = self.context.env.monotonic().saturating_sub(started);
        let summary = QuerySummary {
            elapsed_micros: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            ..QuerySummary::default()
        };
        let (events, stream) = QueryStream::channel(id, 2);
        // Room for two, and two are sent.
        let _ = events.try_send(QueryEvent::Done(done));
        let _ = events.try_send(QueryEvent::End(summary));
        stream
    }
}
