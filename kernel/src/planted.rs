//! Bugs planted on purpose. The simulator switches one on at a time, to prove that its promises are worth their name: each
//! must be found. Nothing else sets them: no flag, no file, no request.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! planted {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal;)+) => {
        /// A bug that breaks a promise.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Planted { $($(#[doc = $doc])+ $variant,)+ }

        impl Planted {
            /// Every one.
            pub const ALL: &'static [Planted] = &[$(Self::$variant),+];

            /// Its name on the command line and in scenario files.
            pub fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),+ } }

            /// What is wrong, in a sentence.
            pub fn what(self) -> &'static str { match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),+ } }
        }
    };
}

planted! {
    // Storage.
    /// A write is acknowledged before its bytes are on the disk.
    SkipFsync = "skip-fsync";
    /// A segment is named by the manifest before its bytes are on the disk.
    SkipSegmentSync = "skip-segment-sync";
    /// Records that are still in memory are taken for flushed.
    FlushedAhead = "flushed-ahead";
    /// Which rows of segments have been replaced is forgotten at a restart.
    MasksForgotten = "masks-forgotten";
    /// A write does not see the rows of segments that it replaces.
    ReplacedRowsStay = "replaced-rows-stay";
    /// The older version wins.
    WrongTieBreak = "wrong-tie-break";
    /// Of versions of the same ten milliseconds the one that comes last wins.
    NoTieBreak = "no-tie-break";
    /// A compaction leaves out its last page.
    CompactionDropsPage = "compaction-drops-page";
    /// A compaction leaves out tombstones, whatever older rows of their keys lie elsewhere.
    TombstoneDropped = "tombstone-dropped";
    /// When a store is split, the last keys of a part are nobody's.
    SplitGap = "split-gap";
    /// The parts of a store that was split do not know its idempotency keys.
    SplitTokensForgotten = "split-tokens-forgotten";
    /// A compaction does not hear of the rows that are replaced while it runs.
    MasksNotCarried = "masks-not-carried";
    /// Catch-up hands out all rows of a record but the last.
    PullGap = "pull-gap";
    /// Checksums of segment pages are not looked at.
    NoPageChecksum = "no-page-checksum";
    /// A replica forgets the idempotency keys that it has seen.
    TokensForgotten = "tokens-forgotten";
    /// Log files are removed before what they hold is in a segment.
    LogRetiredEarly = "log-retired-early";
    /// Directories are not synced: what was renamed into place may be the old file after a loss of power.
    SkipDirectorySync = "skip-directory-sync";
    /// A damaged record in the middle of a log is passed over.
    BadRecordSkipped = "bad-record-skipped";
    /// A replica forgets the idempotency keys that it has seen when it is opened again.
    TokensLostAtRestart = "tokens-lost-at-restart";
    /// A log that may have lost its end goes on under its name.
    LogKeepsName = "log-keeps-name";
    /// After an fsync that failed the log goes on as if it had not.
    FailedSyncIgnored = "failed-sync-ignored";
    // Replicas and their peers.
    /// Replicas drop rows that have had their time by their own clock.
    ExpiryByOwnClock = "expiry-by-own-clock";
    /// A replica acknowledges a write before it commits it.
    AcknowledgeBeforeCommit = "acknowledge-before-commit";
    /// A replica answers reads before it holds what its peers hold.
    AlwaysServes = "always-serves";
    /// Reads see what a replica held some reads ago.
    StaleSnapshot = "stale-snapshot";
    /// Replicas version rows by their own clock, in the order of arrival.
    OrderByArrival = "order-by-arrival";
    /// Replicas do not ask their peers for what they missed.
    NoCatchUp = "no-catch-up";
    /// Catch-up goes on behind rows that could not be committed.
    CursorBeforeRows = "cursor-before-rows";
    /// Catch-up passes over tombstones.
    TombstonesNotPulled = "tombstones-not-pulled";
    /// A replica takes and acknowledges writes of any epoch, also when it has left the voters.
    EpochIgnored = "epoch-ignored";
    /// A replica that is to leave goes at once, with whatever it alone holds.
    LeavesEarly = "leaves-early";
    /// Any number of writes may wait for a replica.
    UnboundedMailbox = "unbounded-mailbox";
    /// A replica that was emptied, or may have lost the end of its log, counts at once.
    CountsAtOnce = "counts-at-once";
    /// A replica takes versions from a clock however far ahead.
    AnyClockTrusted = "any-clock-trusted";
    /// How far a version is ahead is judged by a node's own clock, whatever others say.
    OwnClockBelieved = "own-clock-believed";
    // Gateways.
    /// A write is acknowledged at quorum, or at all, when one replica has answered.
    AcknowledgeEarly = "acknowledge-early";
    /// The time of a key's events is given anew at every attempt.
    NewTimeOnRetry = "new-time-on-retry";
    /// A write that meets a split goes on to one of the halves alone.
    SplitHalfSent = "split-half-sent";
    /// Other rows under an idempotency key that was used are taken for a resend.
    MistakeOverlooked = "mistake-overlooked";
    /// Attempts at one key of an upsert table do not agree on the version of its rows.
    VersionPerAttempt = "version-per-attempt";
    /// Errors of writes say that nothing was applied, whatever they know.
    NotAppliedLies = "not-applied-lies";
    /// A tombstone is stamped with a time from before the rows that it deletes were read.
    DeleteBelowVersion = "delete-below-version";
    /// Rows of every partition go to the first one.
    WrongPartition = "wrong-partition";
    // Queries.
    /// A partition that cannot be read is taken for an empty one.
    SilentPartial = "silent-partial";
    /// A stream between nodes that breaks off is taken for one that has ended.
    EndMissing = "end-missing";
    /// A query that is started again keeps the rows of its first attempt.
    MergedTwice = "merged-twice";
    /// A batch of an answer with many rows is lost on its way to the client.
    BatchLost = "batch-lost";
    /// A query that was cancelled keeps its place among those that run.
    SlotLeaked = "slot-leaked";
    /// The actor of a query stays when the query has ended.
    ActorLeaked = "actor-leaked";
    /// Any number of queries may wait.
    UnboundedQueue = "unbounded-queue";
    // The catalog.
    /// A change of a partition's replicas keeps its epoch.
    TwoOwners = "two-owners";
    /// What is agreed upon about the catalog is told before it is on the disk.
    CatalogSkipFsync = "catalog-skip-fsync";
    /// A node that starts has forgotten whom it has voted for.
    VoteForgotten = "vote-forgotten";
    // Whole nodes.
    /// DROP TABLE says that it is done and does nothing.
    DropForgotten = "drop-forgotten";
    /// A node believes its own catalog when it does not know a table.
    StaleCatalog = "stale-catalog";
    /// A node that starts forgets how far its clock had been.
    ClockBoundForgotten = "clock-bound-forgotten";
    /// Checksums of frames between nodes are not looked at.
    NoFrameChecksum = "no-frame-checksum";
    /// Who takes the items of a stream gives no credit for more.
    CreditLeaked = "credit-leaked";
    /// A node that stops leaves its streams open.
    StreamsLeftOpen = "streams-left-open";
    /// Nobody asks members that were down whether they are back.
    NoSecondChance = "no-second-chance";
    // Reads at quorum.
    /// A read at quorum asks nobody but the replica that it reads.
    QuorumReadsOne = "quorum-reads-one";
    // Repair and purge.
    /// Digests count no tombstones.
    DigestWithoutTombstones = "digest-without-tombstones";
    /// Replicas drop tombstones by their own clock, whatever their peers hold.
    PurgedEarly = "purged-early";
    // Backups.
    /// A replica is backed up as it is, whatever others hold.
    BackupBehind = "backup-behind";
    /// A backup names the first file of a replica only.
    BackupGap = "backup-gap";
    // Filling by files.
    /// A replica that was filled by files goes on behind what its peers had accepted when the last file had come.
    FilledTooFar = "filled-too-far";
}

impl fmt::Display for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_scenario_files() {
        for planted in Planted::ALL {
            assert_eq!(serde_json::to_string(planted).unwrap(), format!("\"{planted}\""));
            assert!(planted.what().ends_with('.') && !planted.what().starts_with(' '), "{}", planted.what());
        }
    }
}
