//! Cuts a physical plan into fragments.
//!
//! A plan is walked from its leaves. Every part of it has a [`Placement`]; as long as the operators above work partition by
//! partition, the part grows, and its output partition `i` is what task `i` of a fragment computes. At an exchange, or at
//! an operator that needs more than one partition, the part becomes a fragment and an [`ExchangeExec`] takes its place.
//!
//! What makes this right: a gathering exchange keeps number, order and properties of the partitions it stands for, so the
//! plan above is, word for word, the plan that one process would run. Only parts whose tasks run in different processes
//! need a proof, and that is [`placement::is_partition_wise`]: operators not named there are never split.

mod placement;
mod recursion;

use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::physical_expr::Partitioning;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::recursive_query::RecursiveQueryExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::work_table::WorkTableExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use shoal_kernel::{Error, FragmentId, ReadLevel};

use crate::broadcast::broadcasts_left;
use crate::error::error_to_datafusion;
use crate::graph::{Edge, Fragment, FragmentGraph, Place, TaskSpec};
use crate::node::{ExchangeExec, ExchangeSource, LateFetchExec, LeafScanExec, ShoalCodec, plan_to_bytes};
use placement::{Placement, is_partition_wise, reads_subquery};

/// Tasks that one query may have; a plan with more is refused rather than admitted in part.
const TASKS_MAX: usize = 16 * 1024;

/// Streams of one broadcast; beyond that its rows are brought together first.
const STREAMS_MAX: usize = 1024;

/// Cuts a plan, with or without broadcasts. The root fragment's one output partition is the answer, in the plan's own order.
///
/// # Errors
/// The plan has a node that cannot travel, or more tasks than a query may have.
pub(crate) fn cut(plan: Arc<dyn ExecutionPlan>, broadcast: bool) -> Result<FragmentGraph> {
    let schema = plan.schema();
    let mut cutter = Cutter { broadcast, fragments: Vec::new(), tasks: 0 };
    let part = cutter.visit(plan)?;
    let root = together(cutter.gather(part)?);
    cutter.close(root, vec![Place::Coordinator], Edge::Gather)?;
    Ok(FragmentGraph { fragments: cutter.fragments, schema, read_level: ReadLevel::default() })
}

/// A part of the plan that is not closed yet.
struct Part {
    plan: Arc<dyn ExecutionPlan>,
    placement: Placement,
}

struct Cutter {
    /// Whether all rows of a fragment may go to every task of another.
    broadcast: bool,
    fragments: Vec<Fragment>,
    tasks: usize,
}

impl Cutter {
    fn visit(&mut self, plan: Arc<dyn ExecutionPlan>) -> Result<Part> {
        if let Some(leaf) = plan.downcast_ref::<LeafScanExec>() {
            let placement = Placement::Leaf(leaf.partitions());
            return Ok(Part { plan, placement });
        }
        if let Some(query) = plan.downcast_ref::<RecursiveQueryExec>() {
            let next = recursion::unproject_work_table(query)?;
            let first = self.visit(Arc::clone(query.static_term()))?;
            let first = self.gather(first)?;
            let next = self.visit(next)?;
            let next = recursion::replay_exchanges(self.gather(next)?)?;
            let plan = replace_children_if_necessary(plan, vec![first, next])?;
            return Ok(Part { plan, placement: Placement::Local });
        }
        if self.broadcast
            && broadcasts_left(&plan)?
            && let [left, right] = plan.children().as_slice()
        {
            let (left, right) = (Arc::clone(left), Arc::clone(right));
            return self.broadcast_left(plan, left, right);
        }
        let mut parts = Vec::new();
        for child in plan.children().into_iter().cloned().collect::<Vec<_>>() {
            parts.push(self.visit(child)?);
        }
        if let Some(repartition) = plan.downcast_ref::<RepartitionExec>()
            && let [part] = parts.as_slice()
            && part.placement != Placement::Local
            && let Partitioning::Hash(keys, slots) = repartition.partitioning()
            && !repartition.preserve_order()
            && !reads_subquery(&plan)?
        {
            let keys = keys.iter().map(|key| ShoalCodec.encode_expr(key)).collect::<Result<Vec<_>>>()?;
            return self.shuffle(&plan, parts, keys, *slots);
        }
        if let Some(placement) = self.joint_placement(&plan, &parts)? {
            let children = parts.into_iter().map(|part| part.plan).collect();
            return Ok(Part { plan: replace_children_if_necessary(plan, children)?, placement });
        }
        if plan.is::<LateFetchExec>() {
            // Addresses mean nothing away from the snapshot that they are of.
            return Err(error_to_datafusion(Error::internal("rows would be fetched far from where they were found")));
        }
        let fetch = plan.downcast_ref::<CoalescePartitionsExec>().and_then(ExecutionPlan::fetch);
        let mut children = Vec::new();
        for part in parts {
            children.push(self.gather(limit(part, fetch))?);
        }
        Ok(Part { plan: replace_children_if_necessary(plan, children)?, placement: Placement::Local })
    }

