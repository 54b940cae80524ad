//! The phases of a run, in order. Each works on the world from outside and lets time pass.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_actors::doctor::{self, Finding, Severity};
use shoal_actors::service::{SqlRequest, SwimState};
use shoal_kernel::{Env, Rare, ReadLevel, WriteLevel};

use super::client::{self, Asked, Client, NAMES, Office};
use super::desk;
use super::history::{Question, Target, View};
use super::operation::{KEYS, Manner, OperationId};
use super::operator::Operator;
use super::settings::{DATA_DIR, Ending, Settings};
use crate::faults::{Fault, PlannedFault, draw_plan, heal_everything, run_plan};
use crate::invariants::{self, Evidence};
use crate::random::Stream;
use crate::run::RunOptions;
use crate::world::{CrashKind, HostId, Simulation};

/// The cluster must have formed and made its tables by then.
const BOOT: Duration = Duration::from_secs(60);
/// After the heal: every node sees every node alive.
const CONVERGE: Duration = Duration::from_secs(15);
/// After the heal: every kind of operation succeeds through every node.
const LIVE: Duration = Duration::from_secs(30);
/// After the heal: replicas are equal.
const EQUAL_MICROS: u64 = 60_000_000;
/// What has had its time is gone by then, after the heal.
const EXPIRE: Duration = Duration::from_secs(5);
/// Clients have given up on their last operation by then.
const DRAIN: Duration = Duration::from_secs(60);
/// Numbers of the clients that make storms, how many make one, and how much faster than others they work. They all come to one node, as
/// from a balancer that believes the others to be down.
const STORM_FIRST: u64 = 50;
const STORM_END: u64 = 98;
const STORM_CLIENTS: usize = 8;
const STORM_HASTE: u64 = 10;
/// After a start, nodes have removed what their earlier lives had left.
const TIDY: Duration = Duration::from_secs(3);
/// After the last answer, nodes have let go of everything.
const LET_GO: Duration = Duration::from_secs(10);
/// How often a read at the end is tried.
const FINAL_ATTEMPTS: u64 = 5;
/// Backups that are restored at the end of a run.
const BACKUPS_RESTORED_MAX: usize = 3;
/// Between two attempts at something, and two looks at one node.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at the cluster, each of which asks every node about every replica.
const SURVEY: Duration = Duration::from_secs(1);

pub(super) struct Phases<'a> {
    pub(super) simulation: &'a mut Simulation,
    pub(super) office: &'a Office,
    pub(super) settings: &'a Settings,
    pub(super) evidence: &'a mut Evidence,
    /// Clients that have not finished.
    pub(super) working: Arc<AtomicU64>,
    /// Numbers given to reads at the end.
    pub(super) final_reads: u64,
}

