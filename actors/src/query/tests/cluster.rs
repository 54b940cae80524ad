//! Three nodes in one process: real transports over loopback, replicas in memory that can be made to misbehave.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array, StringArray, UInt64Array, new_null_array};
use arrow::compute::{cast, concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use shoal_catalog::{Catalog, Partition, PartitionBounds, Partitioning, Replica, ReplicaState, Table, TableOptions};
use shoal_kernel::env::BoxFuture;
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{
    Column, ColumnId, ColumnPredicate, CompareOp, Datum, Env, Epoch, Error, ErrorCode, FetchSpec, FrontierSource,
    Measure, NodeId, PartitionId, QueryId, Result, ScanSpec, SummaryPart, TableId, TableKind, TableSchema,
};
use shoal_planner::{FragmentGraph, PlanOptions, Planner, Statement};
use shoal_storage::datum_at;

use crate::query::{
    BatchIterator, Candidates, LocalReplicas, PartitionSnapshot, Placement, QueryLimits, QueryService, QueryStats,
    RunOptions, locked,
};
use crate::service::{QueryEvent, QueryStream, QuerySummary};
use crate::transport::{Transport, TransportConfig};

pub(super) const NODES: u32 = 3;

/// How a replica misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is not there.
    Missing,
    /// Its first batch is good, then a checksum does not match.
    Corrupt,
    /// Its rows come again and again, for ever.
    Endless,
    /// A bug panics in the middle of a blocking step.
    Panics,
    /// Its rows come so many times.
    Repeat(usize),
}

/// What all nodes share in the test.
#[derive(Default)]
pub(super) struct World {
    rows: BTreeMap<PartitionId, Rows>,
    holders: BTreeMap<PartitionId, Vec<NodeId>>,
    faults: Mutex<BTreeMap<(PartitionId, NodeId), Fault>>,
    down: Mutex<BTreeSet<NodeId>>,
    suspected: Mutex<BTreeSet<NodeId>>,
    snapshots: AtomicUsize,
    /// Batches read from all replicas.
    pub(super) batches: AtomicU64,
}

struct Rows {
    columns: Vec<ColumnId>,
    batches: Vec<RecordBatch>,
}

impl World {
    pub(super) fn misbehave(&self, partition: PartitionId, node: NodeId, fault: Fault) {
        locked(&self.faults).insert((partition, node), fault);
    }

    pub(super) fn misbehave_everywhere(&self, partitions: &[PartitionId], fault: Fault) {
        for partition in partitions {
            for node in 1..=NODES {
                self.misbehave(*partition, NodeId(node), fault);
            }
        }
    }

    pub(super) fn suspect(&self, node: NodeId) {
        locked(&self.suspected).insert(node);
    }

    pub(super) fn down(&self, node: NodeId) {
        locked(&self.down).insert(node);
    }

    pub(super) fn snapshots(&self) -> usize {
        self.snapshots.load(Ordering::SeqCst)
    }
}

struct Replicas(Arc<World>, NodeId);

struct Snapshot {
    world: Arc<World>,
    partition: PartitionId,
    fault: Option<Fault>,
}

impl LocalReplicas for Replicas {
    fn newest(&self) -> shoal_kernel::Hlc {
        shoal_kernel::Hlc::default()
    }

    fn snapshot(&self, partition: PartitionId) -> Result<Arc<dyn PartitionSnapshot>> {
        let fault = locked(&self.0.faults).get(&(partition, self.1)).copied();
        let held = self.0.holders.get(&partition).is_some_and(|nodes| nodes.contains(&self.1));
        if !held || fault == Some(Fault::Missing) {
            return Err(Error::new(ErrorCode::PartitionUnavailable, format!("{} holds no {partition}", self.1)));
        }
        self.0.snapshots.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(Snapshot { world: self.0.clone(), partition, fault }))
    }

    fn snapshot_at_quorum(
        &self,
        partition: PartitionId,
        _: Duration,
    ) -> BoxFuture<'static, Result<Arc<dyn PartitionSnapshot>>> {
        // These replicas are never behind.
        Box::pin(std::future::ready(self.snapshot(partition)))
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.world.snapshots.fetch_sub(1, Ordering::SeqCst);
    }
}

