//! Who seems to be alive: SWIM's opinion, in the form that the others use.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_catalog::Catalog;
use shoal_kernel::NodeId;
use shoal_membership::{MemberState, Members};
use tokio::sync::watch;

/// SWIM's opinion. It decides whom to ask first and when to give up waiting, never who holds what.
#[derive(Clone)]
pub(crate) struct Liveness {
    node: NodeId,
    members: watch::Receiver<Arc<Members>>,
    catalog: watch::Receiver<Arc<Catalog>>,
}

impl Liveness {
    pub(crate) fn new(
        node: NodeId,
        members: watch::Receiver<Arc<Members>>,
        catalog: watch::Receiver<Arc<Catalog>>,
    ) -> Self {
        Self { node, members, catalog }
    }

    /// Nodes that answer or are only suspected, this one among them.
    pub(crate) fn alive(&self) -> BTreeSet<NodeId> {
        let members = self.members.borrow();
        let up = members.iter().filter(|(_, member)| member.state != MemberState::Down).map(|(node, _)| *node);
        up.chain(std::iter::once(self.node)).collect()
    }

    /// Nodes that are suspected: they have not answered lately, and are not called down yet.
    pub(crate) fn suspected(&self) -> BTreeSet<NodeId> {
        let members = self.members.borrow();
        members.iter().filter(|(_, member)| member.state == MemberState::Suspect).map(|(node, _)| *node).collect()
    }

    /// What is thought of a node; nothing if it was never heard of. One in whose place another node has come, with an empty disk,
    /// is down.
    pub(crate) fn state(&self, node: NodeId) -> Option<MemberState> {
        if node == self.node {
            return Some(MemberState::Alive);
        }
        let members = self.members.borrow();
        if let Some(member) = members.get(&node) {
            return Some(member.state);
        }
        let catalog = self.catalog.borrow();
        let address = catalog.nodes.get(&node)?.attributes.cluster_address;
        members.values().any(|member| member.address == address).then_some(MemberState::Down)
    }

    /// What is thought of everybody.
    pub(crate) fn members(&self) -> Arc<Members> {
        self.members.borrow().clone()
    }

    /// Whether a node is known to be down. One never heard of is not.
    pub(crate) fn is_down(&self, node: NodeId) -> bool {
        self.state(node) == Some(MemberState::Down)
    }
}
