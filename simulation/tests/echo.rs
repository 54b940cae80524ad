//! The world itself: crashes, partitions and replay, proved with actors that know nothing of it.

use std::sync::{Arc, Mutex};

use shoal_simulation::faults::Fault;
use shoal_simulation::run::{RunOptions, RunReport, Scenario, run, warm_up};

fn options(seed: u64) -> RunOptions {
    RunOptions { seed, scenario: Scenario::Echo, nodes: 3, seconds: 20, planted: None, faults: None }
}

fn passed(report: RunReport) -> RunReport {
    assert!(report.passed(), "{:?} {:?}\n{}", report.failure, report.violations, report.story.join("\n"));
    report
}

#[test]
fn the_same_seed_is_the_same_run_and_another_seed_another() {
    warm_up();
    let first: Vec<u128> = (1..=2).map(|seed| passed(run(&options(seed), None)).hash).collect();
    let second: Vec<u128> = (1..=2).rev().map(|seed| passed(run(&options(seed), None)).hash).collect();
    assert_eq!(first, second.into_iter().rev().collect::<Vec<_>>());
    assert!(first.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn a_run_with_its_faults_spelled_out_is_the_same_run() {
    warm_up();
    let drawn = passed(run(&options(5), None));
    assert!(!drawn.plan.is_empty());
    let spelled = RunOptions { faults: Some(drawn.plan.clone()), ..options(5) };
    let text = toml::to_string(&spelled).unwrap();
    assert_eq!(passed(run(&toml::from_str(&text).unwrap(), None)).hash, drawn.hash);
}

#[test]
fn crashes_and_partitions_happen_and_are_survived() {
    warm_up();
    let (mut crashes, mut broken, mut restarts) = (0, 0, 0);
    for seed in 10..14 {
        let report = passed(run(&options(seed), None));
        crashes += report.plan.iter().filter(|planned| matches!(planned.fault, Fault::Crash { .. })).count();
        let count = |what| report.operations.get(what).copied().unwrap_or(0);
        broken += count("calls broken") + count("calls timed out");
        restarts += count("restarts");
    }
    assert!(crashes > 0 && broken > 0 && restarts > 0, "{crashes} crashes, {broken} broken calls, {restarts} restarts");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_trace_is_what_was_hashed() {
    warm_up();
    let lines = Lines::default();
    let report = passed(run(&options(2), Some(Box::new(lines.clone()))));
    let text = lines.0.lock().unwrap().clone();
    assert_eq!(xxhash_rust::xxh3::xxh3_128(&text), report.hash);
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count() as u64, report.lines);
}
