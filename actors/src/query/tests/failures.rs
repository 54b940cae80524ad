//! Lost nodes and broken replicas: never a wrong answer, never a silent part of one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use shoal_kernel::{ErrorCode, NodeId};

use super::cluster::{Cluster, Fault, read};
use crate::query::{QueryLimits, RunOptions};
use crate::service::QueryEvent;

const GROUPS: &str = "SELECT grp, count(*), sum(v) FROM t GROUP BY grp";

async fn cluster() -> Cluster {
    Cluster::start(QueryLimits::default()).await
}

/// The partitions of `t` that lie on the third node never end there, so that its tasks are at work when it dies.
fn third_node_never_ends(cluster: &Cluster) {
    for partition in cluster.partitions("t") {
        cluster.world.misbehave(partition, NodeId(3), Fault::Endless);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_lost_before_the_first_row_costs_time_only() {
    let cluster = cluster().await;
    third_node_never_ends(&cluster);
    let mut stream = cluster.start_query(0, GROUPS, RunOptions::new(Duration::from_secs(30))).await.unwrap();
    while cluster.world.batches.load(Ordering::Relaxed) < 500 {
        cluster.env.sleep(Duration::from_millis(2)).await;
    }
    cluster.kill(2).await;
    let answer = read(&mut stream).await;
    let summary = answer.end.unwrap();
    assert!(summary.restarts >= 1, "{summary:?}");
    assert_eq!(summary.rows, 8);
    // Later queries are right at once.
    for node in [0, 1] {
        assert_eq!(cluster.check(node, GROUPS).await.restarts, 0);
    }
    // The lost node's own share ends when it hears that its coordinator is gone for it.
    cluster.nodes[2].service.node_down(NodeId(1));
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_lost_after_the_first_row_is_one_typed_error() {
    let cluster = cluster().await;
    third_node_never_ends(&cluster);
    let mut stream =
        cluster.start_query(0, "SELECT id FROM t", RunOptions::new(Duration::from_secs(30))).await.unwrap();
    loop {
        match stream.next().await.unwrap() {
            QueryEvent::Batch(_) => break,
            QueryEvent::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
    cluster.kill(2).await;
    let error = loop {
        match stream.next().await.unwrap() {
            QueryEvent::Error(error) => break error,
            QueryEvent::End(summary) => panic!("a part of the answer passed for the whole: {summary:?}"),
            _ => {}
        }
    };
    assert_eq!(error.code(), ErrorCode::NodeLost);
    assert!(error.retryable());
    assert!(stream.next().await.is_none());
    cluster.nodes[2].service.node_down(NodeId(1));
    cluster.is_empty(&[]).await;
}

/// The node has died, nobody has noticed yet, and queries go on meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_that_is_still_believed_in_is_passed_over() {
    let cluster = cluster().await;
    cluster.nodes[2].transport.shutdown().await;
    for _ in 0..5 {
        let summary = cluster.check(0, GROUPS).await;
        assert_eq!(summary.restarts, 1, "{summary:?}");
    }
    cluster.is_empty(&[]).await;
}

/// Nobody is asked twice: it has not answered others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspected_node_is_not_asked_if_others_can_serve() {
    let cluster = cluster().await;
    cluster.nodes[2].transport.shutdown().await;
    cluster.world.suspect(NodeId(3));
    for _ in 0..5 {
        assert_eq!(cluster.check(0, GROUPS).await.restarts, 0);
    }
    // If all are suspected, they are asked all the same.
    cluster.world.suspect(NodeId(1));
    cluster.world.suspect(NodeId(2));
    assert!(cluster.run(1, GROUPS).await.end.is_ok());
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn membership_ends_what_connections_do_not_notice() {
    let cluster = cluster().await;
    third_node_never_ends(&cluster);
    let mut stream = cluster.start_query(0, GROUPS, RunOptions::new(Duration::from_secs(30))).await.unwrap();
    while cluster.world.batches.load(Ordering::Relaxed) < 500 {
        cluster.env.sleep(Duration::from_millis(2)).await;
    }
    cluster.world.down(NodeId(3));
    for node in &cluster.nodes {
        node.service.node_down(NodeId(3));
    }
    assert!(read(&mut stream).await.end.unwrap().restarts >= 1);
    cluster.is_empty(&[]).await;
}

/// A node that is only suspected loses the queries that can be begun anew at little cost, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_begins_anew_when_a_node_falls_silent() {
    let cluster = cluster().await;
    third_node_never_ends(&cluster);
    let options = || RunOptions::new(Duration::from_secs(30));
    let mut counting = cluster.start_query(0, GROUPS, options()).await.unwrap();
    let mut reading = cluster.start_query(0, "SELECT id FROM t", options()).await.unwrap();
    while !matches!(reading.next().await, Some(QueryEvent::Batch(_))) {}
    cluster.world.suspect(NodeId(3));
    cluster.nodes[0].service.node_silent(NodeId(3));
    assert!(read(&mut counting).await.end.unwrap().restarts >= 1);
    // Rows of this one have left: it goes on where it is.
    while !matches!(reading.next().await, Some(QueryEvent::Batch(_))) {}
    drop(reading);
    cluster.is_empty(&[]).await;
}

/// Membership has noticed nothing yet. The first query finds out, and the next ones know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_answers_nothing_is_found_out() {
    let cluster = cluster().await;
    // A socket that takes connections, of which nobody reads.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    cluster.nodes[0].transport.set_address(NodeId(3), deaf.local_addr().unwrap());
    assert!(cluster.check(0, GROUPS).await.restarts >= 1);
    assert_eq!(cluster.check(0, GROUPS).await.restarts, 0);
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_replicas_are_passed_over() {
    for fault in [Fault::Missing, Fault::Corrupt] {
        let cluster = cluster().await;
        // One replica of every partition is broken: those on odd places.
        for partition in cluster.partitions("t") {
            let node = NodeId(((partition.0 - 100) % 3) as u32 + 1);
            cluster.world.misbehave(partition, node, fault);
        }
        let mut restarts = 0;
        for sql in [GROUPS, "SELECT id, v FROM t ORDER BY v DESC, id LIMIT 20"] {
            for node in 0..3 {
                restarts += cluster.check(node, sql).await.restarts;
            }
        }
        assert!(restarts >= 2, "{fault:?}: nobody met a broken replica");
        cluster.is_empty(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_without_replica_is_an_error_and_not_empty() {
    let cluster = cluster().await;
    let partition = cluster.partitions("t")[1];
    cluster.world.misbehave_everywhere(&[partition], Fault::Missing);
    let error = cluster.run(0, "SELECT count(*) FROM t").await.end.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PartitionUnavailable);
    cluster.check(0, "SELECT count(*) FROM u").await;
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_broken_everywhere_is_corruption() {
    let cluster = cluster().await;
    cluster.world.misbehave_everywhere(&cluster.partitions("t"), Fault::Corrupt);
    let error = cluster.run(0, "SELECT count(v) FROM t").await.end.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Corruption);
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_scan_costs_its_query() {
    let cluster = cluster().await;
    cluster.world.misbehave_everywhere(&cluster.partitions("t"), Fault::Panics);
    let error = cluster.run(0, "SELECT count(v) FROM t").await.end.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Internal);
    cluster.is_empty(&[]).await;
    cluster.check(0, "SELECT count(*) FROM u").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_a_dead_coordinator_end() {
    let cluster = cluster().await;
    cluster.world.misbehave_everywhere(&cluster.partitions("t"), Fault::Endless);
    let stream = cluster.start_query(0, GROUPS, RunOptions::new(Duration::from_secs(60))).await.unwrap();
    while cluster.world.batches.load(Ordering::Relaxed) < 500 {
        cluster.env.sleep(Duration::from_millis(2)).await;
    }
    cluster.kill(0).await;
    for node in [1, 2] {
        cluster.nodes[node].service.node_down(NodeId(1));
    }
    cluster.is_empty(&[0]).await;
    drop(stream);
    cluster.is_empty(&[]).await;
}

/// Nobody says that the coordinator is gone: its tasks elsewhere find out by asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_a_silent_coordinator_end() {
    let cluster = cluster().await;
    cluster.world.misbehave_everywhere(&cluster.partitions("t"), Fault::Endless);
    let stream = cluster.start_query(0, GROUPS, RunOptions::new(Duration::from_secs(60))).await.unwrap();
    while cluster.world.batches.load(Ordering::Relaxed) < 500 {
        cluster.env.sleep(Duration::from_millis(2)).await;
    }
    cluster.nodes[0].transport.shutdown().await;
    cluster.is_empty(&[0]).await;
    drop(stream);
    cluster.is_empty(&[]).await;
}
