//! How much a replica has been asked for lately.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Over this time: a table that is asked once an hour does not move, one that is asked all day does.
const WINDOW: Duration = Duration::from_secs(10 * 60);

/// Bytes that queries have read within [`WINDOW`], about: of the time before the window that runs as many count as if they had been
/// read evenly.
#[derive(Debug, Default)]
pub(crate) struct Asked(Mutex<Windows>);

#[derive(Debug, Default, Clone, Copy)]
struct Windows {
    /// The number of the one that runs, of the monotonic clock.
    number: u128,
    bytes: u64,
    before: u64,
}

impl Asked {
    /// Notes bytes that have been read, at a time of the monotonic clock.
    pub(crate) fn add(&self, bytes: u64, now: Duration) {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *windows = windows.at(now);
        windows.bytes = windows.bytes.saturating_add(bytes);
    }

    /// How many bytes count at that time.
    pub(crate) fn bytes(&self, now: Duration) -> u64 {
        let windows = self.0.lock().unwrap_or_else(PoisonError::into_inner).at(now);
        let (passed, window) = (now.as_millis() % WINDOW.as_millis(), WINDOW.as_millis());
        let before = u128::from(windows.before) * (window - passed) / window;
        windows.bytes.saturating_add(u64::try_from(before).unwrap_or(u64::MAX))
    }
}

impl Windows {
    fn at(self, now: Duration) -> Self {
        let number = now.as_millis() / WINDOW.as_millis();
        match number.saturating_sub(self.number) {
            0 => self,
            1 => Self { number, bytes: 0, before: self.bytes },
            _ => Self { number, ..Self::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    #[test]
    fn what_was_read_is_forgotten_in_time() {
        let asked = Asked::default();
        assert_eq!(asked.bytes(minutes(9)), 0);
        asked.add(1_000, minutes(11));
        assert_eq!(
            [11, 19, 20, 25, 29, 30, 10_000].map(|now| asked.bytes(minutes(now))),
            [1_000, 1_000, 1_000, 500, 100, 0, 0]
        );
        asked.add(10, minutes(25));
        assert_eq!([25, 30, 35, 40].map(|now| asked.bytes(minutes(now))), [510, 10, 5, 0]);
    }

    #[test]
    fn what_is_read_evenly_counts_the_same_all_the_time() {
        let asked = Asked::default();
        for second in 0..3_600 {
            asked.add(1_000, Duration::from_secs(second));
            let counts = asked.bytes(Duration::from_secs(second));
            assert!(second < 600 || (599_000..=601_000).contains(&counts), "{counts} after {second} s");
        }
    }

    #[test]
    fn it_has_an_end() {
        let asked = Asked::default();
        asked.add(u64::MAX, Duration::ZERO);
        asked.add(u64::MAX, minutes(10));
        assert_eq!(asked.bytes(minutes(10)), u64::MAX);
        assert_eq!(asked.bytes(minutes(20)), u64::MAX);
        assert_eq!(asked.bytes(minutes(30)), 0);
    }
}
