//! Reads of a few rows by key on real nodes: from wherever the replica is, and by a query where they cannot.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use std::collections::BTreeSet;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use shoal_actors::Node;
use shoal_actors::service::{QueryEvent, QuerySummary, SqlRequest};
use shoal_kernel::{Error, ErrorCode, ReadLevel, Result, WriteLevel};

use common::{eventually, nodes};

async fn run(node: &Node, sql: &str) -> Result<()> {
    let request = SqlRequest { write_level: Some(WriteLevel::All), ..SqlRequest::new(sql) };
    node.sql(request).await?.collect().await.map(drop)
}

/// Makes the table `t` of three partitions, with the keys from 0 to 299.
async fn make_table(node: &Node, replicas: u32) {
    let create = format!(
        "CREATE TABLE t (k BIGINT PRIMARY KEY, v VARCHAR NOT NULL) PARTITION BY RANGE(k) SPLIT AT (100, 200) \
         WITH (replication_factor = {replicas})"
    );
    run(node, &create).await.unwrap();
    let rows: Vec<String> = (0..300).map(|k| format!("({k}, 'v{k}')")).collect();
    let insert = format!("INSERT INTO t VALUES {}", rows.join(", "));
    eventually("rows", || run(node, &insert)).await;
}

/// Keys and texts, and what the answer says of itself.
async fn read(node: &Node, level: ReadLevel, sql: &str) -> Result<(Vec<(i64, String)>, QuerySummary)> {
    let request = SqlRequest { read_level: Some(level), ..SqlRequest::new(sql) };
    let (mut stream, mut rows) = (node.sql(request).await?, Vec::new());
    while let Some(event) = stream.next().await {
        match event {
            QueryEvent::Batch(batch) => {
                let (keys, texts) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_string::<i32>());
                rows.extend((0..batch.num_rows()).map(|row| (keys.value(row), texts.value(row).to_owned())));
            }
            QueryEvent::Error(error) => return Err(error),
            QueryEvent::End(summary) => return Ok((rows, summary)),
            QueryEvent::Schema(_) | QueryEvent::Progress(_) | QueryEvent::Done(_) => {}
        }
    }
    Err(Error::internal("no end"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_reads_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = nodes(dir.path()).await;
    // Of most partitions a node has no replica.
    make_table(&nodes[0], 1).await;
    run(&nodes[0], "FLUSH").await.unwrap();
    run(&nodes[1], "INSERT INTO t VALUES (250, 'newer')").await.unwrap();
    run(&nodes[2], "DELETE FROM t WHERE k = 7").await.unwrap();
    let homes: BTreeSet<_> = nodes[0].cluster().await.partitions.iter().map(|it| it.replicas[0].node).collect();
    assert!(homes.len() > 1, "some reads go to other nodes: {homes:?}");
    for level in [ReadLevel::One, ReadLevel::Quorum] {
        for node in &nodes {
            for (key, expected) in [(5, Some("v5")), (7, None), (150, Some("v150")), (250, Some("newer")), (900, None)]
            {
                let sql = format!("SELECT k, v FROM t WHERE k = {key}");
                let (rows, summary) = read(node, level, &sql).await.unwrap();
                assert_eq!(rows, Vec::from_iter(expected.map(|text| (key, text.to_owned()))), "{sql}");
                assert_eq!((summary.rows, summary.read_level), (rows.len() as u64, Some(level)));
                assert_eq!((summary.progress.tasks, summary.restarts), (1, 0), "it is no query");
            }
            let sql = "SELECT k, v FROM t WHERE k BETWEEN 5 AND 9 ORDER BY k DESC LIMIT 3";
            let (rows, summary) = read(node, level, sql).await.unwrap();
            let expected = [9, 8, 6].map(|key| (key, format!("v{key}")));
            assert_eq!((rows.as_slice(), summary.progress.tasks), (expected.as_slice(), 1));
        }
    }

    // More than such a read is for: a query brings it.
    run(&nodes[0], "UPDATE t SET v = repeat('w', 100000) WHERE k < 30").await.unwrap();
    for node in &nodes {
        let sql = "SELECT k, v FROM t WHERE k BETWEEN 0 AND 29 ORDER BY k";
        let (rows, summary) = read(node, ReadLevel::One, sql).await.unwrap();
        assert!(rows.len() == 29 && rows[28].1.len() == 100_000 && summary.progress.tasks > 1, "{summary:?}");
    }
    // What was split meanwhile is found, too.
    run(&nodes[0], "ALTER TABLE t SPLIT AT (250)").await.unwrap();
    for node in &nodes {
        let found =
            eventually("the halves", || read(node, ReadLevel::Quorum, "SELECT k, v FROM t WHERE k = 250")).await;
        assert_eq!(found.0, [(250, "newer".to_owned())]);
    }

    // A replica that has gone: the error is that of a query.
    let gone = nodes.pop().unwrap();
    let partitions = nodes[0].cluster().await.partitions;
    let lost = partitions.iter().position(|it| it.replicas[0].node == gone.id());
    gone.shutdown().await;
    if let Some(place) = lost {
        let key = [50, 150, 220, 270][place];
        let error = read(&nodes[0], ReadLevel::One, &format!("SELECT k, v FROM t WHERE k = {key}")).await.unwrap_err();
        assert!(
            matches!(error.code(), ErrorCode::PartitionUnavailable | ErrorCode::NodeLost | ErrorCode::Timeout),
            "{error}"
        );
    }
    for node in nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_changes_by_key() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path()).await;
    make_table(&nodes[0], 2).await;
    let done = async |node: &Node, sql: &str| {
        let request = SqlRequest { write_level: Some(WriteLevel::Quorum), ..SqlRequest::new(sql) };
        let mut stream = node.sql(request).await?;
        while let Some(event) = stream.next().await {
            match event {
                QueryEvent::Done(done) => return Ok((done.tag, done.rows, done.level)),
                QueryEvent::Error(error) => return Err(error),
                _ => {}
            }
        }
        Err(Error::internal("no end"))
    };
    let level = Some(WriteLevel::Quorum);
    // One after the other, each elsewhere: each must see and beat what the one before has left.
    for turn in 0..12_u64 {
        let node = &nodes[usize::try_from(turn % 3).unwrap()];
        for key in [5, 150, 250] {
            let sql = format!("UPDATE t SET v = 'turn {turn}' WHERE k = {key}");
            assert_eq!(done(node, &sql).await.unwrap(), ("UPDATE".into(), Some(1), level));
            let other = &nodes[usize::try_from((turn + 1) % 3).unwrap()];
            let (rows, _) =
                read(other, ReadLevel::Quorum, &format!("SELECT k, v FROM t WHERE k = {key}")).await.unwrap();
            assert_eq!(rows, [(key, format!("turn {turn}"))]);
        }
    }
    assert_eq!(
        done(&nodes[1], "UPDATE t SET v = 'x' WHERE k = 1000").await.unwrap(),
        ("UPDATE".into(), Some(0), level)
    );
    assert_eq!(
        done(&nodes[2], "DELETE FROM t WHERE k BETWEEN 6 AND 8").await.unwrap(),
        ("DELETE".into(), Some(3), level)
    );
    assert_eq!(done(&nodes[0], "DELETE FROM t WHERE k = 7").await.unwrap(), ("DELETE".into(), Some(0), level));
    let (rows, _) =
        read(&nodes[1], ReadLevel::Quorum, "SELECT k, v FROM t WHERE k BETWEEN 4 AND 9 ORDER BY k").await.unwrap();
    assert_eq!(rows.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [4, 5, 9]);

    // Columns have come and gone where the statement was planned elsewhere: nothing of them is lost.
    run(&nodes[0], "ALTER TABLE t ADD COLUMN w BIGINT").await.unwrap();
    run(&nodes[0], "UPDATE t SET w = 9 WHERE k = 5").await.unwrap();
    assert_eq!(done(&nodes[1], "UPDATE t SET v = 'after' WHERE k = 5").await.unwrap().1, Some(1));
    let (rows, _) = read(&nodes[2], ReadLevel::Quorum, "SELECT w, v FROM t WHERE k = 5").await.unwrap();
    assert_eq!(rows, [(9, "after".to_owned())]);

    // What is wrong with it is told as ever.
    let request = SqlRequest { token: Some("key".into()), ..SqlRequest::new("DELETE FROM t WHERE k = 5") };
    let error = nodes[0].sql(request).await.err().unwrap();
    assert!(error.code() == ErrorCode::Unsupported && error.message().contains("no idempotency key"), "{error}");
    for node in nodes {
        node.shutdown().await;
    }
}
