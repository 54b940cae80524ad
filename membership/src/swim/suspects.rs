//! How long each suspicion may last.
//!
//! foca lets a suspect down only where the suspicion began, and forgets to when it gets a new identity, or when it was alone
//! for a while. Whoever merely heard of a suspicion waits for news from there. If none comes, a suspect that answers every
//! probe stays one: it objects only when it learns that it is suspected, and news is told a limited number of times. So every
//! suspicion gets a deadline of its own here, wherever it came from.
//!
//! One that is this node's own ends sooner if others, whose own probes have failed as well, share it: what only one node sees may be the
//! fault of that node, or of a link. Source: Dadgar, Phillips and Currey, "Lifeguard: Local Health Awareness for More Accurate Failure
//! Detection" (2018): "dogpile".

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Member, State};
use shoal_kernel::NodeId;

use super::identity::Identity;

/// Suspicion times before the suspect is asked: twice what foca takes, so that foca's own verdict has had time to spread.
const ASK_AFTER: u32 = 2;

/// By what percentage a suspicion is shorter when as many share it as were waited for, and when half of two do: the logarithm of the
/// source.
const SHORTENED_PERCENT: u32 = 50;
const SHORTENED_HALFWAY_PERCENT: u32 = 32;

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
    /// Others whose own probes have failed.
    shared_by: BTreeSet<NodeId>,
    /// None unless a probe of this node's own has failed.
    verdict: Option<Verdict>,
}

/// When a suspicion of this node's own ends.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) since: Duration,
    /// How long it lasts if nobody shares it.
    pub(super) longest: Duration,
    /// The place of foca's timer among all timers: when it is due, and its ordinal.
    pub(super) place: (Duration, u64),
}

impl Verdict {
    /// When it is due if so many share it, of so many that are waited for.
    fn due_at(&self, sharers: usize, enough: usize) -> Duration {
        let shortened = match sharers {
            0 => 0,
            sharers if sharers >= enough => SHORTENED_PERCENT,
            _ => SHORTENED_HALFWAY_PERCENT,
        };
        self.since + self.longest * (100 - shortened) / 100
    }
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
            let suspicion = Suspicion {
                member: member.clone(),
                ask_at: now + self.suspicion * ASK_AFTER,
                down_at: None,
                shared_by: BTreeSet::new(),
                verdict: None,
            };
            self.due.insert((suspicion.due_at(), address));
            self.open.insert(address, suspicion);
        }
    }

    fn of(&mut self, suspect: &Member<Identity>) -> Option<&mut Suspicion> {
        self.open.get_mut(&suspect.id().address).filter(|suspicion| suspicion.member == *suspect)
    }

    /// Another node's own probe has failed. Whether that is news, and fewer than enough had said so before.
    pub(super) fn share(&mut self, suspect: &Member<Identity>, by: NodeId, enough: usize) -> bool {
        self.of(suspect).is_some_and(|it| it.shared_by.len() < enough && it.shared_by.insert(by))
    }

    /// A probe of this node's own has failed. Whether it is the first since the suspect was last heard of.
    pub(super) fn doubt(&mut self, suspect: &Member<Identity>, verdict: Verdict) -> bool {
        let Some(suspicion) = self.of(suspect).filter(|suspicion| suspicion.verdict.is_none()) else { return false };
        suspicion.verdict = Some(verdict);
        true
    }

    /// How many others share a suspicion.
    pub(super) fn sharers(&self, suspect: &Member<Identity>) -> usize {
        let suspicion = self.open.get(&suspect.id().address).filter(|suspicion| suspicion.member == *suspect);
        suspicion.map_or(0, |suspicion| suspicion.shared_by.len())
    }

    /// Where foca's timer for a suspicion of this node's own is, and when it ought to be due; `enough` others are waited for.
    pub(super) fn verdict(
        &mut self,
        suspect: &Member<Identity>,
        enough: usize,
    ) -> Option<(&mut (Duration, u64), Duration)> {
        let suspicion = self.of(suspect)?;
        let verdict = suspicion.verdict.as_mut()?;
        let due_at = verdict.due_at(suspicion.shared_by.len(), enough);
        Some((&mut verdict.place, due_at))
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
    fn a_suspicion_of_ones_own_is_the_shorter_the_more_share_it() {
        let ms = Duration::from_millis;
        let suspect = member(1, 4, State::Suspect);
        let mut suspects = Suspects::new(ms(1_000), ms(400));
        let verdict = || Verdict { since: ms(100), longest: ms(1_000), place: (ms(1_100), 7) };
        assert!(!suspects.doubt(&suspect, verdict()), "nobody is suspected");
        assert!(!suspects.share(&suspect, NodeId(1), 2));
        suspects.observe(&suspect, ms(50));
        assert!(suspects.verdict(&suspect, 2).is_none(), "others suspect it");
        assert!(suspects.doubt(&suspect, verdict()));
        assert!(!suspects.doubt(&suspect, verdict()), "a second probe changes nothing");
        let due = |suspects: &mut Suspects, enough| suspects.verdict(&suspect, enough).map(|(_, at)| at.as_millis());
        assert_eq!(due(&mut suspects, 2), Some(1_100));
        assert!(suspects.share(&suspect, NodeId(1), 2));
        assert!(!suspects.share(&suspect, NodeId(1), 2), "it has said so");
        assert_eq!((due(&mut suspects, 2), due(&mut suspects, 1)), (Some(780), Some(600)));
        assert!(!suspects.share(&member(1, 5, State::Suspect), NodeId(2), 2), "it has objected");
        assert!(suspects.share(&suspect, NodeId(2), 2));
        assert!(!suspects.share(&suspect, NodeId(3), 2), "enough is enough");
        assert_eq!((suspects.sharers(&suspect), due(&mut suspects, 2)), (2, Some(600)));
        suspects.observe(&member(1, 5, State::Alive), ms(300));
        assert_eq!((suspects.sharers(&suspect), due(&mut suspects, 2)), (0, None));
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
