//! Examining a data directory that no node uses: what lies there, whether it is sound, and what to do if not.
//!
//! Nothing is changed: not a byte, not even what the next start would cut off. A node that runs is left alone; its lock is
//! held meanwhile, so that none starts.

mod replica;
mod report;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use shoal_catalog::Catalog;
use shoal_kernel::env::{Disk, DiskLock, REPLACEMENT};
use shoal_kernel::{Error, ErrorCode, NodeId, PartitionId, Result};
use shoal_membership::{agreement, swim};

pub use report::{CatalogSummary, Examined, ReplicaExamined};
pub use shoal_storage::{ColumnDump, Finding, PageDump, SegmentDump, Severity, StoreReport};

use crate::backup::fetch::RESTORE_DIR;
use crate::node::clock::{CLOCK_FILE, NodeClock};
use crate::node::identity::{self, LOCK_FILE, NODE_FILE};
use crate::query::SPILL_DIR;
use crate::replica::open::{CLUSTER, FILLING, GONE, LOST, REFILLING};

const CATALOG_DIR: &str = "catalog";
const REPLICAS_DIR: &str = "replicas";

/// Examines the data directory of a node, or the directory of one of its replicas. `deep` also compares all statistics with
/// the rows, and the keys of all segments with each other.
///
/// # Errors
/// [`ErrorCode::Forbidden`] if a node runs there; [`ErrorCode::InvalidRequest`] if it is neither; else as the disk reports.
/// Damage is no error: the report tells of it.
pub fn examine(disk: &Arc<dyn Disk>, dir: &Path, deep: bool) -> Result<Examined> {
    let names = names(disk, dir)?;
    if [LOCK_FILE, NODE_FILE, CATALOG_DIR, REPLICAS_DIR].iter().any(|name| names.contains(*name)) {
        let _held = hold(disk, dir)?;
        return DataDir::new(disk, dir).examine(deep, &names);
    }
    let is_replica = |name: &String| name == "MANIFEST" || name.starts_with("wal-") || name.starts_with("seg-");
    if !names.iter().any(is_replica) {
        let message = format!("{} is neither the data directory of a node nor that of a replica", dir.display());
        let help = "give what the node was started with as --data-dir, or a directory below its replicas/";
        return Err(Error::new(ErrorCode::InvalidRequest, message).with_help(help));
    }
    let data_dir = data_dir_of(dir);
    let _held = data_dir.map(|data_dir| hold(disk, data_dir)).transpose()?;
    // The catalog only adds names here; what is wrong with it is seen when the whole directory is examined.
    let (node, catalog) = data_dir.map(|data_dir| context(disk, data_dir)).unwrap_or_default();
    let mut examined = Examined::of(dir);
    examined.node = node;
    examined.replicas.push(replica::examine(disk, dir, node, &catalog, deep)?);
    Ok(examined)
}

/// Shows a segment page by page, with the names of its columns if it lies in a data directory.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`] if that is no segment; [`ErrorCode::Corruption`] if not even its footer can be read; else
/// as the disk reports.
pub fn dump(disk: &Arc<dyn Disk>, segment: &Path) -> Result<SegmentDump> {
    let mut dump = shoal_storage::dump_segment(disk, segment)?;
    let dir = segment.parent();
    let catalog = dir.and_then(data_dir_of).map(|data_dir| context(disk, data_dir).1).unwrap_or_default();
    if let Some(table) = dir.and_then(replica::partition_of).and_then(|id| replica::table_of(&catalog, id)) {
        for column in &mut dump.columns {
            let known = table.schema.columns.iter().find(|known| Some(known.id.0) == column.id);
            column.name = known.map(|known| known.name.clone()).or(column.name.take());
        }
    }
    Ok(dump)
}

fn names(disk: &Arc<dyn Disk>, dir: &Path) -> Result<BTreeSet<String>> {
    let entries = disk.list(dir).map_err(|error| Error::from(error).context(dir.display()))?;
    Ok(entries.into_iter().map(|entry| entry.name).collect())
}

/// The data directory that a replica's directory lies in.
fn data_dir_of(replica: &Path) -> Option<&Path> {
    let replicas = replica.parent().filter(|parent| parent.ends_with(REPLICAS_DIR))?;
    replicas.parent()
}

/// Keeps nodes from starting there, and fails if one runs. Where nothing can be written, none can.
fn hold(disk: &Arc<dyn Disk>, data_dir: &Path) -> Result<Option<Box<dyn DiskLock>>> {
    let path = data_dir.join(LOCK_FILE);
    if !disk.exists(&path)? {
        return Ok(None);
    }
    match disk.lock(&path) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let message = format!("a node uses the data directory {}", data_dir.display());
            Err(Error::new(ErrorCode::Forbidden, message)
                .with_help("stop it first; what a running node thinks of its replicas is at /api/v1/cluster"))
        }
        Err(error) => Err(Error::from(error).context(path.display())),
    }
}

fn context(disk: &Arc<dyn Disk>, data_dir: &Path) -> (Option<NodeId>, Catalog) {
    let node = identity::read(disk, data_dir).ok().flatten();
    let report = agreement::examine(disk, data_dir, node);
    (node, report.map(|report| report.catalog).unwrap_or_default())
}

struct DataDir<'a> {
    disk: &'a Arc<dyn Disk>,
    dir: &'a Path,
    examined: Examined,
}

impl<'a> DataDir<'a> {
    fn new(disk: &'a Arc<dyn Disk>, dir: &'a Path) -> Self {
        Self { disk, dir, examined: Examined::of(dir) }
    }

