//! Several nodes in one process, each on its own runtime and directory, connected by links that can be cut. Dropping a
//! node's runtime is its crash: nothing of it runs on, and nothing is flushed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_schema::DataType;
use async_trait::async_trait;
use shoal_catalog::*;
use shoal_kernel::env::real::{RealOptions, env};
use shoal_kernel::*;
use shoal_membership::*;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const SECOND: Duration = Duration::from_secs(1);

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[derive(Default)]
struct Wires {
    nodes: BTreeMap<SocketAddr, Agreement>,
    cut: BTreeSet<(SocketAddr, SocketAddr)>,
}

#[derive(Clone)]
struct Wire {
    from: SocketAddr,
    wires: Arc<Mutex<Wires>>,
}

#[async_trait]
impl PeerRpc for Wire {
    async fn call(&self, to: SocketAddr, message: Vec<u8>, timeout: Duration) -> Result<Vec<u8>> {
        let (peer, cut) = {
            let wires = self.wires.lock().unwrap();
            (wires.nodes.get(&to).cloned(), wires.cut.contains(&(self.from, to)))
        };
        let unreachable = || Error::new(ErrorCode::NodeLost, format!("nobody at {to}"));
        if cut {
            // A cut link swallows: the caller learns nothing until its patience ends.
            tokio_sleep(timeout).await;
            return Err(unreachable().with_applied(Applied::Unknown));
        }
        let Some(peer) = peer else { return Err(unreachable()) };
        let answer = tokio::select! {
            answer = peer.handle(&message) => answer,
            () = tokio_sleep(timeout) => Err(unreachable().with_applied(Applied::Unknown)),
        };
        let back = self.wires.lock().unwrap().cut.contains(&(to, self.from));
        if back { Err(unreachable().with_applied(Applied::Unknown)) } else { answer }
    }
}

#[allow(clippy::disallowed_methods, reason = "the test's own clock")]
async fn tokio_sleep(time: Duration) {
    tokio::time::sleep(time).await;
}

struct Life {
    agreement: Agreement,
    runtime: Runtime,
}

struct Cluster {
    wires: Arc<Mutex<Wires>>,
    dirs: BTreeMap<u32, TempDir>,
    lives: BTreeMap<u32, Life>,
    // Runs the test's own waiting, so that it survives every crash.
    outside: Runtime,
}

impl Cluster {
    fn new() -> Self {
        Self {
            wires: Arc::default(),
            dirs: BTreeMap::new(),
            lives: BTreeMap::new(),
            outside: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
        }
    }

    fn dir(&mut self, id: u32) -> PathBuf {
        self.dirs.entry(id).or_insert_with(|| tempfile::tempdir().unwrap()).path().to_path_buf()
    }

