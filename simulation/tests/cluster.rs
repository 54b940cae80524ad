//! Whole nodes: every promise holds under faults, a seed repeats, and a broken promise is found.

use std::path::Path;

use shoal_kernel::Planted;
use shoal_simulation::apart;
use shoal_simulation::run::{RunOptions, RunReport};

fn run(options: &RunOptions) -> RunReport {
    apart::run(Path::new(env!("CARGO_BIN_EXE_shoal-sim")), options, None)
}

fn options(seed: u64) -> RunOptions {
    RunOptions { seconds: Some(18), ..RunOptions::usual(seed) }
}

fn passed(seed: u64, report: RunReport) -> RunReport {
    let violations: Vec<String> = report.violations.iter().map(ToString::to_string).collect();
    let story = report.story.join("\n");
    assert!(report.passed(), "seed {seed}: {:?}\n{}\n{story}", report.failure, violations.join("\n"));
    report
}

#[test]
fn every_promise_holds_and_a_seed_is_always_the_same_run() {
    for seed in 1..=2 {
        let first = passed(seed, run(&options(seed)));
        let second = passed(seed, run(&options(seed)));
        assert_eq!(first.hash, second.hash, "seed {seed} gave two different runs");
        assert!(first.operations.get("writes acknowledged").is_some_and(|writes| *writes > 0));
    }
}

#[test]
fn one_node_alone_keeps_its_promises() {
    passed(3, run(&RunOptions { nodes: Some(1), ..options(3) }));
}

/// Some seed of a few must find the bug, by one of the promises that it breaks.
fn found(planted: Planted, promises: &[&str]) {
    let finds = |seed| {
        let report = run(&RunOptions { planted: Some(planted), ..options(seed) });
        assert_eq!(report.failure, None, "seed {seed}");
        report.violations.iter().any(|violation| promises.contains(&violation.invariant.as_ref()))
    };
    assert!((1..=6).any(finds), "no seed found the planted bug {}", planted.as_str());
}

#[test]
fn a_skipped_fsync_is_found() {
    found(Planted::SkipFsync, &["no_acknowledged_write_lost"]);
}

#[test]
fn an_early_acknowledgement_is_found() {
    found(Planted::AcknowledgeEarly, &["acknowledged_at_its_level", "no_acknowledged_write_lost"]);
}

#[test]
fn a_wrong_tie_break_is_found() {
    found(Planted::WrongTieBreak, &["newest_wins", "no_acknowledged_write_lost"]);
}
