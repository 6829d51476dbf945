//! The logs of pods: reading them is the API's, writing them is an addition for the engine's stand-in, which has no
//! kubelet.

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::call::Call;
use crate::objects;
use crate::status::ApiError;
use crate::store::{Log, State};

/// `GET …/pods/{name}/log`, with `tailLines` and `limitBytes`.
pub(crate) fn read(state: &State, call: &Call, pod: &Value) -> Result<Response, ApiError> {
    for unknown in ["follow", "previous"] {
        if call.is_set(unknown) {
            return Err(ApiError::not_implemented(&format!("logs with {unknown}=true")));
        }
    }
    check_container(call, pod)?;
    let log = match (state.log(objects::uid(pod)), waiting(pod)) {
        (Some(log), _) => log,
        (None, None) => &Log::default(),
        (None, Some(reason)) => {
            let name = objects::name(pod);
            return Err(ApiError::bad_request(format!("container in pod \"{name}\" is waiting to start: {reason}")));
        }
    };
    let bytes = call.number("tailLines")?.map_or(log.bytes(), |lines| log.tail(lines));
    let limit = call.number("limitBytes")?.unwrap_or(usize::MAX);
    let bytes = bytes[..bytes.len().min(limit)].to_vec();
    Ok(([(CONTENT_TYPE, "text/plain")], bytes).into_response())
}

/// `PUT …/pods/{name}/log`: replaces the log by the body, or with `append=true` adds to it.
pub(crate) fn write(state: &mut State, call: &Call, pod: &Value, body: &[u8]) -> Response {
    state.write_log(objects::uid(pod), body, call.is_set("append"));
    "".into_response()
}

/// A pod's containers share one log; a name has to be one of theirs.
fn check_container(call: &Call, pod: &Value) -> Result<(), ApiError> {
    let Some(wanted) = call.query("container") else {
        return Ok(());
    };
    if objects::list(&pod["spec"]["containers"]).iter().any(|container| container["name"] == wanted) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {}", objects::name(pod))))
}

/// Why a pod's container has not started, if the pod has a node.
fn waiting(pod: &Value) -> Option<&str> {
    objects::list(&pod["status"]["containerStatuses"])
        .iter()
        .find_map(|status| status["state"]["waiting"]["reason"].as_str())
}
