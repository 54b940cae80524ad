//! Watching a store that is being opened: says how far its replay is, and has other threads help once it takes long.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use shoal_kernel::env::{BlockingLost, Elapsed};
use shoal_storage::Replay;

use super::handle::ReplicaHandle;
use crate::node::context::NodeContext;

/// How often a replay is looked at. Most have ended before the first look.
const GLANCE: Duration = Duration::from_millis(250);
/// Looks between two lines in the log.
const GLANCES_PER_LINE: u32 = 4;
/// Threads of a node that help replicas with their replay, beside the one that each of them has. Others are for reading.
pub(crate) const HELPERS_MAX: usize = 2;

/// Waits for the store to be open.
pub(super) async fn watch<T>(
    context: &Arc<NodeContext>,
    handle: &ReplicaHandle,
    replay: Arc<Replay>,
    opened: impl Future<Output = Result<T, BlockingLost>>,
) -> Result<T, BlockingLost> {
    let env = &context.env;
    tokio::pin!(opened);
    let (mut glance, mut before) = (0, 0);
    loop {
        glance += 1;
        let looked = env.timeout(GLANCE, &mut opened).await;
        let (done, total) = replay.progress();
        match looked {
            Ok(opened) => {
                handle.set_replaying(None);
                return opened;
            }
            Err(Elapsed) if total == 0 => {}
            Err(Elapsed) => {
                handle.set_replaying(Some((done, total)));
                if glance >= GLANCES_PER_LINE {
                    glance = 0;
                    let (partition, bytes_per_second) = (handle.partition, done - before);
                    tracing::info!(%partition, done, total, bytes_per_second, "the log is being replayed");
                    before = done;
                }
                // None of them waits for a thread, so a node that opens many replicas at once has each of them move.
                while let Ok(place) = context.replay_helpers.clone().try_acquire_owned() {
                    let (env, replay) = (env.clone(), replay.clone());
                    context.env.spawn("replay helper", async move {
                        let _ = env.blocking(move || replay.help()).await;
                        drop(place);
                    });
                }
            }
        }
    }
}
