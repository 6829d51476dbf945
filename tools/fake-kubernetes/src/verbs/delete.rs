//! delete and deletecollection
//!
//! Source: Kubernetes documentation, "Garbage Collection", "Finalizers", "Use Cascading Deletion in a Cluster".

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::read;
use crate::{
    answer::Answer,
    call::Call,
    meta,
    registry::Resource,
    status::{self, ApiError, FieldError},
    store::{Key, State, Store},
};

/// Holds an object until its dependents are gone.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Holds an object until its dependents have forgotten it.
pub(crate) const ORPHAN: &str = "orphan";

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Foreground,
    Background,
    Orphan,
}

/// What a deletion says besides the name.
#[derive(Clone, Debug, Default)]
struct Options {
    propagation: Option<Propagation>,
    uid: Option<String>,
    revision: Option<String>,
    dry_run: bool,
}

impl Options {
    /// From the body if there is one, else from the query.
    fn read(call: &Call, body: &Value) -> Result<Self, ApiError> {
        let (policy, orphan, dry_run) = if body.is_object() {
            let dry_run = meta::list(&body["dryRun"]).iter().any(|value| value == "All");
            let policy = body["propagationPolicy"].as_str();
            (policy, body["orphanDependents"].as_bool(), dry_run)
        } else {
            let orphan = call.get("orphanDependents").map(|value| value == "true");
            (call.get("propagationPolicy"), orphan, call.dry_run())
        };
        if let (Some(policy), Some(_)) = (policy, orphan) {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            let error = FieldError::invalid("propagationPolicy", &policy.into(), detail);
            return Err(invalid(&error));
        }
        let propagation = match (policy, orphan) {
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (None, None) => None,
            (Some(other), _) => {
                let allowed = ["Foreground", "Background", "Orphan", "nil"].map(|text| format!("\"{text}\""));
                let error = FieldError::unsupported("propagationPolicy", &other.into(), &allowed);
                return Err(invalid(&error));
            }
        };
        let precondition = |field: &str| body["preconditions"][field].as_str().map(str::to_owned);
        Ok(Self {
            propagation,
            uid: precondition("uid"),
            revision: precondition("resourceVersion"),
            dry_run: dry_run || call.dry_run(),
        })
    }

    fn check(&self, resource: &Resource, object: &Value) -> Result<(), ApiError> {
        let uid = meta::uid(object);
        if let Some(wanted) = self.uid.as_ref().filter(|wanted| *wanted != uid) {
            let why = format!(
                "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). \
                The object might have been deleted and then recreated"
            );
            return Err(ApiError::precondition(resource, meta::name(object), &why));
        }
        let revision = meta::text(object, "resourceVersion");
        if let Some(wanted) = self.revision.as_ref().filter(|wanted| *wanted != revision) {
            let why = format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
                ({revision}). The object might have been modified"
            );
            return Err(ApiError::precondition(resource, meta::name(object), &why));
        }
        Ok(())
    }

    /// What is done where the caller does not say: dependents go, except for those of Jobs, whose clients
    /// once expected them to stay.
    fn propagation(&self, resource: &Resource) -> (Propagation, Vec<String>) {
        let orphans = resource.built_in().is_some_and(|built_in| built_in.orphans_by_default);
        match self.propagation {
            Some(propagation) => (propagation, Vec::new()),
            None if orphans => {
                let warning = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background \
                    to remove them or set propagationPolicy=Orphan to suppress this warning";
                (Propagation::Orphan, vec![warning.to_owned()])
            }
            None => (Propagation::Background, Vec::new()),
        }
    }
}

/// The refusal of options that make no sense.
fn invalid(error: &FieldError) -> ApiError {
    ApiError::invalid_kind("meta.k8s.io", "DeleteOptions", "", std::slice::from_ref(error))
}

