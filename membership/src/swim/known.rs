//! What foca holds of everybody, by address, and what of it is still to be told.
//!
//! foca keeps its members in a list, which it searches for every piece of news, and the news it tells in a heap, which it
//! takes apart for every datagram once more waits than fits into one. That is nothing among a hundred nodes. When thousands
//! start or return at once, every node hears of each of them some twenty times, and both costs grow with the square of the
//! cluster. So foca gets only what is new to it, and what it would have to tell beyond a few datagrams waits here.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use foca::{Identity as _, Incarnation, Member, State};
use shoal_kernel::NodeId;

use super::identity::Identity;
use super::survey::{GROUPS, Marks, Place, first_of, group_of, place};

/// Nothing waits to be told of this member.
const TOLD: u8 = u8::MAX;

/// What foca holds of the member at one address. Every node has one for every node, so it is kept small.
#[derive(Debug, Clone, Copy)]
struct Fact {
    generation: u64,
    node: NodeId,
    incarnation: Incarnation,
    state: State,
    /// How often it was told, or [`TOLD`].
    told: u8,
}

impl Fact {
    fn identity(&self, address: SocketAddr) -> Identity {
        Identity { node: self.node, address, generation: self.generation }
    }

    fn member(&self, address: SocketAddr) -> Member<Identity> {
        Member::new(self.identity(address), self.incarnation, self.state)
    }

    /// The order of news about one life, as in section 4.2 of the paper: foca applies the same.
    fn gives_way_to(&self, incarnation: Incarnation, state: State) -> bool {
        match (self.state, state) {
            (State::Down, _) => false,
            (_, State::Down) => true,
            (State::Alive, State::Suspect) => incarnation >= self.incarnation,
            (State::Alive | State::Suspect, State::Alive) | (State::Suspect, State::Suspect) => {
                incarnation > self.incarnation
            }
        }
    }
}

/// Follows foca's members, by its rules.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// By address, in the order of their groups.
    facts: BTreeMap<Place, Fact>,
    /// Of those that are not down.
    marks: Marks,
    /// Whom to tell of, by how often that was done. An address may stand here that has moved on since; it is passed over.
    untold: Vec<VecDeque<SocketAddr>>,
}

impl Known {
    /// Whether foca would make anything of it.
    pub(super) fn is_news(&self, update: &Member<Identity>) -> bool {
        let id = update.id();
        self.facts.get(&place(id.address)).is_none_or(|fact| {
            let known = fact.identity(id.address);
            if known == *id {
                fact.gives_way_to(update.incarnation(), update.state())
            } else {
                !known.win_addr_conflict(id)
            }
        })
    }

    /// Takes over what foca takes over. Whether that was anything.
    pub(super) fn learn(&mut self, update: &Member<Identity>) -> bool {
        let news = self.is_news(update);
        if news {
            let (id, incarnation, state) = (update.id(), update.incarnation(), update.state());
            let fact = Fact { generation: id.generation, node: id.node, incarnation, state, told: TOLD };
            self.put(id.address, Some(fact));
        }
        news
    }

    fn put(&mut self, address: SocketAddr, fact: Option<Fact>) {
        let before = match fact {
            Some(fact) => self.facts.insert(place(address), fact),
            None => self.facts.remove(&place(address)),
        };
        for active in [before, fact].into_iter().flatten().filter(|fact| fact.state != State::Down) {
            self.marks.toggle(&active.identity(address));
        }
    }

    /// What is known, in a nutshell.
    pub(super) fn marks(&self) -> Marks {
        self.marks
    }

    /// Members of the groups that are asked for, as long as they are taken, beginning with a group, and within a group with
    /// any member: the end of a large one must come, too.
    pub(super) fn in_groups(
        &self,
        asked: &[bool; GROUPS],
        first: usize,
        skipped: usize,
        mut take: impl FnMut(&Member<Identity>) -> bool,
    ) {
        for group in (first..first + GROUPS).map(|group| group % GROUPS).filter(|group| asked[*group]) {
            let here = || self.facts.range(first_of(group)..).take_while(|(place, _)| group_of(place) == group);
            let turn = skipped % here().count().max(1);
            for ((_, address), fact) in here().skip(turn).chain(here().take(turn)) {
                if !take(&fact.member(*address)) {
                    return;
                }
            }
        }
    }

    /// Forgets a life that is down, as foca does after a while.
    pub(super) fn forget(&mut self, id: &Identity) -> bool {
        let gone = |fact: &Fact| fact.identity(id.address) == *id && fact.state == State::Down;
        let forgotten = self.facts.get(&place(id.address)).is_some_and(gone);
        if forgotten {
            self.put(id.address, None);
        }
        forgotten
    }

