//! What a kind of work in the background may take of a node, over all replicas together: so many at once, so many bytes in a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_kernel::Env;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Steps in a second of the budget, so that a wait is short.
const STEPS_PER_SECOND: u64 = 16;

/// A budget. Cheap to share.
pub(crate) struct Pace {
    env: Env,
    places: Arc<Semaphore>,
    bytes_per_second: u64,
    step_bytes_max: u64,
    /// When everything that was taken so far has been paid for.
    paid_at: Mutex<Duration>,
}

impl Pace {
    /// `bytes_per_second` of 0 is no limit.
    pub(crate) fn new(env: Env, places: usize, bytes_per_second: u64, step_bytes_max: u64) -> Self {
        let places = Arc::new(Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS)));
        Self { env, places, bytes_per_second, step_bytes_max, paid_at: Mutex::default() }
    }

    /// Waits for a place among those that are at it at once, in the order of asking. `None` only if there never will be one.
    pub(crate) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().acquire_owned().await.ok()
    }

    /// Bytes of one step.
    pub(crate) fn step_bytes(&self) -> u64 {
        match self.bytes_per_second {
            0 => self.step_bytes_max,
            rate => (rate / STEPS_PER_SECOND).clamp(1, self.step_bytes_max),
        }
    }

    /// Waits until so many bytes, and all that others took before, are within the budget. Gives the time waited.
    pub(crate) async fn pay(&self, bytes: u64) -> Duration {
        let wait = self.owe(bytes);
        if !wait.is_zero() {
            self.env.sleep(wait).await;
        }
        wait
    }

    fn owe(&self, bytes: u64) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let now = self.env.monotonic();
        let mut paid_at = self.paid_at.lock().unwrap_or_else(PoisonError::into_inner);
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.bytes_per_second);
        *paid_at = (*paid_at).max(now).saturating_add(Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)));
        paid_at.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use shoal_kernel::env::real::{RealOptions, env};

    use super::*;

    #[tokio::test]
    async fn all_who_take_share_one_budget() {
        let env = env(&RealOptions::default()).unwrap();
        let pace = Pace::new(env.clone(), 2, 1_000_000, 1 << 20);
        let begun = env.monotonic();
        let waits = [500_000, 1_500_000, 1_000_000].map(|bytes| pace.owe(bytes));
        let passed = env.monotonic() - begun;
        for (wait, seconds) in waits.into_iter().zip([0.5, 2.0, 3.0]) {
            let owed = Duration::from_secs_f64(seconds);
            assert!(wait <= owed && wait + passed >= owed, "{wait:?} of {owed:?}");
        }
        assert_eq!(pace.step_bytes(), 62_500);
        let unlimited = Pace::new(env, 0, 0, 1 << 20);
        assert_eq!((unlimited.owe(u64::MAX), unlimited.step_bytes()), (Duration::ZERO, 1 << 20));
        let place = unlimited.place().await;
        assert!(place.is_some() && unlimited.places.try_acquire().is_err(), "there is one place at least");
    }
}
