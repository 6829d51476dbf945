//! GET /list: lists the names of WorkFlow objects.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use utoipa::IntoParams;

use super::Admin;
use crate::api::error::{ApiError, CommonErrors, ErrorBody};
use crate::api::input::{FromParams, Input, Params};
use crate::domain::Namespace;

/// The parameters of GET /list.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct ListRequest {
    /// The environment to list; if absent, DEFAULT_NAMESPACE and every announced environment.
    environment: Option<Namespace>,
}

impl<S> FromParams<S> for ListRequest {
    const CALL: &'static str = "GET:/list";

    fn read(params: &Params, _: &S) -> Result<Self, ApiError> {
        Ok(Self { environment: params.id("environment")? })
    }
}

/// List the names of the WorkFlow objects.
#[utoipa::path(
    get,
    path = "/api/v1/operator/list",
    tag = "admin",
    params(ListRequest, ("Admin" = Option<String>, Header, description = "One of ALLOWED_ADMINS.")),
    responses(
        (status = 200, description = "The names.", body = Vec<String>,
            example = json!(["9f9178dcffd34130a3158ce9ca3d15ff"])),
        (status = 400, description = "A parameter cannot be read, or the header is missing.",
            content((String = "text/plain"), (ErrorBody = "application/json"))),
        (status = 401, description = "The header is wrong.", body = String, content_type = "text/plain"),
        (status = 403, description = "LOCAL_ADMIN is 1, and the request is not local.", body = ErrorBody),
        CommonErrors,
    )
)]
pub(in crate::api) async fn list(
    State(state): State<Admin>,
    Input(request): Input<ListRequest>,
) -> Result<Json<Vec<String>>, ApiError> {
    let namespaces = match request.environment {
        Some(environment) => BTreeSet::from([environment]),
        None => {
            let announced = state.db.environments(None).await?.into_iter().map(|row| row.namespace);
            announced.chain([state.config.jobs.default_namespace.clone()]).collect()
        }
    };
    Ok(Json(state.cluster.workflow_names(namespaces).await?))
}
