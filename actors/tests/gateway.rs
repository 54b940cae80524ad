//! Gateways of real nodes that do the same thing at once.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use shoal_actors::Node;
use shoal_actors::service::{SqlRequest, WriteReport, WriteRequest};
use shoal_kernel::{Error, ErrorCode, WriteLevel};

use common::{eventually, nodes, numbers};

const KEYS: i64 = 30;
const ROWS: i64 = 3;
/// Sends as a client does that wants the rows in: again, as long as that may help.
async fn insist(node: &Node, table: &str, key: i64) -> WriteReport {
    let ids: Int64Array = (key * ROWS..(key + 1) * ROWS).collect();
    let rows = RecordBatch::try_from_iter([("id", Arc::new(ids) as _)]).unwrap();
    loop {
        let request = WriteRequest {
            table: table.into(),
            batches: vec![rows.clone()],
            level: Some(WriteLevel::Quorum),
            token: Some(format!("key {key}")),
            timeout: None,
        };
        match node.write(request).await {
            Ok(report) => return report,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// However often and wherever a request is sent, its rows are there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_gateways_at_once_agree_on_the_version_of_a_keys_rows() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path()).await;
    for (table, column, question, answer) in [
        ("ev", "NOT NULL", "count(DISTINCT id), count(DISTINCT _ts)", vec![KEYS * ROWS, KEYS * ROWS, KEYS]),
        ("kv", "PRIMARY KEY", "count(DISTINCT id)", vec![KEYS * ROWS; 2]),
    ] {
        nodes[0].sql(SqlRequest::new(format!("CREATE TABLE {table} (id BIGINT {column})"))).await.unwrap();
        let question = format!("SELECT count(*), {question} FROM {table}");
        for node in &nodes {
            eventually("the table is known", || async { numbers(node, &question).await.map(drop) }).await;
        }
        for key in 0..KEYS {
            let send = |node: usize| insist(&nodes[node], table, key);
            let (one, two, three) = tokio::join!(send(0), send(1), send(2));
            assert_eq!((one.version, two.version), (two.version, three.version), "{table}, key {key}");
            let firsts = [&one, &two, &three].iter().filter(|report| !report.duplicate).count();
            assert!(firsts <= 1, "{firsts} say that they were the first");
        }
        for node in &nodes {
            eventually("all rows are there, once", || async {
                match numbers(node, &question).await? {
                    found if found == answer => Ok(()),
                    found => Err(Error::internal(format!("{found:?}"))),
                }
            })
            .await;
        }
    }

    let ids: Int64Array = [1].into_iter().collect();
    let request = WriteRequest {
        table: "ev".into(),
        batches: vec![RecordBatch::try_from_iter([("id", Arc::new(ids) as _)]).unwrap()],
        level: None,
        token: Some("key 0".into()),
        timeout: None,
    };
    assert_eq!(nodes[1].write(request).await.unwrap_err().code(), ErrorCode::TokenConflict);
    for node in nodes {
        node.shutdown().await;
    }
}

/// More of them than changes of the catalog that a node may have under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_writes_that_miss_the_same_window_are_all_taken() {
    const WRITES: i64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path()).await;
    let sql = "CREATE TABLE w (k BIGINT PRIMARY KEY) WITH (partition_size_hint = 1000, write_level = 'all')";
    nodes[0].sql(SqlRequest::new(sql)).await.unwrap();
    for round in 0..3 {
        let write = |k: i64| {
            let keys: Int64Array = [round * 1000 + k].into_iter().collect();
            let batches = vec![RecordBatch::try_from_iter([("k", Arc::new(keys) as _)]).unwrap()];
            nodes[0].write(WriteRequest { table: "w".into(), batches, level: None, token: None, timeout: None })
        };
        for written in futures::future::join_all((0..WRITES).map(write)).await {
            written.unwrap();
        }
    }
    assert_eq!(numbers(&nodes[0], "SELECT count(*) FROM w").await.unwrap(), [3 * WRITES]);
    let (_, batches, _) =
        nodes[0].sql(SqlRequest::new("SHOW PARTITIONS FROM w")).await.unwrap().collect().await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    for node in nodes {
        node.shutdown().await;
    }
}

/// Rows beyond what one write may have are cut, each part with a token of its own: a resend must be cut alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_request_is_known_again_after_its_table_was_altered() {
    const NARROW: i64 = 42_000;
    const WIDE: i64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path()).await;
    let alter = |sql: &'static str| nodes[0].sql(SqlRequest::new(sql));
    alter("CREATE TABLE big (k BIGINT PRIMARY KEY, v BIGINT, text VARCHAR) WITH (write_level = 'all')").await.unwrap();
    let keys: Int64Array = (0..NARROW + WIDE).collect();
    let text = |k: i64| "x".repeat(if k < NARROW { 100 } else { 200_000 });
    let texts = StringArray::from_iter_values((0..NARROW + WIDE).map(text));
    let columns: [(_, ArrayRef); 3] = [("k", Arc::new(keys.clone())), ("v", Arc::new(keys)), ("text", Arc::new(texts))];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let send = |rows: RecordBatch| {
        let token = Some("large".to_owned());
        nodes[0].write(WriteRequest { table: "big".into(), batches: vec![rows], level: None, token, timeout: None })
    };
    assert!(!send(rows.clone()).await.unwrap().duplicate);
    alter("ALTER TABLE big ADD COLUMN one VARCHAR, ADD COLUMN two VARCHAR").await.unwrap();
    assert!(send(rows.clone()).await.unwrap().duplicate);
    alter("ALTER TABLE big ALTER COLUMN v TYPE VARCHAR").await.unwrap();
    let wider = arrow::compute::cast(rows.column(1), &DataType::Utf8).unwrap();
    let columns = [("k", rows.column(0).clone()), ("v", wider), ("text", rows.column(2).clone())];
    assert!(send(RecordBatch::try_from_iter(columns).unwrap()).await.unwrap().duplicate);
    assert_eq!(numbers(&nodes[0], "SELECT count(*) FROM big").await.unwrap(), [NARROW + WIDE]);
    for node in nodes {
        node.shutdown().await;
    }
}
