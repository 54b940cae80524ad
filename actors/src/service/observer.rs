//! For tests: what replicas hold, and what queries saw of it, told to somebody outside.

use serde::{Deserialize, Serialize};
use shoal_kernel::{Epoch, KeyRange, LogId, NodeId, PartitionId};
use shoal_membership::CatalogObserver;
use shoal_storage::Write;

/// A replica as of a place in its accept log: it shows what was accepted up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// The partition.
    pub partition: PartitionId,
    /// The replica's node.
    pub node: NodeId,
    /// The life of the accept log.
    pub log_id: LogId,
    /// The last position.
    pub position: u64,
    /// Rows with a time below it are gone, in microseconds since 1970.
    pub cutoff_micros: Option<i64>,
}

/// Hears of everything that replicas accept and that becomes of the catalog. Called in the order of things, and never for two groups of
/// one replica at once.
pub trait Observer: CatalogObserver {
    /// A replica was opened. A log that nobody has heard of goes on, at this position, where the replica's log before it was; an
    /// emptied replica begins at 0. One of a partition that came of a split, of which nobody has heard on that node, goes on where the
    /// latest of its ancestors was that somebody has heard of there, with the keys of its range.
    fn opened(&self, at: Moment, ancestors: &[PartitionId], range: &KeyRange);

    /// A replica that holds nothing is about to begin a log, at this place, with everything that a peer held at that one. If it is never
    /// opened with it, nothing has come of that.
    fn copied(&self, at: Moment, from: Moment);

    /// A replica stands so, durably: it takes nothing of epochs before the one that it has sealed; and it is whole, or else lacks
    /// what it must hold to answer anybody.
    fn stands(&self, at: Moment, sealed: Epoch, whole: bool);

    /// A replica has acknowledged a gateway's write that was made for an epoch, and counts.
    fn acknowledged(&self, at: Moment, epoch: Epoch);

    /// A replica that was to leave goes with what it had at that place, as a majority of these voters holds it.
    fn handed_over(&self, at: Moment, voters: &[NodeId]);

    /// A replica that is at this place is about to write a group. If nothing more is heard of it, nobody knows how much of it
    /// is written.
    fn writing(&self, at: Moment, group: &[Write]);

    /// What became of the writes of that group: the position of each that was accepted now. Readers may have seen them already.
    fn written(&self, at: Moment, positions: &[Option<u64>]);
}
