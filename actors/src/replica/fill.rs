//! Filling a replica by whole files of a peer, before it is opened for good.
//!
//! A replica that holds nothing and counts for nothing (it joins, or was emptied) would pull every row, log it, apply it, flush it
//! and merge it again. If a peer has much, its files come instead ([`lend`](super::lend)), to a directory beside the replica's, and
//! are made a store there ([`shoal_storage::CopyHead`]). Meanwhile the replica is not open: what gateways send it is refused, and
//! comes from its peers later. Then it goes on as ever, from where the copy ends: it pulls from every peer what is newer, and
//! counts once it holds what enough of them hold.
//!
//! - **Where it goes on.** With the lender's log from the place that the copy reaches to; with each other peer's from where the
//!   lender had pulled it before the copy was made, for that is in the copy.
//! - **What breaks off** is begun anew with a new copy, of the same peer or another one: a copy that was made before the replica
//!   had last come to this node could bring back what was deleted since and is forgotten. Files that have come whole stay, and are
//!   not sent again if the new copy has them, too. After [`ATTEMPTS_MAX`] it is filled by rows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shoal_catalog::{Partition, ReplicaState as Role};
use shoal_kernel::env::{Disk, DiskFile, OpenMode};
use shoal_kernel::{Error, ErrorCode, Hlc, NodeId, Planted, Rare, Result, wire};
use shoal_storage::{CheckpointFile, CopyHead, Placing, PullCursor, Store};
use tokio::sync::SemaphorePermit;

use super::Durable;
use super::handle::{Fetching, ReplicaHandle};
use super::lend::{LendCall, Lent, LentItem, PIECE_BYTES};
use super::message::{ReplicaAnswer, ReplicaCall};
use super::open::{self, FILLING, Form, Opened};
use super::serve;
use super::state::{Lacks, Meta, ReplicaCore};
use crate::node::context::NodeContext;
use crate::service::Moment;
use crate::transport::{Route, StreamReceiver};

/// Replicas of a node that are filled by files at once.
pub(crate) const FETCHES_MAX: usize = 4;
/// How often in a row a copy is asked for in vain, of one peer after the other.
const ATTEMPTS_MAX: usize = 6;
/// How often in all, if each time a file comes whole: a lender that merges all the time has other files each time.
const ATTEMPTS_IN_ALL_MAX: usize = 64;
/// The pause after the first attempt that failed; doubled after each.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(250);
/// How long a peer may take to say how much it has.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take for the next item; for the first one it flushes what it has in memory.
const ITEM_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes that may be on their way.
const WINDOW_BYTES: u32 = 4 * PIECE_BYTES as u32;
/// Bytes of what comes beside the files: some 16 for each row that has lost, and about a hundred for each token.
const HEAD_BYTES_MAX: u64 = 1 << 30;
/// How long the last file takes with [`Planted::FilledTooFar`].
const PLANTED_PAUSE: Duration = Duration::from_secs(2);
/// What a file is called until it has come whole, behind its name.
const PART: &str = "part";

/// Fills the replica by files of a peer if it holds nothing and somebody has much. True if its store has to be opened anew.
///
/// # Errors
/// The disk cannot be worked on. Whatever else is in the way only means that rows are pulled instead.
pub(super) async fn by_files(
    context: &Arc<NodeContext>,
    partition: &Partition,
    form: &Form,
    handle: &ReplicaHandle,
    opened: &Opened,
) -> Result<bool> {
    let dir = context.replica_dir(partition.id).with_extension(FILLING);
    let filling = Filling { context, partition, form, handle, opened, dir: &dir, came: AtomicUsize::new(0) };
    let filled = filling.is_wanted() && filling.fetch_from_any().await;
    handle.set_fetching(None);
    // A copy whose last write failed may have become a store all the same. What becomes of it must be certain before the replica
    // takes anything: it is opened.
    if !filled && !filling.is_placed().await? {
        filling.clear().await?;
        return Ok(false);
    }
    let store = opened.store.clone();
    context.env.blocking(move || store.close()).await?;
    Ok(true)
}

