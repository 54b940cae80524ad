//! The protocol without a world: datagrams and the time go in, datagrams come out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use foca::{
    AccumulatingRuntime, Codec, Config, Foca, Header, Message, OwnedNotification, PeriodicParams, PostcardCodec, State,
    Timer,
};
use shoal_kernel::env::Rng;
use shoal_kernel::{Error, ErrorCode, NodeId, Result, wire};

use super::identity::Identity;
use super::payload::{Notice, Notices};
use super::seal::SEAL_BYTES;
use super::suspects::{Overdue, Suspects};
use super::{Member, MemberState, Members, SwimConfig, millis};

/// Bytes of one datagram: below what any network of today carries whole (RFC 8085).
const DATAGRAM_BYTES_MAX: usize = 1_400;

const INDIRECT_PROBES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);
const ANNOUNCE_MEMBERS: NonZeroUsize = NonZeroUsize::MIN;
const GOSSIP_MEMBERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);
const DOWN_MEMBERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);
const PACKET_BYTES_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(DATAGRAM_BYTES_MAX - SEAL_BYTES - 1);
const TRANSMISSIONS: NonZeroU8 = NonZeroU8::MIN.saturating_add(9);

/// What the driver must do, in this order.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Store this generation before anything is sent.
    pub(super) generation: Option<u64>,
    /// Datagrams to send, without seal.
    pub(super) sends: Vec<(SocketAddr, Vec<u8>)>,
    /// What came in was not understood.
    pub(super) malformed: bool,
}

type Protocol = Foca<Identity, PostcardCodec, Rng, Notices>;

/// One node's protocol.
pub(super) struct Core {
    foca: Protocol,
    notices: Notices,
    /// By deadline, then in the order they were set.
    timers: BTreeMap<(Duration, u64), Timer<Identity>>,
    ordinal: u64,
    suspects: Suspects,
    seeds: Vec<SocketAddr>,
    seek_every: Duration,
    seek_at: Duration,
    tell_every: Duration,
    tell_at: Duration,
    payload: Arc<[u8]>,
    left: bool,
}

impl Core {
    /// # Errors
    /// The settings contradict each other.
    pub(super) fn new(config: &SwimConfig, identity: Identity, rng: Rng, now: Duration) -> Result<Self> {
        let positive = [config.probe_rtt_ms, config.suspicion_ms, config.gossip_ms, config.announce_ms]
            .into_iter()
            .chain([config.announce_to_down_ms, config.seek_ms])
            .all(|ms| ms > 0);
        if !positive || config.probe_rtt_ms >= config.probe_period_ms {
            return Err(Error::new(
                ErrorCode::InvalidRequest,
                "the times of the gossip must not be zero, and probe_rtt_ms must be below probe_period_ms",
            ));
        }
        let every = |ms, num_members| Some(PeriodicParams { frequency: millis(ms), num_members });
        let settings = Config {
            probe_period: millis(config.probe_period_ms),
            probe_rtt: millis(config.probe_rtt_ms),
            num_indirect_probes: INDIRECT_PROBES,
            max_transmissions: TRANSMISSIONS,
            suspect_to_down_after: millis(config.suspicion_ms),
            remove_down_after: Some(millis(config.forget_down_ms)),
            max_packet_size: PACKET_BYTES_MAX,
            // Without these three, two sides of a partition that called each other dead would ignore each other for ever.
            notify_down_members: true,
            periodic_announce: every(config.announce_ms, ANNOUNCE_MEMBERS),
            periodic_announce_to_down_members: every(config.announce_to_down_ms, DOWN_MEMBERS),
            periodic_gossip: every(config.gossip_ms, GOSSIP_MEMBERS),
        };
        let notices = Notices::default();
        Ok(Self {
            foca: Foca::with_custom_broadcast(identity, settings, rng, PostcardCodec, notices.clone()),
            notices,
            timers: BTreeMap::new(),
            ordinal: 0,
            suspects: Suspects::new(millis(config.suspicion_ms), millis(config.probe_period_ms)),
            seeds: config.seeds.iter().copied().filter(|seed| *seed != config.address).collect(),
            seek_every: millis(config.seek_ms),
            seek_at: now,
            tell_every: millis(config.announce_ms),
            tell_at: now + millis(config.announce_ms),
            payload: Arc::from([]),
            left: false,
        })
    }

    /// A datagram has come.
    pub(super) fn receive(&mut self, body: &[u8], now: Duration) -> Effects {
        self.drive(now, |foca, runtime| foca.handle_data(body, runtime))
    }

    /// Asks whoever is at an address to be let in.
    pub(super) fn announce(&mut self, address: SocketAddr, now: Duration) -> Effects {
        self.drive(now, |foca, runtime| foca.announce(Identity::somebody_at(address), runtime))
    }

    /// Tells everybody something about this node.
    pub(super) fn publish(&mut self, payload: Arc<[u8]>) {
        self.payload = payload;
        self.tell();
    }

    /// Says good-bye. Nothing more comes out of it.
    pub(super) fn leave(&mut self, now: Duration) -> Effects {
        let effects = self.drive(now, |foca, runtime| foca.leave_cluster(runtime));
        self.left = true;
        self.timers.clear();
        effects
    }

