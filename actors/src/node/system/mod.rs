//! The tables of the schema `system`: the cluster as rows, asked of all nodes when a statement is planned.
//!
//! Where rows come from other nodes, one that does not answer has a row of its own, in which nothing is set but its number and `problem`:
//! an answer that lacks something says so.

mod columns;

use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use futures::future::join_all;
use shoal_catalog::{NodeState, PartitionBounds, ReplicaState};
use shoal_kernel::env::BoxFuture;
use shoal_kernel::{Error, ErrorCode, NodeId, PartitionId, Result};
use shoal_planner::SystemTables;
use shoal_storage::SegmentStatus;

use self::columns::{Column, batch, flag, number, schema, text};
use super::context::NodeContext;
use super::status;
use crate::query::{QueryService, RunningFragment, RunningOn, RunningQuery};
use crate::replica::message::{ReplicaAnswer, ReplicaCall};
use crate::replica::serve;
use crate::service::{ClusterStatus, NodeStatus, PartitionStatus, ReplicaStatus, SettingStatus, SwimState};

/// How long a node may take to say what it has.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Actors,
    Fragments,
    Nodes,
    Partitions,
    Queries,
    Replicas,
    Segments,
    Settings,
}

impl Table {
    const ALL: [Self; 8] = [
        Self::Actors,
        Self::Fragments,
        Self::Nodes,
        Self::Partitions,
        Self::Queries,
        Self::Replicas,
        Self::Segments,
        Self::Settings,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Actors => "actors",
            Self::Fragments => "fragments",
            Self::Nodes => "nodes",
            Self::Partitions => "partitions",
            Self::Queries => "queries",
            Self::Replicas => "replicas",
            Self::Segments => "segments",
            Self::Settings => "settings",
        }
    }

    fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    fn schema(self) -> SchemaRef {
        match self {
            Self::Actors => schema(ACTORS),
            Self::Fragments => schema(FRAGMENTS),
            Self::Nodes => schema(NODES),
            Self::Partitions => schema(PARTITIONS),
            Self::Queries => schema(QUERIES),
            Self::Replicas => schema(REPLICAS),
            Self::Segments => schema(SEGMENTS),
            Self::Settings => schema(SETTINGS),
        }
    }
}

/// Something on a node, or why nobody knows.
struct Found<T> {
    node: NodeId,
    what: Result<T, String>,
}

impl<T> Found<T> {
    fn get(&self) -> Option<&T> {
        self.what.as_ref().ok()
    }

    fn problem(&self) -> Option<String> {
        self.what.as_ref().err().cloned()
    }
}

const QUERIES: &[Column<Found<RunningQuery>>] = &[
    text("node", |row| Some(row.node.to_string())),
    text("query", |row| Some(row.get()?.id.to_string())),
    text("sql", |row| Some(row.get()?.sql.clone())),
    number("queued", |row| row.get()?.queued.map(u64::from)),
    number("attempt", |row| Some(u64::from(row.get()?.attempt) + 1)),
    number("elapsed_ms", |row| Some(millis(row.get()?.elapsed))),
    number("tasks", |row| Some(row.get()?.progress.tasks.into())),
    number("tasks_done", |row| Some(row.get()?.progress.tasks_done.into())),
    number("rows_scanned", |row| Some(row.get()?.progress.rows_scanned)),
    number("bytes_scanned", |row| Some(row.get()?.progress.bytes_scanned)),
    text("problem", Found::problem),
];

const FRAGMENTS: &[Column<Found<RunningFragment>>] = &[
    text("node", |row| Some(row.node.to_string())),
    text("query", |row| Some(row.get()?.query.to_string())),
    number("attempt", |row| Some(u64::from(row.get()?.attempt) + 1)),
    text("fragment", |row| Some(row.get()?.fragment.to_string())),
    text("coordinator", |row| Some(row.get()?.coordinator.to_string())),
    number("tasks", |row| Some(row.get()?.tasks.into())),
    number("tasks_done", |row| Some(row.get()?.tasks_done.into())),
    number("rows", |row| Some(row.get()?.rows)),
    number("bytes", |row| Some(row.get()?.bytes)),
    number("slowest_ms", |row| Some(row.get()?.slowest_micros / 1_000)),
    number("spilled_bytes", |row| Some(row.get()?.spilled)),
    text("problem", Found::problem),
];

