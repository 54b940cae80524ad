//! The tasks of one attempt on one node, pure: what still runs, when to report, when the coordinator is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_kernel::FragmentId;

/// Reports go out at most this often, unless something failed or all is done.
pub(crate) const REPORT_EVERY: Duration = Duration::from_millis(250);
/// How often a remote coordinator is asked whether the attempt still runs.
const ASK_EVERY: Duration = Duration::from_millis(2_000);
/// Unanswered questions in a row after which the coordinator counts as gone.
const MISSES_MAX: u32 = 3;
/// The coordinator ends a query at its deadline; this node waits a little longer before it does so by itself, so that the
/// client sees one reason.
const GRACE: Duration = Duration::from_millis(1_000);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A task has ended, well or not.
    Ended {
        /// Its fragment.
        fragment: FragmentId,
        /// Its number.
        task: u32,
        /// Whether it failed.
        failed: bool,
    },
    /// Time has passed.
    Tick,
    /// The coordinator's answer: `None` if it could not be reached.
    Answer(Option<bool>),
    /// The coordinator is down.
    CoordinatorDown,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Tell the coordinator how the tasks are doing.
    Report,
    /// Ask the coordinator whether the attempt still runs.
    Ask,
    /// Nobody wants these tasks any more: stop them and let go of everything.
    Abandon(&'static str),
}

/// The tasks.
#[derive(Debug)]
pub(crate) struct TasksCore {
    running: BTreeSet<(FragmentId, u32)>,
    deadline: Duration,
    // `None` where the coordinator is on this node: it cannot be gone while the node is there.
    asked_at: Option<Duration>,
    asking: bool,
    misses: u32,
    abandoned: bool,
}

impl TasksCore {
    /// `deadline` and `now` are monotonic times.
    pub(crate) fn new(
        tasks: impl IntoIterator<Item = (FragmentId, u32)>,
        remote: bool,
        now: Duration,
        deadline: Duration,
    ) -> Self {
        Self {
            running: tasks.into_iter().collect(),
            deadline,
            asked_at: remote.then_some(now),
            asking: false,
            misses: 0,
            abandoned: false,
        }
    }

    /// Takes an event.
    pub(crate) fn step(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        if self.abandoned {
            return Vec::new();
        }
        match event {
            Event::Ended { fragment, task, failed } => {
                let known = self.running.remove(&(fragment, task));
                if known && (failed || self.running.is_empty()) { vec![Effect::Report] } else { Vec::new() }
            }
            Event::Tick => {
                if now >= self.deadline.saturating_add(GRACE) {
                    return self.abandon("its deadline has passed");
                }
                let mut effects = Vec::new();
                if !self.running.is_empty() {
                    effects.push(Effect::Report);
                }
                if !self.asking
                    && let Some(asked_at) = &mut self.asked_at
                    && now.saturating_sub(*asked_at) >= ASK_EVERY
                {
                    *asked_at = now;
                    self.asking = true;
                    effects.push(Effect::Ask);
                }
                effects
            }
            Event::Answer(answer) => {
                self.asking = false;
                match answer {
                    Some(true) => self.misses = 0,
                    Some(false) => return self.abandon("its coordinator has moved on"),
                    None => self.misses += 1,
                }
                if self.misses >= MISSES_MAX { self.abandon("its coordinator does not answer") } else { Vec::new() }
            }
            Event::CoordinatorDown => self.abandon("its coordinator is down"),
        }
    }

    fn abandon(&mut self, why: &'static str) -> Vec<Effect> {
        self.abandoned = true;
        vec![Effect::Abandon(why)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: FragmentId = FragmentId(0);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn tasks(remote: bool) -> TasksCore {
        TasksCore::new([(F, 0), (F, 1)], remote, ms(0), ms(60_000))
    }

    fn ended(task: u32, failed: bool) -> Event {
        Event::Ended { fragment: F, task, failed }
    }

    #[test]
    fn reports_failures_and_the_end_at_once() {
        let mut core = tasks(false);
        assert!(core.step(ended(0, false), ms(1)).is_empty());
        assert!(core.step(ended(0, false), ms(1)).is_empty(), "counted once");
        assert_eq!(core.step(ended(1, false), ms(2)), vec![Effect::Report]);
        assert!(core.step(Event::Tick, ms(250)).is_empty(), "nothing new to say");
        assert_eq!(tasks(false).step(ended(1, true), ms(1)), vec![Effect::Report]);
    }

    #[test]
    fn asks_a_remote_coordinator_and_gives_up_when_it_is_silent() {
        let mut core = tasks(true);
        assert_eq!(core.step(Event::Tick, ms(250)), vec![Effect::Report]);
        let mut now = 0;
        for miss in 1..=3 {
            now += 2_000;
            assert_eq!(core.step(Event::Tick, ms(now)), vec![Effect::Report, Effect::Ask]);
            assert_eq!(core.step(Event::Tick, ms(now + 1_999)), vec![Effect::Report], "one question at a time");
            let effects = core.step(Event::Answer(None), ms(now + 1_999));
            assert_eq!(effects.is_empty(), miss < 3, "{effects:?}");
            now += 250;
        }
        assert!(core.step(Event::CoordinatorDown, ms(now)).is_empty(), "abandoned once");
    }

    #[test]
    fn orphans_die() {
        assert_eq!(tasks(true).step(Event::CoordinatorDown, ms(1)), vec![Effect::Abandon("its coordinator is down")]);
        assert_eq!(
            tasks(true).step(Event::Answer(Some(false)), ms(1)),
            vec![Effect::Abandon("its coordinator has moved on")]
        );
        assert_eq!(tasks(false).step(Event::Tick, ms(60_500)), vec![Effect::Report]);
        assert_eq!(tasks(false).step(Event::Tick, ms(61_000)), vec![Effect::Abandon("its deadline has passed")]);
    }

    #[test]
    fn an_answer_clears_earlier_misses() {
        let mut core = tasks(true);
        for _ in 0..10 {
            assert!(core.step(Event::Answer(None), ms(1)).is_empty());
            assert!(core.step(Event::Answer(Some(true)), ms(1)).is_empty());
        }
    }
}
