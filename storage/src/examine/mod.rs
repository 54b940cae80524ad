//! Looking at a replica's directory without opening it for use: nothing is changed, and everything is read.

mod finding;
mod untouched;

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use shoal_kernel::env::{Disk, DiskEntry, OpenMode};
use shoal_kernel::{Error, LogId, Result, SegmentId, TableSchema};

pub use finding::{Finding, Severity};

use crate::damage::{corrupt, damaged};
use crate::layout::Layout;
use crate::manifest::{
    MANIFEST_FILE, META_FILE, Manifest, SCHEMA_FILE, STAGED_FILE, SegmentRecord, read_meta, read_schema,
};
use crate::merge::{Merge, MergeInput, MergeRange};
use crate::options::StoreOptions;
use crate::segment::{PAGE_ROWS, Segment, SegmentContext, SegmentDump, segment_file, segment_of_file};
use crate::wal::{Replay, Tail, position_of, recover, replay};
use untouched::Untouched;

/// A replica's directory as it lies there.
#[derive(Debug, Clone, Default, Serialize)]
pub struct StoreReport {
    /// The life of the accept log, if the manifest can be read.
    pub log_id: Option<LogId>,
    /// Position up to which records lie in segments.
    pub flushed: Option<u64>,
    /// Position of the last record that can be read.
    pub position: Option<u64>,
    /// Idempotency tokens that the manifest remembers.
    pub tokens: usize,
    /// Segments that the manifest names and that could be opened; without manifest all that are there.
    pub segments: Vec<SegmentSummary>,
    /// Rows in segments that have not lost and are no tombstones.
    pub segment_rows: u64,
    /// Records in the log that no segment holds.
    pub log_records: u64,
    /// Rows and tombstones in them.
    pub log_rows: u64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// The owner's blob.
    #[serde(skip)]
    pub meta: Vec<u8>,
    /// What is worth knowing, damage first.
    pub findings: Vec<Finding>,
}

/// A segment of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SegmentSummary {
    /// Its file.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Rows and tombstones.
    pub rows: u32,
    /// Of them, those that have lost.
    pub dead: u64,
    /// Of them, tombstones.
    pub tombstones: u64,
}

const NEXT_START: &str = "the next start removes it; nothing is lost";

/// Examines the directory of a replica that no process uses. Changes nothing. With a schema, the given one or a newer one that
/// the directory knows, the order of keys can be checked;
/// `deep` compares all statistics with the rows, which reads every page twice.
///
/// # Errors
/// The directory cannot be listed. What is wrong with its files is in the report.
pub fn examine_store(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    schema: Option<Arc<TableSchema>>,
    deep: bool,
) -> Result<StoreReport> {
    let entries = disk.list(dir).map_err(|error| Error::from(error).context(dir.display()))?;
    let disk: Arc<dyn Disk> = Arc::new(Untouched(disk.clone()));
    let mut examination = Examination { disk, dir, deep, schema, report: StoreReport::default() };
    examination.run(&entries);
    let mut report = examination.report;
    report.findings.sort_by(|one, other| (one.severity, &one.problem).cmp(&(other.severity, &other.problem)));
    Ok(report)
}

/// Shows what a segment file holds, page by page.
///
/// # Errors
/// [`shoal_kernel::ErrorCode::Corruption`] if not even its footer can be read; [`shoal_kernel::ErrorCode::IncompatibleVersion`]
/// for another version; else as the disk reports.
pub fn dump_segment(disk: &Arc<dyn Disk>, path: &Path) -> Result<SegmentDump> {
    let disk: Arc<dyn Disk> = Arc::new(Untouched(disk.clone()));
    let context = SegmentContext::new(disk, &StoreOptions::default());
    Ok(Segment::open_file(&context, path)?.dump())
}

struct Examination<'a> {
    disk: Arc<dyn Disk>,
    dir: &'a Path,
    deep: bool,
    schema: Option<Arc<TableSchema>>,
    report: StoreReport,
}

