//! update and patch

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::create;
use crate::cluster::{
    answer::Answer,
    apply,
    call::Call,
    meta,
    object::{self, Decoded},
    patch::Format,
    registry::Resource,
    status::{ApiError, FieldError},
    store::{State, Store},
};

/// Replaces the object by the one in the body, or its status by the body's.
pub(crate) fn update(
    store: &Store,
    call: &Call,
    resource: &Resource,
    body: Value,
) -> Result<Answer, ApiError> {
    let name = &call.request.name;
    let Decoded { mut object, unknown } =
        object::decode(resource, body).map_err(|why| object::undecodable(resource, &why))?;
    let warnings = object::field_validation(call, &unknown)
        .map_err(|why| object::undecodable(resource, &why))?;
    create::place(&mut object, resource, &call.request.namespace)?;
    if meta::name(&object) != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            meta::name(&object)
        )));
    }
    let unconditional = meta::text(&object, "resourceVersion").is_empty();
    if unconditional && resource.schema().is_some() {
        let detail = "must be specified for an update";
        let error = FieldError::invalid("metadata.resourceVersion", &json!(0), detail);
        return Err(ApiError::invalid(resource, name, &[error]));
    }
    let object = store.write(|state| {
        let old = existing(state, call, resource)?;
        replace(state, call, resource, &old, object)
    })?;
    Ok(Answer::Object(StatusCode::OK, object, warnings))
}

/// Changes the object as the body says. A server-side apply creates what is not there.
pub(crate) fn patch(
    store: &Store,
    call: &Call,
    resource: &Resource,
    body: &Value,
) -> Result<Answer, ApiError> {
    let format = Format::of(&call.content_type, resource)?;
    let manager = call.get("fieldManager").unwrap_or_default();
    if format == Format::Apply && manager.is_empty() {
        let detail = "is required for apply patch";
        let error = FieldError::required("fieldManager", detail);
        return Err(ApiError::invalid_kind("PatchOptions.meta.k8s.io", "", &[error]));
    }
    store.write(|state| {
        let old = match existing(state, call, resource) {
            Err(error) if error.is_not_found() && format == Format::Apply => {
                return apply_new(state, call, resource, body, manager);
            }
            other => other?,
        };
        let mut object = format.patch(&old, body)?;
        if format == Format::Apply {
            apply::settle(&mut object, body, manager, &resource.api_version());
        }
        let Decoded { mut object, unknown } =
            object::decode(resource, object).map_err(|why| unreadable(body, &why))?;
        let warnings = object::field_validation(call, &unknown).map_err(ApiError::bad_request)?;
        create::place(&mut object, resource, &call.request.namespace)?;
        if meta::name(&object) != call.request.name {
            let detail = "field is immutable";
            let name = Value::from(meta::name(&object));
            let error = FieldError::invalid("metadata.name", &name, detail);
            return Err(ApiError::invalid(resource, &call.request.name, &[error]));
        }
        let object = replace(state, call, resource, &old, object)?;
        Ok(Answer::Object(StatusCode::OK, object, warnings))
    })
}

fn apply_new(
    state: &mut State,
    call: &Call,
    resource: &Resource,
    body: &Value,
    manager: &str,
) -> Result<Answer, ApiError> {
    let mut object = body.clone();
    if !object.is_object() {
        return Err(ApiError::bad_request("error decoding patch: it must be an object"));
    }
    apply::settle(&mut object, body, manager, &resource.api_version());
    let Decoded { mut object, unknown } =
        object::decode(resource, object).map_err(|why| unreadable(body, &why))?;
    let warnings = object::field_validation(call, &unknown).map_err(ApiError::bad_request)?;
    meta::set(&mut object, "name", Some(call.request.name.clone().into()));
    let namespace = &call.request.namespace;
    let object = create::insert(state, resource, namespace, object, call.dry_run())?;
    Ok(Answer::Object(StatusCode::CREATED, object, warnings))
}

/// The refusal of a patch whose result can't be read.
fn unreadable(patch: &Value, why: &str) -> ApiError {
    let text = Value::from(patch.to_string());
    ApiError::invalid_kind("", "", &[FieldError::invalid("patch", &text, why)])
}

fn existing(state: &State, call: &Call, resource: &Resource) -> Result<Arc<Value>, ApiError> {
    let request = &call.request;
    state
        .get(&resource.key(&request.namespace, &request.name))
        .cloned()
        .ok_or_else(|| ApiError::not_found(resource, &request.name))
}

/// Stores the new state of an object, or of its status only if that is what the path names.
fn replace(
    state: &mut State,
    call: &Call,
    resource: &Resource,
    old: &Arc<Value>,
    sent: Value,
) -> Result<Arc<Value>, ApiError> {
    let name = &call.request.name;
    let revision = meta::text(&sent, "resourceVersion");
    if !revision.is_empty() && revision != meta::text(old, "resourceVersion") {
        return Err(ApiError::modified(resource, name));
    }
    let uid = meta::uid(&sent);
    if !uid.is_empty() && uid != meta::uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::uid(old)
        );
        return Err(ApiError::conflict(resource, name, &why));
    }

    let mut object = if call.request.subresource == "status" {
        let mut object = Value::clone(old);
        meta::set_top(&mut object, "status", sent.get("status").cloned());
        object
    } else {
        let mut object = sent;
        if resource.status {
            meta::set_top(&mut object, "status", old.get("status").cloned());
        }
        object::prepare(resource, &mut object, Some(old));
        object
    };
    // What only the server writes.
    for field in [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
    ] {
        meta::set(&mut object, field, old["metadata"].get(field).cloned());
    }
    object::validate(resource, &object, Some(old))?;
    if object == **old {
        return Ok(Arc::clone(old));
    }
    if object::counts_generations(resource) && object::spec_changed(resource, old, &object) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or_default() + 1;
        meta::set(&mut object, "generation", Some(generation.into()));
    }
    if call.dry_run() {
        return Ok(Arc::new(object));
    }
    let key = resource.key(&call.request.namespace, name);
    let stored = state.put(&key, object);
    if meta::deleting(&stored) && meta::finalizers(&stored).is_empty() && !is_namespace(resource) {
        state.remove(&key);
    }
    Ok(stored)
}

/// Namespaces have finalizers of their own, in their spec; their controller takes them out.
fn is_namespace(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "namespaces"
}
