//! Makes a failing run small: fewer faults, then fewer operations, then fewer nodes, rows and keys, then shorter, as long as the same promise
//! is broken.
//!
//! Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002): lists shrink by delta debugging.
//! Every choice of a run has a stream of its own, so what is left out moves nothing else by itself; what the nodes do may
//! of course change with it, and then the run is simply tried and kept or not.
#![allow(clippy::disallowed_methods, reason = "tries out runs against the real clock; nothing here is simulated")]

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::apart::{EVERY_RUN_ENDS, RUN_TIME_MAX};
use crate::faults::{Fault, PlannedFault};
use crate::run::{RunOptions, RunReport};

/// Virtual time that goes on after the last fault and the last operation.
const TAIL_SECONDS: u64 = 1;
/// A fault is not made shorter than this.
const FAULT_MS_MIN: u64 = 100;

/// How far it came.
#[derive(Debug, Clone)]
pub struct Minimized {
    /// The smallest run found that still fails.
    pub run: RunOptions,
    /// What it reports.
    pub report: RunReport,
    /// Runs tried.
    pub tried: u64,
    /// Nothing smaller was left to try; otherwise the time was over, or an end was asked for.
    pub exhausted: bool,
}

/// Makes a run smaller that broke a promise and came to its end. `attempt` carries a run out that may take so much wall time,
/// on as many threads at once as `jobs`. If there is no time to try anything, the run is given as it is, with its faults spelled
/// out.
///
/// # Errors
/// The run, with its faults and operations spelled out, breaks none of its promises any more: gives what it reported.
pub fn minimize(
    run: &RunOptions,
    report: &RunReport,
    limits: Limits<'_>,
    attempt: impl Fn(&RunOptions, Duration) -> RunReport + Sync,
    mut tell: impl FnMut(&RunOptions, u64),
) -> Result<Minimized, Box<RunReport>> {
    let promises = report.violations.iter().map(|violation| violation.invariant.to_string()).collect();
    let spelled_out = RunOptions {
        faults: Some(report.plan.clone()),
        operations: Some(report.begun.clone()),
        nodes: Some(run.nodes()),
        ..run.clone()
    };
    let mut search = Search {
        promises,
        limits,
        attempt: &attempt,
        tell: &mut tell,
        run: spelled_out.clone(),
        report: RunReport::default(),
        tried: 0,
    };
    if search.first_that_fails(vec![spelled_out]).is_none() {
        let cut_off = search.report.violations.iter().any(|violation| violation.invariant == EVERY_RUN_ENDS);
        if search.tried > 0 && !cut_off {
            return Err(Box::new(search.report));
        }
        let run = RunOptions { faults: Some(report.plan.clone()), ..run.clone() };
        return Ok(Minimized { run, report: report.clone(), tried: search.tried, exhausted: false });
    }
    let mut exhausted = false;
    while !search.limits.are_reached() && !exhausted {
        let before = search.run.clone();
        search.fewer_faults();
        search.fewer_operations();
        search.fewer_nodes();
        search.narrower();
        search.shorter();
        exhausted = search.run == before && !search.limits.are_reached();
    }
    Ok(Minimized { run: search.run, report: search.report, tried: search.tried, exhausted })
}

/// What a search may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// No run begins after this.
    pub until: Instant,
    /// Wall time of an ordinary run: one that begins in time is not killed for coming to its end after it.
    pub ordinary: Duration,
    /// Runs at once.
    pub jobs: NonZeroUsize,
    /// Set by whoever asks for an end: no run begins any more.
    pub stop: &'a AtomicBool,
}

impl Limits<'_> {
    fn are_reached(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || Instant::now() >= self.until
    }

    /// Wall time that a run may take which begins now.
    pub fn time_of_a_run(&self) -> Duration {
        let left = self.until.saturating_duration_since(Instant::now());
        left.saturating_add(self.ordinary).min(RUN_TIME_MAX)
    }
}

