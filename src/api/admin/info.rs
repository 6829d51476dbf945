//! GET /info: shows a job's WorkFlow object.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use utoipa::IntoParams;

use super::{Admin, text};
use crate::api::error::{ApiError, CommonErrors, ErrorBody};
use crate::api::input::{FromParams, Input, Params};
use crate::domain::JobId;

/// The parameters of GET /info.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::api) struct InfoRequest {
    /// The job.
    job_id: JobId,
}

impl<S> FromParams<S> for InfoRequest {
    const CALL: &'static str = "GET:/info";

    fn read(params: &Params, _: &S) -> Result<Self, ApiError> {
        Ok(Self { job_id: params.required("jobId", Params::text).map(JobId::stored)? })
    }
}

/// Show a job's WorkFlow object.
#[utoipa::path(
    get,
    path = "/api/v1/operator/info",
    tag = "admin",
    params(InfoRequest, ("Admin" = Option<String>, Header, description = "One of ALLOWED_ADMINS.")),
    responses(
        (status = 200, description = "The object, as the cluster has it.", body = Object),
        (status = 400, description = "There is no such object, or the parameter or the header is missing.",
            content((String = "text/plain"), (ErrorBody = "application/json"))),
        (status = 401, description = "The header is wrong.", body = String, content_type = "text/plain"),
        (status = 403, description = "LOCAL_ADMIN is 1, and the request is not local.", body = ErrorBody),
        CommonErrors,
    )
)]
pub(in crate::api) async fn info(
    State(state): State<Admin>,
    Input(InfoRequest { job_id }): Input<InfoRequest>,
) -> Result<Response, ApiError> {
    let found = match job_id.can_name_objects() {
        true => {
            let namespace = state.namespace(&job_id).await?;
            state.cluster.get_workflow(&job_id, &namespace).await?
        }
        false => None,
    };
    Ok(match found {
        Some(workflow) => Json(workflow).into_response(),
        None => text(StatusCode::BAD_REQUEST, format!("The jobId {job_id} is not registered in your namespace.")),
    })
}
