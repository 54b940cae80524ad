//! What operators have nodes do, and what a node does that is no member any more.

use std::time::Duration;

use shoal_catalog::{Command, NodeState};
use shoal_kernel::{Error, ErrorCode, NodeId, Result};
use shoal_membership::MemberState;

use super::Inner;
use crate::service::{NodeChange, NodeEnd};

impl Inner {
    /// Has a change of a node agreed on. What follows from it, placement sees to.
    pub(super) async fn change_node(&self, id: NodeId, change: NodeChange, timeout: Duration) -> Result<()> {
        let command = match change {
            NodeChange::Activate => Command::SetNodeState { id, state: NodeState::Active },
            NodeChange::Drain => Command::SetNodeState { id, state: NodeState::Draining },
            NodeChange::Decommission => Command::SetNodeState { id, state: NodeState::Leaving },
            NodeChange::Remove => {
                self.check_gone(id)?;
                Command::RemoveNode { id, lost: true }
            }
        };
        self.context.change_catalog(command, "the change of the node", timeout).await
    }

    /// What a node that answers holds need not be given up.
    fn check_gone(&self, id: NodeId) -> Result<()> {
        match self.context.liveness.state(id) {
            Some(MemberState::Alive | MemberState::Suspect) => {
                let message = format!("{id} answers; only a node that is gone for good can be removed");
                Err(Error::new(ErrorCode::InvalidRequest, message)
                    .with_help("decommission it: then others take over what it holds before it leaves"))
            }
            Some(MemberState::Down) | None => Ok(()),
        }
    }

    /// Waits until this node's part is over.
    pub(super) async fn ended(&self) -> NodeEnd {
        let node = self.context.node;
        let removed = async {
            let mut catalog = self.context.agreement.catalog();
            let gone = async {
                catalog.wait_for(|catalog| catalog.nodes.contains_key(&node)).await?;
                catalog.wait_for(|catalog| !catalog.nodes.contains_key(&node)).await.map(drop)
            };
            if gone.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            error = self.context.agreement.failed() => NodeEnd::Failed(error),
            () = removed => NodeEnd::Removed,
        }
    }
}
