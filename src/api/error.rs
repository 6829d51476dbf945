//! The error responses.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::openapi::response::{Response, ResponseBuilder};
use utoipa::openapi::{Content, Ref, RefOr};
use utoipa::{IntoResponses, ToSchema};

use crate::auth::{AccessError, NonceRefused};
use crate::db::{DatabaseError, NonceError};
use crate::domain::workflow::InvalidWorkflow;
use crate::kubernetes::ClusterError;

/// An error response: a status, and a message that says what to change, or that the request may be sent again.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
}

/// The body of an error response.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong, and what to do about it.
    #[schema(example = "You have to specify one of agreementId, jobId or owner")]
    error: String,
}

/// The errors that every request with parameters and a database may get, for the OpenAPI document.
#[derive(Debug, Clone, Copy)]
pub struct CommonErrors;

impl IntoResponses for CommonErrors {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let error = |status: &str, description: &str| {
            let body = Content::new(Some(Ref::from_schema_name(ErrorBody::name())));
            let response = ResponseBuilder::new().description(description).content("application/json", body);
            (status.to_owned(), response.build().into())
        };
        BTreeMap::from([
            error("408", "The request's body did not arrive in time."),
            error("413", "The request's body is larger than 400 KiB, or the workflow as it would be stored."),
            error("500", "An error that has been logged."),
            error(
                "503",
                "The database or, for the admin routes, the cluster is not available. The same request may be sent \
                          again: what it has done is not done twice.",
            ),
        ])
    }
}

impl ApiError {
    /// An error with any status.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400: the request has to change.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404: there is no such thing, or not for this caller.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 500: a defect of this service, which the caller of this function has logged.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "An internal error occurred; it has been logged")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> axum::response::Response {
        (self.status, Json(ErrorBody { error: self.message })).into_response()
    }
}

impl From<DatabaseError> for ApiError {
    fn from(error: DatabaseError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "a request failed at the database");
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

impl From<NonceError> for ApiError {
    fn from(error: NonceError) -> Self {
        match error {
            NonceError::Refused(refused) => refused.into(),
            NonceError::Database(error) => error.into(),
        }
    }
}

impl From<InvalidWorkflow> for ApiError {
    fn from(invalid: InvalidWorkflow) -> Self {
        Self::bad_request(invalid.to_string())
    }
}

impl From<ClusterError> for ApiError {
    fn from(error: ClusterError) -> Self {
        tracing::error!(error = &error as &dyn std::error::Error, "a request failed at the cluster");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}
