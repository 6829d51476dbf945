//! What is served: groups, versions and resources, for `kubectl`.
//!
//! Source: Kubernetes documentation, "The Kubernetes API", "Discovery API" (the unaggregated form).

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::http::Call;
use crate::resources::{self, Resource};
use crate::status::ApiError;
use crate::store::State;

/// The version that is reported: that of the API types in use.
const VERSION: (&str, &str) = ("1", "33");

/// Answers a path that names no resource.
pub(crate) fn answer(state: &State, call: &Call) -> Result<Response, ApiError> {
    let resources = resources::all(state);
    let path = call.request.path.trim_matches('/');
    let document = match path.split('/').collect::<Vec<_>>().as_slice() {
        _ if call.request.verb != "get" => return Err(ApiError::no_such_path()),
        ["version"] => {
            let (major, minor) = VERSION;
            json!({ "major": major, "minor": minor, "gitVersion": format!("v{major}.{minor}.0+fake") })
        }
        ["api"] => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        ["apis"] => groups(&resources),
        ["api", version] => resource_list(&resources, "", version)?,
        ["apis", group, version] => resource_list(&resources, group, version)?,
        _ => return Err(ApiError::no_such_path()),
    };
    Ok(Json(document).into_response())
}

fn groups(resources: &[Resource]) -> Value {
    let mut groups: Vec<Value> = Vec::new();
    for resource in resources.iter().filter(|resource| !resource.group.is_empty()) {
        let version = json!({ "groupVersion": resource.api_version(), "version": resource.version });
        match groups.iter_mut().find(|group| group["name"] == resource.group) {
            Some(group) => {
                let versions = group["versions"].as_array_mut();
                if let Some(versions) = versions.filter(|versions| !versions.contains(&version)) {
                    versions.push(version);
                }
            }
            None => {
                groups.push(json!({ "name": resource.group, "preferredVersion": version, "versions": [version] }));
            }
        }
    }
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
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