    fn try_start(&mut self, id: u32, port: u16) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let at = address(port);
        let attributes =
            NodeAttributes { cluster_address: at, http_address: address(port + 1000), zone: String::new() };
        let mut config = AgreementConfig::new(NodeId(id), attributes, self.dir(id));
        config.heartbeat_ms = 60;
        config.election_timeout_ms_min = 250;
        config.election_timeout_ms_max = 500;
        config.snapshot_after_entries = 12;
        config.entries_kept = 3;
        let wire = Arc::new(Wire { from: at, wires: self.wires.clone() });
        let agreement = runtime.block_on(async {
            let env = env(&RealOptions { blocking_threads: 1, blocking_jobs_max: 16, compute_threads: 1 }).unwrap();
            Agreement::open(&env, config, wire).await
        })?;
        self.wires.lock().unwrap().nodes.insert(at, agreement.clone());
        self.lives.insert(id, Life { agreement, runtime });
        Ok(())
    }

    fn start(&mut self, id: u32) {
        self.try_start(id, id as u16).unwrap();
    }

    /// The node is gone from one moment to the next.
    fn crash(&mut self, id: u32) {
        let life = self.lives.remove(&id).unwrap();
        self.wires.lock().unwrap().nodes.remove(&address(id as u16));
        life.runtime.shutdown_timeout(SECOND);
    }

    fn node(&self, id: u32) -> &Agreement {
        &self.lives[&id].agreement
    }

    /// Runs on the node's own runtime.
    fn on<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        id: u32,
        work: impl FnOnce(Agreement) -> F,
    ) -> T {
        let task = self.lives[&id].runtime.spawn(work(self.node(id).clone()));
        self.outside.block_on(task).unwrap()
    }

    fn found(&mut self, id: u32) {
        self.start(id);
        self.on(id, |node| async move { node.found().await }).unwrap();
    }

    fn join(&mut self, id: u32, through: u32) {
        self.start(id);
        self.on(id, move |node| async move { node.join(&[address(through as u16)], 20 * SECOND).await }).unwrap();
    }

    fn propose(&self, id: u32, command: Command, seconds: u32) -> Result<CommandOutcome> {
        self.on(id, move |node| async move { node.propose(command, SECOND * seconds).await })
    }

    fn create(&self, id: u32, name: &str) {
        self.propose(id, table(name), 20).unwrap();
    }

    fn tables(&self, id: u32) -> Vec<String> {
        let catalog = self.node(id).catalog().borrow().clone();
        catalog.tables.values().map(|table| table.name.clone()).collect()
    }

    fn eventually(&self, what: &str, check: impl Fn(&Self) -> bool) {
        for _ in 0..400 {
            if check(self) {
                return;
            }
            self.outside.block_on(tokio_sleep(Duration::from_millis(50)));
        }
        let states: Vec<_> =
            self.lives.values().map(|life| (life.agreement.clone(), life.agreement.status())).collect();
        panic!("not within 20 s: {what}; {states:#?}");
    }

    fn leader(&self) -> u32 {
        self.eventually("a leader", |cluster| cluster.lives.values().any(|life| life.agreement.is_leader()));
        *self.lives.iter().find(|(_, life)| life.agreement.is_leader()).unwrap().0
    }

    fn three() -> Self {
        let mut cluster = Self::new();
        cluster.found(1);
        cluster.join(2, 1);
        cluster.join(3, 2);
        cluster.eventually("three voters", |cluster| {
            cluster.lives.values().all(|life| life.agreement.status().voters.len() == 3)
        });
        cluster
    }

    fn isolate(&self, id: u32, cut: bool) {
        let mut wires = self.wires.lock().unwrap();
        for other in 1..=5u16 {
            for link in [(address(id as u16), address(other)), (address(other), address(id as u16))] {
                if cut {
                    wires.cut.insert(link)
                } else {
                    wires.cut.remove(&link)
                };
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A runtime cannot be dropped by one of its own threads, which the wires would have it do.
        let ids: Vec<u32> = self.lives.keys().copied().collect();
        ids.into_iter().for_each(|id| self.crash(id));
        self.wires.lock().unwrap().nodes.clear();
    }
}

fn table(name: &str) -> Command {
    let key = Column { id: ColumnId(0), name: "k".into(), data_type: DataType::Int64, nullable: false };
    Command::CreateTable(NewTable {
        name: name.into(),
        schema: TableSchema::new(vec![key], TableKind::Upsert { primary_key: vec![ColumnId(0)] }),
        partitioning: Partitioning::Hash { columns: vec![ColumnId(0)], buckets: 2 },
        split_points: vec![],
        options: TableOptions::default(),
        if_not_exists: false,
    })
}

#[test]
fn three_nodes_agree_and_one_may_go() {
    let mut cluster = Cluster::three();
    let catalog = cluster.node(1).catalog().borrow().clone();
    assert_eq!(catalog.nodes.keys().copied().collect::<Vec<_>>(), [1, 2, 3].map(NodeId));
    assert!(catalog.nodes.values().all(|node| node.voter));

    let leader = cluster.leader();
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    cluster.create(follower, "a");
    // Whoever made it can use it at once, and so can whoever asks for everything.
    assert_eq!(cluster.tables(follower), ["a"]);
    let other = (1..=3).find(|id| ![leader, follower].contains(id)).unwrap();
    let seen = cluster.on(other, |node| async move { node.linearizable(10 * SECOND).await }).unwrap();
    assert!(seen.table("a").is_some());
    let refused = cluster.propose(follower, table("a"), 10).unwrap_err();
    assert_eq!((refused.code(), refused.applied()), (ErrorCode::TableExists, Applied::False));

    cluster.crash(leader);
    cluster.create(follower, "b");
    assert_ne!(cluster.leader(), leader);
    cluster.start(leader);
    assert!(cluster.node(leader).is_member());
    cluster.eventually("the crashed node caught up", |cluster| cluster.tables(leader) == ["a", "b"]);
}

#[test]
fn everything_comes_back_after_all_have_crashed() {
    let mut cluster = Cluster::three();
    // Enough entries for several snapshots and purges.
    for number in 0..20 {
        cluster.create(1 + number % 3, &format!("t{number:02}"));
    }
    let last = cluster.tables(1);
    for id in 1..=3 {
        cluster.crash(id);
    }
    // One alone: no quorum, but the last map it applied is there at once.
    cluster.start(1);
    assert!(cluster.node(1).is_member());
    assert_eq!(cluster.tables(1), last);
    let refused = cluster.propose(1, table("alone"), 1).unwrap_err();
    assert_eq!((refused.code(), refused.applied()), (ErrorCode::NoCatalogQuorum, Applied::False));
    assert!(refused.retryable());

    cluster.start(2);
    cluster.start(3);
    cluster.create(3, "together");
    for id in 1..=3 {
        cluster.eventually("all have it", |cluster| cluster.tables(id).len() == 21);
        assert!(!cluster.tables(id).contains(&"alone".to_owned()));
    }
}

#[test]
fn a_minority_refuses_and_the_majority_goes_on() {
    let cluster = Cluster::three();
    let leader = cluster.leader();
    let rest: Vec<u32> = (1..=3).filter(|id| *id != leader).collect();
    cluster.isolate(leader, true);
    // The leader does not even take it into its log: it knows that it was never proposed.
    let refused = cluster.propose(leader, table("lost"), 2).unwrap_err();
    assert_eq!((refused.code(), refused.applied()), (ErrorCode::NoCatalogQuorum, Applied::False));
    let unread = cluster.on(leader, |node| async move { node.linearizable(SECOND).await }).unwrap_err();
    assert_eq!(unread.code(), ErrorCode::NoCatalogQuorum);
    cluster.create(rest[0], "kept");
    cluster.isolate(leader, false);
    cluster.eventually("the old leader follows", |cluster| cluster.tables(leader) == ["kept"]);
    cluster.create(leader, "after");
    assert_eq!(cluster.tables(leader), ["kept", "after"]);
}

#[test]
fn a_number_that_is_taken_is_refused() {
    let mut cluster = Cluster::new();
    cluster.found(1);
    cluster.join(2, 1);
    // Another data directory with the number 2, elsewhere.
    let first = cluster.lives.remove(&2).unwrap();
    let dir = cluster.dirs.remove(&2).unwrap();
    cluster.try_start(2, 22).unwrap();
    let refused = cluster.on(2, |node| async move { node.join(&[address(1)], 10 * SECOND).await }).unwrap_err();
    assert_eq!(refused, JoinError::NodeNumberTaken(NodeId(2), address(2)));
    assert!(!cluster.node(2).is_member());
    first.runtime.shutdown_timeout(SECOND);
    drop(dir);
}

#[test]
fn a_node_that_comes_back_elsewhere_says_so() {
    let mut cluster = Cluster::three();
    cluster.create(1, "a");
    cluster.crash(3);
    cluster.try_start(3, 33).unwrap();
    cluster.eventually("the catalog knows the new address", |cluster| {
        cluster.node(1).catalog().borrow().nodes[&NodeId(3)].attributes.cluster_address == address(33)
    });
    cluster.create(3, "b");
    assert_eq!(cluster.tables(3), ["a", "b"]);
    // It counts there: with it and one more there is a majority.
    cluster.crash(2);
    cluster.create(1, "c");
    cluster.eventually("it follows", |cluster| cluster.tables(3).len() == 3);
}

#[test]
fn more_nodes_than_voters_follow() {
    let mut cluster = Cluster::new();
    cluster.found(1);
    for id in 2..=6 {
        cluster.join(id, 1 + id % 2);
    }
    cluster.create(6, "a");
    cluster.eventually("five vote, one follows", |cluster| {
        let status = cluster.node(1).status();
        status.voters.len() == 5 && status.learners.len() == 1
    });
    let removed = cluster.node(1).status().learners[0];
    cluster.propose(2, Command::DropTable { name: "a".into(), if_exists: false }, 10).unwrap();
    cluster.propose(1, Command::RemoveNode { id: removed, lost: false }, 10).unwrap();
    cluster.eventually("the removed node lost its seat", |cluster| cluster.node(1).status().learners.is_empty());
    let id = removed.0;
    let refused = cluster.on(id, |node| async move { node.join(&[address(1)], 5 * SECOND).await }).unwrap_err();
    assert_eq!(Error::from(refused).code(), ErrorCode::Forbidden);
}

#[test]
fn a_node_that_is_to_leave_votes_no_longer_even_if_it_leads() {
    let mut cluster = Cluster::new();
    cluster.found(1);
    cluster.join(2, 1);
    cluster.eventually("both vote", |cluster| cluster.node(1).status().voters == [1, 2].map(NodeId));
    let leader = cluster.leader();
    let stays = 3 - leader;
    let leaves = Command::SetNodeState { id: NodeId(leader), state: NodeState::Leaving };
    cluster.propose(1, leaves, 10).unwrap();
    cluster.eventually("the other one votes alone", |cluster| {
        cluster.node(stays).status().voters == [NodeId(stays)] && cluster.node(stays).is_leader()
    });
    cluster.propose(leader, Command::RemoveNode { id: NodeId(leader), lost: false }, 10).unwrap();
    cluster.eventually("it knows that it is no member", |cluster| {
        !cluster.node(leader).catalog().borrow().nodes.contains_key(&NodeId(leader))
    });
    cluster.crash(leader);
    cluster.create(stays, "a");
}

#[test]
fn a_node_without_its_data_is_a_new_node_and_takes_the_old_ones_vote() {
    let mut cluster = Cluster::three();
    cluster.create(1, "a");
    cluster.crash(3);
    // The same machine with an empty disk: another number at the same address.
    cluster.try_start(4, 3).unwrap();
    cluster.on(4, |node| async move { node.join(&[address(1)], 20 * SECOND).await }).unwrap();
    cluster.eventually("it votes instead of the one that is gone", |cluster| {
        cluster.node(1).status().voters == [1, 2, 4].map(NodeId)
    });
    let catalog = cluster.node(1).catalog().borrow().clone();
    assert!(!catalog.nodes[&NodeId(3)].voter && catalog.nodes[&NodeId(4)].voter);
    // Of three voters one may go.
    cluster.crash(2);
    cluster.create(4, "b");
}

#[test]
fn a_node_far_behind_gets_a_snapshot() {
    let mut cluster = Cluster::three();
    let away = (1..=3).find(|id| *id != cluster.leader()).unwrap();
    let here = (1..=3).find(|id| *id != away).unwrap();
    cluster.crash(away);
    let path = cluster.dir(away).join("catalog/snapshot");
    let before = path.exists().then(|| read(&path));
    for number in 0..40 {
        cluster.create(here, &format!("t{number:02}"));
    }
    cluster.start(away);
    cluster.eventually("it has caught up", |cluster| cluster.tables(away).len() == 40);
    // Its peers keep three entries behind a snapshot, so nothing else could have brought it here.
    assert_ne!(before, Some(read(&path)));
    // What arrived is on disk.
    for id in 1..=3 {
        cluster.crash(id);
    }
    cluster.start(away);
    assert_eq!(cluster.tables(away).len(), 40);
}

#[test]
fn a_torn_tail_is_cut_and_damage_is_refused() {
    let mut cluster = Cluster::three();
    cluster.create(1, "a");
    cluster.eventually("node 2 has it", |cluster| cluster.tables(2) == ["a"]);
    cluster.crash(2);
    let path = cluster.dir(2).join("catalog/log");
    let whole = read(&path);
    // The header of a frame that never got its body, then garbage.
    let mut torn = whole.clone();
    torn.extend_from_slice(&whole[..16]);
    torn.extend_from_slice(&[0x5a; 100]);
    write(&path, &torn);
    cluster.start(2);
    cluster.create(2, "b");
    assert_eq!(cluster.tables(2), ["a", "b"]);

    cluster.crash(2);
    let mut damaged = read(&path);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    write(&path, &damaged);
    let refused = cluster.try_start(2, 2).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Corruption);
}