struct Filling<'a> {
    context: &'a Arc<NodeContext>,
    partition: &'a Partition,
    form: &'a Form,
    handle: &'a ReplicaHandle,
    opened: &'a Opened,
    /// Where the files come to.
    dir: &'a Path,
    /// Files that have come whole.
    came: AtomicUsize,
}

/// A file that is being written, and up to where.
struct Part {
    name: String,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: u64,
}

impl Filling<'_> {
    /// Whether the replica may lack everything, and has nothing that would have to be merged with what comes.
    fn is_wanted(&self) -> bool {
        let Opened { store, durable, known, emptied, in_doubt, .. } = self.opened;
        let meta = durable.as_ref().filter(|_| *known).map(|durable| durable.core.clone());
        let core = ReplicaCore::new(self.context.node, self.partition.clone(), meta, *emptied, *in_doubt);
        core.lacks_everything() && !core.counts() && store.is_empty()
    }

    /// Whether the catalog still wants a replica here; it may have been split, or taken away.
    fn check_is_wanted(&self) -> Result<()> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        let replica = catalog.partitions.get(&self.partition.id).and_then(|place| place.replica(self.context.node));
        match replica {
            Some(replica) if replica.state != Role::Leaving => Ok(()),
            _ => Err(Error::new(ErrorCode::Moved, format!("{} is to have no replica here", self.partition.id))),
        }
    }

    /// Whether that node has a replica that may lend.
    fn check_is_peer(&self, peer: NodeId) -> Result<()> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        let votes = catalog.partitions.get(&self.partition.id).is_some_and(|place| place.voters().any(|it| it == peer));
        match votes {
            true => Ok(()),
            false => Err(Error::new(ErrorCode::Moved, format!("{peer} does not vote on {}", self.partition.id))),
        }
    }

    /// Whether no deletions were agreed to be forgotten since the copy was made that it may not know of.
    fn check_is_young(&self, head: &CopyHead) -> Result<()> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        let purged = catalog.partitions.get(&self.partition.id).map_or_else(Hlc::default, |place| place.purged);
        match purged <= head.purged() {
            true => Ok(()),
            false => Err(Error::new(ErrorCode::Moved, "deletions have been forgotten since the copy was made")),
        }
    }

    async fn fetch_from_any(&self) -> bool {
        let lenders = self.lenders().await;
        if lenders.is_empty() {
            return false;
        }
        let id = self.partition.id;
        self.handle.set_fetching(Some(Fetching::Waits));
        let Some(_place) = self.turn().await else { return false };
        let (mut pause, mut failures) = (ATTEMPT_PAUSE, 0);
        for peer in lenders.iter().copied().cycle().take(ATTEMPTS_IN_ALL_MAX) {
            let before = self.came.load(Ordering::Relaxed);
            match self.fetch_from(peer).await {
                Ok(files) => {
                    self.context.env.reached(Rare::FilledByFiles);
                    self.context.env.trace(|| format!("{id} was filled by {files} files of {peer}"));
                    tracing::info!(partition = %id, %peer, files, "a replica was filled by files");
                    return true;
                }
                Err(error) => {
                    tracing::info!(partition = %id, %peer, %error, "a replica could not be filled by files of a peer");
                    self.context.env.trace(|| format!("{id} is not filled by files of {peer}: {error}"));
                    let is_over = self.check_is_wanted().is_err() || self.is_placed().await.unwrap_or(true);
                    if is_over || error.code() == ErrorCode::DiskFull {
                        return false;
                    }
                    // Whoever gets on, a file at a time, is not far from the end.
                    if self.came.load(Ordering::Relaxed) > before {
                        (pause, failures) = (ATTEMPT_PAUSE, 0);
                    }
                    failures += 1;
                    if failures == ATTEMPTS_MAX {
                        return false;
                    }
                }
            }
            self.context.env.sleep(pause).await;
            pause *= 2;
        }
        false
    }

    /// Waits until few enough replicas of the node are being filled, as long as this one is wanted.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let mut catalog = self.context.agreement.catalog();
        let mut turn = std::pin::pin!(self.context.fetching.acquire());
        while self.check_is_wanted().is_ok() {
            tokio::select! {
                biased;
                place = &mut turn => return place.ok(),
                changed = catalog.changed() => changed.ok()?,
            }
        }
        None
    }

    /// Peers that are worth asking, in the order in which they are asked: not all newcomers ask the same one.
    async fn lenders(&self) -> Vec<NodeId> {
        let context = self.context;
        let others =
            self.partition.voters().filter(|voter| *voter != context.node && !context.liveness.is_down(*voter));
        let mut lenders = Vec::new();
        for voter in others {
            let answer = serve::call(context, voter, &ReplicaCall::Load, CALL_TIMEOUT).await;
            let Ok(ReplicaAnswer::Load { bytes, .. }) = answer else { continue };
            let held = bytes.iter().find(|(id, _)| *id == self.partition.id).map_or(0, |(_, bytes)| *bytes);
            if held >= context.config.fill_files_bytes_min {
                lenders.push(voter);
            }
        }
        if !lenders.is_empty() {
            let first = context.env.random("lender") % lenders.len() as u64;
            lenders.rotate_left(usize::try_from(first).unwrap_or(0));
        }
        lenders
    }

    /// Fetches a copy and makes a store of it. Gives the number of files that came.
    async fn fetch_from(&self, peer: NodeId) -> Result<usize> {
        self.check_is_peer(peer)?;
        let (disk, dir) = (self.context.env.disk(), self.dir.to_owned());
        let prepared = self.context.env.blocking(move || prepare(&disk, &dir));
        let have = prepared.await??;
        let header = wire::encode(&LendCall { partition: self.partition.id, have: have.clone() })?;
        let transport = &self.context.transport;
        let mut stream = transport.open(peer, Route::Replica, header.into(), WINDOW_BYTES, CALL_TIMEOUT).await?;
        let Some(LentItem::Begins(lent)) = self.next(&mut stream).await? else { return Err(serve::unexpected()) };
        let head = self.head(&mut stream, lent.head_bytes).await?;
        let files: Vec<CheckpointFile> = head.files().collect();
        let total = files.iter().try_fold(0u64, |total, file| total.checked_add(file.bytes));
        let total = total.ok_or_else(|| Error::new(ErrorCode::Corruption, "a copy has more bytes than there are"))?;
        let missing: BTreeMap<String, CheckpointFile> =
            files.into_iter().filter(|file| !have.contains(&file.name)).map(|file| (file.name.clone(), file)).collect();
        let kept_bytes = total - missing.values().map(|file| file.bytes).sum::<u64>();
        if kept_bytes > 0 {
            self.context.env.reached(Rare::FileKept);
        }
        self.make_sure_of_room(total - kept_bytes).await?;
        self.handle.set_fetching(Some(Fetching::From(peer, kept_bytes, total)));
        let came = self.files(peer, &mut stream, missing, (kept_bytes, total)).await;
        let came = came.inspect_err(|_| self.context.env.reached(Rare::FillBrokenOff))?;
        self.place(peer, head, lent).await?;
        Ok(came)
    }

    async fn next(&self, stream: &mut StreamReceiver) -> Result<Option<LentItem>> {
        let late = |_| Error::new(ErrorCode::Timeout, "a peer took too long for the next part of a copy");
        let item = self.context.env.timeout(ITEM_TIMEOUT, stream.next()).await.map_err(late)?;
        self.check_is_wanted()?;
        Ok(item.transpose()?.map(|bytes| wire::decode(&bytes)).transpose()?)
    }

    async fn head(&self, stream: &mut StreamReceiver, length: u64) -> Result<CopyHead> {
        if length > HEAD_BYTES_MAX {
            let message = format!("what belongs to a copy beside its files has {length} bytes (HEAD_BYTES_MAX)");
            return Err(Error::new(ErrorCode::LimitExceeded, message));
        }
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < length {
            let Some(LentItem::Head(piece)) = self.next(stream).await? else { return Err(serve::unexpected()) };
            self.pay(piece.len()).await;
            bytes.extend_from_slice(&piece);
        }
        self.context.env.blocking(move || CopyHead::parse(&bytes)).await?
    }

    /// Brings all files that are missing to the disk, whole and for good. Gives their number.
    async fn files(
        &self,
        peer: NodeId,
        stream: &mut StreamReceiver,
        mut missing: BTreeMap<String, CheckpointFile>,
        (mut done, total): (u64, u64),
    ) -> Result<usize> {
        let mut part: Option<Part> = None;
        let mut came = 0;
        loop {
            let item = self.next(stream).await?;
            match (item, part.as_mut()) {
                (Some(LentItem::Piece(piece)), Some(part)) => {
                    let (length, at, file) = (piece.len(), part.bytes, part.file.clone());
                    part.bytes += length as u64;
                    done += length as u64;
                    if done > total {
                        return Err(Error::new(ErrorCode::Corruption, "a peer sent more than it had said"));
                    }
                    self.context.env.blocking(move || file.write_all_at(&piece, at)).await??;
                    metrics::counter!("shoal_fill_file_bytes_total").increment(length as u64);
                    self.handle.set_fetching(Some(Fetching::From(peer, done, total)));
                    self.pay(length).await;
                }
                (Some(LentItem::File(name)), _) => {
                    came += self.finish(part.take()).await?;
                    let file = missing.remove(&name).ok_or_else(serve::unexpected)?;
                    // Others take room meanwhile.
                    self.make_sure_of_room(total.saturating_sub(done)).await?;
                    let path = self.dir.join(&file.local_name).with_extension(PART);
                    let (disk, opened) = (self.context.env.disk(), path.clone());
                    let file = self.context.env.blocking(move || disk.open(&opened, OpenMode::CreateNew)).await??;
                    part = Some(Part { name, path, file, bytes: 0 });
                }
                (None, _) => {
                    came += self.finish(part.take()).await?;
                    if missing.is_empty() {
                        return Ok(came);
                    }
                    return Err(Error::new(
                        ErrorCode::NodeLost,
                        "the stream of a copy ended before all files had come",
                    ));
                }
                _ => return Err(serve::unexpected()),
            }
        }
    }

    /// Checks what has come and gives it the name of a whole file.
    async fn finish(&self, part: Option<Part>) -> Result<usize> {
        let Some(Part { name, path, file, .. }) = part else { return Ok(0) };
        let (disk, dir) = (self.context.env.disk(), self.dir.to_owned());
        let finished = self.context.env.blocking(move || -> Result<()> {
            CopyHead::check_file(&disk, &path, &name)?;
            // Before its name says so.
            file.sync()?;
            disk.rename(&path, &dir.join(CopyHead::local_name(&name)))?;
            disk.sync_dir(&dir)?;
            Ok(())
        });
        finished.await??;
        metrics::counter!("shoal_fill_files_total").increment(1);
        self.came.fetch_add(1, Ordering::Relaxed);
        Ok(1)
    }

    async fn pay(&self, bytes: usize) {
        let waited = self.context.filling.pay(bytes as u64).await;
        if !waited.is_zero() {
            metrics::histogram!("shoal_fill_throttled_seconds").record(waited.as_secs_f64());
        }
    }

    async fn make_sure_of_room(&self, needed: u64) -> Result<()> {
        let (disk, dir) = (self.context.env.disk(), self.context.config.data_dir.clone());
        let free = self.context.env.blocking(move || disk.free_bytes(&dir)).await??;
        let reserve = self.context.config.disk_reserve_bytes;
        if free >= needed.saturating_add(reserve) {
            return Ok(());
        }
        let message = format!("files of {needed} bytes are to come, and {free} are free, of which {reserve} stay so");
        Err(Error::new(ErrorCode::DiskFull, message))
    }

    /// Makes a store of the files that have come.
    async fn place(&self, peer: NodeId, head: CopyHead, lent: Lent) -> Result<()> {
        let (context, node) = (self.context, self.context.node);
        let (lent_log, position) = head.place();
        let mut cursors = lent.cursors;
        cursors.remove(&node);
        cursors.insert(peer, PullCursor { log_id: lent_log, position, round: None });
        if context.config.has(Planted::FilledTooFar) {
            cursors = self.present_places(cursors).await;
        }
        // It has taken nothing of any epoch, and takes nothing of one before the present.
        let begun = Meta { sealed: self.partition.epoch, counts: false, lacks: Lacks::Everything };
        let before = self.opened.durable.clone().unwrap_or(Durable { core: begun, ..Durable::default() });
        let core = Meta { counts: false, lacks: Lacks::Everything, ..before.core };
        let (log_id, log_secret) = open::new_log(&context.env);
        let fence = before.fence.max(head.purged());
        let meta = wire::encode(&Durable { core, cursors, fence, log_id })?;
        if let Some(observer) = &context.config.observer {
            let at = Moment { partition: self.partition.id, node, log_id, position, cutoff_micros: None };
            observer.copied(at, Moment { node: peer, log_id: lent_log, ..at });
        }
        // Whoever reads here and writes above what was read must hear of them. A clock of which nothing is on the disk would be taken for that
        // of a node without rows at the next start.
        context.clock.tick().await?;
        context.clock.hold_up_to(lent.ceiling);
        // From here on nobody asks whether the replica has gone: it is opened next, and then hears of it.
        self.check_is_wanted()?;
        self.check_is_peer(peer)?;
        self.check_is_young(&head)?;
        let (disk, dir, range) = (context.env.disk(), self.dir.to_owned(), self.opened.store.range().clone());
        let (schema, options) = (self.form.schema.clone(), open::options(context, self.form));
        let placed = context.env.blocking(move || {
            head.place_in(&disk, &dir, Placing { schema, range, meta, log_id, log_secret, options: &options })
        });
        placed.await?
    }

    /// What [`Planted::FilledTooFar`] makes of cursors.
    async fn present_places(&self, cursors: BTreeMap<NodeId, PullCursor>) -> BTreeMap<NodeId, PullCursor> {
        // In a simulation files are small, and here before anybody has written.
        self.context.env.sleep(PLANTED_PAUSE).await;
        let mut present = BTreeMap::new();
        for (peer, cursor) in cursors {
            let PullCursor { log_id, position: after, .. } = cursor;
            let call = ReplicaCall::Recent { partition: self.partition.id, log_id, after };
            let cursor = match serve::call(self.context, peer, &call, CALL_TIMEOUT).await {
                Ok(ReplicaAnswer::Recent(answer)) => {
                    PullCursor { log_id: answer.log_id, position: answer.position, round: None }
                }
                _ => cursor,
            };
            present.insert(peer, cursor);
        }
        present
    }

    /// Whether what has come is a store.
    async fn is_placed(&self) -> Result<bool> {
        let (disk, dir) = (self.context.env.disk(), self.dir.to_owned());
        self.context.env.blocking(move || Store::is_in(&*disk, &dir)).await?
    }

    /// Removes what has come, if anything has.
    async fn clear(&self) -> Result<()> {
        let (disk, dir) = (self.context.env.disk(), self.dir.to_owned());
        let cleared = self.context.env.blocking(move || -> Result<()> {
            if disk.exists(&dir)? {
                disk.remove_dir_all(&dir)?;
            }
            Ok(())
        });
        cleared.await?
    }
}

/// Makes the directory for files; gives the names of those that have come whole, checked anew: this life of the node has not
/// written them. Whatever else is there goes.
fn prepare(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Vec<String>> {
    disk.create_dir_all(dir)?;
    let whole = CopyHead::whole_files(&**disk, dir)?;
    let mut good = Vec::new();
    for name in whole {
        match CopyHead::check_file(disk, &dir.join(CopyHead::local_name(&name)), &name) {
            Ok(()) => good.push(name),
            Err(error) => tracing::debug!(%name, %error, "a file that had come for a replica is not whole"),
        }
    }
    let is_good = |file: &str| good.iter().any(|name| CopyHead::local_name(name) == file);
    for entry in disk.list(dir)?.into_iter().filter(|entry| !is_good(&entry.name)) {
        let path = dir.join(&entry.name);
        if entry.is_dir { disk.remove_dir_all(&path)? } else { disk.remove_file(&path)? }
    }
    Ok(good)
}
