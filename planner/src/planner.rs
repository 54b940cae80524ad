//! The planner: one statement in, what it asks for out.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::TaskContext;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::parser::Statement as SqlStatement;
use shoal_catalog::Catalog;
use shoal_kernel::{Error, ErrorCode, ReadLevel, Result, ScanSpec};
use sqlparser::ast;

use crate::broadcast;
use crate::cache::PlanCache;
use crate::coded::group_by_codes;
use crate::constant::materialise;
use crate::cut::cut;
use crate::ends::read_ends;
use crate::error::error_from_datafusion;
use crate::graph::{Edge, Fragment, FragmentGraph, TaskInputs};
use crate::late::fetch_late;
use crate::order::order_scans;
use crate::router::EdgeRouter;
use crate::session;
use crate::sql::{BackupStatement, Parsed, TableName, at, parse};
use crate::statement::{ExplainKind, PlannedQuery, Statement};
use crate::summary::ask_statistics;
use crate::system::SystemTables;
use crate::table::{is_table, read_level_of, slices_of};
use crate::task::{self, RunnableTask, TaskMemory};
use crate::{by_key, change, explain, insert, show, unknown, window};

/// The rows that a scan looks at, as far as somebody knows. Used to choose between plans, never for an answer.
pub type RowCounts = Arc<dyn Fn(&ScanSpec) -> Option<u64> + Send + Sync>;

/// Into how many tasks the scan of a partition is split, so that one node's cores share the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slicing {
    /// Slices at most. A node's cores are a good number; at least 1.
    pub slices_max: u32,
    /// Rows that make a slice worth a task of its own.
    pub slice_rows_min: u64,
}

impl Slicing {
    /// Every partition is read by one task.
    pub const NONE: Self = Self { slices_max: 1, slice_rows_min: u64::MAX };

    /// Slices of a scan that looks at so many rows.
    pub(crate) fn of_scan(&self, scan: &ScanSpec, rows: Option<u64>) -> u32 {
        if scan.limit.is_some() {
            // It is met by the first rows that come.
            return 1;
        }
        let worth = rows.unwrap_or(0) / self.slice_rows_min.max(1);
        u32::try_from(worth).unwrap_or(u32::MAX).clamp(1, self.slices_max.max(1))
    }
}

/// How one statement is planned.
#[derive(Clone)]
pub struct PlanOptions {
    /// Tasks of a fragment that reads a hash edge. Live nodes are a good number; at least 1.
    pub target_partitions: usize,
    /// Rows per batch.
    pub batch_rows: usize,
    /// Refuse everything but queries.
    pub read_only: bool,
    /// The level that the request names, for EXPLAIN; the plan does not depend on it.
    pub read_level: Option<ReadLevel>,
    /// What `now()` is, in microseconds since the Unix epoch: the same in every task.
    pub now_micros: u64,
    /// Statistics.
    pub row_counts: RowCounts,
    /// How scans are split.
    pub slicing: Slicing,
    /// Whether a small side of a join may go to every task of the other: all nodes must be of builds that can read one.
    pub broadcast: bool,
    /// Whether reads and changes of a few rows by key may do without a plan ([`Statement::KeyRead`], [`Statement::KeyChange`]).
    pub by_key: bool,
    /// Who answers for the schema `system`; without, there is none.
    pub system: Option<Arc<dyn SystemTables>>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            target_partitions: 1,
            batch_rows: 8192,
            read_only: false,
            read_level: None,
            now_micros: 0,
            row_counts: Arc::new(|_| None),
            slicing: Slicing::NONE,
            broadcast: true,
            by_key: false,
            system: None,
        }
    }
}

impl fmt::Debug for PlanOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanOptions")
            .field("target_partitions", &self.target_partitions)
            .field("batch_rows", &self.batch_rows)
            .field("read_only", &self.read_only)
            .field("read_level", &self.read_level)
            .field("now_micros", &self.now_micros)
            .field("slicing", &self.slicing)
            .field("broadcast", &self.broadcast)
            .field("by_key", &self.by_key)
            .finish_non_exhaustive()
    }
}

/// Plans statements and brings fragments back to life. Cheap to clone; holds functions and rules, no data and no tables.
#[derive(Clone)]
pub struct Planner {
    template: Arc<SessionState>,
    /// The same for nodes that cannot all read a broadcast.
    without_broadcast: Arc<SessionState>,
    /// What plans and expressions are decoded with: all functions, and the settings that tasks start from.
    registry: Arc<TaskContext>,
    plans: Arc<PlanCache>,
}

impl Default for Planner {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Planner")
    }
}

impl Planner {
    /// A planner with all built-in functions.
    pub fn new() -> Self {
        let template = session::template();
        Self {
            registry: template.task_ctx(),
            without_broadcast: Arc::new(session::without_broadcast(&template)),
            template: Arc::new(template),
            plans: Arc::default(),
        }
    }

