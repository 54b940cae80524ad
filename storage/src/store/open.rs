//! Opening: what the manifest and the log say, made durable before it is trusted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

use roaring::RoaringBitmap;
use shoal_kernel::env::Disk;
use shoal_kernel::{ErrorCode, LogId, Planted, Result, TableSchema};

use super::commit::Prepared;
use super::schema::newest_schema;
use super::split::{finish, moved};
use super::{Store, Writer};
use crate::damage::{Problem, corrupt, damaged};
use crate::layout::Layout;
use crate::manifest::{MANIFEST_FILE, Manifest, read_meta};
use crate::memtable::{KeyIndex, MemView};
use crate::options::StoreOptions;
use crate::planted::NoDirectorySync;
use crate::segment::{Segment, SegmentContext, segment_file, segment_of_file};
use crate::state::{SegmentView, SourceId, State};
use crate::token::Tokens;
use crate::wal::{Recovered, Replay, Secret, Tail, Wal, recover, replay};

/// What opening a store found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// There was nothing; the store is new and empty.
    pub created: bool,
    /// The life of the accept log that goes on or begins.
    pub log_id: LogId,
    /// Records read back from the log.
    pub records_replayed: u64,
    /// Rows in them.
    pub rows_replayed: u64,
    /// Bytes of incomplete records that were cut off the log's end. They were not synced, and so, if commits are, never
    /// acknowledged.
    pub tail_bytes_cut: u64,
    /// The log's last record is complete and its checksum is wrong, or the log is gone: acknowledged writes may be missing.
    /// A new log has begun; the replica must compare with others before it counts.
    pub in_doubt: bool,
    /// The log was not synced before every acknowledgement, and was not closed: a loss of power may have taken records beyond
    /// the last sync. A new log has begun; the replica must compare with others before it counts. What was synced is here.
    pub unclean: bool,
    /// Position up to which nothing can be missing; what was acknowledged beyond it and is not here was lost.
    pub durable: u64,
    /// Segments that cannot be read. Reads and writes are refused; the replica must be rebuilt.
    pub quarantined: Vec<Problem>,
}

impl Recovery {
    fn report(&self, dir: &Path) {
        let dir = dir.display();
        for problem in &self.quarantined {
            tracing::error!(%dir, %problem, "a segment cannot be read");
        }
        if self.in_doubt {
            tracing::warn!(%dir, log = %self.log_id, "the end of the log is in doubt; a new log begins");
        }
        if self.unclean {
            let (log, durable) = (self.log_id, self.durable);
            tracing::warn!(%dir, %log, durable, "the log was synced late and not closed; a new log begins");
        }
        if self.tail_bytes_cut > 0 {
            tracing::info!(%dir, bytes = self.tail_bytes_cut, "an incomplete record was cut off the log");
        }
    }
}

