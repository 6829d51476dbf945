//! Start, follow, stop and delete jobs: /compute and /runningjobs.

mod change;
pub(super) mod delete;
pub(super) mod running_jobs;
pub(super) mod start;
pub(super) mod status;
pub(super) mod stop;
pub(super) mod valid_until;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::error::ApiError;
use super::input::Params;
use crate::config::Config;
use crate::db::Database;
use crate::domain::{AgreementId, Job, JobId, Owner, Status, StopRequest};
use crate::kubernetes::Cluster;

/// The most jobs in one answer, and the default.
const MAX_LISTED_JOBS: i64 = 5_000;
/// How long a request waits for the cluster. The reaper does what is not done before that.
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
    Router::new()
        .route("/api/v1/operator/compute", compute)
        .route("/api/v1/operator/runningjobs", get(running_jobs::running_jobs))
        .with_state(Compute { config, db, cluster })
}

/// A job's status.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// The agreement that the job serves.
    agreement_id: AgreementId,
    /// The job's id: 32 hex digits without dashes.
    job_id: JobId,
    /// The account that the job belongs to.
    owner: Option<Owner>,
    /// The code of the job's state.
    status: Option<Status>,
    /// The text of the job's state.
    #[schema(example = "Job finished")]
    status_text: String,
    /// When the job was accepted: seconds since the epoch, UTC, with 6 decimals.
    #[schema(example = "1795300414.039237")]
    date_created: Option<String>,
    /// When it finished, in the same form, or null.
    date_finished: Option<String>,
    /// Empty text while there are none, then a list of the outputs.
    results: PublishedOutputs,
    /// 0 none, 1 a stop was requested, 2 over its time limit.
    #[schema(value_type = i16, example = 0)]
    stopreq: StopRequest,
    /// 1 once the job was deleted or its outputs have expired, else 0.
    #[schema(example = 0)]
    removed: u8,
    /// The algorithm's DID, or `raw`.
    #[serde(rename = "algoDID")]
    #[schema(example = "raw")]
    algo_did: String,
    /// The inputs' DIDs.
    #[serde(rename = "inputDID")]
    input_did: Vec<String>,
    /// Why the reaper ended the job or one of its steps, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// What a job has published: empty text while there is nothing, then one entry for each output.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum PublishedOutputs {
    /// Nothing yet.
    None(&'static str),
    /// The outputs in the order of their indices, without their URLs.
    List(Vec<Value>),
}

impl From<Job> for JobStatus {
    fn from(job: Job) -> Self {
        Self {
            status_text: status_text(&job),
            agreement_id: job.agreement_id,
            job_id: job.id,
            owner: job.owner,
            status: job.status,
            date_created: job.date_created,
            date_finished: job.date_finished,
            results: job.outputs.map_or(PublishedOutputs::None(""), PublishedOutputs::List),
            stopreq: job.stop_requested,
            removed: job.removed.into(),
            algo_did: job.summary.algo_did,
            input_did: job.summary.input_dids,
            reason: job.reason,
        }
    }
}

/// The engine's text, which may end in a space, or else that of the contract.
fn status_text(job: &Job) -> String {
    let of_contract = || job.status.map(Status::text).unwrap_or_default();
    job.status_text.as_deref().map_or_else(of_contract, str::trim).to_owned()
}

/// `limit` (docs/contract/http.md, "Lists").
fn limit(params: &Params) -> Result<i64, ApiError> {
    Ok(params.count("limit")?.unwrap_or(MAX_LISTED_JOBS).min(MAX_LISTED_JOBS))
}

/// `offset`
fn offset(params: &Params) -> Result<i64, ApiError> {
    Ok(params.count("offset")?.unwrap_or(0))
}
