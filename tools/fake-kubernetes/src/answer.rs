//! What a request is answered with, in the form that the caller asked for.

use std::sync::Arc;

use axum::{
    Json,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{
    call::{Call, Shape},
    registry::{Form, Resource},
    status::ApiError,
    table::{self, Include},
};

/// The outcome of a request that was carried out.
#[derive(Debug)]
pub(crate) enum Answer {
    /// One object.
    Object(StatusCode, Arc<Value>, Vec<String>),
    /// Many, with the list's metadata.
    List(Vec<Arc<Value>>, Value),
    /// A `Status` that says that all went well.
    Done(Value, Vec<String>),
}

impl Answer {
    /// Renders it.
    pub(crate) fn render(self, call: &Call, resource: &Resource) -> Result<Response, ApiError> {
        let shape = call.shape.ok_or_else(ApiError::not_acceptable)?;
        Ok(match self {
            Self::Object(code, object, warnings) => {
                let object = in_version(object, resource);
                let headers = warning_headers(&warnings);
                let body = shaped(&object, shape, call, resource);
                (code, headers, Json(body)).into_response()
            }
            Self::List(objects, metadata) => {
                let objects: Vec<Arc<Value>> = objects.into_iter().map(|object| in_version(object, resource)).collect();
                render_list(&objects, metadata, shape, call, resource)
            }
            Self::Done(status, warnings) => (warning_headers(&warnings), Json(status)).into_response(),
        })
    }
}

/// One object in the form asked for.
pub(crate) fn shaped(object: &Value, shape: Shape, call: &Call, resource: &Resource) -> Value {
    match shape {
        Shape::Plain | Shape::Aggregated => object.clone(),
        Shape::Partial => table::partial(object),
        Shape::Table => {
            let revision = &object["metadata"]["resourceVersion"];
            let metadata = json!({ "resourceVersion": revision });
            table::render(&resource.columns, [object], include(call), metadata)
        }
    }
}

fn render_list(objects: &[Arc<Value>], metadata: Value, shape: Shape, call: &Call, resource: &Resource) -> Response {
    let objects = objects.iter().map(|object| &**object);
    match shape {
        Shape::Plain | Shape::Aggregated => {
            let bare = matches!(resource.form, Form::BuiltIn(_));
            Json(List {
                kind: &resource.list_kind,
                api_version: &resource.api_version(),
                metadata,
                items: objects.map(|object| Item { object, bare }).collect(),
            })
            .into_response()
        }
        Shape::Partial => Json(json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": objects.map(table::partial).collect::<Vec<_>>(),
        }))
        .into_response(),
        Shape::Table => Json(table::render(&resource.columns, objects, include(call), metadata)).into_response(),
    }
}

/// How much of each object the caller wants in a table's rows.
fn include(call: &Call) -> Include {
    match call.get("includeObject") {
        Some("None") => Include::None,
        Some("Object") => Include::Object,
        _ => Include::Metadata,
    }
}

/// The object in the version that was asked for. There are no conversions: only the name differs.
pub(crate) fn in_version(object: Arc<Value>, resource: &Resource) -> Arc<Value> {
    let api_version = resource.api_version();
    if object["apiVersion"] == api_version {
        return object;
    }
    let mut object = Arc::unwrap_or_clone(object);
    object["apiVersion"] = api_version.into();
    Arc::new(object)
}

fn warning_headers(warnings: &[String]) -> HeaderMap {
    warnings
        .iter()
        .filter_map(|warning| {
            let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
            let value = HeaderValue::from_str(&format!("299 - \"{quoted}\"")).ok()?;
            Some((HeaderName::from_static("warning"), value))
        })
        .fold(HeaderMap::new(), |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    kind: &'a str,
    api_version: &'a str,
    metadata: Value,
    items: Vec<Item<'a>>,
}

/// An entry of a list. Those of built-in kinds don't repeat kind and apiVersion, as from the real server.
struct Item<'a> {
    object: &'a Value,
    bare: bool,
}

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.object {
            Value::Object(map) if self.bare => serializer
                .collect_map(map.iter().filter(|(field, _)| !["apiVersion", "kind"].contains(&field.as_str()))),
            other => other.serialize(serializer),
        }
    }
}
