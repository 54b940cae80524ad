//! The protocol without a world: datagrams and the time go in, datagrams come out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use foca::{
    AccumulatingRuntime, Codec, Config, Foca, Header, Message, OwnedNotification, PeriodicParams, PostcardCodec, State,
    Timer,
};
use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use shoal_kernel::env::Rng;
use shoal_kernel::{Error, ErrorCode, NodeId, Result, wire};

use super::health::Health;
use super::heard::{Heard, Parcel};
use super::identity::Identity;
use super::known::Known;
use super::payload::{Notice, Notices};
use super::scale::Scale;
use super::seal::SEAL_BYTES;
use super::survey::{self, GROUPS, Marks};
use super::suspects::{Overdue, Suspects, Verdict};
use super::{Member, MemberState, Members, SwimConfig, millis};

/// Bytes of one datagram: below what any network of today carries whole (RFC 8085).
const DATAGRAM_BYTES_MAX: usize = 1_400;

const INDIRECT_PROBES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);
const GOSSIP_MEMBERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);
/// Others who share a suspicion before it is as short as it gets, at most.
const SHARERS_MAX: usize = 2;
const DOWN_MEMBERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);
pub(super) const PACKET_BYTES_MAX: NonZeroUsize =
    NonZeroUsize::MIN.saturating_add(DATAGRAM_BYTES_MAX - SEAL_BYTES - KIND_BYTES - 1);

/// News that waits in foca before the core tells more by itself: about what fits into two datagrams.
const BACKLOG_MAX: usize = 128;

/// Times that each node tells news of which there is more than that. Whoever misses some of it finds it by asking.
const BULK_TRANSMISSIONS: u8 = 6;

/// Datagrams of one answer to a survey.
const ANSWER_DATAGRAMS_MAX: usize = 4;

/// Every datagram begins with what it is.
const KIND_BYTES: usize = 1;
/// foca's.
const GOSSIP: u8 = 0;
/// A node asks what it has missed.
const SURVEY: u8 = 1;
/// As foca's, in answer to a survey: those who told it before have done so.
const ANSWER: u8 = 2;
/// As foca's, with one suspect, behind the node (4, BE) whose own probe of it has failed.
const DOUBT: u8 = 3;

/// What whoever drives the core must do, in this order.
#[derive(Debug, Default)]
pub struct Effects {
    /// Store this generation before anything is sent.
    pub generation: Option<u64>,
    /// Datagrams to send, without seal.
    pub sends: Vec<(SocketAddr, Vec<u8>)>,
    /// What came in was not understood.
    pub malformed: bool,
    /// Of whom something else is thought now, and what; in order.
    pub opinions: Vec<(NodeId, MemberState)>,
    /// [`Core::members`] may say something else than before.
    pub changed: bool,
}

impl Effects {
    fn absorb(&mut self, other: Self) {
        self.generation = other.generation.or(self.generation);
        self.sends.extend(other.sends);
        self.malformed |= other.malformed;
        self.opinions.extend(other.opinions);
        self.changed |= other.changed;
    }
}

type Gossip = Foca<Identity, PostcardCodec, Rng, Notices>;

/// One node's protocol.
pub struct Core {
    foca: Gossip,
    /// As foca has them; some follow the size of the cluster.
    settings: Config,
    /// The size that they were made for.
    scale: Scale,
    suspicion: Duration,
    health: Health,
    rng: Rng,
    notices: Notices,
    known: Known,
    /// Of whom something was learnt since the last effects.
    opinions: Vec<(NodeId, MemberState)>,
    changed: bool,
    /// By deadline, then in the order they were set.
    timers: BTreeMap<(Duration, u64), Timer<Identity>>,
    ordinal: u64,
    suspects: Suspects,
    seeds: Vec<SocketAddr>,
    seek_every: Duration,
    seek_at: Duration,
    tell_every: Duration,
    tell_at: Duration,
    spread_every: Duration,
    /// None while foca tells all there is to tell.
    spread_at: Option<Duration>,
    /// Once nothing is new.
    survey_every: Duration,
    /// Until the next but one.
    survey_wait: Duration,
    survey_at: Duration,
    payload: Arc<[u8]>,
    left: bool,
}

