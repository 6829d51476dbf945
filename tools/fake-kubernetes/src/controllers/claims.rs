//! A claim is bound by the first pod that runs with it, and stays as long as a pod uses it.
//!
//! Source: Kubernetes documentation, "Volume Binding Mode" and "Storage Object in Use Protection". The volumes
//! themselves are not objects here.

use serde_json::{Value, json};

use super::garbage::release;
use super::jobs::has_ended;
use crate::objects;
use crate::resources::{CLAIMS, PODS, PVC_PROTECTION};
use crate::store::{Change, Key, State};

pub(super) fn react(state: &mut State, change: &Change) {
    let pod = &change.object;
    match change.key.resource.as_str() {
        CLAIMS if !change.deleted => release_unused(state, &change.key),
        PODS if change.deleted || has_ended(pod) => {
            for claim in claims_of(pod) {
                release_unused(state, &Key::new(CLAIMS, &change.key.namespace, claim));
            }
        }
        PODS if pod["status"]["phase"] == "Running" => {
            for claim in claims_of(pod) {
                bind(state, &Key::new(CLAIMS, &change.key.namespace, claim));
            }
        }
        _ => {}
    }
}

fn bind(state: &mut State, claim: &Key) {
    if let Some(pending) = state.get(claim).filter(|claim| claim["status"]["phase"] == "Pending") {
        let mut bound = Value::clone(pending);
        bound["status"] = json!({ "phase": "Bound" });
        state.put(claim, bound);
    }
}

/// Releases a deleted claim that no pod uses.
fn release_unused(state: &mut State, claim: &Key) {
    if !state.get(claim).is_some_and(|claim| objects::deleting(claim)) {
        return;
    }
    let used = state
        .list(PODS, Some(&claim.namespace))
        .any(|(_, pod)| !has_ended(pod) && claims_of(pod).any(|name| name == claim.name));
    if !used {
        release(state, claim, PVC_PROTECTION);
    }
}

fn claims_of(pod: &Value) -> impl Iterator<Item = &str> {
    objects::list(&pod["spec"]["volumes"])
        .iter()
        .filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
}
