//! The agreed catalog's tables as DataFusion sees them.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, Session, TableProvider};
use datafusion::datasource::source_as_provider;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableScan, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use shoal_catalog::{Catalog, Table};
use shoal_kernel::{ColumnPredicate, CompareOp, Cutoff, Datum, ReadLevel, ScanSpec, Slice, TableId, TableSchema};

use crate::node::{Known, LeafScanExec};
use crate::planner::{RowCounts, Slicing};
use crate::predicate;
use crate::prune::prune;

/// All tables of the catalog.
pub(crate) struct CatalogSchema {
    catalog: Arc<Catalog>,
    rows: RowCounts,
    slicing: Slicing,
}

impl CatalogSchema {
    pub(crate) fn new(catalog: Arc<Catalog>, rows: RowCounts, slicing: Slicing) -> Self {
        Self { catalog, rows, slicing }
    }
}

impl fmt::Debug for CatalogSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CatalogSchema(version {})", self.catalog.version)
    }
}

#[async_trait]
impl SchemaProvider for CatalogSchema {
    fn table_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.catalog.tables.values().map(|table| table.name.clone()).collect();
        names.sort_unstable();
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        Ok(self.catalog.table(name).map(|table| {
            Arc::new(ShoalTable {
                catalog: Arc::clone(&self.catalog),
                id: table.id,
                schema: table.schema.arrow(),
                rows: Arc::clone(&self.rows),
                slicing: self.slicing,
            }) as _
        }))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.catalog.table(name).is_some()
    }
}

/// One table, as of the catalog that the statement was planned with.
struct ShoalTable {
    catalog: Arc<Catalog>,
    id: TableId,
    schema: SchemaRef,
    rows: RowCounts,
    slicing: Slicing,
}

impl ShoalTable {
    fn definition(&self) -> Result<&Table> {
        self.catalog
            .tables
            .get(&self.id)
            .ok_or_else(|| DataFusionError::Internal(format!("table {} left a catalog that never changes", self.id)))
    }
}

/// Whether a scan reads a table of the catalog.
pub(crate) fn is_table(scan: &TableScan) -> Result<bool> {
    let provider = source_as_provider(&scan.source)?;
    Ok((provider.as_ref() as &dyn std::any::Any).is::<ShoalTable>())
}

/// The most slices that a partition is read in; 1 for what is no table of ours.
pub(crate) fn slices_of(scan: &TableScan) -> Result<u32> {
    let provider = source_as_provider(&scan.source)?;
    let Some(table) = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<ShoalTable>() else { return Ok(1) };
    let definition = table.definition()?;
    let (scans, _) = table.scans(definition, &[], &scan.filters, scan.fetch)?;
    Ok(scans.iter().map(|scan| scan.slice.of).max().unwrap_or(1))
}

/// The level that a table is read at by default; the lowest for what is no table of ours.
pub(crate) fn read_level_of(scan: &TableScan) -> Result<ReadLevel> {
    let provider = source_as_provider(&scan.source)?;
    let table = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<ShoalTable>();
    table.map_or(Ok(ReadLevel::default()), |table| Ok(table.definition()?.options.read_level))
}

impl fmt::Debug for ShoalTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShoalTable({})", self.id)
    }
}

#[async_trait]
impl TableProvider for ShoalTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let schema = &self.definition()?.schema;
        let support = |filter: &&Expr| match predicate::lower(filter, schema).is_empty() {
            true => TableProviderFilterPushDown::Unsupported,
            false if predicate::is_exact(filter, schema) => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let table = self.definition()?;
        let all: Vec<usize> = (0..table.schema.columns.len()).collect();
        let projection = projection.unwrap_or(&all);
        let schema = Arc::new(self.schema.project(projection)?);
        let columns: Vec<_> = projection.iter().filter_map(|place| table.schema.columns.get(*place)).collect();
        let (scans, rows) = self.scans(table, &columns, filters, limit)?;
        let Some(first) = scans.first() else { return Ok(Arc::new(EmptyExec::new(schema))) };
        let words = words(&table.schema, &columns, &first.predicates, first.limit);
        let key = table.schema.key_indices().into_iter().map(|place| table.schema.columns[place].id).collect();
        Ok(Arc::new(LeafScanExec::new(table.name.clone(), schema, scans, words, Known { rows, key })))
    }
}

