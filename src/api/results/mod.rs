//! The results of jobs: /getResult.

mod file;
mod file_name;
pub(super) mod get_result;
#[cfg(test)]
mod properties;

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{ALLOW, CONTENT_DISPOSITION};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

pub use file_name::FileName;

use super::{catch_panics, method_not_allowed, with_cors};
use crate::config::Config;
use crate::db::Database;
use crate::storage::Storage;

/// The state of this route.
#[derive(Clone)]
pub struct Results {
    config: Arc<Config>,
    db: Database,
    storage: Storage,
}

/// The route of the function `results`.
pub fn router(config: Arc<Config>, db: Database, storage: Storage) -> Router {
    let state = Results { config, db, storage };
    // GET alone: axum would answer HEAD like it, but a HEAD that uses a nonce is not what its senders expect.
    let only_get = get(get_result::get_result).head(not_offered).fallback(not_offered);
    let router = Router::new()
        .route("/api/v1/operator/getResult", only_get)
        .layer(catch_panics())
        .layer(middleware::map_response(name_errors))
        .with_state(state);
    with_cors(router, CONTENT_DISPOSITION)
}

async fn not_offered() -> Response {
    ([(ALLOW, "GET")], method_not_allowed().await).into_response()
}

/// Gives every error a file name. Provider saves the response under that name, or else under one made of the request's
/// URL, which holds a valid signature, and hands it to its consumer (docs/contract/callers.md, "Replay").
async fn name_errors(mut response: Response) -> Response {
    if response.status().is_client_error() || response.status().is_server_error() {
        let name = HeaderValue::from_static("attachment;filename=error.json");
        response.headers_mut().insert(CONTENT_DISPOSITION, name);
    }
    response
}