/// A segment of a replica.
struct OfReplica {
    table: String,
    partition: PartitionId,
    segment: SegmentStatus,
}

const SEGMENTS: &[Column<Found<OfReplica>>] = &[
    text("node", |row| Some(row.node.to_string())),
    text("table_name", |row| Some(row.get()?.table.clone())),
    text("partition", |row| Some(row.get()?.partition.to_string())),
    text("file", |row| Some(row.get()?.segment.file.clone())),
    number("bytes", |row| Some(row.get()?.segment.bytes)),
    number("rows", |row| Some(row.get()?.segment.rows)),
    number("visible_rows", |row| Some(row.get()?.segment.visible_rows)),
    number("tombstones", |row| Some(row.get()?.segment.tombstones)),
    number("pages", |row| Some(row.get()?.segment.pages)),
    flag("for_changes", |row| Some(row.get()?.segment.history)),
    text("problem", Found::problem),
];

/// An actor with a name.
struct Named {
    kind: &'static str,
    name: String,
    parent: Option<String>,
    state: &'static str,
    restarts: Option<u64>,
    problem: Option<String>,
}

const ACTORS: &[Column<Found<Named>>] = &[
    text("node", |row| Some(row.node.to_string())),
    text("kind", |row| Some(row.get()?.kind.to_owned())),
    text("name", |row| Some(row.get()?.name.clone())),
    text("parent", |row| row.get()?.parent.clone()),
    text("state", |row| Some(row.get()?.state.to_owned())),
    number("restarts", |row| row.get()?.restarts),
    text("problem", |row| match &row.what {
        Ok(named) => named.problem.clone(),
        Err(problem) => Some(problem.clone()),
    }),
];

const NODES: &[Column<(NodeStatus, bool)>] = &[
    text("node", |(node, _)| Some(node.id.to_string())),
    text("cluster_address", |(node, _)| Some(node.attributes.cluster_address.to_string())),
    text("http_address", |(node, _)| Some(node.attributes.http_address.to_string())),
    text("zone", |(node, _)| Some(node.attributes.zone.clone()).filter(|zone| !zone.is_empty())),
    text("state", |(node, _)| {
        Some(
            match node.state {
                NodeState::Active => "active",
                NodeState::Draining => "draining",
                NodeState::Leaving => "leaving",
            }
            .to_owned(),
        )
    }),
    text("seen", |(node, _)| {
        Some(
            match node.swim {
                SwimState::Alive => "alive",
                SwimState::Suspect => "suspect",
                SwimState::Down => "down",
                SwimState::Unknown => "unknown",
            }
            .to_owned(),
        )
    }),
    flag("votes", |(node, _)| Some(node.voter)),
    flag("leads", |(_, leads)| Some(*leads)),
    number("replicas", |(node, _)| Some(node.replicas as u64)),
];

const PARTITIONS: &[Column<PartitionStatus>] = &[
    text("table_name", |partition| Some(partition.table.clone())),
    text("partition", |partition| Some(partition.id.to_string())),
    text("bounds", |partition| {
        Some(match &partition.bounds {
            PartitionBounds::Range(range) => format!("{range:?}"),
            PartitionBounds::Bucket(bucket) => format!("bucket {bucket}"),
        })
    }),
    number("epoch", |partition| Some(partition.epoch.0)),
    number("replicas", |partition| Some(partition.replicas.len() as u64)),
    number("replicas_that_vote", |partition| {
        Some(partition.replicas.iter().filter(|replica| replica.state == ReplicaState::Voting).count() as u64)
    }),
    number("replicas_that_answer", |partition| {
        Some(partition.replicas.iter().filter(|replica| replica.reachable).count() as u64)
    }),
    // Of the replica that has most: the others may be behind it.
    number("rows", |partition| partition.replicas.iter().filter_map(|replica| replica.rows).max()),
    number("bytes", |partition| partition.replicas.iter().filter_map(|replica| replica.bytes).max()),
];

