//! Splitting: several stores in the place of one, without writing a row.
//!
//! Each child has a directory of its own, with second names (hard links) of the parent's segments and log files, and a manifest
//! that says which rows of each file are its own. No count of references exists that could be wrong: the file system frees a
//! file's bytes when its last name goes, whichever of the directories that is in, and whatever happens to one directory
//! leaves the others whole.
//!
//! The order of events, each durable before the next: the children's files; their manifests, under a name that does not count
//! yet; the parent's manifest, which says that there was a split: till then there is one store, from then on there are two;
//! then the children's manifests get their name, which whoever opens the parent after a crash gives them as well.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_kernel::env::Disk;
use shoal_kernel::{Applied, Error, ErrorCode, KeyRange, Planted, Result, SegmentId};

use super::schema::keep_schema;
use super::{Store, Writer, lock};
use crate::manifest::{MANIFEST_FILE, Manifest, STAGED_FILE, SplitRecord, write_meta};
use crate::segment::segment_file;
use crate::state::State;
use crate::wal::{LogFailure, Wal};

/// A child to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitChild {
    /// Name of its directory, which lies beside the parent's.
    pub dir: String,
    /// The keys that it gets.
    pub range: KeyRange,
    /// The owner's blob that it begins with.
    pub meta: Vec<u8>,
}

/// A split that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Names of the children's directories, beside the parent's.
    pub children: Vec<String>,
}

/// A child in the making.
struct Part<'a> {
    child: &'a SplitChild,
    dir: PathBuf,
    /// The rows that it gets, of each segment that has some.
    rows: Vec<(SegmentId, Range<u32>)>,
}

impl Store {
    /// Splits the store: each child gets the keys of its range, which end at encoded partition keys; what lies in no child's
    /// range is given up. All go on with the parent's log, its positions and tokens, and with what it promised to keep of
    /// changes. The parent takes no more writes from then on (`moved`); reads of snapshots go on. Writers wait for a number of
    /// small writes and links, not for rows: what is in memory is flushed before, and what comes meanwhile is carried over in the
    /// log.
    ///
    /// Gives the position up to which the children have the parent's log.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidRequest`] if the ranges overlap or do not lie in the store's, or a child's directory is in use; else
    /// as the disk reports. An error that says `applied: unknown` leaves the decision to the next [`Store::open`] of the parent;
    /// after any other one nothing has happened.
    pub fn split(&self, children: &[SplitChild]) -> Result<u64> {
        self.flush()?;
        let _flushing = lock(&self.flushing);
        let mut compaction = lock(&self.compacting);
        compaction.give_up();
        let maintenance = lock(&self.maintenance);
        lock(&self.writer).check_sound()?;
        let mut parts = self.split_parts(children)?;
        let undone = |parts: &[Part<'_>], error: Error| {
            // What stays behind does not count, and the next attempt removes it.
            parts.iter().for_each(|part| drop(clear(&self.disk, &part.dir)));
            error.with_applied(Applied::False)
        };
        let state = lock(&self.state).clone();
        let linked = state.check_whole().and_then(|()| {
            parts.iter_mut().try_for_each(|part| {
                part.rows = self.link_segments(&state, part)?;
                Ok(())
            })
        });
        linked.map_err(|error| undone(&parts, error))?;

        let mut writer = lock(&self.writer);
        let staged = self.stage_children(&mut writer, &parts, maintenance.next_segment);
        let manifest = staged.map_err(|error| undone(&parts, error))?;
        let position = lock(&self.state).position;
        let split = SplitRecord { children: children.iter().map(|child| child.dir.clone()).collect() };
        let manifest = Manifest { split: Some(split), ..manifest };
        let written = manifest.write(&self.disk, &self.dir).map_err(|error| error.with_applied(Applied::Unknown));
        // If that failed, nobody knows which manifest is there.
        let end = written.as_ref().err().cloned().unwrap_or_else(|| moved(&manifest));
        writer.failed = Some(end.clone());
        lock(&self.state).failed = Some(end);
        written?;
        finish(&self.disk, &self.dir, &manifest).map_err(|error| error.with_applied(Applied::Unknown))?;
        Ok(position)
    }

    /// Whether there is a store in a directory; one that was split is there, and parts of one that are still in the making are not.
    ///
    /// # Errors
    /// As the disk reports.
    pub fn is_in(disk: &dyn Disk, dir: &Path) -> Result<bool> {
        Ok(disk.exists(&dir.join(MANIFEST_FILE))?)
    }

