//! Runs a whole fragment graph in this process: every task, every edge in memory, every plan through its bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray, UInt64Array,
};
use datafusion::arrow::compute::{cast, filter_record_batch, ilike, like, sum, take, take_record_batch};
use datafusion::arrow::datatypes::{DataType, Int64Type, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::future::BoxFuture;
use futures::{TryStreamExt, stream};
use shoal_kernel::{
    ColumnPredicate, CompareOp, Datum, Error, FetchSpec, FragmentId, Frontier, FrontierSource, Measure, Result,
    ScanOrder, ScanSpec, SummaryPart,
};
use shoal_planner::{
    Edge, FragmentGraph, Place, PlanOptions, Statement, TaskInputs, TaskMemory, error_from_datafusion,
};

use crate::world::{World, datum};

/// Output of tasks: by fragment, task and slot.
type Outputs = BTreeMap<(FragmentId, u32, u32), Vec<RecordBatch>>;

#[derive(Debug)]
struct Inputs {
    outputs: Arc<Mutex<Outputs>>,
    rows: Arc<BTreeMap<shoal_kernel::PartitionId, RecordBatch>>,
    schemas: Arc<BTreeMap<shoal_kernel::TableId, shoal_kernel::TableSchema>>,
    /// What the reader may read: slot by fragment.
    slots: BTreeMap<FragmentId, u32>,
    /// Where the task stands: the one partition that it may scan.
    place: Place,
}

fn rows_of(schema: SchemaRef, batches: Vec<RecordBatch>) -> SendableRecordBatchStream {
    Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches.into_iter().map(Ok))))
}

impl TaskInputs for Inputs {
    fn is_stopped(&self) -> bool {
        false
    }

    fn scan(
        &self,
        spec: &ScanSpec,
        schema: SchemaRef,
        frontier: Option<FrontierSource>,
    ) -> Result<SendableRecordBatchStream> {
        if self.place != Place::Replica(spec.partition) {
            return Err(Error::internal(format!("{} read at {:?}", spec.partition, self.place)));
        }
        let all = &self.rows[&spec.partition];
        let table = &self.schemas[&spec.table];
        let column = |id| all.column(table.index_of(id).unwrap());
        // Conditions that are hints are used on partitions of even number only: both must give the same answer.
        let type_of = |predicate: &ColumnPredicate| column(predicate.column()).data_type().clone();
        let is_used = |predicate: &&ColumnPredicate| {
            spec.partition.0.is_multiple_of(2) || predicate.is_exact_on(&type_of(predicate))
        };
        let used: Vec<&ColumnPredicate> = spec.predicates.iter().filter(is_used).collect();
        let keep: BooleanArray = (0..all.num_rows())
            .map(|row| Some(used.iter().all(|predicate| holds(predicate, &datum(column(predicate.column()), row)))))
            .collect();
        let in_slice = |row: usize| row * spec.slice.of as usize / all.num_rows().max(1) == spec.slice.index as usize;
        let keep: BooleanArray =
            keep.values().iter().enumerate().map(|(row, keep)| Some(keep && in_slice(row))).collect();
        // Statistics tell of the rows in the first half of a partition.
        let part = spec.summary.as_ref().map(|summary| summary.part);
        let in_part = |row: usize| part.is_none_or(|part| (part == SummaryPart::Told) == (row < all.num_rows() / 2));
        let keep: BooleanArray =
            keep.values().iter().enumerate().map(|(row, keep)| Some(keep && in_part(row))).collect();
        let kept = filter_record_batch(all, &keep).unwrap();
        if let Some(summary) = spec.summary.as_ref().filter(|summary| summary.part == SummaryPart::Told) {
            let column = |id| kept.column(table.index_of(id).unwrap());
            let columns = summary.measures.iter().map(|of| measured(of, kept.num_rows(), of.column().map(column)));
            let batch = RecordBatch::try_new(Arc::clone(&schema), columns.collect()).unwrap();
            return Ok(rows_of(schema, vec![batch]));
        }
        let count = kept.num_rows().min(spec.limit.map_or(usize::MAX, |limit| limit as usize));
        let places: Vec<usize> = spec.columns.iter().map(|id| table.index_of(*id).unwrap()).collect();
        let mut columns: Vec<ArrayRef> = places.iter().map(|place| kept.column(*place).slice(0, count)).collect();
        for (column, id) in columns.iter_mut().zip(&spec.columns).filter(|(_, id)| spec.coded.contains(id)) {
            let coded = DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8));
            *column = cast(column, &coded).unwrap_or_else(|error| panic!("{id:?}: {error}"));
        }
        if spec.addresses {
            let rows = keep.values().set_indices().take(count);
            columns.push(Arc::new(UInt64Array::from_iter_values(rows.map(|row| row as u64))));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&schema), columns, &options).unwrap();
        // Small batches, so that limits and merges meet their ends.
        let batches = (0..count).step_by(7).map(move |start| batch.slice(start, 7.min(count - start)));
        let Some((order, frontier)) = spec.order.zip(frontier) else { return Ok(rows_of(schema, batches.collect())) };
        let by = spec.columns.iter().position(|column| *column == order.column).unwrap();
        let ahead = batches.map(move |batch| match frontier.get() {
            Some(frontier) => {
                let keep: BooleanArray = (0..batch.num_rows())
                    .map(|row| Some(matters(&order, &frontier, &datum(batch.column(by), row))))
                    .collect();
                Ok(filter_record_batch(&batch, &keep).unwrap())
            }
            None => Ok(batch),
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(ahead))))
    }

    fn fetch(&self, spec: FetchSpec, addresses: Vec<u64>) -> BoxFuture<'static, Result<RecordBatch>> {
        assert_eq!(self.place, Place::Replica(spec.partition), "fetched far from where it was found");
        let table = &self.schemas[&spec.table];
        let places: Vec<usize> = spec.columns.iter().map(|id| table.index_of(*id).unwrap()).collect();
        let wanted = self.rows[&spec.partition].project(&places).unwrap();
        let fetched = take_record_batch(&wanted, &UInt64Array::from(addresses))
            .map_err(|error| Error::internal(error.to_string()));
        Box::pin(async move { fetched })
    }

    fn exchange(&self, fragment: FragmentId, task: u32, schema: SchemaRef) -> Result<SendableRecordBatchStream> {
        let slot = *self.slots.get(&fragment).ok_or_else(|| Error::internal(format!("{fragment} is not an input")))?;
        let taken = self.outputs.lock().unwrap().remove(&(fragment, task, slot));
        let batches = taken.ok_or_else(|| Error::internal(format!("{fragment}.{task}:{slot} was read twice")))?;
        for batch in &batches {
            for (wanted, found) in schema.fields().iter().zip(batch.schema().fields()) {
                assert_eq!(wanted.data_type(), found.data_type(), "{fragment}");
            }
        }
        Ok(rows_of(schema, batches))
    }
}

