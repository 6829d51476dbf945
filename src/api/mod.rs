//! HTTP in, HTTP out: a file for each group of routes, and what they share.

pub mod admin;
pub mod compute;
pub mod docs;
pub mod environments;
pub mod results;
pub mod routes;

pub mod error;
mod input;

use axum::Router;
use axum::extract::Request;
use axum::http::header::CONTENT_DISPOSITION;
use axum::http::{HeaderName, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{Any, CorsLayer};

use crate::telemetry;
use error::ApiError;

/// Lets pages of any site call a group, as the old service did; not for the administrators' group.
pub fn with_cors(group: Router) -> Router {
    let methods = [Method::GET, Method::POST, Method::PUT, Method::DELETE];
    let exposed: [HeaderName; 1] = [CONTENT_DISPOSITION];
    let cors = CorsLayer::new().allow_origin(Any).allow_headers(Any).allow_methods(methods).expose_headers(exposed);
    // What answers a wrong method has to be there before the layer: else it stands outside, and answers preflights.
    group.method_not_allowed_fallback(method_not_allowed).layer(cors)
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "This route does not know this method; see /api/v1/docs/")
}

/// Makes groups of routes a whole: paths as callers write them, an answer in JSON also where there is no such
/// route, where the method is wrong, and where a handler panics; a line in the log for each request.
pub fn finish(groups: impl IntoIterator<Item = Router>) -> Router {
    let routes = groups
        .into_iter()
        .fold(Router::new(), Router::merge)
        .fallback(|| async { ApiError::not_found("There is no such route; see /api/v1/docs/") })
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| panicked()))
        .layer(axum::middleware::from_fn(telemetry::log_requests));
    // The path has to be right before the router looks at it.
    Router::new().fallback_service(routes.map_request(plain_path))
}

/// Drops what stands before the path that this service knows (an API Gateway stage, a base path) and counts
/// repeated slashes as one (contract: `clients.md`, "Addresses").
fn plain_path(mut request: Request) -> Request {
    let path = request.uri().path();
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let begin = match segments.windows(2).position(|pair| pair == ["api", "v1"]) {
        Some(begin) => begin,
        None if segments.last() == Some(&"spec") => segments.len() - 1,
        None => 0,
    };
    // The documentation's page has a slash at its end, by which its files are found; operations have none.
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

fn panicked() -> Response {
    tracing::error!("a handler panicked");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "An internal error occurred; it has been logged").into_response()
}
