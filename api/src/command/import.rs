//! `shoal import`: a file becomes chunks, each sent under a key made of the file's own bytes, so that an import that was
//! interrupted can be run again and writes nothing twice.

#![allow(clippy::disallowed_methods, reason = "the command line reads files and waits in the real world")]

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use xxhash_rust::xxh3::Xxh3;

use super::{DEFAULT_URL, Exit};
use crate::client::{Client, ClientError};
use crate::format::type_name;
use crate::ingest::{Bounds, InputFormat, OnError, Target, decoder};

/// Rows that types are inferred from.
const INFER_ROWS: usize = 100_000;

/// Bytes of a chunk, at most about; well below what a node takes in one body.
const CHUNK_BYTES: usize = 8 << 20;

/// Rows of a chunk unless told otherwise.
const BATCH_ROWS: u64 = 50_000;

/// How often a chunk is sent before the import gives up.
const ATTEMPTS_MAX: u32 = 12;

/// The first wait between two attempts; each is twice the one before, up to the longest.
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct ImportArguments {
    /// The file: .csv, .ndjson, .jsonl or .parquet
    file: PathBuf,
    /// The table
    #[arg(long, value_name = "TABLE")]
    table: String,
    /// Make the table from the data, unless it exists
    #[arg(long)]
    create: bool,
    /// Its primary key: columns, separated by commas
    #[arg(long, value_name = "COLUMN,…", value_delimiter = ',', requires = "create")]
    primary_key: Vec<String>,
    /// Rows of a chunk
    #[arg(long, default_value_t = BATCH_ROWS, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    batch_rows: u64,
    /// When a chunk counts as written: one, quorum or all. Unless told, all, so that every node has the rows when the import
    /// ends; quorum from the moment that too few replicas answer
    #[arg(long, value_parser = ["one", "quorum", "all"])]
    ack: Option<String>,
    /// The node to ask
    #[arg(long, default_value = DEFAULT_URL, env = "SHOAL_URL")]
    url: String,
}

impl ImportArguments {
    /// A file into a table that exists, with every setting at its default.
    pub(super) fn new(file: PathBuf, table: &str, url: &str) -> Self {
        Self {
            file,
            table: table.to_owned(),
            create: false,
            primary_key: Vec::new(),
            batch_rows: BATCH_ROWS,
            ack: None,
            url: url.to_owned(),
        }
    }
}

pub(super) fn run(arguments: &ImportArguments) -> Result<(), Exit> {
    println!("{}", load(arguments)?);
    Ok(())
}

/// Imports a file; says in one sentence what was done.
pub(super) fn load(arguments: &ImportArguments) -> Result<String, Exit> {
    let source = Source::open(&arguments.file)?;
    let client = Client::new(&arguments.url);
    if arguments.create {
        let sql = source.create_table(&arguments.table, &arguments.primary_key)?;
        eprintln!("{sql}");
        client.sql_json(&sql, None)?;
    }
    let schema = table_schema(&client, &arguments.table)?;
    let key = source.fingerprint(&arguments.table, arguments.batch_rows)?;
    let bar = progress_bar(source.bytes);
    let ack = arguments.ack.as_deref().unwrap_or("all");
    let mut sender = Sender { client: &client, arguments, key, ack, chunk: 0, rows: 0, repeated: 0 };
    let batch_rows = usize::try_from(arguments.batch_rows).unwrap_or(usize::MAX);
    let done = match source.format {
        InputFormat::Parquet => source.send_parquet(&schema, batch_rows, &bar, &mut sender),
        _ => source.send_text(&schema, batch_rows, &bar, &mut sender),
    };
    bar.finish_and_clear();
    done?;
    let repeated = match sender.repeated {
        0 => String::new(),
        chunks => format!(" ({chunks} of {} chunks stood there already)", sender.chunk),
    };
    let behind = match &arguments.ack {
        None if sender.ack != "all" => {
            "\nnot every replica answered, so a majority was enough; the others catch up by themselves"
        }
        _ => "",
    };
    Ok(format!("{} rows in table {}{repeated}{behind}", sender.rows, arguments.table))
}

