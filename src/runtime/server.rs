//! All routes as one server.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use tower::util::MapResponseLayer;

use super::health::{self, Health};
use super::{BoxError, cluster, db, metrics, storage};
use crate::api::admin::Admins;
use crate::api::{self, admin, compute, docs, environments, results};
use crate::config::Config;
use crate::db::Database;
use crate::kubernetes::Cluster;
use crate::telemetry::prometheus::Prometheus;
use crate::telemetry::{self, Format};

/// How long requests in flight may take to end after SIGTERM.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may take to send a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// All routes as one router.
pub fn all_routes(config: Arc<Config>, db: Database, cluster: Cluster, admins: Admins) -> Result<Router, BoxError> {
    let storage = storage(&config)?;
    Ok(api::finish([
        compute::router(config.clone(), db.clone(), cluster.clone()),
        results::router(config.clone(), db.clone(), storage),
        environments::router(db.clone()),
        docs::router(config.clone()),
        admin::router(config, db, cluster, admins),
    ]))
}

/// Serves all routes until SIGTERM or SIGINT: then /readyz fails, and after SHUTDOWN_DELAY no connection is accepted any
/// more, and the requests in flight are completed.
pub async fn serve() -> Result<(), BoxError> {
    let (config, server) = Config::of_server()?;
    let config = Arc::new(config);
    telemetry::init(&config.log, Format::Text)?;
    let admins = Admins::configured(&config.access);
    match &admins {
        Admins::AnyoneLocal => {
            tracing::warn!("LOCAL_ADMIN is 1: the admin routes accept every request that is sent to localhost")
        }
        Admins::Listed(admins) if admins.is_empty() => {
            tracing::warn!("ALLOWED_ADMINS names nobody: the admin routes refuse every request")
        }
        Admins::Listed(_) => {}
    }
    let db = db(&config)?;
    let (health, prometheus) = (Health::new(db.clone()), Prometheus::default());
    let mut routes = all_routes(config.clone(), db.clone(), cluster(&config), admins)?
        .merge(health::routes(health.clone()))
        .layer(MapResponseLayer::new(health::close_connections(health.clone())));
    if let Some(port) = server.metrics_port {
        routes = routes.layer(Extension(prometheus.clone()));
        let listener = listen(server.host, port, "METRICS_PORT")?;
        tracing::info!(address = %listener.local_addr()?, "serving /metrics");
        tokio::spawn(http_server(listener)?.serve(metrics::routes(prometheus, db).into_make_service()));
    }
    let listener = listen(server.host, server.port, "PORT")?;
    tracing::info!(address = %listener.local_addr()?, "listening");

    let handle = axum_server::Handle::new();
    let serving = http_server(listener)?.handle(handle.clone()).serve(routes.into_make_service());
    tokio::spawn(async move {
        shutdown_signal().await;
        tracing::info!(delay = ?server.shutdown_delay, "shutting down after the delay and the requests in flight");
        health.drain();
        tokio::time::sleep(server.shutdown_delay).await;
        handle.graceful_shutdown(Some(SHUTDOWN_TIMEOUT));
    });
    Ok(serving.await?)
}

/// Listens on a port that the variable sets.
fn listen(host: IpAddr, port: u16, variable: &str) -> Result<TcpListener, BoxError> {
    let address = SocketAddr::from((host, port));
    let listener = TcpListener::bind(address)
        .map_err(|error| format!("cannot listen on {address}, which HOST and {variable} set: {error}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn http_server(listener: TcpListener) -> Result<axum_server::Server<SocketAddr>, BoxError> {
    let mut server = axum_server::from_tcp(listener)?;
    server.http_builder().http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    Ok(server)
}

/// Waits for SIGTERM or SIGINT.
async fn shutdown_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let received = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = received(SignalKind::terminate()) => {}
        _ = received(SignalKind::interrupt()) => {}
    }
}
