//! How well this node itself does. One whose process stands still misses answers and objections that came in time, and would blame
//! others for it; so the worse it does, the longer it waits before it believes that somebody is down.
//!
//! Source: Dadgar, Phillips and Currey, "Lifeguard: Local Health Awareness for More Accurate Failure Detection" (2018): "local health
//! aware suspicion". What counts there are probes that fail and negative answers of those who were asked to help; foca has no such
//! answers, and without them a crash of somebody else would count against this node. Here its own timers count, which come late only if
//! this process, its core or its disk does, and that others suspect it. A probe that fails after it has recovered lets the suspect down
//! as soon as ever.

use std::time::Duration;

/// The worst that a node may think of itself; it then waits four times as long.
pub(super) const SCORE_MAX: u32 = 3;

/// The judgement of a node about itself: zero is well.
#[derive(Debug)]
pub(super) struct Health {
    score: u32,
    /// After so long without anything that speaks against it the score is one lower.
    period: Duration,
    better_at: Duration,
    /// Its life and incarnation that were last suspected: many tell it.
    suspected: Option<(u64, u16)>,
}

impl Health {
    pub(super) fn new(period: Duration) -> Self {
        Self { score: 0, period, better_at: Duration::ZERO, suspected: None }
    }

    /// Timers are late by so much. Whether the score is another.
    pub(super) fn woke(&mut self, late: Duration, now: Duration) -> bool {
        let before = self.score;
        if late >= self.period / 2 {
            let periods = late.as_nanos().div_ceil(self.period.as_nanos().max(1));
            self.worse(u32::try_from(periods).unwrap_or(SCORE_MAX), now);
        } else if now >= self.better_at {
            self.score = self.score.saturating_sub(1);
            self.better_at = now + self.period;
        }
        self.score != before
    }

    /// Somebody suspects this node in an incarnation of a life. Whether the score is another.
    pub(super) fn suspected(&mut self, generation: u64, incarnation: u16, now: Duration) -> bool {
        let (before, about) = (self.score, Some((generation, incarnation)));
        if about > self.suspected {
            self.suspected = about;
            self.worse(1, now);
        }
        self.score != before
    }

    fn worse(&mut self, by: u32, now: Duration) {
        self.score = self.score.saturating_add(by).min(SCORE_MAX);
        self.better_at = now + self.period;
    }

    /// From 0 to [`SCORE_MAX`].
    pub(super) fn score(&self) -> u32 {
        self.score
    }

    /// How long a suspicion lasts that lasts so long where all is well.
    pub(super) fn suspicion(&self, well: Duration) -> Duration {
        well * (1 + self.score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(300);

    #[test]
    fn late_timers_and_suspicions_make_it_worse_and_quiet_periods_better() {
        let ms = Duration::from_millis;
        let mut health = Health::new(PERIOD);
        assert!(!health.woke(ms(20), ms(1_000)), "a little late is nothing");
        assert!(health.woke(ms(200), ms(1_300)));
        assert_eq!((health.score(), health.suspicion(ms(800))), (1, ms(1_600)));
        assert!(health.woke(ms(5_000), ms(6_300)));
        assert_eq!((health.score(), health.suspicion(ms(800))), (3, ms(3_200)), "there is a worst");
        let course = [6_400, 6_600, 6_700, 6_900, 7_200, 8_000].map(|now| {
            health.woke(ms(0), ms(now));
            health.score()
        });
        assert_eq!(course, [3, 2, 2, 1, 0, 0]);
        assert!(health.suspected(7, 0, ms(9_000)));
        assert!(!health.suspected(7, 0, ms(9_100)), "the same suspicion again is no news");
        assert!(!health.suspected(6, 9, ms(9_100)), "nor is one of a former life");
        assert!(health.suspected(7, 1, ms(9_200)));
        assert_eq!(health.score(), 2);
    }
}