    /// The placement of an operator over its inputs, if it can run in their tasks.
    fn joint_placement(&self, plan: &Arc<dyn ExecutionPlan>, parts: &[Part]) -> Result<Option<Placement>> {
        let Some((first, others)) = parts.split_first() else { return Ok(Some(Placement::Local)) };
        if parts.iter().all(|part| part.placement == Placement::Local) {
            return Ok(Some(Placement::Local));
        }
        if reads_subquery(plan)? {
            return Ok(None);
        }
        if plan.is::<UnionExec>() {
            // Partitions of a union are those of its inputs one after the other: each still lies where it lay. But what is sent to a task is
            // sent to its number, and that becomes another one.
            return Ok(parts
                .iter()
                .map(|part| match &part.placement {
                    Placement::Leaf(partitions) if !has_exchange(&part.plan) => Some(partitions.as_slice()),
                    _ => None,
                })
                .collect::<Option<Vec<_>>>()
                .map(|partitions| Placement::Leaf(partitions.concat())));
        }
        let same = match &first.placement {
            Placement::Leaf(_) => others.is_empty(),
            _ => others.iter().all(|part| part.placement == first.placement),
        };
        let count = plan.output_partitioning().partition_count();
        let fits = same && count == first.placement.tasks() && is_partition_wise(plan, count == 1);
        Ok(fits.then(|| first.placement.clone()))
    }

    /// Ends a part in which every task sends each row to the consumer task that its keys hash to.
    fn shuffle(
        &mut self,
        repartition: &Arc<dyn ExecutionPlan>,
        parts: Vec<Part>,
        expressions: Vec<Vec<u8>>,
        slots: usize,
    ) -> Result<Part> {
        let slots = count(slots)?;
        let Some(part) = parts.into_iter().next() else {
            return Err(error_to_datafusion(Error::internal("a repartitioning without an input")));
        };
        let tasks = count(part.placement.tasks())?;
        let fragment = self.close(part.plan, part.placement.places(), Edge::Hash { expressions, slots })?;
        let source = ExchangeSource::Hash { tasks, slots };
        let plan = Arc::new(ExchangeExec::new(fragment, source, repartition.properties()));
        Ok(Part { plan, placement: Placement::Hashed(slots) })
    }

