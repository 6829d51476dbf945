//! What is served: groups, versions and resources, for `kubectl`.
//!
//! Source: Kubernetes documentation, "The Kubernetes API", "Discovery API" (the unaggregated form).

use std::collections::BTreeMap;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::call::Call;
use crate::resources::{self, Resource};
use crate::status::ApiError;
use crate::store::State;

/// Answers a path that names no resource.
pub(crate) fn answer(state: &State, call: &Call) -> Result<Response, ApiError> {
    let resources = resources::all(state);
    let path = call.request.path.trim_matches('/');
    let document = match path.split('/').collect::<Vec<_>>().as_slice() {
        _ if call.request.verb != "get" => return Err(ApiError::no_such_path()),
        ["api"] => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        ["apis"] => groups(&resources),
        ["api", version] => resource_list(&resources, "", version)?,
        ["apis", group, version] => resource_list(&resources, group, version)?,
        _ => return Err(ApiError::no_such_path()),
    };
    Ok(Json(document).into_response())
}

/// Each group with one version.
fn groups(resources: &[Resource]) -> Value {
    let named = resources.iter().filter(|resource| !resource.group.is_empty());
    let groups: BTreeMap<&str, Value> = named
        .map(|resource| {
            let version = json!({ "groupVersion": resource.api_version(), "version": resource.version });
            let group = json!({ "name": resource.group, "preferredVersion": version, "versions": [version] });
            (resource.group.as_str(), group)
        })
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups.values().collect::<Vec<_>>() })
}

fn resource_list(resources: &[Resource], group: &str, version: &str) -> Result<Value, ApiError> {
    let mut list = Vec::new();
    let mut group_version = None;
    for resource in resources.iter().filter(|resource| resource.group == group && resource.version == version) {
        group_version = Some(resource.api_version());
        list.push(json!({
            "name": resource.plural,
            "singularName": resource.kind.to_lowercase(),
            "shortNames": resource.short_names,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": ["create", "delete", "get", "list", "patch"],
        }));
    }
    let group_version = group_version.ok_or_else(ApiError::no_such_path)?;
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list,
    }))
}
