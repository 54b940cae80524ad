//! The life of one query at its coordinator, pure: attempts, failures, what is retried and what ends it.
//!
//! ```text
//! Queued ─▶ Placing ─▶ Running ─▶ Sealing ─▶ Releasing ─▶ Ended
//!              ▲           │          │           │
//!              └─ Resting ◀┴──────────┴───────────┘   (another attempt, while no row has left)
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_kernel::{Error, ErrorCode, NodeId};

use crate::query::assign::Suspects;
use crate::query::message::Failure;

/// Attempts of one query.
pub(crate) const ATTEMPTS_MAX: u32 = 8;
/// The pause before the second attempt; doubled each time.
const REST_MIN: Duration = Duration::from_millis(20);
/// The longest pause.
const REST_MAX: Duration = Duration::from_millis(1_000);

/// What happened.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The query may run.
    Admitted,
    /// The tasks of the next attempt have places on these nodes, or cannot have.
    Placed(Result<BTreeSet<NodeId>, Error>),
    /// A node has started its tasks, or not.
    Started {
        /// For which attempt.
        attempt: u32,
        /// How it went.
        result: Result<(), Failure>,
    },
    /// Something of an attempt failed.
    Failed {
        /// Which attempt.
        attempt: u32,
        /// How.
        failure: Failure,
    },
    /// The answer of the attempt was closed.
    Sealed(Sent),
    /// The whole answer has been handed to the client.
    Complete {
        /// By which attempt.
        attempt: u32,
    },
    /// A node holds nothing of the attempt any more, or cannot be reached; what it knew of failures.
    Released {
        /// Of which attempt.
        attempt: u32,
        /// Which node.
        node: NodeId,
        /// What failed there.
        failures: Vec<Failure>,
    },
    /// The pause is over.
    Rested,
    /// A node is down.
    NodeDown(NodeId),
    /// A node does not answer, and is not called down yet: others are to be asked instead. Only told if no row has left.
    NodeSilent(NodeId),
    /// The deadline has passed.
    Expired,
    /// A client, an operator or the node's own end stops the query, with this error.
    Stopped(Error),
}

/// How much of an attempt's answer has left for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Not a row.
    Nothing,
    /// Some rows.
    Some,
    /// All of it: nothing that fails now can take anything from it.
    All,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Find places for the tasks; answered by [`Event::Placed`].
    Place,
    /// Start the tasks on every node and hand the answer to the client; answered by [`Event::Started`] per node.
    Start,
    /// Let no further row out of this attempt; answered by [`Event::Sealed`] at once.
    Seal,
    /// Empty a node; answered by [`Event::Released`].
    Release(NodeId),
    /// Pause, then [`Event::Rested`].
    Rest(Duration),
    /// Tell the client how it ended. Once per query.
    Conclude(Result<(), Error>),
    /// Nothing is left to do.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Queued,
    Placing,
    Running { nodes: BTreeSet<NodeId> },
    Sealing { nodes: BTreeSet<NodeId>, failure: Failure, last: bool },
    Releasing { waiting: BTreeSet<NodeId>, then: Then },
    Resting,
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Then {
    /// Try again.
    Retry,
    /// Say that the answer is complete, then stop.
    Complete,
    /// Stop; the client has been told.
    Stop,
}

/// The query.
#[derive(Debug)]
pub(crate) struct QueryCore {
    phase: Phase,
    attempt: u32,
    suspects: Suspects,
    coordinator: NodeId,
}

impl QueryCore {
    pub(crate) fn new(coordinator: NodeId) -> Self {
        Self { phase: Phase::Queued, attempt: 0, suspects: Suspects::default(), coordinator }
    }

    /// The attempt that runs, or ran last.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Who failed this query already.
    pub(crate) fn suspects(&self) -> &Suspects {
        &self.suspects
    }

    /// Whether the attempt still counts: messages of others are late.
    pub(crate) fn is_current(&self, attempt: u32) -> bool {
        attempt == self.attempt && matches!(self.phase, Phase::Running { .. })
    }

    fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Sealing { .. } | Phase::Releasing { .. })
    }

    /// Takes an event.
    pub(crate) fn step(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Admitted if self.phase == Phase::Queued => self.place(),
            Event::Rested if self.phase == Phase::Resting => self.place(),
            Event::Placed(Ok(nodes)) if self.phase == Phase::Placing => {
                self.phase = Phase::Running { nodes };
                vec![Effect::Start]
            }
            // Nothing runs yet, so there is nothing to seal or to release.
            Event::Placed(Err(error)) if self.phase == Phase::Placing => {
                self.decide(&error, BTreeSet::new(), Sent::Nothing)
            }
            Event::Started { attempt, result: Err(failure) } | Event::Failed { attempt, failure }
                if self.is_current(attempt) =>
            {
                self.seal(failure, false)
            }
            // The attempt is given up for another's failure already, but the next one is to know of this one, too.
            Event::Started { attempt, result: Err(failure) } | Event::Failed { attempt, failure }
                if attempt == self.attempt && self.is_ending() =>
            {
                self.suspect(&failure);
                Vec::new()
            }
            Event::NodeDown(node) => self.lose(node, "it is down"),
            Event::NodeSilent(node) => self.lose(node, "it does not answer"),
            Event::Sealed(sent) => match std::mem::replace(&mut self.phase, Phase::Ended) {
                Phase::Sealing { nodes, failure, last } => {
                    self.suspect(&failure);
                    match sent {
                        Sent::All => self.release(nodes, Then::Complete),
                        _ if last => self.conclude(failure.error, nodes),
                        _ => self.decide(&failure.error, nodes, sent),
                    }
                }
                other => {
                    self.phase = other;
                    Vec::new()
                }
            },
            Event::Complete { attempt } if self.is_current(attempt) => {
                let Phase::Running { nodes } = std::mem::replace(&mut self.phase, Phase::Ended) else {
                    return Vec::new();
                };
                self.release(nodes, Then::Complete)
            }
            Event::Released { attempt, node, failures } if attempt == self.attempt => {
                for failure in &failures {
                    self.suspect(failure);
                }
                self.released(node)
            }
            Event::Expired => {
                let (code, what) = match self.phase {
                    Phase::Queued => {
                        (ErrorCode::Overloaded, "the deadline passed while the query waited to be admitted")
                    }
                    _ => (ErrorCode::Timeout, "the deadline passed before the query was finished"),
                };
                self.stop(Error::new(code, what).with_help("give it more time with timeout_ms"))
            }
            Event::Stopped(error) => self.stop(error),
            // Late, or of a phase that is over.
            _ => Vec::new(),
        }
    }

    /// Whether the attempt has tasks on a node that it still needs.
    pub(crate) fn runs_on(&self, node: NodeId) -> bool {
        matches!(&self.phase, Phase::Running { nodes } if nodes.contains(&node))
    }

    /// Whether the whole answer has been handed to the client.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(&self.phase, Phase::Releasing { then: Then::Complete, .. })
    }

    fn lose(&mut self, node: NodeId, why: &str) -> Vec<Effect> {
        if self.runs_on(node) {
            return self.seal(Failure::lost(node, &Error::new(ErrorCode::NodeLost, why)), false);
        }
        self.released(node)
    }

    fn place(&mut self) -> Vec<Effect> {
        self.phase = Phase::Placing;
        vec![Effect::Place]
    }

    fn suspect(&mut self, failure: &Failure) {
        // This node cannot be without itself.
        if let Some(node) = failure.lost.filter(|node| *node != self.coordinator) {
            self.suspects.nodes.insert(node);
        }
        self.suspects.replicas.extend(failure.replica);
    }

    fn seal(&mut self, failure: Failure, last: bool) -> Vec<Effect> {
        let Phase::Running { nodes } = std::mem::replace(&mut self.phase, Phase::Ended) else { return Vec::new() };
        self.phase = Phase::Sealing { nodes, failure, last };
        vec![Effect::Seal]
    }

    /// After a failure: another attempt, or the end.
    fn decide(&mut self, error: &Error, nodes: BTreeSet<NodeId>, sent: Sent) -> Vec<Effect> {
        let attempts = self.attempt + 1;
        if !restartable(error.code()) {
            self.conclude(error.clone(), nodes)
        } else if sent != Sent::Nothing {
            let error = Error::new(
                ErrorCode::NodeLost,
                format!("the query failed after rows had been sent: {}", error.message()),
            );
            self.conclude(error.with_help("discard what was received and run the query again"), nodes)
        } else if attempts >= ATTEMPTS_MAX {
            self.conclude(error.clone().context(format!("after {attempts} attempts")), nodes)
        } else {
            self.release(nodes, Then::Retry)
        }
    }

    fn conclude(&mut self, error: Error, nodes: BTreeSet<NodeId>) -> Vec<Effect> {
        let mut effects = vec![Effect::Conclude(Err(error))];
        effects.extend(self.release(nodes, Then::Stop));
        effects
    }

    fn stop(&mut self, error: Error) -> Vec<Effect> {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Queued | Phase::Placing | Phase::Resting => {
                vec![Effect::Conclude(Err(error)), Effect::Stop]
            }
            running @ Phase::Running { .. } => {
                self.phase = running;
                self.seal(Failure::plain(error), true)
            }
            Phase::Sealing { nodes, .. } => self.conclude(error, nodes),
            Phase::Releasing { waiting, then: Then::Retry } => {
                self.phase = Phase::Releasing { waiting, then: Then::Stop };
                vec![Effect::Conclude(Err(error))]
            }
            // The client has the whole answer, or its error.
            over @ (Phase::Releasing { .. } | Phase::Ended) => {
                self.phase = over;
                Vec::new()
            }
        }
    }

    fn release(&mut self, nodes: BTreeSet<NodeId>, then: Then) -> Vec<Effect> {
        let effects = nodes.iter().copied().map(Effect::Release).collect();
        self.phase = Phase::Releasing { waiting: nodes, then };
        if self.all_released() { self.after_release() } else { effects }
    }

    fn released(&mut self, node: NodeId) -> Vec<Effect> {
        match &mut self.phase {
            Phase::Releasing { waiting, .. } => {
                if waiting.remove(&node) && waiting.is_empty() {
                    self.after_release()
                } else {
                    Vec::new()
                }
            }
            _ => Vec::new(),
        }
    }

    fn all_released(&self) -> bool {
        matches!(&self.phase, Phase::Releasing { waiting, .. } if waiting.is_empty())
    }

    fn after_release(&mut self) -> Vec<Effect> {
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Releasing { then: Then::Retry, .. } => {
                self.phase = Phase::Resting;
                let rest = REST_MIN.saturating_mul(1 << self.attempt.min(16)).min(REST_MAX);
                self.attempt += 1;
                vec![Effect::Rest(rest)]
            }
            Phase::Releasing { then: Then::Complete, .. } => vec![Effect::Conclude(Ok(())), Effect::Stop],
            _ => vec![Effect::Stop],
        }
    }
}

