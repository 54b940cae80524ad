//! Settings of a store.

use std::sync::Arc;
use std::time::Duration;

use shoal_kernel::Planted;

use crate::pool::PagePool;

/// Bytes of the pool of a store that is given none.
const POOL_BYTES_MAX: usize = 64 << 20;

/// Settings of one store. Every limit names its unit.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The memtable is due for a flush beyond this many bytes.
    pub memtable_bytes_max: u64,
    /// Writes are refused as overload while memtables together hold more than this; flushing has fallen behind.
    pub memtables_bytes_max: u64,
    /// Writes are refused while less than this is free on the disk.
    pub disk_reserve_bytes: u64,
    /// Bytes of log between two looks at the free space.
    pub reserve_check_bytes: u64,
    /// Every group of writes is synced before it is acknowledged. Otherwise it survives the end of the process, and a loss of
    /// power only once [`crate::Store::sync`] was called, the log went on in its next file, or the memtable was flushed.
    /// A loss of power takes the newest records. Reservations are synced in any case.
    pub sync_commits: bool,
    /// A file of the log is followed by the next one beyond this many bytes.
    pub wal_segment_bytes_max: u64,
    /// How long a token is remembered, counted from the time in its version.
    pub token_keep: Duration,
    /// Writes with a new token are refused as overload while so many are remembered.
    pub tokens_max: usize,
    /// What is kept of segments in memory. The stores of a node share one; unless it is given, a store has one of its own.
    pub pool: Arc<PagePool>,
    /// A segment's tier is the power of this that its rows have reached; about so many segments of a tier make one of the next.
    /// More means less written, and more segments to read.
    pub compaction_fan_in: usize,
    /// Segments are not merged beyond this many rows.
    pub segment_rows_max: u32,
    /// Writes are refused as overload while this many segments wait to be merged: compaction has fallen behind.
    pub segments_overdue_max: usize,
    /// A bug planted on purpose; none outside tests.
    pub planted: Option<Planted>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            memtable_bytes_max: 64 << 20,
            memtables_bytes_max: 256 << 20,
            disk_reserve_bytes: 256 << 20,
            reserve_check_bytes: 4 << 20,
            sync_commits: true,
            wal_segment_bytes_max: 64 << 20,
            token_keep: Duration::from_secs(24 * 3600),
            tokens_max: 4 << 20,
            pool: Arc::new(PagePool::new(POOL_BYTES_MAX)),
            compaction_fan_in: 4,
            segment_rows_max: 64 << 20,
            segments_overdue_max: 64,
            planted: None,
        }
    }
}
