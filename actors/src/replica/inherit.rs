//! What a replica holds goes to those that its partition was split into.
//!
//! The replicas of the parts are on the same nodes, so each node splits its own store, without a word to the others; no row
//! moves. While the store is split the replica takes writes as before: the voters of the parts are its own, so a majority
//! that acknowledged a write of the old epoch meets every majority of the new one. The parts go on with the parent's
//! log, so the cursors of peers, and its own of theirs, hold on.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use shoal_catalog::{Catalog, Partition, PartitionBounds};
use shoal_kernel::env::Disk;
use shoal_kernel::{Epoch, Error, ErrorCode, KeyRange, PartitionId, Planted, Rare, Result, wire};
use shoal_storage::{SplitChild, Store};

use super::Durable;
use super::handle::ReplicaHandle;
use super::open::{self, FILLING, Form, LOST, Opened, REFILLING};
use super::state::{Lacks, Meta};
use crate::node::context::NodeContext;

/// A replica whose partition was split, and its heirs on this node.
pub(super) struct Estate {
    /// The partition as it was, with the replicas that it would have now.
    pub(super) partition: Partition,
    form: Form,
    heirs: Vec<(PartitionId, KeyRange)>,
}

impl Estate {
    /// Of a partition that was split; `None` if nothing of it is on this node, or if this node's replica had been taken away before
    /// that: what is left of that one goes to nobody.
    pub(super) fn of(context: &NodeContext, catalog: &Catalog, id: PartitionId) -> Option<Self> {
        let ancestor = catalog.ancestors.get(&id).filter(|ancestor| ancestor.holders.contains(&context.node))?;
        // Of one root, what lies within its keys came of it.
        let came_of_it = |heir: &&Partition| {
            heir.root == ancestor.root && heir.replica(context.node).is_some() && ancestor.range.covers(&range(heir))
        };
        let heirs: Vec<&Partition> = catalog.partitions.values().filter(came_of_it).collect();
        let like = (*heirs.first()?).clone();
        let table = catalog.tables.get(&like.table)?;
        let heirs = heirs.iter().map(|heir| (heir.id, range(heir))).collect();
        let bounds = PartitionBounds::Range(ancestor.range.clone());
        let form = Form { schema: Arc::new(table.schema.clone()), fsync: table.options.fsync };
        Some(Self { partition: Partition { id, bounds, parent: ancestor.parent, ..like }, form, heirs })
    }

    fn heirs(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.heirs.iter().map(|(id, _)| *id)
    }

    /// The heirs that have nothing yet.
    async fn without_store(&self, context: &NodeContext) -> Result<Vec<(PartitionId, KeyRange)>> {
        let heirs: Vec<_> =
            self.heirs.iter().map(|(id, range)| (context.replica_dir(*id), (*id, range.clone()))).collect();
        let disk = context.env.disk();
        let looked = context.env.blocking(move || -> Result<Vec<_>> {
            let mut without = Vec::new();
            for (dir, heir) in heirs {
                if !Store::is_in(&*disk, &dir)? {
                    without.push(heir);
                }
            }
            Ok(without)
        });
        looked.await?
    }

    fn children(
        context: &NodeContext,
        heirs: &[(PartitionId, KeyRange)],
        durable: &Durable,
    ) -> Result<Vec<SplitChild>> {
        let meta = wire::encode(durable)?;
        let child = |(id, range): &(PartitionId, KeyRange)| {
            let mut range = range.clone();
            if context.config.has(Planted::SplitGap)
                && let Some(end) = range.end.as_mut().filter(|end| !end.is_empty())
            {
                // The last key with another end than the first one of the next.
                if let Some(last) = end.iter_mut().rev().find(|byte| **byte > 0) {
                    *last -= 1;
                }
            }
            SplitChild { dir: id.to_string(), range, meta: meta.clone() }
        };
        let children = heirs.iter().map(child).filter(|child| !child.range.is_empty());
        Ok(children.collect())
    }

