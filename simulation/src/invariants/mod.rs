//! The promises, each with its name, its text, and the predicate that checks it against what clients saw.

mod answers;
mod backups;
mod catalog;
mod clocks;
mod convergence;
mod expiry;
mod late;
mod quorum;
mod seen;
mod writes;

use std::cell::Cell;
use std::sync::Arc;

use shoal_kernel::Fsync;

use crate::apart::EVERY_RUN_ENDS;
use crate::cluster::{Ending, Facts, Ledger, Target, View};
use crate::faults::{Fault, PlannedFault};
use crate::run::{NOTHING_PANICS, Violation};

pub use convergence::unequal;

/// Of one broken promise, the first cases tell enough.
const CASES_MAX: usize = 3;

/// What a run has shown.
#[derive(Debug, Default)]
pub struct Evidence {
    /// Nodes of the cluster.
    pub nodes: u16,
    /// Replicas of every table.
    pub replicas: u16,
    /// Partitions of the upsert table are windows.
    pub upserts_windows: bool,
    /// Those of the event table are.
    pub events_windows: bool,
    /// When the upsert table is synced.
    pub upserts_fsync: Fsync,
    /// When the event table is.
    pub events_fsync: Fsync,
    /// How long events are kept, in microseconds.
    pub events_ttl: Option<u64>,
    /// When they were told to stay for ever, in microseconds of virtual time.
    pub events_stay_from: Option<u64>,
    /// When hosts lost their power, in microseconds of virtual time, in order.
    pub power_losses: Vec<(u64, u16)>,
    /// How the run ended.
    pub ending: Ending,
    /// The faults.
    pub plan: Vec<PlannedFault>,
    /// What replicas accepted.
    pub(crate) ledger: Arc<Ledger>,
    /// Answers that could be judged by what they saw; counted by the check.
    pub(crate) judged: Cell<u64>,
    /// What clients did and were told.
    pub facts: Facts,
    /// What the nodes said at the last look.
    pub views: Vec<View>,
    /// When everything was healed, in microseconds of virtual time.
    pub healed_at: u64,
    /// When the last client had finished.
    pub drained_at: u64,
    /// What the nodes said 15 s after the heal, if one of them did not see every node alive.
    pub not_converged: Option<Vec<View>>,
    /// Why replicas were not equal in time, each with its moment of the run; empty if they were.
    pub unequal: Vec<String>,
    /// Operations that did not succeed in time after the heal.
    pub dead: Vec<String>,
    /// What nodes still had in hand some time after the last client had finished.
    pub in_hand: Vec<String>,
    /// Streams between nodes that were open after every node had been stopped.
    pub connections_left: usize,
    /// What was not in order on the disks of nodes that had been stopped.
    pub on_disk: Vec<String>,
}

impl Evidence {
    /// Whether partitions may get other replicas in the course of the run.
    fn replicas_move(&self) -> bool {
        let moving = |planned: &PlannedFault| {
            matches!(
                planned.fault,
                Fault::Join { .. } | Fault::Drain { .. } | Fault::Decommission { .. } | Fault::Wipe { .. }
            )
        };
        self.nodes > self.replicas || self.plan.iter().any(moving)
    }

    /// Whether partitions of a table are windows, which come with its rows.
    fn windows(&self, target: Target) -> bool {
        match target {
            Target::Upserts | Target::Deletes => self.upserts_windows,
            Target::Events => self.events_windows,
        }
    }
}

/// A promise.
pub struct Invariant {
    /// Its name, for ever.
    pub name: &'static str,
    /// What it says.
    pub text: &'static str,
    check: fn(&Evidence) -> Vec<String>,
}

