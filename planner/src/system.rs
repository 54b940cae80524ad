//! The schema `system`: tables that say how the cluster is.
//!
//! What is in them is the business of whoever answers ([`SystemTables`]). Their rows are fetched while the statement is planned and travel
//! with its plan, so they are as of one moment for the whole query, and can be filtered, joined and grouped like all others.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, Session, TableProvider};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use shoal_kernel::env::BoxFuture;

use crate::error::error_to_datafusion;

/// Who knows how the cluster is.
pub trait SystemTables: Send + Sync + fmt::Debug {
    /// The names of the tables, in the order in which they are listed.
    fn names(&self) -> Vec<&'static str>;

    /// The columns of one of them.
    fn schema(&self, table: &str) -> Option<SchemaRef>;

    /// Its rows as of now, in these columns.
    ///
    /// # Errors
    /// There is no such table, or nobody can say.
    fn rows(&self, table: &str) -> BoxFuture<'static, shoal_kernel::Result<RecordBatch>>;
}

/// These tables as DataFusion sees them.
#[derive(Debug)]
pub(crate) struct SystemSchema(Arc<dyn SystemTables>);

impl SystemSchema {
    pub(crate) fn new(tables: Arc<dyn SystemTables>) -> Self {
        Self(tables)
    }
}

#[async_trait]
impl SchemaProvider for SystemSchema {
    fn table_names(&self) -> Vec<String> {
        self.0.names().into_iter().map(str::to_owned).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let table = |schema| Arc::new(SystemTable { name: name.to_owned(), schema, tables: Arc::clone(&self.0) }) as _;
        Ok(self.0.schema(name).map(table))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.schema(name).is_some()
    }
}

#[derive(Debug)]
struct SystemTable {
    name: String,
    schema: SchemaRef,
    tables: Arc<dyn SystemTables>,
}

#[async_trait]
impl TableProvider for SystemTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = self.tables.rows(&self.name).await.map_err(error_to_datafusion)?;
        Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], self.schema(), projection.cloned())?)
    }
}
