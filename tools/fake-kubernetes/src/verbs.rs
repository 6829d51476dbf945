//! create, get, list, patch and delete.

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::call::{Call, Shape};
use crate::resources::{DEFINITIONS, JOBS, PODS, Resource};
use crate::status::{self, ApiError};
use crate::store::{self, Key, State};
use crate::{labels, logs, objects, resources, table, validation};

/// Holds an object until its dependents are gone.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";

/// Metadata that only the server writes.
const READ_ONLY: [&str; 6] =
    ["uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];

/// Carries out a request for a resource.
pub(crate) fn answer(state: &mut State, call: &Call, resource: &Resource, body: &[u8]) -> Result<Response, ApiError> {
    let request = &call.request;
    let (namespace, name) = (request.namespace.as_str(), request.name.as_str());
    let placed = resource.namespaced != namespace.is_empty();
    let all_namespaces = request.verb == "list" && namespace.is_empty();
    if !placed && !all_namespaces {
        return Err(ApiError::no_such_path());
    }
    match (request.verb.as_str(), request.subresource.as_str()) {
        ("list", "") => list(state, call, resource),
        ("create", "") if name.is_empty() => {
            let object = create(state, resource, namespace, parse(body)?)?;
            Ok((StatusCode::CREATED, Json(Value::clone(&object))).into_response())
        }
        ("get", "") => existing(state, call, resource).map(|object| render(call, resource, &object)),
        ("patch", "") => patch(state, call, resource, &parse(body)?),
        ("patch", "status") if resource.status => patch(state, call, resource, &parse(body)?),
        ("delete", "") if resource.id() != DEFINITIONS => delete(state, call, resource, body),
        ("get", "log") if resource.id() == PODS => {
            let pod = existing(state, call, resource)?;
            logs::read(state, call, &pod)
        }
        ("update", "log") if resource.id() == PODS => {
            let pod = existing(state, call, resource)?;
            Ok(logs::write(state, call, &pod, body))
        }
        _ => Err(ApiError::method_not_allowed()),
    }
}

fn parse(body: &[u8]) -> Result<Value, ApiError> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))?;
    if value.is_object() { Ok(value) } else { Err(ApiError::bad_request("the body is not a JSON object")) }
}

fn existing(state: &State, call: &Call, resource: &Resource) -> Result<Arc<Value>, ApiError> {
    let name = &call.request.name;
    state.get(&resource.key(&call.request.namespace, name)).cloned().ok_or_else(|| ApiError::not_found(resource, name))
}

/// An object in the form that the caller accepts.
fn render(call: &Call, resource: &Resource, object: &Value) -> Response {
    match call.shape {
        Shape::Plain => Json(object).into_response(),
        Shape::Metadata => Json(table::metadata_only(object)).into_response(),
        Shape::Table => Json(table::table(resource, &[object], &json!({}))).into_response(),
    }
}

/// Stores a new object.
pub(crate) fn create(
    state: &mut State,
    resource: &Resource,
    namespace: &str,
    mut object: Value,
) -> Result<Arc<Value>, ApiError> {
    for (field, expected) in [("apiVersion", resource.api_version()), ("kind", resource.kind.clone())] {
        match object[field].as_str() {
            Some(found) if found != expected => {
                return Err(ApiError::bad_request(format!("{field} is {found}, not {expected}")));
            }
            Some(_) => {}
            None => object[field] = expected.into(),
        }
    }
    validation::prune_metadata(&mut object)?;
    if !objects::namespace(&object).is_empty() && objects::namespace(&object) != namespace {
        return Err(ApiError::bad_request("the object's namespace is not the one of the path"));
    }
    if objects::name(&object).is_empty() && !objects::text(&object, "generateName").is_empty() {
        let name = objects::generated_name(objects::text(&object, "generateName"));
        objects::set(&mut object, "name", Some(name.into()));
    }
    validation::check(resource, &object)?;
    let name = objects::name(&object).to_owned();
    if resource.namespaced {
        let Some(home) = state.get(&Key::namespace_object(namespace)) else {
            return Err(ApiError::not_found(&resources::namespaces(), namespace));
        };
        if objects::deleting(home) {
            return Err(ApiError::terminating(resource, &name, namespace));
        }
        objects::set(&mut object, "namespace", Some(namespace.into()));
    }
    let key = resource.key(namespace, &name);
    if state.get(&key).is_some() {
        return Err(ApiError::already_exists(resource, &name));
    }
    for field in READ_ONLY {
        objects::set(&mut object, field, None);
    }
    objects::set(&mut object, "uid", Some(Uuid::new_v4().to_string().into()));
    objects::set(&mut object, "creationTimestamp", Some(objects::now().into()));
    if resource.status {
        objects::set_top(&mut object, "status", None);
    }
    resources::complete(resource, &mut object);
    Ok(state.put(&key, object))
}