struct Search<'a, A> {
    promises: Vec<String>,
    limits: Limits<'a>,
    attempt: &'a A,
    tell: &'a mut dyn FnMut(&RunOptions, u64),
    /// The smallest so far.
    run: RunOptions,
    report: RunReport,
    tried: u64,
}

impl<A: Fn(&RunOptions, Duration) -> RunReport + Sync> Search<'_, A> {
    fn is_wanted(&self, report: &RunReport) -> bool {
        report.failure.is_none()
            && report.violations.iter().any(|violation| self.promises.iter().any(|name| *name == violation.invariant))
    }

    /// Tries the candidates in order, several at a time; takes the first that still fails.
    fn first_that_fails(&mut self, candidates: Vec<RunOptions>) -> Option<usize> {
        for (round, some) in candidates.chunks(self.limits.jobs.get()).enumerate() {
            if self.limits.are_reached() {
                return None;
            }
            let (attempt, time) = (self.attempt, self.limits.time_of_a_run());
            let reports: Vec<RunReport> = std::thread::scope(|scope| {
                let running: Vec<_> = some.iter().map(|run| scope.spawn(move || attempt(run, time))).collect();
                let ended = running.into_iter().map(|thread| thread.join().unwrap_or_default());
                ended.collect()
            });
            self.tried += reports.len() as u64;
            for (place, report) in reports.into_iter().enumerate() {
                if self.is_wanted(&report) {
                    self.run = some[place].clone();
                    self.report = report;
                    (self.tell)(&self.run, self.tried);
                    return Some(round * self.limits.jobs.get() + place);
                }
                if self.report.hash.is_empty() {
                    self.report = report;
                }
            }
        }
        None
    }

    fn fewer_faults(&mut self) {
        self.shrink(
            |run| run.faults.clone().unwrap_or_default(),
            |run, faults| RunOptions { faults: Some(faults), ..run.clone() },
        );
    }

    fn fewer_operations(&mut self) {
        self.shrink(
            |run| run.operations.clone().unwrap_or_default(),
            |run, operations| RunOptions { operations: Some(operations), ..run.clone() },
        );
    }

    /// Delta debugging over one list: leaves out ever smaller parts, and begins anew wherever one could go.
    fn shrink<T: Clone>(
        &mut self,
        list: impl Fn(&RunOptions) -> Vec<T>,
        with: impl Fn(&RunOptions, Vec<T>) -> RunOptions,
    ) {
        let mut parts = 1;
        loop {
            let whole = list(&self.run);
            if whole.is_empty() || self.limits.are_reached() {
                return;
            }
            parts = parts.min(whole.len());
            let size = whole.len().div_ceil(parts);
            let without = |start: usize| {
                let mut rest = whole[..start].to_vec();
                rest.extend_from_slice(&whole[(start + size).min(whole.len())..]);
                with(&self.run, rest)
            };
            let candidates: Vec<RunOptions> = (0..whole.len()).step_by(size).map(without).collect();
            match self.first_that_fails(candidates) {
                Some(_) => parts = parts.saturating_sub(1).max(1),
                None if size == 1 => return,
                None => parts *= 2,
            }
        }
    }

    fn fewer_nodes(&mut self) {
        let nodes = self.run.nodes();
        let smaller = (1..nodes).map(|nodes| RunOptions {
            nodes: Some(nodes),
            faults: self.run.faults.as_ref().map(|faults| faults.iter().filter_map(|it| among(it, nodes)).collect()),
            ..self.run.clone()
        });
        let candidates = smaller.collect();
        self.first_that_fails(candidates);
    }

    /// Fewer rows in each write, and fewer keys.
    fn narrower(&mut self) {
        let rows = [1, 2].into_iter().map(|rows| RunOptions { rows_max: Some(rows), ..self.run.clone() });
        let candidates = rows.collect();
        self.first_that_fails(candidates);
        let keys = [1, 2, 4, 8].into_iter().map(|keys| RunOptions { keys_max: Some(keys), ..self.run.clone() });
        let candidates = keys.collect();
        self.first_that_fails(candidates);
    }

    /// Ends soon after the last thing that is asked for; then each fault for half as long.
    fn shorter(&mut self) {
        let ends = |fault: &PlannedFault| (fault.at_ms + fault.for_ms).div_ceil(1_000) + TAIL_SECONDS;
        let last = self.run.faults.iter().flatten().map(ends).max().unwrap_or(TAIL_SECONDS);
        let now = self.run.seconds();
        let shorter = [last, now / 2, now * 3 / 4].into_iter().filter(|seconds| (last.min(now)..now).contains(seconds));
        let candidates = shorter.map(|seconds| RunOptions { seconds: Some(seconds), ..self.run.clone() }).collect();
        self.first_that_fails(candidates);
        for place in 0..self.run.faults.as_ref().map_or(0, Vec::len) {
            loop {
                let mut run = self.run.clone();
                let Some(fault) = run.faults.as_mut().and_then(|faults| faults.get_mut(place)) else { break };
                fault.for_ms /= 2;
                if fault.for_ms < FAULT_MS_MIN || self.first_that_fails(vec![run]).is_none() {
                    break;
                }
            }
        }
    }
}

