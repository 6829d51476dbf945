//! Whether a server lives and may receive requests: /healthz and /readyz, for Kubernetes and load balancers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::db::Database;

/// The state of a server. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    db: Database,
    draining: Arc<AtomicBool>,
}

impl Health {
    /// A server that is not shutting down.
    pub fn new(db: Database) -> Self {
        Self { db, draining: Arc::default() }
    }

    /// Begins the shutdown: /readyz fails from now on, and connections are closed after their next response, so that
    /// clients connect to another server.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// What the server lacks to answer requests; empty if nothing.
    async fn missing(&self) -> Vec<String> {
        if self.is_draining() {
            return vec!["the server is shutting down".to_owned()];
        }
        match self.db.missing_migrations().await {
            Ok(0) => Vec::new(),
            Ok(missing) => {
                vec![format!("the database's schema lacks {missing} migrations: run operator-service migrate")]
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the database could not be read for /readyz");
                vec![error.to_string()]
            }
        }
    }
}

/// /healthz: the process answers. /readyz: the database can be reached and has the schema that this version needs, and the
/// server is not shutting down; otherwise 503 with what is missing. A newer schema is fine: old and new servers run beside
/// each other during an upgrade.
pub fn routes(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/readyz", get(ready))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> Response {
    let missing = health.missing().await;
    match missing.is_empty() {
        true => Json(json!({ "status": "ready" })).into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "status": "not ready", "missing": missing })))
            .into_response(),
    }
}

/// Has each connection closed after its response while the server is shutting down.
pub fn close_connections(health: Health) -> impl Fn(Response) -> Response + Clone {
    move |mut response| {
        if health.is_draining() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
