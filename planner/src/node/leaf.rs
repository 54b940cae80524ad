//! The leaf of every distributed plan: a table's partitions, one output partition each.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::Statistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, SchedulingType};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, SplitMetrics};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::stream::BatchSplitStream;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions};
use serde::{Deserialize, Serialize};
use shoal_kernel::{
    ADDRESS_COLUMN, ColumnId, Error, FrontierSource, KeyEnds, Measure, PartitionId, ScanOrder, ScanSpec, Summary,
    SummaryPart, TableId,
};

use crate::error::error_to_datafusion;

/// Reads partitions of one table where they lie: output partition `i` is the rows that `scans[i]` asks for.
#[derive(Debug, Clone)]
pub(crate) struct LeafScanExec {
    body: Body,
    known: Known,
    /// Where its reader stands, if that is known.
    frontier: Option<FrontierSource>,
    properties: Arc<PlanProperties>,
}

/// What only the planner knows, and needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// Rows by scan, as far as somebody can tell; only ever used to choose between plans.
    pub(crate) rows: Vec<Option<u64>>,
    /// The columns of the table's key, in its order.
    pub(crate) key: Vec<ColumnId>,
}

/// What travels.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Body {
    table: String,
    schema: SchemaRef,
    scans: Vec<ScanSpec>,
    /// The wanted columns and conditions as people read them.
    words: String,
}

impl LeafScanExec {
    /// A scan of at least one partition. `words` says for people what the scans read.
    pub(crate) fn new(table: String, schema: SchemaRef, scans: Vec<ScanSpec>, words: String, known: Known) -> Self {
        Self::from_body(Body { table, schema, scans, words }, known)
    }

    fn from_body(body: Body, known: Known) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&body.schema)),
            Partitioning::UnknownPartitioning(body.scans.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Self { body, known, frontier: None, properties: Arc::new(properties) }
    }

    /// The partitions it reads, by output partition.
    pub(crate) fn partitions(&self) -> Vec<PartitionId> {
        self.body.scans.iter().map(|scan| scan.partition).collect()
    }

    /// The table's columns that it gives, by id, in the order of its schema; `None` if some scan gives fewer rows than there
    /// are.
    pub(crate) fn columns(&self) -> Option<&[ColumnId]> {
        let first = self.body.scans.first()?;
        self.body.scans.iter().all(|scan| scan.limit.is_none() && !scan.addresses).then_some(&first.columns)
    }

    /// What it reads, by output partition.
    pub(crate) fn scans(&self) -> &[ScanSpec] {
        &self.body.scans
    }

    /// The columns of the table's key, in its order; none if this has travelled.
    pub(crate) fn key(&self) -> &[ColumnId] {
        &self.known.key
    }

    /// The rows that it makes sure to give, if not all.
    pub(crate) fn ends(&self) -> Option<KeyEnds> {
        self.body.scans.first()?.ends
    }

    /// Of the same rows at least those at the ends of the key's order.
    pub(crate) fn at_ends(&self, ends: KeyEnds) -> Self {
        let mut body = self.body.clone();
        body.scans.iter_mut().for_each(|scan| scan.ends = Some(ends));
        let which = match (ends.first, ends.last) {
            (true, true) => "first and last",
            (true, false) => "first",
            (false, _) => "last",
        };
        let columns = ends.columns;
        body.words += &match columns {
            0 => format!(", ends=[{which}]"),
            _ => format!(", ends=[{which} by {columns} of the key's columns]"),
        };
        Self::from_body(body, self.known.clone())
    }

    /// The same rows, which are to be written back: an error if their table has got another schema meanwhile.
    pub(crate) fn exact(&self) -> Self {
        let mut body = self.body.clone();
        body.scans.iter_mut().for_each(|scan| scan.schema_exact = true);
        Self::from_body(body, self.known.clone())
    }

    /// Of the same rows those of which statistics do not tell the measures.
    pub(crate) fn beside_statistics(&self, measures: Vec<Measure>) -> Self {
        let mut body = self.body.clone();
        let summary = Summary { measures, part: SummaryPart::Rest };
        body.scans.iter_mut().for_each(|scan| scan.summary = Some(summary.clone()));
        body.words += ", rest";
        Self::from_body(body, self.known.clone())
    }

    /// The order of which its reader keeps the first rows.
    pub(crate) fn order(&self) -> Option<ScanOrder> {
        self.body.scans.first()?.order
    }

    /// The same rows, if need be without those that are not among the first of that order.
    pub(crate) fn ordered(&self, order: ScanOrder) -> Self {
        let mut body = self.body.clone();
        body.scans.iter_mut().for_each(|scan| scan.order = Some(order));
        let place = body.scans.first().and_then(|scan| scan.columns.iter().position(|column| *column == order.column));
        let name = place.map_or("?", |place| body.schema.field(place).name().as_str());
        let words = match (order.descending, order.nulls_first) {
            (false, false) => format!(", order=[{name}]"),
            (false, true) => format!(", order=[{name} NULLS FIRST]"),
            (true, false) => format!(", order=[{name} DESC]"),
            (true, true) => format!(", order=[{name} DESC NULLS FIRST]"),
        };
        body.words += &words;
        Self::from_body(body, self.known.clone())
    }

    /// The same scan, which is told by its reader where that stands.
    pub(crate) fn following(&self, frontier: FrontierSource) -> Self {
        Self { frontier: Some(frontier), ..self.clone() }
    }

    /// The table that it reads.
    pub(crate) fn table(&self) -> Option<(TableId, u32)> {
        self.body.scans.first().map(|scan| (scan.table, scan.schema_version))
    }

    /// The same rows with only these columns (places in its schema), and behind them the addresses of the rows.
    pub(crate) fn addressed(&self, places: &[usize]) -> Result<Self> {
        let mut fields = self.body.schema.project(places)?.fields().to_vec();
        fields.push(Arc::new(Field::new(ADDRESS_COLUMN, DataType::UInt64, false)));
        let mut body = self.body.clone();
        for scan in &mut body.scans {
            scan.columns = places.iter().filter_map(|place| scan.columns.get(*place).copied()).collect();
            scan.addresses = true;
        }
        let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        let conditions = body.words.find(", where=").map_or("", |at| &body.words[at..]);
        body.words = format!(", columns=[{}]{conditions}", names.join(", "));
        body.schema = Arc::new(Schema::new(fields));
        Ok(Self::from_body(body, self.known.clone()))
    }

    /// The same rows with these text columns (places in its schema) as dictionaries.
    pub(crate) fn coded(&self, places: &[usize]) -> Self {
        let coded = DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8));
        let fields = self.body.schema.fields().iter().enumerate().map(|(place, field)| match places.contains(&place) {
            true => Arc::new(field.as_ref().clone().with_data_type(coded.clone())),
            false => Arc::clone(field),
        });
        let mut body = self.body.clone();
        body.schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        for scan in &mut body.scans {
            scan.coded = places.iter().filter_map(|place| scan.columns.get(*place).copied()).collect();
        }
        Self::from_body(body, self.known.clone())
    }

    pub(super) fn encode(&self) -> shoal_kernel::Result<Vec<u8>> {
        Ok(shoal_kernel::wire::encode(&self.body)?)
    }

    pub(super) fn decode(bytes: &[u8]) -> shoal_kernel::Result<Self> {
        Ok(Self::from_body(shoal_kernel::wire::decode(bytes)?, Known::default()))
    }
}

