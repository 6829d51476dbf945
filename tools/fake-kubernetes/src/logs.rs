//! The logs of pods: reading them is the API's, writing them is an addition for the engine's stand-in, which has no
//! kubelet.

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use crate::http::Call;
use crate::objects;
use crate::status::ApiError;
use crate::store::State;

/// How much of a log is kept, in bytes from its end.
const LOG_LIMIT: usize = 1024 * 1024;

/// The end of a pod's output.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Vec<u8>);

impl Log {
    /// What is kept.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends to it, or replaces it.
    pub(crate) fn write(&mut self, bytes: &[u8], append: bool) {
        if !append {
            self.0.clear();
        }
        self.0.extend_from_slice(bytes);
        self.0.drain(..self.0.len().saturating_sub(LOG_LIMIT));
    }

    /// The last `lines` lines.
    fn tail(&self, lines: usize) -> &[u8] {
        let body = self.0.strip_suffix(b"\n").unwrap_or(&self.0);
        let mut ends = (0..body.len()).rev().filter(|at| body[*at] == b'\n');
        match lines.checked_sub(1) {
            Some(before) => &self.0[ends.nth(before).map_or(0, |end| end + 1)..],
            None => &[],
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_counts_lines_with_and_without_an_end() {
        for (text, lines, tail) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc", 9, "a\nb\nc"),
            ("a\nb", 0, ""),
            ("", 3, ""),
        ] {
            assert_eq!(Log(text.into()).tail(lines), tail.as_bytes(), "{text:?} {lines}");
        }
    }

    #[test]
    fn of_a_long_log_the_end_is_kept() {
        let mut log = Log::default();
        log.write(&vec![b'x'; LOG_LIMIT], true);
        log.write(b"the end", true);
        assert_eq!(log.bytes().len(), LOG_LIMIT);
        assert!(log.bytes().ends_with(b"xthe end"));
    }
}
