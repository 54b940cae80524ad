//! REST: one file per resource. A handler reads its request, asks the [`Backend`] and writes the answer; what fails becomes
//! a problem document.

mod answer;
mod cluster;
mod evolve;
mod health;
mod index;
mod ingest;
mod openapi;
mod origin;
pub mod problem;
mod queries;
mod running;
mod sql;

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use metrics_exporter_prometheus::PrometheusHandle;
use shoal_kernel::{Error, ErrorCode, NodeId, QueryId};
use tokio::sync::Semaphore;

use crate::backend::Backend;
use crate::server::Limits;
use problem::Failure;
use running::Running;

pub use openapi::document as openapi_document;
pub use origin::same_origin;

/// The header that names a query.
pub const QUERY_ID: &str = "x-shoal-query-id";

/// What all handlers share.
pub struct Doors {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) limits: Limits,
    pub(crate) running: Running,
    /// Bytes of ingest bodies that may be in memory, in KiB.
    pub(crate) ingest_kib: Arc<Semaphore>,
    pub(crate) ws_sessions: Arc<Semaphore>,
    metrics: Option<PrometheusHandle>,
}

impl Doors {
    /// The doors of one node.
    pub fn new(backend: Arc<dyn Backend>, limits: Limits, metrics: Option<PrometheusHandle>) -> Self {
        Self {
            backend,
            running: Running::default(),
            ingest_kib: Arc::new(Semaphore::new(limits.ingest_memory_bytes_max.div_ceil(1024))),
            ws_sessions: Arc::new(Semaphore::new(limits.ws_sessions_max)),
            limits,
            metrics,
        }
    }

    /// A query id as clients write it: zeros for the node mean this one.
    fn parse_query_id(&self, text: &str) -> Option<QueryId> {
        let id: QueryId = text.parse().ok()?;
        let here = id.coordinator() == NodeId(0);
        Some(if here { QueryId::new(self.backend.node(), id.0 as u64) } else { id })
    }
}

/// All routes.
pub fn routes(config: &mut web::ServiceConfig) {
    let only = |route: actix_web::Route| {
        move |path: &str| web::resource(path).route(route).default_service(web::to(method_not_allowed))
    };
    config
        .service(only(web::get().to(index::index))("/"))
        .service(only(web::get().to(health::alive))("/healthz"))
        .service(only(web::get().to(health::ready))("/readyz"))
        .service(only(web::get().to(health::metrics))("/metrics"))
        .service(
            web::resource("/api/v1/sql")
                .route(web::post().to(sql::post))
                .route(web::get().to(sql::get))
                .default_service(web::to(method_not_allowed)),
        )
        .service(only(web::post().to(ingest::post))("/api/v1/tables/{table}/ingest"))
        .service(only(web::get().to(queries::list))("/api/v1/queries"))
        .service(
            web::resource("/api/v1/queries/{id}")
                .route(web::get().to(queries::get))
                .route(web::delete().to(queries::delete))
                .default_service(web::to(method_not_allowed)),
        )
        .service(only(web::get().to(cluster::get))("/api/v1/cluster"))
        .service(only(web::post().to(cluster::change_node))("/api/v1/cluster/nodes/{id}/{change}"))
        .service(only(web::get().to(cluster::balance))("/api/v1/cluster/balance"))
        .service(only(web::post().to(cluster::change_balance))("/api/v1/cluster/balance/{change}"))
        .service(only(web::get().to(openapi::get))("/api/v1/openapi.json"))
        .service(only(web::get().to(crate::ws::open))("/api/v1/ws"))
        .default_service(web::to(not_found));
}

async fn method_not_allowed(request: HttpRequest) -> Result<HttpResponse, Failure> {
    Err(Failure::invalid(format!("{} does not take {}", request.path(), request.method()))
        .with_status(actix_web::http::StatusCode::METHOD_NOT_ALLOWED))
}

async fn not_found(request: HttpRequest) -> Result<HttpResponse, Failure> {
    Err(Error::new(ErrorCode::NotFound, format!("there is nothing at {}", request.path()))
        .with_help("GET / lists the doors")
        .into())
}

/// The parameters behind the `?`, each known one at most once.
fn parameters(request: &HttpRequest, known: &[&str]) -> Result<std::collections::BTreeMap<String, String>, Failure> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
        .map_err(|error| Failure::invalid(format!("the parameters cannot be read: {error}")))?;
    let mut parameters = std::collections::BTreeMap::new();
    for (name, value) in pairs.into_inner() {
        if !known.contains(&name.as_str()) {
            return Err(Error::new(ErrorCode::InvalidRequest, format!("unknown parameter '{name}'"))
                .with_help(shoal_kernel::suggest::help(&name, known.iter().copied()))
                .into());
        }
        if parameters.insert(name.clone(), value).is_some() {
            return Err(Failure::invalid(format!("parameter '{name}' is given twice")));
        }
    }
    Ok(parameters)
}
