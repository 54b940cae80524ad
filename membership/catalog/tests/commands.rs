//! Random and chosen sequences of commands against the promises of the state machine.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use arrow_schema::DataType;
use proptest::collection::vec;
use proptest::prelude::*;
use shoal_catalog::*;
use shoal_kernel::*;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn at(port: u16) -> NodeAttributes {
    NodeAttributes { cluster_address: address(port), http_address: address(1000 + port), zone: String::new() }
}

fn add_node(id: u32) -> Command {
    Command::AddNode { id: NodeId(id), attributes: at(u16::try_from(id).unwrap()) }
}

/// A node of one of so many zones.
fn add_node_of(id: u32, zones: u32) -> Command {
    let attributes = NodeAttributes { zone: format!("z{}", id % zones), ..at(u16::try_from(id).unwrap()) };
    Command::AddNode { id: NodeId(id), attributes }
}

fn schema() -> TableSchema {
    let column =
        |id, name: &str, nullable| Column { id: ColumnId(id), name: name.into(), data_type: DataType::Int64, nullable };
    TableSchema::new(
        vec![column(0, "id", false), column(1, "part", false), column(2, "value", true)],
        TableKind::Upsert { primary_key: vec![ColumnId(0), ColumnId(1)] },
    )
}

fn table(name: &str, partitioning: Partitioning, split_points: Vec<Vec<u8>>, replication_factor: u32) -> NewTable {
    NewTable {
        name: name.into(),
        schema: schema(),
        partitioning,
        split_points,
        options: TableOptions { replication_factor, ..TableOptions::default() },
        if_not_exists: false,
    }
}

fn hashed(name: &str, buckets: u32, replication_factor: u32) -> NewTable {
    table(name, Partitioning::Hash { columns: vec![ColumnId(0)], buckets }, vec![], replication_factor)
}

fn ranged(name: &str, split_points: Vec<Vec<u8>>) -> NewTable {
    table(name, Partitioning::Range { columns: vec![ColumnId(0)] }, split_points, 3)
}

/// Windows of ten numbers each.
fn windowed(name: &str) -> NewTable {
    let mut table = ranged(name, vec![]);
    table.options.partition_size_hint = Some(10);
    table
}

fn numbers(start: i64, end: i64) -> KeyRange {
    KeyRange { start: Datum::Int(start).encode(), end: Some(Datum::Int(end).encode()) }
}

fn cluster(nodes: u32) -> Catalog {
    let mut catalog = Catalog::default();
    catalog.apply(Command::Found { cluster_id: 9 }).unwrap();
    for id in 1..=nodes {
        catalog.apply(add_node(id)).unwrap();
    }
    catalog
}

fn invariants(catalog: &Catalog) -> Result<(), TestCaseError> {
    let ids: Vec<u64> = catalog.tables.keys().map(|id| id.0).chain(catalog.partitions.keys().map(|id| id.0)).collect();
    prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "a number was given twice");
    prop_assert!(ids.iter().all(|id| *id < catalog.next_id.max(1)), "a number was not drawn");
    let mut owned = BTreeSet::new();
    for table in catalog.tables.values() {
        let partitions: Vec<_> = catalog.partitions_of(table).collect();
        prop_assert_eq!(partitions.len(), table.partitions.len());
        owned.extend(table.partitions.iter().copied());
        let has_gaps = table.options.partition_size_hint.is_some();
        let mut next = Some(Vec::new());
        for (place, partition) in partitions.iter().enumerate() {
            prop_assert_eq!(partition.table, table.id);
            match &partition.bounds {
                PartitionBounds::Bucket(bucket) => prop_assert_eq!(*bucket as usize, place),
                PartitionBounds::Range(range) => {
                    let follows =
                        next.as_ref().is_some_and(|next| range.start == *next || has_gaps && range.start > *next);
                    prop_assert!(follows, "a gap or an overlap");
                    next.clone_from(&range.end);
                }
            }
            prop_assert!(partition.voters().count() >= 1, "nobody votes");
            let nodes: Vec<_> = partition.replicas.iter().map(|replica| replica.node).collect();
            prop_assert!(nodes.windows(2).all(|pair| pair[0] < pair[1]), "replicas are not ordered by node");
            prop_assert!(nodes.iter().all(|node| catalog.nodes.contains_key(node)), "a replica on a stranger");
            let (now, before): (BTreeSet<_>, BTreeSet<_>) =
                (partition.voters().collect(), partition.previous_voters.iter().copied().collect());
            if partition.epoch > Epoch(1) {
                prop_assert!(now.symmetric_difference(&before).count() <= 1, "voters change one at a time");
                prop_assert!(partition.previous_needed as usize <= before.len());
            }
        }
        if matches!(table.partitioning, Partitioning::Range { .. }) && !has_gaps {
            prop_assert_eq!(next, None, "the last range must be open");
        }
    }
    prop_assert_eq!(owned, catalog.partitions.keys().copied().collect(), "a partition without a table");
    let parents = catalog.partitions.values().map(|partition| partition.parent);
    let parents: Vec<_> = parents.chain(catalog.ancestors.values().map(|ancestor| ancestor.parent)).flatten().collect();
    for (id, ancestor) in &catalog.ancestors {
        prop_assert!(!catalog.partitions.contains_key(id), "{} is split, and there", id);
        prop_assert!(ancestor.children > 0, "nothing of {} is left", id);
        let children = parents.iter().filter(|parent| *parent == id).count();
        prop_assert_eq!(children, ancestor.children as usize, "of {}", id);
    }
    prop_assert!(parents.iter().all(|parent| catalog.ancestors.contains_key(parent)), "a parent is forgotten");
    for partition in catalog.partitions.values() {
        let first = catalog.ancestors_of(partition.id).last().map_or(partition.id, |(id, _)| id);
        prop_assert_eq!((partition.root, catalog.root_of(partition.id)), (first, first));
    }
    for partition in catalog.partitions.values() {
        let PartitionBounds::Range(range) = &partition.bounds else { continue };
        prop_assert!(catalog.ancestors_of(partition.id).all(|(_, ancestor)| ancestor.range.covers(range)));
    }
    Ok(())
}

fn outlook(alive: &[u32], lost: &[u32]) -> Outlook {
    let set = |ids: &[u32]| ids.iter().copied().map(NodeId).collect();
    Outlook { alive: set(alive), lost: set(lost), load: Load::default() }
}

fn zone_of(catalog: &Catalog, node: NodeId) -> &str {
    &catalog.nodes[&node].attributes.zone
}

/// How many of a partition's voters each zone has, of those that have any.
fn zones_of<'a>(catalog: &'a Catalog, partition: &Partition) -> BTreeMap<&'a str, usize> {
    let mut zones = BTreeMap::new();
    for voter in partition.voters() {
        *zones.entry(zone_of(catalog, voter)).or_default() += 1;
    }
    zones
}

fn held(catalog: &Catalog) -> BTreeMap<NodeId, usize> {
    let mut held: BTreeMap<NodeId, usize> = catalog.active_nodes().map(|node| (node.id, 0)).collect();
    for replica in catalog.partitions.values().flat_map(|partition| &partition.replicas) {
        *held.entry(replica.node).or_default() += 1;
    }
    held
}

/// Plays placement and replicas until nobody wants a change any more. No partition ever has fewer voters than it began with, but
/// where nodes are drained.
fn carry_out(catalog: &mut Catalog, outlook: &Outlook) -> Result<(), TestCaseError> {
    for _ in 0..200 {
        let changes = catalog.wanted_changes(outlook);
        if changes.is_empty() {
            return Ok(());
        }
        for change in changes {
            catalog.apply(change.clone()).map_err(|error| TestCaseError::fail(format!("{change:?}: {error}")))?;
            let partition = match change {
                Command::AddReplica { partition, node } => {
                    let epoch = catalog.partitions[&partition].epoch;
                    catalog.apply(Command::SettlePartition { partition, epoch }).unwrap();
                    catalog.apply(Command::PromoteReplica { partition, node, epoch }).unwrap();
                    partition
                }
                Command::RetireReplica { partition, .. } | Command::RemoveReplica { partition, .. } => partition,
                other => return Err(TestCaseError::fail(format!("not a matter of placement: {other:?}"))),
            };
            let epoch = catalog.partitions[&partition].epoch;
            catalog.apply(Command::SettlePartition { partition, epoch }).unwrap();
            let mut leaving = catalog.partitions[&partition].replicas.iter();
            let hands_over = |replica: &&Replica| replica.state == ReplicaState::Leaving && !replica.failed;
            let leaving = leaving.find(hands_over).map(|replica| replica.node);
            // Only who answers can hand over.
            if let Some(node) = leaving.filter(|node| outlook.alive.contains(node)) {
                catalog.apply(Command::RemoveReplica { partition, node, epoch }).unwrap();
            }
        }
    }
    Err(TestCaseError::fail("placement wants changes without end"))
}

