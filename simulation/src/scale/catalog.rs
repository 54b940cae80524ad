//! The catalog at a size that nobody has yet: how long its commands take, and how many bytes the map of partitions is.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use arrow_schema::DataType;
use serde::Serialize;
use shoal_catalog::{Catalog, Command, NewTable, NodeAttributes, Outlook, Partitioning, TableOptions};
use shoal_kernel::limits::PARTITIONS_PER_TABLE_MAX;
use shoal_kernel::{Column, ColumnId, Epoch, NodeId, PartitionId, Result, TableKind, TableSchema, wire};
use shoal_membership::agreement;

use super::Meter;
use crate::random::Stream;

/// Replicas that are moved to take the time of one change.
const MOVES: u64 = 1_000;

/// Racks that the nodes stand in.
const ZONES: usize = 20;

/// What the catalog came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CatalogReport {
    /// Nodes that hold replicas.
    pub nodes: usize,
    /// Partitions, of three replicas each.
    pub partitions: usize,
    /// Tables that they belong to.
    pub tables: usize,
    /// Bytes of a snapshot, as a node that was away for long fetches it.
    pub snapshot_bytes: usize,
    /// Entries that moving one replica adds to the log: it is added and promoted, the old one retires and goes, and twice the
    /// voters have settled.
    pub move_entries: usize,
    /// Bytes of these.
    pub move_bytes: usize,
    /// To make all tables.
    pub made_in: Duration,
    /// To make the last of them.
    pub last_made_in: Duration,
    /// To apply one command, on average over the moves of replicas.
    pub applied_in: Duration,
    /// To look for partitions that need another replica.
    pub looked_over_in: Duration,
    /// To copy it for its readers, which every change costs.
    pub copied_in: Duration,
    /// To encode a snapshot.
    pub encoded_in: Duration,
    /// To decode one.
    pub decoded_in: Duration,
    /// Bytes of memory that it takes.
    pub resident_bytes: u64,
}

impl CatalogReport {
    /// Bytes of a snapshot for each partition.
    pub fn bytes_per_partition(&self) -> f64 {
        self.snapshot_bytes as f64 / self.partitions.max(1) as f64
    }
}

fn table(number: u64, buckets: u32) -> Command {
    let column =
        |id, name: &str| Column { id: ColumnId(id), name: name.into(), data_type: DataType::Int64, nullable: false };
    Command::CreateTable(NewTable {
        name: format!("table_{number}"),
        schema: TableSchema::new(
            vec![column(0, "id"), column(1, "value")],
            TableKind::Upsert { primary_key: vec![ColumnId(0)] },
        ),
        partitioning: Partitioning::Hash { columns: vec![ColumnId(0)], buckets },
        split_points: Vec::new(),
        options: TableOptions::default(),
        if_not_exists: false,
    })
}

/// Makes tables until there are so many partitions, as many in each as it may have, and moves some replicas. Times and memory
/// are the meter's; the rest follows from the arguments.
///
/// # Errors
/// The catalog refuses a command or a value is not encoded: a bug.
pub fn catalog(nodes: usize, partitions: u64, seed: u64, meter: &mut dyn Meter) -> Result<CatalogReport> {
    let (before, mut stream) = (meter.resident_bytes(), Stream::new(seed, "scale catalog", 0));
    let mut catalog = Catalog::default();
    catalog.apply(Command::Found { cluster_id: 1 })?;
    while catalog.nodes.len() < nodes {
        // Numbers as real nodes draw them: small ones would take fewer bytes.
        let id = NodeId(u32::try_from(stream.between(1, u64::from(u32::MAX))).unwrap_or(u32::MAX));
        let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + catalog.nodes.len() as u32);
        if !catalog.nodes.contains_key(&id) {
            let zone = format!("zone-{}", catalog.nodes.len() % ZONES);
            let (cluster_address, http_address) = (SocketAddr::from((ip, 7_700)), SocketAddr::from((ip, 8_080)));
            let attributes = NodeAttributes { cluster_address, http_address, zone };
            catalog.apply(Command::AddNode { id, attributes })?;
        }
    }

    let start = meter.elapsed();
    let (mut made, mut last_made_in) = (0, Duration::ZERO);
    while made < partitions {
        let last = meter.elapsed();
        let buckets = u32::try_from(partitions - made).unwrap_or(u32::MAX).min(PARTITIONS_PER_TABLE_MAX);
        catalog.apply(table(made, buckets))?;
        made += u64::from(buckets);
        last_made_in = meter.elapsed().saturating_sub(last);
    }
    let made_in = meter.elapsed().saturating_sub(start);
    let resident_bytes = meter.resident_bytes().saturating_sub(before);

    let ids: Vec<PartitionId> = catalog.partitions.keys().copied().collect();
    let nodes_of: Vec<NodeId> = catalog.nodes.keys().copied().collect();
    let (mut applied_in, mut commands, mut move_bytes, mut move_entries) = (Duration::ZERO, 0, 0, 0);
    for _ in 0..MOVES {
        let moved = stream.pick(&ids).and_then(|id| catalog.partitions.get(id));
        let (Some(partition), Some(to)) = (moved, stream.pick(&nodes_of).copied()) else { break };
        let Some(from) = partition.replicas.first().map(|replica| replica.node) else { continue };
        if partition.replica(to).is_some() {
            continue;
        }
        let (partition, first) = (partition.id, partition.epoch);
        let (second, third) = (Epoch(first.0 + 1), Epoch(first.0 + 2));
        let steps = [
            Command::AddReplica { partition, node: to },
            Command::PromoteReplica { partition, node: to, epoch: first },
            Command::SettlePartition { partition, epoch: second },
            Command::RetireReplica { partition, node: from, epoch: second },
            Command::SettlePartition { partition, epoch: third },
            Command::RemoveReplica { partition, node: from, epoch: third },
        ];
        (move_bytes, move_entries) = (0, steps.len());
        for command in steps {
            move_bytes += agreement::log_bytes(&command)?;
            let start = meter.elapsed();
            catalog.apply(command)?;
            applied_in += meter.elapsed().saturating_sub(start);
            commands += 1;
        }
    }
    let start = meter.elapsed();
    let outlook = Outlook { alive: nodes_of.iter().copied().collect(), ..Outlook::default() };
    let wanted = catalog.wanted_changes(&outlook);
    let looked_over_in = meter.elapsed().saturating_sub(start);
    let moves = |command: &Command| matches!(command, Command::AddReplica { .. });
    debug_assert!(wanted.iter().all(moves), "moves leave every partition with its replicas: only balance is wanting");
    let start = meter.elapsed();
    let copy = catalog.clone();
    let copied_in = meter.elapsed().saturating_sub(start);
    drop(copy);
    let start = meter.elapsed();
    let bytes = wire::encode(&catalog)?;
    let encoded_in = meter.elapsed().saturating_sub(start);
    let start = meter.elapsed();
    let decoded: Catalog = wire::decode(&bytes)?;
    let decoded_in = meter.elapsed().saturating_sub(start);
    Ok(CatalogReport {
        nodes,
        partitions: decoded.partitions.len(),
        tables: decoded.tables.len(),
        snapshot_bytes: bytes.len(),
        move_entries,
        move_bytes,
        made_in,
        last_made_in,
        applied_in: applied_in / commands.max(1),
        looked_over_in,
        copied_in,
        encoded_in,
        decoded_in,
        resident_bytes,
    })
}
