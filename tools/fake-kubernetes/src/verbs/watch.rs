//! watch
//!
//! Source: Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks", "Streaming lists".

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{
    sync::watch::Receiver,
    time::{Instant, timeout_at},
};

use super::read;
use crate::{
    Api,
    answer::{in_version, shaped},
    call::{Call, Shape},
    registry::Resource,
    selectors::Selector,
    status::ApiError,
    store::{Change, Event},
};

/// How long a watch lasts if the caller does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How often a bookmark is sent to whoever wants them.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Streams changes, one JSON document per line, until the time is over, the caller goes away or we end.
pub(crate) fn watch(api: &Arc<Api>, call: Call, resource: Arc<Resource>) -> Result<Response, ApiError> {
    let shape = call.shape.ok_or_else(ApiError::not_acceptable)?;
    let selector = read::selector(&call, &resource)?;
    let since = read::revision(call.get("resourceVersion").unwrap_or_default())?;
    let timeout =
        call.number("timeoutSeconds")?.filter(|seconds| *seconds > 0).map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let initial = call.is_set("sendInitialEvents");
    let now = Instant::now();
    let mut watch = Watch {
        changed: api.store.subscribe(),
        stop: api.stop.clone(),
        api: Arc::clone(api),
        bookmarks: call.is_set("allowWatchBookmarks"),
        position: since,
        deadline: now + timeout,
        next_bookmark: now + BOOKMARK_INTERVAL,
        queue: VecDeque::new(),
        ended: false,
        selector,
        shape,
        call,
        resource,
    };
    if since == 0 || initial {
        watch.send_current(initial);
    }
    let events = stream::unfold(watch, async |mut watch| {
        let event = watch.next().await?;
        Some((Ok::<_, Infallible>(event), watch))
    });
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    Ok((content_type, Body::from_stream(events)).into_response())
}

/// A running watch.
struct Watch {
    api: Arc<Api>,
    call: Call,
    resource: Arc<Resource>,
    selector: Selector,
    shape: Shape,
    /// Changes up to this one are sent or queued.
    position: u64,
    queue: VecDeque<Bytes>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    ended: bool,
    changed: Receiver<u64>,
    stop: Receiver<bool>,
}

impl Watch {
    /// The next line; none when it is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            self.changed.mark_unchanged();
            self.read_changes();
            if self.queue.is_empty() {
                self.wait().await;
            }
        }
    }

    /// Waits for a change, or for the time of a bookmark, or for the end.
    async fn wait(&mut self) {
        let until = if self.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
        let waited = tokio::select! {
            waited = timeout_at(until, self.changed.changed()) => waited.is_ok_and(|open| open.is_ok()),
            _ = self.stop.wait_for(|stop| *stop) => {
                self.ended = true;
                return;
            }
        };
        if !waited {
            self.ended = Instant::now() >= self.deadline;
            if self.bookmarks {
                self.next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
                self.bookmark(json!({}));
            }
        }
    }

    /// What is there already, as if it had just been added.
    fn send_current(&mut self, mark_end: bool) {
        let api = Arc::clone(&self.api);
        api.store.read(|state| {
            let namespace = self.call.request.namespace.clone();
            let namespace = Some(namespace.as_str()).filter(|name| !name.is_empty());
            let id = Arc::clone(&self.resource.id);
            for (_, object) in state.list(&id, namespace, None) {
                if self.selector.matches(object) {
                    self.send("ADDED", object);
                }
            }
            self.position = state.revision();
        });
        if mark_end && self.bookmarks {
            self.bookmark(json!({ "k8s.io/initial-events-end": "true" }));
        }
    }

    fn read_changes(&mut self) {
        let api = Arc::clone(&self.api);
        api.store.read(|state| match state.since(self.position) {
            Ok(changes) => {
                for change in changes {
                    self.send_change(change);
                    self.position = change.revision;
                }
            }
            Err(_) => {
                let message = format!("too old resource version: {} ({})", self.position, state.revision());
                let status = ApiError::expired(message, json!({})).status();
                self.push("ERROR", &status);
                self.ended = true;
            }
        });
    }

    /// A change as it looks through the selector: what begins to fit is added, what ceases to fit is deleted.
    fn send_change(&mut self, change: &Change) {
        let namespace = &self.call.request.namespace;
        if *change.key.resource != *self.resource.id || !(namespace.is_empty() || *namespace == change.key.namespace) {
            return;
        }
        let fits = self.selector.matches(&change.object);
        let fitted = change.previous.as_ref().is_some_and(|previous| self.selector.matches(previous));
        match (change.event, fitted, fits) {
            (Event::Added | Event::Modified, false, true) => self.send("ADDED", &change.object),
            (Event::Added | Event::Modified, true, true) => self.send("MODIFIED", &change.object),
            (Event::Modified, true, false) | (Event::Deleted, true, _) => {
                self.send("DELETED", &change.object);
            }
            _ => {}
        }
    }

    fn send(&mut self, event: &str, object: &Arc<Value>) {
        let object = in_version(Arc::clone(object), &self.resource);
        let object = shaped(&object, self.shape, &self.call, &self.resource);
        self.push(event, &object);
    }

    fn bookmark(&mut self, annotations: Value) {
        let mut object = json!({
            "kind": self.resource.kind,
            "apiVersion": self.resource.api_version(),
            "metadata": { "resourceVersion": self.position.to_string() },
        });
        if annotations.as_object().is_some_and(|map| !map.is_empty()) {
            object["metadata"]["annotations"] = annotations;
        }
        self.push("BOOKMARK", &object);
    }

    fn push(&mut self, event: &str, object: &Value) {
        let line = format!("{}\n", json!({ "type": event, "object": object }));
        self.queue.push_back(line.into());
    }
}
