//! Refusals, worded and shaped as the real API server words and shapes them: a `Status` object.
//!
//! Source: Kubernetes API conventions, "Response Status Kind", and `k8s.io/apimachinery/pkg/api/errors`.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::registry::Resource;

/// Why a request was not carried out.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
    metadata: Value,
    /// The body is plain text instead of a `Status`, as for paths that nothing serves.
    plain: bool,
}

/// One field that is wrong: `k8s.io/apimachinery/pkg/util/validation/field.Error`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldError {
    reason: &'static str,
    field: String,
    message: String,
}

impl FieldError {
    /// A field that has to be there is not.
    pub(crate) fn required(field: impl Into<String>, detail: &str) -> Self {
        Self {
            reason: "FieldValueRequired",
            field: field.into(),
            message: with_detail("Required value", detail),
        }
    }

    /// A field has a value that the rules don't allow.
    pub(crate) fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {}: {detail}", shown(value)),
        }
    }

    /// A field has a value of another type than the schema's.
    pub(crate) fn wrong_type(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self {
            reason: "FieldValueTypeInvalid",
            ..Self::invalid(field, value, detail)
        }
    }

    /// A field has none of the values that are allowed.
    pub(crate) fn unsupported(field: impl Into<String>, value: &Value, allowed: &[String]) -> Self {
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            message: format!(
                "Unsupported value: {}: supported values: {}",
                shown(value),
                allowed.join(", ")
            ),
        }
    }

    /// A field may not be set (or not like this).
    pub(crate) fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self {
            reason: "FieldValueForbidden",
            field: field.into(),
            message: with_detail("Forbidden", detail),
        }
    }

    /// A text, or a whole object, is longer than `limit` bytes.
    pub(crate) fn too_long(field: impl Into<String>, limit: u64) -> Self {
        Self {
            reason: "FieldValueTooLong",
            field: field.into(),
            message: format!("Too long: may not be more than {limit} bytes"),
        }
    }

    /// A list has more entries than `limit`.
    pub(crate) fn too_many(field: impl Into<String>, found: usize, limit: u64) -> Self {
        let items = if limit == 1 { "item" } else { "items" };
        Self {
            reason: "FieldValueTooMany",
            field: field.into(),
            message: format!("Too many: {found}: must have at most {limit} {items}"),
        }
    }

    /// A value that has to be unique is there twice.
    pub(crate) fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            field: field.into(),
            message: format!("Duplicate value: {}", shown(value)),
        }
    }
}

fn with_detail(what: &str, detail: &str) -> String {
    if detail.is_empty() {
        what.to_owned()
    } else {
        format!("{what}: {detail}")
    }
}

