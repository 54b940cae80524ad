//! One replica on one disk.
//!
//! Locks, always taken in this order: `flushing`, `compacting` (one of each at a time), `maintenance` (the manifest is being
//! replaced), `writer` (commits one after another), `state` (what readers see; held for moments only), `tokens`.

mod changes;
mod checkpoint;
mod commit;
mod compaction;
mod copy;
mod digest;
mod expire;
mod history;
mod lose;
mod maintenance;
mod open;
mod pull;
mod purge;
mod repair;
mod schema;
mod split;
mod split_point;
mod status;
mod sync;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shoal_kernel::env::Disk;
use shoal_kernel::{Applied, Cutoff, Error, ErrorCode, Hlc, KeyRange, Planted, Result, SegmentId, Version};

use crate::layout::Layout;
use crate::manifest::write_meta;
use crate::memtable::KeyIndex;
use crate::options::StoreOptions;
use crate::pool::PagePool;
use crate::segment::{Segment, SegmentContext};
use crate::state::{Snapshot, SourceId, State};
use crate::token::{TokenRecord, Tokens};
use crate::wal::{Durability, LogFailure, Wal};

pub use changes::{Changed, Changes};
pub use checkpoint::{Checkpoint, CheckpointFile, CheckpointOutline};
use compaction::Compaction;
pub use compaction::{CompactionProgress, CompactionStep};
pub use copy::{CopyHead, Placing, StoreCopy};
pub use digest::{Digest, DigestBuckets};
pub use expire::ExpiryReport;
pub use maintenance::FlushReport;
pub use open::Recovery;
pub use pull::{PullCursor, PullRound, Pulled};
pub use repair::{BucketRows, DigestMoment};
pub use split::{Split, SplitChild};
pub use split_point::{NoSplitPoint, SplitPoint};
pub use status::{SegmentStatus, StoreStatus};

/// The storage engine of one replica. All calls block on the disk; none waits for anything else.
pub struct Store {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Keys that the store holds; rows of others are not taken.
    range: KeyRange,
    /// Whether the newest version of a row wins.
    is_upsert: bool,
    options: StoreOptions,
    context: Arc<SegmentContext>,
    /// Held through a whole flush.
    flushing: Mutex<()>,
    /// Held through a step of compaction.
    compacting: Mutex<Compaction>,
    /// Segments that wait to be merged.
    overdue: AtomicUsize,
    /// The store is being closed.
    ending: AtomicBool,
    maintenance: Mutex<Maintenance>,
    writer: Mutex<Writer>,
    state: Mutex<State>,
    tokens: Mutex<Tokens>,
    meta: Mutex<Vec<u8>>,
    durability: Arc<Durability>,
}

/// What only the one who changes the set of files needs.
struct Maintenance {
    next_segment: SegmentId,
    /// Segments that are no longer part of the store; their files go when no snapshot refers to them.
    retired: Vec<Arc<Segment>>,
    /// Segments that a manifest names of which nobody knows whether it was written.
    unnamed: Vec<SegmentId>,
}

impl Maintenance {
    fn new(next_segment: SegmentId) -> Self {
        Self { next_segment, retired: Vec::new(), unnamed: Vec::new() }
    }
}

/// Dead rows with the position of the record that beat them, as long as that is not flushed, or a reader of changes may ask
/// for what was before it.
type Deaths = BTreeMap<SourceId, Vec<(u64, u32)>>;

/// What only the one who commits needs.
struct Writer {
    wal: Wal,
    /// Keys of the memtable that takes writes.
    index: KeyIndex,
    /// Keys of the memtables that wait for their flush, oldest first.
    sealed: Vec<(u64, Arc<KeyIndex>)>,
    /// Of rows that were winners once.
    deaths: Deaths,
    /// No row with a time below it is taken: the state's cut-off, or the one that it is about to get.
    takes_from: Option<Cutoff>,
    /// No write up to it is taken, but for rows of peers.
    fence: Hlc,
    /// Why no more commits are taken.
    failed: Option<Error>,
    /// Bytes logged since the free space was looked at; `None` to look before the next commit.
    bytes_since_check: Option<u64>,
}

