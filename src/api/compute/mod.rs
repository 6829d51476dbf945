//! Start, list, stop and delete jobs: /compute and /runningjobs.

mod change;
pub(super) mod delete;
mod job_status;
mod listing;
pub(super) mod running_jobs;
pub(super) mod start;
pub(super) mod status;
pub(super) mod stop;
pub(super) mod valid_until;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::LINK;
use axum::routing::get;

use super::error::ApiError;
use super::input::Params;
use super::with_cors;
use crate::config::Config;
use crate::db::Database;
use crate::kubernetes::Cluster;
use job_status::{JobStatus, status_text};
use listing::Listing;

/// The maximum number of jobs in one response, and the default of `limit`.
const MAX_LISTED_JOBS: i64 = 5_000;
/// How long a request waits for the cluster. The reaper does what is not done in that time.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(3);

/// The state of these routes.
#[derive(Clone)]
pub struct Compute {
    config: Arc<Config>,
    db: Database,
    cluster: Cluster,
}

/// The routes of the function `compute`.
pub fn router(config: Arc<Config>, db: Database, cluster: Cluster) -> Router {
    let compute = get(status::status).post(start::start).put(stop::stop).delete(delete::delete);
    let router = Router::new()
        .route("/api/v1/operator/compute", compute)
        .route("/api/v1/operator/runningjobs", get(running_jobs::running_jobs))
        .with_state(Compute { config, db, cluster });
    with_cors(router, LINK)
}

/// `limit` (docs/contract/http.md, "Lists").
fn limit(params: &Params) -> Result<i64, ApiError> {
    Ok(params.count("limit")?.unwrap_or(MAX_LISTED_JOBS).min(MAX_LISTED_JOBS))
}

/// `offset` (docs/contract/http.md, "Lists").
fn offset(params: &Params) -> Result<i64, ApiError> {
    Ok(params.count("offset")?.unwrap_or(0))
}
