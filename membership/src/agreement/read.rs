//! Reads of the catalog that see everything agreed upon, from any node.
//!
//! No leader is needed for it. Whatever was agreed upon stands in the logs of a majority of the voters, and any two majorities share
//! a node: who has applied as much as the longest log among a majority holds, has applied all of it. The voters asked are those of the
//! newest membership that this node has applied. The next one is agreed upon by a majority of them, too, so that one of those asked
//! would have it, and this node would have applied it in the end: then those of the new one are asked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use shoal_catalog::Catalog;
use shoal_kernel::{Applied, NodeId, Result};

use super::message::{Request, Response};
use super::propose::{Attempt, millis};
use super::types::Membership;
use super::{Agreement, Inner, no_quorum};

/// How long the voters may take to answer, in milliseconds. Some may have gone without a word.
const READ_MS_MAX: u64 = 1_000;

/// How long this node waits until it has applied what they have, in milliseconds. The end of a log may never be agreed upon: another
/// leader cuts it off, and so the question is put anew.
const APPLY_MS_MAX: u64 = 250;

impl Agreement {
    /// The catalog with everything in it that was agreed upon before the call. On any node.
    ///
    /// # Errors
    /// This node belongs to no cluster yet, or no majority of the voters answered in time.
    pub async fn linearizable(&self, timeout: Duration) -> Result<Arc<Catalog>> {
        let node = &self.0;
        self.check_member()?;
        let deadline = node.env.monotonic() + timeout;
        while !node.remaining(deadline).is_zero() {
            if let Some(problem) = node.problem() {
                return Err(problem);
            }
            let membership = node.machine.membership();
            if let Some(end) = node.longest_log(&membership, deadline).await
                && node.reach(end, deadline).await
                && node.machine.membership().log_id() == membership.log_id()
            {
                return Ok(self.catalog().borrow().clone());
            }
            // A voter may have entries that only another leader will cut off; and an earlier build does not know the question. The leader
            // knows another one. So it does for who follows those who have recovered the catalog: voters of before may not have heard
            // of that.
            if let Attempt::Done(index) = node.read_index(deadline).await
                && node.reach(index, deadline).await
            {
                return Ok(self.catalog().borrow().clone());
            }
            node.pause(deadline).await;
        }
        Err(no_quorum(timeout))
    }
}

impl Inner {
    /// The index of the last entry that this node has taken into its log, or was given as a snapshot.
    pub(super) fn log_end(&self) -> Option<u64> {
        self.log.end().max(*self.machine.applied().borrow())
    }

    /// Waits until this node has applied an entry; says whether it has.
    async fn reach(&self, index: Option<u64>, deadline: Duration) -> bool {
        let mut applied = self.machine.applied();
        let patience = self.remaining(deadline).min(Duration::from_millis(APPLY_MS_MAX));
        let reached = applied.wait_for(|applied| *applied >= index);
        matches!(self.env.timeout(patience, reached).await, Ok(Ok(_)))
    }

    /// The index of the last entry in the longest log among a majority of the voters, or nothing if too few answer.
    async fn longest_log(&self, membership: &Membership, deadline: Duration) -> Option<Option<u64>> {
        // Two sets while the voters are being changed: then a majority of each.
        let sets = membership.membership().get_joint_config();
        if sets.is_empty() || self.machine.is_held_back() {
            return None;
        }
        let me = self.config.node;
        let voters: BTreeSet<NodeId> = sets.iter().flatten().copied().filter(|voter| *voter != me).collect();
        let timeout = self.remaining(deadline).min(Duration::from_millis(READ_MS_MAX));
        let mut answers: FuturesUnordered<_> = voters
            .into_iter()
            .filter_map(|voter| Some((voter, membership.membership().get_node(&voter)?)))
            .map(|(voter, peer)| async move {
                let address = self.peers.address_of(voter, peer.address);
                (voter, self.peers.call(Some(voter), address, Request::LogEnd, timeout).await)
            })
            .collect();
        let (mut answered, mut end) = (BTreeSet::from([me]), self.log_end());
        while !sets.iter().all(|set| set.intersection(&answered).count() * 2 > set.len()) {
            let (voter, answer) = answers.next().await?;
            if let Ok(Response::LogEnd(theirs)) = answer {
                answered.insert(voter);
                end = end.max(theirs);
            }
        }
        Some(end)
    }

    /// Asks the leader how far this node must have applied.
    async fn read_index(&self, deadline: Duration) -> Attempt<Option<u64>> {
        let Some((leader, address)) = self.leader() else {
            return Attempt::Elsewhere(None);
        };
        if leader == self.config.node {
            return self.confirm(deadline).await;
        }
        let timeout = self.remaining(deadline).min(Duration::from_millis(READ_MS_MAX));
        let request = Request::ReadIndex { timeout_ms: millis(timeout) };
        match self.peers.call(Some(leader), address, request, timeout).await {
            Ok(Response::ReadAt(index)) => Attempt::Done(index),
            Ok(Response::NotLeader(hint)) => Attempt::Elsewhere(hint),
            Ok(_) | Err(_) => Attempt::Failed(Applied::False),
        }
    }
}