/// A name as SQL takes it literally.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The columns of a table, with their exact types.
fn table_schema(client: &Client, table: &str) -> Result<SchemaRef, Exit> {
    let sql = format!("SELECT * FROM {} LIMIT 0", quoted(table));
    let response = client.sql(&sql, "arrow", None).map_err(|error| match error.code() {
        Some("unknown_table") => Exit::failed(format!("{error}\n  --create makes the table from the data")),
        _ => error.into(),
    })?;
    let stream = StreamReader::try_new(response.into_body().into_reader(), None)
        .map_err(|error| Exit::failed(format!("the columns of {table} cannot be read: {error}")))?;
    Ok(stream.schema())
}

struct Source {
    path: PathBuf,
    format: InputFormat,
    bytes: u64,
}

impl Source {
    fn open(path: &Path) -> Result<Self, Exit> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let format = match extension.to_ascii_lowercase().as_str() {
            "csv" => InputFormat::Csv,
            "ndjson" | "jsonl" | "json" => InputFormat::Ndjson,
            "parquet" => InputFormat::Parquet,
            _ => {
                return Err(Exit::usage(format!(
                    "{}: its name does not end in .csv, .ndjson, .jsonl or .parquet",
                    path.display()
                )));
            }
        };
        let source = Self { path: path.to_owned(), format, bytes: 0 };
        let bytes = source.file()?.metadata().map_err(|error| source.unreadable(error))?.len();
        Ok(Self { bytes, ..source })
    }

    fn unreadable(&self, error: impl std::fmt::Display) -> Exit {
        Exit::failed(format!("{}: {error}", self.path.display()))
    }

    fn file(&self) -> Result<File, Exit> {
        File::open(&self.path).map_err(|error| self.unreadable(error))
    }

    /// The same file into the same table in the same chunks has the same key; anything else another.
    fn fingerprint(&self, table: &str, batch_rows: u64) -> Result<String, Exit> {
        let mut hash = Xxh3::new();
        let mut file = self.file()?;
        let mut chunk = vec![0; 1 << 20];
        loop {
            match file.read(&mut chunk).map_err(|error| self.unreadable(error))? {
                0 => break,
                bytes => hash.update(&chunk[..bytes]),
            }
        }
        hash.update(&batch_rows.to_le_bytes());
        hash.update(table.as_bytes());
        Ok(format!("{:032x}", hash.digest128()))
    }

    /// The columns of the data.
    fn schema(&self) -> Result<Schema, Exit> {
        let mut file = BufReader::new(self.file()?);
        let schema = match self.format {
            InputFormat::Csv => {
                let format = arrow::csv::reader::Format::default().with_header(true);
                format.infer_schema(&mut file, Some(INFER_ROWS)).map_err(|error| self.unreadable(error))?.0
            }
            InputFormat::Parquet => {
                let file = self.file()?;
                let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| self.unreadable(error))?;
                builder.schema().as_ref().clone()
            }
            _ => {
                let inferred = arrow::json::reader::infer_json_schema_from_seekable(&mut file, Some(INFER_ROWS));
                inferred.map_err(|error| self.unreadable(error))?.0
            }
        };
        let fields = schema.fields().iter().map(|field| Field::new(field.name(), stored_type(field.data_type()), true));
        Ok(Schema::new(fields.collect::<Vec<_>>()))
    }

    fn create_table(&self, table: &str, primary_key: &[String]) -> Result<String, Exit> {
        let schema = self.schema()?;
        for name in primary_key {
            if schema.field_with_name(name).is_err() {
                let names = schema.fields().iter().map(|field| field.name().as_str());
                let help = shoal_kernel::suggest::help(name, names);
                return Err(Exit::usage(format!("--primary-key: the data has no column '{name}'; {help}")));
            }
        }
        let mut parts: Vec<String> = schema
            .fields()
            .iter()
            .map(|field| {
                let not_null = if primary_key.contains(field.name()) { " NOT NULL" } else { "" };
                format!("{} {}{not_null}", quoted(field.name()), type_name(field.data_type()))
            })
            .collect();
        if !primary_key.is_empty() {
            let names: Vec<String> = primary_key.iter().map(|name| quoted(name)).collect();
            parts.push(format!("PRIMARY KEY ({})", names.join(", ")));
        }
        Ok(format!("CREATE TABLE IF NOT EXISTS {} ({})", quoted(table), parts.join(", ")))
    }

    /// Text is read with the table's own types, so that a code such as 00501 stays what it is in a text column.
    fn send_text(
        &self,
        schema: &SchemaRef,
        batch_rows: usize,
        bar: &ProgressBar,
        sender: &mut Sender<'_>,
    ) -> Result<(), Exit> {
        let bounds = Bounds { line_bytes_max: 16 << 20, decoded_bytes_max: usize::MAX };
        let mut decoder = decoder(self.format, Target::of_schema(schema), OnError::Fail, bounds);
        let mut chunks = Chunks::new(batch_rows);
        let mut file = self.file()?;
        loop {
            let mut buffer = vec![0; 256 << 10];
            let bytes = file.read(&mut buffer).map_err(|error| self.unreadable(error))?;
            if bytes == 0 {
                break;
            }
            buffer.truncate(bytes);
            decoder.push(Bytes::from(buffer)).map_err(|error| self.unreadable(error))?;
            for batch in decoder.take_batches() {
                chunks.push(batch, &mut |chunk| sender.send(chunk))?;
            }
            bar.set_position(file.stream_position().unwrap_or_default());
        }
        let rest = decoder.finish().map_err(|error| self.unreadable(error))?;
        if let Some(error) = rest.errors.first() {
            let before = format!("{} rows before it have been written", sender.rows);
            let message = format!("{} rows cannot be taken; line {}: {}", rest.rejected, error.line, error.message);
            return Err(self.unreadable(format!("{message}\n  {before}; correct the file and run the import again")));
        }
        for batch in rest.batches {
            chunks.push(batch, &mut |chunk| sender.send(chunk))?;
        }
        chunks.finish(&mut |chunk| sender.send(chunk))
    }

    fn send_parquet(
        &self,
        schema: &SchemaRef,
        batch_rows: usize,
        bar: &ProgressBar,
        sender: &mut Sender<'_>,
    ) -> Result<(), Exit> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(self.file()?).map_err(|error| self.unreadable(error))?;
        let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or_default();
        let reader = builder.with_batch_size(8192).build().map_err(|error| self.unreadable(error))?;
        let mut chunks = Chunks::new(batch_rows);
        let mut seen = 0;
        for batch in reader {
            let batch = batch.map_err(|error| self.unreadable(error))?;
            seen += batch.num_rows() as u64;
            let batch = narrowed(&batch, schema).map_err(|error| self.unreadable(error))?;
            chunks.push(batch, &mut |chunk| sender.send(chunk))?;
            bar.set_position(self.bytes * seen / rows.max(1));
        }
        chunks.finish(&mut |chunk| sender.send(chunk))
    }
}