impl PartitionSnapshot for Snapshot {
    fn scan(&self, spec: &ScanSpec, _: Option<FrontierSource>) -> Result<BatchIterator> {
        let rows = self.world.rows.get(&self.partition).ok_or_else(|| Error::internal("no such partition"))?;
        let places: Vec<usize> =
            spec.columns.iter().map(|id| rows.columns.iter().position(|column| column == id).unwrap()).collect();
        let coded = |batch| {
            spec.coded
                .iter()
                .fold(batch, |batch, id| with_coded(&batch, spec.columns.iter().position(|column| column == id)))
        };
        // Addresses count all rows, and nothing here fetches what was filtered.
        let judged = |batch: &RecordBatch| match spec.addresses {
            true => batch.clone(),
            false => keep_matching(batch, &rows.columns, &spec.predicates),
        };
        if let Some(summary) = spec.summary.as_ref().filter(|summary| summary.part == SummaryPart::Told) {
            let schema = rows.batches[0].schema();
            let type_of = |id| schema.field(rows.columns.iter().position(|column| *column == id).unwrap()).data_type();
            let nothing = told_nothing(&summary.measures, |id| type_of(id).clone());
            return Ok(Box::new(std::iter::once(Ok(nothing))));
        }
        let batches: Vec<RecordBatch> = rows.batches.iter().map(judged).collect();
        let batches: Vec<RecordBatch> = batches.iter().map(|batch| coded(project(batch, &places))).collect();
        let times = match self.fault {
            Some(Fault::Endless) => usize::MAX,
            Some(Fault::Repeat(times)) => times,
            _ => 1,
        };
        let (world, fault) = (self.world.clone(), self.fault);
        let all = (0..times).flat_map(move |_| batches.clone()).enumerate().map(move |(number, batch)| {
            world.batches.fetch_add(1, Ordering::Relaxed);
            match fault {
                Some(Fault::Corrupt) if number > 0 => {
                    Err(Error::new(ErrorCode::Corruption, "a page's checksum is wrong"))
                }
                Some(Fault::Panics) if number > 0 => panic!("as the test wants"),
                _ => Ok(batch),
            }
        });
        let mut first = 0u64;
        let addressed = move |batch: RecordBatch| {
            let rows = batch.num_rows() as u64;
            let addresses: ArrayRef = Arc::new(UInt64Array::from_iter_values(first..first + rows));
            first += rows;
            with_column(&batch, shoal_kernel::ADDRESS_COLUMN, addresses)
        };
        match spec.addresses {
            true => Ok(Box::new(all.scan(addressed, |addressed, batch| Some(batch.map(addressed))))),
            false => Ok(Box::new(all)),
        }
    }

    fn fetch(&self, spec: &FetchSpec, addresses: &[u64]) -> Result<RecordBatch> {
        let rows = self.world.rows.get(&self.partition).ok_or_else(|| Error::internal("no such partition"))?;
        let places: Vec<usize> =
            spec.columns.iter().map(|id| rows.columns.iter().position(|column| column == id).unwrap()).collect();
        let all = concat_batches(&rows.batches[0].schema(), &rows.batches).unwrap();
        let wanted = UInt64Array::from(addresses.to_vec());
        Ok(take_record_batch(&project(&all, &places), &wanted).unwrap())
    }
}

/// What statistics say that know nothing.
fn told_nothing(measures: &[Measure], type_of: impl Fn(ColumnId) -> DataType) -> RecordBatch {
    let column = |measure: &Measure| -> (String, ArrayRef) {
        let array: ArrayRef = match measure {
            Measure::Rows | Measure::Values(_) => Arc::new(Int64Array::from(vec![0])),
            _ => new_null_array(&measure.data_type(&measure.column().map_or(DataType::Null, &type_of)), 1),
        };
        (format!("{measure:?}"), array)
    };
    RecordBatch::try_from_iter(measures.iter().map(column)).unwrap()
}

/// Leaves out what breaks a condition that the reader does not look at again.
fn keep_matching(batch: &RecordBatch, columns: &[ColumnId], predicates: &[ColumnPredicate]) -> RecordBatch {
    let holds = |predicate: &ColumnPredicate, row: usize| {
        let place = columns.iter().position(|column| *column == predicate.column()).unwrap();
        let value = datum_at(batch.column(place), row).unwrap();
        match predicate {
            _ if !predicate.is_exact_on(batch.column(place).data_type()) => true,
            ColumnPredicate::IsNull { .. } => value == Datum::Null,
            _ if value == Datum::Null => false,
            ColumnPredicate::IsNotNull { .. } => true,
            ColumnPredicate::In { values, .. } => values.contains(&value),
            ColumnPredicate::Like { .. } => panic!("no query here asks for that"),
            ColumnPredicate::Compare { op, value: constant, .. } => match op {
                CompareOp::Eq => value == *constant,
                CompareOp::NotEq => value != *constant,
                CompareOp::Lt => value < *constant,
                CompareOp::LtEq => value <= *constant,
                CompareOp::Gt => value > *constant,
                CompareOp::GtEq => value >= *constant,
            },
        }
    };
    let keep: BooleanArray =
        (0..batch.num_rows()).map(|row| Some(predicates.iter().all(|predicate| holds(predicate, row)))).collect();
    filter_record_batch(batch, &keep).unwrap()
}

