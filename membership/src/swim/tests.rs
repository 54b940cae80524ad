//! The core in a world of one queue: every datagram takes a moment, may be lost, and may be kept from arriving.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::BufMut;
use foca::{Codec, Header, Message, PostcardCodec};
use rand::{RngExt, SeedableRng};
use shoal_kernel::NodeId;
use shoal_kernel::env::Rng;

use super::core::{Core, Effects};
use super::identity::Identity;
use super::{MemberState, SwimConfig, health, millis};

struct World {
    now: Duration,
    rng: Rng,
    loss_percent: u32,
    nodes: BTreeMap<u32, Core>,
    generations: BTreeMap<u32, u64>,
    /// By arrival, then in the order they were sent: from, to, body.
    flying: BTreeMap<(Duration, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sent: u64,
    /// Sides of a partition; nodes that are named in none reach everybody.
    sides: Vec<BTreeSet<u32>>,
    /// Pairs that do not reach each other, the lower one first.
    cut_links: BTreeSet<(u32, u32)>,
    /// Since when somebody suspects somebody: who, and whom in which incarnation of which life.
    suspicions: BTreeMap<(u32, (NodeId, u64, u16)), Duration>,
    suspicion_longest: Duration,
}

fn address(id: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, u16::try_from(id).unwrap()))
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            now: Duration::ZERO,
            rng: Rng::seed_from_u64(seed),
            loss_percent: 0,
            nodes: BTreeMap::new(),
            generations: BTreeMap::new(),
            flying: BTreeMap::new(),
            sent: 0,
            sides: vec![],
            cut_links: BTreeSet::new(),
            suspicions: BTreeMap::new(),
            suspicion_longest: Duration::ZERO,
        }
    }

    fn start(&mut self, id: u32, seeds: &[u32]) {
        let generation = self.generations.entry(id).or_insert(100);
        *generation += 1;
        let identity = Identity { node: NodeId(id), address: address(id), generation: *generation };
        let mut config = SwimConfig::new(NodeId(id), address(id), "secret", "");
        config.seeds = seeds.iter().map(|seed| address(*seed)).collect();
        let core = Core::new(&config, identity, Rng::seed_from_u64(u64::from(id)), self.now).unwrap();
        self.nodes.insert(id, core);
    }

    fn cluster(seed: u64, size: u32) -> Self {
        let mut world = Self::new(seed);
        for id in 1..=size {
            world.start(id, &[1]);
        }
        world.settle(10, "all are alive", World::all_alive);
        world
    }

    fn cut(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let side = |at: SocketAddr| self.sides.iter().position(|side| side.contains(&u32::from(at.port())));
        let (from_id, to_id) = (u32::from(from.port()), u32::from(to.port()));
        side(from) != side(to) || self.cut_links.contains(&(from_id.min(to_id), from_id.max(to_id)))
    }

    /// Takes the time of every suspicion.
    fn watch(&mut self, id: u32) {
        let suspects: BTreeSet<_> =
            self.nodes.get(&id).into_iter().flat_map(Core::suspects).map(|it| (id, it)).collect();
        let (now, mut longest) = (self.now, self.suspicion_longest);
        self.suspicions.retain(|key, since| {
            longest = if key.0 == id { longest.max(now - *since) } else { longest };
            key.0 != id || suspects.contains(key)
        });
        self.suspicion_longest = longest;
        for key in suspects {
            self.suspicions.entry(key).or_insert(now);
        }
    }

    fn identity(&self, id: u32) -> Identity {
        let member = &self.nodes[&id].members()[&NodeId(id)];
        Identity { node: NodeId(id), address: member.address, generation: member.generation }
    }

    /// Lets a node hear something at once, with news.
    fn hear(&mut self, id: u32, from: Identity, message: Message<Identity>, news: &[foca::Member<Identity>]) {
        let mut body = vec![0];
        let header = Header { src: from, src_incarnation: 0, dst: self.identity(id), message };
        PostcardCodec.encode_header(&header, &mut body).unwrap();
        if !news.is_empty() {
            body.put_u16(u16::try_from(news.len()).unwrap());
            news.iter().for_each(|member| PostcardCodec.encode_member(member, &mut body).unwrap());
        }
        let effects = self.nodes.get_mut(&id).unwrap().receive(&body, self.now);
        assert!(!effects.malformed);
        self.perform(id, effects);
        self.watch(id);
    }

    fn kill(&mut self, id: u32) {
        self.nodes.remove(&id);
        self.watch(id);
    }

    /// Does something bad, or undoes it.
    fn meddle(&mut self, size: u32) {
        let (one, other) = (self.rng.random_range(1..=size), self.rng.random_range(1..=size));
        match self.rng.random_range(0..9) {
            0 | 1 => {
                let mut sides = vec![BTreeSet::new(), BTreeSet::new()];
                (1..=size).for_each(|id| {
                    sides[self.rng.random_range(0..2)].insert(id);
                });
                self.sides = sides;
            }
            2 | 3 => self.sides.clear(),
            4 => _ = self.cut_links.insert((one.min(other), one.max(other))),
            5 => self.loss_percent = self.rng.random_range(0..20),
            6 => self.kill(one),
            7 => {
                self.kill(one);
                self.start(one, &[1, 2]);
            }
            _ if one != other && self.nodes.contains_key(&one) && self.nodes.contains_key(&other) => {
                // What a peer that takes it for dead would say, through all partitions: it may have been under way.
                let from = self.identity(other);
                self.hear(one, from, Message::TurnUndead, &[]);
            }
            _ => {}
        }
    }

    fn heal(&mut self, size: u32) {
        self.sides.clear();
        self.cut_links.clear();
        self.loss_percent = 0;
        for id in 1..=size {
            if !self.nodes.contains_key(&id) {
                self.start(id, &[1, 2]);
            }
        }
    }

    fn perform(&mut self, id: u32, effects: Effects) {
        if let Some(generation) = effects.generation {
            let stored = self.generations.get_mut(&id).unwrap();
            assert!(generation > *stored, "generations only go up");
            *stored = generation;
        }
        for (to, body) in effects.sends {
            assert!(body.len() <= 1_400 - super::seal::SEAL_BYTES);
            let lost = self.rng.random_range(0..100) < self.loss_percent;
            let arrival = self.now + millis(self.rng.random_range(1..20));
            self.sent += 1;
            if !lost {
                self.flying.insert((arrival, self.sent), (address(id), to, body));
            }
        }
    }

    /// Goes on to the next thing that happens, at most to a time. False: nothing happens before.
    fn step(&mut self, until: Duration) -> bool {
        let datagram = self.flying.keys().next().map(|(at, _)| *at);
        let timer = self.nodes.iter().filter_map(|(id, core)| core.wake_at().map(|at| (at, *id))).min();
        let next = datagram.into_iter().chain(timer.map(|(at, _)| at)).min();
        let Some(next) = next.filter(|next| *next <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        if datagram == Some(next) {
            let (_, (from, to, body)) = self.flying.pop_first().unwrap();
            let id = u32::from(to.port());
            if !self.cut(from, to)
                && let Some(core) = self.nodes.get_mut(&id)
            {
                let effects = core.receive(&body, self.now);
                self.perform(id, effects);
                self.watch(id);
            }
        } else if let Some((_, id)) = timer {
            let effects = self.nodes.get_mut(&id).unwrap().tick(self.now);
            self.perform(id, effects);
            self.watch(id);
        }
        true
    }

    fn run(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        while self.step(until) {}
    }

    /// Runs until it holds; gives the time it took.
    fn settle(&mut self, seconds: u64, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let start = self.now;
        let until = start + Duration::from_secs(seconds);
        while !holds(self) {
            assert!(self.step(until), "not within {seconds} s: {what}; {:#?}", self.views());
        }
        self.now - start
    }

    fn view(&self, id: u32) -> BTreeMap<u32, MemberState> {
        self.nodes[&id].members().into_iter().map(|(id, member)| (id.0, member.state)).collect()
    }

    fn views(&self) -> BTreeMap<u32, BTreeMap<u32, MemberState>> {
        self.nodes.keys().map(|id| (*id, self.view(*id))).collect()
    }

    fn all_alive(&self) -> bool {
        let everybody: BTreeMap<u32, MemberState> = self.nodes.keys().map(|id| (*id, MemberState::Alive)).collect();
        self.nodes.keys().all(|id| self.view(*id) == everybody)
    }

    fn seen_by_all(&self, id: u32, state: MemberState) -> bool {
        self.nodes.keys().filter(|other| **other != id).all(|other| self.view(*other).get(&id) == Some(&state))
    }
}

