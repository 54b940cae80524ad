//! How DataFusion is set up: for plans that cut well and come out the same on every node.

use std::sync::Arc;

use datafusion::catalog::{CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{SessionStateBuilder, TaskContext};
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::prelude::SessionConfig;
use shoal_catalog::Catalog;
use shoal_kernel::{Error, ErrorCode, Result};

use crate::broadcast;
use crate::error::error_from_datafusion;
use crate::planner::PlanOptions;
use crate::series;
use crate::system::SystemSchema;
use crate::table::CatalogSchema;

/// The name of the one database.
pub(crate) const CATALOG: &str = "shoal";
/// The name of the one schema in it.
pub(crate) const SCHEMA: &str = "public";

/// The name of the schema of tables that say how the cluster is.
pub(crate) const SYSTEM_SCHEMA: &str = "system";

/// Levels of parentheses, subqueries and operators that a statement may nest.
pub(crate) const SQL_NESTING_MAX: usize = 64;

/// The state that every statement starts from: functions, rules, options; no tables, no clock.
pub(crate) fn template() -> SessionState {
    let mut state = SessionStateBuilder::new()
        .with_session_id("shoal".into())
        .with_default_features()
        .with_config(config())
        .with_physical_optimizer_rules(broadcast::rules())
        .with_catalog_list(Arc::new(MemoryCatalogProviderList::new()));
    series::add(&mut state);
    state.build()
}

/// The same without the rule that has a small side of a join go to every task of the other.
pub(crate) fn without_broadcast(template: &SessionState) -> SessionState {
    SessionStateBuilder::new_from_existing(template.clone())
        .with_physical_optimizer_rules(PhysicalOptimizer::new().rules)
        .build()
}

fn config() -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(1)
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true)
        .with_round_robin_repartition(false);
    let options = config.options_mut();
    options.sql_parser.collect_spans = true;
    // The storage gives Utf8; a view type in the plan would only add casts.
    options.sql_parser.map_string_types_to_utf8view = false;
    // A number with a point is exact: as a double, digits of a DECIMAL column would be lost on the way into it.
    options.sql_parser.parse_float_as_decimal = true;
    options.execution.planning_concurrency = 1;
    let optimizer = &mut options.optimizer;
    // A filter that one operator fills in and another waits for does not survive a cut between the two.
    optimizer.enable_dynamic_filter_pushdown = false;
    optimizer.enable_join_dynamic_filter_pushdown = false;
    optimizer.enable_topk_dynamic_filter_pushdown = false;
    optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    // Which sides are collected is for a rule of ours to say: it knows what a copy costs.
    optimizer.hash_join_single_partition_threshold = 0;
    optimizer.hash_join_single_partition_threshold_rows = 0;
    config
}

/// What plans run with. The functions that they call are in them, so it holds none: there are hundreds to be copied.
pub(crate) fn running(task: Option<String>, config: SessionConfig, runtime: Arc<RuntimeEnv>) -> TaskContext {
    let (scalar, higher_order, aggregate, window) = Default::default();
    TaskContext::new(task, "shoal".into(), config, scalar, higher_order, aggregate, window, runtime)
}

/// The state for one statement.
///
/// # Errors
/// The time cannot be represented.
pub(crate) fn session(template: &SessionState, catalog: &Arc<Catalog>, options: &PlanOptions) -> Result<SessionState> {
    let mut state = template.clone();
    let config = state.config_mut().options_mut();
    config.execution.target_partitions = options.target_partitions.max(1);
    config
        .set("datafusion.execution.batch_size", &options.batch_rows.max(1).to_string())
        .map_err(error_from_datafusion)?;
    let micros = i64::try_from(options.now_micros).unwrap_or(i64::MAX);
    let now = arrow::temporal_conversions::timestamp_us_to_datetime(micros)
        .ok_or_else(|| Error::new(ErrorCode::Internal, "the clock is beyond what a timestamp can hold"))?;
    state.execution_props_mut().query_execution_start_time = Some(now.and_utc());
    let database = MemoryCatalogProvider::new();
    let schema = CatalogSchema::new(Arc::clone(catalog), Arc::clone(&options.row_counts), options.slicing);
    database.register_schema(SCHEMA, Arc::new(schema)).map_err(error_from_datafusion)?;
    if let Some(tables) = &options.system {
        let schema = Arc::new(SystemSchema::new(Arc::clone(tables)));
        database.register_schema(SYSTEM_SCHEMA, schema).map_err(error_from_datafusion)?;
    }
    let list = MemoryCatalogProviderList::new();
    list.register_catalog(CATALOG.into(), Arc::new(database));
    state.register_catalog_list(Arc::new(list));
    Ok(state)
}
