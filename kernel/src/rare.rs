//! Rare states that the simulator must reach now and then, or it tests less than it seems to. The code that gets into one
//! says so through [`Env::reached`](crate::Env::reached), which the real world ignores.
//! Source: the "sometimes assertions" of FoundationDB's and Antithesis' testing.

use std::fmt;

macro_rules! rare {
    ($($variant:ident = $text:literal;)+) => {
        /// A rare state.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "the text says it")]
        pub enum Rare { $(#[doc = $text] $variant,)+ }

        impl Rare {
            /// Every one.
            pub const ALL: &'static [Rare] = &[$(Self::$variant),+];

            /// What has happened.
            pub fn as_str(self) -> &'static str { match self { $(Self::$variant => $text),+ } }
        }
    };
}

rare! {
    // The world.
    PowerLossTook = "a loss of power took something that was not synced";
    PowerLostInJob = "power was lost in the middle of a job";
    ProcessEnded = "a node's process ended by itself";
    SyncFailed = "a sync failed";
    WriteTorn = "a write failed after a part of its bytes";
    ReadFlipped = "a read returned a wrong bit";
    FrameCorrupted = "a stream between nodes carried a wrong bit";
    StreamHeld = "a stream waited for a link to be whole";
    // What clients are told.
    TooFewReplicas = "a write found too few replicas";
    PartitionUnavailable = "a query found no replica of a partition";
    LostAfterRows = "a node was lost after rows had left for the client";
    Moved = "a client was told that a partition had moved";
    NoCatalogQuorum = "a change of tables found no quorum of the catalog";
    NotReady = "a node was asked before it was ready";
    DeadlinePassed = "a deadline passed";
    ClockTooFarAhead = "a clock was too far ahead";
    Overloaded = "a node was overloaded";
    DiskFull = "a disk was full";
    ExpiredRefused = "a row was refused because it had had its time";
    Cancelled = "a client cancelled a query and was told so";
    ClientGone = "a client went away in the middle of an answer";
    ClientStalled = "a client stopped reading until the deadline";
    ResendRecognised = "a resend was recognised";
    MistakeNoticed = "other rows under a used idempotency key were refused";
    AttemptsAtOnce = "two attempts at one write were acknowledged at once";
    CaughtUpAtEnd = "a replica had to catch up at the end";
    // Gateways.
    ExactlyQuorum = "a write was acknowledged by exactly a quorum";
    OneOfMany = "a write was acknowledged by one replica of several";
    WrittenWithoutCatalog = "a write was acknowledged while nobody led the catalog";
    NewerEpoch = "a write went on in a newer epoch";
    AskedAgain = "a write asked a replica again that had not been ready";
    ReservationAdopted = "a reservation took over what an earlier attempt had left";
    ReservationRefused = "a reservation met a higher ballot";
    ClockFarOff = "a node's clock was far from those of most others";
    WaitedForClock = "a change of rows waited until its clock had passed what it had read";
    WriteMetSplit = "a write was under way to a partition that was split";
    // Replicas.
    TailCut = "a torn end of a log was cut off";
    LogInDoubt = "the end of a log was in doubt";
    LogUnclean = "a log that is synced late was not closed in good order";
    LogSyncedLate = "a log was synced behind its acknowledgements";
    CursorMoved = "a peer's log had begun anew, and was followed from where both agreed";
    ReplicaEmptied = "a damaged replica was emptied";
    ReplicaRefilled = "an emptied replica counted again";
    ReplicaRestarted = "a replica was restarted";
    ReplicaRestartedOften = "a replica was restarted for the third time in a row";
    StaleEpoch = "a replica refused a stale epoch";
    RowsPulled = "a replica pulled rows that it had missed";
    LogBegunAnew = "a replica met a peer whose log had begun anew";
    DiedWhileMerged = "rows were replaced while their segments were merged";
    RowsExpired = "a replica dropped rows that had had their time";
    SegmentExpired = "a replica dropped a whole segment that had had its time";
    JoinerDiffered = "a replica that joined had to be compared again";
    HandedOver = "a replica that was to leave had handed over what it held";
    Settled = "the voters of a partition held what had been acknowledged before they were";
    ReplicaSplit = "a replica that ran was split";
    ReplicaSplitAtStart = "a replica was split when its node started";
    LeftReplicaRemoved = "what was left of a replica that had been taken from a node was removed";
    TokenElsewhere = "a replica knew an idempotency key from a peer";
    // Queries.
    SchemaAwaited = "a query waited for a node to hear of a table's schema";
    UpdatedWhileAltered = "rows to be updated had got another schema than the one planned with";
    QueryRestarted = "a query was started again because a node was lost";
    QueryReplanned = "a query was planned again because a partition had been split or dropped";
    QueryQueued = "a query waited for its turn";
    QueryAvoidsNode = "a query avoided a node that had failed it";
    LaggardPassedOver = "a query passed over its own node's replica, which was far behind";
    LaggardToldOf = "a node passed over another one's replica, which was told to be far behind";
    Spilled = "a task put on disk what memory did not hold";
    Broadcast = "all rows of a fragment went to several tasks of another one";
    KeyReadPlanned = "a read by key became a query, because the replica that was asked could not answer";
    KeyChangePlanned = "rows to be changed could not be found by key, and were found by a query";
    QueryLeavesSilent = "a query began anew without a node that had fallen silent";
    SilenceNoticed = "a node that was asked for rows did not even say whether it was there";
    // Placement.
    ReplicaMade = "a replica more was made of a partition";
    SplitBySize = "a partition that had outgrown its limits was split";
    ReplicaGivenUp = "a node gave up on a replica that kept failing";
    ReplicaRetired = "a replica was told to leave";
    // Agreement and membership.
    VoterReplaced = "another node votes on the catalog in the place of one";
    WindowMade = "a window was made for rows that were in no partition";
    WindowDropped = "a window was dropped with all its rows";
    AlteredByOthers = "two changes of one table met in the catalog";
    ProposalRepeated = "a change of the catalog was proposed again";
    LeaderChanged = "the leader changed while a change of the catalog was under way";
    SnapshotInstalled = "a node took over a snapshot of the catalog";
    CatalogTailCut = "a torn end of the catalog's log was cut off";
    CameBack = "a node heard that it was taken for down, and came back under a new generation";
    SuspicionLifted = "a suspect objected in time";
    Overslept = "a node noticed that it had stood still, and read what had come before it blamed others";
    NodeStopped = "a node stopped in good order while clients were at work";
    // Reads at quorum.
    QuorumPulled = "a read at quorum pulled what its replica lacked";
    QuorumShort = "a read at quorum found too few replicas that count";
    QuorumByNewCatalog = "a read at quorum was planned anew for a newer catalog";
    // Repair and purge.
    TombstonesPurged = "a replica dropped tombstones that all replicas had";
    RowsRepaired = "a replica got rows from a peer that no log had told it of";
    // Backups.
    BackupRepeated = "a backup was begun anew, for partitions had been split or moved";
    BackupElsewhere = "another replica was backed up than the first one asked";
    BackupRestored = "a table was made of a backup";
    // Filling by files.
    FilledByFiles = "a replica was filled by whole segments";
    FileKept = "a replica that was filled by files had one of them already";
    FillBrokenOff = "a replica that was being filled by files lost its peer on the way";
    PeerKnownByLineage = "a replica knew a peer's log by the one that it had gone on from";
}

impl fmt::Display for Rare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn texts_are_different() {
        let texts: BTreeSet<&str> = Rare::ALL.iter().map(|rare| rare.as_str()).collect();
        assert_eq!(texts.len(), Rare::ALL.len());
    }
}
