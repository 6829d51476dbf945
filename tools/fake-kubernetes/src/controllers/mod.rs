//! What a cluster does by itself, as far as its users depend on it. The controllers work through the changes one by
//! one, after the request that made them.

mod claims;
mod garbage;
mod jobs;

use std::sync::Arc;

use crate::objects;
use crate::server::Server;
use crate::store::{Change, Key, State};
use crate::verbs::{self, Propagation};

/// Works through the changes until the cluster stops.
pub(crate) async fn run(server: Arc<Server>) {
    let mut changed = server.store.subscribe();
    let mut stop = server.stop.clone();
    loop {
        changed.mark_unchanged();
        while server.store.write(react) {
            tokio::task::yield_now().await;
        }
        tokio::select! {
            open = changed.changed() => if open.is_err() { return },
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Reacts to the oldest change. Returns false if there is none.
fn react(state: &mut State) -> bool {
    let Some(change) = state.next_change() else {
        return false;
    };
    claims::react(state, &change);
    jobs::react(state, &change);
    garbage::react(state, &change);
    empty_namespace(state, &change);
    true
}

/// Removes the content of a deleted namespace, and then the namespace.
///
/// Source: Kubernetes documentation, "Namespaces Walkthrough", "Deleting a namespace".
fn empty_namespace(state: &mut State, change: &Change) {
    let namespace = match change.key.resource.as_str() {
        "namespaces" => Key::clone(&change.key),
        _ if change.deleted => Key::namespace_object(&change.key.namespace),
        _ => return,
    };
    if !state.get(&namespace).is_some_and(|namespace| objects::deleting(namespace)) {
        return;
    }
    let content = state.content(&namespace.name);
    if content.is_empty() {
        state.remove(&namespace);
    }
    for key in content {
        if !state.get(&key).is_some_and(|object| objects::deleting(object)) {
            verbs::remove(state, &key, Propagation::Background);
        }
    }
}