/// A value as messages show it: structures as their JSON, like the real server.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Object(_) | Value::Array(_) => value.to_string(),
        other => other.to_string(),
    }
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
            metadata: json!({}),
            plain: false,
        }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        let mut details = json!({ "name": name });
        if !resource.group.is_empty() {
            details["group"] = json!(resource.group);
        }
        details["kind"] = json!(resource.plural);
        self.details = Some(details);
        self
    }

    /// 404: there is no such object.
    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.id);
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(resource, name)
    }

    /// 404: the namespace that an object should go to does not exist.
    pub(crate) fn no_namespace(namespace: &str) -> Self {
        let message = format!("namespaces \"{namespace}\" not found");
        let mut error = Self::new(StatusCode::NOT_FOUND, "NotFound", message);
        error.details = Some(json!({ "name": namespace, "kind": "namespaces" }));
        error
    }

    /// 404: nothing is served under this path. Plain text, as the real one answers.
    pub(crate) fn no_such_path() -> Self {
        let mut error = Self::new(StatusCode::NOT_FOUND, "NotFound", "404 page not found\n");
        error.plain = true;
        error
    }

    /// 409: the name is taken.
    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.id);
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(resource, name)
    }

    /// 409: someone else was faster, or a precondition does not hold.
    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            resource.id
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(resource, name)
    }

    /// 409: the object changed since it was read.
    pub(crate) fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 403: not allowed, whatever the body says.
    pub(crate) fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", resource.id);
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(resource, name)
    }

    /// 422: the object breaks the rules of its kind.
    pub(crate) fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Self {
        let mut kind = resource.kind.clone();
        if !resource.group.is_empty() {
            kind = format!("{kind}.{}", resource.group);
        }
        let mut error = Self::invalid_kind(&kind, name, errors);
        let mut details = json!({ "name": name });
        if !resource.group.is_empty() {
            details["group"] = json!(resource.group);
        }
        details["kind"] = json!(resource.kind);
        details["causes"] = causes(errors);
        error.details = Some(details);
        error
    }

    /// 422 about something that is no object: a patch, or options.
    pub(crate) fn invalid_kind(kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors
            .iter()
            .map(|error| format!("{}: {}", error.field, error.message))
            .collect();
        let list = match texts.as_slice() {
            [only] => only.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        let message = format!("{kind} \"{name}\" is invalid: {list}");
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        error.details = Some(json!({ "causes": causes(errors) }));
        error
    }

    /// 400: the request itself makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401: nobody knows who this is.
    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 405: the resource is served, but not like this.
    pub(crate) fn method_not_allowed() -> Self {
        let mut error = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        error.details = Some(json!({}));
        error
    }

    /// 406: the caller wants a format that we don't speak.
    pub(crate) fn not_acceptable() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            "only the following media types are accepted: application/json",
        )
    }

    /// 413: the body is larger than `limit` bytes.
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// 415: the body is in a format that this resource does not take.
    pub(crate) fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// 410: the state that the caller wants to continue from is forgotten. `metadata` goes into the answer.
    pub(crate) fn expired(message: impl Into<String>, metadata: Value) -> Self {
        let mut error = Self::new(StatusCode::GONE, "Expired", message);
        error.metadata = metadata;
        error
    }

    /// 422: a patch that can't be applied to the object as it is.
    pub(crate) fn unprocessable(cause: &str) -> Self {
        let message = "the server rejected our request due to an error in our request";
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        error.details = Some(json!({ "causes": [{ "message": cause }] }));
        error
    }

    /// 500, in the few cases in which the real server answers so to a wrong request.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    /// What a fault asks for, with the reason that belongs to the code.
    pub(crate) fn injected(code: StatusCode, retry_after: Option<Duration>) -> Self {
        let (reason, message) = match code {
            StatusCode::UNAUTHORIZED => return Self::unauthorized(),
            StatusCode::FORBIDDEN => ("Forbidden", "forbidden: injected by the embedded cluster"),
            StatusCode::TOO_MANY_REQUESTS => (
                "TooManyRequests",
                "Too many requests, please try again later.",
            ),
            StatusCode::SERVICE_UNAVAILABLE => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            StatusCode::GATEWAY_TIMEOUT => (
                "Timeout",
                "Timeout: request did not complete within the allotted timeout",
            ),
            StatusCode::CONFLICT => ("Conflict", "conflict: injected by the embedded cluster"),
            StatusCode::NOT_FOUND => ("NotFound", "the server could not find the requested resource"),
            _ => ("InternalError", "Internal error occurred: injected by the embedded cluster"),
        };
        let mut error = Self::new(code, reason, message);
        if let Some(pause) = retry_after {
            error.details = Some(json!({ "retryAfterSeconds": pause.as_secs() }));
        }
        error
    }

    /// The `Status` object.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status["code"] = json!(self.code.as_u16());
        status
    }

    /// Whether it is a 404.
    pub(crate) fn is_not_found(&self) -> bool {
        self.code == StatusCode::NOT_FOUND
    }
}

fn causes(errors: &[FieldError]) -> Value {
    errors
        .iter()
        .map(|error| json!({ "reason": error.reason, "message": error.message, "field": error.field }))
        .collect()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.plain {
            return (self.code, self.message).into_response();
        }
        let mut response = (self.code, Json(self.status())).into_response();
        let pause = self
            .details
            .as_ref()
            .and_then(|details| details["retryAfterSeconds"].as_u64());
        if let Some(pause) = pause {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(pause));
        }
        response
    }
}

/// What a carried-out deletion is answered with.
pub(crate) fn deleted(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = json!({ "name": name });
    if !resource.group.is_empty() {
        details["group"] = json!(resource.group);
    }
    details["kind"] = json!(resource.plural);
    details["uid"] = json!(uid);
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    })
}
