//! PUT /compute: stops jobs.

use axum::extract::{RawQuery, State};

use super::change::{ChangeRequest, change};
use super::{Compute, JobStatus, Listing};
use crate::api::error::{ApiError, CommonErrors, ErrorBody};
use crate::api::input::{FromParams, Input, Params};
use crate::db::Change;

/// A request to stop jobs.
#[derive(Debug)]
pub(in crate::api) struct StopJobsRequest(ChangeRequest);

impl FromParams<Compute> for StopJobsRequest {
    const CALL: &'static str = "PUT:/compute";

    fn read(params: &Params, state: &Compute) -> Result<Self, ApiError> {
        ChangeRequest::read(params, state).map(Self)
    }
}

/// Stop jobs.
///
/// Requests a stop of every unfinished job that matches, and ends its algorithm; what the algorithm has written so far
/// is published. With SIGNATURE_REQUIRED=1 only jobs of the signer are changed. Returns all that match. After a 5xx or no
/// response, the same request may be sent again within NONCE_WINDOW. The parameters
/// may be sent in the query string or in a JSON body.
#[utoipa::path(
    put,
    path = "/api/v1/operator/compute",
    tag = "compute",
    params(ChangeRequest),
    request_body(content = Option<ChangeRequest>, description = "The same parameters, if the query string is empty."),
    responses(
        (status = 200, description = "The jobs that match, newest first.", body = Vec<JobStatus>, headers(
            ("Link" = String, description = "`<?…offset=N>; rel=\"next\"`, if the list goes on"),
        )),
        (status = 400, description = "A parameter, the signature or the nonce is refused; `error` says why.",
            body = ErrorBody),
        (status = 401, description = "The signer is not one of ALLOWED_PROVIDERS.", body = ErrorBody),
        CommonErrors,
    )
)]
pub(in crate::api) async fn stop(
    State(state): State<Compute>,
    RawQuery(query): RawQuery,
    Input(StopJobsRequest(request)): Input<StopJobsRequest>,
) -> Result<Listing<JobStatus>, ApiError> {
    change(state, Change::Stop, request, query.as_deref()).await
}
