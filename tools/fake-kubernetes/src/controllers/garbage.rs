//! What owns something takes it along.
//!
//! Source: Kubernetes documentation, "Garbage Collection", "Owners and Dependents".

use serde_json::Value;

use crate::{
    meta,
    store::{Change, Event, Key, State},
    verbs::delete::{self, FOREGROUND, ORPHAN, Propagation},
};

pub(super) fn react(state: &mut State, change: &Change) {
    if change.event == Event::Deleted {
        for key in state.dependents(meta::uid(&change.object)) {
            collect(state, &key);
        }
        for owner in meta::owners(&change.object) {
            let owner = owner["uid"].as_str().unwrap_or_default();
            if let Some(key) = state.by_uid(owner).cloned() {
                work_on(state, &key);
            }
        }
    } else {
        work_on(state, &change.key);
        collect(state, &change.key);
    }
}

/// Deletes the object if it has owners and none of them exists; forgets those that don't.
fn collect(state: &mut State, key: &Key) {
    let Some(object) = state.get(key).cloned() else {
        return;
    };
    let owners = meta::owners(&object);
    let exists = |owner: &&Value| {
        let uid = owner["uid"].as_str().unwrap_or_default();
        state.by_uid(uid).is_some()
    };
    let left: Vec<Value> = owners.iter().filter(exists).cloned().collect();
    if left.len() == owners.len() {
        return;
    }
    if left.is_empty() {
        if !meta::deleting(&object) {
            delete::remove(state, key, Propagation::Background);
        }
    } else {
        let mut object = Value::clone(&object);
        meta::set(&mut object, "ownerReferences", Some(left.into()));
        state.put(key, object);
    }
}

/// Goes on with a deletion that waits for dependents.
fn work_on(state: &mut State, key: &Key) {
    let Some(object) = state.get(key).cloned() else {
        return;
    };
    if !meta::deleting(&object) {
        return;
    }
    let finalizers = meta::finalizers(&object);
    let dependents = state.dependents(meta::uid(&object));
    if finalizers.contains(&ORPHAN) {
        for dependent in dependents {
            disown(state, &dependent, meta::uid(&object));
        }
        release(state, key, ORPHAN);
    } else if finalizers.contains(&FOREGROUND) {
        for dependent in dependents {
            let Some(found) = state.get(&dependent).filter(|found| !meta::deleting(found)) else {
                continue;
            };
            let propagation = if state.dependents(meta::uid(found)).is_empty() {
                Propagation::Background
            } else {
                Propagation::Foreground
            };
            delete::remove(state, &dependent, propagation);
        }
        if !is_blocked(state, meta::uid(&object)) {
            release(state, key, FOREGROUND);
        }
    }
}

/// Whether a dependent that is still there blocks its owner's deletion.
fn is_blocked(state: &State, owner: &str) -> bool {
    state.dependents(owner).iter().any(|key| {
        state.get(key).is_some_and(|object| {
            meta::owners(object)
                .iter()
                .any(|reference| reference["uid"] == owner && reference["blockOwnerDeletion"] == true)
        })
    })
}

/// Takes an owner out of an object's references.
fn disown(state: &mut State, key: &Key, owner: &str) {
    let Some(object) = state.get(key) else {
        return;
    };
    let mut object = Value::clone(object);
    let left: Vec<Value> =
        meta::owners(&object).iter().filter(|reference| reference["uid"] != owner).cloned().collect();
    let left = (!left.is_empty()).then(|| left.into());
    meta::set(&mut object, "ownerReferences", left);
    state.put(key, object);
}

/// Takes a finalizer off an object, which goes with the last one if it is being deleted.
pub(super) fn release(state: &mut State, key: &Key, finalizer: &str) {
    let Some(object) = state.get(key) else {
        return;
    };
    if !meta::finalizers(object).contains(&finalizer) {
        return;
    }
    let mut object = Value::clone(object);
    meta::remove_finalizer(&mut object, finalizer);
    let gone = meta::deleting(&object) && meta::finalizers(&object).is_empty();
    state.put(key, object);
    if gone {
        state.remove(key);
    }
}
