//! `/api/v1/queries`: what runs here, and stopping it.

use actix_web::web::{Data, Json, Path};
use actix_web::{HttpResponse, http::StatusCode};
use shoal_kernel::{Error, ErrorCode, QueryId};

use super::Doors;
use super::problem::Failure;
use super::running::RunningQuery;

fn parse(doors: &Doors, text: &str) -> Result<QueryId, Failure> {
    doors.parse_query_id(text).ok_or_else(|| Failure::invalid(format!("'{text}' is not a query id")))
}

/// Queries that were asked at this node and run now.
#[utoipa::path(get, path = "/api/v1/queries", tag = "queries", responses((status = 200, body = Vec<RunningQuery>)))]
pub(super) async fn list(doors: Data<Doors>) -> Json<Vec<RunningQuery>> {
    Json(doors.running.list())
}

/// One of them, with its progress.
#[utoipa::path(get, path = "/api/v1/queries/{id}", tag = "queries", params(("id" = String, Path)),
    responses((status = 200, body = RunningQuery), (status = 404, content_type = "application/problem+json", body = super::problem::Problem)))]
pub(super) async fn get(doors: Data<Doors>, id: Path<String>) -> Result<Json<RunningQuery>, Failure> {
    let id = parse(&doors, &id)?;
    let running = doors.running.get(id);
    running.map(Json).ok_or_else(|| Error::new(ErrorCode::NotFound, format!("no query {id} runs at this node")).into())
}

/// Stops a query, at whichever node it was asked. Its own answer ends with the code `cancelled`.
#[utoipa::path(delete, path = "/api/v1/queries/{id}", tag = "queries", params(("id" = String, Path)),
    responses((status = 204, description = "It was told to stop"), (status = 404, content_type = "application/problem+json", body = super::problem::Problem)))]
pub(super) async fn delete(doors: Data<Doors>, id: Path<String>) -> Result<HttpResponse, Failure> {
    let id = parse(&doors, &id)?;
    if !doors.running.cancel(id) {
        doors.backend.cancel(id).await?;
    }
    Ok(HttpResponse::new(StatusCode::NO_CONTENT))
}