const REPLICAS: &[Column<(String, PartitionId, ReplicaStatus)>] = &[
    text("table_name", |(table, ..)| Some(table.clone())),
    text("partition", |(_, partition, _)| Some(partition.to_string())),
    text("node", |(.., replica)| Some(replica.node.to_string())),
    text("state", |(.., replica)| Some(role(replica.state).to_owned())),
    flag("failed", |(.., replica)| Some(replica.failed)),
    flag("answers", |(.., replica)| Some(replica.reachable)),
    number("lag", |(.., replica)| replica.lag),
    number("position", |(.., replica)| replica.position),
    number("rows", |(.., replica)| replica.rows),
    number("bytes", |(.., replica)| replica.bytes),
    number("segments", |(.., replica)| replica.segments),
    number("segments_overdue", |(.., replica)| replica.segments_overdue),
    text("digest", |(.., replica)| replica.digest.clone()),
    number("restarts", |(.., replica)| replica.restarts.map(u64::from)),
    text("problem", |(.., replica)| replica.problem.clone()),
];

const SETTINGS: &[Column<SettingStatus>] = &[
    text("name", |setting| Some(setting.name.clone())),
    text("value", |setting| setting.value.clone()),
    text("default_value", |setting| Some(setting.default.clone())),
    text("given_in", |setting| setting.given_in.clone()),
    text("about", |setting| Some(setting.about.clone())),
];

fn role(state: ReplicaState) -> &'static str {
    match state {
        ReplicaState::Joining => "joining",
        ReplicaState::Voting => "voting",
        ReplicaState::Leaving => "leaving",
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Answers for this node.
#[derive(Clone)]
pub(super) struct System {
    pub(super) context: Arc<NodeContext>,
    pub(super) queries: QueryService,
}

impl std::fmt::Debug for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "System({})", self.context.node)
    }
}

impl SystemTables for System {
    fn names(&self) -> Vec<&'static str> {
        Table::ALL.into_iter().map(Table::name).collect()
    }

    fn schema(&self, table: &str) -> Option<SchemaRef> {
        Table::find(table).map(Table::schema)
    }

    fn rows(&self, table: &str) -> BoxFuture<'static, Result<RecordBatch>> {
        let (system, table) = (self.clone(), Table::find(table));
        Box::pin(async move {
            match table {
                Some(table) => system.rows_of(table).await,
                None => Err(Error::new(ErrorCode::UnknownTable, "there is no such system table")),
            }
        })
    }
}

impl System {
    async fn rows_of(&self, table: Table) -> Result<RecordBatch> {
        match table {
            Table::Actors => self.actors().await,
            Table::Fragments => {
                let running = self.running().await;
                batch(FRAGMENTS, &each(running, |running| running.fragments))
            }
            Table::Nodes => {
                let ClusterStatus { nodes, leader, .. } = self.cluster().await;
                let leads = |node: NodeStatus| {
                    let leads = leader == Some(node.id);
                    (node, leads)
                };
                batch(NODES, &nodes.into_iter().map(leads).collect::<Vec<_>>())
            }
            Table::Partitions => batch(PARTITIONS, &self.cluster().await.partitions),
            Table::Queries => {
                let running = self.running().await;
                batch(QUERIES, &each(running, |running| running.queries))
            }
            Table::Replicas => batch(REPLICAS, &replicas(self.cluster().await)),
            Table::Segments => self.segments().await,
            Table::Settings => batch(SETTINGS, &self.context.config.settings),
        }
    }

    async fn cluster(&self) -> ClusterStatus {
        status::cluster(&self.context, false).await
    }

