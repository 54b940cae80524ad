//! A catalog of tables made by DDL, and their rows, spread over partitions as the catalog says.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use datafusion::arrow::compute::take_record_batch;
use datafusion::common::ScalarValue;
use datafusion::prelude::SessionContext;
use shoal_catalog::{Catalog, Command, NodeAttributes, Table};
use shoal_kernel::{Datum, NodeId, PartitionId};
use shoal_planner::{InsertSource, PlanOptions, Planner, RowCounts, Statement};

/// Everything that a test needs.
pub struct World {
    pub planner: Planner,
    pub catalog: Arc<Catalog>,
    /// Rows by partition, all columns.
    pub rows: BTreeMap<PartitionId, RecordBatch>,
    /// All rows by table.
    pub tables: BTreeMap<String, RecordBatch>,
}

/// The tables, each with its rows as a VALUES list.
const TABLES: [(&str, &str); 6] = [
    (
        "CREATE TABLE flights (id BIGINT PRIMARY KEY, ts TIMESTAMP NOT NULL, origin VARCHAR, destination VARCHAR, \
         delay INT, distance DOUBLE) PARTITION BY RANGE(id) SPLIT AT (100, 200, 300)",
        "flights",
    ),
    (
        "CREATE TABLE airports (iata VARCHAR PRIMARY KEY, city VARCHAR, state VARCHAR, latitude DOUBLE) \
         PARTITION BY HASH(iata) PARTITIONS 3",
        "airports",
    ),
    ("CREATE TABLE nothing (k INT PRIMARY KEY, v VARCHAR) PARTITION BY RANGE(k) SPLIT AT (10)", "nothing"),
    (
        "CREATE TABLE pairs (a INT, b VARCHAR, c DECIMAL(10, 2), PRIMARY KEY (a, b)) PARTITION BY HASH(a, b) PARTITIONS 4",
        "pairs",
    ),
    ("CREATE TABLE edges (src INT, dst INT, PRIMARY KEY (src, dst)) PARTITION BY RANGE(src) SPLIT AT (4, 8)", "edges"),
    (
        "CREATE TABLE readings (sensor VARCHAR, value DOUBLE, day DATE) PARTITION BY HASH(_dedup) PARTITIONS 2",
        "readings",
    ),
];

fn values(table: &str) -> Vec<String> {
    let airports = ["SEA", "SFO", "JFK", "LAX", "BOS", "DEN", "ORD"];
    match table {
        "flights" => (0..400_i64)
            .map(|id| {
                let origin = match id % 11 {
                    10 => "NULL".to_owned(),
                    other => format!("'{}'", airports.get(other as usize % 8).unwrap_or(&"XXX")),
                };
                let destination = airports[(id * 7 % 5) as usize];
                let delay = if id % 13 == 0 { "NULL".to_owned() } else { (id * 37 % 91 - 30).to_string() };
                let distance = (id * 17 % 300) as f64 * 1.5;
                format!(
                    "({id}, TIMESTAMP '2001-01-{:02} {:02}:00:00', {origin}, '{destination}', {delay}, {distance})",
                    id % 28 + 1,
                    id % 24
                )
            })
            .collect(),
        "airports" => vec![
            "('SEA', 'Seattle', 'WA', 47.4)".into(),
            "('SFO', 'San Francisco', 'CA', 37.6)".into(),
            "('JFK', 'New York', 'NY', 40.6)".into(),
            "('LAX', 'Los Angeles', 'CA', 33.9)".into(),
            "('BOS', 'Boston', 'MA', 42.4)".into(),
            "('PDX', 'Portland', 'OR', NULL)".into(),
            "('ANC', 'Anchorage', NULL, 61.2)".into(),
        ],
        "pairs" => (0..60).map(|i| format!("({}, 'b{}', {}.{:02})", i % 9, i, i * 3, i)).collect(),
        "edges" => (0..12).map(|i| format!("({i}, {})", i + 1)).chain(["(3, 7)".into(), "(5, 1)".into()]).collect(),
        "readings" => (0..50)
            .map(|i| {
                format!(
                    "('s{}', {}, DATE '2024-02-{:02}', TIMESTAMP '2024-02-01 00:00:{:02}', 'd{i}')",
                    i % 4,
                    f64::from(i) / 3.0,
                    i % 28 + 1,
                    i
                )
            })
            .collect(),
        _ => Vec::new(),
    }
}