    /// A join whose left side goes to every task of the right one, if it may leave the task that it is in.
    fn broadcast_left(
        &mut self,
        join: Arc<dyn ExecutionPlan>,
        left: Arc<dyn ExecutionPlan>,
        right: Arc<dyn ExecutionPlan>,
    ) -> Result<Part> {
        let properties = Arc::clone(left.properties());
        // Tasks send their rows to all by themselves; nothing need collect them first.
        let apart = match left.downcast_ref::<CoalescePartitionsExec>() {
            Some(coalesce) if coalesce.fetch().is_none() => Arc::clone(coalesce.input()),
            _ => left,
        };
        let (build, probe) = (self.visit(apart)?, self.visit(right)?);
        let here = |part: &Part| part.placement == Placement::Local;
        if here(&probe) || reads_subquery(&join)? || (here(&build) && !is_closed(&build.plan)?) {
            let (left, right) = (together(self.gather(build)?), self.gather(probe)?);
            let plan = replace_children_if_necessary(join, vec![left, right])?;
            return Ok(Part { plan, placement: Placement::Local });
        }
        let slots = probe.placement.tasks();
        let build = match here(&build) {
            // Each task of the one side would have a stream to each of the other.
            false if build.placement.tasks().saturating_mul(slots) <= STREAMS_MAX => build,
            _ => Part { plan: together(self.gather(build)?), placement: Placement::Local },
        };
        let (tasks, slots) = (count(build.placement.tasks())?, count(slots)?);
        let fragment = self.close(build.plan, build.placement.places(), Edge::Broadcast { slots })?;
        let left = Arc::new(ExchangeExec::new(fragment, ExchangeSource::Broadcast { tasks }, &properties));
        let plan = replace_children_if_necessary(join, vec![left, probe.plan])?;
        Ok(Part { plan, placement: probe.placement })
    }

    /// Brings the output of a part to one task, partition by partition.
    fn gather(&mut self, part: Part) -> Result<Arc<dyn ExecutionPlan>> {
        if part.placement == Placement::Local {
            return Ok(part.plan);
        }
        let tasks = count(part.placement.tasks())?;
        let properties = Arc::clone(part.plan.properties());
        let fragment = self.close(part.plan, part.placement.places(), Edge::Gather)?;
        Ok(Arc::new(ExchangeExec::new(fragment, ExchangeSource::Gather { tasks }, &properties)))
    }

    fn close(&mut self, plan: Arc<dyn ExecutionPlan>, places: Vec<Place>, output: Edge) -> Result<FragmentId> {
        self.tasks += places.len();
        if self.tasks > TASKS_MAX {
            let message = format!("the query needs more than the {TASKS_MAX} tasks that one query may have");
            let error = Error::new(shoal_kernel::ErrorCode::LimitExceeded, message);
            return Err(error_to_datafusion(error.with_help("read fewer partitions: filter by the partition key")));
        }
        let id = FragmentId(count(self.fragments.len())?);
        let label = DisplayableExecutionPlan::new(plan.as_ref()).indent(false).to_string().trim_end().to_owned();
        let mut inputs = Vec::new();
        producers(&plan, &mut inputs);
        let plan = plan_to_bytes(plan)?;
        let tasks = places.into_iter().map(|place| TaskSpec { place }).collect();
        self.fragments.push(Fragment { id, plan, tasks, output, inputs, label });
        Ok(id)
    }
}

/// Whether a part of the plan reads what another fragment puts out.
fn has_exchange(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let mut inputs = Vec::new();
    producers(plan, &mut inputs);
    !inputs.is_empty()
}

/// All rows in one partition.
fn together(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    match plan.output_partitioning().partition_count() {
        1 => plan,
        _ => Arc::new(CoalescePartitionsExec::new(plan)),
    }
}

/// Whether a part of the plan reads nothing that is in the memory of the task that it was planned for: neither the rows of a recursion nor
/// the result of a subquery.
fn is_closed(plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let mut closed = true;
    plan.apply(|node| {
        closed &= !node.is::<WorkTableExec>() && !reads_subquery(node)?;
        Ok(if closed { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(closed)
}

/// No task needs to send more rows than the consumer will take.
fn limit(part: Part, fetch: Option<usize>) -> Part {
    match fetch {
        Some(fetch) if part.placement != Placement::Local && part.plan.fetch().is_none_or(|inner| inner > fetch) => {
            Part { plan: Arc::new(LocalLimitExec::new(part.plan, fetch)), ..part }
        }
        _ => part,
    }
}

fn producers(plan: &Arc<dyn ExecutionPlan>, out: &mut Vec<FragmentId>) {
    if let Some(exchange) = plan.downcast_ref::<ExchangeExec>() {
        out.push(exchange.fragment());
    }
    for child in plan.children() {
        producers(child, out);
    }
}

fn count(number: usize) -> Result<u32> {
    u32::try_from(number).map_err(|_| error_to_datafusion(Error::internal("more than 2^32 tasks or fragments")))
}
