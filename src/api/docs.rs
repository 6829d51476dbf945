//! What the service is and how it is called: /, /spec and /api/v1/docs/.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};
use utoipa_swagger_ui::Config as SwaggerUi;

use super::{admin, compute, environments, results};
use crate::api::error::ApiError;
use crate::config::Config;

/// The OpenAPI document, made from the handlers' own types. The path of its server is relative to where the
/// document lies, so that it is right behind a stage prefix too.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "operator-service",
        description = "Ocean Protocol Compute-to-Data: start, follow, stop and delete compute jobs, and fetch their \
            results.\n\nParameters are read from the query string if it holds anything, otherwise from a JSON object in \
            the body, whatever the method.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "./", description = "This installation")),
    paths(
        root,
        spec,
        compute::start,
        compute::status,
        compute::stop,
        compute::delete,
        compute::running_jobs,
        results::get_result,
        environments::environments,
        admin::pgsqlinit,
        admin::info,
        admin::list,
        admin::logs,
    ),
    tags(
        (name = "compute", description = "Jobs"),
        (name = "results", description = "What jobs have published"),
        (name = "environments", description = "Where jobs can run"),
        (name = "admin", description = "For administrators"),
        (name = "docs", description = "About this service"),
    )
)]
struct Document;

/// The OpenAPI document (3.1).
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// What the group needs.
#[derive(Clone)]
pub struct Docs {
    config: Arc<Config>,
    swagger_ui: Arc<SwaggerUi<'static>>,
}

/// The group's routes.
pub fn router(config: Arc<Config>) -> Router {
    // Relative to the page, so that it is right behind a stage prefix too; and no validator, which is on
    // another site.
    let swagger_ui = SwaggerUi::from("../../../spec").validator_url("none").display_request_duration(true);
    Router::new()
        .route("/", get(root))
        .route("/spec", get(spec))
        // A gateway may drop the slash of /api/v1/docs/: sent there again, a browser would go round in circles.
        .route("/api/v1/docs", get(|| async { (StatusCode::PERMANENT_REDIRECT, [(LOCATION, "docs/index.html")]) }))
        .route("/api/v1/docs/", get(|docs: State<Docs>| page(docs, Path("index.html".to_owned()))))
        .route("/api/v1/docs/{*file}", get(page))
        .with_state(Docs { config, swagger_ui: Arc::new(swagger_ui) })
}

/// What this installation is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// Always `Operator service`.
    #[schema(example = "Operator service")]
    software: &'static str,
    /// The version.
    #[schema(example = "1.0.0")]
    version: &'static str,
    /// OPERATOR_ADDRESS
    address: Option<String>,
    /// ALGO_POD_TIMEOUT in seconds, as text.
    #[schema(example = "3600")]
    algo_time_limit: Option<String>,
    /// STORAGE_EXPIRY in seconds, as text.
    #[schema(example = "604800")]
    storage_expiry: Option<String>,
}

/// Show what this installation is.
#[utoipa::path(get, path = "/", tag = "docs", responses((status = 200, description = "The installation.", body = About)))]
pub(super) async fn root(State(docs): State<Docs>) -> Json<About> {
    Json(About {
        software: "Operator service",
        version: env!("CARGO_PKG_VERSION"),
        address: docs.config.jobs.operator_address.clone(),
        algo_time_limit: docs.config.jobs.time_limit.configured().map(|seconds| seconds.to_string()),
        storage_expiry: docs.config.jobs.storage_expiry.configured().map(|seconds| seconds.to_string()),
    })
}

/// Show this document.
#[utoipa::path(get, path = "/spec", tag = "docs", responses((status = 200, description = "The OpenAPI document.", body = Object)))]
pub(super) async fn spec() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi())
}

async fn page(State(docs): State<Docs>, Path(file): Path<String>) -> Result<Response, ApiError> {
    let found = utoipa_swagger_ui::serve(&file, docs.swagger_ui).map_err(|error| {
        tracing::error!(error, "the documentation's files cannot be served");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "An internal error occurred; it has been logged")
    })?;
    let file = found.ok_or_else(|| ApiError::not_found("The documentation has no such file"))?;
    let content_type =
        HeaderValue::from_str(&file.content_type).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    Ok(([(CONTENT_TYPE, content_type)], file.bytes.into_owned()).into_response())
}
