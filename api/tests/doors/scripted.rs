//! A node that does what a test tells it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use serde_json::Value;
use shoal::{Backend, Limits, Server, ServerOptions};
use shoal_actors::service::{
    BalanceStatus, ClusterStatus, CommandDone, Evolution, NodeChange, Progress, QueryEvent, QueryStream, QuerySummary,
    SqlRequest, WantedMove, WriteReport, WriteRequest,
};
use shoal_catalog::{Partitioning, Table, TableOptions};
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{
    Column, ColumnId, Error, ErrorCode, Hlc, NodeId, PartitionId, QueryId, Result, TableId, TableKind, TableSchema,
    Version, WriteLevel,
};

/// What a statement does.
#[derive(Clone)]
pub enum Script {
    /// Refused before it runs.
    Refuse(Error),
    /// Says these and no more.
    Say(Vec<QueryEvent>),
    /// Gives this batch again and again until nobody listens.
    Endless(RecordBatch),
    /// Says these, then nothing until nobody listens.
    Hang(Vec<QueryEvent>),
}

#[derive(Default)]
pub struct Log {
    pub requests: Vec<SqlRequest>,
    pub writes: Vec<WriteRequest>,
    /// The definitions that rows were made for.
    pub written_as: Vec<Arc<Table>>,
    pub cancelled: Vec<QueryId>,
    pub changed_nodes: Vec<(NodeId, NodeChange)>,
    pub paused: Vec<bool>,
    /// Statements whose stream was dropped before its end.
    pub dropped: Vec<String>,
    /// Batches that endless statements got rid of.
    pub batches_sent: BTreeMap<String, usize>,
}

pub struct Scripted {
    runtime: tokio::runtime::Runtime,
    scripts: Mutex<BTreeMap<String, Script>>,
    pub log: Arc<Mutex<Log>>,
    pub write_error: Mutex<Option<Error>>,
    pub not_ready: Mutex<Option<Error>>,
    pub tables: Mutex<BTreeMap<String, Arc<Table>>>,
    next: std::sync::atomic::AtomicU64,
}

pub const NODE: NodeId = NodeId(7);

impl Backend for Scripted {
    fn node(&self) -> NodeId {
        NODE
    }

    fn new_query_id(&self) -> QueryId {
        QueryId::new(NODE, self.next.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
    }

    fn ready(&self) -> Result<()> {
        self.not_ready.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn sql(&self, request: SqlRequest) -> BoxFuture<'static, Result<QueryStream>> {
        let sql = request.sql.trim().to_owned();
        let id = request.query_id.unwrap_or_default();
        self.log.lock().unwrap().requests.push(request);
        let script = self.scripts.lock().unwrap().get(&sql).cloned();
        let Some(script) = script else {
            let error = Error::new(ErrorCode::Syntax, format!("the script has no '{sql}'"));
            return Box::pin(async move { Err(error) });
        };
        if let Script::Refuse(error) = script {
            return Box::pin(async move { Err(error) });
        }
        let (sender, stream) = QueryStream::channel(id, 2);
        let log = self.log.clone();
        self.runtime.spawn(async move {
            let events = match &script {
                Script::Say(events) | Script::Hang(events) => events.clone(),
                Script::Endless(batch) => vec![QueryEvent::Schema(batch.schema())],
                Script::Refuse(_) => unreachable!(),
            };
            for event in events {
                if sender.send(event).await.is_err() {
                    log.lock().unwrap().dropped.push(sql);
                    return;
                }
            }
            match script {
                Script::Endless(batch) => {
                    while sender.send(QueryEvent::Batch(batch.clone())).await.is_ok() {
                        *log.lock().unwrap().batches_sent.entry(sql.clone()).or_default() += 1;
                    }
                    log.lock().unwrap().dropped.push(sql);
                }
                Script::Hang(_) => {
                    sender.closed().await;
                    log.lock().unwrap().dropped.push(sql);
                }
                _ => {}
            }
        });
        Box::pin(async move { Ok(stream) })
    }

    fn cancel(&self, query: QueryId) -> BoxFuture<'static, Result<()>> {
        self.log.lock().unwrap().cancelled.push(query);
        let known = query.0 as u64 == 0xabc;
        Box::pin(async move {
            if known { Ok(()) } else { Err(Error::new(ErrorCode::NotFound, format!("no query {query} runs"))) }
        })
    }

