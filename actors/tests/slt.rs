//! The same SQL files on one node and on three, each query at every node; expected results come from another database.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test owns its runtime, its files and its ports, and ends at the first surprise"
)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch, RecordBatchReader};
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use shoal_actors::Node;
use shoal_actors::service::{NodeConfig, SqlRequest, WriteRequest};
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{Error, WriteLevel};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};
use tpchgen_arrow::{
    CustomerArrow, LineItemArrow, NationArrow, OrderArrow, PartArrow, PartSuppArrow, RegionArrow, SupplierArrow,
};

use common::free_address;

/// Every statement goes to the node at hand; a query goes to all of them, and all must agree.
struct Cluster {
    nodes: Vec<Node>,
}

#[async_trait::async_trait]
impl AsyncDB for Cluster {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<Self::ColumnType>, Error> {
        let mut answers = Vec::new();
        for node in &self.nodes {
            let (schema, batches, done) = node.sql(SqlRequest::new(sql)).await?.collect().await?;
            let rows = done.and_then(|done| done.rows).unwrap_or_default();
            let Some(schema) = schema else { return Ok(DBOutput::StatementComplete(rows)) };
            let rows: Vec<Vec<String>> = batches.iter().flat_map(text_rows).collect();
            answers.push((schema.fields().len(), rows));
        }
        let (columns, rows) = answers.swap_remove(0);
        if answers.iter().any(|(_, others)| *others != rows) {
            return Err(Error::internal(format!("two nodes disagree on: {sql}: {rows:?}, {answers:?}")));
        }
        Ok(DBOutput::Rows { types: vec![DefaultColumnType::Any; columns], rows })
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        "shoal"
    }
}

fn text_rows(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::default().with_null("NULL");
    let text = |column: &dyn Array, row: usize| match column.data_type() {
        _ if column.is_null(row) => "NULL".to_owned(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row).to_string(),
        _ => match ArrayFormatter::try_new(column, &options).unwrap().value(row).to_string() {
            empty if empty.is_empty() => "(empty)".to_owned(),
            text => text,
        },
    };
    (0..batch.num_rows()).map(|row| batch.columns().iter().map(|column| text(column, row)).collect()).collect()
}

async fn start(dir: &Path, count: usize) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for number in 0..count {
        let mut config = NodeConfig::new(dir.join(format!("n{number}")), free_address(), free_address());
        config.memtable_bytes_max = 4 << 20;
        config.join = nodes.iter().map(Node::cluster_address).collect();
        let node = Node::start(env(&RealOptions::default()).unwrap(), config).await.unwrap();
        for _ in 0..300 {
            if node.ready().is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        node.ready().unwrap();
        nodes.push(node);
    }
    nodes
}

fn parquet(file: &Path) -> Vec<RecordBatch> {
    ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap())
        .unwrap()
        .with_batch_size(50_000)
        .build()
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

fn csv(file: &Path, schema: arrow::datatypes::SchemaRef) -> Vec<RecordBatch> {
    let builder = arrow::csv::ReaderBuilder::new(schema).with_header(true);
    builder.build(std::fs::File::open(file).unwrap()).unwrap().map(Result::unwrap).collect()
}

async fn load(node: &Node, table: &str, batches: Vec<RecordBatch>) {
    for (number, batch) in batches.into_iter().enumerate() {
        let schema = node.table(table).await.unwrap().schema.arrow();
        let columns = schema.fields().iter().zip(batch.columns());
        let columns = columns.map(|(field, column)| arrow::compute::cast(column, field.data_type()).unwrap()).collect();
        let request = WriteRequest {
            table: table.to_owned(),
            batches: vec![RecordBatch::try_new(schema, columns).unwrap()],
            level: Some(WriteLevel::All),
            token: Some(format!("{table}-{number}")),
            timeout: None,
        };
        let first = node.write(request.clone()).await.unwrap();
        let again = node.write(request).await.unwrap();
        assert_eq!(first.version, again.version, "a resend is the same write");
        assert!(again.duplicate);
    }
}

async fn flights(count: usize, spread: &str) {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path(), count).await;
    let data = Path::new("../api/demo");
    let create = [
        format!(
            "CREATE TABLE flights (id BIGINT NOT NULL, ts TIMESTAMP, origin VARCHAR, destination VARCHAR, delay INTEGER, \
             distance INTEGER, PRIMARY KEY (id)) {spread}"
        ),
        "CREATE TABLE airports (iata VARCHAR NOT NULL, name VARCHAR, city VARCHAR, state VARCHAR, country VARCHAR, \
         latitude DOUBLE, longitude DOUBLE, PRIMARY KEY (iata)) PARTITION BY HASH (iata) PARTITIONS 4"
            .to_owned(),
    ];
    for statement in create {
        nodes[0].sql(SqlRequest::new(statement)).await.unwrap().collect().await.unwrap();
    }
    let last = nodes.last().unwrap();
    load(last, "flights", parquet(&data.join("flights.parquet"))).await;
    let schema = last.table("airports").await.unwrap().schema.arrow();
    load(last, "airports", csv(&data.join("airports.csv"), schema)).await;

    run(nodes, "flights.slt").await;
}

