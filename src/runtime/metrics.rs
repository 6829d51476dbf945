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
    families.add(
        &vec![],
        [
            metric::DATABASE_CONNECTIONS.counted(pool.connections as u64),
            metric::DATABASE_CONNECTIONS_IDLE.counted(pool.idle as u64),
            metric::DATABASE_WAITING.counted(pool.waiting as u64),
        ],
    );
    let read = read(&db, &mut families).await;
    if let Err(error) = &read {
        tracing::warn!(error = error as &dyn std::error::Error, "the database could not be read for /metrics");
    }
    families.add(&vec![], [metric::DATABASE_UP.counted(read.is_ok().into())]);
    match prometheus.text(&families) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Adds what the database holds.
async fn read(db: &Database, families: &mut Families) -> Result<(), DatabaseError> {
    let waits = db.waits().await?;
    let oldest =
        [metric::OLDEST_UNREGISTERED.measured(waits.unregistered), metric::OLDEST_WAITING.measured(waits.waiting)];
    families.add(&vec![], oldest);
    for (namespace, seconds) in db.environment_silences().await? {
        let labels = vec![("namespace", namespace.to_string())];
        families.add(&labels, [metric::ENVIRONMENT_SILENCE.measured(seconds)]);
    }
    let sweeps = db.sweep_counts().await?;
    families.add(&vec![], [metric::REAPER_RUNS.counted(sweeps.runs)]);
    families.add(&vec![], sweeps.silence.map(|seconds| metric::REAPER_SILENCE.measured(seconds)));
    for (kind, count) in sweeps.duties {
        families.add(&vec![("kind", kind)], count.measurements());
    }
    Ok(())
}
