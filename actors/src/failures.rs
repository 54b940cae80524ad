//! Failures in a row of something that is started again, and how long to wait before the next start.

use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What has run for so long without a failure is well again.
pub(crate) const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// The failures of one thing. Times are monotonic.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    in_a_row: u32,
    runs_since: Option<Duration>,
}

impl Failures {
    /// It runs. Until it does, time is no sign of health: to be opened may take long.
    pub(crate) fn runs(&mut self, now: Duration) {
        self.runs_since = Some(now);
    }

    /// It has failed.
    pub(crate) fn add(&mut self, now: Duration) {
        if self.runs_since.take().is_some_and(|since| now.saturating_sub(since) > FORGIVEN_AFTER) {
            self.in_a_row = 0;
        }
        self.in_a_row += 1;
    }

    /// So often in a row.
    pub(crate) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// It is well again.
    pub(crate) fn forget(&mut self) {
        self.in_a_row = 0;
    }

    /// How long to wait before the next start.
    pub(crate) fn pause(&self) -> Duration {
        PAUSE_MIN.saturating_mul(1 << self.in_a_row.saturating_sub(1).min(16)).min(PAUSE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_a_minute_of_health_begins_anew() {
        let (mut failures, second) = (Failures::default(), Duration::from_secs(1));
        let pauses: Vec<u128> = (0..11)
            .map(|_| {
                failures.add(second);
                failures.pause().as_millis()
            })
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000]);
        // It took long to start, and failed at once.
        failures.runs(1_000 * second);
        failures.add(1_001 * second);
        assert_eq!(failures.in_a_row(), 12);
        failures.runs(2_000 * second);
        failures.add(2_061 * second);
        assert_eq!((failures.in_a_row(), failures.pause()), (1, PAUSE_MIN));
    }
}
