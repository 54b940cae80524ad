//! The replica's rules, pure: which write may be accepted, when an epoch is sealed, when this replica counts, and when it
//! asks to be promoted. No I/O, no clock, no runtime.
//!
//! - A write is accepted only in the epoch that this replica has durably sealed; an older one is answered `moved`.
//! - Before the next epoch serves, the commit in flight ends, then the new epoch is made durable. From then on nothing of the
//!   old epoch is acknowledged here.
//! - A replica that is new, was emptied, or is in doubt about the end of its log takes writes and counts for no level, until
//!   it holds the union of N-W+1 *other* members. If it may have lost what it acknowledged in this epoch: of the present set.
//!   If the partition is not settled: of the set before, each having sealed the new epoch, or of one that is settled.
//! - A voter is *settled* when it holds everything that was acknowledged at quorum in the epochs before. Once a majority is, the
//!   partition is, and only then may its set of voters change again.
//! - A replica that is leaving takes nothing any more, and asks to be removed once a majority of the voters has told that it
//!   holds, durably, everything that this one holds.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use shoal_catalog::{Command, Partition, ReplicaState as Role};
use shoal_kernel::level::{quorum, seal_quorum};
use shoal_kernel::{Epoch, Error, ErrorCode, NodeId};

/// Bytes that one group commit takes at most (always at least one write).
pub(crate) const COMMIT_BYTES_MAX: u64 = 16 << 20;

/// A write in hand; its rows are kept by the shell.
pub(crate) type Ticket = u64;

/// What a replica remembers over a restart, beside its rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// The newest epoch sealed here.
    pub(crate) sealed: Epoch,
    /// Whether this replica counts for reads and writes.
    pub(crate) counts: bool,
    /// What it may lack of what it has acknowledged, or its place has, until it counts.
    pub(crate) lacks: Lacks,
}

/// What a replica may lack of what it has acknowledged, from less to more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(crate) enum Lacks {
    /// Nothing.
    #[default]
    Nothing,
    /// The end of its log was in doubt.
    Tail,
    /// It began empty, not at the founding: what it holds vouches for nothing.
    Everything,
}

/// What happens to a replica.
#[derive(Debug)]
pub(crate) enum Event {
    /// A gateway's write, made for an epoch.
    Write { ticket: Ticket, epoch: Epoch, bytes: u64 },
    /// Rows pulled from a peer: history, whatever the epoch.
    Pulled { ticket: Ticket, bytes: u64 },
    /// The commit in flight has ended.
    Committed,
    /// The catalog says something about the partition.
    Catalog(Box<Partition>),
    /// [`Effect::Persist`] is durable.
    Persisted(Meta),
    /// Everything that a peer held when asked is here, and the peer had sealed that epoch by then.
    Heard { peer: NodeId, sealed: Epoch, counts: bool, settled: bool, in_doubt: bool },
    /// A majority of the voters of that epoch holds everything that this replica held once it had sealed it.
    Drained(Epoch),
    /// Every peer has been asked once since the start; those that did not answer may be gone.
    RoundDone,
    /// [`Effect::Compare`] has ended: whether the digests of enough voters of that epoch agree with this replica's.
    Compared(Epoch, bool),
    /// The catalog has not taken a proposal within its time.
    ProposalEnded,
}

/// What the shell must do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Answer a write with an error.
    Reject(Ticket, Error),
    /// Commit these writes together, then say [`Event::Committed`].
    Commit(Vec<Ticket>),
    /// Make this durable, then say [`Event::Persisted`].
    Persist(Meta),
    /// Ask the peers now instead of at the next turn.
    CatchUp,
    /// Compare digests with so many voters at least and pull what is missing, then say [`Event::Compared`].
    Compare(usize),
    /// Propose to the catalog, then say [`Event::ProposalEnded`].
    Propose(Box<Command>),
}

#[derive(Debug)]
struct Queued {
    ticket: Ticket,
    bytes: u64,
    /// None for pulled rows.
    epoch: Option<Epoch>,
}

/// A peer whose rows are all here.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    sealed: Epoch,
    /// It counted itself when it was asked.
    counts: bool,
    /// It was settled.
    settled: bool,
    /// It may lack some of what it has acknowledged: the end if it has sealed an epoch, otherwise everything.
    in_doubt: bool,
}

