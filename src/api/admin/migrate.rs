//! POST /pgsqlinit: brings the database's schema up to date.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::{Admin, text};
use crate::api::error::{ApiError, ErrorBody};

/// Bring the database's schema up to date.
///
/// Idempotent; loses nothing, not even in a database that the Python service made.
#[utoipa::path(
    post,
    path = "/api/v1/operator/pgsqlinit",
    tag = "admin",
    params(("Admin" = Option<String>, Header, description = "One of ALLOWED_ADMINS.")),
    responses(
        (status = 200, description = "Done; empty.", body = String, content_type = "text/plain"),
        (status = 400, description = "The header is missing.", body = String, content_type = "text/plain"),
        (status = 401, description = "The header is wrong.", body = String, content_type = "text/plain"),
        (status = 403, description = "LOCAL_ADMIN is 1, and the request is not local.", body = ErrorBody),
        (status = 500, description = "An error that has been logged.", body = ErrorBody),
        (status = 503, description = "The database is not available, or in use; the request may be sent again.",
            body = ErrorBody),
    )
)]
pub(in crate::api) async fn migrate(State(state): State<Admin>) -> Result<Response, ApiError> {
    state.db.migrate().await?;
    Ok(text(StatusCode::OK, ""))
}
