//! What disks and processes do to a cluster, over real files and sockets: a flipped byte, a full disk, a node that dies
//! without a word, a second start on one directory. Each node has a runtime of its own, so that one can die alone.
#![allow(clippy::disallowed_methods, reason = "a test owns its runtimes, its files and its ports")]
#![allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]

mod common;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use shoal_actors::Node;
use shoal_actors::service::{ClusterStatus, NodeConfig, PartitionStatus, SqlRequest, WriteReport, WriteRequest};
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{Applied, Error, ErrorCode, LogId, PartitionId, Result, WriteLevel};
use tokio::runtime::{Builder, Runtime};

use common::{PATIENCE, eventually, free_address};

const ROWS: i64 = 20_000;
/// Behind the header: in the first page, which holds keys.
const IN_THE_FIRST_PAGE: i64 = 48;
/// Before the trailer: in the footer.
const IN_THE_FOOTER: i64 = -40;

/// One node in a runtime of its own.
struct Host {
    config: NodeConfig,
    life: Option<(Runtime, Node)>,
}

impl Host {
    async fn start(config: NodeConfig) -> Result<Self> {
        let mut host = Self { config, life: None };
        host.start_again().await?;
        Ok(host)
    }

    async fn start_again(&mut self) -> Result<()> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let config = self.config.clone();
        let started = runtime.spawn(async move { Node::start(env(&RealOptions::default())?, config).await });
        match started.await.unwrap() {
            Ok(node) => {
                self.life = Some((runtime, node));
                Ok(())
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    async fn ready(&self) {
        eventually("the node is ready", || async { self.node().ready() }).await;
    }

    fn node(&self) -> &Node {
        &self.life.as_ref().unwrap().1
    }

    async fn run<F: Future<Output: Send> + Send + 'static>(&self, work: impl FnOnce(Node) -> F) -> F::Output {
        let (runtime, node) = self.life.as_ref().unwrap();
        runtime.spawn(work(node.clone())).await.unwrap()
    }

    async fn sql(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        let request = SqlRequest::new(sql);
        Ok(self.run(|node| async move { node.sql(request).await?.collect().await }).await?.1)
    }

    async fn numbers(&self, sql: &str) -> Result<Vec<i64>> {
        let batches = self.sql(sql).await?;
        let rows = batches.iter().filter(|batch| batch.num_rows() > 0);
        let values = rows.flat_map(|batch| batch.columns()).map(|column| column.as_primitive::<Int64Type>().value(0));
        Ok(values.collect())
    }

    async fn write(&self, rows: RecordBatch, level: WriteLevel) -> Result<WriteReport> {
        let timeout = Some(Duration::from_secs(20));
        let request = WriteRequest { table: "t".into(), batches: vec![rows], level: Some(level), token: None, timeout };
        self.run(|node| async move { node.write(request).await }).await
    }

    async fn status(&self) -> ClusterStatus {
        self.run(|node| async move { node.cluster_by_content().await }).await
    }

    async fn stop(&mut self) {
        self.run(|node| async move { node.shutdown().await }).await;
        self.kill();
    }

    /// Drops everything that the node is, wherever it stands.
    fn kill(&mut self) {
        if let Some((runtime, node)) = self.life.take() {
            runtime.shutdown_background();
            drop(node);
        }
    }

    /// Starts on the directory of a life that was killed, once its lock and its ports have gone with it.
    async fn revive(&mut self) {
        // Work that had reached a thread for files ends there, where a killed process would have lost the thread too.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let until = Instant::now() + PATIENCE;
        while let Err(error) = self.start_again().await {
            assert!(matches!(error.code(), ErrorCode::Forbidden | ErrorCode::Io), "{error}");
            assert!(Instant::now() < until, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.ready().await;
    }

    /// Files of segments of a partition here, in order.
    fn segments(&self, partition: PartitionId) -> Vec<PathBuf> {
        let dir = self.config.data_dir.join("replicas").join(partition.to_string());
        let entries = std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path());
        let mut segments: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "seg")).collect();
        segments.sort();
        segments
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn hosts(dir: &Path, count: usize) -> Vec<Host> {
    let mut hosts: Vec<Host> = Vec::new();
    for number in 0..count {
        let mut config = NodeConfig::new(dir.join(format!("n{number}")), free_address(), free_address());
        config.memtable_bytes_max = 64 << 10;
        config.disk_reserve_bytes = 0;
        config.join = hosts.iter().map(|host| host.config.cluster_address).collect();
        let host = Host::start(config).await.unwrap();
        host.ready().await;
        hosts.push(host);
    }
    hosts
}

fn rows(ids: impl Iterator<Item = i64> + Clone, value: impl Fn(i64) -> i64) -> RecordBatch {
    let names: StringArray = ids.clone().map(|id| Some(format!("name {}", id % 977))).collect();
    let values: Int64Array = ids.clone().map(value).collect();
    RecordBatch::try_from_iter([
        ("id", Arc::new(ids.collect::<Int64Array>()) as _),
        ("name", Arc::new(names) as _),
        ("v", Arc::new(values) as _),
    ])
    .unwrap()
}

async fn create(host: &Host, spread: &str) {
    let columns = "id BIGINT NOT NULL, name VARCHAR, v BIGINT, PRIMARY KEY (id)";
    host.sql(&format!("CREATE TABLE t ({columns}) PARTITION BY {spread}")).await.unwrap();
}

/// Writes all rows, and waits until they lie in segments.
async fn load(hosts: &[Host]) {
    for half in [0..ROWS / 2, ROWS / 2..ROWS] {
        hosts[0].write(rows(half, |id| 3 * id), WriteLevel::All).await.unwrap();
    }
    settled(hosts).await;
    hosts[0].sql("FLUSH").await.unwrap();
}

/// Waits until every replica of every partition serves, lacks nothing, and holds the same rows.
async fn settled(hosts: &[Host]) -> Vec<PartitionStatus> {
    eventually("all replicas are equal", || async {
        let mut seen = Vec::new();
        for host in hosts {
            let partitions = host.status().await.partitions;
            for partition in &partitions {
                let first = &partition.replicas[0];
                let same = partition.replicas.iter().all(|replica| {
                    replica.lag == Some(0)
                        && replica.problem.is_none()
                        && replica.digest.is_some()
                        && (&replica.digest, replica.rows) == (&first.digest, first.rows)
                });
                if !same || partition.replicas.len() != hosts.len() {
                    return Err(Error::internal(format!("{partition:?}")));
                }
            }
            seen = partitions;
        }
        if seen.is_empty() { Err(Error::internal("no partition is known yet")) } else { Ok(seen) }
    })
    .await
}

/// No statistics tell it: the rows have to be read.
const EVERYTHING: &str = "SELECT count(*), sum(abs(id)), sum(v), count(name) FROM t";

fn everything(from: i64, to: i64) -> Vec<i64> {
    let sum: i64 = (from..to).sum();
    vec![to - from, sum, 3 * sum, to - from]
}

/// Flips a bit; counts from the end if negative.
fn flip(file: &Path, at: i64) {
    let mut bytes = std::fs::read(file).unwrap();
    let at = usize::try_from(if at < 0 { bytes.len() as i64 + at } else { at }).unwrap();
    bytes[at] ^= 0x10;
    // In place: the node has the file open.
    use std::os::unix::fs::FileExt;
    std::fs::OpenOptions::new().write(true).open(file).unwrap().write_all_at(&bytes[at..=at], at as u64).unwrap();
}

fn log_of(partitions: &[PartitionStatus], id: PartitionId, host: &Host) -> Option<LogId> {
    let partition = partitions.iter().find(|partition| partition.id == id)?;
    partition.replicas.iter().find(|replica| replica.node == host.node().id())?.log_id
}

/// What the replica held was given up if its log has begun anew.
async fn refilled(hosts: &[Host], victim: usize, before: &[PartitionStatus], damaged: PartitionId) {
    let old = log_of(before, damaged, &hosts[victim]);
    assert!(old.is_some());
    eventually("the damage is found", || async {
        let partitions = hosts[victim].status().await.partitions;
        match log_of(&partitions, damaged, &hosts[victim]) {
            Some(new) if Some(new) != old => Ok(()),
            log => Err(Error::internal(format!("the log is {log:?}"))),
        }
    })
    .await;
    let after = settled(hosts).await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.replicas[0].digest, after.replicas[0].digest);
    }
    for host in hosts {
        assert_eq!(host.numbers(EVERYTHING).await.unwrap(), everything(0, ROWS));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_costs_one_of_three_replicas_and_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut hosts = hosts(dir.path(), 3).await;
    create(&hosts[0], "HASH (id) PARTITIONS 2").await;
    load(&hosts).await;

    // Under a running node: queries go to its own replica first, and must be right all the while.
    let before = settled(&hosts).await;
    let damaged = before[0].id;
    flip(&hosts[1].segments(damaged)[0], IN_THE_FIRST_PAGE);
    let old = log_of(&before, damaged, &hosts[1]);
    let until = Instant::now() + PATIENCE;
    loop {
        for host in &hosts {
            assert_eq!(host.numbers(EVERYTHING).await.unwrap(), everything(0, ROWS));
        }
        let log = log_of(&hosts[1].status().await.partitions, damaged, &hosts[1]);
        if log.is_some() && log != old {
            break;
        }
        assert!(Instant::now() < until, "nobody has noticed");
    }
    refilled(&hosts, 1, &before, damaged).await;

    // While the node is away: a page, which nobody reads at the start, then a footer, which everybody does.
    for (victim, partition, at) in [(2, 0, IN_THE_FIRST_PAGE), (0, 1, IN_THE_FOOTER)] {
        let before = settled(&hosts).await;
        let damaged = before[partition].id;
        hosts[0].sql("FLUSH").await.unwrap();
        hosts[victim].stop().await;
        flip(&hosts[victim].segments(damaged)[0], at);
        hosts[victim].revive().await;
        // A write meets the damage where it looks for the rows that it replaces; two replicas take it.
        let again = hosts[victim].write(rows(0..1000, |id| 3 * id), WriteLevel::Quorum).await.unwrap();
        assert_eq!(again.rows, 1000);
        let old = log_of(&before, damaged, &hosts[victim]);
        let now = settled(&hosts).await;
        assert_ne!(log_of(&now, damaged, &hosts[victim]), old, "the replica was not emptied");
        for host in &hosts {
            assert_eq!(host.numbers(EVERYTHING).await.unwrap(), everything(0, ROWS));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_only_replica_is_said_and_nothing_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let mut hosts = hosts(dir.path(), 1).await;
    create(&hosts[0], &format!("RANGE (id) SPLIT AT ({})", ROWS / 2)).await;
    load(&hosts).await;
    let damaged = settled(&hosts).await[0].id;
    let file = hosts[0].segments(damaged)[0].clone();
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    flip(&file, IN_THE_FIRST_PAGE);
    let bytes = std::fs::read(&file).unwrap();

    let sound = format!("{EVERYTHING} WHERE id >= {} AND id < {ROWS}", ROWS / 2);
    let check = async |host: &Host, bytes: &[u8]| {
        for _ in 0..3 {
            let error = host.numbers(EVERYTHING).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::Corruption, "{error}");
            assert!(error.message().contains(&name), "{error}");
            assert_eq!(host.numbers(&sound).await.unwrap(), everything(ROWS / 2, ROWS));
        }
        let partition = host.status().await.partitions.swap_remove(0);
        let problem = partition.replicas[0].problem.clone().unwrap_or_default();
        assert!(problem.contains(&name), "{partition:?}");
        host.write(rows(ROWS..ROWS + 10, |_| i64::from(u32::MAX)), WriteLevel::All).await.unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "what can still be read must stay");
    };
    let sum: i64 = (0..ROWS).sum();
    check(&hosts[0], &bytes).await;
    // Other columns of the damaged page are sound.
    assert_eq!(hosts[0].numbers("SELECT sum(v) FROM t WHERE v < 60000").await.unwrap(), [3 * sum]);

    hosts[0].stop().await;
    flip(&file, IN_THE_FOOTER);
    let bytes = std::fs::read(&file).unwrap();
    hosts[0].revive().await;
    eventually("the sound partition serves", || async { hosts[0].numbers(&sound).await.map(drop) }).await;
    eventually("the damaged one has been opened", || async {
        match hosts[0].numbers(EVERYTHING).await {
            Err(error) if error.code() == ErrorCode::Corruption => Ok(()),
            other => Err(Error::internal(format!("{other:?}"))),
        }
    })
    .await;
    check(&hosts[0], &bytes).await;
}

async fn a_full_disk(count: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut hosts = hosts(dir.path(), count).await;
    create(&hosts[0], "HASH (id) PARTITIONS 2").await;
    load(&hosts).await;
    let before = settled(&hosts).await;
    for reserve in [u64::MAX / 2, 0] {
        for host in &mut hosts {
            host.stop().await;
            host.config.disk_reserve_bytes = reserve;
        }
        for host in &mut hosts {
            host.start_again().await.unwrap();
        }
        for host in &hosts {
            host.ready().await;
        }
        let after = settled(&hosts).await;
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.replicas[0].digest, after.replicas[0].digest);
        }
        for host in &hosts {
            let written = host.write(rows(ROWS..ROWS + 100, |id| id), WriteLevel::Quorum).await;
            if reserve == 0 {
                assert_eq!(written.unwrap().rows, 100);
            } else {
                let error = written.unwrap_err();
                assert_eq!((error.code(), error.code().http_status()), (ErrorCode::DiskFull, 507), "{error}");
                // Of several, the last may still be on its way when the others have decided it.
                assert!(error.applied() == Applied::False || count > 1, "{error}");
                assert!(error.message().contains("disk_reserve_bytes") && error.retryable(), "{error}");
            }
            let expected = if reserve == 0 { ROWS + 100 } else { ROWS };
            let count = eventually("a read sees the write", || async {
                match host.numbers("SELECT count(*) FROM t").await? {
                    count if count == [expected] => Ok(count),
                    // A read at level one may be behind.
                    count => Err(Error::internal(format!("{count:?} rows"))),
                }
            });
            assert_eq!(count.await, [expected]);
            let old = format!("{EVERYTHING} WHERE id < {ROWS}");
            assert_eq!(host.numbers(&old).await.unwrap(), everything(0, ROWS));
        }
    }
    settled(&hosts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_goes_on_reading() {
    a_full_disk(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disks_everywhere_are_called_that() {
    a_full_disk(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_nodes_that_die_without_a_word() {
    const WRITERS: i64 = 8;
    const KEYS: i64 = 40;
    let dir = tempfile::tempdir().unwrap();
    let mut hosts = hosts(dir.path(), 3).await;
    create(&hosts[0], "HASH (id) PARTITIONS 2").await;
    settled(&hosts).await;

    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    // Of each key, the last value acknowledged and the last one tried: a failed write may appear later.
    let history = Arc::new(Mutex::new(BTreeMap::<i64, (i64, i64)>::new()));
    let (runtime, node) = hosts[1].life.as_ref().unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (node, stop, acknowledged, history) =
                (node.clone(), stop.clone(), acknowledged.clone(), history.clone());
            runtime.spawn(async move {
                let mut value = 0;
                while !stop.load(Ordering::Relaxed) {
                    value += 1;
                    let id = writer * KEYS + value % KEYS;
                    history.lock().unwrap().entry(id).or_default().1 = value;
                    let request = WriteRequest {
                        table: "t".into(),
                        batches: vec![rows(std::iter::once(id), |_| value)],
                        level: Some(WriteLevel::Quorum),
                        token: None,
                        timeout: Some(Duration::from_secs(10)),
                    };
                    match node.write(request).await {
                        Ok(_) => {
                            history.lock().unwrap().entry(id).or_default().0 = value;
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => assert!(error.retryable(), "{error}"),
                    }
                }
            })
        })
        .collect();
    let more = async |count: u64| {
        let wanted = acknowledged.load(Ordering::Relaxed) + count;
        eventually("writes go on", || async {
            let now = acknowledged.load(Ordering::Relaxed);
            if now >= wanted { Ok(()) } else { Err(Error::internal(format!("{now} of {wanted}"))) }
        })
        .await;
    };
    // One that follows, then the one that has founded the cluster.
    for victim in [2, 0] {
        more(200).await;
        hosts[victim].kill();
        more(200).await;
        hosts[victim].revive().await;
    }
    more(200).await;
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    settled(&hosts).await;

    let history = history.lock().unwrap().clone();
    for host in &hosts {
        let batches = host.sql("SELECT id, v FROM t").await.unwrap();
        let mut found = BTreeMap::new();
        for batch in &batches {
            let column = |at: usize| batch.column(at).as_primitive::<Int64Type>().values().to_vec();
            found.extend(column(0).into_iter().zip(column(1)));
        }
        for (id, (sure, tried)) in &history {
            let value = found.remove(id).unwrap_or_default();
            assert!((*sure..=*tried).contains(&value), "{id} is {value}, not from {sure} to {tried}");
        }
        assert!(found.is_empty(), "rows that nobody wrote: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_on_one_directory_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut hosts = hosts(dir.path(), 1).await;
    create(&hosts[0], "HASH (id) PARTITIONS 2").await;
    let data_dir = hosts[0].config.data_dir.clone();
    let error = Host::start(NodeConfig::new(&data_dir, free_address(), free_address())).await.err().unwrap();
    assert_eq!(error.code(), ErrorCode::Forbidden);
    assert!(error.message().contains(&data_dir.display().to_string()) && error.help().is_some(), "{error}");

    hosts[0].write(rows(0..10, |id| id), WriteLevel::All).await.unwrap();
    hosts[0].stop().await;
    hosts[0].start_again().await.unwrap();
    hosts[0].ready().await;
    settled(&hosts).await;
    assert_eq!(hosts[0].numbers("SELECT count(*) FROM t").await.unwrap(), [10]);
}

/// Waits until every replica has so many segments on its disk: files go once nobody reads them.
async fn have_segments(hosts: &[Host], wanted: usize) {
    let partitions = settled(hosts).await;
    eventually("segments are as many as wanted", || async {
        let mut counts = Vec::new();
        for partition in &partitions {
            counts.extend(hosts.iter().map(|host| host.segments(partition.id).len()));
        }
        if counts == vec![wanted; 6] { Ok(()) } else { Err(Error::internal(format!("{counts:?}"))) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upkeep_reaches_every_replica_or_names_it_and_what_was_deleted_stays_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut hosts = hosts(dir.path(), 3).await;
    create(&hosts[0], "HASH (id) PARTITIONS 2").await;
    for round in 0..3 {
        hosts[round].write(rows(0..100, |id| id + round as i64), WriteLevel::All).await.unwrap();
        hosts[0].sql("FLUSH").await.unwrap();
    }
    // Each flush has made one of each replica.
    have_segments(&hosts, 3).await;
    hosts[1].sql("OPTIMIZE TABLE t").await.unwrap();
    have_segments(&hosts, 1).await;

    // A key would promise what these cannot keep.
    for sql in ["DELETE FROM t WHERE id < 10", "UPDATE t SET v = 0"] {
        let request = SqlRequest { token: Some("once".into()), ..SqlRequest::new(sql) };
        let refused = hosts[0].run(|node| async move { node.sql(request).await.map(drop) }).await.unwrap_err();
        assert_eq!((refused.code(), refused.applied()), (ErrorCode::Unsupported, Applied::False));
        assert!(refused.help().is_some());
    }

    let away = hosts[2].node().id();
    hosts[2].kill();
    let error = hosts[0].sql("FLUSH TABLE t").await.unwrap_err();
    assert_eq!((error.code(), error.applied()), (ErrorCode::NotEnoughReplicas, Applied::Unknown));
    assert!(error.message().contains("2 of 6 replicas") && error.message().contains(&format!("on {away}")), "{error}");
    assert!(!error.message().contains(&format!("on {}", hosts[1].node().id())), "{error}");
    let alone = |level, sql: &str| SqlRequest { write_level: Some(level), ..SqlRequest::new(sql) };
    let request = alone(WriteLevel::All, "DELETE FROM t WHERE id >= 90");
    let error = hosts[1].run(|node| async move { node.sql(request).await.map(drop) }).await.unwrap_err();
    assert_eq!((error.code(), error.applied()), (ErrorCode::NotEnoughReplicas, Applied::Unknown));
    hosts[1].sql("DELETE FROM t WHERE id < 50 OR id >= 90").await.unwrap();
    hosts[0].sql("UPDATE t SET v = -1 WHERE id = 50").await.unwrap();
    for host in &hosts[..2] {
        eventually("the rows are gone", || async {
            match host.numbers("SELECT count(*), min(id), min(v) FROM t").await?[..] {
                [40, 50, -1] => Ok(()),
                ref other => Err(Error::internal(format!("{other:?}"))),
            }
        })
        .await;
    }
    // Without the dead rows, and with the tombstones that the one who is away has not seen.
    for host in &hosts[..2] {
        let _ = host.sql("OPTIMIZE TABLE t").await.unwrap_err();
    }
    hosts[2].revive().await;
    settled(&hosts).await;
    for host in &hosts {
        assert_eq!(host.numbers("SELECT count(*), min(id), min(v) FROM t").await.unwrap(), [40, 50, -1]);
    }
    hosts[2].sql("OPTIMIZE TABLE t").await.unwrap();
    have_segments(&hosts, 1).await;
    for host in &hosts {
        assert_eq!(host.numbers("SELECT count(*), min(id), min(v) FROM t").await.unwrap(), [40, 50, -1]);
    }
}
