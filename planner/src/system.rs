//! The schema `system`: tables that say how the cluster is.
//!
//! What is in them is the business of whoever answers ([`SystemTables`]). The rows of each are fetched once while the statement is planned and
//! travel with its plan, so all that a statement says of a table is as of one moment, and can be filtered, joined and grouped like all others.

use std::collections::BTreeMap;
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
use futures::lock::Mutex;
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{Error, ErrorCode};

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

/// Bytes of their rows that a statement may have in its plan, in which each mention of a table has them all.
const BYTES_MAX: usize = 32 << 20;

/// These tables as one statement sees them.
#[derive(Debug)]
pub(crate) struct SystemSchema(Arc<Seen>);

#[derive(Debug)]
struct Seen {
    tables: Arc<dyn SystemTables>,
    fetched: Mutex<Fetched>,
}

#[derive(Debug, Default)]
struct Fetched {
    rows: BTreeMap<String, RecordBatch>,
    /// Of all mentions.
    bytes: usize,
}

impl Seen {
    async fn rows(&self, table: &str) -> shoal_kernel::Result<RecordBatch> {
        let mut fetched = self.fetched.lock().await;
        let rows = match fetched.rows.get(table) {
            Some(rows) => rows.clone(),
            None => {
                let rows = self.tables.rows(table).await?;
                fetched.rows.insert(table.to_owned(), rows.clone());
                rows
            }
        };
        fetched.bytes = fetched.bytes.saturating_add(rows.get_array_memory_size());
        if fetched.bytes > BYTES_MAX {
            let message = format!("the system tables that the statement mentions have more than {BYTES_MAX} bytes");
            return Err(Error::new(ErrorCode::LimitExceeded, message).with_help("mention fewer of them"));
        }
        Ok(rows)
    }
}

impl SystemSchema {
    pub(crate) fn new(tables: Arc<dyn SystemTables>) -> Self {
        Self(Arc::new(Seen { tables, fetched: Mutex::default() }))
    }
}

#[async_trait]
impl SchemaProvider for SystemSchema {
    fn table_names(&self) -> Vec<String> {
        self.0.tables.names().into_iter().map(str::to_owned).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let table = |schema| Arc::new(SystemTable { name: name.to_owned(), schema, seen: Arc::clone(&self.0) }) as _;
        Ok(self.0.tables.schema(name).map(table))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.tables.schema(name).is_some()
    }
}

#[derive(Debug)]
struct SystemTable {
    name: String,
    schema: SchemaRef,
    seen: Arc<Seen>,
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
        let rows = self.seen.rows(&self.name).await.map_err(error_to_datafusion)?;
        Ok(MemorySourceConfig::try_new_exec(&[vec![rows]], self.schema(), projection.cloned())?)
    }
}
