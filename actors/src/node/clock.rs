//! The node's hybrid clock, with its upper bound persisted ahead, so that a version is never given twice over a restart,
//! even if the wall clock has gone back meanwhile.
//!
//! How far a time is ahead is judged by most clocks ([`NodeClock::hear`]) and not by this node's own, which may be the wrong one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_kernel::env::Disk;
use shoal_kernel::{Env, Error, ErrorCode, Hlc, HlcClock, Rare, Result, wire};

/// How far ahead of the time given out the bound is persisted. A restart waits until the wall has passed the bound, so it
/// is kept short; a busy node writes its small file this often.
const AHEAD_MICROS: u64 = 400_000;

/// How long the others' time goes on by this node's monotonic clock when nobody tells it any more. Not for ever: that clock stands still
/// while a machine sleeps.
pub(super) const BELIEVED_FOR: Duration = Duration::from_secs(10);

/// How long to wait for a clock before another look at it: meanwhile others may have said what time it is.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Where the bound is kept.
pub(crate) const CLOCK_FILE: &str = "CLOCK";

/// Stamps of one microsecond.
pub(crate) const STAMPS_PER_TICK: u64 = 1 << 12;

/// The clock of one node.
pub(crate) struct NodeClock {
    env: Env,
    path: PathBuf,
    core: Mutex<Core>,
    skew_max_micros: u64,
    /// Whatever others say.
    believes_itself: bool,
    /// Serialises writers of the bound; held over the write.
    persist: tokio::sync::Mutex<()>,
}

/// The time by most clocks.
#[derive(Clone, Copy)]
struct Heard {
    most_micros: u64,
    /// What this node's clock said then.
    own_micros: u64,
    at: Duration,
}

/// How the last life ended.
#[derive(Clone, Copy)]
struct Before {
    bound: Hlc,
    /// No version was accepted above it, as far as is known.
    ceiling: Hlc,
}

struct Core {
    clock: HlcClock,
    /// What others have said.
    heard: Option<Heard>,
    bound: Hlc,
    /// No replica of this node holds a version above the clock, this, and what was before.
    held: Hlc,
    before: Option<Before>,
}

