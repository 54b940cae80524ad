//! What an examination tells.

use std::path::{Path, PathBuf};

use serde::Serialize;
use shoal_kernel::NodeId;
use shoal_storage::{Finding, Severity, StoreReport};

/// A directory that was examined.
#[derive(Debug, Clone, Serialize)]
pub struct Examined {
    /// Which.
    pub dir: PathBuf,
    /// The node that it belongs to, if that can be read.
    pub node: Option<NodeId>,
    /// The node has given out no version above this time.
    pub clock_bound: Option<String>,
    /// What is agreed, as far as this node knew; none if only a replica was examined.
    pub catalog: Option<CatalogSummary>,
    /// Its replicas, by name of their directory.
    pub replicas: Vec<ReplicaExamined>,
    /// What there is to say beside the replicas.
    pub findings: Vec<Finding>,
}

/// The node's copy of the catalog.
#[derive(Debug, Clone, Serialize)]
pub struct CatalogSummary {
    /// Changes so far.
    pub version: u64,
    /// Members.
    pub nodes: usize,
    /// Tables.
    pub tables: usize,
    /// Partitions.
    pub partitions: usize,
    /// Index of the last entry in it.
    pub applied: Option<u64>,
    /// Where its log ends, agreed upon or not: of the nodes that are left, [`crate::recovery`] wants the one that has got furthest.
    pub end: Option<String>,
    /// Entries in its log.
    pub log_entries: usize,
    /// Bytes of its log.
    pub log_bytes: u64,
    /// Bytes of its snapshot.
    pub snapshot_bytes: u64,
}

/// A replica that was examined.
#[derive(Debug, Clone, Serialize)]
pub struct ReplicaExamined {
    /// The name of its directory: its partition.
    pub name: String,
    /// Its table, if the catalog knows the partition.
    pub table: Option<String>,
    /// Nodes with other voting replicas; none if the catalog does not know the partition.
    pub peers: Option<Vec<NodeId>>,
    /// Whether it counted for reads and writes; none if it has never been opened to the end.
    pub counts: Option<bool>,
    /// Its files.
    #[serde(flatten)]
    pub store: StoreReport,
}

impl Examined {
    pub(super) fn of(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            node: None,
            clock_bound: None,
            catalog: None,
            replicas: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Everything found, with the replica that it is about.
    pub fn all_findings(&self) -> impl Iterator<Item = (Option<&ReplicaExamined>, &Finding)> {
        let beside = self.findings.iter().map(|finding| (None, finding));
        beside.chain(
            self.replicas
                .iter()
                .flat_map(|replica| replica.store.findings.iter().map(move |found| (Some(replica), found))),
        )
    }

    /// How many findings are damage.
    pub fn damaged(&self) -> usize {
        self.all_findings().filter(|(_, finding)| finding.severity == Severity::Damage).count()
    }
}
