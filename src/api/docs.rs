//! About this service: /, /spec and /api/v1/docs/.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_swagger_ui::Config as SwaggerUi;

use super::error::ApiError;
use super::openapi::openapi;
use crate::config::Config;

/// The state of these routes.
#[derive(Clone)]
pub struct Docs {
    config: Arc<Config>,
    swagger_ui: Arc<SwaggerUi<'static>>,
}

/// The routes of the function `docs`.
pub fn router(config: Arc<Config>) -> Router {
    // Relative to the page, so that it is right behind a stage prefix too. No validator: it would be on another site.
    let swagger_ui = SwaggerUi::from("../../../spec").validator_url("none").display_request_duration(true);
    Router::new()
        .route("/", get(root))
        .route("/spec", get(spec))
        // A gateway may drop the slash of /api/v1/docs/: a redirect to that would not end.
        .route("/api/v1/docs", get(|| async { (StatusCode::PERMANENT_REDIRECT, [(LOCATION, "docs/index.html")]) }))
        .route("/api/v1/docs/", get(|docs: State<Docs>| page(docs, Path("index.html".to_owned()))))
        .route("/api/v1/docs/{*file}", get(page))
        .with_state(Docs { config, swagger_ui: Arc::new(swagger_ui) })
}

/// This installation.
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

/// Show version and settings of this installation.
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
