//! Five real processes, each on a host of its own as far as the network goes, under a mixed load: nodes are killed, stopped, cut off
//! and lose their disks, links fail in one direction. No acknowledged write is lost, no complete answer is wrong, and replicas are
//! equal soon after. How long clients were not served is told, not judged: that depends on what else the machine does.
//!
//! The schedule and what clients draw come from a seed (`CHAOS_SEED`); how processes and packets meet does not, so a run does not
//! replay. `CHAOS_BINARY` is the binary to run, if not the one that was built with the tests.
#![allow(clippy::disallowed_methods, reason = "real processes live in the real world")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "what a test relies on is part of the test")]

mod cluster;
mod faults;
mod ledger;
mod load;
mod net;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use cluster::{Cluster, NODES};
use faults::{Cost, Planned, Schedule};
use load::Load;

/// How long faults last, in milliseconds.
const SHORT: std::ops::Range<u64> = 2_500..3_500;
const LONG: std::ops::Range<u64> = 1_500..10_000;

#[test]
fn nothing_is_lost_under_one_fault_of_each_kind() {
    net::inside("nothing_is_lost_under_one_fault_of_each_kind", |links| {
        let seed = seed();
        run(seed, links, Schedule::new(seed, links, SHORT).one_of_each().into_iter());
    });
}

#[test]
#[ignore = "takes as many seconds as CHAOS_SECONDS says: cargo xtask chaos"]
fn nothing_is_lost_for_as_long_as_is_asked_for() {
    net::inside("nothing_is_lost_for_as_long_as_is_asked_for", |links| {
        let seconds = std::env::var("CHAOS_SECONDS").expect("CHAOS_SECONDS says how long");
        let end = Instant::now() + Duration::from_secs(seconds.parse().expect("CHAOS_SECONDS is a whole number"));
        let seed = seed();
        run(seed, links, Schedule::new(seed, links, LONG).take_while(|_| Instant::now() < end));
    });
}

fn seed() -> u64 {
    std::env::var("CHAOS_SEED").map_or(1, |seed| seed.parse().expect("CHAOS_SEED is a whole number"))
}

fn run(seed: u64, links: bool, faults: impl Iterator<Item = Planned>) {
    let binary = std::env::var("CHAOS_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_shoal").to_owned());
    let began = Instant::now();
    let mut cluster = Cluster::start(binary, links);
    let load = Load::new((0..NODES).map(|node| cluster.url(node)).collect(), seed);
    load.prepare();
    println!("seed {seed}, five nodes after {:.1} s\n{}", began.elapsed().as_secs_f64(), Cost::HEAD);
    let costs: Vec<Cost> = load.during(|| {
        let costs = faults.map(|planned| faults::carry_out(planned, &mut cluster, &load)).collect();
        load.pause();
        faults::rest(&cluster, &load);
        if let Err(unlike) = cluster.compare() {
            panic!("{unlike}");
        }
        costs
    });
    faults::report(&costs);
    let counts = load.ledger.counts();
    println!(
        "{:.0} s with seed {seed}: {} requests that write acknowledged, {} refused or without effect, {} unknown; {} answers that must be exact and \
         {} at level one judged; errors {:?}",
        began.elapsed().as_secs_f64(),
        counts.acknowledged,
        counts.refused,
        counts.unknown,
        counts.exact,
        counts.possible,
        counts.errors
    );
}