    fn note(&mut self, file: &str, what: &str, remedy: &str) {
        self.examined.findings.push(Finding::note(file, None, what, remedy));
    }

    fn note_stranger(&mut self, file: &str) {
        let (what, remedy) = match Path::new(file).extension().is_some_and(|extension| extension == REPLACEMENT) {
            true => ("the next content of a file, which was not put in its place", "the next write replaces it"),
            false => ("not Shoal's", "nobody reads it"),
        };
        self.note(file, what, remedy);
    }

    fn examine(mut self, deep: bool, names: &BTreeSet<String>) -> Result<Examined> {
        match identity::read(self.disk, self.dir) {
            Ok(node) => self.examined.node = node,
            Err(error) => self.examined.findings.push(Finding::of(&error, NODE_FILE)),
        }
        match NodeClock::read_bound(self.disk, &NodeClock::path(self.dir)) {
            Ok(bound) => self.examined.clock_bound = bound.map(|bound| bound.to_string()),
            Err(error) => self.examined.findings.push(Finding::of(&error, CLOCK_FILE)),
        }
        let catalog = self.catalog()?;
        self.replicas(&catalog, deep)?;
        match swim::read_generation(self.disk, self.dir) {
            Err(error) if error.code() == ErrorCode::Corruption => {
                self.note(
                    swim::GENERATION_FILE,
                    error.message(),
                    "the next start takes one from the clock; nothing is lost",
                );
            }
            Err(error) => self.examined.findings.push(Finding::of(&error, swim::GENERATION_FILE)),
            Ok(_) => {}
        }
        let restores = self.dir.join(RESTORE_DIR);
        if self.disk.exists(&restores)? && !self.disk.list(&restores)?.is_empty() {
            self.note(RESTORE_DIR, "files of a backup that was being restored", "the next start removes them");
        }
        let spilled = self.dir.join(SPILL_DIR);
        if self.disk.exists(&spilled)? && !self.disk.list(&spilled)?.is_empty() {
            self.note(SPILL_DIR, "files of queries that needed more than memory", "the next start removes them");
        }
        let known = [
            LOCK_FILE,
            NODE_FILE,
            CLOCK_FILE,
            CATALOG_DIR,
            REPLICAS_DIR,
            RESTORE_DIR,
            SPILL_DIR,
            swim::GENERATION_FILE,
        ];
        for name in names.iter().filter(|name| !known.contains(&name.as_str())) {
            self.note_stranger(name);
        }
        Ok(self.examined)
    }

    fn catalog(&mut self) -> Result<Catalog> {
        let report = agreement::examine(self.disk, self.dir, self.examined.node)?;
        for error in &report.errors {
            self.examined.findings.push(Finding::of(error, "catalog/log"));
        }
        if report.torn_bytes > 0 {
            let what = format!("a torn tail of {} bytes: a write that never finished", report.torn_bytes);
            let at = Some(report.log_bytes - report.torn_bytes);
            let remedy = "the next start cuts it off; nothing is lost";
            self.examined.findings.push(Finding::note("catalog/log", at, what, remedy));
        }
        self.examined.catalog = Some(CatalogSummary {
            version: report.catalog.version,
            nodes: report.catalog.nodes.len(),
            tables: report.catalog.tables.len(),
            partitions: report.catalog.partitions.len(),
            applied: report.applied,
            end: report.end.map(|end| end.to_string()),
            log_entries: report.entries,
            log_bytes: report.log_bytes,
            snapshot_bytes: report.snapshot_bytes,
        });
        Ok(report.catalog)
    }

    fn replicas(&mut self, catalog: &Catalog, deep: bool) -> Result<()> {
        let dir = self.dir.join(REPLICAS_DIR);
        let entries = if self.disk.exists(&dir)? { self.disk.list(&dir)? } else { Vec::new() };
        let mut seen: BTreeSet<PartitionId> = BTreeSet::new();
        for entry in entries.iter().filter(|entry| entry.name != CLUSTER) {
            let file = format!("{REPLICAS_DIR}/{}", entry.name);
            let path = dir.join(&entry.name);
            match replica::partition_of(&path) {
                Some(id) if entry.is_dir => {
                    seen.insert(id);
                    let examined = replica::examine(self.disk, &path, self.examined.node, catalog, deep)?;
                    self.examined.replicas.push(examined);
                }
                _ if path.extension().is_some_and(|extension| extension == LOST) => self.note(
                    &file,
                    "this replica was found damaged and is given up",
                    "the next start empties it and fills it from its peers",
                ),
                _ if path.extension().is_some_and(|extension| extension == REFILLING) => self.note(
                    &file,
                    "this replica began empty and does not count until it has what its peers have",
                    "it fills itself while its peers can be reached",
                ),
                _ if path.extension().is_some_and(|extension| extension == FILLING) => self.note(
                    &file,
                    "files of a peer by which a replica is being filled",
                    "the next start goes on from there if the replica holds nothing yet, and removes them otherwise",
                ),
                _ if path.extension().is_some_and(|extension| extension == GONE) => self.note(
                    &file,
                    "what is left of a replica that was taken from this node",
                    "the next start removes it",
                ),
                _ => self.note_stranger(&file),
            }
        }
        let Some(node) = self.examined.node else { return Ok(()) };
        for partition in catalog.partitions.values().filter(|partition| partition.replica(node).is_some()) {
            if !seen.contains(&partition.id) {
                let file = format!("{REPLICAS_DIR}/{}", partition.id);
                self.note(
                    &file,
                    "the catalog places a replica here, and it has not been made yet or was removed",
                    "the next start makes it, and fills it from its peers if it has some",
                );
            }
        }
        Ok(())
    }
}
