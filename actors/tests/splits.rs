//! Partitions of real nodes that are split while they are written and read.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtime, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use shoal_actors::Node;
use shoal_actors::service::{ReplicaStatus, SqlRequest, WriteReport, WriteRequest};
use shoal_kernel::{Error, WriteLevel};

use common::{eventually, node, nodes, numbers};

async fn run(node: &Node, sql: &str) {
    eventually(sql, || async { node.sql(SqlRequest::new(sql)).await?.collect().await.map(drop) }).await;
}

async fn partitions(node: &Node, table: &str) -> Result<Vec<String>, Error> {
    let answer = node.sql(SqlRequest::new(format!("SHOW PARTITIONS {table}"))).await?.collect().await?;
    let names =
        answer.1.iter().flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten().map(str::to_owned));
    Ok(names.collect())
}

/// Its own replicas that are there.
async fn held(node: &Node) -> usize {
    let (id, status) = (node.id(), node.cluster().await);
    let own = |replica: &&ReplicaStatus| replica.node == id && replica.reachable && replica.position.is_some();
    status.partitions.iter().flat_map(|partition| &partition.replicas).filter(own).count()
}

/// Sends rows with these ids until they are in.
async fn insist(node: &Node, table: &str, token: &str, ids: Vec<i64>) -> WriteReport {
    let rows = RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(ids)) as _)]).unwrap();
    loop {
        let request = WriteRequest {
            table: table.into(),
            batches: vec![rows.clone()],
            level: Some(WriteLevel::Quorum),
            token: Some(token.into()),
            timeout: None,
        };
        match node.write(request).await {
            Ok(report) => return report,
            Err(error) => assert!(error.retryable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Rows of the whole range of keys, of which each batch lies in all partitions.
fn ids(batch: i64) -> Vec<i64> {
    (0..50).map(|row| row * 1_000 + batch).collect()
}

/// Writers and readers never hear of the splits; what is sent again after them is there once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_queries_go_on_while_partitions_are_split() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = Arc::new(nodes(dir.path()).await);
    run(&nodes[0], "CREATE TABLE kv (id BIGINT PRIMARY KEY)").await;
    for node in nodes.iter() {
        eventually("the table is known", || numbers(node, "SELECT count(*) FROM kv")).await;
    }
    for batch in 0..5 {
        insist(&nodes[0], "kv", &format!("batch {batch}"), ids(batch)).await;
    }
    let stopped = Arc::new(AtomicBool::new(false));
    let reader = {
        let (nodes, stopped) = (nodes.clone(), stopped.clone());
        tokio::spawn(async move {
            let (mut least, mut answers) = (250, 0);
            while !stopped.load(Ordering::Relaxed) {
                // At one node, an answer may be behind another's; none may miss a part of what was there before.
                let counted = numbers(&nodes[1], "SELECT count(*), count(DISTINCT id) FROM kv").await.unwrap();
                assert!(counted[0] >= 250 && counted[0] == counted[1], "{counted:?}");
                (least, answers) = (least.max(counted[0]), answers + 1);
            }
            (least, answers)
        })
    };
    let writer = {
        let nodes = nodes.clone();
        tokio::spawn(async move {
            for batch in 5..60 {
                insist(&nodes[batch as usize % 3], "kv", &format!("batch {batch}"), ids(batch)).await;
            }
        })
    };
    for at in [25_000, 40_000, 10_000, 30_000, 5_000, 45_000] {
        run(&nodes[0], &format!("ALTER TABLE kv SPLIT AT ({at})")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    writer.await.unwrap();
    for node in nodes.iter() {
        // What was written before a split, in the midst of some, and after them.
        for batch in [0, 4, 5, 17, 40, 59] {
            let report = insist(node, "kv", &format!("batch {batch}"), ids(batch)).await;
            assert!(report.duplicate, "batch {batch} was known");
        }
        let other = node
            .write(WriteRequest {
                table: "kv".into(),
                batches: vec![RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![7])) as _)]).unwrap()],
                level: None,
                token: Some("batch 3".into()),
                timeout: None,
            })
            .await;
        assert_eq!(other.unwrap_err().code(), shoal_kernel::ErrorCode::TokenConflict);
    }
    stopped.store(true, Ordering::Relaxed);
    let (_, answers) = reader.await.unwrap();
    assert!(answers > 10, "{answers}");
    for node in nodes.iter() {
        assert_eq!(partitions(node, "kv").await.unwrap().len(), 7);
        eventually("all rows are seen", || async {
            let counted = numbers(node, "SELECT count(*), count(DISTINCT id) FROM kv").await?;
            if counted == [3_000, 3_000] { Ok(()) } else { Err(Error::internal(format!("{counted:?}"))) }
        })
        .await;
    }
    for node in nodes.iter() {
        node.shutdown().await;
    }
}

