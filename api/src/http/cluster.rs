//! `/api/v1/cluster`: nodes, partitions, replicas; and what operators have nodes do.

use std::fmt::Write as _;

use actix_web::web::{Data, Json, Path};
use actix_web::{HttpResponse, http::StatusCode};
use serde::Serialize;
use shoal_actors::service::{BalanceStatus, ClusterStatus, NodeChange, NodeStatus, PartitionStatus, ReplicaStatus};
use shoal_catalog::PartitionBounds;
use shoal_kernel::NodeId;
use utoipa::ToSchema;

use super::Doors;
use super::problem::Failure;

/// The cluster, as one node sees it. Numbers that may exceed 2^53, which JavaScript would round, are hexadecimal text.
#[derive(Serialize, ToSchema)]
pub(super) struct Cluster {
    /// Names the cluster: 16 hexadecimal digits.
    cluster_id: String,
    /// The node that answers.
    #[schema(value_type = u64)]
    node: u32,
    /// Version of the catalog that it has applied.
    catalog_version: u64,
    /// The catalog's leader, if one is known.
    #[schema(value_type = Option<u64>)]
    leader: Option<u32>,
    /// Members, by number.
    nodes: Vec<Node>,
    /// Partitions, by number.
    partitions: Vec<Partition>,
}

/// A member.
#[derive(Serialize, ToSchema)]
struct Node {
    /// Its number.
    #[schema(value_type = u64)]
    id: u32,
    /// Where nodes reach it: HOST:PORT.
    cluster_address: String,
    /// Where clients reach it: HOST:PORT.
    http_address: String,
    /// With whom it fails, as it says itself; empty if it says nothing.
    zone: String,
    /// Its role: `active`, `draining` (it gives its replicas away), or `leaving` (it leaves the cluster once it holds none).
    #[schema(value_type = String)]
    state: shoal_catalog::NodeState,
    /// What SWIM thinks of it: `alive`, `suspect`, `down`, or `unknown` if it was never heard of since this node started.
    #[schema(value_type = String)]
    swim: shoal_actors::service::SwimState,
    /// Whether it votes on the catalog.
    voter: bool,
    /// Replicas that are placed on it, those that are leaving included: a node that is drained holds none.
    replicas: usize,
}

/// A partition.
#[derive(Serialize, ToSchema)]
struct Partition {
    /// Its number.
    id: u64,
    /// Its table's name.
    table: String,
    /// Its keys.
    bounds: Bounds,
    /// The generation of its set of voting replicas.
    epoch: u64,
    /// Its replicas, by node.
    replicas: Vec<Replica>,
}

/// Which keys a partition holds.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Bounds {
    /// Encoded keys from the first inside to the first outside, in hexadecimal; an open side is null.
    Range {
        /// The first key inside.
        start: Option<String>,
        /// The first key outside.
        end: Option<String>,
    },
    /// Keys of this hash bucket.
    Bucket(u32),
}

/// A replica. What only it knows is null if it did not answer just now.
#[derive(Serialize, ToSchema)]
struct Replica {
    /// Its node.
    #[schema(value_type = u64)]
    node: u32,
    /// `joining` (it fills up, and counts for nothing), `voting` (its acknowledgements count) or `leaving` (it hands over what it
    /// holds).
    #[schema(value_type = String)]
    state: shoal_catalog::ReplicaState,
    /// Its node has started it again and again in vain; another one gets a replica in its place.
    failed: bool,
    /// Whether it answered just now.
    reachable: bool,
    /// Accepts of its peers that it has not pulled yet; 0 is caught up.
    lag: Option<u64>,
    /// The life of its accept log.
    log_id: Option<String>,
    /// Accepts in that log.
    position: Option<u64>,
    /// Visible rows.
    rows: Option<u64>,
    /// Bytes on disk.
    bytes: Option<u64>,
    /// Segments.
    segments: Option<u64>,
    /// How many of them wait to be merged: more and more of them mean that compaction has fallen behind.
    segments_overdue: Option<u64>,
    /// Digest of its winning rows and tombstones; equal digests mean equal versions of equal keys.
    digest: Option<String>,
    /// Times it was restarted by its supervisor since the node started.
    restarts: Option<u32>,
    /// Why it does not serve, if it does not.
    problem: Option<String>,
}

impl From<ClusterStatus> for Cluster {
    fn from(status: ClusterStatus) -> Self {
        Self {
            cluster_id: format!("{:016x}", status.cluster_id),
            node: status.node.0,
            catalog_version: status.catalog_version,
            leader: status.leader.map(|leader| leader.0),
            nodes: status.nodes.into_iter().map(Node::from).collect(),
            partitions: status.partitions.into_iter().map(Partition::from).collect(),
        }
    }
}

impl From<NodeStatus> for Node {
    fn from(status: NodeStatus) -> Self {
        Self {
            id: status.id.0,
            cluster_address: status.attributes.cluster_address.to_string(),
            http_address: status.attributes.http_address.to_string(),
            zone: status.attributes.zone,
            state: status.state,
            swim: status.swim,
            voter: status.voter,
            replicas: status.replicas,
        }
    }
}

impl From<PartitionStatus> for Partition {
    fn from(status: PartitionStatus) -> Self {
        let bounds = match status.bounds {
            PartitionBounds::Range(range) => Bounds::Range {
                start: (!range.start.is_empty()).then(|| hexadecimal(&range.start)),
                end: range.end.as_deref().map(hexadecimal),
            },
            PartitionBounds::Bucket(bucket) => Bounds::Bucket(bucket),
        };
        Self {
            id: status.id.0,
            table: status.table,
            bounds,
            epoch: status.epoch.0,
            replicas: status.replicas.into_iter().map(Replica::from).collect(),
        }
    }
}

