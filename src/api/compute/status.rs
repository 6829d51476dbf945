//! GET /compute: lists jobs by agreement, id or owner.

use axum::Json;
use axum::extract::State;
use utoipa::IntoParams;

use super::{Compute, JobStatus, limit, offset};
use crate::api::error::{ApiError, CommonErrors, ErrorBody};
use crate::api::input::{FromParams, Input, Params};
use crate::db::{JobFilter, ListRange};
use crate::domain::{AgreementId, JobId, Owner};

/// The parameters of GET /compute. At least one of agreementId, jobId and owner is needed; all that are given must
/// match.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::api) struct StatusRequest {
    /// Only jobs of this agreement.
    agreement_id: Option<AgreementId>,
    /// Only the job with this id.
    job_id: Option<JobId>,
    /// Only jobs of this owner.
    owner: Option<Owner>,
    /// The maximum number of jobs in the response; values above 5,000 count as 5,000.
    #[param(required = false, minimum = 0, default = 5000)]
    limit: i64,
    /// The number of jobs that the response skips.
    #[param(required = false, minimum = 0, default = 0)]
    offset: i64,
}

impl<S> FromParams<S> for StatusRequest {
    const CALL: &'static str = "GET:/compute";

    fn read(params: &Params, _: &S) -> Result<Self, ApiError> {
        let agreement_id = params.id("agreementId")?;
        let job_id = params.id("jobId")?;
        let owner = params.id("owner")?;
        if agreement_id.is_none() && job_id.is_none() && owner.is_none() {
            return Err(ApiError::bad_request("You have to specify one of agreementId, jobId or owner"));
        }
        Ok(Self { agreement_id, job_id, owner, limit: limit(params)?, offset: offset(params)? })
    }
}

/// Show the status of jobs.
///
/// Newest first; an empty list if none matches. The parameters may also be sent in a JSON body.
#[utoipa::path(
    get,
    path = "/api/v1/operator/compute",
    tag = "compute",
    params(StatusRequest),
    responses(
        (status = 200, description = "The jobs.", body = Vec<JobStatus>),
        (status = 400, description = "None of agreementId, jobId and owner is given, or a parameter cannot be read.",
            body = ErrorBody),
        CommonErrors,
    )
)]
pub(in crate::api) async fn status(
    State(state): State<Compute>,
    Input(request): Input<StatusRequest>,
) -> Result<Json<Vec<JobStatus>>, ApiError> {
    let StatusRequest { agreement_id, job_id, owner, limit, offset } = request;
    let jobs = state.db.list_jobs(JobFilter { agreement_id, job_id, owner }, ListRange { limit, offset }).await?;
    Ok(Json(jobs.into_iter().map(JobStatus::from).collect()))
}
