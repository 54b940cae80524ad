//! Whole nodes under a workload and faults, and then the checks.
//!
//! Phases: *boot* (every node up, tables made), *load* (clients work, nothing fails), *faults* (clients work while the plan
//! runs), *heal* (everything is repaired; or, for some seeds, some nodes never come back), *drain* (clients stop, replicas
//! become equal), *final reads* through every node, and for runs that healed everything a loss of power of all nodes
//! and the same reads again. What was seen goes to [`crate::invariants`].

mod answer;
mod client;
mod desk;
mod history;
mod ledger;
mod limits;
mod objects;
mod operation;
mod operator;
mod phases;
mod settings;
mod states;

use std::sync::Arc;

pub use history::{
    Backup, Cell, Facts, Note, NotesChange, NotesDropped, Outcome, Question, Read, TableChange, Target, View, Write,
};

use crate::invariants::{self, Evidence};
use crate::run::{RunOptions, RunReport, counts};
use crate::trace::Kind;
use crate::world::{HostId, Simulation};
use client::Office;
use desk::Desk;
use history::History;
pub(crate) use ledger::{Ledger, Shown};
use limits::Limits;
use operation::Frame;
pub use operation::{Altering, Manner, Mix, OperationId};
use phases::Phases;
pub use settings::Ending;
use settings::Settings;
pub(crate) use states::Column;

/// Keys of the upsert table, for those who judge answers.
pub const KEYS: i64 = operation::KEYS;
/// Names of the joined table.
pub const NAMES: i64 = client::NAMES;
/// Groups of the GROUP BY.
pub const GROUPS: i64 = client::GROUPS;

/// Runs the scenario. Must be called on a thread of its own.
pub fn run(options: &RunOptions, trace: Option<Box<dyn std::io::Write + Send>>) -> RunReport {
    let mut report = RunReport::default();
    let mut simulation = Simulation::new(options.seed, trace);
    let settings = Settings::draw(options);
    let desk = Arc::new(Desk::default());
    let history = Arc::new(History::default());
    let office = Office {
        shared: simulation.shared().clone(),
        desk: desk.clone(),
        history: history.clone(),
        ledger: Arc::default(),
        host: HostId(settings.nodes),
        nodes: settings.nodes,
        limits: Limits::of(&settings.node(0)),
        event_times: settings.event_times,
        events_ttl: settings.events_ttl,
        copies: settings.copies.clone(),
        frame: Frame {
            seed: options.seed,
            nodes: settings.nodes,
            mix: settings.mix,
            rows_max: options.rows_max,
            keys_max: options.keys_max,
        },
        patience: settings.patience,
        wide_sorts: settings.has_little_memory(),
        only: options.operations.as_ref().map(|only| Arc::new(only.iter().copied().collect())),
        seed: options.seed,
    };
    let mut evidence = Evidence {
        ledger: office.ledger.clone(),
        nodes: settings.nodes,
        replicas: settings.replicas,
        upserts_windows: settings.upserts_windows,
        events_windows: settings.events_windows,
        upserts_fsync: settings.upserts_fsync,
        events_fsync: settings.events_fsync,
        events_ttl: settings.events_ttl,
        ending: settings.ending.clone(),
        ..Evidence::default()
    };
    let driven = Phases {
        simulation: &mut simulation,
        office: &office,
        settings: &settings,
        evidence: &mut evidence,
        working: Arc::default(),
        final_reads: 0,
    };
    if let Err(error) = driven.run(options) {
        report.failure = Some(format!("the run could not be carried out: {error}"));
    }
    simulation.shut_down();
    evidence.facts = std::mem::take(&mut *history.facts());
    evidence.power_losses = simulation.shared().power_losses();
    report.operations = counts(&evidence.facts.counts);
    report.begun = std::mem::take(&mut evidence.facts.operations);
    report.plan.clone_from(&evidence.plan);
    if report.failure.is_none() {
        report.violations = invariants::check(&evidence);
        report.operations.insert("answers judged by what they saw".into(), evidence.judged.get());
        for violation in &report.violations {
            simulation.shared().trace(Kind::Broken, format_args!("{violation}"));
        }
    }
    report.finish(simulation.shared());
    report
}
