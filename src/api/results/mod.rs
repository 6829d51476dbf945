//! The results of jobs: /getResult.

mod file;
mod file_name;
pub(super) mod get_result;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;

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
    Router::new().route("/api/v1/operator/getResult", get(get_result::get_result)).with_state(state)
}