    /// What became of the store in a directory, if it was split. Its children can be opened after this.
    ///
    /// # Errors
    /// As the disk reports, and [`ErrorCode::Corruption`] if the manifest is damaged.
    pub fn split_of(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Option<Split>> {
        let Some(manifest) = Manifest::read(disk, dir)? else { return Ok(None) };
        // A life that could not sync the directory may have renamed it into place: before the children count, it must be the
        // one that a loss of power leaves.
        disk.sync_dir(dir)?;
        finish(disk, dir, &manifest)?;
        Ok(manifest.split.map(|SplitRecord { children }| Split { children }))
    }

    /// The children, with empty directories.
    fn split_parts<'a>(&self, children: &'a [SplitChild]) -> Result<Vec<Part<'a>>> {
        let invalid = |message| Error::new(ErrorCode::InvalidRequest, message);
        if children.is_empty() {
            return Err(invalid("a split without children".to_owned()));
        }
        for (place, child) in children.iter().enumerate() {
            if !self.range.covers(&child.range) || child.range.is_empty() {
                return Err(invalid(format!("the range {:?} of a child is not inside {:?}", child.range, self.range)));
            }
            let others = &children[..place];
            if others.iter().any(|other| other.dir == child.dir || other.range.overlaps(&child.range)) {
                return Err(invalid("the children of a split need a directory and keys of their own".to_owned()));
            }
        }
        let part = |child: &'a SplitChild| {
            let dir = beside(&self.dir, &child.dir);
            if dir == self.dir || dir.file_name().is_none_or(|name| name != child.dir.as_str()) {
                return Err(invalid(format!("'{}' is no name for a directory beside the store's", child.dir)));
            }
            if self.disk.exists(&dir.join(MANIFEST_FILE))? {
                return Err(invalid(format!("there is a store in {}", dir.display())));
            }
            Ok(Part { child, dir, rows: Vec::new() })
        };
        let parts = children.iter().map(part).collect::<Result<Vec<_>>>()?;
        for part in &parts {
            self.disk.create_dir_all(&part.dir)?;
            clear(&self.disk, &part.dir)?;
        }
        Ok(parts)
    }

    /// Gives the segments that have rows for a child a name in its directory, and says which rows those are.
    fn link_segments(&self, state: &State, part: &Part<'_>) -> Result<Vec<(SegmentId, Range<u32>)>> {
        let mut linked = Vec::new();
        for (id, view) in &state.segments {
            let start = view.segment.lower_bound(&state.layout, &part.child.range.start)?.max(view.rows.start);
            let end = match &part.child.range.end {
                Some(end) => view.segment.lower_bound(&state.layout, end)?.min(view.rows.end),
                None => view.rows.end,
            };
            if start < end {
                let file = segment_file(*id);
                self.disk.hard_link(&self.dir.join(&file), &part.dir.join(&file))?;
                linked.push((*id, start..end));
            }
        }
        Ok(linked)
    }

    /// Completes the children but for the name of their manifests; gives the parent's manifest.
    fn stage_children(&self, writer: &mut Writer, parts: &[Part<'_>], next_segment: SegmentId) -> Result<Manifest> {
        writer.check_sound()?;
        let state = lock(&self.state).clone();
        let manifest = self.manifest_of(&state, &writer.deaths, next_segment)?;
        // Nothing is ever appended to a file that has another name.
        match writer.wal.roll() {
            Ok(()) => {}
            Err(LogFailure::Refused(error)) => return Err(error),
            Err(LogFailure::Doubt(error)) => return Err(self.give_up(writer, error)),
        }
        for part in parts {
            for path in writer.wal.closed_files() {
                self.disk.hard_link(path, &part.dir.join(path.file_name().unwrap_or_default()))?;
            }
            let (columns, lazy, secret) = (state.layout.stored.clone(), writer.wal.is_lazy(), writer.wal.secret());
            let (disk, position) = (self.disk.clone(), state.position);
            let mut wal = Wal::resume(disk, &part.dir, columns, lazy, secret, VecDeque::new(), position)?;
            // Everything before it is durable.
            wal.close().map_err(LogFailure::into_error)?;
            write_meta(&self.disk, &part.dir, &part.child.meta)?;
            // The child must not read what it was given by an older schema.
            keep_schema(&self.disk, &part.dir, &state.layout.schema)?;
            let mut child = child_manifest(&manifest, part);
            if self.has(Planted::SplitTokensForgotten) {
                child.tokens.clear();
            }
            child.stage(&self.disk, &part.dir)?;
            // The names of linked files, too.
            self.disk.sync_dir(&part.dir)?;
        }
        Ok(manifest)
    }
}

fn beside(dir: &Path, name: &str) -> PathBuf {
    dir.parent().unwrap_or(Path::new("")).join(name)
}

/// Gives the manifests of a split's children the name that counts, where they have not got it yet.
pub(super) fn finish(disk: &Arc<dyn Disk>, dir: &Path, parent: &Manifest) -> Result<()> {
    for name in parent.split.iter().flat_map(|split| &split.children) {
        let child = beside(dir, name);
        let staged = child.join(STAGED_FILE);
        // A child may have been moved away, or removed, long since.
        if disk.exists(&staged)? {
            disk.rename(&staged, &child.join(MANIFEST_FILE))?;
            disk.sync_dir(&child)?;
        }
    }
    Ok(())
}

/// What a store that was split answers.
pub(super) fn moved(manifest: &Manifest) -> Error {
    let children = manifest.split.iter().flat_map(|split| &split.children);
    let children = children.map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    Error::new(ErrorCode::Moved, format!("the store was split into {children}"))
}

fn child_manifest(parent: &Manifest, part: &Part<'_>) -> Manifest {
    let segments = part.rows.iter().filter_map(|(id, rows)| {
        let mut record = parent.segments.iter().find(|record| record.id == *id)?.clone();
        record.rows = rows.clone();
        record.deaths.retain(|(_, row)| rows.contains(row));
        Some(record)
    });
    // Which share of the digest is whose, nobody knows before the keys have been read.
    Manifest { segments: segments.collect(), range: part.child.range.clone(), digest: None, ..parent.clone() }
}

/// Removes what an attempt at a split has left in a child's directory.
fn clear(disk: &Arc<dyn Disk>, dir: &Path) -> Result<()> {
    for entry in disk.list(dir)? {
        if entry.is_dir {
            let message = format!("{} has a directory in it, and is no child of a split", dir.display());
            return Err(Error::new(ErrorCode::InvalidRequest, message));
        }
        disk.remove_file(&dir.join(entry.name))?;
    }
    Ok(())
}