#[test]
fn a_killed_node_is_down_within_three_seconds() {
    for seed in 0..40 {
        let mut world = World::cluster(seed, 3);
        world.run(seed % 7);
        world.nodes.remove(&2);
        let took = world.settle(3, "node 2 is down", |world| world.seen_by_all(2, MemberState::Down));
        assert!(took > millis(400), "no node is declared down without suspicion");
    }
}

/// From the first suspicion of node 2 to the first verdict, as whoever is not cut off sees it.
fn suspicion_lasts(world: &mut World) -> Duration {
    let seen = |world: &World, state: MemberState| {
        let others = world.nodes.keys().filter(|id| **id != 2 && !world.sides.iter().any(|side| side.contains(id)));
        others.into_iter().any(|id| world.view(*id)[&2] == state)
    };
    world.settle(3, "node 2 is suspected", |world| seen(world, MemberState::Suspect));
    world.settle(3, "node 2 is down", |world| seen(world, MemberState::Down))
}

#[test]
fn what_others_have_seen_as_well_is_believed_sooner() {
    let longest = millis(SwimConfig::new(NodeId(1), address(1), "", "").suspicion_ms);
    for size in [3, 5, 9] {
        let lasts = |seed: u64| {
            let mut world = World::cluster(seed, size);
            world.run(seed % 7);
            world.kill(2);
            suspicion_lasts(&mut world)
        };
        let all: Vec<Duration> = (0..40).map(lasts).collect();
        assert!(all.iter().all(|lasts| (longest / 2..=longest).contains(lasts)), "{size} nodes: {all:?}");
        let mean = all.iter().sum::<Duration>() / 40;
        assert!(mean < longest * 4 / 5, "{size} nodes: {mean:?}");
    }
    // Nobody else sees it: it may be due to whoever does.
    let mut world = World::cluster(1, 9);
    world.sides = vec![(2..=9).collect()];
    assert_eq!(suspicion_lasts(&mut world), longest);
    // With two nodes there is nobody else.
    let mut world = World::cluster(1, 2);
    world.kill(2);
    assert_eq!(suspicion_lasts(&mut world), longest);
}

