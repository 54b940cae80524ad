//! Who should vote on the catalog: members that answer, in as many zones as there are.

use shoal_kernel::NodeId;

use crate::placement::Outlook;
use crate::state::{Catalog, NodeRecord};

/// A step towards better voters. Whoever loses the vote goes on following.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoterChange {
    /// This node is to vote; there is one voter too many then, until the next step.
    Grant(NodeId),
    /// This one no longer.
    Withdraw(NodeId),
}

impl Catalog {
    /// The next step, if there is one to be made: one that is lost, or shares its zone with another voter while others have none,
    /// makes room for a node that follows. Nothing while there are fewer than `voters_max`: nodes ask for their votes themselves.
    /// The `leader` keeps its own.
    pub fn wanted_voter(&self, outlook: &Outlook, leader: NodeId, voters_max: usize) -> Option<VoterChange> {
        let voters: Vec<&NodeRecord> = self.nodes.values().filter(|node| node.voter).collect();
        let is_lost = |node: &NodeRecord| outlook.lost.contains(&node.id);
        let beside = |node: &NodeRecord| {
            let there = |voter: &&&NodeRecord| !is_lost(voter) && voter.attributes.zone == node.attributes.zone;
            voters.iter().filter(there).count()
        };
        let others = voters.iter().filter(|voter| voter.id != leader);
        let worst = others.max_by_key(|voter| (is_lost(voter), beside(voter), voter.id))?;
        if voters.len() > voters_max {
            return Some(VoterChange::Withdraw(worst.id));
        }
        let free = self.active_nodes().filter(|node| !node.voter && outlook.alive.contains(&node.id));
        let best = free.min_by_key(|node| (beside(node), node.id))?;
        let better = is_lost(worst) || beside(worst) >= beside(best) + 2;
        (better && voters.len() == voters_max).then_some(VoterChange::Grant(best.id))
    }
}
