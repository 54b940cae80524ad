//! Where each task of a query runs. Pure: the same cluster view gives the same places.

use std::collections::{BTreeMap, BTreeSet};

use shoal_kernel::{Error, ErrorCode, FragmentId, NodeId, PartitionId, Result};
use shoal_planner::{FragmentGraph, Place};

use super::ports::Candidates;

/// The node of every task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Assignment {
    /// By fragment, then by task.
    places: BTreeMap<FragmentId, Vec<NodeId>>,
    /// Nodes that were passed over somewhere because their replica is far behind.
    pub(crate) passed_over: BTreeSet<NodeId>,
}

impl Assignment {
    /// The nodes of a fragment's tasks, by task.
    pub(crate) fn of(&self, fragment: FragmentId) -> &[NodeId] {
        self.places.get(&fragment).map_or(&[], Vec::as_slice)
    }

    /// Nodes that take part.
    pub(crate) fn nodes(&self) -> BTreeSet<NodeId> {
        self.places.values().flatten().copied().collect()
    }

    /// Tasks of that fragment on that node.
    pub(crate) fn tasks_on(&self, fragment: FragmentId, node: NodeId) -> Vec<u32> {
        (0u32..).zip(self.of(fragment)).filter(|(_, place)| **place == node).map(|(task, _)| task).collect()
    }
}

/// Who failed this query already, or may.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Suspects {
    /// Nodes that have not answered anybody lately.
    pub(crate) silent: BTreeSet<NodeId>,
    /// Nodes that were lost.
    pub(crate) nodes: BTreeSet<NodeId>,
    /// Replicas that could not be read.
    pub(crate) replicas: BTreeSet<(PartitionId, NodeId)>,
}

/// Places every task.
///
/// A partition is read on one node, however often the query names it, so that all its readers share a snapshot. Among
/// equals the node with the fewest tasks of this query wins, then the coordinator, then the preferred one: tasks spread, and
/// a query that fits on the coordinator stays there. Suspects are passed over as long as somebody else can serve; a partition
/// whose every replica is suspected is tried again where it is, because a node that was restarted is worth a second look. Silent
/// nodes are better than those that have failed. A replica that is far behind is read if only suspects have a better one.
///
/// # Errors
/// [`ErrorCode::PartitionUnavailable`]: a partition has no candidate at all.
pub(crate) fn assign(
    graph: &FragmentGraph,
    coordinator: NodeId,
    alive: &BTreeSet<NodeId>,
    candidates: impl Fn(PartitionId) -> Candidates,
    suspects: &Suspects,
) -> Result<Assignment> {
    let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut pinned: BTreeMap<PartitionId, NodeId> = BTreeMap::new();
    let (mut places, mut passed_over) = (BTreeMap::new(), BTreeSet::new());
    let workers: Vec<NodeId> =
        std::iter::once(coordinator)
            .chain(alive.iter().copied().filter(|node| {
                *node != coordinator && !suspects.nodes.contains(node) && !suspects.silent.contains(node)
            }))
            .collect();
    for fragment in &graph.fragments {
        let mut nodes = Vec::with_capacity(fragment.tasks.len());
        for task in &fragment.tasks {
            let node = match task.place {
                Place::Coordinator => coordinator,
                Place::Anywhere => least_loaded(&workers, &load, coordinator).unwrap_or(coordinator),
                Place::Replica(partition) => match pinned.get(&partition) {
                    Some(node) => *node,
                    None => {
                        let candidates = candidates(partition);
                        let trusted: Vec<NodeId> = candidates
                            .all()
                            .filter(|node| {
                                !suspects.nodes.contains(node) && !suspects.replicas.contains(&(partition, *node))
                            })
                            .collect();
                        let heard: Vec<NodeId> =
                            trusted.iter().copied().filter(|node| !suspects.silent.contains(node)).collect();
                        let is_behind = |node: &NodeId| candidates.behind.contains(node);
                        let level: Vec<NodeId> = heard.iter().copied().filter(|node| !is_behind(node)).collect();
                        if !level.is_empty() {
                            passed_over.extend(heard.iter().copied().filter(is_behind));
                        }
                        let choices = [level, heard, trusted, candidates.all().collect()];
                        let choice = choices.iter().find_map(|choice| least_loaded(choice, &load, coordinator));
                        let node = choice.ok_or_else(|| {
                            Error::new(
                                ErrorCode::PartitionUnavailable,
                                format!("no live, caught-up replica of partition {partition}"),
                            )
                            .with_help("wait until one of its nodes is back; GET /api/v1/cluster shows them")
                        })?;
                        pinned.insert(partition, node);
                        node
                    }
                },
            };
            *load.entry(node).or_default() += 1;
            nodes.push(node);
        }
        places.insert(fragment.id, nodes);
    }
    Ok(Assignment { places, passed_over })
}

