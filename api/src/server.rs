//! The HTTP server: actix-web on threads and runtimes of its own, so that a busy node never starves its doors nor they it.

#![allow(clippy::disallowed_methods, reason = "a door owns threads, sockets and timers of the real world")]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actix_web::body::MessageBody;
use actix_web::dev::{ServerHandle, Service, ServiceRequest, ServiceResponse};
use actix_web::middleware::{DefaultHeaders, from_fn};
use actix_web::{App, HttpServer, web};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_actix_web::{DefaultRootSpanBuilder, RootSpanBuilder, TracingLogger};

use crate::backend::Backend;
use crate::http::{self, Doors};

/// Time that answers under way get when the server stops.
const SHUTDOWN_SECONDS: u64 = 10;

/// Time a closed or half-closed connection gets to go away.
const LINGER: Duration = Duration::from_secs(5);
/// How long a connection may rest between two requests: longer than most pools of clients keep one.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// How often histograms give up what they no longer show.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Limits of the doors. Each has a setting of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one ingest body.
    pub ingest_body_bytes_max: usize,
    /// Bytes of one line of an ingest body.
    pub ingest_line_bytes_max: usize,
    /// Bytes of the rows of one ingest body once decoded.
    pub ingest_decoded_bytes_max: usize,
    /// Bytes of all ingest bodies under way.
    pub ingest_memory_bytes_max: usize,
    /// How long a body may stand still.
    pub body_idle: Duration,
    /// HTTP connections.
    pub http_connections_max: usize,
    /// WebSocket sessions.
    pub ws_sessions_max: usize,
    /// Queries of one WebSocket session that run at once.
    pub ws_queries_max: usize,
    /// Bytes of one frame from a WebSocket client.
    pub ws_frame_bytes_max: usize,
    /// How long a WebSocket client may be silent, pongs included.
    pub ws_idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ingest_body_bytes_max: 128 << 20,
            ingest_line_bytes_max: 16 << 20,
            ingest_decoded_bytes_max: 1 << 30,
            ingest_memory_bytes_max: 512 << 20,
            body_idle: Duration::from_secs(60),
            http_connections_max: 4096,
            ws_sessions_max: 1024,
            ws_queries_max: 8,
            ws_frame_bytes_max: 2 << 20,
            ws_idle: Duration::from_secs(60),
        }
    }
}

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where it listens; port 0 takes a free one.
    pub address: SocketAddr,
    /// Threads that serve connections.
    pub workers: usize,
    /// Its limits.
    pub limits: Limits,
}

impl ServerOptions {
    /// A server with every setting at its default.
    pub fn new(address: SocketAddr) -> Self {
        let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        Self { address, workers, limits: Limits::default() }
    }
}

/// A running server.
pub struct Server {
    address: SocketAddr,
    handle: ServerHandle,
    thread: std::thread::JoinHandle<io::Result<()>>,
}

impl Server {
    /// Serves a node's doors on a bound socket.
    ///
    /// # Errors
    /// The socket cannot be listened on, or a thread cannot be started.
    pub fn start(backend: Arc<dyn Backend>, listener: TcpListener, options: &ServerOptions) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let doors = web::Data::new(Doors::new(backend, options.limits, metrics_handle()));
        let (workers, connections_max) = (options.workers.max(1), options.limits.http_connections_max);
        let (started, handle) = std::sync::mpsc::sync_channel(1);
        let serve = move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new()
                        .app_data(doors.clone())
                        .wrap(from_fn(http::same_origin))
                        .wrap(DefaultHeaders::new().add(("x-content-type-options", "nosniff")))
                        .wrap(TracingLogger::<RequestSpan>::new())
                        .wrap_fn(|request, service| {
                            let start = Instant::now();
                            let route = request.match_pattern();
                            let response = service.call(request);
                            async move {
                                let response = response.await;
                                count(route, &response, start.elapsed());
                                response
                            }
                        })
                        .configure(http::routes)
                })
                .workers(workers)
                .keep_alive(KEEP_ALIVE)
                // An answer is written as it comes: its last piece must not wait for the receipt of the one before.
                .tcp_nodelay(true)
                .max_connections(connections_max.div_ceil(workers))
                // A client that goes away must stop its query, and all we see of that is the end of its half.
                .h1_allow_half_closed(false)
                .client_disconnect_timeout(LINGER)
                .shutdown_timeout(SHUTDOWN_SECONDS)
                .disable_signals()
                .listen(listener);
                let server = match server {
                    Ok(server) => server.run(),
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return Ok(());
                    }
                };
                let _ = started.send(Ok(server.handle()));
                if let Some(metrics) = metrics_handle() {
                    actix_web::rt::spawn(async move {
                        loop {
                            actix_web::rt::time::sleep(METRICS_UPKEEP).await;
                            metrics.run_upkeep();
                        }
                    });
                }
                server.await
            })
        };
        let thread = std::thread::Builder::new().name("shoal-http".into()).spawn(serve)?;
        let handle = handle.recv().map_err(|_| io::Error::other("the HTTP server did not start"))??;
        Ok(Self { address, handle, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections and gives answers under way some time to end.
    pub async fn stop(self) {
        self.handle.stop(true).await;
        // The thread ends when the server has; it holds nothing that its end could still lose.
        drop(self.thread);
    }

    /// Drops every connection at once, as a crash would.
    pub async fn abort(self) {
        self.handle.stop(false).await;
        drop(self.thread);
    }
}

/// The process's one recorder of figures, shared by all nodes in it. `None` if the process has installed another.
fn metrics_handle() -> Option<PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new().build_recorder();
            let handle = recorder.handle();
            metrics::set_global_recorder(recorder).ok().map(|()| handle)
        })
        .clone()
}

fn count<B>(route: Option<String>, response: &Result<ServiceResponse<B>, actix_web::Error>, elapsed: Duration) {
    let status = match response {
        Ok(response) => response.status(),
        Err(error) => error.as_response_error().status_code(),
    };
    // Only known routes, so that a scanner cannot make up labels without end.
    let route = route.unwrap_or_else(|| "other".into());
    metrics::histogram!("shoal_http_request_seconds", "route" => route.clone()).record(elapsed.as_secs_f64());
    metrics::counter!("shoal_http_requests_total", "route" => route, "status" => status.as_u16().to_string())
        .increment(1);
}

struct RequestSpan;

impl RootSpanBuilder for RequestSpan {
    fn on_request_start(request: &ServiceRequest) -> tracing::Span {
        tracing_actix_web::root_span!(request, query_id = tracing::field::Empty)
    }

    fn on_request_end<B: MessageBody>(span: tracing::Span, outcome: &Result<ServiceResponse<B>, actix_web::Error>) {
        DefaultRootSpanBuilder::on_request_end(span, outcome);
    }
}
