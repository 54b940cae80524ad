//! `/api/v1/cluster`: nodes, partitions, replicas.

use actix_web::web::{Data, Json};
use shoal_actors::service::ClusterStatus;

use super::Doors;
use super::problem::Failure;

/// The cluster as this node sees it: nodes with what SWIM thinks of them, partitions with replicas, epoch and lag.
#[utoipa::path(get, path = "/api/v1/cluster", tag = "cluster",
    responses((status = 200, description = "Nodes and partitions", body = Object), (status = "5XX", content_type = "application/problem+json", body = super::problem::Problem)))]
pub(super) async fn get(doors: Data<Doors>) -> Result<Json<ClusterStatus>, Failure> {
    Ok(Json(doors.backend.cluster().await?))
}
