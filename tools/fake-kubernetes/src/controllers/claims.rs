//! A claim is bound by the first pod that runs with it, and stays as long as a pod uses it.
//!
//! Source: Kubernetes documentation, "Storage Classes", "Volume Binding Mode", and "Persistent Volumes", "Storage
//! Object in Use Protection". The volumes themselves are no objects here.

use serde_json::{Value, json};

use super::garbage::release;
use crate::{
    builtin::claims::PROTECTION,
    meta,
    store::{Change, Event, Key, State},
};

const CLAIMS: &str = "persistentvolumeclaims";
const PODS: &str = "pods";

pub(super) fn react(state: &mut State, change: &Change) {
    match &*change.key.resource {
        CLAIMS if change.event != Event::Deleted => release_unused(state, &change.key),
        PODS if change.event != Event::Deleted && change.object["status"]["phase"] == "Running" => {
            for name in claims_of(&change.object) {
                bind(state, &Key::new(&CLAIMS.into(), &change.key.namespace, name));
            }
        }
        PODS if change.event == Event::Deleted || has_ended(&change.object) => {
            for name in claims_of(&change.object) {
                release_unused(state, &Key::new(&CLAIMS.into(), &change.key.namespace, name));
            }
        }
        _ => {}
    }
}

/// Binds a claim, unless it is bound.
fn bind(state: &mut State, claim: &Key) {
    let Some(mut object) = state.get(claim).map(|claim| Value::clone(claim)) else {
        return;
    };
    if object["status"]["phase"] != "Pending" {
        return;
    }
    object["spec"]["volumeName"] = format!("pvc-{}", meta::uid(&object)).into();
    object["status"] = json!({
        "phase": "Bound",
        "accessModes": object["spec"]["accessModes"],
        "capacity": {"storage": object["spec"]["resources"]["requests"]["storage"]},
    });
    state.put(claim, object);
}

/// Lets go of a claim that is to be deleted and that no pod uses.
fn release_unused(state: &mut State, claim: &Key) {
    if !state.get(claim).is_some_and(|claim| meta::deleting(claim)) {
        return;
    }
    let used = state
        .list(&PODS.into(), Some(&claim.namespace), None)
        .any(|(_, pod)| !has_ended(pod) && claims_of(pod).any(|name| name == claim.name));
    if !used {
        release(state, claim, PROTECTION);
    }
}

fn has_ended(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn claims_of(pod: &Value) -> impl Iterator<Item = &str> {
    meta::list(&pod["spec"]["volumes"])
        .iter()
        .filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
}