    /// What every member says to something.
    async fn of_nodes<T, F>(&self, ask: impl Fn(NodeId) -> F) -> Vec<Found<T>>
    where
        F: Future<Output = Result<T>> + Send,
    {
        let catalog = self.context.agreement.catalog().borrow().clone();
        let mut asked = Vec::new();
        for node in catalog.nodes.keys().copied() {
            let answer = (!self.context.liveness.is_down(node)).then(|| ask(node));
            asked.push(async move {
                let what = match answer {
                    None => Err("the node is down".to_owned()),
                    Some(answer) => answer.await.map_err(|error| error.to_string()),
                };
                Found { node, what }
            });
        }
        join_all(asked).await
    }

    async fn running(&self) -> Vec<Found<RunningOn>> {
        self.of_nodes(|node| self.queries.running_on(node, TIMEOUT)).await
    }

    async fn segments(&self) -> Result<RecordBatch> {
        let found = self
            .of_nodes(|node| async move {
                match serve::call(&self.context, node, &ReplicaCall::Segments, TIMEOUT).await? {
                    ReplicaAnswer::Segments(segments) => Ok(segments),
                    _ => Err(Error::internal("another answer than to its segments")),
                }
            })
            .await;
        let catalog = self.context.agreement.catalog().borrow().clone();
        let table_of = |partition: PartitionId| {
            let table = catalog.partitions.get(&partition).and_then(|place| catalog.tables.get(&place.table));
            table.map(|table| table.name.clone()).unwrap_or_default()
        };
        let rows = each(found, |replicas| {
            replicas.into_iter().flat_map(|(partition, segments)| {
                let table = table_of(partition);
                segments.into_iter().map(move |segment| OfReplica { table: table.clone(), partition, segment })
            })
        });
        batch(SEGMENTS, &rows)
    }

    async fn actors(&self) -> Result<RecordBatch> {
        let (cluster, running) = futures::join!(self.cluster(), self.running());
        let mut rows: Vec<Found<Named>> = replicas(cluster)
            .into_iter()
            .filter(|(.., replica)| replica.reachable)
            .map(|(_, partition, replica)| {
                let state = match (replica.failed, &replica.problem) {
                    (true, _) => "given up",
                    (false, Some(_)) => "impaired",
                    (false, None) => "running",
                };
                let name = partition.to_string();
                let (restarts, problem) = (replica.restarts.map(u64::from), replica.problem);
                let named = Named { kind: "replica", name, parent: None, state, restarts, problem };
                Found { node: replica.node, what: Ok(named) }
            })
            .collect();
        let named = |kind, name, parent, state| Named { kind, name, parent, state, restarts: None, problem: None };
        rows.extend(each(running, |RunningOn { queries, fragments }| {
            let queries = queries.into_iter().map(move |query| {
                let state = if query.queued.is_some() { "queued" } else { "running" };
                named("query", query.id.to_string(), None, state)
            });
            let tasks = fragments.into_iter().map(move |tasks| {
                let name = format!("{} attempt {} {}", tasks.query, tasks.attempt + 1, tasks.fragment);
                let state = if tasks.tasks_done < tasks.tasks { "running" } else { "done" };
                named("tasks", name, Some(tasks.query.to_string()), state)
            });
            queries.chain(tasks).collect::<Vec<_>>()
        }));
        rows.sort_by_key(|row| row.node);
        batch(ACTORS, &rows)
    }
}

/// All replicas, by partition and node.
fn replicas(cluster: ClusterStatus) -> Vec<(String, PartitionId, ReplicaStatus)> {
    let of_partition = |partition: PartitionStatus| {
        let (table, id) = (partition.table, partition.id);
        partition.replicas.into_iter().map(move |replica| (table.clone(), id, replica))
    };
    cluster.partitions.into_iter().flat_map(of_partition).collect()
}

/// The rows that nodes have; a node that did not answer has one.
fn each<T, R, I: IntoIterator<Item = R>>(found: Vec<Found<T>>, rows: impl Fn(T) -> I) -> Vec<Found<R>> {
    let mut all = Vec::new();
    for Found { node, what } in found {
        match what {
            Ok(what) => all.extend(rows(what).into_iter().map(|row| Found { node, what: Ok(row) })),
            Err(problem) => all.push(Found { node, what: Err(problem) }),
        }
    }
    all
}