impl Store {
    /// What readers see now. Cheap.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { state: Arc::new(lock(&self.state).clone()) }
    }

    /// What is known of a token that was seen within [`StoreOptions::token_keep`].
    pub fn token(&self, token: &str) -> Option<TokenRecord> {
        if self.has(Planted::TokensForgotten) {
            return None;
        }
        lock(&self.tokens).get(token).map(|entry| entry.record.clone())
    }

    /// The owner's blob, as last set; empty at first.
    pub fn meta(&self) -> Vec<u8> {
        lock(&self.meta).clone()
    }

    /// Replaces the owner's blob, atomically; durable on return, and so is everything that was accepted before: the blob may
    /// speak of it.
    ///
    /// # Errors
    /// As the disk reports; after an error either blob may be there at the next start.
    pub fn set_meta(&self, bytes: Vec<u8>) -> Result<()> {
        self.sync()?;
        let mut meta = lock(&self.meta);
        write_meta(&self.disk, &self.dir, &bytes).map_err(|error| error.with_applied(Applied::Unknown))?;
        *meta = bytes;
        Ok(())
    }

    /// Ends the store: waits for a flush or commit that is under way, gives up a merge, makes durable what is not, and refuses
    /// every later change. To be called before the directory is opened anew, removed, or unlocked; reads of snapshots go on.
    pub fn close(&self) {
        self.ending.store(true, Ordering::Relaxed);
        let _flushing = lock(&self.flushing);
        let mut compacting = lock(&self.compacting);
        compacting.give_up();
        let mut writer = lock(&self.writer);
        // A blob that is being written ends first.
        let _meta = lock(&self.meta);
        if writer.failed.is_none()
            && let Err(LogFailure::Refused(error) | LogFailure::Doubt(error)) = writer.wal.close()
        {
            tracing::warn!(dir = %self.dir.display(), %error, "the log could not be closed in good order");
        }
        writer.failed.get_or_insert_with(|| Error::new(ErrorCode::NotReady, "the store has been closed"));
    }

    /// How rows are laid out now. Commits may rely on it while they hold the writer.
    fn layout(&self) -> Arc<Layout> {
        lock(&self.state).layout.clone()
    }

    /// The pool that its pages lie in, and those of other stores.
    pub fn pool(&self) -> &PagePool {
        &self.context.pool
    }

    /// Keys that the store holds.
    pub fn range(&self) -> &KeyRange {
        &self.range
    }

    /// Whether that bug was planted.
    fn has(&self, planted: Planted) -> bool {
        self.options.planted == Some(planted)
    }

    /// Whether the new row beats the old one. Equal versions are the same row, and nothing happens. Of an event that
    /// arrived twice the first version stays, so that replicas agree on it whatever the order of arrival.
    fn beats(&self, new: Version, old: Version) -> bool {
        let tick = |version: Version| version.time().micros() / 10_000;
        if self.has(Planted::NoTieBreak) && self.is_upsert && tick(new) == tick(old) {
            return new != old;
        }
        let newest_wins = self.is_upsert != self.has(Planted::WrongTieBreak);
        if newest_wins { new > old } else { new < old }
    }
}

impl Writer {
    fn check_sound(&self) -> Result<()> {
        match &self.failed {
            // Who asks again elsewhere is served.
            Some(error) if error.code() == ErrorCode::Moved => Err(error.clone()),
            Some(error) => Err(Error::new(ErrorCode::NotReady, "the store must be opened again")
                .context(error.message())
                .with_applied(Applied::False)),
            None => Ok(()),
        }
    }
}

/// A panic while a lock was held cannot leave half a change behind: the writer marks itself failed around every change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
