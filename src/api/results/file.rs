//! The response of getResult, made from the origin's.

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::TryStreamExt;

use super::file_name::FileName;
use crate::api::error::ApiError;
use crate::domain::JobId;
use crate::storage::{Storage, StorageError};

/// A file that a job has published.
#[derive(Debug, Clone, Copy)]
pub(super) struct File<'a> {
    /// The job.
    pub job_id: &'a JobId,
    /// The index of the output, as the caller wrote it.
    pub index: &'a str,
    /// Where the file is; never shown.
    pub url: &'a str,
}

impl File<'_> {
    /// Fetches the file, or the part of it that `range` asks for. `limit` is the maximum size of one response, in
    /// bytes.
    ///
    /// # Errors
    /// A 502 or 504 if the file cannot be fetched, a 413 if it is too large.
    pub async fn respond(
        self,
        storage: &Storage,
        range: Option<&HeaderValue>,
        limit: Option<u64>,
    ) -> Result<Response, ApiError> {
        let origin = storage.open(self.url, range).await.map_err(|error| self.failed(&error))?;
        match limit.zip(length(&origin)) {
            Some((limit, length)) if length > limit => {
                let presigned = self.presigned(storage, &origin).await.map_err(|error| self.failed(&error))?;
                presigned.ok_or_else(|| self.too_large(length, limit))
            }
            _ => Ok(self.stream(storage, range.is_some(), origin)),
        }
    }

    fn failed(self, error: &StorageError) -> ApiError {
        let Self { job_id, index, .. } = self;
        tracing::warn!(job = %job_id, index, error = error as &dyn std::error::Error, "a result could not be fetched");
        let status = match error {
            StorageError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        ApiError::new(status, format!("Result {index} of job {job_id} cannot be fetched: {error}"))
    }

    /// A redirect to S3 itself; `None` if the file is not in one of OUTPUT_BUCKETS.
    async fn presigned(self, storage: &Storage, origin: &reqwest::Response) -> Result<Option<Response>, StorageError> {
        let disposition = FileName::of_origin(origin.headers(), self.url).content_disposition();
        let disposition = String::from_utf8_lossy(disposition.as_bytes());
        let presigned = storage.presigned(self.url, &disposition).await?;
        let Some(mut location) = presigned.and_then(|url| HeaderValue::try_from(url).ok()) else {
            return Ok(None);
        };
        location.set_sensitive(true);
        // A cache would still return the URL when it is no longer valid.
        let headers = [(LOCATION, location), (CACHE_CONTROL, HeaderValue::from_static("no-store"))];
        Ok(Some((StatusCode::FOUND, headers).into_response()))
    }

    fn too_large(self, length: u64, limit: u64) -> ApiError {
        let Self { job_id, index, .. } = self;
        let message = format!(
            "Result {index} of job {job_id} has {length} bytes, and one response holds at most {limit}: fetch it in \
             parts, with a Range header and a new nonce for each"
        );
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// Streams the origin's content, with those of its headers that describe the content.
    fn stream(self, storage: &Storage, ranged: bool, origin: reqwest::Response) -> Response {
        let mut headers = HeaderMap::new();
        for name in [CONTENT_LENGTH, CONTENT_RANGE, CONTENT_ENCODING, ACCEPT_RANGES, ETAG, LAST_MODIFIED] {
            if let Some(value) = origin.headers().get(&name) {
                headers.insert(name, value.clone());
            }
        }
        let status = origin.status();
        let name = FileName::of_origin(origin.headers(), self.url);
        headers.insert(CONTENT_TYPE, name.content_type().clone());
        if !ranged {
            headers.insert(CONTENT_DISPOSITION, name.content_disposition());
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Content-Disposition"));
        }

        let (job_id, index) = (self.job_id.clone(), self.index.to_owned());
        // An error ends the stream and closes the connection, so that the caller does not take a part for the whole.
        let content = storage.content(origin).inspect_err(move |error| {
            let error = error as &dyn std::error::Error;
            tracing::warn!(job = %job_id, index, error, "the stream of a result was interrupted");
        });
        (status, headers, Body::from_stream(content)).into_response()
    }
}

/// The length of an origin's response in bytes, if it states one.
fn length(origin: &reqwest::Response) -> Option<u64> {
    origin.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
