//! What operators have nodes do, and what a node does that is no member any more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_catalog::{Command, Load, Move, NodeState, Outlook, Partition, ReplicaState};
use shoal_kernel::{Error, ErrorCode, NodeId, Result};
use shoal_membership::MemberState;

use super::Inner;
use crate::placement::load_of;
use crate::replica::message::ReplicaCall;
use crate::replica::serve;
use crate::service::{BalanceStatus, NodeChange, NodeEnd, WantedMove};

/// How long a node that is to be removed may take to show that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

impl Inner {
    /// Has a change of a node agreed on. What follows from it, placement sees to.
    pub(super) async fn change_node(&self, id: NodeId, change: NodeChange, timeout: Duration) -> Result<()> {
        let command = match change {
            NodeChange::Activate => Command::SetNodeState { id, state: NodeState::Active },
            NodeChange::Drain => Command::SetNodeState { id, state: NodeState::Draining },
            NodeChange::Decommission => Command::SetNodeState { id, state: NodeState::Leaving },
            NodeChange::Remove => {
                self.check_gone(id).await?;
                Command::RemoveNode { id, lost: true }
            }
        };
        self.context.change_catalog(command, "the change of the node", timeout).await.map(drop)
    }

    /// What placement would do for balance if it were to decide now, here.
    pub(super) async fn balance(&self) -> Result<BalanceStatus> {
        let catalog = self.context.agreement.catalog().borrow().clone();
        let alive = self.context.liveness.alive();
        let load = load_of(&self.context, &alive, &Load::default()).await;
        let changes = |partition: &&Partition| {
            !partition.settled || partition.replicas.iter().any(|replica| replica.state != ReplicaState::Voting)
        };
        let moving = catalog.partitions.values().filter(changes).map(|partition| partition.id).collect();
        let outlook = Arc::new(Outlook { alive, lost: BTreeSet::new(), load });
        // It may look at each partition many times.
        let (of, by) = (catalog.clone(), outlook.clone());
        let wanted = self.context.env.blocking(move || of.wanted_moves(&by)).await?;
        let wanted = wanted.into_iter().map(|Move { partition, from, to }| {
            let table = catalog.partitions.get(&partition).and_then(|partition| catalog.tables.get(&partition.table));
            let table = table.map(|table| table.name.clone()).unwrap_or_default();
            let bytes = outlook.load.bytes.get(&partition).copied().unwrap_or(0);
            WantedMove { partition, table, from, to, bytes }
        });
        Ok(BalanceStatus { paused: catalog.balance_paused, moving, wanted: wanted.collect() })
    }

    /// What a node that answers holds need not be given up. Gossip alone does not do: a node that has just been started has heard of
    /// nobody yet.
    async fn check_gone(&self, id: NodeId) -> Result<()> {
        let seems = self.context.liveness.state(id);
        let answers = || serve::call(&self.context, id, &ReplicaCall::Wall, PROBE_TIMEOUT);
        if matches!(seems, Some(MemberState::Alive | MemberState::Suspect)) || answers().await.is_ok() {
            let message = format!("{id} answers; only a node that is gone for good can be removed");
            return Err(Error::new(ErrorCode::InvalidRequest, message)
                .with_help("decommission it: then others take over what it holds before it leaves"));
        }
        Ok(())
    }

    /// Waits until this node's part is over.
    pub(super) async fn ended(&self) -> NodeEnd {
        tokio::select! {
            biased;
            error = self.context.agreement.failed() => NodeEnd::Failed(error),
            error = self.over.declared() => NodeEnd::Failed(error),
            () = self.context.agreement.removed() => NodeEnd::Removed,
        }
    }
}
