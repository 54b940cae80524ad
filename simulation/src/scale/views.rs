//! What everybody thinks of everybody, and how far that is from what they should think. Kept up with every change of mind:
//! to look at all pairs after each event would cost more than the gossip.

use std::collections::BTreeSet;

use shoal_membership::MemberState;

use super::world::World;

/// Nobody has told it.
const UNKNOWN: u8 = 0;
const ALIVE: u8 = 1;
const SUSPECT: u8 = 2;
const DOWN: u8 = 3;
/// Of this one anything may be thought.
const ANYTHING: u8 = 4;

fn code(state: MemberState) -> u8 {
    match state {
        MemberState::Alive => ALIVE,
        MemberState::Suspect => SUSPECT,
        MemberState::Down => DOWN,
    }
}

pub(super) struct Views {
    nodes: usize,
    /// Who thinks, then of whom.
    view: Vec<u8>,
    /// What should be thought of each.
    goal: Vec<u8>,
    /// Crashed, or not started yet.
    gone: Vec<bool>,
    /// By who thinks: how many it thinks of what it should not; none once it is gone.
    wrong: Vec<usize>,
    /// Nodes that think of somebody what they should not.
    nodes_wrong: usize,
    /// By who thinks: when it first thought of all what it should, since the goal was set.
    right_at: Vec<Option<u64>>,
    pub(super) halved: bool,
    /// Nodes that are up and within reach of whoever suspected them.
    pub(super) suspected: BTreeSet<usize>,
    /// Nodes that are up and within reach of whoever called them down.
    pub(super) called_down: BTreeSet<usize>,
    /// By who is gone: when somebody first called it down.
    pub(super) missed_at: Vec<Option<u64>>,
}

impl Views {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            view: vec![UNKNOWN; nodes * nodes],
            goal: vec![ANYTHING; nodes],
            gone: vec![true; nodes],
            wrong: vec![0; nodes],
            nodes_wrong: 0,
            right_at: vec![None; nodes],
            halved: false,
            suspected: BTreeSet::new(),
            called_down: BTreeSet::new(),
            missed_at: vec![None; nodes],
        }
    }

    /// Somebody has changed its mind.
    pub(super) fn thinks(&mut self, who: usize, of: usize, state: MemberState, now: u64) {
        let (new, goal) = (code(state), self.goal[of]);
        let old = std::mem::replace(&mut self.view[who * self.nodes + of], new);
        if self.gone[of] {
            if new == DOWN {
                self.missed_at[of].get_or_insert(now);
            }
        } else if !self.halved || World::half(who) == World::half(of) {
            match new {
                SUSPECT => _ = self.suspected.insert(of),
                DOWN => _ = self.called_down.insert(of),
                _ => {}
            }
        }
        if goal == ANYTHING || (old == goal) == (new == goal) {
            return;
        }
        if new == goal {
            self.wrong[who] -= 1;
            if self.wrong[who] == 0 {
                self.nodes_wrong -= 1;
                self.right_at[who].get_or_insert(now);
            }
        } else {
            self.nodes_wrong += usize::from(self.wrong[who] == 0);
            self.wrong[who] += 1;
        }
    }

    /// A node is up from now on.
    pub(super) fn came(&mut self, node: usize) {
        self.gone[node] = false;
    }

    /// When a node first thought what it should.
    pub(super) fn right_at(&self, node: usize) -> Option<u64> {
        self.right_at.get(node).copied().flatten()
    }

    /// A node has crashed; what it thinks does not matter any more.
    pub(super) fn gone(&mut self, node: usize) {
        self.gone[node] = true;
        self.nodes_wrong -= usize::from(std::mem::take(&mut self.wrong[node]) > 0);
    }

    /// From now on everybody should think of the nodes that are up that they are alive.
    pub(super) fn expect_alive(&mut self, now: u64) {
        self.goal = self.gone.iter().map(|gone| if *gone { ANYTHING } else { ALIVE }).collect();
        self.compare(now);
    }

    /// From now on everybody should think of these nodes that they are down.
    pub(super) fn expect_down(&mut self, nodes: &[usize], now: u64) {
        self.goal = vec![ANYTHING; self.nodes];
        nodes.iter().for_each(|node| self.goal[*node] = DOWN);
        self.compare(now);
    }

    fn compare(&mut self, now: u64) {
        self.nodes_wrong = 0;
        for who in 0..self.nodes {
            let views = &self.view[who * self.nodes..(who + 1) * self.nodes];
            let wrong = views.iter().zip(&self.goal).enumerate();
            let wrong = wrong.filter(|(of, (view, goal))| *of != who && **goal != ANYTHING && view != goal).count();
            self.wrong[who] = if self.gone[who] { 0 } else { wrong };
            self.nodes_wrong += usize::from(self.wrong[who] > 0);
            self.right_at[who] = (wrong == 0).then_some(now);
        }
    }

    /// Whether everybody thinks what it should.
    pub(super) fn all_right(&self) -> bool {
        self.nodes_wrong == 0
    }

    /// When the median node, of those that are up, first thought what it should.
    pub(super) fn median_right_at(&self) -> Option<u64> {
        let up = self.right_at.iter().zip(&self.gone).filter(|(_, gone)| !**gone);
        let mut times: Vec<u64> = up.map(|(at, _)| at.unwrap_or(u64::MAX)).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().filter(|at| *at != u64::MAX)
    }

    /// Forgets who was suspected or called down.
    pub(super) fn forget_errors(&mut self) {
        self.suspected.clear();
        self.called_down.clear();
    }

    /// What the nodes of each half think of the other: the parts of all pairs that are alive, suspect and down.
    pub(super) fn across(&self) -> [f64; 3] {
        self.share(|who, of| World::half(who) != World::half(of))
    }

    /// What the nodes of each half think of their own.
    pub(super) fn within(&self) -> [f64; 3] {
        self.share(|who, of| who != of && World::half(who) == World::half(of))
    }

    fn share(&self, counts: impl Fn(usize, usize) -> bool) -> [f64; 3] {
        let (mut of_state, mut all) = ([0_u64; 5], 0_u64);
        for who in (0..self.nodes).filter(|who| !self.gone[*who]) {
            for of in (0..self.nodes).filter(|of| !self.gone[*of] && counts(who, *of)) {
                of_state[usize::from(self.view[who * self.nodes + of])] += 1;
                all += 1;
            }
        }
        [ALIVE, SUSPECT, DOWN].map(|state| of_state[usize::from(state)] as f64 / all.max(1) as f64)
    }
}