impl Core {
    /// A node that knows nobody yet. `now` is the time since some moment in the past, as in all that follows.
    ///
    /// # Errors
    /// The settings contradict each other.
    pub fn new(config: &SwimConfig, identity: Identity, mut rng: Rng, now: Duration) -> Result<Self> {
        let positive = [config.probe_rtt_ms, config.suspicion_ms, config.gossip_ms, config.announce_ms]
            .into_iter()
            .chain([config.announce_to_down_ms, config.seek_ms, config.forget_down_ms])
            .all(|ms| ms > 0);
        if !positive || config.probe_rtt_ms >= config.probe_period_ms {
            return Err(Error::new(
                ErrorCode::InvalidRequest,
                "the times of the gossip must not be zero, and probe_rtt_ms must be below probe_period_ms",
            ));
        }
        let every = |ms, num_members| Some(PeriodicParams { frequency: millis(ms), num_members });
        let (scale, suspicion) = (Scale::of(1), millis(config.suspicion_ms));
        let settings = Config {
            probe_period: millis(config.probe_period_ms),
            probe_rtt: millis(config.probe_rtt_ms),
            num_indirect_probes: INDIRECT_PROBES,
            max_transmissions: scale.transmissions(),
            suspect_to_down_after: scale.suspicion(suspicion),
            remove_down_after: Some(millis(config.forget_down_ms)),
            max_packet_size: PACKET_BYTES_MAX,
            // Without these two, sides of a partition that called each other dead would ignore each other for ever.
            notify_down_members: true,
            periodic_announce_to_down_members: every(config.announce_to_down_ms, DOWN_MEMBERS),
            periodic_gossip: every(config.gossip_ms, GOSSIP_MEMBERS),
            // Surveys find more for less.
            periodic_announce: None,
        };
        let notices = Notices::default();
        let ours = Rng::from_rng(&mut rng);
        Ok(Self {
            foca: Foca::with_custom_broadcast(identity, settings.clone(), rng, PostcardCodec, notices.clone()),
            settings,
            scale,
            suspicion,
            health: Health::new(millis(config.probe_period_ms)),
            rng: ours,
            notices,
            known: Known::default(),
            opinions: Vec::new(),
            changed: false,
            timers: BTreeMap::new(),
            ordinal: 0,
            suspects: Suspects::new(suspicion, millis(config.probe_period_ms)),
            seeds: config.seeds.iter().copied().filter(|seed| *seed != config.address).collect(),
            seek_every: millis(config.seek_ms),
            seek_at: now,
            tell_every: millis(config.announce_ms),
            tell_at: now + millis(config.announce_ms),
            spread_every: millis(config.gossip_ms),
            spread_at: None,
            survey_every: millis(config.announce_ms),
            survey_wait: millis(config.announce_ms),
            survey_at: now + millis(config.announce_ms),
            payload: Arc::from([]),
            left: false,
        })
    }

    /// A datagram has come, without its seal.
    pub fn receive(&mut self, body: &[u8], now: Duration) -> Effects {
        if self.left {
            return Effects::default();
        }
        let effects = match body.split_first() {
            Some((&GOSSIP, body)) => self.hear(body, false, now),
            Some((&ANSWER, body)) => self.hear(body, true, now),
            Some((&SURVEY, body)) => self.answer(body, now),
            Some((&DOUBT, body)) => self.hear_doubt(body, now),
            _ => Effects { malformed: true, ..Effects::default() },
        };
        #[cfg(test)]
        self.check();
        effects
    }