/// The fault as it is in a smaller cluster; none if it happens to nodes that are no longer there.
fn among(planned: &PlannedFault, nodes: u16) -> Option<PlannedFault> {
    let fault = match &planned.fault {
        Fault::Partition { group } => {
            let group: Vec<u16> = group.iter().copied().filter(|host| *host < nodes).collect();
            (!group.is_empty() && group.len() < usize::from(nodes)).then_some(Fault::Partition { group })?
        }
        Fault::OneWay { from: one, to: other } | Fault::Reset { one, other } | Fault::Apart { one, other } => {
            (*one < nodes && *other < nodes).then(|| planned.fault.clone())?
        }
        Fault::Weather { host, .. }
        | Fault::Crash { host, .. }
        | Fault::CrashInJob { host, .. }
        | Fault::Pause { host }
        | Fault::Skew { host, .. }
        | Fault::Drift { host, .. }
        | Fault::Damage { host, .. }
        | Fault::Wipe { host }
        | Fault::Join { host }
        | Fault::Drain { host }
        | Fault::Decommission { host }
        | Fault::Stop { host }
        | Fault::Disk { host, .. }
        | Fault::DiskFull { host, .. } => (*host < nodes).then(|| planned.fault.clone())?,
        Fault::Blackout { .. } | Fault::Storm | Fault::PausedBalance | Fault::Backup { .. } => planned.fault.clone(),
    };
    Some(PlannedFault { fault, ..planned.clone() })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::cluster::OperationId;
    use crate::run::Violation;

    fn pause(host: u16, at_ms: u64) -> PlannedFault {
        PlannedFault { at_ms, for_ms: 4_000, fault: Fault::Pause { host } }
    }

    /// Fails if node 1 pauses, and client 2 does its operations 7 and 30.
    fn attempt(run: &RunOptions, _time: Duration) -> RunReport {
        let faults = run.faults.clone().unwrap_or_default();
        let operations = run.operations.clone().unwrap_or_default();
        let does = |number| operations.contains(&OperationId { client: 2, number });
        let pauses = faults.iter().any(|planned| planned.fault == Fault::Pause { host: 1 });
        let mut report = RunReport { hash: "0".to_owned(), ..RunReport::default() };
        if pauses && does(7) && does(30) {
            report.violations.push(Violation { invariant: Cow::Borrowed("wanted"), evidence: String::new() });
        } else if pauses {
            report.violations.push(Violation { invariant: Cow::Borrowed("another"), evidence: String::new() });
        }
        report
    }

    fn limits(stop: &AtomicBool) -> Limits<'_> {
        let until = Instant::now() + Duration::from_secs(60);
        Limits { until, ordinary: Duration::from_secs(1), jobs: NonZeroUsize::MIN, stop }
    }

    /// Twenty faults and two hundred operations.
    fn failing() -> (RunOptions, RunReport) {
        let plan = (0..20).map(|n| pause(n % 4, u64::from(n) * 1_000)).collect();
        let begun = (0..200).map(|n| OperationId { client: n % 4, number: n / 4 }).collect();
        let violations = vec![Violation { invariant: Cow::Borrowed("wanted"), evidence: String::new() }];
        let report = RunReport { hash: "1".to_owned(), plan, begun, violations, ..RunReport::default() };
        (RunOptions { nodes: Some(4), seconds: Some(60), ..RunOptions::default() }, report)
    }

    #[test]
    fn only_what_matters_is_left() {
        let (run, report) = failing();
        let small = minimize(&run, &report, limits(&AtomicBool::new(false)), attempt, |_, _| {}).unwrap();
        assert!(small.exhausted);
        let faults = small.run.faults.clone().unwrap();
        assert_eq!(faults.iter().map(|planned| &planned.fault).collect::<Vec<_>>(), [&Fault::Pause { host: 1 }]);
        assert!(faults[0].for_ms < 2 * FAULT_MS_MIN);
        let left: Vec<u64> = small.run.operations.clone().unwrap().iter().map(|id| id.number).collect();
        assert_eq!(left, [7, 30]);
        assert_eq!(small.run.nodes, Some(2));
        assert!(small.run.seconds() < 60);
    }

    #[test]
    fn a_run_that_does_not_fail_again_is_given_back() {
        let mut report = RunReport::default();
        report.violations.push(Violation { invariant: Cow::Borrowed("wanted"), evidence: String::new() });
        let run = RunOptions::default();
        let stop = AtomicBool::new(false);
        assert!(minimize(&run, &report, limits(&stop), attempt, |_, _| {}).unwrap_err().violations.is_empty());
    }

    #[test]
    fn whoever_asks_for_an_end_gets_the_smallest_so_far() {
        let (run, report) = failing();
        let stop = AtomicBool::new(false);
        let told = |_: &RunOptions, tried| stop.store(tried >= 4, Ordering::Relaxed);
        let small = minimize(&run, &report, limits(&stop), attempt, told).unwrap();
        assert!(!small.exhausted);
        assert!((4..20).contains(&small.tried), "{}", small.tried);
        assert!(small.run.faults.is_some_and(|faults| faults.len() < 20));
    }

    #[test]
    fn without_time_the_run_is_given_as_it_is() {
        let (run, report) = failing();
        let stop = AtomicBool::new(true);
        let small = minimize(&run, &report, limits(&stop), attempt, |_, _| {}).unwrap();
        assert_eq!((small.tried, small.exhausted, &small.report.hash), (0, false, &report.hash));
        assert_eq!(small.run, RunOptions { faults: Some(report.plan.clone()), ..run.clone() });
        // The same if the first attempt is cut off.
        let cut_off = |_: &RunOptions, _| {
            let violation = Violation { invariant: EVERY_RUN_ENDS.into(), evidence: String::new() };
            RunReport { violations: vec![violation], ..RunReport::default() }
        };
        let small = minimize(&run, &report, limits(&AtomicBool::new(false)), cut_off, |_, _| {}).unwrap();
        assert_eq!((small.tried, small.run.operations), (1, None));
    }

    #[test]
    fn a_run_gets_what_is_left_and_an_ordinary_one_more() {
        let stop = AtomicBool::new(false);
        let over = Limits { until: Instant::now(), ..limits(&stop) };
        assert_eq!(over.time_of_a_run(), over.ordinary);
        let long = Limits { until: Instant::now() + 2 * RUN_TIME_MAX, ..limits(&stop) };
        assert_eq!(long.time_of_a_run(), RUN_TIME_MAX);
    }
}
