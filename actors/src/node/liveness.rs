//! Who seems to be alive: SWIM's opinion, in the form that the others use.

use std::collections::BTreeSet;
use std::sync::Arc;

use shoal_kernel::NodeId;
use shoal_membership::{MemberState, Members};
use tokio::sync::watch;

/// SWIM's opinion. It decides whom to ask first and when to give up waiting, never who holds what.
#[derive(Clone)]
pub(crate) struct Liveness {
    node: NodeId,
    members: watch::Receiver<Arc<Members>>,
}

impl Liveness {
    pub(crate) fn new(node: NodeId, members: watch::Receiver<Arc<Members>>) -> Self {
        Self { node, members }
    }

    /// Nodes that answer or are only suspected, this one among them.
    pub(crate) fn alive(&self) -> BTreeSet<NodeId> {
        let members = self.members.borrow();
        let up = members.iter().filter(|(_, member)| member.state != MemberState::Down).map(|(node, _)| *node);
        up.chain(std::iter::once(self.node)).collect()
    }

    /// Whether a node is known to be down. One never heard of is not.
    pub(crate) fn is_down(&self, node: NodeId) -> bool {
        node != self.node && self.members.borrow().get(&node).is_some_and(|member| member.state == MemberState::Down)
    }
}
