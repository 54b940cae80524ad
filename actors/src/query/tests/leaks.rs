//! Two hundred queries, ended in every way at random moments, leave nothing behind.

use std::time::Duration;

use futures::future::join_all;

use super::cluster::{Cluster, Fault};
use crate::query::{QueryLimits, RunOptions};
use crate::service::QueryEvent;

const QUERIES: &[&str] = &[
    "SELECT * FROM t",
    "SELECT grp, count(*), sum(v) FROM t GROUP BY grp",
    "SELECT t.grp, count(*) FROM t JOIN u ON t.id = u.t_id GROUP BY t.grp",
    "SELECT a.grp, count(*) FROM t a JOIN t b ON a.v = b.v GROUP BY a.grp",
    "SELECT id, v FROM t ORDER BY v, id",
    "SELECT id FROM t LIMIT 5",
    "SELECT sum(v / (id - 4711)) FROM t",
];

/// Numbers that look random enough and are the same every time (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_queries_with_random_ends_leave_nothing() {
    let limits = QueryLimits { edge_window_bytes: 4 << 10, queries_max: 4, ..QueryLimits::default() };
    let cluster = Cluster::start(limits).await;
    let partitions = cluster.partitions("t");
    cluster.world.misbehave(partitions[0], cluster.nodes[0].id, Fault::Corrupt);
    let mut random = Numbers(7);
    for _ in 0..20 {
        let mut round = Vec::new();
        for _ in 0..10 {
            let node = random.below(3) as usize;
            let sql = QUERIES[random.below(QUERIES.len() as u64) as usize];
            let (end, events) = (random.below(4), random.below(6));
            let pause = Duration::from_micros(random.below(20_000));
            let timeout = if end == 0 { pause } else { Duration::from_secs(60) };
            round.push(one(&cluster, node, sql, RunOptions::new(timeout), end, events, pause));
        }
        join_all(round).await;
    }
    cluster.is_empty(&[]).await;
    // And everything still works.
    cluster.check(1, QUERIES[1]).await;
}

async fn one(cluster: &Cluster, node: usize, sql: &str, options: RunOptions, end: u64, events: u64, pause: Duration) {
    let mut stream = cluster.start_query(node, sql, options).await.unwrap();
    match end {
        // Leave at once, or after some events, or after a pause.
        1 => {
            for _ in 0..events {
                if stream.next().await.is_none() {
                    return;
                }
            }
        }
        2 => {
            cluster.env.sleep(pause).await;
            // It may have ended already.
            let _ = cluster.nodes[(node + 1) % 3].service.cancel(stream.id).await;
            let mut last = None;
            while let Some(event) = stream.next().await {
                last = Some(event);
            }
            assert!(matches!(last, Some(QueryEvent::End(_) | QueryEvent::Error(_))), "{last:?}");
        }
        _ => {
            let mut last = None;
            while let Some(event) = stream.next().await {
                last = Some(event);
            }
            assert!(matches!(last, Some(QueryEvent::End(_) | QueryEvent::Error(_))), "{last:?}");
        }
    }
}
