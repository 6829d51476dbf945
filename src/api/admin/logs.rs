//! GET /logs: shows the log of a job's step.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use utoipa::IntoParams;

use super::{Admin, text};
use crate::api::error::{ApiError, CommonErrors, ErrorBody};
use crate::api::input::{FromParams, Input, Params};
use crate::domain::{Component, JobId};
use crate::kubernetes::LogPart;

/// The parameters of GET /logs.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::api) struct LogsRequest {
    /// The job.
    job_id: JobId,
    /// The step of the job.
    component: Component,
}

impl<S> FromParams<S> for LogsRequest {
    const CALL: &'static str = "GET:/logs";

    fn read(params: &Params, _: &S) -> Result<Self, ApiError> {
        let job_id = params.required("jobId", Params::text).map(JobId::stored)?;
        let component = Component::parse(params.required("component", Params::text)?);
        let component = component.ok_or_else(|| {
            ApiError::bad_request("\"component\" must be one of configure, algorithm, filter and publish")
        })?;
        Ok(Self { job_id, component })
    }
}

/// Show the log of a job's step.
///
/// Returns at most the first 5 MiB.
#[utoipa::path(
    get,
    path = "/api/v1/operator/logs",
    tag = "admin",
    params(LogsRequest, ("Admin" = Option<String>, Header, description = "One of ALLOWED_ADMINS.")),
    responses(
        (status = 200, description = "The log.", body = String, content_type = "text/plain; charset=utf-8"),
        (status = 400, description = "A parameter is missing or wrong, or the header is missing.",
            content((String = "text/plain"), (ErrorBody = "application/json"))),
        (status = 401, description = "The header is wrong.", body = String, content_type = "text/plain"),
        (status = 403, description = "LOCAL_ADMIN is 1, and the request is not local.", body = ErrorBody),
        (status = 404, description = "There is no such pod.", body = String, content_type = "text/plain"),
        CommonErrors,
    )
)]
pub(in crate::api) async fn logs(
    State(state): State<Admin>,
    Input(request): Input<LogsRequest>,
) -> Result<Response, ApiError> {
    let LogsRequest { job_id, component } = &request;
    let log = match job_id.can_name_objects() {
        true => find_log(&state, &request).await?,
        false => None,
    };
    Ok(match log {
        Some(log) => text(StatusCode::OK, String::from_utf8_lossy(&log)),
        None => {
            let message = format!("Pod with workflow={job_id} and component={} not found", component.as_str());
            text(StatusCode::NOT_FOUND, message)
        }
    })
}

/// Reads the log of the step's pod, or else the end of it that the reaper kept when it deleted the pod.
async fn find_log(state: &Admin, request: &LogsRequest) -> Result<Option<Vec<u8>>, ApiError> {
    let LogsRequest { job_id, component } = request;
    let namespace = state.namespace(job_id).await?;
    match state.cluster.read_log(job_id, *component, &namespace, LogPart::Start).await? {
        Some(log) => Ok(Some(log)),
        None => Ok(state.db.kept_log(job_id, *component).await?),
    }
}