impl Heard {
    /// Whether all that it has it got from others, and what it once acknowledged is gone for good.
    fn has_nothing_of_its_own(&self) -> bool {
        self.sealed == Epoch(0) && self.in_doubt
    }
}

/// The rules' memory.
#[derive(Debug)]
pub(crate) struct ReplicaCore {
    node: NodeId,
    partition: Partition,
    meta: Meta,
    queue: VecDeque<Queued>,
    committing: bool,
    persisting: bool,
    proposing: bool,
    comparing: bool,
    /// The epoch in which enough voters were seen to hold what this joining replica holds.
    agreed: Option<Epoch>,
    heard: BTreeMap<NodeId, Heard>,
    /// The epoch of which it may have acknowledged writes that it does not hold any more.
    lapsed: Option<Epoch>,
    /// Enough others hold what it holds.
    drained: bool,
    round_done: bool,
    /// It has never held anything, so an empty answer of its own says nothing while it has not heard a peer.
    fresh: bool,
}

impl ReplicaCore {
    /// A replica that starts. `meta` is what was durable; `None` for one that has never been here.
    pub(crate) fn new(node: NodeId, partition: Partition, meta: Option<Meta>, emptied: bool, in_doubt: bool) -> Self {
        // A voter that has never been here is one from the founding, for others begin by joining; it may hear of the partition only
        // after that has lost another one. It has acknowledged nothing, so what it holds is all that it ever held.
        let previous = &partition.previous_voters;
        let founding = (previous.is_empty() || (!partition.settled && previous.contains(&node)))
            && partition.replica(node).is_some_and(is_voting)
            && !partition.is_recovered();
        let alone = partition.settled && partition.voters().all(|voter| voter == node);
        let fresh = meta.is_none() && !alone;
        let lapsed = emptied || meta.as_ref().is_none_or(|meta| meta.sealed == partition.epoch);
        let lapsed = lapsed.then_some(partition.epoch);
        let begun = if founding { Lacks::Nothing } else { Lacks::Everything };
        let mut meta = meta.unwrap_or(Meta { sealed: Epoch(0), counts: founding, lacks: begun });
        if emptied || (in_doubt && !alone) {
            meta.counts = false;
            meta.lacks = meta.lacks.max(if emptied { Lacks::Everything } else { Lacks::Tail });
        }
        Self {
            node,
            partition,
            meta,
            queue: VecDeque::new(),
            committing: false,
            persisting: false,
            proposing: false,
            comparing: false,
            agreed: None,
            heard: BTreeMap::new(),
            lapsed,
            drained: false,
            round_done: false,
            fresh,
        }
    }

    /// Whether acknowledgements of this replica count.
    pub(crate) fn counts(&self) -> bool {
        self.meta.counts && self.meta.sealed == self.partition.epoch && self.role() == Some(Role::Voting)
    }

    /// Whether it began empty and may lack anything.
    pub(crate) fn lacks_everything(&self) -> bool {
        self.meta.lacks == Lacks::Everything
    }

    /// Whether it is being filled: it began empty, or is yet to join.
    pub(crate) fn fills(&self) -> bool {
        self.lacks_everything() || self.role() == Some(Role::Joining)
    }

    /// What is to be remembered of it.
    pub(crate) fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Whether it may answer reads: it counts, and has asked its peers since it started.
    pub(crate) fn serves(&self) -> bool {
        self.counts() && self.round_done && !self.fresh
    }