/// Where a list continues: the state of which resourceVersion (the present one if `None`), after which object.
type Position = (Option<u64>, String, String);

fn token(position: &Position) -> String {
    URL_SAFE_NO_PAD.encode(json!(position).to_string())
}

/// The objects in one namespace or in all, in pages of `limit`. All pages are of the state that the first one is of,
/// until that is forgotten.
///
/// Source: Kubernetes API concepts, "Retrieving large results sets in chunks".
fn list(state: &mut State, call: &Call, resource: &Resource) -> Result<Response, ApiError> {
    let selector = labels::parse(&call.request.label_selector)?;
    let limit = call.number("limit")?.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let continued: Option<Position> = match call.query("continue") {
        None => None,
        Some(token) => {
            let position = URL_SAFE_NO_PAD.decode(token).ok().and_then(|text| serde_json::from_slice(&text).ok());
            Some(position.ok_or_else(|| ApiError::bad_request("continue key is not valid"))?)
        }
    };
    let (at, after) = match &continued {
        Some((revision, namespace, name)) => (*revision, Some(resource.key(namespace, name))),
        None => (None, None),
    };
    let revision = at.unwrap_or_else(|| state.revision());
    let Some(all) = state.at(revision) else {
        let (_, namespace, name) = continued.unwrap_or_default();
        return Err(ApiError::expired(&token(&(None, namespace, name))));
    };
    let id = resource.id();
    let namespace = Some(call.request.namespace.as_str()).filter(|name| !name.is_empty());
    let mut found = store::within(all, &id, namespace)
        .filter(|(key, object)| after.as_ref().is_none_or(|after| *key > after) && labels::matches(&selector, object));
    let page: Vec<(Key, Arc<Value>)> =
        found.by_ref().take(limit).map(|(key, object)| (key.clone(), Arc::clone(object))).collect();
    let left = found.count();

    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    if let Some((last, _)) = page.last().filter(|_| left > 0) {
        metadata["continue"] = token(&(Some(revision), last.namespace.clone(), last.name.clone())).into();
        if selector.is_empty() {
            metadata["remainingItemCount"] = left.into();
        }
        if revision == state.revision() {
            state.remember();
        }
    }
    let items: Vec<&Value> = page.iter().map(|(_, object)| &**object).collect();
    Ok(match call.shape {
        Shape::Plain => Json(json!({
            "kind": format!("{}List", resource.kind),
            "apiVersion": resource.api_version(),
            "metadata": metadata,
            "items": items,
        })),
        Shape::Metadata => Json(json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": items.into_iter().map(table::metadata_only).collect::<Vec<_>>(),
        })),
        Shape::Table => Json(table::table(resource, &items, &metadata)),
    }
    .into_response())
}

