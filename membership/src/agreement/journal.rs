//! The content of the log file, pure: frames, how they are read back, and the state they add up to.
//!
//! Everything that consensus must not forget goes into one append-only file: votes, entries, truncations, how far is
//! committed. One write is one frame, and the next frame is written only after the one before has been synced. So a crash can
//! leave at most one bad frame, at the very end; it was never acknowledged and is cut off. A bad frame anywhere else is
//! corruption, and the file is refused: forgetting an acknowledged vote or entry could elect two leaders.
//!
//! A frame is `magic (4) | length n (4, LE) | complement of the length (4, LE) | body (n), sealed`.

use std::collections::BTreeMap;

use openraft::{CommittedLeaderId, EntryPayload, LogIdOptionExt, RaftLogId};
use serde::{Deserialize, Serialize};
use shoal_catalog::Command;
use shoal_kernel::{Error, ErrorCode, NodeId, Result, wire};

use super::types::{Entry, LogId, Proposal, Vote};

const MAGIC: [u8; 4] = *b"shrl";
const HEADER_BYTES: usize = 12;
/// The version of the format that this build writes, and the only one it reads.
const FORMAT_VERSION: u32 = 9;

/// One write.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Frame {
    /// First in every file.
    Head { version: u32, node: NodeId },
    /// This node has voted.
    Vote(Vote),
    /// Entries that follow the last, all from one append.
    Entries(Vec<Entry>),
    /// Entries from this index on are gone: another leader's count.
    Truncate(u64),
    /// Known to be committed up to here.
    Committed(LogId),
    /// Entries up to here are part of a snapshot and gone.
    Purged(LogId),
}

/// What the frames of a file add up to.
#[derive(Debug, Clone, Default)]
pub(super) struct Journal {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) entries: BTreeMap<u64, Entry>,
}

impl Journal {
    /// The id of the last entry, or of the last purged one.
    pub(super) fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|entry| *entry.get_log_id()).or(self.purged)
    }

    /// Whether another entry has been agreed upon at its place than a leader sends whom this node may follow: one that has been voted out
    /// without knowing may send what nobody agreed upon. Of entries that are gone for a snapshot only their terms are known,
    /// so that a wrong one may be found a few entries late; at the last one that was agreed upon it is found.
    pub(super) fn contradicts(&self, leader: &Vote, id: LogId) -> bool {
        // Votes are in order only in part.
        let follows = self.vote.is_none_or(|vote| *leader >= vote);
        if !follows {
            return false;
        }
        let Some(agreed) = self.committed.max(self.purged).filter(|agreed| id.index <= agreed.index) else {
            return false;
        };
        let known = self.entries.get(&id.index).map(|entry| *entry.get_log_id());
        match known.or(self.purged.filter(|purged| purged.index == id.index)) {
            Some(known) => known != id,
            None => id.leader_id > agreed.leader_id,
        }
    }

    /// Takes over one write.
    pub(super) fn absorb(&mut self, frame: Frame) {
        match frame {
            Frame::Head { .. } => {}
            Frame::Vote(vote) => self.vote = Some(vote),
            Frame::Entries(entries) => {
                self.entries.extend(entries.into_iter().map(|entry| (entry.get_log_id().index, entry)));
            }
            Frame::Truncate(from) => {
                self.entries.split_off(&from);
            }
            Frame::Committed(id) => self.committed = Some(id),
            Frame::Purged(id) => {
                self.entries = self.entries.split_off(&(id.index + 1));
                self.purged = Some(id);
                // What is in a snapshot was agreed upon.
                self.committed = self.committed.max(Some(id));
            }
        }
    }

    /// The shortest file with this content.
    pub(super) fn compact(&self, node: NodeId) -> Result<Vec<u8>> {
        let mut frames = vec![Frame::Head { version: FORMAT_VERSION, node }];
        frames.extend(self.vote.map(Frame::Vote));
        frames.extend(self.purged.map(Frame::Purged));
        if !self.entries.is_empty() {
            frames.push(Frame::Entries(self.entries.values().cloned().collect()));
        }
        frames.extend(self.committed.map(Frame::Committed));
        let mut bytes = Vec::new();
        for frame in &frames {
            bytes.extend(encode(frame)?);
        }
        Ok(bytes)
    }

    /// Reads a file. Also says how many of its bytes are good; the rest is a write that was cut short.
    ///
    /// # Errors
    /// The file is corrupted, of another node, or of a format this build does not know.
    pub(super) fn replay(bytes: &[u8], node: NodeId) -> Result<(Self, usize)> {
        let mut journal = Self::default();
        let mut at = 0;
        while at < bytes.len() {
            let Some((frame, length)) = decode(&bytes[at..]) else {
                if at == 0 {
                    return Err(corrupt(Some(0), "the log of the catalog does not start as one"));
                }
                if (at + 1..bytes.len()).any(|later| decode(&bytes[later..]).is_some()) {
                    return Err(corrupt(Some(at), "the log of the catalog is damaged, and goes on after it"));
                }
                break;
            };
            match frame {
                Frame::Head { version, .. } if version != FORMAT_VERSION => {
                    return Err(Error::new(
                        ErrorCode::IncompatibleVersion,
                        format!("the log of the catalog has format {version}, this build reads {FORMAT_VERSION}"),
                    ));
                }
                Frame::Head { node: owner, .. } if owner != node => {
                    return Err(Error::new(
                        ErrorCode::InvalidRequest,
                        format!("the log of the catalog belongs to node {owner}, not to {node}"),
                    ));
                }
                Frame::Head { .. } => {}
                _ if at == 0 => return Err(corrupt(Some(0), "the log of the catalog does not start as one")),
                frame => journal.absorb(frame),
            }
            at += length;
        }
        journal.check()?;
        Ok((journal, at))
    }

    /// The node that a file belongs to, if its beginning can be read.
    pub(super) fn owner(bytes: &[u8]) -> Option<NodeId> {
        match decode(bytes) {
            Some((Frame::Head { node, .. }, _)) => Some(node),
            _ => None,
        }
    }

    fn check(&self) -> Result<()> {
        let mut next = self.purged.next_index();
        for index in self.entries.keys() {
            // Nothing before the first entry is missing only if something was purged up to it.
            if *index != next {
                return Err(corrupt(None, format!("the log of the catalog lacks entry {next}")));
            }
            next = index + 1;
        }
        if self.committed.next_index() > next {
            return Err(corrupt(None, "the log of the catalog ends before what was committed"));
        }
        Ok(())
    }
}

