//! Answers are those of a plain DataFusion over the same rows, whichever node is asked.

use std::time::Duration;

use super::cluster::{Cluster, Fault, read};
use crate::query::{QueryLimits, RunOptions};
use crate::service::QueryEvent;

const QUERIES: &[&str] = &[
    "SELECT count(*) FROM t",
    "SELECT * FROM t WHERE id = 4711",
    "SELECT id, v FROM t WHERE v > 950 AND grp IS NOT NULL",
    "SELECT grp, count(*), sum(v), min(id), max(v), avg(v) FROM t GROUP BY grp",
    "SELECT grp, v % 10, count(distinct id) FROM t GROUP BY grp, v % 10",
    "SELECT id, v FROM t ORDER BY v DESC, id LIMIT 17",
    "SELECT id FROM t ORDER BY id LIMIT 10 OFFSET 995",
    "SELECT t.grp, count(*), sum(u.w) FROM t JOIN u ON t.id = u.t_id GROUP BY t.grp",
    "SELECT u.id, t.grp FROM u LEFT JOIN t ON t.id = u.t_id AND t.v > 500 ORDER BY u.id",
    "SELECT count(*) FROM t WHERE id IN (SELECT t_id FROM u WHERE w > 25)",
    "SELECT count(*) FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.t_id = t.id)",
    "SELECT a.grp, count(*) FROM t a JOIN t b ON a.v = b.v AND a.id < b.id GROUP BY a.grp",
    "SELECT a.id, b.id FROM t a JOIN t b ON a.id = b.id + 1 WHERE a.v = 37 ORDER BY a.id",
    "SELECT id, w, rank() OVER (PARTITION BY w ORDER BY id) FROM u ORDER BY id",
    "SELECT w FROM u WHERE id < 20 UNION ALL SELECT v FROM t WHERE id < 20",
    "SELECT DISTINCT w % 7 FROM u",
    "WITH big AS (SELECT grp, sum(v) s FROM t GROUP BY grp) SELECT x.grp, y.s FROM big x JOIN big y ON x.s <= y.s",
    "SELECT count(*) FROM u a, u b WHERE a.w = b.w",
    "SELECT 1 + 1",
    "SELECT id FROM t WHERE id < 0",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_gives_the_answer_of_one_machine() {
    let cluster = Cluster::start(QueryLimits::default()).await;
    for (number, sql) in QUERIES.iter().enumerate() {
        cluster.check(number % cluster.nodes.len(), sql).await;
    }
    cluster.is_empty(&[]).await;
}

/// Every slot's window is smaller than any batch: whatever can wait for something else does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_windows_change_no_answer_and_hang_nothing() {
    let limits = QueryLimits { edge_window_bytes: 64, ..QueryLimits::default() };
    let cluster = Cluster::start(limits).await;
    for (number, sql) in QUERIES.iter().enumerate() {
        cluster.check((number + 1) % cluster.nodes.len(), sql).await;
    }
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_query_reads_a_partition_twice_at_one_snapshot() {
    let cluster = Cluster::start(QueryLimits::default()).await;
    // Held open by a client that does not read yet.
    let sql = "SELECT a.id FROM u a JOIN u b ON a.id = b.id";
    cluster.world.misbehave_everywhere(&cluster.partitions("u"), Fault::Repeat(3));
    let mut stream = cluster.start_query(0, sql, RunOptions::new(Duration::from_secs(30))).await.unwrap();
    loop {
        if let Some(QueryEvent::Batch(_)) = stream.next().await {
            break;
        }
    }
    assert!(cluster.world.snapshots() <= cluster.partitions("u").len());
    read_rest(&mut stream).await;
    cluster.is_empty(&[]).await;
}

async fn read_rest(stream: &mut crate::service::QueryStream) {
    while let Some(event) = stream.next().await {
        if let QueryEvent::Error(error) = event {
            panic!("{error}");
        }
    }
}

/// 100 MB pass through a client that takes its time, and the nodes hold windows of it, never the whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_costs_bounded_memory() {
    let cluster = Cluster::start(QueryLimits { edge_window_bytes: 1 << 20, ..QueryLimits::default() }).await;
    let partitions = cluster.partitions("u");
    let times = 5_000;
    cluster.world.misbehave_everywhere(&partitions, Fault::Repeat(times));
    let sql = "SELECT id, t_id, w, id + 1 FROM u";
    let mut stream = cluster.start_query(1, sql, RunOptions::new(Duration::from_secs(120))).await.unwrap();
    let (mut rows, mut bytes, mut held_max) = (0, 0, 0);
    let mut last_pause = 0;
    loop {
        match stream.next().await.unwrap() {
            QueryEvent::Batch(batch) => {
                rows += batch.num_rows();
                bytes += batch.get_array_memory_size();
                if bytes > last_pause + (16 << 20) {
                    last_pause = bytes;
                    cluster.env.sleep(Duration::from_millis(50)).await;
                }
                let held: usize = cluster.nodes.iter().map(|node| node.service.stats().memory_bytes).sum();
                held_max = held_max.max(held);
            }
            QueryEvent::End(summary) => break assert_eq!(summary.rows as usize, rows),
            QueryEvent::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
    assert_eq!(rows, 900 * times);
    assert!(bytes > 100 << 20, "{bytes} bytes");
    assert!(held_max < 16 << 20, "{held_max} bytes were held");
    cluster.is_empty(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_analyze_tells_what_ran_where() {
    let cluster = Cluster::start(QueryLimits::default()).await;
    let options = RunOptions { analyze: true, ..RunOptions::new(Duration::from_secs(30)) };
    let sql = "SELECT grp, count(*) FROM t GROUP BY grp";
    let mut stream = cluster.start_query(0, sql, options).await.unwrap();
    let answer = read(&mut stream).await;
    answer.end.unwrap();
    let text = arrow::util::pretty::pretty_format_batches(&answer.batches).unwrap().to_string();
    assert!(text.contains("8 rows in"), "{text}");
    assert!(text.contains("6000 rows and"), "{text}");
    for node in ["on n1", "on n2", "on n3"] {
        assert!(text.contains(node), "{text}");
    }
    assert!(!text.contains("no report"), "{text}");
    cluster.is_empty(&[]).await;
}
