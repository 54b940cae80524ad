//! How long each suspicion may last.
//!
//! foca lets a suspect down only where the suspicion began, and forgets to when it gets a new identity, or when it was alone
//! for a while. Whoever merely heard of a suspicion waits for news from there. If none comes, a suspect that answers every
//! probe stays one: it objects only when it learns that it is suspected, and news is told a limited number of times. So every
//! suspicion gets a deadline of its own here, wherever it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Member, State};

use super::identity::Identity;

/// Suspicion times before the suspect is asked: twice what foca takes, so that foca's own verdict has had time to spread.
const ASK_AFTER: u32 = 2;

/// What is to be done about a suspect.
#[derive(Debug)]
pub(super) enum Overdue {
    /// Tell it that it is suspected: if it is there, it objects.
    Ask(Member<Identity>),
    /// It did not object: it is down.
    Down(Member<Identity>),
}

/// The suspects and their deadlines. Each is alive or down within three suspicion times, or is suspected anew after it objected.
#[derive(Debug)]
pub(super) struct Suspects {
    suspicion: Duration,
    ask_every: Duration,
    /// By address: foca knows one member for each.
    open: BTreeMap<SocketAddr, Suspicion>,
    /// The next thing to do about each, by time: half a large cluster can be suspect at once.
    due: BTreeSet<(Duration, SocketAddr)>,
}

#[derive(Debug)]
struct Suspicion {
    member: Member<Identity>,
    ask_at: Duration,
    /// None until it is asked: after a pause of this process the deadline may be long past before anybody could object.
    down_at: Option<Duration>,
}

impl Suspicion {
    fn due_at(&self) -> Duration {
        self.down_at.map_or(self.ask_at, |down_at| down_at.min(self.ask_at))
    }
}

impl Suspects {
    pub(super) fn new(suspicion: Duration, ask_every: Duration) -> Self {
        Self { suspicion, ask_every, open: BTreeMap::new(), due: BTreeSet::new() }
    }

    /// How long suspicions last that begin from now on.
    pub(super) fn set_suspicion(&mut self, suspicion: Duration) {
        self.suspicion = suspicion;
    }

    /// Takes note of what a member is thought to be now.
    pub(super) fn observe(&mut self, member: &Member<Identity>, now: Duration) {
        let address = member.id().address;
        if member.state() != State::Suspect {
            self.close(address);
        } else if self.open.get(&address).is_none_or(|known| known.member != *member) {
            // Another life or incarnation is a new suspicion: the suspect was heard of in between.
            self.close(address);
            let suspicion =
                Suspicion { member: member.clone(), ask_at: now + self.suspicion * ASK_AFTER, down_at: None };
            self.due.insert((suspicion.due_at(), address));
            self.open.insert(address, suspicion);
        }
    }

    fn close(&mut self, address: SocketAddr) {
        if let Some(suspicion) = self.open.remove(&address) {
            self.due.remove(&(suspicion.due_at(), address));
        }
    }

    /// When [`Suspects::overdue`] has something.
    pub(super) fn due_at(&self) -> Option<Duration> {
        self.due.first().map(|(at, _)| *at)
    }

    /// What is due. A suspect that is down leaves the list.
    pub(super) fn overdue(&mut self, now: Duration) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        let (ask_again_at, down_at) = (now + self.ask_every, now + self.suspicion);
        while let Some((at, address)) = self.due.first().copied().filter(|(at, _)| *at <= now) {
            self.due.remove(&(at, address));
            let Some(suspicion) = self.open.get_mut(&address) else { continue };
            if suspicion.down_at.is_some_and(|at| now >= at) {
                overdue.push(Overdue::Down(suspicion.member.clone()));
                self.open.remove(&address);
                continue;
            }
            suspicion.ask_at = ask_again_at;
            suspicion.down_at.get_or_insert(down_at);
            overdue.push(Overdue::Ask(suspicion.member.clone()));
            self.due.insert((suspicion.due_at(), address));
        }
        overdue
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use shoal_kernel::NodeId;

    use super::*;

    fn member(generation: u64, incarnation: u16, state: State) -> Member<Identity> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 7));
        Member::new(Identity { node: NodeId(7), address, generation }, incarnation, state)
    }

    /// What comes out of a suspicion that begins at zero, of 1000 ms, asked every 400 ms; what is heard of the suspect at a time
    /// in ms is given.
    fn course(heard: &[(u64, Member<Identity>)]) -> Vec<String> {
        let mut suspects = Suspects::new(Duration::from_millis(1_000), Duration::from_millis(400));
        suspects.observe(&member(1, 0, State::Suspect), Duration::ZERO);
        let mut course = Vec::new();
        let mut heard = heard.iter();
        let mut next = heard.next();
        loop {
            let due = suspects.due_at();
            if let Some((at, member)) = next
                && due.is_none_or(|due| Duration::from_millis(*at) < due)
            {
                suspects.observe(member, Duration::from_millis(*at));
                next = heard.next();
                continue;
            }
            let Some(now) = due else { return course };
            for overdue in suspects.overdue(now) {
                course.push(match overdue {
                    Overdue::Ask(_) => format!("{} ask", now.as_millis()),
                    Overdue::Down(member) => format!("{} down {}", now.as_millis(), member.incarnation()),
                });
            }
        }
    }

    #[test]
    fn a_suspect_is_asked_and_then_down_unless_it_is_heard_of() {
        let asked = |from: u64| [0, 400, 800].map(|later| format!("{} ask", from + later)).to_vec();
        let down = |at: u64, incarnation: u16| vec![format!("{at} down {incarnation}")];
        assert_eq!(course(&[]), [asked(2_000), down(3_000, 0)].concat());
        // The same news again does not win it time.
        assert_eq!(course(&[(1_900, member(1, 0, State::Suspect))]), [asked(2_000), down(3_000, 0)].concat());
        assert_eq!(course(&[(2_900, member(1, 1, State::Alive))]), asked(2_000));
        assert_eq!(course(&[(1_000, member(2, 0, State::Alive))]), Vec::<String>::new());
        assert_eq!(course(&[(1_000, member(1, 1, State::Suspect))]), [asked(3_000), down(4_000, 1)].concat());
    }

    #[test]
    fn nobody_is_down_before_it_could_answer() {
        let mut suspects = Suspects::new(Duration::from_millis(1_000), Duration::from_millis(400));
        suspects.observe(&member(1, 0, State::Suspect), Duration::ZERO);
        let late = Duration::from_secs(60);
        assert!(matches!(suspects.overdue(late)[..], [Overdue::Ask(_)]));
        assert!(suspects.due_at().is_some_and(|due| due > late));
    }
}