fn least_loaded(nodes: &[NodeId], load: &BTreeMap<NodeId, usize>, coordinator: NodeId) -> Option<NodeId> {
    // `min_by_key` keeps the first of equals: the preferred one.
    nodes.iter().copied().min_by_key(|node| (load.get(node).copied().unwrap_or(0), *node != coordinator))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::Schema;
    use shoal_planner::{Edge, Fragment, TaskSpec};

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn graph(fragments: &[&[Place]]) -> FragmentGraph {
        let fragments = (0u32..)
            .zip(fragments)
            .map(|(id, places)| Fragment {
                id: FragmentId(id),
                plan: Vec::new(),
                tasks: places.iter().map(|place| TaskSpec { place: *place }).collect(),
                output: Edge::Gather,
                inputs: Vec::new(),
                label: String::new(),
            })
            .collect();
        FragmentGraph { fragments, schema: Arc::new(Schema::empty()), read_level: shoal_kernel::ReadLevel::One }
    }

    fn places(graph: &FragmentGraph, candidates: &[&[NodeId]], suspects: &Suspects) -> Result<Vec<Vec<u32>>> {
        placed(graph, candidates, &[], suspects).map(|(places, _)| places)
    }

    /// The places, and who was passed over, where these nodes are behind with all that they have.
    fn placed(
        graph: &FragmentGraph,
        candidates: &[&[NodeId]],
        behind: &[NodeId],
        suspects: &Suspects,
    ) -> Result<(Vec<Vec<u32>>, BTreeSet<NodeId>)> {
        let alive = BTreeSet::from([A, B, C]);
        let of = |partition: PartitionId| {
            let nodes = usize::try_from(partition.0).ok().and_then(|at| candidates.get(at));
            let nodes = nodes.copied().unwrap_or_default().iter().copied();
            let (behind, level) = nodes.partition(|node| behind.contains(node));
            Candidates { level, behind }
        };
        let assignment = assign(graph, B, &alive, of, suspects)?;
        let places = graph.fragments.iter().map(|f| assignment.of(f.id).iter().map(|node| node.0).collect()).collect();
        Ok((places, assignment.passed_over))
    }

    #[test]
    fn replicas_that_are_far_behind_are_passed_over_while_others_answer() {
        let graph = graph(&[&[replica(0), replica(1)]]);
        let none = Suspects::default();
        // The coordinator's own, and one that has less to do.
        let (places, passed) = placed(&graph, &[&[B, A], &[A, B]], &[B], &none).unwrap();
        assert_eq!((places, passed), (vec![vec![1, 1]], BTreeSet::from([B])));
        let (places, passed) = placed(&graph, &[&[B], &[A]], &[B], &none).unwrap();
        assert_eq!((places, passed), (vec![vec![2, 1]], BTreeSet::new()), "there is no other");
        let silent = Suspects { silent: BTreeSet::from([A]), ..Suspects::default() };
        assert_eq!(placed(&graph, &[&[B, A], &[A, C]], &[B, C], &silent).unwrap().0, vec![vec![2, 3]]);
    }

    fn replica(partition: u64) -> Place {
        Place::Replica(PartitionId(partition))
    }

    #[test]
    fn spreads_leaves_and_prefers_the_coordinator_among_equals() {
        let everywhere: &[NodeId] = &[A, B, C];
        let graph = graph(&[&[replica(0), replica(1), replica(2), replica(3)], &[Place::Coordinator]]);
        let placed = places(&graph, &[everywhere; 4], &Suspects::default()).unwrap();
        assert_eq!(placed, vec![vec![2, 1, 3, 2], vec![2]]);
    }

    #[test]
    fn two_readers_of_one_partition_share_its_replica() {
        let graph = graph(&[&[replica(0), replica(1)], &[replica(1), replica(0)]]);
        let placed = places(&graph, &[&[A, C], &[C, A]], &Suspects::default()).unwrap();
        assert_eq!(placed[0], vec![1, 3]);
        assert_eq!(placed[1], vec![3, 1]);
    }

    #[test]
    fn passes_over_suspects_while_somebody_else_can_serve() {
        let graph = graph(&[&[replica(0)], &[Place::Anywhere, Place::Anywhere, Place::Anywhere]]);
        let mut suspects = Suspects {
            nodes: BTreeSet::from([A]),
            replicas: BTreeSet::from([(PartitionId(0), B)]),
            ..Suspects::default()
        };
        assert_eq!(places(&graph, &[&[A, B, C]], &suspects).unwrap(), vec![vec![3], vec![2, 2, 3]]);
        suspects.replicas.insert((PartitionId(0), C));
        assert_eq!(places(&graph, &[&[C]], &suspects).unwrap()[0], vec![3]);
    }

    #[test]
    fn silent_nodes_come_before_those_that_have_failed() {
        let graph = graph(&[&[replica(0)], &[Place::Anywhere, Place::Anywhere]]);
        let silent = |nodes: &[NodeId], failed: &[NodeId]| {
            let (silent, nodes) = (nodes.iter().copied().collect(), failed.iter().copied().collect());
            let suspects = Suspects { silent, nodes, ..Suspects::default() };
            places(&graph, &[&[A, C]], &suspects).unwrap()
        };
        assert_eq!(silent(&[A], &[]), vec![vec![3], vec![2, 2]]);
        assert_eq!(silent(&[A], &[C])[0], vec![1]);
        assert_eq!(silent(&[A, C], &[A])[0], vec![3]);
    }

    #[test]
    fn a_partition_without_replica_is_an_error_and_never_empty() {
        let graph = graph(&[&[replica(0), replica(7)]]);
        let error = places(&graph, &[&[A]], &Suspects::default()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::PartitionUnavailable);
        assert!(error.message().contains("p7"), "{error}");
    }
}