impl From<ReplicaStatus> for Replica {
    fn from(status: ReplicaStatus) -> Self {
        Self {
            node: status.node.0,
            state: status.state,
            failed: status.failed,
            reachable: status.reachable,
            lag: status.lag,
            log_id: status.log_id.map(|log| log.to_string()),
            position: status.position,
            rows: status.rows,
            bytes: status.bytes,
            segments: status.segments,
            segments_overdue: status.segments_overdue,
            digest: status.digest,
            restarts: status.restarts,
            problem: status.problem,
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The cluster as this node sees it: nodes with what SWIM thinks of them, partitions with replicas, epoch and lag.
#[utoipa::path(get, path = "/api/v1/cluster", tag = "cluster",
    responses((status = 200, description = "Nodes and partitions", body = Cluster), (status = "5XX", content_type = "application/problem+json", body = super::problem::Problem)))]
pub(super) async fn get(doors: Data<Doors>) -> Result<Json<Cluster>, Failure> {
    Ok(Json(doors.backend.cluster().await?.into()))
}

/// Has a node drained (`drain`: it gives its replicas away and takes no new ones), taken back (`activate`), taken out once it holds
/// nothing (`decommission`), or given up with all that it held (`remove`, of a node that is down for good). Answered once that is
/// agreed on; how far it has got, `GET /api/v1/cluster` tells.
#[utoipa::path(post, path = "/api/v1/cluster/nodes/{id}/{change}", tag = "cluster",
    params(("id" = u64, Path, description = "The node's number"), ("change" = String, Path, description = "`drain`, `activate`, `decommission` or `remove`")),
    responses((status = 204, description = "It is agreed on"), (status = "4XX", content_type = "application/problem+json", body = super::problem::Problem), (status = "5XX", content_type = "application/problem+json", body = super::problem::Problem)))]
pub(super) async fn change_node(doors: Data<Doors>, path: Path<(String, String)>) -> Result<HttpResponse, Failure> {
    let (id, change) = path.into_inner();
    let number = id.parse().map_err(|_| Failure::invalid(format!("'{id}' is not the number of a node")))?;
    let change = match change.as_str() {
        "drain" => NodeChange::Drain,
        "activate" => NodeChange::Activate,
        "decommission" => NodeChange::Decommission,
        "remove" => NodeChange::Remove,
        other => {
            let message =
                format!("'{other}' is nothing that a node can do; say drain, activate, decommission or remove");
            return Err(Failure::invalid(message));
        }
    };
    doors.backend.change_node(NodeId(number), change).await?;
    Ok(HttpResponse::new(StatusCode::NO_CONTENT))
}

/// How evenly replicas are spread over the nodes, and what is being done about it.
#[derive(Serialize, ToSchema)]
pub(super) struct Balance {
    /// Replicas are not moved for balance.
    paused: bool,
    /// Partitions whose replicas come, go or have just changed, for balance or another reason.
    moving: Vec<u64>,
    /// Moves that balance asks for beyond these as things are, the first 100 of them.
    wanted: Vec<Move>,
}

/// A replica that would be better elsewhere.
#[derive(Serialize, ToSchema)]
struct Move {
    /// The partition's number.
    partition: u64,
    /// Its table's name.
    table: String,
    /// The node that it is on.
    #[schema(value_type = u64)]
    from: u32,
    /// The node that it should be on.
    #[schema(value_type = u64)]
    to: u32,
    /// Bytes on disk of a replica.
    bytes: u64,
}

impl From<BalanceStatus> for Balance {
    fn from(status: BalanceStatus) -> Self {
        let wanted = status.wanted.into_iter().map(|wanted| Move {
            partition: wanted.partition.0,
            table: wanted.table,
            from: wanted.from.0,
            to: wanted.to.0,
            bytes: wanted.bytes,
        });
        Self {
            paused: status.paused,
            moving: status.moving.into_iter().map(|id| id.0).collect(),
            wanted: wanted.collect(),
        }
    }
}

/// Whether replicas are moved for balance, which are moving, and which moves balance still asks for.
#[utoipa::path(get, path = "/api/v1/cluster/balance", tag = "cluster",
    responses((status = 200, description = "What there is to move", body = Balance), (status = "5XX", content_type = "application/problem+json", body = super::problem::Problem)))]
pub(super) async fn balance(doors: Data<Doors>) -> Result<Json<Balance>, Failure> {
    Ok(Json(doors.backend.balance().await?.into()))
}

/// Has no replicas moved for balance any more, and those on their way for it alone called off (`pause`), or has them moved again
/// (`resume`). What nodes lose or give away is made anew elsewhere all the same. Answered once that is agreed on.
#[utoipa::path(post, path = "/api/v1/cluster/balance/{change}", tag = "cluster",
    params(("change" = String, Path, description = "`pause` or `resume`")),
    responses((status = 204, description = "It is agreed on"), (status = "4XX", content_type = "application/problem+json", body = super::problem::Problem), (status = "5XX", content_type = "application/problem+json", body = super::problem::Problem)))]
pub(super) async fn change_balance(doors: Data<Doors>, change: Path<String>) -> Result<HttpResponse, Failure> {
    let paused = match change.as_str() {
        "pause" => true,
        "resume" => false,
        other => return Err(Failure::invalid(format!("balance can pause or resume, not '{other}'"))),
    };
    doors.backend.pause_balance(paused).await?;
    Ok(HttpResponse::new(StatusCode::NO_CONTENT))
}
