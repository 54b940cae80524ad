//! What a read at quorum does before it reads: it brings its replica to what a majority of the voters held after the read had
//! begun. Then it reads there alone, so that aggregates are right, and what it lacked is there for everybody.
//!
//! Why that is enough. A write that was acknowledged at quorum before the read is on a majority of the voters of some epoch, each
//! of which had sealed that epoch. The reader hears a majority, itself among it, whose members all count and have sealed one and
//! the same epoch, *after* the read has begun.
//!
//! - If it is the epoch of the write, the two majorities have a member in common, and it held the write when it was heard.
//! - It cannot be an older one. Sets of voters that follow each other differ by one member, so majorities of them have a member in
//!   common, which had sealed the newer epoch before the write was acknowledged; and between two changes so many members of the set
//!   before have sealed the epoch that no majority of it is left which has not (they settle).
//! - If it is a newer one, the past is held by any majority once the partition is settled. Until then the replica must be settled
//!   itself, which hearing the others may just have made it.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use shoal_kernel::level::quorum;
use shoal_kernel::{Epoch, Error, ErrorCode, NodeId, PartitionId, Planted, Rare, Result};
use shoal_storage::Snapshot;

use super::handle::{ReplicaHandle, Running};
use super::message::CoreReport;
use super::replicator::Heard;
use crate::node::context::NodeContext;

/// What is known of a majority in the making. Pure.
#[derive(Debug)]
struct Majority {
    partition: PartitionId,
    epoch: Epoch,
    members: usize,
    /// Whose rows are here; this replica is one of them.
    heard: BTreeSet<NodeId>,
    /// Who has not answered yet.
    open: BTreeSet<NodeId>,
    /// Who is of no use, and why.
    lost: Vec<String>,
}

impl Majority {
    fn new(partition: PartitionId, node: NodeId, epoch: Epoch, voters: &[NodeId]) -> Self {
        let open = voters.iter().copied().filter(|voter| *voter != node).collect();
        Self { partition, epoch, members: voters.len(), heard: BTreeSet::from([node]), open, lost: Vec::new() }
    }

    /// Everything that this voter held is here.
    fn hear(&mut self, peer: NodeId, sealed: Epoch, counts: bool) {
        if !self.open.remove(&peer) {
            return;
        }
        if counts && sealed == self.epoch {
            self.heard.insert(peer);
        } else if sealed == self.epoch {
            self.lost.push(format!("{peer} does not count just now"));
        } else {
            self.lost.push(format!("{peer} has sealed {sealed}"));
        }
    }

    fn lose(&mut self, peer: NodeId, why: &str) {
        if self.open.remove(&peer) {
            self.lost.push(format!("{peer}: {why}"));
        }
    }

    fn is_there(&self) -> bool {
        self.heard.len() >= quorum(self.members)
    }

    /// Whether those who have not answered yet could still make it.
    fn can_be(&self) -> bool {
        self.heard.len() + self.open.len() >= quorum(self.members)
    }

    fn missing(&self) -> Error {
        let Self { partition, epoch, members, heard, .. } = self;
        let mut why = self.lost.clone();
        why.extend(self.open.iter().map(|peer| format!("{peer}: what it holds could not be had in time")));
        let (heard, why) = (heard.len(), why.join("; "));
        let needed = quorum(*members);
        let message = format!(
            "a read of {partition} at quorum needs {needed} of {members} replicas at epoch {epoch}, and has {heard}: {why}"
        );
        Error::new(ErrorCode::NotEnoughReplicas, message)
            .with_help("try again, or read at level 'one': the answer may then be behind the newest write")
    }
}

/// A snapshot for a reader at quorum, and whom to blame for what it cannot read.
///
/// # Errors
/// The replica is down or not fit to answer; too few others are; or it has not got what they hold in time.
pub(crate) async fn snapshot(
    context: &Arc<NodeContext>,
    handle: &ReplicaHandle,
    timeout: Duration,
) -> Result<(Running, Snapshot)> {
    metrics::counter!("shoal_quorum_reads_total").increment(1);
    let running = handle.running()?;
    if !context.config.has(Planted::QuorumReadsOne) {
        gather(context, handle, &running, timeout).await.inspect_err(|error| {
            if error.code() == ErrorCode::NotEnoughReplicas {
                context.env.reached(Rare::QuorumShort);
            }
        })?;
    }
    let (now, snapshot) = handle.snapshot()?;
    // Another life of the replica may have begun with less.
    if !Arc::ptr_eq(&now.store, &running.store) {
        let message = format!("the replica of {} was started again meanwhile", handle.partition);
        return Err(Error::new(ErrorCode::PartitionUnavailable, message));
    }
    Ok((now, snapshot))
}

