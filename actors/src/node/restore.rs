//! RESTORE: tables are made under names that nobody takes for theirs, filled by several nodes through the ordinary way of writes, and
//! named when they are whole.
//!
//! So the cluster may be of another size than the one that was backed up, and nothing of it depends on its replicas, positions or
//! clocks; a reader never sees a part of a table under the table's name; and if the node that says who does what dies, what stays behind
//! says of itself what it is, and can be dropped.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use futures::stream::StreamExt;
use shoal_catalog::{AlteredTable, Catalog, Command, NAME_BYTES_MAX, NewTable, Partitioning, Table, TtlChange};
use shoal_kernel::{Applied, Error, ErrorCode, NodeId, QueryId, Result};
use shoal_planner::BackupPlace;

use super::Inner;
use super::backup::{Job, table_of};
use super::statement::REFRESH_TIMEOUT;
use crate::backup::Objects;
use crate::backup::manifest::{MANIFEST_BYTES_MAX, Manifest, StoredPartition, StoredTable};
use crate::backup::message::{BackupCall, BackupNews, FetchCall};
use crate::service::QueryStream;

/// Backups at one place that are looked at for the newest.
const BACKUPS_MAX: usize = 100_000;
/// Those that are read to find one with the table.
const BACKUPS_READ_MAX: usize = 100;
/// Partitions that a node works on at once.
const PARTITIONS_PER_NODE: usize = 2;
/// Nodes that may try the same partition.
const ATTEMPTS_MAX: usize = 3;
/// How long a change of the catalog may take.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(30);
/// Ends the name of a table that is not whole yet.
const UNFINISHED: &str = " (restore under way)";

/// Whether a table by this name is not whole yet.
pub(super) fn is_unfinished(name: &str) -> bool {
    name.ends_with(UNFINISHED)
}

/// A table that is being filled.
struct Filling<'a> {
    source: &'a StoredTable,
    /// What it is to be called.
    name: String,
    table: Table,
}

impl Inner {
    pub(super) fn start_restore(
        self: &Arc<Self>,
        id: QueryId,
        table: Option<String>,
        named: Option<String>,
        from: BackupPlace,
        timeout: Option<Duration>,
    ) -> QueryStream {
        self.start_job(
            id,
            "RESTORE",
            timeout,
            |inner, job| async move { inner.restore(table, named, from, &job).await },
        )
    }

    async fn restore(
        &self,
        table: Option<String>,
        named: Option<String>,
        from: BackupPlace,
        job: &Job,
    ) -> Result<RecordBatch> {
        let objects = self.objects(&from)?;
        let manifest = find(&objects, from.backup.as_deref(), table.as_deref()).await?;
        let wanted: Vec<&StoredTable> = manifest
            .tables
            .iter()
            .filter(|stored| table.as_ref().is_none_or(|name| *name == stored.definition.name))
            .collect();
        let catalog = self.context.agreement.linearizable(REFRESH_TIMEOUT).await?;
        let name_of = |stored: &StoredTable| named.clone().unwrap_or_else(|| stored.definition.name.clone());
        for stored in &wanted {
            check_free(&catalog, &name_of(stored))?;
        }
        let mut filling = Vec::with_capacity(wanted.len());
        for source in wanted {
            filling.push(self.begin(source, name_of(source), job).await?);
        }
        self.fill(&filling, &objects, &from, job).await?;
        for (place, filled) in filling.iter().enumerate() {
            self.finish(filled, job).await.map_err(|error| match place {
                0 => error,
                _ => {
                    let done = filling[..place].iter().map(|filled| format!("'{}'", filled.name));
                    let done = done.collect::<Vec<_>>().join(", ");
                    error.context(format_args!("after {done} had been restored")).with_applied(Applied::Unknown)
                }
            })?;
        }
        answer(&manifest, &filling)
    }