    /// When [`Core::tick`] is due.
    pub(super) fn wake_at(&self) -> Option<Duration> {
        if self.left {
            return None;
        }
        let timer = self.timers.keys().next().map(|(deadline, _)| *deadline);
        [timer, self.suspects.due_at(), Some(self.seek_at), Some(self.tell_at)].into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Duration) -> Effects {
        let mut all = Effects::default();
        if self.left {
            return all;
        }
        // Only what is due on entry: what a timer sets anew belongs to the next round, however late this one is.
        let later = self.timers.split_off(&(now.saturating_add(Duration::from_nanos(1)), 0));
        for timer in std::mem::replace(&mut self.timers, later).into_values() {
            let effects = self.drive(now, |foca, runtime| foca.handle_timer(timer, runtime));
            all.generation = effects.generation.or(all.generation);
            all.sends.extend(effects.sends);
        }
        for overdue in self.suspects.overdue(now) {
            match overdue {
                Overdue::Ask(suspect) => all.sends.extend(self.ask(&suspect)),
                Overdue::Down(suspect) => {
                    let down = foca::Member::new(*suspect.id(), suspect.incarnation(), State::Down);
                    let effects = self.drive(now, |foca, runtime| foca.apply_many([down].into_iter(), true, runtime));
                    all.sends.extend(effects.sends);
                }
            }
        }
        if now >= self.seek_at {
            self.seek_at = now + self.seek_every;
            for address in self.sought() {
                all.sends.extend(self.announce(address, now).sends);
            }
        }
        if now >= self.tell_at {
            // News is told a limited number of times, and all of them may be lost.
            self.tell_at = now + self.tell_every;
            self.tell();
        }
        all
    }

    /// This node.
    pub(super) fn me(&self) -> NodeId {
        self.foca.identity().node
    }

    /// Everybody that was heard of, this node included.
    pub(super) fn members(&self) -> Members {
        let me = self.foca.identity();
        let known = self.foca.iter_membership_state().filter(|member| member.id().node != me.node);
        let mut members = Members::new();
        for member in known {
            let id = member.id();
            let state = match member.state() {
                State::Alive => MemberState::Alive,
                State::Suspect => MemberState::Suspect,
                State::Down => MemberState::Down,
            };
            let rank = |state: MemberState, generation: u64| (state == MemberState::Down, u64::MAX - generation);
            // A node that has come back elsewhere is known twice for a while: at its old address, down, and at its new.
            let better = members
                .get(&id.node)
                .is_none_or(|other: &Member| rank(state, id.generation) < rank(other.state, other.generation));
            if better {
                let (address, generation, payload) = (id.address, id.generation, self.notices.of(id.node));
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
    pub(super) fn suspects(&self) -> impl Iterator<Item = (NodeId, u64, u16)> {
        let suspects = self.foca.iter_membership_state().filter(|member| member.state() == State::Suspect);
        suspects.map(|member| (member.id().node, member.id().generation, member.incarnation()))
    }

    /// Addresses to ask: seeds that are not members, and everybody while nobody answers. foca itself asks nobody then.
    fn sought(&self) -> BTreeSet<SocketAddr> {
        let known: BTreeSet<SocketAddr> = self.foca.iter_membership_state().map(|member| member.id().address).collect();
        let seeds = self.seeds.iter().copied();
        if self.foca.num_members() == 0 {
            seeds.chain(known).collect()
        } else {
            seeds.filter(|seed| !known.contains(seed)).collect()
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
        let mut body = Vec::new();
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
        work: impl FnOnce(&mut Protocol, &mut AccumulatingRuntime<Identity>) -> Result<(), foca::Error>,
    ) -> Effects {
        let mut effects = Effects::default();
        if self.left {
            return effects;
        }
        let mut runtime = AccumulatingRuntime::new();
        let before = *self.foca.identity();
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
            effects.sends.push((to.address, bytes.to_vec()));
        }
        while let Some((after, timer)) = runtime.to_schedule() {
            self.ordinal += 1;
            self.timers.insert((now + after, self.ordinal), timer);
        }
        let mut somebody_new = false;
        while let Some(notification) = runtime.to_notify() {
            match notification {
                OwnedNotification::Rejoin(identity) => {
                    effects.generation = Some(identity.generation);
                    // The old life is gone everywhere: ask to be let in again now, not in a while.
                    self.seek_at = now;
                    somebody_new = true;
                }
                OwnedNotification::Idle => self.seek_at = now + self.seek_every,
                // A member that came back before it was missed is only renamed; it is as new as one that was down.
                OwnedNotification::MemberUp(_) | OwnedNotification::Rename(..) | OwnedNotification::Active => {
                    somebody_new = true;
                }
                OwnedNotification::MemberDown(_) | OwnedNotification::Defunct => {}
            }
        }
        self.suspects.observe(self.foca.iter_membership_state(), now);
        if somebody_new {
            // A newcomer has missed what was told before it came.
            self.tell();
            let known: BTreeSet<NodeId> = self
                .foca
                .iter_membership_state()
                .map(|member| member.id().node)
                .chain([self.foca.identity().node])
                .collect();
            self.notices.retain(|node| known.contains(&node));
        }
        effects
    }
}
