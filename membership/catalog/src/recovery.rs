//! Numbers after a recovery. A replica may have sealed an epoch, stored rows under a schema, or been split into partitions of which the
//! catalog that was recovered knows nothing. Whatever comes next has other numbers, so that nobody takes one for the other.

use crate::command::Effect;
use crate::replicas::next_epoch;
use crate::state::{Catalog, Partition};
use shoal_kernel::{ColumnId, Epoch};

/// So many numbers are left free: more than entries that anybody may have agreed on since a node fell behind and lived.
pub(crate) const FREE: u32 = 1 << 20;

impl Partition {
    /// Whether the catalog was recovered since it was made: a replica that is not there may have been.
    pub fn is_recovered(&self) -> bool {
        self.epoch.0 > u64::from(FREE)
    }
}

impl Catalog {
    /// Whether it was recovered: nodes may hold replicas of which it knows nothing. Says so, too, when it has seen a million changes.
    pub fn is_recovered(&self) -> bool {
        self.version > u64::from(FREE)
    }

    /// The voters of all partitions stay as they are, and settled if they were.
    pub(crate) fn leave_numbers_free(&mut self) -> Vec<Effect> {
        self.version += u64::from(FREE);
        self.next_id += u64::from(FREE);
        for table in self.tables.values_mut() {
            let schema = &mut table.schema;
            schema.version = schema.version.saturating_add(FREE);
            schema.next_column = ColumnId(schema.next_column.0.saturating_add(FREE));
        }
        for partition in self.partitions.values_mut() {
            if partition.settled {
                // The voters are those of before, and hold what these have acknowledged.
                next_epoch(partition);
                partition.settled = true;
            }
            partition.epoch = Epoch(partition.epoch.0 + u64::from(FREE));
        }
        let tables = self.tables.keys().copied().map(Effect::Table);
        let partitions = self.partitions.keys().copied().map(Effect::Partition);
        std::iter::once(Effect::Nodes).chain(tables).chain(partitions).collect()
    }
}
