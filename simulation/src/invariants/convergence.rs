//! What must come true some time after the heal.

use std::collections::{BTreeMap, BTreeSet};

use shoal_actors::service::{NodeStatus, SwimState};
use shoal_catalog::ReplicaState;
use shoal_kernel::{Fsync, NodeId};

use super::Evidence;
use crate::cluster::{Question, Read, Target, View};
use crate::world::HostId;

/// Why what nodes see is not equal, or not as much of it as there should be. `core` are the hosts that are meant to run, `replicas`
/// those that every partition of the tables should have.
pub fn unequal(views: &[View], core: &[u16], replicas: usize) -> Vec<String> {
    let mut why: Vec<String> = views.iter().flat_map(|view| unequal_replicas(view, core, replicas)).collect();
    let versions: BTreeMap<u16, u64> = views.iter().map(|view| (view.node, view.status.catalog_version)).collect();
    if versions.values().collect::<BTreeSet<_>>().len() > 1 {
        why.push(format!("versions of the catalog, by node: {versions:?}"));
    }
    why
}

fn unequal_replicas(view: &View, core: &[u16], replicas: usize) -> Vec<String> {
    // Where a disk was lost, another node has come in the place of the one that had it.
    let replaced = |node: &NodeStatus| {
        let here = view
            .status
            .nodes
            .iter()
            .filter(|other| other.attributes.cluster_address == node.attributes.cluster_address);
        node.swim == SwimState::Down && here.count() > 1
    };
    let runs =
        |node: &&NodeStatus| HostId::of(node.attributes.cluster_address).is_some_and(|host| core.contains(&host.0));
    let running = view.status.nodes.iter().filter(runs).filter(|node| !replaced(node));
    let running: BTreeSet<NodeId> = running.map(|node| node.id).collect();
    let mut why = Vec::new();
    for partition in &view.status.partitions {
        let place = |what: String| format!("{} of table {}: {what}", partition.id, partition.table);
        let votes = |node: &NodeId| {
            partition.replicas.iter().any(|replica| replica.node == *node && replica.state == ReplicaState::Voting)
        };
        let voters = partition.replicas.iter().filter(|replica| replica.state == ReplicaState::Voting).count();
        // One that never comes back may have been told to leave before.
        let as_many = voters == replicas || (voters < replicas && !running.is_empty() && running.iter().all(votes));
        if [Target::Upserts.table(), Target::Events.table()].contains(&partition.table.as_str()) && !as_many {
            why.push(place(format!("{voters} replicas vote, not {replicas}")));
        }
        let mut contents = BTreeMap::new();
        for replica in partition.replicas.iter().filter(|replica| running.contains(&replica.node)) {
            if !replica.reachable {
                why.push(place(format!("replica on {} does not answer {}", replica.node, HostId(view.node))));
                continue;
            }
            if let Some(problem) = &replica.problem {
                why.push(place(format!("replica on {} has a problem: {problem}", replica.node)));
            }
            if replica.lag != Some(0) {
                why.push(place(format!("replica on {} lags by {:?}", replica.node, replica.lag)));
            }
            contents.entry((replica.digest.clone(), replica.rows)).or_insert_with(Vec::new).push(replica.node);
        }
        if contents.len() > 1 {
            why.push(place(format!("contents differ: {contents:?}")));
        }
    }
    why
}

pub(super) fn replicas_equal_after_heal(evidence: &Evidence) -> Vec<String> {
    let mut found = evidence.unequal.clone();
    // The same rows through every node; of tables that are synced late, until power is lost again.
    let lossy = (evidence.upserts_fsync, evidence.events_fsync) != (Fsync::Always, Fsync::Always);
    let losses = |read: &Read| match lossy {
        true => evidence.power_losses.iter().filter(|(at, _)| *at < read.begun).count(),
        false => 0,
    };
    let mut whole: BTreeMap<(&'static str, usize), &Read> = BTreeMap::new();
    for read in
        evidence.facts.reads.iter().filter(|read| read.at_rest && !matches!(read.question, Question::Point { .. }))
    {
        let first = whole.entry((read.question.word(), losses(read))).or_insert(read);
        if first.rows != read.rows {
            let word = read.question.word();
            let differing = first.rows.iter().zip(&read.rows).find(|(one, other)| one != other);
            found.push(format!(
                "at rest, {word} through {} gave {} rows and through {} {} (operation {} and operation {}); the first that differ: {differing:?}",
                HostId(first.node),
                first.rows.len(),
                HostId(read.node),
                read.rows.len(),
                first.id,
                read.id,
            ));
        }
    }
    found
}

pub(super) fn membership_converges(evidence: &Evidence) -> Vec<String> {
    let Some(views) = &evidence.not_converged else { return Vec::new() };
    let seen = |view: &View| {
        let nodes = view.status.nodes.iter().map(|node| format!("{} {:?}", node.id, node.swim));
        format!("{} sees {}", HostId(view.node), nodes.collect::<Vec<_>>().join(", "))
    };
    let last = views.iter().map(seen).collect::<Vec<_>>().join("; ");
    vec![format!("not converged 15 s after the heal, when {last}")]
}

pub(super) fn liveness_after_heal(evidence: &Evidence) -> Vec<String> {
    evidence.dead.iter().map(|what| format!("did not succeed: {what}")).collect()
}

pub(super) fn who_leaves_hands_over(evidence: &Evidence) -> Vec<String> {
    evidence.ledger.deserted()
}

pub(super) fn queues_under_limits(evidence: &Evidence) -> Vec<String> {
    evidence.facts.overfull.clone()
}

pub(super) fn no_internal_errors(evidence: &Evidence) -> Vec<String> {
    evidence.facts.internal.clone()
}

pub(super) fn nothing_left_over(evidence: &Evidence) -> Vec<String> {
    let mut found = evidence.in_hand.clone();
    if evidence.connections_left > 0 {
        found.push(format!("{} streams are open 10 s after every node was stopped", evidence.connections_left));
    }
    found
}

pub(super) fn disks_are_in_order(evidence: &Evidence) -> Vec<String> {
    evidence.on_disk.clone()
}