async fn gather(
    context: &Arc<NodeContext>,
    handle: &ReplicaHandle,
    running: &Running,
    timeout: Duration,
) -> Result<()> {
    let deadline = context.env.monotonic().saturating_add(timeout);
    let CoreReport { epoch, counts, voters, holds_past, .. } = handle.report().await?;
    if !counts {
        let message = format!("the replica of {} does not count just now", handle.partition);
        return Err(Error::new(ErrorCode::PartitionUnavailable, message));
    }
    let mut majority = Majority::new(handle.partition, context.node, epoch, &voters);
    let mut rounds = FuturesUnordered::new();
    for peer in majority.open.clone() {
        match context.liveness.is_down(peer) {
            true => majority.lose(peer, "it is down"),
            false => rounds.push(reach(running, peer)),
        }
    }
    while !majority.is_there() && majority.can_be() {
        let left = deadline.saturating_sub(context.env.monotonic());
        match context.env.timeout(left, rounds.next()).await {
            Ok(Some((peer, Ok(Heard { sealed, counts, pulled, .. })))) => {
                metrics::counter!("shoal_quorum_rounds_total").increment(1);
                if pulled {
                    metrics::counter!("shoal_quorum_pulls_total").increment(1);
                    context.env.reached(Rare::QuorumPulled);
                }
                majority.hear(peer, sealed, counts);
            }
            Ok(Some((peer, Err(error)))) => majority.lose(peer, error.message()),
            Ok(None) | Err(_) => break,
        }
    }
    if !majority.is_there() {
        return Err(majority.missing());
    }
    if holds_past {
        return Ok(());
    }
    // It may hold the past now that it has heard of these: what it was told of them lies before this question.
    let now = handle.report().await?;
    if now.epoch == epoch && now.holds_past {
        return Ok(());
    }
    let message = format!("the voters of {} have not settled since they changed", handle.partition);
    Err(Error::new(ErrorCode::NotEnoughReplicas, message).with_help("try again in a moment"))
}

/// Rounds with a peer until everything is here that it held when one of them began.
fn reach(running: &Running, peer: NodeId) -> impl Future<Output = (NodeId, Result<Heard>)> + use<> {
    let feed = running.feed.clone();
    async move {
        loop {
            match feed.round(peer).await {
                Ok(Some(heard)) => return (peer, Ok(heard)),
                Ok(None) => {}
                Err(error) => return (peer, Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);
    const E: Epoch = Epoch(4);

    fn of(voters: &[NodeId]) -> Majority {
        Majority::new(PartitionId(7), A, E, voters)
    }

    #[test]
    fn the_first_that_make_a_majority_are_enough() {
        assert!(of(&[A]).is_there(), "it is all there is");
        let mut majority = of(&[A, B, C]);
        assert!(!majority.is_there() && majority.can_be());
        majority.lose(B, "it is down");
        assert!(!majority.is_there() && majority.can_be());
        majority.hear(C, E, true);
        assert!(majority.is_there());
    }

    #[test]
    fn who_does_not_count_or_is_at_another_epoch_is_no_member() {
        for (sealed, counts) in [(E, false), (Epoch(3), true), (Epoch(5), true), (Epoch(0), false)] {
            let mut majority = of(&[A, B, C]);
            majority.hear(B, sealed, counts);
            majority.hear(B, E, true);
            assert!(!majority.is_there() && majority.can_be(), "asked once");
            majority.lose(C, "it is down");
            assert!(!majority.is_there() && !majority.can_be());
            let error = majority.missing();
            assert_eq!(error.code(), ErrorCode::NotEnoughReplicas);
            assert!(error.message().contains("needs 2 of 3") && error.message().contains("has 1"), "{error}");
        }
    }

    #[test]
    fn a_stranger_is_not_counted() {
        let mut majority = of(&[A, B]);
        majority.hear(C, E, true);
        majority.hear(A, E, true);
        assert!(!majority.is_there());
        assert!(majority.missing().message().contains("n2: what it holds could not be had in time"));
    }
}
