//! Partitions that become two. Nothing moves: the replicas of both are on the nodes of the one that was split, and each of
//! these splits its own when it hears of it. The voters stay the same, so whatever a majority of them has acknowledged is in
//! every majority of either half; the epoch goes up, so that writes are routed anew.

use shoal_kernel::limits::KEY_BYTES_MAX;
use shoal_kernel::{Epoch, KeyRange, PartitionId};

use crate::command::{CatalogError, Effect};
use crate::replicas::{check_epoch, next_epoch};
use crate::state::{Ancestor, Catalog, Partition, PartitionBounds, Table};
use crate::tables::check_partition_count;

impl Catalog {
    pub(crate) fn split_partition(
        &mut self,
        id: PartitionId,
        at: Vec<u8>,
        epoch: Epoch,
    ) -> Result<Vec<Effect>, CatalogError> {
        if let Some(ancestor) = self.ancestors.get(&id) {
            let begins_there = |partition: &Partition| {
                partition.root == ancestor.root
                    && matches!(&partition.bounds, PartitionBounds::Range(range) if range.start == at)
            };
            return match self.partitions.values().any(begins_there) {
                true => Ok(Vec::new()),
                false => Err(CatalogError::SplitElsewhere(id)),
            };
        }
        let partition = self.partition_mut(id)?.clone();
        check_epoch(&partition, epoch)?;
        if !partition.settled {
            return Err(CatalogError::Unsettled(id));
        }
        let PartitionBounds::Range(range) = partition.bounds.clone() else {
            return Err(CatalogError::Refused(format!("{id} is a bucket of hashes, and cannot be split")));
        };
        if at <= range.start || !range.contains(&at) || at.len() > KEY_BYTES_MAX {
            return Err(CatalogError::Refused(format!("the key to split {id} at is not inside {range:?}")));
        }
        let table = partition.table;
        let partitions = self.tables.get(&table).ok_or(CatalogError::TableGone(table))?.partitions.len();
        check_partition_count(partitions as u64 + 1)?;

        // From here on nothing fails: the state changes whole or not at all.
        let halves = [
            KeyRange { start: range.start.clone(), end: Some(at.clone()) },
            KeyRange { start: at, end: range.end.clone() },
        ];
        let mut effects = vec![Effect::Table(table), Effect::Partition(id)];
        let mut made = Vec::with_capacity(halves.len());
        for range in halves {
            let mut half = Partition {
                id: PartitionId(self.draw_id()),
                bounds: PartitionBounds::Range(range),
                parent: Some(id),
                ..partition.clone()
            };
            next_epoch(&mut half);
            // The voters are those of before, and hold what these have acknowledged.
            half.settled = true;
            half.replicas.iter().for_each(|replica| self.held.add(replica.node));
            effects.push(Effect::Partition(half.id));
            made.push(half.id);
            self.partitions.insert(half.id, half);
        }
        partition.replicas.iter().for_each(|replica| self.held.remove(replica.node));
        self.partitions.remove(&id);
        let ancestor = Ancestor {
            range,
            holders: partition.replicas.iter().map(|replica| replica.node).collect(),
            parent: partition.parent,
            root: partition.root,
            children: made.len() as u32,
        };
        self.ancestors.insert(id, ancestor);
        self.set_partitions(table, |ids| {
            ids.retain(|other| *other != id);
            ids.extend(made);
        });
        Ok(effects)
    }

    /// A partition has gone for good: forgets the ancestors of which nothing is left.
    pub(crate) fn forget_ancestors(&mut self, parent: Option<PartitionId>) {
        let mut next = parent;
        while let Some(id) = next {
            let Some(ancestor) = self.ancestors.get_mut(&id) else { return };
            ancestor.children = ancestor.children.saturating_sub(1);
            if ancestor.children > 0 {
                return;
            }
            next = ancestor.parent;
            self.ancestors.remove(&id);
        }
    }

    /// The partitions that were split one after the other until this one came of it, the latest first.
    pub fn ancestors_of(&self, id: PartitionId) -> impl Iterator<Item = (PartitionId, &Ancestor)> + '_ {
        let parent_of = |id: PartitionId| match self.partitions.get(&id) {
            Some(partition) => partition.parent,
            None => self.ancestors.get(&id).and_then(|ancestor| ancestor.parent),
        };
        std::iter::successors(parent_of(id), move |id| parent_of(*id))
            .map_while(|id| Some((id, self.ancestors.get(&id)?)))
    }

    /// The partition that was there before any split: itself, if there was none. What has to stay the same over splits goes by it.
    pub fn root_of(&self, id: PartitionId) -> PartitionId {
        let of_ancestor = || self.ancestors.get(&id).map(|ancestor| ancestor.root);
        self.partitions.get(&id).map(|partition| partition.root).or_else(of_ancestor).unwrap_or(id)
    }

    /// The keys of a partition of a table by range, whether it was split since or not.
    pub fn range_of(&self, id: PartitionId) -> Option<&KeyRange> {
        match self.partitions.get(&id).map(|partition| &partition.bounds) {
            Some(PartitionBounds::Range(range)) => Some(range),
            Some(PartitionBounds::Bucket(_)) => None,
            None => self.ancestors.get(&id).map(|ancestor| &ancestor.range),
        }
    }

    /// The roots of a table's partitions, each once, by the start of its keys.
    pub fn roots(&self, table: &Table) -> Vec<PartitionId> {
        let mut roots: Vec<PartitionId> = table.partitions.iter().map(|id| self.root_of(*id)).collect();
        roots.dedup();
        roots
    }
}