/// The bytes of one frame.
pub(super) fn encode(frame: &Frame) -> Result<Vec<u8>> {
    let body = wire::seal(frame)?;
    let length = u32::try_from(body.len())
        .map_err(|_| Error::new(ErrorCode::LimitExceeded, "an entry of the catalog's log is larger than 4 GiB"))?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&(!length).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Bytes that a command takes in the log, as an entry that is written alone.
///
/// # Errors
/// The command cannot be encoded: a bug.
pub fn log_bytes(command: &Command) -> Result<usize> {
    let log_id = LogId::new(CommittedLeaderId::new(1, NodeId(u32::MAX)), u64::from(u32::MAX));
    let proposal = Proposal { id: u128::MAX, command: command.clone() };
    Ok(encode(&Frame::Entries(vec![Entry { log_id, payload: EntryPayload::Normal(proposal) }]))?.len())
}

/// The frame at the start of the bytes and its length, if one is there whole.
fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    if *magic != MAGIC {
        return None;
    }
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (complement, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_le_bytes(*length);
    if u32::from_le_bytes(*complement) != !length {
        return None;
    }
    let length = usize::try_from(length).ok()?;
    let frame = wire::unseal(rest.get(..length)?).ok()?;
    Some((frame, HEADER_BYTES + length))
}

/// What to do about files of the catalog that are damaged.
pub(super) const REMEDY: &str = "remove the node from the cluster and start it with an empty data directory";

fn corrupt(at: Option<usize>, why: impl Into<String>) -> Error {
    Error::new(ErrorCode::Corruption, why).in_file("catalog/log", at.map(|at| at as u64)).with_help(REMEDY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    fn id(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(1, NODE), index)
    }

    fn entries(indices: std::ops::Range<u64>) -> Frame {
        Frame::Entries(indices.map(|index| Entry { log_id: id(index), payload: EntryPayload::Blank }).collect())
    }

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Head { version: FORMAT_VERSION, node: NODE },
            Frame::Vote(Vote::new(1, NODE)),
            entries(0..3),
            Frame::Committed(id(1)),
            entries(3..6),
            Frame::Truncate(4),
            entries(4..9),
            Frame::Purged(id(2)),
            Frame::Vote(Vote::new_committed(2, NODE)),
        ]
    }

    /// Index of first and last entry, committed, purged, term of the vote.
    type Shape = (Option<u64>, Option<u64>, Option<u64>, Option<u64>, Option<u64>);

    fn shape(journal: &Journal) -> Shape {
        (
            journal.entries.keys().next().copied(),
            journal.entries.keys().next_back().copied(),
            journal.committed.map(|id| id.index),
            journal.purged.map(|id| id.index),
            journal.vote.map(|vote| vote.leader_id.term),
        )
    }

    #[test]
    fn cut_anywhere_it_holds_what_was_whole() {
        let mut bytes = Vec::new();
        let mut journal = Journal::default();
        let mut whole = Vec::new();
        for frame in frames() {
            bytes.extend(encode(&frame).unwrap());
            journal.absorb(frame);
            whole.push((bytes.len(), shape(&journal)));
        }
        assert_eq!(shape(&journal), (Some(3), Some(8), Some(2), Some(2), Some(2)));
        for cut in whole[0].0..=bytes.len() {
            let (replayed, good) = Journal::replay(&bytes[..cut], NODE).unwrap();
            let expected = whole.iter().rev().find(|(end, _)| *end <= cut).unwrap();
            assert_eq!((good, shape(&replayed)), *expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_block_that_never_reached_the_disk_is_a_cut_too() {
        let mut bytes = Vec::new();
        for frame in frames() {
            bytes.extend(encode(&frame).unwrap());
        }
        let start = bytes.len();
        bytes.extend(encode(&entries(9..40)).unwrap());
        let middle = (start + bytes.len()) / 2;
        bytes[middle..].fill(0);
        let (journal, good) = Journal::replay(&bytes, NODE).unwrap();
        assert_eq!((good, journal.last()), (start, Some(id(8))));
    }

    #[test]
    fn damage_before_the_end_is_refused() {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for frame in frames() {
            bytes.extend(encode(&frame).unwrap());
            ends.push(bytes.len());
        }
        let last = ends[ends.len() - 2];
        for at in 0..last {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            let code = Journal::replay(&damaged, NODE).map(|_| ()).unwrap_err().code();
            assert_eq!(code, ErrorCode::Corruption, "byte {at}");
        }
    }

    #[test]
    fn what_was_committed_must_be_there() {
        let mut bytes = Vec::new();
        for frame in [Frame::Head { version: FORMAT_VERSION, node: NODE }, Frame::Committed(id(3)), entries(0..3)] {
            bytes.extend(encode(&frame).unwrap());
        }
        assert_eq!(Journal::replay(&bytes, NODE).unwrap_err().code(), ErrorCode::Corruption);
    }

    #[test]
    fn what_was_agreed_upon_is_not_overruled() {
        let mut journal = Journal::default();
        let leader = Vote::new_committed(2, NODE);
        assert!(!journal.contradicts(&leader, id(0)));
        frames().into_iter().for_each(|frame| journal.absorb(frame));
        journal.absorb(Frame::Committed(id(6)));
        let other = |term, index| LogId::new(CommittedLeaderId::new(term, NodeId(9)), index);
        let contradicts = |term, index| journal.contradicts(&leader, other(term, index));
        assert!((0..12).all(|index| !journal.contradicts(&leader, id(index))), "its own entries");
        let voted_out = Vote::new_committed(1, NodeId(9));
        assert!((0..12).all(|index| !journal.contradicts(&voted_out, other(1, index))), "of one whom nobody follows");
        assert!((2..=6).all(|index| contradicts(1, index) && contradicts(2, index)));
        assert!(contradicts(2, 1) && !contradicts(0, 1), "entry 1 is gone for a snapshot");
        assert!(!contradicts(2, 7), "nothing was agreed upon there");
    }

    #[test]
    fn compaction_keeps_the_content() {
        let mut journal = Journal::default();
        frames().into_iter().for_each(|frame| journal.absorb(frame));
        let bytes = journal.compact(NODE).unwrap();
        let (replayed, good) = Journal::replay(&bytes, NODE).unwrap();
        assert_eq!((shape(&replayed), good), (shape(&journal), bytes.len()));
        assert_eq!(Journal::replay(&bytes, NodeId(8)).unwrap_err().code(), ErrorCode::InvalidRequest);
    }
}
