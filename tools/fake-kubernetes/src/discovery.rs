//! What clients read to find out what is served: versions, groups, resources, health, OpenAPI.
//!
//! Source: Kubernetes documentation, "The Kubernetes API", "Discovery API" and "OpenAPI interface definition".

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    http::{Method, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use super::{
    Api,
    call::{Call, Shape},
    registry::{Resource, group_version},
    status::ApiError,
};

/// The Kubernetes version that is claimed: that of the API types this is built with.
const VERSION: (&str, &str) = ("1", "33");
const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const STATUS_VERBS: [&str; 3] = ["get", "patch", "update"];

/// Answers a path that names no resource.
pub(crate) fn answer(api: &Api, call: &Call) -> Result<Response, ApiError> {
    if !matches!(call.method, Method::GET | Method::HEAD) {
        return Err(ApiError::no_such_path());
    }
    let served = Served(api.store.read(|state| api.registry.all(state)));
    let path = call.request.path.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let aggregated = call.shape == Some(Shape::Aggregated);
    let document = match parts.as_slice() {
        [] => json!({ "paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"] }),
        ["version"] => version(),
        ["healthz" | "livez" | "readyz", ..] => return Ok("ok".into_response()),
        ["api"] if aggregated => return Ok(aggregated_response(served.aggregated(true))),
        ["apis"] if aggregated => return Ok(aggregated_response(served.aggregated(false))),
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        }),
        ["apis"] => served.groups(),
        ["apis", group] => served.group(group)?,
        ["api", version] => served.resources("", version)?,
        ["apis", group, version] => served.resources(group, version)?,
        ["openapi", "v3"] => served.openapi_paths(),
        ["openapi", "v3", "api", version] => served.openapi("", version)?,
        ["openapi", "v3", "apis", group, version] => served.openapi(group, version)?,
        _ => return Err(ApiError::no_such_path()),
    };
    Ok(Json(document).into_response())
}

