//! A file of any length, and a proxy of it.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::header::CONTENT_LENGTH;
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::{Failed, Floor};

/// The length of what an origin writes at once.
const CHUNK: usize = 64 * 1024;

/// A file of this number of bytes.
pub(super) async fn origin(Path(bytes): Path<usize>) -> Response {
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let chunks = stream::unfold(bytes, move |left| {
        let next = chunk.slice(..left.min(CHUNK));
        async move { (left > 0).then(|| (Ok::<_, std::io::Error>(next.clone()), left - next.len())) }
    });
    ([(CONTENT_LENGTH, bytes)], Body::from_stream(chunks)).into_response()
}

/// What the URL in the query string returns.
pub(super) async fn proxy(State(floor): State<Arc<Floor>>, RawQuery(url): RawQuery) -> Result<Response, Failed> {
    let answer = floor.client.get(url.unwrap_or_default()).send().await?.error_for_status()?;
    let length = answer.content_length().unwrap_or_default();
    Ok(([(CONTENT_LENGTH, length)], Body::from_stream(answer.bytes_stream())).into_response())
}
