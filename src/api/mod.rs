//! The HTTP API: a file for each endpoint, and what they share.

mod about;
pub mod admin;
pub mod compute;
pub mod docs;
pub mod environments;
pub mod results;

pub mod error;
mod input;
pub mod openapi;
#[cfg(test)]
mod properties;
pub mod routes;
mod schemas;

use std::any::Any;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{self, CorsLayer};

use crate::telemetry;
use error::ApiError;

/// Allows pages of any site to call these routes and to read one of their headers, as the Python service did. Not for the
/// admin routes.
fn with_cors(group: Router, exposed: HeaderName) -> Router {
    let methods = [Method::GET, Method::POST, Method::PUT, Method::DELETE];
    let cors = CorsLayer::new()
        .allow_origin(cors::Any)
        .allow_headers(cors::Any)
        .allow_methods(methods)
        .expose_headers([exposed]);
    // Before the layer: otherwise the fallback would be outside it, and answer preflights.
    group.method_not_allowed_fallback(method_not_allowed).layer(cors)
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "This route does not have this method; see /api/v1/docs/")
}

/// Merges groups of routes, and adds what all of them need: paths as callers write them, JSON errors for unknown
/// routes, wrong methods and panics, and a log line for each request.
pub fn finish(groups: impl IntoIterator<Item = Router>) -> Router {
    let routes = groups
        .into_iter()
        .fold(Router::new(), Router::merge)
        .fallback(|| async { ApiError::not_found("There is no such route; see /api/v1/docs/") })
        .method_not_allowed_fallback(method_not_allowed)
        .layer(catch_panics())
        .layer(axum::middleware::from_fn(telemetry::log_requests));
    // The path has to be changed before the router reads it.
    Router::new().fallback_service(routes.map_request(plain_path))
}

/// Removes a prefix of the service's own path (an API Gateway stage, a base path) and repeated slashes
/// (docs/contract/callers.md, "URLs").
fn plain_path(mut request: Request) -> Request {
    let path = request.uri().path();
    // As nearly all callers write it.
    if path.starts_with("/api/v1/") && !path.ends_with('/') && !path.contains("//") {
        return request;
    }
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let begin = match segments.windows(2).position(|pair| pair == ["api", "v1"]) {
        Some(begin) => begin,
        None if segments.last() == Some(&"spec") => segments.len() - 1,
        None if is_prefix(&segments) => segments.len(),
        None => 0,
    };
    // The documentation's page needs its slash at the end, because its files are relative to it.
    let slash = if path.ends_with('/') && segments.last() == Some(&"docs") { "/" } else { "" };
    let mut plain = format!("/{}{slash}", segments[begin..].join("/"));
    if let Some(query) = request.uri().query() {
        plain.push('?');
        plain.push_str(query);
    }
    if let Ok(uri) = plain.parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    request
}

/// Returns whether a path is a prefix alone, which shows `/`: one segment that can be the name of an API Gateway stage
/// (<https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-stages.html>).
fn is_prefix(segments: &[&str]) -> bool {
    let in_stage_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    matches!(segments, [stage] if *stage != "api" && stage.bytes().all(in_stage_name))
}

/// Answers with a 500 where a handler panics.
fn catch_panics() -> CatchPanicLayer<fn(Box<dyn Any + Send>) -> Response> {
    CatchPanicLayer::custom(|_| {
        tracing::error!("a handler panicked");
        ApiError::internal().into_response()
    })
}