    /// Has the store of a running replica split, while it takes writes. Gives those that have a store now.
    ///
    /// # Errors
    /// As of [`Store::split`]. [`ErrorCode::NotReady`]: the replica has not written down yet how it is.
    pub(super) async fn part_running(&self, context: &NodeContext, store: Arc<Store>) -> Result<Vec<PartitionId>> {
        let meta = store.meta();
        if meta.is_empty() {
            return Err(Error::new(ErrorCode::NotReady, "the replica has only just been made"));
        }
        let children = Self::children(context, &self.heirs, &wire::decode(&meta)?)?;
        context.env.blocking(move || store.split(&children)).await??;
        context.env.reached(Rare::ReplicaSplit);
        Ok(self.heirs().collect())
    }

    /// The same with the store of a replica that does not run. After a crash it may have been split already, among heirs that have
    /// been split themselves since.
    ///
    /// # Errors
    /// As of opening and splitting.
    pub(super) async fn part_closed(&self, context: &Arc<NodeContext>) -> Result<Vec<PartitionId>> {
        let (disk, dir) = (context.env.disk(), context.replica_dir(self.partition.id));
        let done = context.env.blocking(move || match disk.exists(&dir.with_extension(LOST))? {
            true => Ok(None),
            false => Store::split_of(&disk, &dir),
        });
        if let Some(split) = done.await?? {
            return Ok(split.children.iter().filter_map(|name| partition_of(name)).collect());
        }
        // A heir that has a store got it when this one was split, of which a crash may have left no more than a mark beside it.
        let heirs = self.without_store(context).await?;
        if heirs.is_empty() {
            return Ok(self.heirs().collect());
        }
        let handle = ReplicaHandle::new(self.partition.id, &context.config);
        let opened = open::open(context, &self.partition, self.form.clone(), &handle).await?;
        let store = opened.store.clone();
        if let Some(observer) = &context.config.observer {
            let catalog = context.agreement.catalog().borrow().clone();
            let ancestors: Vec<_> = catalog.ancestors_of(self.partition.id).map(|(id, _)| id).collect();
            observer.opened(
                super::moment(context.node, self.partition.id, &store),
                &ancestors,
                &range(&self.partition),
            );
        }
        let alone = !open::has_peers(context, &self.partition);
        let children = Self::children(context, &heirs, &inherited(opened, &self.partition, alone))?;
        let parted = context.env.blocking(move || {
            let parted = store.split(&children);
            store.close();
            parted
        });
        parted.await??;
        context.env.reached(Rare::ReplicaSplitAtStart);
        Ok(self.heirs().collect())
    }
}

/// The keys that a partition may hold.
pub(super) fn range(partition: &Partition) -> KeyRange {
    match &partition.bounds {
        PartitionBounds::Range(range) => range.clone(),
        PartitionBounds::Bucket(_) => KeyRange::all(),
    }
}

/// What the heirs know of themselves, of a replica that was opened to be split.
fn inherited(opened: Opened, partition: &Partition, alone: bool) -> Durable {
    let Opened { store, durable, emptied, in_doubt, blob_holds, .. } = opened;
    // One that never was here has acknowledged nothing, but others have, in its place.
    let begun = Meta { sealed: Epoch(0), counts: false, lacks: Lacks::Everything };
    let mut durable = durable.unwrap_or_else(|| Durable { core: begun, fence: partition.purged, ..Durable::default() });
    if emptied || (in_doubt && !alone) {
        durable.core.counts = false;
        durable.core.lacks = durable.core.lacks.max(if emptied { Lacks::Everything } else { Lacks::Tail });
    }
    if in_doubt && !blob_holds {
        durable.cursors.clear();
    }
    durable.log_id = store.position().0;
    durable
}

/// The partitions of which a node has files.
pub(super) fn on_disk(disk: &dyn Disk, replicas: &Path) -> Result<BTreeSet<PartitionId>> {
    let mut found = BTreeSet::new();
    if !disk.exists(replicas)? {
        return Ok(found);
    }
    for entry in disk.list(replicas)? {
        let (name, beside) = entry.name.split_once('.').unwrap_or((&entry.name, ""));
        if !["", LOST, REFILLING, FILLING].contains(&beside) {
            continue;
        }
        found.extend(partition_of(name));
    }
    Ok(found)
}

/// Whose replica's directory has this name.
pub(crate) fn partition_of(name: &str) -> Option<PartitionId> {
    let id = PartitionId(name.strip_prefix('p')?.parse().ok()?);
    (id.to_string() == name).then_some(id)
}
