//! What many seeds came to.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use serde::{Serialize, Serializer};
use shoal_kernel::Rare;
use shoal_simulation::run::{Counts, RunOptions, RunReport, Violation};

use crate::with_its_faults;

/// From so many seeds of the swarm on, so many percent of the rare states must have been reached.
const FLOORS: [(u64, usize); 2] = [(3_000, 100), (1_000, 90)];

/// The sum of their reports; also the form of `--report`.
#[derive(Serialize)]
pub struct Totals {
    seeds: u64,
    passed: u64,
    #[serde(rename = "virtual_seconds", serialize_with = "seconds")]
    virtual_micros: u64,
    #[serde(rename = "cpu_seconds", serialize_with = "seconds")]
    cpu_micros: u64,
    #[serde(rename = "wall_seconds", serialize_with = "since")]
    started: Instant,
    faults: u64,
    operations: Counts,
    sometimes: BTreeMap<Cow<'static, str>, Reached>,
    failures: Vec<Failure>,
}

/// How often a rare state was reached, and by how many seeds.
#[derive(Default, Serialize)]
struct Reached {
    times: u64,
    seeds: u64,
}

/// A seed that failed, with all that is needed to run it again.
#[derive(Serialize)]
struct Failure {
    run: RunOptions,
    hash: String,
    failure: Option<String>,
    violations: Vec<Violation>,
}

fn seconds<S: Serializer>(micros: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*micros as f64 / 1e6)
}

fn since<S: Serializer>(started: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(started.elapsed().as_secs_f64())
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            seeds: 0,
            passed: 0,
            virtual_micros: 0,
            cpu_micros: 0,
            started: Instant::now(),
            faults: 0,
            operations: Counts::new(),
            sometimes: BTreeMap::new(),
            failures: Vec::new(),
        }
    }
}

impl Totals {
    pub fn add(&mut self, options: &RunOptions, report: &RunReport) {
        self.seeds += 1;
        self.passed += u64::from(report.passed());
        self.virtual_micros += report.virtual_micros;
        self.cpu_micros += report.cpu_micros;
        self.faults += report.plan.len() as u64;
        for (what, times) in &report.operations {
            *self.operations.entry(what.clone()).or_default() += times;
        }
        for (what, times) in &report.sometimes {
            let reached = self.sometimes.entry(what.clone()).or_default();
            reached.times += times;
            reached.seeds += 1;
        }
        if !report.passed() {
            self.failures.push(Failure {
                run: with_its_faults(options, report),
                hash: report.hash.clone(),
                failure: report.failure.clone(),
                violations: report.violations.clone(),
            });
        }
    }

    /// Whether too few of the rare states were reached for so many seeds; if so, which were not.
    pub fn too_tame(&self) -> Option<String> {
        let (_, share) = FLOORS.into_iter().find(|(seeds, _)| self.seeds >= *seeds)?;
        let missing: Vec<&str> =
            Rare::ALL.iter().map(|rare| rare.as_str()).filter(|rare| !self.sometimes.contains_key(*rare)).collect();
        let reached = Rare::ALL.len() - missing.len();
        (reached * 100 < Rare::ALL.len() * share).then(|| {
            let (all, missing) = (Rare::ALL.len(), missing.join("\n  "));
            format!("{reached} of {all} rare states were reached, {share} % must be; missing:\n  {missing}")
        })
    }

    /// For the line under a progress bar.
    pub fn short(&self) -> String {
        let hours = self.virtual_micros as f64 / 3.6e9;
        format!("{} failed, {} faults, {hours:.1} virtual hours", self.seeds - self.passed, self.faults)
    }

    /// For the end.
    pub fn text(&self) -> String {
        let speed = self.virtual_micros as f64 / self.cpu_micros.max(1) as f64;
        let (passed, seeds, faults) = (self.passed, self.seeds, self.faults);
        let wall = self.started.elapsed().as_secs_f64();
        let mut text = format!(
            "\n{passed} of {seeds} seeds passed, with {faults} faults, in {wall:.0} s; {speed:.0} virtual seconds per CPU second\noperations:\n"
        );
        text.extend(self.operations.iter().map(|(what, times)| format!("  {times:>8}  {what}\n")));
        text.push_str("sometimes:\n");
        for (what, Reached { times, seeds }) in &self.sometimes {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {times:>8}  {what} (in {seeds} seeds)");
        }
        text.truncate(text.trim_end().len());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many seeds, which together reach all rare states but so many.
    fn too_tame(seeds: u64, missing: usize) -> Option<String> {
        let reached = Rare::ALL.iter().skip(missing).map(|rare| (rare.as_str().into(), Reached::default())).collect();
        Totals { seeds, sometimes: reached, ..Totals::default() }.too_tame()
    }

    #[test]
    fn a_thousand_seeds_must_reach_most_rare_states_and_three_thousand_all() {
        let (some, many) = (Rare::ALL.len() / 10, Rare::ALL.len() / 10 + 1);
        assert_eq!(too_tame(999, Rare::ALL.len()), None);
        assert_eq!(too_tame(1_000, some), None);
        assert!(too_tame(1_000, many).is_some());
        assert_eq!(too_tame(2_999, some), None);
        assert_eq!(too_tame(3_000, 0), None);
        let missing = too_tame(3_000, 1).unwrap();
        assert!(missing.contains(Rare::ALL[0].as_str()), "{missing}");
    }

    #[test]
    fn faults_of_a_run_that_did_not_end_are_not_known() {
        let mut totals = Totals::default();
        let violation = || Violation { invariant: "wanted".into(), evidence: String::new() };
        let killed = RunReport { violations: vec![violation()], ..RunReport::default() };
        totals.add(&RunOptions::default(), &killed);
        totals.add(&RunOptions::default(), &RunReport { hash: "0".to_owned(), ..killed });
        let faults: Vec<_> = totals.failures.iter().map(|failure| failure.run.faults.clone()).collect();
        assert_eq!(faults, [None, Some(Vec::new())]);
    }
}
