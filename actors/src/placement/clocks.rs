//! What time it is, when much hangs on it: no clock alone decides that rows have had their time.

use std::time::Duration;

use shoal_catalog::Catalog;
use shoal_kernel::NodeId;

use crate::node::context::NodeContext;
use crate::replica::message::{ReplicaAnswer, ReplicaCall};
use crate::replica::serve;

/// How long a node may take to say what its clock says.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The median of the clocks of all active nodes that answer, the lower one of two in the middle, in microseconds since 1970.
/// `None` unless a majority of them does. As long as most of those clocks are right it is not further ahead than a right one.
pub(crate) async fn agreed_micros(context: &NodeContext, catalog: &Catalog) -> Option<u64> {
    let nodes: Vec<NodeId> = catalog.active_nodes().map(|node| node.id).collect();
    let others = nodes.iter().filter(|node| **node != context.node && !context.liveness.is_down(**node));
    let asked = others.map(|node| serve::call(context, *node, &ReplicaCall::Wall, ANSWER_TIMEOUT));
    let mut clocks: Vec<u64> = futures::future::join_all(asked)
        .await
        .into_iter()
        .filter_map(|answer| match answer {
            Ok(ReplicaAnswer::Wall(micros)) => Some(micros),
            _ => None,
        })
        .collect();
    clocks.push(context.env.wall_micros());
    median(clocks, nodes.len())
}

/// The lower median of clocks, if they are of more than half of so many nodes.
fn median(mut clocks: Vec<u64>, nodes: usize) -> Option<u64> {
    clocks.sort_unstable();
    (clocks.len() * 2 > nodes).then(|| clocks[(clocks.len() - 1) / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_clock_of_three_does_not_count_and_half_of_them_are_not_enough() {
        assert_eq!(median(vec![100, u64::MAX, 101], 3), Some(101));
        assert_eq!(median(vec![0, 101, 100], 3), Some(100));
        assert_eq!(median(vec![u64::MAX, 100], 3), Some(100), "the lower one of two");
        assert_eq!(median(vec![100, 100], 4), None);
        assert_eq!(median(vec![7], 1), Some(7));
    }
}