    fn hear(&mut self, body: &[u8], answer: bool, now: Duration) -> Effects {
        let me = *self.foca.identity();
        let Some(heard) = Heard::read(body).filter(|heard| heard.is_for(&me)) else {
            // foca says what is wrong with it.
            return self.drive(now, |foca, runtime| foca.handle_data(body, runtime));
        };
        // What follows foca's rules here is done before foca does it: its notifications speak of what is known by then.
        self.learn(&foca::Member::new(heard.header.src, heard.header.src_incarnation, State::Alive), now);
        if !self.known.is_active(&heard.header.src) {
            return self.drive(now, |foca, runtime| foca.handle_data(body, runtime));
        }
        let (mut about_me, mut fresh, mut beyond) = (false, Vec::new(), Vec::new());
        for update in &heard.updates {
            // An answer tells who is down for those who think otherwise; to others it would be news without end: each would
            // remember for a day what another was about to forget.
            if answer && update.state() == State::Down && !self.known.contains(update.id().address) {
                continue;
            }
            if update.id().address == me.address {
                about_me = true;
                if update.state() == State::Suspect
                    && *update.id() == me
                    && self.health.suspected(update.id().generation, update.incarnation(), now)
                {
                    self.rescale();
                }
                fresh.push(update.clone());
            } else if self.learn(update, now) {
                let bulk = answer || self.foca.updates_backlog() + fresh.len() >= BACKLOG_MAX;
                if bulk { beyond.push(update.clone()) } else { fresh.push(update.clone()) }
            }
        }
        let shorter = if fresh.len() < heard.updates.len() { heard.with(&fresh) } else { None };
        let shorter = shorter.as_deref().unwrap_or(body);
        let mut all = self.drive(now, |foca, runtime| foca.handle_data(shorter, runtime));
        if !beyond.is_empty() {
            self.survey_soon(now);
            if !answer {
                beyond.iter().for_each(|update| self.known.tell(update.id().address));
                self.spread_at.get_or_insert(now + self.spread_every);
            }
            all.absorb(self.drive(now, |foca, runtime| foca.apply_many(beyond.into_iter(), false, runtime)));
        }
        if about_me {
            // foca has rules of its own for former lives of this node.
            let held = self.foca.iter_membership_state().find(|member| member.id().address == me.address);
            self.known.correct(me.address, held);
            all.changed = true;
        }
        all
    }

    /// Somebody's own probe of a suspect has failed.
    fn hear_doubt(&mut self, body: &[u8], now: Duration) -> Effects {
        let me = *self.foca.identity();
        let Some((by, news)) = body.split_first_chunk() else {
            return Effects { malformed: true, ..Effects::default() };
        };
        let mut all = self.hear(news, false, now);
        let heard = Heard::read(news).filter(|heard| heard.is_for(&me));
        let Some([suspect]) = heard.as_ref().map(|heard| heard.updates.as_slice()) else { return all };
        let by = NodeId(u32::from_be_bytes(*by));
        let is_known = heard.as_ref().is_some_and(|heard| self.known.is_active(&heard.header.src));
        if is_known && by != me.node && self.suspects.share(suspect, by, self.enough_sharers()) {
            all.sends.extend(self.spread_doubt(suspect, by));
            self.hasten(suspect, now);
        }
        all
    }

    /// How many others share a suspicion when it is as short as it gets.
    fn enough_sharers(&self) -> usize {
        // All but the suspect, of whom foca knows, and this node, which it does not count.
        self.foca.num_members().saturating_sub(1).min(SHARERS_MAX)
    }

    /// Tells some members that a node's own probe of a suspect has failed. Each tells it once, so nearly all hear of it in a few steps. Where
    /// there is much other news (half of the nodes are gone, say), nobody needs to be hasty.
    fn spread_doubt(&mut self, suspect: &foca::Member<Identity>, by: NodeId) -> Vec<(SocketAddr, Vec<u8>)> {
        if self.foca.updates_backlog() >= BACKLOG_MAX {
            return Vec::new();
        }
        let others =
            self.foca.iter_members().map(|member| *member.id()).filter(|id| id.address != suspect.id().address);
        let chosen: Vec<Identity> = others.sample(&mut self.rng, GOSSIP_MEMBERS.get());
        let me = *self.foca.identity();
        let mut kind = vec![DOUBT];
        kind.extend(by.0.to_be_bytes());
        let doubt = |to: &Identity| {
            let mut parcel = Parcel::new(&kind, me, *to)?;
            parcel.add(suspect).then(|| (to.address, parcel.close()))
        };
        chosen.iter().filter_map(doubt).collect()
    }

