//! What the segments of one store share: the disk, and the node's pool of pages.

use std::sync::{Arc, OnceLock};

use arrow::array::ArrayRef;
use shoal_kernel::env::Disk;
use shoal_kernel::{Planted, SegmentId, Version};

use crate::key::EncodedKeys;
use crate::options::StoreOptions;
use crate::pool::{PagePool, Part, PoolKey};

/// Where a reader looks for what it wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// In the pool first, and it leaves there what it had to read.
    Pooled,
    /// Pages on the disk, without a trace in the pool: for walks through all of them, which would fill it with what nobody
    /// wants again. Dictionaries in the pool, since every page of a row group needs them.
    Walk,
    /// On the disk alone: for checks.
    Disk,
}

/// What identifies the rows of a page, in their order.
#[derive(Debug)]
pub(crate) enum Identities {
    /// The columns of the key, in key order: encoded only where a search looks.
    Columns(Vec<ArrayRef>),
    Encoded(EncodedKeys),
}

/// The identities of a page's rows, and their versions once somebody has asked for them.
#[derive(Debug)]
pub(crate) struct PageKeys {
    pub(crate) identities: Identities,
    pub(crate) versions: OnceLock<Vec<Version>>,
}

impl PageKeys {
    pub(crate) fn new(identities: Identities) -> Self {
        Self { identities, versions: OnceLock::new() }
    }

    /// Bytes of memory for that many rows, with the versions, which may come at any time.
    pub(crate) fn memory_bytes(&self, rows: usize) -> usize {
        let identities = match &self.identities {
            Identities::Columns(columns) => columns.iter().map(|column| column.get_array_memory_size()).sum(),
            Identities::Encoded(keys) => keys.memory_bytes(),
        };
        identities + rows * size_of::<Version>()
    }
}

/// Shared by the segments of one store.
pub(crate) struct SegmentContext {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) planted: Option<Planted>,
    pub(crate) pool: Arc<PagePool>,
    /// The number under which the pool knows them.
    store: u64,
}

impl SegmentContext {
    pub(crate) fn new(disk: Arc<dyn Disk>, options: &StoreOptions) -> Arc<Self> {
        let (planted, pool) = (options.planted, options.pool.clone());
        Arc::new(Self { disk, planted, store: pool.next_store(), pool })
    }

    /// The same for one who has nothing in the pool yet, and whose traces there nobody meets.
    pub(super) fn apart(&self) -> Arc<Self> {
        let (disk, planted, pool) = (self.disk.clone(), self.planted, self.pool.clone());
        Arc::new(Self { disk, planted, store: pool.next_store(), pool })
    }

    /// What the pool calls a part of a segment.
    pub(super) fn key(&self, segment: SegmentId, part: Part) -> PoolKey {
        PoolKey { store: self.store, segment, part }
    }
}