    /// Why it does not serve, for people.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if self.serves() {
            None
        } else if self.role() == Some(Role::Joining) {
            Some("joining: it is being filled from its peers")
        } else if self.role() == Some(Role::Leaving) {
            Some("leaving: it hands over what it holds")
        } else if self.meta.sealed != self.partition.epoch {
            Some("sealing a new epoch")
        } else if !self.meta.counts {
            Some("waiting until it holds what enough of its peers hold")
        } else {
            Some("asking its peers for what it missed")
        }
    }

    /// The catalog's view that it works under.
    pub(crate) fn partition(&self) -> &Partition {
        &self.partition
    }

    /// The epoch for which this replica's rows vouch to a peer that is being filled. None while they are being filled
    /// themselves: two emptied replicas must not take each other for full.
    pub(crate) fn vouched(&self) -> Epoch {
        if self.meta.lacks == Lacks::Everything { Epoch(0) } else { self.meta.sealed }
    }

    /// Whether it may lack some of what it has acknowledged. If it vouches for no epoch either, it has nothing left of that.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.meta.lacks != Lacks::Nothing
    }

    /// The newest epoch that it has sealed: of no older one it accepts anything.
    pub(crate) fn sealed(&self) -> Epoch {
        self.meta.sealed
    }

    /// What to do first, before any event.
    pub(crate) fn start(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.settle(&mut effects);
        effects
    }

    /// One step.
    pub(crate) fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Write { ticket, epoch, bytes } => {
                if epoch != self.partition.epoch || self.role() == Some(Role::Leaving) {
                    effects.push(Effect::Reject(ticket, self.moved(epoch)));
                } else {
                    self.queue.push_back(Queued { ticket, bytes, epoch: Some(epoch) });
                }
            }
            Event::Pulled { ticket, bytes } => self.queue.push_back(Queued { ticket, bytes, epoch: None }),
            Event::Committed => self.committing = false,
            Event::Catalog(partition) => {
                // Views arrive in the catalog's order; an older one than we hold can only be a late message.
                if partition.epoch >= self.partition.epoch {
                    if partition.epoch > self.partition.epoch {
                        self.heard.clear();
                        self.drained = false;
                    }
                    self.proposing = false;
                    self.partition = *partition;
                    // One that was to stay after all, and leaves again, has taken more meanwhile.
                    self.drained &= self.role() == Some(Role::Leaving);
                }
            }
            Event::Persisted(meta) => {
                self.persisting = false;
                let sealed_anew = meta.sealed > self.meta.sealed;
                self.meta = meta;
                if sealed_anew && !(self.meta.counts && self.partition.settled) {
                    effects.push(Effect::CatchUp);
                }
            }
            Event::Heard { peer, sealed, counts, settled, in_doubt } => {
                self.fresh = false;
                let settled = settled && sealed >= self.partition.epoch;
                let known = self.heard.entry(peer).or_default();
                *known = Heard {
                    // What was asked before may be heard later: it has not heard of the doubt then.
                    in_doubt: if sealed < known.sealed { known.in_doubt } else { in_doubt },
                    sealed: sealed.max(known.sealed),
                    counts: counts || known.counts,
                    settled: settled || known.settled,
                };
            }
            Event::Drained(epoch) => self.drained |= epoch == self.partition.epoch,
            Event::RoundDone => self.round_done = true,
            Event::Compared(epoch, agrees) => {
                self.comparing = false;
                self.agreed = Some(epoch).filter(|_| agrees);
            }
            Event::ProposalEnded => self.proposing = false,
        }
        self.settle(&mut effects);
        effects
    }

    fn role(&self) -> Option<Role> {
        self.partition.replica(self.node).map(|replica| replica.state)
    }

    /// Does whatever the state now allows; every step ends here, so that no order of events can leave work undone.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        self.reject_older_epochs(effects);
        if self.meta.sealed < self.partition.epoch {
            // The commit in flight belongs to the old epoch: it must end before that epoch is sealed.
            if !self.committing && !self.persisting {
                self.persisting = true;
                let counts = self.meta.counts && self.role() == Some(Role::Voting);
                effects.push(Effect::Persist(Meta { sealed: self.partition.epoch, counts, ..self.meta.clone() }));
            }
        } else {
            if !self.meta.counts && !self.persisting && self.may_count() {
                self.persisting = true;
                let sealed = self.meta.sealed;
                effects.push(Effect::Persist(Meta { sealed, counts: true, lacks: Lacks::Nothing }));
            }
            if !self.comparing && self.agreed != Some(self.partition.epoch) && self.has_caught_up() {
                self.comparing = true;
                effects.push(Effect::Compare(seal_quorum(self.voters().len())));
            }
            if !self.proposing
                && let Some(command) = self.wanted()
            {
                self.proposing = true;
                effects.push(Effect::Propose(Box::new(command)));
            }
        }
        self.commit(effects);
    }

    fn reject_older_epochs(&mut self, effects: &mut Vec<Effect>) {
        let current = self.partition.epoch;
        if self.queue.iter().all(|queued| queued.epoch.is_none_or(|epoch| epoch == current)) {
            return;
        }
        for queued in std::mem::take(&mut self.queue) {
            match queued.epoch {
                Some(epoch) if epoch != current => {
                    effects.push(Effect::Reject(queued.ticket, self.moved(epoch)));
                }
                _ => self.queue.push_back(queued),
            }
        }
    }

    fn commit(&mut self, effects: &mut Vec<Effect>) {
        if self.committing || self.queue.is_empty() || self.meta.sealed != self.partition.epoch {
            return;
        }
        let (mut tickets, mut bytes) = (Vec::new(), 0);
        while let Some(next) = self.queue.front() {
            if !tickets.is_empty() && bytes + next.bytes > COMMIT_BYTES_MAX {
                break;
            }
            bytes += next.bytes;
            tickets.push(next.ticket);
            self.queue.pop_front();
        }
        self.committing = true;
        effects.push(Effect::Commit(tickets));
    }

    fn voters(&self) -> Vec<NodeId> {
        self.partition.voters().collect()
    }

    /// What the catalog should agree on.
    fn wanted(&self) -> Option<Command> {
        let Partition { id: partition, epoch, settled, .. } = self.partition;
        let node = self.node;
        match self.role()? {
            Role::Joining if self.has_caught_up() && self.agreed == Some(epoch) => {
                Some(Command::PromoteReplica { partition, node, epoch })
            }
            Role::Voting if !settled && self.majority_is_settled() => {
                Some(Command::SettlePartition { partition, epoch })
            }
            Role::Leaving if settled && self.drained && !self.committing && self.queue.is_empty() => {
                Some(Command::RemoveReplica { partition, node, epoch })
            }
            _ => None,
        }
    }

    /// Whether this voter, which does not count, holds what makes it count.
    fn may_count(&self) -> bool {
        if self.role() != Some(Role::Voting) {
            return false;
        }
        let present = self.voters();
        let holds_present = match present.len() {
            1 => self.meta.lacks != Lacks::Everything,
            members => self.has_heard_enough(&present, seal_quorum(members), 0),
        };
        let holds_past = self.has_heard_settled() || self.has_heard_enough_of_previous(0);
        (holds_past && self.lapsed != Some(self.partition.epoch))
            || (holds_present && (holds_past || self.partition.settled))
    }

    /// Whether this voter holds everything that was acknowledged at quorum in epochs before. Says nothing of a partition that is
    /// settled.
    pub(crate) fn is_settled(&self) -> bool {
        let own = usize::from(self.partition.previous_voters.contains(&self.node));
        self.counts() && (self.has_heard_settled() || self.has_heard_enough_of_previous(own))
    }

    fn has_heard_enough_of_previous(&self, own: usize) -> bool {
        let previous = &self.partition.previous_voters;
        let needed = usize::try_from(self.partition.previous_needed).unwrap_or(usize::MAX);
        self.partition.epoch > Epoch(1) && self.has_heard_enough(previous, needed, own)
    }

    /// Whether so many of these members, this one among them if it is one of its `own`, hold together what any majority of them has
    /// acknowledged. For each that may lack the end of that one more must be heard, unless no more are left that could have it: who was
    /// emptied could not say more if it was waited for. A replica that began empty must hear of somebody at least.
    fn has_heard_enough(&self, members: &[NodeId], needed: usize, own: usize) -> bool {
        let sealed = |heard: &Heard| heard.sealed >= self.partition.epoch;
        let heard = self.heard_of(members, sealed);
        let in_doubt = self.heard_of(members, |heard| sealed(heard) && heard.in_doubt);
        let others = members.iter().filter(|member| **member != self.node).count();
        let left = others - self.heard_of(members, Heard::has_nothing_of_its_own);
        let least = usize::from(self.meta.lacks == Lacks::Everything);
        heard + own >= (needed + in_doubt).min(left + own).max(needed.min(others + own)).max(least)
    }

    fn has_heard_settled(&self) -> bool {
        self.heard_of(&self.voters(), |heard| heard.settled) > 0
    }

    fn majority_is_settled(&self) -> bool {
        let voters = self.voters();
        self.is_settled() && self.heard_of(&voters, |heard| heard.settled) + 1 >= quorum(voters.len())
    }

    /// Whether this joining replica holds what the logs of enough *counting* voters have told it of. Their digests must agree as well
    /// before it votes: a log that somebody has forgotten the end of tells nothing of that.
    fn has_caught_up(&self) -> bool {
        if self.role() != Some(Role::Joining) || !self.partition.settled {
            return false;
        }
        let voters = self.voters();
        self.heard_of(&voters, |heard| heard.counts) >= seal_quorum(voters.len())
    }

    /// Others of these members of which everything is here, and of which that holds.
    fn heard_of(&self, members: &[NodeId], holds: impl Fn(&Heard) -> bool) -> usize {
        let others = members.iter().filter(|member| **member != self.node);
        others.filter(|member| self.heard.get(*member).is_some_and(&holds)).count()
    }

    fn moved(&self, epoch: Epoch) -> Error {
        Error::new(
            ErrorCode::Moved,
            format!("{} is at {}, the write was made for {epoch}", self.partition.id, self.partition.epoch),
        )
    }
}

