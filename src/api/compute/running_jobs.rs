//! GET /runningjobs: lists the unfinished jobs.

use axum::extract::{RawQuery, State};
use serde::Serialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{Compute, Listing, limit, offset, status_text};
use crate::api::error::{ApiError, CommonErrors, ErrorBody};
use crate::api::input::{FromParams, Input, Params};
use crate::api::schemas::JobCount;
use crate::db::ListRange;
use crate::domain::{AgreementId, ChainId, Job, JobId, Namespace, Owner, Status};

/// The parameters of GET /runningjobs.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct RunningJobsRequest {
    /// The maximum number of jobs in the response: 5,000, also if it is absent or larger.
    #[param(value_type = Option<JobCount>)]
    limit: i64,
    /// The number of jobs that the response skips; 0 if it is absent.
    #[param(value_type = Option<JobCount>)]
    offset: i64,
}

impl<S> FromParams<S> for RunningJobsRequest {
    const CALL: &'static str = "GET:/runningjobs";

    fn read(params: &Params, _: &S) -> Result<Self, ApiError> {
        Ok(Self { limit: limit(params)?, offset: offset(params)? })
    }
}

/// An unfinished job.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in crate::api) struct RunningJob {
    /// The agreement that the job serves.
    agreement_id: AgreementId,
    /// The job's id.
    job_id: JobId,
    /// The account that the job belongs to.
    owner: Option<Owner>,
    /// The code of the job's state.
    status: Option<Status>,
    /// The text of the job's state.
    status_text: String,
    /// When the job was accepted: seconds since the epoch, UTC, with 6 decimals.
    date_created: Option<String>,
    /// The namespace that the job runs in.
    namespace: Option<Namespace>,
    /// The chain, as it was sent; absent if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ChainId>)]
    chain_id: Option<Value>,
    /// The algorithm's DID, or `raw`.
    #[serde(rename = "algoDID")]
    algo_did: String,
    /// The inputs' DIDs.
    #[serde(rename = "inputDID")]
    input_did: Vec<String>,
}

impl From<Job> for RunningJob {
    fn from(job: Job) -> Self {
        Self {
            status_text: status_text(&job),
            agreement_id: job.agreement_id,
            job_id: job.id,
            owner: job.owner,
            status: job.status,
            date_created: job.date_created,
            namespace: job.namespace,
            chain_id: job.summary.chain_id,
            algo_did: job.summary.algo_did,
            input_did: job.summary.input_dids,
        }
    }
}

/// List the unfinished jobs.
///
/// Oldest first. A response ends before 5 MB. The parameters may also be sent in a JSON body.
#[utoipa::path(
    get,
    path = "/api/v1/operator/runningjobs",
    tag = "compute",
    params(RunningJobsRequest),
    responses(
        (status = 200, description = "The jobs.", body = Vec<RunningJob>, headers(
            ("Link" = String, description = "`<?…offset=N>; rel=\"next\"`, if the list goes on"),
        )),
        (status = 400, description = "A parameter cannot be read.", body = ErrorBody),
        CommonErrors,
    )
)]
pub(in crate::api) async fn running_jobs(
    State(state): State<Compute>,
    RawQuery(query): RawQuery,
    Input(request): Input<RunningJobsRequest>,
) -> Result<Listing<RunningJob>, ApiError> {
    let RunningJobsRequest { limit, offset } = request;
    let page = state.db.list_unfinished(ListRange { limit, offset }).await?;
    Ok(Listing::new(page, query.as_deref()))
}
