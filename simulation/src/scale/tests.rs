//! The scenes at sizes that take no time.

use std::time::Duration;

use super::*;

/// Sees nothing.
struct Blind;

impl Meter for Blind {
    fn elapsed(&mut self) -> Duration {
        Duration::ZERO
    }

    fn resident_bytes(&mut self) -> u64 {
        0
    }

    fn scene(&mut self, _nodes: usize, _scene: &str, _now: u64) {}
}

fn run(nodes: usize, seed: u64) -> GossipReport {
    gossip(nodes, 10, seed, Weather::default(), &mut Blind).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_report() {
    assert_eq!(run(20, 3), run(20, 3));
    assert_ne!(run(20, 3), run(20, 4));
}

#[test]
fn a_crash_is_known_to_all_and_halves_heal() {
    let report = run(40, 1);
    assert_eq!(broken_bounds(std::slice::from_ref(&report), None), Vec::<String>::new());
    assert_eq!(report.crash.nodes, 4);
    assert_eq!(report.partition.across, [0.0, 0.0, 1.0], "each half calls the other down");
    assert_eq!(report.partition.within, [1.0, 0.0, 0.0], "and keeps its own");
    assert!(report.crash.first_micros <= report.crash.each_micros);
    assert!(report.crash.median_micros <= report.crash.last_micros);
}

#[test]
fn slow_nodes_call_nobody_else_down() {
    for seed in 1..=5 {
        let slow = run(30, seed).slow;
        assert_eq!((slow.nodes, slow.others_called_down), (2, 0));
    }
}

#[test]
fn broken_bounds_are_told() {
    let small = run(10, 1);
    let mut large = GossipReport { nodes: 1_000, ..small.clone() };
    large.quiet.rates.sent_bytes *= 1.6;
    large.crash.last_micros = None;
    large.quiet.called_down = 1;
    large.quiet.rates.busy_bytes *= 2.0;
    // A quiet node that sends so much more sends more than any may, too.
    assert_eq!(broken_bounds(&[small, large], None).len(), 5);
}

#[test]
fn the_map_of_partitions_is_as_small_as_promised() {
    let report = catalog(50, 3_000, 1, &mut Blind).unwrap();
    assert_eq!((report.partitions, report.tables, report.move_entries), (3_000, 3, 6));
    assert!(catalog_table(&report).contains("in the log (6 entries)"));
    assert_eq!(broken_bounds(&[], Some(&report)), Vec::<String>::new());
}