impl Examination<'_> {
    fn found(&mut self, error: &Error, file: &str) {
        self.report.findings.push(Finding::of(error, file));
    }

    fn run(&mut self, entries: &[DiskEntry]) {
        match read_schema(&self.disk, self.dir) {
            // A replica may have followed a change that its node's catalog has not heard of, and never goes back.
            Ok(Some(known)) if self.schema.as_ref().is_none_or(|given| given.version < known.version) => {
                self.schema = Some(Arc::new(known));
            }
            Ok(_) => {}
            Err(error) => self.found(&error, SCHEMA_FILE),
        }
        let layout = match self.schema.clone().map(Layout::new) {
            Some(Ok(layout)) => Arc::new(layout),
            Some(Err(error)) => {
                self.found(&error, "the table's schema");
                Arc::new(Layout::unknown())
            }
            None => Arc::new(Layout::unknown()),
        };
        let manifest = match Manifest::read(&self.disk, self.dir) {
            Ok(manifest) => {
                self.judge_files(entries, manifest.as_ref());
                manifest
            }
            Err(error) => {
                self.found(&error, MANIFEST_FILE);
                None
            }
        };
        if let Some(manifest) = &manifest {
            self.report.log_id = Some(manifest.log_id);
            self.report.flushed = Some(manifest.flushed);
            self.report.tokens = manifest.tokens.len();
            if manifest.tokens.iter().any(|token| token.position > manifest.flushed) {
                let error = damaged(corrupt("names tokens of records that are not flushed"), MANIFEST_FILE, None);
                self.found(&error, MANIFEST_FILE);
            }
        }
        match manifest.as_ref().and_then(|manifest| manifest.split.as_ref()) {
            Some(split) => {
                let what = format!("the store is no more: it was split into {}", split.children.join(", "));
                self.report.findings.push(Finding::note(MANIFEST_FILE, None, what, "nobody reads what is left here"));
            }
            None => {
                self.judge_segments(entries, manifest.as_ref(), &layout);
                self.judge_log(entries, manifest.as_ref(), &layout);
            }
        }
        match read_meta(&self.disk, self.dir) {
            Ok(meta) => self.report.meta = meta,
            Err(error) => self.found(&error, META_FILE),
        }
        for entry in entries.iter().filter(|entry| !entry.is_dir) {
            let length = self.disk.open(&self.dir.join(&entry.name), OpenMode::Read);
            self.report.bytes += length.and_then(|file| file.len()).unwrap_or(0);
        }
    }

    /// Files that do not belong to the store.
    fn judge_files(&mut self, entries: &[DiskEntry], manifest: Option<&Manifest>) {
        // A crash while a store was being made leaves a log without records; whether it has some is seen there.
        if manifest.is_none() && entries.iter().any(|entry| segment_of_file(&entry.name).is_some()) {
            let error = damaged(corrupt("it is gone, and there are segments"), MANIFEST_FILE, None);
            self.found(&error, MANIFEST_FILE);
        }
        for entry in entries {
            let name = entry.name.as_str();
            let segment = segment_of_file(name);
            let note = |what: &str, remedy: &str| Finding::note(name, None, what, remedy);
            let named =
                |id: SegmentId| manifest.is_some_and(|manifest| manifest.segments.iter().any(|kept| kept.id == id));
            let finding = if entry.is_dir {
                note("a directory that is not Shoal's", "nobody reads it")
            } else if name == STAGED_FILE {
                note("a half of a split that was cut short", "a start of the partition that was split completes it")
            } else if name.ends_with(".new") {
                note("the next content of a file, which was not put in its place", NEXT_START)
            } else if segment.is_some_and(|id| manifest.is_some() && !named(id)) {
                note("left by a flush or merge that did not end, or that replaced it", NEXT_START)
            } else if segment.is_none()
                && position_of(name).is_none()
                && ![MANIFEST_FILE, META_FILE, SCHEMA_FILE].contains(&name)
            {
                note("a file that is not Shoal's", "nobody reads it")
            } else {
                continue;
            };
            self.report.findings.push(finding);
        }
    }

    fn judge_segments(&mut self, entries: &[DiskEntry], manifest: Option<&Manifest>, layout: &Arc<Layout>) {
        let context = SegmentContext::new(self.disk.clone(), &StoreOptions::default());
        let found = self.report.findings.len();
        let mut inputs = Vec::new();
        match manifest {
            Some(manifest) => {
                for record in &manifest.segments {
                    inputs.extend(self.judge_segment(&context, layout, record, manifest.flushed));
                }
            }
            None => {
                for id in entries.iter().filter_map(|entry| segment_of_file(&entry.name)) {
                    let path = self.dir.join(segment_file(id));
                    match Segment::open_file(&context, &path) {
                        Ok(segment) => {
                            self.summarise(&segment, 0);
                            let problems = segment.inspect(layout, self.deep, true);
                            self.report.findings.extend(problems.into_iter().map(Finding::from));
                        }
                        Err(error) => self.found(&error, &segment_file(id)),
                    }
                }
            }
        }
        // Keys are only known with the table's schema, and only what can be read can be compared.
        if self.deep && self.schema.is_some() && self.report.findings.len() == found && !layout.key.is_empty() {
            self.judge_winners(layout, inputs);
        }
    }

    fn judge_segment(
        &mut self,
        context: &Arc<SegmentContext>,
        layout: &Layout,
        record: &SegmentRecord,
        flushed: u64,
    ) -> Option<MergeInput> {
        let file = segment_file(record.id);
        let mut dead = record.dead_rows().map_err(|error| self.found(&error, MANIFEST_FILE)).ok()?;
        let opened = Segment::open(context, self.dir, record.id, record.bytes);
        let segment = Arc::new(opened.map_err(|error| self.found(&error, &file)).ok()?);
        self.summarise(&segment, dead.len());
        if dead.max().is_some_and(|row| row >= segment.rows()) {
            let what = format!("says that rows of {file} are dead which it does not have");
            self.found(&damaged(corrupt(what), MANIFEST_FILE, None), MANIFEST_FILE);
            return None;
        }
        if record.rows.end > segment.rows() {
            let what = format!("says that rows of {file} are the store's which it does not have");
            self.found(&damaged(corrupt(what), MANIFEST_FILE, None), MANIFEST_FILE);
            return None;
        }
        // Of a file that the halves of a split share, only some rows are this store's.
        dead.insert_range(..record.rows.start);
        dead.insert_range(record.rows.end..segment.rows());
        self.report.segment_rows += u64::from(segment.rows()) - dead.union_len(segment.tombstones());
        if (0..segment.pages()).any(|page| segment.position_range(page).1 > flushed) {
            let what = format!("{file} holds records beyond position {flushed}, up to which all is flushed");
            self.found(&damaged(corrupt(what), MANIFEST_FILE, None), MANIFEST_FILE);
        }
        let problems = segment.inspect(layout, self.deep, record.history);
        self.report.findings.extend(problems.into_iter().map(Finding::from));
        Some(MergeInput { segment, left_out: Arc::new(dead) })
    }

    fn summarise(&mut self, segment: &Segment, dead: u64) {
        self.report.segments.push(SegmentSummary {
            file: segment_file(segment.id()),
            bytes: segment.bytes(),
            rows: segment.rows(),
            dead,
            tombstones: segment.tombstones().len(),
        });
    }

    /// Each identity has one living row in all segments together.
    fn judge_winners(&mut self, layout: &Arc<Layout>, inputs: Vec<MergeInput>) {
        let files: Vec<String> = inputs.iter().map(|input| segment_file(input.segment.id())).collect();
        let mut merge = Merge::new(layout.clone(), inputs, &MergeRange::default());
        let mut last: Option<(Vec<u8>, usize, u32)> = None;
        loop {
            let merged = match merge.next(PAGE_ROWS) {
                Ok(Some(merged)) => merged,
                Ok(None) => return,
                Err(error) => return self.found(&error, MANIFEST_FILE),
            };
            for (key, (input, row)) in merged.rows.keys.iter().zip(&merged.origins) {
                if let Some((_, before, before_row)) = last.as_ref().filter(|(before, ..)| before.as_slice() == key) {
                    let what = format!(
                        "row {before_row} of {} and row {row} of {} have one key, and neither is dead",
                        files[*before], files[*input]
                    );
                    return self.found(&damaged(corrupt(what), MANIFEST_FILE, None), MANIFEST_FILE);
                }
                last = Some((key.to_vec(), *input, *row));
            }
        }
    }

    fn judge_log(&mut self, entries: &[DiskEntry], manifest: Option<&Manifest>, layout: &Arc<Layout>) {
        let files: Vec<(u64, &str)> =
            entries.iter().filter_map(|entry| Some((position_of(&entry.name)?, entry.name.as_str()))).collect();
        // Without a manifest nobody knows what was flushed: the log is read from its first file on.
        let first = files.first().map_or(0, |(first, _)| first.saturating_sub(1));
        let flushed = manifest.map_or(first, |manifest| manifest.flushed);
        let last = files.last().map_or("wal-*.log", |(_, name)| name);
        let recovered = match recover(&self.disk, self.dir, flushed, false) {
            Ok(recovered) => recovered,
            Err(error) => return self.found(&error, last),
        };
        let (tail, position, kept) = (recovered.tail, recovered.last_position, recovered.files.clone());
        let (mut records, mut rows) = (0, 0);
        let replayed = replay(&Replay::default(), &self.disk, layout, recovered, |_, incoming| {
            records += 1;
            rows += incoming.rows() as u64;
            Ok(())
        });
        (self.report.log_records, self.report.log_rows) = (records, rows);
        if let Err(error) = replayed {
            return self.found(&error, last);
        }
        self.report.log_bytes = kept.iter().map(|file| file.bytes).sum();
        self.report.position = Some(position);
        if manifest.is_none() {
            if records > 0 && self.report.findings.iter().all(|finding| finding.problem.file != MANIFEST_FILE) {
                self.found(&damaged(corrupt("it is gone, and there is a log"), MANIFEST_FILE, None), MANIFEST_FILE);
            }
            return;
        }
        let good = kept.back().map(|file| file.bytes);
        let finding = match tail {
            Tail::Clean => None,
            Tail::Torn(bytes) => Some(Finding::note(
                last,
                good,
                format!("a torn tail of {bytes} bytes: a write that a crash cut short, and that nobody was told of"),
                "the next start cuts it off; nothing is lost",
            )),
            Tail::Doubt(bytes) => Some(Finding::damage(
                last,
                good,
                format!(
                    "the last record, of {bytes} bytes, is whole and its checksum is wrong: it may have been acknowledged"
                ),
                "the next start drops it and begins a new log; with peers the replica compares with them before it counts",
            )),
            Tail::Missing => Some(Finding::damage(
                last,
                None,
                "there is no log: acknowledged writes after the last flush may be missing",
                "the next start begins a new log; with peers the replica compares with them before it counts",
            )),
        };
        self.report.findings.extend(finding);
        let is_kept = |name: &str| kept.iter().any(|file| file.path.ends_with(name));
        for (_, name) in files.into_iter().filter(|(_, name)| !is_kept(name)) {
            let note = Finding::note(name, None, "a log whose records are all flushed, or that holds none", NEXT_START);
            self.report.findings.push(note);
        }
    }
}
