//! What the benchmarks share: real data, a node of its own, a peer over the same rows, and a table of ratios.
//!
//! A figure alone says little on a shared machine; every one is printed beside what DataFusion over Parquet takes for the
//! same work in the same run.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures by the real clock on real files")]

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use shoal_actors::Node;
use shoal_actors::service::{NodeConfig, SqlRequest};
use shoal_kernel::env::real::{RealOptions, env};

/// Errors end a benchmark; their text is all that is wanted.
pub type BenchResult<T> = Result<T, Box<dyn std::error::Error>>;

/// The 300,000 flights, `copies` times over with ids that go on, in batches of `batch_rows`.
///
/// # Errors
/// The bundled file cannot be read.
pub fn flights(copies: usize, batch_rows: usize) -> BenchResult<Vec<RecordBatch>> {
    // Cargo runs benchmarks in their package.
    let file = "../api/demo/flights.parquet";
    let reader = || -> BenchResult<_> { Ok(ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file)?)?) };
    let (mut batches, mut next) = (Vec::new(), 1i64);
    for _ in 0..copies {
        for batch in reader()?.with_batch_size(batch_rows).build()? {
            let batch = batch?;
            let rows = batch.num_rows() as i64;
            let mut columns = batch.columns().to_vec();
            columns[0] = Arc::new(Int64Array::from_iter_values(next..next + rows));
            next += rows;
            batches.push(RecordBatch::try_new(batch.schema(), columns)?);
        }
    }
    Ok(batches)
}

/// An address whose port is free for streams and datagrams.
///
/// # Errors
/// The operating system gives no socket.
pub fn free_address() -> BenchResult<SocketAddr> {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
}

/// A cluster of one, ready.
///
/// # Errors
/// The node does not start within 30 s.
pub async fn one_node(dir: &Path) -> BenchResult<Node> {
    let config = NodeConfig::new(dir.join("node"), free_address()?, free_address()?);
    let node = Node::start(env(&RealOptions::default())?, config).await?;
    let started = Instant::now();
    while let Err(error) = node.ready() {
        if started.elapsed() > Duration::from_secs(30) {
            return Err(error.into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(node)
}

/// Runs a statement to its end and counts the rows of its answer.
///
/// # Errors
/// The statement's own.
pub async fn run(node: &Node, sql: &str) -> BenchResult<usize> {
    let (_, batches, _) = node.sql(SqlRequest::new(sql)).await?.collect().await?;
    Ok(batches.iter().map(RecordBatch::num_rows).sum())
}

/// Bytes of all files below a directory.
///
/// # Errors
/// As the operating system reports.
pub fn bytes_below(dir: &Path) -> BenchResult<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { bytes_below(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

/// The greatest id of a batch.
pub fn last_id(batch: &RecordBatch) -> i64 {
    arrow::compute::max(batch.column(0).as_primitive::<Int64Type>()).unwrap_or_default()
}

/// Minimum and median of some runs, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// The fastest.
    pub best_ms: f64,
    /// The one in the middle.
    pub median_ms: f64,
}

impl Timing {
    /// Of at least one run.
    pub fn of(mut runs: Vec<Duration>) -> Self {
        runs.sort_unstable();
        let ms = |duration: Option<&Duration>| duration.map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3);
        Self { best_ms: ms(runs.first()), median_ms: ms(runs.get(runs.len() / 2)) }
    }
}

/// Prints one line of the comparison.
pub fn compare(what: &str, shoal: Timing, peer: Timing) {
    println!(
        "{what:<44} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>7.2}x",
        shoal.best_ms,
        shoal.median_ms,
        peer.best_ms,
        peer.median_ms,
        shoal.median_ms / peer.median_ms
    );
}
