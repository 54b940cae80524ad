//! Every state that the catalog of some node came to, by its version: the books against which statements on tables are held.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use shoal_catalog::Catalog;
use shoal_kernel::{Epoch, NodeId, PartitionId, wire};

use super::history::Target;

/// What a statement on a table can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Column {
    /// The column of notes is not there.
    Missing,
    /// It holds whole numbers.
    Whole,
    /// It holds numbers with a fraction.
    Wide,
}

/// One state.
#[derive(Debug)]
struct State {
    node: NodeId,
    digest: u64,
    tables: BTreeSet<String>,
    /// Of the upsert table, if there is one.
    notes: Option<Column>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct States {
    states: BTreeMap<u64, State>,
    /// The newest version that each node has come to.
    newest: BTreeMap<NodeId, u64>,
    /// The voters of each partition in each epoch, and which node said so first.
    owners: BTreeMap<(PartitionId, Epoch), (NodeId, Vec<NodeId>)>,
    /// Two different catalogs of one version.
    differing: BTreeSet<String>,
    /// Two different sets of voters of one epoch.
    in_conflict: BTreeSet<String>,
}

impl States {
    pub(super) fn note(&mut self, node: NodeId, catalog: &Catalog) {
        let version = catalog.version;
        let known = self.newest.get(&node).copied().unwrap_or(0);
        self.newest.insert(node, known.max(version));
        self.note_owners(node, catalog, known);
        let mut hasher = DefaultHasher::new();
        // A catalog that cannot be encoded is none that others can have.
        wire::encode(catalog).unwrap_or_else(|_| node.0.to_le_bytes().to_vec()).hash(&mut hasher);
        let digest = hasher.finish();
        if let Some(state) = self.states.get(&version) {
            if state.digest != digest {
                let what = format!("version {version} of the catalog is another one on {node} than on {}", state.node);
                self.differing.insert(what);
            }
            return;
        }
        let tables = catalog.tables.values().map(|table| table.name.clone()).collect();
        let notes = catalog.table(Target::Upserts.table()).map(|table| {
            let column = table.schema.columns.iter().find(|column| column.name == "note");
            column.map_or(Column::Missing, |column| match column.data_type.is_floating() {
                true => Column::Wide,
                false => Column::Whole,
            })
        });
        self.states.insert(version, State { node, digest, tables, notes });
    }

    fn note_owners(&mut self, node: NodeId, catalog: &Catalog, known: u64) {
        for partition in catalog.partitions.values().filter(|partition| partition.changed > known) {
            let (id, epoch, voters) = (partition.id, partition.epoch, partition.voters().collect::<Vec<_>>());
            let (first, known) = self.owners.entry((id, epoch)).or_insert_with(|| (node, voters.clone()));
            if *known != voters {
                let what = format!("{id} at {epoch} is held by {voters:?} to {node}, and by {known:?} to {first}");
                self.in_conflict.insert(what);
            }
        }
    }

    /// The newest version that any node ever came to.
    pub(crate) fn newest(&self) -> u64 {
        self.newest.values().copied().max().unwrap_or(0)
    }

    /// Different catalogs of one version.
    pub(crate) fn differing(&self) -> impl Iterator<Item = &String> {
        self.differing.iter()
    }

    /// Different voters of one epoch of a partition.
    pub(crate) fn in_conflict(&self) -> impl Iterator<Item = &String> {
        self.in_conflict.iter()
    }

    /// The first version that had a table, and the first one after it that had it no longer.
    pub(crate) fn life(&self, table: &str) -> (Option<u64>, Option<u64>) {
        let mut versions = self.states.iter().map(|(version, state)| (*version, state.tables.contains(table)));
        let came = versions.by_ref().find(|(_, there)| *there).map(|(version, _)| version);
        let went = versions.find(|(_, there)| !*there).map(|(version, _)| version);
        (came, went)
    }

    /// Whether the column of notes was like one of these at some time from one version to another; also if it is not known what it was
    /// like in all of them.
    pub(crate) fn notes_were(&self, wanted: &[Column], from: u64, to: u64) -> bool {
        let states = || self.states.range(from..=to).map(|(_, state)| state.notes);
        states().any(|notes| notes.is_none_or(|notes| wanted.contains(&notes)))
            || u64::try_from(states().count()).is_ok_and(|known| known <= to.saturating_sub(from))
    }
}
