//! What the supervisor of a node's tasks hears.

use shoal_kernel::{FragmentId, NodeId, Result};
use tokio::sync::oneshot;

use crate::query::message::Report;

/// To the supervisor of the tasks of one attempt on this node.
pub(crate) enum TasksMessage {
    /// A task has ended.
    Ended {
        /// Its fragment.
        fragment: FragmentId,
        /// Its number.
        task: u32,
        /// How.
        result: Result<()>,
    },
    /// A task's actor has ended; if nothing was heard of the task before, it died.
    Gone {
        /// Its fragment.
        fragment: FragmentId,
        /// Its number.
        task: u32,
    },
    /// Time to look around.
    Tick,
    /// The coordinator's answer; `None` if it could not be reached.
    Answer(Option<bool>),
    /// A node is down.
    NodeDown(NodeId),
    /// Stop everything; answered when nothing is left.
    Release(Option<oneshot::Sender<Report>>),
}