impl Store {
    /// Opens the store in a directory, or makes a new one there. `new_log_id` names the accept log if a new one begins;
    /// `log_secret` is drawn at random for every call and told nobody: by what is made from it the log knows its own records.
    /// If the directory knows a newer version of the schema, that one is used.
    ///
    /// # Errors
    /// [`ErrorCode::Corruption`] if the manifest is damaged, or a damaged log record is followed by good ones;
    /// [`ErrorCode::IncompatibleVersion`] for files of a newer build; [`ErrorCode::Moved`] if the store was split, and then its
    /// children can be opened ([`Store::split_of`] names them); [`ErrorCode::Unsupported`] for column types that cannot be
    /// stored; and as the disk reports.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        schema: Arc<TableSchema>,
        options: StoreOptions,
        new_log_id: LogId,
        log_secret: u128,
    ) -> Result<(Arc<Self>, Recovery)> {
        Self::open_watched(disk, dir, schema, options, new_log_id, log_secret, &Replay::default())
    }

    /// The same; `watch` says how far it is, and lets others help.
    ///
    /// # Errors
    /// As of [`Store::open`].
    pub fn open_watched(
        disk: Arc<dyn Disk>,
        dir: &Path,
        schema: Arc<TableSchema>,
        options: StoreOptions,
        new_log_id: LogId,
        log_secret: u128,
        watch: &Replay,
    ) -> Result<(Arc<Self>, Recovery)> {
        let disk: Arc<dyn Disk> = match options.planted {
            Some(Planted::SkipDirectorySync) => Arc::new(NoDirectorySync(disk)),
            _ => disk,
        };
        let secret = Secret(log_secret);
        disk.create_dir_all(dir)?;
        let layout = Arc::new(Layout::new(newest_schema(&disk, dir, schema)?)?);
        let (manifest, created) = match Manifest::read(&disk, dir)? {
            Some(manifest) if manifest.split.is_some() => {
                disk.sync_dir(dir)?;
                finish(&disk, dir, &manifest)?;
                return Err(moved(&manifest));
            }
            Some(manifest) => (manifest, false),
            None => (create(&disk, dir, &layout, &options, new_log_id, secret)?, true),
        };
        // The manifest that was read may have been renamed into place by a life that could not sync the directory. Before
        // what it does not name is removed, it must be the one that a loss of power leaves.
        disk.sync_dir(dir)?;
        remove_orphans(&disk, dir, &manifest)?;
        let mut recovery = Recovery { created, log_id: manifest.log_id, ..Recovery::default() };

        let context = SegmentContext::new(disk.clone(), &options);
        let (mut segments, mut deaths) = (BTreeMap::new(), BTreeMap::new());
        for record in &manifest.segments {
            let dead = record.dead_rows()?;
            let dead = if options.planted == Some(Planted::MasksForgotten) { RoaringBitmap::new() } else { dead };
            match Segment::open(&context, dir, record.id, record.bytes) {
                Ok(segment) if dead.max().is_some_and(|row| row >= segment.rows()) => {
                    let message = format!("says that rows of {} are dead which it does not have", record.id);
                    return Err(damaged(corrupt(message), MANIFEST_FILE, None));
                }
                Ok(segment) => {
                    if record.rows.end > segment.rows() {
                        let message = format!("says that rows of {} are the store's which it does not have", record.id);
                        return Err(damaged(corrupt(message), MANIFEST_FILE, None));
                    }
                    let (rows, kept) = (record.rows.clone(), record.deaths.len() as u64);
                    let view = SegmentView::new(Arc::new(segment), dead, rows, kept, record.history);
                    segments.insert(record.id, view);
                    if kept > 0 {
                        deaths.insert(SourceId::Segment(record.id), record.deaths.clone());
                    }
                }
                Err(error) if error.code() == ErrorCode::Corruption => {
                    recovery.quarantined.push(Problem::of(&error, &segment_file(record.id)));
                }
                Err(error) => return Err(error),
            }
        }

        let mut tokens = Tokens::default();
        manifest.tokens.iter().for_each(|entry| tokens.put(entry.record.clone(), entry.position, false));
        let state = State {
            layout: layout.clone(),
            log_id: manifest.log_id,
            past: Arc::default(),
            position: manifest.flushed,
            flushed: manifest.flushed,
            segments,
            memtables: vec![MemView::new(0, manifest.flushed, Arc::default())],
            digest: Arc::default(),
            digest_base: manifest.digest()?.map(Arc::new),
            changes_from: manifest.changes_from,
            keep_changes_from: manifest.keep_changes_from,
            cutoff: manifest.cutoff,
            purged: manifest.purged,
            wal_bytes: 0,
            failed: None,
            broken: recovery.quarantined.clone().into(),
        };
        let skips = options.planted == Some(Planted::BadRecordSkipped);
        let mut recovered = recover(&disk, dir, manifest.flushed, skips)?;
        match recovered.tail {
            Tail::Clean => {}
            Tail::Torn(bytes) => recovery.tail_bytes_cut = bytes,
            Tail::Doubt(_) | Tail::Missing => recovery.in_doubt = true,
        }
        // A log that has just been made ends with nothing that could be missed.
        recovery.unclean = recovered.unclean && !created;
        recovery.durable = if recovered.unclean { recovered.durable } else { recovered.last_position };
        let mut manifest = manifest;
        if (recovery.in_doubt || recovery.unclean) && options.planted != Some(Planted::LogKeepsName) {
            // Before the end is cut: a crash between the two must find the doubt again. And before anything is accepted: peers
            // may know more of the old log than is left of it.
            manifest.begin_log(new_log_id, recovered.last_position, !recovery.in_doubt);
            manifest.write(&disk, dir)?;
            recovery.log_id = new_log_id;
        }
        recovered.make_durable(&disk)?;
        let (lazy, files) = (!options.sync_commits, std::mem::take(&mut recovered.files));
        let (columns, position) = (layout.stored.clone(), recovered.last_position);
        let wal = Wal::resume(disk.clone(), dir, columns, lazy, secret, files, position)?;

        let (wal_bytes, durability) = (wal.bytes(), wal.durability());
        let writer = Writer {
            wal,
            index: KeyIndex::new(),
            sealed: Vec::new(),
            deaths,
            takes_from: manifest.cutoff,
            fence: manifest.purged,
            failed: None,
            bytes_since_check: None,
        };
        let meta = read_meta(&disk, dir)?;
        let store = Self {
            disk,
            dir: dir.to_owned(),
            range: manifest.range,
            is_upsert: layout.schema.is_upsert(),
            options,
            context,
            flushing: Mutex::default(),
            compacting: Mutex::default(),
            overdue: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
            maintenance: Mutex::new(super::Maintenance::new(manifest.next_segment)),
            writer: Mutex::new(writer),
            state: Mutex::new(State { log_id: recovery.log_id, past: manifest.past.into(), wal_bytes, ..state }),
            tokens: Mutex::new(tokens),
            meta: Mutex::new(meta),
            durability,
        };
        store.replay(recovered, watch, &mut recovery)?;
        if store.has(Planted::TokensLostAtRestart) {
            *super::lock(&store.tokens) = Tokens::default();
        }
        if recovery.quarantined.is_empty() {
            store.note_overdue()?;
        }
        recovery.report(dir);
        Ok((Arc::new(store), recovery))
    }

    fn replay(&self, recovered: Recovered, watch: &Replay, recovery: &mut Recovery) -> Result<()> {
        let mut writer = super::lock(&self.writer);
        if !recovery.quarantined.is_empty() {
            // Without every segment nobody can say which rows win; only the position is kept.
            super::lock(&self.state).position = recovered.last_position;
            return Ok(());
        }
        let layout = self.layout();
        replay(watch, &self.disk, &layout, recovered, |_, incoming| {
            recovery.records_replayed += 1;
            recovery.rows_replayed += incoming.rows() as u64;
            // The log of a store that was split is its children's.
            let incoming = match incoming.admitted_by(&self.range) {
                Some(admitted) => incoming.filter(&layout, &admitted)?,
                None => incoming,
            };
            // There is one memtable, and applying looks into that by itself.
            let mut met = vec![None; incoming.rows()];
            let segments = super::lock(&self.state).segments.clone();
            self.locate_in_segments(&layout, &segments, &incoming.keys, &mut met)?;
            self.apply_or_fail(&mut writer, vec![Prepared { incoming, met, pulled: false }])
        })
    }
}

