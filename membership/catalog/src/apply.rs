//! The state machine's entry: one command in, what changed out. Nodes are handled here, tables and replicas next door.

use std::collections::BTreeSet;

use shoal_kernel::NodeId;

use crate::command::{CatalogError, Command, CommandOutcome, Effect};
use crate::state::{Catalog, NodeAttributes, NodeRecord, NodeState};

/// Bytes of the name of a zone.
pub const ZONE_BYTES_MAX: usize = 63;

impl Catalog {
    /// Applies one command. Deterministic: equal states and equal commands give equal states, outcomes and errors.
    ///
    /// A command whose wish is already fulfilled changes nothing and succeeds with no effects.
    ///
    /// # Errors
    /// The command makes no sense in this state; the state has not changed.
    pub fn apply(&mut self, command: Command) -> Result<CommandOutcome, CatalogError> {
        let effects = match command {
            Command::Found { cluster_id } => self.found(cluster_id)?,
            Command::AddNode { id, attributes } => {
                let known = self.nodes.get(&id).map(|node| node.attributes.cluster_address);
                if let Some(address) = known.filter(|known| *known != attributes.cluster_address) {
                    return Err(CatalogError::NodeNumberTaken(id, address));
                }
                self.put_node(id, attributes)?
            }
            Command::PutNode { id, attributes } => self.put_node(id, attributes)?,
            Command::SetNodeState { id, state } => self.set_node_state(id, state)?,
            Command::SetVoter { id, voter } => {
                let node = self.nodes.get_mut(&id).ok_or(CatalogError::UnknownNode(id))?;
                changed_nodes(std::mem::replace(&mut node.voter, voter) != voter)
            }
            Command::RemoveNode { id, lost } => self.remove_node(id, lost)?,
            Command::CreateTable(table) => self.create_table(table)?,
            Command::DropTable { name, if_exists } => self.drop_table(name, if_exists)?,
            Command::AlterTable(altered) => self.alter_table(altered)?,
            Command::Expire { table, cutoff } => self.expire(table, cutoff)?,
            Command::AddWindows { table, windows } => self.add_windows(table, windows)?,
            Command::DropWindows { table } => self.drop_windows(table)?,
            Command::AddReplica { partition, node } => self.add_replica(partition, node)?,
            Command::PromoteReplica { partition, node, epoch } => self.promote_replica(partition, node, epoch)?,
            Command::RemoveReplica { partition, node, epoch } => self.remove_replica(partition, node, epoch)?,
            Command::RetireReplica { partition, node, epoch } => self.retire_replica(partition, node, epoch)?,
            Command::SettlePartition { partition, epoch } => self.settle_partition(partition, epoch)?,
            Command::SplitPartition { partition, at, epoch } => self.split_partition(partition, at, epoch)?,
            Command::MarkReplica { partition, node, failed } => self.mark_replica(partition, node, failed)?,
            Command::RaisePurge { partition, changed, purged } => self.raise_purge(partition, changed, purged)?,
            Command::PauseBalance { paused } => self.pause_balance(paused),
            Command::Recover => self.leave_numbers_free(),
            Command::RenameTable { table, to } => self.rename_table(table, to)?,
        };
        if !effects.is_empty() {
            self.version += 1;
        }
        for effect in &effects {
            if let Effect::Partition(id) = effect
                && let Some(partition) = self.partitions.get_mut(id)
            {
                partition.changed = self.version;
            }
        }
        Ok(CommandOutcome { effects, version: self.version })
    }

    /// Makes the `voter` marks of the nodes say what the consensus' own membership says. Returns whether one changed.
    pub fn mirror_voters(&mut self, voters: &BTreeSet<NodeId>) -> bool {
        let mut changed = false;
        for node in self.nodes.values_mut() {
            let voter = voters.contains(&node.id);
            changed |= std::mem::replace(&mut node.voter, voter) != voter;
        }
        if changed {
            self.version += 1;
        }
        changed
    }

    /// Nodes that may hold replicas, alive or not.
    pub fn active_nodes(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values().filter(|node| node.state == NodeState::Active)
    }

    fn found(&mut self, cluster_id: u64) -> Result<Vec<Effect>, CatalogError> {
        if cluster_id == 0 {
            return Err(CatalogError::Invalid("the number of a cluster must not be zero".into()));
        }
        if self.cluster_id != 0 && self.cluster_id != cluster_id {
            return Err(CatalogError::Founded);
        }
        Ok(changed_nodes(std::mem::replace(&mut self.cluster_id, cluster_id) != cluster_id))
    }

    fn put_node(&mut self, id: NodeId, attributes: NodeAttributes) -> Result<Vec<Effect>, CatalogError> {
        if id == NodeId(0) {
            return Err(CatalogError::Invalid("the number of a node must not be zero".into()));
        }
        check_zone(&attributes.zone).map_err(CatalogError::Invalid)?;
        let known = self.nodes.get(&id);
        let record = NodeRecord {
            id,
            attributes,
            state: known.map_or(NodeState::Active, |node| node.state),
            voter: known.is_some_and(|node| node.voter),
        };
        let changed = known != Some(&record);
        self.nodes.insert(id, record);
        Ok(changed_nodes(changed))
    }

    fn set_node_state(&mut self, id: NodeId, state: NodeState) -> Result<Vec<Effect>, CatalogError> {
        let stays = self.active_nodes().any(|node| node.id != id) || state == NodeState::Active;
        let node = self.nodes.get_mut(&id).ok_or(CatalogError::UnknownNode(id))?;
        if !stays {
            return Err(CatalogError::Refused(format!(
                "{id} is the only node that could hold replicas; start another one first, or activate one"
            )));
        }
        Ok(changed_nodes(std::mem::replace(&mut node.state, state) != state))
    }

    fn remove_node(&mut self, id: NodeId, lost: bool) -> Result<Vec<Effect>, CatalogError> {
        if !self.nodes.contains_key(&id) {
            return Err(CatalogError::UnknownNode(id));
        }
        if self.nodes.len() == 1 {
            return Err(CatalogError::Refused(format!("{id} is the only node of the cluster")));
        }
        let held = self.partitions.values().filter(|partition| partition.replica(id).is_some()).count();
        if held > 0 && !lost {
            return Err(CatalogError::Refused(format!("{id} still holds {held} replicas; decommission it")));
        }
        let mut effects = changed_nodes(true);
        self.lose_replicas(id, &mut effects)?;
        self.nodes.remove(&id);
        Ok(effects)
    }
}

/// Whether a zone may have this name; says why not.
///
/// # Errors
/// It is too long, or would not be seen for what it is.
pub fn check_zone(name: &str) -> Result<(), String> {
    if name.len() > ZONE_BYTES_MAX {
        return Err(format!("the name of a zone has {} bytes, more than the {ZONE_BYTES_MAX} allowed", name.len()));
    }
    if name.chars().any(|char| char.is_control() || char.is_whitespace()) {
        return Err(format!("the name of a zone has no spaces or control characters, but {name:?} does"));
    }
    Ok(())
}

fn changed_nodes(changed: bool) -> Vec<Effect> {
    if changed { vec![Effect::Nodes] } else { Vec::new() }
}
