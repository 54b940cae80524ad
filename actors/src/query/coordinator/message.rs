//! What a query actor hears.

use shoal_kernel::{NodeId, Result};
use shoal_planner::FragmentGraph;

use super::state::Event;
use crate::query::admission::Permit;
use crate::query::message::{Report, Status};

/// To the actor of one query.
pub(crate) enum QueryMessage {
    /// Its turn has come, or never will.
    Turn(Result<Permit>),
    /// It was planned anew, or could not be.
    Planned(Result<FragmentGraph>),
    /// Something happened.
    Event(Event),
    /// How its tasks on a node are doing.
    Status {
        /// The node.
        from: NodeId,
        /// What it says.
        status: Status,
    },
    /// The answer of an attempt was handed over whole, or not.
    Delivered {
        /// The attempt.
        attempt: u32,
        /// How it ended.
        result: Result<()>,
    },
    /// A node has let go of an attempt; `None` if it does not answer.
    Released {
        /// The attempt.
        attempt: u32,
        /// The node.
        node: NodeId,
        /// What it knew.
        report: Option<Report>,
    },
    /// Time to tell the client how far the query is.
    Tick,
}