/// Whether another attempt, elsewhere, can do better. An error of the statement, of its data or of its limits cannot.
pub(crate) fn restartable(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NodeLost
            | ErrorCode::PartitionUnavailable
            | ErrorCode::NotEnoughReplicas
            | ErrorCode::Moved
            | ErrorCode::NotReady
            | ErrorCode::Corruption
            | ErrorCode::Io
    )
}

#[cfg(test)]
mod tests {
    use shoal_kernel::PartitionId;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn running() -> QueryCore {
        let mut core = QueryCore::new(A);
        assert_eq!(core.step(Event::Admitted), vec![Effect::Place]);
        assert_eq!(core.step(Event::Placed(Ok(BTreeSet::from([A, B])))), vec![Effect::Start]);
        core
    }

    fn error(code: ErrorCode) -> Error {
        Error::new(code, "x")
    }

    fn released(attempt: u32, node: NodeId) -> Event {
        Event::Released { attempt, node, failures: Vec::new() }
    }

    fn failed(attempt: u32, code: ErrorCode) -> Event {
        Event::Failed { attempt, failure: Failure::plain(error(code)) }
    }

    fn concluded(effects: &[Effect]) -> Option<Result<(), ErrorCode>> {
        effects.iter().find_map(|effect| match effect {
            Effect::Conclude(end) => Some(end.clone().map_err(|error| error.code())),
            _ => None,
        })
    }