#[test]
fn a_restarted_node_beats_its_old_self() {
    for seed in 0..20 {
        let mut world = World::cluster(seed, 3);
        world.nodes.remove(&1);
        // Sometimes before it was found missing, sometimes long after.
        world.run(seed % 5);
        let before = world.generations[&1];
        world.start(1, &[]);
        world.settle(10, "it is back", |world| {
            let anew = |core: &Core| core.members().get(&NodeId(1)).is_some_and(|member| member.generation > before);
            world.all_alive() && world.nodes.values().all(anew)
        });
        world.run(30);
        assert!(world.all_alive(), "it stays");
    }
}

#[test]
fn a_partition_heals_however_long_it_was() {
    for (seed, seconds) in [(1, 2), (2, 5), (3, 30), (4, 600)] {
        let mut world = World::cluster(seed, 5);
        world.sides = vec![BTreeSet::from([1, 2]), BTreeSet::from([3, 4, 5])];
        world.run(seconds);
        if seconds >= 30 {
            assert_eq!(world.view(3)[&1], MemberState::Down);
            assert_eq!(world.view(1)[&5], MemberState::Down);
            assert_eq!(world.view(1)[&2], MemberState::Alive);
        }
        world.sides.clear();
        world.settle(30, "both sides are one", World::all_alive);
        world.run(60);
        assert!(world.all_alive(), "and stay one");
    }
}

#[test]
fn everybody_alone_finds_everybody() {
    let mut world = World::cluster(9, 4);
    world.sides = (1..=4).map(|id| BTreeSet::from([id])).collect();
    world.run(120);
    assert!((1..=4).all(|id| world.view(id).values().filter(|state| **state == MemberState::Alive).count() == 1));
    world.sides.clear();
    world.settle(30, "all have met", World::all_alive);
}

