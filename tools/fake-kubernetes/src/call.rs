//! One request, taken apart as the API server does it (`k8s.io/apiserver/pkg/endpoints/request.RequestInfo`).

use axum::{
    extract::Query,
    http::{HeaderMap, Method, header, request::Parts},
};

use super::status::ApiError;

/// What a request asked for, for tests to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Request {
    /// The Kubernetes verb: get, list, watch, create, update, patch, delete, deletecollection; for paths
    /// that name no resource the method in lower case.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The API version.
    pub version: String,
    /// The resource's plural; empty for paths that name none.
    pub resource: String,
    /// `status`, `log`, … or empty.
    pub subresource: String,
    /// The namespace; empty for all namespaces and for what lives in none.
    pub namespace: String,
    /// The object's name; empty where the request names none.
    pub name: String,
    /// The label selector, as it was sent.
    pub label_selector: String,
    /// The field selector, as it was sent.
    pub field_selector: String,
    /// The path, without the query.
    pub path: String,
    /// What the caller says it is.
    pub user_agent: String,
    /// Who the authenticator found the caller to be; empty where there is none.
    pub user: String,
}

/// A request with all that is needed to answer it, except for its body.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) method: Method,
    pub(crate) shape: Option<Shape>,
    pub(crate) content_type: String,
    /// The bearer token.
    pub(crate) token: Option<String>,
    query: Vec<(String, String)>,
}

/// The form in which the caller wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Plain,
    Table,
    Partial,
    /// Discovery of all groups in one document.
    Aggregated,
}

impl Call {
    /// Takes a request apart. Never fails: what can't be served is found out later, after authentication.
    pub(crate) fn new(parts: &Parts) -> Self {
        let query: Vec<(String, String)> =
            Query::try_from_uri(&parts.uri).map(|Query(query)| query).unwrap_or_default();
        let path = parts.uri.path();
        let mut call = Self {
            request: resource_of(path),
            method: parts.method.clone(),
            shape: shape(&parts.headers),
            content_type: media_type(text(&parts.headers, header::CONTENT_TYPE.as_str())),
            token: text(&parts.headers, header::AUTHORIZATION.as_str())
                .strip_prefix("Bearer ")
                .map(|token| token.trim().to_owned()),
            query,
        };
        let user_agent = text(&parts.headers, header::USER_AGENT.as_str()).to_owned();
        let selector = |name| call.get(name).unwrap_or_default().to_owned();
        let (labels, fields) = (selector("labelSelector"), selector("fieldSelector"));
        call.request = Request {
            verb: call.verb(),
            path: path.to_owned(),
            label_selector: labels,
            field_selector: fields,
            user_agent,
            ..call.request
        };
        call
    }

    fn verb(&self) -> String {
        let named = !self.request.name.is_empty();
        let verb = match self.method {
            _ if self.request.resource.is_empty() => return self.method.as_str().to_lowercase(),
            Method::GET | Method::HEAD if self.is_set("watch") => "watch",
            Method::GET | Method::HEAD if named => "get",
            Method::GET | Method::HEAD => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if named => "delete",
            Method::DELETE => "deletecollection",
            _ => "",
        };
        verb.to_owned()
    }

    /// A parameter of the query.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter is there and is not said to be false.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value, "false" | "0" | "False"))
    }

    /// A parameter that is a number; one below zero counts as left out.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        self.get(name)
            .filter(|text| !text.is_empty())
            .map(|text| {
                text.parse::<i64>()
                    .map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing \"{text}\": invalid syntax")))
            })
            .transpose()
            .map(|number| number.and_then(|number| u64::try_from(number).ok()))
    }

    /// Whether nothing is to be changed.
    pub(crate) fn dry_run(&self) -> bool {
        self.get("dryRun").is_some_and(|value| value == "All")
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// The media type without its parameters.
fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_lowercase()
}

/// The first of the formats asked for that is spoken here; protobuf is not.
fn shape(headers: &HeaderMap) -> Option<Shape> {
    let accept = text(headers, header::ACCEPT.as_str());
    if accept.is_empty() {
        return Some(Shape::Plain);
    }
    accept.split(',').find_map(|wanted| {
        let kind = media_type(wanted);
        if !matches!(kind.as_str(), "application/json" | "*/*" | "application/*") {
            // Logs and health are plain text; whoever asks for text can read them.
            return kind.starts_with("text/").then_some(Shape::Plain);
        }
        let parameter = |name: &str| {
            wanted.split(';').skip(1).find_map(|parameter| {
                let (known, value) = parameter.trim().split_once('=')?;
                (known == name).then_some(value)
            })
        };
        match parameter("as") {
            None => Some(Shape::Plain),
            Some("Table") => Some(Shape::Table),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Some(Shape::Partial),
            Some("APIGroupDiscoveryList") if parameter("v") == Some("v2") => Some(Shape::Aggregated),
            Some(_) => None,
        }
    })
}

/// The resource that a path names, if it names one.
fn resource_of(path: &str) -> Request {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Request::default(),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..]
            if rest.first().is_some_and(|part| !["status", "finalize"].contains(part)) =>
        {
            (*namespace, rest)
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources_as_the_api_server_reads_them() {
        for (path, expected) in [
            ("/api", ["", "", "", "", ""]),
            ("/api/v1", ["", "", "", "", ""]),
            ("/api/v1/namespaces", ["", "namespaces", "", "", ""]),
            ("/api/v1/namespaces/n", ["", "namespaces", "", "n", ""]),
            ("/api/v1/namespaces/n/status", ["", "namespaces", "", "n", "status"]),
            ("/api/v1/namespaces/n/pods", ["", "pods", "n", "", ""]),
            ("/api/v1/namespaces/n/pods/p/log", ["", "pods", "n", "p", "log"]),
            ("/api/v1/pods", ["", "pods", "", "", ""]),
            ("/apis/batch/v1/namespaces/n/jobs/j", ["batch", "jobs", "n", "j", ""]),
            ("/apis/a.b/v1/things/t/status", ["a.b", "things", "", "t", "status"]),
        ] {
            let request = resource_of(path);
            let found =
                [request.group.as_str(), &request.resource, &request.namespace, &request.name, &request.subresource];
            assert_eq!(found, expected, "{path}");
        }
    }
}
