//! The node's hybrid clock, with its upper bound persisted ahead, so that a version is never given twice over a restart,
//! even if the wall clock has gone back meanwhile.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use shoal_kernel::{Env, Hlc, HlcClock, Result, wire};

/// How far ahead of the time given out the bound is persisted. A restart waits until the wall has passed the bound, so it
/// is kept short; a busy node writes its small file this often.
const AHEAD_MICROS: u64 = 400_000;

/// Stamps of one microsecond.
pub(crate) const STAMPS_PER_TICK: u64 = 1 << 12;

/// The clock of one node.
pub(crate) struct NodeClock {
    env: Env,
    path: PathBuf,
    core: Mutex<Core>,
    /// Serialises writers of the bound; held over the write.
    persist: tokio::sync::Mutex<()>,
}

struct Core {
    clock: HlcClock,
    bound: Hlc,
}

impl NodeClock {
    /// Where the bound is kept.
    pub(crate) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("CLOCK")
    }

    /// Reads the bound of the last life and waits, for at most that short while, until the wall has passed it.
    pub(crate) async fn open(env: &Env, data_dir: &Path, skew_max_ms: u64) -> Result<Self> {
        let path = Self::path(data_dir);
        let (disk, at) = (env.disk(), path.clone());
        let floor = env
            .blocking(move || -> Result<Hlc> {
                if disk.exists(&at)? { Ok(wire::unseal(&disk.read(&at)?)?) } else { Ok(Hlc::default()) }
            })
            .await??;
        let behind = floor.micros().saturating_sub(env.wall_micros());
        if behind > 0 {
            // A bound further off than this means that the wall went back: then the hybrid part carries on from the bound.
            env.sleep(Duration::from_micros(behind.min(2 * AHEAD_MICROS))).await;
        }
        let clock = HlcClock::new(floor, skew_max_ms.saturating_mul(1000));
        Ok(Self {
            env: env.clone(),
            path,
            core: Mutex::new(Core { clock, bound: floor }),
            persist: tokio::sync::Mutex::new(()),
        })
    }

    /// A microsecond that no other request of this node has had, as its first time stamp. The request owns all of its
    /// [`STAMPS_PER_TICK`] stamps: one for each piece of its rows.
    pub(crate) async fn tick(&self) -> Result<Hlc> {
        loop {
            let next = {
                let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
                let wall = self.env.wall_micros();
                let next = Hlc::from_micros(wall.max(core.clock.last().micros() + 1));
                if Hlc(next.0 + STAMPS_PER_TICK) < core.bound {
                    core.clock.advance(Hlc(next.0 + STAMPS_PER_TICK - 1));
                    return Ok(next);
                }
                next
            };
            self.extend(next).await?;
        }
    }

    async fn extend(&self, past: Hlc) -> Result<()> {
        let _turn = self.persist.lock().await;
        if self.core.lock().unwrap_or_else(PoisonError::into_inner).bound > Hlc(past.0 + STAMPS_PER_TICK) {
            return Ok(());
        }
        let bound = Hlc::from_micros(past.micros() + AHEAD_MICROS);
        let (disk, path, bytes) = (self.env.disk(), self.path.clone(), wire::seal(&bound)?);
        self.env.blocking(move || disk.replace(&path, &bytes)).await??;
        self.core.lock().unwrap_or_else(PoisonError::into_inner).bound = bound;
        Ok(())
    }

    /// Moves past a stamp for good: after a crash, too, this clock goes on above it.
    pub(crate) async fn keep(&self, stamp: Hlc) -> Result<()> {
        self.observe(stamp)?;
        if self.core.lock().unwrap_or_else(PoisonError::into_inner).bound <= stamp {
            self.extend(stamp).await?;
        }
        Ok(())
    }

    /// The newest stamp that was given or seen.
    pub(crate) fn last(&self) -> Hlc {
        self.core.lock().unwrap_or_else(PoisonError::into_inner).clock.last()
    }

    /// Checks a version before its first acceptance.
    pub(crate) fn observe(&self, stamp: Hlc) -> Result<()> {
        let wall = self.env.wall_micros();
        self.core.lock().unwrap_or_else(PoisonError::into_inner).clock.observe(stamp, wall).map_err(|skew| {
            shoal_kernel::Error::new(shoal_kernel::ErrorCode::ClockSkew, skew.to_string())
                .with_help("synchronise the clocks of the nodes (NTP), or raise clock_skew_max_ms")
        })
    }
}
