//! /metrics, for Prometheus: what the server has measured, and what the database holds.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::db::{Database, DatabaseError};
use crate::telemetry::metric;
use crate::telemetry::prometheus::{CONTENT_TYPE, Families, Prometheus};

/// The route /metrics.
pub fn routes(prometheus: Prometheus, db: Database) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state((prometheus, db))
}

async fn metrics(State((prometheus, db)): State<(Prometheus, Database)>) -> Response {
    let mut families = Families::default();
    let pool = db.pool_status();
    families.add(&metric::DATABASE_CONNECTIONS, &vec![], pool.connections as f64);
    families.add(&metric::DATABASE_CONNECTIONS_IDLE, &vec![], pool.idle as f64);
    families.add(&metric::DATABASE_WAITING, &vec![], pool.waiting as f64);
    let up = match read(&db, &mut families).await {
        Ok(()) => 1.0,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the database could not be read for /metrics");
            0.0
        }
    };
    families.add(&metric::DATABASE_UP, &vec![], up);
    match prometheus.text(&families) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Adds what the database holds.
async fn read(db: &Database, families: &mut Families) -> Result<(), DatabaseError> {
    let waits = db.waits().await?;
    families.add(&metric::OLDEST_UNREGISTERED, &vec![], waits.unregistered);
    families.add(&metric::OLDEST_WAITING, &vec![], waits.waiting);
    for (namespace, seconds) in db.environment_silences().await? {
        families.add(&metric::ENVIRONMENT_SILENCE, &vec![("namespace", namespace.to_string())], seconds);
    }
    let sweeps = db.sweep_counts().await?;
    families.add(&metric::REAPER_RUNS, &vec![], sweeps.runs as f64);
    if let Some(seconds) = sweeps.silence {
        families.add(&metric::REAPER_SILENCE, &vec![], seconds);
    }
    for (kind, count) in sweeps.duties {
        let labels = vec![("kind", kind)];
        families.add(&metric::REAPER_FOUND, &labels, count.found as f64);
        families.add(&metric::REAPER_DONE, &labels, count.done as f64);
        families.add(&metric::REAPER_FAILED, &labels, count.failed as f64);
        families.add(&metric::REAPER_LEFT, &labels, count.left as f64);
    }
    Ok(())
}
