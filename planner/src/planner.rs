//! The planner: one statement in, what it asks for out.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::sql::parser::Statement as SqlStatement;
use shoal_catalog::Catalog;
use shoal_kernel::{Error, ErrorCode, PartitionId, Result};
use sqlparser::ast;

use crate::constant::materialise;
use crate::cut::cut;
use crate::error::error_from_datafusion;
use crate::graph::{Edge, Fragment, FragmentGraph, TaskInputs};
use crate::router::EdgeRouter;
use crate::session;
use crate::sql::{Parsed, TableName, at, parse};
use crate::statement::{ExplainKind, PlannedQuery, Statement};
use crate::task::{self, RunnableTask, TaskMemory};
use crate::{change, explain, insert, show, unknown, window};

/// The rows of a partition, as far as somebody knows. Used to choose between plans, never for an answer.
pub type RowCounts = Arc<dyn Fn(PartitionId) -> Option<u64> + Send + Sync>;

/// How one statement is planned.
#[derive(Clone)]
pub struct PlanOptions {
    /// Tasks of a fragment that reads a hash edge. Live nodes are a good number; at least 1.
    pub target_partitions: usize,
    /// Rows per batch.
    pub batch_rows: usize,
    /// Refuse everything but queries.
    pub read_only: bool,
    /// What `now()` is, in microseconds since the Unix epoch: the same in every task.
    pub now_micros: u64,
    /// Statistics.
    pub row_counts: RowCounts,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { target_partitions: 1, batch_rows: 8192, read_only: false, now_micros: 0, row_counts: Arc::new(|_| None) }
    }
}

impl fmt::Debug for PlanOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanOptions")
            .field("target_partitions", &self.target_partitions)
            .field("batch_rows", &self.batch_rows)
            .field("read_only", &self.read_only)
            .field("now_micros", &self.now_micros)
            .finish_non_exhaustive()
    }
}

/// Plans statements and brings fragments back to life. Cheap to clone; holds functions and rules, no data and no tables.
#[derive(Clone)]
pub struct Planner {
    template: Arc<SessionState>,
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
        Self { template: Arc::new(session::template()) }
    }

    /// Plans the one statement of `sql` against the tables of `catalog`.
    ///
    /// # Errors
    /// The text does not parse, names something unknown, makes no sense, or asks for what is refused or not built. Places
    /// in the text come with the error where they are known.
    pub async fn plan(&self, sql: &str, catalog: &Arc<Catalog>, options: &PlanOptions) -> Result<Statement> {
        let parsed = parse(sql)?;
        if options.read_only {
            refuse_writes(&parsed)?;
        }
        let state = session::session(&self.template, catalog, options)?;
        let query = |graph, explain| Statement::Query(PlannedQuery { graph, explain });
        Ok(match parsed {
            Parsed::Query(statement) => query(self.query(&state, catalog, *statement).await?.graph, None),
            Parsed::Explain { statement, analyze } => {
                let planned = match statement.as_ref() {
                    ast::Statement::Query(_) => self.query(&state, catalog, *statement).await?,
                    _ => change::plan(&state, catalog, *statement).await?.planned,
                };
                match analyze {
                    true => query(planned.graph, Some(ExplainKind::Analyze)),
                    false => query(explain::rows(&planned)?, Some(ExplainKind::Plan)),
                }
            }
            Parsed::CreateTable(table) => Statement::CreateTable(table),
            Parsed::DropTable { name, if_exists } => Statement::DropTable { name, if_exists },
            Parsed::Insert(statement) => insert::plan(&state, catalog, *statement).await?,
            Parsed::Change(statement) => change::plan(&state, catalog, *statement).await?.into(),
            Parsed::Flush(name) => Statement::Flush { table: name.map(|name| known(catalog, name)).transpose()? },
            Parsed::Optimize(name) => Statement::Optimize { table: known(catalog, name)? },
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
        task::decode(&self.template, fragment, task, inputs, memory)
    }

    /// What splits the output of a fragment's task over the slots of its edge.
    ///
    /// # Errors
    /// The edge's bytes are not expressions over `schema`.
    pub fn router(&self, edge: &Edge, schema: SchemaRef) -> Result<EdgeRouter> {
        EdgeRouter::new(&self.template, edge, &schema)
    }
}

/// A query in all its forms.
pub(crate) struct Planned {
    pub(crate) logical: LogicalPlan,
    pub(crate) physical: Arc<dyn ExecutionPlan>,
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
    let logical = window::portable(logical.clone()).map_err(error_from_datafusion)?;
    let logical = state.optimize(&logical).map_err(error_from_datafusion)?;
    let physical = state.query_planner().create_physical_plan(&logical, state).await.map_err(error_from_datafusion)?;
    let physical = materialise(physical, state.task_ctx()).await.map_err(error_from_datafusion)?;
    let graph = cut(Arc::clone(&physical)).map_err(error_from_datafusion)?;
    Ok(Planned { logical, physical, graph })
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
        Parsed::Insert(_) => "INSERT",
        Parsed::Change(statement) => match statement.as_ref() {
            ast::Statement::Update(_) => "UPDATE",
            _ => "DELETE",
        },
        Parsed::Flush(_) => "FLUSH",
        Parsed::Optimize(_) => "OPTIMIZE TABLE",
        Parsed::Query(_)
        | Parsed::Explain { .. }
        | Parsed::ShowTables
        | Parsed::Describe(_)
        | Parsed::ShowPartitions(_) => return Ok(()),
    };
    let message = format!("{what} is not a query, and this request may only read");
    Err(Error::new(ErrorCode::Forbidden, message).with_help("send it with POST"))
}
