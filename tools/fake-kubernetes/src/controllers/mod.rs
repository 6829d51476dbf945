//! What a cluster does by itself, as far as anybody here relies on it: pods for Jobs, garbage collection,
//! emptying namespaces. Works off the changes one by one, like the real controllers after the fact.

mod claims;
mod definitions;
mod garbage;
mod jobs;
mod namespaces;

use std::sync::Arc;

use super::{
    Api,
    registry::Registry,
    store::{Change, Event, State},
};

/// Follows the changes until the cluster stops.
pub(crate) async fn run(api: Arc<Api>) {
    let mut changed = api.store.subscribe();
    let mut stop = api.stop.clone();
    let mut position = None;
    loop {
        changed.mark_unchanged();
        let changes = api.store.read(|state| {
            let since = position.map(|position| state.since(position).map(|all| all.cloned().collect()));
            match since {
                Some(Ok(changes)) => changes,
                // At the start, or too far behind: everything might have changed.
                None | Some(Err(_)) => {
                    position = Some(state.revision());
                    everything(state)
                }
            }
        });
        let idle = changes.is_empty();
        for change in changes {
            api.store.write(|state| react(state, &api.registry, &change));
            position = position.max(Some(change.revision));
            tokio::task::yield_now().await;
        }
        if idle {
            tokio::select! {
                open = changed.changed() => if open.is_err() { return },
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }
}

/// Every object as if it had just come.
fn everything(state: &State) -> Vec<Change> {
    state
        .resources()
        .iter()
        .flat_map(|resource| {
            state.list(resource, None, None).map(|(key, object)| Change {
                revision: 0,
                event: Event::Added,
                key: key.clone(),
                object: Arc::clone(object),
                previous: None,
            })
        })
        .collect()
}

fn react(state: &mut State, registry: &Registry, change: &Change) {
    definitions::react(state, change);
    claims::react(state, change);
    jobs::react(state, registry, change);
    garbage::react(state, change);
    namespaces::react(state, change);
}