impl ShoalTable {
    /// The scans of the partitions that may hold wanted rows, and the rows that each looks at.
    fn scans(
        &self,
        table: &Table,
        columns: &[&shoal_kernel::Column],
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<(Vec<ScanSpec>, Vec<Option<u64>>)> {
        let mut predicates: Vec<ColumnPredicate> =
            filters.iter().flat_map(|filter| predicate::lower(filter, &table.schema)).collect();
        // A replica that has not heard of the cut-off yet, or is dropping rows just now, shows no more than the others.
        predicates.extend(table.cutoff.map(Cutoff::predicate));
        let partitions = prune(&self.catalog, table, &predicates);
        // A filter above would take rows away after the limit had counted them.
        let limit = limit.filter(|_| filters.is_empty()).map(|limit| limit as u64);
        let (mut scans, mut rows) = (Vec::new(), Vec::new());
        for partition in partitions {
            let columns = columns.iter().map(|column| column.id).collect();
            let all_rows = ScanSpec::of(table.id, partition.id, table.schema.version, columns);
            let whole = ScanSpec { predicates: predicates.clone(), limit, ..all_rows };
            let all = (self.rows)(&whole);
            let slices = self.slicing.of_scan(&whole, all);
            rows.extend(std::iter::repeat_n(all.map(|rows| rows / u64::from(slices)), slices as usize));
            scans.extend(Slice::all(slices).map(|slice| ScanSpec { slice, ..whole.clone() }));
        }
        Ok((scans, rows))
    }
}

/// A scan for people.
pub(crate) fn words(
    schema: &TableSchema,
    columns: &[&shoal_kernel::Column],
    predicates: &[ColumnPredicate],
    limit: Option<u64>,
) -> String {
    let names: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
    let mut words = format!(", columns=[{}]", names.join(", "));
    if !predicates.is_empty() {
        let conditions: Vec<_> = predicates.iter().map(|predicate| condition(schema, predicate)).collect();
        words += &format!(", where=[{}]", conditions.join(", "));
    }
    if let Some(limit) = limit {
        words += &format!(", limit={limit}");
    }
    words
}

fn condition(schema: &TableSchema, predicate: &ColumnPredicate) -> String {
    let name = schema.index_of(predicate.column()).map_or("?", |place| schema.columns[place].name.as_str());
    match predicate {
        ColumnPredicate::Compare { op, value, .. } => {
            let op = match op {
                CompareOp::Eq => "=",
                CompareOp::NotEq => "<>",
                CompareOp::Lt => "<",
                CompareOp::LtEq => "<=",
                CompareOp::Gt => ">",
                CompareOp::GtEq => ">=",
            };
            format!("{name} {op} {}", constant(value))
        }
        ColumnPredicate::In { values, .. } => {
            let values: Vec<_> = values.iter().map(constant).collect();
            format!("{name} IN ({})", values.join(", "))
        }
        ColumnPredicate::Like { pattern, negated, ignore_case, .. } => {
            let not = if *negated { "NOT " } else { "" };
            let like = if *ignore_case { "ILIKE" } else { "LIKE" };
            format!("{name} {not}{like} '{pattern}'")
        }
        ColumnPredicate::IsNull { .. } => format!("{name} IS NULL"),
        ColumnPredicate::IsNotNull { .. } => format!("{name} IS NOT NULL"),
    }
}

fn constant(value: &Datum) -> String {
    match value {
        Datum::Null => "NULL".into(),
        Datum::Bool(value) => value.to_string(),
        Datum::Int(value) => value.to_string(),
        Datum::UInt(value) => value.to_string(),
        Datum::Float(value) => value.to_string(),
        Datum::Decimal(value) => value.to_string(),
        Datum::Text(value) => format!("'{value}'"),
        Datum::Bytes(value) => value.iter().fold(String::from("x"), |text, byte| text + &format!("{byte:02x}")),
    }
}
