//! Making one node the whole of the consensus, when most of its voters are gone for good.
//!
//! Two entries are put behind the log of a node that is stopped, as if a leader of the next term had just proposed them: a membership
//! of which it is the only voter, and a command that leaves numbers free ([`Command::Recover`]). The node elects itself when it
//! starts, and they are agreed upon, with whatever lay before them in the log. Whoever else is left follows, and gets a vote again by
//! asking. What is not safe about that no file can say: that the lost ones are lost. If they are not, there are two catalogs.
//!
//! One that is left may have got further than the node that took over, with the lost ones. It notices that at its first message from
//! the new leader and ends; [`follow`] has it forget its catalog and take the recovered one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::{CommittedLeaderId, EntryPayload};
use shoal_catalog::Command;
use shoal_kernel::env::Disk;
use shoal_kernel::level::quorum;
use shoal_kernel::{Error, ErrorCode, NodeId, Result};

use super::examine::read;
use super::journal::{Frame, Journal};
use super::types::{Entry, LogId, Peer, Proposal, Vote};
use super::{log, machine};

type Members = openraft::Membership<NodeId, Peer>;

/// What a log is put aside as when its node forgets it.
const PUT_ASIDE: &str = "forgotten";

/// How far the log of a node goes. Of several nodes that are left, the one with the greatest holds everything that the others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogEnd {
    /// The term of the leader who made the last entry.
    pub term: u64,
    /// The index of the last entry.
    pub index: u64,
}

impl From<LogId> for LogEnd {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl fmt::Display for LogEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "term {}, entry {}", self.term, self.index)
    }
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Where the log ended: of several nodes that are left, the one with the greatest should be taken.
    pub end: LogEnd,
    /// Members that are left besides, which follow.
    pub others: Vec<NodeId>,
}

/// A catalog that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// Where its log ended.
    pub end: Option<LogEnd>,
}

/// The files of a node that is stopped.
struct Files {
    log: PathBuf,
    snapshot: PathBuf,
    journal: Journal,
    /// By the newest word there is, agreed upon or not.
    members: Members,
}

impl Files {
    fn read(disk: &Arc<dyn Disk>, data_dir: &Path, node: NodeId) -> Result<Self> {
        let dir = data_dir.join("catalog");
        let (log, snapshot) = (dir.join(log::FILE), dir.join(machine::FILE));
        let bytes = read(disk, &log)?.ok_or_else(|| invalid(format!("{} holds no catalog", data_dir.display())))?;
        let (mut journal, _) = Journal::replay(&bytes, node)?;
        let (applied, members) = machine::members(read(disk, &snapshot)?.as_deref())?;
        // A crash between the two files of a snapshot that arrives leaves a log that ends before it.
        if let Some(applied) = applied.filter(|applied| Some(*applied) > journal.last()) {
            journal.absorb(Frame::Truncate(0));
            journal.absorb(Frame::Purged(applied));
        }
        let in_log = journal.entries.values().rev().find_map(|entry| match &entry.payload {
            EntryPayload::Membership(members) => Some(members.clone()),
            EntryPayload::Blank | EntryPayload::Normal(_) => None,
        });
        Ok(Self { log, snapshot, journal, members: in_log.unwrap_or(members) })
    }
}

/// Makes the node of a data directory, in which none runs, the only voter on the catalog, without the members that are lost. A dry run
/// changes nothing.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`]: there is no catalog; the node or one of the lost is no member; the voters that are left are a
/// majority. [`ErrorCode::Corruption`] and others as at a start of the node.
pub fn recover(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
    node: NodeId,
    lost: &BTreeSet<NodeId>,
    dry_run: bool,
) -> Result<Recovery> {
    let Files { log, mut journal, members, .. } = Files::read(disk, data_dir, node)?;
    let without = without(&members, node, lost)?;
    let last = journal.last().ok_or_else(|| invalid("the log of the catalog is empty"))?;
    let others = without.nodes().map(|(id, _)| *id).filter(|id| *id != node).collect();
    let recovery = Recovery { end: last.into(), others };
    if dry_run {
        return Ok(recovery);
    }
    let term = term_after(&journal);
    let at = |index| LogId::new(CommittedLeaderId::new(term, node), index);
    // A number that no other proposal has: their lower halves are drawn at random.
    let proposal = Proposal { id: u128::from(node.0) << 96 | u128::from(term), command: Command::Recover };
    journal.absorb(Frame::Vote(Vote::new(term, node)));
    journal.absorb(Frame::Entries(vec![
        Entry { log_id: at(last.index + 1), payload: EntryPayload::Membership(without) },
        Entry { log_id: at(last.index + 2), payload: EntryPayload::Normal(proposal) },
    ]));
    disk.replace(&log, &journal.compact(node)?).map_err(|error| Error::from(error).context(log.display()))?;
    Ok(recovery)
}

/// Has the node of a data directory, in which none runs, forget its catalog: it is a member that takes the catalog of the others from
/// its beginning, and shows it when it has the newest. The files are kept beside the new ones. Only for a node that has found out that
/// its catalog has diverged: what any other has agreed on counts.
///
/// # Errors
/// [`ErrorCode::InvalidRequest`]: there is no catalog, or it has not diverged. [`ErrorCode::Corruption`] and others as at a start of the
/// node.
pub fn follow(disk: &Arc<dyn Disk>, data_dir: &Path, node: NodeId) -> Result<Forgotten> {
    let Files { log, snapshot, journal, .. } = Files::read(disk, data_dir, node)?;
    let failed = |error| Error::from(error).context(data_dir.display());
    let (diverged, follows) = (log.with_file_name(machine::DIVERGED), log.with_file_name(machine::FOLLOWS));
    if !disk.exists(&diverged).map_err(failed)? {
        return Err(invalid(format!(
            "the catalog of {node} has not diverged from that of the others, as far as it knows"
        ))
        .with_help("start it: it follows them, or finds out"));
    }
    // Its vote stays: with it this node was heard by others. Without any, nobody would take it for a member.
    let vote = journal.vote.unwrap_or_else(|| Vote::new(term_after(&journal), node));
    let empty = Journal { vote: Some(vote), ..Journal::default() };
    // The snapshot first: it must not be met by an empty log. Until the log is empty, too, this can be done again.
    if disk.exists(&snapshot).map_err(failed)? {
        disk.rename(&snapshot, &snapshot.with_extension(PUT_ASIDE)).map_err(failed)?;
    }
    if journal.last().is_some() {
        disk.replace(&log.with_extension(PUT_ASIDE), &journal.compact(node)?).map_err(failed)?;
        disk.replace(&log, &empty.compact(node)?).map_err(failed)?;
    }
    disk.rename(&diverged, &follows).map_err(failed)?;
    disk.sync_dir(&data_dir.join("catalog")).map_err(failed)?;
    Ok(Forgotten { end: journal.last().map(LogEnd::from) })
}

/// A term that nobody whom this node has heard of has led in.
fn term_after(journal: &Journal) -> u64 {
    let voted = journal.vote.map_or(0, |vote| vote.leader_id().term);
    journal.last().map_or(0, |last| last.leader_id.term).max(voted) + 1
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

/// The error of a node that must not go on with the catalog that it has.
pub(super) fn diverged(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::CatalogDiverged, message).with_help(
        "stop this node, have it follow with: shoal cluster recover --data-dir DIR --follow, and start it again",
    )
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidRequest, message)
}
