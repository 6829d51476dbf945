//! A request as the verbs read it: the resource that its path names, its query and its headers.

use std::collections::HashMap;

use axum::extract::Query;
use axum::http::request::Parts;
use axum::http::{HeaderName, Method, header};

use crate::status::ApiError;

/// A request as it was received, for tests to inspect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Request {
    /// The Kubernetes verb: get, list, watch, create, update, patch, delete, deletecollection; for paths that name no
    /// resource the method in lower case.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The API version.
    pub version: String,
    /// The resource's plural; empty for paths that name none.
    pub resource: String,
    /// `status`, `log` or empty.
    pub subresource: String,
    /// The namespace; empty for all namespaces and for objects outside namespaces.
    pub namespace: String,
    /// The object's name; empty if the path names none.
    pub name: String,
    /// The label selector, as it was sent.
    pub label_selector: String,
    /// The path, without the query.
    pub path: String,
    /// The header `User-Agent`.
    pub user_agent: String,
    /// The user name that the authenticator returned; empty if there is none.
    pub user: String,
}

/// The form of the answer that the caller accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Whole objects.
    Plain,
    /// `PartialObjectMetadata`.
    Metadata,
    /// `Table`.
    Table,
}

/// A request without its body.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) shape: Shape,
    /// The media type of the body.
    pub(crate) content_type: String,
    /// The bearer token.
    pub(crate) token: Option<String>,
    query: HashMap<String, String>,
}

impl Call {
    pub(crate) fn new(parts: &Parts) -> Self {
        let text = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let query = Query::<HashMap<String, String>>::try_from_uri(&parts.uri).map(|query| query.0).unwrap_or_default();
        let mut request = resource_of(parts.uri.path());
        request.verb = verb(&parts.method, &request, query.contains_key("watch")).to_owned();
        request.path = parts.uri.path().to_owned();
        request.label_selector = query.get("labelSelector").cloned().unwrap_or_default();
        request.user_agent = text(header::USER_AGENT).to_owned();
        let accept = text(header::ACCEPT);
        Self {
            request,
            shape: match () {
                () if accept.contains("as=Table") => Shape::Table,
                () if accept.contains("as=PartialObjectMetadata") => Shape::Metadata,
                () => Shape::Plain,
            },
            content_type: text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned(),
            token: text(header::AUTHORIZATION).strip_prefix("Bearer ").map(str::to_owned),
            query,
        }
    }

    /// A parameter of the query, unless it is empty.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a parameter is true.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.query(name) == Some("true")
    }

    /// A parameter that is a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<usize>, ApiError> {
        let number = self.query(name).map(str::parse).transpose();
        number.map_err(|_| ApiError::bad_request(format!("{name} is not a number")))
    }
}

/// The resource that a path names, as the real server reads it (`k8s.io/apiserver/pkg/endpoints/request.RequestInfo`).
fn resource_of(path: &str) -> Request {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Request::default(),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest[0] != "status" => (*namespace, rest),
        _ => ("", rest),
    };
    let part = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
    Request {
        group: group.to_owned(),
        version: version.to_owned(),
        namespace: namespace.to_owned(),
        resource: part(0),
        name: part(1),
        subresource: rest.get(2..).map(|rest| rest.join("/")).unwrap_or_default(),
        ..Request::default()
    }
}

fn verb(method: &Method, request: &Request, watch: bool) -> &'static str {
    let named = !request.name.is_empty();
    match *method {
        Method::GET if watch => "watch",
        Method::GET if named || request.resource.is_empty() => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "",
    }
}
