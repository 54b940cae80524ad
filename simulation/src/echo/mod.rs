//! A cluster of actors that echo messages, each supervised and started again: proves that the world, its faults and its
//! replay work before anything of the product is in it.
//!
//! Every host runs a supervisor and a worker. The worker counts its rounds; in each it sends a number to every peer, by
//! datagram and over the transport between nodes, and writes its count to disk before it says so in the trace. Now and then it panics.

mod worker;

use std::io::Write;
use std::sync::Arc;

use shoal_kernel::Env;

use crate::faults::{FaultKind, FaultMenu, GAP_MS, draw_plan, heal_everything, run_plan};
use crate::run::{RunOptions, RunReport, Violation, counts};
use crate::world::{HostId, Simulation};
use worker::{Board, PORT};

/// Faults begin when the cluster has run for a while.
const BOOT_MS: u64 = 2_000;
/// Within this time after the heal every host must have heard from every other.
const HEAL_MICROS: u64 = 10_000_000;

/// Runs the scenario. Must be called on a thread of its own.
pub fn run(options: &RunOptions, trace: Option<Box<dyn Write + Send>>) -> RunReport {
    let mut report = RunReport::default();
    let mut simulation = Simulation::new(options.seed, trace);
    if let Err(error) = drive(options, &mut simulation, &mut report) {
        report.failure = Some(format!("a host could not be started: {error}"));
    }
    report.finish(simulation.shared());
    report
}

fn drive(options: &RunOptions, simulation: &mut Simulation, report: &mut RunReport) -> std::io::Result<()> {
    let nodes = options.nodes();
    let board = Arc::new(Board::default());
    let addresses: Vec<_> = (0..nodes).map(|host| HostId(host).address(PORT)).collect();
    for host in 0..nodes {
        let (board, addresses) = (board.clone(), addresses.clone());
        let program = move |env: Env| worker::host(env, host, addresses.clone(), board.clone());
        let id = simulation.add_host(Arc::new(move |env| Box::pin(program(env))));
        simulation.start(id)?;
    }
    let until_ms = options.seconds() * 1_000;
    // Its workers keep nothing that a failing disk could touch.
    let kinds = FaultKind::ALL.into_iter().filter(|kind| !kind.is_of_disks()).collect();
    let menu = FaultMenu {
        hosts: nodes,
        kinds,
        gap_ms: options.fault_gap_ms.unwrap_or(GAP_MS),
        flips: None,
        flips_are_final: false,
        joins: None,
        wiped: None,
        drained: Vec::new(),
    };
    let drawn = || draw_plan(options.seed, &menu, BOOT_MS, until_ms);
    let plan = options.faults.clone().unwrap_or_else(drawn);
    run_plan(simulation, &plan, until_ms * 1_000)?;
    report.plan = plan;
    heal_everything(simulation, &[])?;
    let healed = simulation.shared().now_micros();
    board.forget_heard();
    let pairs = usize::from(nodes) * usize::from(nodes.saturating_sub(1));
    if !simulation.run_while(healed + HEAL_MICROS, || board.heard() < pairs) && pairs > 0 {
        let evidence =
            format!("{} of {pairs} directions carry messages 10 s after everything was healed", board.heard());
        report.violations.push(Violation { invariant: "liveness_after_heal".into(), evidence });
    }
    if let Some(evidence) = board.forgotten() {
        report.violations.push(Violation { invariant: "no_acknowledged_write_lost".into(), evidence });
    }
    report.operations = counts(&board.operations());
    Ok(())
}