/// Casts what the node would refuse only for its encoding (views, dictionaries, wide strings).
fn narrowed(batch: &RecordBatch, table: &SchemaRef) -> Result<RecordBatch, arrow::error::ArrowError> {
    let schema = batch.schema();
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        let stored = stored_type(field.data_type());
        let name = table.fields().iter().find(|known| known.name().eq_ignore_ascii_case(field.name()));
        columns.push(cast(column, &stored)?);
        fields.push(Field::new(name.map_or(field.name(), |known| known.name()), stored, true));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// The type a table keeps such values in.
fn stored_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Float16 => DataType::Float32,
        DataType::Dictionary(_, values) => stored_type(values),
        other => other.clone(),
    }
}

/// Batches put together to chunks that depend on the rows alone.
struct Chunks {
    rows_max: usize,
    batches: Vec<RecordBatch>,
    rows: usize,
    bytes: usize,
}

impl Chunks {
    fn new(rows_max: usize) -> Self {
        Self { rows_max, batches: Vec::new(), rows: 0, bytes: 0 }
    }

    fn push(
        &mut self,
        mut batch: RecordBatch,
        send: &mut dyn FnMut(&[RecordBatch]) -> Result<(), Exit>,
    ) -> Result<(), Exit> {
        while batch.num_rows() > 0 {
            let rows = batch.num_rows().min(self.rows_max - self.rows);
            let part = batch.slice(0, rows);
            batch = batch.slice(rows, batch.num_rows() - rows);
            self.rows += rows;
            self.bytes += part
                .columns()
                .iter()
                .map(|column| column.to_data().get_slice_memory_size().unwrap_or(0))
                .sum::<usize>();
            self.batches.push(part);
            if self.rows >= self.rows_max || self.bytes >= CHUNK_BYTES {
                self.finish(send)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, send: &mut dyn FnMut(&[RecordBatch]) -> Result<(), Exit>) -> Result<(), Exit> {
        if self.rows > 0 {
            send(&std::mem::take(&mut self.batches))?;
        }
        (self.rows, self.bytes) = (0, 0);
        Ok(())
    }
}

struct Sender<'a> {
    client: &'a Client,
    arguments: &'a ImportArguments,
    key: String,
    ack: &'a str,
    chunk: u64,
    rows: u64,
    repeated: u64,
}

impl Sender<'_> {
    fn send(&mut self, batches: &[RecordBatch]) -> Result<(), Exit> {
        let Some(first) = batches.first() else {
            return Ok(());
        };
        let encode = || -> Result<Vec<u8>, arrow::error::ArrowError> {
            let mut stream = StreamWriter::try_new(Vec::new(), &first.schema())?;
            for batch in batches {
                stream.write(batch)?;
            }
            stream.into_inner()
        };
        let body = encode().map_err(|error| Exit::failed(format!("a chunk cannot be written: {error}")))?;
        let token = format!("import-{}-{}", self.key, self.chunk);
        let report = self.until_it_succeeds(&body, &token)?;
        self.chunk += 1;
        self.rows += report["accepted"].as_u64().unwrap_or_default();
        self.repeated += u64::from(report["duplicate"] == true);
        Ok(())
    }