fn with_coded(batch: &RecordBatch, place: Option<usize>) -> RecordBatch {
    let place = place.unwrap();
    let coded = DataType::Dictionary(Box::new(DataType::UInt32), Box::new(DataType::Utf8));
    let mut columns = batch.columns().to_vec();
    columns[place] = cast(&columns[place], &coded).unwrap();
    let mut fields = batch.schema().fields().to_vec();
    fields[place] = Arc::new(fields[place].as_ref().clone().with_data_type(coded));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn with_column(batch: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let field = Arc::new(Field::new(name, column.data_type().clone(), false));
    let fields: Vec<_> = batch.schema().fields().iter().cloned().chain([field]).collect();
    let columns = batch.columns().iter().cloned().chain([column]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn project(batch: &RecordBatch, places: &[usize]) -> RecordBatch {
    let columns = places.iter().map(|place| batch.column(*place).clone()).collect();
    let schema = Arc::new(batch.schema().project(places).unwrap());
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, columns, &options).unwrap()
}

struct Places(Arc<World>);

impl Placement for Places {
    fn alive(&self) -> BTreeSet<NodeId> {
        let down = locked(&self.0.down).clone();
        (1..=NODES).map(NodeId).filter(|node| !down.contains(node)).collect()
    }

    fn suspected(&self) -> BTreeSet<NodeId> {
        locked(&self.0.suspected).clone()
    }

    fn candidates(&self, partition: PartitionId) -> Candidates {
        let down = locked(&self.0.down).clone();
        let holders = self.0.holders.get(&partition).cloned().unwrap_or_default();
        let level = holders.into_iter().filter(|node| !down.contains(node)).collect();
        Candidates { level, behind: Vec::new() }
    }
}

pub(super) struct TestNode {
    pub(super) id: NodeId,
    pub(super) transport: Transport,
    pub(super) service: QueryService,
}

pub(super) struct Cluster {
    pub(super) env: Env,
    pub(super) nodes: Vec<TestNode>,
    pub(super) world: Arc<World>,
    catalog: Arc<Catalog>,
    planner: Planner,
    oracle: SessionContext,
    next: AtomicU64,
}

/// What came of a query.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) batches: Vec<RecordBatch>,
    pub(super) end: Result<QuerySummary, Error>,
}

impl Answer {
    pub(super) fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

impl Cluster {
    pub(super) async fn start(limits: QueryLimits) -> Self {
        let env = env(&RealOptions { blocking_threads: 2, blocking_jobs_max: 64, compute_threads: 1 }).unwrap();
        let (catalog, world) = data();
        let oracle = SessionContext::new();
        for table in catalog.tables.values() {
            let batches: Vec<RecordBatch> =
                table.partitions.iter().flat_map(|partition| world.rows[partition].batches.clone()).collect();
            let memory = MemTable::try_new(table.schema.arrow(), vec![batches]).unwrap();
            oracle.register_table(table.name.as_str(), Arc::new(memory)).unwrap();
        }
        let world = Arc::new(world);
        let planner = Planner::new();
        let mut nodes = Vec::new();
        for id in (1..=NODES).map(NodeId) {
            let config = TransportConfig::new(id, SocketAddr::from(([127, 0, 0, 1], 0)), "secret");
            let transport = Transport::start(&env, config).await.unwrap();
            transport.set_cluster(1);
            let service = QueryService::start(
                &env,
                transport.clone(),
                Arc::new(planner.clone()),
                Arc::new(Replicas(world.clone(), id)),
                Arc::new(Places(world.clone())),
                limits.clone(),
                None,
            )
            .await
            .unwrap();
            nodes.push(TestNode { id, transport, service });
        }
        for node in &nodes {
            for peer in &nodes {
                node.transport.set_address(peer.id, peer.transport.local_address());
            }
        }
        Self { env, nodes, world, catalog: Arc::new(catalog), planner, oracle, next: AtomicU64::new(1) }
    }

    pub(super) fn partitions(&self, table: &str) -> Vec<PartitionId> {
        self.catalog.table(table).unwrap().partitions.clone()
    }

    pub(super) async fn plan(&self, sql: &str) -> FragmentGraph {
        let options = PlanOptions { target_partitions: NODES as usize, ..PlanOptions::default() };
        match self.planner.plan(sql, &self.catalog, &options).await.unwrap() {
            Statement::Query(query) => query.graph,
            other => panic!("{sql} is no query: {other:?}"),
        }
    }

    pub(super) fn id(&self, node: usize) -> QueryId {
        QueryId::new(self.nodes[node].id, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Starts a query at a node, by its place.
    pub(super) async fn start_query(&self, node: usize, sql: &str, options: RunOptions) -> Result<QueryStream> {
        let graph = self.plan(sql).await;
        self.nodes[node].service.run(graph, self.id(node), options).await
    }

    /// Runs a query to its end.
    pub(super) async fn run(&self, node: usize, sql: &str) -> Answer {
        self.run_within(node, sql, Duration::from_secs(60)).await
    }

    pub(super) async fn run_within(&self, node: usize, sql: &str, timeout: Duration) -> Answer {
        let mut stream = self.start_query(node, sql, RunOptions::new(timeout)).await.unwrap();
        read(&mut stream).await
    }

    /// The answer of a plain DataFusion over the same rows.
    pub(super) async fn oracle(&self, sql: &str) -> Vec<RecordBatch> {
        self.oracle.sql(sql).await.unwrap().collect().await.unwrap()
    }

    /// Runs a query at a node and compares with the oracle.
    pub(super) async fn check(&self, node: usize, sql: &str) -> QuerySummary {
        let answer = self.run(node, sql).await;
        let summary = match answer.end {
            Ok(summary) => summary,
            Err(error) => panic!("{sql}: {error}"),
        };
        assert_eq!(summary.rows as usize, answer.batches.iter().map(RecordBatch::num_rows).sum::<usize>());
        let ordered = sql.to_lowercase().contains("order by");
        let (found, expected) = (lines(&answer.batches, ordered), lines(&self.oracle(sql).await, ordered));
        assert_eq!(found, expected, "{sql} at node {node}");
        summary
    }

    /// Waits until nothing is left of any query on any node, but for those left out.
    pub(super) async fn is_empty(&self, but: &[usize]) {
        let mut last = Vec::new();
        for _ in 0..1_000 {
            last = self.nodes.iter().map(|node| node.service.stats()).collect::<Vec<_>>();
            let empty = (0..last.len()).all(|at| but.contains(&at) || last[at] == QueryStats::default());
            if empty && (self.world.snapshots() == 0 || !but.is_empty()) {
                return;
            }
            self.env.sleep(Duration::from_millis(10)).await;
        }
        panic!("left over: {last:?}, {} snapshots", self.world.snapshots());
    }

    /// Cuts a node off: its connections break and it answers nobody any more.
    pub(super) async fn kill(&self, node: usize) {
        self.world.down(self.nodes[node].id);
        self.nodes[node].transport.shutdown().await;
    }
}

/// Reads a stream to its end.
pub(super) async fn read(stream: &mut QueryStream) -> Answer {
    let (mut batches, mut schema) = (Vec::new(), None);
    while let Some(event) = stream.next().await {
        match event {
            QueryEvent::Schema(columns) => assert!(schema.replace(columns).is_none(), "two schemas"),
            QueryEvent::Batch(batch) => {
                assert!(schema.is_some(), "rows before the schema");
                assert!(batch.num_rows() <= 8_192);
                batches.push(batch);
            }
            QueryEvent::Progress(_) => {}
            QueryEvent::Done(_) => panic!("not a command"),
            QueryEvent::End(summary) => {
                assert!(stream.next().await.is_none(), "something after the end");
                return Answer { batches, end: Ok(summary) };
            }
            QueryEvent::Error(error) => {
                assert!(stream.next().await.is_none(), "something after the error");
                return Answer { batches, end: Err(error) };
            }
        }
    }
    panic!("the stream ended without a last word");
}

fn lines(batches: &[RecordBatch], ordered: bool) -> Vec<String> {
    let text = pretty_format_batches(batches).unwrap().to_string();
    // Column names differ harmlessly between planners; the widths of the table do not matter either.
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(1)
        .map(|line| line.split('|').map(str::trim).collect::<Vec<_>>().join("|"))
        .collect();
    if !ordered {
        lines.sort();
    }
    lines
}

const ROWS_T: i64 = 6_000;
const ROWS_U: i64 = 900;

/// Table `t` (4 hash partitions, 2 replicas each) and `u` (3 range partitions on 3 nodes).
fn data() -> (Catalog, World) {
    let (mut catalog, mut world) = (Catalog::default(), World::default());
    let column = |id: u32, name: &str, data_type: arrow::datatypes::DataType, nullable: bool| Column {
        id: ColumnId(id),
        name: name.into(),
        data_type,
        nullable,
    };
    use arrow::datatypes::DataType::{Int64, Utf8};
    let upsert = || TableKind::Upsert { primary_key: vec![ColumnId(1)] };
    let t = TableSchema::new(
        vec![column(1, "id", Int64, false), column(2, "grp", Utf8, true), column(3, "v", Int64, true)],
        upsert(),
    );
    let u = TableSchema::new(
        vec![column(1, "id", Int64, false), column(2, "t_id", Int64, true), column(3, "w", Int64, false)],
        upsert(),
    );
    let bounds = [None, Some(300), Some(600), None];
    let ranges = (0..3).map(|at| {
        let key = |value: Option<i64>| value.map(|value| Datum::Int(value).encode());
        let start = key(bounds[at]).unwrap_or_default();
        PartitionBounds::Range(shoal_kernel::KeyRange { start, end: key(bounds[at + 1]) })
    });
    let hash = Partitioning::Hash { columns: vec![ColumnId(1)], buckets: 4 };
    add(&mut catalog, TableId(1), "t", t, hash, (0..4).map(PartitionBounds::Bucket), 2);
    add(&mut catalog, TableId(2), "u", u, Partitioning::Range { columns: vec![ColumnId(1)] }, ranges, 3);

    let t_rows = |ids: &[i64]| {
        let grp = StringArray::from_iter(ids.iter().map(|id| (id % 11 != 0).then(|| format!("g{}", id % 7))));
        let v = Int64Array::from_iter(ids.iter().map(|id| (id % 13 != 0).then_some(id * 37 % 1_000)));
        vec![Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef, Arc::new(grp), Arc::new(v)]
    };
    let u_rows = |ids: &[i64]| {
        let t_id = Int64Array::from_iter(ids.iter().map(|id| (id % 10 != 0).then_some(id * 7 % ROWS_T)));
        let w = Int64Array::from_iter_values(ids.iter().map(|id| id % 50));
        vec![Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef, Arc::new(t_id), Arc::new(w)]
    };
    fill(&catalog, &mut world, "t", ROWS_T, &t_rows);
    fill(&catalog, &mut world, "u", ROWS_U, &u_rows);
    (catalog, world)
}

fn add(
    catalog: &mut Catalog,
    id: TableId,
    name: &str,
    schema: TableSchema,
    partitioning: Partitioning,
    bounds: impl Iterator<Item = PartitionBounds>,
    replicas: u32,
) {
    let mut partitions = Vec::new();
    for (at, bounds) in (0u32..).zip(bounds) {
        let partition = PartitionId(id.0 * 100 + u64::from(at));
        let replicas = (0..replicas)
            .map(|replica| Replica {
                node: NodeId((at + replica) % NODES + 1),
                state: ReplicaState::Voting,
                failed: false,
            })
            .collect();
        let record = Partition {
            id: partition,
            table: id,
            bounds,
            epoch: Epoch(1),
            replicas,
            previous_voters: vec![],
            previous_needed: 0,
            parent: None,
            root: PartitionId(7),
            settled: true,
            purged: shoal_kernel::Hlc::default(),
            changed: 0,
        };
        catalog.partitions.insert(partition, record);
        partitions.push(partition);
    }
    let options = TableOptions { replication_factor: replicas, ..TableOptions::default() };
    let table = Table { id, name: name.into(), schema, partitioning, options, cutoff: None, partitions };
    catalog.tables.insert(id, table);
}

fn fill(catalog: &Catalog, world: &mut World, name: &str, rows: i64, columns: &dyn Fn(&[i64]) -> Vec<ArrayRef>) {
    let table = catalog.table(name).unwrap();
    let mut ids: BTreeMap<PartitionId, Vec<i64>> = BTreeMap::new();
    for id in 0..rows {
        let partition = catalog.partition_for(table, &Datum::Int(id).encode()).unwrap();
        ids.entry(partition.id).or_default().push(id);
    }
    for partition in catalog.partitions_of(table) {
        let schema = table.schema.arrow();
        let batches = ids[&partition.id]
            .chunks(200)
            .map(|ids| RecordBatch::try_new(schema.clone(), columns(ids)).unwrap())
            .collect();
        let columns = table.schema.columns.iter().map(|column| column.id).collect();
        world.rows.insert(partition.id, Rows { columns, batches });
        world.holders.insert(partition.id, partition.voters().collect());
    }
}
