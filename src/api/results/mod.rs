//! Hand out a job's results: /getResult.

mod file_name;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED, LOCATION, RANGE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::get;
use futures_util::TryStreamExt;
use utoipa::IntoParams;

use super::input::{Params, required};
use crate::api::error::{ApiError, ErrorBody};
use crate::auth::Nonce;
use crate::auth::{Address, Operation, Signed};
use crate::config::Config;
use crate::db::{Database, ResultRow};
use crate::domain::output;
use crate::storage::{Storage, StorageError};
use crate::telemetry;
use file_name::FileName;

/// What the group needs.
#[derive(Clone)]
pub struct Results {
    config: Arc<Config>,
    db: Database,
    storage: Storage,
}

/// The group's routes.
pub fn router(config: Arc<Config>, db: Database, storage: Storage) -> Router {
    Router::new().route("/api/v1/operator/getResult", get(get_result)).with_state(Results { config, db, storage })
}

/// Which result, and who asks.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[allow(dead_code, reason = "describes what ResultRequest::read takes")]
struct ResultParams {
    /// Whose job it is.
    #[param(example = "0xC41808BBef371AD5CFc76466dDF9dEe228d2BdAA")]
    owner: String,
    /// 65 bytes in hex over owner, jobId and nonce (Provider's form).
    provider_signature: String,
    /// A clock reading of the signer that it has not used before.
    #[param(example = "1795300414039237000")]
    nonce: String,
    /// Which of the job's outputs, counted from 0 in the order of the status object's `results`.
    #[param(example = "0")]
    index: String,
    /// The job.
    #[param(example = "9f9178dcffd34130a3158ce9ca3d15ff")]
    job_id: String,
    /// The signer by its own account.
    provider_address: Option<String>,
}

struct ResultRequest {
    owner: String,
    signature: String,
    nonce: Nonce,
    /// A whole number of any size, as it was written.
    index: String,
    job_id: String,
    provider_address: Option<String>,
}

impl ResultRequest {
    fn read(params: &Params) -> Result<Self, ApiError> {
        let required = |name| required(name, "GET:/getResult");
        Ok(Self {
            owner: params.name("owner")?.ok_or_else(|| required("owner"))?,
            signature: params.text("providerSignature")?.ok_or_else(|| required("providerSignature"))?.to_owned(),
            nonce: params.nonce()?.ok_or_else(|| required("nonce"))?,
            index: whole_number(params.number_text("index")?.ok_or_else(|| required("index"))?)?,
            job_id: params.name("jobId")?.ok_or_else(|| required("jobId"))?,
            provider_address: params.storable_text("providerAddress")?,
        })
    }

    fn signed(&self) -> Signed<'_> {
        Signed {
            operation: Operation::Result,
            owner: &self.owner,
            job_id: Some(&self.job_id),
            agreement_id: None,
            provider_address: self.provider_address.as_deref(),
            nonce: Some(self.nonce.as_str()),
        }
    }

    /// Finds the URL of what is asked for, or the 404 that says why there is none.
    fn locate(&self, signer: Address, row: Option<ResultRow>) -> Result<String, ApiError> {
        let Self { owner, job_id, index, .. } = self;
        let row = row.ok_or_else(|| ApiError::not_found(format!("Owner {owner} mismatch for job {job_id}")))?;
        // The old service filed wrong signers: for its jobs the right owner will do.
        let provider = row.provider.as_deref().and_then(|address| address.parse().ok());
        if row.signer_verified && provider != Some(signer) {
            return Err(ApiError::not_found(format!("Provider {signer} mismatch for job {job_id}")));
        }
        if row.removed {
            return Err(ApiError::not_found(format!("Results of job {job_id} have expired")));
        }
        let outputs = row.outputs.as_deref().and_then(output::parse);
        let outputs = outputs.ok_or_else(|| ApiError::not_found(format!("No results for job {job_id}")))?;
        if index.starts_with('-') {
            return Err(ApiError::not_found(format!("Negative index {index}")));
        }
        let url = index.parse().ok().and_then(|index| output::url(&outputs, index));
        let url = url.ok_or_else(|| ApiError::not_found(format!("No such index {index} in this compute job")))?;
        Ok(url.to_owned())
    }
}

fn whole_number(text: &str) -> Result<String, ApiError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || digits.len() > 64 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ApiError::bad_request("\"index\" must be a whole number"));
    }
    Ok(text.to_owned())
}

