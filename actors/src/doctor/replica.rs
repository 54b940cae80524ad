//! One replica's directory, with what the catalog knows of it.

use std::path::Path;
use std::sync::Arc;

use shoal_catalog::{Catalog, Table};
use shoal_kernel::env::Disk;
use shoal_kernel::{NodeId, PartitionId, Result};
use shoal_storage::{Finding, examine_store};

use super::report::ReplicaExamined;
use crate::replica::inherit;
use crate::replica::open::remembered;

/// The partition that a directory is named for.
pub(super) fn partition_of(dir: &Path) -> Option<PartitionId> {
    inherit::partition_of(dir.file_name()?.to_str()?)
}

pub(super) fn table_of(catalog: &Catalog, partition: PartitionId) -> Option<&Table> {
    catalog.tables.get(&catalog.partitions.get(&partition)?.table)
}

pub(super) fn examine(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    node: Option<NodeId>,
    catalog: &Catalog,
    deep: bool,
) -> Result<ReplicaExamined> {
    let id = partition_of(dir);
    let partition = id.and_then(|id| catalog.partitions.get(&id));
    let table = id.and_then(|id| table_of(catalog, id));
    let schema = table.map(|table| Arc::new(table.schema.clone()));
    let mut store = examine_store(disk, dir, schema, deep)?;
    let peers: Option<Vec<NodeId>> =
        partition.map(|partition| partition.voters().filter(|voter| Some(*voter) != node).collect());
    if let (Some(remedy), Some(id)) = (peers.as_deref().map(remedy), id) {
        store.findings.iter_mut().for_each(|finding| finding.advise(&remedy.replace("{}", &id.to_string())));
    }
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let counts = match remembered(&store.meta) {
        Ok(Some(remembered)) => {
            if store.log_id.is_some_and(|log_id| log_id != remembered.log_id) {
                store.findings.push(Finding::note(
                    "META",
                    None,
                    "the end of an earlier log was in doubt, and the replica has not counted since",
                    "it counts again once it has compared with its peers",
                ));
            }
            Some(remembered.counts)
        }
        Ok(None) => None,
        Err(error) => {
            store.findings.push(Finding::of(&error, "META"));
            None
        }
    };
    if partition.is_none_or(|partition| node.is_some_and(|node| partition.replica(node).is_none()))
        && catalog.cluster_id != 0
    {
        store.findings.push(Finding::note(
            name.as_str(),
            None,
            "the catalog, as far as this node knew it, places no such replica here",
            "its table was dropped, or the replica is gone from this node; once the catalog is up to date and says so, the \
             directory may be removed",
        ));
    }
    Ok(ReplicaExamined { name, table: table.map(|table| table.name.clone()), peers, counts, store })
}

/// What damage of a replica comes to, with these peers; `{}` stands for the partition.
fn remedy(peers: &[NodeId]) -> String {
    match peers {
        [] => "there is no other replica: a start leaves the files as they are and refuses reads and writes of {}; put a copy \
               of this directory in its place"
            .to_owned(),
        peers => {
            let names: Vec<String> = peers.iter().map(ToString::to_string).collect();
            format!("the next start empties this replica and fills it from {}", names.join(", "))
        }
    }
}