    /// Makes an empty table under a name of its own.
    async fn begin<'a>(&self, source: &'a StoredTable, name: String, job: &Job) -> Result<Filling<'a>> {
        let mark = format!(" {:08x}{UNFINISHED}", self.context.env.random("restore name") as u32);
        let mut hidden = name.clone();
        while hidden.len() + mark.len() > NAME_BYTES_MAX {
            hidden.pop();
        }
        hidden += &mark;
        let definition = &source.definition;
        let mut options = definition.options.clone();
        // Rows go when the table is whole: what has had its time by now would be refused on its way.
        options.ttl = None;
        let new = NewTable {
            name: hidden.clone(),
            schema: definition.schema.clone(),
            partitioning: definition.partitioning.clone(),
            split_points: split_points(source),
            options,
            if_not_exists: false,
        };
        job.unfinished.lock().unwrap_or_else(PoisonError::into_inner).push(hidden.clone());
        self.context.change_catalog(Command::CreateTable(new), "RESTORE", CATALOG_TIMEOUT).await?;
        let table = self.table_refreshed(&hidden).await?;
        Ok(Filling { source, name, table: table.as_ref().clone() })
    }

    /// Has nodes fill the tables.
    async fn fill(&self, tables: &[Filling<'_>], objects: &Objects, from: &BackupPlace, job: &Job) -> Result<()> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        let active: BTreeSet<NodeId> = catalog.active_nodes().map(|node| node.id).collect();
        let nodes: Vec<NodeId> = self.context.liveness.alive().into_iter().filter(|id| active.contains(id)).collect();
        let work: Vec<(&Filling<'_>, &StoredPartition)> = tables
            .iter()
            .flat_map(|table| table.source.partitions.iter().map(move |partition| (table, partition)))
            .collect();
        job.expect(work.len());
        // Collected first: see the gateway.
        let asked: Vec<_> = work
            .iter()
            .enumerate()
            .map(|(place, (table, partition))| self.fill_from(place, &nodes, table, partition, from, job))
            .collect();
        let at_once = PARTITIONS_PER_NODE * nodes.len().max(1);
        let mut done = futures::stream::iter(asked).buffer_unordered(at_once);
        while let Some(filled) = done.next().await {
            filled.map_err(|error| error.context(objects.name("")))?;
            self.partition_done(job);
        }
        Ok(())
    }

    /// Has a node write the rows of a partition; if it cannot, another one.
    async fn fill_from(
        &self,
        place: usize,
        nodes: &[NodeId],
        table: &Filling<'_>,
        partition: &StoredPartition,
        from: &BackupPlace,
        job: &Job,
    ) -> Result<()> {
        let call = BackupCall::Fetch(Box::new(FetchCall {
            url: from.url.clone(),
            options: from.options.clone(),
            source: table.source.definition.clone(),
            partition: partition.id,
            outline: partition.outline.clone(),
            into: table.table.id,
        }));
        let mut last = Error::new(ErrorCode::NodeLost, "there is no node that could do it");
        for attempt in 0..ATTEMPTS_MAX.min(nodes.len()) {
            let node = nodes[(place + attempt) % nodes.len()];
            match self.hand(node, &call, job).await {
                Ok(BackupNews::Fetched { rows }) if rows == partition.rows => return Ok(()),
                Ok(BackupNews::Fetched { rows }) => {
                    let message = format!("{} had {} rows, and {rows} were read", partition.id, partition.rows);
                    return Err(Error::new(ErrorCode::Corruption, message));
                }
                Ok(_) => return Err(Error::internal("a node answered another question than it was asked")),
                // What is damaged there is damaged for everybody.
                Err(error) if error.retryable() && error.code() != ErrorCode::Corruption => {
                    tracing::info!(%node, partition = %partition.id, %error, "a partition is to be restored by another node");
                    last = error.context(node);
                }
                Err(error) => return Err(error.context(node)),
            }
        }
        Err(last)
    }

    /// Gives a table that is whole its name.
    async fn finish(&self, filled: &Filling<'_>, job: &Job) -> Result<()> {
        let id = filled.table.id;
        if let Some(ttl) = filled.source.definition.options.ttl {
            let altered = AlteredTable { ttl: Some(TtlChange::Keep(ttl)), ..AlteredTable::of(id) };
            self.context.change_catalog(Command::AlterTable(altered), "RESTORE", CATALOG_TIMEOUT).await?;
        }
        let rename = Command::RenameTable { table: id, to: filled.name.clone() };
        self.context.change_catalog(rename, "RESTORE", CATALOG_TIMEOUT).await?;
        job.unfinished.lock().unwrap_or_else(PoisonError::into_inner).retain(|name| *name != filled.table.name);
        Ok(())
    }

    /// Drops tables that will not become whole.
    ///
    /// # Errors
    /// They are still there: says how to drop them.
    pub(super) async fn give_up(&self, job: &Job) -> Result<()> {
        let names = std::mem::take(&mut *job.unfinished.lock().unwrap_or_else(PoisonError::into_inner));
        let mut left = Vec::new();
        for name in names {
            let drop = Command::DropTable { name: name.clone(), if_exists: true };
            if self.context.change_catalog(drop, "DROP TABLE", CATALOG_TIMEOUT).await.is_err() {
                left.push(format!("DROP TABLE \"{name}\""));
            }
        }
        match left.is_empty() {
            true => Ok(()),
            false => Err(Error::internal(format!("what is left of it has to be dropped: {}", left.join("; ")))),
        }
    }
}

fn check_free(catalog: &Catalog, name: &str) -> Result<()> {
    match catalog.table(name) {
        None => Ok(()),
        Some(_) => Err(Error::new(ErrorCode::TableExists, format!("table '{name}' exists already"))
            .with_help("give the restored table another name: RESTORE TABLE … FROM … AS name")),
    }
}

/// Where the partitions begin, if they have ranges that are not windows: as it was.
fn split_points(source: &StoredTable) -> Vec<Vec<u8>> {
    let Table { partitioning, options, .. } = &source.definition;
    if options.partition_size_hint.is_some() || !matches!(partitioning, Partitioning::Range { .. }) {
        return Vec::new();
    }
    let starts = source.partitions.iter().filter_map(|partition| Some(partition.range.as_ref()?.start.clone()));
    let starts: BTreeSet<Vec<u8>> = starts.filter(|start| !start.is_empty()).collect();
    starts.into_iter().collect()
}

/// The backup that is meant: by name, or the newest that has the table.
async fn find(objects: &Objects, backup: Option<&str>, table: Option<&str>) -> Result<Manifest> {
    let has = |manifest: &Manifest| {
        table.is_none_or(|name| manifest.tables.iter().any(|stored| stored.definition.name == name))
    };
    let none = |what: String| Err(Error::new(ErrorCode::NotFound, format!("{what} at {}", objects.name("backups"))));
    if let Some(id) = backup {
        if id.contains('/') {
            return none(format!("there is no backup '{id}'"));
        }
        let manifest = read(objects, &format!("{id}.json")).await?;
        return match has(&manifest) {
            true => Ok(manifest),
            false => none(format!("backup {id} has no table '{}'", table.unwrap_or_default())),
        };
    }
    let names = objects.list("backups", BACKUPS_MAX).await?;
    let names = names.iter().rev().filter(|name| name.ends_with(".json"));
    for name in names.take(BACKUPS_READ_MAX) {
        let manifest = read(objects, name).await?;
        if has(&manifest) {
            return Ok(manifest);
        }
    }
    match table {
        Some(table) => none(format!("there is no backup of a table '{table}'")),
        None => none("there is no backup".to_owned()),
    }
}

async fn read(objects: &Objects, name: &str) -> Result<Manifest> {
    let name = format!("backups/{name}");
    let bytes = objects.read(&name, MANIFEST_BYTES_MAX).await?;
    Manifest::parse(&bytes).map_err(|error| error.context(objects.name(&name)))
}

/// A row for each table.
fn answer(manifest: &Manifest, tables: &[Filling<'_>]) -> Result<RecordBatch> {
    let number = |value: &dyn Fn(&StoredTable) -> u64| -> ArrayRef {
        Arc::new(tables.iter().map(|table| value(table.source).cast_signed()).collect::<Int64Array>())
    };
    let backup = std::iter::repeat_n(manifest.id.as_str(), tables.len());
    table_of(vec![
        ("backup", Arc::new(StringArray::from_iter_values(backup))),
        ("table", Arc::new(StringArray::from_iter_values(tables.iter().map(|table| table.name.as_str())))),
        ("partitions", number(&|stored| stored.partitions.len() as u64)),
        ("rows", number(&|stored| stored.partitions.iter().map(|partition| partition.rows).sum())),
        ("bytes", number(&|stored| stored.partitions.iter().map(|partition| partition.bytes).sum())),
    ])
}
