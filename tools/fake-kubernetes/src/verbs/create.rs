//! create

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    answer::Answer,
    call::Call,
    meta,
    object::{self, Decoded},
    registry::Resource,
    status::ApiError,
    store::{State, Store},
};

/// Creates the object in the body.
pub(crate) fn create(store: &Store, call: &Call, resource: &Resource, body: Value) -> Result<Answer, ApiError> {
    let Decoded { object, unknown } = object::decode(resource, body).map_err(|why| why.refuse(resource))?;
    let warnings = object::field_validation(call, &unknown).map_err(|why| why.refuse(resource))?;
    let namespace = &call.request.namespace;
    let object = store.write(|state| insert(state, resource, namespace, object, call.dry_run()))?;
    Ok(Answer::Object(StatusCode::CREATED, object, warnings))
}

/// Stores a new object, after all that is done to new ones.
pub(crate) fn insert(
    state: &mut State,
    resource: &Resource,
    namespace: &str,
    mut object: Value,
    dry_run: bool,
) -> Result<Arc<Value>, ApiError> {
    place(&mut object, resource, namespace)?;
    if !meta::text(&object, "resourceVersion").is_empty() {
        let message = "resourceVersion should not be set on objects to be created";
        return Err(ApiError::internal(message));
    }
    let prefix = meta::text(&object, "generateName").to_owned();
    if meta::name(&object).is_empty() && !prefix.is_empty() {
        let name = meta::generated_name(&prefix);
        meta::set(&mut object, "name", Some(name.into()));
    }
    let name = meta::name(&object).to_owned();
    if resource.namespaced {
        let home = state.namespace(namespace).ok_or_else(|| ApiError::no_namespace(namespace))?;
        if meta::deleting(home) {
            return Err(ApiError::terminating(resource, &name, namespace));
        }
    }
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
        meta::set(&mut object, field, None);
    }
    meta::set(&mut object, "uid", Some(Uuid::new_v4().to_string().into()));
    meta::set(&mut object, "creationTimestamp", Some(meta::now().into()));
    if object::counts_generations(resource) {
        meta::set(&mut object, "generation", Some(1.into()));
    }
    if resource.status {
        meta::set_top(&mut object, "status", None);
    }
    object::prepare(resource, &mut object, None);
    object::validate(resource, &object, None)?;
    let key = resource.key(namespace, &name);
    if state.get(&key).is_some() {
        return Err(ApiError::already_exists(resource, &name));
    }
    if dry_run {
        return Ok(Arc::new(object));
    }
    Ok(state.put(&key, object))
}

/// The namespace is the one in the path; the object may say it too, but no other.
pub(crate) fn place(object: &mut Value, resource: &Resource, namespace: &str) -> Result<(), ApiError> {
    let stated = meta::namespace(object);
    if !resource.namespaced {
        meta::set(object, "namespace", None);
    } else if stated.is_empty() || stated == namespace {
        meta::set(object, "namespace", Some(namespace.into()));
    } else {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}