impl NodeClock {
    /// Where the bound is kept.
    pub(crate) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(CLOCK_FILE)
    }

    /// The bound of the last life, if there was one.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if the file is damaged; else as the disk reports.
    pub(crate) fn read_bound(disk: &Arc<dyn Disk>, path: &Path) -> Result<Option<Hlc>> {
        if !disk.exists(path)? {
            return Ok(None);
        }
        let bound = wire::unseal(&disk.read(path)?).map_err(|error| {
            Error::from(error).in_file(CLOCK_FILE, Some(0)).with_help(
                "without the bound this node might give a version twice: remove the node from the cluster and start it with \
                 an empty data directory",
            )
        })?;
        Ok(Some(bound))
    }

    /// Reads the bound of the last life and waits, for at most that short while, until the wall has passed it.
    /// `believes_itself` is for planted bugs.
    pub(crate) async fn open(env: &Env, data_dir: &Path, skew_max_ms: u64, believes_itself: bool) -> Result<Self> {
        let path = Self::path(data_dir);
        let (disk, at) = (env.disk(), path.clone());
        let floor = env.blocking(move || Self::read_bound(&disk, &at)).await??;
        let skew_max_micros = skew_max_ms.saturating_mul(1000);
        let before = match floor {
            Some(bound) => Some(Before { bound, ceiling: ceiling_before(bound, env.wall_micros(), skew_max_micros) }),
            None => {
                // Rows may come before this node gives its first stamp, and its next life must know that there may be some.
                let (disk, at) = (env.disk(), path.clone());
                let bytes = wire::seal(&Hlc::from_micros(env.wall_micros()))?;
                env.blocking(move || disk.replace(&at, &bytes)).await??;
                None
            }
        };
        let floor = floor.unwrap_or_default();
        let behind = floor.micros().saturating_sub(env.wall_micros());
        if behind > 0 {
            // A bound further off than this means that the wall went back: then the hybrid part carries on from the bound.
            env.sleep(Duration::from_micros(behind.min(2 * AHEAD_MICROS))).await;
        }
        let clock = HlcClock::new(floor, skew_max_micros);
        Ok(Self {
            env: env.clone(),
            path,
            core: Mutex::new(Core { clock, heard: None, bound: floor, held: Hlc::default(), before }),
            skew_max_micros,
            believes_itself,
            persist: tokio::sync::Mutex::new(()),
        })
    }

    /// A microsecond that no other request of this node has had, as its first time stamp. The request owns all of its
    /// [`STAMPS_PER_TICK`] stamps: one for each piece of its rows.
    pub(crate) async fn tick(&self) -> Result<Hlc> {
        let mut reserved = None;
        loop {
            let next = {
                let mut core = self.lock();
                let last = core.clock.last();
                // On a slow disk the time may have passed the bound by the time that it is written: what it was written for can be had.
                let reserved = reserved.filter(|reserved| *reserved > last);
                let next = reserved.unwrap_or_else(|| Hlc::from_micros(self.now_micros(&core).max(last.micros() + 1)));
                if Hlc(next.0 + STAMPS_PER_TICK) < core.bound {
                    core.clock.advance(Hlc(next.0 + STAMPS_PER_TICK - 1));
                    return Ok(next);
                }
                next
            };
            self.extend(next).await?;
            reserved = Some(next);
        }
    }

    /// The same, above a version that was read; waits until this node's wall has passed it, so that no replica finds the new
    /// version too far ahead.
    ///
    /// # Errors
    /// [`ErrorCode::ClockSkew`]: the version lies further ahead than there is patience.
    pub(crate) async fn tick_above(&self, read: Hlc, patience: Duration) -> Result<Hlc> {
        let until = self.env.monotonic() + patience;
        loop {
            let now = self.now_micros(&self.lock());
            let ahead = Duration::from_micros(read.micros().saturating_sub(now));
            if ahead.is_zero() {
                break;
            }
            if self.env.monotonic() + ahead > until {
                let message = format!("rows that were read may be {} ms ahead of this node's clock", ahead.as_millis());
                return Err(Error::new(ErrorCode::ClockSkew, message)
                    .with_help("send it again, or at another node; synchronise the clocks of the nodes (NTP)"));
            }
            self.env.reached(Rare::WaitedForClock);
            self.env.sleep(ahead.min(WAIT_MAX)).await;
        }
        self.observe(read)?;
        self.tick().await
    }

    /// No replica of this node holds a version above this one.
    pub(crate) fn ceiling(&self) -> Hlc {
        let core = self.lock();
        let before = core.before.map(|before| before.ceiling).unwrap_or_default();
        core.clock.last().max(core.held).max(before)
    }

    /// Moves past the time of a row that is accepted here. History is taken however far ahead it is, and then the clock does
    /// not follow it.
    pub(crate) fn hold(&self, stamp: Hlc) {
        if self.observe(stamp).is_err() {
            let mut core = self.lock();
            core.held = core.held.max(stamp);
        }
    }

    /// A replica of this node is about to hold versions that may reach up to there. The clock does not follow.
    pub(crate) fn hold_up_to(&self, stamp: Hlc) {
        let mut core = self.lock();
        core.held = core.held.max(stamp);
    }

    async fn extend(&self, past: Hlc) -> Result<()> {
        let _turn = self.persist.lock().await;
        if self.lock().bound > Hlc(past.0 + STAMPS_PER_TICK) {
            return Ok(());
        }
        let bound = Hlc::from_micros(past.micros() + AHEAD_MICROS);
        let (disk, path, bytes) = (self.env.disk(), self.path.clone(), wire::seal(&bound)?);
        self.env.blocking(move || disk.replace(&path, &bytes)).await??;
        self.lock().bound = bound;
        Ok(())
    }

    /// Moves past a stamp for good: after a crash, too, this clock goes on above it.
    pub(crate) async fn keep(&self, stamp: Hlc) -> Result<()> {
        self.observe(stamp)?;
        if self.lock().bound <= stamp {
            self.extend(stamp).await?;
        }
        Ok(())
    }

    /// The newest stamp that was given or seen.
    pub(crate) fn last(&self) -> Hlc {
        self.lock().clock.last()
    }

    /// Checks a version before its first acceptance.
    pub(crate) fn observe(&self, stamp: Hlc) -> Result<()> {
        let mut core = self.lock();
        let now = self.most_micros(&core).unwrap_or_else(|| self.env.wall_micros());
        core.clock.observe(stamp, now).map_err(|skew| {
            Error::new(ErrorCode::ClockSkew, skew.to_string())
                .with_help("synchronise the clocks of the nodes (NTP), or raise clock_skew_max_ms")
        })
    }

    /// The same for a version that a replica is about to accept. If this node's clock is far behind most others, the bound is moved past
    /// the version first: else the next life would take it for impossible.
    pub(crate) async fn accept(&self, stamp: Hlc) -> Result<()> {
        self.observe(stamp)?;
        let reach = self.env.wall_micros().saturating_add(self.skew_max_micros);
        if stamp.micros() > reach && self.lock().bound <= stamp {
            self.extend(stamp).await?;
        }
        Ok(())
    }

    /// Most clocks show this time now, in microseconds since 1970. Gives how far this node's is ahead.
    pub(super) fn hear(&self, most_micros: u64) -> i64 {
        let (own_micros, at) = (self.env.wall_micros(), self.env.monotonic());
        let mut core = self.lock();
        core.heard = Some(Heard { most_micros, own_micros, at });
        if let Some(before) = core.before.as_mut().filter(|_| !self.believes_itself) {
            // The wall clock may have been wrong when the node started.
            before.ceiling = ceiling_before(before.bound, most_micros, self.skew_max_micros);
        }
        own_micros.cast_signed().saturating_sub(most_micros.cast_signed())
    }

    /// The time by most clocks, if it is known.
    fn most_micros(&self, core: &Core) -> Option<u64> {
        let heard = core.heard.filter(|_| !self.believes_itself)?;
        let since = self.env.monotonic().saturating_sub(heard.at);
        // The monotonic clock stands still while a machine sleeps, the wall clock does not.
        let jumped = self.env.wall_micros().saturating_sub(heard.own_micros.saturating_add(micros(since)));
        let known = since <= BELIEVED_FOR && jumped <= self.skew_max_micros;
        known.then(|| heard.most_micros.saturating_add(micros(since)))
    }

    /// The time by this node's clock, but no further from that of most clocks than half of what others bear with: they have heard of
    /// other times.
    fn now_micros(&self, core: &Core) -> u64 {
        let own = self.env.wall_micros();
        self.most_micros(core).map_or(own, |most| {
            own.clamp(most.saturating_sub(self.skew_max_micros / 2), most.saturating_add(self.skew_max_micros / 2))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What others wrote is not kept beside the bound. It was at most the skew ahead of a clock that was at most the skew ahead of the right one.
fn ceiling_before(bound: Hlc, now_micros: u64, skew_max_micros: u64) -> Hlc {
    let now = bound.micros().max(now_micros);
    Hlc::from_micros(now.saturating_add(skew_max_micros.saturating_mul(2)))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what fails in the scaffolding fails the test")]
mod tests {
    use shoal_kernel::env::real::{RealOptions, env};

    use super::*;

    const SKEW_MAX_MS: u64 = 500;
    const AHEAD: Duration = Duration::from_millis(60);

    #[tokio::test]
    async fn what_is_written_beats_what_was_read_or_is_refused() {
        let (dir, env) = (tempfile::tempdir().unwrap(), env(&RealOptions::default()).unwrap());
        let clock = NodeClock::open(&env, dir.path(), SKEW_MAX_MS, false).await.unwrap();
        assert_eq!(clock.ceiling(), Hlc::default(), "a new node holds nothing");
        let ahead = |time: Duration| Hlc::from_micros(env.wall_micros() + time.as_micros() as u64);

        let read = Hlc(ahead(AHEAD).0 + 7);
        let written = clock.tick_above(read, Duration::from_secs(5)).await.unwrap();
        assert!(written > read && read.micros() <= env.wall_micros(), "{written} after {read}");
        let error = clock.tick_above(ahead(AHEAD), AHEAD / 10).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::ClockSkew);

        // History from far ahead is held, and not followed.
        let far = ahead(Duration::from_secs(60));
        clock.hold(far);
        assert!(clock.ceiling() >= far && clock.tick().await.unwrap() < far);
        // After a restart, whatever others may have stamped in time.
        let near = ahead(Duration::from_millis(SKEW_MAX_MS));
        clock.hold(near);
        drop(clock);
        let clock = NodeClock::open(&env, dir.path(), SKEW_MAX_MS, false).await.unwrap();
        assert!(clock.ceiling() >= near);
    }

    #[tokio::test]
    async fn most_clocks_are_right_and_not_this_one() {
        let (dir, env) = (tempfile::tempdir().unwrap(), env(&RealOptions::default()).unwrap());
        let clock = NodeClock::open(&env, dir.path(), SKEW_MAX_MS, false).await.unwrap();
        let skew = Duration::from_millis(SKEW_MAX_MS).as_micros() as u64;
        let second = 1_000_000;
        let (before, after) = (|| env.wall_micros() - 3 * second, || env.wall_micros() + 3 * second);

        // It is far ahead: what it stamps is held to what others accept, and what it accepts is judged by them.
        clock.hear(before());
        assert!(clock.tick().await.unwrap().micros() <= before() + skew);
        let own = Hlc::from_micros(env.wall_micros());
        assert_eq!(clock.accept(own).await.unwrap_err().code(), ErrorCode::ClockSkew);
        // It is far behind: what is right is accepted, and known to the next life.
        clock.hear(after());
        let right = Hlc::from_micros(after());
        clock.accept(right).await.unwrap();
        assert!(clock.tick().await.unwrap() > right);
        drop(clock);
        let clock = NodeClock::open(&env, dir.path(), SKEW_MAX_MS, false).await.unwrap();
        assert!(clock.ceiling() >= right && clock.tick().await.unwrap() > right);
        // Others know whether its clock was wrong when it started.
        clock.hear(env.wall_micros() + 60 * second);
        assert!(clock.ceiling().micros() > env.wall_micros() + 60 * second);
        // Unless it believes nobody but itself.
        let clock = NodeClock::open(&env, dir.path(), SKEW_MAX_MS, true).await.unwrap();
        clock.hear(env.wall_micros() + 10 * second);
        let theirs = Hlc::from_micros(env.wall_micros() + 10 * second);
        assert_eq!(clock.accept(theirs).await.unwrap_err().code(), ErrorCode::ClockSkew);
    }

    #[tokio::test]
    async fn who_has_given_no_stamp_may_hold_rows_all_the_same() {
        let (dir, env) = (tempfile::tempdir().unwrap(), env(&RealOptions::default()).unwrap());
        let clock = NodeClock::open(&env, dir.path(), SKEW_MAX_MS, false).await.unwrap();
        let row = Hlc::from_micros(env.wall_micros() + Duration::from_millis(SKEW_MAX_MS / 2).as_micros() as u64);
        clock.accept(row).await.unwrap();
        drop(clock);
        let clock = NodeClock::open(&env, dir.path(), SKEW_MAX_MS, false).await.unwrap();
        assert!(clock.ceiling() >= row);
    }
}
