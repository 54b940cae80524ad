//! One replica on one disk: a log, a memtable and immutable columnar segments behind one [`Store`].
//!
//! The store takes [`Write`]s in groups ([`Store::commit`]), shows them in [`Snapshot`]s, hands them to peers
//! ([`Store::pull`]) and survives a crash at any moment. A scan never merges: finding the row that a write replaces is the
//! writer's work, readers see rows minus masks.
//!
//! This crate knows nothing of SQL, of the network, or of any other partition. It has no thread, no clock and no async code
//! of its own: every call blocks on [`shoal_kernel::env::Disk`] and nothing else, so callers run it as blocking work.

mod bounds;
mod damage;
mod encoding;
mod ends;
mod examine;
mod expiry;
mod fetch;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod hash;
mod head;
mod key;
mod layout;
mod manifest;
mod memtable;
mod merge;
mod narrow;
mod options;
mod order;
mod planted;
mod pool;
mod predicate;
mod rows;
mod scan;
mod segment;
mod size;
mod state;
mod store;
mod summary;
mod token;
mod visible;
mod wal;

pub use damage::Problem;
pub use examine::{Finding, SegmentSummary, Severity, StoreReport, dump_segment, examine_store};
pub use expiry::check_not_expired;
pub use hash::{contents_of, fingerprint_of};
pub use key::{EncodedKeys, datum_at, encode_keys};
pub use options::StoreOptions;
pub use pool::{PagePool, PoolStatus};
pub use rows::{Accepted, Rows, Write, held_columns};
pub use scan::Scan;
pub use segment::{ColumnDump, DictionaryDump, FilterDump, PageDump, SegmentDump, SegmentReader};
pub use size::{batch_bytes, check_values, rows_within, with_rows_before};
pub use state::Snapshot;
pub use store::{
    BucketRows, Changed, Changes, Checkpoint, CheckpointFile, CheckpointOutline, CompactionProgress, CompactionStep,
    CopyHead, Digest, DigestBuckets, DigestMoment, ExpiryReport, FlushReport, NoSplitPoint, Placing, PullCursor,
    PullRound, Pulled, Recovery, SegmentStatus, Split, SplitChild, SplitPoint, Store, StoreCopy, StoreStatus,
};
pub use token::TokenRecord;
pub use wal::Replay;