    fn until_it_succeeds(&mut self, body: &[u8], token: &str) -> Result<serde_json::Value, Exit> {
        let media_type = "application/vnd.apache.arrow.stream";
        let table = self.arguments.table.as_str();
        let mut wait = BACK_OFF;
        for _ in 1..ATTEMPTS_MAX {
            match self.client.ingest(table, media_type, body, Some(token), Some(self.ack)) {
                Err(error) if error.retryable() => {
                    // Which level is wanted was not said: a majority keeps the rows as safe as any write.
                    if self.arguments.ack.is_none() && matches!(error.code(), Some("not_enough_replicas" | "disk_full"))
                    {
                        self.ack = "quorum";
                    }
                    std::thread::sleep(wait);
                }
                outcome => return self.explained(outcome),
            }
            wait = (wait * 2).min(BACK_OFF_MAX);
        }
        self.explained(self.client.ingest(table, media_type, body, Some(token), Some(self.ack)))
    }

    fn explained(&self, outcome: Result<serde_json::Value, ClientError>) -> Result<serde_json::Value, Exit> {
        outcome.map_err(|error| {
            let mut exit = Exit::from(error);
            exit.message = format!(
                "{}\n  {} rows of chunks before are written; running the import again goes on from there",
                exit.message, self.rows
            );
            exit
        })
    }
}

fn progress_bar(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}
