//! Backups to a store of objects that fails, and of tables that are written meanwhile: nodes in this process, and the store in its memory.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use shoal_actors::service::{NodeConfig, SqlRequest};
use shoal_actors::{Node, ObjectOptions, ObjectStores};
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::{ErrorCode, Result, WriteLevel};

use crate::cluster::cluster_port;

/// Keeps objects, and fails from some operation on.
#[derive(Debug, Clone, Default)]
struct Failing {
    objects: Arc<InMemory>,
    operations: Arc<AtomicU64>,
    /// The first that fails; 0 for none.
    fails_at: Arc<AtomicU64>,
}

impl Failing {
    fn step(&self) -> object_store::Result<()> {
        let number = self.operations.fetch_add(1, Ordering::SeqCst) + 1;
        let fails_at = self.fails_at.load(Ordering::SeqCst);
        match fails_at > 0 && number >= fails_at {
            true => Err(object_store::Error::Generic { store: "failing", source: "it fails".into() }),
            false => Ok(()),
        }
    }

    fn fail_at(&self, operation: u64) {
        self.operations.store(0, Ordering::SeqCst);
        self.fails_at.store(operation, Ordering::SeqCst);
    }

    async fn names(&self) -> Vec<String> {
        self.objects.list(None).map(|found| found.unwrap().location.to_string()).collect().await
    }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failing")
    }
}

impl ObjectStores for Failing {
    fn open(&self, _url: &str, _options: &ObjectOptions) -> Result<(Arc<dyn ObjectStore>, Path)> {
        Ok((Arc::new(self.clone()), Path::from("here")))
    }
}

