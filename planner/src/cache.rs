//! Plans that were made before: whoever asks the same again, of the same catalog, is spared the planning.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::physical_plan::ExecutionPlan;
use shoal_catalog::Catalog;
use shoal_kernel::{ScanSpec, Slice};

use crate::graph::FragmentGraph;
use crate::node::LeafScanExec;
use crate::planner::{PlanOptions, Planned, Slicing};

/// Bytes of all plans that are kept.
const BYTES_MAX: usize = 16 << 20;
/// What an entry costs beside its text and its plan.
const ENTRY_BYTES: usize = 512;

/// What a plan depends on, beside the rows that there are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    sql: String,
    catalog_version: u64,
    target_partitions: usize,
    batch_rows: usize,
    slices_max: u32,
    slice_rows_min: u64,
    broadcast: bool,
}

impl Key {
    fn new(sql: &str, catalog: &Catalog, options: &PlanOptions) -> Self {
        let Slicing { slices_max, slice_rows_min } = options.slicing;
        Self {
            sql: sql.to_owned(),
            catalog_version: catalog.version,
            target_partitions: options.target_partitions,
            batch_rows: options.batch_rows,
            slices_max,
            slice_rows_min,
            broadcast: options.broadcast,
        }
    }
}

/// A scan of a plan, and what the plan was made for: with many more or fewer rows it would be another one.
#[derive(Clone)]
struct Scanned {
    scan: ScanSpec,
    slices: u32,
    /// The logarithm of the number of rows.
    magnitude: Option<u32>,
}

impl Scanned {
    fn new(scan: ScanSpec, slices: u32, options: &PlanOptions) -> Self {
        let rows = (options.row_counts)(&scan);
        Self { scan, slices, magnitude: rows.and_then(u64::checked_ilog2) }
    }

    /// Whether a plan that was made for it serves now.
    fn is_as_before(&self, options: &PlanOptions) -> bool {
        let rows = (options.row_counts)(&self.scan);
        self.slices == options.slicing.of_scan(&self.scan, rows)
            && match (self.magnitude, rows.and_then(u64::checked_ilog2)) {
                (Some(before), Some(now)) => before.abs_diff(now) <= 1,
                (before, now) => before == now,
            }
    }
}

struct Entry {
    graph: FragmentGraph,
    scans: Vec<Scanned>,
    bytes: usize,
    used: u64,
}

#[derive(Default)]
struct Plans {
    entries: BTreeMap<Key, Entry>,
    by_use: BTreeMap<u64, Key>,
    bytes: usize,
    clock: u64,
}

impl Plans {
    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

/// Plans by statement; what was not used for longest goes first.
#[derive(Default)]
pub(crate) struct PlanCache {
    plans: Mutex<Plans>,
}

impl fmt::Debug for PlanCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlanCache")
    }
}

impl PlanCache {
    /// The plan of a statement, if it was made before and would be made again.
    pub(crate) fn get(&self, sql: &str, catalog: &Arc<Catalog>, options: &PlanOptions) -> Option<FragmentGraph> {
        let key = Key::new(sql, catalog, options);
        let scans = self.lock().entries.get(&key)?.scans.clone();
        let as_before = scans.iter().all(|scanned| scanned.is_as_before(options));
        let plans = &mut *self.lock();
        if !as_before {
            plans.remove(&key);
            return None;
        }
        let entry = plans.entries.get_mut(&key)?;
        plans.by_use.remove(&entry.used);
        plans.clock += 1;
        entry.used = plans.clock;
        plans.by_use.insert(plans.clock, key);
        Some(entry.graph.clone())
    }

    /// Keeps a plan.
    pub(crate) fn put(&self, sql: &str, catalog: &Arc<Catalog>, options: &PlanOptions, planned: &Planned) {
        let key = Key::new(sql, catalog, options);
        let scans = scans_of(&planned.physical, options);
        let graph = planned.graph.clone();
        let fragments = graph.fragments.iter().map(|fragment| fragment.plan.len() + fragment.label.len());
        let bytes = fragments.sum::<usize>() + 2 * sql.len() + ENTRY_BYTES * (1 + scans.len());
        if bytes > BYTES_MAX / 16 {
            return;
        }
        let plans = &mut *self.lock();
        plans.remove(&key);
        plans.clock += 1;
        plans.bytes += bytes;
        plans.by_use.insert(plans.clock, key.clone());
        plans.entries.insert(key, Entry { graph, scans, bytes, used: plans.clock });
        while plans.bytes > BYTES_MAX
            && let Some(oldest) = plans.by_use.values().next().cloned()
        {
            plans.remove(&oldest);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Plans> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The scans of a plan, each of them whole.
fn scans_of(plan: &Arc<dyn ExecutionPlan>, options: &PlanOptions) -> Vec<Scanned> {
    let mut scans = Vec::new();
    // The visitor never fails.
    let _ = plan.apply(|node| {
        if let Some(leaf) = node.downcast_ref::<LeafScanExec>() {
            let first = leaf.scans().iter().filter(|scan| scan.slice.index == 0);
            scans.extend(first.map(|scan| {
                let mut whole = ScanSpec { slice: Slice::WHOLE, coded: Vec::new(), ends: None, ..scan.clone() };
                (whole.addresses, whole.summary, whole.order) = (false, None, None);
                Scanned::new(whole, scan.slice.of, options)
            }));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    scans
}