/// Fetch a result.
///
/// The file is streamed from where it lies; that place is never shown. A `Range` header is passed on to it. A 5xx
/// leaves the nonce free: the same request may be sent again. The parameters may also stand in a JSON body.
#[utoipa::path(
    get,
    path = "/api/v1/operator/getResult",
    tag = "results",
    params(ResultParams, ("Range" = Option<String>, Header, description = "Passed on to the origin.")),
    responses(
        (status = 200, description = "The file.", content_type = "application/octet-stream", headers(
            ("Content-Disposition" = String, description = "`attachment;filename=` and the file's name"),
        )),
        (status = 206, description = "The part of the file that `Range` asks for.",
            content_type = "application/octet-stream", headers(
            ("Content-Range" = String, description = "Which part of the file this is"),
        )),
        (status = 302, description = "The file is larger than one answer may be: for some minutes it can be had there.",
            headers(("Location" = String, description = "A URL of S3 that needs no credentials"))),
        (status = 400, description = "What to change: a parameter, the signature or the nonce.", body = ErrorBody),
        (status = 401, description = "The signer is not one of ALLOWED_PROVIDERS.", body = ErrorBody),
        (status = 404, description = "The job is another's or has no such result, or its results have expired.",
            body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 413, description = "The file is larger than one answer may be: fetch it in parts with `Range`. Or the \
            request's body is larger than 400 KiB.", body = ErrorBody),
        (status = 416, description = "The file has no such range; the origin's own answer.",
            content_type = "application/octet-stream"),
        (status = 500, description = "An error that has been logged.", body = ErrorBody),
        (status = 502, description = "The origin did not hand the file out.", body = ErrorBody),
        (status = 503, description = "The database is not available.", body = ErrorBody),
        (status = 504, description = "The origin did not answer in time.", body = ErrorBody),
    )
)]
pub(super) async fn get_result(
    State(results): State<Results>,
    headers: HeaderMap,
    params: Params,
) -> Result<Response, ApiError> {
    let Results { config, db, storage } = results;
    let request = ResultRequest::read(&params)?;
    telemetry::set_job(&request.job_id);
    let signer = config.access.policy.signer(&request.signed(), &request.signature)?;
    let nonce = config.access.policy.nonce_use(signer, &request.nonce);

    // An origin's trouble has to leave the nonce free, and no transaction may wait for an origin. So the nonce is
    // only looked at first, and taken when the answer is certain; of several requests that get there, one passes.
    db.peek_nonce(nonce.clone()).await??;
    let row = db.result(&request.job_id, &request.owner).await?;
    let opened = match request.locate(signer, row) {
        Ok(url) => {
            let range = headers.get(RANGE);
            let opened = storage.open(&url, range).await;
            let origin = opened.map_err(|error| origin_failed(&request, &error))?;
            match config.storage.stream_limit.zip(length(&origin)) {
                Some((limit, length)) if length > limit => {
                    let instead = elsewhere(&storage, &origin, &url).await;
                    let instead = instead.map_err(|error| origin_failed(&request, &error))?;
                    instead.ok_or_else(|| too_large(&request, length, limit))
                }
                _ => Ok(answer(&request, range.is_some(), &storage, origin, &url)),
            }
        }
        Err(not_found) => Err(not_found),
    };
    db.take_nonce(nonce).await??;
    opened
}

fn origin_failed(request: &ResultRequest, error: &StorageError) -> ApiError {
    let ResultRequest { job_id, index, .. } = request;
    tracing::warn!(job = job_id, index, error = error as &dyn std::error::Error, "a result could not be fetched");
    let status = match error {
        StorageError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        StorageError::Aws(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_GATEWAY,
    };
    ApiError::new(status, format!("Result {index} of job {job_id} cannot be fetched: {error}"))
}

/// How long an origin's answer is, if it says so.
fn length(origin: &reqwest::Response) -> Option<u64> {
    origin.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Where a file can be had that is too large for an answer: S3 itself, for some minutes.
async fn elsewhere(storage: &Storage, origin: &reqwest::Response, url: &str) -> Result<Option<Response>, StorageError> {
    let disposition = FileName::of_origin(origin.headers(), url).content_disposition();
    let disposition = String::from_utf8_lossy(disposition.as_bytes()).into_owned();
    let Some(url) = storage.presigned(url, &disposition).await? else {
        return Ok(None);
    };
    let Ok(mut location) = HeaderValue::try_from(url) else {
        return Ok(None);
    };
    location.set_sensitive(true);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::FOUND;
    response.headers_mut().insert(LOCATION, location);
    // Whoever gets it from a cache gets it when its time is over.
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(Some(response))
}

fn too_large(request: &ResultRequest, length: u64, limit: u64) -> ApiError {
    let ResultRequest { job_id, index, .. } = request;
    let message = format!(
        "Result {index} of job {job_id} has {length} bytes, and one answer holds {limit} at most: fetch it in parts, \
         with a Range header and a new nonce for each"
    );
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

/// Makes the origin's answer ours: its content as it comes, and of its headers those that describe the content.
fn answer(request: &ResultRequest, ranged: bool, storage: &Storage, origin: reqwest::Response, url: &str) -> Response {
    let mut headers = HeaderMap::new();
    for name in [CONTENT_LENGTH, CONTENT_RANGE, CONTENT_ENCODING, ACCEPT_RANGES, ETAG, LAST_MODIFIED] {
        if let Some(value) = origin.headers().get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let status = origin.status();
    let name = FileName::of_origin(origin.headers(), url);
    headers.insert(CONTENT_TYPE, name.content_type().clone());
    if !ranged {
        headers.insert(CONTENT_DISPOSITION, name.content_disposition());
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Content-Disposition"));
    }

    let (job_id, index) = (request.job_id.clone(), request.index.clone());
    // Ending the stream with an error cuts the connection, so that the caller does not take a part for the whole.
    let content = storage.content(origin).inspect_err(move |error| {
        tracing::warn!(job = job_id, index, error = error as &dyn std::error::Error, "a result broke off");
    });
    let mut response = Response::new(Body::from_stream(content));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