#[allow(clippy::disallowed_methods, reason = "the test plays the disk")]
fn read(path: &std::path::Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[allow(clippy::disallowed_methods, reason = "the test plays the disk")]
fn write(path: &std::path::Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn the_vote_of_a_lost_node_goes_to_another() {
    let mut cluster = Cluster::three();
    for id in 4..=6 {
        cluster.join(id, 1);
    }
    let voters = |cluster: &Cluster| cluster.node(cluster.leader()).status().voters;
    cluster.eventually("five vote", |cluster| voters(cluster).len() == 5);
    let follows = (1..=6).map(NodeId).find(|id| !voters(&cluster).contains(id)).unwrap();
    let leader = cluster.leader();
    let lost = voters(&cluster).into_iter().find(|id| id.0 != leader).unwrap();
    cluster.crash(lost.0);
    let alive = (1..=6).map(NodeId).filter(|id| *id != lost).collect();
    let outlook = Outlook { alive, lost: [lost].into(), ..Outlook::default() };
    cluster.eventually("its vote has gone", |cluster| {
        let leader = cluster.leader();
        let catalog = cluster.node(leader).catalog().borrow().clone();
        if let Some(change) = catalog.wanted_voter(&outlook, NodeId(leader), 5, &BTreeSet::new()) {
            let _ = cluster.on(leader, move |node| async move { node.swap_voter(change).await });
        }
        let voters = voters(cluster);
        voters.len() == 5 && voters.contains(&follows) && !voters.contains(&lost)
    });
    // It comes back, follows, and does not ask for a vote that nobody wants.
    cluster.start(lost.0);
    cluster.create(follows.0, "a");
    cluster.eventually("the lost one follows", |cluster| cluster.tables(lost.0) == ["a"]);
    assert!(!voters(&cluster).contains(&lost));
}

/// With nodes that are lost, one that is left had agreed on changes of which the one that takes over knows nothing.
#[test]
fn who_had_got_further_than_a_recovered_catalog_notices() {
    // What it had agreed on is in its log, or gone from it for a snapshot; and so is the recovery from the log of the other one.
    for (changes, later) in [(1, 1), (40, 1), (1, 40)] {
        let mut cluster = Cluster::three();
        cluster.join(4, 1);
        cluster.join(5, 1);
        cluster.create(1, "before");
        let five = |cluster: &Cluster| cluster.lives.values().all(|life| life.agreement.status().voters.len() == 5);
        cluster.eventually("five vote, and know the table", |cluster| {
            five(cluster) && (1..=5).all(|id| cluster.tables(id) == ["before"])
        });
        let leader = cluster.leader();
        let [behind, ahead] = [1, 2].map(|step| (leader + step - 1) % 5 + 1);
        let lost: BTreeSet<NodeId> = (1..=5).filter(|id| ![behind, ahead].contains(id)).map(NodeId).collect();
        cluster.isolate(behind, true);
        for change in 0..changes {
            cluster.create(leader, &format!("beyond{change}"));
        }
        cluster.eventually("the changes have come", |cluster| cluster.tables(ahead).len() == 1 + changes);
        let numbers = cluster.node(ahead).catalog().borrow().clone();
        (1..=5).for_each(|id| cluster.crash(id));
        cluster.isolate(behind, false);

        let disk = env::real::disk();
        let recover = |cluster: &mut Cluster, id, dry_run| {
            agreement::recover(&disk, &cluster.dir(id), NodeId(id), &lost, dry_run).unwrap()
        };
        assert!(recover(&mut cluster, ahead, true).end > recover(&mut cluster, behind, true).end);
        assert_eq!(recover(&mut cluster, behind, false).others, [NodeId(ahead)]);
        cluster.start(behind);
        for change in 0..later {
            cluster.create(behind, &format!("after{change}"));
        }
        let catalog = cluster.node(behind).catalog().borrow().clone();
        assert!(catalog.version > numbers.version && catalog.next_id > numbers.next_id);
        let epochs = numbers.partitions.values().map(|partition| partition.epoch).max().unwrap();
        assert!(catalog.partitions_of(catalog.table("before").unwrap()).all(|partition| partition.epoch > epochs));

        cluster.start(ahead);
        let failed = cluster.on(ahead, |node| async move { node.failed().await });
        assert_eq!(failed.code(), ErrorCode::CatalogDiverged, "{failed}");
        assert_eq!(cluster.tables(ahead).len(), 1 + changes, "it has taken nothing");
        cluster.crash(ahead);
        assert_eq!(cluster.try_start(ahead, ahead as u16).unwrap_err().code(), ErrorCode::CatalogDiverged);
        let needless = agreement::follow(&disk, &cluster.dir(behind), NodeId(behind)).unwrap_err();
        assert_eq!(needless.code(), ErrorCode::InvalidRequest);
        let forgotten = agreement::follow(&disk, &cluster.dir(ahead), NodeId(ahead)).unwrap();
        assert!(forgotten.end.is_some());
        cluster.start(ahead);
        cluster.eventually("it follows, and votes", |cluster| {
            cluster.tables(ahead).len() == 1 + later && cluster.node(behind).status().voters.len() == 2
        });
        cluster.create(ahead, "again");
    }
}
