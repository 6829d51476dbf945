//! The `log` subresource of pods: reading is the real API's, writing is a door for whoever plays the kubelet.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch::Receiver;

use crate::{Api, call::Call, logs::Log, meta, registry::Resource, status::ApiError, store::State};

/// `PUT …/pods/{name}/log`: what the container wrote; with `append=true` it is added to what there is.
pub(crate) fn write(api: &Api, call: &Call, resource: &Resource, bytes: &[u8]) -> Result<Response, ApiError> {
    api.store.write(|state| {
        let pod = pod(state, call, resource)?;
        let container = container(&pod, call)?;
        state.write_log(meta::uid(&pod), &container, bytes, call.is_set("append"));
        let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
        Ok(Json(status).into_response())
    })
}

/// `GET …/pods/{name}/log`: what is kept of it, or its end, and with `follow=true` what comes until the pod ends.
/// `sinceSeconds`, `sinceTime` and `timestamps` make no difference: nobody knows when a line was written.
pub(crate) fn read(api: &Arc<Api>, call: &Call, resource: &Resource) -> Result<Response, ApiError> {
    let tail = call.number("tailLines")?;
    let limit = call.number("limitBytes")?.unwrap_or(u64::MAX);
    let (uid, container, position) = api.store.read(|state| {
        let pod = pod(state, call, resource)?;
        let container = container(&pod, call)?;
        let name = meta::name(&pod);
        if call.is_set("previous") {
            return Err(ApiError::bad_request(format!(
                "previous terminated container \"{container}\" in pod \"{name}\" not found"
            )));
        }
        let uid = meta::uid(&pod).to_owned();
        let log = state.log(&uid, &container);
        if log.is_none()
            && let Some(reason) = waiting(&pod, &container)
        {
            return Err(ApiError::bad_request(format!(
                "container \"{container}\" in pod \"{name}\" is waiting to start: {reason}"
            )));
        }
        let position = match (log, tail) {
            (None, _) => 0,
            (Some(log), None) => log.start(),
            (Some(log), Some(lines)) => log.tail(usize::try_from(lines).unwrap_or(usize::MAX)),
        };
        Ok((uid, container, position))
    })?;
    let reader = Reader {
        changed: api.store.subscribe(),
        stop: api.stop.clone(),
        api: Arc::clone(api),
        follow: call.is_set("follow"),
        uid,
        container,
        position,
        left: limit,
    };
    let chunks = stream::unfold(reader, async |mut reader| {
        let chunk = reader.next().await?;
        Some((Ok::<_, Infallible>(chunk), reader))
    });
    let content_type = [(header::CONTENT_TYPE, "text/plain")];
    Ok((content_type, Body::from_stream(chunks)).into_response())
}

fn pod(state: &State, call: &Call, resource: &Resource) -> Result<Arc<Value>, ApiError> {
    let request = &call.request;
    state
        .get(&resource.key(&request.namespace, &request.name))
        .cloned()
        .ok_or_else(|| ApiError::not_found(resource, &request.name))
}

/// The container that is meant: a pod with one needs no name.
fn container(pod: &Value, call: &Call) -> Result<String, ApiError> {
    let names: Vec<&str> = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| meta::list(&pod["spec"][list]))
        .filter_map(|container| container["name"].as_str())
        .collect();
    let name = meta::name(pod);
    match (call.get("container").filter(|name| !name.is_empty()), names.as_slice()) {
        (Some(wanted), names) if names.contains(&wanted) => Ok(wanted.to_owned()),
        (Some(wanted), _) => Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        (None, [only]) => Ok((*only).to_owned()),
        (None, names) => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            names.join(" ")
        ))),
    }
}

/// What a container that has not started waits for, if a node has it.
fn waiting<'a>(pod: &'a Value, container: &str) -> Option<&'a str> {
    meta::list(&pod["status"]["containerStatuses"])
        .iter()
        .find(|status| status["name"] == container)?["state"]["waiting"]["reason"]
        .as_str()
}

/// Someone who reads a log.
struct Reader {
    api: Arc<Api>,
    changed: Receiver<u64>,
    stop: Receiver<bool>,
    uid: String,
    container: String,
    position: u64,
    /// Bytes that may still be sent.
    left: u64,
    follow: bool,
}

impl Reader {
    /// The next piece; none when there is no more.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.changed.mark_unchanged();
            let (bytes, finished) = self.api.store.read(|state| {
                let log = state.log(&self.uid, &self.container);
                let bytes = log.map_or(&[][..], |log| log.since(self.position));
                let bytes = Bytes::copy_from_slice(bytes);
                self.position = log.map_or(self.position, Log::end);
                (bytes, is_finished(state, &self.uid))
            });
            if !bytes.is_empty() && self.left > 0 {
                let length = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= length as u64;
                return Some(bytes.slice(..length));
            }
            if !self.follow || finished || self.left == 0 {
                return None;
            }
            tokio::select! {
                open = self.changed.changed() => open.ok()?,
                _ = self.stop.wait_for(|stop| *stop) => return None,
            }
        }
    }
}

/// Whether nothing more will be written: the pod has ended, or is no more.
fn is_finished(state: &State, uid: &str) -> bool {
    state
        .by_uid(uid)
        .and_then(|key| state.get(key))
        .is_none_or(|pod| matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
}
