//! What the tasks of one attempt on one node share: pinned snapshots, running scans, counters.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use datafusion::execution::spill_file::TempFileFactory;
use shoal_kernel::{Error, FragmentId, Hlc, NodeId, PartitionId, QueryId, ReadLevel, Result};
use shoal_planner::TaskMemory;
use tokio_util::task::TaskTracker;

use crate::query::locked;
use crate::query::message::{Failure, Report, RunningFragment, TaskReport};
use crate::query::node::QueryNode;
use crate::query::ports::PartitionSnapshot;
use crate::query::spill::{SpillFiles, SpillSpace};
use crate::service::Moment;

/// Failures kept per attempt and node; the first ones tell the most.
const FAILURES_MAX: usize = 16;

/// One attempt of one query on this node.
pub(crate) struct TaskGroup {
    pub(crate) node: Arc<QueryNode>,
    pub(crate) query: QueryId,
    pub(crate) attempt: u32,
    pub(crate) coordinator: NodeId,
    /// Scans that run, so that letting go can wait for their last blocking step.
    pub(crate) scans: TaskTracker,
    snapshots: Mutex<BTreeMap<PartitionId, Arc<dyn PartitionSnapshot>>>,
    stopped: AtomicBool,
    /// Bytes that were put on disk because memory did not hold them.
    spilled: Arc<AtomicU64>,
    rows_scanned: AtomicU64,
    bytes_scanned: AtomicU64,
    tasks_done: AtomicU32,
    newest: AtomicU64,
    seen: Mutex<Vec<Moment>>,
    failures: Mutex<Vec<Failure>>,
    tasks: Mutex<Vec<TaskReport>>,
    /// Tasks that were started, by fragment.
    started: Mutex<BTreeMap<FragmentId, u32>>,
}

impl TaskGroup {
    pub(crate) fn new(node: Arc<QueryNode>, query: QueryId, attempt: u32, coordinator: NodeId) -> Arc<Self> {
        Arc::new(Self {
            node,
            query,
            attempt,
            coordinator,
            scans: TaskTracker::new(),
            snapshots: Mutex::default(),
            stopped: AtomicBool::new(false),
            spilled: Arc::default(),
            rows_scanned: AtomicU64::new(0),
            bytes_scanned: AtomicU64::new(0),
            tasks_done: AtomicU32::new(0),
            newest: AtomicU64::new(0),
            seen: Mutex::default(),
            failures: Mutex::default(),
            tasks: Mutex::default(),
            started: Mutex::default(),
        })
    }

    /// Pins the rows of a partition, for all scans of it.
    ///
    /// # Errors
    /// This node holds no such replica, it does not count, or it cannot be brought to the level in time.
    pub(crate) async fn pin(&self, partition: PartitionId, level: ReadLevel, timeout: Duration) -> Result<()> {
        let snapshot = match level {
            ReadLevel::One => self.node.replicas.snapshot(partition)?,
            ReadLevel::Quorum => self.node.replicas.snapshot_at_quorum(partition, timeout).await?,
        };
        // Asked afterwards: it holds for everything that the snapshot shows.
        self.newest.fetch_max(self.node.replicas.newest().0, Ordering::Relaxed);
        if self.node.limits.observed {
            locked(&self.seen).extend(snapshot.moment(partition, self.node.id));
        }
        locked(&self.snapshots).insert(partition, snapshot);
        Ok(())
    }

    /// The snapshot that this attempt has pinned; never another one.
    ///
    /// # Errors
    /// Nothing of the partition was pinned, or it has been let go of.
    pub(crate) fn pinned(&self, partition: PartitionId) -> Result<Arc<dyn PartitionSnapshot>> {
        let pinned = locked(&self.snapshots).get(&partition).cloned();
        pinned.ok_or_else(|| Error::internal(format!("no snapshot of partition {partition} is pinned")))
    }

    pub(crate) fn count_scanned(&self, rows: usize, bytes: usize) {
        self.rows_scanned.fetch_add(rows as u64, Ordering::Relaxed);
        self.bytes_scanned.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes of which fragment each task is that is started.
    pub(crate) fn note_started(&self, tasks: impl Iterator<Item = FragmentId>) {
        let mut started = locked(&self.started);
        for fragment in tasks {
            *started.entry(fragment).or_default() += 1;
        }
    }

    /// The fragments of which tasks were started here, and how far these are.
    pub(crate) fn fragments(&self) -> Vec<RunningFragment> {
        let mut fragments: BTreeMap<FragmentId, RunningFragment> = BTreeMap::new();
        for (fragment, tasks) in locked(&self.started).iter() {
            let begun = RunningFragment {
                query: self.query,
                attempt: self.attempt,
                coordinator: self.coordinator,
                fragment: *fragment,
                tasks: *tasks,
                tasks_done: 0,
                rows: 0,
                bytes: 0,
                slowest_micros: 0,
                spilled: self.spilled.load(Ordering::Relaxed),
            };
            fragments.insert(*fragment, begun);
        }
        for task in locked(&self.tasks).iter() {
            let Some(running) = fragments.get_mut(&task.fragment) else { continue };
            running.tasks_done += 1;
            running.rows += task.rows;
            running.bytes += task.bytes;
            running.slowest_micros = running.slowest_micros.max(task.elapsed_micros);
        }
        fragments.into_values().collect()
    }

    /// Keeps what a task did; also one that was stopped, so that figures survive a limit and a cancellation.
    pub(crate) fn note_task(&self, report: TaskReport) {
        locked(&self.tasks).push(report);
    }

    pub(crate) fn count_done(&self) {
        self.tasks_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Remembers a failure where it is best understood: at its source.
    pub(crate) fn note_failure(&self, failure: Failure) {
        let mut failures = locked(&self.failures);
        if failures.len() < FAILURES_MAX && !failures.contains(&failure) {
            failures.push(failure);
        }
    }

    /// The failure noted for an error that has come out of a plan, which carries the error but not whom it blames.
    pub(crate) fn noted(&self, error: &shoal_kernel::Error) -> Option<Failure> {
        locked(&self.failures).iter().find(|failure| failure.error == *error).cloned()
    }

    /// What is known.
    pub(crate) fn report(&self) -> Report {
        Report {
            tasks_done: self.tasks_done.load(Ordering::Relaxed),
            rows_scanned: self.rows_scanned.load(Ordering::Relaxed),
            bytes_scanned: self.bytes_scanned.load(Ordering::Relaxed),
            newest: Some(Hlc(self.newest.load(Ordering::Relaxed))),
            seen: self.node.limits.observed.then(|| locked(&self.seen).clone()),
            failures: locked(&self.failures).clone(),
            tasks: locked(&self.tasks).clone(),
        }
    }

    /// What each of the tasks may use.
    pub(crate) fn memory(&self) -> TaskMemory {
        let files = |space: &Arc<SpillSpace>| SpillFiles::new(space.clone(), self.spilled.clone());
        let spill = self.node.spill.as_ref().map(|space| Arc::new(files(space)) as Arc<dyn TempFileFactory>);
        TaskMemory { pool: Some(self.node.memory.clone()), spill, batch_rows: self.node.limits.batch_rows }
    }

    /// The tasks are to stop, also those that compute just now.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Lets go of the snapshots, and waits until no scan runs.
    pub(crate) async fn let_go(&self) {
        locked(&self.snapshots).clear();
        self.scans.close();
        self.scans.wait().await;
    }
}