#[test]
fn lost_datagrams_alone_kill_nobody_for_long() {
    let mut world = World::cluster(11, 4);
    world.loss_percent = 10;
    world.run(120);
    world.loss_percent = 0;
    world.settle(20, "all are alive again", World::all_alive);
}

#[test]
fn whoever_leaves_is_down_at_once() {
    let mut world = World::cluster(5, 3);
    let now = world.now;
    let effects = world.nodes.get_mut(&3).unwrap().leave(now);
    world.perform(3, effects);
    world.nodes.remove(&3);
    let took = world.settle(2, "node 3 is down", |world| world.seen_by_all(3, MemberState::Down));
    assert!(took < millis(1_000));
}

#[test]
fn what_a_node_tells_reaches_also_those_who_come_later() {
    let mut world = World::cluster(6, 3);
    world.nodes.get_mut(&2).unwrap().publish((*b"load 1").into());
    world.nodes.get_mut(&2).unwrap().publish((*b"load 2").into());
    let told = |world: &World| {
        world
            .nodes
            .values()
            .all(|core| core.members().get(&NodeId(2)).is_some_and(|member| member.payload.as_ref() == b"load 2"))
    };
    world.settle(5, "all know", told);
    world.start(4, &[1]);
    world.settle(15, "the newcomer knows", told);
}

#[test]
fn whoever_is_back_before_it_was_missed_is_told_too() {
    for seed in 0..20 {
        let mut world = World::cluster(seed, 3);
        world.nodes.get_mut(&2).unwrap().publish((*b"load").into());
        let told = |world: &World| {
            world.nodes.values().all(|core| core.members()[&NodeId(2)].payload.as_ref() == b"load".as_slice())
        };
        world.settle(5, "all know", told);
        // Until the news has been told as often as it will be.
        world.run(3);
        world.kill(3);
        world.start(3, &[1]);
        world.settle(5, "the new life knows", |world| {
            world.nodes[&3].members().get(&NodeId(2)).is_some_and(|member| member.payload.as_ref() == b"load")
        });
    }
}

#[test]
fn what_was_lost_on_the_way_is_told_again() {
    let missed = (0..20).filter(|seed| {
        let mut world = World::cluster(*seed, 3);
        world.loss_percent = 100;
        world.nodes.get_mut(&2).unwrap().publish((*b"load").into());
        // Long enough for all that is told, too short for anybody to be down.
        world.run(1);
        world.loss_percent = 0;
        let told = |world: &World| {
            world.nodes.values().all(|core| core.members()[&NodeId(2)].payload.as_ref() == b"load".as_slice())
        };
        world.run(1);
        let missed = !told(&world);
        world.settle(10, "all know", told);
        missed
    });
    assert!(missed.count() > 0, "the news was never lost");
}

#[test]
fn a_new_identity_forgets_no_suspicion() {
    for (seed, size) in (0..20).zip([2, 3, 4].into_iter().cycle()) {
        let mut world = World::cluster(seed, size);
        let others: Vec<Identity> = (2..=size).map(|id| world.identity(id)).collect();
        (2..=size).for_each(|id| world.kill(id));
        let suspects = |world: &World| world.view(1).values().any(|state| *state == MemberState::Suspect);
        world.settle(3, "somebody is suspect", suspects);
        let generation = world.identity(1).generation;
        world.hear(1, others[0], Message::TurnUndead, &[]);
        assert_eq!(world.identity(1).generation, generation + 1);
        assert!(suspects(&world));
        let alone = |world: &World| world.view(1).into_iter().all(|(id, state)| id == 1 || state == MemberState::Down);
        world.settle(6, "all others are down", alone);
    }
}

