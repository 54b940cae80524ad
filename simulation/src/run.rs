//! One run: what is asked for, what comes out, and the thread it happens on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;

use serde::{Deserialize, Serialize};
use shoal_kernel::Planted;

use crate::cluster::{Ending, Mix, OperationId};
use crate::entropy;
use crate::faults::{FaultKind, GAP_MS, PlannedFault};
use crate::panics;
use crate::random::Stream;
use crate::world::Shared;

/// Stack of the thread of a run: debug builds of query planners recurse deep.
const STACK_BYTES: usize = 64 << 20;

/// What a run breaks in which something panicked, whatever became of that.
pub const NOTHING_PANICS: &str = "nothing_panics";

/// What is simulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// Whole nodes under a workload.
    #[default]
    Cluster,
    /// Supervised actors that echo messages: proves the world, not the product.
    Echo,
}

/// Everything that fixes a run; also the form of scenario files. What is left open is drawn from the seed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunOptions {
    /// Everything random follows from it.
    pub seed: u64,
    /// What is simulated.
    pub subject: Subject,
    /// Nodes: 1 to 9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u16>,
    /// Virtual time under load and faults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Replicas of every table, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<u16>,
    /// Clients that work at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<u64>,
    /// A memtable is flushed beyond so many bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memtable_bytes: Option<u64>,
    /// Whether events bring their own time. Without one a node gives it, the same to every resend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_times: Option<bool>,
    /// Whether the last node is started for the first time under faults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late_join: Option<bool>,
    /// Whether nodes take two queries at once, and let two wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tight_limits: Option<bool>,
    /// What clients do, and how often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
    /// Rows that a write has at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_max: Option<usize>,
    /// Keys of the upsert table that clients name at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_max: Option<i64>,
    /// How long clients wait for an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience_ms: Option<u64>,
    /// How the run ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ending: Option<Ending>,
    /// Kinds of faults that may be drawn; one that is named twice is drawn twice as often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kinds: Option<Vec<FaultKind>>,
    /// Shortest and longest wait between the beginnings of two faults, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault_gap_ms: Option<(u64, u64)>,
    /// A bug to switch on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub planted: Option<Planted>,
    /// The operations of clients that are carried out; of all that the seed draws unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations: Option<Vec<OperationId>>,
    /// The faults, each with its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faults: Option<Vec<PlannedFault>>,
}

/// Most nodes of a cluster with whole nodes.
pub const NODES_MAX: u16 = 9;
/// Virtual time under load and faults of a usual run, and of the longest that is drawn.
const SECONDS: u64 = 60;

impl RunOptions {
    /// What every change is held to: three nodes, three replicas, the usual faults.
    pub fn usual(seed: u64) -> Self {
        Self {
            seed,
            nodes: Some(3),
            seconds: Some(SECONDS),
            replication_factor: Some(3),
            kinds: Some(FaultKind::ALL.to_vec()),
            fault_gap_ms: Some(GAP_MS),
            late_join: Some(false),
            tight_limits: Some(false),
            mix: Some(Mix::default()),
            patience_ms: Some(5_000),
            ..Self::default()
        }
    }

    /// Nodes, as given or drawn: mostly three.
    pub fn nodes(&self) -> u16 {
        let drawn = [3, 3, 3, 3, 3, 3, 3, 3, 1, 2, 4, 5, 6, 7, 8, 9];
        self.nodes.or_else(|| Stream::new(self.seed, "nodes", 0).pick(&drawn).copied()).unwrap_or(3)
    }

    /// Virtual time under load and faults, as given or drawn: many short runs meet more combinations than few long ones.
    pub fn seconds(&self) -> u64 {
        let drawn = [20, 30, 45, SECONDS];
        self.seconds.or_else(|| Stream::new(self.seed, "seconds", 0).pick(&drawn).copied()).unwrap_or(SECONDS)
    }
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The name of the invariant.
    pub invariant: Cow<'static, str>,
    /// What was expected, and what was found.
    pub evidence: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.evidence)
    }
}

/// What was counted, by its name.
pub type Counts = BTreeMap<Cow<'static, str>, u64>;

/// What a run came to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunReport {
    /// The hash of the trace, 32 hexadecimal digits.
    pub hash: String,
    /// Lines of the trace.
    pub lines: u64,
    /// Virtual time that passed.
    pub virtual_micros: u64,
    /// CPU time that it took, of the whole process.
    pub cpu_micros: u64,
    /// Client operations by outcome.
    pub operations: Counts,
    /// The operations themselves, in the order in which clients began them.
    pub begun: Vec<OperationId>,
    /// Rare states reached.
    pub sometimes: Counts,
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// The last faults.
    pub story: Vec<String>,
    /// The faults as they were planned.
    pub plan: Vec<PlannedFault>,
    /// The run could not be carried out; says why.
    pub failure: Option<String>,
}

impl RunReport {
    /// Takes what the world knows.
    pub fn finish(&mut self, shared: &Shared) {
        let (hash, lines) = shared.trace_hash();
        (self.hash, self.lines) = (format!("{hash:032x}"), lines);
        self.virtual_micros = shared.now_micros();
        let reached = shared.sometimes_reached();
        self.sometimes = reached.into_iter().map(|(state, times)| (Cow::Borrowed(state.as_str()), times)).collect();
        self.story = shared.story();
        if let Err(error) = shared.flush_trace() {
            self.failure = Some(format!("the trace could not be written: {error}"));
        }
        for panic in panics::take().into_iter().filter(|panic| !panic.contains(panics::PLANNED)) {
            self.violations.push(Violation { invariant: NOTHING_PANICS.into(), evidence: panic });
        }
        if shared.stray_threads() > 0 {
            self.failure = Some(format!("{} threads were started outside the simulation", shared.stray_threads()));
        }
    }

    /// A run that could not be carried out.
    pub fn failed(why: String) -> Self {
        Self { failure: Some(why), ..Self::default() }
    }

    /// Whether everything held.
    pub fn passed(&self) -> bool {
        self.violations.is_empty() && self.failure.is_none()
    }
}

/// Runs on a thread of its own, so that nothing that a library keeps per thread comes from an earlier run. What libraries
/// keep per process does: only the first run of a process is the same run everywhere, see [`crate::apart`].
pub fn run(options: &RunOptions, trace: Option<Box<dyn Write + Send>>) -> RunReport {
    let options = options.clone();
    let begin = entropy::cpu_micros();
    let work = move || {
        panics::take();
        match options.subject {
            Subject::Echo => crate::echo::run(&options, trace),
            Subject::Cluster => crate::cluster::run(&options, trace),
        }
    };
    let thread = std::thread::Builder::new().name("simulation".to_owned()).stack_size(STACK_BYTES).spawn(work);
    let mut report = match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(report)) => report,
        Ok(Err(panic)) => RunReport::failed(format!("the run panicked: {}", panic_message(&*panic))),
        Err(error) => RunReport::failed(format!("no thread for the run: {error}")),
    };
    report.cpu_micros = entropy::cpu_micros() - begin;
    report
}

/// Counts whose names may outlive the program, for the report.
pub(crate) fn counts(found: &BTreeMap<&'static str, u64>) -> Counts {
    found.iter().map(|(what, times)| (Cow::Borrowed(*what), *times)).collect()
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}