    fn table(&self, name: &str) -> BoxFuture<'static, Result<Arc<Table>>> {
        let table = self.tables.lock().unwrap().get(name).cloned().ok_or_else(|| {
            Error::new(ErrorCode::UnknownTable, format!("there is no table '{name}'"))
                .with_help("did you mean 'events'?")
        });
        Box::pin(async move { table })
    }

    fn write(&self, request: WriteRequest) -> BoxFuture<'static, Result<WriteReport>> {
        if let Some(error) = self.write_error.lock().unwrap().take() {
            return Box::pin(async move { Err(error) });
        }
        let rows = request.batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let level = request.level.unwrap_or_default();
        let mut log = self.log.lock().unwrap();
        let duplicate = request.token.is_some() && log.writes.iter().any(|earlier| earlier.token == request.token);
        log.writes.push(request);
        let version = Version::new(Hlc::from_micros(5), NODE, 1);
        Box::pin(async move { Ok(WriteReport { rows, level, version, duplicate }) })
    }

    fn write_as(&self, table: Arc<Table>, request: WriteRequest) -> BoxFuture<'static, Result<WriteReport>> {
        self.log.lock().unwrap().written_as.push(table);
        self.write(request)
    }

    fn evolve(&self, change: Evolution) -> BoxFuture<'static, Result<Arc<Table>>> {
        let mut tables = self.tables.lock().unwrap();
        let table = match change {
            Evolution::Create(new) => Table {
                id: TableId(77),
                name: new.name,
                schema: new.schema,
                partitioning: new.partitioning,
                options: new.options,
                cutoff: None,
                partitions: Vec::new(),
            },
            Evolution::Alter { table, changes } => {
                let mut next = table.as_ref().clone();
                for change in &changes {
                    next.schema = next.schema.changed(change).unwrap();
                }
                next.schema.version += 1;
                next
            }
        };
        let table = Arc::new(table);
        tables.insert(table.name.clone(), table.clone());
        Box::pin(async move { Ok(table) })
    }

    fn change_node(&self, id: NodeId, change: NodeChange) -> BoxFuture<'static, Result<()>> {
        self.log.lock().unwrap().changed_nodes.push((id, change));
        let known = id == NODE;
        Box::pin(async move {
            if known { Ok(()) } else { Err(Error::new(ErrorCode::NotFound, format!("there is no node {id}"))) }
        })
    }

    fn balance(&self) -> BoxFuture<'static, Result<BalanceStatus>> {
        let wanted =
            WantedMove { partition: PartitionId(4), table: "t".into(), from: NODE, to: NodeId(9), bytes: 1 << 20 };
        let status = BalanceStatus { paused: true, moving: vec![PartitionId(3)], wanted: vec![wanted] };
        Box::pin(async move { Ok(status) })
    }

    fn pause_balance(&self, paused: bool) -> BoxFuture<'static, Result<()>> {
        self.log.lock().unwrap().paused.push(paused);
        Box::pin(async { Ok(()) })
    }

    fn cluster(&self) -> BoxFuture<'static, Result<ClusterStatus>> {
        let status = ClusterStatus {
            cluster_id: 42,
            node: NODE,
            catalog_version: 3,
            leader: Some(NODE),
            nodes: Vec::new(),
            partitions: Vec::new(),
        };
        Box::pin(async move { Ok(status) })
    }
}

/// A server over a scripted node.
pub struct World {
    pub node: Arc<Scripted>,
    pub address: SocketAddr,
    _server: Server,
}

