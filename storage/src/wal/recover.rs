//! Reading the log after a start, and judging its end.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_kernel::env::{Disk, OpenMode};
use shoal_kernel::{Error, ErrorCode, Result, wire};

use super::frame::{FrameHeader, HEADER_BYTES, MAGIC};
use super::salt::Salt;
use super::{FILE_MAGIC, FILE_VERSION, FileHead, WalFile, file_name, position_of};
use crate::damage::{self, damaged};
use crate::head::{self, HEAD_BYTES};
use crate::layout::StoredColumn;

/// How the log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// With a complete record.
    Clean,
    /// With an incomplete record of that many bytes, which was not synced.
    Torn(u64),
    /// With a complete record whose checksum is wrong, or records behind a bad one of which none says that it was synced:
    /// they may have been acknowledged.
    Doubt(u64),
    /// There is no log at all.
    Missing,
}

/// A frame, and where it stands.
pub(crate) struct FrameAt {
    pub(super) path: Arc<Path>,
    pub(super) columns: Arc<[StoredColumn]>,
    pub(super) salt: Salt,
    pub(super) start: u64,
    pub(super) header: FrameHeader,
}

/// What was found.
pub(crate) struct Recovered {
    pub(crate) tail: Tail,
    /// The log is lazy and was not closed: it may have ended with records that were acknowledged and not synced.
    pub(crate) unclean: bool,
    /// Up to here everything was durable before, for all that is known.
    pub(crate) durable: u64,
    /// Files to keep, oldest first, cut to what is good.
    pub(crate) files: VecDeque<WalFile>,
    /// Position of the last good record.
    pub(crate) last_position: u64,
    /// What is to be read back, in order.
    pub(super) frames: Vec<FrameAt>,
    /// The last file's good bytes, which may be in the page cache only.
    rewrite: Option<(PathBuf, Vec<u8>)>,
}

impl Recovered {
    /// Writes the last file anew and makes it durable: what was read back may be what a failed fsync left in memory.
    pub(crate) fn make_durable(&mut self, disk: &Arc<dyn Disk>) -> Result<()> {
        match self.rewrite.take() {
            Some((path, bytes)) => disk
                .replace(&path, &bytes)
                .map_err(|error| Error::from(error).context(format_args!("rewriting {}", path.display()))),
            None => Ok(()),
        }
    }
}

struct Parsed {
    head: FileHead,
    /// Where frames start, and their headers.
    frames: Vec<(usize, FrameHeader)>,
    good_bytes: usize,
    tail: Tail,
    /// It ends with a closing mark.
    closed: bool,
}

/// Looks through all records above `flushed`. `skips` is a planted bug: damage in the middle is passed over.
///
/// # Errors
/// [`ErrorCode::Corruption`] if a bad record is followed by good ones, or records are missing;
/// [`ErrorCode::IncompatibleVersion`] for a file of a newer build.
pub(crate) fn recover(disk: &Arc<dyn Disk>, dir: &Path, flushed: u64, skips: bool) -> Result<Recovered> {
    let mut paths = Vec::new();
    for entry in disk.list(dir)? {
        if let Some(position) = position_of(&entry.name).filter(|_| !entry.is_dir) {
            paths.push((position, dir.join(entry.name)));
        }
    }
    paths.sort();
    // Files below the flushed position may be left over from a removal that a crash undid, with gaps between them.
    let needed = paths.iter().rposition(|(first, _)| *first <= flushed + 1).unwrap_or(0);
    for (_, path) in paths.drain(..needed) {
        disk.remove_file(&path)?;
    }

    let mut recovered = Recovered {
        tail: Tail::Missing,
        unclean: false,
        durable: flushed,
        files: VecDeque::new(),
        last_position: flushed,
        frames: Vec::new(),
        rewrite: None,
    };
    let count = paths.len();
    for (number, (first_position, path)) in paths.into_iter().enumerate() {
        let is_last = number + 1 == count;
        let bytes = disk.read(&path)?;
        let name = file_name(first_position);
        let at = |offset: usize| {
            let name = &name;
            move |error| damaged(error, name, Some(offset as u64))
        };
        let corrupt = |offset: usize, what: String| at(offset)(damage::corrupt(what));
        let parsed = parse(&bytes, skips).map_err(|(offset, error)| at(offset)(error))?;
        let Some(parsed) = parsed else {
            // Cut off while it was being created, before anything was written behind its header.
            if !is_last {
                return Err(corrupt(0, "the header of a log file is damaged".into()));
            }
            disk.remove_file(&path)?;
            recovered.tail = if recovered.files.is_empty() { Tail::Missing } else { Tail::Clean };
            continue;
        };
        if parsed.head.first_position != first_position {
            return Err(corrupt(0, "the file's name and its header differ".into()));
        }
        if first_position > recovered.last_position + 1 {
            let missing = format!("records {} to {} are missing", recovered.last_position + 1, first_position - 1);
            return Err(corrupt(0, missing));
        }
        if !is_last && parsed.tail != Tail::Clean {
            return Err(corrupt(parsed.good_bytes, "a damaged record is followed by others".into()));
        }
        // One file is synced before the next is begun.
        recovered.durable = recovered.durable.max(first_position - 1);
        let (shared_path, columns, salt) =
            (Arc::from(path.as_path()), Arc::from(parsed.head.columns), parsed.head.salt);
        for (start, header) in parsed.frames {
            let end = header.first_position + u64::from(header.entries);
            if end <= recovered.last_position + 1 {
                continue;
            }
            if skips {
                recovered.last_position = header.first_position - 1;
            }
            if header.first_position != recovered.last_position + 1 {
                return Err(corrupt(start, format!("record {} is missing", recovered.last_position + 1)));
            }
            recovered.last_position = end - 1;
            recovered.durable = recovered.durable.max(header.durable());
            let (path, columns) = (Arc::clone(&shared_path), Arc::clone(&columns));
            recovered.frames.push(FrameAt { path, columns, salt, start: start as u64, header });
        }
        recovered.unclean = parsed.head.lazy && !parsed.closed;
        recovered.tail = parsed.tail;
        recovered.files.push_back(WalFile { first_position, path: path.clone(), bytes: parsed.good_bytes as u64 });
        if is_last {
            let mut bytes = bytes;
            bytes.truncate(parsed.good_bytes);
            recovered.rewrite = Some((path, bytes));
        } else {
            // It was complete before the next one was begun; this only guards against a page cache that outlived us.
            disk.open(&path, OpenMode::ReadWrite)?.sync()?;
        }
    }
    if count > 0 && recovered.files.is_empty() {
        recovered.tail = Tail::Missing;
    }
    Ok(recovered)
}