/// Whether a row with that value may come before where the reader stands.
fn matters(order: &ScanOrder, frontier: &Frontier, value: &Datum) -> bool {
    match (frontier, value) {
        (Frontier::Null, value) => order.ties && *value == Datum::Null,
        (Frontier::Value(_), Datum::Null) => order.nulls_first,
        (Frontier::Value(stand), value) if stand == value => order.ties,
        (Frontier::Value(stand), value) => (value > stand) == order.descending,
    }
}

/// What so many rows come to, as a column of one row.
fn measured(measure: &Measure, rows: usize, column: Option<&ArrayRef>) -> ArrayRef {
    let Some(column) = column else { return Arc::new(Int64Array::from(vec![rows as i64])) };
    let given = (0..rows).filter(|row| column.is_valid(*row));
    let order = |one: &usize, other: &usize| datum(column, *one).partial_cmp(&datum(column, *other)).unwrap();
    let extreme = match measure {
        Measure::Values(_) | Measure::Rows => return Arc::new(Int64Array::from(vec![given.count() as i64])),
        Measure::Sum(_) => {
            let wide = cast(column, &DataType::Int64).unwrap();
            return Arc::new(Int64Array::from(vec![sum(wide.as_primitive::<Int64Type>())]));
        }
        Measure::Least(_) => given.min_by(order),
        Measure::Greatest(_) => given.max_by(order),
    };
    take(column, &UInt64Array::from(vec![extreme.map(|row| row as u64)]), None).unwrap()
}

fn holds(predicate: &ColumnPredicate, value: &Datum) -> bool {
    match predicate {
        ColumnPredicate::IsNull { .. } => *value == Datum::Null,
        ColumnPredicate::IsNotNull { .. } => *value != Datum::Null,
        _ if *value == Datum::Null => false,
        ColumnPredicate::Like { pattern, negated, ignore_case, .. } => {
            let Datum::Text(text) = value else { panic!("LIKE on {value:?}") };
            let (text, pattern) = (StringArray::from(vec![text.as_str()]), StringArray::from(vec![pattern.as_str()]));
            let matches = if *ignore_case { ilike(&text, &pattern) } else { like(&text, &pattern) };
            matches.unwrap().value(0) != *negated
        }
        ColumnPredicate::In { values, .. } => values.contains(value),
        ColumnPredicate::Compare { op, value: constant, .. } => match op {
            CompareOp::Eq => value == constant,
            CompareOp::NotEq => value != constant,
            CompareOp::Lt => value < constant,
            CompareOp::LtEq => value <= constant,
            CompareOp::Gt => value > constant,
            CompareOp::GtEq => value >= constant,
        },
    }
}