impl World {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let node = Arc::new(Scripted {
            runtime: tokio::runtime::Runtime::new().unwrap(),
            scripts: Mutex::default(),
            log: Arc::default(),
            write_error: Mutex::default(),
            not_ready: Mutex::default(),
            tables: Mutex::new(
                [events(), people()].into_iter().map(|table| (table.name.clone(), Arc::new(table))).collect(),
            ),
            next: std::sync::atomic::AtomicU64::new(1),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut options = ServerOptions::new(listener.local_addr().unwrap());
        options.limits = limits;
        options.workers = 2;
        let server = Server::start(node.clone(), listener, &options).unwrap();
        Self { node, address: server.address(), _server: server }
    }

    pub fn script(&self, sql: &str, script: Script) -> &Self {
        self.node.scripts.lock().unwrap().insert(sql.into(), script);
        self
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A request as text, headers joined by line ends; the body is sent as it is.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: shoal\r\nconnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "POST" {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // The server may answer, and close, before it has read all of a body that it does not want.
        let _ = stream.write_all(body);
        Answer::read(&mut stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    pub fn sql(&self, body: &str) -> Answer {
        self.send("POST", "/api/v1/sql", &[("content-type", "application/json")], body.as_bytes())
    }

    pub fn ingest(&self, path: &str, media_type: &str, body: &[u8]) -> Answer {
        self.send("POST", &format!("/api/v1/tables/{path}"), &[("content-type", media_type)], body)
    }

    pub fn log<T>(&self, look: impl FnOnce(&Log) -> T) -> T {
        look(&self.node.log.lock().unwrap())
    }

    /// Waits, for seconds at most, until the log shows something.
    #[track_caller]
    pub fn until(&self, what: impl Fn(&Log) -> bool) {
        let start = Instant::now();
        while !self.log(&what) {
            assert!(start.elapsed() < Duration::from_secs(10), "it did not happen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// The body has the length it announced, or its last chunk.
    pub whole: bool,
}

impl Answer {
    pub fn read(stream: &mut TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut raw = Vec::new();
        // A connection that was cut is what some tests want to see.
        let _ = stream.read_to_end(&mut raw);
        let split = raw.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(raw[..split].to_vec()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: BTreeMap<String, String> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        let rest = &raw[split + 4..];
        let (body, whole) = match headers.get("content-length") {
            Some(length) => (rest.to_vec(), rest.len() == length.parse::<usize>().unwrap()),
            None => unchunk(rest),
        };
        Self { status, headers, body, whole }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The problem document, after checking what all of them have.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        for member in ["type", "title", "detail", "sqlstate", "spans", "retryable", "applied"] {
            assert!(problem.get(member).is_some(), "{member} is missing in {problem}");
        }
        problem
    }
}

fn unchunk(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = rest.windows(2).position(|window| window == b"\r\n") else {
            return (body, false);
        };
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        rest = &rest[end + 2..];
        if length == 0 {
            return (body, true);
        }
        if rest.len() < length + 2 {
            body.extend_from_slice(&rest[..rest.len().min(length)]);
            return (body, false);
        }
        body.extend_from_slice(&rest[..length]);
        rest = &rest[length + 2..];
    }
}

fn column(id: u32, name: &str, data_type: DataType, nullable: bool) -> Column {
    Column { id: ColumnId(id), name: name.into(), data_type, nullable }
}

fn table(name: &str, kind: TableKind, columns: Vec<Column>) -> Table {
    Table {
        id: TableId(1),
        name: name.into(),
        schema: TableSchema::new(columns, kind),
        partitioning: Partitioning::Range { columns: vec![ColumnId(1)] },
        options: TableOptions::default(),
        cutoff: None,
        partitions: Vec::new(),
    }
}

pub const MICROS: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

fn people() -> Table {
    let tags = DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)));
    table(
        "people",
        TableKind::Upsert { primary_key: vec![ColumnId(1)] },
        vec![
            column(1, "id", DataType::Int64, false),
            column(2, "name", DataType::Utf8, true),
            column(3, "height", DataType::Float64, true),
            column(4, "born", MICROS, true),
            column(5, "tags", tags, true),
            column(6, "balance", DataType::Decimal128(12, 2), true),
        ],
    )
}

fn events() -> Table {
    table(
        "events",
        TableKind::Event,
        vec![
            column(1, "_ts", MICROS, false),
            column(2, "_dedup", DataType::Utf8, false),
            column(3, "what", DataType::Utf8, true),
        ],
    )
}

/// `n` rows of (id BIGINT, name VARCHAR, x DOUBLE), the third name and every NaN being special.
pub fn batch(first: i64, rows: i64) -> RecordBatch {
    let ids: Vec<i64> = (first..first + rows).collect();
    let names: Vec<Option<String>> =
        ids.iter().map(|id| if id % 10 == 2 { None } else { Some(format!("name {id}, \"quoted\"")) }).collect();
    let xs: Vec<f64> = ids.iter().map(|id| if id % 10 == 1 { f64::NAN } else { *id as f64 / 2.0 }).collect();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(Int64Array::from(ids)), Arc::new(StringArray::from(names)), Arc::new(Float64Array::from(xs))];
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("x", DataType::Float64, true),
    ]);
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

/// The events of a query that gives these batches.
pub fn table_of(batches: &[RecordBatch]) -> Vec<QueryEvent> {
    let mut events = vec![QueryEvent::Schema(batches[0].schema())];
    events.extend(batches.iter().cloned().map(QueryEvent::Batch));
    events.push(QueryEvent::Progress(Progress {
        queued: None,
        tasks_done: 1,
        tasks: 2,
        rows_scanned: 3,
        bytes_scanned: 4,
    }));
    let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
    events.push(QueryEvent::End(QuerySummary { rows, elapsed_micros: 1500, ..QuerySummary::default() }));
    events
}

/// The events of an INSERT.
pub fn insert_of(rows: u64) -> Vec<QueryEvent> {
    vec![
        QueryEvent::Done(CommandDone {
            tag: "INSERT".into(),
            rows: Some(rows),
            level: Some(WriteLevel::Quorum),
            version: Some(Version::new(Hlc::from_micros(1), NODE, 0)),
        }),
        QueryEvent::End(QuerySummary { elapsed_micros: 500, ..QuerySummary::default() }),
    ]
}
