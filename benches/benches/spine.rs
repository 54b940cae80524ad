//! Ingest, scan, group by, point read and first row, beside DataFusion over Parquet on the same rows in the same run.
//!
//! `cargo bench -p shoal-benches` (add `-- 1` for one copy of the data: quicker, noisier). No targets and no asserts on time:
//! the figures are what they are.
#![allow(clippy::disallowed_methods, reason = "a benchmark measures by the real clock on real files")]

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use futures::{SinkExt, StreamExt};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use shoal::{NodeBackend, Server, ServerOptions};
use shoal_actors::Node;
use shoal_actors::service::WriteRequest;
use shoal_benches::{BenchResult, Timing, bytes_below, compare, flights, last_id, one_node, run};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

const COPIES: usize = 4;
const BATCH_ROWS: usize = 5_000;
const RUNS: usize = 9;

fn main() -> BenchResult<()> {
    let copies = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(COPIES);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(spine(copies))
}

async fn spine(copies: usize) -> BenchResult<()> {
    let dir = tempfile::tempdir()?;
    let batches = flights(copies, BATCH_ROWS)?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let node = one_node(dir.path()).await?;
    println!("{rows} flights, batches of {BATCH_ROWS} rows; {RUNS} runs each; one node, one replica\n");

    ingest(&node, dir.path(), &batches, rows).await?;
    let peer = SessionContext::new();
    let file = dir.path().join("flights.parquet");
    peer.register_parquet("flights", &file.to_string_lossy(), ParquetReadOptions::default()).await?;

    println!("\n{:<44} {:>9} {:>9} {:>9} {:>9} {:>8}", "ms", "best", "median", "df best", "df med", "ratio");
    let point = rows / 3;
    for (what, sql) in [
        ("full scan aggregate", "SELECT sum(distance), avg(delay), max(ts) FROM flights".to_owned()),
        ("filtered count", "SELECT count(*) FROM flights WHERE delay > 60 AND distance > 1000".to_owned()),
        ("group by, 223 groups", "SELECT origin, count(*), sum(delay) FROM flights GROUP BY origin".to_owned()),
        (
            "group by two columns",
            "SELECT origin, destination, avg(delay) FROM flights GROUP BY origin, destination".to_owned(),
        ),
        ("LIKE", "SELECT count(*) FROM flights WHERE destination LIKE '%A%'".to_owned()),
        ("ten of the longest delays, whole rows", "SELECT * FROM flights ORDER BY delay DESC, id LIMIT 10".to_owned()),
        ("newest 20 rows", "SELECT * FROM flights ORDER BY id DESC LIMIT 20".to_owned()),
        ("point read by key", format!("SELECT * FROM flights WHERE id = {point}")),
    ] {
        let mut own = Vec::new();
        let mut theirs = Vec::new();
        for _ in 0..=RUNS {
            let started = Instant::now();
            let found = run(&node, &sql).await?;
            own.push(started.elapsed());
            let started = Instant::now();
            let expected: usize = peer.sql(&sql).await?.collect().await?.iter().map(RecordBatch::num_rows).sum();
            theirs.push(started.elapsed());
            if found != expected {
                return Err(format!("{what}: {found} rows, DataFusion has {expected}").into());
            }
        }
        // The first of each warms up.
        compare(what, Timing::of(own.split_off(1)), Timing::of(theirs.split_off(1)));
    }
    first_row(&node, &peer).await?;
    node.shutdown().await;
    Ok(())
}

