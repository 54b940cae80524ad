//! One host: a runtime, a disk, a program.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Poll;

use shoal_kernel::Env;
use tokio::runtime::{Builder, RngSeed, Runtime};

use super::env::SimWorld;
use super::state::{Action, Shared};
use super::{CrashKind, HostId, Program};
use crate::disk::SimDisk;
use crate::entropy;
use crate::random;

struct Life {
    number: u64,
    runtime: Runtime,
    started_micros: u64,
    /// The random stream of libraries, while the host does not run.
    random: u64,
    given: VecDeque<Action>,
    /// When the runtime's next timer is due.
    deadline_micros: Option<u64>,
}

pub(super) struct Host {
    id: HostId,
    shared: Arc<Shared>,
    disk: Arc<SimDisk>,
    program: Program,
    life: Option<Life>,
    paused_until_micros: u64,
}

impl Host {
    pub(super) fn new(id: HostId, shared: Arc<Shared>, disk: Arc<SimDisk>, program: Program) -> Self {
        Self { id, shared, disk, program, life: None, paused_until_micros: 0 }
    }

    pub(super) fn id(&self) -> HostId {
        self.id
    }

    pub(super) fn is_up(&self) -> bool {
        self.life.is_some()
    }

    pub(super) fn disk(&self) -> &Arc<SimDisk> {
        &self.disk
    }

    pub(super) fn pause_until(&mut self, until_micros: u64) {
        self.paused_until_micros = self.paused_until_micros.max(until_micros);
    }

    pub(super) fn start(&mut self) -> std::io::Result<()> {
        let (number, seed) = {
            let mut core = self.shared.core();
            let seed = core.seed;
            let state = &mut core.hosts[self.id.index()];
            state.life += 1;
            (state.up, state.machine_up, state.doomed, state.starts_again_at) = (true, true, None, None);
            state.tasks.clear();
            (state.life, seed)
        };
        let place = |purpose| random::draw(seed, purpose, u64::from(self.id.0), number);
        let stray = self.shared.clone();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .rng_seed(RngSeed::from_bytes(&place("runtime").to_le_bytes()))
            // The only threads that this kind of runtime starts are those for blocking work.
            .on_thread_start(move || stray.count_stray_thread())
            .build()?;
        self.disk.open_life(number);
        crate::network::host_started(&self.shared, self.id);
        let env =
            Env::new(SimWorld::new(self.shared.clone(), self.id, number, runtime.handle().clone(), self.disk.clone()));
        runtime.spawn((self.program)(env));
        let (random, now) = (place("libraries"), self.shared.now_micros());
        self.life = Some(Life {
            number,
            runtime,
            started_micros: now,
            random,
            given: VecDeque::new(),
            deadline_micros: Some(now),
        });
        Ok(())
    }

    pub(super) fn crash(&mut self, kind: CrashKind) {
        let Some(life) = self.life.take() else { return };
        {
            let mut core = self.shared.core();
            let state = &mut core.hosts[self.id.index()];
            (state.up, state.machine_up) = (false, kind == CrashKind::Process);
        }
        self.disk.close_life();
        crate::network::host_stopped(&self.shared, self.id, kind);
        self.paused_until_micros = 0;
        let given = life.given;
        let outside = entropy::swap_random(life.random);
        // Destructors of the code under test run here; one that panics is not the simulator's end.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            drop(given);
            drop(life.runtime);
        }));
        entropy::swap_random(outside);
        self.disk.crash(kind);
    }

    pub(super) fn give(&mut self, life: u64, action: Action) {
        if let Some(current) = self.life.as_mut().filter(|current| current.number == life) {
            current.given.push_back(action);
        }
    }

    fn wakes_at(&self) -> Option<u64> {
        let life = self.life.as_ref()?;
        let wanted = if life.given.is_empty() { life.deadline_micros } else { Some(0) };
        wanted.map(|at| at.max(self.paused_until_micros))
    }

    pub(super) fn has_work(&self) -> bool {
        self.wakes_at().is_some_and(|at| at <= self.shared.now_micros())
    }

    pub(super) fn deadline_micros(&self) -> Option<u64> {
        self.wakes_at()
    }

    /// Runs until there is nothing more to do at this moment. Says if the host must go down now.
    pub(super) fn step(&mut self) -> Option<CrashKind> {
        let life = self.life.as_mut()?;
        let now = {
            let core = self.shared.core();
            let offset = core.hosts[self.id.index()].wall_offset_micros(core.now_micros);
            entropy::set_wall_offset_micros(offset);
            core.now_micros
        };
        let outside = entropy::swap_random(life.random);
        let mut given = Some(std::mem::take(&mut life.given));
        let idle = life.runtime.block_on(poll_fn(|context| {
            if let Some(actions) = given.take() {
                for action in actions {
                    match action {
                        Action::Wake(waker) => waker.wake(),
                        Action::Run(job) => job(),
                    }
                }
                entropy::begin_step(context.waker().clone());
                return Poll::Pending;
            }
            entropy::step_ended().map_or(Poll::Pending, Poll::Ready)
        }));
        life.random = entropy::swap_random(outside);
        entropy::set_wall_offset_micros(0);
        // The runtime counts whole milliseconds since its start; its timer is due at such a border.
        life.deadline_micros = idle.map(|millis| {
            let elapsed_millis = now.saturating_sub(life.started_micros) / 1_000;
            life.started_micros.saturating_add(elapsed_millis.saturating_add(millis).saturating_mul(1_000))
        });
        self.shared.core().hosts[self.id.index()].doomed
    }
}