    /// A suspicion of this node's own that others share ends sooner.
    fn hasten(&mut self, suspect: &foca::Member<Identity>, now: Duration) {
        let enough = self.enough_sharers();
        if let Some((place, due_at)) = self.suspects.verdict(suspect, enough)
            && let Some(timer) = self.timers.remove(place)
        {
            self.ordinal += 1;
            *place = (due_at.max(now), self.ordinal);
            self.timers.insert(*place, timer);
        }
    }

    /// A probe of this node's own has failed.
    fn doubt(
        &mut self,
        suspect: &foca::Member<Identity>,
        verdict: Verdict,
        now: Duration,
    ) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut sends = Vec::new();
        if self.learn(suspect, now) {
            // Others may be told before the suspect is; it has the least time.
            sends.extend(self.ask(suspect));
        }
        if self.suspects.doubt(suspect, verdict) {
            if self.suspects.sharers(suspect) < self.enough_sharers() {
                sends.extend(self.spread_doubt(suspect, self.me()));
            }
            self.hasten(suspect, now);
        }
        sends
    }

    /// Somebody asks what it has missed.
    fn answer(&mut self, question: &[u8], now: Duration) -> Effects {
        let me = *self.foca.identity();
        let Some((from, to, theirs)) = survey::decode(question) else {
            return Effects { malformed: true, ..Effects::default() };
        };
        // One for another life is old: recorded, perhaps, and told again.
        if to != me || from.address == me.address {
            return Effects::default();
        }
        // It speaks, so it is there.
        let asker = foca::Member::alive(from);
        let mut all = Effects::default();
        if self.learn(&asker, now) {
            all = self.drive(now, |foca, runtime| foca.apply_many([asker].into_iter(), true, runtime));
        }
        if !self.known.is_active(&from) {
            // foca tells it why, as soon as it says something else.
            return all;
        }
        let differing = self.marks().differing(&theirs);
        if differing.contains(&true) {
            // Whoever has missed much asks several; each begins elsewhere.
            let (first, skipped) = (self.rng.random_range(0..GROUPS), self.rng.random_range(0..usize::MAX));
            let mut parcels: Vec<Parcel> = Vec::new();
            self.known.in_groups(&differing, first, skipped, |member| {
                if parcels.last_mut().is_some_and(|parcel| parcel.add(member)) {
                    return true;
                }
                if parcels.len() < ANSWER_DATAGRAMS_MAX {
                    parcels.extend(Parcel::new(&[ANSWER], me, from));
                    return parcels.last_mut().is_some_and(|parcel| parcel.add(member));
                }
                false
            });
            all.sends.extend(parcels.into_iter().map(|parcel| (from.address, parcel.close())));
        }
        all
    }

    /// What is known, this node included, in a nutshell.
    fn marks(&self) -> Marks {
        let mut marks = self.known.marks();
        marks.toggle(self.foca.identity());
        marks
    }

    /// There is probably much that this node has missed.
    fn survey_soon(&mut self, now: Duration) {
        self.survey_wait = self.spread_every.min(self.survey_every);
        self.survey_at = self.survey_at.min(now + self.survey_wait);
    }

    /// Asks somebody what this node has missed.
    fn survey(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        let members = self.foca.iter_members().map(|member| *member.id());
        let to = members.choose(&mut self.rng)?;
        let mut body = vec![SURVEY];
        body.extend(survey::encode(*self.foca.identity(), to, &self.marks())?);
        Some((to.address, body))
    }

    /// Asks whoever is at an address to be let in.
    pub fn announce(&mut self, address: SocketAddr, now: Duration) -> Effects {
        self.drive(now, |foca, runtime| foca.announce(Identity::somebody_at(address), runtime))
    }

    /// Tells everybody something about this node.
    pub fn publish(&mut self, payload: Arc<[u8]>) {
        self.payload = payload;
        self.tell();
    }

    /// Says good-bye. Nothing more comes out of it.
    pub fn leave(&mut self, now: Duration) -> Effects {
        let mut effects = self.drive(now, |foca, runtime| foca.leave_cluster(runtime));
        effects.changed = true;
        self.left = true;
        self.timers.clear();
        effects
    }

    /// When [`Core::tick`] is due.
    pub fn wake_at(&self) -> Option<Duration> {
        if self.left {
            return None;
        }
        let timer = self.timers.keys().next().map(|(deadline, _)| *deadline);
        let ours =
            [self.suspects.due_at(), Some(self.seek_at), Some(self.tell_at), Some(self.survey_at), self.spread_at];
        timer.into_iter().chain(ours.into_iter().flatten()).min()
    }

    /// Whether [`Core::tick`] is due for so long that this process must have stood still. Answers may wait to be read that came in
    /// time, and are to be read first.
    pub fn has_overslept(&self, now: Duration) -> bool {
        self.late(now) >= self.settings.probe_rtt / 2
    }

    fn late(&self, now: Duration) -> Duration {
        self.wake_at().map_or(Duration::ZERO, |at| now.saturating_sub(at))
    }

    /// How well this node does by its own judgement: 0 if well, 3 at worst. It takes so many times longer to believe that somebody is
    /// down.
    pub fn health(&self) -> u32 {
        self.health.score()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration) -> Effects {
        let mut all = Effects::default();
        if self.left {
            return all;
        }
        if self.health.woke(self.late(now), now) {
            self.rescale();
        }
        // Only what is due on entry: what a timer sets anew belongs to the next round, however late this one is.
        let later = self.timers.split_off(&(now.saturating_add(Duration::from_nanos(1)), 0));
        for timer in std::mem::replace(&mut self.timers, later).into_values() {
            if let Timer::RemoveDown(id) = &timer {
                self.changed |= self.known.forget(id);
            }
            all.absorb(self.drive(now, |foca, runtime| foca.handle_timer(timer, runtime)));
        }
        for overdue in self.suspects.overdue(now) {
            match overdue {
                Overdue::Ask(suspect) => all.sends.extend(self.ask(&suspect)),
                Overdue::Down(suspect) => {
                    let down = foca::Member::new(*suspect.id(), suspect.incarnation(), State::Down);
                    self.learn(&down, now);
                    all.absorb(self.drive(now, |foca, runtime| foca.apply_many([down].into_iter(), true, runtime)));
                }
            }
        }
        if now >= self.seek_at {
            self.seek_at = now + self.seek_every;
            for address in self.sought() {
                all.absorb(self.announce(address, now));
            }
        }
        if now >= self.tell_at {
            // News is told a limited number of times, and all of them may be lost.
            self.tell_at = now + self.scale.tell_every(self.tell_every);
            self.tell();
        }
        if self.spread_at.is_some_and(|at| now >= at) {
            all.sends.extend(self.spread());
            self.spread_at = self.known.has_untold().then_some(now + self.spread_every);
        }
        if now >= self.survey_at {
            self.survey_at = now + self.survey_wait;
            self.survey_wait = (self.survey_wait * 2).min(self.survey_every);
            all.sends.extend(self.survey());
        }
        #[cfg(test)]
        self.check();
        all
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.foca.identity().node
    }

    /// Everybody that was heard of, this node included.
    pub fn members(&self) -> Members {
        let me = self.foca.identity();
        let known = self.foca.iter_membership_state().filter(|member| member.id().node != me.node);
        let mut members = Members::new();
        for member in known {
            let id = member.id();
            let state = state_of(member);
            let rank = |state: MemberState, generation: u64| (state == MemberState::Down, u64::MAX - generation);
            // A node that has come back elsewhere is known twice for a while: at its old address, down, and at its new.
            let better = members
                .get(&id.node)
                .is_none_or(|other: &Member| rank(state, id.generation) < rank(other.state, other.generation));
            if better {
                let (address, generation, payload) = (id.address, id.generation, self.notices.of(id));
                members.insert(id.node, Member { address, state, generation, payload });
            }
        }
        let state = if self.left { MemberState::Down } else { MemberState::Alive };
        let (address, generation, payload) = (me.address, me.generation, self.payload.clone());
        members.insert(me.node, Member { address, state, generation, payload });
        members
    }

    /// Whom this node suspects, in which incarnation of which life.
    #[cfg(test)]
    pub fn suspects(&self) -> impl Iterator<Item = (NodeId, u64, u16)> {
        let suspects = self.foca.iter_membership_state().filter(|member| member.state() == State::Suspect);
        suspects.map(|member| (member.id().node, member.id().generation, member.incarnation()))
    }

    /// Addresses to ask: seeds that are not members, and everybody while nobody answers. foca itself asks nobody then.
    fn sought(&self) -> BTreeSet<SocketAddr> {
        let seeds = self.seeds.iter().copied();
        if self.foca.num_members() == 0 {
            seeds.chain(self.known.addresses()).collect()
        } else {
            seeds.filter(|seed| !self.known.contains(*seed)).collect()
        }
    }

    /// Tells some members what foca was spared.
    fn spread(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        let members = self.foca.iter_members().map(|member| *member.id());
        let chosen: Vec<Identity> = members.sample(&mut self.rng, GOSSIP_MEMBERS.get());
        let me = *self.foca.identity();
        let mut sends = Vec::new();
        for to in chosen {
            if let Some(mut parcel) = Parcel::new(&[GOSSIP], me, to) {
                self.known.hand_out(BULK_TRANSMISSIONS, |member| parcel.add(member));
                sends.push((to.address, parcel.close()));
            }
        }
        sends
    }

    /// Follows foca in what it takes over. Whether that was anything.
    fn learn(&mut self, update: &foca::Member<Identity>, now: Duration) -> bool {
        let news = self.known.learn(update);
        if news {
            self.suspects.observe(update, now);
            self.opinions.push((update.id().node, state_of(update)));
            self.changed = true;
        }
        news
    }

    /// What follows the size of the cluster, and how well this node does.
    fn rescale(&mut self) {
        let scale = Scale::of(self.foca.num_members() + 1);
        let suspicion = self.health.suspicion(scale.suspicion(self.suspicion));
        if scale == self.scale && suspicion == self.settings.suspect_to_down_after {
            return;
        }
        self.scale = scale;
        self.settings.max_transmissions = scale.transmissions();
        self.settings.suspect_to_down_after = suspicion;
        self.suspects.set_suspicion(suspicion);
        if let Err(error) = self.foca.set_config(self.settings.clone()) {
            tracing::debug!(%error, "the gossip keeps its settings");
        }
    }

    /// Whether what is followed is what foca holds.
    #[cfg(test)]
    fn check(&self) {
        let held = self.foca.iter_membership_state();
        assert_eq!(self.known.addresses().count(), held.len());
        for member in held {
            assert_eq!(self.known.get(member.id().address).as_ref(), Some(member));
        }
    }

    /// A probe that carries nothing but the suspicion against whom it goes to: the answer has an incarnation above it.
    fn ask(&self, suspect: &foca::Member<Identity>) -> Option<(SocketAddr, Vec<u8>)> {
        let header = Header {
            src: *self.foca.identity(),
            // foca keeps its own to itself; too low a one is ignored.
            src_incarnation: 0,
            dst: *suspect.id(),
            message: Message::Ping(0),
        };
        let mut body = vec![GOSSIP];
        let encoded = PostcardCodec.encode_header(&header, &mut body).and_then(|()| {
            body.put_u16(1);
            PostcardCodec.encode_member(suspect, &mut body)
        });
        encoded.is_ok().then(|| (suspect.id().address, body))
    }

    fn tell(&mut self) {
        if self.payload.is_empty() {
            return;
        }
        self.ordinal += 1;
        let notice = Notice::new(self.foca.identity(), self.ordinal, &self.payload);
        let told = wire::encode(&notice).map(|bytes| self.foca.add_broadcast(&bytes));
        if !matches!(told, Ok(Ok(_))) {
            tracing::debug!("what this node tells about itself could not be queued");
        }
    }

    fn drive(
        &mut self,
        now: Duration,
        work: impl FnOnce(&mut Gossip, &mut AccumulatingRuntime<Identity>) -> Result<(), foca::Error>,
    ) -> Effects {
        let mut effects = Effects::default();
        if self.left {
            return effects;
        }
        let mut runtime = AccumulatingRuntime::new();
        let (before, notices) = (*self.foca.identity(), self.notices.changes());
        if let Err(error) = work(&mut self.foca, &mut runtime) {
            tracing::debug!(%error, "gossip that makes no sense");
            effects.malformed = true;
        }
        if *self.foca.identity() != before
            // Under a new identity foca neither probes nor gossips until somebody writes to it; those it takes for alive may all
            // be gone, or wait in the same way. Nothing is applied here, but its timers start.
            && let Err(error) = self.foca.apply_many(std::iter::empty(), false, &mut runtime)
        {
            tracing::debug!(%error, "a new identity without probes");
        }
        while let Some((to, bytes)) = runtime.to_send() {
            let mut body = Vec::with_capacity(KIND_BYTES + bytes.len());
            body.push(GOSSIP);
            body.extend_from_slice(&bytes);
            effects.sends.push((to.address, body));
        }
        while let Some((after, timer)) = runtime.to_schedule() {
            self.ordinal += 1;
            let place = (now + after, self.ordinal);
            let suspect = match &timer {
                // The only sign that a probe of its own has failed.
                Timer::ChangeSuspectToDown { member_id, incarnation, .. } => {
                    Some(foca::Member::new(*member_id, *incarnation, State::Suspect))
                }
                _ => None,
            };
            self.timers.insert(place, timer);
            if let Some(suspect) = suspect {
                effects.sends.extend(self.doubt(&suspect, Verdict { since: now, longest: after, place }, now));
            }
        }
        let (mut somebody_new, mut resized) = (false, false);
        while let Some(notification) = runtime.to_notify() {
            match notification {
                OwnedNotification::Rejoin(identity) => {
                    effects.generation = Some(identity.generation);
                    self.changed = true;
                    // The old life is gone everywhere: ask to be let in again now, not in a while.
                    self.seek_at = now;
                    self.survey_soon(now);
                    somebody_new = true;
                }
                OwnedNotification::Idle => self.seek_at = now + self.seek_every,
                OwnedNotification::Active => {
                    self.survey_soon(now);
                    somebody_new = true;
                }
                // A member that came back before it was missed is only renamed; it is as new as one that was down.
                OwnedNotification::MemberUp(_) | OwnedNotification::Rename(..) => {
                    somebody_new = true;
                    resized = true;
                }
                OwnedNotification::MemberDown(id) => {
                    resized = true;
                    // News of it was learnt before; what is left is a suspect of this node's own that did not object.
                    if let Some(known) = self.known.get(id.address).filter(|known| *known.id() == id) {
                        self.learn(&foca::Member::new(id, known.incarnation(), State::Down), now);
                    }
                }
                OwnedNotification::Defunct => {}
            }
        }
        if resized {
            self.rescale();
        }
        if somebody_new {
            self.welcome(now);
        }
        effects.opinions = std::mem::take(&mut self.opinions);
        effects.changed = std::mem::take(&mut self.changed) || notices != self.notices.changes();
        effects
    }

    /// A newcomer has missed what was told before it came.
    fn welcome(&mut self, now: Duration) {
        if self.scale.tells_newcomers() {
            self.tell();
        } else {
            // Everybody would tell everybody at once. The turn comes, only not now.
            self.tell_at = self.tell_at.min(now + self.scale.tell_every(self.tell_every));
        }
        if !self.notices.is_empty() {
            let known: BTreeSet<NodeId> = self.known.nodes().chain([self.foca.identity().node]).collect();
            self.notices.retain(|node| known.contains(&node));
        }
    }
}

fn state_of(member: &foca::Member<Identity>) -> MemberState {
    match member.state() {
        State::Alive => MemberState::Alive,
        State::Suspect => MemberState::Suspect,
        State::Down => MemberState::Down,
    }
}