impl DisplayAs for LeafScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeafScanExec: table={}, partitions=[", self.body.table)?;
        for (place, scan) in self.body.scans.iter().enumerate() {
            write!(f, "{}{}", if place == 0 { "" } else { ", " }, scan.partition)?;
        }
        write!(f, "]{}", self.body.words)
    }
}

impl ExecutionPlan for LeafScanExec {
    fn name(&self) -> &str {
        "LeafScanExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Some(scan) = self.body.scans.get(partition) else {
            let message = format!("scan of '{}' has no partition {partition}", self.body.table);
            return Err(error_to_datafusion(Error::internal(message)));
        };
        let (schema, frontier) = (Arc::clone(&self.body.schema), self.frontier.clone());
        let rows = super::inputs(&context)?.scan(scan, schema, frontier).map_err(error_to_datafusion)?;
        // Pages are as long as batches are by default; where those are to be shorter, operators are to hold no more.
        let splits = SplitMetrics::new(&ExecutionPlanMetricsSet::new(), partition);
        let rows = BatchSplitStream::new(rows, context.session_config().batch_size(), splits);
        Ok(make_cooperative(Box::pin(rows)))
    }

    fn statistics_from_inputs(&self, _: &[Arc<Statistics>], args: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let known = match args.partition() {
            Some(partition) => self.known.rows.get(partition).copied().flatten(),
            None => self.known.rows.iter().copied().sum::<Option<u64>>().filter(|_| !self.known.rows.is_empty()),
        };
        let mut statistics = Statistics::new_unknown(&self.body.schema);
        if let Some(rows) = known.and_then(|rows| usize::try_from(rows).ok()) {
            statistics.num_rows = Precision::Inexact(rows);
        }
        Ok(Arc::new(statistics))
    }
}