/// Merges the body into an object (RFC 7386), or its status into the object's status. A server-side apply is treated
/// alike, and creates an object that does not exist; nobody owns fields here.
fn patch(state: &mut State, call: &Call, resource: &Resource, patch: &Value) -> Result<Response, ApiError> {
    let (namespace, name) = (call.request.namespace.as_str(), call.request.name.as_str());
    let key = resource.key(namespace, name);
    match call.content_type.as_str() {
        "application/merge-patch+json" => {}
        "application/apply-patch+yaml" if state.get(&key).is_none() => {
            let object = create(state, resource, namespace, patch.clone())?;
            return Ok((StatusCode::CREATED, Json(Value::clone(&object))).into_response());
        }
        "application/apply-patch+yaml" => {}
        _ => return Err(ApiError::unsupported_media_type()),
    }
    let old = existing(state, call, resource)?;
    let expected = objects::text(patch, "resourceVersion");
    if !expected.is_empty() && expected != objects::text(&old, "resourceVersion") {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(ApiError::conflict(resource, name, why));
    }
    let mut merged = Value::clone(&old);
    json_patch::merge(&mut merged, patch);
    let new = if call.request.subresource == "status" {
        let mut new = Value::clone(&old);
        objects::set_top(&mut new, "status", merged.get("status").cloned());
        new
    } else {
        if resource.status {
            objects::set_top(&mut merged, "status", old.get("status").cloned());
        }
        validation::prune_metadata(&mut merged)?;
        for field in READ_ONLY.into_iter().chain(["name", "namespace"]) {
            objects::set(&mut merged, field, old["metadata"].get(field).cloned());
        }
        validation::check(resource, &merged)?;
        merged
    };
    let stored = update(state, &key, &old, new);
    Ok(render(call, resource, &stored))
}

/// Stores the new state of an object, if it differs. One that is deleted goes with its last finalizer.
pub(crate) fn update(state: &mut State, key: &Key, old: &Arc<Value>, new: Value) -> Arc<Value> {
    if new == **old {
        return Arc::clone(old);
    }
    let stored = state.put(key, new);
    // Namespaces are removed by their controller.
    if objects::deleting(&stored) && objects::finalizers(&stored).is_empty() && key.resource != "namespaces" {
        state.remove(key);
    }
    stored
}

/// What happens to the dependents of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Foreground,
    Background,
}

fn delete(state: &mut State, call: &Call, resource: &Resource, body: &[u8]) -> Result<Response, ApiError> {
    let options = if body.is_empty() { Value::Null } else { parse(body)? };
    if !objects::list(&options["dryRun"]).is_empty() {
        return Err(ApiError::not_implemented("dryRun"));
    }
    let propagation = match options["propagationPolicy"].as_str() {
        Some("Foreground") => Propagation::Foreground,
        Some("Background") => Propagation::Background,
        None if resource.id() != JOBS => Propagation::Background,
        // A Job orphans its pods unless the caller decides otherwise.
        other => return Err(ApiError::not_implemented(&format!("propagationPolicy {}", other.unwrap_or("Orphan")))),
    };
    let object = existing(state, call, resource)?;
    let (name, uid) = (objects::name(&object), objects::uid(&object));
    for (field, found) in [("uid", uid), ("resourceVersion", objects::text(&object, "resourceVersion"))] {
        if let Some(wanted) = options["preconditions"][field].as_str().filter(|wanted| *wanted != found) {
            let why = format!("the {field} in the precondition ({wanted}) does not match the one in record ({found})");
            return Err(ApiError::conflict(resource, name, &why));
        }
    }
    let key = resource.key(objects::namespace(&object), name);
    Ok(match remove(state, &key, propagation) {
        Some(marked) => render(call, resource, &marked),
        None if resource.returns_deleted => render(call, resource, &object),
        None => Json(status::deleted(resource, name, uid)).into_response(),
    })
}

/// Deletes an object. Returns it if its finalizers, or the content of a namespace, hold it.
///
/// Source: Kubernetes documentation, "Garbage Collection", "Finalizers", "Use Cascading Deletion in a Cluster".
pub(crate) fn remove(state: &mut State, key: &Key, propagation: Propagation) -> Option<Arc<Value>> {
    let old = state.get(key).cloned()?;
    let mut object = Value::clone(&old);
    match propagation {
        Propagation::Foreground => objects::add_finalizer(&mut object, FOREGROUND),
        Propagation::Background => objects::remove_finalizer(&mut object, FOREGROUND),
    }
    let is_namespace = key.resource == "namespaces";
    if objects::finalizers(&object).is_empty() && !is_namespace {
        state.remove(key);
        return None;
    }
    if !objects::deleting(&object) {
        objects::set(&mut object, "deletionTimestamp", Some(objects::now().into()));
        if is_namespace {
            objects::set_top(&mut object, "status", Some(json!({ "phase": "Terminating" })));
        } else {
            objects::set(&mut object, "deletionGracePeriodSeconds", Some(0.into()));
        }
    }
    Some(update(state, key, &old, object))
}