/// The tables of TPC-H, of every kind of partitioning.
async fn tpch(count: usize) {
    const SCALE: f64 = 0.01;
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path(), count).await;
    let node = nodes.last().unwrap();
    let tables: [(&str, &str, &str, Box<dyn RecordBatchReader>); 8] = [
        (
            "lineitem",
            "l_orderkey, l_linenumber",
            "PARTITION BY HASH (l_orderkey) PARTITIONS 4",
            Box::new(LineItemArrow::new(LineItemGenerator::new(SCALE, 1, 1))),
        ),
        (
            "orders",
            "o_orderkey",
            "PARTITION BY HASH (o_orderkey) PARTITIONS 4",
            Box::new(OrderArrow::new(OrderGenerator::new(SCALE, 1, 1))),
        ),
        (
            "partsupp",
            "ps_partkey, ps_suppkey",
            "PARTITION BY RANGE (ps_partkey) SPLIT AT (700, 1400)",
            Box::new(PartSuppArrow::new(PartSuppGenerator::new(SCALE, 1, 1))),
        ),
        (
            "customer",
            "c_custkey",
            "PARTITION BY RANGE (c_custkey) SPLIT AT (500)",
            Box::new(CustomerArrow::new(CustomerGenerator::new(SCALE, 1, 1))),
        ),
        ("part", "p_partkey", "", Box::new(PartArrow::new(PartGenerator::new(SCALE, 1, 1)))),
        ("supplier", "s_suppkey", "", Box::new(SupplierArrow::new(SupplierGenerator::new(SCALE, 1, 1)))),
        ("nation", "n_nationkey", "", Box::new(NationArrow::new(NationGenerator::default()))),
        ("region", "r_regionkey", "", Box::new(RegionArrow::new(RegionGenerator::default()))),
    ];
    for (table, key, spread, mut rows) in tables {
        generated(node, table, key, spread, rows.as_mut()).await;
    }
    run(nodes, "tpch.slt").await;
}

/// Makes a table with the columns of a generator and fills it.
async fn generated(node: &Node, table: &str, key: &str, spread: &str, rows: &mut dyn RecordBatchReader) {
    let column = |field: &arrow::datatypes::FieldRef| {
        let kind = match field.data_type() {
            DataType::Int64 => "BIGINT".to_owned(),
            DataType::Int32 => "INTEGER".to_owned(),
            DataType::Date32 => "DATE".to_owned(),
            DataType::Utf8View => "VARCHAR".to_owned(),
            DataType::Decimal128(digits, places) => format!("DECIMAL({digits}, {places})"),
            // None of the generators has one.
            other => other.to_string(),
        };
        format!("{} {kind} NOT NULL", field.name())
    };
    let columns: Vec<String> = rows.schema().fields().iter().map(column).collect();
    let create = format!("CREATE TABLE {table} ({}, PRIMARY KEY ({key})) {spread}", columns.join(", "));
    node.sql(SqlRequest::new(create)).await.unwrap().collect().await.unwrap();
    load(node, table, rows.map(Result::unwrap).collect()).await;
}

/// A file that makes its own tables.
async fn alone(file: &str, count: usize) {
    let dir = tempfile::tempdir().unwrap();
    run(start(dir.path(), count).await, file).await;
}

async fn alter(count: usize) {
    let dir = tempfile::tempdir().unwrap();
    run(start(dir.path(), count).await, "alter.slt").await;
}