    /// Takes what foca holds at an address, whatever was known of it.
    pub(super) fn correct(&mut self, address: SocketAddr, held: Option<&Member<Identity>>) {
        self.put(address, None);
        if let Some(held) = held {
            self.learn(held);
        }
    }

    /// Whether this very life is known, and not down.
    pub(super) fn is_active(&self, id: &Identity) -> bool {
        self.get(id.address).is_some_and(|known| known.id() == id && known.state() != State::Down)
    }

    pub(super) fn get(&self, address: SocketAddr) -> Option<Member<Identity>> {
        Some(self.facts.get(&place(address))?.member(address))
    }

    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        self.facts.contains_key(&place(address))
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.facts.keys().map(|(_, address)| *address)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.facts.values().map(|fact| fact.node)
    }

    /// What is known at this address is to be told.
    pub(super) fn tell(&mut self, address: SocketAddr) {
        if let Some(fact) = self.facts.get_mut(&place(address)) {
            fact.told = 0;
            self.queue(address, 0);
        }
    }

    fn queue(&mut self, address: SocketAddr, told: u8) {
        let round = usize::from(told);
        if self.untold.len() <= round {
            self.untold.resize_with(round + 1, VecDeque::new);
        }
        if let Some(waiting) = self.untold.get_mut(round) {
            waiting.push_back(address);
        }
    }

    /// Whether something is still to be told.
    pub(super) fn has_untold(&self) -> bool {
        self.untold.iter().any(|round| !round.is_empty())
    }

    /// Hands out what was told least often until it is not taken any more, each as often as `times` over all calls.
    pub(super) fn hand_out(&mut self, times: u8, mut take: impl FnMut(&Member<Identity>) -> bool) {
        let mut taken = Vec::new();
        'all: for round in 0..self.untold.len() {
            while let Some(address) = self.untold.get_mut(round).and_then(VecDeque::pop_front) {
                let Some(fact) = self.facts.get(&place(address)).filter(|fact| usize::from(fact.told) == round) else {
                    continue;
                };
                if !take(&fact.member(address)) {
                    self.untold[round].push_front(address);
                    break 'all;
                }
                taken.push(address);
            }
        }
        for address in taken {
            let Some(fact) = self.facts.get_mut(&place(address)) else { continue };
            fact.told = fact.told.saturating_add(1);
            if fact.told >= times {
                fact.told = TOLD;
            } else {
                let told = fact.told;
                self.queue(address, told);
            }
        }
        if !self.has_untold() {
            // A storm is over: what it took is given back.
            self.untold = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn member(port: u16, generation: u64, incarnation: u16, state: State) -> Member<Identity> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Member::new(Identity { node: NodeId(u32::from(port)), address, generation }, incarnation, state)
    }

    #[test]
    fn news_has_an_order() {
        let mut known = Known::default();
        let mut learn = |generation, incarnation, state| known.learn(&member(7, generation, incarnation, state));
        assert!(learn(1, 0, State::Alive));
        assert!(!learn(1, 0, State::Alive), "twice is no news");
        assert!(learn(1, 0, State::Suspect));
        assert!(!learn(1, 0, State::Alive), "a suspect must object");
        assert!(learn(1, 1, State::Alive));
        assert!(!learn(1, 0, State::Suspect), "the suspicion came too late");
        assert!(learn(1, 0, State::Down));
        assert!(!learn(1, 9, State::Alive), "down is for good");
        assert!(learn(2, 0, State::Alive), "in another life it is back");
        assert!(!learn(1, 9, State::Down));
    }

    #[test]
    fn everything_is_told_as_often_as_was_asked_for_and_news_first() {
        let mut known = Known::default();
        for port in 1..=5 {
            let member = member(port, 1, 0, State::Alive);
            assert!(known.learn(&member));
            known.tell(member.id().address);
        }
        let told = |known: &mut Known| {
            let mut ports = Vec::new();
            known.hand_out(3, |member| {
                let fits = ports.len() < 2;
                if fits {
                    ports.push(member.id().address.port());
                }
                fits
            });
            ports
        };
        assert_eq!([told(&mut known), told(&mut known)], [[1, 2], [3, 4]]);
        // Told of anew under another state, and only as that.
        assert!(known.learn(&member(3, 1, 0, State::Suspect)));
        known.tell(member(3, 1, 0, State::Suspect).id().address);
        assert_eq!(told(&mut known), [5, 3]);
        let mut times = BTreeMap::from([(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
        while known.has_untold() {
            told(&mut known).into_iter().for_each(|port| *times.entry(port).or_default() += 1);
        }
        assert_eq!(times, (1..=5).map(|port| (port, 3)).collect());
    }
}