#[async_trait]
impl ObjectStore for Failing {
    async fn put_opts(&self, at: &Path, payload: PutPayload, opts: PutOptions) -> object_store::Result<PutResult> {
        self.step()?;
        self.objects.put_opts(at, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.step()?;
        self.objects.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.step()?;
        self.objects.get_opts(at, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.step() {
            Ok(()) => self.objects.list(prefix),
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

async fn cluster(dir: &FilePath, count: usize, store: &Failing) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..count {
        nodes.push(one_more(dir, &nodes, store).await);
    }
    nodes
}

async fn one_more(dir: &FilePath, nodes: &[Node], store: &Failing) -> Node {
    let (address, http) = (cluster_port().parse().unwrap(), cluster_port().parse().unwrap());
    let mut config = NodeConfig::new(dir.join(format!("n{}", nodes.len())), address, http);
    config.disk_reserve_bytes = 0;
    config.join = nodes.iter().map(Node::cluster_address).collect();
    config.object_stores = Some(Arc::new(store.clone()));
    let node = Node::start(env(&RealOptions::default()).unwrap(), config).await.unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while let Err(error) = node.ready() {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node
}

async fn run(node: &Node, sql: &str) -> Result<Vec<arrow::array::RecordBatch>> {
    let request = SqlRequest { write_level: Some(WriteLevel::Quorum), ..SqlRequest::new(sql) };
    Ok(node.sql(request).await?.collect().await?.1)
}

async fn keys(node: &Node, table: &str) -> BTreeSet<i64> {
    // A partition that is split while it is read ends the query.
    let until = Instant::now() + Duration::from_secs(60);
    let batches = loop {
        match run(node, &format!("SELECT k FROM {table}")).await {
            Err(error) if error.retryable() && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            read => break read.unwrap(),
        }
    };
    let columns = batches.iter().filter(|batch| batch.num_rows() > 0).map(|batch| batch.column(0).clone());
    columns.flat_map(|column| column.as_primitive::<Int64Type>().values().to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_nothing_is_taken_for_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = Failing::default();
    let node = &cluster(dir.path(), 1, &store).await[0];
    run(node, "CREATE TABLE t (k BIGINT PRIMARY KEY) PARTITION BY RANGE(k) SPLIT AT (50)").await.unwrap();
    let rows: Vec<String> = (0..100).map(|k| format!("({k})")).collect();
    run(node, &format!("INSERT INTO t (k) VALUES {}", rows.join(", "))).await.unwrap();
    let mut operation = 1;
    loop {
        store.fail_at(operation);
        let outcome = run(node, "BACKUP TABLE t TO 's3://b'").await;
        let manifests = store.names().await.iter().filter(|name| name.contains("backups/")).count();
        match outcome {
            Ok(_) => {
                assert_eq!(manifests, 1);
                break;
            }
            Err(error) => {
                assert_eq!((error.code(), manifests), (ErrorCode::Io, 0), "{operation}: {error}");
                assert!(error.message().contains("s3://b/") && error.help().is_some(), "{error}");
            }
        }
        operation += 1;
    }
    assert!(operation > 6, "{operation} operations");
    let tables = node.tables();
    operation = 1;
    loop {
        store.fail_at(operation);
        match run(node, "RESTORE TABLE t FROM 's3://b' AS again").await {
            Ok(_) => break,
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::Io, "{operation}: {error}");
                assert_eq!(node.tables(), tables, "{operation}: {error}");
            }
        }
        operation += 1;
    }
    assert!(operation > 5, "{operation} operations");
    assert_eq!(keys(node, "again").await, (0..100).collect());
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Failing::default();
    let nodes = cluster(dir.path(), 3, &store).await;
    let sql =
        "CREATE TABLE t (k BIGINT PRIMARY KEY) PARTITION BY RANGE(k) SPLIT AT (0) WITH (partition_rows_max = 400)";
    run(&nodes[0], sql).await.unwrap();
    let (sent, acknowledged) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let writers: Vec<_> = (0..2)
        .map(|number| {
            let (node, sent, acknowledged) = (nodes[number].clone(), sent.clone(), acknowledged.clone());
            tokio::spawn(async move {
                // One of them counts up and is judged; the other is in its way.
                for k in 1..i64::MAX {
                    if number == 0 {
                        sent.store(k, Ordering::SeqCst);
                    }
                    let key = if number == 0 { k } else { -k };
                    while let Err(error) = run(&node, &format!("INSERT INTO t (k) VALUES ({key})")).await {
                        assert!(error.retryable(), "{error}");
                    }
                    if number == 0 {
                        acknowledged.store(k, Ordering::SeqCst);
                    }
                }
            })
        })
        .collect();
    for round in 0..6 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        if round == 2 {
            // It may have been split by itself just now.
            let _ = run(&nodes[1], "ALTER TABLE t SPLIT").await;
        }
        let before = acknowledged.load(Ordering::SeqCst);
        run(&nodes[1 + round % 2], "BACKUP TABLE t TO 's3://b'").await.unwrap();
        let after = sent.load(Ordering::SeqCst);
        run(&nodes[2], &format!("RESTORE TABLE t FROM 's3://b' AS copy{round}")).await.unwrap();
        let found: BTreeSet<i64> = keys(&nodes[2], &format!("copy{round}")).await.split_off(&1);
        let last = found.last().copied().unwrap_or_default();
        assert_eq!(found, (1..=last).collect(), "round {round}: none is missing between");
        assert!((before..=after).contains(&last), "round {round}: {last} is not within {before} and {after}");
    }
    writers.iter().for_each(tokio::task::JoinHandle::abort);
    for node in &nodes {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_not_shared_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let stores = [Failing::default(), Failing::default()];
    let mut nodes = cluster(dir.path(), 1, &stores[0]).await;
    nodes.push(one_more(dir.path(), &nodes, &stores[1]).await);
    let sql = "CREATE TABLE t (k BIGINT PRIMARY KEY) PARTITION BY RANGE(k) SPLIT AT (5) WITH (replication_factor = 1)";
    run(&nodes[0], sql).await.unwrap();
    run(&nodes[0], "INSERT INTO t (k) VALUES (1), (9)").await.unwrap();
    for (node, store) in nodes.iter().zip(&stores) {
        let error = run(node, "BACKUP DATABASE TO 's3://b'").await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidRequest, "{error}");
        assert!(error.help().unwrap().contains("all nodes share"), "{error:?}");
        assert!(store.names().await.iter().all(|name| !name.contains("backups/")));
    }
    for node in &nodes {
        node.shutdown().await;
    }
}
