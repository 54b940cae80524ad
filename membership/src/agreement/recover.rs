//! Making one node the whole of the consensus, when most of its voters are gone for good.
//!
//! An entry is put behind the log of a node that is stopped: a membership of which it is the only voter, as if a leader of the next
//! term had just proposed it. The node elects itself when it starts, and the entry is agreed upon, with whatever lay before it
//! in the log. Whoever else is left follows, and gets a vote again by asking. What is not safe about that no file can say: that the lost ones
//! are lost. If they are not, there are two catalogs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use openraft::{CommittedLeaderId, EntryPayload};
use shoal_kernel::env::Disk;
use shoal_kernel::level::quorum;
use shoal_kernel::{Error, ErrorCode, NodeId, Result};

use super::examine::read;
use super::journal::{Frame, Journal};
use super::types::{Entry, LogId, Peer, Vote};
use super::{log, machine};

type Members = openraft::Membership<NodeId, Peer>;

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Index of the last entry that the log had: of several nodes that are left, the one with the greatest should be taken.
    pub last_entry: u64,
    /// Members that are left besides, which follow.
    pub others: Vec<NodeId>,
}

/// Makes the node of a data directory, in which none runs, the only voter on the catalog, without the members that are lost.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`]: there is no catalog; the node or one of the lost is no member; the voters that are left are a
/// majority. [`ErrorCode::Corruption`] and others as at a start of the node.
pub fn recover(disk: &Arc<dyn Disk>, data_dir: &Path, node: NodeId, lost: &BTreeSet<NodeId>) -> Result<Recovery> {
    let dir = data_dir.join("catalog");
    let path = dir.join(log::FILE);
    let bytes = read(disk, &path)?.ok_or_else(|| invalid(format!("{} holds no catalog", data_dir.display())))?;
    let (mut journal, _) = Journal::replay(&bytes, node)?;
    let members = members(&journal, read(disk, &dir.join(machine::FILE))?.as_deref())?;
    let without = without(&members, node, lost)?;
    let last = journal.last().ok_or_else(|| invalid("the log of the catalog is empty"))?;
    let voted = journal.vote.map_or(0, |vote| vote.leader_id().term);
    let term = last.leader_id.term.max(voted) + 1;
    let log_id = LogId::new(CommittedLeaderId::new(term, node), last.index + 1);
    let others = without.nodes().map(|(id, _)| *id).filter(|id| *id != node).collect();
    journal.absorb(Frame::Vote(Vote::new(term, node)));
    journal.absorb(Frame::Entries(vec![Entry { log_id, payload: EntryPayload::Membership(without) }]));
    disk.replace(&path, &journal.compact(node)?).map_err(|error| Error::from(error).context(path.display()))?;
    Ok(Recovery { last_entry: last.index, others })
}

/// The members by the newest word there is, agreed upon or not.
fn members(journal: &Journal, snapshot: Option<&[u8]>) -> Result<Members> {
    let in_log = journal.entries.values().rev().find_map(|entry| match &entry.payload {
        EntryPayload::Membership(members) => Some(members.clone()),
        EntryPayload::Blank | EntryPayload::Normal(_) => None,
    });
    match in_log {
        Some(members) => Ok(members),
        None => machine::members(snapshot),
    }
}

/// Those that stay, of whom the node alone votes.
fn without(members: &Members, node: NodeId, lost: &BTreeSet<NodeId>) -> Result<Members> {
    let all: BTreeMap<NodeId, Peer> = members.nodes().map(|(id, peer)| (*id, *peer)).collect();
    if let Some(stranger) = lost.iter().chain([&node]).find(|id| !all.contains_key(id)) {
        let known: Vec<String> = all.keys().map(NodeId::to_string).collect();
        return Err(invalid(format!("{stranger} is no member; the catalog knows {}", known.join(", "))));
    }
    if lost.contains(&node) {
        return Err(invalid(format!("{node} is the node of this directory, and cannot be lost")));
    }
    let too_few = |voters: &BTreeSet<NodeId>| voters.difference(lost).count() < quorum(voters.len());
    if !members.get_joint_config().iter().any(too_few) {
        return Err(invalid("a majority of the catalog's voters is left without the lost ones")
            .with_help("start the voters that are left, and give the lost ones up with: shoal cluster remove"));
    }
    let nodes: BTreeMap<NodeId, Peer> = all.into_iter().filter(|(id, _)| !lost.contains(id)).collect();
    Ok(Members::new(vec![BTreeSet::from([node])], nodes))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidRequest, message)
}