/// Runs a file, then stops the nodes.
async fn run(nodes: Vec<Node>, file: &str) {
    let cluster = nodes.clone();
    let mut runner = Runner::new(move || {
        let nodes = cluster.clone();
        async move { Ok(Cluster { nodes }) }
    });
    let file = Path::new("tests/slt").join(file);
    runner.run_file_async(file).await.unwrap();
    for node in &nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flights_on_one_node() {
    flights(1, "PARTITION BY RANGE (id) SPLIT AT (100000, 200000)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flights_on_three_nodes() {
    flights(3, "PARTITION BY HASH (id) PARTITIONS 6").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tpch_on_one_node() {
    tpch(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tpch_on_three_nodes() {
    tpch(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_on_one_node() {
    alone("changes.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_on_three_nodes() {
    alone("changes.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_from_statistics_on_one_node() {
    alone("summary.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_from_statistics_on_three_nodes() {
    alone("summary.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_rows_on_one_node() {
    alone("order.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn first_rows_on_three_nodes() {
    alone("order.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_series_on_one_node() {
    alone("series.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_series_on_three_nodes() {
    alone("series.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_points_on_one_node() {
    alone("newest.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_points_on_three_nodes() {
    alone("newest.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_syncs_on_one_node() {
    alone("fsync.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_syncs_on_three_nodes() {
    alone("fsync.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ttl_on_one_node() {
    alone("ttl.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ttl_on_three_nodes() {
    alone("ttl.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_on_one_node() {
    alone("windows.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_on_three_nodes() {
    alone("windows.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_on_one_node() {
    alone("values.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_on_three_nodes() {
    alone("values.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schemaless_on_one_node() {
    alone("schemaless.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schemaless_on_three_nodes() {
    alone("schemaless.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn levels_on_one_node() {
    alone("levels.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn levels_on_three_nodes() {
    alone("levels.slt", 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alter_on_one_node() {
    alter(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alter_on_three_nodes() {
    alter(3).await;
}

/// Writers at every node go on while columns come, change their type and go: nothing that was acknowledged is lost, and all
/// replicas hold the same in the end.
#[tokio::test(flavor = "multi_thread")]
async fn writers_go_on_while_a_table_is_altered() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = start(dir.path(), 3).await;
    let command = async |node: &Node, sql: &str| node.sql(SqlRequest::new(sql)).await?.collect().await;
    command(&nodes[0], "CREATE TABLE t (k BIGINT PRIMARY KEY, n INTEGER) PARTITION BY HASH (k) PARTITIONS 3")
        .await
        .unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3_i64)
        .map(|writer| {
            let (node, done) = (nodes[writer as usize].clone(), done.clone());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for number in 0.. {
                    let key = number * 3 + writer;
                    // A column may go or change its type between the plan and the write; then nothing has happened.
                    let sql = format!("INSERT INTO t (k, n) VALUES ({key}, {number})");
                    match node.sql(SqlRequest::new(sql)).await {
                        Ok(stream) => {
                            stream.collect().await.unwrap();
                            acknowledged.push((key, number.to_string()));
                        }
                        Err(error) => assert!(error.retryable(), "{error}"),
                    }
                    if done.load(Ordering::Relaxed) {
                        return acknowledged;
                    }
                }
                acknowledged
            })
        })
        .collect();
    for (number, sql) in [
        "ALTER TABLE t ADD COLUMN extra VARCHAR",
        "ALTER TABLE t ALTER COLUMN n TYPE BIGINT",
        "ALTER TABLE t RENAME COLUMN extra TO more",
        "ALTER TABLE t DROP COLUMN more, ADD COLUMN extra DOUBLE",
        "ALTER TABLE t ALTER COLUMN n TYPE VARCHAR",
    ]
    .into_iter()
    .enumerate()
    {
        tokio::time::sleep(Duration::from_millis(300)).await;
        command(&nodes[number % 3], sql).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    done.store(true, Ordering::Relaxed);
    let mut expected = Vec::new();
    for writer in writers {
        expected.extend(writer.await.unwrap());
    }
    expected.sort();
    command(&nodes[1], "FLUSH").await.unwrap();
    for node in &nodes {
        // Names a column that came last, so that every node has heard of all of it.
        let mut found = Vec::new();
        for attempt in 0.. {
            let (_, batches, _) = command(node, "SELECT k, n, extra FROM t ORDER BY k").await.unwrap();
            found = batches
                .iter()
                .flat_map(text_rows)
                .map(|row| (row[0].parse::<i64>().unwrap(), row[1].clone()))
                .collect();
            // A read at level one may be behind.
            if found == expected || attempt == 100 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(found == expected, "{} rows found, {} were acknowledged", found.len(), expected.len());
    }
    for _ in 0..100 {
        let digests = |status: &shoal_actors::service::ClusterStatus| {
            let of = |partition: &shoal_actors::service::PartitionStatus| {
                partition.replicas.iter().map(|replica| replica.digest.clone()).collect::<BTreeSet<_>>()
            };
            status.partitions.iter().map(of).collect::<Vec<_>>()
        };
        if digests(&nodes[0].cluster().await).iter().all(|digests| digests.len() == 1 && !digests.contains(&None)) {
            for node in &nodes {
                node.shutdown().await;
            }
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("replicas differ: {:?}", nodes[0].cluster().await.partitions);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_on_one_node() {
    alone("splits.slt", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_on_three_nodes() {
    alone("splits.slt", 3).await;
}