/// Makes an empty store. The manifest comes last: without it there is no store.
fn create(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    layout: &Layout,
    options: &StoreOptions,
    log_id: LogId,
    secret: Secret,
) -> Result<Manifest> {
    for entry in disk.list(dir)? {
        if segment_of_file(&entry.name).is_some() {
            return Err(damaged(corrupt("it is gone, and there are segments"), MANIFEST_FILE, None));
        }
    }
    let recovered = recover(disk, dir, 0, false)?;
    if recovered.last_position > 0 {
        return Err(damaged(corrupt("it is gone, and there is a log"), MANIFEST_FILE, None));
    }
    if recovered.files.is_empty() {
        Wal::create(disk.clone(), dir, layout.stored.clone(), !options.sync_commits, secret)?;
    }
    let manifest = Manifest::new(log_id);
    manifest.write(disk, dir)?;
    Ok(manifest)
}

/// Removes what an interrupted flush, compaction or replacement left behind.
fn remove_orphans(disk: &Arc<dyn Disk>, dir: &Path, manifest: &Manifest) -> Result<()> {
    for entry in disk.list(dir)? {
        let unfinished = entry.name.ends_with(".new");
        let unused = segment_of_file(&entry.name).is_some_and(|id| manifest.segments.iter().all(|kept| kept.id != id));
        if !entry.is_dir && (unfinished || unused) {
            disk.remove_file(&dir.join(&entry.name))?;
        }
    }
    Ok(())
}
