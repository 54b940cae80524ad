//! What the clocks of other nodes show.

use std::time::Duration;

use futures::future::join_all;
use shoal_catalog::Catalog;
use shoal_kernel::NodeId;

use crate::node::context::NodeContext;
use crate::replica::message::{ReplicaAnswer, ReplicaCall};
use crate::replica::serve;

/// How long a node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What the clocks of these nodes show now, as far as they answer, and this node's, in microseconds since 1970.
pub(crate) async fn clocks_of(context: &NodeContext, others: &[NodeId]) -> Vec<u64> {
    let answers = join_all(others.iter().map(|node| clock_of(context, *node))).await;
    let own = Clock { micros: context.env.wall_micros(), at: context.env.monotonic() };
    answers.into_iter().flatten().chain([own]).map(|clock| clock.shows(own.at)).collect()
}

/// The time by the clocks of all active nodes that answer, in microseconds since 1970; `None` unless a majority of them does. As long as
/// most of those clocks are right it is not further ahead than a right one.
pub(crate) async fn agreed_micros(context: &NodeContext, catalog: &Catalog) -> Option<u64> {
    let nodes: Vec<NodeId> = catalog.active_nodes().map(|node| node.id).collect();
    let others = nodes.iter().filter(|node| **node != context.node && !context.liveness.is_down(**node));
    let others: Vec<NodeId> = others.copied().collect();
    lower_median(clocks_of(context, &others).await, nodes.len() / 2 + 1)
}

/// The one in the middle, the lower one of two, if there are so many clocks.
pub(crate) fn lower_median(mut clocks: Vec<u64>, enough: usize) -> Option<u64> {
    clocks.sort_unstable();
    if clocks.len() < enough {
        return None;
    }
    clocks.get(clocks.len().checked_sub(1)? / 2).copied()
}

/// What a clock showed when this node's monotonic clock showed `at`.
#[derive(Clone, Copy)]
struct Clock {
    micros: u64,
    at: Duration,
}

impl Clock {
    /// What it shows later.
    fn shows(&self, at: Duration) -> u64 {
        let since = u64::try_from(at.saturating_sub(self.at).as_micros()).unwrap_or(u64::MAX);
        self.micros.saturating_add(since)
    }
}

/// Asks a node. It may have looked at its clock at any time on the way there and back, so half of that is taken.
async fn clock_of(context: &NodeContext, node: NodeId) -> Option<Clock> {
    let began = context.env.monotonic();
    let Ok(ReplicaAnswer::Wall(micros)) = serve::call(context, node, &ReplicaCall::Wall, ANSWER_TIMEOUT).await else {
        return None;
    };
    let taken = context.env.monotonic().saturating_sub(began);
    Some(Clock { micros, at: began + taken / 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_clock_of_three_does_not_count_and_half_of_them_are_not_enough() {
        assert_eq!(lower_median(vec![100, u64::MAX, 101], 2), Some(101));
        assert_eq!(lower_median(vec![0, 101, 100], 2), Some(100));
        assert_eq!(lower_median(vec![u64::MAX, 100], 2), Some(100), "the lower one of two");
        assert_eq!(lower_median(vec![100, 100], 3), None);
        assert_eq!(lower_median(vec![7], 1), Some(7));
        assert_eq!(lower_median(Vec::new(), 0), None);
    }
}
