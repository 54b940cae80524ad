//! Whether the process lives, whether it takes requests, and its figures.

use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_TYPE, ContentType};
use actix_web::web::Data;
use shoal_kernel::{Error, ErrorCode};

use super::Doors;
use super::problem::Failure;

/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, description = "It lives")))]
pub(super) async fn alive() -> HttpResponse {
    HttpResponse::Ok().insert_header(ContentType::plaintext()).body("ok\n")
}

/// The node takes requests.
#[utoipa::path(get, path = "/readyz", tag = "health",
    responses((status = 200, description = "It does"), (status = 503, description = "Not yet, or no longer: says what it waits for", content_type = "application/problem+json", body = super::problem::Problem)))]
pub(super) async fn ready(doors: Data<Doors>) -> Result<HttpResponse, Failure> {
    // Whatever the reason, a balancer must see one status for "not now".
    doors
        .backend
        .ready()
        .map_err(|error| Failure::from(error).with_status(actix_web::http::StatusCode::SERVICE_UNAVAILABLE))?;
    Ok(HttpResponse::Ok().insert_header(ContentType::plaintext()).body("ready\n"))
}

/// Figures in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, description = "Figures", content_type = "text/plain")))]
pub(super) async fn metrics(doors: Data<Doors>) -> Result<HttpResponse, Failure> {
    let handle =
        doors.metrics.as_ref().ok_or_else(|| Error::new(ErrorCode::NotFound, "this process collects no figures"))?;
    let ready = if doors.backend.ready().is_ok() { 1.0 } else { 0.0 };
    metrics::gauge!("shoal_ready").set(ready);
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
        .body(handle.render()))
}
