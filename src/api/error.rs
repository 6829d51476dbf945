//! What a caller is told when a request is not served.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::auth::{AccessError, NonceRefused};
use crate::db::DatabaseError;
use crate::kubernetes::ClusterError;

/// An answer other than the one asked for: a status and a text that says what to change, or that it is
/// safe to try again.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong, and what to do about it.
    #[schema(example = "You have to specify one of agreementId, jobId or owner")]
    error: String,
}

/// What any request that reads parameters and the books may be answered with, for the OpenAPI document.
#[derive(Debug, IntoResponses)]
#[allow(dead_code, reason = "describes what ApiError is made into")]
pub enum Troubles {
    /// The request's body did not arrive in time.
    #[response(status = 408)]
    BodyTimedOut(ErrorBody),
    /// The request's body is larger than 400 KiB.
    #[response(status = 413)]
    BodyTooLarge(ErrorBody),
    /// An error that has been logged. Nothing was done.
    #[response(status = 500)]
    Internal(ErrorBody),
    /// The database, or for administrators the cluster, is not available. Nothing was done; safe to try again.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

impl ApiError {
    /// An error with a status of the caller's choice.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400: the request has to change.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.message })).into_response()
    }
}

impl From<DatabaseError> for ApiError {
    fn from(error: DatabaseError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "the database did not serve a request");
        let status = match error {
            DatabaseError::Bug(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        let status = match error {
            AccessError::Unrecoverable(_) => StatusCode::BAD_REQUEST,
            AccessError::NotAllowed { .. } => StatusCode::UNAUTHORIZED,
        };
        Self::new(status, error.to_string())
    }
}

impl From<NonceRefused> for ApiError {
    fn from(refused: NonceRefused) -> Self {
        Self::bad_request(refused.to_string())
    }
}

impl From<ClusterError> for ApiError {
    fn from(error: ClusterError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "the cluster did not serve a request");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}
