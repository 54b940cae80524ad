//! What a member does by itself, now and then: finish what a crash or a lost caller left half done, tell what has changed of it, ask
//! for a vote; and, as the leader, take the vote from who is to leave.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::{ChangeMembers, ServerState};
use shoal_catalog::NodeState;
use shoal_kernel::{NodeId, Result};

use super::message::{Request, Response};
use super::{Agreement, Inner, propose};

/// Time between two rounds, in milliseconds.
const ROUND_MS: u64 = 1_000;

/// A member that has heard of no leader for so long asks others whether it is still one, in milliseconds.
const UNHEARD_MS_MAX: u64 = 5_000;

/// How long each of them may take to answer, in milliseconds.
const ASK_MS_MAX: u64 = 1_000;

/// How long one round may take, in milliseconds.
const ROUND_MS_MAX: u64 = 15_000;

pub(super) async fn run(inner: Weak<Inner>) {
    let mut led_by = None;
    loop {
        let Some(node) = inner.upgrade() else { return };
        let leader = node.leader().map(|(leader, _)| leader);
        if leader != led_by {
            match leader {
                Some(leader) => tracing::info!(%leader, "the catalog has a leader"),
                None => tracing::warn!("the catalog has no leader that this node knows of"),
            }
            led_by = leader;
        }
        let sleep = node.env.sleep(Duration::from_millis(ROUND_MS));
        if node.problem().is_some() {
            return;
        }
        if node.machine.is_held_back() {
            let newest = Agreement(node.clone()).linearizable(Duration::from_millis(ROUND_MS_MAX)).await;
            match newest {
                Ok(_) => node.machine.release().await,
                Err(error) => tracing::debug!(%error, "the newest catalog has not come yet"),
            }
        } else if let Err(error) = node.round().await {
            tracing::debug!(%error, "the membership of the catalog could not be put in order yet");
        }
        drop(node);
        sleep.await;
    }
}

impl Inner {
    async fn round(&self) -> Result<()> {
        let deadline = self.env.monotonic() + Duration::from_millis(ROUND_MS_MAX);
        let me = self.config.node;
        let (leads, member) = self.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            (metrics.state == ServerState::Leader, membership.get_node(&me).copied())
        });
        let unheard = propose::millis(self.env.monotonic()).saturating_sub(self.heard_ms.load(Ordering::Relaxed));
        if !leads && unheard > UNHEARD_MS_MAX {
            self.ask_whether_removed(deadline).await;
        }
        let Some(seat) = member else { return Ok(()) };
        let catalog = self.machine.catalog().borrow().clone();
        if catalog.cluster_id == 0 {
            return if leads { self.finish_founding(deadline).await } else { Ok(()) };
        }
        self.peers.belong_to(catalog.cluster_id);
        if leads {
            self.finish_change(deadline).await?;
            self.unseat_removed(deadline).await?;
            self.excuse_leaving(deadline).await?;
        }
        let own = &self.config.attributes;
        let told = catalog.nodes.get(&me).is_none_or(|known| known.attributes == *own);
        if told && seat.address == own.cluster_address && !self.wants_voter(me) {
            return Ok(());
        }
        let Some((leader, address)) = self.leader() else { return Ok(()) };
        if leader == me {
            return self.admit(self.newcomer(false)).await.map(drop);
        }
        let request = Request::Join(self.newcomer(false));
        let answer: Response = self.peers.call(Some(leader), address, request, self.remaining(deadline)).await?;
        if let Response::Decided(Err(refused)) = answer {
            tracing::warn!(%refused, "the leader does not take what this node says of itself");
        }
        Ok(())
    }

    /// A node that was removed while nobody reached it hears from no leader any more: it has to ask.
    async fn ask_whether_removed(&self, deadline: Duration) {
        let catalog = self.machine.catalog().borrow().clone();
        let me = self.config.node;
        for peer in catalog.nodes.values().filter(|node| node.id != me) {
            let address = self.peers.address_of(peer.id, peer.attributes.cluster_address);
            let timeout = self.remaining(deadline).min(Duration::from_millis(ASK_MS_MAX));
            let request = Request::Join(self.newcomer(false));
            let answer = self.peers.call(Some(peer.id), address, request, timeout).await;
            match answer {
                Ok(Response::Removed) => {
                    self.removed.send_replace(true);
                    return;
                }
                Ok(Response::Joined { .. }) => return,
                _ => {}
            }
        }
    }

    /// Brings a change of voters to its end. Between its two steps majorities of both sets are needed, so that fewer nodes
    /// may fail than of either.
    async fn finish_change(&self, deadline: Duration) -> Result<()> {
        let _turn = self.door.lock().await;
        let wanted =
            self.metrics(|metrics| match metrics.membership_config.membership().get_joint_config().as_slice() {
                [_, .., wanted] => Some(wanted.clone()),
                _ => None,
            });
        match wanted {
            Some(voters) => self.change(ChangeMembers::ReplaceAllVoters(voters), deadline).await,
            None => Ok(()),
        }
    }

    /// A node that is to leave votes no longer, while it is still there to agree to that: of two voters, one alone could not do it.
    async fn excuse_leaving(&self, deadline: Duration) -> Result<()> {
        let leaving = {
            let catalog = self.machine.catalog();
            let catalog = catalog.borrow();
            let leaving = catalog.nodes.values().filter(|node| node.state == NodeState::Leaving).map(|node| node.id);
            leaving.collect::<BTreeSet<NodeId>>()
        };
        let voters: BTreeSet<NodeId> =
            self.metrics(|metrics| metrics.membership_config.membership().voter_ids().collect());
        let Some(voter) = voters.intersection(&leaving).next().filter(|_| voters.len() > 1) else { return Ok(()) };
        let _turn = self.door.lock().await;
        self.change(ChangeMembers::RemoveVoters(BTreeSet::from([*voter])), deadline).await
    }

    /// Nodes that the catalog no longer knows lose their seat in the consensus.
    async fn unseat_removed(&self, deadline: Duration) -> Result<()> {
        // Behind the door, so that a newcomer is not taken for a stranger between its two entries.
        let _turn = self.door.lock().await;
        let known: BTreeSet<NodeId> = self.machine.catalog().borrow().nodes.keys().copied().collect();
        let (voters, members): (BTreeSet<NodeId>, BTreeSet<NodeId>) = self.metrics(|metrics| {
            let membership = metrics.membership_config.membership();
            (membership.voter_ids().collect(), membership.nodes().map(|(id, _)| *id).collect())
        });
        let removed: BTreeSet<NodeId> = members.difference(&known).copied().collect();
        let (voting, following): (BTreeSet<_>, BTreeSet<_>) = removed.iter().partition(|id| voters.contains(id));
        if !voting.is_empty() {
            self.change(ChangeMembers::RemoveVoters(voting), deadline).await?;
        } else if !following.is_empty() {
            self.change(ChangeMembers::RemoveNodes(following), deadline).await?;
        }
        Ok(())
    }
}