/// Deletes one object.
pub(crate) fn delete(store: &Store, call: &Call, resource: &Resource, body: &Value) -> Result<Answer, ApiError> {
    let options = Options::read(call, body)?;
    let name = &call.request.name;
    let key = resource.key(&call.request.namespace, name);
    let (propagation, warnings) = options.propagation(resource);
    store.write(|state| {
        let object = state.get(&key).cloned().ok_or_else(|| ApiError::not_found(resource, name))?;
        options.check(resource, &object)?;
        let outcome = if options.dry_run { Outcome::Gone(object) } else { remove(state, &key, propagation) };
        let returns_object = resource.built_in().is_some_and(|built_in| built_in.returns_deleted);
        Ok(match outcome {
            Outcome::Marked(object) => Answer::Object(StatusCode::OK, object, warnings),
            Outcome::Gone(object) if returns_object => Answer::Object(StatusCode::OK, object, warnings),
            Outcome::Gone(object) => Answer::Done(status::deleted(resource, name, meta::uid(&object)), warnings),
        })
    })
}

/// Deletes all objects that are selected.
pub(crate) fn delete_collection(
    store: &Store,
    call: &Call,
    resource: &Resource,
    body: &Value,
) -> Result<Answer, ApiError> {
    let options = Options::read(call, body)?;
    let selector = read::selector(call, resource)?;
    let (propagation, _) = options.propagation(resource);
    let namespace = Some(call.request.namespace.as_str()).filter(|name| !name.is_empty());
    store.write(|state| {
        let selected: Vec<(Key, Arc<Value>)> = state
            .list(&resource.id, namespace, None)
            .filter(|(_, object)| selector.matches(object))
            .map(|(key, object)| (key.clone(), Arc::clone(object)))
            .collect();
        if !options.dry_run {
            for (key, _) in &selected {
                remove(state, key, propagation);
            }
        }
        let metadata = json!({ "resourceVersion": state.revision().to_string() });
        let objects = selected.into_iter().map(|(_, object)| object).collect();
        Ok(Answer::List(objects, metadata))
    })
}

/// What became of an object that was to be deleted.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is held by finalizers, and marked.
    Marked(Arc<Value>),
    /// It is gone.
    Gone(Arc<Value>),
}

/// Deletes an object, or marks it if something holds it.
pub(crate) fn remove(state: &mut State, key: &Key, propagation: Propagation) -> Outcome {
    let Some(old) = state.get(key).cloned() else {
        return Outcome::Gone(Arc::default());
    };
    let mut object = Value::clone(&old);
    let (wanted, unwanted) = match propagation {
        Propagation::Foreground => (Some(FOREGROUND), &[ORPHAN][..]),
        Propagation::Orphan => (Some(ORPHAN), &[FOREGROUND][..]),
        Propagation::Background => (None, &[FOREGROUND, ORPHAN][..]),
    };
    for finalizer in unwanted {
        meta::remove_finalizer(&mut object, finalizer);
    }
    if let Some(finalizer) = wanted {
        meta::add_finalizer(&mut object, finalizer);
    }
    let namespace = &*key.resource == "namespaces";
    if meta::finalizers(&object).is_empty() && !namespace {
        let gone = state.remove(key).unwrap_or(old);
        return Outcome::Gone(gone);
    }
    if !meta::deleting(&object) {
        meta::set(&mut object, "deletionTimestamp", Some(meta::now().into()));
        if let Some(generation) = object["metadata"]["generation"].as_i64() {
            meta::set(&mut object, "generation", Some((generation + 1).into()));
        }
        if namespace {
            // It has finalizers of its own, in its spec, and no grace period.
            let status = json!({ "phase": "Terminating" });
            meta::set_top(&mut object, "status", Some(status));
        } else {
            meta::set(&mut object, "deletionGracePeriodSeconds", Some(0.into()));
        }
    }
    if object == *old {
        return Outcome::Marked(old);
    }
    Outcome::Marked(state.put(key, object))
}
