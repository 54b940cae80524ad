//! The world itself: crashes, partitions and replay, proved with actors that know nothing of it.
#![allow(clippy::disallowed_methods, reason = "reads the trace that the program has written to a real file")]

use std::path::Path;

use shoal_simulation::apart;
use shoal_simulation::faults::Fault;
use shoal_simulation::run::{RunOptions, RunReport, Subject};

fn run(options: &RunOptions, trace: Option<&Path>) -> RunReport {
    apart::run(Path::new(env!("CARGO_BIN_EXE_shoal-sim")), options, trace)
}

fn options(seed: u64) -> RunOptions {
    RunOptions { seed, subject: Subject::Echo, nodes: Some(3), seconds: Some(20), ..RunOptions::default() }
}

fn passed(report: RunReport) -> RunReport {
    assert!(report.passed(), "{:?} {:?}\n{}", report.failure, report.violations, report.story.join("\n"));
    report
}

#[test]
fn the_same_seed_is_the_same_run_and_another_seed_another() {
    let first: Vec<String> = (1..=2).map(|seed| passed(run(&options(seed), None)).hash).collect();
    let second: Vec<String> = (1..=2).rev().map(|seed| passed(run(&options(seed), None)).hash).collect();
    assert_eq!(first, second.into_iter().rev().collect::<Vec<_>>());
    assert!(first.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn a_run_with_its_faults_spelled_out_is_the_same_run() {
    let drawn = passed(run(&options(5), None));
    assert!(!drawn.plan.is_empty());
    let spelled = RunOptions { faults: Some(drawn.plan.clone()), ..options(5) };
    let text = toml::to_string(&spelled).unwrap();
    assert_eq!(passed(run(&toml::from_str(&text).unwrap(), None)).hash, drawn.hash);
}

#[test]
fn crashes_and_partitions_happen_and_are_survived() {
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

#[test]
fn the_trace_is_what_was_hashed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.txt");
    let report = passed(run(&options(2), Some(&path)));
    let text = std::fs::read(&path).unwrap();
    assert_eq!(format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&text)), report.hash);
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count() as u64, report.lines);
}
