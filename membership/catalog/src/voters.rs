//! Who should vote on the catalog: members that answer, in as many zones as there are.

use std::collections::BTreeSet;

use shoal_kernel::NodeId;

use crate::placement::Outlook;
use crate::state::{Catalog, NodeRecord};

/// A vote that goes to another node, in one step: whoever is missing afterwards, no majority is larger than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoterSwap {
    /// Who has it, and goes on following.
    pub from: NodeId,
    /// Who follows, and is to have it.
    pub to: NodeId,
}

impl Catalog {
    /// The next vote that should go to another node, if there is one: from a voter that is lost, or that shares its zone with others
    /// while a zone has none, or at least two fewer. Nothing while there are fewer than `voters_max`: nodes ask for their votes
    /// themselves. The `leader` keeps its own, and who is in `passed_over` gets none.
    pub fn wanted_voter(
        &self,
        outlook: &Outlook,
        leader: NodeId,
        voters_max: usize,
        passed_over: &BTreeSet<NodeId>,
    ) -> Option<VoterSwap> {
        let voters: Vec<&NodeRecord> = self.nodes.values().filter(|node| node.voter).collect();
        if voters.len() < voters_max {
            return None;
        }
        let is_lost = |node: &NodeRecord| outlook.lost.contains(&node.id);
        let beside = |node: &NodeRecord| {
            let there = |voter: &&&NodeRecord| !is_lost(voter) && voter.attributes.zone == node.attributes.zone;
            voters.iter().filter(there).count()
        };
        let others = voters.iter().filter(|voter| voter.id != leader);
        let worst = others.max_by_key(|voter| (is_lost(voter), beside(voter), voter.id))?;
        let takes =
            |node: &&NodeRecord| !node.voter && outlook.alive.contains(&node.id) && !passed_over.contains(&node.id);
        let best = self.active_nodes().filter(takes).min_by_key(|node| (beside(node), node.id))?;
        let better = is_lost(worst) || beside(worst) >= beside(best) + 2;
        better.then_some(VoterSwap { from: worst.id, to: best.id })
    }
}
