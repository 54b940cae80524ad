//! Reads at quorum on real nodes.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow::util::pretty::pretty_format_batches;
use shoal_actors::Node;
use shoal_actors::service::{QueryEvent, SqlRequest, WriteRequest};
use shoal_kernel::{Applied, Error, ErrorCode, ReadLevel, WriteLevel};

use common::{eventually, nodes, numbers};

/// Writes of each writer.
const WRITES: i64 = 60;

fn at(level: ReadLevel, sql: &str) -> SqlRequest {
    SqlRequest { read_level: Some(level), ..SqlRequest::new(sql) }
}

/// The only value of an answer, and the level that it names.
async fn value(node: &Node, request: SqlRequest) -> Result<(i64, Option<ReadLevel>), Error> {
    let (mut stream, mut found) = (node.sql(request).await?, None);
    while let Some(event) = stream.next().await {
        match event {
            QueryEvent::Batch(batch) => found = Some(batch.column(0).as_primitive::<Int64Type>().value(0)),
            QueryEvent::Error(error) => return Err(error),
            QueryEvent::End(summary) => return Ok((found.unwrap(), summary.read_level)),
            QueryEvent::Schema(_) | QueryEvent::Progress(_) | QueryEvent::Done(_) => {}
        }
    }
    Err(Error::internal("no end"))
}

async fn write(node: &Node, table: &str, key: i64) {
    let keys: Int64Array = [key].into_iter().collect();
    let rows = RecordBatch::try_from_iter([("k", Arc::new(keys) as _)]).unwrap();
    let (table, level) = (table.to_owned(), Some(WriteLevel::Quorum));
    node.write(WriteRequest { table, batches: vec![rows], level, token: None, timeout: None }).await.unwrap();
}

/// Through whichever node one writes and reads; also rows in a window that was made for them just now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_at_quorum_sees_what_was_acknowledged_at_quorum() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path()).await;
    for options in ["", "WITH (partition_size_hint = 10)"] {
        let table = if options.is_empty() { "plain" } else { "windows" };
        nodes[0].sql(SqlRequest::new(format!("CREATE TABLE {table} (k BIGINT PRIMARY KEY) {options}"))).await.unwrap();
        let writers = (0..3usize).map(|writer| {
            let (nodes, first) = (&nodes, writer as i64 * WRITES);
            async move {
                let sql = format!("SELECT count(*) FROM {table} WHERE k >= {first} AND k < {}", first + WRITES);
                for number in 0..WRITES {
                    write(&nodes[writer], table, first + number).await;
                    let reader = &nodes[(writer + number as usize) % 3];
                    let found = value(reader, at(ReadLevel::Quorum, &sql)).await.unwrap();
                    assert_eq!(found, (number + 1, Some(ReadLevel::Quorum)), "{table}, through {}", reader.id());
                }
            }
        });
        futures::future::join_all(writers).await;
    }
    for node in nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_is_the_requests_or_the_tables_and_never_a_lower_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = nodes(dir.path()).await;
    let sql = "CREATE TABLE t (k BIGINT PRIMARY KEY, v BIGINT) WITH (replication_factor = 2, read_level = 'quorum')";
    nodes[0].sql(SqlRequest::new(sql)).await.unwrap();
    let insert = "INSERT INTO t VALUES (1, 10), (2, 20)";
    nodes[0].sql(SqlRequest { write_level: Some(WriteLevel::All), ..SqlRequest::new(insert) }).await.unwrap();
    let count = "SELECT count(*) FROM t";
    for node in &nodes {
        assert_eq!(value(node, SqlRequest::new(count)).await.unwrap(), (2, Some(ReadLevel::Quorum)));
        assert_eq!(value(node, at(ReadLevel::One, count)).await.unwrap(), (2, Some(ReadLevel::One)));
    }

    let explained = async |request: SqlRequest| {
        let (_, batches, _) = nodes[0].sql(request).await.unwrap().collect().await.unwrap();
        pretty_format_batches(&batches).unwrap().to_string()
    };
    let (plan, ran) = (format!("EXPLAIN {count}"), format!("EXPLAIN ANALYZE {count}"));
    assert!(explained(SqlRequest::new(&plan)).await.contains("| read_level    | quorum"));
    assert!(!explained(at(ReadLevel::One, &plan)).await.contains("read_level"));
    assert!(explained(SqlRequest::new(&ran)).await.contains("read at quorum"));
    assert!(explained(at(ReadLevel::One, &ran)).await.contains("read at one"));

    // One of the two replicas goes; the catalog keeps its quorum.
    let holders = |id| nodes.iter().position(|node| node.id() == id).unwrap();
    let replicas: Vec<usize> =
        nodes[0].cluster().await.partitions[0].replicas.iter().map(|r| holders(r.node)).collect();
    assert_eq!(replicas.len(), 2);
    nodes.remove(replicas[1]).shutdown().await;
    for node in &nodes {
        for sql in [count, "UPDATE t SET v = v + 1", "DELETE FROM t WHERE v = 20"] {
            let refused = loop {
                let refused = match node.sql(SqlRequest::new(sql)).await {
                    Ok(stream) => stream.collect().await.unwrap_err(),
                    Err(error) => error,
                };
                // Who was shut down may have led the catalog; the next one is elected in a moment.
                if refused.code() != ErrorCode::NoCatalogQuorum {
                    break refused;
                }
            };
            assert_eq!(
                (refused.code(), refused.applied()),
                (ErrorCode::NotEnoughReplicas, Applied::False),
                "{refused}"
            );
            assert!(refused.message().contains("needs 2 of 2 replicas"), "{refused}");
            assert!(refused.retryable() && refused.help().is_some());
        }
        assert_eq!(value(node, at(ReadLevel::One, count)).await.unwrap(), (2, Some(ReadLevel::One)));
    }
    nodes[0].sql(SqlRequest::new("ALTER TABLE t SET (read_level = 'one')")).await.unwrap();
    eventually("the setting is known", || async { numbers(&nodes[1], count).await.map(drop) }).await;
    // What writes at one reads at one.
    let alone = SqlRequest { write_level: Some(WriteLevel::One), ..SqlRequest::new("UPDATE t SET v = 11 WHERE k = 1") };
    nodes[0].sql(alone).await.unwrap();
    assert_eq!(numbers(&nodes[0], "SELECT v FROM t WHERE k = 1").await.unwrap(), [11]);
    for node in nodes {
        node.shutdown().await;
    }
}