/// Splits that come faster than nodes split their files: heirs are split again before these have them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_that_outrun_the_nodes_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path()).await;
    run(&nodes[0], "CREATE TABLE kv (id BIGINT PRIMARY KEY)").await;
    for node in &nodes {
        eventually("the table is known", || numbers(node, "SELECT count(*) FROM kv")).await;
    }
    for batch in 0..5 {
        insist(&nodes[0], "kv", &format!("batch {batch}"), ids(batch)).await;
    }
    // Five times over, each part is cut in two at once.
    for parts in [2, 4, 8, 16, 32] {
        let cuts = (1..parts).step_by(2).map(|cut| {
            let (node, sql) = (&nodes[cut % 3], format!("ALTER TABLE kv SPLIT AT ({})", cut * 48_000 / parts));
            async move { run(node, &sql).await }
        });
        futures::future::join_all(cuts).await;
    }
    for node in &nodes {
        assert!(insist(node, "kv", "batch 3", ids(3)).await.duplicate);
        eventually("all rows are seen", || async {
            let counted = numbers(node, "SELECT count(*), count(DISTINCT id) FROM kv").await?;
            let own = held(node).await;
            let seen = counted == [250, 250] && own == 32;
            if seen { Ok(()) } else { Err(Error::internal(format!("{counted:?} in {own}"))) }
        })
        .await;
    }
    for node in &nodes {
        node.shutdown().await;
    }
    // What each had of its own, and nothing else.
    for number in 0..3 {
        let replicas = std::fs::read_dir(dir.path().join(format!("n{number}/replicas"))).unwrap();
        let names = replicas.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let names: Vec<String> = names.filter(|name| name.starts_with('p') && !name.contains('.')).collect();
        assert_eq!(names.len(), 32, "{names:?}");
    }
}

/// A node that was down while a partition was split, and its halves again, splits what it has when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_inherits_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = nodes(dir.path()).await;
    run(&nodes[0], "CREATE TABLE kv (id BIGINT PRIMARY KEY)").await;
    for node in &nodes {
        eventually("the table is known", || numbers(node, "SELECT count(*) FROM kv")).await;
    }
    insist(&nodes[0], "kv", "first", ids(1)).await;
    let parent = partitions(&nodes[0], "kv").await.unwrap().remove(0);
    let away = nodes.pop().unwrap();
    let address = away.cluster_address();
    away.shutdown().await;
    for at in [25_000, 10_000, 40_000] {
        run(&nodes[0], &format!("ALTER TABLE kv SPLIT AT ({at})")).await;
    }
    insist(&nodes[1], "kv", "second", ids(2)).await;

    let join = nodes.iter().map(Node::cluster_address).collect();
    let back = node(dir.path().join("n2"), address, join).await;
    eventually("it has inherited, and caught up", || async {
        let counted = numbers(&back, "SELECT count(*), count(DISTINCT id) FROM kv").await?;
        let own = held(&back).await;
        if counted == [100, 100] && own >= 4 { Ok(()) } else { Err(Error::internal(format!("{counted:?}, {own}"))) }
    })
    .await;
    let replicas = std::fs::read_dir(dir.path().join("n2/replicas")).unwrap();
    let names: Vec<String> = replicas.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    let mut wanted = partitions(&back, "kv").await.unwrap();
    let mut names: Vec<String> =
        names.into_iter().filter(|name| name.starts_with('p') && !name.contains('.')).collect();
    names.sort();
    wanted.sort();
    assert_eq!(names, wanted, "nothing of the partition that was split is left");
    assert!(insist(&back, "kv", "first", ids(1)).await.duplicate);
    back.shutdown().await;

    // A crash may leave a mark of the partition that was split, which nobody is to wait for.
    let replicas = dir.path().join("n2/replicas");
    std::fs::write(replicas.join(format!("{parent}.refilling")), "").unwrap();
    let join = nodes.iter().map(Node::cluster_address).collect();
    let back = node(dir.path().join("n2"), address, join).await;
    eventually("it has its replicas again", || async {
        let own = held(&back).await;
        if own >= 4 { Ok(()) } else { Err(Error::internal(format!("{own} replicas"))) }
    })
    .await;
    eventually("the mark is gone", || async {
        let left = std::fs::read_dir(&replicas).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with(&format!("{parent}."))).collect();
        if left.is_empty() { Ok(()) } else { Err(Error::internal(format!("{left:?}"))) }
    })
    .await;
    back.shutdown().await;
    for node in nodes {
        node.shutdown().await;
    }
}

/// A table's own limit is enough: partitions become more as rows come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_have_grown_are_split_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = nodes(dir.path()).await;
    run(&nodes[0], "CREATE TABLE kv (id BIGINT PRIMARY KEY) WITH (partition_rows_max = 1000)").await;
    eventually("the table is known", || numbers(&nodes[0], "SELECT count(*) FROM kv")).await;
    for batch in 0..100 {
        insist(&nodes[0], "kv", &format!("batch {batch}"), ids(batch)).await;
    }
    eventually("no partition has too many rows", || async {
        let count = partitions(&nodes[0], "kv").await?.len();
        if (5..=16).contains(&count) { Ok(()) } else { Err(Error::internal(format!("{count} partitions"))) }
    })
    .await;
    eventually("all rows are seen", || async {
        let counted = numbers(&nodes[2], "SELECT count(*) FROM kv").await?;
        if counted == [5_000] { Ok(()) } else { Err(Error::internal(format!("{counted:?}"))) }
    })
    .await;
    for node in nodes {
        node.shutdown().await;
    }
}
