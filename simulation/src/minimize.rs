//! Makes a failing run small: fewer faults, then fewer operations, then fewer nodes, then shorter, as long as the same promise
//! is broken.
//!
//! Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002): lists shrink by delta debugging.
//! Every choice of a run has a stream of its own, so what is left out moves nothing else by itself; what the nodes do may
//! of course change with it, and then the run is simply tried and kept or not.
#![allow(clippy::disallowed_methods, reason = "tries out runs against the real clock; nothing here is simulated")]

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

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
    /// Nothing smaller was left to try; otherwise the time was over.
    pub exhausted: bool,
}

/// Makes a run smaller that broke a promise. `attempt` carries a run out, on as many threads at once as `jobs`.
///
/// # Errors
/// The run, with its faults and operations spelled out, breaks none of its promises any more: gives what it reported.
pub fn minimize(
    run: &RunOptions,
    report: &RunReport,
    limits: Limits,
    attempt: impl Fn(&RunOptions) -> RunReport + Sync,
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
        until: Instant::now() + limits.time,
        jobs: limits.jobs,
        attempt: &attempt,
        tell: &mut tell,
        run: spelled_out.clone(),
        report: RunReport::default(),
        tried: 0,
    };
    match search.first_that_fails(vec![spelled_out]) {
        Some(_) => {}
        None => return Err(Box::new(search.report)),
    }
    let mut exhausted = false;
    while !search.out_of_time() && !exhausted {
        let before = search.run.clone();
        search.fewer_faults();
        search.fewer_operations();
        search.fewer_nodes();
        search.shorter();
        exhausted = search.run == before && !search.out_of_time();
    }
    Ok(Minimized { run: search.run, report: search.report, tried: search.tried, exhausted })
}

/// What a search may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall time.
    pub time: Duration,
    /// Runs at once.
    pub jobs: NonZeroUsize,
}

struct Search<'a, A> {
    promises: Vec<String>,
    until: Instant,
    jobs: NonZeroUsize,
    attempt: &'a A,
    tell: &'a mut dyn FnMut(&RunOptions, u64),
    /// The smallest so far.
    run: RunOptions,
    report: RunReport,
    tried: u64,
}

impl<A: Fn(&RunOptions) -> RunReport + Sync> Search<'_, A> {
    fn out_of_time(&self) -> bool {
        Instant::now() >= self.until
    }

    fn is_wanted(&self, report: &RunReport) -> bool {
        report.failure.is_none()
            && report.violations.iter().any(|violation| self.promises.iter().any(|name| *name == violation.invariant))
    }

    /// Tries the candidates in order, several at a time; takes the first that still fails.
    fn first_that_fails(&mut self, candidates: Vec<RunOptions>) -> Option<usize> {
        for (round, some) in candidates.chunks(self.jobs.get()).enumerate() {
            if self.out_of_time() {
                return None;
            }
            let attempt = self.attempt;
            let reports: Vec<RunReport> = std::thread::scope(|scope| {
                let running: Vec<_> = some.iter().map(|run| scope.spawn(move || attempt(run))).collect();
                let ended = running.into_iter().map(|thread| thread.join().unwrap_or_default());
                ended.collect()
            });
            self.tried += reports.len() as u64;
            for (place, report) in reports.into_iter().enumerate() {
                if self.is_wanted(&report) {
                    self.run = some[place].clone();
                    self.report = report;
                    (self.tell)(&self.run, self.tried);
                    return Some(round * self.jobs.get() + place);
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
            if whole.is_empty() || self.out_of_time() {
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
    fn attempt(run: &RunOptions) -> RunReport {
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

    fn limits() -> Limits {
        Limits { time: Duration::from_secs(60), jobs: NonZeroUsize::MIN }
    }

    #[test]
    fn only_what_matters_is_left() {
        let mut report =
            RunReport { plan: (0..20).map(|n| pause(n % 4, u64::from(n) * 1_000)).collect(), ..RunReport::default() };
        report.begun = (0..200).map(|n| OperationId { client: n % 4, number: n / 4 }).collect();
        report.violations.push(Violation { invariant: Cow::Borrowed("wanted"), evidence: String::new() });
        let run = RunOptions { nodes: Some(4), seconds: Some(60), ..RunOptions::default() };
        let small = minimize(&run, &report, limits(), attempt, |_, _| {}).unwrap();
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
        assert!(minimize(&run, &report, limits(), attempt, |_, _| {}).unwrap_err().violations.is_empty());
    }
}
