//! About this service: /, /spec and /api/v1/docs/.

use std::sync::Arc;

use axum::Router;
use axum::extract::{FromRef, Path, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, LOCATION};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa_swagger_ui::Config as SwaggerUi;

use super::about;
use super::error::ApiError;
use super::openapi::spec;
use super::with_cors;
use crate::config::Config;

/// The state of these routes.
#[derive(Clone)]
pub struct Docs {
    config: Arc<Config>,
    swagger_ui: Arc<SwaggerUi<'static>>,
}

impl FromRef<Docs> for Arc<Config> {
    fn from_ref(docs: &Docs) -> Self {
        docs.config.clone()
    }
}

/// The routes of the function `docs`.
pub fn router(config: Arc<Config>) -> Router {
    // Relative to the page, so that it is right behind a stage prefix too. No validator: it would be on another site.
    let swagger_ui = SwaggerUi::from("../../../spec").validator_url("none").display_request_duration(true);
    let router = Router::new()
        .route("/", get(about::about))
        .route("/spec", get(spec))
        // A gateway may drop the slash of /api/v1/docs/: a redirect to that would not end.
        .route("/api/v1/docs", get(|| async { (StatusCode::PERMANENT_REDIRECT, [(LOCATION, "docs/index.html")]) }))
        .route("/api/v1/docs/", get(|docs: State<Docs>| page(docs, Path("index.html".to_owned()))))
        .route("/api/v1/docs/{*file}", get(page))
        .with_state(Docs { config, swagger_ui: Arc::new(swagger_ui) });
    with_cors(router, CONTENT_DISPOSITION)
}

async fn page(State(docs): State<Docs>, Path(file): Path<String>) -> Result<Response, ApiError> {
    let found = utoipa_swagger_ui::serve(&file, docs.swagger_ui).map_err(|error| {
        tracing::error!(error, "the documentation's files cannot be served");
        ApiError::internal()
    })?;
    let file = found.ok_or_else(|| ApiError::not_found("The documentation has no such file"))?;
    let content_type =
        HeaderValue::from_str(&file.content_type).unwrap_or(HeaderValue::from_static("application/octet-stream"));
    Ok(([(CONTENT_TYPE, content_type)], file.bytes.into_owned()).into_response())
}
