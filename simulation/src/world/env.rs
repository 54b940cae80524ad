//! The simulated side of [`Env`](shoal_kernel::Env): one per life of a host.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use shoal_kernel::Rare;
use shoal_kernel::env::{BlockingJob, BlockingLost, BoxFuture, Disk, Network, TaskHandle, World};
use tokio::runtime::Handle;

use super::HostId;
use super::state::{Counted, Shared};
use crate::disk::SimDisk;
use crate::entropy::EPOCH_MICROS;
use crate::network::SimNetwork;
use crate::random;
use crate::trace::Kind;

/// What one life of one host sees of the world.
pub struct SimWorld {
    shared: Arc<Shared>,
    host: HostId,
    life: u64,
    runtime: Handle,
    disk: Arc<SimDisk>,
    network: Arc<SimNetwork>,
}

impl SimWorld {
    pub(super) fn new(shared: Arc<Shared>, host: HostId, life: u64, runtime: Handle, disk: Arc<SimDisk>) -> Self {
        let network = Arc::new(SimNetwork::new(shared.clone(), host, life));
        Self { shared, host, life, runtime, disk, network }
    }
}

impl World for SimWorld {
    fn wall_micros(&self) -> u64 {
        let core = self.shared.core();
        let offset = core.hosts[self.host.index()].wall_offset_micros(core.now_micros);
        (EPOCH_MICROS + core.now_micros).saturating_add_signed(offset)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.shared.now_micros())
    }

    #[allow(clippy::disallowed_methods, reason = "the one place of this world where timers are made")]
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        // Of the host's own runtime: a pause then delays it, and a cancelled one costs nothing.
        let _inside = self.runtime.enter();
        Box::pin(tokio::time::sleep(time))
    }

    fn seed(&self, stream: &'static str) -> u64 {
        let mut core = self.shared.core();
        let seed = core.seed;
        let ordinal = core.hosts[self.host.index()].seeds.entry(stream).or_default();
        *ordinal += 1;
        random::draw(seed, stream, u64::from(self.host.0), *ordinal)
    }

    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) -> TaskHandle {
        let counted = Counted::new(&self.shared, self.host, self.life, name);
        TaskHandle::new(self.runtime.spawn(async move {
            let _counted = counted;
            task.await;
        }))
    }

    fn blocking(&self, job: BlockingJob) -> BoxFuture<'static, Result<Box<dyn Any + Send>, BlockingLost>> {
        let (shared, host, life, disk) = (self.shared.clone(), self.host, self.life, self.disk.clone());
        Box::pin(async move {
            if !shared.core().lives(host, life) {
                return Err(BlockingLost);
            }
            // At once and on this thread; the time that the disk took is added afterwards.
            let output = catch_unwind(AssertUnwindSafe(job));
            let took_micros = disk.take_cost_micros();
            if took_micros > 0 {
                let until = shared.now_micros() + took_micros;
                shared.at(host, life, until).await;
            }
            output.map_err(|_| BlockingLost)
        })
    }

    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.of_life(self.life)
    }

    fn network(&self) -> Arc<dyn Network> {
        self.network.clone()
    }

    fn trace(&self, what: &dyn Fn() -> String) {
        self.shared.trace(Kind::Note, format_args!("{} {}", self.host, what()));
    }

    fn reached(&self, state: Rare) {
        self.shared.sometimes(state);
    }
}