impl Phases<'_> {
    pub(super) fn run(mut self, options: &RunOptions) -> io::Result<()> {
        if self.settings.ending == (Ending::ReplaceOne { node: 0 }) {
            let why = "ending replace-one: node 0 would found a cluster of its own; name another one";
            return Err(io::Error::other(why));
        }
        self.boot()?;
        let begun = self.now();
        let until = begun + self.settings.seconds * 1_000_000;
        self.work(0..self.settings.clients, begun..until, 1, None);
        let load = u64::try_from(self.settings.load.as_micros()).unwrap_or(0);
        let menu = &self.settings.menu;
        let drawn = || draw_plan(options.seed, menu, (begun + load) / 1_000, until / 1_000);
        self.evidence.plan = options.faults.clone().unwrap_or_else(drawn);
        let plan = self.evidence.plan.clone();
        self.storms(&plan);
        self.operators(&plan, until);
        run_plan(self.simulation, &plan, until)?;
        self.heal()?;
        self.settle();
        self.drain();
        self.keep_events();
        let deadline =
            self.evidence.healed_at.max(self.evidence.drained_at).max(self.evidence.events_stay_from.unwrap_or(0))
                + EQUAL_MICROS;
        self.until_equal(deadline, "after the heal");
        self.lose_rows();
        self.final_reads();
        self.restore_backups();
        self.let_go();
        if self.settings.ending == Ending::HealAll {
            self.blackout()?;
        }
        self.stop();
        Ok(())
    }

    fn now(&self) -> u64 {
        self.simulation.shared().now_micros()
    }

    fn after(&self, time: Duration) -> u64 {
        self.now() + u64::try_from(time.as_micros()).unwrap_or(0)
    }

    /// Nodes that are meant to run.
    fn core(&self) -> Vec<u16> {
        let lost: &[u16] = match &self.settings.ending {
            Ending::Lose { nodes, .. } if self.evidence.healed_at > 0 => nodes,
            _ => &[],
        };
        let not_yet = self.settings.joins.filter(|_| self.evidence.healed_at == 0);
        (0..self.office.nodes).filter(|node| !lost.contains(node) && Some(*node) != not_yet).collect()
    }

    /// Runs a client's future and lets time pass until it is done, but not beyond the deadline.
    fn ask<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &mut self,
        deadline_micros: u64,
        work: impl FnOnce(Office, Env) -> F,
    ) -> Option<T> {
        let env = self.office.desk.client()?;
        let slot = Arc::new(Mutex::new(None));
        let (result, future, spawner) = (slot.clone(), work(self.office.clone(), env.clone()), env);
        self.simulation.run_on(self.office.host, move || {
            let task = async move {
                let output = future.await;
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(output);
            };
            spawner.spawn("client", task);
        });
        let waiting = || slot.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        self.simulation.run_while(deadline_micros, waiting);
        slot.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn boot(&mut self) -> io::Result<()> {
        let nodes = self.office.nodes;
        self.simulation.set_nodes(nodes);
        for host in 0..nodes {
            let (desk, mut config) = (self.office.desk.clone(), self.settings.node(host));
            config.observer = Some(self.office.ledger.clone());
            let shared = self.simulation.shared().clone();
            let failing = self.settings.objects_failing_permille;
            let program = move |env| desk::host(env, host, config.clone(), failing, desk.clone(), shared.clone());
            let id = self.simulation.add_host(Arc::new(move |env| Box::pin(program(env))));
            if self.settings.joins != Some(host) {
                self.simulation.start(id)?;
            }
        }
        let desk = self.office.desk.clone();
        let clients = self.simulation.add_host(Arc::new(move |env: Env| {
            let desk = desk.clone();
            Box::pin(async move {
                desk.set_client(env);
                std::future::pending::<()>().await;
            })
        }));
        self.simulation.start(clients)?;
        let soon = self.after(Duration::from_millis(1));
        self.simulation.run_until(soon);
        let deadline = self.after(BOOT);
        let first = self.core().len();
        let formed = self.until(deadline, |views| views.iter().all(|view| view.status.nodes.len() == first));
        if !formed {
            return Err(io::Error::other(format!("{first} nodes did not form a cluster within {} s", BOOT.as_secs())));
        }
        let names: Vec<String> = (0..NAMES).map(|name| format!("({name}, 'name {name}')")).collect();
        let statements = [
            SqlRequest::new(&self.settings.upserts),
            SqlRequest::new(&self.settings.events),
            SqlRequest::new(&self.settings.names),
            SqlRequest {
                write_level: Some(WriteLevel::All),
                token: Some("dim".to_owned()),
                ..SqlRequest::new(format!("INSERT INTO dim (d, name) VALUES {}", names.join(", ")))
            },
        ];
        for statement in statements {
            let text = statement.sql.clone();
            let done = self.ask(deadline, |office, env| async move {
                let mut last = String::new();
                for _ in 0..20 {
                    match office.sql(&env, 0, statement.clone()).await {
                        Ok(_) => return Ok(()),
                        Err(error) => last = format!("{error:?}"),
                    }
                    env.sleep(LOOK).await;
                }
                Err(last)
            });
            match done {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(io::Error::other(format!("{text}: {error}"))),
                None => return Err(io::Error::other(format!("{text}: not done within {} s", BOOT.as_secs()))),
            }
        }
        Ok(())
    }

    /// Has clients work from one moment to another, so many times as fast as usual; through any node, or all through one.
    fn work(&mut self, numbers: Range<u64>, times: Range<u64>, haste: u64, through: Option<u16>) {
        let Some(env) = self.office.desk.client() else { return };
        for number in numbers {
            let client = Client::new(self.office.clone(), env.clone(), number, haste, through);
            let spawner = env.clone();
            let (working, times) = (self.working.clone(), times.clone());
            working.fetch_add(1, Ordering::Relaxed);
            self.simulation.run_on(self.office.host, move || {
                spawner.spawn("client", async move {
                    client.work(times).await;
                    working.fetch_sub(1, Ordering::Relaxed);
                });
            });
        }
    }

    /// Clients for the storms of the plan; they wait for their time.
    fn storms(&mut self, plan: &[PlannedFault]) {
        let storms = plan.iter().filter(|planned| planned.fault == Fault::Storm);
        for (planned, first) in storms.zip((STORM_FIRST..STORM_END).step_by(STORM_CLIENTS)) {
            let from = planned.at_ms * 1_000;
            let node = Stream::new(self.office.seed, "storm node", first).below(u64::from(self.office.nodes));
            let clients = first..first + STORM_CLIENTS as u64;
            self.work(clients, from..from + planned.for_ms * 1_000, STORM_HASTE, u16::try_from(node).ok());
        }
    }

    /// Operators for what the plan has them do, each of which waits for its time.
    fn operators(&mut self, plan: &[PlannedFault], healed: u64) {
        let Some(env) = self.office.desk.client() else { return };
        for planned in plan.iter().cloned() {
            let Some(operator) = Operator::of(self.office.clone(), env.clone(), planned, healed) else { continue };
            let (spawner, working) = (env.clone(), self.working.clone());
            working.fetch_add(1, Ordering::Relaxed);
            self.simulation.run_on(self.office.host, move || {
                spawner.spawn("operator", async move {
                    operator.work().await;
                    working.fetch_sub(1, Ordering::Relaxed);
                });
            });
        }
    }

    fn heal(&mut self) -> io::Result<()> {
        let (lost, cut_off): (&[u16], bool) = match &self.settings.ending {
            Ending::HealAll | Ending::ReplaceOne { .. } => (&[], false),
            Ending::Lose { nodes, cut_off } => (nodes, *cut_off),
        };
        if cut_off {
            heal_everything(self.simulation, &[])?;
            Fault::Partition { group: lost.to_vec() }.begin(self.simulation, Duration::ZERO);
        } else {
            self.turn_off(lost);
            heal_everything(self.simulation, lost)?;
        }
        self.evidence.healed_at = self.now();
        Ok(())
    }

    /// The power of these nodes goes, and does not come back.
    fn turn_off(&mut self, nodes: &[u16]) {
        for node in nodes {
            self.simulation.crash(HostId(*node), CrashKind::Power);
        }
    }

    /// What every node of the core says, or nothing if one does not answer.
    fn views(&mut self, deadline_micros: u64) -> Option<Vec<View>> {
        let mut views = Vec::new();
        for node in self.core() {
            views.push(self.ask(deadline_micros, |office, env| async move { office.view(&env, node).await })??);
        }
        Some(views)
    }

    /// Waits until no node has anything in hand.
    fn let_go(&mut self) {
        let deadline = self.after(LET_GO);
        loop {
            let mut holding = Vec::new();
            for node in self.core() {
                let partitions = self.evidence.views.iter().map(|view| view.status.partitions.len()).max().unwrap_or(0);
                let tasks = self.simulation.shared().tasks(HostId(node)).into_iter();
                let lasting_max = 16 + 8 * u64::from(self.office.nodes) + 2 * partitions as u64;
                let left = tasks.filter(|(name, count)| *count > if is_of_request(name) { 0 } else { lasting_max });
                holding.extend(left.map(|(name, count)| {
                    let (host, seconds) = (HostId(node), LET_GO.as_secs());
                    format!("{host} has {count} tasks '{name}' {seconds} s after the last client")
                }));
                let in_hand = self.office.desk.node(node).map(|running| running.node.in_hand());
                if let Some(in_hand) = in_hand.filter(|in_hand| *in_hand != Default::default()) {
                    let (host, seconds) = (HostId(node), LET_GO.as_secs());
                    holding.push(format!("{host} has in hand {seconds} s after the last client: {in_hand:?}"));
                }
            }
            if holding.is_empty() || self.now() >= deadline {
                self.evidence.in_hand = holding;
                return;
            }
            let next = self.after(LOOK).min(deadline);
            self.simulation.run_until(next);
        }
    }

    /// Looks at the cluster until it is as wanted. False if that did not happen in time.
    fn until(&mut self, deadline_micros: u64, wanted: impl Fn(&[View]) -> bool) -> bool {
        while self.now() < deadline_micros {
            if let Some(views) = self.views(deadline_micros) {
                let good = wanted(&views);
                self.evidence.views = views;
                if good {
                    return true;
                }
            }
            let next = self.after(SURVEY).min(deadline_micros);
            self.simulation.run_until(next);
        }
        false
    }

    /// Everything that must come true within a time after the heal.
    fn settle(&mut self) {
        let healed = self.evidence.healed_at;
        let at = |time: Duration| healed + u64::try_from(time.as_micros()).unwrap_or(0);
        let core = self.core();
        let alive = |views: &[View]| {
            views.iter().all(|view| {
                let nodes = view.status.nodes.iter();
                nodes.filter(|node| node.swim == SwimState::Alive).count() == core.len()
            })
        };
        if !self.until(at(CONVERGE), alive) {
            self.evidence.not_converged = Some(self.evidence.views.clone());
        }
        self.probe_everything(at(LIVE));
    }

    /// Waits for the clients' last operations, and for what nodes still do on behalf of those that gave up.
    fn drain(&mut self) {
        let deadline = self.after(DRAIN);
        let working = self.working.clone();
        self.simulation.run_while(deadline, || working.load(Ordering::Relaxed) > 0);
        let left = working.load(Ordering::Relaxed);
        if left > 0 {
            self.evidence.dead.push(format!("what {left} clients or operators had begun"));
        }
        let last = self.after(client::NODE_TIMEOUT + LOOK);
        self.simulation.run_until(last);
        self.evidence.drained_at = self.now();
    }

    /// From here on events stay: what is read at rest does not change while it is read.
    fn keep_events(&mut self) {
        if self.settings.events_ttl.is_none() {
            return;
        }
        let expired = self.after(EXPIRE);
        self.simulation.run_until(expired);
        let deadline = self.after(LIVE);
        let core = self.core();
        let mut kept = false;
        while !kept && self.now() < deadline {
            for node in core.iter().copied() {
                let statement = SqlRequest::new("ALTER TABLE ev SET (ttl = 'none')");
                let done =
                    self.ask(deadline, |office, env| async move { office.sql(&env, node, statement).await.is_ok() });
                kept = done == Some(true);
                if kept {
                    break;
                }
            }
            self.pause_unless(kept, deadline);
        }
        match kept {
            true => self.evidence.events_stay_from = Some(self.now()),
            false => self.evidence.dead.push("ALTER TABLE".to_owned()),
        }
    }

    fn until_equal(&mut self, deadline_micros: u64, when: &str) {
        let (core, replicas) = (self.core(), usize::from(self.settings.replicas));
        if let Some(views) = self.views(deadline_micros)
            && !invariants::unequal(&views, &core, replicas).is_empty()
        {
            self.simulation.shared().sometimes(Rare::CaughtUpAtEnd);
        }
        self.are_equal_by(deadline_micros, when);
    }

    fn are_equal_by(&mut self, deadline_micros: u64, when: &str) {
        let (core, replicas) = (self.core(), usize::from(self.settings.replicas));
        self.evidence.views.clear();
        if !self.until(deadline_micros, |views| invariants::unequal(views, &core, replicas).is_empty()) {
            let why = invariants::unequal(&self.evidence.views, &core, replicas).into_iter().next();
            let why = why.unwrap_or_else(|| "a node does not answer".to_owned());
            self.evidence.unequal.push(format!("not equal 60 s {when}: {why}"));
        }
    }

    /// A node loses rows behind the back of its logs, which nothing but a comparison of digests can find. The others have them all,
    /// and nobody reads until they are back.
    fn lose_rows(&mut self) {
        let Some(one_in) = self.settings.loses_one_in.filter(|_| self.evidence.unequal.is_empty()) else { return };
        let core = self.core();
        let place = Stream::new(self.office.seed, "who loses rows", 0).below(core.len() as u64);
        let Some(node) = usize::try_from(place).ok().and_then(|place| core.get(place)).copied() else { return };
        let deadline = self.now() + EQUAL_MICROS;
        let lost = self.ask(deadline, |office, env| async move { office.lose_rows(&env, node, one_in).await.is_ok() });
        match lost {
            Some(true) => self.are_equal_by(deadline, "after a node had lost rows behind the backs of its logs"),
            _ => self.evidence.dead.push(format!("loss of rows on purpose on {}", HostId(node))),
        }
    }

    /// Every kind of operation must succeed through every node.
    fn probe_everything(&mut self, deadline_micros: u64) {
        let questions = [
            Question::Point { key: 0 },
            Question::Range { low: 0, high: KEYS - 1 },
            Question::Aggregate,
            Question::Groups,
            Question::Join,
            Question::Events,
            Question::EventCount,
        ];
        let mut number = 0;
        for node in self.core() {
            for target in [Target::Upserts, Target::Events, Target::Deletes] {
                let mut succeeded = false;
                while !succeeded && self.now() < deadline_micros {
                    number += 1;
                    let sent = self.ask(deadline_micros, |office, env| async move {
                        client::probe(&office, &env, node, target, number).await
                    });
                    succeeded = sent == Some(true);
                    self.pause_unless(succeeded, deadline_micros);
                }
                if !succeeded {
                    self.evidence.dead.push(format!("writes, {target:?}, through {}", HostId(node)));
                }
            }
            self.probe_statements(node, deadline_micros);
            for question in questions {
                let mut succeeded = false;
                while !succeeded && self.now() < deadline_micros {
                    number += 1;
                    let id = OperationId { client: client::PROBES, number: number.unsigned_abs() };
                    let level = if number % 2 == 0 { ReadLevel::Quorum } else { ReadLevel::One };
                    let question = Asked { id, question, manner: Manner::Whole, level, at_rest: false };
                    let asked = self.ask(deadline_micros, |office, env| async move {
                        client::ask(&office, &env, node, question).await
                    });
                    succeeded = asked == Some(true);
                    self.pause_unless(succeeded, deadline_micros);
                }
                if !succeeded {
                    self.evidence.dead.push(format!("{} through {}", question.word(), HostId(node)));
                }
            }
        }
    }

    /// A table is made through the node, altered, written, tended and dropped.
    fn probe_statements(&mut self, node: u16, deadline_micros: u64) {
        // These say so if a replica cannot be reached.
        let of_all = ["FLUSH", "OPTIMIZE TABLE probe", "REPAIR TABLE probe"];
        let reach_all = !matches!(self.settings.ending, Ending::Lose { .. });
        let create =
            format!("CREATE TABLE IF NOT EXISTS probe (k BIGINT PRIMARY KEY, v BIGINT){}", self.office.copies());
        for statement in [
            create.as_str(),
            "ALTER TABLE probe ADD COLUMN IF NOT EXISTS w BIGINT",
            "INSERT INTO probe VALUES (1, 1, 1)",
            "UPDATE probe SET w = 2 WHERE k = 1",
        ]
        .into_iter()
        .chain(of_all.into_iter().filter(|_| reach_all))
        .chain(["DELETE FROM probe WHERE k = 1", "DROP TABLE IF EXISTS probe"])
        {
            let mut last = None;
            let mut succeeded = false;
            while !succeeded && self.now() < deadline_micros {
                let request = SqlRequest::new(statement);
                let done =
                    self.ask(deadline_micros, |office, env| async move { office.sql(&env, node, request).await });
                succeeded = matches!(done, Some(Ok(_)));
                if let Some(Err(failed)) = done {
                    last = Some(failed);
                }
                self.pause_unless(succeeded, deadline_micros);
            }
            if !succeeded {
                self.evidence.dead.push(format!("{statement} through {}: {last:?}", HostId(node)));
            }
        }
    }

    fn pause_unless(&mut self, succeeded: bool, deadline_micros: u64) {
        if !succeeded {
            let next = self.after(LOOK).min(deadline_micros);
            self.simulation.run_until(next);
        }
    }

    /// The whole content through every node.
    fn final_reads(&mut self) {
        let whole = [
            Question::Range { low: 0, high: KEYS - 1 },
            Question::Aggregate,
            Question::Groups,
            Question::Join,
            Question::Events,
            Question::EventCount,
        ];
        let deadline = self.after(LIVE);
        for node in self.core() {
            for question in whole {
                let first = self.final_reads;
                self.final_reads += FINAL_ATTEMPTS;
                let read = self.ask(deadline, |office, env| async move {
                    for number in first..first + FINAL_ATTEMPTS {
                        let id = OperationId { client: client::READER, number };
                        let (manner, level) = (Manner::Whole, ReadLevel::One);
                        if client::ask(&office, &env, node, Asked { id, question, manner, level, at_rest: true }).await
                        {
                            return true;
                        }
                        env.sleep(LOOK).await;
                    }
                    false
                });
                if read != Some(true) {
                    self.evidence.dead.push(format!("final {} through {}", question.word(), HostId(node)));
                }
            }
        }
    }

    /// Makes a table of each of the last backups, and reads it.
    fn restore_backups(&mut self) {
        let core = self.core();
        let backups = self.office.history.facts().backups.clone();
        for (place, backup) in backups.iter().enumerate().rev().take(BACKUPS_RESTORED_MAX) {
            let deadline = self.after(LIVE);
            let mut restored = None;
            for turn in 0u64.. {
                let node = usize::try_from(turn).ok().and_then(|turn| core.get(turn % core.len())).copied();
                let Some(node) = node.filter(|_| restored.is_none() && self.now() < deadline) else { break };
                let backup = backup.clone();
                let done = self.ask(deadline, |office, env| async move {
                    let table = format!("restored_{place}_{turn}");
                    client::restored(&office, &env, node, &backup, &table).await
                });
                restored = done.flatten();
                self.pause_unless(restored.is_some(), deadline);
            }
            match restored {
                Some(rows) => {
                    self.simulation.shared().sometimes(Rare::BackupRestored);
                    self.office.history.facts().backups[place].restored = Some(rows);
                }
                None => self.evidence.dead.push(format!("RESTORE of backup {}", backup.name)),
            }
        }
    }

    /// The power of every node goes at once, and comes back.
    fn blackout(&mut self) -> io::Result<()> {
        for node in self.core() {
            self.simulation.crash(HostId(node), CrashKind::Power);
        }
        let dark = self.after(Duration::from_secs(2));
        self.simulation.run_until(dark);
        for node in self.core() {
            self.simulation.start(HostId(node))?;
        }
        let deadline = self.now() + EQUAL_MICROS;
        self.until_equal(deadline, "after the loss of power of all nodes");
        self.final_reads();
        Ok(())
    }

    /// Nodes stop in good order; what they leave behind is counted.
    fn stop(&mut self) {
        if let Ending::Lose { nodes, cut_off: true } = &self.settings.ending {
            self.turn_off(nodes);
        }
        let tidy = self.after(TIDY);
        self.simulation.run_until(tidy);
        for node in self.core() {
            if let Some(running) = self.office.desk.node(node) {
                let env = running.env.clone();
                self.simulation.run_on(HostId(node), move || {
                    env.spawn("stop", async move { running.node.shutdown().await });
                });
            }
        }
        let settled = self.after(Duration::from_secs(10));
        self.simulation.run_until(settled);
        self.evidence.connections_left = self.simulation.shared().open_connections();
        self.examine_disks();
    }

    /// What lies on the disks of nodes that were stopped in good order: all that is named, and nothing else.
    fn examine_disks(&mut self) {
        for host in self.core() {
            // Whatever still runs there would hold its directory.
            self.simulation.crash(HostId(host), CrashKind::Process);
            let Some(disk) = self.simulation.disk(HostId(host)) else { continue };
            let plan = &self.evidence.plan;
            let damaged: Vec<&str> = plan.iter().filter_map(|planned| planned.fault.damages(host)).collect();
            match doctor::examine(&disk.removed(), Path::new(DATA_DIR), false) {
                Ok(examined) => {
                    // What nobody reads stays damaged; a log without a record that has lost its header is only one without a record.
                    let expected = |finding: &Finding| {
                        let file = format!("/{}", finding.problem.file);
                        !damaged.is_empty()
                            && (finding.severity == Severity::Damage || damaged.iter().any(|part| file.contains(part)))
                    };
                    let found = examined.all_findings().filter(|(_, finding)| !expected(finding));
                    self.evidence.on_disk.extend(found.map(|(replica, finding)| {
                        let replica = replica.map_or_else(String::new, |replica| format!("{}: ", replica.name));
                        format!("{}: {replica}{}", HostId(host), finding.problem)
                    }));
                }
                Err(error) => self.evidence.on_disk.push(format!("{}: {error}", HostId(host))),
            }
        }
    }
}

/// Whether a task of that name ends with the request that it is for.
fn is_of_request(name: &str) -> bool {
    ["query", "scan", "fetch", "replica write", "transport.stream", "transport.produce"]
        .iter()
        .any(|of_requests| name.starts_with(of_requests))
}