impl World {
    pub async fn new() -> Self {
        let planner = Planner::new();
        let mut catalog = Catalog::default();
        catalog.apply(Command::Found { cluster_id: 1 }).unwrap();
        for node in 1..=3_u32 {
            let address = format!("10.0.0.{node}:9176").parse().unwrap();
            let attributes = NodeAttributes { cluster_address: address, http_address: address, zone: String::new() };
            catalog.apply(Command::PutNode { id: NodeId(node), attributes }).unwrap();
        }
        let options = PlanOptions::default();
        for (ddl, _) in TABLES {
            let statement = planner.plan(ddl, &Arc::new(catalog.clone()), &options).await.unwrap();
            let Statement::CreateTable(table) = statement else { panic!("{statement:?}") };
            catalog.apply(Command::CreateTable(table)).unwrap();
        }
        let mut world = Self { planner, catalog: Arc::new(catalog), rows: BTreeMap::new(), tables: BTreeMap::new() };
        for (_, name) in TABLES {
            world.load(name).await;
        }
        world
    }

    async fn load(&mut self, name: &str) {
        let table = self.catalog.table(name).unwrap().clone();
        let rows = values(name);
        let batch = match rows.is_empty() {
            true => RecordBatch::new_empty(table.schema.arrow()),
            false => {
                let sql = format!("INSERT INTO {name} VALUES {}", rows.join(", "));
                let statement = self.planner.plan(&sql, &self.catalog, &PlanOptions::default()).await.unwrap();
                let Statement::Insert { source: InsertSource::Rows(mut batches), .. } = statement else {
                    panic!("{statement:?}")
                };
                assert_eq!(batches.len(), 1);
                batches.remove(0)
            }
        };
        assert_eq!(batch.schema(), table.schema.arrow());
        for (partition, rows) in route(&self.catalog, &table, &batch) {
            self.rows.insert(partition, rows);
        }
        self.tables.insert(name.to_owned(), batch);
    }

    /// How many rows each partition has.
    pub fn row_counts(&self) -> RowCounts {
        let counts: BTreeMap<_, _> = self.rows.iter().map(|(id, rows)| (*id, rows.num_rows() as u64)).collect();
        Arc::new(move |scan| counts.get(&scan.partition).copied())
    }

    /// DataFusion alone, over the same rows.
    pub fn reference(&self) -> SessionContext {
        let mut config = datafusion::prelude::SessionConfig::new().with_target_partitions(1);
        config.options_mut().sql_parser.map_string_types_to_utf8view = false;
        let context = SessionContext::new_with_config(config);
        for (name, batch) in &self.tables {
            context.register_batch(name, batch.clone()).unwrap();
        }
        context
    }
}

fn route(catalog: &Catalog, table: &Table, batch: &RecordBatch) -> BTreeMap<PartitionId, RecordBatch> {
    let keys: Vec<&ArrayRef> =
        table.partitioning.columns().iter().map(|id| batch.column(table.schema.index_of(*id).unwrap())).collect();
    let mut places: BTreeMap<PartitionId, Vec<u32>> =
        table.partitions.iter().map(|partition| (*partition, Vec::new())).collect();
    for row in 0..batch.num_rows() {
        let mut encoded = Vec::new();
        for column in &keys {
            datum(column, row).encode_into(&mut encoded);
        }
        places.get_mut(&catalog.partition_for(table, &encoded).unwrap().id).unwrap().push(row as u32);
    }
    places
        .into_iter()
        .map(|(partition, rows)| (partition, take_record_batch(batch, &UInt32Array::from(rows)).unwrap()))
        .collect()
}

/// A value as the storage engine would see it.
pub fn datum(column: &ArrayRef, row: usize) -> Datum {
    match ScalarValue::try_from_array(column, row).unwrap() {
        value if value.is_null() => Datum::Null,
        ScalarValue::Boolean(Some(value)) => Datum::Bool(value),
        ScalarValue::Int32(Some(value)) | ScalarValue::Date32(Some(value)) => Datum::Int(value.into()),
        ScalarValue::Int64(Some(value)) | ScalarValue::TimestampMicrosecond(Some(value), _) => Datum::Int(value),
        ScalarValue::Float64(Some(value)) => Datum::Float(value),
        ScalarValue::Decimal128(Some(value), _, _) => Datum::Decimal(value),
        ScalarValue::Utf8(Some(value)) => Datum::Text(value),
        other => panic!("{other:?}"),
    }
}
