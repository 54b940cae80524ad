//! The log file on the node's disk, as openraft's log store.
//!
//! Every write is appended, synced, and only then told. The entries also stay in memory: a snapshot cuts the log every few
//! hundred of them, and reading them is the leader's daily work.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{AnyError, OptionalSend, StorageIOError};
use shoal_kernel::env::{DiskFile, OpenMode};
use shoal_kernel::{Env, Error, ErrorCode, NodeId, Planted, Rare, Result, wire};

use super::AgreementConfig;
use super::journal::{Frame, Journal, encode};
use super::types::{Entry, LogId, StorageError, TypeConfig, Vote};

/// Name of the file.
pub(super) const FILE: &str = "log";

/// The file is written anew once it has this many bytes more than its content needs.
const WASTE_BYTES_MAX: u64 = 4 << 20;

/// Bytes of entries in one message to a follower, about; a single entry may be larger.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// The log. Cheap to clone; all clones are one log.
#[derive(Clone)]
pub(super) struct LogStore(Arc<Inner>);

struct Inner {
    env: Env,
    node: NodeId,
    path: PathBuf,
    planted: Option<Planted>,
    journal: Mutex<Journal>,
    // Held over each write, so that frames follow one another.
    writer: tokio::sync::Mutex<Writer>,
}

struct Writer {
    file: Arc<dyn DiskFile>,
    length: u64,
    /// Length after the last time it was written anew.
    compact_length: u64,
    /// Why nothing more is written: after a failed write or sync the end of the file is in doubt.
    broken: Option<Error>,
}

impl LogStore {
    /// Opens or creates the log in a directory that exists.
    pub(super) async fn open(env: &Env, dir: PathBuf, config: &AgreementConfig) -> Result<Self> {
        let (path, node) = (dir.join(FILE), config.node);
        let (disk, at, watched) = (env.disk(), path.clone(), env.clone());
        let (journal, file, length) = env
            .blocking(move || -> Result<_> {
                let journal = if disk.exists(&at)? {
                    let bytes = disk.read(&at)?;
                    let (journal, good) = Journal::replay(&bytes, node)?;
                    if good < bytes.len() {
                        let cut = bytes.len() - good;
                        watched.reached(Rare::CatalogTailCut);
                        tracing::warn!(bytes = cut, "cut a write that never finished off the catalog's log");
                    }
                    journal
                } else {
                    Journal::default()
                };
                // Written anew even when nothing was cut: what was read back may be what a failed sync left in the page
                // cache, and no later sync of the same file would bring it to the disk.
                let bytes = journal.compact(node)?;
                disk.replace(&at, &bytes)?;
                let file = disk.open(&at, OpenMode::ReadWrite)?;
                Ok((journal, file, bytes.len() as u64))
            })
            .await??;
        let writer = Writer { file, length, compact_length: length, broken: None };
        Ok(Self(Arc::new(Inner {
            env: env.clone(),
            node,
            path,
            planted: config.planted,
            journal: Mutex::new(journal),
            writer: tokio::sync::Mutex::new(writer),
        })))
    }

    /// Why the log takes no more writes, if it does not.
    pub(super) fn failure(&self) -> Option<Error> {
        self.0.writer.try_lock().ok().and_then(|writer| writer.broken.clone())
    }

    /// The index of the last entry, which is on disk.
    pub(super) fn end(&self) -> Option<u64> {
        self.journal().last().map(|id| id.index)
    }

    /// The first of a leader's entries at whose place another one has been agreed upon.
    pub(super) fn contradicted(&self, leader: &Vote, ids: impl IntoIterator<Item = LogId>) -> Option<LogId> {
        let journal = self.journal();
        ids.into_iter().find(|id| journal.contradicts(leader, *id))
    }

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.0.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends one frame; when it returns, the frame is on disk and in memory.
    async fn write(&self, frame: Frame) -> Result<()> {
        let mut writer = self.0.writer.lock().await;
        if let Some(error) = &writer.broken {
            return Err(error.clone());
        }
        let written = self.append(&mut writer, frame).await;
        if let Err(error) = &written {
            tracing::error!(%error, "the catalog's log cannot be written");
            writer.broken = Some(error.clone().context("the catalog's log stopped after a failed write"));
        }
        written
    }

    async fn append(&self, writer: &mut Writer, frame: Frame) -> Result<()> {
        let bytes = encode(&frame)?;
        let (file, at, length) = (writer.file.clone(), writer.length, bytes.len() as u64);
        let synced = self.0.planted != Some(Planted::CatalogSkipFsync);
        self.0
            .env
            .blocking(move || -> io::Result<()> {
                file.write_all_at(&bytes, at)?;
                if synced { file.sync() } else { Ok(()) }
            })
            .await??;
        writer.length += length;
        let purged = matches!(frame, Frame::Purged(_));
        self.journal().absorb(frame);
        if purged || writer.length > writer.compact_length + WASTE_BYTES_MAX {
            self.compact(writer).await?;
        }
        Ok(())
    }

    async fn compact(&self, writer: &mut Writer) -> Result<()> {
        let bytes = self.journal().compact(self.0.node)?;
        let (disk, path, length) = (self.0.env.disk(), self.0.path.clone(), bytes.len() as u64);
        writer.file = self
            .0
            .env
            .blocking(move || {
                disk.replace(&path, &bytes)?;
                disk.open(&path, OpenMode::ReadWrite)
            })
            .await??;
        writer.length = length;
        writer.compact_length = length;
        Ok(())
    }
}

fn write_error(error: &Error) -> StorageError {
    StorageIOError::write_logs(AnyError::new(error)).into()
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.journal().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let mut bytes = 0;
        let mut taken = Vec::new();
        for (_, entry) in self.journal().entries.range(start..end) {
            let length = wire::encode(entry).map(|encoded| encoded.len()).unwrap_or(0);
            if !taken.is_empty() && bytes + length > MESSAGE_BYTES_MAX {
                break;
            }
            bytes += length;
            taken.push(entry.clone());
        }
        Ok(taken)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let journal = self.journal();
        Ok(LogState { last_purged_log_id: journal.purged, last_log_id: journal.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        if self.0.planted == Some(Planted::VoteForgotten) {
            return Ok(());
        }
        let written = self.write(Frame::Vote(*vote)).await;
        written.map_err(|error| StorageIOError::write_vote(AnyError::new(&error)).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        // Read once, at the start. openraft would have a restarted leader go on in its term, and serve reads although it may
        // have forgotten how far it had committed (openraft issue 1511). As a mere candidate of that term it has to be
        // elected again, and the first entry of the new term brings the commitment up to date.
        Ok(self.journal().vote.map(|vote| {
            let own = vote.leader_id.voted_for() == Some(self.0.node);
            if own { Vote { committed: false, ..vote } } else { vote }
        }))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // With it, a restarted node shows the newest catalog it had applied before any quorum exists.
        match committed {
            Some(id) => self.write(Frame::Committed(id)).await.map_err(|error| write_error(&error)),
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.journal().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        match self.write(Frame::Entries(entries)).await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                let kind =
                    if error.code() == ErrorCode::DiskFull { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
                callback.log_io_completed(Err(io::Error::new(kind, error.clone())));
                Err(write_error(&error))
            }
        }
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        self.write(Frame::Truncate(since.index)).await.map_err(|error| write_error(&error))
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        self.write(Frame::Purged(upto)).await.map_err(|error| write_error(&error))
    }
}
