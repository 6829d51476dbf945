//! Refusals: `Status` objects with the real server's codes, reasons and main messages.
//!
//! Source: Kubernetes API conventions, "Response Status Kind", and `k8s.io/apimachinery/pkg/api/errors`.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::resources::Resource;

/// Why a request was refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", status["message"].as_str().unwrap_or_default())]
pub(crate) struct ApiError {
    code: StatusCode,
    status: Value,
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        let status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message.into(),
            "reason": reason,
            "details": {},
            "code": code.as_u16(),
        });
        Self { code, status }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        self.status["details"] = details(resource, name);
        self
    }

    /// 404: there is no such object.
    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.id());
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(resource, name)
    }

    /// 404: there is no such resource or path.
    pub(crate) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    /// 409: the name is in use.
    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.id());
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(resource, name)
    }

    /// 409: the object has changed, or a precondition does not hold.
    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.id());
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(resource, name)
    }

    /// 403: the namespace is being deleted.
    pub(crate) fn terminating(resource: &Resource, name: &str, namespace: &str) -> Self {
        let id = resource.id();
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        Self::new(StatusCode::FORBIDDEN, "Forbidden", format!("{id} \"{name}\" is forbidden: {why}"))
            .about(resource, name)
    }

    /// 422: a field of the object is not valid.
    pub(crate) fn invalid(resource: &Resource, name: &str, field: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is invalid: {field}: {why}", resource.kind);
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).about(resource, name);
        error.status["details"]["causes"] = json!([{ "field": field, "message": why }]);
        error
    }

    /// 400: the request is malformed.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 400: the real server does this, this one does not.
    pub(crate) fn not_implemented(what: &str) -> Self {
        Self::bad_request(format!("the fake Kubernetes API does not implement {what}"))
    }

    /// 401: the caller is not authenticated.
    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 405: the resource does not have this verb.
    pub(crate) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }

    /// 413: the body is longer than `limit` bytes.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// 415: the patch is in an unknown format.
    pub(crate) fn unsupported_media_type() -> Self {
        let message = "the body of the request was in an unknown format";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    /// 410: the state that a list continues with is forgotten. The token continues with the present one.
    pub(crate) fn expired(token: &str) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a \
            new list without the continue parameter, or use the continue token in this response to retrieve the \
            remainder of the results. Continuing with the provided token results in an inconsistent list.";
        let mut error = Self::new(StatusCode::GONE, "Expired", message);
        error.status["metadata"]["continue"] = token.into();
        error
    }

    /// The refusal that a fault orders.
    pub(crate) fn injected(code: StatusCode, retry_after: Option<Duration>) -> Self {
        let reason = match code {
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::FORBIDDEN => "Forbidden",
            StatusCode::NOT_FOUND => "NotFound",
            StatusCode::CONFLICT => "Conflict",
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
            StatusCode::GATEWAY_TIMEOUT => "Timeout",
            _ => "InternalError",
        };
        let mut error = Self::new(code, reason, "a fault that the test ordered");
        if let Some(pause) = retry_after {
            error.status["details"]["retryAfterSeconds"] = pause.as_secs().into();
        }
        error
    }
}

/// What a `Status` is about. Empty texts are left out.
fn details(resource: &Resource, name: &str) -> Value {
    [("name", name), ("group", &resource.group), ("kind", &resource.plural)]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(field, text)| (field.to_owned(), Value::from(text)))
        .collect::<Map<_, _>>()
        .into()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let pause = self.status["details"]["retryAfterSeconds"].as_u64();
        let mut response = (self.code, Json(self.status)).into_response();
        if let Some(pause) = pause {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(pause));
        }
        response
    }
}

/// The `Status` of a completed deletion.
pub(crate) fn deleted(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = details(resource, name);
    details["uid"] = json!(uid);
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}