    /// Plans the one statement of `sql` against the tables of `catalog`.
    ///
    /// # Errors
    /// The text does not parse, names something unknown, makes no sense, or asks for what is refused or not built. Places
    /// in the text come with the error where they are known.
    pub async fn plan(&self, sql: &str, catalog: &Arc<Catalog>, options: &PlanOptions) -> Result<Statement> {
        let query = |graph, explain| Statement::Query(PlannedQuery { graph, explain });
        if let Some(graph) = self.plans.get(sql, catalog, options) {
            return Ok(query(graph, None));
        }
        let parsed = parse(sql)?;
        if options.read_only {
            refuse_writes(&parsed)?;
        }
        let by_key = match &parsed {
            Parsed::Query(statement) if options.by_key => by_key::read(statement, catalog).map(Statement::KeyRead),
            Parsed::Change(statement) if options.by_key => by_key::change(statement, catalog).map(Statement::KeyChange),
            _ => None,
        };
        if let Some(statement) = by_key {
            return Ok(statement);
        }
        let template = if options.broadcast { &self.template } else { &self.without_broadcast };
        let state = session::session(template, catalog, options)?;
        Ok(match parsed {
            Parsed::Query(statement) => {
                let logical = logical_plan(&state, catalog, *statement).await?;
                let lasts = is_lasting(&logical).map_err(error_from_datafusion)?;
                let planned = physical_plan(&state, &logical).await?;
                if lasts {
                    self.plans.put(sql, catalog, options, &planned);
                }
                query(planned.graph, None)
            }
            Parsed::Explain { statement, analyze } => {
                let by_key = if options.by_key { by_key::describe(&statement, catalog) } else { None };
                let planned = match statement.as_ref() {
                    ast::Statement::Query(_) => self.query(&state, catalog, *statement).await?,
                    _ => change::plan(&state, catalog, *statement).await?.planned,
                };
                match analyze {
                    true => query(planned.graph, Some(ExplainKind::Analyze)),
                    false => {
                        let level = options.read_level.unwrap_or(planned.graph.read_level);
                        query(explain::rows(&planned, by_key, level)?, Some(ExplainKind::Plan))
                    }
                }
            }
            Parsed::CreateTable(table) => Statement::CreateTable(table),
            Parsed::DropTable { name, if_exists } => Statement::DropTable { name, if_exists },
            Parsed::AlterTable(altered) => Statement::AlterTable(altered.resolve(catalog)?),
            Parsed::Split(splitting) => {
                let (table, how) = splitting.resolve(catalog)?;
                Statement::Split { table, how }
            }
            Parsed::Insert(statement) => insert::plan(&state, catalog, *statement).await?,
            Parsed::Change(statement) => change::plan(&state, catalog, *statement).await?.into(),
            Parsed::Flush(name) => Statement::Flush { table: name.map(|name| known(catalog, name)).transpose()? },
            Parsed::Optimize(name) => Statement::Optimize { table: known(catalog, name)? },
            Parsed::Repair(name) => Statement::Repair { table: known(catalog, name)? },
            Parsed::Backup(BackupStatement { restores: false, table, place, .. }) => {
                Statement::Backup { table: table.map(|name| known(catalog, name)).transpose()?, to: place }
            }
            Parsed::Backup(BackupStatement { table, named, place, .. }) => Statement::Restore {
                table: table.map(|table| table.name),
                named: named.map(|table| table.name),
                from: place,
            },
            Parsed::ShowTables => query(show::tables(catalog)?, None),
            Parsed::Describe(name) => query(show::columns(catalog, &name)?, None),
            Parsed::ShowPartitions(name) => query(show::partitions(catalog, &name)?, None),
        })
    }

    async fn query(&self, state: &SessionState, catalog: &Catalog, statement: ast::Statement) -> Result<Planned> {
        let logical = logical_plan(state, catalog, statement).await?;
        physical_plan(state, &logical).await
    }

    /// Brings one task of a fragment to life.
    ///
    /// # Errors
    /// The fragment's bytes are not a plan of this build, or it has no such task.
    pub fn decode(
        &self,
        fragment: &Fragment,
        task: u32,
        inputs: Arc<dyn TaskInputs>,
        memory: TaskMemory,
    ) -> Result<RunnableTask> {
        task::decode(&self.registry, fragment, task, inputs, memory)
    }

    /// What splits the output of a fragment's task over the slots of its edge.
    ///
    /// # Errors
    /// The edge's bytes are not expressions over `schema`.
    pub fn router(&self, edge: &Edge, schema: SchemaRef) -> Result<EdgeRouter> {
        EdgeRouter::new(&self.registry, edge, &schema)
    }
}

/// A query in all its forms.
pub(crate) struct Planned {
    pub(crate) logical: LogicalPlan,
    pub(crate) physical: Arc<dyn ExecutionPlan>,
    /// Whether it may have broadcasts.
    pub(crate) broadcast: bool,
    pub(crate) graph: FragmentGraph,
}

