//! All routes as one server.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;

use super::{BoxError, cluster, db, storage};
use crate::api::admin::Admins;
use crate::api::{self, admin, compute, docs, environments, results};
use crate::config::Config;
use crate::db::Database;
use crate::kubernetes::Cluster;
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

/// Serves all routes until SIGTERM or SIGINT, and then until the requests in flight have ended.
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
    let router = all_routes(config.clone(), db(&config)?, cluster(&config), admins)?;

    let address = server.address();
    let listener = TcpListener::bind(address)
        .map_err(|error| format!("cannot listen on {address}, which HOST and PORT set: {error}"))?;
    listener.set_nonblocking(true)?;
    tracing::info!(address = %listener.local_addr()?, "listening");

    let handle = axum_server::Handle::new();
    let mut server = axum_server::from_tcp(listener)?.handle(handle.clone());
    server.http_builder().http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let serving = server.serve(router.into_make_service());
    tokio::spawn(async move {
        shutdown_signal().await;
        tracing::info!("shutting down after the requests in flight");
        handle.graceful_shutdown(Some(SHUTDOWN_TIMEOUT));
    });
    Ok(serving.await?)
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
