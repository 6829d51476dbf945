//! A claim stays as long as a pod uses it.
//!
//! Source: Kubernetes documentation, "Persistent Volumes", "Storage Object in Use Protection".

use serde_json::Value;

use super::garbage::release;
use crate::cluster::{
    builtin::claims::PROTECTION,
    meta,
    store::{Change, Event, Key, State},
};

const CLAIMS: &str = "persistentvolumeclaims";
const PODS: &str = "pods";

pub(super) fn react(state: &mut State, change: &Change) {
    match &*change.key.resource {
        CLAIMS if change.event != Event::Deleted => release_unused(state, &change.key),
        PODS if change.event == Event::Deleted || has_ended(&change.object) => {
            for name in claims_of(&change.object) {
                release_unused(state, &Key::new(&CLAIMS.into(), &change.key.namespace, name));
            }
        }
        _ => {}
    }
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