/// Plans a query and runs it.
pub async fn query(world: &World, sql: &str, options: &PlanOptions) -> Result<(FragmentGraph, Vec<RecordBatch>)> {
    let Statement::Query(planned) = world.planner.plan(sql, &world.catalog, options).await? else {
        return Err(Error::internal("not a query"));
    };
    let rows = run(world, &planned.graph).await?;
    Ok((planned.graph, rows))
}

/// The rows of a scan, with the names of the table's columns.
pub async fn scan(world: &World, spec: &ScanSpec) -> Vec<RecordBatch> {
    let schemas = world.catalog.tables.iter().map(|(id, table)| (*id, table.schema.clone())).collect();
    let inputs = Inputs {
        outputs: Arc::default(),
        rows: Arc::new(world.rows.clone()),
        schemas: Arc::new(schemas),
        slots: BTreeMap::new(),
        place: Place::Replica(spec.partition),
    };
    let table = &world.catalog.tables[&spec.table].schema;
    let places: Vec<usize> = spec.columns.iter().map(|id| table.index_of(*id).unwrap()).collect();
    let schema = Arc::new(table.arrow().project(&places).unwrap());
    inputs.scan(spec, schema, None).unwrap().try_collect().await.unwrap()
}

/// Runs all tasks of a graph and gives the root's rows.
pub async fn run(world: &World, graph: &FragmentGraph) -> Result<Vec<RecordBatch>> {
    let outputs = Arc::new(Mutex::new(Outputs::new()));
    let rows = Arc::new(world.rows.clone());
    let schemas = world.catalog.tables.iter().map(|(id, table)| (*id, table.schema.clone())).collect();
    let schemas = Arc::new(schemas);
    for (index, fragment) in graph.fragments.iter().enumerate() {
        assert_eq!(fragment.id.0 as usize, index);
        let consumers = graph.fragments.iter().filter(|other| other.inputs.contains(&fragment.id)).count();
        assert_eq!(
            consumers,
            usize::from(index + 1 < graph.fragments.len()),
            "{} has {consumers} readers",
            fragment.id
        );
        for (task, spec) in fragment.tasks.iter().enumerate() {
            let task = task as u32;
            let slots = fragment
                .inputs
                .iter()
                .map(|input| match &graph.fragments[input.0 as usize].output {
                    Edge::Gather => {
                        assert_eq!(fragment.tasks.len(), 1, "{input} is gathered by several tasks");
                        (*input, 0)
                    }
                    Edge::Hash { slots, .. } | Edge::Broadcast { slots } => {
                        assert_eq!(fragment.tasks.len(), *slots as usize);
                        (*input, task)
                    }
                })
                .collect();
            let inputs = Inputs {
                outputs: Arc::clone(&outputs),
                rows: Arc::clone(&rows),
                schemas: Arc::clone(&schemas),
                slots,
                place: spec.place,
            };
            let memory = TaskMemory { batch_rows: 16, ..TaskMemory::default() };
            let runnable = world.planner.decode(fragment, task, Arc::new(inputs), memory)?;
            let words = DisplayableExecutionPlan::new(runnable.plan.as_ref()).indent(false).to_string();
            assert_same_plan(&fragment.label, &words);
            let batches: Vec<RecordBatch> = runnable.execute()?.try_collect().await.map_err(error_from_datafusion)?;
            let mut router = world.planner.router(&fragment.output, Arc::clone(&runnable.schema))?;
            let mut outputs = outputs.lock().unwrap();
            for slot in 0..fragment.output.slots() {
                outputs.insert((fragment.id, task, slot), Vec::new());
            }
            for batch in batches {
                for (slot, rows) in router.route(batch)? {
                    outputs.get_mut(&(fragment.id, task, slot)).unwrap().push(rows);
                }
            }
        }
    }
    let root = graph.root().unwrap();
    assert_eq!((root.tasks.len(), root.tasks[0].place), (1, Place::Coordinator));
    Ok(outputs.lock().unwrap().remove(&(root.id, 0, 0)).unwrap())
}

/// What arrives is what was sent. Only projections may be new: unions and recursive queries put one above an input whose
/// columns are less nullable than their own, and do so again each time they are built.
fn assert_same_plan(sent: &str, arrived: &str) {
    let mut rest = sent.lines().map(str::trim).peekable();
    for line in arrived.lines().map(str::trim) {
        if rest.peek() == Some(&line) {
            rest.next();
        } else {
            assert!(line.starts_with("ProjectionExec") && line.contains("CAST("), "sent\n{sent}\narrived\n{arrived}");
        }
    }
    assert_eq!(rest.next(), None, "sent\n{sent}\narrived\n{arrived}");
}
