//! The admin routes: /pgsqlinit, /info, /list and /logs.

mod access;
pub(super) mod info;
pub(super) mod list;
pub(super) mod logs;
pub(super) mod migrate;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

pub use access::Admins;

use super::error::ApiError;
use crate::config::Config;
use crate::db::Database;
use crate::domain::{JobId, Namespace, effective_namespace};
use crate::kubernetes::Cluster;

/// The state of these routes.
#[derive(Clone)]
pub struct Admin {
    config: Arc<Config>,
    db: Database,
    cluster: Cluster,
}

/// The routes of the function `admin`.
pub fn router(config: Arc<Config>, db: Database, cluster: Cluster, admins: Admins) -> Router {
    Router::new()
        .route("/api/v1/operator/pgsqlinit", post(migrate::migrate))
        .route("/api/v1/operator/info", get(info::info))
        .route("/api/v1/operator/list", get(list::list))
        .route("/api/v1/operator/logs", get(logs::logs))
        .route_layer(middleware::from_fn(move |request: Request, next: Next| {
            let refusal = admins.refusal(request.headers());
            async move {
                match refusal {
                    Some(refusal) => refusal,
                    None => next.run(request).await,
                }
            }
        }))
        .with_state(Admin { config, db, cluster })
}

impl Admin {
    /// The namespace that the database has for a job, or else the default.
    async fn namespace(&self, job_id: &JobId) -> Result<Namespace, ApiError> {
        let row = self.db.namespace(job_id).await?;
        Ok(effective_namespace(row.as_ref(), &self.config.jobs.default_namespace).clone())
    }
}

/// Makes a response in plain text, as the Python service did on these routes.
fn text(status: StatusCode, body: impl Into<String>) -> Response {
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    (status, [(CONTENT_TYPE, content_type)], body.into()).into_response()
}