/// Cuts a file into frames. `None` if it ends before its own header does. An error comes with the byte that it is about.
fn parse(bytes: &[u8], skips: bool) -> Result<Option<Parsed>, (usize, Error)> {
    let Some((head, mut at)) = parse_head(bytes).map_err(|error| (0, error))? else {
        // Without the header nobody knows its salt. Nothing of a client's stands in a file that has no record.
        return match bytes.windows(MAGIC.len()).any(|window| window == MAGIC) {
            true => Err((0, damage::corrupt("the header is damaged and records follow"))),
            false => Ok(None),
        };
    };
    let salt = head.salt;
    let mut frames = Vec::new();
    let mut expected = head.first_position;
    let mut closed = false;
    let tail = loop {
        let rest = &bytes[at..];
        if rest.is_empty() {
            break Tail::Clean;
        }
        closed = false;
        let header = FrameHeader::parse(rest, &salt);
        if let Some(header) = header.filter(|header| header.payload(&rest[HEADER_BYTES..], &salt).is_some()) {
            if header.first_position != expected && !skips {
                let found = header.first_position;
                return Err((at, damage::corrupt(format!("record {expected} expected, {found} found"))));
            }
            expected = header.first_position + u64::from(header.entries);
            closed = header.is_closing_mark();
            if !closed {
                frames.push((at, header));
            }
            at += HEADER_BYTES + header.payload_bytes;
            continue;
        }
        let complete = header.map(|header| HEADER_BYTES + header.payload_bytes).filter(|&len| len <= rest.len());
        // What lies within a record are its rows: nothing of the log's, and where the record's own header is gone, no rows look
        // like a frame of this file.
        let behind = at + header.map_or(1, |header| HEADER_BYTES + header.payload_bytes);
        let next = find_frame(bytes, behind, &salt);
        if let Some((next, _)) = next.filter(|_| skips) {
            at = next;
            continue;
        }
        if is_called_durable(bytes, behind, expected, &salt) {
            return Err((at, damage::corrupt("a damaged record is followed by good ones")));
        }
        let left = rest.len() as u64;
        let cut_short = header.is_some() && complete.is_none();
        // A file may have grown before its bytes were written: zeros are as good as nothing.
        let blank = rest.iter().all(|&byte| byte == 0);
        let torn = next.is_none() && (cut_short || blank || rest.len() < HEADER_BYTES);
        break if torn { Tail::Torn(left) } else { Tail::Doubt(left) };
    };
    Ok(Some(Parsed { head, frames, good_bytes: at, tail, closed }))
}

fn parse_head(bytes: &[u8]) -> Result<Option<(FileHead, usize)>> {
    let Some((length, rest)) = bytes.get(HEAD_BYTES..).and_then(<[u8]>::split_first_chunk::<4>) else {
        return Ok(None);
    };
    match head::check(bytes, FILE_MAGIC, FILE_VERSION) {
        Err(error) if error.code() == ErrorCode::Corruption => return Ok(None),
        checked => checked?,
    }
    let length = u32::from_le_bytes(*length) as usize;
    let head = rest.get(..length).and_then(|body| wire::unseal(body).ok());
    let Some(head) = head.filter(FileHead::is_possible) else {
        return Ok(None);
    };
    Ok(Some((head, HEAD_BYTES + 4 + length)))
}

/// The salt of a file, if its header is sound: for a fuzzer that makes checksums right.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn salt_of(bytes: &[u8]) -> Option<Salt> {
    parse_head(bytes).ok().flatten().map(|(head, _)| head.salt)
}

/// The next whole, valid frame.
fn find_frame(bytes: &[u8], from: usize, salt: &Salt) -> Option<(usize, FrameHeader)> {
    (from..bytes.len().saturating_sub(HEADER_BYTES - 1)).find_map(|at| {
        let header = FrameHeader::parse(&bytes[at..], salt)?;
        header.payload(&bytes[at + HEADER_BYTES..], salt).map(|_| (at, header))
    })
}

/// Whether a frame from there on says that the record was synced before it.
fn is_called_durable(bytes: &[u8], mut from: usize, position: u64, salt: &Salt) -> bool {
    while let Some((at, header)) = find_frame(bytes, from, salt) {
        if header.durable() >= position {
            return true;
        }
        from = at + HEADER_BYTES + header.payload_bytes;
    }
    false
}
