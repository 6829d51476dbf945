//! Garbage collection: the dependents of a deleted object are deleted or orphaned.
//!
//! Source: Kubernetes documentation, "Garbage Collection", "Owners and Dependents".

use serde_json::Value;

use crate::objects;
use crate::store::{Change, Key, State};
use crate::verbs::{self, FOREGROUND, ORPHAN, Propagation};

pub(super) fn react(state: &mut State, change: &Change) {
    if change.deleted {
        for dependent in state.dependents(objects::uid(&change.object)) {
            collect(state, &dependent);
        }
        for owner in objects::owners(&change.object) {
            let owner = owner["uid"].as_str().unwrap_or_default();
            if let Some(owner) = state.by_uid(owner).cloned() {
                continue_deletion(state, &owner);
            }
        }
    } else {
        continue_deletion(state, &change.key);
        collect(state, &change.key);
    }
}

/// Deletes an object whose owners are all gone. Of several owners, those that are gone are removed from its metadata.
fn collect(state: &mut State, key: &Key) {
    let Some(object) = state.get(key).cloned() else {
        return;
    };
    let owners = objects::owners(&object);
    let exists = |owner: &&Value| owner["uid"].as_str().is_some_and(|uid| state.by_uid(uid).is_some());
    let left: Vec<Value> = owners.iter().filter(exists).cloned().collect();
    if left.len() == owners.len() {
        return;
    }
    if !left.is_empty() {
        let mut object = Value::clone(&object);
        objects::set(&mut object, "ownerReferences", Some(left.into()));
        state.put(key, object);
    } else if !objects::deleting(&object) {
        verbs::remove(state, key, Propagation::Background);
    }
}

/// Continues a deletion that waits for dependents.
fn continue_deletion(state: &mut State, key: &Key) {
    let Some(object) = state.get(key).filter(|object| objects::deleting(object)).cloned() else {
        return;
    };
    let uid = objects::uid(&object);
    let finalizers = objects::finalizers(&object);
    let dependents = state.dependents(uid);
    if finalizers.contains(&ORPHAN) {
        for dependent in dependents {
            disown(state, &dependent, uid);
        }
        release(state, key, ORPHAN);
    } else if finalizers.contains(&FOREGROUND) {
        for dependent in dependents {
            let Some(found) = state.get(&dependent).filter(|found| !objects::deleting(found)) else {
                continue;
            };
            let propagation = match state.dependents(objects::uid(found)).is_empty() {
                true => Propagation::Background,
                false => Propagation::Foreground,
            };
            verbs::remove(state, &dependent, propagation);
        }
        if !is_blocked(state, uid) {
            release(state, key, FOREGROUND);
        }
    }
}

/// Whether a dependent blocks its owner's deletion.
fn is_blocked(state: &State, owner: &str) -> bool {
    let blocks = |reference: &Value| reference["uid"] == owner && reference["blockOwnerDeletion"] == true;
    state
        .dependents(owner)
        .iter()
        .filter_map(|key| state.get(key))
        .any(|dependent| objects::owners(dependent).iter().any(blocks))
}

/// Removes an owner from an object's metadata.
fn disown(state: &mut State, key: &Key, owner: &str) {
    if let Some(object) = state.get(key) {
        let mut object = Value::clone(object);
        let owners = objects::owners(&object).iter();
        let left: Vec<Value> = owners.filter(|reference| reference["uid"] != owner).cloned().collect();
        objects::set(&mut object, "ownerReferences", (!left.is_empty()).then(|| left.into()));
        state.put(key, object);
    }
}

/// Removes a finalizer.
pub(super) fn release(state: &mut State, key: &Key, finalizer: &str) {
    if let Some(old) = state.get(key).cloned() {
        let mut object = Value::clone(&old);
        objects::remove_finalizer(&mut object, finalizer);
        verbs::update(state, key, &old, object);
    }
}
