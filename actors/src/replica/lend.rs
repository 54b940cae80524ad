//! What a replica gives to one that is to be filled by files: a copy of its store, as one stream of the bulk connection.
//!
//! The copy is held for as long as its stream lives, and keeps files from going that merges have replaced; so few are held at a
//! time, and one of which nothing is taken for [`PATIENCE`] is given up. Who comes again gets a new one, and names the files that
//! it has already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use shoal_kernel::{Error, ErrorCode, Hlc, NodeId, PartitionId, Result, wire};
use shoal_storage::{PullCursor, StoreCopy};
use tokio::sync::OwnedSemaphorePermit;

use super::directory::ReplicaDirectory;
use super::handle::Running;
use crate::node::context::NodeContext;
use crate::transport::StreamSender;

/// Copies that a node holds at once.
pub(crate) const LENT_MAX: usize = 4;
/// How long a copy is held while nothing of it is taken.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that travel together.
pub(super) const PIECE_BYTES: usize = 256 << 10;

/// Asks for a copy: the header of a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LendCall {
    pub(super) partition: PartitionId,
    /// Files that need not be sent.
    pub(super) have: Vec<String>,
}

/// The items of that stream: what the copy is, its head in pieces, and each file that is wanted, in pieces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum LentItem {
    Begins(Lent),
    Head(ByteBuf),
    /// The pieces of this file follow.
    File(String),
    Piece(ByteBuf),
}

/// What a copy is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lent {
    pub(super) head_bytes: u64,
    /// How far the lender had pulled from its peers before the copy was made.
    pub(super) cursors: BTreeMap<NodeId, PullCursor>,
    /// No version in the copy is above this one.
    pub(super) ceiling: Hlc,
}

/// Hands out a copy until it is all there, or nobody wants it any more.
pub(super) async fn lend(
    context: &Arc<NodeContext>,
    directory: &ReplicaDirectory,
    to: NodeId,
    header: &Bytes,
    out: StreamSender,
) {
    let copied = async {
        let call: LendCall = wire::decode(header)?;
        if !context.transport.reads_segments(to) {
            // It asks for rows then.
            let message = format!("the build of {to} cannot read the files of this one");
            return Err(Error::new(ErrorCode::IncompatibleVersion, message));
        }
        let copied = copy(context, directory, call.partition).await?;
        Ok((call, copied))
    };
    match copied.await {
        Ok((call, copied)) => {
            let partition = call.partition;
            let Copied { running, .. } = &copied;
            match send(context, &call, &copied, &out).await {
                Ok(()) => out.finish().await,
                Err(error) => {
                    running.blame(&error);
                    tracing::debug!(%partition, %to, %error, "a copy of a replica was not taken whole");
                    out.fail(error).await;
                }
            }
        }
        Err(error) => out.fail(error).await,
    }
}

/// A copy that is held for a peer.
struct Copied {
    running: Running,
    copy: Arc<StoreCopy>,
    lent: Lent,
    _place: OwnedSemaphorePermit,
}

async fn copy(context: &NodeContext, directory: &ReplicaDirectory, partition: PartitionId) -> Result<Copied> {
    let place = context.lending.clone().try_acquire_owned().map_err(|_| {
        let message = "the node holds as many copies of replicas for others as it may (LENT_MAX)";
        Error::new(ErrorCode::Overloaded, message).with_retry_after_ms(1_000)
    })?;
    let handle = directory.get(partition)?;
    if !handle.report().await?.counts {
        return Err(Error::new(ErrorCode::NotReady, format!("the replica of {partition} does not count itself")));
    }
    let running = handle.running()?;
    // Before the copy: what the cursors say is here must be in it.
    let cursors = running.feed.cursors();
    let store = running.store.clone();
    let copy = context.env.blocking(move || store.copy()).await?.inspect_err(|error| running.blame(error))?;
    // And this after it.
    let lent = Lent { head_bytes: copy.head().len() as u64, cursors, ceiling: context.clock.ceiling() };
    Ok(Copied { running, copy: Arc::new(copy), lent, _place: place })
}

async fn send(context: &NodeContext, call: &LendCall, copied: &Copied, out: &StreamSender) -> Result<()> {
    let Copied { copy, lent, .. } = copied;
    let item = async |item: &LentItem| -> Result<()> {
        let sent = context.env.timeout(PATIENCE, out.send(wire::encode(item)?.into())).await;
        let stalled = |_| Error::new(ErrorCode::Timeout, "nothing of a copy was taken for too long");
        sent.map_err(stalled)?.map_err(|closed| closed.0)
    };
    let Lent { head_bytes, cursors, ceiling } = lent;
    item(&LentItem::Begins(Lent { head_bytes: *head_bytes, cursors: cursors.clone(), ceiling: *ceiling })).await?;
    for piece in copy.head().chunks(PIECE_BYTES) {
        item(&LentItem::Head(ByteBuf::from(piece))).await?;
    }
    let have: BTreeSet<&str> = call.have.iter().map(String::as_str).collect();
    for (place, name) in copy.names().iter().enumerate().filter(|(_, name)| !have.contains(name.as_str())) {
        item(&LentItem::File(name.clone())).await?;
        let copy = copy.clone();
        let mut reader = context.env.blocking(move || copy.reader(place)).await??;
        loop {
            let read = move || {
                let piece = reader.read(PIECE_BYTES);
                (reader, piece)
            };
            let piece;
            (reader, piece) = context.env.blocking(read).await?;
            let piece = piece?;
            if piece.is_empty() {
                break;
            }
            metrics::counter!("shoal_lent_bytes_total").increment(piece.len() as u64);
            item(&LentItem::Piece(ByteBuf::from(piece))).await?;
        }
        metrics::counter!("shoal_lent_files_total").increment(1);
    }
    Ok(())
}
