//! update and patch

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::create;
use crate::{
    answer::Answer,
    apply,
    call::Call,
    meta,
    object::{self, Decoded, Unreadable},
    patch::Format,
    registry::Resource,
    status::{ApiError, FieldError},
    store::{State, Store},
};

/// Replaces the object by the one in the body, or its status by the body's.
pub(crate) fn update(store: &Store, call: &Call, resource: &Resource, body: Value) -> Result<Answer, ApiError> {
    let name = &call.request.name;
    let Decoded { mut object, unknown } = object::decode(resource, body).map_err(|why| why.refuse(resource))?;
    let warnings = object::field_validation(call, &unknown).map_err(|why| why.refuse(resource))?;
    place(&mut object, call, resource)?;
    let unconditional = meta::text(&object, "resourceVersion").is_empty();
    if unconditional && resource.schema().is_some() {
        let detail = "must be specified for an update";
        let error = FieldError::invalid("metadata.resourceVersion", &json!(0), detail);
        let (group, plural) = (&resource.group, &resource.plural);
        return Err(ApiError::invalid_kind(group, plural, name, &[error]));
    }
    let object = store.write(|state| {
        let old = existing(state, call, resource)?;
        replace(state, call, resource, &old, object)
    })?;
    Ok(Answer::Object(StatusCode::OK, object, warnings))
}

/// Changes the object as the body says. A server-side apply creates what is not there.
pub(crate) fn patch(store: &Store, call: &Call, resource: &Resource, body: &Value) -> Result<Answer, ApiError> {
    let format = Format::of(&call.content_type, resource)?;
    if format == Format::Apply {
        check_applied(resource, body)?;
    }
    let manager = call.get("fieldManager").unwrap_or_default();
    if format == Format::Apply && manager.is_empty() {
        let detail = "is required for apply patch";
        let error = FieldError::required("fieldManager", detail);
        let options = ("meta.k8s.io", "PatchOptions");
        return Err(ApiError::invalid_kind(options.0, options.1, "", &[error]));
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
        let patched = object.to_string();
        let Decoded { mut object, unknown } =
            object::decode(resource, object).map_err(|why| unreadable(&patched, &why))?;
        let warnings = object::field_validation(call, &unknown).map_err(|why| unreadable(&patched, &why))?;
        place(&mut object, call, resource)?;
        check_uid(resource, &old, &object)?;
        let object = replace(state, call, resource, &old, object)?;
        Ok(Answer::Object(StatusCode::OK, object, warnings))
    })
}

/// What is applied says what it is.
fn check_applied(resource: &Resource, body: &Value) -> Result<(), ApiError> {
    let text = |field: &str| body[field].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if api_version == resource.api_version() && kind == resource.kind {
        return Ok(());
    }
    let api_version = if api_version.is_empty() { "/" } else { api_version };
    let message = format!("invalid object type: {api_version}, Kind={kind}");
    Err(ApiError::bad_request(message))
}

fn apply_new(
    state: &mut State,
    call: &Call,
    resource: &Resource,
    body: &Value,
    manager: &str,
) -> Result<Answer, ApiError> {
    let mut object = body.clone();
    apply::settle(&mut object, body, manager, &resource.api_version());
    let patched = object.to_string();
    let Decoded { mut object, unknown } = object::decode(resource, object).map_err(|why| unreadable(&patched, &why))?;
    let warnings = object::field_validation(call, &unknown).map_err(|why| unreadable(&patched, &why))?;
    place(&mut object, call, resource)?;
    let namespace = &call.request.namespace;
    let object = create::insert(state, resource, namespace, object, call.dry_run())?;
    Ok(Answer::Object(StatusCode::CREATED, object, warnings))
}

/// The refusal of a patch whose result can't be read.
fn unreadable(patched: &str, why: &Unreadable) -> ApiError {
    let error = FieldError::invalid("patch", &patched.into(), &why.to_string());
    ApiError::invalid_kind("", "", "", &[error])
}

/// The object's place is the one in the path; the object may say it too, but no other.
fn place(object: &mut Value, call: &Call, resource: &Resource) -> Result<(), ApiError> {
    let name = &call.request.name;
    create::place(object, resource, &call.request.namespace)?;
    if meta::name(object) != name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            meta::name(object)
        )));
    }
    Ok(())
}

/// A patch can't make an object another one.
fn check_uid(resource: &Resource, old: &Value, patched: &Value) -> Result<(), ApiError> {
    if meta::uid(patched) == meta::uid(old) {
        return Ok(());
    }
    let detail = "field is immutable";
    let error = FieldError::invalid("metadata.uid", &meta::uid(patched).into(), detail);
    Err(ApiError::invalid(resource, meta::name(old), &[error]))
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
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(old));
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