fn is_voting(replica: &shoal_catalog::Replica) -> bool {
    replica.state == Role::Voting
}

#[cfg(test)]
mod tests {
    use shoal_catalog::{PartitionBounds, Replica};
    use shoal_kernel::{Hlc, KeyRange, PartitionId, TableId};

    use super::*;

    const ME: NodeId = NodeId(1);

    fn partition(epoch: u64, voters: &[u32], joining: &[u32], previous: &[u32]) -> Partition {
        let replica = |state| move |node: &u32| Replica { node: NodeId(*node), state, failed: false };
        Partition {
            id: PartitionId(7),
            table: TableId(1),
            bounds: PartitionBounds::Range(KeyRange::all()),
            epoch: Epoch(epoch),
            replicas: voters
                .iter()
                .map(replica(Role::Voting))
                .chain(joining.iter().map(replica(Role::Joining)))
                .collect(),
            previous_voters: previous.iter().copied().map(NodeId).collect(),
            previous_needed: u32::try_from(seal_quorum(previous.len())).unwrap(),
            settled: previous.is_empty(),
            parent: None,
            root: PartitionId(7),
            purged: Hlc::default(),
            changed: 0,
        }
    }

    fn meta(sealed: u64, counts: bool) -> Meta {
        Meta { sealed: Epoch(sealed), counts, lacks: Lacks::Nothing }
    }