    #[test]
    fn a_complete_answer_is_announced_once_nothing_is_left() {
        let mut core = running();
        assert_eq!(core.step(Event::Complete { attempt: 0 }), vec![Effect::Release(A), Effect::Release(B)]);
        assert!(core.step(released(0, B)).is_empty());
        assert_eq!(core.step(released(0, A)), vec![Effect::Conclude(Ok(())), Effect::Stop]);
        // What comes late changes nothing.
        assert!(core.step(failed(0, ErrorCode::NodeLost)).is_empty());
        assert!(core.step(Event::Expired).is_empty());
    }

    #[test]
    fn a_lost_node_before_the_first_row_costs_time_and_not_the_query() {
        let mut core = running();
        assert_eq!(core.step(Event::NodeDown(B)), vec![Effect::Seal]);
        assert_eq!(core.step(Event::Sealed(Sent::Nothing)), vec![Effect::Release(A), Effect::Release(B)]);
        core.step(released(0, A));
        // The lost node answers no more; its being down counts as released.
        assert_eq!(core.step(Event::NodeDown(B)), vec![Effect::Rest(REST_MIN)]);
        assert_eq!(core.attempt(), 1);
        assert_eq!(core.suspects().nodes, BTreeSet::from([B]));
        assert_eq!(core.step(Event::Rested), vec![Effect::Place]);
        core.step(Event::Placed(Ok(BTreeSet::from([A]))));
        // A late failure of the first attempt is not the second's.
        assert!(core.step(failed(0, ErrorCode::NodeLost)).is_empty());
        assert!(core.step(Event::Complete { attempt: 0 }).is_empty());
        assert!(core.step(Event::NodeDown(B)).is_empty());
        core.step(Event::Complete { attempt: 1 });
        assert_eq!(concluded(&core.step(released(1, A))), Some(Ok(())));
    }

    #[test]
    fn after_rows_have_left_it_ends_in_one_typed_error() {
        let mut core = running();
        core.step(failed(0, ErrorCode::Corruption));
        let effects = core.step(Event::Sealed(Sent::Some));
        assert_eq!(concluded(&effects), Some(Err(ErrorCode::NodeLost)));
        core.step(released(0, A));
        assert_eq!(core.step(released(0, B)), vec![Effect::Stop]);
    }

    #[test]
    fn what_fails_after_the_whole_answer_has_left_takes_nothing_from_it() {
        for event in [Event::NodeDown(B), failed(0, ErrorCode::Corruption), Event::Expired] {
            let mut core = running();
            assert_eq!(core.step(event), vec![Effect::Seal]);
            assert_eq!(core.step(Event::Sealed(Sent::All)), vec![Effect::Release(A), Effect::Release(B)]);
            assert!(core.step(Event::Complete { attempt: 0 }).is_empty());
            core.step(released(0, A));
            assert_eq!(core.step(released(0, B)), vec![Effect::Conclude(Ok(())), Effect::Stop]);
        }
    }

    #[test]
    fn a_silent_node_is_neither_waited_for_nor_asked_again() {
        let mut core = running();
        assert!(core.runs_on(B));
        assert_eq!(core.step(Event::NodeSilent(B)), vec![Effect::Seal]);
        assert!(!core.runs_on(B));
        core.step(Event::Sealed(Sent::Nothing));
        core.step(released(0, A));
        assert_eq!(core.step(Event::NodeSilent(B)), vec![Effect::Rest(REST_MIN)]);
        assert_eq!(core.suspects().nodes, BTreeSet::from([B]));
    }

