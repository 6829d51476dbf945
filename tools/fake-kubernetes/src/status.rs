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

use super::registry::{self, Resource};

/// Why a request was not carried out.
#[derive(Clone, Debug)]
pub(crate) struct ApiError(Box<Refusal>);

#[derive(Clone, Debug)]
struct Refusal {
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
        Self { reason: "FieldValueRequired", field: field.into(), message: with_detail("Required value", detail) }
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
        Self { reason: "FieldValueTypeInvalid", ..Self::invalid(field, value, detail) }
    }

    /// A field has none of the values that are allowed.
    pub(crate) fn unsupported(field: impl Into<String>, value: &Value, allowed: &[String]) -> Self {
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            message: format!("Unsupported value: {}: supported values: {}", shown(value), allowed.join(", ")),
        }
    }

    /// A field may not be set (or not like this).
    pub(crate) fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: with_detail("Forbidden", detail) }
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
    if detail.is_empty() { what.to_owned() } else { format!("{what}: {detail}") }
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
        Self(Box::new(Refusal {
            code,
            reason,
            message: message.into(),
            details: None,
            metadata: json!({}),
            plain: false,
        }))
    }

    fn with_details(mut self, details: Value) -> Self {
        self.0.details = Some(details);
        self
    }

    fn about(self, resource: &Resource, name: &str) -> Self {
        self.with_details(details(name, &resource.group, &resource.plural))
    }

    /// 404: there is no such object.
    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.id);
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(resource, name)
    }

    /// 404: the namespace that an object should go to does not exist.
    pub(crate) fn no_namespace(namespace: &str) -> Self {
        let message = format!("namespaces \"{namespace}\" not found");
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).with_details(details(namespace, "", "namespaces"))
    }

    /// 404: a built-in group has no such resource.
    pub(crate) fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).with_details(json!({}))
    }

    /// 404: nothing is served under this path. Plain text, as the real one answers.
    pub(crate) fn no_such_path() -> Self {
        let mut error = Self::new(StatusCode::NOT_FOUND, "NotFound", "404 page not found\n");
        error.0.plain = true;
        error
    }

    /// 409: the name is taken.
    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.id);
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(resource, name)
    }

    /// 409: someone else was faster, or a precondition does not hold.
    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.id);
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

    /// 409: a deletion's precondition does not hold. Names the kind where others name the resource.
    pub(crate) fn precondition(resource: &Resource, name: &str, why: &str) -> Self {
        let kind = registry::id(&resource.kind, &resource.group);
        let message = format!("Operation cannot be fulfilled on {kind} \"{name}\": {why}");
        Self::new(StatusCode::CONFLICT, "Conflict", message).with_details(details(
            name,
            &resource.group,
            &resource.kind,
        ))
    }

    /// 403: the namespace takes nothing new.
    pub(crate) fn terminating(resource: &Resource, name: &str, namespace: &str) -> Self {
        let message = format!(
            "{} \"{name}\" is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
            resource.id
        );
        let mut details = details(name, &resource.group, &resource.plural);
        details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]);
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).with_details(details)
    }

    /// 422: the object breaks the rules of its kind.
    pub(crate) fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Self {
        Self::invalid_kind(&resource.group, &resource.kind, name, errors)
    }

    /// 422 about something else than an object of a resource: a patch, or options.
    pub(crate) fn invalid_kind(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut texts: Vec<String> = Vec::new();
        for error in errors {
            let text = format!("{}: {}", error.field, error.message);
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = match texts.as_slice() {
            [only] => only.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        let what = registry::id(kind, group);
        let message = format!("{what} \"{name}\" is invalid: {list}");
        let mut details = details(name, group, kind);
        details["causes"] = errors
            .iter()
            .map(|error| json!({ "reason": error.reason, "message": error.message, "field": error.field }))
            .collect();
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).with_details(details)
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
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with_details(json!({}))
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
        error.0.metadata = metadata;
        error
    }

    /// 422: a patch that can't be applied to the object as it is.
    pub(crate) fn unprocessable() -> Self {
        let message = "the server rejected our request due to an error in our request";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).with_details(json!({}))
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
            StatusCode::TOO_MANY_REQUESTS => ("TooManyRequests", "Too many requests, please try again later."),
            StatusCode::SERVICE_UNAVAILABLE => {
                ("ServiceUnavailable", "the server is currently unable to handle the request")
            }
            StatusCode::GATEWAY_TIMEOUT => ("Timeout", "Timeout: request did not complete within the allotted timeout"),
            StatusCode::CONFLICT => ("Conflict", "conflict: injected by the embedded cluster"),
            StatusCode::NOT_FOUND => ("NotFound", "the server could not find the requested resource"),
            _ => ("InternalError", "Internal error occurred: injected by the embedded cluster"),
        };
        let error = Self::new(code, reason, message);
        match retry_after {
            Some(pause) => error.with_details(json!({ "retryAfterSeconds": pause.as_secs() })),
            None => error,
        }
    }

    /// The `Status` object.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.0.metadata,
            "status": "Failure",
            "message": self.0.message,
        });
        if !self.0.reason.is_empty() {
            status["reason"] = json!(self.0.reason);
        }
        if let Some(details) = &self.0.details {
            status["details"] = details.clone();
        }
        status["code"] = json!(self.0.code.as_u16());
        status
    }

    /// Whether it is a 404.
    pub(crate) fn is_not_found(&self) -> bool {
        self.0.code == StatusCode::NOT_FOUND
    }
}

/// What a `Status` is about; what is empty is left out.
fn details(name: &str, group: &str, kind: &str) -> Value {
    [("name", name), ("group", group), ("kind", kind)]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(field, text)| (field.to_owned(), Value::from(text)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.0.plain {
            return (self.0.code, self.0.message).into_response();
        }
        let mut response = (self.0.code, Json(self.status())).into_response();
        let pause = self.0.details.as_ref().and_then(|details| details["retryAfterSeconds"].as_u64());
        if let Some(pause) = pause {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(pause));
        }
        response
    }
}

/// What a carried-out deletion is answered with.
pub(crate) fn deleted(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = details(name, &resource.group, &resource.plural);
    details["uid"] = json!(uid);
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    })
}