/// Every promise that a run of the cluster is held to.
pub const INVARIANTS: &[Invariant] = &[
    Invariant {
        name: "no_acknowledged_write_lost",
        text: "After the heal, and after a later loss of power of all nodes, every acknowledged row is there, or a newer one of \
               its key, or the key was deleted. Of a table that is synced late, unless as many nodes lost their power before \
               they had synced the row as its level asks for. If no more nodes are lost for good than a majority bears, or one disk returns flipped bits, this holds for what a majority had \
               acknowledged.",
        check: writes::no_acknowledged_write_lost,
    },
    Invariant {
        name: "newest_wins",
        text: "Of two acknowledged rows of one key, the one with the greater version is shown, whichever came first.",
        check: writes::newest_wins,
    },
    Invariant {
        name: "deleted_rows_stay_deleted",
        text: "A key that was deleted shows no row that is older than its deletion: none that is known to be older at rest, and \
               before that not once every replica has acknowledged the deletion.",
        check: writes::deleted_rows_stay_deleted,
    },
    Invariant {
        name: "deletes_beat_what_they_read",
        text: "The version of a deletion is above that of every row that it can have found.",
        check: writes::deletes_beat_what_they_read,
    },
    Invariant {
        name: "versions_go_up",
        text: "Of two writes through one node, the one that began after the other had been acknowledged has the greater \
               version, also over a restart and whatever its clock did.",
        check: writes::versions_go_up,
    },
    Invariant {
        name: "no_duplicate_after_resend",
        text: "A write that was sent again with its token is there once.",
        check: writes::no_duplicate_after_resend,
    },
    Invariant {
        name: "attempts_agree",
        text: "Two attempts at one write through two nodes at once, if both are acknowledged, are told the same version.",
        check: writes::attempts_agree,
    },
    Invariant {
        name: "acknowledged_at_its_level",
        text: "A write that says it reached a level was held by that many nodes that its coordinator could reach.",
        check: writes::acknowledged_at_its_level,
    },
    Invariant {
        name: "not_applied_means_not_applied",
        text: "A row whose write was refused without effect is seen by nobody, ever.",
        check: answers::not_applied_means_not_applied,
    },
    Invariant {
        name: "complete_answers_are_exact",
        text: "Every row of a complete answer was written, no key appears twice, what all replicas had acknowledged before \
               the question is in it, and aggregates lie within what the possible rows allow; at rest they are exact.",
        check: answers::complete_answers_are_exact,
    },
    Invariant {
        name: "quorum_reads_see_quorum_writes",
        text: "The replicas that an answer at quorum names had accepted, up to the positions that it names, every row and deletion \
               that it asks for and that had been acknowledged at quorum or all before the question, or a newer one of its key. It leaves out no partition that \
               was made for such a row.",
        check: quorum::quorum_reads_see_quorum_writes,
    },
    Invariant {
        name: "answers_are_what_was_seen",
        text: "Every complete answer, aggregates too, is exactly that of the rows which the replicas that it names had accepted up \
               to the positions of their logs that it names. A replica that is opened again has all that it has shown, or begins \
               another log. None drops rows before their time, by the clock of most nodes. \
               No partition of a table that must be read is left out.",
        check: seen::answers_are_what_was_seen,
    },
    Invariant {
        name: "backups_hold_what_was_acknowledged",
        text: "A table that is made of a backup has every row that had been acknowledged at quorum or all before the backup was begun, or a \
               newer one of its key, or the key was deleted; none that was deleted before it was begun, none that was written after its end, \
               and none twice.",
        check: backups::backups_hold_what_was_acknowledged,
    },
    Invariant {
        name: "replicas_equal_after_heal",
        text: "Within 60 s after the heal and the end of the last client's operation every replica has pulled everything, digests agree, \
               and every node gives the same rows.",
        check: convergence::replicas_equal_after_heal,
    },
    Invariant {
        name: "expired_events_are_gone",
        text: "At rest no event is shown that had had its time well before its table was told to keep all that is left.",
        check: expiry::expired_events_are_gone,
    },
    Invariant {
        name: "membership_converges",
        text: "Within 15 s after the heal every node sees every running node alive.",
        check: convergence::membership_converges,
    },
    Invariant {
        name: "catalog_agrees",
        text: "After the heal all nodes have the same catalog, with every table that was created and none that was dropped.",
        check: catalog::catalog_agrees,
    },
    Invariant {
        name: "catalog_is_linearisable",
        text: "No two nodes ever come to different catalogs of one version. A statement on tables that is acknowledged has its effect in a \
               version between the newest one that anybody had come to when it was sent and when it was acknowledged; one that is \
               refused has none.",
        check: catalog::catalog_is_linearisable,
    },
    Invariant {
        name: "answers_come_from_whole_replicas",
        text: "No complete answer reads a replica that was emptied, or may have lost the end of its log, before it has got what it must \
               hold.",
        check: seen::answers_come_from_whole_replicas,
    },
    Invariant {
        name: "who_leaves_hands_over",
        text: "A replica that leaves goes when a majority of the voters has all of its rows.",
        check: convergence::who_leaves_hands_over,
    },
    Invariant {
        name: "one_owner_set_per_epoch",
        text: "No two states of the catalog name different voters for the same epoch of a partition, and no replica acknowledges writes of \
               an epoch when it has sealed a later one.",
        check: catalog::one_owner_set_per_epoch,
    },
    Invariant {
        name: "created_tables_are_seen",
        text: "A node that is asked about a table after it was created knows it, or says that it cannot ask; one that is asked at quorum \
               after it was dropped gives no answer.",
        check: catalog::created_tables_are_seen,
    },
    Invariant {
        name: "queues_under_limits",
        text: "No node has more queries in hand than it may run and let wait, and they use no more memory than it may give them; no more \
               rows are under way from it, wait for one of its replicas or have not been flushed by one than may be.",
        check: convergence::queues_under_limits,
    },
    Invariant {
        name: "no_clock_is_followed_far",
        text: "While the clocks of all nodes but one are right, nothing is acknowledged by more than one replica under a version \
               further ahead than a clock may be; by one replica neither, once nodes have heard of each other's clocks.",
        check: clocks::no_clock_is_followed_far,
    },
    Invariant {
        name: "liveness_after_heal",
        text: "Within 30 s after the heal every kind of operation succeeds through every node.",
        check: convergence::liveness_after_heal,
    },
    Invariant {
        name: "no_internal_errors",
        text: "No client is told that an invariant of Shoal's own is broken, whatever happens to the world.",
        check: convergence::no_internal_errors,
    },
    Invariant {
        name: "nothing_left_over",
        text: "10 s after the last client has finished, nodes hold no query, task, stream or rows on their way; nodes that have \
               been stopped leave no stream open.",
        check: convergence::nothing_left_over,
    },
    Invariant {
        name: "disks_are_in_order",
        text: "On the disks of nodes that have been stopped in good order everything is as it was written, and there is nothing that no \
               manifest and no catalog names.",
        check: convergence::disks_are_in_order,
    },
    Invariant {
        name: NOTHING_PANICS,
        text: "Nothing panics, even where a supervisor would have caught it.",
        check: seen_from_outside,
    },
    Invariant {
        name: EVERY_RUN_ENDS,
        text: "A run is over within ten minutes of wall time: nothing goes round in circles.",
        check: seen_from_outside,
    },
];

/// What whoever drives the runs sees.
fn seen_from_outside(_evidence: &Evidence) -> Vec<String> {
    Vec::new()
}

/// Checks everything.
pub fn check(evidence: &Evidence) -> Vec<Violation> {
    let cases = |invariant: &Invariant| {
        let name = invariant.name;
        let found = (invariant.check)(evidence).into_iter().take(CASES_MAX);
        found.map(move |evidence| Violation { invariant: name.into(), evidence }).collect::<Vec<_>>()
    };
    INVARIANTS.iter().flat_map(cases).collect()
}
