//! A namespace that is deleted goes when nothing is left in it.
//!
//! Source: Kubernetes documentation, "Namespaces Walkthrough", "Deleting a namespace".

use crate::{
    meta,
    store::{Change, Event, Key, State},
    verbs::delete::{self, Propagation},
};

pub(super) fn react(state: &mut State, change: &Change) {
    let name = if &*change.key.resource == "namespaces" {
        &change.key.name
    } else if change.event == Event::Deleted {
        &change.key.namespace
    } else {
        return;
    };
    if !state.namespace(name).is_some_and(|namespace| meta::deleting(namespace)) {
        return;
    }
    // What is marked already only waits for its finalizers.
    let content = content(state, name);
    let unmarked = |key: &&Key| !state.get(key).is_some_and(|object| meta::deleting(object));
    let unmarked: Vec<Key> = content.iter().filter(unmarked).cloned().collect();
    if content.is_empty() {
        state.remove(&Key::new(&"namespaces".into(), "", name));
    }
    for key in unmarked {
        delete::remove(state, &key, Propagation::Background);
    }
}

fn content(state: &State, namespace: &str) -> Vec<Key> {
    state
        .resources()
        .iter()
        .flat_map(|resource| state.list(resource, Some(namespace), None).map(|(key, _)| key.clone()))
        .collect()
}