    /// A replica that has sealed its epoch and asked its peers.
    fn settled(partition: Partition) -> ReplicaCore {
        let mut core = ReplicaCore::new(ME, partition, None, false, false);
        for effect in core.start() {
            if let Effect::Persist(meta) = effect {
                core.step(Event::Persisted(meta));
            }
        }
        core.step(Event::RoundDone);
        core
    }

    fn rejected(effects: &[Effect]) -> Vec<(Ticket, ErrorCode)> {
        effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Reject(ticket, error) => Some((*ticket, error.code())),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn a_founding_voter_counts_once_its_epoch_is_durable() {
        let mut core = ReplicaCore::new(ME, partition(1, &[1, 2, 3], &[], &[]), None, false, false);
        let effects = core.start();
        assert_eq!(effects, [Effect::Persist(meta(1, true))]);
        assert!(!core.counts());
        core.step(Event::Persisted(meta(1, true)));
        assert!(core.counts() && !core.serves());
        core.step(Event::RoundDone);
        assert!(!core.serves(), "it has never held anything and has heard nobody");
        core.step(Event::Heard { peer: NodeId(2), sealed: Epoch(0), counts: true, settled: false, in_doubt: false });
        assert!(core.serves());
    }

    #[test]
    fn many_writes_share_one_commit() {
        let mut core = settled(partition(1, &[1], &[], &[]));
        assert_eq!(core.step(Event::Write { ticket: 1, epoch: Epoch(1), bytes: 10 }), [Effect::Commit(vec![1])]);
        assert_eq!(core.step(Event::Write { ticket: 2, epoch: Epoch(1), bytes: 10 }), []);
        assert_eq!(core.step(Event::Pulled { ticket: 3, bytes: 10 }), []);
        assert_eq!(core.step(Event::Committed), [Effect::Commit(vec![2, 3])]);
        assert_eq!(core.step(Event::Committed), []);
    }

    #[test]
    fn nothing_of_an_old_epoch_is_accepted_once_the_new_one_is_known() {
        let mut core = settled(partition(1, &[1, 2], &[], &[]));
        core.step(Event::Write { ticket: 1, epoch: Epoch(1), bytes: 1 });
        core.step(Event::Write { ticket: 2, epoch: Epoch(1), bytes: 1 });
        let effects = core.step(Event::Catalog(Box::new(partition(2, &[1, 2, 3], &[], &[1, 2]))));
        assert_eq!(rejected(&effects), [(2, ErrorCode::Moved)], "queued, not begun");
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Persist(_))), "a commit of epoch 1 is in flight");
        assert!(!core.counts());
        let early = core.step(Event::Write { ticket: 3, epoch: Epoch(2), bytes: 1 });
        assert_eq!(early, [], "waits for the seal");
        let sealed = meta(2, true);
        assert_eq!(core.step(Event::Committed), [Effect::Persist(sealed.clone())]);
        assert_eq!(core.step(Event::Persisted(sealed)), [Effect::CatchUp, Effect::Commit(vec![3])]);
        assert_eq!(
            rejected(&core.step(Event::Write { ticket: 4, epoch: Epoch(1), bytes: 1 })),
            [(4, ErrorCode::Moved)]
        );
    }

    #[test]
    fn a_joining_replica_asks_for_promotion_and_counts_only_after_the_old_set_has_sealed() {
        let before = partition(4, &[2, 3, 4], &[1], &[2, 3]);
        let mut core = settled(before.clone());
        assert!(!core.counts());
        assert_eq!(
            core.step(Event::Heard {
                peer: NodeId(2),
                sealed: Epoch(4),
                counts: true,
                settled: false,
                in_doubt: false
            }),
            []
        );
        assert_eq!(
            core.step(Event::Heard {
                peer: NodeId(4),
                sealed: Epoch(4),
                counts: false,
                settled: false,
                in_doubt: false
            }),
            [],
            "it has gaps itself"
        );
        let enough = Event::Heard { peer: NodeId(3), sealed: Epoch(4), counts: true, settled: false, in_doubt: false };
        assert_eq!(core.step(enough), [], "the voters have not settled");
        let settled = Partition { settled: true, ..before };
        assert_eq!(core.step(Event::Catalog(Box::new(settled))), [Effect::Compare(2)]);
        assert_eq!(core.step(Event::Compared(Epoch(4), false)), [Effect::Compare(2)], "it is compared again");
        let effects = core.step(Event::Compared(Epoch(4), true));
        assert!(
            matches!(&effects[..], [Effect::Propose(command)] if matches!(**command, Command::PromoteReplica { epoch: Epoch(4), .. }))
        );

        core.step(Event::Catalog(Box::new(partition(5, &[1, 2, 3, 4], &[], &[2, 3, 4]))));
        let effects = core.step(Event::Persisted(meta(5, false)));
        assert_eq!(effects, [Effect::CatchUp]);
        assert_eq!(
            core.step(Event::Heard {
                peer: NodeId(2),
                sealed: Epoch(5),
                counts: true,
                settled: false,
                in_doubt: false
            }),
            []
        );
        assert_eq!(
            core.step(Event::Heard {
                peer: NodeId(3),
                sealed: Epoch(4),
                counts: true,
                settled: false,
                in_doubt: false
            }),
            [],
            "has not sealed yet"
        );
        assert!(!core.counts());
        let effects = core.step(Event::Heard {
            peer: NodeId(3),
            sealed: Epoch(5),
            counts: true,
            settled: false,
            in_doubt: false,
        });
        let counting = meta(5, true);
        assert_eq!(effects, [Effect::Persist(counting.clone())]);
        core.step(Event::Persisted(counting));
        assert!(core.counts());
    }

    #[test]
    fn an_emptied_or_doubtful_replica_counts_after_enough_others() {
        for (emptied, in_doubt) in [(true, false), (false, true)] {
            let known = meta(1, true);
            let mut core = ReplicaCore::new(ME, partition(1, &[1, 2, 3], &[], &[]), Some(known), emptied, in_doubt);
            assert_eq!(core.start(), []);
            assert!(!core.counts());
            core.step(Event::Heard {
                peer: NodeId(2),
                sealed: Epoch(1),
                counts: true,
                settled: false,
                in_doubt: false,
            });
            assert!(!core.counts(), "one other may have missed what two had acknowledged");
            let effects = core.step(Event::Heard {
                peer: NodeId(3),
                sealed: Epoch(1),
                counts: true,
                settled: false,
                in_doubt: false,
            });
            assert_eq!(effects, [Effect::Persist(meta(1, true))]);
        }
        let emptied = ReplicaCore::new(ME, partition(1, &[1, 2, 3], &[], &[]), Some(meta(1, true)), true, false);
        assert_eq!(emptied.vouched(), Epoch(0), "two that were emptied do not fill each other");
        let alone = ReplicaCore::new(ME, partition(1, &[1], &[], &[]), Some(meta(1, true)), false, true);
        assert!(alone.counts(), "nobody else could know better");
    }

    fn heard(peer: u32, epoch: u64, settled: bool) -> Event {
        Event::Heard { peer: NodeId(peer), sealed: Epoch(epoch), counts: true, settled, in_doubt: false }
    }

    #[test]
    fn voters_settle_when_a_majority_holds_the_past() {
        // 4 has left: what it and one of the others had acknowledged, the third may lack.
        let mut core = settled(partition(1, &[1, 2, 3, 4], &[], &[]));
        let after = partition(2, &[1, 2, 3], &[], &[1, 2, 3, 4]);
        core.step(Event::Catalog(Box::new(after)));
        core.step(Event::Persisted(meta(2, true)));
        assert!(core.counts() && !core.is_settled());
        core.step(heard(2, 1, false));
        assert!(!core.is_settled(), "it could still acknowledge writes of the epoch before");
        assert_eq!(core.step(heard(2, 2, false)), []);
        assert!(core.is_settled());
        let effects = core.step(heard(3, 2, true));
        let settle = Command::SettlePartition { partition: PartitionId(7), epoch: Epoch(2) };
        assert_eq!(effects, [Effect::Propose(Box::new(settle))]);
        assert_eq!(core.step(heard(2, 2, true)), [], "it is proposed already");
    }

    #[test]
    fn a_founding_voter_may_hear_late_of_its_partition() {
        // The third founder was given up before the other two had made their replicas.
        let mut core = settled(partition(2, &[1, 2], &[], &[1, 2, 3]));
        assert!(core.counts() && core.vouched() == Epoch(2));
        let effects = core.step(heard(2, 2, true));
        assert!(
            matches!(&effects[..], [Effect::Propose(command)] if matches!(**command, Command::SettlePartition { .. }))
        );
        // Not if others have gone on without it.
        let gone_on = Partition { settled: true, ..partition(2, &[1, 2], &[], &[1, 2, 3]) };
        assert!(!settled(gone_on).counts());
    }

    #[test]
    fn an_emptied_replica_needs_the_past_and_the_present() {
        // It may have acknowledged writes of this epoch, with 3, and of the epoch before, with 4.
        let known = meta(2, true);
        let unsettled = partition(2, &[1, 2, 3], &[], &[1, 2, 3, 4]);
        let mut core = ReplicaCore::new(ME, unsettled.clone(), Some(known.clone()), true, false);
        assert_eq!(core.start(), []);
        assert_eq!(core.step(heard(2, 2, false)), []);
        assert_eq!(core.step(heard(4, 2, false)), [], "3 may hold what nobody else does");
        assert_eq!(core.step(heard(3, 2, false)), [Effect::Persist(known.clone())]);
        // Somebody who has settled knows the past.
        let mut core = ReplicaCore::new(ME, unsettled, Some(known.clone()), true, false);
        core.start();
        assert_eq!(core.step(heard(2, 2, true)), []);
        assert_eq!(core.step(heard(3, 2, false)), [Effect::Persist(known)]);
    }

    #[test]
    fn who_is_in_doubt_vouches_for_less() {
        // B lost the end of its log: what A and it had acknowledged, a newcomer does not learn from it alone.
        let joined = partition(2, &[1, 2, 3], &[], &[2, 3]);
        let begun = Meta { lacks: Lacks::Everything, ..meta(1, false) };
        let mut core = ReplicaCore::new(ME, joined.clone(), Some(begun), false, false);
        let sealed = core.start();
        assert_eq!(sealed, [Effect::Persist(Meta { lacks: Lacks::Everything, ..meta(2, false) })]);
        core.step(Event::Persisted(Meta { lacks: Lacks::Everything, ..meta(2, false) }));
        let doubtful =
            |peer| Event::Heard { peer: NodeId(peer), sealed: Epoch(2), counts: false, settled: false, in_doubt: true };
        assert_eq!(core.step(doubtful(2)), []);
        assert_eq!(core.step(heard(2, 1, false)), [], "that was said before, and comes late");
        // With nobody else left to ask, it must do.
        assert_eq!(core.step(heard(3, 2, false)), [Effect::Persist(meta(2, true))]);

        // The third disk is lost, and both that are left are in doubt: they have each other, and no more.
        let left = Partition { previous_needed: 2, ..partition(2, &[1, 2], &[], &[1, 2]) };
        let mut core = ReplicaCore::new(ME, left.clone(), Some(meta(1, true)), false, true);
        core.start();
        core.step(Event::Persisted(Meta { lacks: Lacks::Tail, ..meta(2, false) }));
        assert!(core.is_in_doubt());
        assert_eq!(core.step(doubtful(2)), [Effect::Persist(meta(2, true))]);
        core.step(Event::Persisted(meta(2, true)));
        assert!(core.is_settled());
        // One that began empty has nobody but itself to hear of: nothing can make it count.
        let alone = Partition { previous_needed: 1, ..partition(3, &[1], &[], &[1]) };
        let mut core = ReplicaCore::new(ME, alone, Some(meta(2, true)), true, false);
        core.start();
        core.step(Event::Persisted(Meta { lacks: Lacks::Everything, ..meta(3, false) }));
        core.step(Event::RoundDone);
        assert!(!core.counts());
    }

    #[test]
    fn who_was_emptied_is_not_waited_for() {
        // B was emptied, C lost the end of its log, and D joined. What B and C had acknowledged may be gone; B cannot tell.
        let joined = partition(2, &[1, 2, 3, 4], &[], &[1, 2, 3]);
        let mut core = ReplicaCore::new(ME, joined.clone(), Some(meta(1, true)), false, false);
        assert_eq!(core.start(), [Effect::Persist(meta(2, true))]);
        core.step(Event::Persisted(meta(2, true)));
        let says = |peer, sealed| Event::Heard {
            peer: NodeId(peer),
            sealed: Epoch(sealed),
            counts: false,
            settled: false,
            in_doubt: true,
        };
        core.step(says(3, 2));
        assert!(!core.is_settled(), "B may have what C has lost");
        core.step(says(2, 0));
        assert!(core.is_settled());
        // Nor does D wait for it.
        let begun = Meta { lacks: Lacks::Everything, ..meta(2, false) };
        let of = |node: u32| ReplicaCore::new(NodeId(node), joined.clone(), Some(begun.clone()), false, false);
        let mut newcomer = of(4);
        assert!(newcomer.start().is_empty() && newcomer.is_in_doubt() && newcomer.vouched() == Epoch(0));
        newcomer.step(says(2, 0));
        newcomer.step(says(3, 2));
        assert_eq!(newcomer.step(heard(1, 2, false)), [Effect::Persist(meta(2, true))]);
        // But what two have lost that were emptied is not made up for by one.
        let mut emptied = ReplicaCore::new(ME, partition(1, &[1, 2, 3], &[], &[]), Some(meta(1, true)), true, false);
        emptied.start();
        emptied.step(says(2, 0));
        assert_eq!(emptied.step(heard(3, 1, false)), []);
    }

    #[test]
    fn a_leaving_replica_takes_nothing_and_goes_when_others_hold_all() {
        let mut core = settled(partition(1, &[1, 2, 3], &[], &[]));
        core.step(Event::Write { ticket: 1, epoch: Epoch(1), bytes: 1 });
        let mut leaving = partition(2, &[2, 3], &[], &[1, 2, 3]);
        leaving.replicas.insert(0, Replica { node: ME, state: Role::Leaving, failed: false });
        assert_eq!(core.step(Event::Catalog(Box::new(leaving.clone()))), [], "a commit of epoch 1 is in flight");
        let sealed = meta(2, false);
        assert_eq!(core.step(Event::Committed), [Effect::Persist(sealed.clone())]);
        core.step(Event::Persisted(sealed));
        assert!(!core.counts() && core.vouched() == Epoch(2), "what it holds is to be pulled");
        let write = Event::Write { ticket: 2, epoch: Epoch(2), bytes: 1 };
        assert_eq!(rejected(&core.step(write)), [(2, ErrorCode::Moved)]);
        assert_eq!(core.step(Event::Drained(Epoch(1))), [], "of another epoch");
        assert_eq!(core.step(Event::Drained(Epoch(2))), [], "the voters have not settled");
        let effects = core.step(Event::Catalog(Box::new(Partition { settled: true, ..leaving })));
        assert!(
            matches!(&effects[..], [Effect::Propose(command)] if matches!(**command, Command::RemoveReplica { node: ME, epoch: Epoch(2), .. }))
        );
    }
}