#[test]
fn a_new_identity_keeps_looking_for_the_others() {
    for seed in 0..20 {
        let mut world = World::cluster(seed, 2);
        // Each hears that the other took it for dead, and the other's reaction is lost: both wait to be spoken to.
        let (one, two) = (world.identity(1), world.identity(2));
        world.sides = vec![BTreeSet::from([1]), BTreeSet::from([2])];
        world.hear(1, two, Message::TurnUndead, &[]);
        world.hear(2, one, Message::TurnUndead, &[]);
        world.run(1);
        world.sides.clear();
        let met = |world: &World| {
            let knows = |id: u32, other: u32| {
                world.nodes[&id].members()[&NodeId(other)].generation == world.identity(other).generation
            };
            world.all_alive() && knows(1, 2) && knows(2, 1)
        };
        world.settle(15, "they have met again", met);
    }
}

#[test]
fn after_any_mishaps_all_are_alive_within_fifteen_seconds() {
    let suspicion = millis(SwimConfig::new(NodeId(1), address(1), "", "").suspicion_ms);
    let mut slowest = Duration::ZERO;
    let mut longest = Duration::ZERO;
    for seed in 0..200 {
        let size = 2 + u32::try_from(seed % 5).unwrap();
        let mut world = World::cluster(1_000 + seed, size);
        for _ in 0..20 {
            world.meddle(size);
            let pause = millis(world.rng.random_range(100..4_000));
            let until = world.now + pause;
            while world.step(until) {}
        }
        world.heal(size);
        let took = world.settle(15, &format!("all are alive, seed {seed}"), World::all_alive);
        slowest = slowest.max(took);
        world.run(20);
        assert!(world.all_alive(), "and stay so, seed {seed}: {:#?}", world.views());
        longest = longest.max(world.suspicion_longest);
    }
    println!("alive again after at most {slowest:?}; suspect for at most {longest:?}");
    // Whoever was suspected itself waits longer.
    assert!(longest <= suspicion * 3 * (1 + health::SCORE_MAX), "somebody was suspect for {longest:?}");
}

#[test]
fn a_suspect_is_told_at_once() {
    for seed in 0..20 {
        let mut world = World::cluster(seed, 6);
        world.cut_links.extend((1..=6).filter(|id| *id != 2).map(|id| (id.min(2), id.max(2))));
        let first = |world: &World| (1..=6).find(|id| *id != 2 && world.view(*id)[&2] == MemberState::Suspect);
        world.settle(3, "node 2 is suspected", |world| first(world).is_some());
        let who = first(&world).unwrap();
        world.cut_links.clear();
        let took = world.settle(1, "it has objected", |world| world.view(who)[&2] == MemberState::Alive);
        assert!(took <= millis(40), "there and back, and not {took:?}");
    }
}

#[test]
fn whoever_stood_still_waits_longer_before_it_blames_others() {
    let takes = |stall: Duration| {
        let mut world = World::cluster(12, 3);
        world.kill(2);
        let suspected = |world: &World| world.view(1)[&2] == MemberState::Suspect;
        // Nobody else's opinion counts.
        world.sides = vec![BTreeSet::from([1])];
        world.now += stall;
        assert_eq!(world.nodes[&1].has_overslept(world.now), stall > millis(0));
        world.settle(5, "it is suspected", suspected);
        world.settle(10, "it is down", |world| world.view(1)[&2] == MemberState::Down)
    };
    let suspicion = takes(millis(0));
    assert_eq!(suspicion, millis(SwimConfig::new(NodeId(1), address(1), "", "").suspicion_ms));
    // Less than four times as long: once it does well again, a probe that fails counts as ever.
    let longer = takes(millis(5_000));
    assert!(longer > suspicion * 3 / 2 && longer <= suspicion * (1 + health::SCORE_MAX), "{longer:?}");
}

#[test]
fn garbage_is_counted_and_changes_nothing() {
    let mut world = World::cluster(7, 3);
    let mut rng = Rng::seed_from_u64(1);
    let before = world.views();
    for length in 0..200 {
        let garbage: Vec<u8> = (0..length).map(|_| rng.random()).collect();
        let now = world.now;
        let effects = world.nodes.get_mut(&1).unwrap().receive(&garbage, now);
        assert!(effects.sends.is_empty());
    }
    assert_eq!(world.views(), before);
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = World::cluster(seed, 5);
        world.loss_percent = 15;
        world.run(60);
        (world.sent, world.views())
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3).0, run(4).0);
}
