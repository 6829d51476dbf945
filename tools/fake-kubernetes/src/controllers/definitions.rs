//! With a definition go the objects that it defined.

use std::sync::Arc;

use crate::store::{Change, Event, Key, State};

pub(super) fn react(state: &mut State, change: &Change) {
    if &*change.key.resource != "customresourcedefinitions.apiextensions.k8s.io" || change.event != Event::Deleted {
        return;
    }
    let id: Arc<str> = change.key.name.as_str().into();
    let keys: Vec<Key> = state.list(&id, None, None).map(|(key, _)| key.clone()).collect();
    for key in keys {
        state.remove(&key);
    }
}
