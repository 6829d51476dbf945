//! GET /getResult: streams one output of a job.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::RANGE;
use axum::response::Response;
use utoipa::IntoParams;
use utoipa::openapi::Type;

use super::Results;
use super::file::File;
use crate::api::error::{ApiError, ErrorBody};
use crate::api::input::{FromParams, Input, Params};
use crate::api::schemas::{number_or_text, schema};
use crate::auth::{Address, Nonce, Operation, ProviderSignature, Signed};
use crate::db::ResultRow;
use crate::domain::{JobId, Owner, ProviderAddress, output};
use crate::telemetry;

/// The parameters of GET /getResult.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(in crate::api) struct ResultRequest {
    /// The account that the job belongs to.
    owner: Owner,
    /// 65 bytes in hex over owner, jobId and nonce (Provider's message; other callers sign others).
    provider_signature: ProviderSignature,
    /// A clock reading that the signer has not used before.
    nonce: Nonce,
    /// The index of the output, counted from 0 in the order of the status object's `results`.
    index: Index,
    /// The job.
    job_id: JobId,
    /// The address that the caller claims to sign with.
    provider_address: Option<ProviderAddress>,
    #[param(ignore)]
    digest: [u8; 32],
}

/// A whole number, as it was written: messages repeat it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct Index(String);

schema! {
    Index => number_or_text(Type::Integer, "A whole number.", "^[0-9]{1,64}$", "0");
}

impl<S> FromParams<S> for ResultRequest {
    const CALL: &'static str = "GET:/getResult";

    fn read(params: &Params, _: &S) -> Result<Self, ApiError> {
        Ok(Self {
            owner: params.required("owner", Params::id)?,
            provider_signature: params.required("providerSignature", Params::signature)?,
            nonce: params.required("nonce", Params::nonce)?,
            index: params.required("index", Params::number_text).and_then(Index::parse)?,
            job_id: params.required("jobId", Params::id)?,
            provider_address: params.id_of_any_length("providerAddress")?,
            digest: params.digest(),
        })
    }
}

impl Index {
    fn parse(text: &str) -> Result<Self, ApiError> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        if digits.is_empty() || digits.len() > 64 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ApiError::bad_request("\"index\" must be a whole number"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl ResultRequest {
    /// The URL of the requested output, or the 404 that says why there is none
    /// (docs/contract/http.md, "GET /getResult").
    fn locate(&self, signer: Address, row: Option<ResultRow>) -> Result<String, ApiError> {
        let Self { owner, job_id, index: Index(index), .. } = self;
        let row = row.ok_or_else(|| ApiError::not_found(format!("Owner {owner} mismatch for job {job_id}")))?;
        // docs/contract/engine.md, "Rows of the Python service"
        if row.signer_verified && row.provider != Some(signer) {
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

/// Fetch a result.
///
/// The file is streamed from its origin, whose URL is never shown. A `Range` header is passed to it. The nonce is used
/// before the origin is asked, and stays used if the origin fails: a repetition needs a new nonce and signature. After a
/// 503 it may be free or used. Every error has `Content-Disposition: attachment;filename=error.json`. The parameters may also
/// be sent in a JSON body.
#[utoipa::path(
    get,
    path = "/api/v1/operator/getResult",
    tag = "results",
    params(ResultRequest, ("Range" = Option<String>, Header, description = "Passed to the origin.")),
    responses(
        (status = 200, description = "The file.", content_type = "*/*", headers(
            ("Content-Disposition" = String, description = "`attachment;filename=` and the file's name"),
        )),
        (status = 206, description = "The part of the file that `Range` asks for.",
            content_type = "*/*", headers(
            ("Content-Range" = String, description = "Which part of the file this is"),
        )),
        (status = 302, description = "The file is too large for one response; it can be fetched from there for 5 minutes.",
            headers(("Location" = String, description = "A URL of S3 that needs no credentials"))),
        (status = 400, description = "A parameter, the signature or the nonce is refused; `error` says why.",
            body = ErrorBody),
        (status = 401, description = "The signer is not one of ALLOWED_PROVIDERS.", body = ErrorBody),
        (status = 404, description = "The job is another's or has no such result, or its results have expired.",
            body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 413, description = "The file is too large for one response: fetch it in parts with `Range`. Or the \
            request's body is larger than 400 KiB.", body = ErrorBody),
        (status = 416, description = "The file has no such range; the origin's own response.",
            content_type = "*/*"),
        (status = 500, description = "An error that has been logged.", body = ErrorBody),
        (status = 502, description = "The origin did not return the file. The nonce is used.", body = ErrorBody),
        (status = 503, description = "The database is not available. The same request may be sent again; if its nonce is \
            refused then, with a new one.",
            body = ErrorBody),
        (status = 504, description = "The origin did not answer in time. The nonce is used.", body = ErrorBody),
    )
)]
pub(in crate::api) async fn get_result(
    State(state): State<Results>,
    headers: HeaderMap,
    Input(request): Input<ResultRequest>,
) -> Result<Response, ApiError> {
    telemetry::set_job(request.job_id.as_str());
    let policy = &state.config.access.policy;
    let signed = Signed {
        operation: Operation::Result,
        owner: Some(&request.owner),
        job_id: Some(&request.job_id),
        agreement_id: None,
        provider_address: request.provider_address.as_ref(),
        nonce: Some(&request.nonce),
    };
    let signer = policy.signer(&signed, &request.provider_signature)?;
    let nonce = policy.nonce_use(&signer, &request.nonce, request.digest);

    // The nonce is used before anything is returned or fetched, and stays used whatever the origin does: nobody repeats a
    // getResult by itself, and the signature in it is valid for more than that (docs/contract/callers.md, "Replay"). But
    // after the last read that can fail, so that a failure of the database leaves it free.
    let row = state.db.result(&request.job_id, &request.owner).await?;
    state.db.use_nonce(nonce).await?;
    let url = request.locate(signer.address, row)?;
    let file = File { job_id: &request.job_id, index: &request.index.0, url: &url };
    file.respond(&state.storage, headers.get(RANGE), state.config.storage.stream_limit).await
}