/// Commands over few numbers, so that they meet each other.
fn command() -> impl Strategy<Value = Command> {
    let node = || (1..6u32).prop_map(NodeId);
    let partition = || (1..24u64).prop_map(PartitionId);
    let epoch = || (1..5u64).prop_map(Epoch);
    let name = || (0..4u8).prop_map(|n| format!("t{n}"));
    let point = || vec(any::<u8>(), 0..3);
    prop_oneof![
        2 => (1..6u32).prop_map(add_node),
        1 => (node(), 1..9u16).prop_map(|(id, port)| Command::PutNode { id, attributes: at(port) }),
        1 => (node(), 0..3usize).prop_map(|(id, state)| Command::SetNodeState {
            id, state: [NodeState::Active, NodeState::Draining, NodeState::Leaving][state] }),
        1 => (node(), any::<bool>()).prop_map(|(id, lost)| Command::RemoveNode { id, lost }),
        2 => (name(), 0..5u32, 0..5u32).prop_map(|(name, buckets, factor)|
            Command::CreateTable(hashed(&name, buckets, factor))),
        2 => (name(), vec(point(), 0..4)).prop_map(|(name, points)| Command::CreateTable(ranged(&name, points))),
        2 => name().prop_map(|name| Command::CreateTable(windowed(&name))),
        4 => (1..24u64, vec((-9..9i64, -1..5i64), 0..4)).prop_map(|(table, windows)| Command::AddWindows {
            table: TableId(table),
            windows: windows.into_iter().map(|(start, length)| numbers(start, start + length)).collect(),
        }),
        1 => (1..24u64).prop_map(|table| Command::DropWindows { table: TableId(table) }),
        1 => (1..24u64, name()).prop_map(|(table, to)| Command::RenameTable { table: TableId(table), to }),
        1 => (name(), any::<bool>()).prop_map(|(name, if_exists)| Command::DropTable { name, if_exists }),
        4 => (partition(), node()).prop_map(|(partition, node)| Command::AddReplica { partition, node }),
        6 => (partition(), node(), epoch()).prop_map(|(partition, node, epoch)|
            Command::PromoteReplica { partition, node, epoch }),
        4 => (partition(), node(), epoch()).prop_map(|(partition, node, epoch)|
            Command::RemoveReplica { partition, node, epoch }),
        4 => (partition(), node(), epoch()).prop_map(|(partition, node, epoch)|
            Command::RetireReplica { partition, node, epoch }),
        6 => (partition(), epoch()).prop_map(|(partition, epoch)| Command::SettlePartition { partition, epoch }),
        2 => (partition(), node(), any::<bool>()).prop_map(|(partition, node, failed)|
            Command::MarkReplica { partition, node, failed }),
        6 => (partition(), point(), epoch()).prop_map(|(partition, at, epoch)|
            Command::SplitPartition { partition, at, epoch }),
        1 => any::<bool>().prop_map(|paused| Command::PauseBalance { paused }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_the_promises(commands in vec(command(), 0..80)) {
        let mut catalog = cluster(2);
        let start = catalog.clone();
        let mut epochs: BTreeMap<PartitionId, Epoch> = BTreeMap::new();
        for command in &commands {
            let before = catalog.clone();
            match catalog.apply(command.clone()) {
                Err(_) => prop_assert_eq!(&catalog, &before, "a refused command changed something"),
                Ok(outcome) => {
                    let step = u64::from(!outcome.effects.is_empty());
                    prop_assert_eq!(catalog.version, before.version + step);
                    prop_assert_eq!(outcome.version, catalog.version);
                    prop_assert_eq!(catalog == before, outcome.effects.is_empty(), "effects do not tell the change");
                }
            }
            invariants(&catalog)?;
            for (id, partition) in &catalog.partitions {
                let begun = partition.parent.and_then(|parent| before.partitions.get(&parent));
                let begun = begun.map_or(Epoch(1), |parent| parent.epoch);
                let last = epochs.insert(*id, partition.epoch).unwrap_or(begun);
                prop_assert!(partition.epoch.0 == last.0 || partition.epoch.0 == last.0 + 1, "epochs go up by one");
            }
            // Sent again, nothing happens: it succeeds without effect or is refused.
            let settled = catalog.clone();
            let _ = catalog.apply(command.clone());
            prop_assert_eq!(&catalog, &settled, "the second time changed something");
        }
        let mut replayed = start;
        for command in commands {
            let _ = replayed.apply(command);
        }
        prop_assert_eq!(&replayed, &catalog, "replay gives another state");
        replayed.apply(Command::Recover).unwrap();
        invariants(&replayed)?;
        prop_assert!(replayed.partitions.iter().all(|(id, partition)| partition.epoch > catalog.partitions[id].epoch));
    }

    #[test]
    fn placement_settles_fills_and_balances(nodes in 1..7u32, factor in 1..5u32, buckets in 1..8u32, late in 0..4u32) {
        let mut catalog = cluster(nodes);
        catalog.apply(Command::CreateTable(hashed("t", buckets, factor))).unwrap();
        for id in nodes + 1..=nodes + late {
            catalog.apply(add_node(id)).unwrap();
        }
        let all = |catalog: &Catalog| catalog.nodes.keys().map(|node| node.0).collect::<Vec<_>>();
        let outlook = outlook(&all(&catalog), &[]);
        carry_out(&mut catalog, &outlook)?;
        for partition in catalog.partitions.values() {
            prop_assert_eq!(partition.voters().count(), factor.min(nodes + late) as usize);
            prop_assert_eq!(partition.replicas.len(), partition.voters().count());
        }
        let held = held(&catalog);
        let (most, least) = (held.values().max().unwrap(), held.values().min().unwrap());
        prop_assert!(*most <= least + 1, "not balanced: {:?}", held);
    }

    /// Of few large partitions and many small ones, asked much or little, moved or not, all nodes carry about the same in the end.
    #[test]
    fn replicas_are_balanced_by_their_bytes_and_by_what_they_are_asked(
        nodes in 1..7u32, factor in 1..4u32, sizes in vec((0..11u32, 0..14u32), 1..24), late in 1..4u32,
    ) {
        let mut catalog = cluster(nodes);
        catalog.apply(Command::CreateTable(hashed("t", sizes.len() as u32, factor))).unwrap();
        for id in nodes + 1..=nodes + late {
            catalog.apply(add_node(id)).unwrap();
        }
        let all = catalog.nodes.keys().map(|node| node.0).collect::<Vec<_>>();
        let mib = |size: &u32| (1u64 << size) << 20;
        let of_each = || catalog.partitions.keys().copied().zip(&sizes);
        let bytes = of_each().map(|(id, (size, _))| (id, mib(size))).collect();
        let asked = of_each().filter(|(_, (_, asked))| *asked > 3).map(|(id, (_, asked))| (id, mib(asked))).collect();
        let outlook = Outlook { load: Load { bytes, asked, ..Load::default() }, ..outlook(&all, &[]) };
        carry_out(&mut catalog, &outlook)?;
        prop_assert_eq!(catalog.wanted_moves(&outlook), []);
        let of = |partition: &Partition| {
            let held = outlook.load.bytes[&partition.id] + (16 << 20);
            held + outlook.load.asked.get(&partition.id).copied().unwrap_or(0).min(3 * held)
        };
        let mut carried: BTreeMap<NodeId, u64> = catalog.nodes.keys().map(|node| (*node, 0)).collect();
        for partition in catalog.partitions.values() {
            prop_assert_eq!(partition.replicas.len(), factor.min(nodes + late) as usize);
            partition.voters().for_each(|voter| *carried.get_mut(&voter).unwrap() += of(partition));
        }
        let (most, least) = (*carried.values().max().unwrap(), *carried.values().min().unwrap());
        let largest = catalog.partitions.values().map(of).max().unwrap();
        prop_assert!(most - least <= (2 * largest).max(most / 8), "not balanced: {:?}", carried);
    }

    /// Nodes come one after the other, of some zones or another, and some change theirs.
    #[test]
    fn replicas_are_in_as_many_zones_as_can_be(
        nodes in 1..6u32, zones in 1..5u32, factor in 1..5u32, buckets in 1..8u32, late in 0..4u32, moves in vec((1..9u32, 0..5u32), 0..3),
    ) {
        let mut catalog = cluster(0);
        for id in 1..=nodes {
            catalog.apply(add_node_of(id, zones)).unwrap();
        }
        catalog.apply(Command::CreateTable(hashed("t", buckets, factor))).unwrap();
        let check = |catalog: &Catalog| {
            let all: BTreeSet<&str> = catalog.active_nodes().map(|node| node.attributes.zone.as_str()).collect();
            for partition in catalog.partitions.values() {
                let wide = zones_of(catalog, partition).len();
                prop_assert_eq!(wide, all.len().min(partition.voters().count()), "{:?} of {:?}", partition, catalog.nodes);
            }
            Ok(())
        };
        check(&catalog)?;
        for id in nodes + 1..=nodes + late {
            catalog.apply(add_node_of(id, zones + 1)).unwrap();
        }
        let mut epochs = catalog.partitions.values().map(|partition| partition.epoch.0).sum::<u64>();
        for (id, zone) in moves {
            let id = NodeId(id.min(nodes + late));
            let mut attributes = catalog.nodes[&id].attributes.clone();
            attributes.zone = format!("z{zone}");
            catalog.apply(Command::PutNode { id, attributes }).unwrap();
        }
        let all = catalog.nodes.keys().map(|node| node.0).collect::<Vec<_>>();
        carry_out(&mut catalog, &outlook(&all, &[]))?;
        check(&catalog)?;
        epochs = catalog.partitions.values().map(|partition| partition.epoch.0).sum::<u64>() - epochs;
        prop_assert!(epochs <= 4 * u64::from(buckets) * u64::from(factor), "{epochs} steps");
    }

    #[test]
    fn what_a_node_held_goes_elsewhere(
        nodes in 2..7u32, factor in 1..4u32, buckets in 1..8u32, away in 1..7u32, how in 0..3u8,
    ) {
        let away = away.min(nodes);
        let mut catalog = cluster(nodes);
        catalog.apply(Command::CreateTable(hashed("t", buckets, factor))).unwrap();
        let others: Vec<u32> = (1..=nodes).filter(|node| *node != away).collect();
        let wanted = |nodes: u32| factor.min(nodes) as usize;
        let mut removed = false;
        let outlook = match how {
            // It is drained, while it answers.
            0 => {
                catalog.apply(Command::SetNodeState { id: NodeId(away), state: NodeState::Draining }).unwrap();
                outlook(&(1..=nodes).collect::<Vec<_>>(), &[])
            }
            // It has gone without a word; not everything that it held alone can be made anew.
            1 => outlook(&others, &[away]),
            _ => {
                let alone = factor == 1 && held(&catalog)[&NodeId(away)] > 0;
                removed = catalog.apply(Command::RemoveNode { id: NodeId(away), lost: true }).is_ok();
                prop_assert_eq!(removed, !alone);
                outlook(&others, &[])
            }
        };
        carry_out(&mut catalog, &outlook)?;
        for partition in catalog.partitions.values() {
            let stays = |node: &NodeId| others.contains(&node.0);
            match how {
                0 => prop_assert!(partition.replicas.iter().all(|replica| stays(&replica.node))),
                1 if nodes > factor => prop_assert!(partition.voters().all(|voter| stays(&voter))),
                1 => prop_assert!(partition.voters().count() == wanted(nodes), "a copy less, and none more elsewhere"),
                _ => {}
            }
            if how == 0 || (how == 1 && nodes > factor) || (how == 2 && removed) {
                prop_assert_eq!(partition.voters().count(), wanted(nodes - 1));
                prop_assert!(how != 2 || partition.replicas.iter().all(|replica| stays(&replica.node)));
            }
        }
        if how == 0 {
            catalog.apply(Command::RemoveNode { id: NodeId(away), lost: false }).unwrap();
        }
    }

    /// Its node answers, and says that it cannot keep it running.
    #[test]
    fn what_has_failed_is_made_elsewhere(nodes in 2..7u32, factor in 1..4u32, buckets in 1..8u32, zones in 1..4u32) {
        let mut catalog = cluster(0);
        for id in 1..=nodes {
            catalog.apply(add_node_of(id, zones)).unwrap();
        }
        catalog.apply(Command::CreateTable(hashed("t", buckets, factor))).unwrap();
        let partition = *catalog.partitions.keys().next().unwrap();
        let node = catalog.partitions[&partition].voters().next().unwrap();
        let mark = |failed| Command::MarkReplica { partition, node, failed };
        catalog.apply(mark(true)).unwrap();
        let all = outlook(&(1..=nodes).collect::<Vec<_>>(), &[]);
        carry_out(&mut catalog, &all)?;
        let voters: Vec<NodeId> = catalog.partitions[&partition].voters().collect();
        prop_assert_eq!(voters.len(), factor.min(nodes) as usize);
        prop_assert_eq!(voters.contains(&node), factor >= nodes, "it stays only where there is no other place");
        let stranger = Command::MarkReplica { partition, node: NodeId(99), failed: true };
        prop_assert!(catalog.apply(stranger).is_err());
    }

    #[test]
    fn every_key_has_exactly_one_home(points in vec(vec(any::<u8>(), 1..4), 0..6), key in vec(any::<u8>(), 0..4)) {
        let points: BTreeSet<_> = points.into_iter().collect();
        let mut catalog = cluster(3);
        catalog.apply(Command::CreateTable(ranged("r", points.into_iter().collect()))).unwrap();
        let table = catalog.table("r").unwrap();
        let homes: Vec<_> = catalog.partitions_of(table)
            .filter(|partition| matches!(&partition.bounds, PartitionBounds::Range(range) if range.contains(&key)))
            .map(|partition| partition.id)
            .collect();
        prop_assert_eq!(homes, vec![catalog.partition_for(table, &key).unwrap().id]);
    }
}

#[test]
fn replicas_spread_over_the_nodes() {
    let mut catalog = cluster(4);
    catalog.apply(Command::CreateTable(hashed("t", 8, 3))).unwrap();
    let mut held: BTreeMap<NodeId, usize> = BTreeMap::new();
    for replica in catalog.partitions.values().flat_map(|partition| &partition.replicas) {
        *held.entry(replica.node).or_default() += 1;
    }
    assert_eq!(held.into_values().collect::<Vec<_>>(), vec![6, 6, 6, 6]);
}

#[test]
fn zones_come_before_balance() {
    let mut catalog = cluster(0);
    // One rack of four nodes and one of two: each has one replica of two of every partition.
    for (id, zone) in [(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "b"), (6, "b")] {
        let attributes = NodeAttributes { zone: zone.into(), ..at(id) };
        catalog.apply(Command::AddNode { id: NodeId(id.into()), attributes }).unwrap();
    }
    catalog.apply(Command::CreateTable(hashed("t", 8, 2))).unwrap();
    assert_eq!(held(&catalog).into_values().collect::<Vec<_>>(), [2, 2, 2, 2, 4, 4]);
    let all = outlook(&[1, 2, 3, 4, 5, 6], &[]);
    assert_eq!(catalog.wanted_changes(&all), []);
    // A node more in the small rack takes of that rack's.
    let attributes = NodeAttributes { zone: "b".into(), ..at(7) };
    catalog.apply(Command::AddNode { id: NodeId(7), attributes }).unwrap();
    let all = outlook(&[1, 2, 3, 4, 5, 6, 7], &[]);
    carry_out(&mut catalog, &all).unwrap();
    assert_eq!(held(&catalog).into_values().collect::<Vec<_>>(), [2, 2, 2, 2, 3, 3, 2]);
    // While one rack is away, the other does not take everything: that would be no copy more than there were.
    let away = outlook(&[1, 2, 3, 4], &[]);
    assert_eq!(catalog.wanted_changes(&away), []);
}

#[test]
fn who_has_no_room_gets_nothing_and_gives_away() {
    let mut catalog = cluster(3);
    catalog.apply(Command::CreateTable(hashed("t", 2, 2))).unwrap();
    catalog.apply(add_node(4)).unwrap();
    let ids: Vec<PartitionId> = catalog.partitions.keys().copied().collect();
    let bytes = BTreeMap::from([(ids[0], 100 << 20), (ids[1], 300 << 20)]);
    let on = |catalog: &Catalog, node| {
        ids.iter().copied().filter(|id| catalog.partitions[id].replica(NodeId(node)).is_some()).collect::<Vec<_>>()
    };
    let with_room = |rooms: &[(u32, u64)]| Outlook {
        load: Load {
            bytes: bytes.clone(),
            room: rooms.iter().map(|(node, room)| (NodeId(*node), *room)).collect(),
            ..Load::default()
        },
        ..outlook(&[1, 2, 3, 4], &[])
    };
    // A node is full: the larger of its replicas goes, but not to one without room for it and its merges.
    let full = catalog.partitions[&ids[1]].voters().next().unwrap().0;
    let others: Vec<u32> = (1..5).filter(|node| *node != full).collect();
    let tight: Vec<(u32, u64)> = others.iter().map(|node| (*node, 599 << 20)).chain([(full, 0)]).collect();
    let moves = catalog.wanted_moves(&with_room(&tight));
    assert!(moves.iter().all(|one| one.partition != ids[1]), "{moves:?}");
    let wide: Vec<(u32, u64)> = others.iter().map(|node| (*node, 600 << 20)).chain([(full, 0)]).collect();
    let moves = catalog.wanted_moves(&with_room(&wide));
    assert_eq!((moves[0].partition, moves[0].from), (ids[1], NodeId(full)));
    // A full node is relieved also while balance is paused.
    catalog.apply(Command::PauseBalance { paused: true }).unwrap();
    let relieved = catalog.wanted_changes(&with_room(&wide));
    assert!(matches!(relieved[0], Command::AddReplica { partition, .. } if partition == ids[1]), "{relieved:?}");
    // Copies that are missing are made where there is just room, but not where there is none.
    let made_with = |room: u64| {
        let rooms: Vec<(u32, u64)> = others.iter().map(|node| (*node, room << 20)).collect();
        let alive = others.iter().copied().map(NodeId).collect();
        let made = catalog.wanted_changes(&Outlook { alive, lost: [NodeId(full)].into(), ..with_room(&rooms) });
        made.len()
    };
    let held = on(&catalog, full);
    assert_eq!((made_with(340), made_with(330)), (held.len(), held.len() - 1));
}

#[test]
fn moves_for_balance_are_called_off() {
    let mut catalog = cluster(1);
    catalog.apply(Command::CreateTable(hashed("t", 4, 1))).unwrap();
    catalog.apply(add_node(2)).unwrap();
    let both = outlook(&[1, 2], &[]);
    let moves = catalog.wanted_moves(&both);
    assert_eq!(moves.len(), 2);
    for add in catalog.wanted_changes(&both) {
        catalog.apply(add).unwrap();
    }
    catalog.apply(Command::PauseBalance { paused: true }).unwrap();
    let off = catalog.wanted_changes(&both);
    let joiner = |change: &Command| matches!(change, Command::RetireReplica { node: NodeId(2), .. });
    assert!(off.len() == 2 && off.iter().all(joiner), "{off:?}");
    carry_out(&mut catalog, &both).unwrap();
    assert_eq!(held(&catalog).into_values().collect::<Vec<_>>(), [4, 0]);
    // What is drained goes all the same.
    catalog.apply(Command::SetNodeState { id: NodeId(1), state: NodeState::Draining }).unwrap();
    carry_out(&mut catalog, &both).unwrap();
    assert_eq!(held(&catalog), [(NodeId(2), 4)].into());
    catalog.apply(Command::SetNodeState { id: NodeId(1), state: NodeState::Active }).unwrap();
    assert_eq!(catalog.wanted_changes(&both), []);
    catalog.apply(Command::PauseBalance { paused: false }).unwrap();
    carry_out(&mut catalog, &both).unwrap();
    assert_eq!(held(&catalog).into_values().collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn votes_go_from_who_is_lost_and_over_zones() {
    let mut catalog = cluster(0);
    for (id, zone) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "c"), (7, "b")] {
        let attributes = NodeAttributes { zone: zone.into(), ..at(id) };
        catalog.apply(Command::AddNode { id: NodeId(id.into()), attributes }).unwrap();
    }
    let vote = |catalog: &mut Catalog, ids: &[u32]| {
        catalog.mirror_voters(&ids.iter().copied().map(NodeId).collect());
    };
    let all = outlook(&[1, 2, 3, 4, 5, 6, 7], &[]);
    let wanted = |catalog: &Catalog, outlook: &Outlook| catalog.wanted_voter(outlook, NodeId(3), 5, &BTreeSet::new());
    vote(&mut catalog, &[1, 2, 3, 4]);
    assert_eq!(wanted(&catalog, &all), None, "nodes ask by themselves");
    vote(&mut catalog, &[1, 2, 3, 4, 5]);
    let swap = |from, to| Some(VoterSwap { from: NodeId(from), to: NodeId(to) });
    assert_eq!(wanted(&catalog, &all), swap(2, 6), "of the fullest zone, but not the leader");
    assert_eq!(catalog.wanted_voter(&all, NodeId(3), 5, &[NodeId(6)].into()), None, "7 would make it no better");
    vote(&mut catalog, &[1, 3, 4, 5, 6]);
    assert_eq!(wanted(&catalog, &all), None);
    // One is lost: another of its zone takes its place, and the lost one has no vote when it is back.
    let lost = outlook(&[1, 2, 3, 5, 6, 7], &[4]);
    assert_eq!(wanted(&catalog, &lost), swap(4, 7));
    assert_eq!(catalog.wanted_voter(&lost, NodeId(3), 5, &[NodeId(7)].into()), swap(4, 2));
    vote(&mut catalog, &[1, 3, 5, 6, 7]);
    assert_eq!(wanted(&catalog, &all), None);
    // Nobody else is up.
    let alone = outlook(&[1, 3, 5, 6], &[7]);
    assert_eq!(wanted(&catalog, &alone), None);
}

#[test]
fn zones_have_names_that_can_be_read() {
    let mut catalog = cluster(1);
    for zone in ["a b", "a\n", &"a".repeat(ZONE_BYTES_MAX + 1)] {
        let attributes = NodeAttributes { zone: zone.into(), ..at(2) };
        let refused = catalog.apply(Command::AddNode { id: NodeId(2), attributes });
        assert!(matches!(refused, Err(CatalogError::Invalid(_))), "{zone:?}");
    }
}

#[test]
fn a_joiner_on_a_dead_node_gives_way_only_to_another() {
    let mut catalog = cluster(2);
    catalog.apply(Command::CreateTable(hashed("t", 1, 3))).unwrap();
    catalog.apply(add_node(3)).unwrap();
    let partition = *catalog.partitions.keys().next().unwrap();
    let add = |node| Command::AddReplica { partition, node: NodeId(node) };
    let wanted = |catalog: &Catalog, alive: &[u32]| catalog.wanted_changes(&outlook(alive, &[]));
    assert_eq!(wanted(&catalog, &[1, 2]), vec![]);
    assert_eq!(wanted(&catalog, &[1, 2, 3]), vec![add(3)]);
    catalog.apply(add(3)).unwrap();
    assert_eq!(wanted(&catalog, &[1, 2, 3]), vec![], "one joiner at a time");
    assert_eq!(wanted(&catalog, &[1, 2]), vec![], "nobody could take its place");
    catalog.apply(add_node(4)).unwrap();
    let retire = Command::RetireReplica { partition, node: NodeId(3), epoch: Epoch(1) };
    assert_eq!(wanted(&catalog, &[1, 2, 4]), vec![retire.clone()]);
    catalog.apply(retire).unwrap();
    assert_eq!(wanted(&catalog, &[1, 2, 4]), vec![add(4)]);
}

#[test]
fn lost_nodes_vote_no_more_than_a_table_asks_for() {
    let mut catalog = cluster(6);
    catalog.apply(Command::CreateTable(hashed("t", 1, 5))).unwrap();
    let partition = *catalog.partitions.keys().next().unwrap();
    let voters = |catalog: &Catalog| catalog.partitions[&partition].voters().collect::<Vec<_>>();
    let lost = voters(&catalog)[..2].to_vec();
    let outlook = Outlook {
        alive: catalog.nodes.keys().copied().filter(|node| !lost.contains(node)).collect(),
        lost: lost.iter().copied().collect(),
        load: Load::default(),
    };
    let [Command::AddReplica { node, .. }] = catalog.wanted_changes(&outlook)[..] else { panic!("nobody comes") };
    catalog.apply(Command::AddReplica { partition, node }).unwrap();
    catalog.apply(Command::PromoteReplica { partition, node, epoch: Epoch(1) }).unwrap();
    catalog.apply(Command::SettlePartition { partition, epoch: Epoch(2) }).unwrap();
    assert_eq!(voters(&catalog).len(), 6);
    let retire = Command::RetireReplica { partition, node: lost[0], epoch: Epoch(2) };
    assert_eq!(catalog.wanted_changes(&outlook), vec![retire.clone()], "a majority of five is found sooner");
    catalog.apply(retire).unwrap();
    catalog.apply(Command::SettlePartition { partition, epoch: Epoch(3) }).unwrap();
    assert_eq!(catalog.wanted_changes(&outlook), vec![], "and nobody could come for the other");
}

#[test]
fn a_voter_goes_in_steps_each_of_them_fenced() {
    let mut catalog = cluster(2);
    catalog.apply(Command::CreateTable(hashed("t", 1, 2))).unwrap();
    let partition = *catalog.partitions.keys().next().unwrap();
    let retire = |node, epoch| Command::RetireReplica { partition, node: NodeId(node), epoch: Epoch(epoch) };
    let remove = |node, epoch| Command::RemoveReplica { partition, node: NodeId(node), epoch: Epoch(epoch) };
    let settle = |epoch| Command::SettlePartition { partition, epoch: Epoch(epoch) };
    let stale = CatalogError::StaleEpoch { partition, expected: Epoch(7), actual: Epoch(1) };
    assert_eq!(catalog.apply(retire(1, 7)), Err(stale.clone()));
    assert_eq!(Error::from(stale).code(), ErrorCode::Moved);
    assert!(matches!(catalog.apply(remove(1, 1)), Err(CatalogError::Refused(_))), "it votes");
    catalog.apply(retire(1, 1)).unwrap();
    assert_eq!(catalog.partitions[&partition].previous_voters, vec![NodeId(1), NodeId(2)]);
    assert_eq!(Vec::from_iter(catalog.partitions[&partition].voters()), vec![NodeId(2)]);
    assert_eq!(Vec::from_iter(catalog.partitions[&partition].takers()), vec![NodeId(2)]);
    assert_eq!(catalog.apply(remove(1, 2)), Err(CatalogError::Unsettled(partition)));
    assert!(matches!(catalog.apply(settle(1)), Err(CatalogError::StaleEpoch { .. })));
    catalog.apply(settle(2)).unwrap();
    assert!(matches!(catalog.apply(retire(2, 2)), Err(CatalogError::Refused(_))), "the last one");
    catalog.apply(remove(1, 2)).unwrap();
    assert_eq!(catalog.partitions[&partition].epoch, Epoch(2), "it counted no longer");
    // Until its voters have settled, a partition changes no further.
    let add = Command::AddReplica { partition, node: NodeId(1) };
    let promote = |epoch| Command::PromoteReplica { partition, node: NodeId(1), epoch: Epoch(epoch) };
    catalog.apply(add.clone()).unwrap();
    catalog.apply(promote(2)).unwrap();
    assert_eq!(catalog.apply(retire(2, 3)), Err(CatalogError::Unsettled(partition)));
    assert!(catalog.clone().apply(retire(1, 3)).is_ok(), "but for going back");
    catalog.apply(settle(3)).unwrap();
    // One that is leaving may stay after all, as one that joins.
    catalog.apply(retire(1, 3)).unwrap();
    catalog.apply(settle(4)).unwrap();
    assert!(matches!(catalog.apply(promote(4)), Err(CatalogError::Refused(_))));
    catalog.apply(add).unwrap();
    catalog.apply(promote(4)).unwrap();
    assert_eq!(catalog.partitions[&partition].voters().count(), 2);
}

#[test]
fn a_lost_disk_takes_its_replicas_with_it_but_not_the_last() {
    let mut catalog = cluster(3);
    catalog.apply(Command::CreateTable(hashed("t", 2, 3))).unwrap();
    assert!(catalog.apply(Command::RemoveNode { id: NodeId(3), lost: false }).is_err());
    catalog.apply(Command::RemoveNode { id: NodeId(3), lost: true }).unwrap();
    assert!(catalog.partitions.values().all(|partition| partition.voters().count() == 2 && !partition.settled));
    catalog.apply(Command::RemoveNode { id: NodeId(2), lost: true }).unwrap();
    let before = catalog.clone();
    catalog.apply(add_node(4)).unwrap();
    let last = catalog.apply(Command::RemoveNode { id: NodeId(1), lost: true }).unwrap_err();
    assert!(last.to_string().contains("the only voting replica"), "{last}");
    assert!(before.clone().apply(Command::RemoveNode { id: NodeId(1), lost: true }).is_err(), "the only node");
}

#[test]
fn a_number_has_one_owner() {
    let mut catalog = cluster(1);
    let elsewhere = Command::AddNode { id: NodeId(1), attributes: at(77) };
    assert_eq!(catalog.apply(elsewhere), Err(CatalogError::NodeNumberTaken(NodeId(1), address(1))));
    let moved = Command::PutNode { id: NodeId(1), attributes: at(77) };
    assert_eq!(catalog.apply(moved).unwrap().effects, vec![Effect::Nodes]);
    assert_eq!(catalog.nodes[&NodeId(1)].attributes.cluster_address, address(77));
    assert_eq!(catalog.apply(Command::Found { cluster_id: 8 }), Err(CatalogError::Founded));
    catalog.apply(Command::CreateTable(hashed("t", 1, 1))).unwrap();
    assert!(matches!(catalog.apply(Command::RemoveNode { id: NodeId(1), lost: false }), Err(CatalogError::Refused(_))));
}

#[test]
fn nonsense_is_refused_with_its_reason() {
    let range = || Partitioning::Range { columns: vec![ColumnId(0)] };
    let mut nullable_key = ranged("t", vec![]);
    nullable_key.schema.columns[0].nullable = true;
    let mut twice = ranged("t", vec![]);
    twice.schema.columns[2].name = "id".into();
    let mut event = ranged("t", vec![]);
    event.schema.kind = TableKind::Event;
    let mut reserved = ranged("t", vec![]);
    reserved.schema.columns[2].name = "_version".into();
    let outside = table("t", Partitioning::Hash { columns: vec![ColumnId(2)], buckets: 2 }, vec![], 3);
    let missing = table("t", Partitioning::Hash { columns: vec![ColumnId(9)], buckets: 2 }, vec![], 3);
    let cases: Vec<(NewTable, &str)> = vec![
        (ranged("", vec![]), "needs a name"),
        (ranged("a\nb", vec![]), "control characters"),
        (ranged(&"x".repeat(256), vec![]), "255 bytes"),
        (ranged("t", vec![b"b".to_vec(), b"a".to_vec()]), "ascending"),
        (ranged("t", vec![b"a".to_vec(), b"a".to_vec()]), "ascending"),
        (ranged("t", vec![vec![]]), "ascending"),
        (ranged("t", (0..1024u16).map(|n| n.to_be_bytes().to_vec()).collect()), "1 to 1024 partitions"),
        (hashed("t", 0, 3), "1 to 1024 partitions"),
        (hashed("t", 1025, 3), "1 to 1024 partitions"),
        (hashed("t", 1, 0), "replication_factor"),
        (hashed("t", 1, 10), "replication_factor"),
        (table("t", range(), vec![], 99), "replication_factor"),
        (nullable_key, "NOT NULL"),
        (twice, "named twice"),
        (event, "needs the column '_ts'"),
        (reserved, "reserved"),
        (outside, "not part of the primary key"),
        (missing, "does not have"),
    ];
    for (new, reason) in cases {
        let mut catalog = cluster(1);
        match catalog.apply(Command::CreateTable(new)) {
            Err(CatalogError::Invalid(text)) => assert!(text.contains(reason), "'{text}' does not say '{reason}'"),
            other => panic!("expected '{reason}', got {other:?}"),
        }
    }
    let mut empty = Catalog::default();
    assert!(matches!(empty.apply(Command::CreateTable(hashed("t", 1, 1))), Err(CatalogError::Invalid(_))));
}

#[test]
fn unknown_tables_come_with_a_suggestion() {
    let mut catalog = cluster(1);
    catalog.apply(Command::CreateTable(hashed("flights", 1, 1))).unwrap();
    let refused = catalog.apply(Command::DropTable { name: "fligths".into(), if_exists: false }).unwrap_err();
    let error = catalog.explain(refused);
    assert_eq!((error.code(), error.help()), (ErrorCode::UnknownTable, Some("did you mean 'flights'?")));
    assert_eq!(
        catalog.apply(Command::CreateTable(hashed("flights", 1, 1))),
        Err(CatalogError::TableExists("flights".into()))
    );
    let mut again = hashed("flights", 1, 1);
    again.if_not_exists = true;
    assert_eq!(catalog.apply(Command::CreateTable(again)).unwrap().effects, vec![]);
}

#[test]
fn a_table_is_altered_whole_or_not_at_all() {
    let mut catalog = cluster(3);
    catalog.apply(Command::CreateTable(hashed("t", 2, 3))).unwrap();
    let (id, version) = (catalog.table("t").unwrap().id, catalog.version);
    let alter = |changes: Vec<SchemaChange>| Command::AlterTable(AlteredTable { changes, ..AlteredTable::of(id) });
    let column =
        |id: u32, name: &str| Column { id: ColumnId(id), name: name.into(), data_type: DataType::Utf8, nullable: true };
    let add = |id: u32, name: &str| SchemaChange::Add(column(id, name));

    let both = alter(vec![add(3, "extra"), SchemaChange::Drop(ColumnId(2))]);
    assert_eq!(catalog.apply(both.clone()).unwrap().effects, [Effect::Table(id)]);
    assert_eq!(catalog.table("t").unwrap().schema.version, 2, "changes made together are one");
    assert_eq!(catalog.version, version + 1);
    let after = catalog.clone();
    assert_eq!(catalog.apply(both).unwrap().effects, [], "a command that was sent twice");

    let cases = [
        (alter(vec![add(3, "other")]), CatalogError::StaleSchema("t".into())),
        (
            alter(vec![add(4, "fine"), add(5, "extra")]),
            CatalogError::Invalid("there is a column 'extra' already".into()),
        ),
        (
            alter(vec![SchemaChange::Drop(ColumnId(0))]),
            CatalogError::Invalid("column 'id' is part of the table's key and cannot be dropped".into()),
        ),
        (Command::AlterTable(AlteredTable::of(TableId(99))), CatalogError::TableGone(TableId(99))),
    ];
    for (command, refused) in cases {
        assert_eq!(catalog.apply(command), Err(refused));
        assert_eq!(catalog, after);
    }
    let level = AlteredTable { write_level: Some(WriteLevel::All), ..AlteredTable::of(id) };
    catalog.apply(Command::AlterTable(level)).unwrap();
    let table = catalog.table("t").unwrap();
    assert_eq!((table.options.write_level, table.schema.version), (WriteLevel::All, 2));
}

/// A table with two times in its key, that keeps rows by the first of them.
fn timed(ttl: Option<Ttl>) -> NewTable {
    let micros = DataType::Timestamp(arrow_schema::TimeUnit::Microsecond, None);
    let column = |id, data_type: &DataType| Column {
        id: ColumnId(id),
        name: format!("c{id}"),
        data_type: data_type.clone(),
        nullable: false,
    };
    let columns = vec![column(0, &micros), column(1, &DataType::Int64), column(2, &micros), column(3, &micros)];
    let kind = TableKind::Upsert { primary_key: vec![ColumnId(0), ColumnId(1), ColumnId(2)] };
    let options = TableOptions { ttl, ..TableOptions::default() };
    NewTable { name: "t".into(), schema: TableSchema::new(columns, kind), options, ..hashed("t", 1, 3) }
}

#[test]
fn cut_offs_only_move_forward() {
    let ttl = |column, micros| Ttl { column: ColumnId(column), micros };
    let invalid = |result: Result<CommandOutcome, CatalogError>| matches!(result, Err(CatalogError::Invalid(_)));
    let mut catalog = cluster(3);
    for wrong in [ttl(1, 10_000_000), ttl(3, 10_000_000), ttl(0, 999_999), ttl(0, u64::MAX)] {
        assert!(invalid(catalog.apply(Command::CreateTable(timed(Some(wrong))))), "{wrong:?}");
    }
    catalog.apply(Command::CreateTable(timed(Some(ttl(0, 10_000_000))))).unwrap();
    let id = catalog.table("t").unwrap().id;
    let skew = std::time::Duration::from_millis(500);
    let turn = |catalog: &mut Catalog, now: u64| {
        let wanted = catalog.wanted_cutoffs(now, skew);
        wanted.into_iter().map(|command| catalog.apply(command).unwrap().effects.len()).sum::<usize>()
    };
    let cutoff = |catalog: &Catalog| catalog.table("t").unwrap().cutoff.map(|cutoff| cutoff.micros);

    assert_eq!((turn(&mut catalog, 30_400_000), cutoff(&catalog)), (1, Some(19_000_000)));
    assert_eq!((turn(&mut catalog, 30_400_000), turn(&mut catalog, 20_000_000)), (0, 0));
    let older = Command::Expire { table: id, cutoff: Cutoff { column: ColumnId(0), micros: 18_000_000 } };
    assert_eq!(catalog.apply(older.clone()).unwrap().effects, []);
    assert_eq!((turn(&mut catalog, 30_500_000), cutoff(&catalog)), (1, Some(20_000_000)));

    let alter = |change| Command::AlterTable(AlteredTable { ttl: Some(change), ..AlteredTable::of(id) });
    assert!(invalid(catalog.apply(alter(TtlChange::Keep(ttl(2, 10_000_000))))), "rows went by the other column");
    // Longer: the cut-off waits until time has come up to it.
    catalog.apply(alter(TtlChange::Keep(ttl(0, 60_000_000)))).unwrap();
    assert_eq!((turn(&mut catalog, 40_000_000), turn(&mut catalog, 81_500_000)), (0, 1));
    assert_eq!(cutoff(&catalog), Some(21_000_000));
    catalog.apply(alter(TtlChange::Forever)).unwrap();
    assert_eq!((turn(&mut catalog, 99_000_000), cutoff(&catalog)), (0, Some(21_000_000)));
    let late = Command::Expire { table: id, cutoff: Cutoff { column: ColumnId(0), micros: 50_000_000 } };
    assert_eq!(catalog.apply(late).unwrap().effects, [], "proposed before the change");
    catalog.apply(Command::DropTable { name: "t".into(), if_exists: false }).unwrap();
    assert_eq!(catalog.apply(older), Err(CatalogError::TableGone(id)));
}

#[test]
fn the_state_survives_the_wire() {
    let mut catalog = cluster(3);
    catalog.apply(Command::CreateTable(ranged("r", vec![b"m".to_vec()]))).unwrap();
    let bytes = shoal_kernel::wire::seal(&catalog).unwrap();
    assert_eq!(shoal_kernel::wire::unseal::<Catalog>(&bytes).unwrap(), catalog);
}

#[test]
fn what_nodes_hold_is_counted_as_if_anew() {
    let mut kept = cluster(5);
    for (at, command) in [
        Command::CreateTable(hashed("a", 7, 3)),
        Command::CreateTable(hashed("b", 2, 2)),
        Command::DropTable { name: "a".into(), if_exists: false },
        add_node(6),
        Command::CreateTable(hashed("c", 9, 3)),
        Command::AddReplica { partition: PartitionId(10), node: NodeId(6) },
        Command::RemoveReplica { partition: PartitionId(11), node: NodeId(1), epoch: Epoch(1) },
        Command::CreateTable(hashed("d", 11, 3)),
    ]
    .into_iter()
    .enumerate()
    {
        // A catalog that comes from a snapshot has counted nothing yet.
        let mut anew: Catalog = wire::decode(&wire::encode(&kept).unwrap()).unwrap();
        assert_eq!(anew.apply(command.clone()), kept.apply(command), "{at}");
        assert_eq!(anew, kept, "{at}");
    }
}

fn bounds(catalog: &Catalog, table: &str) -> Vec<KeyRange> {
    let range = |partition: &Partition| match &partition.bounds {
        PartitionBounds::Range(range) => range.clone(),
        PartitionBounds::Bucket(_) => panic!("not a range"),
    };
    catalog.partitions_of(catalog.table(table).unwrap()).map(range).collect()
}

#[test]
fn windows_are_made_where_rows_come_and_never_change() {
    let mut catalog = cluster(3);
    catalog.apply(Command::CreateTable(windowed("w"))).unwrap();
    let id = catalog.table("w").unwrap().id;
    let window = |catalog: &Catalog, number: i64| catalog.table("w").unwrap().window_of(&Datum::Int(number).encode());
    assert_eq!(bounds(&catalog, "w"), []);
    assert_eq!(window(&catalog, 25), Some(numbers(20, 30)));
    assert_eq!(window(&catalog, -1), Some(numbers(-10, 0)));
    let last = window(&catalog, i64::MAX).unwrap();
    assert!(last.end.is_none() && last.contains(&Datum::Int(i64::MAX).encode()));
    let first = window(&catalog, i64::MIN).unwrap();
    assert!(first.contains(&Datum::Int(i64::MIN).encode()), "{first:?}");

    for number in [25, -1, 29] {
        let windows = vec![window(&catalog, number).unwrap()];
        catalog.apply(Command::AddWindows { table: id, windows }).unwrap();
    }
    assert_eq!(bounds(&catalog, "w"), [numbers(-10, 0), numbers(20, 30)]);
    let table = catalog.table("w").unwrap();
    assert!(catalog.partition_for(table, &Datum::Int(19).encode()).is_none());
    assert!(catalog.partition_for(table, &Datum::Int(30).encode()).is_none());
    assert!(catalog.partition_for(table, &Datum::Int(29).encode()).is_some());
    assert!(catalog.partitions_of(table).all(|partition| partition.voters().count() == 3));

    // Wider from now on, as far as there is room.
    let wider = AlteredTable { partition_size_hint: Some(100), ..AlteredTable::of(id) };
    catalog.apply(Command::AlterTable(wider)).unwrap();
    let windows = vec![window(&catalog, 5).unwrap()];
    assert_eq!(windows, [numbers(0, 100)]);
    catalog.apply(Command::AddWindows { table: id, windows }).unwrap();
    assert_eq!(bounds(&catalog, "w"), [numbers(-10, 0), numbers(0, 20), numbers(20, 30), numbers(30, 100)]);
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let mut catalog = cluster(1);
    let mut refused = |new: NewTable| catalog.apply(Command::CreateTable(new)).unwrap_err().to_string();
    let hint = |mut table: NewTable, width| {
        table.options.partition_size_hint = Some(width);
        table
    };
    assert!(refused(hint(hashed("h", 2, 1), 10)).contains("by range"));
    assert!(refused(hint(ranged("r", vec![vec![7]]), 10)).contains("not both"));
    assert!(refused(hint(ranged("z", vec![]), 0)).contains("greater than zero"));
    let mut text = windowed("t");
    text.schema.columns[0].data_type = DataType::Utf8;
    assert!(refused(text).contains("whole number"));

    catalog.apply(Command::CreateTable(ranged("all", vec![]))).unwrap();
    let all = catalog.table("all").unwrap().id;
    let altered = AlteredTable { partition_size_hint: Some(10), ..AlteredTable::of(all) };
    assert!(catalog.apply(Command::AlterTable(altered)).is_err());
    assert!(catalog.apply(Command::AddWindows { table: all, windows: vec![numbers(0, 1)] }).is_err());

    catalog.apply(Command::CreateTable(windowed("w"))).unwrap();
    let table = catalog.table("w").unwrap().id;
    let most = i64::from(limits::PARTITIONS_PER_TABLE_MAX);
    let windows = (0..=most).map(|n| numbers(n, n + 1)).collect();
    let error = catalog.apply(Command::AddWindows { table, windows }).unwrap_err().to_string();
    assert!(error.contains("too narrow"), "{error}");
    assert_eq!(bounds(&catalog, "w"), []);
}

const DAY: i64 = 86_400_000_000;

/// One node and a table with a window for each day, of which the last thirty are kept.
fn with_windows() -> Catalog {
    let mut new = timed(Some(Ttl { column: ColumnId(0), micros: 30 * DAY as u64 }));
    new.partitioning = Partitioning::Range { columns: vec![ColumnId(0)] };
    new.options.partition_size_hint = Some(DAY as u64);
    let mut catalog = cluster(1);
    catalog.apply(Command::CreateTable(new)).unwrap();
    catalog
}

#[test]
fn windows_go_with_time() {
    let mut catalog = with_windows();
    let table = catalog.tables.values().next().unwrap();
    let (id, name) = (table.id, table.name.clone());
    let ahead = |catalog: &Catalog, micros| catalog.window_ahead(catalog.tables.values().next().unwrap(), micros);
    assert_eq!(ahead(&catalog, 100 * DAY as u64), None, "no rows of today yet");

    let windows = [3, 1, 2, 100].map(|day| numbers(day * DAY, (day + 1) * DAY)).to_vec();
    catalog.apply(Command::AddWindows { table: id, windows }).unwrap();
    let next = numbers(101 * DAY, 102 * DAY);
    assert_eq!(ahead(&catalog, 100 * DAY as u64 + 5), Some(next.clone()));
    catalog.apply(Command::AddWindows { table: id, windows: vec![next] }).unwrap();
    assert_eq!(ahead(&catalog, 100 * DAY as u64 + 5), None);
    assert_eq!(catalog.wanted_windows(), []);

    let cutoff = Cutoff { column: ColumnId(0), micros: 3 * DAY };
    catalog.apply(Command::Expire { table: id, cutoff }).unwrap();
    assert_eq!(catalog.wanted_windows(), [Command::DropWindows { table: id }]);
    let outcome = catalog.apply(Command::DropWindows { table: id }).unwrap();
    assert_eq!(outcome.effects.len(), 3, "the table and two windows");
    assert_eq!(bounds(&catalog, &name).first(), Some(&numbers(3 * DAY, 4 * DAY)));

    // What has passed is not made again.
    catalog.apply(Command::AddWindows { table: id, windows: vec![numbers(DAY, 2 * DAY)] }).unwrap();
    assert_eq!(bounds(&catalog, &name).len(), 3);

    // The first that was made stays.
    let cutoff = Cutoff { column: ColumnId(0), micros: 50 * DAY };
    catalog.apply(Command::Expire { table: id, cutoff }).unwrap();
    assert_eq!(catalog.wanted_windows(), []);
    assert_eq!(bounds(&catalog, &name).len(), 3);
}

#[test]
fn a_partition_becomes_two_on_the_same_nodes() {
    let mut catalog = cluster(4);
    catalog.apply(Command::CreateTable(ranged("r", vec![b"m".to_vec()]))).unwrap();
    let table = catalog.table("r").unwrap().clone();
    let [first, second] = table.partitions[..] else { panic!("two partitions") };
    let before = catalog.partitions[&first].clone();
    let split = |at: &[u8], epoch| Command::SplitPartition { partition: first, at: at.to_vec(), epoch: Epoch(epoch) };
    for (command, why) in [
        (split(b"f", 2), "was made for e2"),
        (split(b"", 1), "not inside"),
        (split(b"m", 1), "not inside"),
        (split(b"z", 1), "not inside"),
        (Command::SplitPartition { partition: PartitionId(99), at: vec![1], epoch: Epoch(1) }, "no partition p99"),
    ] {
        let error = catalog.apply(command).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    catalog.apply(split(b"f", 1)).unwrap();
    assert_eq!(catalog.apply(split(b"f", 1)).unwrap().effects, vec![], "a second time");
    assert_eq!(catalog.apply(split(b"g", 1)), Err(CatalogError::SplitElsewhere(first)));
    let table = catalog.table("r").unwrap().clone();
    let [left, right, last] = table.partitions[..] else { panic!("three partitions") };
    assert_eq!(last, second);
    for (half, range) in [(left, (b"".to_vec(), b"f".to_vec())), (right, (b"f".to_vec(), b"m".to_vec()))] {
        let half = &catalog.partitions[&half];
        assert_eq!(half.bounds, PartitionBounds::Range(KeyRange { start: range.0, end: Some(range.1) }));
        assert_eq!((&half.replicas, half.epoch, half.settled), (&before.replicas, Epoch(2), true));
    }
    assert_eq!(catalog.roots(&table), [first, second]);
    assert_eq!(catalog.partition_for(&table, b"g").unwrap().id, right);

    // The halves go their own ways, and are split again.
    let again = Command::SplitPartition { partition: right, at: b"h".to_vec(), epoch: Epoch(2) };
    catalog.apply(again).unwrap();
    let far = catalog.partition_for(catalog.table("r").unwrap(), b"i").unwrap().id;
    let lineage: Vec<_> = catalog.ancestors_of(far).map(|(id, _)| id).collect();
    assert_eq!(lineage, [right, first]);
    assert_eq!(catalog.root_of(far), first);
    catalog.apply(Command::DropTable { name: "r".into(), if_exists: false }).unwrap();
    assert!(catalog.ancestors.is_empty());
}

#[test]
fn what_is_not_split() {
    let mut catalog = cluster(3);
    catalog.apply(Command::CreateTable(hashed("h", 2, 3))).unwrap();
    catalog.apply(Command::CreateTable(ranged("r", vec![]))).unwrap();
    let of = |catalog: &Catalog, name| catalog.table(name).unwrap().partitions[0];
    let split = |partition, epoch| Command::SplitPartition { partition, at: b"k".to_vec(), epoch: Epoch(epoch) };
    let (bucket, range) = (of(&catalog, "h"), of(&catalog, "r"));
    assert!(catalog.apply(split(bucket, 1)).unwrap_err().to_string().contains("bucket of hashes"));
    catalog.apply(Command::RetireReplica { partition: range, node: NodeId(1), epoch: Epoch(1) }).unwrap();
    assert_eq!(catalog.apply(split(range, 2)), Err(CatalogError::Unsettled(range)));
    catalog.apply(Command::SettlePartition { partition: range, epoch: Epoch(2) }).unwrap();
    catalog.apply(split(range, 2)).unwrap();
    let halves = catalog.partitions_of(catalog.table("r").unwrap());
    let states: Vec<_> = halves.map(|half| half.replicas[0].state).collect();
    assert_eq!(states, [ReplicaState::Leaving; 2], "who was to leave, leaves both");
}

#[test]
fn a_window_that_was_split_goes_as_a_whole() {
    let mut catalog = with_windows();
    let id = *catalog.tables.keys().next().unwrap();
    let windows = [1, 2].map(|day| numbers(day * DAY, (day + 1) * DAY)).to_vec();
    catalog.apply(Command::AddWindows { table: id, windows }).unwrap();
    for window in [1, 2] {
        let at = Datum::Int(window * DAY + DAY / 2).encode();
        let partition = catalog.partition_for(&catalog.tables[&id], &at).unwrap().id;
        catalog.apply(Command::SplitPartition { partition, at, epoch: Epoch(1) }).unwrap();
    }
    let expire = |catalog: &mut Catalog, micros| {
        let cutoff = Cutoff { column: ColumnId(0), micros };
        catalog.apply(Command::Expire { table: id, cutoff }).unwrap();
        catalog.apply(Command::DropWindows { table: id }).unwrap();
        catalog.tables[&id].partitions.len()
    };
    // The first half has passed, and what was sent with rows of both is still known by both.
    assert_eq!(expire(&mut catalog, DAY + DAY / 2), 4);
    assert_eq!(expire(&mut catalog, 2 * DAY), 3, "of the oldest, its beginning stays");
    assert_eq!(expire(&mut catalog, 2 * DAY + DAY / 2), 3);
    assert_eq!(expire(&mut catalog, 3 * DAY), 1);
    assert_eq!(catalog.ancestors.len(), 1);
}

#[test]
fn tombstones_go_only_if_the_replicas_are_those_that_were_asked() {
    let mut catalog = cluster(4);
    catalog.apply(Command::CreateTable(hashed("t", 1, 3))).unwrap();
    let partition = *catalog.partitions.keys().next().unwrap();
    let now = |catalog: &Catalog| catalog.partitions[&partition].clone();
    let raise = |changed, micros| Command::RaisePurge { partition, changed, purged: Hlc::from_micros(micros) };
    let asked = now(&catalog).changed;
    let outcome = catalog.apply(raise(asked, 5)).unwrap();
    assert_eq!(outcome.effects, [Effect::Partition(partition)]);
    assert_eq!((now(&catalog).purged, now(&catalog).changed), (Hlc::from_micros(5), catalog.version));
    assert!(catalog.apply(raise(asked, 5)).unwrap().effects.is_empty(), "sent twice");
    assert!(catalog.apply(raise(asked, 4)).unwrap().effects.is_empty(), "it never goes back");
    assert!(catalog.apply(raise(asked, 6)).is_err(), "somebody else was faster");

    // A replica that has come and gone leaves the same replicas behind, and what it has handed over.
    let (asked, epoch) = (now(&catalog).changed, now(&catalog).epoch);
    let replicas = now(&catalog).replicas;
    let node = *catalog.nodes.keys().find(|node| replicas.iter().all(|replica| replica.node != **node)).unwrap();
    catalog.apply(Command::AddReplica { partition, node }).unwrap();
    assert!(catalog.apply(raise(now(&catalog).changed, 6)).is_err(), "who joins holds less");
    catalog.apply(Command::RetireReplica { partition, node, epoch }).unwrap();
    assert!(catalog.apply(raise(now(&catalog).changed, 6)).is_err(), "who leaves, too");
    catalog.apply(Command::RemoveReplica { partition, node, epoch }).unwrap();
    assert_eq!((now(&catalog).replicas, now(&catalog).epoch), (replicas, epoch));
    assert!(catalog.apply(raise(asked, 6)).is_err());
    catalog.apply(raise(now(&catalog).changed, 6)).unwrap();
}

#[test]
fn a_table_gets_a_name_that_is_free() {
    let mut catalog = cluster(1);
    for name in ["a", "b"] {
        catalog.apply(Command::CreateTable(hashed(name, 1, 1))).unwrap();
    }
    let id = catalog.table("a").unwrap().id;
    let rename = |to: &str| Command::RenameTable { table: id, to: to.into() };
    assert_eq!(catalog.apply(rename("b")), Err(CatalogError::TableExists("b".into())));
    assert!(catalog.apply(rename("")).is_err());
    assert_eq!(catalog.apply(rename("c")).unwrap().effects, [Effect::Table(id)]);
    assert!(catalog.apply(rename("c")).unwrap().effects.is_empty(), "sent twice");
    assert!(catalog.table("a").is_none());
    assert_eq!(catalog.table("c").unwrap().id, id);
    let gone = Command::RenameTable { table: TableId(99), to: "d".into() };
    assert_eq!(catalog.apply(gone), Err(CatalogError::TableGone(TableId(99))));
}
