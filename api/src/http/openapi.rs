//! The description of all this for programs, made from the handlers themselves. A copy lies in `api/openapi.json`.

use actix_web::HttpResponse;
use actix_web::http::header::ContentType;
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(title = "Shoal", description = "Distributed SQL for events and time series", license(name = "Apache-2.0")),
    paths(
        super::sql::post,
        super::sql::get,
        super::ingest::post,
        super::queries::list,
        super::queries::get,
        super::queries::delete,
        super::cluster::get,
        super::cluster::change_node,
        super::cluster::balance,
        super::cluster::change_balance,
        super::health::alive,
        super::health::ready,
        super::health::metrics,
        crate::ws::open,
    )
)]
struct Description;

/// The description as JSON.
pub fn document() -> String {
    // Names and strings always serialise.
    Description::openapi().to_pretty_json().unwrap_or_default()
}

pub(super) async fn get() -> HttpResponse {
    HttpResponse::Ok().insert_header(ContentType::json()).body(document())
}
