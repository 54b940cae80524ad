//! Every way to stop a query early reaches every actor.

use std::time::Duration;

use shoal_kernel::ErrorCode;

use super::cluster::{Cluster, Fault, read};
use crate::query::{QueryLimits, RunOptions};
use crate::service::QueryEvent;

const ENDLESS_COUNT: &str = "SELECT grp, count(*) FROM t GROUP BY grp";

async fn endless() -> Cluster {
    let cluster = Cluster::start(QueryLimits::default()).await;
    cluster.world.misbehave_everywhere(&cluster.partitions("t"), Fault::Endless);
    cluster
}

/// Waits until all tasks of a query are at work.
async fn working(cluster: &Cluster) {
    let before = cluster.world.batches.load(std::sync::atomic::Ordering::Relaxed);
    while cluster.world.batches.load(std::sync::atomic::Ordering::Relaxed) < before + 200 {
        cluster.env.sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_from_any_node() {
    let cluster = endless().await;
    for asked in 0..3 {
        let options = RunOptions::new(Duration::from_secs(60));
        let mut stream = cluster.start_query(0, ENDLESS_COUNT, options).await.unwrap();
        working(&cluster).await;
        assert_eq!(cluster.nodes[0].service.running().len(), 1);
        cluster.nodes[asked].service.cancel(stream.id).await.unwrap();
        assert_eq!(read(&mut stream).await.end.unwrap_err().code(), ErrorCode::Cancelled);
        cluster.is_empty(&[]).await;
        let again = cluster.nodes[asked].service.cancel(stream.id).await.unwrap_err();
        assert_eq!(again.code(), ErrorCode::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_ends_a_query() {
    let cluster = endless().await;
    let answer = cluster.run_within(1, ENDLESS_COUNT, Duration::from_millis(300)).await;
    assert_eq!(answer.end.unwrap_err().code(), ErrorCode::Timeout);
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_ends_its_query() {
    let cluster = endless().await;
    let stream = cluster.start_query(2, ENDLESS_COUNT, RunOptions::new(Duration::from_secs(60))).await.unwrap();
    working(&cluster).await;
    drop(stream);
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_learns_of_its_cancellation() {
    let cluster = endless().await;
    let options = RunOptions::new(Duration::from_secs(60));
    let mut stream = cluster.start_query(0, "SELECT id FROM t", options).await.unwrap();
    cluster.env.sleep(Duration::from_millis(300)).await;
    cluster.nodes[1].service.cancel(stream.id).await.unwrap();
    cluster.is_empty(&[]).await;
    assert_eq!(read(&mut stream).await.end.unwrap_err().code(), ErrorCode::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reached_limit_stops_every_scan() {
    let cluster = endless().await;
    for (sql, rows) in [
        ("SELECT id FROM t LIMIT 10", 10),
        ("SELECT id + 1 FROM t WHERE v > 500 LIMIT 12", 12),
        ("SELECT id FROM t UNION ALL SELECT id FROM u LIMIT 20", 20),
    ] {
        let answer = cluster.run(0, sql).await;
        answer.end.as_ref().unwrap();
        assert_eq!(answer.rows(), rows);
        cluster.is_empty(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_wait_in_line_and_a_full_line_refuses() {
    let limits = QueryLimits { queries_max: 1, queries_queued_max: 1, ..QueryLimits::default() };
    let cluster = Cluster::start(limits).await;
    cluster.world.misbehave_everywhere(&cluster.partitions("t"), Fault::Endless);
    let options = || RunOptions::new(Duration::from_secs(60));
    let running = cluster.start_query(0, ENDLESS_COUNT, options()).await.unwrap();
    let mut waiting = cluster.start_query(0, "SELECT count(*) FROM u", options()).await.unwrap();
    let refused = cluster.start_query(0, "SELECT 1", options()).await.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::Overloaded);
    assert!(refused.retryable());
    // The one in line is told its place.
    let place = loop {
        match waiting.next().await.unwrap() {
            QueryEvent::Progress(progress) => break progress.queued,
            QueryEvent::Schema(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(place, Some(1));
    let queued: Vec<_> = cluster.nodes[0].service.running().iter().map(|query| query.queued).collect();
    assert!(queued.contains(&Some(1)) && queued.contains(&None), "{queued:?}");
    drop(running);
    loop {
        match waiting.next().await.unwrap() {
            QueryEvent::End(summary) => break assert_eq!(summary.rows, 1),
            QueryEvent::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
    cluster.is_empty(&[]).await;
    // Whoever waits too long hears that there is too much to do.
    let running = cluster.start_query(0, ENDLESS_COUNT, options()).await.unwrap();
    let late = cluster.run_within(0, "SELECT count(*) FROM u", Duration::from_millis(100)).await;
    assert_eq!(late.end.unwrap_err().code(), ErrorCode::Overloaded);
    drop(running);
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_node_ends_its_queries_and_takes_no_more() {
    let cluster = endless().await;
    let options = || RunOptions::new(Duration::from_secs(60));
    let mut stream = cluster.start_query(0, ENDLESS_COUNT, options()).await.unwrap();
    working(&cluster).await;
    cluster.nodes[0].service.shutdown().await;
    assert_eq!(read(&mut stream).await.end.unwrap_err().code(), ErrorCode::NotReady);
    let refused = cluster.start_query(0, "SELECT 1", options()).await.err().unwrap();
    assert_eq!(refused.code(), ErrorCode::NotReady);
    // Others that ask it for tasks are told so, too, and go elsewhere.
    cluster.check(1, "SELECT count(*) FROM u").await;
    cluster.is_empty(&[]).await;
}

/// A node that goes in good order lets others' queries end first, and they do not start anything more there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_node_lets_queries_of_others_end() {
    let cluster = Cluster::start(QueryLimits::default()).await;
    cluster.world.misbehave_everywhere(&cluster.partitions("t"), Fault::Repeat(40));
    let options = RunOptions::new(Duration::from_secs(60));
    let mut stream = cluster.start_query(1, "SELECT count(*) FROM t", options).await.unwrap();
    working(&cluster).await;
    cluster.nodes[0].service.drain().await;
    cluster.nodes[0].service.shutdown().await;
    assert_eq!(read(&mut stream).await.end.unwrap().restarts, 0);
    cluster.check(1, "SELECT count(*) FROM u").await;
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_runs_out_is_a_typed_error() {
    let cluster = Cluster::start(QueryLimits { query_memory_bytes_max: 50_000, ..QueryLimits::default() }).await;
    let answer = cluster.run(0, "SELECT id, v, count(*) FROM t GROUP BY id, v").await;
    assert_eq!(answer.end.unwrap_err().code(), ErrorCode::OutOfMemory);
    cluster.is_empty(&[]).await;
    cluster.check(0, "SELECT count(*) FROM u").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_of_the_data_ends_the_query_at_once() {
    let cluster = Cluster::start(QueryLimits::default()).await;
    let answer = cluster.run(1, "SELECT sum(v / (id - 4711)) FROM t").await;
    assert_eq!(answer.end.unwrap_err().code(), ErrorCode::Evaluation);
    cluster.is_empty(&[]).await;
}