/// Every batch is acknowledged after its fsync before the next is sent; the peer writes the same batches into one Parquet
/// file, which it syncs once at the end.
async fn ingest(node: &Node, dir: &Path, batches: &[RecordBatch], rows: usize) -> BenchResult<()> {
    run(
        node,
        "CREATE TABLE flights (id BIGINT NOT NULL, ts TIMESTAMP, origin VARCHAR, destination VARCHAR, delay INTEGER, \
         distance INTEGER, PRIMARY KEY (id))",
    )
    .await?;
    let schema = node.table("flights").await?.schema.arrow();
    let mut latencies = Vec::new();
    let started = Instant::now();
    for batch in batches {
        let columns = schema.fields().iter().zip(batch.columns());
        let columns = columns
            .map(|(field, column)| arrow::compute::cast(column, field.data_type()))
            .collect::<Result<Vec<_>, _>>()?;
        let batch = RecordBatch::try_new(schema.clone(), columns)?;
        let sent = Instant::now();
        let request =
            WriteRequest { table: "flights".into(), batches: vec![batch], level: None, token: None, timeout: None };
        node.write(request).await?;
        latencies.push(sent.elapsed());
    }
    let own = started.elapsed();
    latencies.sort_unstable();

    let file = std::fs::File::create(dir.join("flights.parquet"))?;
    let zstd = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let started = Instant::now();
    if let Some(first) = batches.first() {
        let mut writer = ArrowWriter::try_new(file, first.schema(), Some(zstd))?;
        for batch in batches {
            writer.write(batch)?;
        }
        writer.into_inner()?.sync_all()?;
    }
    let theirs = started.elapsed();
    let started = Instant::now();
    run(node, "OPTIMIZE TABLE flights").await?;
    let merged = started.elapsed();
    let own_bytes = bytes_below(&dir.join("node/replicas"))?;
    let their_bytes = std::fs::metadata(dir.join("flights.parquet"))?.len();
    let rate = |time: Duration| rows as f64 / time.as_secs_f64() / 1e3;
    let per_row = |bytes: u64| bytes as f64 / rows as f64;
    println!("ingest, each batch durable: {:.0} k rows/s (Parquet file: {:.0} k rows/s)", rate(own), rate(theirs));
    if let (Some(p50), Some(p99)) = (latencies.get(latencies.len() / 2), latencies.get(latencies.len() * 99 / 100)) {
        println!("  per batch: p50 {:.2} ms, p99 {:.2} ms", p50.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3);
    }
    println!("  on disk, log included: {:.1} bytes/row (Parquet: {:.1})", per_row(own_bytes), per_row(their_bytes));
    println!("  OPTIMIZE TABLE after it: {:.2} s", merged.as_secs_f64());
    println!("  last id {}", batches.last().map(last_id).unwrap_or_default());
    Ok(())
}

/// From sending `start` to the first batch, over a WebSocket that is open; the peer: from `sql` to the first batch of its
/// stream, in process.
async fn first_row(node: &Node, peer: &SessionContext) -> BenchResult<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let options = ServerOptions::new(listener.local_addr()?);
    let backend = NodeBackend::new(node.clone(), tokio::runtime::Handle::current());
    let server = Server::start(Arc::new(backend), listener, &options)?;
    let mut request = format!("ws://{}/api/v1/ws", server.address()).into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", "shoal.v1.json".parse()?);
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await?;
    let sql = "SELECT * FROM flights";
    let (mut own, mut theirs) = (Vec::new(), Vec::new());
    for number in 0..=RUNS {
        let started = Instant::now();
        let start = format!(r#"{{"type":"start","id":"{number}","sql":"{sql}","credit":1048576}}"#);
        socket.send(Message::text(start)).await?;
        let mut first = None;
        while let Some(message) = socket.next().await {
            let text = message?.into_text()?;
            if first.is_none() && text.contains(r#""rows""#) {
                first = Some(started.elapsed());
                socket.send(Message::text(format!(r#"{{"type":"cancel","id":"{number}"}}"#))).await?;
            }
            if text.contains(r#""type":"end""#) || text.contains(r#""type":"error""#) {
                break;
            }
        }
        own.extend(first);
        let started = Instant::now();
        let mut stream = peer.sql(sql).await?.execute_stream().await?;
        if let Some(batch) = stream.next().await {
            batch?;
        }
        theirs.push(started.elapsed());
    }
    compare("first row of SELECT * over WebSocket", Timing::of(own.split_off(1)), Timing::of(theirs.split_off(1)));
    server.stop().await;
    Ok(())
}