    #[test]
    fn errors_of_the_statement_are_not_tried_again() {
        for code in [ErrorCode::Evaluation, ErrorCode::OutOfMemory, ErrorCode::Internal, ErrorCode::Unsupported] {
            let mut core = running();
            core.step(failed(0, code));
            assert_eq!(concluded(&core.step(Event::Sealed(Sent::Nothing))), Some(Err(code)));
        }
    }

    #[test]
    fn attempts_have_a_bound_and_pauses_grow() {
        let mut core = QueryCore::new(A);
        core.step(Event::Admitted);
        let mut rests = Vec::new();
        let last = loop {
            let effects = core.step(Event::Placed(Err(error(ErrorCode::PartitionUnavailable))));
            match effects.as_slice() {
                [Effect::Rest(rest)] => rests.push(*rest),
                _ => break effects,
            }
            assert_eq!(core.step(Event::Rested), vec![Effect::Place]);
        };
        assert_eq!(concluded(&last), Some(Err(ErrorCode::PartitionUnavailable)));
        assert_eq!(rests.len(), ATTEMPTS_MAX as usize - 1);
        assert!(rests.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] <= REST_MAX));
    }

    #[test]
    fn reports_of_release_name_the_broken_replica() {
        let mut core = running();
        core.step(failed(0, ErrorCode::Corruption));
        core.step(Event::Sealed(Sent::Nothing));
        let failures =
            vec![Failure { error: error(ErrorCode::Corruption), lost: Some(A), replica: Some((PartitionId(7), B)) }];
        core.step(Event::Released { attempt: 0, node: B, failures });
        assert_eq!(core.suspects().replicas, BTreeSet::from([(PartitionId(7), B)]));
        assert!(core.suspects().nodes.is_empty(), "the coordinator never suspects itself");
    }

    #[test]
    fn a_failure_that_comes_second_is_remembered() {
        let mut core = running();
        core.step(failed(0, ErrorCode::NotReady));
        core.step(Event::Sealed(Sent::Nothing));
        let refused = Failure { lost: Some(B), ..Failure::plain(error(ErrorCode::NotReady)) };
        assert!(core.step(Event::Started { attempt: 0, result: Err(refused) }).is_empty());
        assert_eq!(core.suspects().nodes, BTreeSet::from([B]));
    }

    #[test]
    fn stopping_works_in_every_phase_and_concludes_once() {
        let stop = || Event::Stopped(error(ErrorCode::Cancelled));
        let cancelled = Some(Err(ErrorCode::Cancelled));

        let mut queued = QueryCore::new(A);
        assert_eq!(concluded(&queued.step(stop())), cancelled);
        assert!(queued.step(stop()).is_empty());
        assert!(queued.step(Event::Admitted).is_empty());

        let mut core = running();
        assert_eq!(core.step(stop()), vec![Effect::Seal]);
        assert_eq!(concluded(&core.step(Event::Sealed(Sent::Nothing))), cancelled);
        assert!(core.step(stop()).is_empty());
        core.step(released(0, A));
        assert_eq!(core.step(released(0, B)), vec![Effect::Stop]);

        let mut retrying = running();
        retrying.step(failed(0, ErrorCode::NodeLost));
        retrying.step(Event::Sealed(Sent::Nothing));
        assert_eq!(concluded(&retrying.step(stop())), cancelled);
        retrying.step(released(0, A));
        assert_eq!(retrying.step(released(0, B)), vec![Effect::Stop]);

        let mut complete = running();
        complete.step(Event::Complete { attempt: 0 });
        assert!(complete.step(stop()).is_empty(), "the answer is complete already");
        complete.step(released(0, A));
        assert_eq!(concluded(&complete.step(released(0, B))), Some(Ok(())));
    }

    #[test]
    fn waiting_too_long_for_admission_is_overload() {
        let mut core = QueryCore::new(A);
        assert_eq!(concluded(&core.step(Event::Expired)), Some(Err(ErrorCode::Overloaded)));
        let mut core = running();
        core.step(Event::Expired);
        assert_eq!(concluded(&core.step(Event::Sealed(Sent::Some))), Some(Err(ErrorCode::Timeout)));
    }
}