/// The statement as a logical plan, its names resolved.
pub(crate) async fn logical_plan(
    state: &SessionState,
    catalog: &Catalog,
    statement: ast::Statement,
) -> Result<LogicalPlan> {
    unknown::check_tables(state, catalog, &statement)?;
    let logical = state
        .statement_to_plan(SqlStatement::Statement(Box::new(statement.clone())))
        .await
        .map_err(|error| unknown::explain_error(state, &statement, error))?;
    Ok(logical)
}

/// The logical plan, optimised, made physical and cut.
pub(crate) async fn physical_plan(state: &SessionState, logical: &LogicalPlan) -> Result<Planned> {
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
        .verify_plan(logical)
        .map_err(|_| Error::new(ErrorCode::Unsupported, "a query may only read: it cannot make or change tables"))?;
    if let Some(name) = logical.get_parameter_names().map_err(error_from_datafusion)?.into_iter().min() {
        return Err(Error::new(ErrorCode::Unsupported, format!("the parameter {name} has no value")));
    }
    // Before it is optimised: a table that is found to hold nothing for the query would not be there any more.
    let read_level = read_level(logical).map_err(error_from_datafusion)?;
    let logical = window::portable(logical.clone()).map_err(error_from_datafusion)?;
    let logical = state.optimize(&logical).map_err(error_from_datafusion)?;
    let wide;
    let state = match widest_scan(&logical).map_err(error_from_datafusion)? {
        0 | 1 => state,
        slices => {
            // What many tasks read is also worth merging in as many.
            let mut wider = state.clone();
            let config = wider.config_mut().options_mut();
            config.execution.target_partitions *= slices as usize;
            wide = wider;
            &wide
        }
    };
    let physical = state.query_planner().create_physical_plan(&logical, state).await.map_err(error_from_datafusion)?;
    let physical = materialise(physical, state).await.map_err(error_from_datafusion)?;
    let physical = read_ends(physical).map_err(error_from_datafusion)?;
    let physical = ask_statistics(physical).map_err(error_from_datafusion)?;
    let physical = group_by_codes(physical).map_err(error_from_datafusion)?;
    let physical = fetch_late(physical).map_err(error_from_datafusion)?;
    let physical = order_scans(physical).map_err(error_from_datafusion)?;
    let broadcast = broadcast::is_on(state);
    let graph = cut(Arc::clone(&physical), broadcast).map_err(error_from_datafusion)?;
    Ok(Planned { logical, physical, broadcast, graph: FragmentGraph { read_level, ..graph } })
}

/// The highest level that any table in the plan is read at by default.
fn read_level(logical: &LogicalPlan) -> datafusion::error::Result<ReadLevel> {
    let mut highest = ReadLevel::default();
    logical.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            highest = highest.max(read_level_of(scan)?);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(highest)
}

/// Whether the plan is the same whenever it is made: no function in it depends on the moment, or on chance.
fn is_lasting(logical: &LogicalPlan) -> datafusion::error::Result<bool> {
    let mut lasting = true;
    logical.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            // Table functions have computed with their arguments already, and may have asked what time it is.
            lasting &= is_table(scan)?;
        }
        node.apply_expressions(|expr| {
            lasting &= !expr.exists(|inner| {
                Ok(matches!(inner, Expr::ScalarFunction(call)
                    if call.func.signature().volatility != Volatility::Immutable))
            })?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(lasting)
}

/// The most slices that a partition of any table in the plan is read in.
fn widest_scan(logical: &LogicalPlan) -> datafusion::error::Result<u32> {
    let mut widest = 1;
    logical.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            widest = widest.max(slices_of(scan)?);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(widest)
}

/// The name of a table that exists.
fn known(catalog: &Catalog, name: TableName) -> Result<String> {
    match catalog.table(&name.name) {
        Some(table) => Ok(table.name.clone()),
        None => Err(at(unknown::unknown_table(catalog, &name.name), name.span)),
    }
}

fn refuse_writes(parsed: &Parsed) -> Result<()> {
    let what = match parsed {
        Parsed::CreateTable(_) => "CREATE TABLE",
        Parsed::DropTable { .. } => "DROP TABLE",
        Parsed::AlterTable(_) | Parsed::Split(_) => "ALTER TABLE",
        Parsed::Insert(_) => "INSERT",
        Parsed::Change(statement) => match statement.as_ref() {
            ast::Statement::Update(_) => "UPDATE",
            _ => "DELETE",
        },
        Parsed::Flush(_) => "FLUSH",
        Parsed::Optimize(_) => "OPTIMIZE TABLE",
        Parsed::Repair(_) => "REPAIR TABLE",
        Parsed::Backup(BackupStatement { restores: false, .. }) => "BACKUP",
        Parsed::Backup(_) => "RESTORE",
        Parsed::Query(_)
        | Parsed::Explain { .. }
        | Parsed::ShowTables
        | Parsed::Describe(_)
        | Parsed::ShowPartitions(_) => return Ok(()),
    };
    let message = format!("{what} is not a query, and this request may only read");
    Err(Error::new(ErrorCode::Forbidden, message).with_help("send it with POST"))
}