fn version() -> Value {
    let (major, minor) = VERSION;
    json!({
        "major": major,
        "minor": minor,
        "gitVersion": format!("v{major}.{minor}.0+embedded"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": "",
    })
}

fn aggregated_response(document: Value) -> Response {
    let content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    ([(header::CONTENT_TYPE, content_type)], document.to_string()).into_response()
}

/// All that is served right now.
struct Served(Vec<Arc<Resource>>);

impl Served {
    /// The groups with their versions, in order; the core group has no name.
    fn versions(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for resource in &self.0 {
            let versions = groups.entry(&resource.group).or_default();
            if !versions.contains(&resource.version.as_str()) {
                versions.push(&resource.version);
            }
        }
        groups
    }

    fn of<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Resource> {
        self.0
            .iter()
            .map(|resource| &**resource)
            .filter(move |resource| resource.group == group && resource.version == version)
    }

    fn groups(&self) -> Value {
        let groups: Vec<Value> = self
            .versions()
            .iter()
            .filter(|(group, _)| !group.is_empty())
            .map(|(group, versions)| api_group(group, versions))
            .collect();
        json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
    }

    fn group(&self, group: &str) -> Result<Value, ApiError> {
        let versions = self.versions();
        let versions = versions.get(group).ok_or_else(ApiError::no_such_path)?;
        let mut document = api_group(group, versions);
        document["kind"] = "APIGroup".into();
        document["apiVersion"] = "v1".into();
        Ok(document)
    }

    fn resources(&self, group: &str, version: &str) -> Result<Value, ApiError> {
        let mut resources = Vec::new();
        for resource in self.of(group, version) {
            let mut entry = json!({
                "name": resource.plural,
                "singularName": resource.singular,
                "namespaced": resource.namespaced,
                "kind": resource.kind,
                "verbs": VERBS,
            });
            if !resource.short_names.is_empty() {
                entry["shortNames"] = json!(resource.short_names);
            }
            if !resource.categories.is_empty() {
                entry["categories"] = json!(resource.categories);
            }
            resources.push(entry);
            for (subresource, verbs) in subresources(resource) {
                resources.push(json!({
                    "name": format!("{}/{subresource}", resource.plural),
                    "singularName": "",
                    "namespaced": resource.namespaced,
                    "kind": resource.kind,
                    "verbs": verbs,
                }));
            }
        }
        if resources.is_empty() {
            return Err(ApiError::no_such_path());
        }
        Ok(json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version(group, version),
            "resources": resources,
        }))
    }

    /// All groups in one document (`apidiscovery.k8s.io/v2`).
    fn aggregated(&self, core: bool) -> Value {
        let items: Vec<Value> = self
            .versions()
            .iter()
            .filter(|(group, _)| group.is_empty() == core)
            .map(|(group, versions)| {
                let versions: Vec<Value> = versions
                    .iter()
                    .map(|version| {
                        let resources: Vec<Value> = self.of(group, version).map(aggregated_resource).collect();
                        json!({ "version": version, "resources": resources, "freshness": "Current" })
                    })
                    .collect();
                let metadata = if core { json!({}) } else { json!({ "name": group }) };
                json!({ "metadata": metadata, "versions": versions })
            })
            .collect();
        json!({
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": items,
        })
    }

    fn openapi_paths(&self) -> Value {
        let mut paths = Map::new();
        for (group, versions) in self.versions() {
            for version in versions {
                let root = if group.is_empty() { "api" } else { "apis" };
                let path = format!("{root}/{}", group_version(group, version));
                let url = json!({ "serverRelativeURL": format!("/openapi/v3/{path}") });
                paths.insert(path, url);
            }
        }
        json!({ "paths": paths })
    }

    /// The smallest document that tells clients what they ask it for: which kinds there are, what a custom
    /// one looks like, and that fields can be validated here.
    fn openapi(&self, group: &str, version: &str) -> Result<Value, ApiError> {
        let parameters = ["dryRun", "fieldManager", "fieldValidation"]
            .map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string" } }));
        let mut paths = Map::new();
        let mut schemas = Map::new();
        for resource in self.of(group, version) {
            let kind = json!({ "group": group, "version": version, "kind": resource.kind });
            let name = schema_name(resource);
            let mut schema =
                resource.schema().map_or_else(|| json!({ "type": "object" }), |schema| schema.document().clone());
            schema["x-kubernetes-group-version-kind"] = json!([kind]);
            paths.insert(
                path_of(resource),
                json!({
                    "get": {
                        "x-kubernetes-action": "get",
                        "x-kubernetes-group-version-kind": kind,
                        "responses": { "200": { "description": "OK", "content": { "application/json": {
                            "schema": { "$ref": format!("#/components/schemas/{name}") },
                        } } } },
                    },
                    "patch": {
                        "x-kubernetes-action": "patch",
                        "x-kubernetes-group-version-kind": kind,
                        "parameters": parameters,
                        "requestBody": { "content": { "application/merge-patch+json": {
                            "schema": { "type": "object" },
                        } } },
                        "responses": { "200": { "description": "OK" } },
                    },
                }),
            );
            schemas.insert(name, schema);
        }
        if paths.is_empty() {
            return Err(ApiError::no_such_path());
        }
        let (major, minor) = VERSION;
        Ok(json!({
            "openapi": "3.0.0",
            "info": { "title": "Kubernetes", "version": format!("v{major}.{minor}.0+embedded") },
            "paths": paths,
            "components": { "schemas": schemas },
        }))
    }
}

fn api_group(group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({ "groupVersion": group_version(group, version), "version": version }))
        .collect();
    json!({
        "name": group,
        "preferredVersion": versions.first(),
        "versions": versions,
    })
}

fn subresources(resource: &Resource) -> Vec<(&'static str, &'static [&'static str])> {
    let mut all: Vec<(&str, &[&str])> = Vec::new();
    if has_log(resource) {
        all.push(("log", &["get"]));
    }
    if resource.status {
        all.push(("status", &STATUS_VERBS));
    }
    all
}

/// Whether the resource's objects write logs.
pub(crate) fn has_log(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "pods"
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = json!({
        "group": resource.group,
        "version": resource.version,
        "kind": resource.kind,
    });
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": VERBS,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    let subresources: Vec<Value> = subresources(resource)
        .into_iter()
        .map(|(subresource, verbs)| json!({ "subresource": subresource, "responseKind": kind, "verbs": verbs }))
        .collect();
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

/// `com.example.v1.Thing`.
fn schema_name(resource: &Resource) -> String {
    let group: Vec<&str> = match resource.group.as_str() {
        "" => vec!["core", "api", "k8s", "io"],
        group => group.split('.').collect(),
    };
    let group: Vec<&str> = group.into_iter().rev().collect();
    format!("{}.{}.{}", group.join("."), resource.version, resource.kind)
}

fn path_of(resource: &Resource) -> String {
    let root = if resource.group.is_empty() { "api" } else { "apis" };
    let namespace = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    format!("/{root}/{}{namespace}/{}/{{name}}", resource.api_version(), resource.plural)
}
